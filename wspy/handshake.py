"""The opening handshake of a server, RFC 6455 §4.2, without I/O: request heads in, response heads out.

``read`` says whether a head is a request at all, ``accept`` whether this server takes it, ``refuse`` how a failure is
answered. An answer never holds anything that the peer sent: the bodies of refusals are fixed, and the chosen
subprotocol is the server's own spelling.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from functools import lru_cache, partial
from hashlib import sha1
from typing import NamedTuple, TypeAlias, TypeVar

from .codes import Role
from .errors import HandshakeError, ResponseError
from .extensions import Agreement, Extension, agree, checked_extensions
from .headers import Headers, is_token, parse_extensions, parse_host, parse_token_list
from .http11 import (
    ALLOW_GET,
    HEAD_LIMIT,
    HEADERS_LIMIT,
    MAX_HEAD,
    MAX_HEADER_LINE,
    MAX_HEADERS,
    MAX_LINE,
    UPGRADE_HEADERS,
    Request,
    Response,
    offers_websocket,
    parse_request,
    reason_phrase,
)
from .limits import checked_count

__all__ = [
    "HEAD_STATUSES",
    "Acceptance",
    "Fields",
    "HeadError",
    "ServerHandshake",
    "accept_value",
    "checked_headers",
    "checked_protocols",
]

_T = TypeVar("_T")
Fields: TypeAlias = Headers | Mapping[str, str] | Iterable[tuple[str, str]]


class HeadError(IntEnum):
    """What the core finds wrong with a request head: its ``WSPY_ERROR_HEAD_*`` numbers, as positive ones."""

    SYNTAX = 48
    METHOD = 49
    LINE = 50
    FIELD = 51
    FIELD_COUNT = 52
    SIZE = 53
    TIMEOUT = 54


HEAD_STATUSES: dict[int, int] = {
    HeadError.SYNTAX: 400,
    HeadError.METHOD: 501,
    HeadError.LINE: 414,
    HeadError.FIELD: 431,
    HeadError.FIELD_COUNT: 431,
    HeadError.SIZE: 431,
    HeadError.TIMEOUT: 408,
}

# Without these the answer would not be complete: RFC 9110 §15.5.6 and §15.5.22, and the way out of §15.6.4.
_STATUS_HEADERS = {405: ALLOW_GET, 426: UPGRADE_HEADERS, 503: (("Retry-After", "5"),)}
_EXPLANATIONS = {426: "426 Upgrade Required: this address speaks WebSocket\n"}

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_VERSION_HEADERS = (("Sec-WebSocket-Version", "13"),)
# 16 octets in base64; bits that stand for nothing are not looked at (RFC 4648 §3.5), nor does the accept value.
_KEY = re.compile(r"[0-9A-Za-z+/]{22}==")
_VERSIONS = re.compile(r"[0-9]++(?:[ \t]*+,[ \t]*+[0-9]++)*")
_LOCATION = re.compile(r"/[!\"$->@-~]*")
_SAME_ORIGIN = "same-origin"
_ORIGIN = re.compile(r"(https?)://([^/]*+)")
_ORIGIN_PORTS = {"http": 80, "https": 443}
# What a browser sends as Origin: RFC 6454 §6.2, with scheme and host in lower case, and without the port that the
# scheme implies (§4 and §6.2 step 3).
_SENT_ORIGIN = re.compile(r"null|[a-z][0-9a-z+.-]*+://(?:(?![*,/?#@\\])[!-@\[-~])*+")
_IMPLIED_PORT = re.compile(r"http://.*:80|https://.*:443")
_HOW_TO_TRUST = (
    "write scheme://host[:port] as browsers do, without a path or a slash at the end, in lower case, and without the "
    "port that the scheme implies; use re.compile() for many origins, and an empty collection for all"
)
# accept() writes these.
_OWN_HEADERS = frozenset(
    [
        "connection",
        "content-length",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-protocol",
        "transfer-encoding",
        "upgrade",
    ],
)
_ACCEPT_START = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
)


class Acceptance(NamedTuple):
    """How a request is accepted.

    Args:
        response: the complete head of the 101 response.
        subprotocol: the one that was chosen, or None.
        extensions: what was agreed upon, or None.
    """

    response: bytes
    subprotocol: str | None
    extensions: Agreement | None = None


class ServerHandshake:
    """The policy of a server on opening handshakes. Thread-safe: nothing changes after it was made.

    Attributes:
        extensions: those that the server speaks.

    Args:
        protocols: the subprotocols that the server speaks; the first one a client offers among them is chosen.
        trusted_origins: the origins of pages that may connect: strings as browsers send them, such as
            ``"https://host:8443"``, compiled patterns (the whole origin must match), ``"same-origin"`` (host and port
            as in ``Host``), and None for a request without an origin. That is also fine unless ``require_origin``.
            Empty: any origin. ``"same-origin"`` may stand alone.
        locations: the paths that are served, without a query; a slash at the end makes no difference. Empty: all.
        require_origin: refuse a request without ``Origin``, which no browser sends; None in ``trusted_origins`` wins.
        require_protocol: refuse a client that offers none of ``protocols``.
        extensions: what the server speaks, as ``Extension`` objects or classes; the client's preference decides.
        extra_headers: header fields for the 101 response, or a function that returns them for a request.
        server_header: the value of ``Server`` in 101 responses and refusals; None to leave it out.
        max_line: limit of the request line, in bytes without CRLF, up to 256 KiB.
        max_header_line: limit of one header line, in bytes without CRLF, up to 256 KiB.
        max_head: limit of a request head, in bytes, up to 256 KiB.
        max_headers: limit of the number of header lines, up to 65,535.

    Raises:
        ValueError: a subprotocol, an origin, a location, a header or a limit can never be right.
        TypeError: an argument is of another type; one str is no collection of them.
    """

    def __init__(  # noqa: PLR0913 - each is a policy of its own, by name
        self,
        *,
        protocols: Iterable[str] = (),
        trusted_origins: Iterable[str | re.Pattern[str] | None] = (),
        locations: Iterable[str] = (),
        require_origin: bool = False,
        require_protocol: bool = False,
        extensions: Iterable[Extension | type[Extension]] = (),
        extra_headers: Fields | Callable[[Request], Fields] = (),
        server_header: str | None = None,
        max_line: int = MAX_LINE,
        max_header_line: int = MAX_HEADER_LINE,
        max_head: int = MAX_HEAD,
        max_headers: int = MAX_HEADERS,
    ) -> None:
        self._protocols = _protocol_lines(protocols)
        self._origins = _Origins(trusted_origins, required=require_origin)
        self._locations = frozenset(map(_checked_location, _strings("locations", locations)))
        self._require_protocol = require_protocol
        self.extensions = known = checked_extensions(extensions)
        # Browsers offer one of a few values for ever; what a peer can make this keep is bounded.
        self._agree = lru_cache(maxsize=64)(partial(agree, known, role=Role.SERVER)) if known else None
        server = () if server_header is None else [("Server", server_header)]
        self._server = checked_headers("server_header", server)
        self._extra_headers = extra_headers if callable(extra_headers) else None
        # The end of every 101 response, if it is always the same.
        self._end = b"" if callable(extra_headers) else self._response_end(extra_headers)
        self._max_line = checked_count("max_line", max_line, 1, HEAD_LIMIT)
        self._max_header_line = checked_count("max_header_line", max_header_line, 1, HEAD_LIMIT)
        self._max_head = checked_count("max_head", max_head, 1, HEAD_LIMIT)
        self._max_headers = checked_count("max_headers", max_headers, 1, HEADERS_LIMIT)

    def read(self, head: bytes) -> Request:
        """Parse a complete request head within the limits.

        Raises:
            HandshakeError: it is not a request that this server could answer otherwise.
        """
        return parse_request(
            head,
            max_line=self._max_line,
            max_header_line=self._max_header_line,
            max_head=self._max_head,
            max_headers=self._max_headers,
        )

    def accept(self, request: Request) -> Acceptance:
        """Accept a request to switch to WebSocket, RFC 6455 §4.2.2.

        Raises:
            HandshakeError: it doesn't ask for that rightly (400, 405, 426), or the server's policy is against it
                (400, 403, 404).
            Exception: what a function given as ``extra_headers`` or an extension raises, and ``ValueError`` or
                ``TypeError`` for what the function returns: answer with 500.
        """
        if self._locations and _location(request.path) not in self._locations:
            raise HandshakeError(404, "the location is not served")
        if not request.is_websocket:
            raise _no_upgrade(request)
        headers = request.headers
        _check_version(headers)
        key = _check_key(headers)
        self._origins.check(headers)
        subprotocol, line = self._choose_protocol(headers)
        agreement = None
        offered = headers.get("sec-websocket-extensions")
        if offered is not None:
            _check_extensions(offered)
            if self._agree is not None and (agreed := self._agree(offered)):
                agreement = agreed
                line += b"\r\nSec-WebSocket-Extensions: %b" % agreement.answer.encode()
        end = self._end if self._extra_headers is None else self._response_end(self._extra_headers(request))
        return Acceptance(_ACCEPT_START + accept_value(key.encode()) + line + end, subprotocol, agreement)

    def _choose_protocol(self, headers: Headers) -> tuple[str | None, bytes]:
        """Choose what the client prefers, RFC 6455 §4.2.2 /subprotocol/, and the field line that says so."""
        value = headers.get("sec-websocket-protocol")
        for name in _offered_protocols(value) if value is not None else ():
            if name in self._protocols:
                return name, self._protocols[name]
        if self._require_protocol:
            raise HandshakeError(400, "no offered subprotocol is supported")
        return None, b""

    def _response_end(self, extra_headers: Fields) -> bytes:
        extra = checked_headers("extra_headers", extra_headers)
        if any(name.lower() in _OWN_HEADERS for name in extra):
            raise ValueError("extra_headers: one is a field that the handshake itself writes")
        server = b"" if "server" in extra else self._server.encode()
        return b"\r\n" + server + extra.encode() + b"\r\n"

    def refuse(self, error: HandshakeError, head: bytes = b"", date: str | None = None) -> bytes:
        """Return the complete response that answers a failure; the connection closes after it.

        Args:
            error: status and headers; its message is not sent.
            head: the request head, if there is one: an answer to HEAD has no content.
            date: the value of ``Date``, for those who have a clock (RFC 9110 §6.6.1).

        Raises:
            ValueError: the error is of the application's making, and its status or headers can't be sent; or it is a
                ``ResponseError``.
        """
        if isinstance(error, ResponseError):  # with cookies and more that were meant for this side
            raise ValueError(  # noqa: TRY004 - like all that can't be sent
                "the answer of another server is not passed on: catch a ResponseError where it is raised"
            )
        headers = Headers(error.headers)
        for name, value in (*self._server.items(), *_STATUS_HEADERS.get(error.status, ())):
            if name not in headers:
                headers.add(name, value)
        text = _EXPLANATIONS.get(error.status) or f"{error.status} {reason_phrase(error.status)}\n"
        response = Response(error.status, None, headers, text)
        is_head = head.lstrip(b"\r\n").startswith(b"HEAD ")
        return response.encode(keep_alive=False, head_only=is_head, date=date)

    def refuse_core(self, error_number: int, date: str | None = None) -> bytes:
        """Return the response for a head that the core found wrong.

        Raises:
            KeyError: the number is none of ``HeadError``: no answer is due.
        """
        error = HandshakeError(HEAD_STATUSES[error_number], "the core refused the request head")
        return self.refuse(error, date=date)


class _Origins:
    """Which origins may connect, RFC 6455 §10.2."""

    __slots__ = ("_any", "_exact", "_may_miss", "_patterns", "_same")

    def __init__(self, trusted: Iterable[str | re.Pattern[str] | None], *, required: bool) -> None:
        origins = [_SAME_ORIGIN] if trusted == _SAME_ORIGIN else _collection("trusted_origins", trusted)
        for origin in origins:
            _check_trusted(origin)
        self._any = not origins
        self._same = _SAME_ORIGIN in origins
        self._may_miss = None in origins or not required
        self._exact = frozenset(origin for origin in origins if isinstance(origin, str)) - {_SAME_ORIGIN}
        self._patterns = [origin for origin in origins if isinstance(origin, re.Pattern)]

    def check(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None:
            if not self._may_miss:
                raise HandshakeError(403, "Origin is missing")
        elif not self._any and not self._trusts(origin, headers["host"]):
            raise HandshakeError(403, f"the origin is not trusted: {origin!a:.100}")

    def _trusts(self, origin: str, host: str) -> bool:
        if origin in self._exact or any(pattern.fullmatch(origin) for pattern in self._patterns):
            return True
        return self._same and _is_same_origin(origin, host)


def _check_trusted(origin: object) -> None:
    """Refuse what is no origin, and what no browser's Origin could ever be equal to."""
    if isinstance(origin, re.Pattern):
        if not isinstance(origin.pattern, str):
            raise TypeError("trusted_origins: a pattern must be one for str, not for bytes")
        return
    if origin is None or origin == _SAME_ORIGIN:
        return
    if not isinstance(origin, str):
        kind = type(origin).__name__
        raise TypeError(f"trusted_origins: an origin is a str, a compiled pattern or None, not of type {kind}")
    if not _SENT_ORIGIN.fullmatch(origin) or _IMPLIED_PORT.fullmatch(origin):
        raise ValueError(f"trusted_origins: {origin!r} is never the Origin of a browser: {_HOW_TO_TRUST}")


