"""May a handler do everything: send, close, ping, abort, pause, close others, stop the server (I9, I12)?"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from drivers import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    close_frame,
    echo,
    frame,
    marked,
    needs,
    only,
    until,
)

import wspy

if TYPE_CHECKING:
    from collections.abc import Callable

    from drivers import RawClient, Servers

ACTIONS: dict[str, Callable[[Any], Any]] = {
    "send": lambda client: client.send("from the handler"),
    "send_large": lambda client: client.send(b"L" * 300_000),
    "send_fragments": lambda client: client.send("in fragments", 3),
    "send_ping": lambda client: client.send_ping(b"mine"),
    "close": lambda client: client.close(3003, "from the handler"),
    "abort": lambda client: client.abort(),
    "pause": lambda client: client.pause_reading(),
    "pause_and_resume": lambda client: (client.pause_reading(), client.resume_reading()),
    "resume": lambda client: client.resume_reading(),
    "broadcast": lambda client: client.server.broadcast("to all"),
    "look": lambda client: (client.buffered_amount, client.path, str(client), len(client.server.clients)),
}

TRIGGERS: dict[str, bytes] = {
    "onopen": b"",
    "onmessage": frame(TEXT, b"x"),
    "onpingreceived": frame(PING, b"x"),
    "onpong": frame(PONG, b"x"),
    "onping": frame(BINARY, b"ping"),
    "onsent": frame(BINARY, b"send"),
    "onframe": frame(TEXT, b"x"),
}

NEEDED = {
    "abort": "abort",
    "pause": "pause",
    "pause_and_resume": "pause",
    "resume": "pause",
    "broadcast": "broadcast",
    "look": "clients",
    "onsent": "onsent",
    "onframe": "onframe",
}


def prompts(client: Any, message: Any) -> None:
    """Bring about onping and onsent."""
    if message.payload == b"ping":
        client.send_ping(b"first")
    elif message.payload == b"send":
        client.send("first")


def expect(peer: RawClient, server: Any, name: str, action: str) -> None:
    """Check what the peer gets from an action in a handler."""
    if action == "abort":
        peer.reset()
        assert server.outcome(peer)[0] == 1006
        return
    found = []
    while not found or found[-1].opcode != CLOSE:
        if action not in {"close", "abort"} and len(found) == 1:
            peer.send(close_frame(1000))
        found.append(peer.frame())
        if found[-1].opcode == CLOSE and action == "close":
            assert found[-1].payload == (3003).to_bytes(2) + b"from the handler"
            peer.send(close_frame(3003))
    server.outcome(peer)


@pytest.mark.parametrize("action", marked(ACTIONS, NEEDED))
@pytest.mark.parametrize("name", marked(TRIGGERS, NEEDED))
def test_i9_a_handler_may_do_everything_to_its_client(serve: Servers, name: str, action: str) -> None:
    """It is queued, done, and calls no handler inside this one."""
    depths: Counter[int] = Counter()
    deepest = 0

    def handler(client: Any, *_: Any) -> None:
        nonlocal deepest
        thread = threading.get_ident()
        depths[thread] += 1
        deepest = max(deepest, depths[thread])
        try:
            if client.path == "/trigger" and client.data is None:  # once
                client.data = "done"
                ACTIONS[action](client)
        finally:
            depths[thread] -= 1

    server = serve(**{"onmessage": prompts, name: handler})
    other = server.open("/other")
    peer = server.open("/trigger")
    if (name, action) != ("onopen", "abort"):
        peer.send(TRIGGERS[name] + frame(PING, b"end"))
    until(lambda: server.story(peer).client.data == "done", "called")  # close() in onopen may wait for the peer
    if action == "pause":
        server.client(peer).resume_reading()
    expect(peer, server, name, action)
    # where nothing is queued, send_ping calls onping itself
    calls_itself = (name, action) == ("onping", "send_ping") and not server.has("queue")
    assert deepest == (2 if calls_itself else 1)
    names = [event.name for event in server.story(peer).events]
    assert names[-1] == "onclose"
    if action == "broadcast":
        assert other.message() == "to all"
    other.close()


@pytest.mark.parametrize("action", ["send", "send_large", "send_fragments", "send_ping"])
def test_i9_nothing_can_be_sent_in_onclose(serve: Servers, action: str) -> None:
    raised: list[Exception] = []

    def onclose(client: Any, code: int, reason: str) -> None:
        try:
            ACTIONS[action](client)
        except wspy.SocketClosed as error:
            raised.append(error)

    server = serve(onclose=onclose, onmessage=echo)
    for end in ("close", "end", "abort"):
        peer = server.open()
        getattr(peer, end)()
        server.outcome(peer)
        until(lambda: raised, "SocketClosed")
        raised.clear()


@pytest.mark.parametrize("action", marked([name for name in ACTIONS if not name.startswith("send")], NEEDED))
def test_i9_what_has_no_effect_any_more_may_be_done_in_onclose(serve: Servers, action: str) -> None:
    done: list[str] = []

    def onclose(client: Any, code: int, reason: str) -> None:
        ACTIONS[action](client)
        done.append(action)

    server = serve(onclose=onclose, onmessage=echo)
    for end in ("close", "end", "abort"):
        peer = server.open()
        getattr(peer, end)()
        server.outcome(peer)
    until(lambda: len(done) == 3, "returned")
    other = server.open()
    other.text("fine")
    assert other.message() == "fine"


@pytest.mark.parametrize("action", marked(ACTIONS, NEEDED))
def test_i9_in_onerror(serve: Servers, action: str) -> None:
    """The client is closed with 1011 after it, unless onerror has ended it."""

    def onmessage(client: Any, message: Any) -> None:
        raise ValueError

    server = serve(onmessage=onmessage, onerror=lambda client, error: ACTIONS[action](client))
    peer = server.open()
    peer.text("x")
    if action == "abort":
        peer.reset()
        return
    received = peer.frame()
    while received.opcode != CLOSE:
        received = peer.frame()
    assert received.payload[:2] == (3003 if action == "close" else 1011).to_bytes(2)


@needs("onsent")
def test_a_message_that_is_sent_in_onsent_is_no_recursion(serve: Servers) -> None:
    depths: list[int] = []
    depth = [0]

    def onsent(client: Any, message: Any) -> None:
        depth[0] += 1
        depths.append(depth[0])
        number = int(message.payload)
        if number < 2000:
            client.send(str(number + 1))
        depth[0] -= 1

    server = serve(onopen=lambda client: client.send("0"), onsent=onsent)
    peer = server.open()
    assert [peer.message() for _ in range(2001)] == [str(number) for number in range(2001)]
    assert max(depths) == 1


# ---- other clients, and the server ----


@needs("clients")
@pytest.mark.parametrize("action", ["close", "abort"])
@pytest.mark.parametrize("name", ["onopen", "onmessage", "onpingreceived", "onclose"])
def test_i12_a_handler_may_end_other_clients(serve: Servers, name: str, action: str) -> None:
    def handler(client: Any, *_: Any) -> None:
        if client.path == "/trigger":
            for other in client.server.clients:
                if other is not client:
                    getattr(other, action)()

    server = serve(**{"onmessage": echo, name: handler})
    others = [server.open("/other") for _ in range(5)]
    for other in others:
        server.story(other)
    peer = server.open("/trigger")
    if name == "onclose":
        peer.close()
    else:
        peer.send(TRIGGERS[name])
    for other in others:
        if action == "abort":
            other.reset()
        else:
            other.closes(1000)
            other.send(close_frame(1000))
            other.eof()
        assert server.outcome(other)[0] == (1006 if action == "abort" else 1000)
    server.open("/other").close()


@needs("stop")
@pytest.mark.parametrize("name", ["onopen", "onmessage", "onpingreceived", "onpong", "onclose", "onsent", "onrequest"])
def test_i12_a_handler_may_stop_the_server(serve: Servers, name: str) -> None:
    def handler(client: Any, *_: Any) -> None:
        if client.path == "/trigger":
            server.server.stop()

    server = serve(**{"onmessage": echo, name: handler})
    other = server.open("/other")
    peer = server.connect()
    if name == "onrequest":
        peer.send(b"GET /trigger HTTP/1.1\r\nHost: here\r\n\r\n")
        peer.response()
    else:
        peer.open("/trigger")
        if name == "onclose":
            peer.close()
        else:
            peer.send(TRIGGERS.get(name, frame(TEXT, b"x")) if name != "onsent" else frame(TEXT, b"x"))
    other.closes(1001)
    other.send(close_frame(1001))
    other.eof()
    other.end()
    peer.end()
    assert server.ended()
    assert server.outcome(other)[0] == 1001


@needs("stop")
@pytest.mark.parametrize("name", ["onopen", "onmessage", "onclose"])
def test_i12_a_handler_may_close_the_server(serve: Servers, name: str) -> None:
    def handler(client: Any, *_: Any) -> None:
        if client.path == "/trigger":
            server.server.close()

    server = serve(**{"onmessage": echo, name: handler})
    other = server.open("/other")
    server.story(other)
    peer = server.open("/trigger")
    if name != "onopen":
        peer.send(TRIGGERS.get(name, close_frame(1000)))
    other.reset()
    assert server.ended()
    assert server.outcome(other)[0] == 1006


@needs("clients")
def test_i13_clients_can_be_walked_while_they_come_and_go(serve: Servers) -> None:
    server = serve()
    stop = threading.Event()
    failures: list[BaseException] = []

    def walk() -> None:
        try:
            while not stop.is_set():
                for client in server.server.clients:
                    assert client.server is server.server
                assert len(server.server.clients) >= 0
        except BaseException as error:  # noqa: BLE001 -- shown by the assertion below
            failures.append(error)

    walkers = [threading.Thread(target=walk) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # all threads take turns, and not of 5 ms
    for walker in walkers:
        walker.start()
    try:
        peers = []
        for number in range(24):
            peers.append(server.open())
            if number % 3 == 2:
                peers.pop(0).abort()
                peers.pop(0).end()
    finally:
        stop.set()
        for walker in walkers:
            walker.join()
        sys.setswitchinterval(interval)
    assert failures == []
    until(lambda: len(server.server.clients) == len(peers), "those that are left")
    assert {server.client(peer) for peer in peers} == set(server.server.clients)


@needs("clients")
def test_i13_clients_can_be_walked_in_handlers_that_change_them(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        for other in client.server.clients:
            other.abort()

    server = serve(onmessage=onmessage)
    peers = [server.open() for _ in range(20)]
    assert all(server.client(peer) for peer in peers)
    peers[0].text("all")
    for peer in peers:
        peer.reset()
    until(lambda: len(server.server.clients) == 0, "none is left")


@only("epoll", because="a Server has no handle_events")
def test_handle_events_may_not_be_called_in_a_handler(serve: Servers) -> None:
    raised: list[Exception] = []

    def onmessage(client: Any, message: Any) -> None:
        try:
            client.server.handle_events()
        except RuntimeError as error:
            raised.append(error)
        client.send("fine")

    server = serve(onmessage=onmessage)
    peer = server.open()
    peer.text("x")
    assert peer.message() == "fine"
    assert len(raised) == 1
