"""Is the end of a connection told as it was, and readable?"""

from __future__ import annotations

import errno

import pytest

from wspy import SocketClosed
from wspy import loop as core
from wspy.closure import closure

CLEAN = core.Ending(error=0, errno=0, age=1.5, unsent_bytes=0, unsent_messages=0)


def test_a_clean_end_by_the_peer() -> None:
    found = closure(CLEAN, SocketClosed(rcvd=(1001, "going")))
    assert (found.by, found.is_clean, found.code, found.reason) == ("peer", True, 1001, "going")
    assert (found.received, found.sent) == ((1001, "going"), (1001, ""))
    assert str(found) == "closed by the peer with 1001 'going' after 1.500 s"


def test_a_clean_end_by_this_side() -> None:
    found = closure(CLEAN, SocketClosed(initialized=True, sent=(1000, "bye"), rcvd=(1000, "")))
    assert (found.by, found.received, found.sent) == ("this side", (1000, ""), (1000, "bye"))
    assert str(found) == "closed by this side with 1000 after 1.500 s"


@pytest.mark.parametrize(
    ("error", "by", "limit"),
    [
        (core.CUT, "peer", None),
        (core.LOST, "network", None),
        (core.CLOSE_TIMEOUT, "this side", "close_timeout"),
        *((error, "this side", limit) for error, limit in core.LIMITS.items()),
    ],
)
def test_other_ends(error: int, by: str, limit: str | None) -> None:
    found = closure(CLEAN._replace(error=error), SocketClosed())
    assert (found.by, found.limit, found.is_clean, found.code) == (by, limit, False, 1006)
    assert found.sent is None
    assert "without a closing handshake" in str(found)
    assert (f"for {limit}" in str(found)) == (limit is not None)


def test_what_is_left_and_why() -> None:
    ending = core.Ending(core.LOST, errno.EPIPE, age=0.25, unsent_bytes=300, unsent_messages=2)
    found = closure(ending, SocketClosed(code=1006, reason="lost"))
    assert (found.errno, found.unsent_bytes, found.unsent_messages) == (errno.EPIPE, 300, 2)
    assert str(found) == (
        "closed by the network with 1006 'lost' without a closing handshake (Broken pipe) after 0.250 s "
        "with 2 messages (300 bytes) unsent"
    )


def test_what_a_peer_says_can_not_break_a_log() -> None:
    assert str(closure(CLEAN, SocketClosed(rcvd=(1000, "a\nb\x1b")))).isprintable()
