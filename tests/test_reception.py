"""Does a listener perform the opening handshakes of its clients side by side, and tell the others why not?"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from drivers import DEADLINE_S, RawClient, bytewise, frame, head, until
from sockets import Running, listening

import wspy
from wspy import Frame, SocketClosed, reception, websocket

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def arriving(listener: websocket, count: int = 1) -> Iterator[list[RawClient]]:
    clients = [RawClient(listener.getsockname()) for _ in range(count)]
    try:
        yield clients
    finally:
        for client in clients:
            client.end()


REFUSALS: list[tuple[str, bytes, int, dict[str, Any]]] = [
    ("A6 no method", b"G(", 400, {}),
    ("A5 a long line", b"GET /" + b"a" * 8192, 414, {}),
    ("A8 POST", head().replace(b"GET", b"POST", 1), 405, {}),
    ("A12 HTTP/2.0", head().replace(b"1.1", b"2.0", 1), 505, {}),
    ("A21 TLS", b"\x16\x03\x01", 400, {}),
    ("B1 no Host", head(without=["Host"]), 400, {}),
    ("B13 a long head", head("/", [(f"x{i}", "y" * 1000) for i in range(66)]), 431, {}),
    ("C1 no Upgrade", head(without=["Upgrade"]), 426, {}),
    ("C5 no key", head(without=["Sec-WebSocket-Key"]), 400, {}),
    ("C8 another version", head(without=["Sec-WebSocket-Version"], headers=[("Sec-WebSocket-Version", "8")]), 426, {}),
    ("C9 another origin", head(headers=[("Origin", "http://b")]), 403, {"trusted_origins": ["http://a"]}),
    ("C17 another location", head("/b"), 404, {"locations": ["/a"]}),
]


@pytest.mark.parametrize(
    ("request_", "status", "options"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_who_is_not_let_in_gets_the_status_and_the_next_one_is(
    request_: bytes, status: int, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    good = head("/a?x", [("Origin", "http://a")])
    caplog.set_level(logging.INFO, "wspy.websocket")
    with listening(**options) as listener, arriving(listener, 2) as (bad, other):
        # what it sends beside the point must not destroy the answer
        bad.send(request_ + b"x" * 100_000)
        accepting = Running(listener.accept)
        response = bad.response()
        assert response.status == status
        assert response.headers["connection"].endswith("close")
        bad.eof()
        other.send(good)
        server, address = accepting.result()
        with server:
            assert other.opened().status == 101
            assert address == other.address
            assert server.location == "/a?x"
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert repr(bad.address) in record.getMessage()


def test_a2_a_silent_client_holds_nobody(patience: float) -> None:
    with listening(open_timeout=60) as listener, arriving(listener, 20) as clients:
        for silent in clients[:18]:
            silent.send(b"GET / HT")
        clients[19].send(head())
        start = time.monotonic()
        with listener.accept()[0]:
            clients[19].opened()
        assert time.monotonic() - start < 5 * patience


def test_a22_a_client_that_drips_is_let_in_when_it_is_done() -> None:
    with listening() as listener, arriving(listener, 2) as (slow, fast):
        data = head() + frame(1, b"behind")
        slow.send(data[:30])
        fast.send(head())
        with listener.accept()[0] as first:
            assert first.getpeername() == fast.address
        accepting = Running(lambda: listener.accept()[0])
        for piece in bytewise(data[30:]):
            slow.send(piece)
        with accepting.result() as second:
            assert second.getpeername() == slow.address
            assert second.recv() == Frame(1, "behind")


def test_the_timeout_of_a_call_ends_no_handshake() -> None:
    with listening() as listener, arriving(listener) as (client,):
        client.send(head()[:20])
        for timeout in (0.01, 0.02):
            listener.settimeout(timeout)
            with pytest.raises(TimeoutError):
                listener.accept()
        listener.settimeout(DEADLINE_S)
        client.send(head()[20:])
        with listener.accept()[0]:
            client.opened()


@pytest.mark.parametrize(("data", "status"), [(b"", None), (b"GET / HTTP/1.1", None), (b"GET / HTTP/1.1\r\nHos", 408)])
def test_a2_a3_a4_who_takes_too_long_is_told_so(data: bytes, status: int | None) -> None:
    with listening(open_timeout=0.05) as listener, arriving(listener) as (client,):
        client.send(data)
        accepting = Running(listener.accept)
        if status is not None:
            assert client.response().status == status
        client.eof()
        client.end()
        listener.close()
        with pytest.raises(SocketClosed):
            accepting.result()


@pytest.mark.slow
def test_who_is_refused_and_goes_on_is_listened_to_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "LINGER_SECONDS", 0.1)
    with listening() as listener, arriving(listener, 2) as (quiet, loud):
        accepting = Running(listener.accept)
        quiet.send(b"(")
        assert quiet.response().status == 400
        quiet.eof()
        until(lambda: _is_reset_by(quiet), "the server has closed the connection")
        loud.send(b"(")
        loud.response()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                loud.send(b"x" * 65536)
        listener.close()
        with pytest.raises(SocketClosed):
            accepting.result()


def _is_reset_by(client: RawClient) -> bool:
    try:
        client.send(b"x")
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def test_c21_i1_who_goes_away_is_forgotten() -> None:
    with listening() as listener, arriving(listener, 4) as (gone, reset, half, good):
        gone.end()
        reset.send(head()[:30])
        reset.abort()
        half.send(head()[:30])
        half.half_close()
        good.send(head())
        with listener.accept()[0]:
            good.opened()
        half.eof()
        assert listener._reception is not None
        listener.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listener.accept()
        assert not listener._reception


def test_d3_a_wrong_frame_behind_the_head_is_no_matter_of_accept() -> None:
    with listening() as listener, arriving(listener) as (client,):
        client.send(head() + b"\x81\x01x")
        with listener.accept()[0] as server:
            client.opened()
            with pytest.raises(wspy.ProtocolError):
                server.recv()
            client.closes(1002)


def test_several_threads_accept() -> None:
    with listening() as listener, arriving(listener, 8) as clients:
        accepting = [Running(listener.accept) for _ in range(8)]
        for client in clients:
            client.send(head())
        addresses = []
        for running in accepting:
            server, address = running.result()
            server.close()
            addresses.append(address)
        assert sorted(addresses) == sorted(client.address for client in clients)


def test_a_listener_that_is_closed_wakes_all_and_closes_who_was_there() -> None:
    with listening() as listener, arriving(listener, 2) as (one, two):
        one.send(head()[:30])
        waiting = [Running(listener.accept) for _ in range(3)]
        until(lambda: listener._reception, "somebody is in the handshake")
        listener.close()
        for running in waiting:
            with pytest.raises(SocketClosed) as caught:
                running.result()
            assert caught.value.initialized
        one.eof()
        assert listener.fileno() == -1
        del two
    with pytest.raises(SocketClosed):
        listener.accept()


def test_a_signal_handler_closes_the_listener_that_its_thread_waits_at() -> None:
    with listening() as listener, arriving(listener) as (client,):
        client.send(head()[:30])
        before = signal.signal(signal.SIGALRM, lambda *_: listener._reception and listener.close())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            with pytest.raises(SocketClosed) as caught:
                listener.accept()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert caught.value.initialized
        client.eof()


def test_who_waits_for_the_next_call_is_closed_with_the_listener() -> None:
    with listening() as listener, arriving(listener) as (client,):
        client.send(head()[:30])
        listener.settimeout(0.01)
        with pytest.raises(TimeoutError):
            listener.accept()
        listener.close()
        client.eof()


def test_h8_not_more_than_so_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "_MAX_OPENING", 2)
    with listening(open_timeout=0.2) as listener, arriving(listener, 3) as (one, two, three):
        three.send(head())
        with listener.accept()[0]:
            three.opened()
        listener.settimeout(0.5)
        with pytest.raises(TimeoutError):  # the second one's time may not have been over
            listener.accept()
        one.eof()
        two.eof()


def test_h12_an_error_of_a_connection_that_waited_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the system call, whose errors nothing else brings about."""
    errors = [ConnectionAbortedError(103, "aborted"), OSError(71, "protocol")]
    real = socket.socket.accept

    def accept(sock: socket.socket) -> Any:
        if errors:
            raise errors.pop()
        return real(sock)

    with listening() as listener, arriving(listener) as (client,):
        monkeypatch.setattr(socket.socket, "accept", accept)
        client.send(head())
        with listener.accept()[0]:
            client.opened()
        assert not errors


def test_h11_no_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """While handshakes are under way the others wait; else whoever has called accept is told."""
    failures = 0
    real = socket.socket.accept

    def accept(sock: socket.socket) -> Any:
        nonlocal failures
        if len(list(Path("/proc/self/fd").iterdir())) >= limit:
            failures += 1
            raise OSError(24, "Too many open files")
        return real(sock)

    with listening() as listener, arriving(listener, 2) as (one, two):
        monkeypatch.setattr(socket.socket, "accept", accept)
        limit = len(list(Path("/proc/self/fd").iterdir())) + 1
        one.send(head()[:30])
        listener.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listener.accept()
        assert failures == 1
        one.end()
        two.send(head())
        listener.settimeout(DEADLINE_S)
        with listener.accept()[0]:
            two.opened()
            limit = 0
            with arriving(listener), pytest.raises(OSError, match=re.escape("Too many")):
                listener.accept()
