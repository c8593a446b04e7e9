"""Does a handler of a Server hold up its own client alone, and is nothing left of it in the end?

What a Server has in common with others is tested in behaviour/, what its clients wait for in test_server_client.py.
"""

from __future__ import annotations

import errno
import inspect
import re
import resource
import signal
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from drivers import (
    DEADLINE_S,
    PATIENCE,
    PING,
    PONG,
    TEXT,
    RawClient,
    Servers,
    close_frame,
    echo,
    frame,
    head,
    until,
)
from measures import measures_memory, resident
from programs import PYTHON, Program
from turns import faults

import wspy
from wspy import Server
from wspy import server as module
from wspy._core import lib
from wspy.serving import Options

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS: Final = ("127.0.0.1", 0)
PLAIN: Final = b"GET /%s HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.fixture
def serve() -> Iterator[Servers]:
    with Servers("threads") as servers:
        yield servers


class Gate:
    """A handler that does not return until it is told to, of clients that ask for it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, who: Any, *_: Any) -> None:
        if who is not None and who.path == "/blocked":
            self.entered.set()
            assert self.opened.wait(4 * DEADLINE_S)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


# ---- arguments ----


def test_its_own_arguments() -> None:
    parameters = inspect.signature(Server).parameters
    own = {name: parameters[name].default for name in ("max_queue", "write_limit", "send_timeout")}
    assert own == {"max_queue": 16, "write_limit": 65_536, "send_timeout": None}


def test_the_other_arguments_are_those_of_asyncserver() -> None:
    parameters = dict(inspect.signature(wspy.AsyncServer).parameters)
    for own in ("address", "write_limit", "write_policy"):
        del parameters[own]

    def plain(annotation: str) -> str:
        return re.sub(r"^\(|\)$|\s", "", annotation)

    described = {name: plain(hint.__forward_arg__) for name, hint in Options.__annotations__.items()}
    assert described == {name: plain(parameter.annotation) for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_queue", 1),
        ("max_queue", None),
        ("write_limit", 1),
        ("write_limit", None),
        ("send_timeout", 0),
        ("send_timeout", None),
        ("send_timeout", 1e9),
        ("max_backlog", None),
        ("max_size", 5),
    ],
)
def test_what_is_in_range_is_taken(name: str, value: Any) -> None:
    Server(ADDRESS, **{name: value}).close()


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *((name, value, ValueError) for name in ("max_queue", "write_limit", "max_backlog") for value in (0, -1)),
        *((name, "1", TypeError) for name in ("max_queue", "write_limit", "max_backlog", "send_timeout")),
        ("max_queue", 2**32 - 1, ValueError),
        ("send_timeout", -1, ValueError),
        ("send_timeout", float("nan"), ValueError),
        ("max_size", 0, ValueError),
        ("nonsense", 1, TypeError),
    ],
)
def test_what_is_out_of_range_is_refused(tmp_path: Path, name: str, value: Any, error: type[Exception]) -> None:
    path = tmp_path / "socket"
    with pytest.raises(error, match=name):
        Server(path, **{name: value})
    assert not path.exists()


@pytest.mark.parametrize("name", [name for name in dir(Server) if name.startswith("on")])
def test_a_handler_is_a_plain_function(tmp_path: Path, name: str) -> None:
    async def handler(self: Server, *_: Any) -> None: ...

    with pytest.raises(TypeError, match=f"^Chat.{name} is async def, .*where they may wait"):
        type("Chat", (Server,), {name: handler})(tmp_path / "socket")


# ---- who is held up ----

BLOCKED: Final[dict[str, tuple[bytes, dict[str, Any]]]] = {
    "onopen": (b"", {}),
    "onmessage": (frame(TEXT, b"x"), {}),
    "onpingreceived": (frame(PING, b"x"), {}),
    "onpong": (frame(PONG, b"x"), {}),
    "onframe": (frame(TEXT, b"x"), {}),
    "onsent": (frame(TEXT, b"x"), {"onmessage": echo}),
    "onping": (frame(TEXT, b"x"), {"onmessage": lambda client, _: client.send_ping()}),
    "onclose": (close_frame(1000), {}),
    "onerror": (frame(TEXT, b"x"), {"onmessage": lambda client, _: 1 / (client.path != "/blocked")}),
}


@pytest.mark.parametrize("name", BLOCKED)
def test_a_blocked_handler_holds_up_nobody_else(serve: Servers, gate: Gate, name: str) -> None:
    """Others come, are served and go, and who was there before, too."""
    trigger, others = BLOCKED[name]
    server = serve(**{"onmessage": lambda client, message: None, **others, name: gate})
    before = server.open("/before")
    blocked = server.open("/blocked")
    blocked.send(trigger)
    assert gate.entered.wait(DEADLINE_S)
    for peer in (before, server.open("/after")):
        peer.send(frame(PING, b"alive"))
        received = peer.frame()
        assert (received.opcode, received.payload) == (PONG, b"alive")
        peer.text("x")
        server.wait(lambda peer=peer: server.story(peer).messages == ["x"], "handled")
        peer.send(close_frame(1000))
        assert server.outcome(peer) == (1000, "")
    gate.opened.set()
    blocked.send(close_frame(1000))
    server.outcome(blocked)
    names = [event.name for event in server.story(blocked).events]
    assert names.count("onclose") == 1


@pytest.mark.parametrize("where", ["onrequest", "extra_headers"])
def test_a_blocked_decision_holds_up_nobody_else(serve: Servers, gate: Gate, where: str) -> None:
    def decide(request: wspy.Request) -> Any:
        gate(request)
        return None if where == "onrequest" else {"X-Path": request.path}

    server = serve(**{where: decide}, onmessage=echo)
    before = server.open("/before")
    blocked = server.connect()
    blocked.send(head("/blocked"))
    assert gate.entered.wait(DEADLINE_S)
    for peer in (before, server.open("/after")):
        peer.text("x")
        assert peer.message() == "x"
    assert not blocked.waiting()
    gate.opened.set()
    response = blocked.opened()
    if where == "extra_headers":
        assert response.headers["x-path"] == "/blocked"


def test_pipelined_requests_are_answered_in_order_however_long_each_takes(serve: Servers) -> None:
    def onrequest(request: wspy.Request) -> wspy.Response:
        if request.path == "/slow":
            slow.wait(DEADLINE_S)
        seen.append(request.path)
        return wspy.Response(200, body=request.path)

    slow, seen = threading.Event(), []
    server = serve(onrequest=onrequest)
    peer, other = server.connect(), server.connect()
    peer.send(PLAIN % b"slow" + PLAIN % b"quick" + PLAIN % b"last")
    other.send(PLAIN % b"other")
    assert other.response().body == b"/other"
    assert not peer.waiting()
    slow.set()
    assert [peer.response().body for _ in range(3)] == [b"/slow", b"/quick", b"/last"]
    assert seen == ["/other", "/slow", "/quick", "/last"]


@pytest.mark.parametrize("end", ["reset", "open_timeout", "end"])
def test_an_answer_for_a_connection_that_has_gone_reaches_nobody(serve: Servers, gate: Gate, end: str) -> None:
    """I6: whoever is in its place."""

    def onrequest(request: wspy.Request) -> wspy.Response | None:
        gate(request)
        return None if request.is_websocket else wspy.Response(200, body=request.path)

    server = serve(onrequest=onrequest, onmessage=echo, **({"open_timeout": 0.1} if end == "open_timeout" else {}))
    gone = [server.connect(), server.connect()]
    gone[0].send(head("/blocked"))
    gone[1].send(PLAIN % b"blocked")
    until(lambda: server.server._threads.busy == 2, "asked")
    for peer in gone:
        if end == "reset":
            peer.abort()
        elif end == "end":
            peer.half_close()
    if end == "open_timeout":
        assert [peer.response().status for peer in gone] == [503, 503]
        for peer in gone:
            peer.eof()
            peer.end()
    if end != "end":
        until(lambda: server.server.stats()["connections"] == 0, "gone")
    peers = [server.open() for _ in range(3)]
    gate.opened.set()
    until(lambda: server.server._threads.busy == 3, "answered")
    for number, peer in enumerate(peers):
        peer.text(str(number))
        assert peer.message() == str(number)
        assert not peer.waiting()
    if end == "end":  # a request, then a half-close: the answer is still due
        gone[0].opened()
        assert gone[1].response().body == b"/blocked"
    assert not server.server._deciding
    assert not server.server._opening


def test_a_handshake_that_is_decided_while_the_server_stops_is_refused(serve: Servers, gate: Gate) -> None:
    server = serve(onrequest=gate)
    peer = server.connect()
    peer.send(head("/blocked"))
    assert gate.entered.wait(DEADLINE_S)
    server.stop()
    server.call(int)
    with pytest.raises(ConnectionRefusedError):
        server.connect()
    gate.opened.set()
    assert peer.response().status == 503
    peer.end()
    assert server.ended()


# ---- threads ----


def test_all_handlers_of_a_client_run_in_one_thread_of_its_own(serve: Servers) -> None:
    threads: dict[str, set[Any]] = {}

    def note(client: Any, *_: Any) -> None:
        threads.setdefault(client.path, set()).add(threading.current_thread())

    handlers = ("onopen", "onmessage", "onpingreceived", "onpong", "onclose", "onframe")
    server = serve(**dict.fromkeys(handlers, note))
    peers = [server.open(f"/{number}") for number in range(5)]
    for peer in peers:
        peer.send(frame(TEXT, b"x") + frame(PING, b"x") + frame(PONG, b"x"))
        server.wait(lambda peer=peer: server.story(peer).named("onpong"), "handled")
    assert {thread.ident for thread in server.server.client_threads} == {
        thread.ident for found in threads.values() for thread in found
    }
    for peer in peers:
        peer.send(close_frame(1000))
        server.outcome(peer)
    assert len(threads) == 5
    assert all(len(found) == 1 for found in threads.values())
    assert len(set.union(*threads.values())) == 5
    until(lambda: server.server.client_threads == [], "none is left")


def test_a_thread_is_named_after_its_client(serve: Servers) -> None:
    names: list[str] = []

    def onrequest(request: wspy.Request) -> None:
        names.append(threading.current_thread().name)

    server = serve(onrequest=onrequest, onopen=lambda _: names.append(threading.current_thread().name))
    peer = server.open()
    server.story(peer)
    who = "{}:{}".format(*peer.address)
    until(lambda: len(names) == 2, "called")
    assert names == [f"wspy request of {who}", f"wspy {who}"]
    assert [thread.name for thread in server.server.client_threads] == [f"wspy {who}"]
    assert all(thread.daemon for thread in server.server.client_threads)


def test_onrequest_and_calls_have_other_threads(serve: Servers) -> None:
    threads: dict[str, int] = {}
    server = serve(onrequest=lambda request: threads.update(request=threading.get_ident()))
    server.open()
    assert threads["request"] != server.server._thread
    assert server.call(threading.get_ident) == server.server._thread


def test_calls_are_made_while_handlers_run(serve: Servers, gate: Gate) -> None:
    server = serve(onmessage=gate)
    peer = server.open("/blocked")
    client = server.client(peer)
    peer.text("x")
    assert gate.entered.wait(DEADLINE_S)
    server.server.call_soon(client.send, "soon")
    server.server.call_later(0.01, client.send, "later")
    assert [peer.message(), peer.message()] == ["soon", "later"]


@pytest.mark.parametrize("request_too", [False, True], ids=["", "with onrequest"])
def test_who_can_not_have_a_thread_is_turned_away(
    serve: Servers, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, request_too: bool
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    server = serve(onmessage=echo, **({"onrequest": lambda request: None} if request_too else {}))
    other = server.open()
    server.story(other)
    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(server.server._threads, "run", fails)
        for _ in range(3):
            peer = server.connect()
            peer.send(head() + frame(TEXT, b"x"))
            if request_too:
                assert peer.response().status == 503
            else:
                peer.opened()
                peer.closes(1013)
                peer.send(frame(TEXT, b"y") + close_frame(1013))
            peer.eof()
        other.text("fine")
        assert other.message() == "fine"
    until(lambda: len(server.server.clients) == 1, "they are gone")
    assert set(caplog.messages) == {"clients are turned away: can't start new thread"}
    assert len(caplog.messages) <= 1 + time.monotonic() - began, "once a second is enough"
    assert len(server.stories) == 1
    server.open().close()


# ---- flow of messages ----


def flood(peer: RawClient, data: bytes) -> int:
    """Send until nobody takes more; return how much was taken."""
    peer.socket.settimeout(0.3)
    sent = 0
    try:
        while sent < 64 << 20:
            sent += peer.socket.send(data)
    except TimeoutError:
        return sent
    finally:
        peer.socket.settimeout(DEADLINE_S)
    raise AssertionError("everything was taken")


@pytest.mark.parametrize("limit", [1, 2, 16])
@pytest.mark.parametrize("frames", [False, True], ids=["", "with onframe"])
def test_a_blocked_handler_makes_the_peer_wait(serve: Servers, gate: Gate, limit: int, frames: bool) -> None:
    """No more than max_queue messages are read ahead, and then all in order."""
    handlers = {"onframe": lambda client, frame: None} if frames else {}
    server = serve(onmessage=gate, max_queue=limit, **handlers)
    peer = server.open("/blocked")
    client = server.client(peer)
    size = 100_000
    taken = flood(peer, frame(TEXT, b"x" * size))
    assert gate.entered.wait(DEADLINE_S)
    until(lambda: client._inbox.qsize() >= limit - 1, "read ahead")
    assert client._inbox.qsize() <= limit
    # what is read and not decoded is part of one message, and what the kernel had
    assert server.server.stats()["bytes_received"] <= (limit + 4) * (size + 14) + (256 << 10)
    gate.opened.set()
    whole = taken // (size + 14)
    server.wait(lambda: len(server.story(peer).messages) == whole, "all that was sent")


@pytest.mark.parametrize("kind", [PING, PONG])
def test_a_blocked_handler_bounds_control_frames_too(serve: Servers, gate: Gate, kind: int) -> None:
    server = serve(onmessage=gate, onpingreceived=lambda *_: None, onpong=lambda *_: None)
    peer = server.open("/blocked")
    client = server.client(peer)
    peer.text("x")
    assert gate.entered.wait(DEADLINE_S)
    flood(peer, frame(kind, b"x" * 125) * 100)
    assert client._inbox.qsize() <= 16
    gate.opened.set()
    peer.socket.settimeout(DEADLINE_S)
    server.wait(lambda: len(server.story(peer).events) > 1000, "goes on")


def test_pings_are_answered_while_a_handler_blocks(serve: Servers, gate: Gate) -> None:
    server = serve(onmessage=gate, ping_interval=0.1, ping_timeout=0.1)
    peer = server.open("/blocked")
    for number in range(10):
        peer.text(str(number))
    assert gate.entered.wait(DEADLINE_S)
    pings = 0
    peer.send(frame(PING, b"mine"))
    answered = False
    while pings < 3 or not answered:
        received = peer.frame()
        if received.opcode == PING:
            peer.send(frame(PONG, received.payload))
            pings += 1
        answered |= received.payload == b"mine"
    gate.opened.set()
    server.wait(lambda: len(server.story(peer).messages) == 10, "goes on")


def test_a_peer_whose_pongs_are_not_read_is_not_dropped(serve: Servers, gate: Gate) -> None:
    """The credit is used up: what it answers is not looked at, and can't be missed."""
    server = serve(onmessage=gate, max_queue=1, ping_interval=0.05, ping_timeout=0.05)
    peer = server.open("/blocked")
    for number in range(5):
        peer.text(str(number))
    assert gate.entered.wait(DEADLINE_S)
    with serve(ping_interval=0.2, ping_timeout=0.2).open() as other:
        other.frame()
        other.reset()
    assert server.story(peer).closed is None
    gate.opened.set()
    server.wait(lambda: len(server.story(peer).messages) == 5, "goes on")


