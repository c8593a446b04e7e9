"""Does what Python queues reach the core once and in order, and does what the core reports reach Python unharmed?

What the core makes of it is in core/.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import inspect
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import pytest
from steps import at_each_step
from turns import DEADLINE_S, REQUEST, RESPONSE, exactly, faults, frame, received, server_frames, tcp_pair

from wspy import AsyncServer, CoreError
from wspy import loop as core
from wspy._core import ffi, lib
from wspy.loop import LARGE, MANY, Loop, Settings, acceptance, broadcast_payload, close_code, error_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SETTINGS: Final = Settings(
    notsent_lowat=0,
    open_timeout=None,
    close_timeout=None,
    ping_interval=None,
    ping_timeout=None,
    idle_request_timeout=None,
)
TEXT, BINARY = 1, 2

needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(SETTINGS)
    yield loop
    loop.close()


class Connection:
    """An open connection of a loop, and its peer."""

    def __init__(self, loop: Loop, pair: tuple[socket.socket, socket.socket] | None = None) -> None:
        ours, self.peer = pair or socket.socketpair()
        ours.settimeout(0)
        self.handle = loop.adopt(ours.detach())
        self.peer.sendall(REQUEST)
        until(loop, core.EVENT_HEAD)
        loop.push(core.command(self.handle | core.ACCEPT, acceptance(RESPONSE, granularity=core.MESSAGES)))
        until(loop, core.EVENT_OPENED)
        assert exactly(self.peer, len(RESPONSE)) == RESPONSE

    def frames(self, count: int) -> list[tuple[int, bytes]]:
        """Receive so many bytes, and return the frames in them."""
        return server_frames(exactly(self.peer, count))


def until(loop: Loop, kind: int) -> list[tuple[int, int, int, int]]:
    """Turn until an event of that kind comes up, and return those of its turn."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        events = list(loop.events(loop.turn(100)))
        if any(event[1] & 0xFF == kind for event in events):
            return events
    raise AssertionError(f"no event of kind {kind}")


@pytest.fixture
def connection(loop: Loop) -> Iterator[Connection]:
    connection = Connection(loop)
    with connection.peer:
        yield connection


@pytest.fixture
def connect(loop: Loop) -> Iterator[Callable[..., Connection]]:
    """Return a function that opens a connection, for the length of the test."""
    with contextlib.ExitStack() as stack:

        def connect(pair: tuple[socket.socket, socket.socket] | None = None) -> Connection:
            connection = Connection(loop, pair)
            stack.enter_context(connection.peer)
            return connection

        yield connect


def sends(handle: int, *payloads: bytes) -> list[Any]:
    """Return the commands for binary messages."""
    prefixes = [core.message_prefix(0x80 | BINARY, len(payload)) for payload in payloads]
    return [
        item for prefix, payload in zip(prefixes, payloads, strict=True) for item in (core.key(handle), prefix, payload)
    ]


def submit_only(loop: Loop) -> None:
    """Apply what is queued, and leave it there, as an exception would."""
    batch, _kept = loop._batch()
    assert lib.wspy_loop_submit(loop._loop, batch, len(batch)) == lib.WSPY_OK


def is_readable(loop: Loop) -> bool:
    return bool(select.select([loop.fileno()], [], [], 0)[0])


# ---- settings ----


def test_the_defaults_are_those_of_a_server() -> None:
    parameters = inspect.signature(AsyncServer).parameters
    for name, default in Settings._field_defaults.items():
        if name in parameters and name != "write_limit":  # which the core only reports
            assert default == parameters[name].default
        else:
            assert not default


