"""The protocol of RFC 6455 §5 to §7 for one end of a connection: bytes in; events, owed replies and errors out.

No I/O and no clock: whoever holds the transport brings what arrived, and sends what is owed and what it asks for. The
rules themselves are in ``_core/protocol.c``.
"""

from __future__ import annotations

from operator import index
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from ._core import ffi, lib
from .codes import CloseCode, Opcode, Role
from .errors import CoreError, PingError, ProtocolError, SocketClosed
from .frames import Frame, masked
from .limits import NO_COUNT_LIMIT, NO_SIZE_LIMIT, checked_limit
from .messages import Sendable, create_message, masking_key

if TYPE_CHECKING:
    from ._core._wspy import CData

__all__ = ["Event", "Protocol", "close_payload"]

_MAX_REASON = 123  # §5.5: a control frame holds 125 bytes, the code takes two
_MAX_CONTROL = 125
_MAX_CONTROL_FRAME = lib.WSPY_HEADER_MAX + 125
_RSV_BITS = lib.WSPY_RSV1 | lib.WSPY_RSV2 | lib.WSPY_RSV3
_RESERVED_OPCODES = 0xF8F8  # §5.2: 3 to 7 and 11 to 15

# The C endpoint copies what it is fed: a large read is fed in pieces, so that the copy stays small.
_PIECE = 1 << 16
# The most that the endpoint keeps for later of what it was fed: an incomplete header or control frame.
_REMAINDER = _MAX_CONTROL_FRAME

# Of wspy_event: kind, start, end.
_KIND_AT = ffi.offsetof("wspy_event", "kind")
_EVENT = Struct(f"={_KIND_AT}xIII{ffi.sizeof('wspy_event') - _KIND_AT - 12}x")
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


def _close_of(payload: bytes) -> tuple[int, str]:
    """Return code and reason of a valid Close frame, RFC 6455 §5.5.1."""
    if not payload:
        return CloseCode.NO_STATUS, ""
    return int.from_bytes(payload[:2]), payload[2:].decode()


def _control_payload(frame: bytes) -> bytes:
    """Return the payload of a control frame of ours, whose length takes one byte."""
    if not frame[1] & lib.WSPY_MASK_BIT:
        return frame[2:]
    return masked(frame[6:], frame[2:6])