def test_no_limit_for_the_queue(serve: Servers, gate: Gate) -> None:
    server = serve(onmessage=gate, max_queue=None)
    peer = server.open("/blocked")
    for number in range(500):
        peer.text(str(number))
    client = server.client(peer)
    until(lambda: client._inbox.qsize() == 499, "all are read")
    gate.opened.set()
    server.wait(lambda: len(server.story(peer).messages) == 500, "all")
    assert server.story(peer).messages == [str(number) for number in range(500)]


# ---- endings of connections ----


def test_an_end_waits_for_answers_no_longer_than_close_timeout(serve: Servers, gate: Gate) -> None:
    server = serve(onmessage=gate, close_timeout=0.1)
    peer = server.open("/blocked")
    peer.send(frame(TEXT, b"x") + close_frame(3000))
    began = time.monotonic()
    peer.closes(3000)
    assert time.monotonic() - began >= 0.09
    peer.eof()
    client = server.client(peer)
    until(lambda: client.closed, "noticed")
    with pytest.raises(wspy.SocketClosed):
        client.send("x")
    gate.opened.set()
    assert server.outcome(peer) == (3000, "")


def test_socket_closed_in_a_handler_of_a_closed_client_is_no_error(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        if message.payload == "receive":
            client.recv()
        elif message.payload == "send":
            client.close()
            client.send("too late")

    server = serve(onmessage=onmessage)
    receiving, sending = server.open(), server.open()
    receiving.text("receive")
    receiving.close()
    sending.text("send")
    sending.closes(1000)
    sending.send(frame(TEXT, b"goes on") + close_frame(1000))
    assert [server.outcome(peer)[0] for peer in (receiving, sending)] == [1000, 1000]
    assert server.story(sending).messages == ["send", "goes on"]


def test_socket_closed_of_another_client_is_an_error_like_others(serve: Servers) -> None:
    errors: list[BaseException] = []
    clients: dict[str, Any] = {}
    server = serve(
        onopen=lambda client: clients.update({client.path: client}),
        onmessage=lambda client, message: clients["/gone"].send("x"),
        onerror=lambda client, error: errors.append(error),
    )
    gone, peer = server.open("/gone"), server.open("/here")
    gone.close()
    server.outcome(gone)
    peer.text("x")
    peer.closes(1011)
    assert [type(error) for error in errors] == [wspy.SocketClosed]


def test_an_exception_is_handled_in_the_thread_of_its_client(serve: Servers) -> None:
    threads: list[str] = []

    def note(client: Any, *_: Any) -> None:
        threads.append(threading.current_thread().name)

    server = serve(onmessage=lambda client, _: 1 / 0, onerror=note, onclose=note)
    peer = server.open()
    peer.text("x")
    peer.closes(1011)
    peer.send(close_frame(1011))
    server.outcome(peer)
    assert threads == ["wspy {}:{}".format(*peer.address)] * 2


def test_after_an_exception_nothing_is_kept_of_what_still_comes(serve: Servers, gate: Gate) -> None:
    def fails(client: Any, message: Any) -> None:
        raise ArithmeticError

    server = serve(onmessage=fails, onerror=gate, max_queue=2)
    peer = server.open("/blocked")
    client = server.client(peer)
    peer.text("x")
    assert gate.entered.wait(DEADLINE_S)
    gate.opened.set()
    peer.closes(1011)
    for _ in range(100):
        peer.binary(bytes(100_000))
    assert client._inbox.qsize() <= 4
    peer.send(close_frame(1011))
    server.outcome(peer)


def test_an_exception_between_handlers_is_handled_like_one_in_a_handler(serve: Servers) -> None:
    """Memory can be short anywhere: onclose comes all the same, and the thread goes on with others."""

    def fails() -> None:
        raise MemoryError

    server = serve(onerror=lambda *_: None)
    peer = server.open()
    client = server.client(peer)
    server.server._in_its_thread(client, fails)
    peer.closes(1011)
    peer.send(frame(TEXT, b"x") + close_frame(1011))
    assert server.outcome(peer)[0] == 1011
    assert [type(error) for error in server.story(peer).named("onerror")] == [MemoryError]
    assert server.story(peer).messages == []


# ---- names of the original ----


def test_the_names_of_the_original(serve: Servers) -> None:
    server = serve()
    peers = [server.open(), server.open()]
    assert {server.client(peer) for peer in peers} == set(server.server.clients)
    server.server.remove_client(server.client(peers[0]), 3000, "go")
    peers[0].closes(3000, "go")
    peers[0].send(close_frame(3000, "go"))
    assert server.outcome(peers[0]) == (3000, "go")
    server.server.quit_gracefully()
    peers[1].closes(1001)
    peers[1].send(close_frame(1001))
    peers[1].end()
    assert server.ended()


def test_a_server_is_not_driven_by_other_loops() -> None:
    for name in ("fileno", "handle_events", "finished"):
        assert not hasattr(Server, name)


# ---- stopping ----


def test_a_stop_lets_a_handler_answer_and_closes_who_is_idle_at_once(serve: Servers, gate: Gate) -> None:
    def onmessage(client: Any, message: Any) -> None:
        gate(client)
        client.send("answer")

    server = serve(onmessage=onmessage)
    idle, busy = server.open(), server.open("/blocked")
    server.story(idle)
    busy.text("x")
    assert gate.entered.wait(DEADLINE_S)
    server.stop()
    idle.closes(1001)
    assert not busy.waiting()
    gate.opened.set()
    assert busy.message() == "answer"
    for peer in (idle, busy):
        if peer is busy:
            peer.closes(1001)
        peer.send(close_frame(1001))
        peer.end()
    assert server.ended()
    assert [server.outcome(peer)[0] for peer in (idle, busy)] == [1001, 1001]


@pytest.mark.parametrize("how", ["send", "recv", "for"])
def test_a_stop_ends_handlers_that_wait_or_send_for_ever(serve: Servers, how: str) -> None:
    pause = threading.Event()

    def onopen(client: Any) -> None:
        entered.set()
        if how == "for":
            for _ in client:
                pass
        while how == "recv":
            client.recv()
        while how == "send":
            client.send("tick")
            pause.wait(0.01)

    entered = threading.Event()
    server = serve(onopen=onopen)
    peer = server.open()
    assert entered.wait(DEADLINE_S)
    server.stop()
    received = peer.frame()
    while received.opcode == TEXT:
        received = peer.frame()
    assert received.payload == (1001).to_bytes(2)
    peer.send(close_frame(1001))
    peer.end()
    assert server.ended()
    assert server.outcome(peer)[0] == 1001


def test_a_stop_waits_for_handlers_no_longer_than_shutdown_timeout(
    caplog: pytest.LogCaptureFixture, gate: Gate
) -> None:
    """Who does not return is told of and left alone; it goes on when the server has ended."""
    closed: list[int] = []

    class Blocking(Server):
        def onmessage(self, client: wspy.Client, message: wspy.Message) -> None:
            gate(client)

        def onclose(self, client: wspy.Client, code: int, reason: str) -> None:
            closed.append(code)

    with Blocking(ADDRESS, shutdown_timeout=0.1).start() as server, RawClient(server.address) as peer:
        peer.open("/blocked")
        peer.text("x")
        assert gate.entered.wait(DEADLINE_S)
        (thread,) = server.client_threads
        name = thread.name
        began = time.monotonic()
        server.stop()
        assert server.join(DEADLINE_S)
        assert 0.1 <= time.monotonic() - began < (0.1 + 2 * module.GRACE) * PATIENCE
        peer.reset()
        assert f"{name} still runs: a handler has not returned" in caplog.messages
        assert (thread.is_alive(), closed) == (True, [])
        gate.opened.set()
        thread.join(DEADLINE_S)
        assert (thread.is_alive(), closed) == (False, [1006])


def test_a_stop_waits_for_handlers_as_long_as_it_may(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when their connections have gone long ago."""
    monkeypatch.setattr(module, "GRACE", 0.01)
    monkeypatch.setattr(module, "HANDLER_SECONDS", 0.01)

    class Blocking(Server):
        def onmessage(self, client: wspy.Client, message: wspy.Message) -> None:
            gate(client)

    with Blocking(ADDRESS, shutdown_timeout=3600).start() as server, RawClient(server.address) as peer:
        peer.open("/blocked")
        peer.text("x")
        assert gate.entered.wait(DEADLINE_S)
        server.stop()
        peer.closes(1001)
        peer.send(close_frame(1001))
        peer.eof()
        peer.end()
        until(lambda: server.stats()["connections"] == 0, "nobody is there")
        assert not server.join(0.3)
        gate.opened.set()
        assert server.join(DEADLINE_S)


def test_run_waits_for_onclose(serve: Servers) -> None:
    """However long each of them takes, within shutdown_timeout."""
    pause = threading.Event()
    server = serve(onclose=lambda *_: pause.wait(0.1))
    peers = [server.open() for _ in range(5)]
    for peer in peers:
        server.story(peer)
    server.stop()
    for peer in peers:
        peer.closes(1001)
        peer.send(close_frame(1001))
        peer.end()
    assert server.ended()
    assert all(story.closed for story in server.stories)


def own_threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("wspy"))


@pytest.mark.parametrize("end", ["stop", "close"])
def test_no_thread_is_left_behind(end: str) -> None:
    server = Server(ADDRESS).start()
    peers = [RawClient(server.address) for _ in range(20)]
    for peer in peers:
        peer.open()
    for peer in peers[:10]:
        peer.close()
    assert len(own_threads()) > 10
    getattr(server, end)()
    for peer in peers[10:]:
        peer.end()
    assert server.join(DEADLINE_S)
    assert own_threads() == []


def test_a_server_that_is_forgotten_leaves_no_thread() -> None:
    server = Server(ADDRESS)
    done = threading.Event()
    server._threads.run("once", done.set)
    assert done.wait(DEADLINE_S)
    with pytest.warns(ResourceWarning, match="Server was not closed"):
        del server
    until(lambda: own_threads() == [], "ended")


def test_a_stop_with_clients_of_all_kinds(serve: Servers, gate: Gate) -> None:
    """Paused, filled, blocked, waiting, in their handshake: each is told once."""

    def onmessage(client: Any, message: Any) -> None:
        if message.payload == "pause":
            client.pause_reading()
        elif message.payload == "fill":
            for _ in range(100):
                client.send(bytes(100_000))
        elif message.payload == "recv":
            client.recv()

    server = serve(onmessage=onmessage, shutdown_timeout=0.3)
    peers = [server.open(receive_buffer=4096) for _ in range(3)]
    for peer, what in zip(peers, ("pause", "fill", "recv"), strict=True):
        peer.text(what)
        server.wait(lambda peer=peer: server.story(peer).messages, "handled")
    undecided = server.connect()
    undecided.send(head()[:-2])
    server.stop()
    assert server.ended()
    assert all(server.story(peer).closed for peer in peers)


PROGRAM = """
    import os, signal, sys, threading, time
    import wspy

    def say(*words):
        os.write(1, " ".join(map(str, words)).encode() + b"\\n")

    class Blocking(wspy.Server):
        def onopen(self, client):
            say("onopen", client.path)

        def onmessage(self, client, message):
            if message.payload == "block":
                say("blocked")
                threading.Event().wait()
            elif message.payload == "slow":
                say("slow")
                sys.stdin.readline()
                client.send("answer")
            else:
                client.send(message)

        def onclose(self, client, code, reason):
            say("onclose", client.path, code)

    server = Blocking(("127.0.0.1", 0), shutdown_timeout=float(sys.argv[1]))
    say(server.address[1])
    server.run()
    say("ended", sorted(thread.name[:14] for thread in threading.enumerate() if thread.name.startswith("wspy")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_i15_a_signal_stops_in_order(number: int, patience: float) -> None:
    with Program(*PYTHON, "-c", textwrap.dedent(PROGRAM), "30", patience=patience) as program:
        address = ("127.0.0.1", int(program.line()))
        with RawClient(address) as idle, RawClient(address) as slow:
            for peer, path in ((idle, "/idle"), (slow, "/slow")):
                peer.open(path)
                assert program.line() == f"onopen {path}"
            slow.text("slow")
            assert program.line() == "slow"
            program.process.send_signal(number)
            idle.closes(1001)
            program.write("go on")
            assert slow.message() == "answer"
            slow.closes(1001)
            for peer in (idle, slow):
                peer.send(close_frame(1001))
        status, out, err = program.ended()
    assert (status, err) == (0, "")
    assert sorted(out.splitlines()) == ["ended []", "onclose /idle 1001", "onclose /slow 1001"]


@pytest.mark.slow
def test_i16_a_second_signal_does_not_wait_for_handlers(patience: float) -> None:
    with Program(*PYTHON, "-c", textwrap.dedent(PROGRAM), "3600", patience=patience) as program:
        address = ("127.0.0.1", int(program.line()))
        with RawClient(address) as idle, RawClient(address) as blocked:
            for peer, path in ((idle, "/idle"), (blocked, "/blocked")):
                peer.open(path)
                assert program.line() == f"onopen {path}"
            blocked.text("block")
            assert program.line() == "blocked"
            program.process.send_signal(signal.SIGINT)
            idle.closes(1001)
            began = time.monotonic()
            program.process.send_signal(signal.SIGTERM)
            status, out, err = program.ended()
            assert time.monotonic() - began < 3 * module.GRACE * patience
    assert status == 0
    assert out.splitlines() == ["onclose /idle 1006", "ended ['wspy 127.0.0.1']"]
    assert "still runs: a handler has not returned" in err


# CPython 3.12 and later warn of a fork beside threads, in the parent.
FORKING: Final = ("-W", "ignore::DeprecationWarning")
FORKS: Final = """
    import os, threading
    import wspy

    class Forking(wspy.Server):
        def onrequest(self, request):
            self.forks(request.path == "/asks")

        def onmessage(self, client, message):
            words.append(message.text)
            if not self.forks(message.text == "fork"):
                return
            for function in (lambda: client.send("x"), client.recv, lambda: next(iter(other), "end"), other.recv):
                try:
                    words.append(function())
                except wspy.SocketClosed:
                    words.append("closed")
            if client.path == "/closes":
                self.close()
                words.append(self.join(0))
            os.write(1, f"{words}\\n".encode())

        def onopen(self, client):
            global other
            other = client

        def onclose(self, client, code, reason):
            os.write(1, b"onclose\\n")

        def forks(self, is_asked):
            global child
            child = is_asked and os.fork()
            return is_asked and child == 0

    words = []
    server = Forking(("127.0.0.1", 0)).start()
    print(server.address[1], flush=True)
    input()
    print(os.waitpid(child, 0)[1], flush=True)
    if input() == "busy":
        # another thread is about to have one, or has returned, as often as somebody comes or goes
        is_held, go_on = threading.Event(), threading.Event()

        def hold():
            with server._threads._lock:
                is_held.set()
                go_on.wait()

        threading.Thread(target=hold).start()
        is_held.wait()
        child = os.fork()
        if child == 0:
            server.close()
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)
        go_on.set()
    server.stop()
    server.join()
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/returns", "/closes"])
def test_i17_the_child_of_a_handler_that_forks_ends_with_it(path: str, patience: float) -> None:
    with Program(*PYTHON, *FORKING, "-c", textwrap.dedent(FORKS), patience=patience) as program:
        with RawClient(("127.0.0.1", int(program.line()))) as peer:
            peer.open(path)
            peer.send(frame(TEXT, b"fork") + frame(TEXT, b"next"))
            joined = ", True" if path == "/closes" else ""
            assert program.line() == f"['fork', 'closed', 'closed', 'end', 'closed'{joined}]"
            program.write("wait")
            assert program.line() == "0"
            peer.send(close_frame(1000))
            peer.closes(1000)
            assert program.line() == "onclose"
        program.write("stop")
        assert program.ended() == (0, "", "")


@pytest.mark.slow
def test_i17_a_child_waits_for_no_thread_of_its_parent(patience: float) -> None:
    with Program(*PYTHON, *FORKING, "-c", textwrap.dedent(FORKS), patience=patience) as program:
        with RawClient(("127.0.0.1", int(program.line()))) as peer:
            peer.open("/asks")
            program.write("wait")
            assert program.line() == "0"
            program.write("busy")
            assert program.line() == "0"
            peer.closes(1001)
            peer.send(close_frame(1001))
        assert program.ended() == (0, "onclose\n", "")


# ---- what is kept ----


def test_who_has_nothing_to_do_is_not_at_work(serve: Servers) -> None:
    server = serve(onmessage=echo)
    for peer in [server.open() for _ in range(5)]:
        peer.text("x")
        assert peer.message() == "x"
    until(lambda: not server.server._at_work, "all wait")


def test_a_peer_that_goes_before_it_has_the_101_leaves_nothing(serve: Servers) -> None:
    server = serve()
    with faults(lib.WSPY_SYS_SEND, nth=1, times=1_000_000, error=errno.EAGAIN):
        peer = server.connect()
        peer.send(head())
        until(lambda: server.server._opening, "it is accepted")
        peer.abort()
        until(lambda: server.server.stats()["connections"] == 0, "it has gone")
    server.call(int)
    assert not server.server._opening
    assert server.server._rares == {}
    assert server.stories == []


# ---- very many ----


@pytest.mark.slow
@measures_memory
def test_ten_thousand_connections_that_come_and_go_leave_nothing() -> None:
    """No thread, no descriptor, no memory."""

    class Echo(Server):
        def onmessage(self, client: wspy.Client, message: wspy.Message) -> None:
            client.send(message)

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def cycles(count: int) -> None:
        request = head()
        for number in range(count):
            with RawClient(server.address) as peer:
                peer.send(request + frame(TEXT, b"x") + (close_frame(1000) if number % 2 else b""))
                peer.opened()
                assert peer.message() == "x"
                if number % 3 == 0:
                    peer.abort()
        until(lambda: server.stats()["connections"] == 0 and server._threads.busy == 0, "all are gone")

    with Echo(ADDRESS).start() as server:
        cycles(1000)
        open_before, memory_before = descriptors(), resident()
        cycles(9000)
        assert len(own_threads()) < 50, (
            "as many as were at work at a time, which is a few more where others keep CPUs busy"
        )
        assert descriptors() == open_before
        assert resident() - memory_before < 4 << 20
        assert not server.clients
        assert server._rares == {}
        assert not server._at_work
        assert not server._deciding
    assert own_threads() == []


@pytest.mark.slow
def test_a_thousand_clients_at_a_time(serve: Servers) -> None:
    limit = min(1000, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100) // 2)
    server = serve(onmessage=echo)
    peers = [server.open() for _ in range(limit)]
    for turn in range(3):
        for peer in peers:
            peer.text(str(turn))
        assert {peer.message() for peer in peers} == {str(turn)}
    assert len(server.server.client_threads) == limit
