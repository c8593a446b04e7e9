"""Does a name become a connection, within its time?"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Self

import pytest
from steps import interrupt

from wspy.connecting import connect_tcp, connect_unix, is_connected
from wspy.deadline import Deadline
from wspy.uri import parse_uri

if TYPE_CHECKING:
    from pathlib import Path


def test_a_socket_is_connected_or_not() -> None:
    one, other = socket.socketpair()
    with other:
        assert is_connected(one)
        one.close()
    assert not is_connected(one)
    with socket.socket() as fresh:
        assert not is_connected(fresh)


class Sockets:
    """Sockets that replace one another, as those of a websocket do."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        self.current = socket.socket(family)
        self.count = 0

    def replace(self, family: int) -> socket.socket:
        self.current.close()
        self.count += 1
        self.current = socket.socket(family)
        return self.current

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.current.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_the_family_follows_the_address(host: str) -> None:
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    with socket.socket(family) as listener, Sockets() as sockets:
        listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listener.listen()
        uri = parse_uri(f"ws://{host}:{listener.getsockname()[1]}/")
        sock = connect_tcp(sockets.current, uri, Deadline(10), sockets.replace)
        assert sock is sockets.current
        assert sock.getpeername() == listener.getsockname()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.gettimeout() == 0


def test_each_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as unused, Sockets() as sockets:
        unused.bind(("127.0.0.2", 0))
        addresses = [unused.getsockname(), unused.getsockname(), listener.getsockname()]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found[:])
        connect_tcp(sockets.current, parse_uri("ws://name/"), Deadline(10), sockets.replace)
        assert sockets.current.getpeername() == listener.getsockname()
        assert sockets.count == 2
        found.pop()
        with pytest.raises(ConnectionRefusedError):
            connect_tcp(sockets.replace(socket.AF_INET), parse_uri("ws://name/"), Deadline(10), sockets.replace)


def full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """Return a listener that takes nobody any more, and those who wait for it."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    waiting = []
    for _ in range(4):
        waiting.append(socket.socket())
        waiting[-1].settimeout(0.05)
        try:
            waiting[-1].connect(listener.getsockname())
        except TimeoutError:
            return listener, waiting
    raise AssertionError("the listener takes everybody")


@pytest.mark.slow
def test_no_address_uses_up_the_time_of_the_others(monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    silent, waiting = full_listener()
    with silent, socket.create_server(("127.0.0.1", 0)) as listener, Sockets() as sockets:
        addresses = [silent.getsockname(), listener.getsockname()]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found[:])
        connect_tcp(sockets.current, parse_uri("ws://name/"), Deadline(1 * patience), sockets.replace)
        assert sockets.current.getpeername() == listener.getsockname()
        found.pop()
        with pytest.raises(TimeoutError):
            connect_tcp(sockets.replace(socket.AF_INET), parse_uri("ws://name/"), Deadline(0.1), sockets.replace)
        with pytest.raises(TimeoutError):
            connect_tcp(sockets.replace(socket.AF_INET), parse_uri("ws://name/"), Deadline(0), sockets.replace)
    for sock in waiting:
        sock.close()


def test_a_socket_that_must_stay_is_the_one_that_is_connected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        uri = parse_uri(f"ws://localhost:{listener.getsockname()[1]}/")
        assert connect_tcp(sock, uri, Deadline(10), None) is sock


def test_nobody_there_is_an_error_of_the_system() -> None:
    with socket.socket() as unused, Sockets() as sockets:
        unused.bind(("127.0.0.1", 0))
        uri = parse_uri(f"ws://127.0.0.1:{unused.getsockname()[1]}/")
        with pytest.raises(ConnectionRefusedError):
            connect_tcp(sockets.current, uri, Deadline(10), sockets.replace)


def test_a_unix_socket_waits_for_its_turn(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(path)
        listener.listen(0)
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
        for client in clients:
            client.settimeout(0)
        connect_unix(clients[0], path, Deadline(10), lambda: None)
        with pytest.raises(TimeoutError):
            connect_unix(clients[1], path, Deadline(0.01), lambda: None)
        with pytest.raises(InterruptedError):
            connect_unix(clients[1], path, Deadline(None), interrupt)
        accepting = threading.Thread(target=lambda: stack.enter_context(listener.accept()[0]))
        accepting.start()
        connect_unix(clients[1], path, Deadline(10), lambda: None)
        accepting.join()
        with pytest.raises(FileNotFoundError), socket.socket(socket.AF_UNIX) as other:
            connect_unix(other, path + "x", Deadline(10), lambda: None)
