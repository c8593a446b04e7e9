"""Is a websocket a socket that speaks frames, blocking and in somebody else's loop?"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import select
import selectors
import signal
import socket
import ssl
import struct
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Self

import pytest
from drivers import DEADLINE_S, RawClient, bytewise, close_frame, deliveries, frame, head, masked, until
from measures import measures_memory, resident
from reference import CLOSE_CODES
from sockets import RawServer, Running, connected, listening, raw_client, raw_server
from steps import at_each_step
from vectors import VECTORS, Vector

import wspy
from wspy import (
    OPCODE_BINARY,
    OPCODE_CLOSE,
    OPCODE_PING,
    OPCODE_TEXT,
    ControlFrame,
    Frame,
    HandshakeError,
    ProtocolError,
    ResponseError,
    Role,
    SocketClosed,
    websocket,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


# ---- frames ----


def test_frames_go_both_ways() -> None:
    with connected({"location": "/path?query"}) as (client, server):
        client.send(Frame(OPCODE_TEXT, "to the server"), Frame(OPCODE_PING, b"?"))
        assert server.recvn(2) == [Frame(OPCODE_TEXT, "to the server"), ControlFrame(OPCODE_PING, b"?")]
        server.send(Frame(OPCODE_BINARY, b"to the client"))
        assert client.recv() == Frame(OPCODE_BINARY, b"to the client")
        client.send()
        assert server.recvn(0) == []
        assert client.handshake_sent
        assert server.handshake_sent
        assert server.location == client.location == "/path?query"
        assert server.request_headers is not None
        host, port = client.getpeername()
        assert server.request_headers["host"] == f"{host}:{port}"
        assert server.request is not None
        assert server.request.remote_address == client.getsockname()
        assert client.request is client.request_headers is server.response_headers is None


def test_i10_nothing_is_sent_or_received_after_a_close() -> None:
    with connected() as (client, server):
        client.send(wspy.create_close_frame(3000, "reason"))
        with pytest.raises(SocketClosed):
            client.send(Frame(OPCODE_TEXT, "more"))
        closing = server.recv()
        assert isinstance(closing, ControlFrame)
        assert closing.unpack_close() == (3000, "reason")
        with pytest.raises(SocketClosed) as caught:
            server.recv()
        assert (caught.value.rcvd, caught.value.initialized) == ((3000, "reason"), False)
        server.send(Frame(OPCODE_TEXT, "the last one"), wspy.create_close_frame(3000))
        assert client.recvn(2)[0].text == "the last one"
        with pytest.raises(SocketClosed) as caught:
            client.recv()
        assert caught.value.initialized


def test_without_a_handshake_nothing_is_sent_or_received() -> None:
    one, other = socket.socketpair()
    with other, websocket(one) as alone:
        for call in (
            lambda: alone.send(Frame(OPCODE_TEXT, "hello")),
            lambda: alone.queue_send(Frame(OPCODE_TEXT, "hello")),
            alone.recv,
            alone.do_async_recv,
        ):
            with pytest.raises(SocketClosed, match="handshake"):
                call()
        assert not alone.handshake_sent


def test_what_is_no_frame_is_refused_and_nothing_is_sent() -> None:
    with connected() as (client, server):
        wrong: Any = "text"
        with pytest.raises(TypeError, match="Connection"):
            client.send(Frame(OPCODE_TEXT, "a"), wrong)
        with pytest.raises(ValueError, match="5\\.4"):
            client.send(Frame(OPCODE_TEXT, "a"), Frame(0, b"b"))
        with pytest.raises(ValueError, match="unchecked"):
            client.send(Frame(OPCODE_TEXT, "a", mask=False))
        client.send(Frame(OPCODE_TEXT, "b"))
        assert server.recv().text == "b"


def test_i14_a_frame_may_be_changed_when_send_returns() -> None:
    with connected() as (client, server):
        one = Frame(OPCODE_BINARY, bytearray(b"old"))
        client.queue_send(one)
        one.payload = b"new"
        client.do_async_send()
        assert server.recv().payload == b"old"


@pytest.mark.parametrize(
    "vector",
    [vector for vector in VECTORS if not set(vector.options) - {"max_size", "max_fragments"}],
    ids=lambda vector: vector.name,
)
def test_m6_d_e_f_a_stream(vector: Vector) -> None:
    """All rules of frames, in both roles, with the code on the wire; in the segment of the handshake, and behind it."""
    for behind in (b"", vector.data):
        with contextlib.ExitStack() as stack:
            peer: RawClient | RawServer
            if vector.role is Role.SERVER:
                listener = stack.enter_context(listening(**vector.options))
                peer, own = stack.enter_context(raw_client(listener, behind=behind))
            else:
                own, peer = stack.enter_context(raw_server(behind=behind, **vector.options))
            if not behind:
                peer.send(vector.data)
            peer.socket.shutdown(socket.SHUT_WR)
            received = []
            with pytest.raises((SocketClosed, ProtocolError)) as caught:
                while True:
                    received.append(own.recv())
            found = [(one.opcode, one.payload, one.final, 0) for one in received]
            assert found == [(opcode, payload, final, 0) for opcode, payload, final, _ in vector.frames]
            assert isinstance(caught.value, ProtocolError) == (vector.error is not None)
            with pytest.raises(type(caught.value)):
                own.recv()
            if vector.error is not None:
                assert caught.value.code == CLOSE_CODES[vector.error]
                with pytest.raises(SocketClosed):
                    own.send(Frame(OPCODE_TEXT, "x"))
                opcode, payload = peer.frame()[:2]
                assert (opcode & 15, payload) == (OPCODE_CLOSE, vector.owed_close)
            own.close()
            peer.eof()


@pytest.mark.parametrize(
    "vector",
    [vector for vector in VECTORS if vector.name.startswith(("D14", "E7", "F2 a", "D5 5 "))],
    ids=lambda vector: vector.name,
)
def test_d17_a_stream_however_it_is_cut(vector: Vector) -> None:
    for _, pieces in deliveries(vector.data, most=4, short=8):
        with contextlib.ExitStack() as stack:
            if vector.role is Role.SERVER:
                peer, own = stack.enter_context(raw_client(stack.enter_context(listening())))
            else:
                own, peer = stack.enter_context(raw_server())
            received: list[Frame] = []
            own.recv_callback = received.append
            with contextlib.suppress(ProtocolError, SocketClosed):
                for piece in pieces:
                    peer.send(piece)
                    for _ in piece:
                        until(lambda own=own: _readable(own), "it has arrived")
                        own.do_async_recv(1)
            assert [(one.opcode, one.payload, one.final) for one in received] == [one[:3] for one in vector.frames]


def _readable(own: websocket) -> bool:
    poll = select.poll()
    poll.register(own, select.POLLIN)
    return bool(poll.poll(0))


# ---- a server ----


def test_every_argument_reaches_the_clients_of_a_listener() -> None:
    frames: list[Frame] = []
    options: dict[str, Any] = {
        "origin": "http://o",
        "protocols": iter(["chat", "other"]),
        "location": "/l",
        "trusted_origins": iter(["http://a"]),
        "locations": iter(["/a"]),
        "extra_headers": {"X-Extra": "yes"},
        "recv_callback": frames.append,
        "strict": False,
        "max_size": 5,
        "max_fragments": 6,
        "open_timeout": 7,
    }
    for _ in range(2):
        with listening(**options) as listener:
            for _ in range(2):  # what can be iterated over once only counts for every client all the same
                peer = RawClient(listener.getsockname())
                peer.send(head("/a", [("Origin", "http://a"), ("Sec-WebSocket-Protocol", "x, other")]))
                with listener.accept()[0] as server:
                    response = peer.opened()
                    assert response.headers["x-extra"] == "yes"
                    assert response.headers["sec-websocket-protocol"] == server.protocol == "other"
                    assert response.headers["server"] == f"wspy/{wspy.__version__}"
                    for name in ("origin", "strict", "max_size", "max_fragments", "open_timeout", "recv_callback"):
                        assert getattr(server, name) == options[name] == getattr(listener, name)
                peer.end()
            for request in (head("/a", [("Origin", "http://b")]), head("/b", [("Origin", "http://a")])):
                peer = RawClient(listener.getsockname())
                peer.send(request)
                running = Running(listener.accept)
                assert peer.response().status in {403, 404}
                peer.end()
                with websocket(origin="http://a", location="/a") as client:
                    client.connect(listener.getsockname())
                    running.result()[0].close()
        options["protocols"], options["trusted_origins"], options["locations"] = ["chat", "other"], ["http://a"], ["/a"]


def test_what_is_changed_counts_for_those_who_come_later() -> None:
    with listening() as listener:
        listener.locations = ["/a"]
        peer = RawClient(listener.getsockname())
        peer.send(head("/b"))
        running = Running(listener.accept)
        assert peer.response().status == 404
        peer.end()
        listener.close()
        with pytest.raises(SocketClosed):
            running.result()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"protocols": "chat"}, TypeError),
        ({"protocols": ["a b"]}, ValueError),
        ({"trusted_origins": "http://a"}, TypeError),
        ({"trusted_origins": ["http://a/"]}, ValueError),
        ({"locations": "/a"}, TypeError),
        ({"locations": ["a"]}, ValueError),
        ({"extra_headers": {"A": "b\r\nc"}}, ValueError),
        ({"extra_headers": {"Upgrade": "b"}}, ValueError),
        ({"max_size": -1}, ValueError),
        ({"max_size": "1"}, TypeError),
        ({"max_fragments": -1}, ValueError),
        ({"open_timeout": -1}, ValueError),
        ({"open_timeout": float("nan")}, ValueError),
        ({"open_timeout": "1"}, TypeError),
        ({"auth": "user:secret"}, TypeError),
        ({"ssl": True}, TypeError),
        ({"auth": ()}, ValueError),
        ({"auth": ("user", 1)}, TypeError),
        ({"auth": ("user", "secret\n")}, ValueError),
    ],
)
def test_arguments_are_checked_at_once(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        websocket(**options)


def test_a_datagram_socket_is_refused() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="stream"):
        websocket(sock)


def test_the_policy_of_one_origin() -> None:
    with listening(trusted_origins="same-origin") as listener, websocket(origin="http://elsewhere") as client:
        running = Running(listener.accept)
        with pytest.raises(ResponseError) as caught:
            client.connect(listener.getsockname())
        assert caught.value.status == 403
        with websocket(origin="http://{}:{}".format(*listener.getsockname())) as other:
            other.connect(listener.getsockname())
            running.result()[0].close()


def test_subclasses_accept_their_own_kind() -> None:
    class Special(websocket):
        pass

    with Special() as listener, websocket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        connecting = Running(lambda: client.connect(listener.getsockname()))
        with listener.accept()[0] as server:
            assert type(server) is Special
            connecting.result()


@contextlib.contextmanager
def accepted() -> Iterator[tuple[RawClient, websocket]]:
    """A client, and the server's end before the handshake, on a socket that was accepted elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = RawClient(listener.getsockname())
        with websocket(listener.accept()[0]) as server:
            server.settimeout(DEADLINE_S)
            yield peer, server
        peer.end()