def _is_same_origin(origin: str, host: str) -> bool:
    """Compare host and port of an origin with ``Host``; the port that a scheme implies may be left out."""
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        return False
    default = _ORIGIN_PORTS[match[1]]
    try:
        name, port = parse_host(match[2])
    except ValueError:
        return False
    own_name, own_port = parse_host(host)
    return (name, port or default) == (own_name, own_port or default)


def _collection(name: str, values: Iterable[_T]) -> list[_T]:
    if isinstance(values, str):
        raise TypeError(f"{name} must be a collection of str, not one str")
    try:
        return list(values)
    except TypeError:
        raise TypeError(f"{name} must be a collection, not of type {type(values).__name__}") from None


def _strings(name: str, values: Iterable[str]) -> list[str]:
    strings = _collection(name, values)
    for value in strings:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a collection of str, not with one of type {type(value).__name__}")
    return strings


def accept_value(key: bytes) -> bytes:
    """Return the value of ``Sec-WebSocket-Accept`` that answers a key, RFC 6455 §4.2.2 item 5."""
    return b2a_base64(sha1(key + _GUID, usedforsecurity=False).digest(), newline=False)


def checked_headers(argument: str, fields: Fields) -> Headers:
    """Return fields that can be sent.

    Raises:
        TypeError: as for ``Headers``, with the name of the argument.
        ValueError: the same.
    """
    try:
        return Headers(fields)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{argument}: {error}") from None