def test_each_setting_reaches_the_core() -> None:
    c_settings = core._c_settings(
        Settings(
            max_size=1 << 40,
            max_fragments=2,
            max_line=3,
            max_header_line=4,
            max_head=5,
            max_headers=6,
            max_backlog=7,
            write_limit=19,
            max_sockets=18,
            notsent_lowat=8,
            open_timeout=0.009,
            close_timeout=0.01,
            ping_interval=11,
            ping_timeout=12.5,
            idle_request_timeout=2_147_483,
        )
    )
    limits, head = c_settings.limits, c_settings.head
    assert (limits.max_size, limits.max_fragment_size, limits.max_fragments) == (1 << 40, (1 << 64) - 1, 2)
    assert (head.max_line, head.max_field, head.max_size, head.max_fields) == (3, 4, 5, 6)
    assert (c_settings.max_backlog, c_settings.max_connections, c_settings.notsent_lowat) == (7, 18, 8)
    assert (c_settings.open_timeout_ms, c_settings.close_timeout_ms) == (9, 10)
    assert (c_settings.ping_interval_ms, c_settings.ping_timeout_ms) == (11_000, 12_500)
    assert c_settings.idle_request_ms == 2_147_483_000
    assert c_settings.write_limit == 19
    assert c_settings.wants == lib.WSPY_WANT_DRAINED


def test_none_is_no_limit_and_no_deadline() -> None:
    c_settings = core._c_settings(SETTINGS._replace(max_size=None, max_fragments=None, max_backlog=None))
    assert c_settings.limits.max_size == c_settings.max_backlog == (1 << 64) - 1
    assert c_settings.limits.max_fragments == (1 << 32) - 1
    for name in ("open_timeout", "close_timeout", "ping_interval", "ping_timeout", "idle_request"):
        assert getattr(c_settings, f"{name}_ms") == lib.WSPY_FOREVER


def test_a_deadline_is_never_none_by_rounding() -> None:
    assert core._c_settings(Settings(open_timeout=1e-9)).open_timeout_ms == 1


@pytest.mark.parametrize(
    ("name", "bit"),
    [
        ("wants_pings", lib.WSPY_WANT_PING),
        ("wants_pongs", lib.WSPY_WANT_PONG),
        ("wants_pinged", lib.WSPY_WANT_PINGED),
        ("wants_endings", lib.WSPY_WANT_ENDING),
    ],
)
def test_what_is_wanted_is_a_bit(name: str, bit: int) -> None:
    assert core._c_settings(Settings(**{name: True})).wants == bit


@pytest.mark.parametrize("change", [{"max_size": 0}, {"max_backlog": -1}, {"open_timeout": 0}, {"ping_timeout": -1}])
def test_what_is_out_of_range_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Loop(SETTINGS._replace(**change))


@pytest.mark.parametrize(
    ("call", "error"), [(lib.WSPY_SYS_ALLOCATE, errno.ENOMEM), (lib.WSPY_SYS_CREATE, errno.EMFILE)]
)
def test_a_loop_that_can_not_be_made_is_an_error_of_the_system(call: int, error: int) -> None:
    with faults(call, nth=1, error=error), pytest.raises(OSError) as caught:
        Loop(SETTINGS)
    assert caught.value.errno == error


# ---- errors ----


def test_an_error_of_the_core_has_a_sentence_and_a_close_code() -> None:
    number = -lib.WSPY_ERROR_UTF8
    assert error_text(number).endswith("(RFC 6455 §8.1)")
    assert close_code(number) == 1007
    assert error_text(-lib.WSPY_ERROR_BUSY) == ffi.string(lib.wspy_error_text(lib.WSPY_ERROR_BUSY)).decode()
    assert error_text(-lib.WSPY_ERROR_RESET, errno.EPIPE).endswith("(Broken pipe)")
    assert close_code(-lib.WSPY_ERROR_EOF) == 1006


# ---- the queue ----


def test_a_turn_without_commands_only_looks(loop: Loop) -> None:
    assert loop.turn(0) == 0
    loop.submit()
    assert loop.stats()["turns"] == 1