def test_a_handshake_on_a_socket_that_was_accepted_elsewhere() -> None:
    with accepted() as (peer, server):
        peer.send(head("/p") + frame(1, b"behind"))
        server.do_handshake()
        peer.opened()
        assert server.location == "/p"
        assert server.recv().text == "behind"
        with pytest.raises(ValueError, match="already"):
            server.do_handshake()
        with pytest.raises(ValueError, match="already"):
            server.connect("ws://here/")


@pytest.mark.parametrize(("data", "status"), [(b"G(", 400), (b"GET /" + b"a" * 70_000, 414), (head("/b"), 404)])
def test_a_handshake_that_is_refused_is_told_and_ended_in_order(data: bytes, status: int) -> None:
    with accepted() as (peer, server):
        server.locations = ["/a"]
        handshake = Running(server.do_handshake)
        peer.send(data)
        assert peer.response().status == status
        peer.eof()
        peer.end()
        with pytest.raises(HandshakeError) as caught:
            handshake.result()
        assert caught.value.status == status
        with pytest.raises(SocketClosed):
            server.send(Frame(OPCODE_TEXT, "x"))


@pytest.mark.parametrize(("data", "status"), [(b"GET / HTTP/1.1", None), (b"GET / HTTP/1.1\r\nHost: h\r\n", 408)])
@pytest.mark.parametrize("limit", ["open_timeout", "timeout"])
def test_a3_a4_a_handshake_that_takes_too_long(data: bytes, status: int | None, limit: str) -> None:
    with accepted() as (peer, server):
        if limit == "timeout":
            server.settimeout(0.05)
        else:
            server.open_timeout = 0.05
        peer.send(data)
        handshake = Running(server.do_handshake)
        if status is not None:
            assert peer.response().status == status
        peer.eof()
        peer.end()
        with pytest.raises(TimeoutError):
            handshake.result()


def test_i1_a_reset_or_the_end_during_the_handshake() -> None:
    for end in (RawClient.abort, RawClient.end):
        for data in (b"", head()[:40], head()):
            with accepted() as (peer, server):
                peer.send(data)
                end(peer)
                with pytest.raises(SocketClosed):
                    server.do_handshake()
                    while True:
                        server.recv()


# ---- a client ----


@pytest.mark.parametrize("form", ["host and port", "uri", "no host"])
def test_a_client_connects(form: str) -> None:
    with listening() as listener:
        host, port = listener.getsockname()
        address: Any = {"host and port": (host, port), "uri": f"ws://localhost:{port}/l?q", "no host": ("", port)}[form]
        accepting = Running(lambda: listener.accept()[0])
        with websocket(location="/l?q", protocols=["a", "b"], origin="http://o", extra_headers={"X-A": "b"}) as client:
            client.connect(address)
            with accepting.result() as server:
                assert server.location == client.location == "/l?q"
                name = {"host and port": host, "uri": "localhost", "no host": "localhost"}[form]
                assert server.request_headers is not None
                fields = {key.lower(): value for key, value in server.request_headers.items()}
                assert fields["host"] == f"{name}:{port}"
                assert (fields["origin"], fields["x-a"]) == ("http://o", "b")
                assert fields["sec-websocket-protocol"] == "a, b"
                assert client.response_headers is not None
                assert client.response_headers["upgrade"] == "websocket"
                assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            with pytest.raises(ValueError, match="already"):
                client.connect(address)


def test_ipv6() -> None:
    with websocket(sfamily=socket.AF_INET6) as listener:
        listener.bind(("::1", 0))
        listener.listen()
        for address in (listener.getsockname(), f"ws://[::1]:{listener.getsockname()[1]}/"):
            accepting = Running(listener.accept)
            with websocket() as client:
                client.connect(address)
                server, peer = accepting.result()
                assert client.family == socket.AF_INET6
                assert peer == client.getsockname()
                assert server.request_headers["host"] == f"[::1]:{listener.getsockname()[1]}"
                server.close()


