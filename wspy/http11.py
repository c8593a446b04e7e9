"""Heads of HTTP/1.1: what a request must look like, and how a response is written (RFC 9110, RFC 9112).

A request head is judged twice as a whole and once by meaning: one pattern checks every octet of it, a second one
takes the fields apart, then come the rules on versions, methods, targets and bodies. Only if the pattern fails, or a
limit may have been passed, is the head walked line by line to say what was wrong first. Both take linear time.

There is one strict grammar and no leniency: whatever two parsers might read differently is refused, and what is
refused raises ``HandshakeError`` with the status that is due, whose message never repeats the input. Bodies of
requests are not supported: announcing one is refused, so that no octet of it is ever taken for the next request or
for a frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

from .errors import HandshakeError
from .headers import FIELD_VALUE, TOKEN, Headers, is_token, parse_host, parse_token_list

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "ALLOW_GET",
    "CONTENT_LENGTH",
    "FIELD",
    "FIELD_LINES",
    "HEADERS_LIMIT",
    "HEAD_LIMIT",
    "MAX_HEAD",
    "MAX_HEADERS",
    "MAX_HEADER_LINE",
    "MAX_LINE",
    "UPGRADE_HEADERS",
    "Request",
    "Response",
    "offers_websocket",
    "parse_request",
    "reason_phrase",
]

# Default limits, in bytes without the CRLF of a line; nginx and Apache allow lines of 8 KiB too.
MAX_LINE = 8192
MAX_HEADER_LINE = 8192
MAX_HEAD = 65536  # in bytes, with every CRLF
MAX_HEADERS = 100  # field lines
# The largest limits: beyond them the core doesn't keep and count what belongs to a head.
HEAD_LIMIT = 256 << 10
HEADERS_LIMIT = (1 << 16) - 1
# RFC 9112 §2.2: empty lines before a request line are ignored; a few.
_MAX_EMPTY_LINES = 5

# RFC 9110 §15.5.6 demands Allow in a 405, §15.5.22 Upgrade in a 426, RFC 6455 §4.4 the versions that are spoken.
ALLOW_GET = (("Allow", "GET"),)
UPGRADE_HEADERS = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))

# Visible ASCII but "#": a fragment is never sent, RFC 9112 §3.2.
_TARGET = r"[!-\"$-~]"
# Pattern text for the field lines of any head, RFC 9112 §5.
FIELD_LINES = rf"(?:{TOKEN}++:{FIELD_VALUE}*+\r\n)*+"
_HEAD = re.compile(
    rf"(?:\r\n){{0,{_MAX_EMPTY_LINES}}}+({TOKEN}{{1,32}}+) ({_TARGET}++) HTTP/([0-9]\.[0-9])\r\n"
    rf"({FIELD_LINES})\r\n",
)
# For field lines that matched: a value goes back over its trailing whitespace once, and never further.
FIELD = re.compile(r"([^:]++):[ \t]*+([^\r]*[^\r \t]|)[ \t]*+\r\n")

# RFC 9110 §9.1: a method that is not recognised is answered with 501, one that is not allowed here with 405.
_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
# A second one of these could be read by an intermediary instead of the first.
_SINGLETONS = ("authorization", "content-length", "host", "origin", "sec-websocket-key")
CONTENT_LENGTH = re.compile(r"[0-9]{1,19}")
_ABSOLUTE = re.compile(r"(https?|wss?)://([^/?]*+)(.*+)", re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


@dataclass(slots=True, eq=False, repr=False)
class Request:
    """A request head, as ``parse_request`` makes it.

    Args:
        head: the octets that it was parsed from.
        method: such as ``"GET"``.
        target: the request target as sent.
        path: path and query, which is the target unless that has a scheme and an authority (RFC 9112 §3.2.2).
        http_version: such as ``"1.1"``.
        headers: the header fields.
        is_websocket: whether this asks to switch to WebSocket: ``Upgrade`` and ``Connection`` say so.
        keep_alive: whether the client may send another request, RFC 9112 §9.3.

    ``remote_address`` and ``ssl_object`` are for whoever owns the socket to set; the head doesn't tell them. The latter
    is an ``ssl.SSLObject`` if the request came over TLS: it knows the client's certificate. ``username`` is set by
    whoever finds out who the client is: by ``auth`` of the server, or by an ``onrequest``.
    """

    head: bytes
    method: str
    target: str
    path: str
    http_version: str
    headers: Headers
    is_websocket: bool
    keep_alive: bool
    remote_address: tuple[Any, ...] | str | None = field(default=None, init=False)
    ssl_object: Any = field(default=None, init=False)
    username: str | None = field(default=None, init=False)
    _query: dict[str, str] | None = field(default=None, init=False)

    @property
    def secure(self) -> bool:
        """Whether it came over TLS."""
        return self.ssl_object is not None

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the query, percent-decoded; of a repeated one, the first value."""
        if self._query is None:
            self._query = {}
            for name, value in parse_qsl(self.path.partition("?")[2], keep_blank_values=True):
                self._query.setdefault(name, value)
        return self._query

    def __repr__(self) -> str:
        # A query often holds a token that must not reach a log.
        return f"<Request {self.method} {self.path.partition('?')[0]!r}>"


