"""Do our blocking clients, Connection and websocket, get along with servers that nobody here wrote?"""

from __future__ import annotations

import contextlib
import json
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from foreign import PIECES, SERVERS, AiohttpServer, NodeServer

import wspy
from wspy import (
    OPCODE_CLOSE,
    OPCODE_CONTINUATION,
    OPCODE_PING,
    OPCODE_PONG,
    OPCODE_TEXT,
    Connection,
    ControlFrame,
    websocket,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from foreign import Foreign

MEBIBYTE = 1 << 20
SIZES = [0, 1, 125, 126, 65535, 65536, MEBIBYTE]


class Messages:
    """A client with ``Connection``."""

    def __init__(self, url: str, seconds: float, **options: Any) -> None:
        self._pongs: list[bytes] = []
        pongs = self._pongs

        class Client(Connection):
            def onpong(self, payload: bytes) -> None:
                pongs.append(payload)

        self.connection = Client.connect(url, close_timeout=seconds, **options)
        self.connection.sock.settimeout(seconds)
        self.sock = self.connection.sock

    def send(self, message: str | bytes, size: int | None = None) -> None:
        self.connection.send(message, size)

    def receive(self) -> str | bytes:
        """Return the next message."""
        message = self.connection.recv()
        return message.payload if isinstance(message.payload, str) else bytes(message.payload)

    def ping(self, payload: bytes) -> None:
        self.connection.send_ping(payload)
        self.send("after the ping")
        assert self.receive() == "after the ping"
        assert self._pongs == [payload]

    def close(self, code: int, reason: str) -> tuple[int | None, str]:
        self.connection.close(code, reason)
        return self.connection.close_code, self.connection.close_reason

    def closed(self) -> tuple[int | None, str]:
        """Wait until the server closes."""
        with pytest.raises(wspy.SocketClosed) as caught:
            self.receive()
        assert caught.value.rcvd == (self.connection.close_code, self.connection.close_reason)
        return self.connection.close_code, self.connection.close_reason

    def free(self) -> None:
        self.sock.close()


class Frames:
    """A client with ``websocket``: what Connection does by itself is done here, frame by frame."""

    def __init__(self, url: str, seconds: float, **options: Any) -> None:
        self.sock = websocket(**options)
        self.sock.settimeout(seconds)
        self.sock.connect(url)
        self._pongs: list[bytes] = []

    def send(self, message: str | bytes, size: int | None = None) -> None:
        whole = wspy.TextMessage(message) if isinstance(message, str) else wspy.BinaryMessage(message)
        self.sock.send(*([whole.frame()] if size is None else whole.fragment(size)))

    def _frame(self) -> wspy.Frame:
        while True:
            frame = self.sock.recv()
            if frame.opcode == OPCODE_PING:
                self.sock.send(ControlFrame(OPCODE_PONG, frame.payload))
            elif frame.opcode == OPCODE_PONG:
                self._pongs.append(bytes(frame.payload))
            else:
                return frame

    def receive(self) -> str | bytes:
        """Return the next message."""
        frames = [self._frame()]
        assert frames[0].opcode != OPCODE_CLOSE
        while not frames[-1].final:
            frames.append(self._frame())
        payload = b"".join(bytes(frame.payload) for frame in frames)
        return payload.decode() if frames[0].opcode == OPCODE_TEXT else payload

    def ping(self, payload: bytes) -> None:
        self.sock.send(ControlFrame(OPCODE_PING, payload))
        self.send("after the ping")
        assert self.receive() == "after the ping"
        assert self._pongs == [payload]

    def close(self, code: int, reason: str) -> tuple[int | None, str]:
        self.sock.send(wspy.create_close_frame(code, reason))
        return self._end()

    def closed(self) -> tuple[int | None, str]:
        """Wait until the server closes."""
        end = self._end()
        self.sock.send(wspy.create_close_frame(end[0]))
        return end

    def _end(self) -> tuple[int | None, str]:
        frame = self._frame()
        assert isinstance(frame, ControlFrame)
        return frame.unpack_close()

    def free(self) -> None:
        self.sock.close()


CLIENTS: dict[str, type[Messages | Frames]] = {"Connection": Messages, "websocket": Frames}


@pytest.fixture(params=[*SERVERS, "ws"])
def start(request: pytest.FixtureRequest, seconds: float) -> Iterator[Callable[..., Foreign]]:
    """Return a function that starts a foreign server: once for each of them."""
    if request.param == "ws":
        make: Callable[..., Foreign] = partial(NodeServer, seconds, node=request.getfixturevalue("node"))
    else:
        make = partial(SERVERS[request.param], seconds)
    with contextlib.ExitStack() as servers:
        yield lambda **options: servers.enter_context(make(**options))


@pytest.fixture
def server(start: Callable[..., Foreign]) -> Foreign:
    return start()


@pytest.fixture
def web(seconds: float) -> Iterator[AiohttpServer]:
    """A server that has more than WebSockets."""
    with AiohttpServer(seconds) as server:
        yield server


@pytest.fixture(params=CLIENTS)
def connect(request: pytest.FixtureRequest, seconds: float) -> Iterator[Callable[..., Messages | Frames]]:
    """Return a function that connects to a URL: once for each kind of our clients."""
    with contextlib.ExitStack() as clients:

        def connect(url: str, **options: Any) -> Messages | Frames:
            client = CLIENTS[request.param](url, seconds, **options)
            clients.callback(client.free)
            return client

        yield connect


# ---- messages ----


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["text", "binary"])
def test_a_message_comes_back(server: Foreign, connect: Callable[..., Messages | Frames], kind: str, size: int) -> None:
    """With each form of the length, RFC 6455 §5.2."""
    client = connect(server.url + "/echo")
    message: str | bytes = "xyz€"[: size % 4] + "x" * (size - size % 4) if kind == "text" else bytes(range(256)) * 4096
    message = message[:size]
    client.send(message)
    assert client.receive() == message


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "message", ["Größe \U0001f600" * 50, bytes(range(256)) * 12, ""], ids=["text", "binary", "empty"]
)
def test_fragments_of_ours(
    server: Foreign, connect: Callable[..., Messages | Frames], message: str | bytes, size: int
) -> None:
    """RFC 6455 §5.4; a code point may be in two of them."""
    client = connect(server.url + "/echo")
    client.send(message, size)
    assert client.receive() == message