def test_unix_sockets(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with websocket(sfamily=socket.AF_UNIX) as listener, websocket(sfamily=socket.AF_UNIX, location="/l") as client:
        listener.bind(path)
        listener.listen()
        accepting = Running(listener.accept)
        client.connect(path)
        server, address = accepting.result()
        with server:
            assert (address, server.location, client.getpeername()) == ("", "/l", path)
            sending = Running(lambda: client.send(Frame(OPCODE_TEXT, "x" * 500_000)))
            assert len(server.recv().payload) == 500_000
            sending.result()
    with websocket(sfamily=socket.AF_UNIX) as client, pytest.raises(FileNotFoundError):
        client.connect(path + "x")


def test_a_connected_socket_is_used_as_it_is() -> None:
    with listening() as listener, websocket(socket.create_connection(listener.getsockname())) as client:
        own = client.sock
        client.settimeout(DEADLINE_S)
        accepting = Running(lambda: listener.accept()[0])
        client.connect("ws://name.invalid/path")
        with accepting.result() as server:
            assert server.request is not None
            assert (server.request.headers["host"], server.location) == ("name.invalid", "/path")
            assert client.sock is own


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({"ssl": ssl.create_default_context()}, "ws://a/"),
        ({}, "ws://user%00:pass@a/"),
        ({"auth": lambda *_: True}, None),
        ({"auth": {"user": "secret"}}, None),
        ({}, "http://a/"),
        ({}, "ws://a/#b"),
        ({"location": "/a b"}, None),
        ({"location": "a"}, None),
        ({"location": "/\r\n"}, None),
        ({"origin": "a b"}, None),
        ({"extra_headers": {"Host": "a b"}}, None),
        ({"extra_headers": {"Sec-WebSocket-Key": "x"}}, None),
        ({}, ("a b", 1)),
    ],
)
def test_l4_what_can_not_be_asked_for_is_known_before_there_is_a_connection(
    options: dict[str, Any], address: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        with pytest.raises((ValueError, TypeError)):
            stack.enter_context(websocket(**options)).connect(address or listener.getsockname())
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_non_blocking_client_is_told_to_connect_first() -> None:
    with websocket() as client:
        client.setblocking(flag=False)
        with pytest.raises(ValueError, match="setblocking"):
            client.connect(("127.0.0.1", 1))


def test_a_failed_attempt_can_be_repeated() -> None:
    with socket.socket() as unused, listening() as listener, websocket() as client:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            client.connect(unused.getsockname())
        assert client.fileno() == -1
        accepting = Running(lambda: listener.accept()[0])
        client.connect(listener.getsockname())
        with accepting.result():
            client.close()
            with pytest.raises(SocketClosed):
                client.connect(listener.getsockname())


class Script:
    """A server that does with each connection what a function of the list says."""

    def __init__(self, *steps: Callable[[RawServer], object]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(DEADLINE_S)
        self.requests: list[bytes] = []
        self._running = Running(lambda: [self._serve(step) for step in steps])

    def _serve(self, step: Callable[[RawServer], object]) -> None:
        peer = RawServer(self.listener.accept()[0])
        try:
            self.requests.append(peer.read_request())
            step(peer)
            with contextlib.suppress(OSError):
                peer.socket.recv(1)
        finally:
            peer.end()

    @property
    def url(self) -> str:
        return "ws://{}:{}/start".format(*self.listener.getsockname())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.listener.close()
        if kind is None:
            self._running.result()


def says(*lines: str, body: str = "") -> Callable[[RawServer], None]:
    return lambda peer: peer.send("\r\n".join([*lines, "", body]).encode())


def moved(location: str, status: str = "302 Found") -> Callable[[RawServer], None]:
    return says(f"HTTP/1.1 {status}", f"Location: {location}", "Content-Length: 0")


def opens(peer: RawServer) -> None:
    peer.answer()


CREDENTIALS = {"Authorization": "secret", "Cookie": "secret", "X-Other": "public"}


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
def test_redirects_on_the_same_origin_keep_the_credentials(status: str) -> None:
    with (
        Script(moved("/a?b", status), moved("c", status), opens) as server,
        websocket(extra_headers=CREDENTIALS) as client,
    ):
        client.connect(server.url)
        assert client.location == "/c"
        client.close()
        assert [request.split(b" ")[1] for request in server.requests] == [b"/start", b"/a?b", b"/c"]
        assert all(request.count(b"secret") == 2 for request in server.requests)


def test_k19_another_origin_sees_no_credentials_and_none_come_back() -> None:
    with Script(opens) as last, websocket(extra_headers={**CREDENTIALS, "Host": "virtual"}) as client:
        other = last.url.replace("127.0.0.1", "localhost")
        with Script(moved(other.replace("ws:", "http:"))) as first:
            client.connect(first.url)
            assert b"secret" in first.requests[0]
            assert b"Host: virtual" in first.requests[0]
        client.close()
        assert b"secret" not in last.requests[0]
        assert b"virtual" not in last.requests[0]
        assert b"X-Other: public" in last.requests[0]


def test_m7_ten_redirects_and_no_more() -> None:
    with Script(*[moved("/x")] * 10, opens) as server, websocket() as client:
        client.connect(server.url)
        client.close()
    with Script(*[moved("/x")] * 11) as server, websocket() as client:
        with pytest.raises(ResponseError, match="more than 10") as caught:
            client.connect(server.url)
        assert (caught.value.status, caught.value.headers["location"]) == (302, "/x")
        assert client.fileno() == -1


@pytest.mark.parametrize("location", ["ftp://a/", "ws://u:p@a/", "ws://a:0/", "/#f"])
def test_m7_a_redirect_that_is_not_followed(location: str) -> None:
    with Script(moved(location)) as server, websocket() as client:
        with pytest.raises(ResponseError, match="redirect") as caught:
            client.connect(server.url)
        assert caught.value.status == 302


def test_m7_a_socket_that_was_passed_in_is_not_exchanged() -> None:
    with Script(moved("/x")) as server, websocket(socket.create_connection(server.listener.getsockname())) as client:
        with pytest.raises(ResponseError) as caught:
            client.connect(server.url)
        assert caught.value.headers["location"] == "/x"


def asks(*challenges: str) -> Callable[[RawServer], None]:
    fields = [f"WWW-Authenticate: {challenge}" for challenge in challenges]
    return says("HTTP/1.1 401 Unauthorized", *fields, "Content-Length: 4", body="who?")


BASIC = 'Basic realm="x"'
TOKEN = b"Authorization: Basic dXNlcjpzZWNyZXQ="


@pytest.mark.parametrize("form", ["auth", "uri"])
def test_k19_a_server_that_asks_is_told_who_this_is(form: str) -> None:
    pair = ("user", "secret") if form == "auth" else None
    with Script(asks(BASIC), opens) as server, websocket(auth=pair, extra_headers={"X-Other": "y"}) as client:
        client.connect(server.url if pair else server.url.replace("//", "//user:secret@"))
        client.close()
        assert [TOKEN in request for request in server.requests] == [False, True]
        assert all(b"X-Other: y" in request and b"@" not in request for request in server.requests)


def test_k19_a_server_that_goes_on_asking_is_told_once() -> None:
    with Script(asks(BASIC), asks(BASIC)) as server, websocket(auth=("user", "secret")) as client:
        with pytest.raises(ResponseError) as caught:
            client.connect(server.url)
        assert (caught.value.status, caught.value.body) == (401, b"who?")
        assert client.fileno() == -1
        assert TOKEN in server.requests[1]


def test_k19_a_redirect_is_followed_with_the_answer_and_leads_to_no_other_one() -> None:
    with (
        Script(moved("/a"), asks(BASIC), moved("/b"), opens) as server,
        websocket(auth=("user", "secret")) as client,
    ):
        client.connect(server.url)
        client.close()
        assert [request.split(b" ")[1] for request in server.requests] == [b"/start", b"/a", b"/a", b"/b"]
        assert [TOKEN in request for request in server.requests] == [False, False, True, True]
    with Script(asks(BASIC), moved("/a"), asks(BASIC)) as server, websocket(auth=("user", "secret")) as client:
        with pytest.raises(ResponseError) as caught:
            client.connect(server.url)
        assert caught.value.status == 401


def test_k19_a_stale_nonce_is_answered_with_the_fresh_one() -> None:
    digest = 'Digest realm="x", qop="auth", algorithm=SHA-256, nonce='
    questions = (asks(digest + '"1"', BASIC), asks(digest + '"2", stale=true'))
    with Script(*questions, opens) as server, websocket(auth=("user", "secret")) as client:
        client.connect(server.url)
        client.close()
        assert b"Authorization" not in server.requests[0]
        assert b'nonce="1"' in server.requests[1]
        assert b'nonce="2"' in server.requests[2]
        assert not any(TOKEN in request for request in server.requests)


def test_k19_another_origin_that_asks_is_told_nothing() -> None:
    with Script(asks(BASIC)) as last, websocket(auth=("user", "secret")) as client:
        other = last.url.replace("127.0.0.1", "localhost")
        with Script(asks(BASIC), moved(other)) as first:
            with pytest.raises(ResponseError) as caught:
                client.connect(first.url)
            assert caught.value.status == 401
            assert TOKEN in first.requests[1]
        assert b"Authorization" not in last.requests[0]


def test_k19_a_socket_that_was_passed_in_is_not_exchanged_to_answer() -> None:
    with Script(asks(BASIC)) as server:
        sock = socket.create_connection(server.listener.getsockname())
        with websocket(sock, auth=("user", "secret")) as client, pytest.raises(ResponseError) as caught:
            client.connect(server.url)
        assert caught.value.status == 401


def test_k17_credentials_are_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with listening(auth=("auser", "horse")) as listener, websocket(auth=("other", "donkey")) as client:
        accepting = Running(listener.accept)
        with pytest.raises(ResponseError) as caught:
            client.connect(listener.getsockname())
        with websocket() as other:
            other.connect("ws://auser:horse@{}:{}/".format(*listener.getsockname()))
            accepting.result()[0].close()
        shown = [repr(client), str(caught.value), repr(caught.value), *caplog.messages, repr(listener)]
        assert not any(word in text for text in shown for word in ("auser", "horse", "other", "donkey", "Basic "))
        refused = [message.partition(": ")[2] for message in caplog.messages]
        nothing = "the client has sent no credentials"
        assert refused == [nothing, "the credentials for basic are wrong", nothing], "one line for each"


def test_what_only_a_client_can_use_is_refused_before_clients_come() -> None:
    with websocket(auth=("a:b", "c")) as one, pytest.raises(ValueError, match="colon"):
        one.listen()


def test_auth_of_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    pair = ("user", "secret")
    with websocket(sfamily=socket.AF_UNIX, auth=pair) as listener, websocket(sfamily=socket.AF_UNIX, auth=pair) as one:
        listener.bind(path)
        listener.listen()
        accepting = Running(listener.accept)
        one.connect(path)
        with accepting.result()[0] as server:
            assert server.request.username == "user"


@pytest.mark.parametrize("make", [None, wspy.BasicAuth, wspy.DigestAuth])
def test_who_a_client_is(make: Any) -> None:
    pair = ("user", "secret")
    with connected({"auth": pair}, auth=make(pair) if make else pair) as (_, server):
        assert server.request is not None
        assert server.request.username == "user"


def test_a_digest_remembers_over_all_clients_of_a_listener() -> None:
    """K12: what was used with one of them is used up for the others."""
    policy = wspy.DigestAuth(("user", "secret"))
    with listening(auth=policy) as listener:
        accepting = Running(lambda: listener.accept()[0])
        with websocket(auth=("user", "secret")) as client:
            client.connect(listener.getsockname())
            with accepting.result() as server:
                used = server.request.headers["authorization"]
                assert server.auth == (policy,)
        peer = RawClient(listener.getsockname())
        peer.send(head("/", [("Authorization", used), ("X", "y")]))
        accepting = Running(listener.accept)
        assert "stale=true" in peer.socket.recv(1 << 16).decode()
        peer.end()
        listener.close()
        with pytest.raises(SocketClosed):
            accepting.result()


def test_a_function_for_auth_that_fails_is_answered_with_500(caplog: pytest.LogCaptureFixture) -> None:
    with listening(auth=lambda *_: 1 / 0) as listener, websocket(auth=("user", "secret")) as client:
        accepting = Running(listener.accept)
        with pytest.raises(ResponseError) as caught:
            client.connect(listener.getsockname())
        assert caught.value.status == 500
        assert "ZeroDivisionError" in caplog.text
        listener.close()
        with pytest.raises(SocketClosed):
            accepting.result()


def test_do_handshake_asks_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, websocket(auth=("user", "secret")) as client:
        connecting = Running(lambda: client.connect(listener.getsockname()))
        with (
            websocket(listener.accept()[0], auth=("user", "secret")) as server,
            pytest.raises(HandshakeError) as caught,
        ):
            server.do_handshake()
        assert caught.value.status == 401
        with websocket(listener.accept()[0], auth=("user", "secret")) as server:
            server.do_handshake()
            assert server.request is not None
            assert server.request.username == "user"
            connecting.result()


GUESSED = head("/", [("Authorization", "Basic dXNlcjpndWVzcw==")])


def slow_to_refuse(delay: float) -> wspy.BasicAuth:
    return wspy.BasicAuth(("user", "secret"), delay=delay)


@pytest.mark.parametrize("limit", ["delay", "open_timeout", "timeout"])
def test_k16_do_handshake_answers_wrong_credentials_later(limit: str) -> None:
    with accepted() as (peer, server):
        server.auth = slow_to_refuse(0.1 if limit == "delay" else 600)
        if limit == "timeout":
            server.settimeout(0.1)
        elif limit == "open_timeout":
            server.open_timeout = 0.1
        began = time.monotonic()
        peer.send(GUESSED)
        handshake = Running(server.do_handshake)
        assert peer.response().status == 401
        assert time.monotonic() - began >= 0.1
        peer.end()
        with pytest.raises(HandshakeError) as caught:
            handshake.result()
        assert caught.value.status == 401


@pytest.mark.parametrize("who", ["peer", "server"])
def test_k16_do_handshake_does_not_wait_for_the_delay_if_either_side_ends(who: str) -> None:
    with accepted() as (peer, server):
        policy = slow_to_refuse(600)
        server.auth, server.open_timeout = policy, None
        peer.send(GUESSED)
        handshake = Running(server.do_handshake)
        until(lambda: policy.failures, "read")
        if who == "peer":
            peer.abort()
        else:
            server.close()
        with pytest.raises(HandshakeError if who == "peer" else SocketClosed):
            handshake.result()


def test_k16_accept_keeps_to_its_time_while_an_answer_is_held_back() -> None:
    policy = slow_to_refuse(0.2)
    with listening(auth=policy) as listener:
        peer = RawClient(listener.getsockname())
        peer.send(GUESSED)
        listener.settimeout(0.05)
        began = time.monotonic()
        while not policy.failures:
            with pytest.raises(TimeoutError):
                listener.accept()
        assert peer.waiting() == b"" or time.monotonic() - began >= 0.2
        listener.settimeout(DEADLINE_S)
        accepting = Running(listener.accept)
        assert peer.response().status == 401
        assert time.monotonic() - began >= 0.2
        peer.end()
        listener.close()
        with pytest.raises(SocketClosed):
            accepting.result()


def test_a_refusal_has_status_headers_and_body() -> None:
    refusal = says("HTTP/1.1 403 Forbidden", "X-Why: this", "Content-Length: 4", body="why?")
    with Script(refusal) as server, websocket() as client:
        with pytest.raises(ResponseError) as caught:
            client.connect(server.url)
        error = caught.value
        assert (error.status, error.reason, error.headers["x-why"], error.body) == (403, "Forbidden", "this", b"why?")


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["garbage"], id="M1 garbage"),
        pytest.param(["HTTP/1.1 101 " + "x" * (1 << 20)], id="M1 1 MiB of reason"),
        pytest.param(["HTTP/1.1 101 S", *["a: b"] * 200_000], id="M1 endless headers"),
        pytest.param(["HTTP/1.1 100 C\r\n"] * 20, id="M1 endless 1xx"),
        pytest.param(["HTTP/1.1 101 S", "Upgrade: websocket", "Connection: upgrade"], id="M2 no accept"),
        pytest.param(
            ["HTTP/1.1 101 S", "Upgrade: websocket", "Connection: upgrade", "Sec-WebSocket-Accept: " + "A" * 28],
            id="M2 a wrong accept",
        ),
    ],
)
def test_m1_m2_a_wrong_answer(lines: list[str]) -> None:
    def answer(peer: RawServer) -> None:
        with contextlib.suppress(OSError):
            says(*lines)(peer)

    with Script(answer) as server, websocket() as client, pytest.raises(ResponseError):
        client.connect(server.url)


