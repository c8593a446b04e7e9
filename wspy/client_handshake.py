"""The opening handshake of a client, RFC 6455 §4.1, without I/O: a URI in, a request out, an answer in and judged.

Whoever owns the socket sends ``request``, and feeds what arrives until ``feed`` returns True or raises. Time is theirs,
too: nothing here ends the waiting for a server that sends nothing, while what it sends is limited in every direction.
Redirects and credentials are policy, and for those above: a refusal carries all that they need.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from copy import copy
from os import urandom
from typing import TYPE_CHECKING, NoReturn

from .codes import Role
from .errors import ResponseError
from .extensions import Agreement, Extension, checked_extensions, confirm, offer
from .handshake import Fields, accept_value, checked_headers, checked_protocols
from .headers import Headers, parse_host, parse_token_list
from .http11 import (
    HEAD_LIMIT,
    HEADERS_LIMIT,
    MAX_HEAD,
    MAX_HEADER_LINE,
    MAX_HEADERS,
    MAX_LINE,
    reason_phrase,
)
from .http_response import BodyReader, ResponseHead, parse_response
from .limits import checked_count
from .uri import URI
from .version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MAX_BODY", "REDIRECTS", "ClientHandshake"]

# In bytes: what is for people to read fits.
MAX_BODY = 65536
_BODY_LIMIT = 1 << 30

# RFC 9110 §15.4; 304 answers a condition that was not in the request, and 305 and 306 are no more.
REDIRECTS = frozenset([300, 301, 302, 303, 307, 308])
# RFC 9110 §15.2: a client must be able to parse these, however many come; a few, then.
_MAX_INTERIM = 8

# What the request consists of, or would contradict: the body that it doesn't have.
_OWN_HEADERS = frozenset(
    [
        "connection",
        "content-length",
        "origin",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "transfer-encoding",
        "upgrade",
    ],
)
_RESOURCE = re.compile(r"/[!-\"$-~]*+")
_VISIBLE = re.compile(r"[!-~]++")

_START = b"HTTP/1."
# No head has these octets, RFC 9112 §2.2 and §5: a server that isn't one for HTTP is told by its first line.
_IMPOSSIBLE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r[^\n]")
_NO_LENGTH = re.compile(r"0{1,19}")


class ClientHandshake:
    """One opening handshake of a client.

    A 101 that announces content is refused, since readers may disagree on where its frames begin; what follows any
    other 101 is ``rest``.

    Args:
        uri: what to ask for.
        origin: the value of ``Origin``; None to send none, as all do that are no browser.
        protocols: the subprotocols that the client speaks, the preferred one first.
        extensions: what the client offers, as ``Extension`` objects or classes, the preferred one first.
        extra_headers: header fields for the request. ``Host`` and ``User-Agent`` stand in for the usual ones; what else
            the handshake writes is refused.
        user_agent: the value of ``User-Agent``; None to leave it out.
        max_line: limit of a status line, in bytes without CRLF, up to 256 KiB.
        max_header_line: limit of one header line, in bytes without CRLF, up to 256 KiB.
        max_head: limit of all response heads together, in bytes, up to 256 KiB.
        max_headers: limit of the number of header lines, up to 65,535.
        max_body: how much is read of the body of a refusal, in bytes, up to 1 GiB.

    Attributes:
        request: the complete request head. Each handshake has a new key.
        response: the head of the 101, once it is there.
        subprotocol: the one that the server chose, or None.
        extensions: what was agreed upon, or None.
        missing: the names of extensions that are required, and were not agreed upon.
        rest: what followed the 101 in the same segments, which are frames.

    Raises:
        ValueError: an argument can never be sent, or a limit is out of range.
        TypeError: an argument is of another type; one str is no collection of them.
    """

    def __init__(  # noqa: PLR0913 - each is a choice of its own, by name
        self,
        uri: URI,
        *,
        origin: str | None = None,
        protocols: Iterable[str] = (),
        extensions: Iterable[Extension | type[Extension]] = (),
        extra_headers: Fields = (),
        user_agent: str | None = f"wspy/{__version__}",
        max_line: int = MAX_LINE,
        max_header_line: int = MAX_HEADER_LINE,
        max_head: int = MAX_HEAD,
        max_headers: int = MAX_HEADERS,
        max_body: int = MAX_BODY,
    ) -> None:
        key = b2a_base64(urandom(16), newline=False)  # RFC 6455 §4.1 item 7
        self._accept = accept_value(key).decode()
        self._protocols = checked_protocols(protocols)
        self._extensions = checked_extensions(extensions)
        self._max_line = checked_count("max_line", max_line, 1, HEAD_LIMIT)
        self._max_header_line = checked_count("max_header_line", max_header_line, 1, HEAD_LIMIT)
        self._max_head = checked_count("max_head", max_head, 1, HEAD_LIMIT)
        self._max_headers = checked_count("max_headers", max_headers, 1, HEADERS_LIMIT)
        self._max_body = checked_count("max_body", max_body, 0, _BODY_LIMIT)
        fields = [] if origin is None else [("Origin", _checked_origin(origin))]
        if self._protocols:
            fields.append(("Sec-WebSocket-Protocol", ", ".join(self._protocols)))
        if self._extensions:
            fields.append(("Sec-WebSocket-Extensions", offer(self._extensions)))
        self.request = _request(uri, key, fields, _checked_extra(extra_headers), user_agent)
        self.response: ResponseHead | None = None
        self.subprotocol: str | None = None
        self.extensions: Agreement | None = None
        self.missing: list[str] = []
        self.rest = b""
        self._buffer = bytearray()
        self._scanned = 0
        self._interim_count = 0
        self._body: BodyReader | None = None
        self._error: ResponseError | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> bool:
        """Take octets from the server, and tell whether the handshake is complete.

        Raises:
            ResponseError: the answer is not the right one, RFC 6455 §4.1. It is raised as soon as that is known; if the
                status says so, when the body is there too, unless it is a redirect. Every later call raises it again.
            ValueError: the handshake is complete already.
        """
        self._check_unfinished()
        try:
            return self._read(data) if self._body is None else self._read_body(self._body, data)
        except ResponseError as error:
            self._error = copy(error)  # without its traceback, which would keep the caller's frames
            raise

    def feed_eof(self) -> NoReturn:
        """Learn that the server will send nothing more.

        Raises:
            ResponseError: always; with what has arrived of a refusal.
            ValueError: the handshake is complete already.
        """
        self._check_unfinished()
        if self._body is None:
            self._error = ResponseError("the server ended the connection before its answer was complete")
        else:
            more = "" if self._body.until_eof else ", and ended before its body was complete"
            self._error = _refused(self._body, more)
        raise copy(self._error)

    @property
    def awaits_body(self) -> bool:
        """Whether the server has refused, and only more of its explanation is missing: ``feed_eof`` does without."""
        return self._body is not None

    def _check_unfinished(self) -> None:
        if self._error is not None:
            raise copy(self._error)
        if self.response is not None:
            raise ValueError("the opening handshake is complete: what follows is for a Protocol")

    def _read(self, data: bytes | bytearray | memoryview) -> bool:
        self._buffer += data
        while end := self._head_end():
            head = parse_response(
                bytes(self._buffer[:end]),
                max_line=self._max_line,
                max_header_line=self._max_header_line,
                max_headers=self._max_headers,
                max_head=self._max_head,
            )
            self._max_head -= end
            self._scanned = 0
            del self._buffer[:end]
            if head.status == 101:
                self._accept_response(head)
                return True
            if head.status >= 200:
                return self._read_refusal(head)
            self._interim_count += 1
            if self._interim_count > _MAX_INTERIM:
                raise ResponseError("there are too many interim answers, RFC 9110 §15.2")
        return False

    def _head_end(self) -> int:
        """Return where the first head ends, 0 as long as it isn't complete; each octet is looked at a few times."""
        buffer = self._buffer
        if not _START.startswith(bytes(buffer[: len(_START)])):
            raise ResponseError("the server does not answer with HTTP/1.x")
        found = buffer.find(b"\r\n\r\n", max(self._scanned - 3, 0), self._max_head)
        end = found + 4 if found >= 0 else min(len(buffer), self._max_head)
        if _IMPOSSIBLE.search(buffer, max(self._scanned - 1, 0), end):
            raise ResponseError("an octet of the answer stands where it must not, RFC 9112 §4 and §5")
        self._scanned = end
        if found < 0 and len(buffer) >= self._max_head:
            raise ResponseError("the head of the answer is too long")
        return end if found >= 0 else 0

    def _accept_response(self, head: ResponseHead) -> None:
        """Judge a 101, RFC 6455 §4.1, and take what follows it."""
        fault = self._fault(head)
        if fault:
            raise ResponseError(fault, head.status, head.reason, head.headers)
        self.response = head
        agreed = self.extensions or ()
        self.missing = [each.names[0] for each in self._extensions if each.required and each not in agreed]
        self.subprotocol = head.headers.get("sec-websocket-protocol")
        self.rest = bytes(self._buffer)
        self._buffer.clear()

    def _fault(self, head: ResponseHead) -> str:
        """Say what is wrong with a 101; the items are those of the second list of RFC 6455 §4.1."""
        headers = head.headers
        if head.http_version != "1.1":
            return "the server switches protocols in another version than HTTP/1.1"
        if headers.get("upgrade", "").lower() != "websocket":
            return "Upgrade is not websocket, RFC 6455 §4.1 item 2"
        if not _lists_upgrade(headers.get("connection", "")):
            return "Connection does not list upgrade, RFC 6455 §4.1 item 3"
        if headers.get_all("sec-websocket-accept") != [self._accept]:
            return "Sec-WebSocket-Accept is not the answer to the key, RFC 6455 §4.1 item 4"
        try:
            self.extensions = confirm(self._extensions, headers.get("sec-websocket-extensions"), Role.CLIENT) or None
        except ValueError as error:
            return f"Sec-WebSocket-Extensions is no answer to the offer, RFC 6455 §4.1 item 5: {error}"
        if not self._is_offered(headers.get_all("sec-websocket-protocol")):
            return "Sec-WebSocket-Protocol is repeated, or was not offered, RFC 6455 §4.1 item 6"
        # RFC 9110 §8.6, RFC 9112 §6.1: a 101 has no content. If one is announced, two readers may disagree on
        # what the frames are.
        if "transfer-encoding" in headers or not _NO_LENGTH.fullmatch(headers.get("content-length", "0")):
            return "the server announces content with a 101, RFC 9110 §8.6"
        return ""

    def _is_offered(self, chosen: list[str]) -> bool:
        """Tell whether at most one subprotocol was chosen, and of those that were asked for, RFC 6455 §11.3.4."""
        return not chosen or (len(chosen) == 1 and chosen[0] in self._protocols)

    def _read_refusal(self, head: ResponseHead) -> bool:
        if head.status in REDIRECTS:
            raise _answered(head)
        try:
            self._body = BodyReader(head, self._max_body)
        except ValueError as error:
            raise _answered(head, f", and {error}") from None
        data = bytes(self._buffer)
        self._buffer.clear()
        return self._read_body(self._body, data)

    def _read_body(self, body: BodyReader, data: bytes | bytearray | memoryview) -> bool:
        try:
            complete = body.feed(data)
        except ValueError as error:
            raise _refused(body, f", and {error}") from None
        if complete:
            raise _refused(body)
        return False


