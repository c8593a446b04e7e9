"""How does a server begin and end: run, start, stop, join, close, with; on which addresses?"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import stat
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from drivers import (
    DEADLINE_S,
    RawClient,
    close_frame,
    echo,
    head,
    needs,
    only,
    until,
)

import wspy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from drivers import Servers

ANY = ("127.0.0.1", 0)


@pytest.fixture
def echo_kind(server_kind: type[Any]) -> type[Any]:
    """A server that echoes."""
    return type("Echo", (server_kind,), {"onmessage": lambda _, client, message: client.send(message)})


@contextlib.contextmanager
def running(server: Any) -> Iterator[threading.Thread]:
    """Run a server in a thread of the test's."""
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield thread
    finally:
        server.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def talks(address: Any) -> None:
    """Check that an echo server is there."""
    with RawClient(address) as peer:
        peer.open()
        peer.text("hello")
        assert peer.message() == "hello"
        peer.close()


# ---- beginning ----


def test_run_blocks_until_stop(echo_kind: type[Any]) -> None:
    server = echo_kind(ANY)
    with running(server) as thread:
        talks(server.address)
        assert thread.is_alive()
    assert server.loop.closed


def test_start_runs_in_the_background(echo_kind: type[Any]) -> None:
    server = echo_kind(ANY)
    assert server.start() is server
    talks(server.address)
    server.stop()
    assert server.join(DEADLINE_S)


def test_the_address_can_be_connected_to_before_the_start(echo_kind: type[Any]) -> None:
    """The constructor has bound it: the kernel completes connections, the server takes them over later."""
    with echo_kind(ANY) as server:
        peers = [RawClient(server.address) for _ in range(5)]
        for peer in peers:
            peer.send(head())
        server.start()
        for peer in peers:
            peer.opened()
            peer.end()


def test_a_server_runs_once(echo_kind: type[Any]) -> None:
    server = echo_kind(ANY).start()
    talks(server.address)
    for attempt in (server.start, server.run):
        with pytest.raises(RuntimeError):
            attempt()
    talks(server.address)
    server.stop()
    assert server.join(DEADLINE_S)
    for attempt in (server.start, server.run):
        with pytest.raises(RuntimeError):
            attempt()


def test_a_server_can_be_ended_before_it_began(echo_kind: type[Any]) -> None:
    for end in ("close", "stop"):
        server = echo_kind(ANY)
        address = server.address
        getattr(server, end)()
        if end == "stop":
            server.run()
        assert server.join(DEADLINE_S)
        with pytest.raises(ConnectionRefusedError):
            RawClient(address)


@pytest.mark.parametrize("end", ["stop", "close"])
def test_a_server_can_be_ended_right_after_start(echo_kind: type[Any], end: str) -> None:
    """Whether its thread has come so far or not."""
    for _ in range(30):
        server = echo_kind(ANY).start()
        getattr(server, end)()
        assert server.join(DEADLINE_S)
        assert server.loop.closed


# ---- ending ----


@pytest.mark.parametrize("end", ["stop", "close"])
def test_an_idle_server_ends_at_once(echo_kind: type[Any], end: str) -> None:
    server = echo_kind(ANY).start()
    talks(server.address)
    until(lambda: server.stats()["connections"] == 0, "nobody is there")
    began = time.monotonic()
    getattr(server, end)()
    assert server.join(DEADLINE_S)
    assert time.monotonic() - began < 2


def test_an_idle_server_without_any_timer_ends_at_once(echo_kind: type[Any]) -> None:
    server = echo_kind(
        ANY, open_timeout=None, ping_interval=None, close_timeout=None, idle_request_timeout=None
    ).start()
    talks(server.address)
    server.close()
    assert server.join(5)


