"""Frames as values, as bytes on the wire, and read from them (RFC 6455 §5.2).

A frame is judged here by itself. Whether it may come where it does is up to who knows the frames around it:
``Protocol`` and ``websocket``.
"""

from __future__ import annotations

import os
import typing
from operator import index
from typing import TYPE_CHECKING, Final, TypeAlias

from ._core import ffi, lib
from .codes import CloseCode, Opcode
from .errors import ProtocolError, SocketClosed
from .limits import NO_SIZE_LIMIT, checked_limit

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FIN",
    "HOW_TO_BREAK_RULES",
    "LIMITS",
    "MAX_CONTROL",
    "ControlFrame",
    "Frame",
    "close_payload",
    "contains_frame",
    "core_error",
    "create_close_frame",
    "fragments",
    "frame_header",
    "mask",
    "new_key",
    "packed",
    "pop_frame",
    "read_frame",
    "receive_frame",
    "received_frame",
    "split_close",
    "too_many_controls",
]

FIN: Final = 0x80
_RSV1, _RSV2, _RSV3 = lib.WSPY_RSV1, lib.WSPY_RSV2, lib.WSPY_RSV3
_MASKED: Final = lib.WSPY_MASK_BIT
_KEY_SIZE: Final = 4
MAX_CONTROL: Final = 125  # §5.5
_MAX_REASON: Final = 123  # the code takes two of them
HOW_TO_BREAK_RULES: Final = (
    "a frame that is made with unchecked=True may break rules, for tests of other implementations"
)
LIMITS: Final = {
    lib.WSPY_ERROR_MESSAGE_SIZE: "max_size",
    lib.WSPY_ERROR_FRAGMENT_SIZE: "max_size",
    lib.WSPY_ERROR_FRAGMENT_COUNT: "max_fragments",
    lib.WSPY_ERROR_CONTROL_RATE: "max_controls",
}
"""The arguments that the peer's frames are held against, by the error of the core."""
_BINARY: Final = int(Opcode.BINARY)
_FINAL_BINARY: Final = FIN | _BINARY
_CONTROL: Final = 0x08  # §5.5: the bit of an opcode that says so

BytesLike: TypeAlias = bytes | bytearray | memoryview


def frame_header(first: int, length: int) -> bytes:
    """Return the header of an unmasked frame.

    Args:
        first: its first byte: FIN, RSV bits and opcode.
        length: bytes of its payload.
    """
    if length < 126:
        return bytes((first, length))
    if length < 1 << 16:
        return bytes((first, 126)) + length.to_bytes(2, "big")
    return bytes((first, 127)) + length.to_bytes(8, "big")


def new_key() -> bytes:
    """Return a key for one frame: RFC 6455 §5.3 wants a new one for each, from a strong source of entropy."""
    return os.urandom(_KEY_SIZE)


def mask(payload: BytesLike, key: BytesLike) -> bytes:
    """Return a payload masked, or unmasked, with a key of four bytes (RFC 6455 §5.3). Thread-safe.

    Raises:
        TypeError: one of them is not bytes-like.
        ValueError: the key hasn't four bytes.
    """
    four = bytes(memoryview(key))
    if len(four) != _KEY_SIZE:
        raise ValueError(f"a masking key has {_KEY_SIZE} bytes, this one has {len(four)}")
    data = bytearray(memoryview(payload))
    lib.wspy_mask(ffi.from_buffer("uint8_t[]", data), len(data), four, 0)
    return bytes(data)


