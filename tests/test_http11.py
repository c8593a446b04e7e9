"""Is every request head that RFC 9112 or a limit forbids refused with the right status, and every other one parsed?

Rows A1 to B31 are named after the threat model's table; those that need a clock or a socket are tested elsewhere.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from measures import best_time

from wspy import http11
from wspy.errors import HandshakeError
from wspy.headers import Headers
from wspy.http11 import (
    MAX_HEAD,
    MAX_HEADER_LINE,
    MAX_HEADERS,
    MAX_LINE,
    Request,
    Response,
    offers_websocket,
    parse_request,
    reason_phrase,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: " + KEY + b"\r\nSec-WebSocket-Version: 13\r\n"
)


def head(line: bytes = b"GET / HTTP/1.1", fields: bytes = b"", host: bytes = b"Host: a\r\n") -> bytes:
    """Return a request head of plain HTTP."""
    return line + b"\r\n" + host + fields + b"\r\n"


def upgrade(line: bytes = b"GET / HTTP/1.1", fields: bytes = b"", host: bytes = b"Host: a\r\n") -> bytes:
    """Return the head of a request to switch to WebSocket."""
    return head(line, UPGRADE + fields, host)


def sized(size: int) -> bytes:
    """Return the head of a request of so many bytes, in legal lines."""
    lines, rest = divmod(size - len(head()), 8000)
    return head(fields=(b"A: " + b"b" * 7995 + b"\r\n") * lines + b"B: " + b"b" * (rest - 5) + b"\r\n")


def refused(data: bytes, **limits: int) -> HandshakeError:
    """Return how a head is refused."""
    with pytest.raises(HandshakeError) as info:
        parse_request(data, **limits)
    assert 400 <= info.value.status <= 599
    return info.value


def judge(data: bytes, **limits: int) -> int:
    """Return the status of a head, 0 if it is accepted."""
    try:
        parse_request(data, **limits)
    except HandshakeError as error:
        return error.status
    return 0


METHOD_OCTETS = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CONTROLS = [bytes([octet]) for octet in [*range(0x20), 0x7F]]

# Rows of table A that a complete head decides: what is sent, and the status.
LINES: list[tuple[str, bytes, int]] = [
    ("A1-one", b"\r\n" + upgrade(), 0),
    ("A1-two", b"\r\n" * 2 + upgrade(), 0),
    ("A1-five", b"\r\n" * 5 + upgrade(), 0),
    ("A1-six", b"\r\n" * 6 + upgrade(), 400),
    ("A1-only", b"\r\n" * 3, 400),
    ("A1-blank", b" \r\n" + upgrade(), 400),
    ("A5-8192", head(b"GET /" + b"a" * 8178 + b" HTTP/1.1"), 0),
    ("A5-8193", head(b"GET /" + b"a" * 8179 + b" HTTP/1.1"), 414),
    ("A5-8193-unfinished", b"GET /" + b"a" * 8188, 414),
    ("A5-8192-unfinished", b"GET /" + b"a" * 8187, 400),
    ("A5-70000", head(b"GET /" + b"a" * 70000 + b" HTTP/1.1"), 414),
    ("A5-70000-no-crlf", b"GET /" + b"a" * 70000, 414),
    ("A5-long-version", b"GET /" + b"a" * 8170 + b" HTTP/1.1" + b"1" * 20, 400),
    ("A6-empty", head(b" / HTTP/1.1"), 400),
    ("A6-nul", head(b"G\x00T / HTTP/1.1"), 400),
    ("A6-parenthesis", head(b"G(T / HTTP/1.1"), 400),
    ("A6-32", head(b"A" * 32 + b" / HTTP/1.1"), 501),
    ("A6-33", head(b"A" * 33 + b" / HTTP/1.1"), 501),
    ("A6-70000", b"A" * 70000, 501),
    ("A6-33-then-nul", b"A" * 33 + b"\x00", 501),
    ("A7-get", upgrade(b"get / HTTP/1.1"), 501),
    ("A7-Get", upgrade(b"Get / HTTP/1.1"), 501),
    ("A7-unknown", head(b"BREW / HTTP/1.1"), 501),
    ("A8", upgrade(b"POST / HTTP/1.1"), 405),
    ("A8-length-0", upgrade(b"POST / HTTP/1.1", b"Content-Length: 0\r\n"), 405),
    ("A8-head", upgrade(b"HEAD / HTTP/1.1"), 405),
    ("A9-two-spaces", head(b"GET  / HTTP/1.1"), 400),
    ("A9-two-spaces-later", head(b"GET /  HTTP/1.1"), 400),
    ("A9-tab", head(b"GET\t/ HTTP/1.1"), 400),
    ("A9-tab-later", head(b"GET /\tHTTP/1.1"), 400),
    ("A9-trailing-space", head(b"GET / HTTP/1.1 "), 400),
    ("A9-leading-space", head(b" GET / HTTP/1.1"), 400),
    ("A9-no-target", head(b"GET HTTP/1.1"), 400),
    ("A9-empty-target", head(b"GET  HTTP/1.1"), 400),
    ("A10", head(b"GET /"), 400),
    ("A10-space", head(b"GET / "), 400),
    ("A10-method-only", head(b"GET"), 400),
    ("A11", upgrade(b"GET / HTTP/1.0"), 426),
    ("A11-no-host", upgrade(b"GET / HTTP/1.0", host=b""), 426),
    ("A12-2.0", upgrade(b"GET / HTTP/2.0"), 505),
    ("A12-3.0", upgrade(b"GET / HTTP/3.0"), 505),
    ("A12-0.9", upgrade(b"GET / HTTP/0.9"), 505),
    ("A13-lower-case", upgrade(b"GET / http/1.1"), 400),
    ("A13-no-minor", upgrade(b"GET / HTTP/1."), 400),
    ("A13-no-dot", upgrade(b"GET / HTTP/1"), 400),
    ("A13-trailing", upgrade(b"GET / HTTP/1.1x"), 400),
    ("A13-two-digits", upgrade(b"GET / HTTP/11.1"), 400),
    ("A13-minor-digits", upgrade(b"GET / HTTP/1.10"), 400),
    ("A13-space", upgrade(b"GET / HTTP /1.1"), 400),
    ("A13-space-after-slash", upgrade(b"GET / HTTP/ 1.1"), 400),
    ("A14", b"PRI * HTTP/2.0\r\n\r\n", 505),
    ("A14-whole", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("A15", upgrade(b"GET /a#fragment HTTP/1.1"), 400),
    ("A15-only", upgrade(b"GET # HTTP/1.1"), 400),
    ("A16-space", head(b"GET /a b HTTP/1.1"), 400),
    ("A17-differs", upgrade(b"GET http://other/ HTTP/1.1"), 400),
    ("A17-port-differs", upgrade(b"GET http://a:81/ HTTP/1.1"), 400),
    ("A17-default-port-differs", upgrade(b"GET https://a/ HTTP/1.1", host=b"Host: a:80\r\n"), 400),
    ("A17-equal", upgrade(b"GET http://a/b?c HTTP/1.1"), 0),
    ("A17-scheme", upgrade(b"GET ftp://a/ HTTP/1.1"), 400),
    ("A17-userinfo", upgrade(b"GET http://u@a/ HTTP/1.1"), 400),
    ("A17-no-authority", upgrade(b"GET http:///b HTTP/1.1"), 400),
    ("A17-no-slashes", upgrade(b"GET http:a HTTP/1.1"), 400),
    ("A17-bad-port", upgrade(b"GET http://a:0/ HTTP/1.1"), 400),
    ("A18-asterisk", upgrade(b"GET * HTTP/1.1"), 400),
    ("A18-authority", upgrade(b"GET a:80 HTTP/1.1"), 400),
    ("A18-relative", upgrade(b"GET a/b HTTP/1.1"), 400),
    ("A18-connect", head(b"CONNECT a:80 HTTP/1.1"), 501),
    ("A19-line", upgrade().replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"), 400),
    ("A19-field", upgrade().replace(b"Host: a\r\n", b"Host: a\n"), 400),
    ("A19-end", upgrade()[:-2] + b"\n", 400),
    ("A19-all", upgrade().replace(b"\r\n", b"\n"), 400),
    ("A19-first", b"\n" + upgrade(), 400),
    ("A20-line", upgrade().replace(b" / ", b" /\r "), 400),
    ("A20-after-line", b"GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
    ("A20-field", head(fields=b"A: b\rc\r\n"), 400),
    ("A20-doubled", head(fields=b"A: b\r\r\n"), 400),
    ("A20-end", head()[:-2] + b"\r\r\n", 400),
    ("A20-first", b"\r" + head(), 400),
    ("A21-response", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 400),
    ("A21-tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)), 400),
    ("A21-zeros", bytes(1 << 20), 400),
    ("A21-high", b"\xff" * 5000, 400),
    ("A21-websocket-frame", b"\x81\x85\x01\x02\x03\x04hello", 400),
]
# Rows of table B.
FIELDS: list[tuple[str, bytes, int]] = [
    ("B1", upgrade(host=b""), 400),
    ("B1-http", head(host=b""), 400),
    ("B1-http-1.0", head(b"GET / HTTP/1.0", host=b""), 0),
    ("B2-identical", upgrade(host=b"Host: a\r\nHost: a\r\n"), 400),
    ("B2-other", upgrade(host=b"Host: a\r\nHost: b\r\n"), 400),
    ("B2-other-case", upgrade(host=b"Host: a\r\n", fields=b"hOST: a\r\n"), 400),
    ("B2-http-1.0", head(b"GET / HTTP/1.0", host=b"Host: a\r\nHost: a\r\n"), 400),
    *[
        (f"B3-{value.decode('latin-1')}", upgrade(host=b"Host: " + value + b"\r\n"), 400)
        for value in (
            *(b"u@a", b"a/b", b"a b", b"a:b", b"a:0", b"a:65536", b"[::1", b"::1]", b"a:80:80", b"http://a", b""),
            *(b"a, a", b"a\xe9", b"a?b", b"a#b", b"[:::]", b"a:99999999999"),
        )
    ],
    ("B3-http-1.0", head(b"GET / HTTP/1.0", host=b"Host: u@a\r\n"), 400),
    ("B4-space", head(fields=b"A : b\r\n"), 400),
    ("B4-tab", head(fields=b"A\t: b\r\n"), 400),
    ("B4-host", head(host=b"Host : a\r\n"), 400),
    ("B5-space", head(host=b" \r\nHost: a\r\n"), 400),
    ("B5-tab", head(host=b"\t\r\nHost: a\r\n"), 400),
    ("B5-field", head(host=b" Host: a\r\n"), 400),
    ("B6-space", head(fields=b"A: b\r\n c\r\n"), 400),
    ("B6-tab", head(fields=b"A: b\r\n\tc: d\r\n"), 400),
    ("B6-last", head(fields=b"A: b\r\n \r\n"), 400),
    ("B7-empty", head(fields=b": b\r\n"), 400),
    ("B7-no-colon", head(fields=b"A b\r\n"), 400),
    ("B7-name-only", head(fields=b"A\r\n"), 400),
    ("B7-space", head(fields=b"A b: c\r\n"), 400),
    ("B7-nul", head(fields=b"A\x00: b\r\n"), 400),
    ("B7-e-acute", head(fields="é: b\r\n".encode()), 400),
    ("B7-e-acute-latin-1", head(fields=b"\xe9: b\r\n"), 400),
    ("B7-quote", head(fields=b'"A": b\r\n'), 400),
    ("B8-tab", head(fields=b"A: b\tc\r\n"), 0),
    ("B9", head(fields=b"A: " + bytes(range(0x80, 0x100)) + b"\r\n"), 0),
    ("B10-100", head(fields=b"A: b\r\n" * 99), 0),
    ("B10-101", head(fields=b"A: b\r\n" * 100), 431),
    ("B10-101-names", head(fields=b"".join(b"A%d: b\r\n" % n for n in range(100))), 431),
    ("B10-101-long", head(fields=(b"A: " + b"b" * 90 + b"\r\n") * 100), 431),
    ("B11", head(fields=b"".join(b"A%d: b\r\n" % n for n in range(2000)) + UPGRADE), 431),
    ("B12-8192", head(fields=b"A: " + b"b" * 8189 + b"\r\n"), 0),
    ("B12-8193", head(fields=b"A: " + b"b" * 8190 + b"\r\n"), 431),
    ("B12-8193-unfinished", head()[:-2] + b"A: " + b"b" * 8190, 431),
    ("B12-8192-unfinished", head()[:-2] + b"A: " + b"b" * 8189, 400),
    ("B12-8192-cr", head()[:-2] + b"A: " + b"b" * 8189 + b"\r", 400),
    ("B12-8193-cr", head()[:-2] + b"A: " + b"b" * 8190 + b"\r", 431),
    ("B12-name", head(fields=b"A" * 8193 + b": b\r\n"), 431),
    ("B13-65536", sized(65536), 0),
    ("B13-65537", sized(65537), 431),
    ("B13-unfinished", head()[:-2] + (b"A: " + b"b" * 8000 + b"\r\n") * 9, 431),
    ("B13-1-mib", head(fields=(b"A: " + b"b" * 8000 + b"\r\n") * 131), 431),
    *[
        (f"B15-{value!r}", head(fields=b"Content-Length: " + value + b"\r\n"), 400)
        for value in (
            *(b"+0", b"0_0", b"-1", b"0x0", b"", b"1 1", b"0" * 20, b"1" * 20, b"1" * 8000, b"0,", b"0;", b"1.0"),
            *(b"1e1", "\u0660".encode(), b"\xb2", "\uff11".encode(), b"zero", b"-0", b'"0"', b"0 0"),
        )
    ],
    ("B15-0", upgrade(fields=b"Content-Length: 0\r\n"), 0),
    ("B15-00", upgrade(fields=b"Content-Length: \t00 \r\n"), 0),
    ("B15-upgrade", upgrade(fields=b"Content-Length: +0\r\n"), 400),
    ("B16", head(fields=b"Content-Length: 0\r\nContent-Length: 1\r\n"), 400),
    ("B17", head(fields=b"Content-Length: 0\r\nContent-Length: 0\r\n"), 400),
    ("B17-list", head(fields=b"Content-Length: 5, 5\r\n"), 400),
    ("B17-list-0", upgrade(fields=b"Content-Length: 0, 0\r\n"), 400),
    ("B18", head(fields=b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400),
    ("B18-0", head(fields=b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"), 400),
    ("B18-unknown", head(fields=b"Transfer-Encoding: identity\r\nContent-Length: 0\r\n"), 400),
    ("B19-identity", head(fields=b"Transfer-Encoding: identity\r\n"), 501),
    ("B19-xchunked", head(fields=b"Transfer-Encoding: xchunked\r\n"), 501),
    ("B19-gzip-chunked", head(fields=b"Transfer-Encoding: gzip, chunked\r\n"), 501),
    ("B19-chunked-gzip", head(fields=b"Transfer-Encoding: chunked, gzip\r\n"), 400),
    ("B19-chunked-chunked", head(fields=b"Transfer-Encoding: chunked, chunked\r\n"), 400),
    ("B19-chunked-twice", head(fields=b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400),
    ("B19-http-1.0", head(b"GET / HTTP/1.0", b"Transfer-Encoding: chunked\r\n"), 400),
    ("B19-empty", head(fields=b"Transfer-Encoding: \r\n"), 400),
    ("B19-comma", head(fields=b"Transfer-Encoding: chunked,\r\n"), 400),
    ("B19-quoted", head(fields=b'Transfer-Encoding: "chunked"\r\n'), 400),
    ("B19-vertical-tab", head(fields=b"Transfer-Encoding: \x0bchunked\r\n"), 400),
    ("B19-parameter", head(fields=b"Transfer-Encoding: chunked;a=b\r\n"), 400),
    ("B19-space", head(fields=b"Transfer-Encoding: chun ked\r\n"), 400),
    ("B20-length", upgrade(fields=b"Content-Length: 5\r\n"), 400),
    ("B20-chunked", upgrade(fields=b"Transfer-Encoding: chunked\r\n"), 400),
    ("B24-length", head(b"POST / HTTP/1.1", b"Content-Length: 1\r\n"), 413),
    ("B24-length-19", head(b"POST / HTTP/1.1", b"Content-Length: 9999999999999999999\r\n"), 413),
    ("B24-chunked", head(b"POST / HTTP/1.1", b"Transfer-Encoding: CHUNKED\r\n"), 413),
    ("B24-get", head(fields=b"Content-Length: 5\r\n"), 413),
    ("B28", head(b"POST / HTTP/1.1", b"Expect: 100-continue\r\nContent-Length: 5\r\n"), 413),
    ("B28-no-body", head(fields=b"Expect: 100-Continue\r\n"), 0),
    ("B29", head(fields=b"Expect: 200-ok\r\n"), 417),
    ("B29-upgrade", upgrade(fields=b"Expect: the-unexpected\r\n"), 417),
    ("B29-list", head(fields=b"Expect: 100-continue, 200-ok\r\n"), 417),
    ("B29-empty", head(fields=b"Expect: \r\n"), 417),
]  # fmt: skip
ROWS = LINES + FIELDS


@pytest.mark.parametrize(("data", "status"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_row(data: bytes, status: int) -> None:
    assert judge(data) == status


@pytest.mark.parametrize("octet", range(256))
def test_a6_a_method_has_no_other_octets(octet: int) -> None:
    """A6: an unknown method is 501, what can't be one is 400."""
    expected = 501 if octet in METHOD_OCTETS else 400
    assert judge(head(b"B%cT / HTTP/1.1" % octet)) == expected
    assert judge(head(b"%c / HTTP/1.1" % octet)) == expected


