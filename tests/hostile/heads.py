"""Which request heads are hostile, and what is each answered with? Rows A, B and C, and K for Basic, as data.

A case is what a peer sends and the status that is due. Where ``promptly`` is set, the last byte of ``data`` is the one
that decides: the answer comes although nothing follows it.
"""

from __future__ import annotations

import base64
import random
from typing import TYPE_CHECKING, Any, NamedTuple

from drivers import head

from wspy import BasicAuth

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAX_LINE = 8192
MAX_HEAD = 65536


class Case(NamedTuple):
    """A request and its answer.

    Args:
        name: begins with its row.
        data: what the peer sends.
        status: of the answer.
        headers: that the answer must have.
        promptly: whether nothing needs to follow.
        options: of the server.
        others: header fields with which others are let in.
    """

    name: str
    data: bytes
    status: int
    headers: Mapping[str, str] = {}
    promptly: bool = False
    options: Mapping[str, Any] = {}
    others: Iterable[tuple[str, str]] = ()


GET = b"GET / HTTP/1.1\r\n"
HOST = b"Host: here\r\n"
UPGRADE = {"upgrade": "websocket", "sec-websocket-version": "13"}
VERSION = {"sec-websocket-version": "13"}


def line(first: bytes) -> bytes:
    """Return a complete request that asks for an upgrade, with another request line."""
    return first + b"\r\n" + head().partition(b"\r\n")[2]


def field(raw: bytes) -> bytes:
    """Return a complete request that asks for an upgrade, with another header line of any bytes."""
    return head()[:-2] + raw + b"\r\n\r\n"