@pytest.mark.parametrize("field", ["Sec-WebSocket-Protocol: other", "Sec-WebSocket-Extensions: x", "Content-Length: 5"])
def test_m3_m5_what_was_not_asked_for(field: str) -> None:
    with Script(lambda peer: peer.answer(field)) as server, websocket(protocols=["chat"]) as client:
        with pytest.raises(ResponseError) as caught:
            client.connect(server.url)
        assert caught.value.status == 101


def test_m3_the_subprotocol_of_the_servers_choice() -> None:
    with (
        Script(lambda peer: peer.answer("Sec-WebSocket-Protocol: b")) as server,
        websocket(protocols=["a", "b"]) as client,
    ):
        client.connect(server.url)
        assert client.protocol == "b"
        client.close()


def test_m4_frames_in_the_same_segment_as_the_101() -> None:
    with raw_server(behind=b"\x81\x01a\x81\x01b\x81") as (client, peer):
        assert client.handshake_sent
        assert client.recv().text == "a"
        peer.send(b"\x01c")
        assert [one.text for one in client.recvn(2)] == ["b", "c"]


PHASES = [
    pytest.param(b"", 0, id="silence"),
    pytest.param(b"HTTP/1.1 101 Switching", 0, id="the status line"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", 0, id="an interim answer"),
    pytest.param(b"HTTP/1.1 404 N\r\nContent-Length: 9\r\n\r\nhalf", 404, id="the body"),
]


@pytest.mark.parametrize("limit", ["open_timeout", "timeout"])
@pytest.mark.parametrize(("said", "status"), PHASES)
def test_m1_a_server_that_stops(said: bytes, status: int, limit: str) -> None:
    with Script(lambda peer: peer.send(said)) as server, websocket() as client:
        client.settimeout(DEADLINE_S)
        if limit == "timeout":
            client.settimeout(0.1)
        else:
            client.open_timeout = 0.1
        with pytest.raises(ResponseError if status else TimeoutError) as caught:
            client.connect(server.url)
        if isinstance(caught.value, ResponseError):
            assert (caught.value.status, caught.value.body) == (status, b"half")
        assert client.gettimeout() == (0.1 if limit == "timeout" else DEADLINE_S)


@pytest.mark.slow
def test_m1_a_server_that_drips_does_not_prolong_it(patience: float) -> None:
    def drip(peer: RawServer) -> None:
        with contextlib.suppress(OSError):
            for byte in bytewise(b"HTTP/1.1 404 N\r\n" + b"a: b\r\n" * 100):
                peer.send(byte)
                threading.Event().wait(0.01)

    with Script(drip) as server, websocket(open_timeout=0.2) as client:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            client.connect(server.url)
        assert time.monotonic() - start < 2 * patience


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 101 S\r\n", b"HTTP/1.1 404 N\r\nContent-Length: 9\r\n\r\nhalf"])
def test_i1_a_server_that_ends_or_resets_during_the_handshake(said: bytes) -> None:
    for reset in (False, True):

        def end(peer: RawServer, reset: bool = reset) -> None:
            peer.send(said)
            if reset:
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.end()

        with Script(end) as server, websocket() as client, pytest.raises((ResponseError, SocketClosed)) as caught:
            client.connect(server.url)
        if said.startswith(b"HTTP/1.1 404"):
            assert isinstance(caught.value, ResponseError)
            assert (caught.value.status, caught.value.body) == (404, b"half")


def test_a_client_is_closed_while_it_connects() -> None:
    with Script(lambda peer: None) as server, websocket(open_timeout=None) as client:
        connecting = Running(lambda: client.connect(server.url))
        until(lambda: server.requests, "the request has arrived")
        client.close()
        with pytest.raises(SocketClosed) as caught:
            connecting.result()
        assert caught.value.initialized


def test_a_client_is_closed_while_it_waits_for_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(path)
        listener.listen(0)
        first = stack.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(path)
        client = stack.enter_context(websocket(sfamily=socket.AF_UNIX, open_timeout=None))
        connecting = Running(lambda: client.connect(path))
        until(lambda: client._held._users, "it connects")
        client.close()
        with pytest.raises(SocketClosed) as caught:
            connecting.result()
        assert caught.value.initialized


def test_two_threads_connect_and_one_does() -> None:
    go_on = threading.Event()

    def answer(peer: RawServer) -> None:
        assert go_on.wait(DEADLINE_S)
        peer.answer()
        first.append(peer.frame())

    first: list[tuple[int, bytes]] = []
    with Script(answer) as server, websocket() as client:
        connecting = [Running(lambda: client.connect(server.url)) for _ in range(2)]
        until(lambda: server.requests, "the request has arrived")
        go_on.set()
        failed = []
        for running in connecting:
            try:
                running.result()
            except ValueError as error:
                failed.append(error)
        client.send(Frame(OPCODE_TEXT, "x"))
    assert len(failed) == 1
    assert first == [(0x81, b"x")]


def test_a_limit_that_is_wrong_is_known_before_there_is_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, websocket() as client:
        client.max_size = -1
        with pytest.raises(ValueError, match="max_size"):
            client.connect(listener.getsockname())
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


# ---- a socket ----


def test_members_of_the_socket() -> None:
    one, other = socket.socketpair()
    one.settimeout(3)
    with other, websocket(one) as own:
        assert (own.family, own.type, own.proto) == (one.family, one.type, one.proto)
        assert own.fileno() == one.fileno()
        assert own.sock is one
        assert own.gettimeout() == 3
        own.settimeout(None)
        assert own.gettimeout() is None
        own.setblocking(flag=False)
        assert own.gettimeout() == 0
        own.setblocking(flag=True)
        assert own.gettimeout() is None
        for wrong, error in ((-1, ValueError), ("1", TypeError)):
            bad: Any = wrong
            with pytest.raises(error):
                own.settimeout(bad)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == bytes(8)
        assert own.getsockname() == own.getpeername() == ""
        own.shutdown(socket.SHUT_WR)
        assert other.recv(1) == b""
        assert repr(one) in repr(own)
    assert own.fileno() == -1
    own.close()


def test_the_default_timeout_is_that_of_sockets() -> None:
    socket.setdefaulttimeout(5)
    try:
        with connected() as (_, server), websocket() as own:
            assert own.gettimeout() == 5
            assert server.open_timeout == 10
    finally:
        socket.setdefaulttimeout(None)


def test_copies_are_refused() -> None:
    with websocket() as own:
        for refused in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="copied or pickled"):
                refused(own)