class Frame:
    """One frame, RFC 6455 §5.2. A plain value: not thread-safe while it is being changed.

    A frame that breaks a rule by itself can't be made: an opcode out of range, a control frame that is a fragment or
    has more than 125 bytes, a Close with a code that may not be sent, a text that is not UTF-8. To test how others
    take such frames, say ``unchecked=True``.

    Args:
        opcode: what the payload is.
        payload: the application data, unmasked: bytes-like, of which a copy is kept, or where the opcode is text a str.
        masking_key: four bytes that the payload is masked with on the wire, §5.3. It has to be unpredictable, and
            another one for each frame, so leave this to ``mask`` but in tests. What arrived has none: it was unmasked.
        mask: True for a random masking key, False for none; None leaves it to who sends the frame: a client masks, and
            with another key each time, a server doesn't.
        final: FIN: no fragment follows.
        rsv1: reserved for extensions, as are ``rsv2`` and ``rsv3``.
        rsv2: see ``rsv1``.
        rsv3: see ``rsv1``.
        unchecked: neither look at the rules now, nor when the frame is packed or sent.

    Attributes:
        opcode, payload, masking_key, mask, final, rsv1, rsv2, rsv3, unchecked: as given; the payload as bytes.
        compress: for extensions that compress frames: whether to do so with this one; None leaves it to them.

    Raises:
        TypeError: the payload or the key is of another type; only a text may be a str.
        ValueError: the frame breaks a rule; or, ``unchecked`` too, there is no such opcode or key.
    """

    # what most frames have in common: they need no attribute of their own for it
    masking_key: bytes = b""
    mask: bool | None = None
    final: bool = True
    rsv1: bool = False
    rsv2: bool = False
    rsv3: bool = False
    unchecked: bool = False
    compress: bool | None = None

    def __init__(  # noqa: PLR0913, PLR0917 -- each is a field of a frame, in the order of the original
        self,
        opcode: int,
        payload: BytesLike | str = b"",
        masking_key: BytesLike | None = b"",
        mask: bool | None = None,
        final: bool = True,
        rsv1: bool = False,
        rsv2: bool = False,
        rsv3: bool = False,
        *,
        unchecked: bool = False,
    ) -> None:
        self.opcode = opcode
        self.payload: bytes = payload if type(payload) is bytes else _payload(opcode, payload)
        if final and not (masking_key or mask is not None or rsv1 or rsv2 or rsv3 or unchecked) and opcode == _BINARY:
            return  # what nothing can be wrong with, and most frames are
        if mask is not None:
            self.mask = bool(mask)
        if masking_key or mask:
            self.masking_key = bytes(memoryview(masking_key)) if masking_key else new_key()
        if not final:
            self.final = False
        if rsv1 or rsv2 or rsv3:
            self.rsv1, self.rsv2, self.rsv3 = bool(rsv1), bool(rsv2), bool(rsv3)
        if unchecked:
            self.unchecked = True
        self._check()

    @property
    def is_control(self) -> bool:
        """Whether this is a control frame, RFC 6455 §5.5."""
        return self.opcode >= Opcode.CLOSE

    def is_fragmented(self) -> bool:
        """Tell whether this is one of several frames of a message, RFC 6455 §5.4."""
        return not self.final or self.opcode == Opcode.CONTINUATION

    @property
    def text(self) -> str:
        """The payload as a str.

        Raises:
            UnicodeDecodeError: it is not UTF-8, as the part of a fragmented text needs not be.
        """
        return self.payload.decode()

    def pack(self) -> bytes:
        """Return the frame as on the wire, RFC 6455 §5.2.

        Raises:
            TypeError: see ``Frame``: attributes may have been changed.
            ValueError: see ``Frame``.
        """
        first = self._check()
        key = self.masking_key or (new_key() if self.mask else b"")
        return packed(first, self.payload, key)

    def mask_payload(self) -> bytes:
        """Return the payload as on the wire, masked with the frame's key.

        Raises:
            ValueError: the frame has no ``masking_key``.
        """
        return mask(self.payload, self.masking_key)

    def fragment(self, fragment_size: int, mask: bool | None = None) -> list[Frame]:
        """Return the frames of a fragmented message with this payload, RFC 6455 §5.4.

        The first has the opcode and the RSV bits (RFC 7692 §6.1), the others are continuations; the last is as final as
        this frame is. An empty payload makes one frame.

        Args:
            fragment_size: bytes of payload in each frame but the last, at least 1.
            mask: of each frame, see ``Frame``; None for that of this frame, with keys of their own if it is masked.

        Raises:
            TypeError: this is a control frame, and not ``unchecked``; or see ``pack``.
            ValueError: ``fragment_size`` is below 1; or see ``Frame``.
        """
        self._check()
        if self.is_control and not self.unchecked:
            raise TypeError("a control frame can't be fragmented (RFC 6455 §5.5)")
        if mask is None:
            mask = True if self.masking_key else self.mask
        frames = []
        for first, part in fragments(self.opcode, self.payload, fragment_size):
            final = bool(first & FIN) and self.final
            frames.append(Frame(first & 0x0F, part, mask=mask, final=final, unchecked=True))
            frames[-1].unchecked = self.unchecked
        frames[0].rsv1, frames[0].rsv2, frames[0].rsv3 = self.rsv1, self.rsv2, self.rsv3
        return frames

    def first_byte(self) -> int:
        """Return the first byte on the wire: FIN, RSV bits and opcode.

        Raises:
            TypeError: the opcode isn't an integer, or payload or key aren't bytes.
            ValueError: there is no such opcode, or no such key.
        """
        opcode, key = index(self.opcode), self.masking_key
        if not 0 <= opcode <= 15:
            raise ValueError(f"an opcode is from 0 to 15, not {opcode}")
        # whoever gets this byte passes the other two to C
        if not isinstance(self.payload, bytes):
            raise TypeError(f"the payload of a frame must be bytes, not {type(self.payload).__name__}")
        if key and not isinstance(key, bytes):
            raise TypeError(f"a masking key must be bytes, not {type(key).__name__}")
        if key and len(key) != _KEY_SIZE:
            raise ValueError(f"a masking key has {_KEY_SIZE} bytes, this one has {len(key)}")
        first = opcode | FIN if self.final else opcode
        if self.rsv1 or self.rsv2 or self.rsv3:
            first |= _RSV1 * bool(self.rsv1) | _RSV2 * bool(self.rsv2) | _RSV3 * bool(self.rsv3)
        return first

    def _check(self) -> int:
        """Return the first byte of a frame that breaks no rule by itself."""
        first = self.first_byte()
        if first != _FINAL_BINARY and not self.unchecked:
            error = lib.wspy_frame_check(first, self.payload, len(self.payload))
            if error:
                raise ValueError(f"{core_error(error).message}; {HOW_TO_BREAK_RULES}")
        return first

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _FIELDS)

    __hash__ = None  # type: ignore[assignment]  # frames can be changed

    def __repr__(self) -> str:
        try:
            name = Opcode(self.opcode).name
        except ValueError:
            name = f"opcode {self.opcode}"
        flags = [flag for flag in ("final", "rsv1", "rsv2", "rsv3") if getattr(self, flag)]
        start = self.payload[:30]
        more = "..." if len(self.payload) > len(start) else ""
        return f"<{type(self).__name__} {' '.join([name, *flags])} {len(self.payload)} bytes {start!r}{more}>"