@pytest.mark.parametrize("octet", range(256))
def test_a16_a_target_is_visible_ascii(octet: int) -> None:
    good = 0x21 <= octet <= 0x7E and octet != ord("#")
    for target in (b"/%c", b"/a%cb", b"/%cb", b"/?a=%c"):
        assert judge(upgrade(b"GET " + target % octet + b" HTTP/1.1")) == (0 if good else 400)


@pytest.mark.parametrize("octet", range(256))
def test_b7_a_field_name_is_a_token(octet: int) -> None:
    for name in (b"%c", b"a%c", b"%ca", b"a%cb"):
        data = head(fields=name % octet + b": c\r\n")
        # A colon ends the name, and the rest is the value; an empty name isn't one.
        good = octet in METHOD_OCTETS or (octet == ord(":") and name[:1] == b"a")
        assert judge(data) == (0 if good else 400)


@pytest.mark.parametrize("octet", range(256))
def test_b8_a_field_value_has_no_control_octets(octet: int) -> None:
    good = octet == 9 or (octet >= 0x20 and octet != 0x7F)
    for value in (b"%c", b"a%c", b"%ca", b"a%cb"):
        assert judge(head(fields=b"A: " + value % octet + b"\r\n")) == (0 if good else 400)
        assert judge(upgrade(fields=b"A:" + value % octet + b"\r\n")) == (0 if good else 400)


