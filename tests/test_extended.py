"""Do messages reach the queue in the order in which extensions have transformed them, whoever sends, and from where?

What clients with extensions do on the wire is in behaviour/ and hostile/.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
from compression import Deflating
from drivers import RawClient

from wspy import AsyncServer, DeflateMessage, Server
from wspy.codes import Role
from wspy.extended import Exchange, ExtendedClient, ExtendedMarkingClient
from wspy.extensions import Agreement
from wspy.server_client import ExtendedMarkingThreadClient, ExtendedThreadClient


def exchange() -> Exchange:
    return Exchange(Agreement([], Role.SERVER))


def test_what_is_asked_for_inside_comes_behind() -> None:
    calls: list[str] = []
    one = exchange()

    def outer() -> None:
        one.in_order(lambda: calls.append("inner"))
        calls.append("outer")

    one.in_order(outer)
    one.in_order(lambda: calls.append("last"))
    assert calls == ["outer", "inner", "last"]


def test_a_signal_handler_comes_behind_what_it_interrupts() -> None:
    calls: list[str] = []
    one = exchange()

    def outer() -> None:
        signal.raise_signal(signal.SIGUSR1)
        calls.append("outer")

    before = signal.signal(signal.SIGUSR1, lambda *_: one.in_order(lambda: calls.append("inner")))
    try:
        one.in_order(outer)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert calls == ["outer", "inner"]


def test_an_exception_leaves_nothing_behind() -> None:
    calls: list[str] = []
    one = exchange()

    def outer() -> None:
        one.in_order(lambda: calls.append("inner"))
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        one.in_order(outer)
    one.in_order(lambda: calls.append("last"))
    assert calls == ["inner", "last"]


def test_another_thread_waits() -> None:
    calls: list[str] = []
    one = exchange()
    is_inside, may_go_on = threading.Event(), threading.Event()

    def outer() -> None:
        is_inside.set()
        assert may_go_on.wait(10)
        calls.append("outer")

    thread = threading.Thread(target=one.in_order, args=[outer])
    thread.start()
    assert is_inside.wait(10)
    other = threading.Thread(target=one.in_order, args=[lambda: calls.append("other")])
    other.start()
    may_go_on.set()
    thread.join()
    other.join()
    assert calls == ["outer", "other"]


class Marking(AsyncServer):
    def onsent(self, client: Any, message: Any) -> None:
        pass


class MarkingThreads(Server):
    def onsent(self, client: Any, message: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("server_kind", "client_kind"),
    [
        (AsyncServer, ExtendedClient),
        (Marking, ExtendedMarkingClient),
        (Server, ExtendedThreadClient),
        (MarkingThreads, ExtendedMarkingThreadClient),
    ],
)
def test_a_connection_that_has_sent_nothing_holds_nothing(server_kind: Any, client_kind: Any) -> None:
    with server_kind(("127.0.0.1", 0), extensions=[DeflateMessage]) as server:
        server.start()
        with RawClient(server.address) as raw:
            peer = Deflating(raw)
            while not server.clients:
                pass
            (client,) = server.clients
            assert type(client) is client_kind
            assert client._exchange is None
            assert not hasattr(client, "__dict__")
            client.send("x" * 1000)
            assert peer.receive() == ("x" * 1000, True)
            assert server._exchanges == {client._key: client._exchange}
            raw.close()
            while server.clients:
                pass
    assert not server._exchanges
    assert client.extensions
    assert not server._exchanges


@pytest.mark.parametrize(
    ("lines", "is_shorter"),
    [
        ("Sec-WebSocket-Extensions: permessage-deflate", True),
        ("SEC-websocket-extensions:permessage-deflate", True),
        ("Sec-WebSocket-Extensions: permessage-deflate \t", False),
        ("sec-websocket-extensions: \t permessage-deflate; client_max_window_bits\r\nX: permessage-deflate", True),
        ("Sec-WebSocket-Extensions: x-other\r\nSec-WebSocket-Extensions: permessage-deflate", False),
        ("Sec-WebSocket-Extensions:\r\nSec-WebSocket-Extensions: permessage-deflate", False),
        ("X: Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Extensions: permessage-deflate", True),
    ],
)
def test_a_request_is_kept_whole_in_less_memory(lines: str, is_shorter: bool) -> None:
    seen: list[bytes] = []

    class Server(AsyncServer):
        def onopen(self, client: Any) -> None:
            seen.append(client.request.head)

    with Server(("127.0.0.1", 0), extensions=[DeflateMessage]) as server, RawClient(server.address) as raw:
        head = (
            "GET /permessage-deflate HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{lines}\r\n\r\n"
        )
        raw.send(head.encode())
        while not seen:
            server.handle_events(None)
        (client,) = server.clients
        assert seen == [client.request.head] == [head.encode()]
        assert client.path == "/permessage-deflate"
        assert (len(client._request) < len(head)) == is_shorter


def test_misuse() -> None:
    with AsyncServer(("127.0.0.1", 0), extensions=[DeflateMessage]) as server:
        server.start()
        with RawClient(server.address) as raw:
            Deflating(raw)
            while not server.clients:
                pass
            (client,) = server.clients
            with pytest.raises(ValueError, match="at least 1"):
                client.send("text", 0)
            with pytest.raises(TypeError):
                client.send(5)
            with pytest.raises(UnicodeEncodeError):
                client.send("\ud800")
            assert client._exchange is None