_FIELDS: Final = ("opcode", "payload", "final", "rsv1", "rsv2", "rsv3", "masking_key")


class ControlFrame(Frame):
    """A frame that is no part of a message, and may come between its fragments (RFC 6455 §5.5)."""

    def fragment(self, fragment_size: int, mask: bool | None = None) -> list[Frame]:  # noqa: ARG002 -- Frame's
        """Raise TypeError: control frames can't be fragmented, RFC 6455 §5.5."""
        raise TypeError("a control frame can't be fragmented (RFC 6455 §5.5)")

    def unpack_close(self) -> tuple[int | None, str]:
        """Return code and reason of a Close frame, RFC 6455 §5.5.1; None for a code that isn't there.

        Raises:
            TypeError: this is no Close frame.
            ProtocolError: its payload is none of a Close frame; only an ``unchecked`` frame can have such a one.
        """
        if self.opcode != Opcode.CLOSE:
            raise TypeError(f"not a Close frame: {self!r}")
        error = lib.wspy_frame_check(FIN | Opcode.CLOSE, self.payload, len(self.payload))
        if error:
            raise core_error(error)
        code, reason = split_close(self.payload)
        return (code if self.payload else None), reason


# ---- of what is sent ----


def _payload(opcode: int, payload: BytesLike | str) -> bytes:
    if not isinstance(payload, str):
        try:
            return bytes(memoryview(payload))
        except TypeError:
            message = f"a payload is bytes-like, that of a text also a str: not {type(payload).__name__}"
            raise TypeError(message) from None
    if opcode != Opcode.TEXT:
        raise TypeError(f"the payload of opcode {opcode} can't be a str: only that of a text can")
    return payload.encode()