def plain(raw: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    """Return a complete request of plain HTTP with other header lines."""
    return method + b" / HTTP/" + version + b"\r\n" + HOST + raw + b"\r\n"


def request_lines() -> Iterator[Case]:
    """Section A."""
    for count in (1, 2, 5):
        yield Case(f"A1 {count} empty lines", b"\r\n" * count + head(), 101)
    yield Case("A1 6 empty lines", b"\r\n" * 5 + b"\r", 400, promptly=True)
    fits = b"GET /" + b"a" * (MAX_LINE - 14) + b" HTTP/1.1"
    yield Case("A5 a request line of 8192 bytes", line(fits), 101)
    yield Case("A5 8193 bytes of a request line", b"GET /" + b"a" * (MAX_LINE - 4), 414, promptly=True)
    yield Case("A5 70000 bytes of a request line", b"GET /" + b"a" * 69_995, 414)
    yield Case("A5 a request line of 8193 bytes", b"GET /" + b"a" * (MAX_LINE - 13) + b" HTTP/1.1", 414, promptly=True)
    for name, method in (
        ("empty", b" "),
        ("NUL", b"G\0"),
        ("a parenthesis", b"G("),
        ("a tab", b"G\t"),
        ("8 bit", b"G\xe9"),
    ):
        yield Case(f"A6 a method with {name}", method, 400, promptly=True)
    yield Case("A6 a method of 33 bytes", b"M" * 33, 501, promptly=True)
    yield Case("A6 a method of 32 bytes", line(b"M" * 32 + b" / HTTP/1.1"), 501)
    yield Case("A7 get", line(b"get / HTTP/1.1"), 501)
    for method in (b"POST", b"PUT", b"HEAD"):
        yield Case(f"A8 {method.decode()}", line(method + b" / HTTP/1.1"), 405, {"allow": "GET"})
    for name, first in (
        ("two spaces before the target", b"GET  / HTTP/1.1"),
        ("two spaces before the version", b"GET /  HTTP/1.1"),
        ("a tab as separator", b"GET\t/ HTTP/1.1"),
        ("a tab before the version", b"GET /\tHTTP/1.1"),
        ("a space at the end", b"GET / HTTP/1.1 "),
        ("a space at the beginning", b" GET / HTTP/1.1"),
        ("no target", b"GET HTTP/1.1"),
        ("an empty target", b"GET  HTTP/1.1"),
    ):
        yield Case(f"A9 {name}", line(first), 400)
    yield Case("A10 no version", line(b"GET /"), 400)
    yield Case("A11 HTTP/1.0", line(b"GET / HTTP/1.0"), 426, UPGRADE)
    for version in ("2.0", "3.0", "0.9"):
        yield Case(f"A12 HTTP/{version}", line(f"GET / HTTP/{version}".encode()), 505)
    for version in (
        "http/1.1",
        "Http/1.1",
        "HTTP/1.",
        "HTTP/1.1x",
        "HTTP/11.1",
        "HTTP /1.1",
        "HTTP/1,1",
        "HTTP/",
        "HTTP/1",
    ):
        yield Case(f"A13 {version}", line(f"GET / {version}".encode()), 400)
    yield Case("A14 the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505)
    yield Case("A15 a fragment", line(b"GET /#fragment HTTP/1.1"), 400)
    for byte in (0x00, 0x01, 0x09, 0x1F, 0x20, 0x7F, 0x80, 0xFF):
        yield Case(f"A16 a target with {byte:#04x}", line(b"GET /a" + bytes([byte]) + b"b HTTP/1.1"), 400)
    yield Case("A17 another host", line(b"GET http://other/ HTTP/1.1"), 400)
    yield Case("A17 another port", line(b"GET http://here:81/ HTTP/1.1"), 400)
    yield Case("A17 the same host", line(b"GET http://here/path HTTP/1.1"), 101)
    yield Case("A17 the same host and the default port", line(b"GET ws://HERE:80/path HTTP/1.1"), 101)
    yield Case("A18 an asterisk", line(b"GET * HTTP/1.1"), 400)
    yield Case("A18 an authority", line(b"GET here:80 HTTP/1.1"), 400)
    yield Case("A18 CONNECT", line(b"CONNECT here:80 HTTP/1.1"), 501)
    yield Case("A19 a bare LF", b"GET / HTTP/1.1\n", 400, promptly=True)
    yield Case("A19 a bare LF behind a header line", GET + b"Host: here\n", 400, promptly=True)
    yield Case("A19 a bare LF as the end", GET + HOST + b"\n", 400, promptly=True)
    yield Case("A20 CR behind the method", b"GET\r", 400, promptly=True)
    for place, before in (("the target", b"GET /"), ("the version", b"GET / HTTP/1.1")):
        yield Case(f"A20 CR behind {place}", before + b"\r ", 400, promptly=True)
    yield Case("A20 CR behind a header line", GET + b"Host: here\rX", 400, promptly=True)
    yield Case("A20 CR CR LF", GET + b"Host: here\r\r", 400, promptly=True)
    yield Case("A21 an HTTP response", b"HTTP/", 400, promptly=True)
    client_hello = bytes.fromhex("16030100c8010000c40303")
    yield Case("A21 J3 a ClientHello of TLS", client_hello[:1], 400, promptly=True)
    yield Case("A21 a ClientHello and more", client_hello + random.Random(1).randbytes(500), 400)
    yield Case("A21 zeros", bytes(1), 400, promptly=True)
    yield Case("A21 a WebSocket frame", b"\x81\x85\x37", 400)
    yield Case("A21 SSH", b"SSH-2.0-OpenSSH_9.6\r\n", 400)
    yield Case("A21 a mail server", b"EHLO here\r\n\r\n", 400)


def fields() -> Iterator[Case]:
    """Section B, but for what needs more than one request."""
    yield Case("B1 no Host", head(without=["Host"]), 400)
    yield Case("B1 no Host in plain HTTP", GET + b"\r\n", 400)
    yield Case("B2 the same Host twice", field(b"Host: here"), 400)
    yield Case("B2 two Hosts", field(b"host: there"), 400)
    for host in (
        "user@here",
        "here/path",
        "he re",
        "a:b",
        "here:0",
        "here:65536",
        "[::1",
        "::1",
        "[zz]",
        "",
        "here:80:80",
    ):
        yield Case(f"B3 Host {host!r}", head("/", [("Host", host)], without=["Host"]), 400)
    for host in ("here:80", "[::1]:8080", "127.0.0.1:65535", "HERE", "here:"):
        yield Case(f"B3 Host {host!r} is fine", head("/", [("Host", host)], without=["Host"]), 101)
    for blank in (b" ", b"\t"):
        yield Case(f"B4 {blank!r} before the colon", GET + b"Host" + blank, 400, promptly=True)
        yield Case(f"B5 {blank!r} behind the request line", GET + blank, 400, promptly=True)
        yield Case(f"B6 a folded line with {blank!r}", GET + HOST + blank, 400, promptly=True)
    for name in (b":", b"a b:", b"a\0:", b"\xc3\xa9:", b'"a":', b"a(b):", b"a\r\n", b"a/b:", b"{a}:"):
        yield Case(f"B7 the name {name!r}", GET + HOST + name + b" x\r\n\r\n", 400)
    for byte in (0x00, 0x01, 0x08, 0x0B, 0x1F, 0x7F):
        yield Case(f"B8 a value with {byte:#04x}", GET + HOST + b"X: a" + bytes([byte]), 400, promptly=True)
    yield Case("B8 a value with a tab", field(b"X: a\tb"), 101)
    yield Case("B9 a value of 8-bit bytes", field(b"X: " + bytes(range(0x80, 0x100))), 101)
    for name in ("X", "X-{}"):
        many = b"".join(b"%s: y\r\n" % name.format(number).encode() for number in range(200))
        lines = many.split(b"\r\n")
        yield Case(f"B10 100 header lines {name}", head()[:-2] + b"\r\n".join(lines[:95]) + b"\r\n\r\n", 101)
        yield Case(f"B10 101 header lines {name}", head()[:-2] + b"\r\n".join(lines[:96]) + b"\r\n\r\n", 431)
    late = b"".join(b"X-%d: y\r\n" % number for number in range(2000))
    yield Case("B11 2000 headers and then the upgrade", GET + late + head().partition(b"\r\n")[2], 431)
    fits = b"X: " + b"y" * (MAX_LINE - 3)
    yield Case("B12 a header line of 8192 bytes", field(fits), 101)
    yield Case("B12 a header line of 8193 bytes", GET + HOST + fits + b"y", 431, promptly=True)
    yield Case("B12 a header name of 8193 bytes", GET + HOST + b"y" * (MAX_LINE + 1), 431, promptly=True)
    legal = b"".join(b"X-%d: " % number + b"y" * 8000 + b"\r\n" for number in range(8))
    start = head()[:-2] + legal
    room = MAX_HEAD - len(start) - len(b"X: \r\n\r\n")
    yield Case("B13 a head of 65536 bytes", start + b"X: " + b"y" * room + b"\r\n\r\n", 101)
    yield Case("B13 a head of 65537 bytes", start + b"X: " + b"y" * (room + 1) + b"\r\n\r\n", 431)
    for length in ("+0", "0_0", "-1", "0x0", "", "1 1", "9" * 20, "1" * 30, "0.0", "1e1", "²", "0,0x0"):
        raw = b"Content-Length: " + length.encode("latin-1")
        yield Case(f"B15 Content-Length {length!r}", plain(raw + b"\r\n"), 400)
        yield Case(f"B15 Content-Length {length!r} with an upgrade", field(raw), 400)
    yield Case("B15 Content-Length of Arabic digits", plain(b"Content-Length: \xd9\xa0\r\n"), 400)
    for other in (b"0", b"1", b"5"):
        name = "B17" if other == b"5" else "B16"
        yield Case(
            f"{name} Content-Length 5 and {other!r}",
            plain(b"Content-Length: 5\r\ncontent-length: " + other + b"\r\n"),
            400,
        )
    yield Case("B17 Content-Length 5, 5", plain(b"Content-Length: 5, 5\r\n"), 400)
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"
    yield Case("B18 Content-Length with Transfer-Encoding", plain(both, b"POST"), 400)
    yield Case("B18 the other way round", plain(b"\r\n".join(both.split(b"\r\n")[1::-1]) + b"\r\n", b"POST"), 400)
    for coding, status in (
        ("identity", 501),
        ("xchunked", 501),
        ("gzip", 501),
        ("gzip, chunked", 501),
        ("chunked, gzip", 400),
        ("chunked, chunked", 400),
        ("chunked;x", 400),
        ("", 400),
        (",", 400),
        ("chunk ed", 400),
    ):
        yield Case(
            f"B19 Transfer-Encoding {coding!r}", plain(f"Transfer-Encoding: {coding}\r\n".encode(), b"POST"), status
        )
    yield Case("B19 chunked twice", plain(b"Transfer-Encoding: chunked\r\n" * 2, b"POST"), 400)
    yield Case("B19 chunked in HTTP/1.0", plain(b"Transfer-Encoding: chunked\r\n", b"POST", b"1.0"), 400)
    yield Case("B20 an upgrade with a body", field(b"Content-Length: 5"), 400)
    yield Case(
        "B20 an upgrade with a body that looks like a frame", field(b"Content-Length: 7") + b"\x81\x81\0\0\0\0x", 400
    )
    yield Case("B20 an upgrade in chunks", field(b"Transfer-Encoding: chunked"), 400)
    yield Case("B20 an upgrade without a body", field(b"Content-Length: 0"), 101)


def bodies() -> Iterator[Case]:
    """Those of section B that plain HTTP is refused for."""
    for method in (b"POST", b"PUT", b"GET"):
        yield Case(f"B24 a body with {method.decode()}", plain(b"Content-Length: 5\r\n", method) + b"12345", 413)
    yield Case(
        "B24 a body in chunks", plain(b"Transfer-Encoding: chunked\r\n", b"POST") + b"5\r\n12345\r\n0\r\n\r\n", 413
    )
    chunked = plain(b"Transfer-Encoding: chunked\r\n", b"POST")
    for size in (b"1" * 17, b"0x5", b"+5", b"", b"5 ;"):
        yield Case(f"B21 {size.decode()!r} as the size of a chunk", chunked + size + b"\r\n12345\r\n0\r\n\r\n", 413)
    for name, chunk in (
        ("a bare LF in an extension", b"5;a=\n\r\n12345\r\n"),
        ("an extension of 5000 bytes", b"5;a=" + b"b" * 5000 + b"\r\n12345\r\n"),
        ("no CRLF behind it", b"5\r\n1234567"),
        ("a request behind it", b"5\r\n12345GET / HTTP/1.1\r\n"),
    ):
        yield Case(f"B22 a chunk with {name}", chunked + chunk + b"0\r\n\r\n", 413)
    yield Case("B23 10000 trailers", chunked + b"5\r\n12345\r\n0\r\n" + b"a: b\r\n" * 10_000 + b"\r\n", 413)
    for name, lines in (("a length", b"Content-Length: 5\r\n"), ("chunks", b"Transfer-Encoding: chunked\r\n")):
        yield Case(f"B28 100-continue with {name}", plain(lines + b"Expect: 100-continue\r\n", b"POST"), 413)
    yield Case("B24 a body of 10^18 bytes", plain(b"Content-Length: 1000000000000000000\r\n", b"POST"), 413)
    yield Case("B29 an unknown expectation", plain(b"Expect: the-impossible\r\n"), 417)


def keys() -> Iterator[tuple[str, str]]:
    """Yield values of Sec-WebSocket-Key that are not 16 bytes in base64."""
    yield "empty", ""
    yield "15 bytes", base64.b64encode(bytes(15)).decode()
    yield "17 bytes", base64.b64encode(bytes(17)).decode()
    yield "no padding", "AAAAAAAAAAAAAAAAAAAAAA"
    yield "short padding", "AAAAAAAAAAAAAAAAAAAAAA="
    yield "a bad character", "AAAAAAAAAA!AAAAAAAAAAA=="
    yield "the other alphabet", "AAAAAAAAAA-_AAAAAAAAAA=="
    yield "inner spaces", "AAAAAAAAAA AAAAAAAAAAA=="
    yield "more behind it", "AAAAAAAAAAAAAAAAAAAAAA==, x"


def upgrades() -> Iterator[Case]:
    """Section C, but for what is policy."""
    yield Case("C1 no Upgrade", head(without=["Upgrade"]), 426, UPGRADE)
    yield Case("C1 plain HTTP", plain(b""), 426, UPGRADE)
    for value in ("notwebsocket", "websocketx", "h2c", "websocket/13"):
        yield Case(f"C2 Upgrade {value}", head("/", [("Upgrade", value)], without=["Upgrade"]), 426, UPGRADE)
    for value in ("notupgrade", "keep-alive", "upgradex", "up grade"):
        yield Case(f"C3 Connection {value}", head("/", [("Connection", value)], without=["Connection"]), 400)
    yield Case("C3 no Connection", head(without=["Connection"]), 400)
    case = [("connection", "Keep-Alive, UPGRADE"), ("upgrade", "WebSocket")]
    yield Case("C4 other cases and lists", head("/", case, without=["Upgrade", "Connection"]), 101)
    lists = [("Connection", "keep-alive"), ("Connection", "Upgrade"), ("Upgrade", "h2c, websocket")]
    yield Case("C4 lists on several lines", head("/", lists, without=["Upgrade", "Connection"]), 101)
    yield Case("C5 no key", head(without=["Sec-WebSocket-Key"]), 400)
    for name, key in keys():
        yield Case(f"C5 {name}", head("/", [("Sec-WebSocket-Key", key)], without=["Sec-WebSocket-Key"]), 400)
    yield Case("C6 two keys", field(b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), 400)
    yield Case("C7 no version", head(without=["Sec-WebSocket-Version"]), 400, VERSION)
    without = ["Sec-WebSocket-Version"]
    for version in ("0", "7", "8", "12", "14", "99", "256", "013", "13, 8"):
        yield Case(
            f"C8 version {version}", head("/", [("Sec-WebSocket-Version", version)], without=without), 426, VERSION
        )
    yield Case("C8 the version twice", field(b"Sec-WebSocket-Version: 13"), 426, VERSION)
    for version in ("", "x", "13.0", "-13", "0x0d", "13;", "١٣"):
        name = version.encode("ascii", "backslashreplace").decode()
        raw = b"Sec-WebSocket-Version: " + version.encode()
        data = head(without=without)[:-2] + raw + b"\r\n\r\n"
        yield Case(f"C8 malformed version {name!r}", data, 400, VERSION)
    yield Case("C8 spaces around the version", head("/", [("Sec-WebSocket-Version", " 13\t ")], without=without), 101)
    yield Case("C9 two Origins", head("/", [("Origin", "https://a.example")] * 2), 400)
    for offer in ("a b", "a,b c", "é", "a, a", "", ",", 'a"', "a;b", "a/b", "a, b, a"):
        raw = b"Sec-WebSocket-Protocol: " + offer.encode()
        data = head()[:-2] + raw + b"\r\n\r\n"
        name = offer.encode("ascii", "backslashreplace").decode()
        yield Case(f"C12 subprotocols {name!r}", data, 400, options={"protocols": ["a", "b"]})
    spaces = "b" + " " * 7900 + "x"
    yield Case("C13 subprotocols with 7900 spaces", head("/", [("Sec-WebSocket-Protocol", spaces)]), 400)
    for extension in (";;=", 'a; b="', ",", "", "a;", "a b", "a; b=c d", 'a; b="c d"', "a; =b", "é"):
        raw = b"Sec-WebSocket-Extensions: " + extension.encode()
        name = extension.encode("ascii", "backslashreplace").decode()
        yield Case(f"C15 extensions {name!r}", head()[:-2] + raw + b"\r\n\r\n", 400)
    for extension in ("constructor", "__class__", "x; y=z, permessage-bogus", "toString; __proto__"):
        yield Case(f"C16 extensions {extension!r}", head("/", [("Sec-WebSocket-Extensions", extension)]), 101)


PEOPLE = {"user": "secret", "müller": "pä:ss:", "": ""}
AUTH = {"auth": BasicAuth(PEOPLE, 'the "realm"')}
CHALLENGE = {"www-authenticate": r'Basic realm="the \"realm\"", charset="UTF-8"'}


def token(username: str, password: str, encoding: str = "utf-8") -> bytes:
    """Return the credentials of Basic."""
    return base64.b64encode(f"{username}:{password}".encode(encoding))


def credentials() -> Iterator[Case]:
    """Section K for Basic."""
    good = token("user", "secret")

    def whole(name: str, data: bytes, status: int) -> Case:
        wanted = CHALLENGE if status == 401 else {}
        return Case(name, data, status, wanted, options=AUTH, others=[("Authorization", f"Basic {good.decode()}")])

    def case(name: str, value: bytes, status: int) -> Case:
        return whole(name, field(b"Authorization: " + value), status)

    yield whole("K1 no credentials", head(), 401)
    yield whole("K1 no credentials for HEAD", plain(b"", b"HEAD"), 401)
    for scheme in ("Bearer abc", "Digest", "Negotiate", "Basically"):
        yield case(f"K1 {scheme}", scheme.encode(), 401)
    for scheme in (b"Basic ", b"basic ", b"BASIC ", b"bAsIc    "):
        yield case(f"K2 {scheme!r}", scheme + good, 101)
    for name, wrong in (
        ("junk", b"!" + good),
        ("junk inside", good[:4] + b"*" + good[4:]),
        ("a space inside", good[:4] + b" " + good[4:]),
        ("no padding", good.rstrip(b"=")),
        ("too much padding", good + b"=="),
        ("bits that mean nothing", good[:-2] + b"R="),
        ("the other alphabet", token("user", "\xff\xfe?>", "latin-1").replace(b"/", b"_").replace(b"+", b"-")),
        ("nothing", b""),
        ("padding alone", b"===="),
    ):
        yield case(f"K3 {name}", b"Basic " + wrong, 401)
    yield case("K4 no colon", b"Basic " + base64.b64encode(b"usersecret"), 401)
    yield case("K4 nothing but a colon, as known", b"Basic " + token("", ""), 101)
    yield case("K4 no password", b"Basic " + token("user", ""), 401)
    yield case("K4 no user name", b"Basic " + token("", "secret"), 401)
    yield case("K5 beyond ASCII", b"Basic " + token("müller", "pä:ss:"), 101)
    yield case("K4 without the last colon", b"Basic " + token("müller", "pä:ss"), 401)
    yield case("K5 another character", b"Basic " + token("müller", "pa:ss:"), 401)
    yield case("K5 latin-1", b"Basic " + token("müller", "pä:ss:", "latin-1"), 401)
    yield case("K5 8-bit bytes instead of base64", b"Basic " + "müller:pä:ss:".encode(), 401)
    for name, control in (("NUL", "\0"), ("LF", "\n"), ("DEL", "\x7f"), ("a C1 control", "\x85")):
        yield case(f"K6 {name} in a password", b"Basic " + token("user", "secret" + control), 401)
        yield case(f"K6 {name} in a user name", b"Basic " + token(control + "user", "secret"), 401)
    yield case("K7 two of them", b"Basic " + good + b"\r\nAuthorization: Basic " + good, 400)
    yield case("K8 8000 bytes", b"Basic " + token("user", "x" * 5900), 401)
    yield case("K8 10000 bytes", b"Basic " + token("user", "x" * 7500), 431)
    yield case("K15 a parameter twice", b"Digest a=1, a=1", 400)
    yield case("K15 an unterminated quote", b'Digest realm="x', 400)
    yield case("K15 two credentials", b"Bearer a, Bearer b", 400)


CASES = [*request_lines(), *fields(), *bodies(), *upgrades(), *credentials()]
