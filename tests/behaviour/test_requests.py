"""What does a handler see of the opening handshake, and how does it answer plain HTTP?"""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import pytest
from drivers import KEY, echo, head, needs, until

import wspy

if TYPE_CHECKING:
    from drivers import Servers

PLAIN = b"GET /path?x=1 HTTP/1.1\r\nHost: here\r\n\r\n"


def test_c19_the_sample_of_the_rfc(serve: Servers) -> None:
    assert KEY == "dGhlIHNhbXBsZSBub25jZQ=="
    peer = serve().connect()
    peer.send(head())
    assert peer.response().headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_attributes_of_a_client(serve: Servers) -> None:
    server = serve(protocols=["chat", "superchat"])
    peer = server.open(
        "/room?id=7&id=8&empty=", [("X-Extra", "a"), ("X-Extra", "b"), ("Sec-WebSocket-Protocol", "chat")]
    )
    client = server.client(peer)
    if server.has("clients"):
        assert client.server is server.server
    assert client.path == "/room?id=7&id=8&empty="
    assert client.subprotocol == "chat"
    assert client.remote_address == peer.address
    request = client.request
    assert request.method == "GET"
    assert request.target == request.path == client.path
    assert request.query == {"id": "7", "empty": ""}
    assert request.http_version == "1.1"
    assert request.is_websocket
    assert request.headers["x-extra"] == "a, b" or request.headers.get_all("X-EXTRA") == ["a", "b"]
    assert request.headers["HOST"] == "here"


def test_data_is_free_for_the_application(serve: Servers) -> None:
    def onopen(client: Any) -> None:
        assert client.data is None
        client.data = {"name": client.path}

    server = serve(onopen=onopen, onmessage=lambda client, message: client.send(client.data["name"]))
    peers = [server.open(f"/{number}") for number in range(3)]
    for number, peer in enumerate(peers):
        peer.text("who am I")
        assert peer.message() == f"/{number}"


@needs("policies")
@pytest.mark.parametrize("keep", [True, False])
def test_keep_request(serve: Servers, keep: bool) -> None:
    seen: list[Any] = []

    def look(client: Any, *_: Any) -> None:
        seen.append((client.path, client.request and client.request.headers["x-extra"]))

    server = serve(onopen=look, onmessage=look, onclose=look, keep_request=keep)
    peer = server.open("/path", [("X-Extra", "here")])
    peer.text("x")
    peer.close()
    server.wait(lambda: len(seen) == 3, "onclose")
    kept = ("/path", "here")
    assert seen == [kept, *([kept] * 2 if keep else [(None, None)] * 2)]


def test_the_path_keeps_what_was_sent(serve: Servers) -> None:
    server = serve()
    for path in ("/", "/%2e%2e/%00", "/a//b/../c", "/?", "/?a=b?c=d", "//host/path"):
        assert server.client(server.open(path)).path == path


# ---- policies ----


@pytest.mark.parametrize(
    ("offer", "chosen"),
    [(None, None), ("b", "b"), ("x, a", "a"), ("b, a", "b"), ("x", None), ("B", None), ("x,a ,\tb", "a")],
)
def test_c14_subprotocols(serve: Servers, offer: str | None, chosen: str | None) -> None:
    server = serve(protocols=["a", "b"])
    peer = server.connect()
    response = peer.open("/", [] if offer is None else [("Sec-WebSocket-Protocol", offer)])
    assert response.headers.get("sec-websocket-protocol") == chosen
    assert server.client(peer).subprotocol == chosen


@needs("policies")
@pytest.mark.parametrize(("offer", "status"), [(None, 400), ("x", 400), ("a", 101)])
def test_c14_a_required_subprotocol(serve: Servers, offer: str | None, status: int) -> None:
    peer = serve(protocols=["a"], require_protocol=True).connect()
    peer.send(head("/", [] if offer is None else [("Sec-WebSocket-Protocol", offer)]))
    assert peer.response().status == status


