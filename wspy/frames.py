"""Frames as values, and their headers as bytes (RFC 6455 §5.2)."""

from __future__ import annotations

from typing import Final

from .codes import Opcode

__all__ = ["FIN", "Frame", "frame_header"]

FIN: Final = 0x80


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
    """

    __slots__ = ("final", "opcode", "payload", "rsv1", "rsv2", "rsv3")

    def __init__(
        self,
        opcode: int,
        payload: bytes = b"",
        *,
        final: bool = True,
        rsv1: bool = False,
        rsv2: bool = False,
        rsv3: bool = False,
    ) -> None:
        self.opcode = opcode
        self.payload = payload
        self.final = final
        self.rsv1 = rsv1
        self.rsv2 = rsv2
        self.rsv3 = rsv3

    @property
    def is_control(self) -> bool:
        """Whether this is a control frame, RFC 6455 §5.5."""
        return self.opcode >= Opcode.CLOSE

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