def test_i20_an_abandoned_one_is_closed_at_once() -> None:
    with listening() as listener, raw_client(listener) as (peer, server):
        peer.send(b"\x81\x01x")
        with pytest.raises(ProtocolError):
            server.recv()
        gc.disable()
        try:
            own = websocket(server.sock.dup())
            gone = weakref.ref(own)
            with pytest.warns(ResourceWarning, match="unclosed"):
                del own
            assert gone() is None
        finally:
            gc.enable()


def test_a_refused_one_is_no_part_of_a_circle() -> None:
    gc.disable()
    try:
        with accepted() as (peer, server):
            peer.send(b"(")
            peer.half_close()
            with pytest.raises(HandshakeError):
                server.do_handshake()
            gone = weakref.ref(server)
        del server
        assert gone() is None
    finally:
        gc.enable()


def test_fork_a_childs_end_is_not_the_parents() -> None:
    """The classic server that forks: each of the two closes what the other one goes on with."""
    with connected() as (client, server):
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                client.close()
                server.send(Frame(OPCODE_TEXT, "from the child"))
                server.close()
                status = 0
            os._exit(status)
        server.close()
        assert client.recv().text == "from the child"
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(SocketClosed):
            client.recv()


def test_fork_while_another_thread_waits() -> None:
    with connected() as (client, server):
        waiting = Running(server.recv)
        until(lambda: server._held._users, "it waits")
        child = os.fork()
        if child == 0:
            server.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        client.send(Frame(OPCODE_TEXT, "still there"))
        assert waiting.result().text == "still there"


# ---- time ----


def test_a_timeout_keeps_what_has_arrived() -> None:
    with listening() as listener, raw_client(listener) as (peer, server):
        data = frame(1, b"a") + frame(1, b"hello" * 10_000)
        for cut in (1, 5, 7, 10, 30_000, len(data) - 1):
            server.settimeout(0.02)
            peer.send(data[:cut])
            with pytest.raises(TimeoutError):
                server.recvn(2)
            server.setblocking(flag=False)
            with pytest.raises(BlockingIOError):
                server.recvn(2)
            server.settimeout(DEADLINE_S)
            peer.send(data[cut:])
            assert [len(one.payload) for one in server.recvn(2)] == [1, 50_000]