ORIGINS: list[Any] = [
    ({}, "https://anywhere.example", 101),
    ({}, "null", 101),
    ({}, None, 101),
    ({"trusted_origins": ["https://good.example"]}, "https://good.example", 101),
    ({"trusted_origins": ["https://good.example"]}, "https://good.example:443", 403),
    ({"trusted_origins": ["https://good.example"]}, "http://good.example", 403),
    ({"trusted_origins": ["https://good.example"]}, "https://good.example.evil.example", 403),
    ({"trusted_origins": ["https://good.example"]}, "https://evil.example", 403),
    ({"trusted_origins": ["https://good.example"]}, "null", 403),
    ({"trusted_origins": ["https://good.example"]}, None, 101),
    pytest.param(
        {"trusted_origins": ["https://good.example"], "require_origin": True}, None, 403, marks=needs("policies")
    ),
    ({"trusted_origins": [re.compile(r"https://[a-z]+\.good\.example")]}, "https://www.good.example", 101),
    ({"trusted_origins": [re.compile(r"https://[a-z]+\.good\.example")]}, "https://www.good.example.evil", 403),
    ({"trusted_origins": "same-origin"}, "http://here", 101),
    ({"trusted_origins": "same-origin"}, "https://here", 101),
    ({"trusted_origins": "same-origin"}, "https://there", 403),
    ({"trusted_origins": "same-origin"}, "null", 403),
]


@pytest.mark.parametrize(("options", "origin", "status"), ORIGINS, ids=repr)
def test_c9_c10_c11_origins(serve: Servers, options: Any, origin: str | None, status: int) -> None:
    server = serve(**options)
    peer = server.connect()
    peer.send(head("/", [] if origin is None else [("Origin", origin)]))
    assert peer.response().status == status


@pytest.mark.parametrize(
    ("path", "status"),
    [("/chat", 101), ("/chat?x", 101), ("/chat/", 101), ("/", 404), ("/chatter", 404), ("/Chat", 404)],
)
def test_c17_locations(serve: Servers, path: str, status: int) -> None:
    peer = serve(locations=["/chat"]).connect()
    peer.send(head(path))
    assert peer.response().status == status


@needs("policies")
def test_headers_of_the_response(serve: Servers) -> None:
    response = serve(extra_headers={"X-One": "1"}).connect().open()
    assert response.headers["x-one"] == "1"
    assert re.fullmatch(r"wspy/[\w.+]+", response.headers["server"])
    assert "server" not in serve(server_header=None).connect().open().headers
    assert serve(server_header="Apache").connect().open().headers["server"] == "Apache"
    by_path = serve(extra_headers=lambda request: [("X-Path", request.path), ("X-Two", "2")])
    assert by_path.connect().open("/here").headers["x-path"] == "/here"


@pytest.mark.parametrize("headers", [{"X": "a\r\nb"}, {"a b": "c"}, {"": "x"}, {"X": "é\0"}], ids=repr)
def test_l1_headers_that_can_not_be_sent(serve: Servers, headers: Any) -> None:
    with pytest.raises(ValueError):
        serve(extra_headers=headers)


# ---- what the log says ----


@needs("log")
@pytest.mark.parametrize(
    ("data", "line"),
    [
        (head("/there?token=secret"), "refused GET /there from {} with 404: the location is not served"),
        (b"GET /here HTTP/1.1\r\nHost: here\r\n\r\n", "refused GET /here from {} with 426: Upgrade does not list"),
        (
            head("/here", [("Origin", "https://evil")]),
            "refused GET /here from {} with 403: the origin is not trusted: 'https://evil'",
        ),
        (b"HEAD /%s HTTP/1.1\r\n\r\n", "refused HEAD /%s from {} with 400: "),
        (b"GET /%s HTTP/1.1\r\n" % (b"x" * 9000), "refused a request from {} with 414: "),
    ],
    ids=["location", "plain", "origin", "malformed", "long"],
)
def test_the_log_says_who_asked_for_what_and_why_not(
    serve: Servers, caplog: pytest.LogCaptureFixture, data: bytes, line: str
) -> None:
    caplog.set_level("INFO", "wspy.server")
    server = serve(locations=["/here"], trusted_origins=["https://good"])
    peer = server.connect()
    peer.send(data)
    peer.response(to_head_request=data.startswith(b"HEAD"))
    until(lambda: caplog.messages, "logged")
    assert caplog.messages[0].startswith(line.format("{}:{}".format(*peer.address)))
    assert "secret" not in caplog.text


# ---- plain HTTP ----


def test_plain_http_is_told_to_upgrade(serve: Servers) -> None:
    peer = serve().connect()
    peer.send(PLAIN)
    response = peer.response()
    assert response.status == 426
    assert response.headers["upgrade"] == "websocket"
    assert response.headers["connection"] == "upgrade, close"
    peer.eof()