@pytest.mark.parametrize("count", [1, 2, 3, 100])
@pytest.mark.parametrize("apply", [Loop.submit, lambda loop: loop.turn(0)], ids=["submit", "turn"])
@pytest.mark.parametrize("notes", [None, lambda *_: None], ids=["plain", "notes"])
def test_commands_are_applied_once_and_in_order(
    loop: Loop, connection: Connection, count: int, apply: Callable[[Loop], object], notes: core.Note | None
) -> None:
    loop.notes = notes
    payloads = [b"%d" % number for number in range(count)]
    loop.push(sends(connection.handle, *payloads))
    apply(loop)
    assert len(loop._queue) == 1
    apply(loop)
    assert server_frames(received(connection.peer)) == [(BINARY, payload) for payload in payloads]


def test_each_kind_of_send_is_on_the_wire(loop: Loop, connection: Connection) -> None:
    handle = connection.handle
    key = core.key(handle)
    loop.push((key, core.BINARY_PREFIXES[5], b"bytes", key, core.TEXT_PREFIXES[4], b"text"))
    loop.push(core.command(handle | core.SEND, b"\x8a\x04pong"))
    loop.submit()
    assert server_frames(received(connection.peer)) == [(BINARY, b"bytes"), (TEXT, b"text"), (10, b"pong")]


def test_batches_may_overlap(loop: Loop, connection: Connection) -> None:
    loop.push(sends(connection.handle, b"one", b"two"))
    first, _ = loop._batch()
    loop.push(sends(connection.handle, b"three"))
    second, _ = loop._batch()
    loop.push(sends(connection.handle, b"four"))
    for batch in (second, first, second):
        assert lib.wspy_loop_submit(loop._loop, batch, len(batch)) == lib.WSPY_OK
    loop.submit()
    expected = [(BINARY, payload) for payload in (b"one", b"two", b"three", b"four")]
    assert server_frames(received(connection.peer)) == expected
    assert len(loop._queue) == 1


def test_what_an_exception_left_in_the_queue_is_not_applied_again(loop: Loop, connection: Connection) -> None:
    loop.push(sends(connection.handle, b"one", b"two"))
    submit_only(loop)
    loop.push(sends(connection.handle, b"three"))
    loop.turn(0)
    assert server_frames(received(connection.peer)) == [(BINARY, b"one"), (BINARY, b"two"), (BINARY, b"three")]
    assert len(loop._queue) == 1


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("apply", [Loop.submit, lambda loop: loop.turn(0)], ids=["submit", "turn"])
@pytest.mark.parametrize("notes", [None, lambda *_: None], ids=["plain", "notes"])
def test_an_exception_anywhere_loses_nothing_and_repeats_nothing(
    loop: Loop, connection: Connection, count: int, apply: Callable[[Loop], object], notes: core.Note | None
) -> None:
    loop.notes = notes
    sent = []
    for _ in at_each_step(core, lambda: apply(loop)):
        loop.submit()
        sent.append([b"%d %d" % (len(sent), number) for number in range(count)])
        loop.push(sends(connection.handle, *sent[-1]))
    loop.submit()
    assert len(loop._queue) == 1
    assert server_frames(received(connection.peer)) == [(BINARY, payload) for payloads in sent for payload in payloads]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("apply", [Loop.submit, lambda loop: loop.turn(0)], ids=["submit", "turn"])
@pytest.mark.parametrize("notes", [None, lambda *_: None], ids=["plain", "notes"])
def test_a_signal_handler_may_queue_and_submit_at_any_time(
    loop: Loop, connection: Connection, count: int, apply: Callable[[Loop], object], notes: core.Note | None
) -> None:
    def handle_signal() -> None:
        by_signal.append(b"signal %d" % len(by_signal))
        loop.push(sends(connection.handle, by_signal[-1]))
        loop.submit()

    loop.notes = notes
    by_signal: list[bytes] = []
    plain: list[bytes] = []
    for _ in at_each_step(core, lambda: apply(loop), handle_signal):
        loop.submit()
        payloads = [b"plain %d %d" % (len(plain), number) for number in range(count)]
        plain += payloads
        loop.push(sends(connection.handle, *payloads))
    loop.submit()
    assert len(loop._queue) == 1
    sent = [payload for _, payload in server_frames(received(connection.peer))]
    assert [payload for payload in sent if payload.startswith(b"signal")] == by_signal
    assert [payload for payload in sent if payload.startswith(b"plain")] == plain


