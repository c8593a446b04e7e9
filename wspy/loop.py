"""The Python face of the C loop: a queue of commands, turns, and what a turn brings.

The queue is one list: ``[number, key, prefix, payload, key, prefix, payload, ...]``. All of them are bytes, and joined
they are a batch as the core wants it: ``number`` is that of the first command in it since the loop began, ``key`` the
handle with the command, ``prefix`` the length of what follows and, for a message, the header of its frame.

Adding is one atomic ``extend``, and joining is atomic, too. The core applies each number once, so overlapping batches
of several threads, or one that an exception interrupted, do no harm. What was applied is taken off by one slice
assignment that also moves ``number``.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import weakref
from array import array
from sys import getsizeof
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from ._core import ffi, lib
from .codes import Opcode
from .errors import CoreError
from .frames import FIN, frame_header
from .frames import LIMITS as FRAME_LIMITS
from .http11 import HEAD_LIMIT, HEADERS_LIMIT
from .limits import NO_COUNT_LIMIT, NO_SIZE_LIMIT, checked_count, checked_limit, milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "BINARY_PREFIXES",
    "LARGE",
    "SHORT",
    "SLOT",
    "TEXT_PREFIXES",
    "UNLIMITED",
    "Loop",
    "Settings",
    "acceptance",
    "broadcast_payload",
    "close_code",
    "command",
    "error_text",
    "failure",
    "grant",
    "handle",
    "key",
    "message_prefix",
    "note",
    "prefix",
]

SHIFT: Final = lib.WSPY_COMMAND_SHIFT
SEND: Final = lib.WSPY_COMMAND_SEND << SHIFT
FAR: Final = lib.WSPY_COMMAND_FAR << SHIFT
LAST_SEND: Final = lib.WSPY_COMMAND_SEND_LAST
MARK: Final = lib.WSPY_COMMAND_MARK << SHIFT
ACCEPT: Final = lib.WSPY_COMMAND_ACCEPT << SHIFT
RESPOND: Final = lib.WSPY_COMMAND_RESPOND << SHIFT
CLOSE: Final = lib.WSPY_COMMAND_CLOSE << SHIFT
ABORT: Final = lib.WSPY_COMMAND_ABORT << SHIFT
PAUSE: Final = lib.WSPY_COMMAND_PAUSE << SHIFT
RESUME: Final = lib.WSPY_COMMAND_RESUME << SHIFT
GRANT: Final = lib.WSPY_COMMAND_GRANT << SHIFT
BROADCAST: Final = lib.WSPY_COMMAND_BROADCAST << SHIFT
BROADCAST_MARK: Final = BROADCAST | lib.WSPY_BROADCAST_MARK
NOTE: Final = lib.WSPY_COMMAND_NOTE << SHIFT
REFUSE: Final = lib.WSPY_COMMAND_REFUSE << SHIFT
FINISH: Final = lib.WSPY_COMMAND_FINISH << SHIFT
FAIL: Final = lib.WSPY_COMMAND_FAIL << SHIFT
FEED: Final = lib.WSPY_COMMAND_FEED << SHIFT
FEED_END: Final = lib.WSPY_COMMAND_FEED_END << SHIFT
RAW_SEND: Final = lib.WSPY_COMMAND_RAW_SEND << SHIFT
HANDLE: Final = (1 << SHIFT) - 1
SLOT: Final = lib.WSPY_SLOT_MASK
EVERYONE: Final = lib.WSPY_FOREVER
UNLIMITED: Final = lib.WSPY_FOREVER

EVENT_TEXT: Final = lib.WSPY_EVENT_TEXT
EVENT_BINARY: Final = lib.WSPY_EVENT_BINARY
EVENT_CLOSE: Final = lib.WSPY_EVENT_CLOSE
EVENT_PING: Final = lib.WSPY_EVENT_PING
EVENT_PONG: Final = lib.WSPY_EVENT_PONG
EVENT_NOT_FINAL: Final = lib.WSPY_EVENT_NOT_FINAL
EVENT_RSV: Final = lib.WSPY_EVENT_RSV
EVENT_CLAIMED: Final = lib.WSPY_EVENT_CLAIMED
EVENT_APART: Final = lib.WSPY_EVENT_APART
EVENT_DETACHED: Final = lib.WSPY_EVENT_DETACHED
EVENT_HEAD: Final = lib.WSPY_EVENT_HEAD
EVENT_BAD_HEAD: Final = lib.WSPY_EVENT_BAD_HEAD
EVENT_OPENED: Final = lib.WSPY_EVENT_OPENED
EVENT_SENT: Final = lib.WSPY_EVENT_SENT
EVENT_CLOSED: Final = lib.WSPY_EVENT_CLOSED
EVENT_PINGED: Final = lib.WSPY_EVENT_PINGED
EVENT_ACCEPT_PAUSED: Final = lib.WSPY_EVENT_ACCEPT_PAUSED
EVENT_DRAINED: Final = lib.WSPY_EVENT_DRAINED
EVENT_ENDING: Final = lib.WSPY_EVENT_ENDING
EVENT_RAW: Final = lib.WSPY_EVENT_RAW
EVENT_OUT: Final = lib.WSPY_EVENT_OUT
EVENT_OUT_LAST: Final = lib.WSPY_EVENT_OUT_LAST
EVENT_GONE: Final = lib.WSPY_EVENT_GONE
EVENT_IDLE: Final = lib.WSPY_EVENT_IDLE

# What RAW_SEND begins with if it answers OUT, or OUT_LAST.
OUT: Final = bytes([lib.WSPY_RAW_OUT])
OUT_AND_LAST: Final = bytes([lib.WSPY_RAW_OUT | lib.WSPY_RAW_LAST])

# As a positive number, as CLOSED has it.
EXTENSION_ERROR: Final = -lib.WSPY_ERROR_EXTENSION
CUT: Final = -lib.WSPY_ERROR_EOF
LOST: Final = -lib.WSPY_ERROR_RESET
CLOSE_TIMEOUT: Final = -lib.WSPY_ERROR_CLOSE_TIMEOUT
ABORTED: Final = -lib.WSPY_ERROR_ABORTED
BACKLOG: Final = -lib.WSPY_ERROR_BACKLOG
OPEN_TIMEOUT_ERROR: Final = -lib.WSPY_ERROR_OPEN_TIMEOUT
# The settings that end connections.
LIMITS: Final = {
    **{-error: limit for error, limit in FRAME_LIMITS.items()},
    CLOSE_TIMEOUT: "close_timeout",
    -lib.WSPY_ERROR_PING_TIMEOUT: "ping_timeout",
    -lib.WSPY_ERROR_WRITE_TIMEOUT: "write_timeout",
    BACKLOG: "max_backlog",
    -lib.WSPY_ERROR_HEAD_LINE: "max_line",
    -lib.WSPY_ERROR_HEAD_FIELD: "max_header_line",
    -lib.WSPY_ERROR_HEAD_FIELD_COUNT: "max_headers",
    -lib.WSPY_ERROR_HEAD_SIZE: "max_head",
    -lib.WSPY_ERROR_HEAD_TIMEOUT: "open_timeout",
    -lib.WSPY_ERROR_OPEN_TIMEOUT: "open_timeout",
}

MESSAGES: Final = lib.WSPY_MESSAGES
FRAMES: Final = lib.WSPY_FRAMES

LARGE: Final = 8192
"""Payloads above this many bytes go to the core by pointer, not by copy."""

# With more than this waiting, a turn doesn't keep its batch alive while it sleeps.
HEAVY: Final = 256 << 10

_EVENT: Final = struct.Struct("=IIII")
# From so many events on, the quicker of two ways to read them is the one that takes longer to set up.
MANY: Final = 16
_ACCEPT: Final = struct.Struct("=IHBB")
_NUMBER: Final = struct.Struct("=Q")
_KEY: Final = struct.Struct("=Q")
_LENGTH: Final = struct.Struct("=I")
_CODE: Final = struct.Struct("=H")
_FAR: Final = struct.Struct("=QQ")

Note: TypeAlias = "Callable[[int, int, Any], object]"
Command: TypeAlias = tuple[bytes, bytes, Any]
Event: TypeAlias = tuple[int, int, int, int]
"""Slot, kind, start and length of the payload, or what core.h says."""
Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str


class Ending(NamedTuple):
    """How a connection ended."""

    error: int  # of the core, as a positive number; 0 after a closing handshake
    errno: int
    age: float  # seconds
    unsent_bytes: int
    unsent_messages: int


class Settings(NamedTuple):
    """What a loop needs to know; sizes in bytes, times in seconds, None for no limit or no deadline."""

    max_size: int | None = 1 << 20
    max_fragment_size: int | None = None
    max_fragments: int | None = 131_072
    max_line: int = 8192
    max_header_line: int = 8192
    max_head: int = 65_536
    max_headers: int = 100
    max_backlog: int | None = 16 << 20
    broadcast_limit: int = 0  # unsent bytes of a connection, above which broadcasts pass over it; 0: never
    write_limit: int = 0  # unsent bytes of a connection, down to which is reported as DRAINED; 0: never
    max_sockets: int = 0  # connections in every phase; 0: no limit
    max_handshakes: int | None = None
    max_handshakes_per_address: int | None = None
    max_accept_rate: int | None = None  # connections in a second
    notsent_lowat: int = 131_072
    open_timeout: float | None = 10.0
    close_timeout: float | None = 10.0
    ping_interval: float | None = 20.0
    ping_timeout: float | None = 20.0
    write_timeout: float | None = 30.0
    idle_timeout: float | None = None
    max_controls: int | None = 100_000  # control frames of a connection in a second
    idle_request_timeout: float | None = 30.0
    wants_pings: bool = False
    wants_pongs: bool = False
    wants_pinged: bool = False
    wants_endings: bool = False
    raw: bool = False  # connections go through TLS, which is ours


def _deadline(settings: Settings, name: str) -> int:
    return milliseconds(name, getattr(settings, name), lib.WSPY_FOREVER)


def _count_or_none(name: str, settings: Settings) -> int:
    """Return a limit as the core has it: 0 for none."""
    limit = checked_limit(name, getattr(settings, name), 1, NO_COUNT_LIMIT)
    return 0 if limit == NO_COUNT_LIMIT else limit


def _head_limits(settings: Settings) -> tuple[int, int, int, int]:
    return (
        checked_count("max_line", settings.max_line, 1, HEAD_LIMIT),
        checked_count("max_header_line", settings.max_header_line, 1, HEAD_LIMIT),
        checked_count("max_head", settings.max_head, 1, HEAD_LIMIT),
        checked_count("max_headers", settings.max_headers, 1, HEADERS_LIMIT),
    )


def _c_settings(settings: Settings) -> Any:
    wants = (
        settings.wants_pings * lib.WSPY_WANT_PING
        | settings.wants_pongs * lib.WSPY_WANT_PONG
        | settings.wants_pinged * lib.WSPY_WANT_PINGED
        | settings.wants_endings * lib.WSPY_WANT_ENDING
        | (settings.write_limit > 0) * lib.WSPY_WANT_DRAINED
    )
    return ffi.new(
        "wspy_settings *",
        {
            "limits": (
                checked_limit("max_size", settings.max_size, 1, NO_SIZE_LIMIT),
                checked_limit("max_size", settings.max_fragment_size, 1, NO_SIZE_LIMIT),
                checked_limit("max_fragments", settings.max_fragments, 1, NO_COUNT_LIMIT),
            ),
            "head": _head_limits(settings),
            "max_connections": settings.max_sockets,
            "max_handshakes": _count_or_none("max_handshakes", settings),
            "max_per_address": _count_or_none("max_handshakes_per_address", settings),
            "max_accepts": _count_or_none("max_accept_rate", settings),
            "max_backlog": checked_limit("max_backlog", settings.max_backlog, 1, NO_SIZE_LIMIT),
            "write_limit": settings.write_limit,
            "broadcast_limit": settings.broadcast_limit,
            "notsent_lowat": checked_count("notsent_lowat", settings.notsent_lowat, 0, (1 << 31) - 1),
            "open_timeout_ms": _deadline(settings, "open_timeout"),
            "close_timeout_ms": _deadline(settings, "close_timeout"),
            "ping_interval_ms": _deadline(settings, "ping_interval"),
            "ping_timeout_ms": _deadline(settings, "ping_timeout"),
            "write_timeout_ms": _deadline(settings, "write_timeout"),
            "idle_timeout_ms": _deadline(settings, "idle_timeout"),
            "max_controls": _count_or_none("max_controls", settings),
            "idle_request_ms": _deadline(settings, "idle_request_timeout"),
            "wants": wants,
            "raw": settings.raw,
        },
    )


def close_code(error: int) -> int:
    """Return the close code that stands for an error of the core, given as a positive number."""
    return lib.wspy_error_close_code(-error)


def error_text(error: int, system_error: int = 0) -> str:
    """Return a sentence for an error of the core, given as a positive number."""
    text = ffi.string(lib.wspy_error_text(-error)).decode()
    section = ffi.string(lib.wspy_error_section(-error)).decode()
    cause = os.strerror(system_error) if system_error else section
    return f"{text} ({cause})" if cause else text


def _check(result: int) -> int:
    """Return a result that is none of the negative errors.

    Raises:
        OSError: a system call failed.
        CoreError: everything else.
    """
    if result >= 0:
        return result
    if result == lib.WSPY_ERROR_SYSTEM:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    raise CoreError(error_text(-result))


_loops: weakref.WeakSet[Loop] = weakref.WeakSet()

# Loops that the garbage collector has taken. Other finalizers of the same collection may still ask them something, so
# their memory goes when the next loop is made.
_gone: list[Any] = []


def _abandon_loops() -> None:
    for loop in list(_loops):
        loop.abandon()


os.register_at_fork(after_in_child=_abandon_loops)


class Loop:
    """One epoll loop. One thread turns it; every other method says if it is for others too.

    Args:
        settings: limits and deadlines of all its connections.

    Raises:
        OSError: no descriptors or no memory.
        ValueError: a setting is out of range.
    """

    def __init__(self, settings: Settings) -> None:
        c_settings = _c_settings(settings)
        # private: the child of a fork does not write into its parent's
        self._packed = mmap.mmap(-1, lib.wspy_loop_packed_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        loop = lib.wspy_loop_new(c_settings, ffi.from_buffer("uint8_t[]", self._packed))
        if loop == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        while _gone:
            lib.wspy_loop_free(_gone.pop()[0])
        self._loop = loop
        self._queue: list[Any] = [_NUMBER.pack(0)]
        self.push = self._queue.extend
        """Adds commands, as ``command`` and ``message_prefix`` make them. Atomic; from any thread."""
        self.has_large = False
        """To be set before pushing a message above LARGE; if it gets lost, the payload is copied, no more."""
        self.notes: Note | None = None
        """Called with handle, number and payload of each NOTE command, once the commands before it were applied.

        After an exception in between it may be called twice for one number.
        """
        self._trimming = Lock()
        self._trimmer = 0  # the thread that holds the lock
        self._events = ffi.buffer(
            lib.wspy_loop_events(self._loop), lib.wspy_loop_event_capacity(self._loop) * _EVENT.size
        )
        self.arena = ffi.buffer(lib.wspy_loop_arena(self._loop), lib.wspy_loop_arena_capacity(self._loop))
        """What the events of the last turn with EVENT_APART have start and length in."""
        applied = ffi.buffer(lib.wspy_loop_applied(self._loop), _NUMBER.size)
        self._applied = memoryview(applied).cast("B").cast("Q")
        slots = lib.wspy_loop_slot_capacity(self._loop)
        self.backlogs = memoryview(ffi.buffer(lib.wspy_loop_backlogs(self._loop), slots * 4)).cast("B").cast("I")
        """Unsent bytes of the connection in each slot, as it is now."""
        _loops.add(self)

    def __del__(self) -> None:
        loop = getattr(self, "_loop", None)
        if loop is not None and lib.wspy_loop_close(loop) == lib.WSPY_OK:
            _gone.append((loop, self._packed))

    # ---- turning ----

    def turn(self, timeout_ms: int) -> int:
        """Apply the queued commands, wait, and return how many events came up.

        Args:
            timeout_ms: milliseconds; 0 polls, -1 waits for ever.

        Raises:
            CoreError: a turn is running already, or the loop was closed.
            OSError: epoll failed.
        """
        queue = self._queue
        if self.has_large or self.notes is not None:
            self.submit()
            batch = queue[0]
        else:
            batch = b"".join(queue)
            if len(batch) > HEAVY:
                self.submit()
                batch = queue[0]
        count = lib.wspy_loop_turn(self._loop, batch, len(batch), timeout_ms)
        if len(queue) > 1:  # also what another thread has sent, and came no further
            self._trim()
        return count if count >= 0 else _check(count)

    def submit(self) -> None:
        """Apply the queued commands without waiting. Thread-safe; the calling thread does the writing.

        Raises:
            CoreError: the loop was closed.
        """
        if len(self._queue) == 1:
            return
        batch, _kept = self._batch()
        result = lib.wspy_loop_submit(self._loop, batch, len(batch))
        self._trim()
        _check(result)

    def _batch(self) -> tuple[bytes, list[Any]]:
        """Return the queue as the core wants it, and what has to stay alive as long."""
        if not self.has_large and self.notes is None:
            return b"".join(self._queue), []
        self.has_large = False
        queue = self._queue[:]
        return b"".join(_records(queue)), queue

    def _trim(self) -> None:
        """Take off the queue what was applied."""
        thread = get_ident()
        if self._trimmer == thread:
            return  # a signal handler, or a finalizer, that sends: what it interrupted goes on afterwards
        queue = self._queue
        with self._trimming:
            # no signal handler can run between the lock and this
            self._trimmer = thread
            try:
                applied = self._applied[0]
                (number,) = _NUMBER.unpack(queue[0])
                if applied > number:
                    size = 1 + 3 * (applied - number)
                    if self.notes is not None:
                        _take_notes(queue[1:size], number, self.notes)
                    queue[:size] = (_NUMBER.pack(applied),)
            finally:
                self._trimmer = 0

    def events(self, count: int) -> Iterator[Event]:
        """Return the last turn's events."""
        records = self._events[: count * _EVENT.size]
        if count < MANY:
            return _EVENT.iter_unpack(records)
        fields = iter(array("i", records))
        return zip(fields, fields, fields, fields)  # noqa: B905 -- strict costs, and the core writes whole records

    def packed(self) -> Callable[[int], bytes]:
        """Return a function that reads the short payloads of the last turn's events, by their lengths, in order."""
        self._packed.seek(0)
        return self._packed.read

    def payload(self, kind: int, start: int, length: int) -> bytes:
        """Return the payload of an event of the last turn, wherever it lies. ``packed`` does not notice."""
        if kind & EVENT_DETACHED:
            return self._detached(start)
        return (self.arena if kind & EVENT_APART else self._packed)[start : start + length]

    def _detached(self, index: int) -> bytes:
        length = ffi.new("uint64_t *")
        data = lib.wspy_loop_detached(self._loop, index, length)
        return ffi.buffer(data, length[0])[:] if length[0] else b""

    def handle(self, slot: int) -> int:
        """Return the handle of the connection that an event of the last turn is about."""
        return lib.wspy_loop_handle(self._loop, slot)

    # ---- what it watches ----

    def listen(self, listener: socket.socket) -> None:
        """Accept from a listening socket, which stays the caller's. Thread-safe.

        Raises:
            OSError: epoll does not take it.
        """
        _check(lib.wspy_loop_listen(self._loop, listener.fileno()))

    def unlisten(self, listener: socket.socket) -> None:
        """Accept no more. Thread-safe; nothing happens if it isn't watched."""
        lib.wspy_loop_unlisten(self._loop, listener.fileno())

    def adopt(self, fd: int) -> int:
        """Take over a connected, non-blocking socket, and return its handle. Thread-safe.

        Raises:
            CoreError: no memory, or the loop was closed; the descriptor is still the caller's.
        """
        handle = ffi.new("uint64_t *")
        _check(lib.wspy_loop_adopt(self._loop, fd, handle))
        return int(handle[0])

    def watch(self, fd: int) -> None:
        """End turns when a descriptor becomes readable, and drain it; -1 for none. Thread-safe.

        Raises:
            OSError: epoll does not take it.
        """
        _check(lib.wspy_loop_watch(self._loop, fd))

    def fileno(self) -> int:
        """Return the descriptor that is readable when a turn has work.

        Raises:
            CoreError: the loop was closed.
        """
        return _check(lib.wspy_loop_fd(self._loop))

    def wake(self) -> None:
        """End the running or next wait. Thread-safe, and fit for signal handlers."""
        lib.wspy_loop_wake(self._loop)

    def alarm(self, at_ms: int) -> None:
        """End a wait at this time of ``now_ms`` at the latest; 0 for none. For the thread that turns."""
        lib.wspy_loop_alarm(self._loop, at_ms)

    def now_ms(self) -> int:
        """Return the milliseconds since the loop began, by a clock that never jumps. Thread-safe."""
        return lib.wspy_loop_now_ms(self._loop)

    # ---- what it knows ----

    @property
    def queued(self) -> int:
        """How many commands wait to be applied. Thread-safe."""
        return len(self._queue) // 3

    def backlog(self, handle: int) -> int:
        """Return the unsent bytes of a connection. Thread-safe."""
        return self.backlogs[handle & lib.WSPY_SLOT_MASK]

    def peer(self, handle: int) -> Address | None:
        """Return the peer's address as ``socket.getpeername`` does; None if it is forgotten. Thread-safe."""
        address = ffi.new("uint8_t[16]")
        port = ffi.new("uint32_t *")
        scope = ffi.new("uint32_t *")
        size = lib.wspy_loop_peer(self._loop, handle, address, port, scope)
        if size < 0:
            return None
        if size == 0:
            return ""
        if size == 4:
            return socket.inet_ntop(socket.AF_INET, bytes(ffi.buffer(address, 4))), int(port[0])
        return socket.inet_ntop(socket.AF_INET6, bytes(ffi.buffer(address, 16))), int(port[0]), 0, int(scope[0])

    def ending(self, handle: int, error: int) -> Ending:
        """Return how a connection ended, for the turn that its CLOSED event comes up in.

        Args:
            handle: of the connection.
            error: the last number of that event.
        """
        ending = ffi.new("wspy_ending *")
        _check(lib.wspy_loop_ending(self._loop, handle, ending))
        return Ending(error & 0xFF, error >> 8, ending.age_ms / 1000, ending.unsent, ending.unsent_messages)

    def latency(self, handle: int) -> float | None:
        """Return seconds from a connection's last keepalive ping that was answered to its pong. Thread-safe."""
        latency = lib.wspy_loop_latency(self._loop, handle)
        return None if latency < 0 else latency / 1e6

    def stats(self) -> dict[str, int]:
        """Return the counters of core.h's ``wspy_stats``. Thread-safe."""
        stats = ffi.new("wspy_stats *")
        _check(lib.wspy_loop_stats(self._loop, stats))
        return {name: int(getattr(stats, name)) for name in _STATS}

    def memory(self) -> dict[str, int]:
        """Return the bytes of core.h's ``wspy_memory``, and of commands that wait to be applied. Thread-safe."""
        memory = ffi.new("wspy_memory *")
        _check(lib.wspy_loop_memory(self._loop, memory))
        sizes = {name: int(getattr(memory, name)) for name in _MEMORY}
        sizes["queues"] += sum(map(getsizeof, self._queue[1:]))
        return sizes

    # ---- ending ----

    def close(self) -> None:
        """Close every connection at once, without a word; twice is fine. For the thread that turns, or when none does.

        Raises:
            CoreError: a turn is running.
        """
        _check(lib.wspy_loop_close(self._loop))

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called, or this is the child of a fork. Thread-safe."""
        return lib.wspy_loop_fd(self._loop) < 0

    def abandon(self) -> None:
        """In the child of a fork: let go of everything without touching what the parent goes on using."""
        lib.wspy_loop_abandon(self._loop)
        # a thread of the parent may have held it at the fork, and can't let go of it here
        self._trimming = Lock()
        self._trimmer = 0


_MEMORY: Final = ("records", "heads", "remainders", "queues", "raw")

_STATS: Final = (
    "accepted",
    "opened",
    "closed",
    "refused",
    "messages_received",
    "bytes_received",
    "bytes_sent",
    "broadcasts",
    "protocol_errors",
    "timeouts",
    "accept_errors",
    "turns",
    "full_addresses",
    "full_handshakes",
    "fast_accepts",
    "silent_handshakes",
    "passed_over",
    "connections",
    "handshakes",
    "backlog",
)


def key(handle: int) -> bytes:
    """Return a handle, with a command added, as the queue wants it."""
    return _KEY.pack(handle)


def handle(key: bytes) -> int:
    """Return the handle in a key."""
    return int(_KEY.unpack(key)[0]) & HANDLE


def command(handle: int, payload: bytes = b"") -> Command:
    """Return a command to push: a handle with the command added, and a payload."""
    return _KEY.pack(handle), _LENGTH.pack(len(payload)), payload


def prefix(length: int, first: bytes = b"") -> bytes:
    """Return what stands between the key and the payload of a command that has no frame.

    Args:
        length: bytes of the payload.
        first: what the core is to see before it.
    """
    return _LENGTH.pack(len(first) + length) + first


def note(handle: int, payload: Any) -> Command:
    """Return a NOTE to push, whose payload is anything but bytes."""
    return _KEY.pack(handle | NOTE), _LENGTH.pack(0), payload


def message_prefix(first: int, length: int) -> bytes:
    """Return what stands between the key and the payload of a frame.

    Args:
        first: the first byte of the frame: FIN and opcode.
        length: bytes of its payload.
    """
    header = frame_header(first, length)
    return _LENGTH.pack(len(header) + length) + header


SHORT: Final = 1024
"""Prefixes of shorter messages need not be made."""

TEXT_PREFIXES: Final = tuple(message_prefix(FIN | Opcode.TEXT, length) for length in range(SHORT))
BINARY_PREFIXES: Final = tuple(message_prefix(FIN | Opcode.BINARY, length) for length in range(SHORT))


def _records(queue: list[Any]) -> Iterator[bytes]:
    """Yield what a queue with notes or large messages has to be joined from."""
    yield queue[0]
    for key, prefix, payload in zip(queue[1::3], queue[2::3], queue[3::3], strict=True):
        if type(payload) is not bytes:  # a note
            yield from (key, prefix)
        elif len(payload) > LARGE and _KEY.unpack(key)[0] >> SHIFT <= LAST_SEND:
            yield from _far(_KEY.unpack(key)[0], prefix[_LENGTH.size :], payload)
        else:
            yield from (key, prefix, payload)


def _far(key: int, header: bytes, payload: bytes) -> Command:
    address = int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", payload)))
    return command(key | FAR, _FAR.pack(address, len(payload)) + header)


def _take_notes(commands: list[Any], number: int, take: Note) -> None:
    for key, payload in zip(commands[::3], commands[2::3], strict=True):
        if type(payload) is not bytes:
            take(handle(key), number, payload)
        number += 1


def acceptance(
    response: bytes, *, granularity: int, credit: int | None = None, rsv: int = 0, opcodes: int = 0
) -> bytes:
    """Return the payload of an ACCEPT command.

    Args:
        response: the 101.
        granularity: MESSAGES or FRAMES.
        credit: how many messages may be delivered before more are granted; None for any number.
        rsv: the reserved bits that extensions have claimed.
        opcodes: that they have claimed, bit n for opcode n; see core.h.
    """
    return _ACCEPT.pack(UNLIMITED if credit is None else credit, opcodes, rsv, granularity) + response


def failure(handle: int, close_code: int) -> Command:
    """Return a command to push: an extension has found what the peer sent to break a rule."""
    return command(handle | FAIL, _CODE.pack(close_code))


def grant(handle: int, count: int) -> Command:
    """Return a command to push: so many more messages may be delivered, or any number if that is UNLIMITED."""
    return command(handle | GRANT, _LENGTH.pack(count))


def broadcast_payload(frame: bytes, keys: list[bytes] | None) -> bytes:
    """Return the payload of a BROADCAST command; None for every open connection."""
    if keys is None:
        return _LENGTH.pack(EVERYONE) + frame
    return b"".join((_LENGTH.pack(len(keys)), *keys, frame))