def checked_protocols(protocols: Iterable[str]) -> list[str]:
    """Return subprotocols that can be sent, RFC 6455 §4.1 item 10.

    Raises:
        TypeError: they are no collection of str.
        ValueError: one is no token, or is repeated.
    """
    names = _strings("protocols", protocols)
    if not all(map(is_token, names)) or len(set(names)) != len(names):
        raise ValueError("protocols: subprotocols must be tokens without repetition, RFC 6455 §4.1")
    return names


def _protocol_lines(protocols: Iterable[str]) -> dict[str, bytes]:
    names = checked_protocols(protocols)
    return {name: f"\r\nSec-WebSocket-Protocol: {name}".encode() for name in names}


def _checked_location(location: str) -> str:
    if not _LOCATION.fullmatch(location):
        raise ValueError(
            f"locations: {location!r} is none: it is a path as in a request, begins with a slash and has no query"
        )
    return _location(location)


def _location(path: str) -> str:
    return path.partition("?")[0].removesuffix("/")


def _no_upgrade(request: Request) -> HandshakeError:
    if request.method != "GET":
        return HandshakeError(405, "a WebSocket request is a GET, RFC 6455 §4.2.1", ALLOW_GET)
    # A request that asks for WebSocket and lost its Connection on the way, at a proxy as a rule, is broken (400); one
    # that doesn't ask is told how to (426).
    if offers_websocket(request.headers):
        return HandshakeError(400, "Connection does not list upgrade, RFC 6455 §4.2.1")
    return HandshakeError(426, "Upgrade does not list websocket, RFC 6455 §4.2.1", UPGRADE_HEADERS)


