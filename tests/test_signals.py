"""Do SIGINT and SIGTERM stop a loop, and is everything as before when it has ended?"""

from __future__ import annotations

import concurrent.futures
import os
import select
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from wspy.signals import StopSignals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

BOTH = (signal.SIGINT, signal.SIGTERM)


def state() -> tuple[Any, ...]:
    """Return what a run may not change for good."""
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return (*map(signal.getsignal, BOTH), wakeup, len(os.listdir("/proc/self/fd")))  # noqa: PTH208 -- as good


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Fail a test behind which signals are not as they were."""
    before = state()
    assert before[:3] == (signal.default_int_handler, signal.SIG_DFL, -1)
    yield
    assert state() == before


@pytest.fixture
def watched() -> list[int]:
    """Return the descriptors that were watched."""
    return []


@pytest.fixture
def foreign() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return the ends of somebody else's wake-up descriptor."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)  # noqa: FBT003 -- its only argument
    signal.set_wakeup_fd(ends[1].fileno())
    yield ends
    signal.set_wakeup_fd(-1)
    for end in ends:
        end.close()


@pytest.fixture
def handler() -> Iterator[Callable[[int, FrameType | None], None]]:
    """Return a handler, and restore those of before in the end."""
    previous = {number: signal.getsignal(number) for number in BOTH}
    yield lambda _number, _frame: None
    for number, other in previous.items():
        signal.signal(number, other)


def is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


# ---- while it runs ----


@pytest.mark.parametrize("number", BOTH)
def test_signals_are_counted_and_wake(watched: list[int], number: int) -> None:
    with StopSignals(watched.append) as signals:
        (fd,) = watched
        assert signals.count == 0
        assert not is_readable(fd)
        signal.raise_signal(number)
        assert signals.count == 1
        assert is_readable(fd)
        signal.raise_signal(number)
        assert signals.count == 2
    assert watched == [fd, -1]


def test_a_flood_of_signals_that_nobody_reads_is_no_error(
    watched: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    with StopSignals(watched.append) as signals:
        for _ in range(2000):
            signal.raise_signal(signal.SIGTERM)
        assert signals.count == 2000
    assert capfd.readouterr() == ("", "")


def test_what_is_watched_never_blocks_and_is_not_inherited(watched: list[int]) -> None:
    with StopSignals(watched.append):
        assert not os.get_blocking(watched[0])
        assert not os.get_inheritable(watched[0])


def test_it_can_be_used_again(watched: list[int]) -> None:
    signals = StopSignals(watched.append)
    for _ in range(2):
        with signals:
            signal.raise_signal(signal.SIGINT)
    assert signals.count == 2
    assert [fd for fd in watched if fd == -1] == [-1, -1]


# ---- what others have set ----


def test_a_handler_of_somebody_else_stays(watched: list[int], handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    with StopSignals(watched.append) as signals:
        assert signal.getsignal(signal.SIGINT) is handler
        signal.raise_signal(signal.SIGINT)
        assert signals.count == 0
        signal.raise_signal(signal.SIGTERM)
        assert signals.count == 1
    assert signal.getsignal(signal.SIGINT) is handler


class Unhashable:
    """A handler, as a dataclass with a __call__ would be."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Ignore the signal."""


@pytest.mark.parametrize("other", [signal.SIG_IGN, Unhashable()], ids=["ignored", "unhashable"])
def test_without_a_default_handler_nothing_is_done(watched: list[int], handler: Any, other: Any) -> None:
    for number in BOTH:
        signal.signal(number, other)
    before = state()
    with StopSignals(watched.append) as signals:
        assert state() == before
        signal.raise_signal(signal.SIGTERM)
        assert signals.count == 0
    assert watched == []


def test_a_handler_that_was_set_meanwhile_stays(watched: list[int], handler: Any) -> None:
    with StopSignals(watched.append):
        signal.signal(signal.SIGTERM, handler)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_wakeup_descriptor_of_somebody_else_stays(
    watched: list[int], foreign: tuple[socket.socket, socket.socket]
) -> None:
    with StopSignals(watched.append) as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.count == 1
        assert foreign[0].recv(10) == bytes([signal.SIGTERM])
    assert watched == []
    assert signal.set_wakeup_fd(-1) == foreign[1].fileno()


def test_a_wakeup_descriptor_that_was_set_meanwhile_stays(watched: list[int]) -> None:
    ends = socket.socketpair()
    with ends[0], ends[1]:
        ends[1].setblocking(False)  # noqa: FBT003 -- its only argument
        with StopSignals(watched.append):
            signal.set_wakeup_fd(ends[1].fileno())
        assert signal.set_wakeup_fd(-1) == ends[1].fileno()


def test_another_thread_changes_nothing(watched: list[int]) -> None:
    before = state()[:3]

    def enter() -> tuple[Any, ...]:
        with StopSignals(watched.append):
            return tuple(map(signal.getsignal, BOTH))

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(enter).result() == before[:2]
    assert watched == []


def test_the_main_thread_counts_signals_that_another_one_sent(watched: list[int]) -> None:
    with StopSignals(watched.append) as signals:
        sender = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM))
        sender.start()
        assert select.select(watched, [], [], 10)[0] == watched
        sender.join()
        assert signals.count == 1


# ---- exceptions in between ----


def test_an_exception_of_the_run_changes_nothing(watched: list[int]) -> None:
    with pytest.raises(ZeroDivisionError), StopSignals(watched.append):
        _ = 1 / 0
    assert watched[1:] == [-1]


@pytest.mark.parametrize("when", [0, 1], ids=["begin", "end"])
def test_a_watch_that_fails_changes_nothing(when: int) -> None:
    asked = []

    def watch(fd: int) -> None:
        asked.append(fd)
        if len(asked) == when + 1:
            raise OSError("epoll does not take it")

    with pytest.raises(OSError, match="epoll"), StopSignals(watch):
        assert when == 1
    assert asked[-1] == -1


def test_an_interrupt_before_signals_are_counted_is_raised() -> None:
    def watch(fd: int) -> None:
        if fd >= 0:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), StopSignals(watch):
        pytest.fail("it began nevertheless")


def test_an_interrupt_while_it_ends_is_counted() -> None:
    def watch(fd: int) -> None:
        if fd == -1:
            signal.raise_signal(signal.SIGINT)

    with StopSignals(watch) as signals:
        pass
    assert signals.count == 1
