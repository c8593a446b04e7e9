"""Can any other loop drive a server, by fileno and handle_events?"""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from drivers import DEADLINE_S, PATIENCE, TEXT, RawClient, close_frame, frame, head

import wspy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

ANY = ("127.0.0.1", 0)


class Echo(wspy.AsyncServer):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.events: list[tuple[Any, ...]] = []

    def onopen(self, client: wspy.AsyncClient) -> None:
        self.events.append(("onopen",))

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        self.events.append(("onmessage", message.payload))
        client.send(message)

    def onclose(self, client: wspy.AsyncClient, code: int, reason: str) -> None:
        self.events.append(("onclose", code))


@pytest.fixture
def server() -> Iterator[Echo]:
    with Echo(ANY) as server:
        yield server


@pytest.fixture
def peer(server: Echo) -> Iterator[RawClient]:
    with RawClient(server.address) as peer:
        yield peer


def turn_until(server: wspy.AsyncServer, predicate: Callable[[], object]) -> None:
    """Drive a server by a selector: only when its descriptor is readable."""
    end = time.monotonic() + DEADLINE_S
    with selectors.DefaultSelector() as selector:
        selector.register(server.fileno(), selectors.EVENT_READ)
        while not predicate():
            assert time.monotonic() < end
            if selector.select(0.2):
                server.handle_events()


def turn_until_readable(server: wspy.AsyncServer, peer: RawClient) -> None:
    turn_until(server, lambda: peer.waiting() or peer.is_ended())


# ---- selectors ----


def test_a_selector_drives_a_server(server: Echo, peer: RawClient) -> None:
    peer.send(head())
    turn_until_readable(server, peer)
    peer.opened()
    for text in ("one", "two" * 1000, "x" * 500_000):
        peer.socket.settimeout(0)
        data = memoryview(frame(TEXT, text.encode()))
        while data:
            try:
                data = data[peer.socket.send(data) :]
            except BlockingIOError:
                server.handle_events(0.1)
        peer.socket.settimeout(DEADLINE_S)
        turn_until(server, lambda text=text: len(peer.waiting()) >= len(text))
        assert peer.message() == text
    peer.send(close_frame(1000))
    turn_until(server, lambda: ("onclose", 1000) in server.events)
    peer.closes(1000)


def test_a_selector_sees_deadlines(peer: RawClient, server: Echo) -> None:
    """Timers need no help of the loop."""
    with Echo(ANY, open_timeout=0.05) as quick, RawClient(quick.address) as late:
        turn_until(quick, late.is_ended)
        assert quick.stats()["timeouts"] == 1


def test_a_selector_sees_calls(server: Echo) -> None:
    called: list[str] = []
    server.handle_events()
    server.call_later(0.02, called.append, "later")
    server.call_soon(called.append, "soon")
    turn_until(server, lambda: len(called) == 2)
    assert called == ["soon", "later"]


def test_a_selector_sees_calls_of_another_thread(server: Echo) -> None:
    called = threading.Event()
    server.handle_events()
    threading.Thread(target=lambda: server.call_later(0.01, called.set)).start()
    turn_until(server, called.is_set)


def test_what_is_sent_outside_of_handlers_leaves(server: Echo, peer: RawClient) -> None:
    """The thread that drives the server sends between two calls of handle_events."""
    peer.send(head())
    turn_until_readable(server, peer)
    peer.opened()
    turn_until(server, lambda: server.events)
    (client,) = server.clients
    for payload in ("short", b"L" * 100_000):
        client.send(payload)
        turn_until(server, lambda payload=payload: len(peer.waiting()) >= len(payload))
        assert peer.message() == payload
    server.broadcast("to all")
    turn_until_readable(server, peer)
    assert peer.message() == "to all"
    client.close(3000)
    turn_until_readable(server, peer)
    peer.closes(3000)
    peer.send(close_frame(3000))
    turn_until(server, lambda: ("onclose", 3000) in server.events)


def test_what_is_asked_for_outside_of_handlers_happens(server: Echo, peer: RawClient) -> None:
    peer.send(head())
    turn_until(server, lambda: server.events)
    peer.opened()
    (client,) = server.clients
    client.pause_reading()
    peer.text("held")
    for _ in range(3):
        server.handle_events(0.01)
    assert server.events == [("onopen",)]
    client.resume_reading()
    turn_until(server, lambda: ("onmessage", "held") in server.events)
    client.abort()
    turn_until(server, lambda: ("onclose", 1006) in server.events)


def test_a_server_with_nothing_to_do_is_not_readable(server: Echo, peer: RawClient) -> None:
    peer.send(head())
    turn_until(server, lambda: server.events)
    with selectors.DefaultSelector() as selector:
        selector.register(server.fileno(), selectors.EVENT_READ)
        for _ in range(5):
            server.handle_events()
        assert selector.select(0.05) == []