def parse_request(
    head: bytes,
    *,
    max_line: int = MAX_LINE,
    max_header_line: int = MAX_HEADER_LINE,
    max_head: int = MAX_HEAD,
    max_headers: int = MAX_HEADERS,
) -> Request:
    """Parse a complete request head, up to and with the empty line that ends it.

    Args:
        head: the head and nothing else.
        max_line: limit of the request line, in bytes without CRLF.
        max_header_line: limit of one field line, in bytes without CRLF.
        max_head: limit of the head, in bytes.
        max_headers: limit of the number of field lines.

    Raises:
        HandshakeError: with status 400, 405, 413, 414, 417, 426, 431, 501 or 505.
    """
    size = len(head)
    if size > max_line or size > max_header_line or size > max_head:
        _find_fault(head, max_line, max_header_line, max_head, max_headers)
    match = _HEAD.fullmatch(head.decode("latin-1"))
    if match is None:
        _find_fault(head, max_line, max_header_line, max_head, max_headers)
        raise HandshakeError(400, "more follows the head")
    method, target, version, section = match.groups()
    fields = FIELD.findall(section)
    if len(fields) > max_headers:
        raise HandshakeError(431, "there are too many header lines")
    headers = Headers.from_parsed(fields)
    if headers.repeated:
        _check_singletons(headers)
    _check_line(method, version)
    host = _check_host(headers, version)
    path = target if target[0] == "/" else _effective_path(method, target, host)
    options = _connection_options(headers.get("connection", ""))
    websocket = offers_websocket(headers)
    _check_body(headers, version, websocket)
    if websocket:
        _check_upgrade(method, version)
    keep_alive = version != "1.0" and "close" not in options
    return Request(head, method, target, path, version, headers, websocket and "upgrade" in options, keep_alive)


def offers_websocket(headers: Headers) -> bool:
    """Tell whether ``Upgrade`` lists websocket, in any case and without a version, RFC 6455 §4.2.1."""
    value = headers.get("upgrade", "").lower()
    return value == "websocket" or ("," in value and "websocket" in (item.strip(" \t") for item in value.split(",")))


def _check_singletons(headers: Headers) -> None:
    for name in _SINGLETONS:
        if len(headers.get_all(name)) > 1:
            raise HandshakeError(400, "a header that may occur once is repeated")


def _check_line(method: str, version: str) -> None:
    if version[0] != "1":
        raise HandshakeError(505, "the HTTP version is not 1.x")
    if method not in _METHODS:
        raise HandshakeError(501, "the method is unknown")


def _check_host(headers: Headers, version: str) -> tuple[str, int | None] | None:
    value = headers.get("host")
    if value is not None:
        return _parse_host(value)
    if version == "1.0":
        return None
    raise HandshakeError(400, "Host is missing, RFC 9112 §3.2")


# A server is called by few names; what peers can make these caches keep is bounded by the limits on a head.
@lru_cache(maxsize=64)
def _parse_host(value: str) -> tuple[str, int | None]:
    try:
        return parse_host(value)
    except ValueError as error:
        raise HandshakeError(400, str(error)) from None


def _effective_path(method: str, target: str, host: tuple[str, int | None] | None) -> str:
    """Return the path of a target that doesn't begin with one, RFC 9112 §3.2.2 to §3.2.4."""
    if target == "*" and method == "OPTIONS":
        return target
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise HandshakeError(400, "the request target has none of the forms that its method allows")
    scheme, authority, path = match.groups()
    default = _DEFAULT_PORTS[scheme.lower()]
    name, port = _parse_host(authority)
    # §3.2.2 lets the target override Host; that they differ is a sign of an attack on whoever routed by Host.
    if host is not None and (host[0], host[1] or default) != (name, port or default):
        raise HandshakeError(400, "the authority of the request target differs from Host")
    return path if path[:1] == "/" else "/" + path


@lru_cache(maxsize=64)
def _connection_options(value: str) -> frozenset[str]:
    try:
        return frozenset(parse_token_list(value.lower()))
    except ValueError:
        raise HandshakeError(400, "Connection is malformed, RFC 9110 §7.6.1") from None


