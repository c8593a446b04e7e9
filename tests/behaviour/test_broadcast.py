"""Does a broadcast reach whom it should, once, in order with what else is sent to them?"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from drivers import (
    BINARY,
    CONTINUATION,
    DEADLINE_S,
    PATIENCE,
    TEXT,
    Received,
    close_frame,
    echo,
    frame,
    needs,
)

import wspy

if TYPE_CHECKING:
    from drivers import Servers

pytestmark = needs("broadcast")

MARKS = pytest.mark.parametrize("handlers", [{}, {"onsent": lambda client, message: None}], ids=["", "with onsent"])
SIZES = [0, 125, 126, 8193, 65536, 1 << 20]


@MARKS
@pytest.mark.parametrize("size", SIZES)
def test_a_broadcast_reaches_everybody_once(serve: Servers, handlers: Any, size: int) -> None:
    server = serve(**handlers)
    peers = [server.open() for _ in range(10)]
    clients = [server.client(peer) for peer in peers]
    server.server.broadcast("x" * size)
    server.server.broadcast(b"y" * size)
    for peer in peers:
        assert peer.frame() == Received(TEXT, b"x" * size)
        assert peer.frame() == Received(BINARY, b"y" * size)
    for client, peer in zip(clients, peers, strict=True):
        client.send("end")
        assert peer.message() == "end"
    if handlers:
        for peer in peers:
            server.wait(lambda peer=peer: len(server.story(peer).named("onsent")) == 3, "onsent")
            assert server.story(peer).named("onsent") == ["x" * size, b"y" * size, "end"]


@MARKS
def test_a_broadcast_to_some(serve: Servers, handlers: Any) -> None:
    server = serve(**handlers)
    peers = [server.open() for _ in range(6)]
    clients = [server.client(peer) for peer in peers]
    server.server.broadcast("even", clients[::2])
    server.server.broadcast("odd", (client for client in clients[1::2]))
    server.server.broadcast("nobody", [])
    server.server.broadcast("all")
    for number, peer in enumerate(peers):
        assert [peer.message(), peer.message()] == ["odd" if number % 2 else "even", "all"]


@MARKS
def test_a_broadcast_passes_over_who_is_closed(serve: Servers, handlers: Any) -> None:
    server = serve(**handlers)
    peers = [server.open() for _ in range(5)]
    clients = [server.client(peer) for peer in peers]
    peers[0].close()
    server.outcome(peers[0])
    clients[1].abort()
    clients[2].close()
    server.server.broadcast("who is left", clients)
    server.server.broadcast("again")
    for peer in peers[3:]:
        assert [peer.message(), peer.message()] == ["who is left", "again"]
    peers[2].closes(1000)
    peers[2].send(close_frame(1000))
    peers[2].eof()
    if handlers:
        assert all(not server.story(peer).named("onsent") for peer in peers[:3])


@MARKS
def test_a_broadcast_in_a_handler_keeps_its_place(serve: Servers, handlers: Any) -> None:
    def onmessage(client: Any, message: Any) -> None:
        client.send("one")
        client.server.broadcast("two")
        client.send("three")
        client.server.broadcast(b"four" * 10_000)
        client.send("five")

    server = serve(onmessage=onmessage, **handlers)
    peer, other = server.open(), server.open()
    assert server.client(other)
    peer.text("go")
    assert [peer.message() for _ in range(5)] == ["one", "two", "three", b"four" * 10_000, "five"]
    assert [other.message() for _ in range(2)] == ["two", b"four" * 10_000]


@MARKS
def test_a_broadcast_in_onopen_reaches_the_new_client_too(serve: Servers, handlers: Any) -> None:
    server = serve(onopen=lambda client: client.server.broadcast(f"{client.path} is here"), **handlers)
    first = server.open("/first")
    assert first.message() == "/first is here"
    second = server.open("/second")
    assert second.message() == "/second is here"
    assert first.message() == "/second is here"


@MARKS
def test_a_broadcast_while_some_do_not_read(serve: Servers, handlers: Any) -> None:
    """H7, small: who reads gets everything in order; who does not gets everything later."""
    server = serve(**handlers)
    slow = [server.open(receive_buffer=4096) for _ in range(3)]
    live = [server.open() for _ in range(3)]
    assert all(server.client(peer) for peer in (*slow, *live))
    payloads = [bytes([number]) * 50_000 for number in range(100)]
    for payload in payloads:
        server.server.broadcast(payload)
        for peer in live:
            assert peer.message() == payload
    assert all(server.client(peer).buffered_amount > 1_000_000 for peer in slow)
    for peer in slow:
        assert [peer.message() for _ in payloads] == payloads
    if handlers:
        for peer in (*slow, *live):
            server.wait(lambda peer=peer: len(server.story(peer).named("onsent")) == 100, "onsent")
            assert server.story(peer).named("onsent") == payloads


@MARKS
@pytest.mark.slow
def test_broadcasts_from_many_threads(serve: Servers, handlers: Any) -> None:
    server = serve(**handlers)
    peers = [server.open() for _ in range(3)]
    assert all(server.client(peer) for peer in peers)
    count = 100

    def sender(number: int) -> None:
        for turn in range(count):
            server.server.broadcast(f"{number} {turn}")

    threads = [threading.Thread(target=sender, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    for peer in peers:
        messages = [str(peer.message()) for _ in range(6 * count)]
        for number in range(6):
            assert [m for m in messages if m.startswith(f"{number} ")] == [f"{number} {n}" for n in range(count)]


def test_a_broadcast_never_comes_before_the_101(serve: Servers) -> None:
    """R6: clients whose handshake is under way get it after the 101, or not at all."""
    server = serve(onmessage=echo)
    stop = threading.Event()

    def shout() -> None:
        while not stop.is_set():
            server.server.broadcast("x")

    shouter = threading.Thread(target=shout)
    shouter.start()
    try:
        for _ in range(30):
            peer = server.open()
            peer.text("mine")
            received = peer.message()
            while received == "x":
                received = peer.message()
            assert received == "mine"
            peer.end()
    finally:
        stop.set()
        shouter.join()


def test_a_broadcast_does_not_come_between_fragments(serve: Servers) -> None:
    server = serve(onmessage=lambda client, message: client.send("x" * 200_000, 1000))
    peers = [server.open() for _ in range(3)]
    for peer in peers:
        peer.text("go")
        for _ in range(5):
            server.server.broadcast("between")
    for peer in peers:
        found = [peer.message() for _ in range(16)]
        assert found.count("between") == 15
        assert found.count("x" * 200_000) == 1


@pytest.mark.parametrize("wrong", [None, 7, ["x"]], ids=repr)
def test_what_can_not_be_broadcast(serve: Servers, wrong: Any) -> None:
    server = serve()
    peer = server.open()
    assert server.client(peer)
    with pytest.raises(TypeError):
        server.server.broadcast(wrong)
    with pytest.raises(ValueError):
        server.server.broadcast("\ud800")
    server.server.broadcast("fine")
    assert peer.message() == "fine"


def test_a_payload_may_be_changed_after_a_broadcast(serve: Servers) -> None:
    payload = bytearray(b"a" * 2_000_000)
    server = serve()
    peer = server.open(receive_buffer=4096)
    assert server.client(peer)
    server.server.broadcast(payload)
    payload[:] = b"b" * 2_000_000
    assert peer.message() == b"a" * 2_000_000


def test_a_message_object_is_broadcast(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    assert server.client(peer)
    server.server.broadcast(wspy.TextMessage("é"))
    assert peer.frame() == Received(TEXT, "é".encode())


@pytest.mark.slow
def test_h7_live_clients_are_not_held_up_by_stalled_ones(serve: Servers) -> None:
    server = serve(max_backlog=1 << 20)
    stalled = [server.open(receive_buffer=4096) for _ in range(100)]
    live = [server.open() for _ in range(100)]
    assert all(server.client(peer) for peer in (*stalled, *live))
    latencies = []
    for number in range(40):
        payload = bytes([number]) * 16_384
        began = time.monotonic()
        server.server.broadcast(payload)
        for peer in live:
            assert peer.message() == payload
        latencies.append(time.monotonic() - began)
    assert sorted(latencies)[-4] < 0.1 * PATIENCE, latencies
    assert all(not server.story(peer).closed for peer in live)


def test_continuations_of_a_peer_and_broadcasts_are_two_directions(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    assert server.client(peer)
    peer.send(frame(TEXT, b"half", final=False))
    server.server.broadcast("between")
    assert peer.message() == "between"
    peer.send(frame(CONTINUATION, b" and half"))
    assert peer.message() == "half and half"


@MARKS
def test_a_broadcast_to_a_client_of_another_server_is_refused(serve: Servers, handlers: Any) -> None:
    """Their handles are the same: it would reach a stranger."""
    server, other = serve(**handlers), serve(**handlers)
    peer, stranger = server.open(), other.open()
    mixed = [server.client(peer), other.client(stranger)]
    with pytest.raises(ValueError, match=f"127.0.0.1:{stranger.address[1]}.* not a client of this server"):
        server.server.broadcast("for a few", mixed)
    server.server.broadcast("for all")
    assert peer.message() == "for all"
    other.server.broadcast("for the others")
    assert stranger.message() == "for the others"


@MARKS
def test_a_broadcast_of_a_closed_server_is_passed_over_and_not_kept(serve: Servers, handlers: Any) -> None:
    server = serve(**handlers)
    client = server.client(server.open())
    server.close()
    for clients in (None, [client]):
        server.server.broadcast("nobody", clients)
    client.abort()
    assert len(server.server.loop._queue) == 1
