"""Is a websocket a socket that speaks frames?"""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

import wspy
from wspy import OPCODE_BINARY, OPCODE_PING, OPCODE_TEXT, Frame, SocketClosed, websocket

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_S = 15.0


@pytest.fixture
def pair() -> Iterator[tuple[websocket, websocket]]:
    """A client and a server that are connected."""
    with websocket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(DEADLINE_S)
        accepted: list[websocket] = []
        thread = threading.Thread(target=lambda: accepted.append(listener.accept()[0]))
        thread.start()
        client = websocket(location="/path?query")
        client.settimeout(DEADLINE_S)
        client.connect(listener.getsockname())
        thread.join(DEADLINE_S)
    accepted[0].settimeout(DEADLINE_S)
    with client, accepted[0] as server:
        yield client, server


def test_frames_go_both_ways(pair: tuple[websocket, websocket]) -> None:
    client, server = pair
    client.send(Frame(OPCODE_TEXT, "to the server"), Frame(OPCODE_PING, b"?"))
    assert server.recvn(2) == [Frame(OPCODE_TEXT, "to the server"), wspy.ControlFrame(OPCODE_PING, b"?")]
    server.send(Frame(OPCODE_BINARY, b"to the client"))
    assert client.recv() == Frame(OPCODE_BINARY, b"to the client")


def test_the_handshake_is_known_afterwards(pair: tuple[websocket, websocket]) -> None:
    client, server = pair
    assert client.handshake_sent
    assert server.handshake_sent
    assert server.location == "/path?query"
    assert server.request_headers is not None
    host, port = client.getpeername()
    assert server.request_headers["host"] == f"{host}:{port}"


def test_nothing_is_received_after_a_close(pair: tuple[websocket, websocket]) -> None:
    client, server = pair
    client.send(wspy.create_close_frame(3000, "reason"))
    with pytest.raises(SocketClosed):
        client.send(Frame(OPCODE_TEXT, "more"))
    frame = server.recv()
    assert isinstance(frame, wspy.ControlFrame)
    assert frame.unpack_close() == (3000, "reason")
    with pytest.raises(SocketClosed) as caught:
        server.recv()
    assert caught.value.rcvd == (3000, "reason")


def test_without_a_handshake_nothing_is_sent() -> None:
    one, other = socket.socketpair()
    with other, websocket(one) as alone, pytest.raises(SocketClosed, match="handshake"):
        alone.send(Frame(OPCODE_TEXT, "hello"))
