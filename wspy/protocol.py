"""The protocol of RFC 6455 §5 to §7 for one end of a connection: bytes in; events, owed replies and errors out.

No I/O and no clock: whoever holds the transport brings what arrived, and sends what is owed and what it asks for. The
rules themselves are in ``_core/protocol.c``.
"""

from __future__ import annotations

import os
from operator import index
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from ._core import ffi, lib
from .codes import Opcode, Role
from .errors import CoreError, PingError, ProtocolError, SocketClosed
from .frames import (
    FIN,
    HOW_TO_BREAK_RULES,
    MAX_CONTROL,
    Frame,
    close_payload,
    core_error,
    is_close_code,
    mask,
    received_frame,
    split_close,
)
from .limits import NO_COUNT_LIMIT, NO_SIZE_LIMIT, checked_limit
from .messages import Sendable, create_message

if TYPE_CHECKING:
    from ._core._wspy import CData

__all__ = ["Event", "Protocol"]

_RSV_BITS = lib.WSPY_RSV1 | lib.WSPY_RSV2 | lib.WSPY_RSV3
_CLAIMABLE_OPCODES = 0xF8FF

# The C endpoint copies what it is fed: a large read is fed in pieces, so that the copy stays small. A payload of 64 KiB
# has to fit with its header: what doesn't is copied once more.
_PIECE = 1 << 17
# Beyond this much input, memory is given back at once.
_LARGE = 4096
_MOVED = lib.WSPY_ENDPOINT_MOVED
# plain numbers, since those of an enum are slow to calculate with
_CONTROL = int(Opcode.CLOSE)
_CLOSE = int(Opcode.CLOSE)
_PING = int(Opcode.PING)
_WHOLE_TEXT = FIN | int(Opcode.TEXT)
_WHOLE_BINARY = FIN | int(Opcode.BINARY)
_MASKED = lib.WSPY_SEND_MASKED
_UNCHECKED = lib.WSPY_SEND_UNCHECKED
_KEY = lib.WSPY_SEND_KEY
# Frames up to this size are written into memory that is there already.
_ROOM = 1024

# Of wspy_event: kind, start, end.
_KIND_AT = ffi.offsetof("wspy_event", "kind")
_EVENT = Struct(f"={_KIND_AT}xIII{ffi.sizeof('wspy_event') - _KIND_AT - 12}x")
_ONE = _EVENT.unpack_from
_EVENT_SIZE = _EVENT.size
_NOT_FINAL = lib.WSPY_EVENT_NOT_FINAL
_DETACHED = lib.WSPY_EVENT_DETACHED
_OPCODES: tuple[int, ...] = tuple(Opcode(n) if n in list(Opcode) else n for n in range(16))


_new = tuple.__new__  # half the price of Event(...)


class Event(NamedTuple):
    """A message, a frame, or a control frame from the peer. Immutable, owns its payload.

    Args:
        opcode: an ``Opcode``, or the plain number of one that an extension has claimed.
        payload: unmasked bytes. Of a text: valid UTF-8, unless RSV bits say that an extension has to transform it
            first; of a frame, valid as far as it goes. Of a Close: nothing, or two bytes of code and a reason, checked
            (RFC 6455 §5.5.1).
        final: False for a fragment that others follow (§5.4). Messages and control frames are final.
        rsv: the reserved bits of the frame, or of the first frame of the message: 0x40, 0x20 and 0x10.
    """

    opcode: int
    payload: bytes
    final: bool
    rsv: int


def _control_payload(frame: bytes) -> bytes:
    """Return the payload of a control frame of ours, whose length takes one byte."""
    if not frame[1] & lib.WSPY_MASK_BIT:
        return frame[2:]
    return mask(frame[6:], frame[2:6])


def _misuse(error: int) -> Exception:
    """Return the exception for a frame that can't be sent."""
    message = core_error(error).message
    if error == lib.WSPY_ERROR_SYSTEM:
        return CoreError(message)
    return ValueError(f"{message}; {HOW_TO_BREAK_RULES}")


os.register_at_fork(after_in_child=lib.wspy_endpoint_forked)