@pytest.mark.parametrize(
    "message", ["Größe, 漢字 \U0001f600", b"\0\xff" * 70_000, "", b"1"], ids=["text", "binary", "empty", "1 byte"]
)
def test_fragments_of_the_server(
    server: Foreign, connect: Callable[..., Messages | Frames], message: str | bytes
) -> None:
    client = connect(server.url + "/fragments")
    client.send(message)
    assert client.receive() == message
    if server.sends_fragments and isinstance(client, Frames):
        client.send("some of them")
        frames = [client.sock.recv()]
        while not frames[-1].final:
            frames.append(client.sock.recv())
        assert [frame.opcode for frame in frames] == [OPCODE_TEXT, *[OPCODE_CONTINUATION] * (len(frames) - 1)]
        assert len(frames) >= PIECES


def test_many_messages_in_flight_keep_their_order(server: Foreign, connect: Callable[..., Messages | Frames]) -> None:
    client = connect(server.url + "/echo")
    messages = [f"{number} " + "x" * (number * 7 % 300) for number in range(300)]
    for message in messages:
        client.send(message)
    assert [client.receive() for _ in messages] == messages


@pytest.mark.slow
def test_big_messages_in_both_directions_at_once(
    server: Foreign, connect: Callable[..., Messages | Frames], seconds: float
) -> None:
    """A thread sends while another one receives: neither waits for the other for ever."""
    count, size = 12, MEBIBYTE
    client = connect(f"{server.url}/flood?count={count}&size={size}")
    payload = bytes(size)

    def send() -> None:
        for _ in range(count):
            client.send(payload)

    sender = threading.Thread(target=send)
    sender.start()
    received = [client.receive() for _ in range(count + 1)]
    sender.join(seconds)
    assert not sender.is_alive()
    assert received.count(payload) == count
    assert str(count * size) in received


# ---- control frames ----


@pytest.mark.parametrize("payload", [b"", b"ping", b"\xff" * 125], ids=len)
def test_our_pings_are_answered(server: Foreign, connect: Callable[..., Messages | Frames], payload: bytes) -> None:
    connect(server.url + "/echo").ping(payload)


@pytest.mark.parametrize("payload", [b"", b"ping", b"\xff" * 125], ids=len)
def test_their_pings_are_answered(server: Foreign, connect: Callable[..., Messages | Frames], payload: bytes) -> None:
    client = connect(server.url + "/ping")
    client.send(payload)
    assert client.receive() == payload


@pytest.mark.parametrize("reason", ["", "Tschüs", "x" * 123], ids=len)
@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000, 4999])
def test_we_close(server: Foreign, connect: Callable[..., Messages | Frames], code: int, reason: str) -> None:
    client = connect(server.url + "/echo")
    client.send("x")
    assert client.receive() == "x"
    assert client.close(code, reason)[0] == code
    client.free()
    assert server.ended() == (code, reason)


