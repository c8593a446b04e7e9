"""A loop of the core driven by hand: commands in, one turn, events out; and peers that speak plain bytes to it."""

from __future__ import annotations

import contextlib
import mmap
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from wspy._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

SEND: Final = lib.WSPY_COMMAND_SEND
SEND_MARK: Final = lib.WSPY_COMMAND_SEND | lib.WSPY_COMMAND_MARK
SEND_FAR: Final = lib.WSPY_COMMAND_SEND | lib.WSPY_COMMAND_FAR
MARK: Final = lib.WSPY_COMMAND_MARK
ACCEPT: Final = lib.WSPY_COMMAND_ACCEPT
RESPOND: Final = lib.WSPY_COMMAND_RESPOND
CLOSE: Final = lib.WSPY_COMMAND_CLOSE
ABORT: Final = lib.WSPY_COMMAND_ABORT
PAUSE: Final = lib.WSPY_COMMAND_PAUSE
RESUME: Final = lib.WSPY_COMMAND_RESUME
GRANT: Final = lib.WSPY_COMMAND_GRANT
BROADCAST: Final = lib.WSPY_COMMAND_BROADCAST
REFUSE: Final = lib.WSPY_COMMAND_REFUSE
FINISH: Final = lib.WSPY_COMMAND_FINISH
FAIL: Final = lib.WSPY_COMMAND_FAIL
FEED: Final = lib.WSPY_COMMAND_FEED
FEED_END: Final = lib.WSPY_COMMAND_FEED_END
RAW_SEND: Final = lib.WSPY_COMMAND_RAW_SEND

TEXT: Final = lib.WSPY_EVENT_TEXT
BINARY: Final = lib.WSPY_EVENT_BINARY
CLOSE_RECEIVED: Final = lib.WSPY_EVENT_CLOSE
PING: Final = lib.WSPY_EVENT_PING
PONG: Final = lib.WSPY_EVENT_PONG
HEAD: Final = lib.WSPY_EVENT_HEAD
BAD_HEAD: Final = lib.WSPY_EVENT_BAD_HEAD
OPENED: Final = lib.WSPY_EVENT_OPENED
SENT: Final = lib.WSPY_EVENT_SENT
CLOSED: Final = lib.WSPY_EVENT_CLOSED
PINGED: Final = lib.WSPY_EVENT_PINGED
ACCEPT_PAUSED: Final = lib.WSPY_EVENT_ACCEPT_PAUSED
DRAINED: Final = lib.WSPY_EVENT_DRAINED
ENDING: Final = lib.WSPY_EVENT_ENDING
RAW: Final = lib.WSPY_EVENT_RAW
OUT: Final = lib.WSPY_EVENT_OUT
OUT_LAST: Final = lib.WSPY_EVENT_OUT_LAST
GONE: Final = lib.WSPY_EVENT_GONE
IDLE: Final = lib.WSPY_EVENT_IDLE

FOREVER: Final = lib.WSPY_FOREVER
SHIFT: Final = lib.WSPY_COMMAND_SHIFT
REQUEST: Final = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
RESPONSE: Final = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
DEADLINE_S: Final = 10.0
"""No loop of a test goes on for longer, so that a defect is a failure and not a hang."""

_EVENT: Final = struct.Struct("=IIII")

Pair: TypeAlias = tuple[socket.socket, socket.socket]
"""What the loop gets, and its peer."""


class Event(NamedTuple):
    """One event; ``start`` and ``length`` are what core.h says about the kinds without a payload."""

    handle: int
    kind: int  # without the bits that say where the payload lies
    start: int
    length: int
    payload: bytes

    def __repr__(self) -> str:
        return f"Event({self.handle:#x}, kind {self.kind}, {self.start}, {self.length}, {self.payload[:20]!r})"

    @property
    def error(self) -> int:
        """The error of a CLOSED event, as a negative number."""
        return -(self.length & 0xFF)

    @property
    def system_error(self) -> int:
        """The errno of a CLOSED event."""
        return self.length >> 8


