"""Does a client ask as RFC 6455 §4.1 has it, and take no answer but the right one?

Rows M1 to M5, M7, L4 and K17 are named after the threat model's table; those that need a clock or a socket are tested
elsewhere.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import re
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measures import best_time

from wspy.client_handshake import MAX_BODY, REDIRECTS, ClientHandshake
from wspy.deflate import DeflateFrame, DeflateMessage
from wspy.errors import HandshakeError, ResponseError
from wspy.handshake import ServerHandshake
from wspy.headers import Headers
from wspy.http11 import MAX_HEAD, MAX_HEADER_LINE, MAX_HEADERS, MAX_LINE
from wspy.uri import URI, parse_uri
from wspy.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

URI_A = parse_uri("ws://a/b?c")
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
GOOD = {
    b"Upgrade": b"websocket",
    b"Connection": b"Upgrade",
    b"Sec-WebSocket-Accept": b"",  # filled in for each client
}
LINE = b"HTTP/1.1 101 Switching Protocols"


def handshake(**arguments: Any) -> ClientHandshake:
    return ClientHandshake(URI_A, **arguments)


def parse(request: bytes) -> tuple[bytes, list[tuple[str, str]]]:
    """Take a request apart, strictly: its line, and its fields."""
    start, end, more = request.partition(b"\r\n\r\n")
    assert end
    assert not more
    line, *lines = start.split(b"\r\n")
    return line, [tuple(entry.decode("latin-1").split(": ", 1)) for entry in lines]  # type: ignore[misc]


def fields_of(client: ClientHandshake) -> Headers:
    return Headers(parse(client.request)[1])


def accept_of(client: ClientHandshake) -> bytes:
    """Return the accept value of RFC 6455 §4.2.2, computed anew."""
    key = fields_of(client)["Sec-WebSocket-Key"].encode()
    return base64.b64encode(hashlib.sha1(key + GUID).digest())  # noqa: S324 - RFC 6455 §4.2.2


def answer(
    client: ClientHandshake,
    fields: dict[bytes, bytes | None] | None = None,
    more: bytes = b"",
    line: bytes = LINE,
) -> bytes:
    """Return the right answer, with some fields replaced, or left out for None, and more lines."""
    right = {**GOOD, b"Sec-WebSocket-Accept": accept_of(client), **(fields or {})}
    lines = [name + b": " + value for name, value in right.items() if value is not None]
    return b"\r\n".join([line, *lines]) + b"\r\n" + more + b"\r\n"


# How bytes arrive: each way has to come to the same end.


def pieces(data: bytes, way: int) -> Iterator[bytes]:
    """Yield data byte by byte for way -1, else in two, the second one of which may be empty."""
    if way < 0:
        yield from (data[place : place + 1] for place in range(len(data)))
    else:
        yield data[:way]
        yield data[way:]


def drive(client: ClientHandshake, data: bytes, way: int) -> Any:
    """Feed an answer and then EOF; return what came of it: subprotocol and frames, or an error's attributes.

    An accept value is left out of the headers: each client has another one.
    """
    arriving = pieces(data, way)
    try:
        for piece in arriving:
            if client.feed(piece):
                return client.subprotocol, client.rest + b"".join(arriving)
        if client.response is None:
            client.feed_eof()
    except ResponseError as error:
        accept = accept_of(client).decode()
        headers = Headers((name, value) for name, value in error.headers.items() if value != accept)
        return {**vars(error), "headers": headers}
    pytest.fail("nothing came of it")


def judge(make: Callable[[ClientHandshake], bytes], *, splits: int | None = None, **arguments: Any) -> Any:
    """Feed an answer whole, byte by byte and at every split, or at some, each time to a new client."""
    size = len(make(handshake(**arguments)))
    step = 1 if splits is None else max(1, size // splits)
    outcomes = []
    for way in (-1, *range(0, size + 1, step)):
        client = handshake(**arguments)
        outcomes.append(drive(client, make(client), way))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    return outcomes[0]


def refused(make: Callable[[ClientHandshake], bytes] | bytes, **arguments: Any) -> dict[str, Any]:
    """Return the attributes of the error that an answer raises; its message has nothing of the answer."""
    found = judge(make if callable(make) else lambda _: make, **arguments)
    assert isinstance(found, dict), found
    assert re.fullmatch(r"[ -~§]+", found["message"])
    return found


# RFC 6455 §4.1: the request


def test_4_1_the_request() -> None:
    client = ClientHandshake(parse_uri("ws://server.example.com/chat?a=b"))
    line, fields = parse(client.request)
    key = fields_of(client)["Sec-WebSocket-Key"]
    assert line == b"GET /chat?a=b HTTP/1.1"
    assert fields == [
        ("Host", "server.example.com"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", key),
        ("Sec-WebSocket-Version", "13"),
        ("User-Agent", f"wspy/{__version__}"),
    ]


def test_4_1_the_request_with_everything() -> None:
    client = ClientHandshake(
        parse_uri("wss://user:secret@[::1]:81"),
        origin="https://example.com",
        protocols=["superchat", "chat"],
        extra_headers=[("Cookie", "a=b"), ("X-A", "\xe9"), ("X-A", "c")],
        user_agent="me",
    )
    line, fields = parse(client.request)
    assert line == b"GET / HTTP/1.1"
    assert [field for field in fields if field[0] != "Sec-WebSocket-Key"] == [
        ("Host", "[::1]:81"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Origin", "https://example.com"),
        ("Sec-WebSocket-Protocol", "superchat, chat"),
        ("User-Agent", "me"),
        ("Cookie", "a=b"),
        ("X-A", "\xe9"),
        ("X-A", "c"),
    ]


def test_4_1_item_7_each_key_is_new_and_has_16_octets() -> None:
    keys = {fields_of(handshake())["Sec-WebSocket-Key"] for _ in range(100)}
    assert len(keys) == 100
    assert all(len(base64.b64decode(key, validate=True)) == 16 for key in keys)
    # every octet takes every value sooner or later: none is fixed
    assert all(len({base64.b64decode(key)[place] for key in keys}) > 50 for place in range(16))


@pytest.mark.parametrize("fields", [{"Cookie": "a"}, Headers({"Cookie": "a"}), [("Cookie", "a")], (("Cookie", "a"),)])
def test_extra_headers_are_given_as_everywhere(fields: Any) -> None:
    assert fields_of(handshake(extra_headers=fields))["cookie"] == "a"


@pytest.mark.parametrize("name", ["Host", "hOST"])
def test_host_may_be_another(name: str) -> None:
    client = handshake(extra_headers={name: "other:81", "A": "b"})
    assert fields_of(client).get_all("host") == ["other:81"]
    assert parse(client.request)[1][0] == ("Host", "other:81")


@pytest.mark.parametrize("value", ["", "u@a", "a/b", "a b", "a:0", "a:65536", "[::1", "a, a", "a\xe9", "a#b"])
def test_l4_another_host_has_to_be_one(value: str) -> None:
    with pytest.raises(ValueError, match=r"^Host can't be sent: the (host|port|IPv6)"):
        handshake(extra_headers={"Host": value})
    with pytest.raises(ValueError, match=r"^Host"):
        handshake(extra_headers=[("Host", "a"), ("Host", "a")])


def test_who_asks_may_be_another() -> None:
    assert fields_of(handshake(user_agent=None)).get_all("user-agent") == []
    assert fields_of(handshake(user_agent="me")).get_all("user-agent") == ["me"]
    assert fields_of(handshake(extra_headers={"user-agent": "you"})).get_all("user-agent") == ["you"]
    assert fields_of(handshake(user_agent="me", extra_headers={"User-Agent": ""})).get_all("user-agent") == [""]


OWN = [
    *("Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Protocol", "Origin"),
    *("Sec-WebSocket-Extensions", "Sec-WebSocket-Accept", "Content-Length", "Transfer-Encoding"),
]


@pytest.mark.parametrize("name", OWN)
def test_what_the_handshake_writes_is_not_for_others(name: str) -> None:
    for spelt in (name, name.lower(), name.upper()):
        with pytest.raises(ValueError, match=f"^extra_headers: {spelt} is a field that the handshake itself writes"):
            handshake(extra_headers={"A": "b", spelt: "0"})


CONTROLS = [chr(code) for code in [*range(9), *range(10, 0x20), 0x7F]]


@pytest.mark.parametrize("character", [*CONTROLS, "\u0100", "\r\nA: b"], ids=ascii)
def test_l4_nothing_gets_into_the_request(character: str) -> None:
    value = f"a{character}b"
    for arguments in (
        {"origin": value},
        {"protocols": [value]},
        {"extra_headers": {"A": value}},
        {"extra_headers": {value: "a"}},
        {"extra_headers": {"Host": value}},
        {"user_agent": value},
    ):
        with pytest.raises(ValueError, match=r"origin|protocols|extra_headers|Host|user_agent"):
            handshake(**arguments)
    for uri in (URI_A._replace(resource=f"/{value}"), URI_A._replace(host=value)):
        with pytest.raises(ValueError, match=r"URI|Host"):
            ClientHandshake(uri)


@pytest.mark.parametrize("resource", ["", "b", "/b c", "/b#c", "/\xe9", "/b\t", "*", "ws://a/b"])
def test_l4_a_resource_that_parse_uri_did_not_make(resource: str) -> None:
    with pytest.raises(ValueError, match="begins with /"):
        ClientHandshake(URI_A._replace(resource=resource))


@pytest.mark.parametrize("origin", ["", " ", "a b", "https://a, https://b", "é", "a\t"])
def test_l4_an_origin_is_visible_ascii(origin: str) -> None:
    with pytest.raises(ValueError, match=r"^origin must be visible ASCII"):
        handshake(origin=origin)
    assert fields_of(handshake(origin="null"))["origin"] == "null"


@pytest.mark.parametrize("protocols", [[""], ["a b"], ["a,b"], ["é"], ["a", "a"], ["a\r\nb"], ['"a"']])
def test_4_1_item_10_protocols_are_different_tokens(protocols: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^protocols: "):
        handshake(protocols=protocols)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"uri": "ws://a"}, "uri must be a URI, not of type str: parse_uri"),
        ({"uri": (False, "a", 80, "/", None, None)}, "uri must be a URI, not of type tuple"),
        ({"origin": b"a"}, "origin must be a str or None, not of type bytes"),
        ({"protocols": "chat"}, "protocols must be a collection of str, not one str"),
        ({"protocols": [b"chat"]}, "protocols must be a collection of str"),
        ({"protocols": 5}, "protocols must be a collection"),
        ({"extra_headers": "A: b"}, "extra_headers: headers are"),
        ({"extra_headers": {"A": 5}}, "extra_headers: name and value"),
        ({"user_agent": 5}, "user_agent: name and value"),
        ({"max_line": None}, "max_line must be an int"),
        ({"max_body": None}, "max_body must be an int"),
    ],
)
def test_arguments_of_another_type(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        ClientHandshake(**{"uri": URI_A, **arguments})


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("max_line", 1, 256 << 10),
        ("max_header_line", 1, 256 << 10),
        ("max_head", 1, 256 << 10),
        ("max_headers", 1, 65535),
        ("max_body", 0, 1 << 30),
    ],
)
def test_limits_of_limits(name: str, least: int, most: int) -> None:
    for good in (least, most):
        handshake(**{name: good})
    for bad in (least - 1, most + 1):
        with pytest.raises(ValueError, match=f"^{name} must be from {least} to {most}, not {bad}"):
            handshake(**{name: bad})


def test_k17_no_credentials_are_in_the_request() -> None:
    assert b"s3cret" not in ClientHandshake(parse_uri("ws://s3cret:s3cret@a/")).request


# RFC 6455 §4.1: the answer


def test_4_1_the_right_answer() -> None:
    client = handshake()
    assert client.response is None
    assert client.feed(answer(client, more=b"Set-Cookie: a=b\r\n"))
    assert client.response is not None
    assert client.response[:3] == (101, "Switching Protocols", "1.1")
    assert client.response.headers["set-cookie"] == "a=b"
    assert (client.subprotocol, client.rest) == (None, b"")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"Upgrade": b"WebSocket"},
        {b"Upgrade": b"\t WEBSOCKET "},
        {b"Connection": b"upgrade"},
        {b"Connection": b"keep-alive, UPGRADE"},
        {b"Connection": b",Upgrade ,"},
        {b"Content-Length": b"0"},
        {b"Content-Length": b"000"},
        {b"A": b"\xff"},
    ],
    ids=repr,
)
def test_4_1_other_spellings_of_the_right_answer(fields: dict[bytes, bytes | None]) -> None:
    assert judge(lambda client: answer(client, fields)) == (None, b"")


@pytest.mark.parametrize(
    "line", [b"HTTP/1.1 101 ", b"HTTP/1.1 101 Web Socket Protocol Handshake", b"HTTP/1.1 101 \xe9"]
)
def test_4_1_any_reason_is_right(line: bytes) -> None:
    assert judge(lambda client: answer(client, line=line)) == (None, b"")


# Statuses, bodies and limits, row M1 of the threat model


@pytest.mark.parametrize("status", [200, 201, 226, 304, 305, 306, 399, 400, 401, 403, 404, 426, 429, 500, 503, 599])
@pytest.mark.parametrize(
    ("fields", "data"),
    [
        (b"Content-Length: 5\r\n", b"hello"),
        (b"Content-Length: 5\r\n", b"hello, and so on"),
        (b"Transfer-Encoding: chunked\r\n", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
        (b"", b"hello"),
    ],
)
def test_m1_another_status(status: int, fields: bytes, data: bytes) -> None:
    head = b"HTTP/1.1 %d What \xe9ver\r\nX-A: b\r\n%b\r\n" % (status, fields)
    error = refused(head + data)
    assert (error["status"], error["reason"], error["headers"]["x-a"]) == (status, "What éver", "b")
    if status == 304:
        assert error["body"] == b""
    else:
        assert error["body"] in (b"hello", b"hello, and so on"[: len(data)])
        assert error["body"] == b"hello"
    assert re.fullmatch(rf"the server answered {status}( [A-Za-z ]+)?, not 101", error["message"])


def test_m1_what_is_wrong_is_said_in_our_words() -> None:
    error = refused(b"HTTP/1.1 404 s3cret\r\nContent-Length: 6\r\n\r\ns3cret")
    assert error["message"] == "the server answered 404 Not Found, not 101"


def test_m1_a_refusal_is_told_as_soon_as_it_is_complete() -> None:
    client = handshake()
    head = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 5\r\n\r\n"
    assert client.feed(head) is False
    assert client.feed(b"hell") is False
    with pytest.raises(ResponseError):
        client.feed(b"o")
    for without in (b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"):
        with pytest.raises(ResponseError):
            handshake().feed(without)


@pytest.mark.parametrize(
    ("fields", "data", "body"),
    [
        (b"Content-Length: 5\r\n", b"hell", b"hell"),
        (b"Content-Length: 5\r\n", b"", b""),
        (b"Transfer-Encoding: chunked\r\n", b"5\r\nhell", b"hell"),
        (b"Transfer-Encoding: chunked\r\n", b"4\r\nhell\r\n", b"hell"),
    ],
)
def test_m1_a_refusal_that_ends_early(fields: bytes, data: bytes, body: bytes) -> None:
    error = refused(b"HTTP/1.1 404 Not Found\r\n" + fields + b"\r\n" + data)
    assert (error["status"], error["body"]) == (404, body)
    assert error["message"] == "the server answered 404 Not Found, not 101, and ended before its body was complete"


@pytest.mark.parametrize(
    ("fields", "data", "body", "message"),
    [
        (b"Content-Length: 5, 5\r\n", b"hello", b"", "and its Content-Length is malformed"),
        (b"Transfer-Encoding: gzip\r\n", b"hello", b"", "and its Transfer-Encoding can't be read"),
        (b"Transfer-Encoding: chunked\r\n", b"2\r\nhe\r\nx\r\n", b"he", "and the size of a chunk is malformed"),
    ],
)
def test_m1_a_refusal_whose_body_can_not_be_read(fields: bytes, data: bytes, body: bytes, message: str) -> None:
    error = refused(b"HTTP/1.1 404 Not Found\r\n" + fields + b"\r\n" + data)
    assert (error["status"], error["reason"], error["body"]) == (404, "Not Found", body)
    assert error["message"] == f"the server answered 404 Not Found, not 101, {message}"


@pytest.mark.parametrize("status", sorted(REDIRECTS))
def test_m7_a_redirect_is_told_with_its_head(status: int) -> None:
    head = b"HTTP/1.1 %d Moved\r\nLocation: /elsewhere\r\nContent-Length: 5\r\n\r\n" % status
    client = handshake()
    assert not any(client.feed(head[place : place + 1]) for place in range(len(head) - 1))
    with pytest.raises(ResponseError) as info:
        client.feed(head[-1:])
    error = info.value
    assert (error.status, error.headers["location"], error.body) == (status, "/elsewhere", b"")
    assert refused(head + b"hello") == vars(error)
    assert URI_A.redirected(error.headers["location"]).resource == "/elsewhere"


def test_m7_two_locations_lead_nowhere() -> None:
    assert refused(b"HTTP/1.1 302 Found\r\nLocation: /b\r\nLocation: /c\r\n\r\n")["status"] == 0


MALFORMED: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "before its answer was complete"),
    ("start", b"HTTP/1", "before its answer was complete"),
    ("line", LINE + b"\r\n", "before its answer was complete"),
    ("head", LINE + b"\r\nA: b\r\n", "before its answer was complete"),
    ("last-octet", LINE + b"\r\nA: b\r\n\r", "before its answer was complete"),
    ("empty-line", b"\r\n" + LINE + b"\r\n\r\n", "not answer with HTTP"),
    ("space", b" " + LINE + b"\r\n\r\n", "not answer with HTTP"),
    ("lower-case", LINE.lower() + b"\r\n\r\n", "not answer with HTTP"),
    ("http-2", b"HTTP/2.0 101 OK\r\n\r\n", "not answer with HTTP"),
    ("http-0.9", b"<html>", "not answer with HTTP"),
    ("request", b"GET / HTTP/1.1\r\n\r\n", "not answer with HTTP"),
    ("ssh", b"SSH-2.0-server\r\n", "not answer with HTTP"),
    ("mail", b"220 mail ESMTP\r\n", "not answer with HTTP"),
    ("icy", b"ICY 200 OK\r\n\r\n", "not answer with HTTP"),
    ("tls", b"\x15\x03\x01\x00\x02\x02\x46", "not answer with HTTP"),
    ("frame", b"\x81\x05hello", "not answer with HTTP"),
    ("echo", b"Upgrade: websocket\r\n\r\n", "not answer with HTTP"),
    ("no-status", b"HTTP/1.1\r\n\r\n", "malformed"),
    ("two-digits", b"HTTP/1.1 10 OK\r\n\r\n", "malformed"),
    ("four-digits", b"HTTP/1.1 1010 OK\r\n\r\n", "malformed"),
    ("no-space", b"HTTP/1.1 101\r\n\r\n", "malformed"),
    ("099", b"HTTP/1.1 099 OK\r\n\r\n", "malformed"),
    ("600", b"HTTP/1.1 600 OK\r\n\r\n", "malformed"),
    ("fold", LINE + b"\r\nA: b\r\n c\r\n\r\n", "malformed"),
    ("name", LINE + b"\r\nA : b\r\n\r\n", "malformed"),
    ("no-colon", LINE + b"\r\nA\r\n\r\n", "malformed"),
    ("lf", LINE + b"\nA: b\n\n", "octet"),
    ("lf-at-last", LINE + b"\r\nA: b\r\n\n", "octet"),
    ("cr", LINE + b"\rA: b\r\n\r\n", "octet"),
    ("cr-cr", LINE + b"\r\r\nA: b\r\n\r\n", "octet"),
    ("nul", LINE + b"\r\nA: \x00b\r\n\r\n", "octet"),
    ("nul-in-reason", LINE + b"\x00\r\n\r\n", "octet"),
    ("escape", LINE + b"\x1b[2J\r\n\r\n", "octet"),
    ("del", LINE + b"\x7f\r\n\r\n", "octet"),
    ("lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n", "repeats"),
]


@pytest.mark.parametrize(("data", "message"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_m1_malformed(data: bytes, message: str) -> None:
    error = refused(data)
    assert message in error["message"]
    assert (error["status"], error["reason"], error["headers"], error["body"]) == (0, "", Headers(), b"")


@pytest.mark.parametrize("data", [row[1] for row in MALFORMED if row[2] in {"not answer with HTTP", "octet"}])
def test_m1_what_is_no_http_is_told_at_the_first_octet_that_shows_it(data: bytes) -> None:
    """Such a server may be waiting for us."""
    for end in range(1, len(data) + 1):
        try:
            handshake().feed(data[:end])
        except ResponseError:
            # a line feed ends a line at the latest
            assert end <= data.find(b"\n") + 1 or b"\n" not in data[:end] or data.startswith(LINE)
            return
    pytest.fail("it was not told")


def test_m1_1_mib_of_reason() -> None:
    """What is kept is bounded by max_head."""
    error = refused(LINE + b"a" * (1 << 17), splits=5)
    assert error["message"] == "the head of the answer is too long"
    check_endless(LINE, b"a" * 1000)


def test_m1_endless_headers() -> None:
    check_endless(LINE + b"\r\n", b"A: b\r\n" * 100)
    check_endless(LINE + b"\r\n", b"a")


def test_m1_endless_interim_answers() -> None:
    check_endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", "interim")
    check_endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: " + b"a" * 8000 + b"\r\n\r\n", "too long")


def check_endless(start: bytes, piece: bytes, message: str = "too long") -> None:
    """Feed pieces without an end, and check how much was taken until it was too much."""
    client = handshake()
    client.feed(start)
    fed = len(start)
    with pytest.raises(ResponseError, match=message) as info:
        while True:
            fed += len(piece)
            assert fed < MAX_HEAD + 2 * len(piece)
            client.feed(piece)
            assert len(client._buffer) <= MAX_HEAD + len(piece)
    assert info.value.status == 0


def test_m1_1_gib_of_body_is_cut() -> None:
    client = handshake()
    client.feed(b"HTTP/1.1 404 Not Found\r\nContent-Length: 1073741824\r\n\r\n")
    piece = b"a" * 1000
    with pytest.raises(ResponseError) as info:
        for _ in range(100):
            client.feed(piece)
    assert info.value.body == b"a" * MAX_BODY


@pytest.mark.parametrize("fields", [b"", b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("limit", [0, 1, 5])
def test_m1_a_body_is_cut_where_asked(fields: bytes, limit: int) -> None:
    data = b"9\r\nhello, we\r\n0\r\n\r\n" if b"chunked" in fields else b"hello, we"
    error = refused(b"HTTP/1.1 404 Not Found\r\n" + fields + b"\r\n" + data, max_body=limit)
    assert error["body"] == b"hello, we"[:limit]
    assert error["message"] == "the server answered 404 Not Found, not 101"


INTERIM = [
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
    b"HTTP/1.0 199 \r\nUpgrade: websocket\r\nConnection: Upgrade\r\nTransfer-Encoding: chunked\r\n\r\n",
]


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_m1_a_few_interim_answers_are_skipped(count: int) -> None:
    """RFC 9110 §15.2."""
    interim = b"".join((INTERIM * 2)[:count])
    assert judge(lambda client: interim + answer(client) + b"\x81\x00") == (None, b"\x81\x00")
    assert refused(interim + b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")["status"] == 404
    assert refused(interim)["message"] == "the server ended the connection before its answer was complete"


def test_m1_nine_are_too_many() -> None:
    error = refused(lambda client: INTERIM[0] * 9 + answer(client))
    assert error["message"] == "there are too many interim answers, RFC 9110 §15.2"


def field(size: int) -> bytes:
    """Return a field line of so many bytes with its CRLF."""
    return b"A:" + b"b" * (size - 4) + b"\r\n"


def long_head(client: ClientHandshake, size: int, before: bytes = b"") -> bytes:
    """Return an answer of so many bytes, in legal lines."""
    rest = size - 64000 - len(before + answer(client))
    return before + answer(client, more=field(8000) * 8 + field(rest))


@pytest.mark.parametrize(
    ("make", "limit", "name"),
    [
        (lambda client, n: answer(client, line=LINE + b"a" * (n - len(LINE))), MAX_LINE, "max_line"),
        (lambda client, n: answer(client, more=field(n + 2)), MAX_HEADER_LINE, "max_header_line"),
        (lambda client, n: answer(client, more=field(9) * (n - 3)), MAX_HEADERS, "max_headers"),
        pytest.param(long_head, MAX_HEAD, "max_head", marks=pytest.mark.slow),
        pytest.param(lambda client, n: long_head(client, n, INTERIM[0]), MAX_HEAD, "max_head", marks=pytest.mark.slow),
    ],
    ids=["max_line", "max_header_line", "max_headers", "max_head", "max_head-with-interim"],
)
def test_m1_limits(make: Callable[[ClientHandshake, int], bytes], limit: int, name: str) -> None:
    def outcome(size: int, **arguments: int) -> Any:
        return judge(lambda client: make(client, size) + b"\x81\x00", splits=20, **arguments)

    assert outcome(limit) == (None, b"\x81\x00")
    assert outcome(limit + 1, **{name: limit + 1}) == (None, b"\x81\x00")
    for error in (outcome(limit + 1), outcome(limit, **{name: limit - 1})):
        assert error["status"] == 0
        assert re.search("too long|too many", error["message"])


def test_m1_a_head_that_can_not_end_within_the_limit_is_not_waited_for() -> None:
    client = handshake(max_head=100)
    assert client.feed(LINE + b"a" * (99 - len(LINE))) is False
    with pytest.raises(ResponseError, match="too long"):
        client.feed(b"a")


# What a 101 must say, rows M2, M3 and M5


@pytest.mark.parametrize(
    ("fields", "more", "message"),
    [
        ({b"Upgrade": None}, b"", "item 2"),
        ({b"Upgrade": b""}, b"", "item 2"),
        ({b"Upgrade": b"websockets"}, b"", "item 2"),
        ({b"Upgrade": b"websocket/13"}, b"", "item 2"),
        ({b"Upgrade": b"h2c, websocket"}, b"", "item 2"),
        ({b"Upgrade": b"websocket, websocket"}, b"", "item 2"),
        ({b"Upgrade": b"websocket,"}, b"", "item 2"),
        ({b"Upgrade": b"w\xebbsocket"}, b"", "item 2"),
        ({b"Upgrade": b'"websocket"'}, b"", "item 2"),
        ({}, b"Upgrade: websocket\r\n", "item 2"),
        ({b"Connection": None}, b"", "item 3"),
        ({b"Connection": b""}, b"", "item 3"),
        ({b"Connection": b"keep-alive"}, b"", "item 3"),
        ({b"Connection": b"notupgrade"}, b"", "item 3"),
        ({b"Connection": b"upgrades"}, b"", "item 3"),
        ({b"Connection": b"upgrade close"}, b"", "item 3"),
        ({b"Connection": b'"upgrade"'}, b"", "item 3"),
        ({b"Connection": b"upgrade;a=b"}, b"", "item 3"),
        ({b"Connection": b"upgrade, (close)"}, b"", "item 3"),
        ({b"Sec-WebSocket-Accept": None}, b"", "item 4"),
        ({b"Sec-WebSocket-Accept": b""}, b"", "item 4"),
        ({b"Sec-WebSocket-Accept": b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="}, b"", "item 4"),
    ],
    ids=repr,
)
def test_m2_what_is_missing_or_wrong(fields: dict[bytes, bytes | None], more: bytes, message: str) -> None:
    error = refused(lambda client: answer(client, fields, more) + b"\x81\x00")
    assert f"RFC 6455 §4.1 {message}" in error["message"]
    assert (error["status"], error["reason"], error["body"]) == (101, "Switching Protocols", b"")


@pytest.mark.parametrize(
    "change",
    [
        lambda accept: accept.swapcase(),
        lambda accept: accept.lower(),
        lambda accept: accept[:-1],
        lambda accept: accept + b"=",
        lambda accept: b'"' + accept + b'"',
        lambda accept: accept + b", " + accept,
        lambda accept: accept + b"\r\nSec-WebSocket-Accept: " + accept,
        lambda accept: accept + b"\r\nsec-websocket-accept:",
        lambda accept: base64.b64encode(base64.b64decode(accept).hex().encode()),
        lambda accept: accept[:5] + b" " + accept[5:],
    ],
)
def test_m2_an_accept_value_is_exact(change: Callable[[bytes], bytes]) -> None:
    for way in (-1, *range(200)):
        client = handshake()
        found = drive(client, answer(client, {b"Sec-WebSocket-Accept": change(accept_of(client))}), way)
        assert found["status"] == 101
        assert "§4.1 item 4" in found["message"]


def test_m2_the_accept_value_may_have_spaces_around() -> None:
    assert (
        judge(lambda client: answer(client, {b"Sec-WebSocket-Accept": b"\t " + accept_of(client) + b" \t"}))[1] == b""
    )


def test_m2_the_answer_to_another_key() -> None:
    client, other = handshake(), handshake()
    with pytest.raises(ResponseError, match="not the answer to the key"):
        client.feed(answer(other))


@pytest.mark.parametrize("version", [b"1.0", b"1.2"])
def test_m2_another_version_of_http(version: bytes) -> None:
    """RFC 9110 §7.8: HTTP/1.0 knows no Upgrade."""
    error = refused(lambda client: answer(client, line=b"HTTP/" + version + b" 101 OK"))
    assert error["message"] == "the server switches protocols in another version than HTTP/1.1"


@pytest.mark.parametrize(
    ("protocols", "more", "subprotocol"),
    [
        ((), b"", None),
        (("chat",), b"", None),
        (("chat",), b"Sec-WebSocket-Protocol: chat\r\n", "chat"),
        (("superchat", "chat"), b"sec-websocket-protocol:\t chat \r\n", "chat"),
        (("superchat", "chat"), b"Sec-WebSocket-Protocol: superchat\r\n", "superchat"),
        (iter(["chat"]), b"Sec-WebSocket-Protocol: chat\r\n", "chat"),
    ],
)
def test_m3_a_subprotocol(protocols: Any, more: bytes, subprotocol: str | None) -> None:
    protocols = tuple(protocols)
    assert judge(lambda client: answer(client, more=more), protocols=protocols) == (subprotocol, b"")


@pytest.mark.parametrize(
    ("protocols", "more", "item"),
    [
        ((), b"Sec-WebSocket-Protocol: chat\r\n", 6),
        ((), b"Sec-WebSocket-Protocol:\r\n", 6),
        (("chat",), b"Sec-WebSocket-Protocol: superchat\r\n", 6),
        (("chat",), b"Sec-WebSocket-Protocol: Chat\r\n", 6),
        (("chat",), b"Sec-WebSocket-Protocol:\r\n", 6),
        (("chat",), b"Sec-WebSocket-Protocol: chat,\r\n", 6),
        (("chat", "superchat"), b"Sec-WebSocket-Protocol: chat, superchat\r\n", 6),
        (("chat",), b"Sec-WebSocket-Protocol: chat\r\n" * 2, 6),
        (("chat", "b"), b"Sec-WebSocket-Protocol: chat\r\nSEC-WEBSOCKET-PROTOCOL: b\r\n", 6),
        ((), b"Sec-WebSocket-Extensions: permessage-deflate\r\n", 5),
        ((), b"Sec-WebSocket-Extensions: a\r\nSec-WebSocket-Extensions: b\r\n", 5),
        ((), b"Sec-WebSocket-Extensions:\r\n", 5),
        ((), b"sec-websocket-extensions: ;;=\r\n", 5),
    ],
)
def test_m3_what_was_not_offered(protocols: tuple[str, ...], more: bytes, item: int) -> None:
    error = refused(lambda client: answer(client, more=more), protocols=protocols)
    assert f"RFC 6455 §4.1 item {item}" in error["message"]
    assert error["status"] == 101


@pytest.mark.parametrize(
    ("value", "answered"),
    [
        (None, None),
        (b"permessage-deflate", {"server_max_window_bits": 15, "client_max_window_bits": 15}),
        (b"permessage-deflate; client_max_window_bits=10", {"client_max_window_bits": 10}),
        (b'permessage-deflate;server_max_window_bits="9"', {"server_max_window_bits": 9}),
        (b"permessage-deflate; server_no_context_takeover", {"server_no_context_takeover": True}),
    ],
)
def test_what_a_server_agrees_upon(value: bytes | None, answered: dict[str, Any] | None) -> None:
    client = handshake(extensions=[DeflateMessage, DeflateFrame()])
    offered = "permessage-deflate; client_max_window_bits, deflate-frame, x-webkit-deflate-frame"
    assert fields_of(client)["Sec-WebSocket-Extensions"] == offered
    assert client.feed(answer(client, {b"Sec-WebSocket-Extensions": value}))
    assert (client.extensions is not None) == (answered is not None)
    if client.extensions:
        (instance,) = client.extensions.chain().instances
        assert instance.parameters.items() >= (answered or {}).items()


@pytest.mark.parametrize(
    "value",
    [
        b"x-other", b"permessage-deflate; unknown", b"permessage-deflate, permessage-deflate",
        b"permessage-deflate, deflate-frame", b"permessage-deflate; server_max_window_bits=16",
        b"permessage-deflate; client_max_window_bits", b"permessage-deflate; server_no_context_takeover=1", b"", b";",
        b"permessage-deflate; server_max_window_bits=8; server_max_window_bits=8",
    ],
)  # fmt: skip
def test_g7_an_answer_that_is_none_to_the_offer(value: bytes) -> None:
    fields: dict[bytes, bytes | None] = {b"Sec-WebSocket-Extensions": value}
    error = refused(lambda client: answer(client, fields), extensions=[DeflateMessage, DeflateFrame], splits=3)
    assert "RFC 6455 §4.1 item 5" in error["message"]


@pytest.mark.parametrize("frames", [b"\x81\x05hello", b"\x88\x00", bytes(range(256)), b"\r\n\r\n", b"HTTP/1.1 404 "])
def test_m4_frames_in_the_segment_of_the_101(frames: bytes) -> None:
    assert judge(lambda client: answer(client) + frames) == (None, frames)


def test_m4_a_megabyte_of_them() -> None:
    client = handshake()
    frames = bytes(range(256)) * 4096
    assert client.feed(answer(client) + frames)
    assert client.rest == frames


@pytest.mark.parametrize(
    "more",
    [
        b"Content-Length: 5\r\n",
        b"Content-Length: 00001\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: 0, 0\r\n",
        b"Content-Length: -0\r\n",
        b"Content-Length: \xb2\r\n",
        b"Content-Length: " + b"0" * 20 + b"\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding:\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
    ],
)
def test_m5_a_body_with_the_101(more: bytes) -> None:
    error = refused(lambda client: answer(client, more=more) + b"hello")
    assert error["message"] == "the server announces content with a 101, RFC 9110 §8.6"
    assert (error["status"], error["body"]) == (101, b"")


# What holds at any time


@pytest.mark.parametrize(
    "data", [b"SSH-", b"HTTP/1.1 302 Found\r\n\r\n", b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"]
)
def test_an_error_is_for_ever(data: bytes) -> None:
    client = handshake()
    with pytest.raises(ResponseError) as first:
        client.feed(data)
    for again in (lambda: client.feed(b""), lambda: client.feed(answer(client)), client.feed_eof):
        with pytest.raises(ResponseError) as info:
            again()
        assert info.value is not first.value
        assert vars(info.value) == vars(first.value)
    assert client.response is None


def test_an_end_is_for_ever() -> None:
    client = handshake()
    for _ in range(2):
        with pytest.raises(ResponseError, match="ended the connection before"):
            client.feed_eof()
    with pytest.raises(ResponseError, match="ended the connection before"):
        client.feed(answer(client))


def test_after_the_101_nothing_is_taken() -> None:
    client = handshake()
    assert client.feed(answer(client) + b"\x81")
    for more in (lambda: client.feed(b"\x00"), lambda: client.feed(b""), client.feed_eof):
        with pytest.raises(ValueError, match="complete: what follows is for a Protocol"):
            more()
    assert client.rest == b"\x81"


@pytest.mark.parametrize(
    "end",
    [
        lambda client: client.feed(b"SSH-"),
        lambda client: client.feed(b"HTTP/1.1 404 No\r\nContent-Length: x\r\n\r\n"),
        lambda client: client.feed(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"),
        lambda client: client.feed_eof(),
    ],
)
def test_an_error_keeps_neither_the_handshake_nor_its_caller(end: Callable[[ClientHandshake], object]) -> None:
    """A socket in a caller's frame is closed when the error is forgotten, and not some time later."""

    class Socket:
        pass

    def connect() -> weakref.ref[Socket]:
        socket, client = Socket(), handshake()
        try:
            end(client)
        except ResponseError:
            return weakref.ref(socket)
        pytest.fail("it ended well")

    gc.disable()
    try:
        assert connect()() is None
    finally:
        gc.enable()


