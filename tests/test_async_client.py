"""Does a client say who it is, take what is documented, and object to misuse?

What its methods do on the wire is in behaviour/ and hostile/.
"""

from __future__ import annotations

import contextlib
import copy
import os
import socket
import weakref
from typing import TYPE_CHECKING, Any, Final

import pytest
from drivers import RawClient, head

from wspy import AsyncClient, AsyncServer, BinaryMessage, Message, PingError, Request, SocketClosed, TextMessage
from wspy.codes import Opcode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ADDRESS: Final = ("127.0.0.1", 0)
MESSAGES: Final = [
    ("hello", "hello"),
    (b"hello", b"hello"),
    (bytearray(b"hello"), b"hello"),
    (memoryview(b"hello"), b"hello"),
    (TextMessage("hello"), "hello"),
    (BinaryMessage(b"hello"), b"hello"),
    (Message(Opcode.TEXT, "hello"), "hello"),
    (Message(Opcode.BINARY, b"hello"), b"hello"),
]

needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")


class Connected:
    """A server in this thread, its one client, and the peer of that."""

    def __init__(self, server: AsyncServer, path: str = "/", headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.server = server
        self.peer = RawClient(server.address)
        self.peer.send(head(path, headers))
        while not server.clients:
            server.handle_events(None)
        (self.client,) = server.clients
        self.peer.opened()

    def settle(self) -> None:
        """Let the server do what there is to do."""
        while self.server.handle_events():
            pass

    def end(self) -> None:
        """End the connection, and let the server see it."""
        self.peer.end()
        while self.server.clients:
            self.server.handle_events(None)


@contextlib.contextmanager
def connected(
    kind: type[AsyncServer] = AsyncServer, address: Any = ADDRESS, path: str = "/", **options: Any
) -> Iterator[Connected]:
    headers = options.pop("headers", ())
    with kind(address, **options) as server:
        connection = Connected(server, path, headers)
        with connection.peer:
            yield connection


@pytest.fixture
def connection() -> Iterator[Connected]:
    with connected() as connection:
        yield connection


@pytest.fixture
def client(connection: Connected) -> AsyncClient:
    return connection.client


# ---- who it is ----


def test_what_a_client_is_made_of(connection: Connected) -> None:
    client = connection.client
    assert client.server is connection.server
    assert client.data is None
    assert client.subprotocol is None
    assert not client.closed
    assert client.buffered_amount == 0
    assert client.remote_address == connection.peer.address


def test_data_is_free_and_nothing_else(client: AsyncClient) -> None:
    client.data = {"name": "somebody"}
    assert client.data == {"name": "somebody"}
    with pytest.raises(AttributeError):
        client.name = "somebody"  # type: ignore[attr-defined]


def test_clients_are_found_and_stand_for_themselves(connection: Connected) -> None:
    client = connection.client
    assert client in connection.server.clients
    assert len(connection.server.clients) == 1
    assert repr(connection.server.clients) == "<Clients 1>"
    assert {client: 1}[client] == 1
    assert weakref.ref(client)() is client
    assert client != copy.copy(client)


def test_a_client_prints_as_its_address(connection: Connected) -> None:
    client, port = connection.client, connection.peer.address[1]
    assert str(client) == f"127.0.0.1:{port}"
    assert repr(client) == f"<AsyncClient 127.0.0.1:{port}>"
    client.close()
    assert repr(client) == f"<AsyncClient 127.0.0.1:{port} closed>"


def test_the_address_is_known_after_the_end(connection: Connected) -> None:
    address = connection.peer.address
    connection.end()
    assert connection.client.remote_address == address
    assert connection.client not in connection.server.clients
    assert str(connection.client) == f"127.0.0.1:{address[1]}"


@needs_ipv6
def test_an_ipv6_address_has_brackets() -> None:
    with connected(address=("::1", 0)) as connection:
        assert str(connection.client) == f"[::1]:{connection.peer.address[1]}"
        assert connection.client.remote_address == connection.peer.address


@needs_ipv6
def test_an_ipv4_address_is_mapped_on_a_socket_of_both_families() -> None:
    with AsyncServer(("", 0)) as server:
        server.address = ("127.0.0.1", server.address[1])
        connection = Connected(server)
        with connection.peer:
            assert connection.client.remote_address == ("::ffff:127.0.0.1", connection.peer.address[1], 0, 0)


def test_a_unix_socket_has_no_address(tmp_path: Path) -> None:
    with connected(address=tmp_path / "socket") as connection:
        assert str(connection.client) == "unix"
        assert connection.client.remote_address == ""
        connection.end()
        assert connection.client.remote_address == ""


def test_a_client_of_a_closed_server_prints(connection: Connected) -> None:
    connection.server.close()
    assert repr(connection.client) in {
        "<AsyncClient unknown closed>",
        f"<AsyncClient 127.0.0.1:{connection.peer.address[1]} closed>",
    }


# ---- its request ----


class Asking(AsyncServer):
    """A server that keeps what onopen saw."""

    def onopen(self, client: AsyncClient) -> None:
        client.data = client.request


@pytest.mark.parametrize("keep", [True, False])
def test_the_request_is_kept_if_asked_for(keep: bool) -> None:
    with connected(Asking, path="/chat?room=1&room=2", headers=(("X-Extra", "more"),), keep_request=keep) as connection:
        client = connection.client
        assert isinstance(client.data, Request)
        assert client.data.path == "/chat?room=1&room=2"
        assert client.data.headers["x-extra"] == "more"
        if keep:
            assert client.request is not None
            assert client.request.path == client.path == client.data.path
            assert client.request.headers["x-extra"] == "more"
        else:
            assert client.request is None
            assert client.path is None


def test_the_request_is_known_after_the_end(connection: Connected) -> None:
    connection.end()
    assert connection.client.path == "/"


def test_the_subprotocol_is_the_one_that_was_agreed_upon() -> None:
    offer = (("Sec-WebSocket-Protocol", "chat, superchat"),)
    with connected(headers=offer, protocols=["superchat"]) as connection:
        assert connection.client.subprotocol == "superchat"


# ---- sending ----


class Marking(AsyncServer):
    """A server that hears of what was sent."""

    def onsent(self, client: AsyncClient, message: Message) -> None:
        client.data = [*(client.data or []), message]


@pytest.mark.parametrize("kind", [AsyncServer, Marking])
@pytest.mark.parametrize(("message", "received"), MESSAGES, ids=[repr(message) for message, _ in MESSAGES])
@pytest.mark.parametrize("fragment_size", [None, 2])
def test_what_can_be_sent(
    kind: type[AsyncServer], message: Any, received: str | bytes, fragment_size: int | None
) -> None:
    with connected(kind) as connection:
        connection.client.send(message, fragment_size)
        connection.settle()
        assert connection.peer.message() == received


def test_a_message_of_users_can_be_sent(connection: Connected) -> None:
    class Note(TextMessage):
        """A message with a name of its own."""

    connection.client.send(Note("hello"))
    connection.settle()
    assert connection.peer.message() == "hello"


@pytest.mark.parametrize("kind", [AsyncServer, Marking])
@pytest.mark.parametrize("message", [None, 5, 1.5, ["hello"], {"type": "hello"}, object()], ids=repr)
def test_what_is_no_message_is_refused(kind: type[AsyncServer], message: Any) -> None:
    with connected(kind) as connection:
        with pytest.raises(TypeError):
            connection.client.send(message)
        connection.settle()
        assert connection.peer.waiting() == b""
        assert not connection.client.closed


@pytest.mark.parametrize("kind", [AsyncServer, Marking])
@pytest.mark.parametrize("fragment_size", [None, 2])
def test_a_reserved_opcode_is_not_put_on_the_wire(kind: type[AsyncServer], fragment_size: int | None) -> None:
    with connected(kind) as connection:
        for send in (connection.client.send, lambda message, _: connection.server.broadcast(message)):
            with pytest.raises(ValueError, match="reserved"):
                send(Message(3, b"hello"), fragment_size)
        connection.client.send("next")
        connection.settle()
        assert connection.peer.message() == "next"


@pytest.mark.parametrize("kind", [AsyncServer, Marking])
@pytest.mark.parametrize(
    ("message", "fragment_size", "error"),
    [
        ("hello", 0, ValueError),
        (b"hello", -1, ValueError),
        ("hello", "2", TypeError),
        ("\ud800", None, UnicodeEncodeError),
        ("\ud800", 2, UnicodeEncodeError),
    ],
)
def test_what_can_not_be_sent_is_refused(
    kind: type[AsyncServer], message: Any, fragment_size: Any, error: type[Exception]
) -> None:
    with connected(kind) as connection:
        with pytest.raises(error):
            connection.client.send(message, fragment_size)
        connection.client.send("next")
        connection.settle()
        assert connection.peer.message() == "next"


@pytest.mark.parametrize(("payload", "sent"), [((), b""), (("höllo",), "höllo".encode()), ((bytearray(b"x"),), b"x")])
def test_what_a_ping_can_hold(connection: Connected, payload: tuple[Any, ...], sent: bytes) -> None:
    connection.client.send_ping(*payload)
    connection.settle()
    assert connection.peer.frame() == (Opcode.PING, sent, True)


@pytest.mark.parametrize(
    ("payload", "error"),
    [(b"x" * 126, PingError), ("ä" * 63, PingError), (5, TypeError), (None, TypeError), ("\ud800", UnicodeEncodeError)],
)
def test_what_a_ping_can_not_hold(connection: Connected, payload: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        connection.client.send_ping(payload)
    connection.settle()
    assert connection.peer.waiting() == b""


# ---- ending ----


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((1005,), ValueError),
        ((999,), ValueError),
        ((5000,), ValueError),
        ((1000, "x" * 124), ValueError),
        ((None, "a reason"), ValueError),
        (("1000",), TypeError),
        ((1000, b"a reason"), TypeError),
        ((1000, "\ud800"), UnicodeEncodeError),
    ],
)
def test_what_a_close_can_not_hold(connection: Connected, arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        connection.client.close(*arguments)
    assert not connection.client.closed
    connection.client.send("still here")
    connection.settle()
    assert connection.peer.message() == "still here"


def test_wrong_arguments_are_noticed_on_a_closed_client_too(client: AsyncClient) -> None:
    client.close()
    with pytest.raises(ValueError, match="1005"):
        client.close(1005)
    with pytest.raises(TypeError):
        client.send(5)  # type: ignore[arg-type]


def end_by_close(connection: Connected) -> None:
    connection.client.close()


def end_by_abort(connection: Connected) -> None:
    connection.client.abort()


def end_by_the_peer(connection: Connected) -> None:
    connection.end()


def end_by_the_server(connection: Connected) -> None:
    connection.server.close()


ENDS: Final = [(end_by_close, True), (end_by_abort, True), (end_by_the_peer, False), (end_by_the_server, True)]


@pytest.mark.parametrize("kind", [AsyncServer, Marking])
@pytest.mark.parametrize(("end", "initialized"), ENDS)
def test_nothing_can_be_sent_after_the_end(kind: type[AsyncServer], end: Any, initialized: bool) -> None:
    with connected(kind) as connection:
        client = connection.client
        end(connection)
        assert client.closed
        for send in (
            lambda: client.send("hello"),
            lambda: client.send(b"x" * 100_000),
            lambda: client.send(b"hello", 2),
            client.send_ping,
        ):
            with pytest.raises(SocketClosed) as caught:
                send()
            assert caught.value.initialized is initialized
            assert caught.value.message


@pytest.mark.parametrize("end", [end for end, _ in ENDS])
def test_what_has_no_effect_after_the_end_raises_nothing(end: Any) -> None:
    with connected() as connection:
        client = connection.client
        end(connection)
        client.close()
        client.pause_reading()
        client.resume_reading()
        client.abort()
        client.close()
        assert client.buffered_amount == 0
        assert client.closed


def test_each_raise_is_an_exception_of_its_own(client: AsyncClient) -> None:
    client.close()
    raised = []
    for _ in range(2):
        with pytest.raises(SocketClosed) as caught:
            client.send("hello")
        raised.append(caught.value)
    assert raised[0] is not raised[1]


# ---- flow control ----


def test_reading_may_be_paused_and_resumed_twice(connection: Connected) -> None:
    got: list[str] = []
    connection.server.onmessage = lambda _, message: got.append(str(message))  # type: ignore[method-assign]
    client = connection.client
    client.pause_reading()
    client.pause_reading()
    connection.settle()
    connection.peer.text("held")
    connection.settle()
    assert got == []
    client.resume_reading()
    client.resume_reading()
    while not got:
        connection.server.handle_events(None)
    assert got == ["held"]


def test_what_the_kernel_does_not_take_is_counted(connection: Connected) -> None:
    client = connection.client
    payload = os.urandom(1 << 20)
    for _ in range(12):
        client.send(payload)
    assert 0 < client.buffered_amount <= 12 * (len(payload) + 10)
    client.abort()
    connection.settle()
    assert client.buffered_amount == 0


def test_i17_in_the_child_of_a_fork_nothing_waits_to_be_taken(connection: Connected) -> None:
    client = connection.client
    client.send(bytes(12 << 20))
    assert client.buffered_amount > 0
    connection.server.loop.abandon()
    assert client.buffered_amount == 0