def test_b9_high_octets_are_latin1() -> None:
    request = parse_request(head(fields=b"A: " + bytes(range(0x80, 0x100)) + b"\r\n"))
    assert request.headers["a"] == bytes(range(0x80, 0x100)).decode("latin-1")


@pytest.mark.parametrize(("line", "host"), [
    (b"GET http://A:80/b?c HTTP/1.1", b"a"),
    (b"GET HTTP://a/b?c HTTP/1.1", b"A:80"),
    (b"GET ws://a/b?c HTTP/1.1", b"a:"),
    (b"GET wss://a:443/b?c HTTP/1.1", b"a"),
    (b"GET https://a:8443/b?c HTTP/1.1", b"a:8443"),
    (b"GET http://[::1]/b?c HTTP/1.1", b"[0::1]"),
])  # fmt: skip
def test_a17_the_same_host_in_the_target_is_accepted(line: bytes, host: bytes) -> None:
    request = parse_request(upgrade(line, host=b"Host: " + host + b"\r\n"))
    assert request.path == "/b?c"
    assert request.target == line.split()[1].decode()
    assert request.query == {"c": ""}


@pytest.mark.parametrize(("target", "path"), [(b"http://a", "/"), (b"http://a?b=c", "/?b=c"), (b"http://a/", "/")])
def test_a17_the_path_of_an_absolute_target_is_never_empty(target: bytes, path: str) -> None:
    assert parse_request(head(b"GET " + target + b" HTTP/1.1")).path == path


