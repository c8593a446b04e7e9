"""What the interoperability tests share: servers that are watched, and one factory for each foreign client."""

from __future__ import annotations

import contextlib
import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from peers import Aiohttp, AsyncWebsockets, NodeWs, Peer, SyncWebsockets
from programs import Program
from recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WS_PEER = Path(__file__).with_name("ws_peer.cjs")
PEERS = {"websockets.asyncio": AsyncWebsockets, "websockets.sync": SyncWebsockets, "aiohttp": Aiohttp}


@pytest.fixture
def seconds(patience: float) -> float:
    """Return what anything may take before a test fails."""
    return 20 * patience


@pytest.fixture
def serve() -> Iterator[Callable[..., Recorder]]:
    """Return a function that starts a server with the given options; no handler may raise until its end."""
    with contextlib.ExitStack() as servers:

        def start(**options: Any) -> Recorder:
            server = servers.enter_context(Recorder(**options))
            servers.callback(lambda: assert_no_errors(server))
            server.start()
            return server

        yield start


def assert_no_errors(server: Recorder) -> None:
    assert [server.errors.get() for _ in range(server.errors.qsize())] == []


@pytest.fixture
def server(serve: Callable[..., Recorder]) -> Recorder:
    """Return a server with the default options."""
    return serve()


@pytest.fixture(scope="module")
def node(patience: float) -> Iterator[Program]:
    """Start Node.js with the package ws."""
    program = shutil.which("node")
    modules = os.environ.get("WSPY_NODE_MODULES", "")
    if program is None:
        pytest.skip("node isn't installed")
    if not (Path(modules) / "ws").is_dir():
        pytest.skip("WSPY_NODE_MODULES doesn't name a directory that has the package ws")
    with Program(program, WS_PEER, patience=patience, NODE_PATH=modules) as process:
        yield process


@pytest.fixture(params=[*PEERS, "ws"])
def connect(request: pytest.FixtureRequest, seconds: float) -> Iterator[Callable[..., Peer]]:
    """Return a function that connects to a URL as a foreign client: once for each of them."""
    make: Callable[..., Peer]
    if request.param == "ws":
        make = partial(NodeWs, request.getfixturevalue("node"))
    else:
        make = partial(PEERS[request.param], seconds=seconds)
    with contextlib.ExitStack() as peers:
        yield lambda url, **options: peers.enter_context(make(url=url, **options))
