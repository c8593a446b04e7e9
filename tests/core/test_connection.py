"""Does each connection of the loop read, write and end as its phase allows, whatever its peer and the kernel do?"""

from __future__ import annotations

import socket

import pytest
from turns import (
    CLOSE,
    CLOSE_RECEIVED,
    CLOSED,
    Turns,
    frame,
    received,
    server_frames,
)

CLOSE_FRAME = 8
NORMAL = b"\x03\xe8"


@pytest.fixture
def pair() -> tuple[socket.socket, socket.socket]:
    ours, peer = socket.socketpair()
    return ours, peer


# ---- the closing handshake ----


def test_a_close_is_echoed_with_its_code(pair: tuple[socket.socket, socket.socket]) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(CLOSE_FRAME, NORMAL + b"bye"))
        events = turns.until(CLOSED, handle)
        assert [event.kind for event in events] == [CLOSE_RECEIVED, CLOSED]
        assert events[0].payload == NORMAL + b"bye"
        assert (events[1].start, events[1].error) == (1005, 0)
        assert server_frames(received(peer)) == [(CLOSE_FRAME, NORMAL)]


def test_our_close_is_sent_and_answered(pair: tuple[socket.socket, socket.socket]) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        turns.push(CLOSE, handle, NORMAL + b"bye")
        assert turns.settle() == []
        assert server_frames(received(peer)) == [(CLOSE_FRAME, NORMAL + b"bye")]
        peer.sendall(frame(CLOSE_FRAME, NORMAL))
        events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1005, 0)
        assert received(peer) == b""