def test_a17_http_1_0_needs_no_host() -> None:
    assert parse_request(head(b"GET http://a/b HTTP/1.0", host=b"")).path == "/b"


def test_a18_only_options_is_for_the_whole_server() -> None:
    """RFC 9112 §3.2.4."""
    assert parse_request(head(b"OPTIONS * HTTP/1.1")).path == "*"


def test_a8_the_answer_says_which_method_is_allowed() -> None:
    """RFC 9110 §15.5.6."""
    assert refused(upgrade(b"POST / HTTP/1.1")).headers == (("Allow", "GET"),)


def test_a11_the_answer_says_what_to_upgrade_to() -> None:
    """RFC 9110 §15.5.22."""
    error = refused(upgrade(b"GET / HTTP/1.0"))
    assert dict(error.headers) == {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}


@pytest.mark.parametrize("name", [b"Authorization", b"Content-Length", b"Host", b"Origin", b"SEC-WEBSOCKET-KEY"])
def test_fields_that_may_occur_once(name: bytes) -> None:
    """B2, B16, B17, C6, C9, K7."""
    field = name + b": 0\r\n"
    assert judge(head(fields=field + field.lower(), host=b"" if name == b"Host" else b"Host: a\r\n")) == 400


def test_other_repeated_fields_are_joined() -> None:
    request = parse_request(head(fields=b"A: 1\r\nCookie: a\r\na:2\r\n"))
    assert request.headers["A"] == "1, 2"
    assert request.headers.get_all("a") == ["1", "2"]


@pytest.mark.parametrize("end", range(len(upgrade())))
def test_an_unfinished_head_is_refused_at_every_length(end: int) -> None:
    assert judge(upgrade()[:end]) == 400


@pytest.mark.parametrize("tail", [b"\r\n", b"\x81\x80", b"G", b"GET / HTTP/1.1\r\n\r\n", b"\n", b"\r"])
def test_what_follows_a_head_is_no_part_of_it(tail: bytes) -> None:
    assert judge(upgrade() + tail) == 400


def test_what_follows_a_long_head_is_no_part_of_it() -> None:
    assert judge(upgrade() + bytes(MAX_HEAD)) == 400


# What is parsed


def test_a_request() -> None:
    data = head(
        b"GET /chat?room=1&room=2&x=%C3%A9+%26&empty= HTTP/1.1", b"X-Y:z\r\nEmpty:\r\nSpaces: \t a \t b \t \r\n"
    )
    request = parse_request(data)
    assert request.head == data
    assert request.method == "GET"
    assert request.target == request.path == "/chat?room=1&room=2&x=%C3%A9+%26&empty="
    assert request.query == {"room": "1", "x": "é &", "empty": ""}
    assert request.query is request.query
    assert request.http_version == "1.1"
    assert list(request.headers.items()) == [("Host", "a"), ("X-Y", "z"), ("Empty", ""), ("Spaces", "a \t b")]
    assert not request.is_websocket
    assert request.keep_alive


@pytest.mark.parametrize(
    "path", ["/", "/?", "/a?", "/?&", "/?=", "/?%zz&%", "//a?b", "/%00?%00=%ff", "/?" + "&" * 5000]
)
def test_odd_queries_are_no_error(path: str) -> None:
    request = parse_request(head(b"GET " + path.encode() + b" HTTP/1.1"))
    assert request.path == path
    assert isinstance(request.query, dict)