def _check_body(headers: Headers, version: str, websocket: bool) -> None:
    length = headers.get("content-length")
    codings = headers.get("transfer-encoding")
    if codings is not None:
        # RFC 9112 §6.1: both at once, or a coding in HTTP/1.0, is how requests are smuggled.
        if length is not None or version == "1.0":
            raise HandshakeError(400, "Transfer-Encoding where it must not be")
        _check_codings(codings)
    elif length is not None and not CONTENT_LENGTH.fullmatch(length):
        raise HandshakeError(400, "Content-Length is malformed")
    if codings is not None or (length is not None and int(length) > 0):
        if websocket:
            raise HandshakeError(400, "a WebSocket request has a body")
        raise HandshakeError(413, "a request has a body")
    if headers.get("expect", "100-continue").lower() != "100-continue":
        raise HandshakeError(417, "the expectation is unknown")


def _check_codings(value: str) -> None:
    """Refuse all but chunked, RFC 9112 §6.1: what is malformed with 400, what is only not supported with 501."""
    names = [element.partition(";")[0].strip(" \t").lower() for element in value.split(",")]
    if not all(map(is_token, names)) or "chunked" in names[:-1]:
        raise HandshakeError(400, "Transfer-Encoding is malformed, or chunked is not the last coding")
    if names != ["chunked"]:
        raise HandshakeError(501, "the transfer coding is unknown")
    if ";" in value:
        raise HandshakeError(400, "chunked has no parameters")


def _check_upgrade(method: str, version: str) -> None:
    if version == "1.0":
        # RFC 9110 §7.8: Upgrade must be ignored in HTTP/1.0.
        raise HandshakeError(426, "WebSocket needs HTTP/1.1", UPGRADE_HEADERS)
    if method != "GET":
        raise HandshakeError(405, "a WebSocket request is a GET, RFC 6455 §4.2.1", ALLOW_GET)


class _Line(NamedTuple):
    """What a kind of line is, and what it may begin with: where that match ends stands the first impossible octet."""

    start: re.Pattern[bytes]
    whole: re.Pattern[bytes]
    too_long: int


_VERSION_START = r"H(?:T(?:T(?:P(?:/(?:[0-9](?:\.[0-9]?)?)?)?)?)?)?"
_REQUEST_LINE = _Line(
    re.compile(rf"(?:{TOKEN}{{1,32}}+(?: (?:{_TARGET}++(?: (?:{_VERSION_START})?)?)?)?)?".encode()),
    re.compile(rf"{TOKEN}++ {_TARGET}++ HTTP/[0-9]\.[0-9]".encode()),
    414,
)
_FIELD_LINE = _Line(
    re.compile(rf"(?:{TOKEN}++(?::{FIELD_VALUE}*+)?)?".encode("latin-1")),
    re.compile(rf"{TOKEN}++:{FIELD_VALUE}*+".encode("latin-1")),
    431,
)
_LONG_METHOD = re.compile(rf"{TOKEN}{{33}}".encode())


def _find_fault(head: bytes, max_line: int, max_header_line: int, max_head: int, max_headers: int) -> None:
    """Raise for the first octet that breaks the grammar or a limit; return if there is none before the head ends."""
    status = 400 if len(head) <= max_head else 431
    head = head[:max_head]
    start = 0
    while start < 2 * _MAX_EMPTY_LINES and head.startswith(b"\r\n", start):
        start += 2
    if _LONG_METHOD.match(head, start):
        raise HandshakeError(501, "the method is too long")
    start = _pass_line(head, start, max_line, _REQUEST_LINE, status)
    count = 0
    while not head.startswith(b"\r\n", start):
        start = _pass_line(head, start, max_header_line, _FIELD_LINE, status)
        count += 1
        if count > max_headers:
            raise HandshakeError(431, "there are too many header lines")


def _pass_line(head: bytes, start: int, limit: int, grammar: _Line, status: int) -> int:
    """Check the line at start and return where the next one begins; status answers a head that ends before."""
    end = head.find(b"\r\n", start, start + limit + 2)
    line = head[start:end] if end >= 0 else head[start : start + limit + 1]
    if start + len(line) == len(head):
        line = line.removesuffix(b"\r")
    match = grammar.start.match(line)
    if match is None or match.end() != len(line):
        raise HandshakeError(400, "an octet stands where it must not, RFC 9112 §3 and §5")
    if len(line) > limit:
        raise HandshakeError(grammar.too_long, "a line is too long")
    if end < 0:
        raise HandshakeError(status, "the head is not complete, or too long")
    if not grammar.whole.fullmatch(line):
        raise HandshakeError(400, "a line ends too early, RFC 9112 §3 and §5")
    return end + 2


