"""What does an exception in a handler do? It ends that client with 1011, and tells onerror once (I7, I8)."""

from __future__ import annotations

import asyncio
import logging
import signal
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from drivers import CLOSE, PING, PONG, RawClient, close_frame, echo, frame, head, marked, needs, until
from programs import PYTHON, Program

import wspy

if TYPE_CHECKING:
    from drivers import Servers


class DefectError(Exception):
    """What a handler raises here."""


def raises(client: Any, *_: Any) -> None:
    """Raise, for clients that ask for it."""
    if client is not None and client.path == "/fail":
        raise DefectError


def pinged(client: Any, message: Any) -> None:
    if message.payload == "ping":
        client.send_ping(b"payload")


# Which handler, what brings it about, and what else the server needs to have.
FAILURES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "onopen": (b"", {}),
    "onmessage": (frame(1, b"x"), {}),
    "onpingreceived": (frame(PING, b"x"), {}),
    "onpong": (frame(PONG, b"x"), {}),
    "onping": (frame(1, b"ping"), {"onmessage": pinged}),
    "onsent": (frame(1, b"x"), {"onmessage": echo}),
    "onframe": (frame(1, b"x"), {}),
}


@pytest.mark.parametrize("name", marked(FAILURES, {name: name for name in ("onopen", "onsent", "onframe")}))
def test_i7_the_client_is_closed_with_1011_and_others_are_not_affected(serve: Servers, name: str) -> None:
    trigger, others = FAILURES[name]
    server = serve(**{"onmessage": echo, **others, name: raises}, onerror=lambda *_: None)
    other = server.open("/other")
    peer = server.open("/fail")
    peer.send(trigger)
    received = peer.frame()
    while received.opcode != CLOSE:  # a Pong, or the echo
        received = peer.frame()
    assert received.payload[:2] == (1011).to_bytes(2)
    peer.send(close_frame(1011))
    peer.eof()
    server.outcome(peer)
    errors = server.story(peer).named("onerror")
    assert [type(error) for error in errors] == [DefectError]
    other.text("fine")
    if name == "onmessage":
        until(lambda: server.story(other).messages == ["fine"], "delivered")
    elif name != "onping":
        assert (
            other.message() == "fine" if name in {"onopen", "onpingreceived", "onpong", "onframe", "onsent"} else True
        )
    server.open("/other").close()


@pytest.mark.parametrize("name", marked(["onopen", "onmessage"], {"onopen": "onopen"}))
def test_i7_onclose_gets_the_code_that_the_client_was_told(serve: Servers, name: str) -> None:
    server = serve(**{name: raises}, onerror=lambda *_: None)
    peer = server.open("/fail")
    peer.text("x")
    peer.closes(1011)
    peer.send(close_frame(1011))
    peer.eof()
    assert server.outcome(peer)[0] == 1011


def test_i7_an_exception_in_onclose(serve: Servers) -> None:
    server = serve(onclose=raises, onmessage=echo, onerror=lambda *_: None)
    other, peer = server.open("/other"), server.open("/fail")
    peer.close()
    server.wait(lambda: server.story(peer).named("onerror"), "onerror")
    assert [event.name for event in server.story(peer).events] == ["onopen", "onclose", "onerror"]
    other.text("fine")
    assert other.message() == "fine"


def test_i7_an_exception_in_onerror(serve: Servers, caplog: pytest.LogCaptureFixture) -> None:
    def fails_again(client: Any, error: BaseException) -> None:
        raise DefectError from error

    server = serve(onmessage=raises, onerror=fails_again)
    other, peer = server.open("/other"), server.open("/fail")
    peer.text("x")
    peer.closes(1011)
    peer.send(close_frame(1011))
    server.outcome(peer)
    assert "onerror" in caplog.text
    other.close()


def test_i7_the_default_onerror_logs_with_traceback(server_kind: type[Any], caplog: pytest.LogCaptureFixture) -> None:
    class Server(server_kind):
        def onmessage(self, client: Any, message: Any) -> None:
            raise DefectError

    with Server(("127.0.0.1", 0)).start() as server:
        peer = RawClient(server.address)
        peer.open()
        peer.text("x")
        peer.closes(1011)
        peer.end()
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(records) == 1
    assert records[0].exc_info is not None
    assert records[0].exc_info[0] is DefectError


@needs("http")
def test_c23_an_exception_in_onrequest_is_answered_with_500(serve: Servers) -> None:
    def onrequest(request: wspy.Request) -> None:
        if request.path == "/fail":
            raise DefectError

    server = serve(onrequest=onrequest, onmessage=echo, onerror=lambda *_: None)
    for _ in range(3):
        peer = server.connect()
        peer.send(head("/fail"))
        response = peer.response()
        assert response.status == 500
        assert b"DefectError" not in response.body
        peer.eof()
    assert [type(error) for error in server.errors] == [DefectError] * 3
    assert server.stories == []
    server.open().close()