def test_anything_like_bytes_can_be_fed() -> None:
    for kind in (bytes, bytearray, memoryview):
        client = handshake()
        assert client.feed(kind(answer(client) + b"\x81"))
        assert client.rest == b"\x81"
        assert type(client.rest) is bytes
        for fields in (b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"):
            client = handshake()
            client.feed(b"HTTP/1.1 404 Not Found\r\n" + fields + b"\r\n")
            with pytest.raises(ResponseError) as info:
                client.feed(kind(b"5\r\nhello\r\n0\r\n\r\n"[0 if b"chunked" in fields else 3 :]))
                client.feed_eof()
            assert info.value.body[:5] == b"hello"
            assert type(info.value.body) is bytes
    for wrong in ("HTTP/1.1", 5, None):
        with pytest.raises(TypeError):
            handshake().feed(wrong)  # type: ignore[arg-type]


def test_what_is_fed_is_copied() -> None:
    client = handshake()
    data = bytearray(answer(client) + b"\x81")
    assert client.feed(data)
    data[:] = bytes(len(data))
    assert client.rest == b"\x81"
    assert client.response is not None
    assert client.response.status == 101


# Client and server


@pytest.mark.parametrize(
    ("text", "path", "host"),
    [
        ("ws://a", "/", "a"),
        ("ws://münchen.example:81/é?ü", "/%C3%A9?%C3%BC", "xn--mnchen-3ya.example:81"),
        ("wss://user:secret@[::1]/b", "/b", "[::1]"),
    ],
)
def test_our_own_server_accepts_our_requests(text: str, path: str, host: str) -> None:
    server = ServerHandshake(
        protocols=["chat", "superchat"],
        trusted_origins=["https://example.com"],
        extra_headers={"Set-Cookie": "a=b"},
        server_header="us",
        require_origin=True,
        require_protocol=True,
    )
    arguments = {
        "origin": "https://example.com",
        "protocols": ["x", "superchat", "chat"],
        "extra_headers": {"A": "\xe9"},
    }
    client = ClientHandshake(parse_uri(text), **arguments)  # type: ignore[arg-type]
    request = server.read(client.request)
    assert (request.path, request.headers["host"], request.headers["a"]) == (path, host, "\xe9")
    assert request.is_websocket
    accepted = server.accept(request)
    assert client.feed(accepted.response)
    assert client.subprotocol == accepted.subprotocol == "superchat"
    assert client.response is not None
    assert client.response.headers["set-cookie"] == "a=b"


@pytest.mark.parametrize("status", [300, 307, 400, 403, 404, 426, 503])
def test_refusals_of_our_own_server_are_read(status: int) -> None:
    server = ServerHandshake(server_header="us")
    refusal = server.refuse(HandshakeError(status, "why", [("Location", "/elsewhere")]), handshake().request)
    error = refused(refusal)
    assert (error["status"], error["headers"]["server"]) == (status, "us")
    assert error["headers"]["location"] == "/elsewhere"
    assert error["body"].startswith(b"%d " % status if status not in REDIRECTS else b"")


@given(st.binary(max_size=99), st.integers(0, 99), st.integers(0, 3))
def test_no_broken_answer_is_taken_for_the_right_one(junk: bytes, place: int, cut: int) -> None:
    client = handshake(protocols=["chat"])
    right = answer(client, more=b"Sec-WebSocket-Protocol: chat\r\n")
    place = place * len(right) // 99
    data = right[:place] + junk + right[place + cut :]
    try:
        complete = client.feed(data)
    except ResponseError:
        complete = False
    if complete:
        assert client.response is not None
        assert accept_of(client).decode() == client.response.headers["sec-websocket-accept"]
        assert client.response.headers["upgrade"].lower() == "websocket"
        assert data.endswith(client.rest)


PIECES = st.sampled_from(
    [
        *(
            b"HTTP/1.1 101 OK\r\n",
            b"HTTP/1.1 100 \r\n\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 302 \r\n",
            b"\r\n",
            b"\r",
        ),
        *(b"\n", b"A: b\r\n", b"A:", b"\x00", b"\xe9", b"Content-Length: 5\r\n", b"5\r\nhello\r\n", b"0\r\n", b"HTTP"),
        *(b"Transfer-Encoding: chunked\r\n", b"Upgrade: websocket\r\n", b"Connection: upgrade\r\n", b"Location: /\r\n"),
    ]
)


@given(st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=12).map(b"".join)))
def test_arbitrary_answers_are_refused_in_one_way(data: bytes) -> None:
    error = refused(data, splits=20)
    assert error["status"] == 0 or 100 < error["status"] < 600


