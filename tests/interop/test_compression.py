"""Do foreign clients and our servers understand each other's permessage-deflate, whatever they agree upon?"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from compression import LONG_TEXT as TEXT
from compression import OFFERS, messages
from peers import Aiohttp, Peer

import wspy
from wspy import DeflateMessage

if TYPE_CHECKING:
    from collections.abc import Callable

    from recorder import Recorder

NAME = "permessage-deflate"
OFFERED = [*OFFERS, {"server_max_window_bits": 15, "client_max_window_bits": 15}]
WANTED: list[dict[str, Any]] = [
    {},
    {"server_no_context_takeover": True, "client_no_context_takeover": True},
    {"server_max_window_bits": 9, "client_max_window_bits": 9},
    {"server_max_window_bits": 10, "client_no_context_takeover": True, "level": 1, "memory_level": 4, "threshold": 0},
]


def offered(peer: Peer, offer: dict[str, bool | int]) -> dict[str, bool | int]:
    """Return what a client has offered of what it was asked to: aiohttp knows the size of its own window alone."""
    return {} if isinstance(peer, Aiohttp) else offer


def converse(peer: Peer, server: Any, client: Any, seed: int, count: int) -> None:
    """Let both ends send so many messages, ten at a time, and compare each of them."""
    sent = list(messages(seed, count))
    for start in range(0, count, 10):
        some = sent[start : start + 10]
        for message in some:
            peer.send(message)
        assert [peer.receive() for _ in some] == some
    for start in range(0, count, 10):
        some = sent[start : start + 10]
        for number, message in enumerate(some):
            client.send(message, compress=(None, True, False)[(start + number) % 3])
        assert [peer.receive() for _ in some] == some
    assert server.errors.empty()


@pytest.mark.parametrize("wanted", WANTED, ids=str)
@pytest.mark.parametrize("offer", OFFERED, ids=str)
def test_messages_come_back_with_every_combination(
    serve: Callable[..., Recorder],
    connect: Callable[..., Peer],
    seconds: float,
    offer: dict[str, bool | int],
    wanted: dict[str, Any],
) -> None:
    server = serve(extensions=[DeflateMessage(**wanted)], max_size=None)
    peer = connect(server.url, deflate=offer)
    assert str(peer.extensions).startswith(NAME)
    client = server.opened.get(timeout=seconds)
    (instance,) = client.extensions
    for name in ("server_no_context_takeover", "client_no_context_takeover"):
        assert instance.parameters[name] == bool(offered(peer, offer).get(name) or wanted.get(name))
    converse(peer, server, client, 1, 30)
    if peer.sends_fragments:
        peer.send_fragments([TEXT[:1000], "", TEXT[1000:3000]])
        assert peer.receive() == TEXT[:3000]
    client.send(TEXT[:3000], fragment_size=100)
    assert peer.receive() == TEXT[:3000]
    server.broadcast(TEXT[:3000])
    assert peer.receive() == TEXT[:3000]
    assert peer.close().code == 1000


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_ten_thousand_random_messages_each_way(
    serve: Callable[..., Recorder], connect: Callable[..., Peer], seconds: float, part: int
) -> None:
    """In four parts, spread over the combinations."""
    combinations = list(product(OFFERED[::2], WANTED))[part::4]
    count = 2500 // len(combinations)
    for number, (offer, wanted) in enumerate(combinations):
        server = serve(extensions=[DeflateMessage(**wanted)], max_size=None)
        peer = connect(server.url, deflate=offer)
        converse(peer, server, server.opened.get(timeout=seconds), 100 * part + number, count)
        assert peer.close().code == 1000


def test_threads_compress_too(connect: Callable[..., Peer]) -> None:
    class Echo(wspy.Server):
        def onmessage(self, client: wspy.Client, message: wspy.Message) -> None:
            client.send(message)

    with Echo(("127.0.0.1", 0), extensions=[DeflateMessage]) as server:
        server.start()
        peer = connect("ws://{}:{}".format(*server.address), deflate=True)
        for message in messages(5, 50):
            peer.send(message)
            assert peer.receive() == message
        assert peer.close().code == 1000