@needs("http")
@pytest.mark.parametrize("wrong", ["text", 404, b"bytes", object()], ids=repr)
def test_c23_what_onrequest_may_not_return_is_answered_with_500(serve: Servers, wrong: Any) -> None:
    server = serve(onrequest=lambda _: wrong, onerror=lambda *_: None)
    peer = server.connect()
    peer.send(head())
    assert peer.response().status == 500
    peer.eof()
    assert server.stories == []


class LackingError(wspy.HandshakeError):
    """A failure whose constructor leaves everything out."""

    def __init__(self) -> None: ...


def changed(**attributes: Any) -> wspy.HandshakeError:
    """Return a failure that was changed since it was made."""
    error = wspy.HandshakeError(403, "no")
    vars(error).update(attributes)
    return error


@needs("http")
@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda: wspy.HandshakeError(418, "no"), 418),
        (lambda: wspy.HandshakeError(401, "no", (("WWW-Authenticate", "Basic"),)), 401),
        (lambda: wspy.HandshakeError(101, "no"), 500),
        (lambda: wspy.HandshakeError(429, "no", (("Retry-After", 5),)), 500),  # type: ignore[arg-type]
        (lambda: wspy.HandshakeError(403, "no", (("X-Evil", "a\r\nb: c"),)), 500),
        (lambda: wspy.HandshakeError(403, "no", (("Connection", "keep-alive"),)), 500),
        (lambda: changed(headers=(("Retry-After", 5),)), 500),
        (lambda: changed(headers=None), 500),
        (lambda: changed(status="no"), 500),
        (lambda: changed(status=None), 500),
        (LackingError, 500),
    ],
)
def test_c23_a_handshake_error_is_answered_with_its_status(serve: Servers, make: Any, status: int) -> None:
    def onrequest(request: wspy.Request) -> None:
        if request.path == "/fail":
            raise make()

    server = serve(onrequest=onrequest, onmessage=echo, onerror=lambda *_: None)
    other = server.open()
    peer = server.connect()
    peer.send(head("/fail"))
    response = peer.response()
    assert response.status == status
    assert "x-evil" not in response.headers
    peer.eof()
    other.text("fine")
    assert other.message() == "fine"


@needs("policies")
@pytest.mark.parametrize("headers", [{"X": "a\r\nY: b"}, {"a b": "c"}, {"X": "\0"}, {"Upgrade": "h2c"}, 7], ids=repr)
def test_c23_extra_headers_that_can_not_be_sent_are_answered_with_500(serve: Servers, headers: Any) -> None:
    server = serve(extra_headers=lambda _: headers, onerror=lambda *_: None)
    peer = server.connect()
    peer.send(head())
    assert peer.response().status == 500
    peer.eof()
    assert server.stories == []


def test_after_an_exception_nothing_more_of_that_client_is_delivered(serve: Servers) -> None:
    """The rest of a batch is dropped: a handler that failed half-way may not see what follows."""
    server = serve(onmessage=raises, onerror=lambda *_: None)
    peer = server.open("/fail")
    peer.send(frame(1, b"first") + frame(1, b"second") + frame(1, b"third"))
    peer.closes(1011)
    peer.send(frame(1, b"fourth") + close_frame(1011))
    peer.eof()
    server.outcome(peer)
    assert server.story(peer).messages == ["first"]
    assert len(server.story(peer).named("onerror")) == 1


