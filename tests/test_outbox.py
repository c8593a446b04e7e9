"""Does every byte leave once, in order, and is everybody told, whatever comes in between?"""

from __future__ import annotations

import socket
import threading
from collections import deque
from typing import TYPE_CHECKING

import pytest
from drivers import DEADLINE_S
from sockets import Running
from steps import at_each_step

from wspy import outbox as module
from wspy.outbox import Outbox, Unsent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket whose kernel takes little, and its peer."""
    one, other = socket.socketpair()
    with one, other:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        one.settimeout(0)
        other.settimeout(DEADLINE_S)
        yield one, other


def drained(outbox: Outbox, one: socket.socket, other: socket.socket) -> bytes:
    """Write until nothing is left, and return all that arrives."""
    data = bytearray()
    while outbox:
        outbox.write(one)
        outbox.tell()
        other.settimeout(0)
        try:
            data += other.recv(1 << 16)
        except BlockingIOError:
            assert not outbox
    return bytes(data)


def test_callbacks_come_in_order_once_and_after_the_last_byte(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    outbox, told, received = Outbox(), [], bytearray()
    parts = [bytes([i]) * size for i, size in enumerate((1, 100_000, 0, 5000, 20_000))]

    def callback(i: int) -> Callable[[], None]:
        def tell() -> None:
            told.append(i)
            left.append(sum(len(unsent.left()) for unsent in outbox.unsent))

        return tell

    left: list[int] = []
    for i, part in enumerate(parts):
        outbox.add(Unsent(part, callback(i)))
    other.settimeout(0)
    while outbox:
        outbox.write(one)
        outbox.tell()
        received += other.recv(3000)
        assert len(told) == len(left)
        for i, rest in zip(told, left, strict=True):
            assert rest <= sum(map(len, parts[i + 1 :]))
    received += drained(outbox, one, other)
    other.settimeout(0)
    while len(received) < sum(map(len, parts)):
        received += other.recv(1 << 16)
    assert received == b"".join(parts)
    assert told == [0, 1, 2, 3, 4]


def test_an_exception_of_a_callback_leaves_the_others_to_the_next_call(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    one, other = ends
    outbox, told = Outbox(), []

    def fail() -> None:
        told.append("fail")
        raise KeyError

    outbox.add(Unsent(b"a", fail))
    outbox.add(Unsent(b"b", lambda: told.append("b")))
    outbox.write(one)
    with pytest.raises(KeyError):
        outbox.tell()
    assert told == ["fail"]
    assert outbox
    outbox.write(one)
    outbox.tell()
    assert told == ["fail", "b"]
    assert not outbox
    assert other.recv(10) == b"ab"


def test_a_callback_is_never_called_inside_another(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    outbox = Outbox()
    depth, deepest, left = 0, 0, 2000

    def more() -> None:
        nonlocal depth, deepest, left
        depth += 1
        deepest = max(deepest, depth)
        if left:
            left -= 1
            outbox.add(Unsent(b"x", more))
            outbox.write(one)
            outbox.tell()
        depth -= 1

    more()
    while left or outbox:
        other.settimeout(0)
        other.recv(1 << 16)
        outbox.write(one)
        outbox.tell()
    assert deepest <= 2


def test_what_is_cleared_is_never_told(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    outbox, told = Outbox(), []
    outbox.add(Unsent(b"x" * 1_000_000, lambda: told.append(1)))
    outbox.write(one)
    outbox.clear()
    assert not outbox
    outbox.write(one)
    outbox.tell()
    assert not told
    other.recv(1)


def test_h4_one_pong_waits_the_newest(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    outbox = Outbox()
    outbox.add(Unsent(b"x" * 100_000))
    outbox.write(one)
    for i in range(1000):
        outbox.add_pong(b"pong %4d" % i)
        outbox.write(one)
    assert len(outbox.unsent) == 2
    assert drained(outbox, one, other).endswith(b"xpong  999")
    outbox.add_pong(b"a")
    outbox.write(one)
    outbox.add_pong(b"b")
    outbox.write(one)
    assert other.recv(10) == b"ab"


def test_an_error_of_the_kernel_is_raised(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    other.close()
    outbox = Outbox()
    outbox.add(Unsent(b"x"))
    with pytest.raises(BrokenPipeError):
        outbox.write(one)


def test_a_timeout_of_the_socket_itself_is_no_error(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    outbox = Outbox()
    outbox.add(Unsent(b"x" * 100_000))
    one.settimeout(0.01)
    outbox.write(one)
    outbox.write(one)
    assert drained(outbox, one, other) == b"x" * 100_000


@pytest.mark.slow
def test_threads_write_in_the_order_of_the_queue(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    outbox, told = Outbox(), deque[int]()
    order = iter(range(4000))
    queueing = threading.Lock()

    def send() -> None:
        for _ in range(500):
            with queueing:
                i = next(order)
                outbox.add(Unsent(b"%04d" % i * 10, lambda i=i: told.append(i)))
            outbox.write(one)
            outbox.tell()

    running = [Running(send) for _ in range(8)]
    received = bytearray()
    while len(received) < 160_000:
        outbox.write(one)
        outbox.tell()
        other.settimeout(0)
        try:
            received += other.recv(1 << 16)
        except BlockingIOError:
            continue
    for thread in running:
        thread.result()
    outbox.tell()
    assert received == b"".join(b"%04d" % i * 10 for i in range(4000))
    assert list(told) == list(range(4000))


@pytest.mark.parametrize("size", [1, 3000, 100_000])
def test_an_exception_anywhere_loses_no_byte_and_repeats_none(
    ends: tuple[socket.socket, socket.socket], size: int
) -> None:
    """As of a signal handler: between any two steps of the interpreter, also behind the system call."""
    one, other = ends
    outbox, sent, received, told = Outbox(), bytearray(), bytearray(), []
    for step in at_each_step(module, lambda: (outbox.write(one), outbox.tell())):
        assert step is None
        received += drained(outbox, one, other)
        for _ in range(2):
            part = b"%d." % len(sent) * size
            number = len(sent)
            sent += part
            outbox.add(Unsent(part, lambda number=number: told.append(number)))
    received += drained(outbox, one, other)
    other.settimeout(0)
    while len(received) < len(sent):
        received += other.recv(1 << 18)
    assert received == sent
    assert told == sorted(set(told))  # in order, and none twice; one may be lost with the exception that hit it


def test_a_signal_handler_may_send_at_any_time(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    outbox, received = Outbox(), bytearray()
    count = 0

    def send() -> None:
        nonlocal count
        count += 1
        outbox.add(Unsent(b"<signal>"))
        outbox.write(one)
        outbox.tell()

    calls = 0
    for _ in at_each_step(module, lambda: (outbox.write(one), outbox.tell()), send):
        received += drained(outbox, one, other)
        calls += 1
        outbox.add(Unsent(b"<message>", lambda: None))
    received += drained(outbox, one, other)
    other.settimeout(0)
    while len(received) < 9 * calls + 8 * count:
        received += other.recv(1 << 18)
    assert received.count(b"<message>") == calls
    assert received.count(b"<signal>") == count