def _refused(body: BodyReader, more: str = "") -> ResponseError:
    return _answered(body.head, more, bytes(body.content))


def _answered(head: ResponseHead, more: str = "", body: bytes = b"") -> ResponseError:
    answer = f"the server answered {head.status} {reason_phrase(head.status)}".rstrip()
    return ResponseError(f"{answer}, not 101{more}", head.status, head.reason, head.headers, body)


def _request(uri: URI, key: bytes, fields: list[tuple[str, str]], extra: Headers, user_agent: str | None) -> bytes:
    """Return the request head, RFC 6455 §4.1 items 1 to 13 of the first list."""
    if not isinstance(uri, URI):
        raise TypeError(f"uri must be a URI, not of type {type(uri).__name__}: parse_uri() makes one")
    if not _RESOURCE.fullmatch(uri.resource):
        raise ValueError("the location, or path of the URI, begins with / and is escaped: %20 for a space")
    agent = checked_headers("user_agent", () if user_agent is None else [("User-Agent", user_agent)])
    head = Headers(
        [
            ("Host", _host(uri, extra)),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", key.decode()),
            ("Sec-WebSocket-Version", "13"),
            *fields,
            *(() if "user-agent" in extra else agent.items()),
            *[field for field in extra.items() if field[0].lower() != "host"],
        ]
    )
    return b"GET %b HTTP/1.1\r\n%b\r\n" % (uri.resource.encode(), head.encode())


def _host(uri: URI, extra: Headers) -> str:
    host = extra.get("host", uri.host_header)
    try:
        parse_host(host)
    except ValueError as error:
        raise ValueError(f"Host can't be sent: {error}") from None
    return host


def _checked_extra(fields: Fields) -> Headers:
    extra = checked_headers("extra_headers", fields)
    for name in extra:
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"extra_headers: {name} is a field that the handshake itself writes")
    return extra


def _checked_origin(origin: str) -> str:
    if not isinstance(origin, str):
        raise TypeError(f"origin must be a str or None, not of type {type(origin).__name__}")
    if not _VISIBLE.fullmatch(origin):
        raise ValueError("origin must be visible ASCII, such as https://example.com, RFC 6454 §6.2")
    return origin


def _lists_upgrade(value: str) -> bool:
    try:
        return "upgrade" in parse_token_list(value.lower())
    except ValueError:
        return False
