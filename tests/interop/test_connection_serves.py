"""Do foreign clients get along with a websocket that listens, and with a Connection at the server's end?"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from listeners import Connections, Listener, Websockets
from peers import End, Ended, Peer, Refused

from wspy import websocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEBIBYTE = 1 << 20
RANDOM = hashlib.shake_256(b"wspy").digest(MEBIBYTE)
MESSAGES: list[str | bytes] = [
    "",
    "Größe, 漢字, \U0001f600, \0",
    *("x" * size for size in (125, 126, 65535, 65536, MEBIBYTE)),
    b"",
    *(RANDOM[:size] for size in (125, 126, 65535, 65536, MEBIBYTE)),
]


@pytest.fixture(params=[Connections, Websockets])
def listen(request: pytest.FixtureRequest, seconds: float) -> Iterator[Callable[..., Listener]]:
    """Return a function that starts a server with the given options: once for each level."""
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> Listener:
            listener: Listener = request.param(**options)
            listener.start()
            stack.callback(lambda: no_errors(listener))
            stack.callback(listener.stop, seconds)
            return listener

        yield start


def no_errors(listener: Listener) -> None:
    assert listener.errors == []


@pytest.fixture
def server(listen: Callable[..., Listener]) -> Listener:
    """Return a server with the default options."""
    return listen()


@pytest.fixture
def connections(seconds: float) -> Iterator[Connections]:
    """Return a server whose clients are Connections."""
    listener = Connections()
    listener.start()
    yield listener
    listener.stop(seconds)
    no_errors(listener)


# ---- messages ----


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: f"{type(message).__name__} {len(message)}")
def test_a_message_comes_back(server: Listener, connect: Callable[..., Peer], message: str | bytes) -> None:
    peer = connect(server.url)
    peer.send(message)
    assert peer.receive() == message


@pytest.mark.parametrize(
    "parts",
    [["one", "", "two", "three"], [b"\0", b"\xff" * 70_000, b""], ["", ""], ["x" * 1000] * 100],
    ids=["text", "binary", "empty", "many"],
)
def test_fragments_of_the_peer(server: Listener, connect: Callable[..., Peer], parts: list[str] | list[bytes]) -> None:
    peer = connect(server.url)
    whole = type(parts[0])().join(parts)  # type: ignore[arg-type]
    if peer.sends_fragments:
        peer.send_fragments(parts)
    else:
        peer.send(whole)
    assert peer.receive() == whole


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("message", ["Größe \U0001f600" * 50, RANDOM[:3000], ""], ids=["text", "binary", "empty"])
def test_fragments_of_ours(
    connections: Connections, connect: Callable[..., Peer], seconds: float, message: str | bytes, size: int
) -> None:
    peer = connect(connections.url)
    connections.opened.get(timeout=seconds).send(message, size)
    assert peer.receive() == message


def test_sixteen_clients_get_their_own_echoes(server: Listener, connect: Callable[..., Peer]) -> None:
    peers = [connect(server.url) for _ in range(16)]
    for turn in range(10):
        for number, peer in enumerate(peers):
            peer.send(f"{turn} of {number}")
            peer.send(bytes([number]) * 1000)
    for number, peer in enumerate(peers):
        for turn in range(10):
            assert peer.receive() == f"{turn} of {number}"
            assert peer.receive() == bytes([number]) * 1000


# ---- control frames ----


@pytest.mark.parametrize("payload", [b"", b"ping", b"\xff" * 125], ids=len)
def test_the_peer_pings(server: Listener, connect: Callable[..., Peer], payload: bytes) -> None:
    connect(server.url).ping(payload)


@pytest.mark.parametrize("payload", [b"", b"ping", b"\xff" * 125], ids=len)
def test_the_connection_pings(
    connections: Connections, connect: Callable[..., Peer], seconds: float, payload: bytes
) -> None:
    peer = connect(connections.url)
    connection = connections.opened.get(timeout=seconds)
    connection.send_ping(payload)
    connection.send("after the ping")
    assert peer.receive() == "after the ping"
    assert connections.pongs.get(timeout=seconds) == payload


@pytest.mark.parametrize("reason", ["", "Tschüs", "x" * 123], ids=len)
@pytest.mark.parametrize("code", [1000, 1001, 1014, 3000, 4999])
def test_the_peer_closes(
    server: Listener, connect: Callable[..., Peer], seconds: float, code: int, reason: str
) -> None:
    peer = connect(server.url)
    assert peer.close(code, reason).code == code
    assert server.ended.get(timeout=seconds) == (code, reason)


@pytest.mark.parametrize("reason", ["", "Tschüs", "x" * 123], ids=len)
@pytest.mark.parametrize("code", [1000, 1001, 1014, 3000, 4999])
def test_the_connection_closes(
    connections: Connections, connect: Callable[..., Peer], seconds: float, code: int, reason: str
) -> None:
    peer = connect(connections.url)
    connections.opened.get(timeout=seconds).send_close_frame(code, reason)
    assert peer.wait_closed() == End(code, reason)
    assert connections.ended.get(timeout=seconds)[0] == (peer.answer_code or code)


def test_what_was_sent_before_the_close_arrives(
    connections: Connections, connect: Callable[..., Peer], seconds: float
) -> None:
    peer = connect(connections.url)
    connection = connections.opened.get(timeout=seconds)
    messages = ["x" * 100_000, "last"]
    for message in messages:
        connection.send(message)
    connection.send_close_frame()
    assert [peer.receive() for _ in messages] == messages
    with pytest.raises(Ended):
        peer.receive()
    assert connections.ended.get(timeout=seconds)[0] == 1000


def test_a_message_over_max_size(listen: Callable[..., Listener], connect: Callable[..., Peer]) -> None:
    server = listen(max_size=1000)
    peer = connect(server.url)
    peer.send("x" * 1000)
    assert peer.receive() == "x" * 1000
    if isinstance(server, Connections):  # a websocket raises it, and its user ends
        peer.send("x" * 1001)
        assert peer.wait_closed().code == 1009


# ---- the opening handshake ----


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["chat"], "chat"), (["superchat", "chat"], "superchat"), (["other", "chat"], "chat"), ([], None)],
)
def test_a_subprotocol_is_chosen(
    listen: Callable[..., Listener],
    connect: Callable[..., Peer],
    seconds: float,
    offered: list[str],
    chosen: str | None,
) -> None:
    server = listen(protocols=["chat", "superchat"])
    assert connect(server.url, subprotocols=offered).subprotocol == chosen
    client = server.opened.get(timeout=seconds)
    assert (client if isinstance(client, websocket) else client.sock).protocol == chosen


def test_headers_travel_both_ways(
    listen: Callable[..., Listener], connect: Callable[..., Peer], seconds: float
) -> None:
    server = listen(extra_headers={"X-Served-By": "wspy"})
    peer = connect(server.url + "/a/path?with=a%20query", headers={"X-Custom": "value", "Cookie": "c=d"})
    assert peer.headers["x-served-by"] == "wspy"
    client = server.opened.get(timeout=seconds)
    sock = client if isinstance(client, websocket) else client.sock
    assert sock.location == "/a/path?with=a%20query"
    assert (sock.request_headers["X-Custom"], sock.request_headers["Cookie"]) == ("value", "c=d")


def test_who_is_not_let_in_is_told(listen: Callable[..., Listener], connect: Callable[..., Peer]) -> None:
    """And the next one is served."""
    server = listen(locations=["/here"], trusted_origins=["https://good.example"])
    for path, origin, status in (("/there", "https://good.example", 404), ("/here", "https://evil.example", 403)):
        with pytest.raises(Refused) as refused:
            connect(server.url + path, headers={"Origin": origin})
        assert refused.value.status == status
    peer = connect(server.url + "/here", headers={"Origin": "https://good.example"})
    peer.send("x")
    assert peer.receive() == "x"


def test_nobody_gets_compression(server: Listener, connect: Callable[..., Peer]) -> None:
    peer = connect(server.url, deflate=True)
    assert peer.extensions is None
    peer.send("x" * 1000)
    assert peer.receive() == "x" * 1000
