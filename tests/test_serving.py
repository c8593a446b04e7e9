"""What have all servers in common that is no behaviour on the wire? That is in behaviour/, for each of them."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from wspy import serving


@pytest.mark.parametrize("seconds", [0, 784111777, 951782400, 1709164799, 4102444800])
def test_a_date_is_in_the_format_of_http(seconds: int) -> None:
    assert serving._http_date(seconds) == formatdate(seconds, usegmt=True)