@needs("http")
def test_onrequest_answers(serve: Servers) -> None:
    seen: list[Any] = []

    def onrequest(request: wspy.Request) -> wspy.Response | None:
        seen.append((request.method, request.path, request.query, request.remote_address))
        return None if request.is_websocket else wspy.Response(200, headers={"X-Y": "z"}, body="é")

    server = serve(onrequest=onrequest, onmessage=echo)
    peer = server.connect()
    peer.send(PLAIN)
    response = peer.response()
    assert (response.status, response.reason, response.body) == (200, "OK", "é".encode())
    assert response.headers["x-y"] == "z"
    assert response.headers["content-type"].startswith("text/plain")
    assert seen == [("GET", "/path?x=1", {"x": "1"}, peer.address)]
    # the same connection goes on, and may be upgraded
    peer.open("/then")
    peer.text("hello")
    assert peer.message() == "hello"


@needs("http")
def test_onrequest_refuses_an_upgrade(serve: Servers) -> None:
    server = serve(onrequest=lambda request: wspy.Response(401, headers={"WWW-Authenticate": "Basic"}))
    peer = server.connect()
    peer.send(head())
    response = peer.response()
    assert response.status == 401
    assert response.headers["www-authenticate"] == "Basic"
    assert server.stories == []


@needs("http")
def test_b27_responses_without_content(serve: Servers) -> None:
    server = serve(onrequest=lambda request: wspy.Response(int(request.path[1:]), body="never seen"))
    peer = server.connect()
    for path, method in (("/204", b"GET"), ("/304", b"GET"), ("/200", b"HEAD"), ("/404", b"HEAD")):
        peer.send(PLAIN.replace(b"/path?x=1", path.encode()).replace(b"GET", method))
        response = peer.response(to_head_request=True)
        assert response.status == int(path[1:])
    peer.send(PLAIN.replace(b"/path?x=1", b"/200"))
    assert peer.response().body == b"never seen"


@needs("http")
def test_b26_nothing_after_connection_close(serve: Servers) -> None:
    seen: list[str] = []
    server = serve(onrequest=lambda request: seen.append(request.path) or wspy.Response(200, body="x"))
    peer = server.connect()
    peer.send(PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + PLAIN)
    response = peer.response()
    assert response.headers["connection"] == "close"
    peer.eof()
    assert seen == ["/path?x=1"]


@needs("http")
def test_b31_a_request_and_then_a_half_close(serve: Servers) -> None:
    server = serve(onrequest=lambda request: wspy.Response(200, body="x" * 1_000_000))
    peer = server.connect(receive_buffer=4096)
    peer.send(PLAIN)
    peer.half_close()
    response = peer.response()
    assert len(response.body) == 1_000_000
    peer.eof()


@needs("http")
@pytest.mark.slow
def test_b25_ten_thousand_pipelined_requests(serve: Servers) -> None:
    """Answered in order, 1,000 on a connection at most (B30); input is not read faster than it is answered."""
    server = serve(onrequest=lambda request: wspy.Response(200, body=request.path))
    peer = server.connect()
    requests = b"".join(PLAIN.replace(b"/path?x=1", b"/%d" % number) for number in range(10_000))
    peer.socket.settimeout(5)
    try:
        peer.send(requests)
    except (ConnectionError, TimeoutError):
        pass  # it ends after a thousand
    bodies = []
    while len(bodies) < 1000:
        bodies.append(peer.response().body)
    assert bodies == [b"/%d" % number for number in range(1000)]


@needs("http")
def test_b30_the_thousandth_response_is_the_last(serve: Servers) -> None:
    server = serve(onrequest=lambda request: wspy.Response(200, body="x"))
    peer = server.connect()
    for _ in range(1000):
        peer.send(PLAIN)
        assert peer.response().status == 200
    peer.eof()


@needs("http")
def test_a_pipelined_upgrade(serve: Servers) -> None:
    server = serve(onrequest=lambda r: None if r.is_websocket else wspy.Response(200, body="x"), onmessage=echo)
    peer = server.connect()
    peer.send(PLAIN + PLAIN + head())
    assert [peer.response().status for _ in range(2)] == [200, 200]
    peer.opened()
    peer.text("x")
    assert peer.message() == "x"


@needs("policies")
def test_every_request_says_who_asks(serve: Servers) -> None:
    seen: list[Any] = []

    def extra_headers(request: wspy.Request) -> dict[str, str]:
        seen.append(request.remote_address)
        return {}

    def look(client: Any, *_: Any) -> None:
        seen.append(client.request.remote_address)

    server = serve(extra_headers=extra_headers, onopen=look, onmessage=look, onclose=look)
    peer = server.open()
    peer.text("x")
    peer.close()
    server.outcome(peer)
    assert seen == [peer.address] * 4


