"""Does every byte leave once, in order, and is everybody told, whatever comes in between?"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING

import pytest
from certificates import client_context, server_context
from drivers import DEADLINE_S
from sockets import Running
from steps import at_each_step

from wspy import outbox as module
from wspy import tls as tls_module
from wspy.outbox import Outbox, Unsent
from wspy.tls import TLS

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


# ---- TLS ----


def secured() -> tuple[Outbox, TLS]:
    """Return an outbox that makes records, and the peer's end of TLS, after the handshake."""
    own = TLS(server_context(), server_side=True)
    peer = TLS(client_context(), server_side=False, server_hostname="localhost")
    outbox = Outbox()
    outbox.secure(own)
    while not own.is_open:
        own.receive(peer.take())
        peer.receive(own.take())
    return outbox, peer


def test_records_are_made_when_it_is_their_turn(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    outbox, peer = secured()
    told: list[str] = []
    outbox.add(Unsent(b"a" * 100_000, lambda: told.append("a")))
    outbox.add(Unsent(b"b", lambda: told.append("b")))
    assert outbox.unsent[0].data == b"a" * 100_000
    outbox.write(one)
    assert len(outbox.unsent[0].data) > 100_000
    assert outbox.unsent[1].data == b"b"
    assert peer.receive(drained(outbox, one, other)) == b"a" * 100_000 + b"b"
    assert told == ["a", "b"]


def test_h4_a_pong_is_replaced_until_it_is_a_record(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    outbox, peer = secured()
    outbox.add_pong(b"first")
    outbox.add_pong(b"second")
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    while True:  # until the kernel takes nothing, so that a Pong becomes a record of which nothing is sent
        try:
            one.send(b"x" * 100)
        except BlockingIOError:
            break
    filled = outbox.unsent[0]
    outbox.write(one)
    assert not filled.sizes
    outbox.add_pong(b"third")
    outbox.add_pong(b"fourth")
    data = drained(outbox, one, other)
    assert peer.receive(data.lstrip(b"x")) == b"secondfourth"


def test_j10_what_tls_says_by_itself_goes_first_and_is_bounded(ends: tuple[socket.socket, socket.socket]) -> None:
    """What stands for it here TLS can't be made to say from Python."""
    one, other = ends
    outbox, peer = secured()
    assert outbox.tls is not None
    outbox.add_answers()
    assert not outbox
    outbox.add(Unsent(b"waits"))
    outbox.tls.ssl_object.write(b"answer, ")
    outbox.add_answers()
    assert peer.receive(drained(outbox, one, other)) == b"answer, waits"
    outbox.tls.ssl_object.write(b"alone")
    outbox.add_answers()
    assert outbox
    assert peer.receive(drained(outbox, one, other)) == b"alone"
    outbox.add(Unsent(b"a" * 100_000))
    outbox.write(one)
    for _ in range(3):
        outbox.tls.ssl_object.write(b"b" * 16_384)
        outbox.add_answers()
    assert len(outbox.unsent) == 2
    outbox.tls.ssl_object.write(b"b" * 16_384)
    with pytest.raises(OSError, match="read them"):
        outbox.add_answers()
    assert peer.receive(drained(outbox, one, other)) == b"a" * 100_000 + b"b" * 4 * 16_384


def test_after_close_notify_nothing_is_sent(ends: tuple[socket.socket, socket.socket]) -> None:
    one, _ = ends
    outbox, _ = secured()
    assert outbox.tls is not None
    outbox.tls.close()
    outbox.add(Unsent(b"too late"))
    with pytest.raises(OSError, match=r"(?i)shutdown"):
        outbox.write(one)


@pytest.mark.slow
@pytest.mark.parametrize("piece", [3, 100], ids=["in slices", "whole"])
def test_an_exception_anywhere_makes_no_record_twice(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either nothing is missing, or nothing more is sent: the peer never gets something else."""
    monkeypatch.setattr(module, "_SLICE", piece)
    state: list[tuple[Outbox, TLS, socket.socket, socket.socket]] = []
    outcomes: set[str] = set()

    def call() -> None:
        outbox, _, one, _ = state[-1]
        while outbox.write(one):
            pass

    def finish() -> None:
        outbox, peer, one, other = state.pop()
        with one, other:
            try:
                while outbox.write(one):
                    pass
                least = len(b"first, second")
                outcomes.add("whole")
            except OSError as error:
                assert "interrupted" in str(error)  # noqa: PT017 -- both are right
                least = 0
                outcomes.add("broken")
            one.shutdown(socket.SHUT_WR)
            received = peer.receive(other.recv(1 << 16))
            assert b"first, second".startswith(received)
            assert len(received) >= least

    for _ in at_each_step(module, call):
        if state:
            finish()
        one, other = socket.socketpair()
        one.settimeout(0)
        other.settimeout(DEADLINE_S)
        outbox, peer = secured()
        outbox.add(Unsent(b"first, "))
        outbox.add(Unsent(b"second"))
        state.append((outbox, peer, one, other))
    finish()
    assert outcomes == {"whole", "broken"}


def taken(outbox: Outbox, one: socket.socket, other: socket.socket, peer: TLS) -> bytes:
    """Write all there is, and return what the peer makes of it."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    while outbox.write(one):
        pass
    assert not outbox.unsent
    other.settimeout(0)
    received = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            received += peer.receive(other.recv(1 << 18))
    return received


def test_records_of_what_is_long_are_made_as_they_leave(ends: tuple[socket.socket, socket.socket]) -> None:
    """Whoever receives gets at the lock in between, and memory is spent for a slice alone."""
    one, other = ends
    outbox, peer = secured()
    told: list[bool] = []
    message = bytes(range(256)) * 4096
    unsent = Unsent(message, lambda: told.append(unsent.is_sent()))
    outbox.add(unsent)
    outbox.add(Unsent(b"behind"))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    received, slices = b"", 0
    other.settimeout(0)
    while outbox:
        slices += outbox.write(one)
        assert sum(len(waiting.data) for waiting in outbox.unsent) < len(message) // 3
        assert unsent.is_sent() == (unsent not in outbox.unsent)
        outbox.tell()
        with contextlib.suppress(BlockingIOError):
            while True:
                received += peer.receive(other.recv(1 << 18))
    assert slices == 3
    assert received == message + b"behind"
    assert told == [True]


def answering(outbox: Outbox, answer: bytes) -> TLS:
    """Let TLS say something by itself, as far as it can be made to from Python; return it."""
    assert outbox.tls is not None
    outbox.tls.ssl_object.write(answer)
    return outbox.tls


@pytest.mark.parametrize("size", [5, 100_000])
def test_a_signal_handler_may_receive_while_records_are_made(
    ends: tuple[socket.socket, socket.socket], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it receives may have to be answered, too."""
    monkeypatch.setattr(module, "_SLICE", 90_000)
    one, other = ends
    outbox, peer = secured()
    received: list[bytes] = []
    arrived, sent = b"", 0

    def receive() -> None:
        peer.send(b"to the handler")
        with outbox.lock:
            received.append(answering(outbox, b"<answer>").receive(peer.take()))
            outbox.add_answers()

    def write() -> None:
        while outbox.write(one):
            pass

    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    for _ in at_each_step([module, tls_module], write, receive):
        arrived += taken(outbox, one, other, peer)
        outbox.add(Unsent(b"x" * size))
        sent += size
    arrived += taken(outbox, one, other, peer)
    assert received == [b"to the handler"] * len(received)
    assert arrived.count(b"<answer>") == len(received)
    assert arrived.count(b"x") == sent
    assert len(arrived) == sent + len(b"<answer>") * len(received)


@pytest.mark.parametrize("sends", [True, False], ids=["sends", "raises"])
def test_answers_are_kept_if_a_signal_handler(ends: tuple[socket.socket, socket.socket], sends: bool) -> None:
    """A record that was lost, or came twice, would be the last that the peer could read."""
    one, other = ends
    outbox, peer = secured()
    arrived, handled, calls = b"", 0, 0

    def send() -> None:
        nonlocal handled
        handled += 1
        outbox.add(Unsent(b"<signal>"))
        if not sends:
            raise InterruptedError
        outbox.write(one)

    for _ in at_each_step([module, tls_module], outbox.add_answers, send):
        arrived += taken(outbox, one, other, peer)
        answering(outbox, b"<answer>")
        calls += 1
    outbox.add(Unsent(b"last"))
    arrived += taken(outbox, one, other, peer)
    assert (arrived.count(b"<signal>"), arrived.count(b"<answer>"), arrived[-4:]) == (handled, calls, b"last")
    assert len(arrived) == 8 * (handled + calls) + 4


def test_what_the_kernel_takes_counts_whatever_is_added_meanwhile(ends: tuple[socket.socket, socket.socket]) -> None:
    """So who waits for a peer knows whether it takes anything: what is left may grow all the time."""
    one, other = ends
    outbox, received = Outbox(), 0
    outbox.add(Unsent(bytes(50_000)))
    for _ in range(20):
        outbox.add(Unsent(bytes(10_000)))
        before, left = outbox.taken, outbox.left()
        outbox.write(one)
        assert outbox.taken > before, "there was room"
        assert outbox.left() < left
        before = outbox.taken
        outbox.write(one)
        assert outbox.taken == before, "there was none"
        while outbox.taken > received:
            received += len(other.recv(1 << 16))
    assert outbox.taken == received
