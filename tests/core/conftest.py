"""What tests of the core are given: a connection, of which the loop gets one end."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turns import Pair


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, peer = socket.socketpair()
    yield ours, peer
    ours.close()
    peer.close()