def test_what_was_sent_before_the_exception_is_delivered(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        client.send("half of the answer")
        raise DefectError

    server = serve(onmessage=onmessage, onerror=lambda *_: None)
    peer = server.open()
    peer.text("x")
    assert peer.message() == "half of the answer"
    peer.closes(1011)


@needs("calls")
def test_an_exception_in_a_call_goes_to_onerror_without_a_client(serve: Servers) -> None:
    server = serve(onmessage=echo, onerror=lambda *_: None)
    peer = server.open()

    def fails() -> None:
        raise DefectError

    server.server.call_soon(fails)
    server.server.call_later(0.001, fails)
    server.wait(lambda: len(server.errors) == 2, "onerror")
    assert [type(error) for error in server.errors] == [DefectError] * 2
    peer.text("fine")
    assert peer.message() == "fine"


def test_h13_memory_error_in_a_handler_is_an_exception_like_others(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        bytearray(1 << 62)

    server = serve(onmessage=onmessage, onerror=lambda *_: None)
    peer = server.open()
    peer.text("x")
    peer.closes(1011)
    assert [type(error) for error in server.story(peer).named("onerror")] == [MemoryError]


@needs("BaseException")
@pytest.mark.parametrize(
    "error", [asyncio.CancelledError, GeneratorExit, BaseException], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("name", ["onmessage", "onclose", "onerror"])
def test_i8_what_is_no_exception_and_asks_for_no_end_does_not_stop_the_server(
    serve: Servers, error: type[BaseException], name: str
) -> None:
    def fails(client: Any, *_: Any) -> None:
        if client.path == "/fail":
            raise error

    server = serve(**{"onmessage": fails, "onerror": lambda *_: None, name: fails})
    other, peer = server.open("/other"), server.open("/fail")
    peer.text("x")
    peer.closes(1011)
    peer.send(close_frame(1011))
    server.outcome(peer)
    assert {type(raised) for raised in server.story(peer).named("onerror")} == {error}
    other.text("fine")
    server.wait(lambda: server.story(other).messages == ["fine"], "the server goes on")


def test_i8_a_log_says_who_stops_the_server(server_kind: type[Any], caplog: pytest.LogCaptureFixture) -> None:
    def ends() -> None:
        raise SystemExit(3)

    with caplog.at_level(logging.INFO, "wspy.server"), server_kind(("127.0.0.1", 0)) as server:
        server.call_soon(ends)
        with pytest.raises(SystemExit):
            server.run()
    assert "stopping: a handler has raised SystemExit" in caplog.messages


# ---- KeyboardInterrupt and SystemExit ----

PROGRAM = """
    import os
    import sys
    import wspy

    name, exception = sys.argv[1], {"SystemExit": SystemExit(7), "KeyboardInterrupt": KeyboardInterrupt()}[sys.argv[2]]
    closed = []

    def say(path, code):
        os.write(1, f"onclose {path} {code}\\n".encode())

    class Server(getattr(wspy, os.environ["KIND"])):
        def onclose(self, client, code, reason):
            closed.append((client.path, code))
            say(client.path, code)

    def handler(self, client, *arguments):
        if name == "onrequest":
            client, path = None, client.path
        elif client is None:
            raise exception
        else:
            path = client.path
        if name == "onclose":
            closed.append((path, arguments[0]))
            say(path, arguments[0])
        if path == "/fail":
            raise exception

    def onmessage(self, client, message):
        if message.payload == "ping":
            client.send_ping()
        elif message.payload == "error":
            raise ValueError
        else:
            client.send(message)

    Server.onmessage = onmessage
    setattr(Server, name, handler)
    server = Server(("127.0.0.1", 0), shutdown_timeout=5)
    print(server.address[1], flush=True)
    try:
        server.run()
    finally:
        print("end", flush=True)
"""

TRIGGERS = {
    "onopen": b"",
    "onmessage": frame(1, b"x"),
    "onpingreceived": frame(PING, b"x"),
    "onpong": frame(PONG, b"x"),
    "onping": frame(1, b"ping"),
    "onsent": frame(1, b"x"),
    "onframe": frame(1, b"x"),
    "onclose": close_frame(1000),
    "onerror": frame(1, b"error"),
    "onrequest": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("exception", ["SystemExit", "KeyboardInterrupt"])
@pytest.mark.parametrize("name", TRIGGERS)
def test_i8_the_server_stops_in_order(server_kind: type[Any], name: str, exception: str, patience: float) -> None:
    """Every client is told 1001, each onclose is called, and SystemExit is the exit status."""
    with Program(
        *PYTHON, "-c", textwrap.dedent(PROGRAM), name, exception, patience=patience, KIND=server_kind.__name__
    ) as program:
        address = ("127.0.0.1", int(program.line()))
        with RawClient(address) as other, RawClient(address) as peer:
            other.open("/other")
            peer.send(head("/fail"))
            trigger = TRIGGERS[name]
            if trigger is None:
                assert peer.response().status == 500
            else:
                peer.opened()
                peer.send(trigger)
            other.closes(1001)
            other.send(close_frame(1001))
            other.eof()
        lines = []
        while not lines or lines[-1] != "end":
            lines.append(program.line())
        errors = program.process.communicate(timeout=program.seconds)[1].decode()
        status = program.process.returncode
    assert "onclose /other 1001" in lines, errors
    assert sum(line.startswith("onclose /fail") for line in lines) == (0 if trigger is None else 1), lines
    if exception == "SystemExit":
        assert status == 7, errors
        assert "Traceback" not in errors
    else:
        assert status in {0, -signal.SIGINT}, errors