@needs("http")
@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /page HTTP/1.1\r\nHost: here\r\n\r\n", 200),
        (b"GET /plain HTTP/1.1\r\nHost: here\r\n\r\n", 426),
        (b"GET /refused HTTP/1.1\r\nHost: here\r\n\r\n", 403),
        (b"GET /failing HTTP/1.1\r\nHost: here\r\n\r\n", 500),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\0", 400),
    ],
)
def test_responses_have_a_date(serve: Servers, request_head: bytes, status: int) -> None:
    """RFC 9110 §6.6.1."""

    def onrequest(request: wspy.Request) -> wspy.Response | None:
        if request.path == "/refused":
            raise wspy.HandshakeError(403, "no")
        if request.path == "/failing":
            raise ArithmeticError
        return wspy.Response(200) if request.path == "/page" else None

    server = serve(onrequest=onrequest, onerror=lambda *_: None)
    peer = server.connect()
    before = int(time.time())
    peer.send(request_head)
    response = peer.response()
    assert response.status == status
    assert before <= parsedate_to_datetime(response.headers["date"]).timestamp() <= time.time()
    assert response.headers["date"].endswith(" GMT")


@needs("http")
def test_a_date_of_the_application_is_the_one(serve: Servers) -> None:
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    server = serve(onrequest=lambda _: wspy.Response(200, headers={"date": date}))
    peer = server.connect()
    peer.send(head())
    assert peer.response().headers["date"] == date


@needs("http")
@pytest.mark.parametrize(
    ("options", "headers", "value"),
    [
        ({}, {}, f"wspy/{wspy.__version__}"),
        ({"server_header": "Apache"}, {}, "Apache"),
        ({"server_header": None}, {}, None),
        ({}, {"Server": "mine"}, "mine"),
    ],
)
def test_responses_of_the_application_name_the_server(
    serve: Servers, options: Any, headers: dict[str, str], value: str | None
) -> None:
    peer = serve(onrequest=lambda _: wspy.Response(200, headers=headers), **options).connect()
    peer.send(PLAIN)
    assert peer.response().headers.get("server") == value


@needs("http")
@pytest.mark.parametrize("answer", ["text", True, b"", {"status": 200}])
def test_what_is_no_response_is_an_error(serve: Servers, answer: Any) -> None:
    errors: list[str] = []
    server = serve(onrequest=lambda _: answer, onerror=lambda client, error: errors.append(f"{client} {error!r}"))
    peer = server.connect()
    peer.send(PLAIN)
    assert peer.response().status == 500
    peer.eof()
    kind = type(answer).__name__
    assert errors == [f"None TypeError('onrequest returns a Response or None, not {kind}')"]


@needs("http")
@pytest.mark.parametrize("method", [b"POST", b"DELETE", b"OPTIONS"])
def test_onrequest_decides_on_every_method(serve: Servers, method: bytes) -> None:
    server = serve(onrequest=lambda r: wspy.Response(200, body=r.method) if r.path == "/path?x=1" else None)
    peer = server.connect()
    peer.send(PLAIN.replace(b"GET", method))
    assert peer.response().body == method
    peer.send(PLAIN.replace(b"GET /path?x=1", method + b" /other"))
    assert peer.response().status == 405
    peer.eof()
    peer = server.connect()
    peer.send(PLAIN.replace(b"GET", method).replace(b"Host", b"Content-Length: 1\r\nHost") + b"x")
    assert peer.response().status == 413


def test_a_101_has_no_date(serve: Servers) -> None:
    peer = serve().connect()
    peer.send(head())
    assert "date" not in peer.opened().headers


@pytest.mark.parametrize("version", ["12", None])
def test_a_426_lists_upgrade_in_its_connection(serve: Servers, version: str | None) -> None:
    """RFC 9110 §7.8."""
    server = serve()
    peer = server.connect()
    if version is None:
        peer.send(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    else:
        peer.send(head("/", (("Sec-WebSocket-Version", version),), without=["Sec-WebSocket-Version"]))
    response = peer.response()
    assert (response.status, response.headers["upgrade"]) == (426, "websocket")
    assert response.headers["connection"] == "upgrade, close"
    peer.eof()
