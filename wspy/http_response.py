"""Responses of HTTP/1.1 as a client reads them: what does a head say, and where does the body end (RFC 9112)?

As strict as ``http11`` is with requests. A head that breaks the grammar raises ``ResponseError`` without a status:
such an answer says nothing. The body of a refusal is for people, and read up to a limit; a body whose end can't be told
keeps nobody from seeing the status.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import ResponseError
from .headers import FIELD_VALUE, Headers
from .http11 import (
    CONTENT_LENGTH,
    FIELD,
    FIELD_LINES,
    MAX_HEAD,
    MAX_HEADER_LINE,
    MAX_HEADERS,
    MAX_LINE,
)

__all__ = ["BodyReader", "ResponseHead", "parse_response"]

# RFC 9112 §4: the space in front of the reason is there even if the reason is not.
_HEAD = re.compile(
    rf"HTTP/(1\.[0-9]) ([1-5][0-9]{{2}}) ({FIELD_VALUE}*+)\r\n({FIELD_LINES})\r\n",
)
# A second one of these could be read by an intermediary instead of the first.
_SINGLETONS = ("content-length", "location")

# RFC 9110 §15.3.5, §15.4.5.
_NO_BODY = frozenset([204, 304])
# RFC 9112 §7.1: what follows the size is for whoever negotiated it.
_CHUNK_SIZE = re.compile(rf"([0-9A-Fa-f]{{1,16}})(?:[ \t]*+;{FIELD_VALUE}*+)?".encode("latin-1"))
_MAX_CHUNK_LINE = 256


class ResponseHead(NamedTuple):
    """The head of a response, as ``parse_response`` makes it.

    Args:
        status: 100 to 599.
        reason: the reason phrase as sent, which may be empty.
        http_version: such as ``"1.1"``.
        headers: the header fields.
    """

    status: int
    reason: str
    http_version: str
    headers: Headers


def parse_response(
    head: bytes,
    *,
    max_line: int = MAX_LINE,
    max_header_line: int = MAX_HEADER_LINE,
    max_head: int = MAX_HEAD,
    max_headers: int = MAX_HEADERS,
) -> ResponseHead:
    """Parse a complete response head, up to and with the empty line that ends it, RFC 9112 §4 and §5.

    Args:
        head: the head and nothing else.
        max_line: limit of the status line, in bytes without CRLF.
        max_header_line: limit of one field line, in bytes without CRLF.
        max_head: limit of the head, in bytes.
        max_headers: limit of the number of field lines.

    Raises:
        ResponseError: with status 0.
    """
    if len(head) > max_head:
        raise ResponseError("the head of the answer is too long")
    match = _HEAD.fullmatch(head.decode("latin-1"))
    if match is None:
        raise ResponseError("the head of the answer is malformed, RFC 9112 §4 and §5")
    version, status, reason, section = match.groups()
    line, *lines = head[:-4].split(b"\r\n")
    if len(line) > max_line or any(len(field) > max_header_line for field in lines):
        raise ResponseError("a line of the answer is too long")
    if len(lines) > max_headers:
        raise ResponseError("the answer has too many header lines")
    headers = Headers.from_parsed(FIELD.findall(section))
    if headers.repeated and any(len(headers.get_all(name)) > 1 for name in _SINGLETONS):
        raise ResponseError("the answer repeats a header that may occur once")
    return ResponseHead(int(status), reason, version, headers)


class BodyReader:
    """Collect the body that follows a head and answers a GET, RFC 9112 §6.3, up to a limit in bytes.

    Attributes:
        head: the head.
        content: what has arrived of the body, without its framing.

    Raises:
        ValueError: the head says in no readable way where the body ends.
    """

    def __init__(self, head: ResponseHead, limit: int) -> None:
        self.head = head
        self.content = bytearray()
        self._limit = limit
        self._chunked = _is_chunked(head)
        # Octets that are still to come, of the body or of its current chunk; None if EOF ends it.
        self._left = 0 if self._chunked else _length(head)
        self._buffer = bytearray()
        # Whether the line end behind a chunk's data is due, before the size of the next chunk.
        self._after_data = False
        self._after_last = False

    @property
    def until_eof(self) -> bool:
        """Whether EOF is the end of the body."""
        return self._left is None

    def feed(self, data: bytes | bytearray | memoryview) -> bool:
        """Take octets of the body, and tell whether it is complete or has reached the limit.

        Raises:
            ValueError: a chunk is malformed.
        """
        if self._chunked:
            self._buffer += data
            while not self._is_full() and self._take_from_chunk():
                pass
            return self._after_last or self._is_full()
        if self._left is None:
            self._take(data)
            return self._is_full()
        self._take(data[: self._left])
        self._left = max(0, self._left - len(data))
        return not self._left or self._is_full()

    def _is_full(self) -> bool:
        return len(self.content) >= self._limit

    def _take(self, data: bytes | bytearray | memoryview) -> None:
        self.content += data[: self._limit - len(self.content)]

    def _take_from_chunk(self) -> bool:
        """Take a piece of data, or a whole line, RFC 9112 §7.1; tell whether there may be another."""
        if self._left:
            piece = self._buffer[: self._left]
            del self._buffer[: self._left]
            self._take(piece)
            self._left -= len(piece)
            return not self._left
        end = self._buffer.find(b"\r\n", 0, _MAX_CHUNK_LINE + 2)
        if end >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            self._take_line(line)
        elif len(self._buffer) > _MAX_CHUNK_LINE + 1:
            raise ValueError("the line in front of a chunk is too long")
        return end >= 0 and not self._after_last

    def _take_line(self, line: bytes) -> None:
        if self._after_data:
            if line:
                raise ValueError("a chunk is longer than its size")
            self._after_data = False
            return
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise ValueError("the size of a chunk is malformed")
        self._left = int(match[1], 16)
        self._after_data = self._left > 0
        self._after_last = self._left == 0  # the trailer is not waited for: no other response follows


def _is_chunked(head: ResponseHead) -> bool:
    codings = head.headers.get("transfer-encoding")
    if codings is None or head.status in _NO_BODY:
        return False
    # RFC 9112 §6.1: both at once, or a coding in HTTP/1.0, is how responses are split. No other coding was asked for.
    if codings.lower() != "chunked" or "content-length" in head.headers or head.http_version == "1.0":
        raise ValueError("its Transfer-Encoding can't be read")
    return True


def _length(head: ResponseHead) -> int | None:
    if head.status in _NO_BODY:
        return 0
    length = head.headers.get("content-length")
    if length is None:
        return None
    if not CONTENT_LENGTH.fullmatch(length):
        raise ValueError("its Content-Length is malformed")
    return int(length)