def test_repr_shows_no_credentials() -> None:
    request = parse_request(head(b"GET /a?token=hush HTTP/1.1", b"Authorization: Basic hush\r\n"))
    assert repr(request) == "<Request GET '/a'>"


def test_requests_have_slots() -> None:
    request = parse_request(head())
    with pytest.raises(AttributeError):
        request.colour = "green"  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"])
def test_plain_http_may_use_every_known_method(method: bytes) -> None:
    assert parse_request(head(method + b" / HTTP/1.1")).method == method.decode()


@pytest.mark.parametrize(("version", "keep_alive"), [(b"1.0", False), (b"1.1", True), (b"1.2", True), (b"1.9", True)])
def test_versions_of_http_1(version: bytes, keep_alive: bool) -> None:
    """RFC 9110 §2.5: a higher minor version is processed as the highest one that is known."""
    request = parse_request(head(b"GET / HTTP/" + version, b"Connection: keep-alive\r\n"))
    assert request.http_version == version.decode()
    assert request.keep_alive == keep_alive


@pytest.mark.parametrize(
    ("value", "keep_alive"),
    [(b"close", False), (b"CLOSE", False), (b"a, close", False), (b"close,", False), (b"closed", True), (b"", True)],
)
def test_b26_connection_close(value: bytes, keep_alive: bool) -> None:
    assert parse_request(head(fields=b"Connection: " + value + b"\r\n")).keep_alive == keep_alive


def test_b26_connection_close_in_a_second_line() -> None:
    assert not parse_request(head(fields=b"Connection: a\r\nX: y\r\nConnection: close\r\n")).keep_alive


@pytest.mark.parametrize("value", [b"clo se", b"close;a", b'"close"', b"a=b", b"\xe9", b"a, b c"])
def test_a_malformed_connection_is_refused(value: bytes) -> None:
    assert judge(head(fields=b"Connection: " + value + b"\r\n")) == 400