def packed(first: int, payload: bytes, key: bytes) -> bytes:
    """Return a frame as on the wire: its first byte, its payload, and the key to mask it with, if any."""
    length = len(payload)
    if not key:
        return frame_header(first, length) + payload
    header = frame_header(first, length)
    output = bytearray(length)
    lib.wspy_mask_into(ffi.from_buffer("uint8_t[]", output), payload, length, key, 0)
    return b"".join((header[:1], bytes((header[1] | _MASKED,)), header[2:], key, output))


def fragments(opcode: int, payload: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Split a payload into the frames of a fragmented message, RFC 6455 §5.4.

    Args:
        opcode: of the message; later fragments are continuations.
        payload: of the message. An empty one makes one frame.
        size: bytes of payload in each frame but the last, at least 1.

    Yields:
        first byte and payload of each frame.

    Raises:
        ValueError: ``size`` is below 1.
    """
    if size < 1:
        raise ValueError("fragment_size must be at least 1")
    end = max(len(payload), 1)
    for start in range(0, end, size):
        part = payload[start : start + size]
        first = (opcode if start == 0 else Opcode.CONTINUATION) | (FIN if start + size >= end else 0)
        yield first, part


def is_close_code(number: int) -> bool:
    """Tell whether a Close frame may carry this code, RFC 6455 §7.4."""
    return bool(0 <= number <= 0xFFFF and lib.wspy_close_code_valid(number))


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
    if not is_close_code(number):
        raise ValueError(f"a Close frame can't carry the code {number}")
    encoded = reason.encode()
    if len(encoded) > _MAX_REASON:
        raise ValueError(f"a reason has at most {_MAX_REASON} bytes, this one has {len(encoded)}")
    return number.to_bytes(2) + encoded


def create_close_frame(code: int | None = 1000, reason: str = "") -> ControlFrame:
    """Return a Close frame, RFC 6455 §5.5.1.

    Args:
        code: see ``close_payload``; None for an empty frame.
        reason: at most 123 bytes as UTF-8.

    Raises:
        TypeError: see ``close_payload``.
        ValueError: see ``close_payload``.
    """
    return ControlFrame(Opcode.CLOSE, close_payload(code, reason))


# ---- of what arrives ----


def core_error(number: int) -> ProtocolError:
    """Return the exception for an error of the core, a negative number."""
    text = ffi.string(lib.wspy_error_text(number)).decode()
    section = ffi.string(lib.wspy_error_section(number)).decode()
    message = f"{text} ({section})" if section else text
    return ProtocolError(lib.wspy_error_close_code(number), message, limit=LIMITS.get(number))


def too_many_controls() -> ProtocolError:
    """Return the exception for more control frames in a second than ``max_controls``, RFC 6455 §10.4."""
    return core_error(lib.WSPY_ERROR_CONTROL_RATE)


def split_close(payload: bytes) -> tuple[int, str]:
    """Return code and reason of a Close frame's valid payload, RFC 6455 §5.5.1; 1005 stands for no code."""
    if not payload:
        return CloseCode.NO_STATUS, ""
    return int.from_bytes(payload[:2]), payload[2:].decode()


def received_frame(opcode: int, payload: bytes, *, final: bool = True, rsv: int = 0) -> Frame:
    """Return a frame that was checked already; ``rsv``: 0x40, 0x20 and 0x10."""
    frame = Frame.__new__(ControlFrame if opcode >= Opcode.CLOSE else Frame)
    frame.opcode = opcode
    frame.payload = payload
    if not final:
        frame.final = False
    if rsv:
        frame.rsv1, frame.rsv2, frame.rsv3 = bool(rsv & _RSV1), bool(rsv & _RSV2), bool(rsv & _RSV3)
    return frame


class _Start:
    """What the first bytes of a frame say; a size is 0 while it is not known."""

    __slots__ = ("first", "frame_size", "header_size", "key")

    def __init__(self, data: BytesLike, *, strict: bool) -> None:
        header = ffi.new("wspy_frame_header *")
        start = bytes(memoryview(data).cast("B")[: lib.WSPY_HEADER_MAX])
        result = lib.wspy_frame_decode(start, len(start), header)
        if result == lib.WSPY_ERROR_LENGTH_RANGE or (result < 0 and strict):
            raise core_error(result)
        self.first: int = header.flags | header.opcode
        self.header_size = self.frame_size = 0
        self.key = b""
        if len(start) < 2:
            return
        if strict and self.first & _CONTROL and start[1] & 0x7F > MAX_CONTROL:  # judged before it is received
            raise core_error(lib.WSPY_ERROR_CONTROL_LENGTH)
        key_at = (2, 4, 10)[max((start[1] & 0x7F) - 125, 0)]
        self.header_size = key_at + _KEY_SIZE * bool(header.masked)
        if len(start) >= self.header_size:
            self.frame_size = self.header_size + int(header.length)
            self.key = start[key_at : self.header_size]


def contains_frame(data: BytesLike) -> bool:
    """Tell whether the data begins with a complete frame, RFC 6455 §5.2, whatever rules it breaks.

    Raises:
        ProtocolError: its length has the most significant bit set: no frame can be complete.
    """
    size = _Start(data, strict=False).frame_size
    return 0 < size <= len(memoryview(data).cast("B"))


def read_frame(data: BytesLike, *, strict: bool = True) -> tuple[Frame, int]:
    """Read the frame that the data begins with, RFC 6455 §5.2.

    Args:
        data: a complete frame, and what follows it; see ``contains_frame``.
        strict: look at the rules for a frame by itself; without, what breaks them is returned as an ``unchecked`` one.

    Returns:
        the frame, with its payload unmasked and its masking key, so that ``pack`` makes the same bytes, unless its
        length took more bytes than it must; and how many bytes it took.

    Raises:
        ProtocolError: the frame breaks a rule.
        ValueError: the frame is not complete.
    """
    start = _Start(data, strict=strict)
    view = memoryview(data).cast("B")
    if not 0 < start.frame_size <= len(view):
        raise ValueError("the data holds no complete frame: contains_frame tells when it does")
    payload = bytes(view[start.header_size : start.frame_size])
    if start.key:
        payload = mask(payload, start.key)
    error = lib.wspy_frame_check(start.first, payload, len(payload))
    if error and strict:
        raise core_error(error)
    frame = received_frame(start.first & 0x0F, payload, final=bool(start.first & FIN), rsv=start.first & 0x70)
    frame.masking_key, frame.unchecked = start.key, bool(error)
    return frame, start.frame_size


def pop_frame(data: BytesLike, *, strict: bool = True) -> tuple[Frame, bytes]:
    """Read the frame that the data begins with, and return it with the rest of the data; see ``read_frame``."""
    frame, size = read_frame(data, strict=strict)
    return frame, bytes(memoryview(data).cast("B")[size:])


class Receiving(typing.Protocol):
    """What bytes can be received from, such as a socket."""

    def recv(self, size: int, /) -> bytes:
        """Receive at most so many bytes; none at the end."""


def receive_frame(sock: Receiving, *, max_size: int | None = 1 << 20, strict: bool = True) -> Frame:
    """Receive one frame from a blocking socket, and not a byte more.

    Args:
        sock: what has ``recv``.
        max_size: bytes of its payload, None for no limit; over it 1009.
        strict: see ``read_frame``.

    Raises:
        SocketClosed: the connection has ended.
        ProtocolError: the frame breaks a rule, or is too long.
        TypeError: ``max_size`` is neither an integer nor None.
        ValueError: ``max_size`` is out of range.
        OSError: what ``recv`` raises: after a timeout a part of the frame may be lost.
    """
    most = checked_limit("max_size", max_size, 0, NO_SIZE_LIMIT)
    data = bytearray()
    while not (start := _Start(data, strict=strict)).frame_size:
        data += _some(sock, max(start.header_size, 2) - len(data))
    if start.frame_size - start.header_size > most:
        raise core_error(lib.WSPY_ERROR_MESSAGE_SIZE)
    while len(data) < start.frame_size:
        data += _some(sock, min(start.frame_size - len(data), 1 << 16))
    return read_frame(data, strict=strict)[0]


def _some(sock: Receiving, size: int) -> bytes:
    data = sock.recv(size)
    if not data:
        raise SocketClosed(message="the peer has ended the connection without a Close frame")
    return data