def test_handle_events_waits_as_long_as_told(server: Echo, peer: RawClient) -> None:
    began = time.monotonic()
    assert server.handle_events() == 0
    assert time.monotonic() - began < 1 * PATIENCE
    began = time.monotonic()
    server.handle_events(0.05)
    assert time.monotonic() - began >= 0.04
    peer.send(head())
    assert server.handle_events(None) > 0


def test_handle_events_returns_how_many_events_it_handled(server: Echo, peer: RawClient) -> None:
    peer.send(head())
    turn_until(server, lambda: server.events)
    peer.send(frame(TEXT, b"x") * 10)
    count = 0
    while len(server.events) < 11:
        count += server.handle_events(0.1)
    assert count == 10


def test_handle_events_does_not_stay_for_ever(server: Echo, peer: RawClient) -> None:
    """A flood leaves the foreign loop its turn."""
    peer.send(head())
    turn_until(server, lambda: server.events)
    stop = threading.Event()

    def flood() -> None:
        data = frame(TEXT, b"x") * 1000
        while not stop.is_set():
            try:
                peer.socket.sendall(data)
            except OSError:
                return

    server.onmessage = lambda client, message: None  # type: ignore[method-assign]
    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        for _ in range(20):
            began = time.monotonic()
            server.handle_events()
            assert time.monotonic() - began < 5
    finally:
        stop.set()
        peer.socket.shutdown(socket.SHUT_RDWR)  # wakes who waits for room; to close it does not
        flooder.join()
        peer.abort()


def test_a_server_that_is_driven_stops(server: Echo, peer: RawClient) -> None:
    peer.send(head())
    turn_until(server, lambda: server.events)
    peer.opened()
    server.stop()
    turn_until_readable(server, peer)
    peer.closes(1001)
    peer.send(close_frame(1001))
    turn_until(server, lambda: ("onclose", 1001) in server.events)
    assert not server.finished  # the peer may not have read everything
    peer.end()
    turn_until(server, lambda: server.finished)
    server.close()
    assert server.join(0)


def test_a_server_that_is_driven_finishes_without_clients(server: Echo) -> None:
    assert not server.finished
    server.stop()
    assert not server.finished
    turn_until(server, lambda: server.finished)
    assert server.events == []


# ---- asyncio ----


async def answers(peer: RawClient) -> str | bytes:
    """Receive a message while the loop goes on."""
    return await asyncio.get_running_loop().run_in_executor(None, peer.message)


def in_asyncio(server: Echo, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine in a loop that also drives a server."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(server.fileno(), server.handle_events)
        try:
            await asyncio.wait_for(main(), DEADLINE_S)
        finally:
            loop.remove_reader(server.fileno())

    asyncio.run(run())


def test_asyncio_drives_a_server(server: Echo, peer: RawClient) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, peer.open)
        for text in ("one", "x" * 500_000):
            await loop.run_in_executor(None, peer.text, text)
            assert await answers(peer) == text
        await loop.run_in_executor(None, peer.close)

    in_asyncio(server, main)


def test_a_coroutine_sends(server: Echo, peer: RawClient) -> None:
    """Not in a handler, but in the thread of the server."""

    async def main() -> None:
        await asyncio.get_running_loop().run_in_executor(None, peer.open)
        while not server.events:  # noqa: ASYNC110 -- the server is driven by this very loop
            await asyncio.sleep(0)
        (client,) = server.clients
        for payload in ("short", b"L" * 100_000):
            client.send(payload)
            assert await answers(peer) == payload
        called = asyncio.Event()
        server.call_later(0.01, called.set)
        await called.wait()
        called.clear()
        server.call_soon(called.set)
        await called.wait()

    in_asyncio(server, main)


def test_a_server_and_its_coroutine_share_the_loop(server: Echo) -> None:
    """Many clients of asyncio's own, in the same thread as the server."""

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(head())
        await reader.readuntil(b"\r\n\r\n")
        for turn in range(10):
            text = f"{number} {turn}".encode()
            writer.write(frame(TEXT, text))
            assert await reader.readexactly(2 + len(text)) == bytes([0x81, len(text)]) + text
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        await asyncio.gather(*(one(number) for number in range(50)))

    in_asyncio(server, main)
    assert sum(event[0] == "onmessage" for event in server.events) == 500


def test_two_servers_in_one_loop(server: Echo, peer: RawClient) -> None:
    with Echo(ANY) as second, RawClient(second.address) as other:

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.add_reader(second.fileno(), second.handle_events)
            await asyncio.gather(*(loop.run_in_executor(None, one.open) for one in (peer, other)))
            peer.text("first")
            other.text("second")
            assert [await answers(peer), await answers(other)] == ["first", "second"]
            loop.remove_reader(second.fileno())

        in_asyncio(server, main)


def test_adopting_nothing_of_the_loop(server: Echo) -> None:
    """The descriptor is the server's own: closing the server leaves the loop alone."""
    fileno = server.fileno()
    with socket.socket() as other:
        assert other.fileno() != fileno
    assert server.fileno() == fileno
