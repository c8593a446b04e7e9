"""Which frames has a peer sent, whatever rules they break?"""

from __future__ import annotations

from .codes import CloseCode
from .errors import ProtocolError
from .frames import Frame, contains_frame, read_frame

__all__ = ["LenientReader"]

_LENGTH_SIZES = {126: 2, 127: 8}


class LenientReader:
    """Makes frames of bytes, RFC 6455 §5.2, and looks at no other rule than a limit of their length.

    Args:
        max_size: bytes of payload of a frame; None for no limit.
    """

    __slots__ = ("_max_size", "_needed", "_pieces", "_size")

    def __init__(self, max_size: int | None) -> None:
        self._max_size = max_size
        self._pieces: list[bytes] = []  # of an incomplete frame, joined once only, so that time is linear
        self._size = 0
        self._needed = 2

    def feed(self, data: bytes, frames: list[Frame]) -> None:
        """Take bytes, and append to the list the frames that are complete now.

        Raises:
            ProtocolError: a frame is too long (1009), or its length is none (1002): no frame can be told any more.
        """
        self._pieces.append(data)
        self._size += len(data)
        if self._size < self._needed:
            return
        rest = memoryview(b"".join(self._pieces))
        while len(rest) >= (needed := self._frame_size(rest)):
            frames.append(read_frame(rest[:needed], strict=False)[0])
            rest = rest[needed:]
        self._pieces, self._size, self._needed = [bytes(rest)], len(rest), needed

    def _frame_size(self, data: memoryview) -> int:
        """Return the size of a frame, or of its header as far as it is known to go (RFC 6455 §5.2)."""
        if len(data) < 2:
            return 2
        length = data[1] & 0x7F
        size = _LENGTH_SIZES.get(length, 0)
        if size:
            if len(data) < 2 + size:
                return 2 + size
            contains_frame(data)  # a length may be none at all
            length = int.from_bytes(data[2 : 2 + size])
        if self._max_size is not None and length > self._max_size:
            raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "a frame is longer than max_size")
        return 2 + size + 4 * (data[1] >> 7) + length