@pytest.mark.slow
def test_a_timeout_is_one_of_the_call(patience: float) -> None:
    with listening() as listener, raw_client(listener) as (peer, server):
        over = threading.Event()

        def drip() -> None:
            for byte in bytewise(frame(2, b"x" * 10_000)):
                if over.wait(0.01):
                    return
                peer.send(byte)

        dripping = Running(drip)
        server.settimeout(0.1)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            server.recv()
        assert 0.1 <= time.monotonic() - start < 2 * patience
        over.set()
        dripping.result()


def small(own: websocket) -> None:
    """Let the kernel take little."""
    own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)


@pytest.mark.parametrize("timeout", [0.05, 0])
def test_i4_a_send_that_is_cut_short_goes_on_with_the_next_call(timeout: float) -> None:
    with connected({"max_size": None}, max_size=None) as (client, server):
        small(client)
        client.settimeout(timeout)
        sizes = [4_000_000, 3, 0]
        for i, size in enumerate(sizes):
            with pytest.raises(BlockingIOError if timeout == 0 else TimeoutError):
                client.send(Frame(OPCODE_BINARY, bytes([i]) * size))
            assert client.can_send()
        client.settimeout(DEADLINE_S)
        receiving = Running(lambda: server.recvn(4))
        client.send(Frame(OPCODE_TEXT, "last"))
        assert not client.can_send()
        assert [len(one.payload) for one in receiving.result()] == [*sizes, 4]


def test_who_receives_goes_on_with_what_was_cut_short() -> None:
    """Also if the peer doesn't read before it was read itself: neither end waits for the other for ever."""
    with connected({"max_size": None}, max_size=None) as (client, server):
        for own in (client, server):
            small(own)
            own.settimeout(0.02)
            with pytest.raises(TimeoutError):
                own.send(Frame(OPCODE_BINARY, b"x" * 4_000_000))
            own.settimeout(DEADLINE_S)

        def receive_and_go_on(own: websocket) -> int:
            size = len(own.recv().payload)
            own.send(Frame(OPCODE_TEXT, "what is left comes before this"))
            return size

        receiving = Running(lambda: receive_and_go_on(server))
        assert receive_and_go_on(client) == receiving.result() == 4_000_000


def test_a_large_timeout() -> None:
    with connected() as (client, server):
        server.settimeout(1e12)
        receiving = Running(server.recv)
        client.send(Frame(OPCODE_TEXT, "x"))
        assert receiving.result().text == "x"
        server.settimeout(float("inf"))
        assert server.gettimeout() is None


def test_i3_signals_interrupt_nothing() -> None:
    with connected() as (client, server):
        before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
        handled: list[int] = []
        main = threading.main_thread().ident
        assert main is not None

        def disturb() -> None:
            for _ in range(20):
                signal.pthread_kill(main, signal.SIGUSR1)
                threading.Event().wait(0.002)
            client.send(Frame(OPCODE_TEXT, "x"))

        try:
            running = Running(disturb)
            assert server.recv().text == "x"
            running.result()
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert handled


