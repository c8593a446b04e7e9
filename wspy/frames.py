"""Frames as values, and their headers as bytes (RFC 6455 §5.2)."""

from __future__ import annotations

from typing import Final

from ._core import ffi, lib
from .codes import Opcode

__all__ = ["FIN", "Frame", "frame_header", "masked"]

FIN: Final = 0x80
_MAX_CONTROL: Final = 125
_KEY_SIZE: Final = 4


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


class Frame:
    """One frame, RFC 6455 §5.2. A plain value: not thread-safe while it is being changed.

    Args:
        opcode: what the payload is.
        payload: the application data, unmasked.
        final: FIN: no fragment follows.
        rsv1: reserved for extensions, as are ``rsv2`` and ``rsv3``.
        masking_key: four bytes that the payload is masked with on the wire, §5.3; None for a frame of a server. It has
            to be unpredictable, and another one for each frame. What arrived has none: it was unmasked.
    """

    __slots__ = ("final", "masking_key", "opcode", "payload", "rsv1", "rsv2", "rsv3")

    def __init__(  # noqa: PLR0913 -- each is a field of a frame, by name
        self,
        opcode: int,
        payload: bytes = b"",
        *,
        final: bool = True,
        rsv1: bool = False,
        rsv2: bool = False,
        rsv3: bool = False,
        masking_key: bytes | None = None,
    ) -> None:
        self.opcode = opcode
        self.payload = payload
        self.final = final
        self.rsv1 = rsv1
        self.rsv2 = rsv2
        self.rsv3 = rsv3
        self.masking_key = masking_key

    @property
    def is_control(self) -> bool:
        """Whether this is a control frame, RFC 6455 §5.5."""
        return self.opcode >= Opcode.CLOSE

    def pack(self) -> bytes:
        """Return the frame as on the wire, RFC 6455 §5.2.

        Raises:
            TypeError: the payload or the key is not bytes-like.
            ValueError: there is no such opcode; a masking key hasn't four bytes; or a control frame is a fragment, or
                has more than 125 bytes of payload (§5.5).
        """
        self._check()
        payload = bytes(memoryview(self.payload))
        first = self.opcode | FIN * bool(self.final) | 0x40 * bool(self.rsv1)
        first |= 0x20 * bool(self.rsv2) | 0x10 * bool(self.rsv3)
        header = frame_header(first, len(payload))
        if self.masking_key is None:
            return header + payload
        key = bytes(memoryview(self.masking_key))
        return bytes((header[0], header[1] | lib.WSPY_MASK_BIT)) + header[2:] + key + masked(payload, key)

    def _check(self) -> None:
        if not 0 <= self.opcode <= 15:
            raise ValueError(f"an opcode is from 0 to 15, not {self.opcode}")
        if self.masking_key is not None and len(self.masking_key) != _KEY_SIZE:
            raise ValueError(f"a masking key has {_KEY_SIZE} bytes, this one has {len(self.masking_key)}")
        if self.is_control and not self.final:
            raise ValueError("a control frame can't be a fragment (RFC 6455 §5.5)")
        if self.is_control and len(self.payload) > _MAX_CONTROL:
            raise ValueError(f"a control frame has at most {_MAX_CONTROL} bytes of payload (RFC 6455 §5.5)")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]  # frames can be changed

    def __repr__(self) -> str:
        try:
            name = Opcode(self.opcode).name
        except ValueError:
            name = f"opcode {self.opcode}"
        flags = [flag for flag in ("final", "rsv1", "rsv2", "rsv3") if getattr(self, flag)]
        start = self.payload[:30]
        more = "..." if len(self.payload) > len(start) else ""
        return f"<Frame {' '.join([name, *flags])} {len(self.payload)} bytes {start!r}{more}>"


def masked(payload: bytes, key: bytes) -> bytes:
    """Return a payload masked, or unmasked, with a key of four bytes (RFC 6455 §5.3)."""
    data = bytearray(payload)
    lib.wspy_mask(ffi.from_buffer("uint8_t[]", data), len(data), key, 0)
    return bytes(data)
