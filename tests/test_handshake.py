"""Does a server accept exactly the opening handshakes that RFC 6455 and its policy allow, and answer all others?

Rows C1 to C19 are named after the threat model's table; those that need a clock or a socket are tested elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measures import best_time

from wspy import handshake
from wspy.errors import HandshakeError, ResponseError
from wspy.extensions import Extension
from wspy.handshake import HEAD_STATUSES, Acceptance, HeadError, ServerHandshake
from wspy.headers import Headers

if TYPE_CHECKING:
    from wspy.extensions import Parameters
    from wspy.http11 import Request

CORE_H = Path(__file__).resolve().parent.parent / "wspy" / "_core" / "core.h"
# The sample of RFC 6455 §1.3.
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

GOOD = {
    b"Host": b"server.example.com",
    b"Upgrade": b"websocket",
    b"Connection": b"Upgrade",
    b"Sec-WebSocket-Key": KEY,
    b"Sec-WebSocket-Version": b"13",
}


def head(
    fields: dict[bytes, bytes | None] | None = None, more: bytes = b"", line: bytes = b"GET /chat HTTP/1.1"
) -> bytes:
    """Return the head of a good request, with some fields replaced, or left out for None, and more lines."""
    lines = [name + b": " + value for name, value in {**GOOD, **(fields or {})}.items() if value is not None]
    return b"\r\n".join([line, *lines]) + b"\r\n" + more + b"\r\n"


def accept(data: bytes, **policy: Any) -> Acceptance:
    server = ServerHandshake(**policy)
    return server.accept(server.read(data))


def refused(data: bytes, **policy: Any) -> HandshakeError:
    """Return how a handshake is refused, and check the answer that it gets."""
    server = ServerHandshake(**policy)
    with pytest.raises(HandshakeError) as info:
        server.accept(server.read(data))
    check_refusal(server.refuse(info.value), info.value.status, data)
    return info.value


def split(response: bytes) -> tuple[str, Headers, bytes]:
    """Take a response apart, strictly."""
    start, separator, body = response.partition(b"\r\n\r\n")
    assert separator
    line, *lines = start.decode("latin-1").split("\r\n")
    pairs = [entry.split(": ", 1) for entry in lines]
    return line, Headers((name, value) for name, value in pairs), body


def check_refusal(response: bytes, status: int, data: bytes = b"") -> None:
    """Check what holds for every refusal: framing, and a fixed body."""
    line, headers, body = split(response)
    assert line.startswith(f"HTTP/1.1 {status} ")
    assert headers["Connection"] == ("upgrade, close" if "Upgrade" in headers else "close")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert body.startswith(str(status).encode())
    assert body.endswith(b"\n")
    assert headers.get_all("Content-Length") == [str(len(body))]
    if status == 426:
        assert headers["Upgrade"] == "websocket"
        assert headers["Sec-WebSocket-Version"] == "13"
    for word in re.findall(rb"[\w-]{12,}", data):
        assert word in (b"Sec-WebSocket-Version", b"Content-Length") or word not in response


# RFC 6455 §4.2.2: the answer


def test_c19_the_answer_to_the_sample_of_rfc_6455_1_3() -> None:
    assert accept(head()) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + ACCEPT + b"\r\n\r\n",
        None,
        None,
    )


def test_c19_the_example_of_rfc_6455_1_2() -> None:
    fields = {b"Origin": b"http://example.com", b"Sec-WebSocket-Protocol": b"chat, superchat"}
    acceptance = accept(head(fields), protocols=["chat"], trusted_origins=["http://example.com"])
    line, headers, body = split(acceptance.response)
    assert line == "HTTP/1.1 101 Switching Protocols"
    assert dict(headers) == {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": ACCEPT.decode(),
        "Sec-WebSocket-Protocol": "chat",
    }
    assert body == b""
    assert acceptance.subprotocol == "chat"


@given(st.binary(min_size=16, max_size=16))
def test_4_2_2_item_5_the_accept_value_belongs_to_the_key(octets: bytes) -> None:
    key = base64.b64encode(octets)
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()  # noqa: S324 - RFC 6455 §4.2.2
    _, headers, _ = split(accept(head({b"Sec-WebSocket-Key": key})).response)
    assert base64.b64decode(headers["Sec-WebSocket-Accept"]) == digest


def test_no_header_of_the_obsolete_drafts_is_sent() -> None:
    response = accept(head({b"Origin": b"http://a"}, b"Sec-WebSocket-Protocol: a\r\n"), protocols=["a"]).response
    assert b"Sec-WebSocket-Origin" not in response
    assert b"Sec-WebSocket-Location" not in response


def test_a_line_says_who_answers() -> None:
    server = ServerHandshake(server_header="wspy/1.0")
    assert split(server.accept(server.read(head())).response)[1]["Server"] == "wspy/1.0"
    assert split(server.refuse(HandshakeError(404, "")))[1]["Server"] == "wspy/1.0"
    assert b"Server" not in accept(head()).response


# Clients that nobody here wrote, as recorded.

CLIENTS = {
    "chromium": (
        b"GET /chat?room=1 HTTP/1.1\r\nHost: 127.0.0.1:39209\r\nConnection: Upgrade\r\nPragma: no-cache\r\n"
        b"Cache-Control: no-cache\r\n"
        b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
        b"HeadlessChrome/156.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\nOrigin: http://127.0.0.1:39209\r\n"
        b"Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\n"
        b"Cookie: session=0123456789abcdef\r\nSec-WebSocket-Key: 1x5MYF/AqN4lJZkH4FwLDQ==\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
        b"Sec-WebSocket-Protocol: chat, superchat\r\n\r\n"
    ),
    "firefox": (
        b"GET /chat HTTP/1.1\r\nHost: 127.0.0.1:39209\r\n"
        b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\nAccept: */*\r\n"
        b"Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nSec-WebSocket-Version: 13\r\n"
        b"Origin: http://127.0.0.1:39209\r\nSec-WebSocket-Protocol: chat\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Key: 1x5MYF/AqN4lJZkH4FwLDQ==\r\n"
        b"Connection: keep-alive, Upgrade\r\nSec-Fetch-Dest: empty\r\nSec-Fetch-Mode: websocket\r\n"
        b"Sec-Fetch-Site: same-origin\r\nPragma: no-cache\r\nCache-Control: no-cache\r\nUpgrade: websocket\r\n\r\n"
    ),
    "curl": (
        b"GET /chat HTTP/1.1\r\nHost: 127.0.0.1:33297\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n"
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ),
    "websockets": (
        b"GET /chat HTTP/1.1\r\nHost: 127.0.0.1:33297\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: QpwI0xqH6/do5/f8AwFD4Q==\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nSec-WebSocket-Protocol: chat\r\n"
        b"User-Agent: Python/3.11 websockets/17.4\r\n\r\n"
    ),
    "aiohttp": (
        b"GET /chat HTTP/1.1\r\nHost: 127.0.0.1:33297\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MxDqh/1EqBqjYvWMFmE2Rg==\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nAccept: */*\r\n"
        b"Accept-Encoding: gzip, deflate\r\nUser-Agent: Python/3.11 aiohttp/3.14.5\r\n\r\n"
    ),
    "ws": (
        b"GET /chat HTTP/1.1\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: XVL5ZOYfA5rmvgy23awyOA==\r\n"
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nSec-WebSocket-Protocol: chat\r\n"
        b"Host: 127.0.0.1:33297\r\n\r\n"
    ),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_heads_of_real_clients_are_accepted(name: str) -> None:
    acceptance = accept(
        CLIENTS[name], protocols=["chat"], locations=["/chat"], trusted_origins="same-origin", server_header="wspy"
    )
    assert acceptance.response.startswith(b"HTTP/1.1 101 ")
    assert acceptance.subprotocol == ("chat" if b"Protocol" in CLIENTS[name] else None)


# RFC 6455 §4.2.1: what a request must have

EXTENSIONS = b"Sec-WebSocket-Extensions"
PROTOCOL = b"Sec-WebSocket-Protocol"
VERSION = b"Sec-WebSocket-Version"
SEC_KEY = b"Sec-WebSocket-Key"

ROWS: list[tuple[str, bytes, int]] = [
    ("C1", head({b"Upgrade": None}), 426),
    ("C1-plain-http", head(dict.fromkeys(GOOD, None) | {b"Host": b"a"}), 426),
    ("C1-http-1.0", head(dict.fromkeys(GOOD, None), line=b"GET / HTTP/1.0"), 426),
    ("C2-notwebsocket", head({b"Upgrade": b"notwebsocket"}), 426),
    ("C2-websocketx", head({b"Upgrade": b"websocketx"}), 426),
    ("C2-version", head({b"Upgrade": b"websocket/13"}), 426),
    ("C2-h2c", head({b"Upgrade": b"h2c"}), 426),
    ("C2-empty", head({b"Upgrade": b""}), 426),
    ("C3-notupgrade", head({b"Connection": b"notupgrade"}), 400),
    ("C3-upgradex", head({b"Connection": b"upgrade-x, xupgrade"}), 400),
    ("C3-keep-alive", head({b"Connection": b"keep-alive"}), 400),
    ("C3-missing", head({b"Connection": None}), 400),
    ("C3-malformed", head({b"Connection": b"Upgrade;a"}), 400),
    ("C4", head({b"Connection": b"Keep-Alive, UPGRADE", b"Upgrade": b"WebSocket"}), 0),
    ("C4-names", head().replace(b"Connection", b"cONNECTION").replace(b"Upgrade:", b"upgrade:"), 0),
    ("C4-all-lower", head().lower().replace(b"get /chat http/1.1", b"GET / HTTP/1.1").replace(KEY.lower(), KEY), 0),
    ("C5-missing", head({SEC_KEY: None}), 400),
    ("C5-empty", head({SEC_KEY: b""}), 400),
    ("C5-15-octets", head({SEC_KEY: base64.b64encode(bytes(15))}), 400),
    ("C5-17-octets", head({SEC_KEY: base64.b64encode(bytes(17))}), 400),
    ("C5-18-octets", head({SEC_KEY: base64.b64encode(bytes(18))}), 400),
    ("C5-bad-character", head({SEC_KEY: KEY.replace(b"G", b"!")}), 400),
    ("C5-url-safe", head({SEC_KEY: KEY.replace(b"G", b"_")}), 400),
    ("C5-high", head({SEC_KEY: KEY.replace(b"G", b"\xe9")}), 400),
    ("C5-inner-space", head({SEC_KEY: KEY[:8] + b" " + KEY[8:]}), 400),
    ("C5-inner-space-same-length", head({SEC_KEY: KEY[:8] + b" " + KEY[9:]}), 400),
    ("C5-no-padding", head({SEC_KEY: KEY[:-2]}), 400),
    ("C5-short-padding", head({SEC_KEY: KEY[:-1]}), 400),
    ("C5-long-padding", head({SEC_KEY: KEY + b"="}), 400),
    ("C5-outer-space", head({SEC_KEY: b"\t " + KEY + b" \t"}), 0),
    ("C6", head(more=SEC_KEY + b": " + KEY + b"\r\n"), 400),
    ("C6-other-case", head(more=SEC_KEY.lower() + b": " + KEY + b"\r\n"), 400),
    ("C7", head({VERSION: None}), 400),
    *[
        (f"C8-{version.decode()}", head({VERSION: version}), 426)
        for version in (b"0", b"7", b"8", b"12", b"14", b"99", b"256", b"013", b"13, 8", b"13,13", b"1" * 8000)
    ],
    ("C8-twice", head(more=VERSION + b": 13\r\n"), 426),
    ("C8-twice-other", head(more=VERSION + b": 8\r\n"), 426),
    *[
        (f"C8-malformed-{version.decode('latin-1')}", head({VERSION: version}), 400)
        for version in (b"", b"x", b"13x", b"-13", b"+13", b"1 3", b"13;", b"13,", b",13", b"13.0", b"\xb2", b"0xd")
    ],
    ("C8-spaces", head({VERSION: b" \t13\t "}), 0),
    ("C9-two", head({b"Origin": b"http://a"}, b"Origin: http://a\r\n"), 400),
    ("C10", head({b"Origin": b"http://evil.example"}), 0),
    ("C11-no-list", head(), 0),
    ("C12-spaces", head({PROTOCOL: b"a b"}), 400),
    ("C12-non-ascii", head({PROTOCOL: "é".encode()}), 400),
    ("C12-latin-1", head({PROTOCOL: b"a, \xe9"}), 400),
    ("C12-duplicate", head({PROTOCOL: b"a, b, a"}), 400),
    ("C12-duplicate-in-two-lines", head({PROTOCOL: b"a"}, PROTOCOL + b": a\r\n"), 400),
    ("C12-empty", head({PROTOCOL: b""}), 400),
    ("C12-empty-elements-only", head({PROTOCOL: b", ,"}), 400),
    ("C12-quoted", head({PROTOCOL: b'"a"'}), 400),
    ("C12-separator", head({PROTOCOL: b"a/b"}), 400),
    ("C12-case-differs", head({PROTOCOL: b"a, A"}), 0),
    ("C12-empty-element", head({PROTOCOL: b"a,, b,"}), 0),
    ("C12-two-lines", head({PROTOCOL: b"a"}, PROTOCOL + b": b\r\n"), 0),
    ("C14", head({PROTOCOL: b"unknown"}), 0),
    ("C15-separators", head({EXTENSIONS: b";;="}), 400),
    ("C15-quote", head({EXTENSIONS: b'a; b="c'}), 400),
    ("C15-empty-element-only", head({EXTENSIONS: b","}), 400),
    ("C15-empty", head({EXTENSIONS: b""}), 400),
    ("C15-second-line", head({EXTENSIONS: b"a"}, EXTENSIONS + b": b;\r\n"), 400),
    ("C16", head({EXTENSIONS: b"constructor, __class__; __proto__=toString, permessage-deflate"}), 0),
    ("C16-two-lines", head({EXTENSIONS: b"a"}, EXTENSIONS + b": b; c\r\n"), 0),
    ("A8-plain", head({b"Upgrade": None}, line=b"POST / HTTP/1.1"), 405),
    ("A8-head", head({b"Upgrade": None}, line=b"HEAD / HTTP/1.1"), 405),
]


@pytest.mark.parametrize(("data", "status"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_row(data: bytes, status: int) -> None:
    if status:
        assert refused(data).status == status
    else:
        assert accept(data).response.startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("name", [name for name in GOOD if name != b"Host"])
def test_4_2_1_each_field_is_needed(name: bytes) -> None:
    assert refused(head({name: None})).status in (400, 426)


def test_4_2_1_item_1_http_1_1_or_higher() -> None:
    assert refused(head(line=b"GET / HTTP/1.0")).status == 426
    assert accept(head(line=b"GET / HTTP/1.2"))


def test_4_2_1_item_2_host() -> None:
    assert refused(head({b"Host": None})).status == 400


@pytest.mark.parametrize("version", [None, b"x", b"8"])
def test_c7_c8_the_answer_says_which_version_is_spoken(version: bytes | None) -> None:
    """RFC 6455 §4.2.2 item 4, §4.4."""
    server = ServerHandshake()
    with pytest.raises(HandshakeError) as info:
        server.accept(server.read(head({VERSION: version})))
    assert split(server.refuse(info.value))[1]["Sec-WebSocket-Version"] == "13"


def test_c5_bits_that_stand_for_nothing_do_not_matter() -> None:
    """RFC 6455 §4.2.1 item 5: 16 octets when decoded; RFC 4648 §3.5 lets a decoder ignore the rest."""
    assert accept(head({SEC_KEY: b"AAAAAAAAAAAAAAAAAAAAAB=="}))


@pytest.mark.parametrize("octet", range(256))
def test_c5_a_key_is_base64(octet: int) -> None:
    good = re.match(rb"[0-9A-Za-z+/]", bytes([octet]))
    data = head({SEC_KEY: b"A%cAAAAAAAAAAAAAAAAAAAA==" % octet})
    if good:
        assert accept(data)
    else:
        assert refused(data).status == 400


# Origins, RFC 6455 §10.2


def origin_status(origin: bytes | None, host: bytes = b"a", **policy: Any) -> int:
    data = head({b"Origin": origin, b"Host": host})
    try:
        accept(data, **policy)
    except HandshakeError as error:
        return error.status
    return 0


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (b"http://a", 0),
        (b"https://b:8443", 0),
        (b"http://c", 403),
        (b"null", 403),
        (b"", 403),
        (b"http://a:80", 403),
        (b"http://A", 403),
        (b"http://a/", 403),
        (b"http://a.evil", 403),
        (b"http://a, http://a", 403),
        (b"http://a http://a", 403),
        (b"https://a", 403),
        (b"same-origin", 403),
        (None, 0),
    ],
)
def test_c9_c11_an_allow_list(origin: bytes | None, status: int) -> None:
    assert origin_status(origin, trusted_origins=["http://a", "https://b:8443"]) == status


def test_c9_null_can_be_trusted() -> None:
    assert origin_status(b"null", trusted_origins=["null"]) == 0


@pytest.mark.parametrize("origin", [b"http://a", b"null", b"", b"http://evil", None])
def test_c10_without_a_list_every_origin_is_accepted(origin: bytes | None) -> None:
    assert origin_status(origin) == 0


@pytest.mark.parametrize(
    ("policy", "missing", "present"),
    [
        ({"require_origin": True}, 403, 0),
        ({"trusted_origins": ["http://a"], "require_origin": True}, 403, 0),
        ({"trusted_origins": ["http://a", None], "require_origin": True}, 0, 0),
        ({"trusted_origins": ["http://a", None]}, 0, 0),
        ({"trusted_origins": [None]}, 0, 403),
        ({"trusted_origins": [None], "require_origin": True}, 0, 403),
    ],
)
def test_c11_a_missing_origin(policy: dict[str, Any], missing: int, present: int) -> None:
    assert origin_status(None, **policy) == missing
    assert origin_status(b"http://a", **policy) == present


@pytest.mark.parametrize(
    ("origin", "status"),
    [(b"https://x.example.com", 0), (b"https://x.example.com.evil", 403), (b"http://x", 0), (b"xhttp://x", 403)],
)
def test_c9_a_pattern_matches_the_whole_origin(origin: bytes, status: int) -> None:
    patterns = [re.compile(r"https://\w+\.example\.com"), re.compile("http://x")]
    assert origin_status(origin, trusted_origins=patterns) == status


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        (b"http://a", b"a", 0),
        (b"http://a", b"A", 0),
        (b"http://a", b"a:80", 0),
        (b"https://a", b"a", 0),
        (b"https://a", b"a:443", 0),
        (b"http://a:8080", b"a:8080", 0),
        (b"http://[::1]:8080", b"[0::1]:8080", 0),
        (b"http://b", b"a", 403),
        (b"http://a", b"a:8080", 403),
        (b"http://a:8080", b"a", 403),
        (b"https://a", b"a:80", 403),
        (b"http://a.evil", b"a", 403),
        (b"http://a@b", b"b", 403),
        (b"http://a/", b"a", 403),
        (b"http://", b"a", 403),
        (b"null", b"a", 403),
        (b"", b"a", 403),
        (b"file://", b"a", 403),
        (b"ftp://a", b"a", 403),
        (b"a", b"a", 403),
        (b"HTTP://a", b"a", 403),
        (b"same-origin", b"a", 403),
        (None, b"a", 0),
    ],
)
def test_c10_same_origin(origin: bytes | None, host: bytes, status: int) -> None:
    assert origin_status(origin, host, trusted_origins="same-origin") == status
    assert origin_status(origin, host, trusted_origins=["same-origin", "http://other"]) == status
    assert origin_status(b"http://other", host, trusted_origins=["same-origin", "http://other"]) == 0


def test_trusted_origins_are_checked_early() -> None:
    for wrong in ("http://a", [b"http://a"], [1], [re.compile(b"http://a")]):
        with pytest.raises(TypeError, match=r"^trusted_origins"):
            ServerHandshake(trusted_origins=wrong)


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "",
        "a",
        "a:8080",
        "//a",
        "http://a/",
        "http://a/chat",
        "http://a?b",
        "http://a#b",
        "http://user@a",
        "http://a, http://b",
        "http://a\n",
        "http://\xe4",
        "https://*.example.com",
        "HTTP://a",
        "http://A",
        "http://a:80",
        "https://a:443",
    ],
)
def test_c9_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match=r"^trusted_origins: ") as caught:
        ServerHandshake(trusted_origins=["https://good", origin])
    assert repr(origin) in str(caught.value)
    assert "write scheme://host[:port]" in str(caught.value)
    assert "empty collection for all" in str(caught.value)


@pytest.mark.parametrize(
    "origin", ["http://a:443", "https://[::1]:8443", "chrome-extension://abcdef", "capacitor://localhost", "file://"]
)
def test_c9_whatever_a_browser_sends_can_be_trusted(origin: str) -> None:
    assert origin_status(origin.encode(), trusted_origins=[origin]) == 0
    assert origin_status(b"http://other", trusted_origins=[origin]) == 403


def test_c9_an_untrusted_origin_is_told_to_the_log_alone() -> None:
    data = head({b"Origin": b"http://evil\xff" + b"x" * 200, b"Host": b"a"})
    error = refused(data, trusted_origins=["http://a"])
    assert error.message == "the origin is not trusted: 'http://evil\\xff" + "x" * 84
    assert b"evil" not in ServerHandshake().refuse(error, data)


# Subprotocols, RFC 6455 §4.2.2 /subprotocol/


@pytest.mark.parametrize(
    ("protocols", "offered", "chosen"),
    [
        (["a", "b"], b"b, a", "b"),
        (["a", "b"], b"c, a", "a"),
        (["a", "b"], b"c", None),
        (["a"], b"A", None),
        (["a"], None, None),
        ([], b"a", None),
    ],
)
def test_the_first_of_the_client_that_the_server_knows_is_chosen(
    protocols: list[str], offered: bytes | None, chosen: str | None
) -> None:
    acceptance = accept(head({PROTOCOL: offered}), protocols=protocols)
    assert acceptance.subprotocol == chosen
    assert split(acceptance.response)[1].get(PROTOCOL.decode()) == chosen


def test_c12_two_lines_are_one_list() -> None:
    """RFC 6455 §11.3.4."""
    assert accept(head({PROTOCOL: b"x"}, PROTOCOL + b": b, a\r\n"), protocols=["a", "b"]).subprotocol == "b"


@pytest.mark.parametrize("offered", [None, b"c"])
def test_c14_a_subprotocol_may_be_required(offered: bytes | None) -> None:
    assert refused(head({PROTOCOL: offered}), protocols=["a"], require_protocol=True).status == 400
    assert accept(head({PROTOCOL: b"a"}), protocols=["a"], require_protocol=True).subprotocol == "a"


@pytest.mark.parametrize("protocols", [[""], ["a b"], ["a\r\nb"], ["a,b"], ["\xe9"], ["a", "a"], ["a", ""]])
def test_l3_subprotocols_of_the_server_are_tokens(protocols: list[str]) -> None:
    with pytest.raises(ValueError, match="subprotocol"):
        ServerHandshake(protocols=protocols)


@pytest.mark.parametrize("name", ["protocols", "locations"])
def test_what_is_no_collection_of_str(name: str) -> None:
    policy: dict[str, Any] = {name: [5]}
    with pytest.raises(TypeError, match=f"^{name} must be a collection of str, not with one of type int"):
        ServerHandshake(**policy)


@pytest.mark.parametrize("name", ["protocols", "locations", "trusted_origins"])
@pytest.mark.parametrize("value", ["/chat", 5, None])
def test_what_is_no_collection(name: str, value: Any) -> None:
    policy: dict[str, Any] = {name: value}
    with pytest.raises(TypeError, match=f"^{name} must be a collection"):
        ServerHandshake(**policy)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("server_header", 5, TypeError),
        ("server_header", "a\r\nb", ValueError),
        ("extra_headers", {"X": 5}, TypeError),
        ("extra_headers", 5, TypeError),
        ("extra_headers", {"X": "a\r\nb"}, ValueError),
        ("extra_headers", {"Upgrade": "h2c"}, ValueError),
    ],
)
def test_whose_headers_are_wrong_is_said(name: str, value: Any, error: type[Exception]) -> None:
    policy: dict[str, Any] = {name: value}
    with pytest.raises(error, match=f"^{name}: "):
        ServerHandshake(**policy)


MALICE = {
    "C13": (PROTOCOL, b"b" + b" " * 7900 + b"x"),
    "commas": (PROTOCOL, b"," * 8000),
    "tokens": (PROTOCOL, b",".join(b"%x" % n for n in range(1600))),
    "extension-spaces": (EXTENSIONS, b"b" + b" " * 7900 + b"x"),
    "extension-quotes": (EXTENSIONS, b'a;b="' + b"\\" * 7900),
    "extension-parameters": (EXTENSIONS, b"a" + b";b=c" * 1900),
    "versions": (VERSION, b"1," * 4000),
    "version-spaces": (VERSION, b"1 ," + b" " * 7900 + b"x"),
    "version-digits": (VERSION, b"1" * 8000 + b"x"),
    "key": (SEC_KEY, b"A" * 8000),
    "origin": (b"Origin", b"http://" + b"a" * 7900 + b"@"),
    "upgrade": (b"Upgrade", b", " * 4000),
}


@pytest.mark.parametrize("name", MALICE)
def test_c13_lists_are_judged_in_less_than_5_ms(name: str) -> None:
    server = ServerHandshake(trusted_origins="same-origin", protocols=["a"])
    field, value = MALICE[name]
    data = head({field: value})

    def judge() -> None:
        handshake._check_extensions.cache_clear()
        try:
            server.accept(server.read(data))
        except HandshakeError:
            pass

    assert best_time(judge) < 0.005


# Extensions


class Numbered(Extension):
    names: ClassVar = ("x-numbered",)
    defaults: ClassVar = {"number": 0}
    asked: ClassVar[list[object]] = []

    def accept(self, offered: Parameters) -> Parameters | None:
        self.asked.append(offered)
        return super().accept(offered)


@pytest.mark.parametrize(
    ("offered", "answered"),
    [
        (b"x-numbered", "x-numbered"),
        (b"x-other, x-numbered; number=4", "x-numbered; number=4"),
        (b'x-numbered; number=x, x-numbered;number="5"', "x-numbered; number=5"),
        (b"x-other", None),
        (b"x-numbered; other", None),
        (None, None),
    ],
)
def test_what_is_agreed_upon_is_answered(offered: bytes | None, answered: str | None) -> None:
    acceptance = accept(head({b"Sec-WebSocket-Extensions": offered}), extensions=[Numbered])
    assert split(acceptance.response)[1].get("sec-websocket-extensions") == answered
    assert (acceptance.extensions.answer if acceptance.extensions else None) == answered


def test_two_fields_are_one_list() -> None:
    more = b"Sec-WebSocket-Extensions: x-other\r\nSec-WebSocket-Extensions: x-numbered\r\n"
    assert accept(head(more=more), extensions=[Numbered()]).extensions


def test_an_answer_is_kept_for_the_next_with_the_same_offer() -> None:
    server = ServerHandshake(extensions=[Numbered])
    request = server.read(head({b"Sec-WebSocket-Extensions": b"x-numbered; number=7"}))
    Numbered.asked.clear()
    first, second = server.accept(request), server.accept(request)
    assert first.extensions is second.extensions
    assert Numbered.asked == [[("number", "7")]]


@pytest.mark.parametrize("value", [b"", b";", b"x-numbered;;", b"x-numbered; number=", b'x-numbered; number="a b"'])
def test_c15_what_is_malformed_is_refused_before_extensions_are_asked(value: bytes) -> None:
    Numbered.asked.clear()
    assert refused(head({b"Sec-WebSocket-Extensions": value}), extensions=[Numbered]).status == 400
    assert not Numbered.asked


@pytest.mark.parametrize("extensions", [[Numbered, Numbered()], ["x-numbered"], [object], "x-numbered", 5])
def test_what_is_no_collection_of_extensions(extensions: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="extensions"):
        ServerHandshake(extensions=extensions)


# Locations


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/chat", 0),
        (b"/chat/", 0),
        (b"/chat?a=b", 0),
        (b"/chat/?a=/", 0),
        (b"http://server.example.com/chat?x", 0),
        (b"/", 0),
        (b"/?a", 0),
        (b"http://server.example.com", 0),
        (b"/news", 0),
        (b"/chat//", 404),
        (b"/chatx", 404),
        (b"/chat/x", 404),
        (b"/CHAT", 404),
        (b"/ch%61t", 404),
        (b"//", 404),
        (b"/unknown", 404),
    ],
)
def test_c17_locations(target: bytes, status: int) -> None:
    data = head(line=b"GET " + target + b" HTTP/1.1")
    if status:
        assert refused(data, locations=["/chat", "/", "/news/"]).status == status
    else:
        assert accept(data, locations=["/chat", "/", "/news/"])
    assert accept(data)


def test_c17_a_location_that_is_not_served_is_404_before_all_else() -> None:
    """C1 answers 426 on a path that is one of WebSocket only."""
    assert refused(head({b"Upgrade": None}, line=b"GET /b HTTP/1.1"), locations=["/a"]).status == 404
    assert refused(head({b"Upgrade": None}, line=b"GET /a HTTP/1.1"), locations=["/a"]).status == 426


@pytest.mark.parametrize("location", ["", "chat", "/a?b", "/a#b", "/a b", "/\xe9", "/a\n", "http://a/"])
def test_a_location_that_can_never_match_is_an_error(location: str) -> None:
    with pytest.raises(ValueError, match="location"):
        ServerHandshake(locations=[location])


# Extra headers


@pytest.mark.parametrize(
    "extra",
    [{"X-A": "b", "Set-Cookie": "c"}, [("X-A", "b"), ("Set-Cookie", "c")], Headers({"X-A": "b", "Set-Cookie": "c"})],
)
def test_extra_headers(extra: Any) -> None:
    for given_headers in (extra, lambda request: extra):
        _, headers, _ = split(accept(head(), extra_headers=given_headers, server_header="wspy").response)
        assert list(headers.items())[3:] == [("Server", "wspy"), ("X-A", "b"), ("Set-Cookie", "c")]


def test_extra_headers_for_a_request() -> None:
    def extra(request: Request) -> list[tuple[str, str]]:
        return [("X-Room", str(len(request.query["room"])))]

    data = head(line=b"GET /chat?room=abc HTTP/1.1")
    assert split(accept(data, extra_headers=extra).response)[1]["x-room"] == "3"


def test_an_extra_server_header_is_the_only_one() -> None:
    for extra in ({"server": "mine"}, lambda request: {"server": "mine"}):
        _, headers, _ = split(accept(head(), extra_headers=extra, server_header="wspy").response)
        assert headers.get_all("Server") == ["mine"]


@pytest.mark.parametrize(
    "field",
    [("A\r\n", "b"), ("A", "b\r\nC: d"), ("A", "b\x00"), ("A b", "c"), ("", "b"), ("A", "\u0100"), ("A", "b\x7f")]
    + [(name, "x") for name in ("Connection", "UPGRADE", "Content-Length", "Transfer-Encoding", "sec-websocket-accept")]
    + [("Sec-WebSocket-Protocol", "x"), ("Sec-WebSocket-Extensions", "x")],
)
def test_l1_c23_extra_headers_that_must_not_be_sent(field: tuple[str, str]) -> None:
    with pytest.raises(ValueError):
        ServerHandshake(extra_headers=[field])
    server = ServerHandshake(extra_headers=lambda request: [field])
    request = server.read(head())
    with pytest.raises(ValueError):
        server.accept(request)


def test_c23_what_a_function_for_headers_raises_is_passed_on() -> None:
    def extra(request: Request) -> list[tuple[str, str]]:
        raise LookupError

    with pytest.raises(LookupError):
        accept(head(), extra_headers=extra)


@pytest.mark.parametrize("value", ["wspy\r\nA: b", "\x00", "\u0100"])
def test_l1_a_server_header_that_must_not_be_sent(value: str) -> None:
    with pytest.raises(ValueError):
        ServerHandshake(server_header=value)


# Refusals


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413, 414, 417, 426, 431, 500, 501, 503, 505])
def test_l6_a_refusal_is_complete_and_fixed(status: int) -> None:
    server = ServerHandshake()
    response = server.refuse(HandshakeError(status, "a message for the log"))
    check_refusal(response, status)
    assert b"log" not in response


def test_the_answer_of_another_server_is_not_passed_on() -> None:
    """It may have cookies that were meant for this side, and any status."""
    for status in (0, 101, 200, 302, 404):
        with pytest.raises(ValueError, match="another server"):
            ServerHandshake().refuse(ResponseError("no", status, "", [("Set-Cookie", "a=b")]))


def test_a_refusal_has_what_its_status_demands() -> None:
    server = ServerHandshake()
    assert split(server.refuse(HandshakeError(405, "")))[1]["Allow"] == "GET"
    assert split(server.refuse(HandshakeError(426, "")))[1]["Upgrade"] == "websocket"


def test_c18_a_full_server_says_when_to_come_back() -> None:
    server = ServerHandshake()
    assert int(split(server.refuse(HandshakeError(503, "")))[1]["Retry-After"]) > 0
    error = HandshakeError(503, "", (("retry-after", "60"),))
    assert split(server.refuse(error))[1].get_all("Retry-After") == ["60"]


def test_headers_of_an_error_are_sent_once() -> None:
    error = HandshakeError(405, "", (("Allow", "GET, HEAD"), ("X-A", "b"), ("X-A", "c")))
    headers = split(ServerHandshake().refuse(error))[1]
    assert headers.get_all("Allow") == ["GET, HEAD"]
    assert headers.get_all("X-A") == ["b", "c"]


def test_an_unusual_status_of_the_application() -> None:
    check_refusal(ServerHandshake().refuse(HandshakeError(499, "")), 499)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", 101),
        ("status", 999),
        ("headers", (("A", "b\r\nc"),)),
        ("headers", (("A b", "c"),)),
        ("headers", (("Content-Length", "0"),)),
    ],
)
def test_c23_an_error_that_cannot_be_sent_is_no_answer(name: str, value: object) -> None:
    error = HandshakeError(403, "")
    setattr(error, name, value)
    with pytest.raises(ValueError):
        ServerHandshake().refuse(error)


@pytest.mark.parametrize("start", [b"", b"\r\n", b"\r\n\r\n"])
def test_b27_a_refused_head_request_gets_no_content(start: bytes) -> None:
    server = ServerHandshake()
    data = start + head({b"Upgrade": None}, line=b"HEAD / HTTP/1.1")
    with pytest.raises(HandshakeError) as info:
        server.accept(server.read(data))
    full, bare = server.refuse(info.value), server.refuse(info.value, data)
    assert bare.endswith(b"\r\n\r\n")
    assert full.startswith(bare)
    assert full != bare
    assert server.refuse(info.value, b"HEADY / HTTP/1.1\r\n\r\n") == full


# What the core refuses


def test_the_errors_of_the_core_have_the_numbers_of_its_header() -> None:
    found = re.findall(r"WSPY_ERROR_HEAD_(\w+) = -(\d+)", CORE_H.read_text(encoding="utf-8"))
    assert {name: int(number) for name, number in found} == {error.name: error.value for error in HeadError}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HeadError.SYNTAX, 400),
        (HeadError.METHOD, 501),
        (HeadError.LINE, 414),
        (HeadError.FIELD, 431),
        (HeadError.FIELD_COUNT, 431),
        (HeadError.SIZE, 431),
        (HeadError.TIMEOUT, 408),
    ],
)
def test_what_the_core_refuses_is_answered(error: HeadError, status: int) -> None:
    """A4 to A6, A21, B10 to B13."""
    check_refusal(ServerHandshake().refuse_core(int(error)), status)
    assert HEAD_STATUSES[error] == status


@pytest.mark.parametrize("number", [0, 16, 55, 66, -48])
def test_no_answer_is_due_for_other_errors_of_the_core(number: int) -> None:
    with pytest.raises(KeyError):
        ServerHandshake().refuse_core(number)


# Limits


@pytest.mark.parametrize(
    ("name", "status"), [("max_line", 414), ("max_header_line", 431), ("max_head", 431), ("max_headers", 431)]
)
def test_a5_b10_b12_b13_limits_are_passed_down(name: str, status: int) -> None:
    limits: dict[str, Any] = {name: 3}
    with pytest.raises(HandshakeError) as info:
        ServerHandshake(**limits).read(head())
    assert info.value.status == status


@pytest.mark.parametrize("name", ["max_line", "max_header_line", "max_head", "max_headers"])
def test_a_limit_of_nothing_is_an_error(name: str) -> None:
    limits: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"^{name} must be from 1 to"):
        ServerHandshake(**limits)


# Every header malformed in every place


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIENTS)
def test_every_octet_replaced_is_accepted_or_refused(name: str) -> None:
    """An answer is a complete 101 or a refusal, and nothing else is ever raised."""
    server = ServerHandshake(protocols=["chat"], trusted_origins="same-origin", locations=["/chat"])
    data = CLIENTS[name]
    for place in range(len(data)):
        for wrong in (b"", b"\x00", b" ", b",", b'"', b"\r", b"\n", b"\r\n", b":", b"\xff"):
            changed = data[:place] + wrong + data[place + 1 :]
            try:
                response = server.accept(server.read(changed)).response
            except HandshakeError as error:
                check_refusal(server.refuse(error, changed), error.status)
            else:
                assert response.startswith(b"HTTP/1.1 101 ")
                assert response.count(b"\r\n\r\n") == 1


@given(
    st.sampled_from(sorted({*GOOD, b"Origin", PROTOCOL, EXTENSIONS, b"Expect", b"Content-Length"})),
    st.binary(max_size=40),
)
def test_any_value_of_any_field_is_accepted_or_refused(name: bytes, value: bytes) -> None:
    server = ServerHandshake(protocols=["a"], trusted_origins="same-origin")
    for data in (head({name: value}), head(more=name + b":" + value + b"\r\n")):
        try:
            response = server.accept(server.read(data)).response
        except HandshakeError as error:
            check_refusal(server.refuse(error, b""), error.status)
        else:
            assert re.fullmatch(
                rb"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                rb"Sec-WebSocket-Accept: [0-9A-Za-z+/]{27}=(\r\nSec-WebSocket-Protocol: a)?\r\n\r\n",
                response,
            )