def close_payload(code: int | None, reason: str = "") -> bytes:
    """Return the payload of a Close frame, RFC 6455 §5.5.1. Thread-safe.

    Args:
        code: 1000 to 1003, 1007 to 1014, or 3000 to 4999 (§7.4 and the IANA registry); None for an empty payload.
        reason: at most 123 bytes as UTF-8; it is never cut.

    Raises:
        TypeError: ``code`` isn't an integer, or ``reason`` isn't a string.
        ValueError: a Close frame may not carry this code; the reason is too long, has a lone surrogate
            (``UnicodeEncodeError``), or comes without a code.
    """
    if not isinstance(reason, str):
        raise TypeError(f"reason must be str, not {type(reason).__name__}")
    if code is None:
        if reason:
            raise ValueError("a reason needs a code")
        return b""
    number = index(code)
    if not (0 <= number <= 0xFFFF and lib.wspy_close_code_valid(number)):
        raise ValueError(f"a Close frame can't carry the code {number}")
    encoded = reason.encode()
    if len(encoded) > _MAX_REASON:
        raise ValueError(f"a reason has at most {_MAX_REASON} bytes, this one has {len(encoded)}")
    return number.to_bytes(2) + encoded


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
        opcodes: the reserved opcodes that extensions have claimed, bit n for opcode n (§9).

    Raises:
        TypeError: a limit, ``rsv`` or ``opcodes`` isn't an integer.
        ValueError: an argument is out of its range.
        MemoryError: there is no memory.
    """

    __slots__ = (
        "_closed",
        "_endpoint",
        "_error",
        "_idle",
        "_length",
        "_masks",
        "_opcodes",
        "_output",
        "_rcvd",
        "_replies",
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
        if index(opcodes) & ~_RESERVED_OPCODES:
            raise ValueError(f"only 3 to 7 and 11 to 15 can be claimed, not {opcodes:#x}")
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
        self._masks = self.role is Role.CLIENT
        self._opcodes = opcodes
        self._closed: tuple[bool, tuple[int, str]] | None = None  # whether we began, and what our Close said
        self._rcvd: tuple[int, str] | None = None
        self._endpoint = ffi.gc(endpoint, lib.wspy_endpoint_free)
        # Whoever uses the endpoint takes it out of here: cffi releases the GIL during a call, and C has no lock.
        self._idle = [self._endpoint]
        self._length = ffi.new("uint64_t *")
        self._output = ffi.new("uint8_t[]", _MAX_CONTROL_FRAME)
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
        endpoint = self._take()
        try:
            events: list[Event] = []
            if type(data) is bytes and len(data) <= _PIECE:
                self._feed_piece(endpoint, data, len(data), events)
                return events
            with ffi.from_buffer("uint8_t[]", data) as whole:
                size = len(whole)
                for start in range(0, size, _PIECE):
                    self._feed_piece(endpoint, whole + start, min(_PIECE, size - start), events)
            return events
        finally:
            self._idle.append(endpoint)

    def _feed_piece(self, endpoint: CData, data: CData | bytes, length: int, events: list[Event]) -> None:
        try:
            count = lib.wspy_endpoint_feed(endpoint, data, length)
            if count < 0:
                count = lib.wspy_endpoint_event_count(endpoint)
            if count:
                self._collect(endpoint, count, length + _REMAINDER, events)
        finally:
            lib.wspy_endpoint_clear(endpoint)

    def _collect(self, endpoint: CData, count: int, reach: int, events: list[Event]) -> None:
        """Copy the waiting events and replies. Payloads lie in the first ``reach`` bytes of the arena."""
        arena = ffi.buffer(lib.wspy_endpoint_arena(endpoint), reach)
        records = ffi.buffer(lib.wspy_endpoint_events(endpoint), count * _EVENT.size)
        pinged = False
        for kind, start, length in _EVENT.iter_unpack(records):
            payload = self._detached(endpoint, start) if kind & _DETACHED else arena[start : start + length]
            opcode = _OPCODES[kind & 0x0F]
            pinged = pinged or opcode is Opcode.PING
            if opcode is Opcode.CLOSE:
                self._rcvd = _close_of(payload)
            events.append(_new(Event, (opcode, payload, not kind & _NOT_FINAL, kind >> 8 & _RSV_BITS)))
        if pinged:
            self._replies += self._pongs(endpoint)

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
        number = lib.wspy_endpoint_error(self._endpoint)
        if number and self._error is None:
            text = ffi.string(lib.wspy_error_text(number)).decode()
            section = ffi.string(lib.wspy_error_section(number)).decode()
            self._error = ProtocolError(lib.wspy_error_close_code(number), f"{text} ({section})" if section else text)
        return self._error

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
        whole = create_message(message, self._opcodes)
        if fragment_size is None:
            return self._packed([whole.frame(self._masks)])
        return self._packed(whole.fragment(fragment_size, self._masks))

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
        if len(data) > _MAX_CONTROL:
            raise PingError(f"the payload of a {opcode.name.title()} has at most {_MAX_CONTROL} bytes, not {len(data)}")
        return self._packed([Frame(opcode, data, masking_key=masking_key() if self._masks else None)])

    def _packed(self, frames: list[Frame]) -> bytes:
        endpoint = self._take()
        try:
            self._check_open()
            return b"".join([frame.pack() for frame in frames])
        finally:
            self._idle.append(endpoint)

    def _check_open(self) -> None:
        if self._closed is None:
            return
        began, sent = self._closed
        raise SocketClosed(began, "a Close was sent, and nothing may follow it", rcvd=self._rcvd, sent=sent)

    # ---- what is owed, and the closing handshake ----

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
            return self._written(lib.wspy_endpoint_owed_close(endpoint, self._output), began=self._rcvd is None)
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
            return self._written(lib.wspy_endpoint_close(endpoint, payload, len(payload), self._output), began=True)
        finally:
            self._idle.append(endpoint)

    def _written(self, length: int, *, began: bool) -> bytes:
        if length < 0:
            raise CoreError(ffi.string(lib.wspy_error_text(length)).decode())
        frame = ffi.buffer(self._output, length)[:]
        if frame:
            self._closed = began, _close_of(_control_payload(frame))
        return frame

    @property
    def close_sent(self) -> bool:
        """Whether ``close`` or ``owed_close`` has returned our Close frame."""
        return bool(lib.wspy_endpoint_close_state(self._endpoint) & 1)