@needs("stop")
def test_stop_tells_everybody_1001_and_calls_onclose(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peers = [server.open() for _ in range(5)]
    for peer in peers:
        server.story(peer)
    server.stop()
    server.stop()
    for peer in peers:
        peer.closes(1001)
        peer.send(close_frame(1001))
        peer.eof()
        peer.end()
    assert server.ended()
    assert [server.outcome(peer)[0] for peer in peers] == [1001] * 5


@needs("stop")
def test_stop_delivers_what_is_queued(serve: Servers) -> None:
    server = serve()
    peers = [server.open(receive_buffer=4096) for _ in range(3)]
    for peer in peers:
        server.client(peer).send(b"q" * 3_000_000)
    server.stop()
    for peer in peers:
        assert peer.message() == b"q" * 3_000_000
        peer.closes(1001)
        peer.send(close_frame(1001))
        peer.eof()
        peer.end()
    assert server.ended()


@needs("stop")
def test_stop_aborts_the_rest_after_shutdown_timeout(serve: Servers) -> None:
    server = serve(shutdown_timeout=0.1)
    peer, slow = server.open(), server.open(receive_buffer=4096)
    server.client(slow).send(bytes(3_000_000))
    server.story(peer)
    began = time.monotonic()
    server.stop()
    assert server.ended()
    assert 0.09 <= time.monotonic() - began < 5
    assert [server.outcome(one)[0] for one in (peer, slow)] == [1006, 1006]
    peer.closes(1001)
    peer.reset()


@needs("stop")
def test_stop_refuses_handshakes_under_way_with_503(serve: Servers) -> None:
    server = serve()
    peer, early = server.connect(), server.connect()
    peer.send(head()[:-2])
    until(lambda: server.server.stats()["handshakes"] == 2, "it has begun")
    server.stop()
    response = peer.response()
    assert response.status == 503
    assert response.headers["connection"] == "close"
    assert int(response.headers["retry-after"]) > 0
    peer.eof()
    peer.end()
    early.end()
    assert server.ended()


@needs("stop")
def test_stop_refuses_new_connections(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    server.stop()
    peer.closes(1001)
    with pytest.raises(ConnectionRefusedError):
        server.connect()
    peer.send(close_frame(1001))
    peer.end()
    assert server.ended()


@needs("stop")
def test_messages_are_delivered_while_the_server_stops(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    server.stop()
    peer.closes(1001)
    peer.text("before I go")
    peer.send(close_frame(1001))
    peer.eof()
    assert server.outcome(peer)[0] == 1001
    assert server.story(peer).messages == ["before I go"]


@needs("stop")
def test_close_from_another_thread_aborts_everybody(serve: Servers) -> None:
    server = serve()
    peers = [server.open() for _ in range(3)]
    for peer in peers:
        server.story(peer)
    server.server.close()
    assert server.ended()
    for peer in peers:
        peer.reset()
        assert server.outcome(peer)[0] == 1006
    server.server.close()
    server.server.close()


@needs("stop")
def test_close_ends_a_stop_that_takes_long(serve: Servers) -> None:
    server = serve(shutdown_timeout=60)
    peer = server.open()
    server.story(peer)
    server.stop()
    peer.closes(1001)
    server.server.close()
    assert server.ended(10)
    assert server.outcome(peer)[0] == 1006


def test_stop_and_close_from_many_threads(echo_kind: type[Any]) -> None:
    server = echo_kind(ANY).start()
    threads = [threading.Thread(target=end) for end in [server.stop, server.close] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.join(DEADLINE_S)
    server.stop()
    server.close()


def test_join_waits_no_longer_than_told(echo_kind: type[Any]) -> None:
    with echo_kind(ANY).start() as server:
        assert not server.join(0)
        assert not server.join(0.01)
    assert server.join(0)


def test_a_server_that_has_ended_sends_nothing(server_kind: type[Any]) -> None:
    """I10: SocketClosed, whatever has ended the connection."""
    clients: list[wspy.AsyncClient] = []

    class Server(server_kind):
        def onopen(self, client: wspy.AsyncClient) -> None:
            clients.append(client)

    server = Server(ANY).start()
    with RawClient(server.address) as peer:
        peer.open()
        until(lambda: clients, "onopen")
        server.close()
        assert server.join(DEADLINE_S)
        for call in (lambda: clients[0].send("x"), lambda: clients[0].send(b"x" * 10_000), clients[0].send_ping):
            with pytest.raises(wspy.SocketClosed):
                call()
        clients[0].close()
        clients[0].abort()
        assert clients[0].closed
        assert clients[0].buffered_amount == 0
    server.broadcast("nobody")
    assert len(server.clients) == 0


# ---- with ----


def test_a_context_ends_a_server_that_was_started(echo_kind: type[Any]) -> None:
    with echo_kind(ANY) as server:
        server.start()
        talks(server.address)
    assert server.loop.closed


def test_a_context_closes_a_server_that_was_not_started(echo_kind: type[Any]) -> None:
    with echo_kind(ANY) as server:
        address = server.address
    with pytest.raises(ConnectionRefusedError):
        RawClient(address)


def test_a_context_ends_when_something_is_raised(echo_kind: type[Any]) -> None:
    with pytest.raises(ZeroDivisionError), echo_kind(ANY).start() as server:
        1 / 0  # noqa: B018
    assert server.loop.closed


# ---- being forgotten ----


def test_i20_an_abandoned_server_warns_and_does_not_listen(echo_kind: type[Any]) -> None:
    server = echo_kind(ANY)
    address = server.address
    with pytest.warns(ResourceWarning, match="Echo was not closed"):
        del server
    with pytest.raises(ConnectionRefusedError):
        RawClient(address)


@only("epoll", because="a Server with a client can't be abandoned: the client's thread has it")
def test_i20_an_abandoned_server_warns_and_closes_its_sockets(echo_kind: type[Any]) -> None:
    server = echo_kind(ANY)
    address = server.address
    with RawClient(address) as peer:
        peer.send(head())
        while not server.clients:
            server.handle_events(1)
        peer.opened()
        gone = weakref.ref(server)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            del server
            gc.collect()
        assert gone() is None
        # which of them is collected first is chance: the socket may warn, too
        assert "Echo was not closed" in [str(warning.message) for warning in told]
        assert peer.is_ended()
    with pytest.raises(ConnectionRefusedError):
        RawClient(address)


def test_a_server_that_was_closed_does_not_warn(echo_kind: type[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for end in ("close", "context"):
            server = echo_kind(ANY)
            if end == "close":
                server.close()
            else:
                with server:
                    server.start()
            del server
            gc.collect()


def test_a_constructor_that_fails_leaves_nothing_open(echo_kind: type[Any]) -> None:
    """The fixture of every module looks for descriptors; a warning would be an error too."""
    with echo_kind(ANY) as server:
        for wrong in (server.address, ("256.256.256.256", 0), ("127.0.0.1", 1 << 17), "/nowhere/to/be/found"):
            with pytest.raises((OSError, ValueError)):
                echo_kind(wrong)
        for options in ({"max_size": 0}, {"open_timeout": 0}, {"ping_interval": -1}, {"max_head": 1 << 30}):
            with pytest.raises((ValueError, OSError)):
                echo_kind(ANY, **options)
        with pytest.raises(ValueError):
            echo_kind(ANY, protocols=["not a token"])
    gc.collect()


# ---- addresses ----


def test_port_0_is_any_free_one(echo_kind: type[Any]) -> None:
    with echo_kind(ANY).start() as one, echo_kind(ANY).start() as two:
        assert one.address[0] == "127.0.0.1"
        assert one.address[1] != two.address[1] != 0
        talks(one.address)
        talks(two.address)


def test_no_host_is_every_interface(echo_kind: type[Any]) -> None:
    with echo_kind(("", 0)).start() as server:
        port = server.address[1]
        talks(("127.0.0.1", port))
        if socket.has_ipv6 and len(server.address) == 4:
            talks(("::1", port, 0, 0))


def test_an_address_in_use_is_an_error(echo_kind: type[Any]) -> None:
    with echo_kind(ANY) as server, pytest.raises(OSError, match="in use"):
        echo_kind(server.address)


def test_reuse_port(echo_kind: type[Any]) -> None:
    with echo_kind(ANY, reuse_port=True).start() as one, echo_kind(one.address, reuse_port=True).start():
        talks(one.address)


def test_an_address_can_be_used_again_at_once(echo_kind: type[Any]) -> None:
    with echo_kind(ANY).start() as server:
        address = server.address
        peer = RawClient(address)
        peer.open()
        server.stop()
        peer.closes(1001)
        peer.send(close_frame(1001))
        peer.eof()  # the server has closed first: TIME_WAIT is on its side
        peer.end()
        server.join(DEADLINE_S)
    with echo_kind(address).start():
        talks(address)


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6(serve: Servers) -> None:
    server = serve(("::1", 0), onmessage=echo)
    assert len(server.address) == 4
    peer = server.open()
    assert server.client(peer).remote_address == peer.address
    if server.has("clients"):
        assert str(server.client(peer)) == f"[::1]:{peer.address[1]}"
    peer.text("six")
    assert peer.message() == "six"


def test_a_unix_socket(echo_kind: type[Any], tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    clients: list[wspy.AsyncClient] = []

    class Server(echo_kind):
        def onopen(self, client: wspy.AsyncClient) -> None:
            clients.append(client)

    with Server(path).start() as server:
        assert server.address == path
        assert stat.S_ISSOCK(os.stat(path).st_mode)  # noqa: PTH116
        talks(path)
        assert clients[0].remote_address == ""
        assert str(clients[0]) == "unix"
    assert not os.path.exists(path)  # noqa: PTH110


def test_an_abstract_unix_socket(echo_kind: type[Any]) -> None:
    name = f"\0wspy-test-{os.getpid()}"
    with echo_kind(name).start() as server:
        talks(name)
        assert server.address == name.encode()


@pytest.mark.parametrize("kind", ["stale", "live", "file", "link", "directory"])
def test_n1_a_path_that_exists(echo_kind: type[Any], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "socket"
    with contextlib.ExitStack() as stack:
        if kind in {"stale", "live"}:
            other = stack.enter_context(socket.socket(socket.AF_UNIX))
            other.bind(str(path))
            if kind == "live":
                other.listen()
            else:
                other.close()
        elif kind == "file":
            path.write_text("mine")
        elif kind == "link":
            (tmp_path / "target").write_text("mine")
            path.symlink_to(tmp_path / "target")
        else:
            path.mkdir()
        if kind == "stale":
            with echo_kind(str(path)).start():
                talks(str(path))
            return
        with pytest.raises(OSError, match="in use"):
            echo_kind(str(path))
        assert path.exists()
        if kind in {"file", "link"}:
            assert path.read_text() == "mine"


def test_n2_the_umask_says_who_may_connect(echo_kind: type[Any], tmp_path: Path) -> None:
    """From the first moment on: nobody changes the mode of a socket that is there, unix(7)."""
    before = os.umask(0o077)
    try:
        server = echo_kind(str(tmp_path / "socket"))
    finally:
        os.umask(before)
    with server.start():
        assert (tmp_path / "socket").stat().st_mode & 0o077 == 0
        talks(str(tmp_path / "socket"))


def test_n3_a_path_that_is_too_long(echo_kind: type[Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="107"):
        echo_kind(str(tmp_path / ("x" * 108)))


def test_a_socket_that_listens_already(echo_kind: type[Any]) -> None:
    with socket.create_server(ANY) as listener:
        address = listener.getsockname()
        with echo_kind(listener).start() as server:
            assert server.address == address
            talks(address)
        # it stays its owner's
        assert listener.fileno() >= 0
        with echo_kind(listener).start():
            talks(address)


def test_a_socket_that_does_not_listen_is_an_error(echo_kind: type[Any]) -> None:
    with socket.socket() as idle, pytest.raises(ValueError):
        echo_kind(idle)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(ValueError):
        echo_kind(datagrams)


def test_several_servers_in_one_process(serve: Servers) -> None:
    servers = [serve(onmessage=lambda client, message, n=n: client.send(f"{n} {message}")) for n in range(4)]
    peers = [server.open() for server in servers]
    for peer in peers:
        peer.text("who")
    assert [peer.message() for peer in peers] == ["0 who", "1 who", "2 who", "3 who"]


# ---- counters ----


@needs("stats")
def test_stats(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peers = [server.open() for _ in range(3)]
    peers[0].text("x")
    assert peers[0].message() == "x"
    peers[1].send(b"\xff\xff")
    server.outcome(peers[1])
    refused = server.connect()
    refused.send(b"nonsense\0")
    refused.response()
    server.server.broadcast("x")
    stats = server.server.stats()
    assert stats["clients"] == 2
    assert stats["accepted"] == 4
    assert stats["opened"] == 3
    assert stats["messages_received"] == 1
    assert stats["protocol_errors"] == 1
    assert stats["refused"] == 1
    assert stats["broadcasts"] == 1
    assert stats["bytes_received"] == 3 * len(head()) + 7 + 2 + 9
    assert stats["bytes_sent"] > 300
    assert all(isinstance(value, int) for value in stats.values())