@pytest.mark.parametrize(
    ("fields", "is_websocket"),
    [
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\n", True),
        (b"upgrade: WebSocket\r\nconnection: Keep-Alive, UPGRADE\r\n", True),
        (b"Upgrade: h2c, websocket\r\nConnection: Upgrade\r\n", True),
        (b"Upgrade: h2c\r\nUpgrade:\twebsocket \r\nConnection: a\r\nConnection: upgrade\r\n", True),
        (b"Upgrade: websocket\r\n", False),
        (b"Connection: Upgrade\r\n", False),
        (b"Upgrade: notwebsocket\r\nConnection: Upgrade\r\n", False),
        (b"Upgrade: websocketx, xwebsocket\r\nConnection: Upgrade\r\n", False),
        (b"Upgrade: websocket/13\r\nConnection: Upgrade\r\n", False),
        (b"Upgrade: web socket\r\nConnection: Upgrade\r\n", False),
        (b"Upgrade: websocket\r\nConnection: notupgrade\r\n", False),
        (b"Upgrade: websocket\r\nConnection: keep-alive\r\n", False),
        (b"Upgrade: \r\nConnection: Upgrade\r\n", False),
        (b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: a\r\n", False),
    ],
)
def test_c1_to_c4_what_asks_for_websocket(fields: bytes, is_websocket: bool) -> None:
    """RFC 6455 §4.2.1 items 3 and 4, without regard to case, by whole elements."""
    assert parse_request(head(fields=fields)).is_websocket == is_websocket


def test_offers_websocket() -> None:
    assert offers_websocket(Headers({"Upgrade": "WebSocket"}))
    assert not offers_websocket(Headers())


# Limits


def limited(size: int, name: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield a head that is within a limit of so many bytes or lines, and one beyond it, with its status."""
    if name == "max_line":
        for extra, status in ((0, 0), (1, 414)):
            yield head(b"GET /" + b"a" * (size - 14 + extra) + b" HTTP/1.1"), size, status
    elif name == "max_header_line":
        for extra, status in ((0, 0), (1, 431)):
            yield head(fields=b"A:" + b"a" * (size - 2 + extra) + b"\r\n"), size, status
    elif name == "max_head":
        for extra, status in ((0, 0), (1, 431)):
            yield head(fields=b"A:" + b"a" * (size - len(head()) - 4 + extra) + b"\r\n"), size, status
    else:
        for extra, status in ((0, 0), (1, 431)):
            yield head(fields=b"A:\r\n" * (size - 1 + extra)), size, status


@pytest.mark.parametrize("name", ["max_line", "max_header_line", "max_head", "max_headers"])
@pytest.mark.parametrize("size", [40, 200, 3000])
def test_limits_are_inclusive(name: str, size: int) -> None:
    wide = {"max_line": 9000, "max_header_line": 9000, "max_head": 99000, "max_headers": 9000}
    for data, limit, status in limited(size, name):
        assert judge(data, **{**wide, name: limit}) == status
        assert judge(data, **wide) == 0


def test_the_defaults_are_the_published_ones() -> None:
    assert (MAX_LINE, MAX_HEADER_LINE, MAX_HEAD, MAX_HEADERS) == (8192, 8192, 65536, 100)


@pytest.mark.parametrize("cut", range(20, len(head(fields=b"A: bbbb\r\nC: dddd\r\n"))))
def test_a_head_that_is_too_long_is_431_wherever_the_limit_falls(cut: int) -> None:
    """Also between CR and LF, which is no sign of a bare CR."""
    data = head(fields=b"A: bbbb\r\nC: dddd\r\n")
    assert judge(data, max_head=cut) == 431
    assert judge(data, max_head=len(data)) == 0


def test_the_first_fault_decides() -> None:
    assert judge(b"GET /\x00" + b"a" * 9000) == 400
    assert judge(b"GET /" + b"a" * 9000 + b"\x00") == 414
    assert judge(head(fields=b"A b: c\r\n" + b"A: b\r\n" * 200)) == 400
    assert judge(head(fields=b"A: b\r\n" * 200 + b"A b: c\r\n" + b"A: " + b"b" * 9000)) == 431
    assert judge(head(fields=b"A: " + b"b" * 9000 + b"\x00\r\n")) == 431
    assert judge(head(fields=b"A: \x00" + b"b" * 9000 + b"\r\n")) == 400


# Linear time: n times 8 KiB of whatever makes a careless parser go back.

ADVERSARIAL: dict[str, Callable[[int], bytes]] = {
    "spaces": lambda n: head(fields=(b"A:" + b" " * 8000 + b"b\r\n") * n),
    "spaces-then-nul": lambda n: head(fields=(b"A:" + b" " * 8000 + b"b\r\n") * n + b"\x00\r\n"),
    "trailing-spaces": lambda n: head(fields=(b"A: b" + b" " * 8000 + b"\r\n") * n),
    "alternating-spaces": lambda n: head(fields=(b"A:" + b" b" * 4000 + b"  \r\n") * n),
    "one-value-of-spaces": lambda n: head(fields=b"A: b" + b" \t" * 4000 * n + b"b \r\n"),
    "one-name": lambda n: head(fields=b"A" * 8000 * n),
    "names-without-colon": lambda n: head(fields=b"A\r\n" * 2700 * n),
    "many-fields": lambda n: head(fields=b"A:\r\n" * 2000 * n),
    "many-fields-no-end": lambda n: head(fields=b"A:\r\n" * 2000 * n)[:-2],
    "colons": lambda n: head(fields=(b"A" + b":" * 8000 + b"\r\n") * n),
    "carriage-returns": lambda n: head(fields=b"A: " + b"\r" * 8000 * n),
    "crlf": lambda n: b"\r\n" * 4000 * n,
    "line": lambda n: b"GET /" + b"a" * 8000 * n,
    "method": lambda n: b"A" * 8000 * n,
    "versions": lambda n: b"GET /" + b" HTTP/1.1" * 900 * n,
    "slashes": lambda n: head(b"GET http:" + b"/" * 8000 * n + b" HTTP/1.1"),
    "authority": lambda n: head(b"GET http://" + b"%41" * 2700 * n + b"@ HTTP/1.1"),
    "host": lambda n: head(host=b"Host: " + b"%41" * 2700 * n + b"@\r\n"),
    "host-colons": lambda n: head(host=b"Host: [" + b":" * 8000 * n + b"\r\n"),
    "upgrade": lambda n: head(fields=(b"Upgrade: " + b"," * 8000 + b"\r\n") * n),
    "connection": lambda n: head(fields=(b"Connection: " + b"a," * 4000 + b"\r\n") * n),
    "connection-spaces": lambda n: head(fields=(b"Connection: a" + b" " * 8000 + b"b\r\n") * n),
    "codings": lambda n: head(fields=(b"Transfer-Encoding: " + b"chunked," * 1000 + b"\r\n") * n),
    "digits": lambda n: head(fields=b"Content-Length: " + b"1" * 8000 * n + b"\r\n"),
    "zeros": lambda n: bytes(8192 * n),
    "high": lambda n: b"\xff" * 8192 * n,
}
WIDE = {"max_line": 1 << 30, "max_header_line": 1 << 30, "max_head": 1 << 30}


def fresh_judge(data: bytes, **limits: int) -> int:
    """Judge a head with nothing remembered of former ones."""
    http11._connection_options.cache_clear()
    http11._parse_host.cache_clear()
    return judge(data, **limits)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_64_kib_of_malice_takes_less_than_10_ms(name: str) -> None:
    data = ADVERSARIAL[name](8)
    assert best_time(lambda: fresh_judge(data)) < 0.01
    assert best_time(lambda: fresh_judge(data, **WIDE)) < 0.01


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_eight_times_the_malice_takes_eight_times_the_time(name: str) -> None:
    """No limit applies here: the grammar itself takes linear time. Quadratic time would be 64 times as long."""
    once, eightfold = ADVERSARIAL[name](2), ADVERSARIAL[name](16)
    limit = 8 * 2.5 * best_time(lambda: fresh_judge(once, **WIDE, max_headers=1 << 30)) + 0.001
    assert best_time(lambda: fresh_judge(eightfold, **WIDE, max_headers=1 << 30)) < limit


def test_b14_ninety_fields_of_one_name_take_less_than_5_ms() -> None:
    data = head(fields=(b"A: " + b"b" * 700 + b"\r\n") * 90)
    assert best_time(lambda: parse_request(data).headers.get_all("a")) < 0.005
    assert parse_request(data).headers["a"] == ", ".join(["b" * 700] * 90)


# Arbitrary bytes


def is_plain_field(line: bytes) -> bool:
    name, colon, value = line.partition(b":")
    octets = set(value) - {9}
    return (
        bool(colon and name)
        and all(octet in METHOD_OCTETS for octet in name)
        and all(octet >= 0x20 and octet != 0x7F for octet in octets)
    )


def is_plain_line(line: bytes) -> bool:
    parts = line.split(b" ")
    if len(parts) != 3:
        return False
    method, target, version = parts
    return (
        1 <= len(method) <= 32
        and all(octet in METHOD_OCTETS for octet in method)
        and len(target) >= 1
        and all(0x21 <= octet <= 0x7E and octet != ord("#") for octet in target)
        and len(version) == 8
        and (version[:5], version[6:7]) == (b"HTTP/", b".")
        and all(octet in b"0123456789" for octet in (version[5], version[7]))
    )


def is_plain_head(data: bytes) -> bool:
    """Say whether these bytes are a request head by the letter of RFC 9112: the slow and obvious twin."""
    for _ in range(5):
        data = data.removeprefix(b"\r\n")
    if not data.endswith(b"\r\n\r\n"):
        return False
    line, *fields = data[:-4].split(b"\r\n")
    return is_plain_line(line) and all(map(is_plain_field, fields))


def check_arbitrary(data: bytes, **limits: int) -> None:
    """Check that bytes are parsed into what they say, or refused in one of the ways that are due."""
    status = judge(data, **limits)
    assert status in (0, 400, 405, 413, 414, 417, 426, 431, 501, 505)
    if status == 0:
        assert is_plain_head(data)
        check_round_trip(parse_request(data, **limits))


def check_round_trip(request: Request) -> None:
    line = f"{request.method} {request.target} HTTP/{request.http_version}\r\n".encode()
    assert isinstance(request.query, dict)
    again = parse_request(line + request.headers.encode() + b"\r\n", max_header_line=1 << 20, max_head=1 << 20)
    for name in ("method", "target", "path", "query", "http_version", "headers", "is_websocket", "keep_alive"):
        assert getattr(again, name) == getattr(request, name)
    assert list(again.headers.items()) == list(request.headers.items())


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_never_another_exception(data: bytes) -> None:
    check_arbitrary(data)
    check_arbitrary(data + b"\r\n\r\n")
    check_arbitrary(head(fields=data))
    check_arbitrary(head(fields=data + b"\r\n"))
    check_arbitrary(upgrade(b"GET /" + data + b" HTTP/1.1"))


PIECES = st.sampled_from(
    [
        *(b"GET", b"POST", b"HEAD", b"/", b"http://a", b"*", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/2.0\r\n"),
        *(
            b"Host: a\r\n",
            b"Host:",
            b"A: b\r\n",
            b":",
            b"\r\n",
            b"\r",
            b"\n",
            b"\t",
            b" ",
            b"\x00",
            b"\xe9",
            b"#",
            b"?a=b",
        ),
        *(b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\n", b"Connection: close\r\n", b"Connection:", b",", b";"),
        *(
            b"Content-Length: 0\r\n",
            b"Content-Length:",
            b"0",
            b"1",
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: a\r\n",
        ),
    ]
)


@given(st.lists(PIECES, max_size=24).map(b"".join))
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
def test_pieces_of_heads_are_never_another_exception(data: bytes) -> None:
    check_arbitrary(data)
    check_arbitrary(data + b"\r\n")
    check_arbitrary(b"GET / HTTP/1.1\r\nHost: a\r\n" + data + b"\r\n")
    check_arbitrary(data, max_line=10, max_header_line=10, max_head=60, max_headers=2)


@given(st.data())
def test_a_broken_octet_anywhere_is_never_another_exception(data: st.DataObject) -> None:
    good = data.draw(st.sampled_from([head(), upgrade(), upgrade(b"GET http://a/?b=c HTTP/1.1")]))
    place = data.draw(st.integers(0, len(good)))
    kept = data.draw(st.integers(place, min(place + 3, len(good))))
    check_arbitrary(good[:place] + data.draw(st.binary(max_size=4)) + good[kept:])


TOKEN = st.text(METHOD_OCTETS.decode(), min_size=1, max_size=10)
VALUE = st.text([chr(octet) for octet in [9, *range(0x20, 0x7F), *range(0x80, 0x100)]], max_size=20)


@given(st.lists(st.tuples(TOKEN.map("X-".__add__), VALUE), max_size=10))
def test_fields_are_parsed_as_they_were_written(fields: list[tuple[str, str]]) -> None:
    lines = "".join(f"{name}:{value}\r\n" for name, value in fields).encode("latin-1")
    request = parse_request(head(fields=lines))
    assert list(request.headers.items())[1:] == [(name, value.strip(" \t")) for name, value in fields]


@given(st.one_of(st.binary(max_size=80), st.lists(PIECES, max_size=24).map(b"".join)))
def test_the_pattern_the_walk_and_the_letter_agree(data: bytes) -> None:
    for candidate in (data, data + b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + data + b"\r\n"):
        begins_with_a_head = http11._HEAD.match(candidate.decode("latin-1"))
        assert (http11._HEAD.fullmatch(candidate.decode("latin-1")) is not None) == is_plain_head(candidate)
        try:
            http11._find_fault(candidate, 999, 999, 9999, 99)
        except HandshakeError:
            assert not begins_with_a_head
        else:
            assert begins_with_a_head


# Responses


def test_a_response_by_default() -> None:
    assert Response().encode(keep_alive=True) == (
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n"
    )


def test_a_response_with_everything() -> None:
    response = Response(404, "Gone fishing", [("X-A", "b"), ("X-A", "c"), ("Content-Type", "text/html")], "<p>é")
    assert response.encode(keep_alive=False) == (
        b"HTTP/1.1 404 Gone fishing\r\nContent-Length: 5\r\nConnection: close\r\n"
        b"X-A: b\r\nX-A: c\r\nContent-Type: text/html\r\n\r\n<p>\xc3\xa9"
    )
    assert repr(response) == "<Response 404 'Gone fishing'>"


@pytest.mark.parametrize(
    ("response", "status", "reason", "body", "content_type"),
    [
        (Response(403, "Forbidden", b"no"), 403, "Forbidden", b"no", "application/octet-stream"),
        (Response(403, None, "no"), 403, "Forbidden", b"no", "text/plain; charset=utf-8"),
        (Response(403, "Forbidden", {"A": "b"}, b"no"), 403, "Forbidden", b"no", "application/octet-stream"),
        (Response(body="hi", status=201, headers={}), 201, "Created", b"hi", "text/plain; charset=utf-8"),
        (Response(HTTPStatus.NOT_FOUND, body=bytearray(b"x")), 404, "Not Found", b"x", "application/octet-stream"),
        (Response(200, "", memoryview(b"x")), 200, "", b"x", "application/octet-stream"),
        (Response(299), 299, "", b"", None),
        (Response(599, headers=Headers({"content-type": "a/b"}), body="x"), 599, "", b"x", "a/b"),
    ],
)
def test_c2_spellings_of_a_response(
    response: Response, status: int, reason: str, body: bytes, content_type: str | None
) -> None:
    assert (response.status, response.reason, response.body) == (status, reason, body)
    assert response.headers.get("Content-Type") == content_type
    encoded = response.encode(keep_alive=True)
    assert encoded.startswith(f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(body)}\r\n".encode())
    assert encoded.endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize("status", [204, 304])
def test_b27_some_statuses_have_no_content(status: int) -> None:
    """RFC 9110 §6.4.1 and §8.6: nor a length, that of a 304 being the one of another response."""
    encoded = Response(status, body=b"x").encode(keep_alive=True)
    assert encoded.endswith(b"\r\n\r\n")
    assert b"Content-Length" not in encoded


def test_b27_a_reset_has_no_content() -> None:
    """RFC 9110 §15.3.6."""
    assert Response(205, body=b"x", headers={"Content-Type": "a/b"}).encode(keep_alive=True) == (
        b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\nConnection: keep-alive\r\nContent-Type: a/b\r\n\r\n"
    )


def test_b27_the_answer_to_head_has_no_content_but_its_length() -> None:
    """RFC 9110 §9.3.2."""
    response = Response(body=b"12345")
    full, bare = (response.encode(keep_alive=True, head_only=only) for only in (False, True))
    assert full == bare + b"12345"
    assert b"Content-Length: 5\r\n" in bare


@pytest.mark.parametrize("reason", [f"a{chr(octet)}b" for octet in [*range(9), *range(10, 0x20), 0x7F]] + ["\u0100"])
def test_l2_no_control_character_gets_into_a_reason(reason: str) -> None:
    with pytest.raises(ValueError, match="reason"):
        Response(200, reason)


@pytest.mark.parametrize("octet", [*range(9), *range(10, 0x20), 0x7F])
def test_l1_no_control_character_gets_into_a_response(octet: int) -> None:
    with pytest.raises(ValueError, match="header"):
        Response(headers={"A": f"b{chr(octet)}c"})
    with pytest.raises(ValueError, match="header"):
        Response(headers={f"A{chr(octet)}": "b"})


@pytest.mark.parametrize("status", [0, 99, 100, 101, 199, 600, 1000, -200])
def test_c23_a_response_has_a_final_status(status: int) -> None:
    with pytest.raises(ValueError, match="status"):
        Response(status)


@pytest.mark.parametrize("name", ["Connection", "transfer-encoding", "Content-Length"])
def test_c23_framing_is_not_for_the_application(name: str) -> None:
    with pytest.raises(ValueError, match=name.title()):
        Response(headers={name: "7"})
    response = Response()
    response.headers.add(name, "0")
    with pytest.raises(ValueError, match=name.title()):
        response.encode(keep_alive=True)


@pytest.mark.parametrize("name", ["Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Upgrade"])
def test_what_concerns_a_connection_is_not_for_the_application(name: str) -> None:
    with pytest.raises(ValueError, match=f"headers: {name} "):
        Response(headers={name.lower(): "websocket"})


def test_a_right_content_length_is_welcome() -> None:
    encoded = Response(headers={"content-length": "2"}, body=b"hi").encode(keep_alive=True)
    assert encoded.lower().count(b"content-length: 2\r\n") == 1


def test_what_is_changed_later_is_checked_too() -> None:
    response = Response()
    response.reason = "OK\r\nA: b"
    with pytest.raises(ValueError, match="reason"):
        response.encode(keep_alive=True)
    response = Response()
    response.status = 101
    with pytest.raises(ValueError, match="status"):
        response.encode(keep_alive=True)


@pytest.mark.parametrize("body", [5, None, ["a"], {"a": "b"}])
def test_a_body_is_text_or_bytes(body: bytes) -> None:
    with pytest.raises(TypeError, match="body"):
        Response(body=body)


def test_a_body_is_given_once() -> None:
    with pytest.raises(TypeError, match="twice"):
        Response(200, None, b"a", b"b")


def test_a_body_is_copied() -> None:
    body = bytearray(b"abc")
    response = Response(body=body)
    body[:] = b"xyz"
    assert response.body == b"abc"


@given(
    st.integers(200, 599),
    VALUE,
    st.lists(st.tuples(TOKEN.map("X-".__add__), VALUE), max_size=5),
    st.binary(max_size=99),
)
def test_a_response_is_read_as_it_was_written(
    status: int, reason: str, fields: list[tuple[str, str]], body: bytes
) -> None:
    encoded = Response(status, reason, fields, body).encode(keep_alive=True)
    start, _, content = encoded.partition(b"\r\n\r\n")
    line, *lines = start.decode("latin-1").split("\r\n")
    assert line == f"HTTP/1.1 {status} {reason}"
    assert [entry.split(": ", 1) for entry in lines if entry.startswith("X-")] == [list(field) for field in fields]
    assert content == (b"" if status in (204, 205, 304) else body)


@pytest.mark.parametrize(("status", "reason"), [(200, "OK"), (426, "Upgrade Required"), (299, ""), (0, "")])
def test_reason_phrases(status: int, reason: str) -> None:
    assert reason_phrase(status) == reason


def test_messages_never_repeat_the_input() -> None:
    """L5, L6: what goes to a log is ours."""
    for _, data, status in ROWS:
        if status:
            assert re.fullmatch(r"[ -~§]*", refused(data).message)


@pytest.mark.parametrize(("keep_alive", "connection"), [(True, "upgrade, keep-alive"), (False, "upgrade, close")])
def test_who_sends_upgrade_lists_it_in_connection(keep_alive: bool, connection: str) -> None:
    encoded = Response(426, headers={"Upgrade": "websocket"}).encode(keep_alive=keep_alive)
    assert f"\r\nConnection: {connection}\r\n".encode() in encoded
    assert encoded.count(b"Connection") == 1


def test_a_server_is_named_unless_the_application_does() -> None:
    assert b"\r\nServer: ours\r\n" in Response().encode(keep_alive=True, server="ours")
    own = Response(headers={"SERVER": "mine"}).encode(keep_alive=True, server="ours")
    assert b"\r\nSERVER: mine\r\n" in own
    assert b"ours" not in own


def test_a_date_is_sent_unless_the_application_has_one() -> None:
    assert b"\r\nDate: now\r\n" in Response().encode(keep_alive=True, date="now")
    assert b"Date" not in Response().encode(keep_alive=True)
    own = Response(headers={"DATE": "then"}).encode(keep_alive=True, date="now")
    assert b"\r\nDATE: then\r\n" in own
    assert b"now" not in own
