"""The C endpoint as it is, without the Python face: what waits in it, when it is taken, when it is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reference import CLOSE_CODES, Outcome, decode_frames

from wspy._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wspy._core._wspy import CData
    from wspy.codes import Role

ERROR_NAMES = {getattr(lib, f"WSPY_ERROR_{name}"): name for name in CLOSE_CODES}
UNLIMITED = (2**64 - 1, 2**64 - 1, 2**32 - 1)
NO_MEMORY = lib.WSPY_ERROR_NO_MEMORY


class Endpoint:
    """A C endpoint. Raises MemoryError if there is none."""

    def __init__(
        self,
        role: Role,
        *,
        frames: bool = False,
        max_size: int | None = 1 << 20,
        max_fragment_size: int | None = None,
        max_fragments: int | None = 131072,
        rsv: int = 0,
        opcodes: int = 0,
    ) -> None:
        given = (max_size, max_fragment_size, max_fragments)
        limits = [most if limit is None else limit for limit, most in zip(given, UNLIMITED, strict=True)]
        pointer = lib.wspy_endpoint_new(role, int(frames), ffi.new("wspy_limits *", limits), rsv, opcodes)
        if not pointer:
            raise MemoryError
        self.pointer = ffi.gc(pointer, lib.wspy_endpoint_free)

    def feed(self, data: bytes | CData, length: int | None = None) -> int:
        return lib.wspy_endpoint_feed(self.pointer, data, len(data) if length is None else length)

    def event_count(self) -> int:
        return lib.wspy_endpoint_event_count(self.pointer)

    def events(self) -> list[tuple[int, bytes, bool, int]]:
        """Return the waiting events: opcode, payload, final, rsv."""
        events = lib.wspy_endpoint_events(self.pointer)
        return [self._fields(events[i]) for i in range(self.event_count())]

    def _fields(self, event: CData) -> tuple[int, bytes, bool, int]:
        kind: int = event.kind
        payload = self.detached(event.start) if kind & lib.WSPY_EVENT_DETACHED else self._in_arena(event)
        assert payload is not None
        return (kind & 15, payload, not kind & lib.WSPY_EVENT_NOT_FINAL, (kind & lib.WSPY_EVENT_RSV) >> 8)

    def _in_arena(self, event: CData) -> bytes:
        start = lib.wspy_endpoint_arena(self.pointer) + event.start
        return ffi.buffer(start, event.length)[:] if event.length else b""

    def detached(self, index: int) -> bytes | None:
        length = ffi.new("uint64_t *")
        payload = lib.wspy_endpoint_detached(self.pointer, index, length)
        return ffi.buffer(payload, length[0])[:] if payload else None

    def replies(self) -> bytes:
        length = ffi.new("size_t *")
        data = lib.wspy_endpoint_replies(self.pointer, length)
        return ffi.buffer(data, length[0])[:] if length[0] else b""

    def clear(self) -> None:
        lib.wspy_endpoint_clear(self.pointer)

    def owed_close(self) -> bytes:
        output = ffi.new("uint8_t[139]")
        return ffi.buffer(output, lib.wspy_endpoint_owed_close(self.pointer, output))[:]

    def close(self, payload: bytes = b"\x03\xe8") -> bytes:
        output = ffi.new("uint8_t[139]")
        size = lib.wspy_endpoint_close(self.pointer, payload, len(payload), output)
        if size < 0:
            raise ValueError(size)
        return ffi.buffer(output, size)[:]

    def step(self, data: bytes | CData, length: int | None = None) -> int:
        return lib.wspy_endpoint_step(self.pointer, data, len(data) if length is None else length)

    def check(self, sending: CData, first: int, payload: bytes = b"") -> int:
        return lib.wspy_endpoint_check(self.pointer, sending, first, payload, len(payload))

    def send(self, sending: CData, first: int, payload: bytes = b"", how: int = 0, key: bytes = b"") -> bytes | int:
        """Return a frame as on the wire, or the error."""
        output = ffi.new("uint8_t[]", len(payload) + lib.WSPY_HEADER_MAX)
        size = lib.wspy_endpoint_send(self.pointer, sending, first, how, key, payload, len(payload), output)
        return ffi.buffer(output, size)[:] if size >= 0 else size

    def places(self) -> tuple[object, ...]:
        """Return where events and arena are, and how large."""
        return (
            lib.wspy_endpoint_events(self.pointer),
            lib.wspy_endpoint_event_capacity(self.pointer),
            lib.wspy_endpoint_arena(self.pointer),
            lib.wspy_endpoint_arena_capacity(self.pointer),
        )

    def error(self) -> int:
        return lib.wspy_endpoint_error(self.pointer)

    def close_state(self) -> int:
        return lib.wspy_endpoint_close_state(self.pointer)

    def outcome(self, pieces: Iterable[bytes], *, clear_each: bool = True) -> Outcome:
        """Feed the pieces, and return all that they lead to."""
        events, replies = [], b""
        for piece in pieces:
            count = self.feed(piece)
            assert count == (self.error() or self.event_count())
            if clear_each:
                events += self.events()
                replies += self.replies()
                self.clear()
        events += self.events()
        replies += self.replies()
        closes = decode_frames(self.owed_close())
        return Outcome(
            events,
            [payload for _, payload, _ in decode_frames(replies)],
            ERROR_NAMES.get(self.error()) if self.error() else None,
            closes[0][1] if closes else None,
        )
