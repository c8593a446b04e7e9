"""Do foreign clients and AsyncServer exchange every kind of message unharmed?"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from peers import Peer, SyncWebsockets
from recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    import wspy

MEBIBYTE = 1 << 20
TEXTS = ["", "a", "Größe, 漢字, \U0001f600, \0", "x" * 125, "x" * 126, "x" * 65535, "é" * 32768, "x" * MEBIBYTE]
BINARIES = [b"", b"\0", bytes(range(256)), b"\xff" * 125, b"\xff" * 126, b"y" * 65535, b"z" * 65536]
RANDOM = hashlib.shake_256(b"wspy").digest(MEBIBYTE)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: f"{len(text)}")
def test_text_comes_back(server: Recorder, connect: Callable[..., Peer], text: str) -> None:
    peer = connect(server.url)
    peer.send(text)
    assert peer.receive() == text


@pytest.mark.parametrize("payload", [*BINARIES, RANDOM], ids=lambda payload: f"{len(payload)}")
def test_binary_comes_back(server: Recorder, connect: Callable[..., Peer], payload: bytes) -> None:
    peer = connect(server.url)
    peer.send(payload)
    assert peer.receive() == payload


@pytest.mark.parametrize(
    "parts",
    [["one", "", "two", "three"], [b"\0", b"\xff" * 70_000, b""], ["", ""], ["x" * 1000] * 100],
    ids=["text", "binary", "empty", "many"],
)
def test_fragments_become_one_message(
    server: Recorder, connect: Callable[..., Peer], parts: list[str] | list[bytes]
) -> None:
    peer = connect(server.url)
    if not peer.sends_fragments:
        peer.send("it can't send fragments")
        assert peer.receive() == "it can't send fragments"
        return
    peer.send_fragments(parts)
    assert peer.receive() == type(parts[0])().join(parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("message", ["Größe \U0001f600" * 50, RANDOM[:3000], ""], ids=["text", "binary", "empty"])
def test_the_server_sends_fragments(
    server: Recorder, connect: Callable[..., Peer], seconds: float, message: str | bytes, size: int
) -> None:
    peer = connect(server.url)
    server.opened.get(timeout=seconds).send(message, fragment_size=size)
    assert peer.receive() == message


@pytest.mark.parametrize("payload", [b"", b"ping", b"\xff" * 125], ids=len)
def test_the_peer_pings(server: Recorder, connect: Callable[..., Peer], seconds: float, payload: bytes) -> None:
    peer = connect(server.url)
    peer.ping(payload)
    assert server.pings.get(timeout=seconds) == payload


@pytest.mark.parametrize("payload", [b"", b"ping", b"\xff" * 125], ids=len)
def test_the_server_pings(server: Recorder, connect: Callable[..., Peer], seconds: float, payload: bytes) -> None:
    peer = connect(server.url)
    client = server.opened.get(timeout=seconds)
    client.send_ping(payload)
    client.send("after the ping")
    assert peer.receive() == "after the ping"
    assert server.pongs.get(timeout=seconds) == payload


class Patient(Recorder):
    """Says so when a client has answered the second ping."""

    def onpong(self, client: wspy.AsyncClient, payload: bytes) -> None:
        super().onpong(client, payload)
        if self.pongs.qsize() == 2:
            client.send("two pongs")


def test_keepalive_pings_are_answered(connect: Callable[..., Peer], seconds: float) -> None:
    with Patient(ping_interval=0.05, ping_timeout=seconds) as server:
        server.start()
        peer = connect(server.url)
        assert peer.receive() == "two pongs"
        assert peer.close().code == 1000
        assert server.errors.empty()


def test_many_messages_in_flight_keep_their_order(server: Recorder, connect: Callable[..., Peer]) -> None:
    peer = connect(server.url)
    messages = [f"{number} " + "x" * (number * 7 % 300) for number in range(300)]
    for message in messages:
        peer.send(message)
    assert [peer.receive() for _ in messages] == messages


def test_sixteen_clients_get_their_own_echoes(server: Recorder, connect: Callable[..., Peer]) -> None:
    peers = [connect(server.url) for _ in range(16)]
    rounds = [f"message {number}" for number in range(10)]
    for text in rounds:
        for number, peer in enumerate(peers):
            peer.send(f"{text} of {number}")
            peer.send(bytes([number]) * 1000)
    for number, peer in enumerate(peers):
        for text in rounds:
            assert peer.receive() == f"{text} of {number}"
            assert peer.receive() == bytes([number]) * 1000
    assert server.stats()["clients"] == 16


def test_a_broadcast_reaches_sixteen_clients(server: Recorder, connect: Callable[..., Peer], seconds: float) -> None:
    peers = [connect(server.url) for _ in range(16)]
    for _ in peers:
        server.opened.get(timeout=seconds)
    server.broadcast("to everybody")
    server.broadcast(RANDOM[:20_000])
    for peer in peers:
        assert peer.receive() == "to everybody"
        assert peer.receive() == RANDOM[:20_000]


@pytest.mark.slow
def test_sixteen_clients_talk_at_the_same_time(server: Recorder, seconds: float) -> None:
    def talk(number: int) -> bool:
        with SyncWebsockets(server.url, seconds) as peer:
            for index in range(100):
                message = f"{number} {index} " + "x" * (index * index)
                peer.send(message)
                assert peer.receive() == message
            return peer.close().code == 1000

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(talk, range(16)))


def test_nobody_gets_compression(server: Recorder, connect: Callable[..., Peer], seconds: float) -> None:
    peer = connect(server.url, deflate=True)
    assert peer.extensions is None
    request = server.opened.get(timeout=seconds).request
    assert request is not None
    assert "permessage-deflate" in request.headers["Sec-WebSocket-Extensions"]
    peer.send("x" * 1000)
    assert peer.receive() == "x" * 1000