class Protocol:
    """One end of a connection after the opening handshake, RFC 6455 §5 to §7.

    Send what ``replies`` returns after each ``feed``. Once the events of a ``feed`` are handled and answered, send
    what ``owed_close`` returns: the echo of the peer's Close, or the Close that says which rule it broke.

    Not thread-safe: a method that is called while another one runs raises ``RuntimeError`` and changes nothing; the
    properties may be read at any time. All memory of C belongs to this object and goes with it. What arrived of an
    unfinished message is kept here; nothing is reserved for what was only announced (§10.4).

    Args:
        role: which end this is: a server's peer must mask its frames, a client's must not (§5.1).
        frames: deliver each data frame as it is, instead of reassembled messages. All rules hold all the same.
        max_size: limit of a message, in bytes over all its fragments; None for no limit. Beyond: 1009.
        max_fragment_size: limit of one data frame, in bytes; None for no limit. Beyond: 1009.
        max_fragments: limit of the number of data frames of a message; None for no limit. Beyond: 1008.
        rsv: the reserved bits that extensions have claimed: 0x40, 0x20 and 0x10 (§9). Payloads with one set are not
            checked to be UTF-8.
        opcodes: the opcodes that extensions have claimed, bit n for opcode n (§9): reserved ones, and 0 to 2 if all
            data is for them to read: then texts are not checked to be UTF-8.

    Raises:
        TypeError: a limit, ``rsv`` or ``opcodes`` isn't an integer.
        ValueError: an argument is out of its range.
        MemoryError: there is no memory.
    """

    __slots__ = (
        "_arena",
        "_closed",
        "_endpoint",
        "_error",
        "_events",
        "_idle",
        "_length",
        "_masks",
        "_opcodes",
        "_output",
        "_rcvd",
        "_replies",
        "_sending",
        "_written",
        "role",
    )

    def __init__(  # noqa: PLR0913 -- each is a limit or a claim of its own, by name
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
        if index(rsv) & ~_RSV_BITS:
            raise ValueError(f"rsv must be made of 0x40, 0x20 and 0x10, not {rsv:#x}")
        if index(opcodes) & ~_CLAIMABLE_OPCODES:
            raise ValueError(f"only 0 to 7 and 11 to 15 can be claimed, not {opcodes:#x}")
        limits = ffi.new(
            "wspy_limits *",
            (
                checked_limit("max_size", max_size, 0, NO_SIZE_LIMIT),
                checked_limit("max_fragment_size", max_fragment_size, 0, NO_SIZE_LIMIT),
                checked_limit("max_fragments", max_fragments, 0, NO_COUNT_LIMIT),
            ),
        )
        endpoint = lib.wspy_endpoint_new(
            Role(role), lib.WSPY_FRAMES if frames else lib.WSPY_MESSAGES, limits, rsv, opcodes
        )
        if not endpoint:
            raise MemoryError
        self.role = Role(role)
        self._masks = int(self.role is Role.CLIENT)
        self._opcodes = opcodes
        self._closed: tuple[bool, tuple[int, str]] | None = None  # whether we began, and what our Close said
        self._rcvd: tuple[int, str] | None = None
        self._endpoint = ffi.gc(endpoint, lib.wspy_endpoint_free)
        # Whoever uses the endpoint takes it out of here: cffi releases the GIL during a call, and C has no lock.
        self._idle = [self._endpoint]
        self._length = ffi.new("uint64_t *")
        self._sending = ffi.new("wspy_sending *")
        self._output = ffi.new("uint8_t[]", _ROOM + lib.WSPY_HEADER_MAX)
        self._written = ffi.buffer(self._output)
        self._look(endpoint)
        self._replies = b""
        self._error: ProtocolError | None = None

    def _take(self) -> CData:
        try:
            return self._idle.pop()
        except IndexError:
            raise RuntimeError("another call on this protocol is running") from None

    # ---- receiving ----

    def feed(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Decode bytes from the peer; how they are cut makes no difference.

        After the first violation (see ``error``), and after the peer's Close, input is ignored (RFC 6455 §7.1.7,
        §1.4). What was complete before is still returned.

        Args:
            data: any contiguous bytes-like object. It is copied; after the call it may change.

        Returns:
            The messages or frames that are complete now, with the control frames between them, in order.

        Raises:
            RuntimeError: another call on this object is running.
        """
        try:
            endpoint = self._idle.pop()  # _take, without a call
        except IndexError:
            endpoint = self._take()
        try:
            events: list[Event] = []
            if type(data) is bytes and len(data) <= _PIECE:
                length = len(data)
                count = lib.wspy_endpoint_step(endpoint, data, length)
                if count == 1 and length <= _LARGE:
                    kind, start, size = _ONE(self._events)
                    if kind < _CONTROL:  # a whole data frame or message without anything special, as most are
                        return [_new(Event, (_OPCODES[kind], self._arena[start : start + size], True, 0))]
                self._take_events(endpoint, count, length, events)
                return events
            with ffi.from_buffer("uint8_t[]", data) as whole:
                size = len(whole)
                for start in range(0, size, _PIECE):
                    length = min(_PIECE, size - start)
                    count = lib.wspy_endpoint_step(endpoint, whole + start, length)
                    self._take_events(endpoint, count, length, events)
            return events
        finally:
            self._idle.append(endpoint)

    def _take_events(self, endpoint: CData, count: int, length: int, events: list[Event]) -> None:
        """Take what a step over so many bytes has led to."""
        if count & _MOVED:  # so has every error
            count = lib.wspy_endpoint_event_count(endpoint)
            self._look(endpoint)
            number = lib.wspy_endpoint_error(endpoint)
            if number and self._error is None:
                self._error = core_error(number)
        large = length > _LARGE
        arena = self._arena
        pinged = False
        records = _EVENT.iter_unpack(self._events[: count * _EVENT_SIZE]) if count != 1 else (_ONE(self._events),)
        for kind, start, size in records:
            if kind & _DETACHED:
                payload = self._detached(endpoint, start)
                large = True
            else:
                payload = arena[start : start + size]
            opcode = _OPCODES[kind & 0x0F]
            if opcode >= _CONTROL:
                pinged |= opcode == _PING
                if opcode == _CLOSE:
                    self._rcvd = split_close(payload)
            events.append(_new(Event, (opcode, payload, not kind & _NOT_FINAL, kind >> 8 & _RSV_BITS)))
        if pinged:
            self._replies += self._pongs(endpoint)
        if large:  # the memory of what was long, or many, isn't kept until more arrives
            lib.wspy_endpoint_clear(endpoint)

    def _look(self, endpoint: CData) -> None:
        """See where events and payloads lie now."""
        capacity = lib.wspy_endpoint_event_capacity(endpoint) * _EVENT_SIZE
        self._events = ffi.buffer(lib.wspy_endpoint_events(endpoint), capacity) if capacity else b""
        size = lib.wspy_endpoint_arena_capacity(endpoint)
        self._arena = ffi.buffer(lib.wspy_endpoint_arena(endpoint), size) if size else b""

    def _detached(self, endpoint: CData, number: int) -> bytes:
        payload = lib.wspy_endpoint_detached(endpoint, number, self._length)
        return ffi.buffer(payload, self._length[0])[:]

    def _pongs(self, endpoint: CData) -> bytes:
        length = ffi.cast("size_t *", self._length)
        frames = lib.wspy_endpoint_replies(endpoint, length)
        return ffi.buffer(frames, length[0])[:] if length[0] else b""

    @property
    def error(self) -> ProtocolError | None:
        """The rule that the peer broke, with the close code that answers it; it never changes again.

        Code 1011 stands for no fault of the peer: there was no memory for what arrived.
        """
        return self._error

    @property
    def rcvd(self) -> tuple[int, str] | None:
        """Code and reason of the peer's Close, None if there was none yet; 1005 stands for no code."""
        return self._rcvd

    @property
    def sent(self) -> tuple[int, str] | None:
        """The same of this side's."""
        return None if self._closed is None else self._closed[1]

    @property
    def began_closing(self) -> bool:
        """Whether this side's Close comes before the peer's, if there is any yet (RFC 6455 §7.1.2)."""
        return self._rcvd is None if self._closed is None else self._closed[0]

    @property
    def close_received(self) -> bool:
        """Whether the peer's Close has arrived. Nothing that follows it is looked at (RFC 6455 §1.4)."""
        return bool(lib.wspy_endpoint_close_state(self._endpoint) & 2)

    # ---- sending ----

    def message(self, message: Sendable, fragment_size: int | None = None) -> bytes:
        """Return the frames of a message, to be sent; masked if this is a client (RFC 6455 §5.1, §6.1).

        Args:
            message: a ``Message``; a str for a text, a buffer for a binary one.
            fragment_size: split it into frames of so many bytes of payload (§5.4); None for one frame. Nothing but
                control frames may be sent between them.

        Raises:
            RuntimeError: another call on this object is running.
            SocketClosed: a Close was sent, which nothing may follow (§5.5.1).
            TypeError: it is no message.
            ValueError: ``fragment_size`` is below 1; its opcode is no message's, nor one that was claimed; or a text
                has a lone surrogate (RFC 3629 §3).
        """
        if fragment_size is None:
            if type(message) is bytes:
                return self._send(_WHOLE_BINARY, message, self._masks)
            if type(message) is str:
                return self._send(_WHOLE_TEXT, message.encode(), self._masks)
        frame = create_message(message, self._opcodes).frame()
        return self.frames(*([frame] if fragment_size is None else frame.fragment(fragment_size)))

    def ping(self, payload: bytes | str = b"") -> bytes:
        """Return a Ping, to be sent (RFC 6455 §5.5.2).

        Args:
            payload: at most 125 bytes; a str is sent as UTF-8.

        Raises:
            PingError: the payload is too long.
            RuntimeError: another call on this object is running.
            SocketClosed: a Close was sent, which nothing may follow (§5.5.1).
        """
        return self._control(Opcode.PING, payload)

    def pong(self, payload: bytes | str = b"") -> bytes:
        """Return a Pong that nobody has asked for, to be sent (RFC 6455 §5.5.3); those that are owed are ``replies``.

        Args:
            payload: at most 125 bytes; a str is sent as UTF-8.

        Raises:
            PingError: the payload is too long.
            RuntimeError: another call on this object is running.
            SocketClosed: a Close was sent, which nothing may follow (§5.5.1).
        """
        return self._control(Opcode.PONG, payload)

    def _control(self, opcode: Opcode, payload: bytes | str) -> bytes:
        data = payload.encode() if isinstance(payload, str) else bytes(memoryview(payload))
        if len(data) > MAX_CONTROL:
            raise PingError(f"the payload of a {opcode.name.title()} has at most {MAX_CONTROL} bytes, not {len(data)}")
        return self.frames(received_frame(opcode, data))

    def frames(self, *frames: Frame) -> bytes:
        """Return frames of your own, to be sent; masked if this is a client and they don't say otherwise.

        They follow the rules that the peer's have to follow: fragments in order, valid UTF-8 over all of a text, no
        reserved bit or opcode that wasn't claimed, masked by a client only, nothing behind a Close. All are looked at
        before any of them counts as sent. ``unchecked`` frames are packed and otherwise ignored.

        Raises:
            CoreError: the system has no randomness for a masking key (§5.3).
            RuntimeError: another call on this object is running.
            SocketClosed: a Close was sent, which nothing may follow (§5.5.1).
            TypeError: it is no frame; or see ``Frame``: attributes may have been changed.
            ValueError: a frame breaks a rule, or one that isn't ``unchecked`` follows a Close.
        """
        if len(frames) == 1 and isinstance(frames[0], Frame):
            frame = frames[0]
            return self._send(frame.first_byte(), frame.payload, self._how(frame), frame.masking_key)
        endpoint = self._take()
        try:
            self._check_all(frames)
            return b"".join(
                [self._send(f.first_byte(), f.payload, self._how(f), f.masking_key, endpoint) for f in frames]
            )
        finally:
            self._idle.append(endpoint)

    def check(self, *frames: Frame) -> None:
        """Raise what ``frames`` would raise, and change nothing."""
        endpoint = self._take()
        try:
            self._check_all(frames)
        finally:
            self._idle.append(endpoint)

    @property
    def is_between_messages(self) -> bool:
        """Whether the start of a message can be sent now: none is unfinished, and no other call is running."""
        return bool(self._idle) and not self._sending.state

    def _check_all(self, frames: tuple[Frame, ...]) -> None:
        sending = ffi.new("wspy_sending *", self._sending[0])
        for frame in frames:
            self._check(sending, frame)

    def _check(self, sending: CData, frame: Frame) -> None:
        """Check a frame by the rules for those before it, of which nothing was sent yet."""
        if not isinstance(frame, Frame):
            raise TypeError(f"a Frame can be sent here, not {type(frame).__name__}; message() sends messages")
        first, payload = frame.first_byte(), frame.payload
        if frame.unchecked:
            return
        if self._closed is not None:
            self._raise_closed(*self._closed)
        if sending.closed:
            raise ValueError("nothing may follow a Close frame (RFC 6455 §5.5.1)")
        error = lib.wspy_endpoint_check(self._endpoint, sending, first, payload, len(payload))
        if error:
            raise _misuse(error)
        if self._how(frame) & _MASKED != self._masks:
            raise _misuse(lib.WSPY_ERROR_UNMASKED if self._masks else lib.WSPY_ERROR_MASKED)

    def _how(self, frame: Frame) -> int:
        if frame.mask is None and not frame.masking_key and not frame.unchecked:
            return self._masks
        how: int = _UNCHECKED if frame.unchecked else 0
        if frame.masking_key:
            return how | _MASKED | _KEY
        masks = self._masks if frame.mask is None else frame.mask
        return how | _MASKED if masks else how

    def _send(self, first: int, payload: bytes, how: int, key: bytes = b"", taken: CData | None = None) -> bytes:
        """Return a frame as on the wire, and note it as the last one that was sent.

        Args:
            first: its first byte.
            payload: its payload, unmasked.
            how: WSPY_SEND bits.
            key: what to mask it with, if one of them says so.
            taken: the endpoint, if the caller has taken it.
        """
        try:
            endpoint = self._idle.pop() if taken is None else taken
        except IndexError:
            endpoint = self._take()
        try:
            if self._closed is not None and not how & _UNCHECKED:
                self._raise_closed(*self._closed)
            length = len(payload)
            if length <= _ROOM:
                size = lib.wspy_endpoint_send(endpoint, self._sending, first, how, key, payload, length, self._output)
                frame = self._written[:size] if size > 0 else b""
            else:
                # nobody has seen these bytes yet: the core may still write them
                frame = bytes(length + (4 if length < 1 << 16 else 10) + 4 * (how & _MASKED))
                output = ffi.from_buffer("uint8_t[]", frame)
                size = lib.wspy_endpoint_send(endpoint, self._sending, first, how, key, payload, length, output)
            if size < 0:
                raise _misuse(size)
            if first & 0x0F == _CLOSE and not how & _UNCHECKED:
                self._closed = self._rcvd is None, split_close(payload)
            return frame
        finally:
            if taken is None:
                self._idle.append(endpoint)

    def _raise_closed(self, began: bool, sent: tuple[int, str]) -> NoReturn:
        raise SocketClosed(began, "a Close was sent, and nothing may follow it", rcvd=self._rcvd, sent=sent)

    # ---- what is owed, and the closing handshake ----

    @property
    def is_replying(self) -> bool:
        """Whether ``replies`` has something to return."""
        return bool(self._replies)

    def replies(self) -> bytes:
        """Take the Pongs that are owed to the peer, RFC 6455 §5.5.2: complete frames in order, or nothing.

        There is none for a Ping that came after our own Close, which nothing may follow (§5.5.1).

        Raises:
            RuntimeError: another call on this object is running.
        """
        endpoint = self._take()
        try:
            replies, self._replies = self._replies, b""
            return replies
        finally:
            self._idle.append(endpoint)

    def owed_close(self) -> bytes:
        """Take the Close frame that is owed, or nothing: it is owed once, and never after ``close``.

        After the peer's Close this is its echo (RFC 6455 §5.5.1), after an error one with the error's code (§7.1.7).
        Nothing may be sent behind it.

        Raises:
            RuntimeError: another call on this object is running.
            CoreError: the system has no randomness for a masking key (§5.3).
        """
        endpoint = self._take()
        try:
            return self._closing(lib.wspy_endpoint_owed_close(endpoint, self._output), began=self._rcvd is None)
        finally:
            self._idle.append(endpoint)

    def fail(self, error: ProtocolError) -> None:
        """Fail for a rule of an extension that the peer broke: ``owed_close`` says so, and input is ignored then.

        Raises:
            RuntimeError: another call on this object is running.
            ValueError: a Close frame can't carry the error's code.
        """
        if not is_close_code(error.code):
            raise ValueError(f"a Close frame can't carry the code {error.code}")
        endpoint = self._take()
        try:
            lib.wspy_endpoint_fail(endpoint, error.code)
            self._error = self._error or error
            self._rcvd = None  # it came behind what broke the rule, if it came at all
        finally:
            self._idle.append(endpoint)

    def close(self, code: int | None = 1000, reason: str = "") -> bytes:
        """Start the closing handshake: return a Close frame, RFC 6455 §7.1.2. Nothing may be sent behind it.

        Messages of the peer still arrive until its Close does. Returns nothing if a Close was sent before, or is owed.

        Args:
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999; None for an empty Close.
            reason: at most 123 bytes as UTF-8.

        Raises:
            TypeError: see ``close_payload``.
            ValueError: see ``close_payload``.
            RuntimeError: another call on this object is running.
            CoreError: the system has no randomness for a masking key (§5.3).
        """
        payload = close_payload(code, reason)
        endpoint = self._take()
        try:
            return self._closing(lib.wspy_endpoint_close(endpoint, payload, len(payload), self._output), began=True)
        finally:
            self._idle.append(endpoint)

    def _closing(self, length: int, *, began: bool) -> bytes:
        if length < 0:
            raise CoreError(ffi.string(lib.wspy_error_text(length)).decode())
        frame: bytes = self._written[:length]
        if frame:
            self._closed = began, split_close(_control_payload(frame))
        return frame

    @property
    def close_sent(self) -> bool:
        """Whether ``close`` or ``owed_close`` has returned our Close frame."""
        return bool(lib.wspy_endpoint_close_state(self._endpoint) & 1)