@pytest.mark.parametrize("reason", ["", "ciao", "x" * 123], ids=len)
@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000, 4999])
def test_the_server_closes(server: Foreign, connect: Callable[..., Messages | Frames], code: int, reason: str) -> None:
    client = connect(f"{server.url}/close?code={code}&reason={reason}")
    client.send("close")
    assert client.closed() == (code, reason)
    client.free()
    assert server.ended()[0] == code


def test_a_server_that_closes_is_not_sent_to(server: Foreign, connect: Callable[..., Messages | Frames]) -> None:
    client = connect(f"{server.url}/close?code=1000")
    client.send("close")
    client.closed()
    with pytest.raises(wspy.SocketClosed):
        client.send("too late")


# ---- the opening handshake ----


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["chat"], "chat"), (["other", "chat"], "chat"), (["chat", "super"], None)]
)
def test_a_subprotocol_is_chosen(
    start: Callable[..., Foreign], connect: Callable[..., Messages | Frames], offered: list[str], chosen: str | None
) -> None:
    """Of two that both speak the server may take either."""
    client = connect(start(subprotocols=["super", "chat"]).url + "/echo", protocols=offered)
    assert client.sock.protocol == (chosen or client.sock.protocol)
    assert client.sock.protocol in {"chat", "super"}


def test_no_subprotocol_is_common(start: Callable[..., Foreign], connect: Callable[..., Messages | Frames]) -> None:
    server = start(subprotocols=["chat"])
    if server.refuses_subprotocols:
        with pytest.raises(wspy.ResponseError) as refused:
            connect(server.url + "/echo", protocols=["other"])
        assert refused.value.status == 400
        assert refused.value.body
    else:
        assert connect(server.url + "/echo", protocols=["other"]).sock.protocol is None


def test_the_server_sees_path_and_headers(server: Foreign, connect: Callable[..., Messages | Frames]) -> None:
    headers = {"X-Custom": "value", "Authorization": "Basic b3BlbjpzZXNhbWU=", "Cookie": "a=b"}
    path = "/request?with=a%20query"
    client = connect(server.url + path, extra_headers=headers, origin="http://here.example")
    seen = json.loads(client.receive())
    assert seen["path"] == path
    assert {name: seen["headers"][name.lower()] for name in headers} == headers
    assert seen["headers"]["origin"] == "http://here.example"
    assert seen["headers"]["host"] == f"127.0.0.1:{server.port}"


def test_nobody_compresses(server: Foreign, connect: Callable[..., Messages | Frames]) -> None:
    client = connect(server.url + "/request")
    assert "sec-websocket-extensions" not in json.loads(client.receive())["headers"]


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/nowhere", 404, b"404: Not Found"),
        ("/unauthorized", 401, b"who are you?"),
        ("/plain", 200, b"no WebSocket here"),
    ],
)
def test_an_answer_that_is_no_101(
    web: AiohttpServer, connect: Callable[..., Messages | Frames], path: str, status: int, body: bytes
) -> None:
    with pytest.raises(wspy.ResponseError) as refused:
        connect(web.url + path)
    assert (refused.value.status, refused.value.body) == (status, body)
    assert refused.value.headers["content-type"].startswith("text/plain")
    if status == 401:
        assert refused.value.headers["www-authenticate"] == 'Basic realm="here"'


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("is_absolute", [False, True], ids=["relative", "absolute"])
def test_a_redirect_is_followed(
    web: AiohttpServer, connect: Callable[..., Messages | Frames], status: int, is_absolute: bool
) -> None:
    to = f"http://127.0.0.1:{web.port}/request" if is_absolute else "/request"
    client = connect(f"{web.url}/moved?status={status}&to={to}", extra_headers={"Authorization": "Basic eDp5"})
    seen = json.loads(client.receive())
    assert seen["path"] == "/request"
    assert seen["headers"]["authorization"] == "Basic eDp5"


def test_another_origin_sees_no_credentials(
    web: AiohttpServer, connect: Callable[..., Messages | Frames], seconds: float
) -> None:
    with AiohttpServer(seconds) as other:
        to = f"http://127.0.0.1:{other.port}/request"
        client = connect(f"{web.url}/moved?to={to}", extra_headers={"Authorization": "Basic eDp5", "X-Kept": "yes"})
        seen = json.loads(client.receive())
        assert "authorization" not in seen["headers"]
        assert seen["headers"]["x-kept"] == "yes"
        client.free()


def test_redirects_in_a_circle_end(web: AiohttpServer, connect: Callable[..., Messages | Frames]) -> None:
    with pytest.raises(wspy.ResponseError, match="redirects"):
        connect(web.url + "/loop")
