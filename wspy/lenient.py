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

    __slots__ = ("_buffer", "_max_size")

    def __init__(self, max_size: int | None) -> None:
        self._buffer = bytearray()
        self._max_size = max_size

    def feed(self, data: bytes, frames: list[Frame]) -> None:
        """Take bytes, and append to the list the frames that are complete now.

        Raises:
            ProtocolError: a frame is too long (1009), or its length is none (1002): no frame can be told any more.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        with memoryview(buffer) as view:
            try:
                while True:
                    with view[start:] as rest:
                        self._check_length(rest)
                        if not contains_frame(rest):
                            break
                        frame, size = read_frame(rest, strict=False)
                    frames.append(frame)
                    start += size
            except ProtocolError as error:
                raise ProtocolError(error.code, error.message) from None  # its traceback holds the views
        del buffer[:start]

    def _check_length(self, data: memoryview) -> None:
        """Look at the length that a frame announces, before there is memory for it (RFC 6455 §10.4)."""
        if self._max_size is None or len(data) < 2:
            return
        length = data[1] & 0x7F
        size = _LENGTH_SIZES.get(length, 0)
        if size:
            if len(data) < 2 + size:
                return
            length = int.from_bytes(data[2 : 2 + size])
        if length > self._max_size:
            raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "a frame is longer than max_size")