def _check_version(headers: Headers) -> None:
    version = headers.get("sec-websocket-version", "")
    if version == "13":
        return
    # RFC 6455 §4.4: a version that is well-formed and not spoken is told which one is.
    if _VERSIONS.fullmatch(version):
        raise HandshakeError(426, "the version is not 13", UPGRADE_HEADERS)
    raise HandshakeError(400, "Sec-WebSocket-Version is missing or malformed", _VERSION_HEADERS)


def _check_key(headers: Headers) -> str:
    key = headers.get("sec-websocket-key", "")
    if not _KEY.fullmatch(key):
        raise HandshakeError(400, "Sec-WebSocket-Key is missing or malformed")
    return key


def _offered_protocols(value: str) -> list[str]:
    """Parse ``Sec-WebSocket-Protocol``, RFC 6455 §4.1 item 10: one or more different tokens."""
    try:
        names = parse_token_list(value)
    except ValueError:
        raise HandshakeError(400, "Sec-WebSocket-Protocol is malformed") from None
    if not names or len(set(names)) != len(names):
        raise HandshakeError(400, "Sec-WebSocket-Protocol is empty or repeats a subprotocol")
    return names


@lru_cache(maxsize=64)
def _check_extensions(value: str) -> None:
    try:
        parse_extensions(value)
    except ValueError:
        raise HandshakeError(400, "Sec-WebSocket-Extensions is malformed, RFC 6455 §9.1") from None