def settings(**changes: Any) -> Any:
    """Return settings without deadlines, but for those given; names as in ``wspy_settings``, ``limits`` or ``head``."""
    values: dict[str, Any] = {
        "max_size": 1 << 20,
        "max_fragment_size": (1 << 64) - 1,
        "max_fragments": 131_072,
        "max_line": 8192,
        "max_field": 8192,
        "max_head": 65_536,
        "max_fields": 100,
        "max_backlog": 16 << 20,
        "write_limit": 0,
        "broadcast_limit": 0,
        "max_connections": 0,
        "max_handshakes": 0,
        "max_per_address": 0,
        "max_accepts": 0,
        "notsent_lowat": 0,
        "open_timeout_ms": FOREVER,
        "close_timeout_ms": FOREVER,
        "ping_interval_ms": FOREVER,
        "ping_timeout_ms": FOREVER,
        "write_timeout_ms": FOREVER,
        "idle_timeout_ms": FOREVER,
        "idle_request_ms": FOREVER,
        "max_controls": 0,
        "wants": 0,
        "raw": 0,
    }
    unknown = changes.keys() - values.keys()
    assert not unknown, unknown
    values.update(changes)
    limits = [values.pop(name) for name in ("max_size", "max_fragment_size", "max_fragments")]
    head = [values.pop(name) for name in ("max_line", "max_field", "max_head", "max_fields")]
    return ffi.new("wspy_settings *", {**values, "limits": limits, "head": head})


def kinds(events: list[Event]) -> list[int]:
    """Return what kinds of events these are."""
    return [event.kind for event in events]


def accept(
    response: bytes = RESPONSE, *, credit: int = FOREVER, opcodes: int = 0, rsv: int = 0, granularity: int = 0
) -> bytes:
    """Return the payload of an ACCEPT command."""
    return struct.pack("=IHBB", credit, opcodes, rsv, granularity) + response


