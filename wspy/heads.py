"""Where does a request head end? The core's scanner, for those who read from a socket by themselves."""

from __future__ import annotations

from ._core import ffi, lib
from .errors import HandshakeError
from .handshake import HEAD_STATUSES
from .http11 import MAX_HEAD, MAX_HEADER_LINE, MAX_HEADERS, MAX_LINE

__all__ = ["HeadReader"]


class HeadReader:
    """Collects one request head, RFC 9112 §2. Not thread-safe.

    Args:
        max_line: limit of the request line, in bytes without CRLF.
        max_header_line: limit of one header line, in bytes without CRLF.
        max_head: limit of the head, in bytes.
        max_headers: limit of the number of header lines.

    Attributes:
        rest: what followed the head in the same segments.
    """

    __slots__ = ("_head", "_limits", "_scanner", "rest")

    def __init__(
        self,
        *,
        max_line: int = MAX_LINE,
        max_header_line: int = MAX_HEADER_LINE,
        max_head: int = MAX_HEAD,
        max_headers: int = MAX_HEADERS,
    ) -> None:
        self._limits = ffi.new("wspy_head_limits *", (max_line, max_header_line, max_head, max_headers))
        self._scanner = ffi.new("wspy_head_scanner *")
        self._head = bytearray()
        self.rest = b""

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes from the client, and return the head once it is complete.

        Raises:
            HandshakeError: with the status for a byte that no request can have there, or for a limit.
        """
        size = lib.wspy_head_feed(self._scanner, self._limits, data, len(data))
        if size < 0:
            raise HandshakeError(HEAD_STATUSES[-size], ffi.string(lib.wspy_error_text(size)).decode())
        if size == 0:
            self._head += data
            return None
        self.rest = data[size:]
        return bytes(self._head + data[:size])

    @property
    def has_line(self) -> bool:
        """Whether the request line is complete, so that a timeout can be answered (RFC 9110 §15.5.9)."""
        return bool(lib.wspy_head_has_line(self._scanner))
