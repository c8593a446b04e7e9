"""Do others understand how we ask who they are, and do we understand how others ask?"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import httpx
import pytest
import websockets
import websockets.sync.client
import websockets.sync.server
from foreign import ThreadingWebsockets
from proxies import PASSWORD, USERNAME, Apache, Nginx
from recorder import Recorder
from sockets import Running

import wspy
from wspy import BasicAuth, Connection, DigestAuth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxies import Proxy

PAIR = ("müller", 'pä:ss, "word"')
ASCII = ("user", 'pass, "word"')
PEOPLE = [PAIR, ASCII]
POLICIES: dict[str, Callable[[], list[wspy.Auth]]] = {
    "basic": lambda: [BasicAuth(PEOPLE, "the realm, here")],
    "digest": lambda: [DigestAuth(PEOPLE, "the realm, here")],
    "digest with SHA-256": lambda: [DigestAuth(PEOPLE, algorithms=["SHA-256"])],
    "digest with MD5": lambda: [DigestAuth(PEOPLE, algorithms=["MD5"])],
    "both": lambda: [DigestAuth(PEOPLE), BasicAuth(PEOPLE)],
}


class Greeting(Recorder):
    """Greets who asks by plain HTTP."""

    def onrequest(self, request: wspy.Request) -> wspy.Response | None:
        return None if request.is_websocket else wspy.Response(200, body=f"hello, {request.username}\n")


@pytest.fixture
def ask(seconds: float) -> Iterator[Callable[..., Greeting]]:
    """Return a function that starts a server with policies."""
    servers: list[Greeting] = []

    def start(name: str) -> Greeting:
        servers.append(Greeting(auth=POLICIES[name]()))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
        assert server.join(seconds)


# ---- others are asked ----


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl isn't installed")
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("password", [PAIR[1], "wrong"])
def test_curl(ask: Callable[..., Greeting], seconds: float, name: str, password: str) -> None:
    server = ask(name)
    command = ["curl", "--silent", "--noproxy", "*", "--anyauth", "--user", f"{PAIR[0]}:{password}"]
    command += ["--write-out", "%{http_code}", server.url.replace("ws:", "http:") + "/page?x=%20"]
    done = subprocess.run(command, capture_output=True, timeout=seconds, check=True)
    right = password == PAIR[1]
    assert done.stdout.decode() == (f"hello, {PAIR[0]}\n200" if right else "401 Unauthorized\n401")


@pytest.mark.parametrize("name", POLICIES)
def test_httpx(ask: Callable[..., Greeting], seconds: float, name: str) -> None:
    server = ask(name)
    pair = PAIR if name == "basic" else ASCII  # it can't send another user name in a digest
    url = server.url.replace("ws:", "http:") + "/page?x=%20"
    make: Any = httpx.BasicAuth if name == "basic" else httpx.DigestAuth
    with httpx.Client(timeout=seconds, trust_env=False) as client:
        for _ in range(3):  # with the same nonce, whose count rises
            assert client.get(url, auth=make(*pair)).text == f"hello, {pair[0]}\n"
        assert client.get(url, auth=make(pair[0], "wrong")).status_code == 401
        client.auth = make(*pair)
        assert [client.get(url).status_code for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "basic"])
def test_aiohttp(ask: Callable[..., Greeting], seconds: float, name: str) -> None:
    """By a WebSocket."""
    server = ask(name)

    async def greet(password: str) -> str:
        digest = aiohttp.DigestAuthMiddleware(PAIR[0], password)
        async with aiohttp.ClientSession(middlewares=[digest]) as session, session.ws_connect(server.url) as socket:
            await socket.send_str("x")
            return str(await socket.receive_str())

    assert asyncio.run(asyncio.wait_for(greet(PAIR[1]), seconds)) == "x"
    assert server.opened.get(timeout=seconds).username == PAIR[0]
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        asyncio.run(asyncio.wait_for(greet("wrong"), seconds))
    assert caught.value.status == 401
    assert server.opened.empty()


@pytest.mark.parametrize("name", ["basic", "both"])
def test_websockets(ask: Callable[..., Greeting], seconds: float, name: str) -> None:
    """Which says who it is before it is asked."""
    server = ask(name)
    url = server.url.replace("//", "//{}:{}@".format(*map(quote, PAIR)))
    with websockets.sync.client.connect(url, proxy=None, open_timeout=seconds) as connection:
        assert server.opened.get(timeout=seconds).username == PAIR[0]
        connection.send("x")
        assert connection.recv(seconds) == "x"
    with pytest.raises(websockets.InvalidStatus) as caught:
        websockets.sync.client.connect(url.replace("word", "words"), proxy=None, open_timeout=seconds)
    assert caught.value.response.status_code == 401


# ---- we are asked ----


def asks_twice(connect: Callable[[str], Connection]) -> None:
    """Echo with the right password; get a 401 with a wrong one."""
    with connect(PASSWORD) as connection:
        connection.send("x")
        assert connection.recv().payload == "x"
    for wrong in ("wrong", ""):
        with pytest.raises(wspy.ResponseError) as caught:
            connect(wrong)
        assert caught.value.status == 401


@pytest.mark.parametrize("form", ["auth", "uri"])
@pytest.mark.parametrize("kind", [Nginx, Apache])
def test_a_proxy_that_asks(kind: type[Proxy], seconds: float, form: str) -> None:
    def connect(password: str) -> Connection:
        if form == "auth":
            return Connection.connect(f"ws://{proxy.address}/echo?x=%20y", auth=(USERNAME, password))
        return Connection.connect(f"ws://{USERNAME}:{quote(password)}@{proxy.address}/echo?x=%20y")

    with ThreadingWebsockets(seconds) as server, kind(server.port, seconds) as proxy:
        asks_twice(connect)
        with pytest.raises(wspy.ResponseError) as caught:
            Connection.connect(f"ws://{proxy.address}/echo")
        assert caught.value.status == 401


def test_websockets_asks(seconds: float) -> None:
    def echo(connection: websockets.sync.server.ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    checks = websockets.sync.server.basic_auth("a realm", credentials=(USERNAME, PASSWORD))
    with websockets.sync.server.serve(echo, "127.0.0.1", 0, process_request=checks, close_timeout=seconds) as server:
        serving = Running(server.serve_forever)
        address = server.socket.getsockname()
        asks_twice(lambda password: Connection.connect(address, auth=(USERNAME, password)))
        server.shutdown()
        serving.result()
