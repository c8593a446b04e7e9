"""Does software that nobody here wrote get through the TLS of AsyncServer, as a WebSocket and as plain HTTP?"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from certificates import authority, client_context, server_context
from peers import Aiohttp, AsyncWebsockets, NodeWs, Peer, SyncWebsockets
from programs import Program
from recorder import Recorder

import wspy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MEBIBYTE = hashlib.shake_256(b"wspy").digest(1 << 20)
PEERS = {"websockets.asyncio": AsyncWebsockets, "websockets.sync": SyncWebsockets, "aiohttp": Aiohttp}
CURL = shutil.which("curl")


class SecureSite(Recorder):
    """Echoes, and has a page."""

    def onrequest(self, request: wspy.Request) -> wspy.Response | None:
        if request.is_websocket:
            return None
        return wspy.Response(200, body=f"{request.path} over TLS: {request.secure}\n")


@pytest.fixture
def server() -> Iterator[SecureSite]:
    with SecureSite(ssl=server_context()) as server:
        yield server.start()


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """The file of the authority that the server's certificate is from."""
    path = tmp_path / "authority.pem"
    authority().cert_pem.write_to_path(path)
    return path


@pytest.fixture(params=[*PEERS, "ws"])
def connect(
    request: pytest.FixtureRequest, certificates: Path, seconds: float, patience: float
) -> Iterator[Callable[[str], Peer]]:
    """Return a function that connects to a URL as a foreign client that knows the authority."""
    with contextlib.ExitStack() as stack:
        if request.param == "ws":
            node = request.getfixturevalue("node").process.args
            variables = {"NODE_PATH": os.environ["WSPY_NODE_MODULES"], "NODE_EXTRA_CA_CERTS": str(certificates)}
            make: Callable[..., Peer] = partial(
                NodeWs, stack.enter_context(Program(*node, patience=patience, **variables))
            )
        else:
            make = partial(PEERS[request.param], seconds=seconds, ssl=client_context())
        yield lambda url: stack.enter_context(make(url=url))


def test_messages(server: SecureSite, connect: Callable[[str], Peer], seconds: float) -> None:
    peer = connect(server.url)
    for message in ("", "Größe", b"\0\xff", MEBIBYTE, "x" * 70_000):
        peer.send(message)
        assert peer.receive() == message
    assert server.opened.get(timeout=seconds).secure
    peer.close(1000, "bye")
    assert server.ended.get(timeout=seconds) == (1000, "bye")


def test_the_server_closes(server: SecureSite, connect: Callable[[str], Peer], seconds: float) -> None:
    peer = connect(server.url)
    server.opened.get(timeout=seconds).close(4000, "enough")
    end = peer.wait_closed()
    assert (end.code, end.reason) == (4000, "enough")


def curl(server: SecureSite, certificates: Path, seconds: float, *arguments: str) -> subprocess.CompletedProcess[Any]:
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--cacert", str(certificates), *arguments]
    command.append(server.url.replace("wss:", "https:") + "/page")
    return subprocess.run(command, capture_output=True, timeout=seconds, check=False)


@pytest.mark.skipif(CURL is None, reason="curl isn't installed")
@pytest.mark.parametrize("version", ["--tlsv1.2", "--tlsv1.3"])
def test_https(server: SecureSite, certificates: Path, seconds: float, version: str) -> None:
    assert curl(server, certificates, seconds, version).stdout == b"/page over TLS: True\n"


@pytest.mark.skipif(CURL is None, reason="curl isn't installed")
def test_http_on_that_port(server: SecureSite, seconds: float) -> None:
    url = server.url.replace("wss:", "http:")
    command = ["curl", "--silent", "--include", "--noproxy", "*", url]
    done = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
    assert done.stdout.startswith(b"HTTP/1.1 400 Bad Request\r\n")
