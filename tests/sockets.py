"""What tests of the blocking side need: a listener, both ends of a connection, and a server that sends any bytes."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from certificates import client_context, server_context
from drivers import DEADLINE_S, RawClient, accept_value, masked

from wspy import websocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def listening(**options: Any) -> Iterator[websocket]:
    """Return a listener, on the loopback interface unless options say otherwise."""
    with websocket(**options) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(DEADLINE_S)
        yield listener


class Running:
    """A function that runs in a thread; its exception is raised where it is waited for."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 -- raised again by result()
            self._error = error

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(DEADLINE_S)
        assert self.is_over, "it still runs"
        if self._error is not None:
            raise self._error
        return self._result


class Pair(NamedTuple):
    """Both ends of a connection."""

    client: websocket
    server: websocket


_secured: list[None] = []


@contextlib.contextmanager
def secured() -> Iterator[None]:
    """Let ``connected`` connect by TLS."""
    _secured.append(None)
    try:
        yield
    finally:
        _secured.pop()


@contextlib.contextmanager
def connected(client: dict[str, Any] | None = None, **options: Any) -> Iterator[Pair]:
    """Return both ends of a connection after its opening handshake; options are of the server."""
    client = client or {}
    if _secured:
        options["ssl"], client = server_context(), {"ssl": client_context(), **client}
    with listening(**options) as listener, websocket(**client) as one:
        accepting = Running(lambda: listener.accept()[0])
        one.settimeout(DEADLINE_S)
        one.connect(listener.getsockname())
        with accepting.result() as other:
            other.settimeout(DEADLINE_S)
            yield Pair(one, other)


@contextlib.contextmanager
def raw_client(listener: websocket, path: str = "/", behind: bytes = b"") -> Iterator[tuple[RawClient, websocket]]:
    """Return a client that sends any bytes, and the server's end, after the opening handshake.

    Args:
        listener: where to connect to.
        path: what it asks for.
        behind: what it sends in one segment with its request.
    """
    from drivers import head  # noqa: PLC0415 -- beside its only use

    peer = RawClient(listener.getsockname())
    try:
        peer.send(head(path) + behind)
        server = listener.accept()[0]
        with server:
            server.settimeout(DEADLINE_S)
            peer.opened()
            yield peer, server
    finally:
        peer.end()


class RawServer:
    """The server's end of a connection, which sends any bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.socket.settimeout(DEADLINE_S)
        self._data = b""
        self.request = b""

    def read_request(self) -> bytes:
        """Receive a request head."""
        while b"\r\n\r\n" not in self._data:
            self._more()
        self.request, _, self._data = self._data.partition(b"\r\n\r\n")
        return self.request

    def field(self, name: str) -> str | None:
        """Return a field of the request."""
        for line in self.request.decode("latin-1").split("\r\n")[1:]:
            found, _, value = line.partition(": ")
            if found.lower() == name.lower():
                return value
        return None

    def answer(self, *fields: str, behind: bytes = b"") -> None:
        """Answer the request with 101."""
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept_value(self.field('sec-websocket-key') or '')}",
            *fields,
            "",
            "",
        ]
        self.send("\r\n".join(lines).encode() + behind)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _more(self) -> None:
        data = self.socket.recv(1 << 18)
        assert data, "the client has ended the connection"
        self._data += data

    def exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            self._more()
        data, self._data = self._data[:size], self._data[size:]
        return data

    def frame(self) -> tuple[int, bytes]:
        """Receive a frame of a client, which is masked: its first byte and its payload."""
        first, second = self.exactly(2)
        assert second & 0x80, "a client masks (RFC 6455 §5.1)"
        length = second & 0x7F
        if length >= 126:
            length = int.from_bytes(self.exactly(2 if length == 126 else 8))
        key = self.exactly(4)
        return first, masked(self.exactly(length), key)

    def eof(self) -> None:
        """Expect the end of TCP, by a FIN, and nothing before it."""
        assert not self._data, self._data[:200]
        assert self.socket.recv(1) == b""

    def is_ended(self) -> bool:
        """Whether the client has sent a FIN or a RST."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def end(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def raw_server(behind: bytes = b"", **options: Any) -> Iterator[tuple[websocket, RawServer]]:
    """Return a client, and the server's end that sends any bytes, after the opening handshake.

    Args:
        behind: what the server sends in one segment with its answer.
        options: of the client.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener, websocket(**options) as client:
        client.settimeout(DEADLINE_S)
        connecting = Running(lambda: client.connect("ws://{}:{}/".format(*listener.getsockname())))
        peer = RawServer(listener.accept()[0])
        try:
            peer.read_request()
            peer.answer(behind=behind)
            connecting.result()
            yield client, peer
        finally:
            peer.end()