def frame(opcode: int, payload: bytes = b"", *, final: bool = True, key: bytes | None = b"\x01\x02\x03\x04") -> bytes:
    """Return a frame as a client sends it; without a key, as a server does."""
    mask_bit = 0x80 if key is not None else 0
    head = bytes([opcode | (0x80 if final else 0)])
    length = len(payload)
    if length < 126:
        head += bytes([mask_bit | length])
    elif length < 65536:
        head += struct.pack(">BH", mask_bit | 126, length)
    else:
        head += struct.pack(">BQ", mask_bit | 127, length)
    if key is None:
        return head + payload
    keys = int.from_bytes((key * (length // 4 + 1))[:length])
    return head + key + (int.from_bytes(payload) ^ keys).to_bytes(length)


def text(payload: bytes) -> bytes:
    """Return a text message as a server sends it."""
    return frame(1, payload, key=None)


def far(whole: bytes | bytearray, header: int) -> bytes:
    """Return the payload of a FAR command for a frame with a header of so many bytes; the frame has to stay alive."""
    address = int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", whole))) + header
    return struct.pack("=QQ", address, len(whole) - header) + bytes(whole[:header])


def server_frames(data: bytes) -> list[tuple[int, bytes]]:
    """Return the unmasked frames in data as opcode and payload; fail if they aren't whole."""
    found = []
    while data:
        assert data[1] & 0x80 == 0, "a server does not mask"
        assert data[0] & 0x80, "these tests send whole messages only"
        length, at = data[1], 2
        if length == 126:
            length, at = struct.unpack_from(">H", data, 2)[0], 4
        elif length == 127:
            length, at = struct.unpack_from(">Q", data, 2)[0], 10
        assert len(data) >= at + length, "a frame is cut off"
        found.append((data[0] & 0x0F, data[at : at + length]))
        data = data[at + length :]
    return found


def packed_memory() -> mmap.mmap:
    """Return memory for the short payloads of a loop."""
    return mmap.mmap(-1, lib.wspy_loop_packed_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class Turns:
    """A loop and the commands that wait for its next turn."""

    def __init__(self, **changes: Any) -> None:
        self._packed = packed_memory()
        self.loop = lib.wspy_loop_new(settings(**changes), ffi.from_buffer("uint8_t[]", self._packed))
        assert self.loop != ffi.NULL
        self._commands: list[tuple[int, bytes]] = []
        self._applied = 0
        self.turns = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        lib.wspy_loop_free(self.loop)

    # ---- commands ----

    def push(self, command: int, handle: int = 0, payload: bytes = b"") -> None:
        """Queue a command for the next turn or submit."""
        self._commands.append((command << SHIFT | handle, payload))

    def batch(self) -> tuple[Any, ...]:
        """Take the queued commands as the arguments of a turn."""
        commands, self._commands = self._commands, []
        first, self._applied = self._applied, self._applied + len(commands)
        return self.pack(first, commands)

    @staticmethod
    def pack(first: int, commands: list[tuple[int, bytes]]) -> tuple[Any, ...]:
        """Return commands as the arguments of a turn or submit."""
        records = [struct.pack("=QI", key, len(payload)) + payload for key, payload in commands]
        batch = struct.pack("=Q", first) + b"".join(records)
        return batch, len(batch)

    def applied(self) -> int:
        """Return the number of the next command to apply."""
        return int(lib.wspy_loop_applied(self.loop)[0])

    def submit(self) -> None:
        """Apply the queued commands without a turn."""
        result = lib.wspy_loop_submit(self.loop, *self.batch())
        assert result == lib.WSPY_OK, result

    # ---- turns ----

    def turn(self, timeout_ms: int = 0) -> list[Event]:
        """Apply the queued commands and return the events of one turn."""
        self.turns += 1
        count = lib.wspy_loop_turn(self.loop, *self.batch(), timeout_ms)
        assert count >= 0, (count, ffi.errno)
        return self.events(count)

    def events(self, count: int) -> list[Event]:
        """Return the events of the last turn."""
        raw = ffi.buffer(lib.wspy_loop_events(self.loop), count * _EVENT.size)
        return [self._event(*fields) for fields in _EVENT.iter_unpack(raw)]

    def _event(self, slot: int, kind: int, start: int, length: int) -> Event:
        place = lib.WSPY_EVENT_APART | lib.WSPY_EVENT_DETACHED
        handle = lib.wspy_loop_handle(self.loop, slot)
        return Event(handle, kind & ~place, start, length, self._payload(kind, start, length))

    def _payload(self, kind: int, start: int, length: int) -> bytes:
        if kind & lib.WSPY_EVENT_DETACHED:
            size = ffi.new("uint64_t *")
            data = lib.wspy_loop_detached(self.loop, start, size)
            return ffi.buffer(data, size[0])[:] if size[0] else b""
        if kind & 0xFF in {BAD_HEAD, OPENED, SENT, CLOSED, PINGED, ACCEPT_PAUSED, DRAINED, ENDING, GONE}:
            return b""
        if kind & lib.WSPY_EVENT_APART:
            return ffi.buffer(lib.wspy_loop_arena(self.loop) + start, length)[:]
        return self._packed[start : start + length]

    def until(self, kind: int, handle: int | None = None) -> list[Event]:
        """Turn until an event of that kind (of that connection) came up; return all events up to that turn's end."""
        found: list[Event] = []
        end = time.monotonic() + DEADLINE_S
        while not any(event.kind & 0xFF == kind and handle in {None, event.handle} for event in found):
            assert time.monotonic() < end, f"no event of kind {kind} among {found[-20:]}"
            found += self.turn(100)
        return found

    def settle(self) -> list[Event]:
        """Turn until a turn brings nothing that was already there; return all events."""
        found: list[Event] = []
        quiet = 0
        while quiet < 3:
            events = self.turn()
            found += events
            quiet = 0 if events else quiet + 1
        return found

    def until_only(self, count: int) -> list[Event]:
        """Turn until so many connections are left; return all events."""
        found: list[Event] = []
        end = time.monotonic() + DEADLINE_S
        while (left := self.stats()["connections"]) > count:
            assert time.monotonic() < end, f"{left} connections left"
            found += self.turn(10)
        return found

    def until_empty(self) -> list[Event]:
        """Turn until no connection is left; return all events."""
        return self.until_only(0)

    # ---- connections ----

    def adopt(self, sock: socket.socket) -> int:
        """Give a connected socket to the loop; return its handle."""
        sock.settimeout(0)
        handle = ffi.new("uint64_t *")
        result = lib.wspy_loop_adopt(self.loop, sock.fileno(), handle)
        assert result == lib.WSPY_OK, result
        sock.detach()
        return int(handle[0])

    def listen(self, listener: socket.socket) -> None:
        """Accept from a listening socket."""
        listener.settimeout(0)
        assert lib.wspy_loop_listen(self.loop, listener.fileno()) == lib.WSPY_OK

    def awaiting(self, pair: tuple[socket.socket, socket.socket], request: bytes = REQUEST) -> int:
        """Adopt pair[0] and let pair[1] send a request; return the handle, whose head was reported."""
        handle = self.adopt(pair[0])
        pair[1].sendall(request)
        self.until(HEAD, handle)
        return handle

    def opened(self, pair: tuple[socket.socket, socket.socket], **options: Any) -> int:
        """The same, with the request accepted and the response received."""
        handle = self.awaiting(pair)
        self.push(ACCEPT, handle, accept(**options))
        self.until(OPENED, handle)
        assert exactly(pair[1], len(RESPONSE)) == RESPONSE
        return handle

    # ---- what it knows ----

    def stats(self) -> dict[str, int]:
        """Return the counters."""
        stats = ffi.new("wspy_stats *")
        assert lib.wspy_loop_stats(self.loop, stats) == lib.WSPY_OK
        names = ("accepted", "opened", "closed", "refused", "messages_received", "bytes_received", "bytes_sent",
                 "broadcasts", "protocol_errors", "timeouts", "accept_errors", "turns", "connections", "handshakes",
                 "backlog", "silent_handshakes")  # fmt: skip
        return {name: int(getattr(stats, name)) for name in names}

    def backlog(self, handle: int) -> int:
        """Return the unsent bytes of a connection."""
        return int(lib.wspy_loop_backlogs(self.loop)[handle & lib.WSPY_SLOT_MASK])


class Sealed(Turns):
    """A loop of raw connections, and between them and their peers what takes the place of TLS.

    It seals nothing: ciphertext is plaintext, and close_notify is nothing. So what holds for ``Turns`` holds here.
    """

    def __init__(self, **changes: Any) -> None:
        super().__init__(raw=1, **changes)
        self.gone: list[int] = []
        """Handles of the connections that were reported to be gone."""

    def turn(self, timeout_ms: int = 0) -> list[Event]:
        """Make a turn, and as many more as it takes until something comes up or nothing has to be sealed or opened."""
        found: list[Event] = []
        while True:
            events = super().turn(timeout_ms)
            found += [event for event in events if event.kind not in {RAW, OUT, OUT_LAST, GONE}]
            answered = [self.answer(event) for event in events]
            if any(answered) and found:
                self.submit()
            if found or not any(answered):
                return found
            timeout_ms = 0

    def answer(self, event: Event) -> bool:
        """Answer an event as TLS would, if it is for TLS."""
        if event.kind == RAW:
            self.push(FEED if event.payload else FEED_END, event.handle, event.payload)
        elif event.kind in {OUT, OUT_LAST}:
            bits = lib.WSPY_RAW_OUT | (lib.WSPY_RAW_LAST if event.kind == OUT_LAST else 0)
            self.push(RAW_SEND, event.handle, bytes([bits]) + event.payload)
        elif event.kind == GONE:
            self.gone.append(event.handle)
        return event.kind in {RAW, OUT, OUT_LAST}


# ---- peers ----


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a TCP connection: the accepted one first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    return accepted, peer


def reset(sock: socket.socket) -> None:
    """Close with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def exactly(sock: socket.socket, size: int) -> bytes:
    """Receive so many bytes."""
    sock.settimeout(DEADLINE_S)
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, f"the connection ended after {len(data)} of {size} bytes"
        data += more
    return data


def received(sock: socket.socket) -> bytes:
    """Receive what is there, without waiting."""
    sock.settimeout(0)
    data = b""
    with contextlib.suppress(BlockingIOError):
        while more := sock.recv(1 << 20):
            data += more
    return data


def to_the_end(sock: socket.socket, turns: Turns) -> bytes:
    """Receive to the end of the connection while the loop turns."""
    sock.settimeout(0)
    data = b""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        turns.turn()
        try:
            more = sock.recv(1 << 20)
        except BlockingIOError:
            select.select([sock], [], [], 0.01)
            continue
        if not more:
            return data
        data += more
    raise AssertionError(f"no end after {len(data)} bytes")


@contextlib.contextmanager
def faults(call: int, nth: int = 0, times: int = 1, error: int = 0, short_io: int = 0) -> Iterator[None]:
    """Let calls of one kind fail, or all recv and send be short, inside the block."""
    assert lib.wspy_sys_fail(call, nth, times, error, short_io) >= 0
    try:
        yield
    finally:
        lib.wspy_sys_fail(call, 0, 0, 0, 0)