def test_eight_threads_queue_while_one_turns(loop: Loop, connection: Connection) -> None:
    counts = range(300)

    def queue(name: int) -> None:
        for number in counts:
            payload = b"%d %d" % (name, number)
            if number % 10 == 0:
                payload += b" " * LARGE
                loop.has_large = True
            loop.push(sends(connection.handle, payload))
            loop.submit()

    threads = [threading.Thread(target=queue, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    data = b""
    while any(thread.is_alive() for thread in threads) or loop.backlog(connection.handle):
        loop.turn(0)
        data += received(connection.peer)
    data += received(connection.peer)
    sent = [payload.split() for _, payload in server_frames(data)]
    assert len(sent) == 8 * len(counts)
    for name in range(8):
        assert [int(number) for other, number in sent if int(other) == name] == list(counts)


# ---- large payloads ----


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("apply", [Loop.submit, lambda loop: loop.turn(0)], ids=["submit", "turn"])
def test_large_payloads_keep_their_place(
    loop: Loop, connection: Connection, apply: Callable[[Loop], object], known: bool
) -> None:
    payloads = [b"first", b"a" * (LARGE + 1), b"b" * LARGE, b"", b"c" * 50_000, b"last"]
    loop.has_large = known
    loop.push(sends(connection.handle, *payloads))
    apply(loop)
    assert not loop.has_large
    assert server_frames(received(connection.peer)) == [(BINARY, payload) for payload in payloads]


def test_one_large_payload_alone(loop: Loop, connection: Connection) -> None:
    loop.has_large = True
    loop.push(sends(connection.handle, b"x" * 50_000))
    loop.turn(0)
    assert server_frames(received(connection.peer)) == [(BINARY, b"x" * 50_000)]


def test_what_the_kernel_does_not_take_of_a_large_payload_is_kept_by_the_core(
    loop: Loop, connection: Connection
) -> None:
    payload = os.urandom(4 << 20)
    references = sys.getrefcount(payload)
    loop.has_large = True
    loop.push(sends(connection.handle, payload))
    loop.submit()
    assert sys.getrefcount(payload) == references
    assert loop.backlog(connection.handle) > 0
    data = b""
    while len(data) < len(payload) + 10:
        data += received(connection.peer)
        loop.turn(0)
    assert server_frames(data) == [(BINARY, payload)]
    assert loop.backlog(connection.handle) == 0


@contextlib.contextmanager
def waiting(loop: Loop) -> Iterator[threading.Thread]:
    """Let a thread wait in a turn, to the end of the block; the turn has begun already."""
    thread = threading.Thread(target=loop.turn, args=(-1,))
    turns = loop.stats()["turns"]
    thread.start()
    try:
        while loop.stats()["turns"] == turns:
            assert thread.is_alive()
        yield thread
    finally:
        loop.wake()
        thread.join()


def test_a_heavy_batch_is_not_kept_while_a_turn_waits(loop: Loop, connection: Connection) -> None:
    loop.push(sends(connection.handle, *[b"x" * LARGE] * (core.HEAVY // LARGE + 1)))
    end = time.monotonic() + DEADLINE_S
    with waiting(loop) as thread:
        while len(loop._queue) > 1:
            assert time.monotonic() < end
        assert thread.is_alive()


# ---- notes ----


def test_notes_come_in_order_with_their_numbers(loop: Loop, connection: Connection) -> None:
    notes: list[tuple[int, int, Any]] = []
    loop.notes = lambda *note: notes.append(note)
    number = int.from_bytes(loop._queue[0], sys.byteorder)
    handle = connection.handle
    loop.push((*core.note(handle, "a note"), *sends(handle, b"one")))
    loop.submit()
    assert notes == [(handle, number, "a note")]
    loop.push((*sends(handle, b"two"), *core.note(handle, None)))
    loop.turn(0)
    assert notes[1:] == [(handle, number + 3, None)]
    assert server_frames(received(connection.peer)) == [(BINARY, b"one"), (BINARY, b"two")]


def test_a_note_that_another_thread_left_behind_is_taken_by_the_next_turn(loop: Loop, connection: Connection) -> None:
    notes: list[Any] = []
    loop.notes = lambda _handle, _number, note: notes.append(note)
    loop.push(core.note(connection.handle, "a note"))
    submit_only(loop)
    assert notes == []
    loop.turn(0)
    loop.turn(0)
    assert notes == ["a note"]


def test_a_turn_takes_the_notes_that_were_queued_while_it_waited(loop: Loop, connection: Connection) -> None:
    notes: list[Any] = []
    loop.notes = lambda _handle, _number, note: notes.append(note)
    with waiting(loop):
        loop.push(core.note(connection.handle, "a note"))
        submit_only(loop)
    assert notes == ["a note"]


def test_who_takes_a_note_may_queue_and_submit(loop: Loop, connection: Connection) -> None:
    def take(*_: Any) -> None:
        loop.push(sends(connection.handle, b"answer"))
        loop.submit()

    loop.notes = take
    loop.push(core.note(connection.handle, None))
    loop.submit()
    loop.submit()
    assert server_frames(received(connection.peer)) == [(BINARY, b"answer")]
    assert len(loop._queue) == 1


# ---- events ----


@pytest.mark.parametrize("count", [1, MANY - 1, MANY, 3 * MANY])
def test_few_and_many_events_read_the_same(loop: Loop, connection: Connection, count: int) -> None:
    payloads = [b"%d" % number * (number % 5) for number in range(count)]
    connection.peer.sendall(b"".join(frame(BINARY, payload) for payload in payloads))
    assert loop.turn(100) == count
    events = list(loop.events(count))
    assert [kind for _, kind, _, _ in events] == [core.EVENT_BINARY] * count
    assert {loop.handle(slot) for slot, _, _, _ in events} == {connection.handle}
    read = loop.packed()
    assert [read(length) for _, _, _, length in events] == payloads
    assert [loop.payload(kind, start, length) for _, kind, start, length in events] == payloads


@pytest.mark.parametrize("size", [0, 1, 125, 126, 5000, 65_536, 300_000, 1 << 20])
def test_a_payload_is_read_wherever_it_lies(loop: Loop, connection: Connection, size: int) -> None:
    payload = os.urandom(size)
    sender = threading.Thread(target=connection.peer.sendall, args=(frame(BINARY, payload),))
    sender.start()
    ((slot, kind, start, length),) = until(loop, core.EVENT_BINARY)
    sender.join()
    assert loop.handle(slot) == connection.handle
    assert loop.payload(kind, start, length) == payload
    if not kind & (core.EVENT_APART | core.EVENT_DETACHED):
        assert loop.packed()(length) == payload


def test_a_head_is_read_as_it_came(loop: Loop) -> None:
    ours, peer = socket.socketpair()
    with peer:
        ours.settimeout(0)
        loop.adopt(ours.detach())
        peer.sendall(REQUEST)
        ((_, _, start, length),) = until(loop, core.EVENT_HEAD)
        assert loop.payload(core.EVENT_APART, start, length) == REQUEST


# ---- what it watches ----


def test_a_listener_is_accepted_from_until_it_is_not(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        loop.listen(listener)
        with socket.create_connection(listener.getsockname()) as peer:
            peer.sendall(REQUEST)
            until(loop, core.EVENT_HEAD)
        loop.unlisten(listener)
        loop.unlisten(listener)
        with socket.create_connection(listener.getsockname()):
            assert loop.turn(0) >= 0
            assert loop.stats()["accepted"] == 1
            listener.accept()[0].close()


def test_what_epoll_does_not_take_is_an_error_of_the_system(loop: Loop, tmp_path: Any) -> None:
    with (tmp_path / "file").open("wb") as file:
        with pytest.raises(PermissionError):
            loop.watch(file.fileno())
        with pytest.raises(PermissionError):
            loop.listen(file)
    with socket.socket() as closed:
        pass
    with pytest.raises((OSError, CoreError)):
        loop.listen(closed)


def test_what_becomes_readable_ends_a_wait_and_is_drained(loop: Loop) -> None:
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.settimeout(0)
        loop.watch(reader.fileno())
        writer.sendall(b"x" * 1000)
        assert is_readable(loop)
        assert loop.turn(-1) == 0
        with pytest.raises(BlockingIOError):
            reader.recv(1)
        loop.watch(-1)
        loop.watch(-1)
        writer.sendall(b"x")
        assert not is_readable(loop)


def test_a_wake_ends_the_next_wait(loop: Loop) -> None:
    loop.wake()
    loop.wake()
    assert is_readable(loop)
    assert loop.turn(-1) == 0
    assert not is_readable(loop)


def test_a_wake_ends_the_wait_of_another_thread(loop: Loop) -> None:
    with waiting(loop) as thread:
        assert thread.is_alive()


def test_an_alarm_ends_a_wait(loop: Loop) -> None:
    at = loop.now_ms() + 2
    loop.alarm(at)
    while loop.now_ms() < at:
        assert loop.turn(-1) == 0


def test_an_alarm_may_be_a_century_away_or_none(loop: Loop) -> None:
    loop.alarm(loop.now_ms() + 100 * 365 * 86_400_000)
    assert loop.turn(0) == 0
    loop.alarm(0)
    assert loop.turn(0) == 0
    assert not is_readable(loop)


# ---- what it knows ----


def test_a_peer_is_known_by_its_address(loop: Loop, connect: Callable[..., Connection]) -> None:
    connection = connect(tcp_pair())
    assert loop.peer(connection.handle) == connection.peer.getsockname()
    assert loop.peer(connect().handle) == ""
    assert loop.peer(1 << 40) is None


@needs_ipv6
def test_an_ipv6_peer_is_known_by_its_address(loop: Loop, connect: Callable[..., Connection]) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        peer = socket.create_connection(listener.getsockname()[:2])
        connection = connect((listener.accept()[0], peer))
    assert loop.peer(connection.handle) == connection.peer.getsockname()


def test_stats_count(loop: Loop, connection: Connection) -> None:
    stats = loop.stats()
    assert (stats["connections"], stats["handshakes"], stats["opened"], stats["closed"]) == (1, 0, 1, 0)
    assert list(stats) == [name for name, _ in ffi.typeof("wspy_stats").fields]  # type: ignore[attr-defined]


def test_time_goes_on(loop: Loop) -> None:
    began, now = loop.now_ms(), time.monotonic()
    while time.monotonic() < now + 0.003:
        pass
    assert loop.now_ms() >= began + 2


def test_a_broadcast_is_for_all_or_for_some(loop: Loop, connect: Callable[..., Connection]) -> None:
    first, second, third = connect(), connect(), connect()
    some = [core.key(first.handle), core.key(third.handle)]
    loop.push(core.command(core.BROADCAST, broadcast_payload(b"\x82\x03all", None)))
    loop.push(core.command(core.BROADCAST, broadcast_payload(b"\x82\x04some", some)))
    loop.push(core.command(core.BROADCAST, broadcast_payload(b"\x82\x04none", [])))
    loop.submit()
    assert server_frames(received(second.peer)) == [(BINARY, b"all")]
    for connection in (first, third):
        assert server_frames(received(connection.peer)) == [(BINARY, b"all"), (BINARY, b"some")]


def test_an_acceptance_has_no_flow_control() -> None:
    assert acceptance(b"101", granularity=core.FRAMES) == struct.pack("=IHBB", 0xFFFFFFFF, 0, 0, 1) + b"101"


# ---- ending ----


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- as good


def test_close_gives_every_descriptor_back(connection: Connection, loop: Loop) -> None:
    before = descriptors()
    assert not loop.closed
    loop.close()
    loop.close()
    assert loop.closed
    assert descriptors() == before - 4  # epoll, event, timer, connection
    assert connection.peer.recv(1) == b""


def test_a_loop_that_is_forgotten_gives_every_descriptor_back() -> None:
    gc.collect()
    before = descriptors()
    loop = Loop(SETTINGS)
    assert descriptors() == before + 3
    del loop
    gc.collect()
    assert descriptors() == before


def test_a_closed_loop_does_nothing_any_more(loop: Loop) -> None:
    loop.close()
    loop.wake()
    loop.alarm(1)
    assert loop.stats()["connections"] == 0
    for call in (lambda: loop.turn(0), loop.fileno, lambda: loop.watch(0)):
        with pytest.raises(CoreError, match="closed"):
            call()
    loop.submit()
    for apply in (loop.submit, lambda: loop.turn(0)):
        loop.push(sends(0, b"never"))
        with pytest.raises(CoreError, match="closed"):
            apply()
    loop.push(sends(0, b"never", b"never"))
    with pytest.raises(CoreError, match="closed"):
        loop.turn(0)


def test_a_closed_loop_takes_over_nothing(loop: Loop) -> None:
    loop.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(CoreError, match="closed"):
            loop.listen(listener)
        loop.unlisten(listener)
        with pytest.raises(CoreError, match="closed"):
            loop.adopt(listener.fileno())
        assert listener.getsockname()


def test_a_running_turn_is_alone(loop: Loop) -> None:
    with waiting(loop):
        for call in (lambda: loop.turn(0), loop.close):
            with pytest.raises(CoreError, match="running"):
                call()
    assert not loop.closed


def test_a_turn_that_is_refused_loses_nothing_that_was_queued(loop: Loop, connection: Connection) -> None:
    with waiting(loop):
        for payload in (b"1", b"2"):
            loop.push(sends(connection.handle, payload))
            with pytest.raises(CoreError, match="running"):
                loop.turn(0)
    loop.turn(0)
    assert connection.frames(6) == [(BINARY, b"1"), (BINARY, b"2")]


def test_abandoned_loops_let_go_of_everything(loop: Loop, connection: Connection) -> None:
    before = descriptors()
    with connection.peer.dup() as peer:
        core._abandon_loops()
        assert loop.closed
        assert descriptors() == before - 3
        assert peer.recv(1) == b""


def test_i17_the_child_of_a_fork_has_no_loop_and_its_parent_keeps_its_own(tmp_path: Any) -> None:
    program = """
import os, socket, sys
from wspy import CoreError
from wspy.loop import Loop, Settings
loop = Loop(Settings())
ours, peer = socket.socketpair()
ours.setblocking(False)
loop.adopt(ours.detach())
child = os.fork()
if child == 0:
    try:
        loop.turn(0)
    except CoreError:
        os._exit(7 if loop.closed else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
peer.sendall(b"GET / HTTP/1.1\\r\\nHost: here\\r\\n\\r\\n")
assert loop.turn(5000) == 1
loop.close()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)


def test_i17_a_child_does_not_wait_for_what_a_thread_of_its_parent_holds() -> None:
    program = """
import os, signal, threading
from wspy import CoreError, loop as core
loop = core.Loop(core.Settings())
holding = threading.Event()
done = threading.Event()

def take(handle, number, payload):
    if not holding.is_set():
        holding.set()
        done.wait()

loop.notes = take
loop.push(core.note(0, object()))
thread = threading.Thread(target=loop.submit)
thread.start()
holding.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    loop.push(core.command(core.ABORT))
    try:
        loop.submit()
    except CoreError:
        os._exit(7)
    os._exit(1)
done.set()
thread.join()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
loop.close()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)
