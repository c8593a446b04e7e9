"""Does the seam pass calls on, and does it fail exactly those that a test asked for?"""

from __future__ import annotations

import errno
import re
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from turns import SEND, TEXT, Turns, faults, frame, received, server_frames

from wspy._core import lib

if TYPE_CHECKING:
    from turns import Pair

CORE = Path(__file__).resolve().parents[2] / "wspy" / "_core"


def calls(kind: int) -> int:
    """Return how many calls of a kind were made since the last time."""
    made: int = lib.wspy_sys_fail(kind, 0, 0, 0, 0)
    return made


def test_calls_are_counted(pair: Pair) -> None:
    with Turns() as turns:
        handle = turns.opened(pair)
        calls(lib.WSPY_SYS_SEND)
        for _ in range(3):
            turns.push(SEND, handle, frame(1, b"x", key=None))
            turns.turn()
        assert calls(lib.WSPY_SYS_SEND) == 3
        assert calls(lib.WSPY_SYS_SEND) == 0


@pytest.mark.parametrize(("nth", "times"), [(1, 1), (2, 1), (3, 2), (1, 5), (6, 1)])
def test_the_nth_call_fails_and_so_many_after_it(pair: Pair, nth: int, times: int) -> None:
    with Turns() as turns, faults(lib.WSPY_SYS_EPOLL_WAIT, nth, times, errno.EBADF):
        failed = []
        for number in range(1, 8):
            result = lib.wspy_loop_turn(turns.loop, *turns.batch(), 0)
            if result == lib.WSPY_ERROR_SYSTEM:
                failed.append(number)
        assert failed == list(range(nth, min(nth + times, 8)))


def test_a_kind_that_does_not_exist_is_an_error() -> None:
    for kind in (-1, lib.WSPY_SYS_CALL_COUNT, 99):
        assert lib.wspy_sys_fail(kind, 1, 1, errno.ENOMEM, 0) == lib.WSPY_ERROR_ARGUMENT


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_io_is_short_if_asked(pair: Pair, size: int) -> None:
    with Turns() as turns:
        handle = turns.opened(pair)
        with faults(lib.WSPY_SYS_SEND, short_io=size):
            turns.push(SEND, handle, frame(1, b"x" * 120, key=None))
            turns.submit()
            assert len(received(pair[1])) == size
            pair[1].sendall(frame(1, b"hello"))
            before = turns.stats()["bytes_received"]
            turns.turn()
            assert turns.stats()["bytes_received"] - before == min(size, 11)
            turns.settle()


@pytest.mark.slow
def test_i3_a_storm_of_signals_disturbs_nothing(pair: Pair) -> None:
    """EINTR ends a turn; every other call is made again."""
    hits = 0

    def on_signal(number: int, _frame: object) -> None:
        nonlocal hits
        hits += 1

    before = signal.signal(signal.SIGALRM, on_signal)
    signal.siginterrupt(signal.SIGALRM, True)  # noqa: FBT003 -- takes no keyword
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        with Turns() as turns:
            handle = turns.opened(pair)
            echoed = 0
            pair[1].sendall(frame(1, b"0"))
            data = b""
            while echoed < 1500:
                for event in turns.turn(100):
                    assert event.kind == TEXT
                    turns.push(SEND, handle, frame(1, event.payload, key=None))
                data += received(pair[1])
                if data:
                    assert server_frames(data) == [(1, b"%d" % echoed)]
                    data = b""
                    echoed += 1
                    pair[1].sendall(frame(1, b"%d" % echoed))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits > 10


def test_i2_no_sigpipe_is_raised(pair: Pair) -> None:
    """Python ignores SIGPIPE, a program around it may not."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with Turns() as turns:
            handle = turns.opened(pair)
            pair[1].close()
            turns.push(SEND, handle, frame(1, b"x", key=None))
            thread = threading.Thread(target=turns.submit)
            thread.start()
            thread.join()
            turns.settle()
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_nothing_else_in_the_core_allocates_or_calls_the_kernel() -> None:
    calls_past_the_seam = re.compile(
        r"(?<![\w>.])(malloc|calloc|realloc|free|mmap|munmap|madvise|recv|recvmsg|send|sendmsg|read|write|close|"
        r"shutdown|accept4?|epoll_\w+|eventfd|timerfd_\w+|setsockopt|getpeername|clock_gettime|getrandom|fcntl|ioctl)\("
    )
    found = []
    for source in sorted(CORE.glob("*.c")):
        if source.name.startswith(("sys", "_wspy")):
            continue
        text = re.sub(r"/\*.*?\*/|\"(?:\\.|[^\"])*\"", "", source.read_text(encoding="utf-8"), flags=re.DOTALL)
        found += [f"{source.name}: {call}" for call in calls_past_the_seam.findall(text)]
    assert not found


def test_every_function_of_the_seam_is_implemented_by_the_fake_kernel() -> None:
    prototypes = re.findall(r"^[\w *]*?(wspy_sys_\w+)\(", (CORE / "sys.h").read_text(encoding="utf-8"), re.MULTILINE)
    fake = (Path(__file__).resolve().parent.parent / "fuzz" / "fake_kernel.c").read_text(encoding="utf-8")
    defined = set(re.findall(r"^[\w *]*?(wspy_sys_\w+)\([^;]*?\)\n?\{", fake, re.MULTILINE | re.DOTALL))
    assert len(prototypes) > 20
    assert set(prototypes) <= defined