def test_an_exception_of_a_signal_handler_costs_nothing() -> None:
    class InterruptionError(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise InterruptionError

    def interrupt_once_readable(end: websocket) -> None:
        assert select.select([end], [], [], DEADLINE_S)[0]
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    with connected({"max_size": None}, max_size=None) as (client, server):
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(InterruptionError):
                server.recv()
            small(client)
            interrupting = Running(lambda: interrupt_once_readable(server))
            with pytest.raises(InterruptionError):
                client.send(Frame(OPCODE_BINARY, bytes(range(256)) * 20_000))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        interrupting.result()
        receiving = Running(lambda: server.recvn(2))
        client.send(Frame(OPCODE_TEXT, "next"))
        large, after = receiving.result()
        assert large.payload == bytes(range(256)) * 20_000
        assert after.text == "next"


def test_an_exception_at_any_step_of_recv_is_raised_and_makes_up_no_frame() -> None:
    """A frame may be lost with it, and so may the connection, if a part of what has arrived is."""
    raised = steps = lost = 0

    def interrupt() -> None:
        nonlocal raised
        raised += 1
        raise InterruptedError  # like what handlers of alarms raise, an OSError without errno

    def receive() -> None:
        before = raised
        assert server.recv().payload == b"%d" % steps * 100
        assert raised == before, "the exception was taken for another one"

    modules = ["wspy.websocket", "wspy.transport", "wspy.tls"]
    while modules:
        module = modules.pop()
        with contextlib.ExitStack() as stack:
            client, server = stack.enter_context(connected())
            if module == "wspy.tls" and not server.secure:
                continue
            for _ in at_each_step(sys.modules[module], receive, interrupt, behind_functions=False, least=3):
                server.setblocking(flag=False)
                left = []
                try:
                    while True:
                        left.append(server.recv().payload)
                except BlockingIOError:
                    pass
                except SocketClosed as error:
                    assert "interrupted" in str(error)  # noqa: PT017 -- it needs not come
                    lost += 1
                    client, server = stack.enter_context(connected())
                assert left in ([], [b"%d" % steps * 100])
                server.settimeout(DEADLINE_S)
                steps += 1
                client.send(Frame(OPCODE_TEXT, b"%d" % steps * 100))
    assert lost


# ---- threads ----


def test_closing_wakes_who_receives_and_who_sends() -> None:
    gc.collect()  # else what other tests have left may be closed in between, and its number be the next
    with connected() as (client, server):
        client.settimeout(None)
        small(client)
        receiving = Running(client.recv)
        until(lambda: client._held._users, "it receives")
        sending = Running(lambda: client.send(Frame(OPCODE_BINARY, b"x" * 4_000_000)))  # which nobody reads
        until(client.can_send, "it sends")
        number = client.fileno()
        client.close()
        for waiting in (sending, receiving):
            with pytest.raises(SocketClosed) as caught:
                waiting.result()
            assert caught.value.initialized
        assert client.sock.fileno() == -1
        with socket.socket() as reused:
            assert reused.fileno() == number
            client.close()
            assert reused.fileno() == number
        server.close()
        for call in (client.recv, client.do_async_recv, client.do_async_send):
            with pytest.raises(SocketClosed):
                call()


@pytest.mark.slow
def test_i11_threads_send_and_threads_receive() -> None:
    """Frames of a call stay together, each thread's in order; each frame is received by one thread."""
    count, threads = 300, 8
    with connected() as (client, server):

        def send(number: int) -> None:
            for i in range(count):
                text = f"{number}:{i}"
                client.send(Frame(OPCODE_TEXT, text, final=False), Frame(0, b"", final=False), Frame(0, text.encode()))

        def receive() -> list[list[Frame]]:
            return [server.recvn(3) for _ in range(count * threads // 2)]

        sending = [Running(lambda number=number: send(number)) for number in range(threads)]
        receiving = [Running(receive) for _ in range(2)]
        for running in sending:
            running.result()
        last = [[-1] * threads, [-1] * threads]
        found = set()
        for seen, running in zip(last, receiving, strict=True):
            for first, middle, end in running.result():
                number, i = map(int, first.text.split(":"))
                assert (first.payload, middle.payload) == (end.payload, b"")
                assert i > seen[number]
                seen[number] = i
                found.add((number, i))
        assert len(found) == count * threads


def test_whose_frames_are_sent_does_not_wait_for_those_of_others() -> None:
    with connected({"max_size": None}, max_size=None) as (client, server):
        small(client)
        with pytest.raises(BlockingIOError):
            client.setblocking(flag=False)
            client.send(Frame(OPCODE_BINARY, b"x" * 4_000_000))
        client.settimeout(DEADLINE_S)
        receiving = Running(lambda: server.recvn(2))
        client.send(Frame(OPCODE_TEXT, "mine"))
        assert receiving.result()[1].text == "mine"


# ---- the connection is lost ----


def test_i2_a_lost_connection_is_told_to_all_and_leaves_nothing_queued() -> None:
    with listening() as listener, raw_client(listener) as (peer, server):
        told: list[int] = []
        server.queue_send(Frame(OPCODE_BINARY, b"x" * 4_000_000), lambda: told.append(1))
        server.do_async_send()
        peer.abort()
        with pytest.raises(SocketClosed):
            while True:
                server.do_async_send()
        assert not server.can_send()
        for _ in range(2):
            with pytest.raises(SocketClosed):
                server.send(Frame(OPCODE_TEXT, "x"))
            with pytest.raises(SocketClosed):
                server.recv()
        assert not told


def test_what_has_arrived_before_is_received_after_sending_has_failed() -> None:
    with listening() as listener, raw_client(listener) as (peer, server):
        peer.send(frame(1, b"why") + close_frame(1008, "because"))
        peer.send(b"")
        peer.end()
        with pytest.raises(SocketClosed):
            while True:
                server.send(Frame(OPCODE_TEXT, "x" * 1000))
        assert server.recv().text == "why"
        assert server.recv().opcode == OPCODE_CLOSE
        with pytest.raises(SocketClosed) as caught:
            server.recv()
        assert caught.value.rcvd == (1008, "because")


def test_sigpipe_is_never_raised() -> None:
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with listening() as listener, raw_client(listener) as (peer, server):
            peer.end()
            with pytest.raises(SocketClosed):
                while True:
                    server.send(Frame(OPCODE_TEXT, "x"))
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_e13_the_end_without_a_close() -> None:
    for data in (b"", frame(1, b"x", final=False), frame(1, b"hello")[:8]):
        with listening() as listener, raw_client(listener) as (peer, server):
            peer.send(data)
            peer.half_close()
            with pytest.raises(SocketClosed, match="without a Close") as caught:
                while True:
                    server.recv()
            assert caught.value.code == 1006
            server.send(Frame(OPCODE_TEXT, "still"))
            assert peer.frame().payload == b"still"


# ---- what breaks rules ----


def test_a_limit_of_frames_that_are_shown_is_told_once(loop: Loop) -> None:
    with listening(strict=False, max_size=10) as listener, raw_client(listener) as (peer, server):
        found: list[bytes] = []
        server.recv_callback = lambda one: found.append(one.payload)
        server.setblocking(flag=False)
        peer.send(frame(1, b"a") + frame(1, b"b" * 11) + frame(1, b"c"))
        loop.until(lambda: server in loop.failed, server)
        peer.closes(1009)
        peer.send(frame(1, b"d"))
        until(lambda: select.select([server], [], [], 0)[0], "it has arrived")
        for _ in range(2):
            with pytest.raises(ProtocolError):
                server.do_async_recv()
        assert found == [b"a"]


def test_everything_is_shown_if_it_is_asked_for() -> None:
    with listening(strict=False, max_size=1000) as listener:
        sent = b"\x81\x01x" + frame(0, b"y") + frame(1, b"\xff") + frame(3, b"z") + b"\x89\xfe\x00\x7e" + bytes(4 + 126)
        with raw_client(listener, behind=sent[:5]) as (peer, server):
            peer.send(sent[5:])
            found = server.recvn(5)
            assert [one.opcode for one in found] == [1, 0, 1, 3, 9]
            assert [one.unchecked for one in found] == [False, False, True, False, True]
            assert [bool(one.masking_key) for one in found] == [False, True, True, True, True]
            peer.send(frame(1, b"x" * 1000) + b"\x82\xfe\x03\xe9")
            assert len(server.recv().payload) == 1000
            with pytest.raises(ProtocolError) as caught:
                server.recv()
            assert caught.value.code == 1009


def test_an_unchecked_frame_reaches_the_wire() -> None:
    with raw_server() as (client, peer):
        client.send(Frame(3, b"x", unchecked=True, rsv1=True))
        client.send(Frame(OPCODE_TEXT, b"\xff", unchecked=True, masking_key=b"abcd"))
        client.send(Frame(OPCODE_PING, b"x" * 126, unchecked=True, mask=False))
        assert peer.frame() == (0xC3, b"x")
        assert peer.exactly(6) == b"\x81\x81abcd"
        assert masked(peer.exactly(1), b"abcd") == b"\xff"
        assert peer.exactly(4) == b"\x89\x7e\x00\x7e"
        assert peer.exactly(126) == b"x" * 126


# ---- in somebody else's loop ----


class Loop:
    """The least of a loop: reads and writes when the kernel says so."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.failed: dict[websocket, Exception] = {}

    def turn(self, *sockets: websocket, seconds: float = 0.01) -> None:
        for own in sockets:
            if own not in self.failed:
                events = selectors.EVENT_READ * own.can_recv() | selectors.EVENT_WRITE * own.can_send()
                if events:
                    self.selector.register(own, events)
        for key, events in self.selector.select(seconds):
            own = key.fileobj
            assert isinstance(own, websocket)
            try:
                if events & selectors.EVENT_READ:
                    own.do_async_recv()
                if events & selectors.EVENT_WRITE:
                    own.do_async_send()
            except (HandshakeError, ProtocolError, SocketClosed) as error:
                self.failed[own] = error
        for key in list(self.selector.get_map().values()):
            self.selector.unregister(key.fileobj)

    def until(self, predicate: Callable[[], object], *sockets: websocket) -> None:
        end = time.monotonic() + DEADLINE_S
        while not predicate():
            assert time.monotonic() < end
            self.turn(*sockets)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.selector.close()


def test_several_clients_in_one_loop(loop: Loop) -> None:
    with listening() as listener, contextlib.ExitStack() as stack:
        listener.setblocking(flag=False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        peers = [RawClient(listener.getsockname()) for _ in range(5)]
        servers, frames, told = [], {}, []
        for peer in peers:
            stack.callback(peer.end)
            until(lambda: _readable(listener), "a client is there")
            server, address = listener.accept()
            stack.enter_context(server)
            assert (server.gettimeout(), address) == (0, peer.address)
            assert not server.handshake_sent
            assert server.can_recv()
            servers.append(server)
            frames[server] = []
            server.recv_callback = frames[server].append
        for i, peer in enumerate(peers):
            peer.send(head(f"/{i}") + frame(1, b"first"))
        loop.until(lambda: all(frames.values()), *servers)
        for i, (peer, server) in enumerate(zip(peers, servers, strict=True)):
            assert server.location == f"/{i}"
            for n in range(3):
                server.queue_send(Frame(OPCODE_TEXT, f"{i}:{n}"), lambda i=i, n=n: told.append((i, n)))
            assert server.can_send()
            peer.send(frame(1, b"second"))
        loop.until(lambda: all(len(found) == 2 for found in frames.values()), *servers)
        loop.until(lambda: not any(server.can_send() for server in servers), *servers)
        for i, peer in enumerate(peers):
            peer.opened()
            assert [peer.message() for _ in range(3)] == [f"{i}:{n}" for n in range(3)]
            assert [found for found in told if found[0] == i] == [(i, n) for n in range(3)]


def test_a_handshake_in_a_loop_byte_by_byte(loop: Loop) -> None:
    with accepted() as (peer, server):
        server.setblocking(flag=False)
        server.do_handshake()
        received: list[Frame] = []
        server.recv_callback = received.append
        for byte in bytewise(head() + frame(1, b"hello")):
            peer.send(byte)
            until(lambda: _readable(server), "the byte is there")
            server.do_async_recv()
        assert [one.text for one in received] == ["hello"]
        loop.until(lambda: not server.can_send(), server)
        peer.opened()


def test_a_refusal_in_a_loop(loop: Loop) -> None:
    with accepted() as (peer, server):
        server.setblocking(flag=False)
        server.do_handshake()
        peer.send(head(without=["Host"]))
        loop.until(lambda: server in loop.failed, server)
        error = loop.failed.pop(server)
        assert isinstance(error, HandshakeError)
        assert error.status == 400
        assert server.can_send()
        assert not server.can_recv()
        while server.can_send():
            server.do_async_send()
        server.close()
        assert peer.response().status == 400
        peer.eof()


def test_a_refusal_is_told_again() -> None:
    one, other = socket.socketpair()
    with other, websocket(one) as server:
        server.setblocking(flag=False)
        server.do_handshake()
        other.send(head(without=["Upgrade"]))
        for _ in range(3):
            with pytest.raises(HandshakeError) as caught:
                server.do_async_recv()
            assert caught.value.status == 426


def test_a_kernel_that_takes_little(loop: Loop) -> None:
    with connected(max_size=None) as (client, server):
        server.setblocking(flag=False)
        small(server)
        told: list[int] = []
        client.max_size = None
        sizes = [900_000, 1, 0, 70_000]
        for i, size in enumerate(sizes):
            server.queue_send(Frame(OPCODE_BINARY, b"x" * size), lambda i=i: told.append(i))
        server.do_async_send()
        assert told == []
        assert server.can_send()
        received: list[int] = []
        client.recv_callback = lambda one: received.append(len(one.payload))
        loop.until(lambda: len(received) == 4, client, server)
        assert received == sizes
        assert told == [0, 1, 2, 3]


def test_receiving_byte_by_byte() -> None:
    with listening() as listener, raw_client(listener) as (peer, server):
        data = frame(1, b"h\xc3", final=False) + frame(9, b"p") + frame(0, b"\xb6") + frame(2, b"x" * 200)
        peer.send(data)
        counts = []
        until(lambda: _readable(server), "it is there")
        for _ in data:
            until(lambda: _readable(server), "it is there")
            server.do_async_recv(1)
            counts.append(len(server._received))
        assert counts[-1] == 4
        assert counts[len(frame(1, b"h\xc3")) - 1] == 1
        assert [one.payload for one in server.recvn(4)] == [b"h\xc3", b"p", b"\xb6", b"x" * 200]
        server.setblocking(flag=False)
        server.do_async_recv()
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="bufsize"):
                server.do_async_recv(wrong)


def test_an_exception_of_recv_callback_costs_that_frame_only() -> None:
    with (
        listening() as listener,
        raw_client(listener, behind=frame(1, b"a") + frame(1, b"b") + frame(1, b"c")) as (_, server),
    ):
        received: list[str] = []

        def fail(one: Frame) -> None:
            received.append(one.text)
            if one.text == "a":
                raise KeyError
            if one.text == "b":
                server.recv_callback = None

        server.recv_callback = fail
        server.setblocking(flag=False)
        with pytest.raises(KeyError):
            server.do_async_recv()
        server.do_async_recv()
        assert received == ["a", "b"]
        assert server.recv().text == "c"


def test_the_end_in_a_loop() -> None:
    with listening() as listener, raw_client(listener) as (peer, server):
        received: list[Frame] = []
        server.recv_callback = received.append
        peer.send(close_frame(3000))
        peer.half_close()
        until(lambda: _readable(server), "it is there")
        for _ in range(3):
            with pytest.raises(SocketClosed) as caught:
                server.do_async_recv()
            assert caught.value.rcvd == (3000, "")
        assert len(received) == 1


def test_queue_send_may_set_who_receives() -> None:
    with connected() as (client, server):
        received: list[Frame] = []
        wrong: Any = "no frame"
        with pytest.raises(TypeError):
            client.queue_send(wrong, recv_callback=print)
        assert client.recv_callback is None
        assert not client.can_recv()
        client.queue_send(Frame(OPCODE_TEXT, "x"), recv_callback=received.append)
        client.do_async_send()
        server.send(server.recv())
        assert client.can_recv()
        until(lambda: _readable(client), "it is there")
        client.do_async_recv()
        assert received == [Frame(OPCODE_TEXT, "x")]


# ---- nothing is left ----


@pytest.mark.slow
@measures_memory
def test_h2_frames_that_are_shown_cost_bounded_memory() -> None:
    with listening(strict=False) as listener, raw_client(listener) as (peer, server):
        sending = Running(lambda: [peer.send(frame(2, b"") * 10_000) for _ in range(20)])
        before = resident()
        most = 0
        for _ in range(200_000):
            server.recv()
            most = max(most, len(server._received))
        sending.result()
        assert most <= 262_144 // 6
        assert resident() - before < 100 << 20


@pytest.mark.slow
def test_t8_a_thousand_connections_leave_nothing() -> None:
    with listening() as listener:
        threads = threading.active_count()
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- no Path of each is needed
        for i in range(1000):
            peer = RawClient(listener.getsockname())
            peer.send(head() + frame(1, b"x"))
            with listener.accept()[0] as server:
                server.recv()
                if i % 2:
                    peer.abort()
            peer.end()
        assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208 -- the same
        assert threading.active_count() == threads


@pytest.mark.parametrize("sock", ["127.0.0.1", ("127.0.0.1", 80), 3], ids=repr)
def test_what_is_wrapped_is_a_socket(sock: Any) -> None:
    with pytest.raises(TypeError, match=f"wraps a socket, not {type(sock).__name__}"):
        websocket(sock)


@pytest.mark.parametrize("address", [("127.0.0.1",), 80, None], ids=repr)
def test_an_address_is_a_pair_or_a_uri(address: Any) -> None:
    with websocket() as sock, pytest.raises(TypeError, match="ws://host:port"):
        sock.connect(address)


@pytest.mark.parametrize("location", ["my/path", "", "/a b", "/a\r\nX: y"], ids=repr)
def test_a_location_that_can_not_be_asked_for(location: str) -> None:
    with websocket(location=location) as sock, pytest.raises(ValueError, match="begins with /"):
        sock.connect(("127.0.0.1", 9))


# ---- how it ended ----


def test_closure_is_known_once_the_socket_is_closed() -> None:
    with connected() as (client, server):
        assert client.closure is None
        client.send(wspy.create_close_frame(4000, "enough"))
        server.send(wspy.create_close_frame(int.from_bytes(server.recv().payload[:2])))
        client.recv()
        assert client.closure is server.closure is None
        client.close()
        server.close()
        assert client.closure is not None
        assert server.closure is not None
        assert (client.closure.by, client.closure.sent, client.closure.is_clean) == (
            "this side",
            (4000, "enough"),
            True,
        )
        assert (server.closure.by, server.closure.sent, server.closure.is_clean) == ("peer", (4000, ""), True)
        assert server.closure.received == (4000, "enough")
        assert (server.closure.code, server.closure.reason) == (4000, "enough")
        noted = client.closure
        client.close()
        assert client.closure is noted


def test_closure_without_a_closing_handshake() -> None:
    with connected() as (client, server):
        client.close()
        with pytest.raises(SocketClosed):
            server.recv()
        server.close()
        assert client.closure is not None
        assert server.closure is not None
        assert (client.closure.by, client.closure.code, client.closure.sent) == ("this side", 1006, None)
        assert (server.closure.by, server.closure.code, server.closure.received) == ("peer", 1006, None)
        assert not client.closure.is_clean
        assert not server.closure.is_clean


def test_closure_of_who_does_not_answer_a_close() -> None:
    with connected() as (client, server):
        client.send(wspy.create_close_frame(4000))
        server.recv()
        server.close()
        assert server.closure is not None
        assert (server.closure.by, server.closure.received, server.closure.sent) == ("peer", (4000, ""), None)
        assert not server.closure.is_clean


def test_closure_says_which_limit_it_was() -> None:
    with connected({}, max_size=10) as (client, server):
        client.send(Frame(OPCODE_BINARY, bytes(11)))
        with pytest.raises(ProtocolError) as raised:
            server.recv()
        assert raised.value.limit == "max_size"
        server.close()
        assert server.closure is not None
        assert (server.closure.by, server.closure.limit, server.closure.sent) == ("this side", "max_size", (1009, ""))


def test_no_closure_without_an_opening_handshake() -> None:
    with listening() as listener:
        listener.close()
        assert listener.closure is None


def test_closure_counts_what_was_queued() -> None:
    with connected() as (client, server):
        server.queue_send(Frame(OPCODE_TEXT, "a", final=False))
        server.queue_send(Frame(OPCODE_PING))
        server.queue_send(Frame(0, b"b"))
        server.queue_send(Frame(OPCODE_TEXT, "c"))
        server._say_goodbye()  # by TLS that sends all of it
        left = server.can_send()
        server.close()
        assert server.closure is not None
        assert (server.closure.unsent_bytes, server.closure.unsent_messages) == ((11, 2) if left else (0, 0))
        assert client.closure is None