# RFC 9110 §15.3.5, §15.3.6, §15.4.5.
_NO_CONTENT = frozenset([204, 205, 304])
_NO_LENGTH = frozenset([204, 304])
# encode() writes these: a second opinion would be a smuggled response.
# The server's to decide: where a message ends, and what concerns one connection only (RFC 9110 §7.6.1).
_DECIDED = (
    "Connection",
    "Content-Length",
    "Keep-Alive",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
)
_REASON = re.compile(rf"{FIELD_VALUE}*+")


class Response:
    """A final HTTP response.

    The body may also be given in the place of the headers: ``Response(403, "Forbidden", b"...")``. A body without
    ``Content-Type`` gets one: plain text for str, octet-stream for bytes. The server adds ``Content-Length``,
    ``Connection``, and unless they are given ``Date`` and ``Server``.

    Args:
        status: 200 to 599.
        reason: the reason phrase; by default the usual one of the status.
        headers: a mapping, ``Headers``, or (name, value) pairs. Not what the server decides: ``Connection``,
            ``Transfer-Encoding``, ``Keep-Alive``, ``Trailer`` and the like; ``Content-Length`` only if it is right,
            ``Upgrade`` only with status 426.
        body: str is sent as UTF-8.

    Raises:
        ValueError: the status, the reason or a header can't be sent.
        TypeError: the body is not str, bytes, bytearray or memoryview, or was given twice.
    """

    __slots__ = ("body", "headers", "reason", "status")

    def __init__(
        self,
        status: int = 200,
        reason: str | None = None,
        headers: Headers | Mapping[str, str] | Iterable[tuple[str, str]] | str | bytes | bytearray | memoryview = (),
        body: str | bytes | bytearray | memoryview = b"",
    ) -> None:
        fields: Headers | Mapping[str, str] | Iterable[tuple[str, str]] = ()
        if not isinstance(headers, str | bytes | bytearray | memoryview):
            fields = headers
        elif body:
            raise TypeError("the body was given twice")
        else:
            body = headers
        self.status = status
        self.reason = reason_phrase(status) if reason is None else reason
        self.body = _to_bytes(body)
        length = ("content-length", str(len(self.body)))
        self.headers = Headers(
            (name, value) for name, value in Headers(fields).items() if (name.lower(), value) != length
        )
        if self.body and "content-type" not in self.headers:
            text = isinstance(body, str)
            self.headers.add("Content-Type", "text/plain; charset=utf-8" if text else "application/octet-stream")
        self._check()

    def _check(self) -> None:
        if not 200 <= self.status <= 599:
            raise ValueError("the status of a response must be within 200 to 599")
        if not _REASON.fullmatch(self.reason):
            raise ValueError("a reason phrase must be latin-1 without control characters, RFC 9112 §4")
        for name in _DECIDED:
            if name in self.headers:
                raise ValueError(f"headers: {name} is not the application's to set, the server decides it")
        # RFC 9110 §15.5.22 wants it there; elsewhere it would offer what this server does otherwise
        if "upgrade" in self.headers and self.status != 426:
            raise ValueError("headers: Upgrade goes with status 426 alone; onrequest returns None to go on with one")

    def encode(
        self, *, keep_alive: bool, head_only: bool = False, date: str | None = None, server: str | None = None
    ) -> bytes:
        """Return the response as on the wire.

        Args:
            keep_alive: whether the connection stays open for another request.
            head_only: whether it answers a HEAD request: the same head, and no content.
            date: the value of ``Date``, for those who have a clock (RFC 9110 §6.6.1); the application's own wins.
            server: the value of ``Server``; the application's own wins.

        Raises:
            ValueError: what was changed since the response was made can't be sent.
        """
        self._check()
        content = b"" if self.status in _NO_CONTENT else self.body
        length = "" if self.status in _NO_LENGTH else f"Content-Length: {len(content)}\r\n"
        connection = "keep-alive" if keep_alive else "close"
        if "upgrade" in self.headers:  # RFC 9110 §7.8: who sends Upgrade must list it in Connection
            connection = f"upgrade, {connection}"
        start = f"HTTP/1.1 {int(self.status)} {self.reason}\r\n{length}Connection: {connection}\r\n"
        if date is not None and "date" not in self.headers:
            start += f"Date: {date}\r\n"
        if server is not None and "server" not in self.headers:
            start += f"Server: {server}\r\n"
        return b"%b%b\r\n%b" % (start.encode("latin-1"), self.headers.encode(), b"" if head_only else content)

    def __repr__(self) -> str:
        return f"<Response {int(self.status)} {self.reason!r}>"


def reason_phrase(status: int) -> str:
    """Return the usual reason phrase of a status, or "" if it has none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _to_bytes(body: str | bytes | bytearray | memoryview) -> bytes:
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    raise TypeError("a body must be str, bytes, bytearray or memoryview")