# Linear time


def seconds(data: bytes) -> float:
    def bytewise() -> None:
        client = handshake(max_head=256 << 10, max_headers=65535)
        for place in range(len(data)):
            client.feed(data[place : place + 1])

    return best_time(bytewise)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda n: LINE + b" " * n,
        lambda n: LINE + b"\r\nA: " + b"\t" * n,
        lambda n: LINE + b"\r\n" + b"A:\r\n" * (n // 4),
        lambda n: LINE + b"\r\n" + b"a" * n,
        lambda n: b"HTTP/1.1 404 No\r\n\r\n" + b"a" * min(n, 65000),
        lambda n: b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * (n // 6),
        lambda n: b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a" * 250,
    ],
    ids=["reason", "value", "fields", "name", "body", "chunks", "chunk-line"],
)
def test_m1_64_kib_byte_by_byte_take_linear_time(make: Callable[[int], bytes]) -> None:
    assert seconds(make(65536)) < 8 * 2.5 * seconds(make(8192)) + 0.001


def test_a_uri_is_not_looked_up() -> None:
    """The handshake asks for what the URI says, wherever the socket leads."""
    client = ClientHandshake(URI(secure=True, host="nowhere.invalid", port=1, resource="/"))
    assert fields_of(client)["host"] == "nowhere.invalid:1"
