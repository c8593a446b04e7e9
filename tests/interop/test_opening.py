"""Do foreign clients understand how AsyncServer answers their opening handshakes?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from peers import Peer, Refused
from recorder import Recorder

import wspy

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["chat"], "chat"), (["superchat", "chat"], "superchat"), (["other", "chat"], "chat"), ([], None)],
)
def test_a_subprotocol_is_chosen(
    serve: Callable[..., Recorder],
    connect: Callable[..., Peer],
    seconds: float,
    offered: list[str],
    chosen: str | None,
) -> None:
    server = serve(protocols=["chat", "superchat"])
    peer = connect(server.url, subprotocols=offered)
    assert peer.subprotocol == chosen
    assert server.opened.get(timeout=seconds).subprotocol == chosen


def test_a_subprotocol_can_be_required(serve: Callable[..., Recorder], connect: Callable[..., Peer]) -> None:
    server = serve(protocols=["chat"], require_protocol=True)
    with pytest.raises(Refused) as refused:
        connect(server.url)
    assert refused.value.status == 400


def test_headers_travel_both_ways(serve: Callable[..., Recorder], connect: Callable[..., Peer], seconds: float) -> None:
    server = serve(extra_headers={"X-Served-By": "wspy", "Set-Cookie": "a=b"}, server_header="something else")
    peer = connect(server.url + "/a/path?with=a%20query", headers={"X-Custom": "value", "Cookie": "c=d"})
    assert peer.headers["x-served-by"] == "wspy"
    assert peer.headers["set-cookie"] == "a=b"
    assert peer.headers["server"] == "something else"
    client = server.opened.get(timeout=seconds)
    assert client.path == "/a/path?with=a%20query"
    assert client.request is not None
    assert client.request.query == {"with": "a query"}
    assert client.request.headers["X-Custom"] == "value"
    assert client.request.headers["Cookie"] == "c=d"


def test_headers_can_depend_on_the_request(serve: Callable[..., Recorder], connect: Callable[..., Peer]) -> None:
    server = serve(extra_headers=lambda request: {"X-Path": request.path})
    assert connect(server.url + "/somewhere").headers["x-path"] == "/somewhere"


@pytest.mark.parametrize(
    ("options", "headers", "status"),
    [
        ({"locations": ["/here"]}, {}, 404),
        ({"trusted_origins": ["https://example.com"]}, {"Origin": "https://example.org"}, 403),
        ({"trusted_origins": ["https://example.com"], "require_origin": True}, {}, 403),
        ({"max_header_line": 300}, {"X-Long": "x" * 300}, 431),
        ({"max_headers": 3}, {}, 431),
    ],
    ids=["location", "origin", "no-origin", "header", "headers"],
)
def test_a_refusal_has_its_status(
    serve: Callable[..., Recorder],
    connect: Callable[..., Peer],
    options: dict[str, object],
    headers: dict[str, str],
    status: int,
) -> None:
    server = serve(**options)
    with pytest.raises(Refused) as refused:
        connect(server.url + "/there", headers=headers)
    assert refused.value.status == status
    assert server.opened.empty()


def test_one_connection_too_many(serve: Callable[..., Recorder], connect: Callable[..., Peer]) -> None:
    server = serve(max_connections=2)
    first, second = connect(server.url), connect(server.url)
    with pytest.raises(Refused) as refused:
        connect(server.url)
    assert refused.value.status == 503
    for peer in (first, second):
        peer.send("still here")
        assert peer.receive() == "still here"


class Guarded(Recorder):
    """Wants a password in the query."""

    def onrequest(self, request: wspy.Request) -> wspy.Response | None:
        if request.query.get("password") != "open sesame":
            return wspy.Response(401, headers={"WWW-Authenticate": "Query"}, body="no")
        return None


def test_the_application_refuses(connect: Callable[..., Peer], seconds: float) -> None:
    with Guarded() as server:
        server.start()
        with pytest.raises(Refused) as refused:
            connect(server.url)
        assert refused.value.status == 401
        peer = connect(server.url + "/?password=open+sesame")
        peer.send("x")
        assert peer.receive() == "x"
        assert peer.close().code == 1000
        assert server.ended.get(timeout=seconds) == (1000, "")


class Broken(Recorder):
    """Can't answer."""

    def onrequest(self, request: wspy.Request) -> wspy.Response | None:
        raise ZeroDivisionError


def test_the_application_fails(connect: Callable[..., Peer]) -> None:
    with Broken() as server:
        server.start()
        with pytest.raises(Refused) as refused:
            connect(server.url)
        assert refused.value.status == 500
