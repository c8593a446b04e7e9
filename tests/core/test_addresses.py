"""Are connections counted for each address? See native/test_addresses.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

import native
import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = native.needs_compiler


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native.build("test_addresses", ["addresses.c", "sys.c"], tmp_path_factory.mktemp("native"))


@pytest.mark.parametrize("name", native.names("test_addresses"))
def test_addresses(program: Path, name: str) -> None:
    native.run(program, name)
