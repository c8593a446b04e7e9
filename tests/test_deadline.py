"""Does a blocking call end when it must?"""

from __future__ import annotations

import select
import socket
import time

import pytest

from wspy.deadline import Deadline
from wspy.errors import SocketClosed


def test_never() -> None:
    assert Deadline(None).remaining is None


def test_what_remains_shrinks_to_nothing() -> None:
    deadline = Deadline(1000)
    first = deadline.remaining
    assert first is not None
    assert 999 < first <= 1000
    assert (deadline.remaining or 0) <= first
    assert Deadline(0).remaining == 0
    assert Deadline(-5).remaining == 0


@pytest.mark.parametrize(
    ("one", "other", "least"), [(None, None, None), (5, None, 5), (None, 5, 5), (5, 9, 5), (9, 5, 5)]
)
def test_the_earlier_one(one: float | None, other: float | None, least: float | None) -> None:
    remaining = Deadline(one).earlier(other).remaining
    assert remaining == least if least is None else remaining == pytest.approx(least, abs=1)


def test_waiting_ends_with_an_event_or_the_time() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert Deadline(None).wait(one, select.POLLOUT) == select.POLLOUT
        assert Deadline(0).wait(one, select.POLLOUT) == select.POLLOUT
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            Deadline(0.05).wait(one, select.POLLIN)
        assert time.monotonic() - start >= 0.05
        other.send(b"x")
        assert Deadline(1000).wait(one, select.POLLIN | select.POLLOUT) == select.POLLIN | select.POLLOUT


def test_who_is_always_ready_gets_one_look_when_the_time_is_up() -> None:
    one, other = socket.socketpair()
    with one, other:
        deadline = Deadline(0)
        assert deadline.wait(one, select.POLLOUT) == select.POLLOUT
        assert deadline.is_over
        with pytest.raises(TimeoutError):
            deadline.wait(one, select.POLLOUT)
        assert not Deadline(None).is_over


def test_more_milliseconds_than_an_int_holds() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert Deadline(1e18).wait(one, select.POLLOUT) == select.POLLOUT


def test_several_sockets() -> None:
    one, other = socket.socketpair()
    with one, other:
        poll = select.poll()
        poll.register(one, select.POLLIN)
        poll.register(other, select.POLLOUT)
        assert Deadline(10).poll(poll) == [(other.fileno(), select.POLLOUT)]
        poll.unregister(other)
        assert Deadline(0).poll(poll) == []


def test_a_socket_that_is_closed_is_not_waited_for() -> None:
    with socket.socket() as sock:
        pass
    with pytest.raises(SocketClosed) as caught:
        Deadline(10).wait(sock, select.POLLIN)
    assert caught.value.initialized
