"""Does TLS work with others? Our clients with their servers, and their clients with our listeners."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import websockets
import websockets.sync.client
from certificates import authority, client_context, server_context
from foreign import SERVERS, NodeServer
from listeners import Connections, Listener, Websockets

from wspy import Connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foreign import Foreign
    from programs import Program

MEBIBYTE = 1 << 20


# ---- our clients ----


@pytest.fixture(params=[*SERVERS, "ws"])
def server(request: pytest.FixtureRequest, seconds: float) -> Iterator[Foreign]:
    """A foreign server that speaks TLS: once for each of them."""
    made: Foreign
    if request.param == "ws":
        made = NodeServer(seconds, node=request.getfixturevalue("node"), secure=True)
    else:
        made = SERVERS[request.param](seconds, secure=True)
    with made:
        yield made


@pytest.mark.parametrize("size", [0, 1, 16_384, MEBIBYTE])
def test_messages_come_back(server: Foreign, seconds: float, size: int) -> None:
    url = server.url.replace("127.0.0.1", "localhost") + "/echo"
    with Connection.connect(url, ssl=client_context(), max_size=None, close_timeout=seconds) as connection:
        assert connection.sock.secure
        connection.sock.settimeout(seconds)
        for message in ("x" * size, bytes(size)):
            connection.send(message)
            assert connection.recv().payload == message
        connection.send_ping(b"are you there?")
        connection.close(4321, "enough")
        assert connection.close_code == 4321
    assert server.ended() == (4321, "enough")


def test_the_server_closes(server: Foreign, seconds: float) -> None:
    url = server.url + "/close?code=4000&reason=go"
    connection = Connection.connect(url, ssl=client_context(), close_timeout=seconds)
    connection.sock.settimeout(seconds)
    connection.send("now")
    assert list(connection) == []
    assert (connection.close_code, connection.close_reason) == (4000, "go")


def test_much_in_both_directions(server: Foreign, seconds: float) -> None:
    count, size = 100, 50_000
    url = f"{server.url}/flood?count={count}&size={size}"
    with Connection.connect(url, ssl=client_context(), max_size=None, close_timeout=seconds) as connection:
        connection.sock.settimeout(seconds)
        for _ in range(count):
            connection.send(bytes(size))
            assert len(connection.recv().payload) == size
        assert connection.recv().payload == str(count * size)


def test_it_is_not_trusted_by_default(server: Foreign) -> None:
    with pytest.raises(OSError, match="certificate"):
        Connection.connect(server.url + "/echo")


# ---- our servers ----


@pytest.fixture(params=[Connections, Websockets])
def listener(request: pytest.FixtureRequest, seconds: float) -> Iterator[Listener]:
    """A listener that speaks TLS: once for each level."""
    made: Listener = request.param(ssl=server_context(), max_size=None)
    made.start()
    yield made
    made.stop(seconds)
    assert made.errors == []


def secure_url(listener: Listener) -> str:
    return listener.url.replace("ws:", "wss:").replace("127.0.0.1", "localhost")


def test_websockets(listener: Listener, seconds: float) -> None:
    connecting = websockets.sync.client.connect(
        secure_url(listener), ssl=client_context(), proxy=None, open_timeout=seconds, max_size=None
    )
    with connecting as connection:
        for message in ("x", bytes(MEBIBYTE)):
            connection.send(message)
            assert connection.recv(seconds) == message
        assert connection.ping().wait(seconds)
    assert connection.close_code == 1000
    assert listener.ended.get(timeout=seconds)[0] == 1000


def test_aiohttp(listener: Listener, seconds: float) -> None:
    async def converse() -> int | None:
        async with aiohttp.ClientSession() as session:
            options: dict[str, Any] = {"ssl": client_context(), "max_msg_size": 0}
            async with session.ws_connect(secure_url(listener), **options) as socket:
                for size in (0, 1, MEBIBYTE):
                    await socket.send_bytes(bytes(size))
                    assert await socket.receive_bytes() == bytes(size)
            return socket.close_code

    assert asyncio.run(asyncio.wait_for(converse(), seconds)) == 1000
    assert listener.ended.get(timeout=seconds)[0] == 1000


def test_ws(listener: Listener, node: Program, seconds: float) -> None:
    def ask(operation: str, **arguments: Any) -> Any:
        node.write(json.dumps({"operation": operation, **arguments}))
        answer = json.loads(node.line())
        assert "error" not in answer, answer["error"]
        return answer["result"]

    trusted = {"ca": authority().cert_pem.bytes().decode()}
    number = ask("open", url=secure_url(listener), subprotocols=[], headers={}, deflate=False, tls=trusted)["id"]
    for text in ("x", "y" * MEBIBYTE):
        ask("send", id=number, message={"text": text}, fin=True)
        assert ask("receive", id=number) == {"text": text}
    assert ask("close", id=number, code=1000, reason="") == [1000, ""]
    assert listener.ended.get(timeout=seconds)[0] == 1000


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl isn't installed")
def test_curl_is_told_to_upgrade(listener: Listener, seconds: float, tmp_path: Any) -> None:
    authority().cert_pem.write_to_path(str(tmp_path / "trusted"))
    command = [
        "curl",
        "--silent",
        "--noproxy",
        "*",
        "--cacert",
        str(tmp_path / "trusted"),
        "--write-out",
        "%{http_code}",
    ]
    done = subprocess.run(
        [*command, secure_url(listener).replace("wss:", "https:")], capture_output=True, timeout=seconds, check=True
    )
    assert done.stdout.decode().endswith("426")
