"""Does a connection send and receive messages, answer control frames, and end in order, once, and in time?"""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import pickle
import socket
import struct
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from drivers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    DEADLINE_S,
    FIN,
    PING,
    PONG,
    TEXT,
    RawClient,
    close_frame,
    frame,
    until,
)
from measures import measures_memory
from native import clock_that_jumps, needs_compiler
from programs import PYTHON, Program
from reference import CLOSE_CODES
from sockets import RawServer, Running, connected, listening, raw_client, raw_server
from steps import at_each_step
from vectors import VECTORS, Vector

import wspy
from wspy import (
    BinaryMessage,
    Connection,
    Frame,
    Message,
    PingError,
    ProtocolError,
    Role,
    SocketClosed,
    TextMessage,
    websocket,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FOREVER = 60.0


class Recorder(Connection):
    """Keeps what its handlers were told; each does what a function of its name in ``does`` says."""

    def __init__(self, sock: websocket, does: dict[str, Callable[..., object]] | None = None, **options: Any) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.does = does or {}
        super().__init__(sock, **options)

    def _note(self, name: str, *arguments: Any) -> None:
        self.told.append((name, *arguments))
        if name in self.does:
            self.does[name](self, *arguments)

    def onopen(self) -> None:
        self._note("onopen")

    def onmessage(self, message: Message) -> None:
        self._note("onmessage", message)

    def onping(self, payload: bytes) -> None:
        self._note("onping", payload)

    def onpingreceived(self, payload: bytes) -> None:
        self._note("onpingreceived", payload)

    def onpong(self, payload: bytes) -> None:
        self._note("onpong", payload)

    def onclose(self, code: int, reason: str) -> None:
        self._note("onclose", code, reason)

    def onerror(self, e: Exception) -> None:
        self._note("onerror", e)

    @property
    def ends(self) -> list[tuple[int, str]]:
        return [one[1:] for one in self.told if one[0] == "onclose"]  # type: ignore[misc]

    @property
    def messages(self) -> list[Any]:
        return [one[1].payload for one in self.told if one[0] == "onmessage"]


@contextlib.contextmanager
def served(
    does: dict[str, Callable[..., object]] | None = None, **options: Any
) -> Iterator[tuple[RawClient, Recorder]]:
    """Return a client that sends any bytes, and a server's connection."""
    of_socket = {name: options.pop(name) for name in list(options) if name in {"max_size", "max_fragments"}}
    with listening(**of_socket) as listener, raw_client(listener) as (peer, sock):
        yield peer, Recorder(sock, does, **options)


@contextlib.contextmanager
def client_of(
    does: dict[str, Callable[..., object]] | None = None, **options: Any
) -> Iterator[tuple[Recorder, RawServer]]:
    """Return a client's connection, and a server that sends any bytes."""
    of_socket = {name: options.pop(name) for name in list(options) if name in {"max_size", "max_fragments"}}
    with raw_server(**of_socket) as (sock, peer):
        yield Recorder(sock, does, **options), peer


@contextlib.contextmanager
def both(does: dict[str, Callable[..., object]] | None = None, **options: Any) -> Iterator[tuple[Recorder, Recorder]]:
    """Return a client's and a server's connection; what the server does, and the options of both websockets."""
    of_both = {name: options.pop(name) for name in list(options) if name == "close_timeout"}
    with connected(options, **options) as (client, server):
        yield Recorder(client, **of_both), Recorder(server, does, **of_both)


def unmasked(opcode: int, payload: bytes = b"", *, final: bool = True) -> bytes:
    """Return a frame as a server sends it."""
    length = len(payload)
    size = bytes([length]) if length < 126 else struct.pack(">BH", 126, length)
    return bytes([opcode | (FIN if final else 0)]) + size + payload


def echo(connection: Connection, message: Message) -> None:
    connection.send(message)


# ---- messages ----


@pytest.mark.parametrize("size", [None, 1, 1000])
def test_messages_go_both_ways(size: int | None) -> None:
    with both({"onmessage": echo}) as (client, server):
        serving = Running(server.receive_forever)
        for message in (TextMessage("höllo" * 500), BinaryMessage(b""), BinaryMessage(b"x" * 3000), TextMessage("")):
            client.send(message, size)
            assert client.recv() == message
        for plain in ("text", b"bytes", bytearray(b"bytes"), memoryview(b"bytes")):
            client.send(plain)
            assert client.recv().bytes == (plain.encode() if isinstance(plain, str) else bytes(plain))
        client.close(3000, "reason")
        serving.result()
        assert client.ends == server.ends == [
            (3000, ""),
        ] or (client.ends, server.ends) == ([(3000, "")], [(3000, "reason")])
        assert [one[0] for one in server.told if one[0] != "onmessage"] == ["onopen", "onclose"]


@pytest.mark.parametrize(
    "vector",
    [vector for vector in VECTORS if not set(vector.options) - {"max_size", "max_fragments"}],
    ids=lambda vector: vector.name,
)
def test_m6_d_e_f_a_stream(vector: Vector) -> None:
    """Messages, pongs and the code on the wire, and what onclose is told, in both roles."""
    is_server = vector.role is Role.SERVER
    with served(**vector.options) if is_server else client_of(**vector.options) as ends:
        peer, own = ends if is_server else ends[::-1]
        assert isinstance(own, Recorder)
        peer.send(vector.data)  # type: ignore[union-attr]
        peer.socket.shutdown(socket.SHUT_WR)  # type: ignore[union-attr]
        own.receive_forever()
        data = [(opcode, payload) for opcode, payload, *_ in vector.messages if opcode in {TEXT, BINARY}]
        assert own.messages == [payload.decode() if opcode == TEXT else payload for opcode, payload in data]
        closes = [payload for opcode, payload, *_ in vector.messages if opcode == CLOSE]
        if vector.error:
            expected = CLOSE_CODES[vector.error]
        elif closes:
            expected = int.from_bytes(closes[0][:2]) if closes[0] else 1005
        else:
            expected = 1006
        (end,) = own.ends
        assert end[0] == expected == own.close_code
        assert own.told[-1][0] == "onclose"
        if closes:
            assert end[1] == closes[0][2:].decode()
        pongs = []
        while True:
            found = peer.frame() if expected != 1006 or len(pongs) < len(vector.pongs) else None  # type: ignore[union-attr]
            if found is None or found[0] & 15 != PONG:
                break
            pongs.append(found[1])
        # §5.5.2 lets the last one stand for all; here the kernel takes each
        assert pongs == list(vector.pongs)
        if expected != 1006:
            assert found is not None
            assert (found[0] & 15, found[1]) == (CLOSE, vector.owed_close)
        peer.eof()  # type: ignore[union-attr]


def test_d14_control_frames_between_fragments_and_across_timeouts() -> None:
    with served() as (peer, own):
        own.sock.settimeout(0.02)
        pieces = [
            frame(TEXT, b"h\xc3", final=False),
            frame(PING, b"one"),
            frame(CONTINUATION, b"\xb6", final=False)[:4],
            frame(CONTINUATION, b"\xb6", final=False)[4:] + frame(PONG, b"two") + frame(PING, b"three"),
        ]
        for piece in pieces:
            peer.send(piece)
            with pytest.raises(TimeoutError):
                own.recv()
        own.sock.setblocking(flag=False)
        with pytest.raises(BlockingIOError):
            own.recv()
        own.sock.settimeout(DEADLINE_S)
        peer.send(frame(CONTINUATION, b"!"))
        assert own.recv() == TextMessage("hö!")
        assert [one for one in own.told if one[0] != "onopen"] == [
            ("onpingreceived", b"one"),
            ("onpong", b"two"),
            ("onpingreceived", b"three"),
        ]
        assert [peer.frame()[:2] for _ in range(2)] == [(PONG, b"one"), (PONG, b"three")]


def test_iteration_ends_with_the_connection_and_raises_what_the_peer_did_wrong() -> None:
    with served() as (peer, own):
        peer.send(frame(TEXT, b"a") + frame(BINARY, b"b") + close_frame(1001))
        peer.half_close()
        assert list(own) == [TextMessage("a"), BinaryMessage(b"b")]
        assert list(own) == []
    with served() as (peer, own):
        peer.send(frame(TEXT, b"a") + frame(3))
        peer.half_close()
        iterator = iter(own)
        assert next(iterator).text == "a"
        with pytest.raises(ProtocolError):
            next(iterator)


def test_e9_what_came_before_the_close_is_delivered_and_answered() -> None:
    with served({"onmessage": echo}) as (peer, own):
        peer.send(b"".join(frame(TEXT, b"%d" % i) for i in range(100)) + close_frame(1000))
        own_thread = Running(own.receive_forever)
        assert [peer.message() for _ in range(100)] == [str(i) for i in range(100)]
        peer.closes(1000)
        peer.eof()
        peer.end()
        own_thread.result()


@pytest.mark.slow
def test_i11_threads_send_and_their_frames_never_mix() -> None:
    count, threads = 100, 8
    with both() as (client, server):

        def send(number: int) -> None:
            for i in range(count):
                client.send(f"{number}:{i}:" + "x" * 50, fragment_size=None if number % 4 == 0 else number)
                if i % 10 == 0:
                    client.send_ping(b"%d" % i)

        sending = [Running(lambda number=number: send(number)) for number in range(threads)]
        last = [-1] * threads
        for _ in range(count * threads):
            number, i, rest = server.recv().text.split(":")
            assert (int(i), rest) == (last[int(number)] + 1, "x" * 50)
            last[int(number)] += 1
        for running in sending:
            running.result()


@measures_memory
def test_h2_endless_fragments_cost_their_bytes_only() -> None:
    with served() as (peer, own):
        sending = Running(
            lambda: (
                [peer.send(frame(TEXT, b"", final=False))]
                + [peer.send(frame(CONTINUATION, b"x", final=False) * 1000) for _ in range(20)]
                + [peer.send(frame(CONTINUATION, b"y"))]
            )
        )
        receiving = Running(own.recv)
        most = 0
        while not receiving.is_over:
            most = max(most, len(own._fragments))
        sending.result()
        assert receiving.result().text == "x" * 20_000 + "y"
        assert most <= 256 + 20_000 // 256


@pytest.mark.parametrize("count", [2, 3, 5])
def test_an_exception_at_any_step_leaves_no_hole_in_a_message(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a signal handler: a message may be lost with it, if it was whole, and never a part of one."""
    monkeypatch.setattr(sys.modules["wspy.connection"], "_JOINED", 3)
    with served() as (peer, own):
        expected, received = [], []
        parts = [frame(TEXT if i == 0 else CONTINUATION, b"%d" % i, final=i == count - 1) for i in range(count)]
        whole = "".join(map(str, range(count)))

        def receive() -> None:
            received.append(own.recv().text)

        for step in at_each_step(sys.modules["wspy.connection"], receive, behind_functions=False):
            assert step is None
            own.sock.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                receive()
            own.sock.settimeout(DEADLINE_S)
            assert not own._fragments
            expected.append(whole)
            peer.send(b"".join(parts))
        assert set(received) == {whole}
        assert len(expected) // 2 < len(received) <= len(expected)


@pytest.mark.parametrize("names", [("websocket", "transport"), ("protocol",), ("outbox",)], ids=" ".join)
def test_a_signal_handler_that_closes_at_any_step_of_a_send_waits_for_nobody(names: tuple[str, ...]) -> None:
    """What was sent arrives, and the Close behind it."""
    took: list[float] = []

    def send() -> None:
        with contextlib.suppress(SocketClosed):
            client.send("outer")
            sent.append("outer")

    def interrupt() -> None:
        began = time.monotonic()
        client.close(4000)
        took.append(time.monotonic() - began)

    modules = [sys.modules[f"wspy.{name}"] for name in names]
    steps = at_each_step(modules, send, interrupt, behind_functions=False)
    next(steps)
    goes_on = True
    while goes_on:
        with connected() as ends:
            client, server = map(Connection, ends)
            receiving = Running(lambda server=server: [message.text for message in server])
            sent: list[str] = []
            goes_on = next(steps, "it is over") is None
            client.close(4000)
            assert receiving.result() in (sent, ["outer"])
            assert server.close_code == 4000
    assert max(took) < DEADLINE_S / 4


def test_h2_fragments_are_joined_once() -> None:
    joined: list[int] = []

    class Own(Recorder):
        @staticmethod
        def concat_fragments(fragments: list[Frame]) -> Message:
            joined.extend(len(one.payload) for one in fragments)
            return Connection.concat_fragments(fragments)

    with listening() as listener, raw_client(listener) as (peer, sock):
        own = Own(sock)
        for _ in range(2):
            parts = [frame(TEXT if i == 0 else CONTINUATION, b"x", final=i == 999) for i in range(1000)]
            peer.send(b"".join(parts))
            assert own.recv().text == "x" * 1000
        assert max(joined) < 1000 / 3
        assert sum(joined) == 2000


def test_h2_too_many_fragments() -> None:
    with served(max_fragments=10) as (peer, own):
        peer.send(frame(TEXT, b"", final=False) + frame(CONTINUATION, b"", final=False) * 20)
        peer.half_close()
        with pytest.raises(ProtocolError) as caught:
            own.recv()
        assert caught.value.code == 1008
        peer.closes(1008)


def test_a_client_masks_and_a_server_does_not() -> None:
    with client_of() as (own, peer):
        own.send("a")
        own.send("b", mask=True)
        own.send(b"cd", 1, mask=True)
        assert [peer.frame()[1] for _ in range(4)] == [b"a", b"b", b"c", b"d"]
        with pytest.raises(ValueError, match="5\\.1"):
            own.send("c", mask=False)
    with served() as (client, own):
        own.send("a")
        own.send("b", mask=False)
        assert [client.message(), client.message()] == ["a", "b"]
        with pytest.raises(ValueError, match="5\\.1"):
            own.send("c", mask=True)


def test_f9_what_can_not_be_sent_sends_nothing() -> None:
    with served() as (peer, own):
        wrong: Any
        for wrong, error in (("\ud800", ValueError), (5, TypeError), ({"a": 1}, TypeError), (None, TypeError)):
            with pytest.raises(error):
                own.send(wrong)
        with pytest.raises(ValueError, match="fragment_size"):
            own.send("x", 0)
        own.send("fine")
        assert peer.message() == "fine"


def test_subclasses_change_how_messages_are_made() -> None:
    class Loud(Recorder):
        def message_to_frames(
            self, message: Any, fragment_size: int | None = None, mask: bool | None = None
        ) -> list[Frame]:  # type: ignore[override]
            return super().message_to_frames(str(message).upper(), fragment_size, mask)

        @staticmethod
        def concat_fragments(fragments: list[Frame]) -> Message:
            return BinaryMessage(b"|".join(one.payload for one in fragments))

        def handle_control_frame(self, frame: Frame) -> None:
            self.told.append(("control", frame.opcode, frame.payload))

    with listening() as listener, raw_client(listener) as (peer, sock):
        own = Loud(sock)
        own.send("loud")
        assert peer.message() == "LOUD"
        peer.send(frame(PING, b"p") + frame(TEXT, b"a", final=False) + frame(CONTINUATION, b"b"))
        assert own.recv() == BinaryMessage(b"a|b")
        assert ("control", PING, b"p") in own.told
        peer.send(close_frame())
        peer.half_close()
        with pytest.raises(SocketClosed):
            own.recv()
        assert own.told[-2:] == [("control", CLOSE, b"\x03\xe8"), ("onclose", 1000, "")]


# ---- pings ----


def test_any_number_of_pings_may_be_unanswered() -> None:
    with both() as (client, server):
        receiving = Running(server.receive_forever)
        for i in range(10):
            client.send_ping(b"%d" % i)
        client.send_ping("ü")
        client.send_ping(bytearray(b"x" * 125))
        client.send("question")
        until(lambda: len(server.told) == 14, "all have arrived")
        with pytest.raises(TimeoutError):
            client.sock.settimeout(0.05)
            client.recv()
        sent = [one[1] for one in client.told if one[0] == "onping"]
        assert sent == [*[b"%d" % i for i in range(10)], "ü".encode(), b"x" * 125]
        assert [one[1] for one in server.told if one[0] == "onpingreceived"] == sent
        assert [one[1] for one in client.told if one[0] == "onpong"] == sent
        client.close()
        receiving.result()


def test_a_pong_that_nobody_has_asked_for_is_no_error() -> None:
    with both() as (client, server):
        client.send_pong("unsolicited")
        client.send_pong(b"x")
        client.send("then this")
        assert server.recv().text == "then this"
        assert server.told[1:] == [("onpong", b"unsolicited"), ("onpong", b"x")]


def test_a_control_frame_that_is_too_long() -> None:
    with both() as (client, server):
        for send in (client.send_ping, client.send_pong):
            with pytest.raises(PingError, match="125"):
                send(b"x" * 126)
            with pytest.raises(PingError, match="125"):
                send("ü" * 63)
        client.send("fine")
        assert server.recv().text == "fine"


@pytest.mark.slow
def test_h4_a_peer_that_floods_pings_and_reads_nothing() -> None:
    """Receiving goes on, and one answer waits, the newest."""
    with served(max_size=None) as (peer, own):
        own.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        own.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            own.send(b"x" * 4_000_000)
        own.sock.settimeout(FOREVER)
        count = 20_000
        flood = b"".join(frame(PING, b"%d" % i) for i in range(count)) + frame(TEXT, b"still received")
        sending = Running(lambda: peer.send(flood))
        assert own.recv().text == "still received"
        sending.result()
        assert len(own.sock._outbox.unsent) <= 2
        assert len([one for one in own.told if one[0] == "onpingreceived"]) == count
        receiving = Running(own.receive_forever)
        assert len(peer.frame().payload) == 4_000_000
        assert peer.frame() == (PONG, b"%d" % (count - 1), True)
        peer.send(close_frame())
        peer.closes(1000)
        peer.eof()
        peer.end()
        receiving.result()


# ---- handlers ----


def test_receive_forever_calls_handlers_until_the_end() -> None:
    with served() as (peer, own):
        peer.send(
            frame(TEXT, b"a") + frame(PING, b"p") + frame(BINARY, b"b") + frame(PONG, b"q") + close_frame(4000, "bye")
        )
        peer.half_close()
        own.receive_forever()
        assert own.told == [
            ("onopen",),
            ("onmessage", TextMessage("a")),
            ("onpingreceived", b"p"),
            ("onmessage", BinaryMessage(b"b")),
            ("onpong", b"q"),
            ("onclose", 4000, "bye"),
        ]
        own.receive_forever()
        assert len(own.ends) == 1


def test_a_timeout_interrupts_receive_forever_only() -> None:
    with served() as (peer, own):
        own.sock.settimeout(0.02)
        with pytest.raises(TimeoutError):
            own.receive_forever()
        own.sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            own.receive_forever()
        assert not own.closed
        own.sock.settimeout(DEADLINE_S)
        peer.send(frame(TEXT, b"a") + close_frame())
        peer.half_close()
        own.receive_forever()
        assert own.messages == ["a"]


def fail(error: BaseException) -> Callable[..., None]:
    def handler(*_: object) -> None:
        raise error

    return handler


@pytest.mark.parametrize(
    "error", [KeyError("x"), TimeoutError("x"), SocketClosed(), ProtocolError(1002, "x"), BlockingIOError()]
)
@pytest.mark.parametrize("name", ["onmessage", "onpingreceived", "onpong"])
def test_i7_an_exception_of_a_handler_ends_that_connection_with_1011(name: str, error: Exception) -> None:
    with served({name: fail(error)}) as (peer, own):
        receiving = Running(own.receive_forever)
        opcode = {"onmessage": TEXT, "onpingreceived": PING, "onpong": PONG}[name]
        peer.send(frame(opcode, b"x"))
        if opcode == PING:
            assert peer.frame().opcode == PONG
        peer.closes(1011)
        peer.send(close_frame(1011))
        peer.eof()
        peer.end()
        receiving.result()
        assert [one for one in own.told if one[0] == "onerror"] == [("onerror", error)]
        assert own.ends == [(1011, "")]


def test_i7_exceptions_of_recv_are_those_of_its_handlers() -> None:
    with served({"onpong": fail(KeyError())}) as (peer, own):
        peer.send(frame(TEXT, b"a", final=False) + frame(PONG) + frame(CONTINUATION, b"b"))
        with pytest.raises(KeyError):
            own.recv()
        assert own.recv().text == "ab"
        assert not own.closed


def test_i7_an_exception_of_onclose_goes_to_onerror() -> None:
    error = KeyError()
    with served({"onclose": fail(error)}) as (peer, own):
        peer.send(close_frame())
        peer.half_close()
        with pytest.raises(SocketClosed):
            own.recv()
        assert own.told[-2:] == [("onclose", 1000, ""), ("onerror", error)]
        assert own.closed


def test_i7_an_exception_of_onopen_closes_what_was_opened() -> None:
    with listening() as listener, raw_client(listener) as (peer, sock):
        opening = Running(lambda: Recorder(sock, {"onopen": fail(KeyError())}))
        peer.closes(1011)
        peer.send(close_frame(1011))
        peer.eof()
        peer.end()
        with pytest.raises(KeyError):
            opening.result()
        assert sock.fileno() == -1


def test_i7_an_exception_of_onerror_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with served({"onmessage": fail(KeyError()), "onerror": fail(ZeroDivisionError())}) as (peer, own):
        receiving = Running(own.receive_forever)
        peer.send(frame(TEXT, b"x"))
        peer.closes(1011)
        peer.end()
        receiving.result()
        assert len(own.ends) == 1
    assert "ZeroDivisionError" in caplog.text


def test_onerror_logs_unless_it_is_overridden(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Connection):
        def onmessage(self, message: Message) -> None:
            raise KeyError(message.text)

    with listening() as listener, raw_client(listener) as (peer, sock):
        receiving = Running(Failing(sock).receive_forever)
        peer.send(frame(TEXT, b"x"))
        peer.closes(1011)
        peer.end()
        receiving.result()
    (record,) = caplog.records
    assert record.name == "wspy.connection"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
@pytest.mark.parametrize("name", ["onmessage", "onpong"])
def test_i8_what_ends_the_program_closes_with_1001_first(name: str, error: BaseException) -> None:
    with served({name: fail(error)}) as (peer, own):
        receiving = Running(own.receive_forever)
        peer.send(frame(TEXT if name == "onmessage" else PONG, b"x"))
        peer.closes(1001)
        peer.send(close_frame(1001))
        peer.eof()
        peer.end()
        with pytest.raises(type(error)):
            receiving.result()
        assert own.ends == [(1001, "")]
        assert not [one for one in own.told if one[0] == "onerror"]


def test_i9_handlers_may_send_and_close() -> None:
    def send(connection: Connection, *_: object) -> None:
        connection.send("from a handler")

    with served({"onopen": send, "onmessage": send, "onpong": send, "onpingreceived": send}) as (peer, own):
        receiving = Running(own.receive_forever)
        peer.send(frame(TEXT) + frame(PONG) + frame(PING))
        assert [peer.message() for _ in range(3)] == ["from a handler"] * 3
        assert peer.frame().opcode == PONG
        assert peer.message() == "from a handler"
        peer.close()
        receiving.result()


@pytest.mark.parametrize("name", ["onmessage", "onpong", "onpingreceived", "onopen", "onclose"])
def test_i9_close_in_a_handler(name: str) -> None:
    def close(connection: Connection, *_: object) -> None:
        connection.close(3001)

    with listening() as listener, raw_client(listener) as (peer, sock):
        opening = Running(lambda: Recorder(sock, {name: close}))
        if name != "onopen":
            own = opening.result()
            receiving = Running(own.receive_forever)
            peer.send(
                {"onmessage": frame(TEXT), "onpong": frame(PONG), "onpingreceived": frame(PING)}.get(
                    name, close_frame(3001)
                )
            )
            if name == "onpingreceived":
                assert peer.frame().opcode == PONG
        peer.closes(3001)
        if name != "onclose":
            peer.send(frame(TEXT, b"on its way") + close_frame(3001, "seen"))
        peer.eof()
        peer.end()
        own = opening.result()
        if name != "onopen":
            receiving.result()
        assert own.ends == [(3001, "" if name == "onclose" else "seen")]
        assert not [one for one in own.told if one[0] == "onerror"]


def test_i9_sending_and_receiving_in_onclose_says_that_it_is_closed() -> None:
    def use(connection: Connection, *_: object) -> None:
        for call in (lambda: connection.send("x"), connection.send_ping, connection.recv):
            with pytest.raises(SocketClosed):
                call()

    for data in (close_frame(), b""):
        with served({"onclose": use}) as (peer, own):
            peer.send(data)
            peer.half_close()
            receiving = Running(own.receive_forever)
            if not data:
                receiving.result()
            else:
                peer.closes(1000)
            peer.eof()
            peer.end()
            receiving.result()
            assert not [one for one in own.told if one[0] == "onerror"]


def test_recv_in_a_handler_that_recv_has_called_is_refused() -> None:
    def receive(connection: Connection, *_: object) -> None:
        connection.recv()

    with served({"onpong": receive}) as (peer, own):
        peer.send(frame(PONG) + frame(TEXT, b"x"))
        with pytest.raises(RuntimeError, match="recv"):
            own.recv()
        assert own.recv().text == "x"
    with served({"onmessage": receive}) as (peer, own):
        peer.send(frame(TEXT, b"x") + frame(TEXT, b"y") + close_frame())
        peer.half_close()
        own.receive_forever()
        assert own.messages == ["x"]


def test_receive_forever_in_a_handler_is_refused_and_closes_nothing() -> None:
    with served({"onpong": lambda own, _: own.receive_forever(), "onerror": lambda own, _: own.sock.close()}) as ends:
        peer, own = ends
        peer.send(frame(PONG) + frame(TEXT, b"x"))
        with pytest.raises(RuntimeError, match="recv"):
            own.recv()
        assert own.recv().text == "x"
        own.send("y")
        assert peer.message() == "y"


# ---- closing ----


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "x" * 123), (3000, "ü"), (4999, ""), (None, "")])
@pytest.mark.parametrize("role", ["server", "client"])
def test_e1_e4_e5_a_close_from_either_side(role: str, code: int | None, reason: str) -> None:
    """Both arguments of onclose are what the peer's Close says, and the echo has the code."""
    payload = b"" if code is None else code.to_bytes(2) + reason.encode()
    with served() if role == "server" else client_of() as ends:
        peer, own = ends if role == "server" else ends[::-1]
        assert isinstance(own, Recorder)
        assert isinstance(peer, RawClient | RawServer)
        closing = Running(lambda: own.close(code, reason))
        assert peer.frame()[1] == payload
        peer.send((frame if role == "server" else unmasked)(CLOSE, payload))
        if role == "client":
            peer.end()
        else:
            peer.eof()
            peer.end()
        closing.result()
        assert own.ends == [(1005 if code is None else code, reason)]
    with served() if role == "server" else client_of() as ends:
        peer, own = ends if role == "server" else ends[::-1]
        assert isinstance(own, Recorder)
        assert isinstance(peer, RawClient | RawServer)
        peer.send((frame if role == "server" else unmasked)(CLOSE, payload))
        receiving = Running(own.receive_forever)
        assert peer.frame()[1] == payload[:2]
        if role == "server":
            peer.eof()
        peer.end()
        receiving.result()
        assert own.ends == [(1005 if code is None else code, reason)]
        assert (own.close_code, own.close_reason) == own.ends[0]


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65536, -1])
def test_e15_a_code_that_may_not_be_sent(code: int) -> None:
    with served() as (peer, own):
        for close in (own.close, own.send_close_frame):
            with pytest.raises(ValueError, match=str(code)):
                close(code)
            with pytest.raises(ValueError, match="123"):
                close(1000, "x" * 124)
            wrong: Any = 5
            with pytest.raises(TypeError):
                close(1000, wrong)
        own.send("still open")
        assert peer.message() == "still open"


def test_e7_e8_the_end_in_the_middle_of_a_message() -> None:
    with served() as (peer, own):
        peer.send(frame(TEXT, b"half", final=False) + close_frame(1000) + frame(PING) + frame(TEXT) + close_frame(1001))
        receiving = Running(own.receive_forever)
        peer.closes(1000)
        peer.eof()
        peer.end()
        receiving.result()
        assert own.told == [("onopen",), ("onclose", 1000, "")]


def test_e10_what_arrives_until_the_peers_close_is_for_who_receives() -> None:
    with served() as (peer, own):
        own.send_close_frame(3000, "enough")
        with pytest.raises(SocketClosed):
            own.send_close_frame()
        peer.closes(3000, "enough")
        peer.send(frame(TEXT, b"late") + frame(PING, b"unanswered") + frame(TEXT, b"later") + close_frame(3000))
        peer.half_close()
        assert [message.text for message in own] == ["late", "later"]
        peer.eof()
        assert own.ends == [(3000, "")]


@pytest.mark.parametrize("loop", ["receive_forever", "iteration"])
def test_e10_closing_takes_nothing_from_who_receives_in_a_loop(loop: str) -> None:
    with served() as (peer, own):
        receiving = Running(own.receive_forever if loop == "receive_forever" else lambda: list(own))
        until(lambda: own._loops, "it receives")
        closing = Running(lambda: own.close(3000))
        peer.closes(3000)
        for i in range(100):
            peer.send(frame(TEXT, b"%d" % i))
        assert not closing.is_over
        peer.send(close_frame(3000))
        peer.eof()
        peer.end()
        closing.result()
        found = receiving.result()
        texts = own.messages if loop == "receive_forever" else [message.text for message in found]
        assert texts == [str(i) for i in range(100)]


def test_e10_closing_takes_nothing_from_a_loop_that_is_in_a_handler() -> None:
    handling, go_on = threading.Event(), threading.Event()

    def handle(connection: Connection, message: Message) -> None:
        handling.set()
        assert go_on.wait(DEADLINE_S)

    with served({"onmessage": handle}) as (peer, own):
        receiving = Running(own.receive_forever)
        peer.send(frame(TEXT, b"first"))
        assert handling.wait(DEADLINE_S)
        closing = Running(own.close)
        peer.closes(1000)
        peer.send(frame(TEXT, b"second") + close_frame())
        peer.half_close()
        until(lambda: closing.is_over or own._loop_ends._waiters, "it waits, or has done something else")  # type: ignore[attr-defined]
        go_on.set()
        receiving.result()
        closing.result()
        assert own.messages == ["first", "second"]


def test_who_leaves_a_loop_leaves_the_rest_to_close() -> None:
    with served() as (peer, own):

        def receive_one() -> None:
            for _ in own:
                break

        receiving = Running(receive_one)
        until(lambda: own._loops, "it receives")
        closing = Running(lambda: own.close(3000))
        peer.closes(3000)
        peer.send(frame(TEXT, b"the last that anybody wants") + frame(TEXT, b"x") + close_frame(3000))
        peer.eof()
        peer.end()
        closing.result()
        receiving.result()
        assert own.ends == [(3000, "")]


def test_close_within_a_loop() -> None:
    with served() as (peer, own):
        peer.send(frame(TEXT, b"a") + frame(TEXT, b"b") + close_frame(3000))
        peer.half_close()
        for message in own:
            own.close(3000)
            assert message.text == "a"
        assert own.ends == [(3000, "")]


def test_i10_what_is_said_when_nothing_can_be_sent() -> None:
    with served() as (peer, own):
        own.send_close_frame(4000, "enough")
        with pytest.raises(SocketClosed) as caught:
            own.send("x")
        error = caught.value
        assert (error.initialized, error.sent, error.rcvd, error.code) == (True, (4000, "enough"), None, 1006)
        peer.send(close_frame(4001, "yes"))
        peer.half_close()
        own.receive_forever()
        for send in (lambda: own.send("x"), lambda: own.send("x", 5, mask=False), own.send_ping, own.send_pong):
            with pytest.raises(SocketClosed) as caught:
                send()
            error = caught.value
            assert (error.initialized, error.sent, error.rcvd) == (True, (4000, "enough"), (4001, "yes"))
            assert (error.code, error.reason) == (4001, "yes")
    with served() as (peer, own):
        peer.abort()
        own.receive_forever()
        with pytest.raises(SocketClosed) as caught:
            own.send("x")
        assert (caught.value.code, caught.value.reason) == own.ends[0]


def test_e12_both_close_at_once() -> None:
    with both() as (client, server):
        closing = Running(lambda: client.close(3001, "client"))
        server.close(3002, "server")
        closing.result()
        assert client.ends in ([(3002, "server")], [(3001, "")])
        assert server.ends in ([(3001, "client")], [(3002, "")])
    with served() as (peer, own):
        peer.send(close_frame(3001, "mine"))
        peer.half_close()
        own.send_close_frame(3002)
        own.receive_forever()
        peer.closes(3002)
        peer.eof()
        assert own.ends == [(3001, "mine")]


def test_e16_closing_twice_and_from_threads() -> None:
    with both() as (client, server):
        receiving = [Running(server.receive_forever), Running(client.receive_forever)]
        closing = [Running(client.close) for _ in range(8)]
        for running in closing + receiving:
            running.result()
        client.close()
        assert len(client.ends) == len(server.ends) == 1
        assert client.closed
        assert server.closed
        with pytest.raises(SocketClosed) as caught:
            client.recv()
        assert caught.value.code == client.close_code


def test_closing_wakes_who_receives_for_ever() -> None:
    with served(close_timeout=0.05) as (peer, own):
        own.sock.settimeout(None)
        receiving = Running(own.recv)
        until(lambda: own.sock._held._users, "it receives")
        own.close()
        with pytest.raises(SocketClosed) as caught:
            receiving.result()
        assert caught.value.code == 1006
        (end,) = own.ends
        assert end[0] == 1006
        assert "close_timeout" in end[1]
        peer.closes(1000)


def test_i22_threads_take_turns_at_receiving() -> None:
    with served() as (peer, own):
        receiving = [Running(own.recv) for _ in range(4)]
        for i in range(4):
            peer.send(frame(TEXT, b"%d" % i))
        assert sorted(running.result().text for running in receiving) == ["0", "1", "2", "3"]
        first = Running(own.recv)
        until(lambda: own.sock._held._users, "it receives")
        own.sock.settimeout(0.02)
        with pytest.raises(TimeoutError):
            own.recv()
        peer.send(frame(TEXT, b"x"))
        assert first.result().text == "x"


def timed(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


@pytest.mark.slow
def test_a_peer_that_always_sends_something_prolongs_no_call(patience: float) -> None:
    with served(max_controls=None) as (peer, own):
        over = threading.Event()

        def flood() -> None:
            with contextlib.suppress(OSError):
                while not over.is_set():
                    peer.send(frame(PONG) * 1000)

        flooding = Running(flood)
        own.sock.settimeout(0.1)

        def receive() -> None:
            with pytest.raises(TimeoutError):
                own.recv()

        assert 0.1 <= timed(receive) < 2 * patience
        over.set()
        while not flooding.is_over:
            receive()


@pytest.mark.slow
@pytest.mark.parametrize("role", ["server", "client"])
def test_e11_a_peer_that_never_answers(role: str, patience: float) -> None:
    with served(close_timeout=0.1) if role == "server" else client_of(close_timeout=0.1) as ends:
        own = ends[1] if role == "server" else ends[0]
        assert isinstance(own, Recorder)
        own.sock.settimeout(FOREVER)
        assert 0.1 <= timed(own.close) < 2 * patience
        assert own.ends[0][0] == 1006
    with served({"onpong": lambda own, _: own.close()}, close_timeout=0.1) as (peer, own):
        own.sock.settimeout(None)
        peer.send(frame(PONG))
        with pytest.raises(SocketClosed) as caught:
            own.recv()
        assert caught.value.code == 1006
        assert own.ends[0][0] == 1006


@pytest.mark.slow
def test_m8_a_server_that_never_ends_tcp(patience: float) -> None:
    with client_of(close_timeout=0.1) as (own, peer):
        peer.send(unmasked(CLOSE, b"\x03\xe8"))
        assert 0.1 <= timed(own.receive_forever) < 2 * patience
        assert own.ends == [(1000, "")]
        assert peer.frame()[0] == FIN | CLOSE
        peer.eof()
    with client_of(close_timeout=0.1) as (own, peer):
        peer.send(unmasked(CLOSE, b"\x03\xe8"))
        own.close(3000)
        assert own.ends == [(1000, "")]


@pytest.mark.slow
def test_e11_a_peer_that_reads_nothing_and_one_that_sends_for_ever(patience: float) -> None:
    with served(close_timeout=0.2) as (peer, own):
        own.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        own.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            own.send(b"x" * 4_000_000)
        assert 0.15 <= timed(own.close) < 2 * patience
        assert own.ends[0][0] == 1006
    with served(close_timeout=0.2) as (peer, own):

        def flood() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer.send(frame(TEXT, b"x" * 1000) * 100)

        flooding = Running(flood)
        assert 0.15 <= timed(own.close) < 3 * patience
        assert own.ends[0][0] == 1006
        flooding.result()


def test_a_wrong_peer_that_goes_on_is_told_the_code_and_left() -> None:
    with served() as (peer, own):

        def send() -> None:
            with contextlib.suppress(OSError):
                for _ in range(200):
                    peer.send(b"\xff" * 65536)

        peer.send(frame(TEXT, b"fine") + frame(3))
        sending = Running(send)
        receiving = Running(own.receive_forever)
        peer.closes(1002)
        sending.result()
        receiving.result()
        assert own.messages == ["fine"]
        assert own.ends[0][0] == 1002
        assert "5.2" in own.ends[0][1]


def test_a_call_that_may_not_wait_does_not_wait_for_the_end_of_tcp() -> None:
    with client_of() as (own, peer):
        own.sock.settimeout(0.02)
        peer.send(unmasked(CLOSE, b"\x03\xe9bye"))
        for _ in range(3):
            with pytest.raises(TimeoutError):
                own.recv()
        assert not own.ends
        assert peer.frame() == (FIN | CLOSE, b"\x03\xe9")
        own.sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            own.recv()
        peer.end()
        own.sock.settimeout(DEADLINE_S)
        with pytest.raises(SocketClosed) as caught:
            own.recv()
        assert caught.value.rcvd == (1001, "bye")
        assert own.ends == [(1001, "bye")]


@pytest.mark.parametrize("data", [frame(3), close_frame(1000)], ids=["a fault", "a Close"])
def test_what_is_sent_last_is_not_destroyed_by_what_was_not_read(data: bytes) -> None:
    """A RST would reach the peer before it has read the Close: TCP ends in order all the same."""
    with served() as (peer, own):
        peer.send(data + b"x" * 500_000)
        receiving = Running(own.receive_forever)
        until(peer.is_ended, "the server has said its last word")
        peer.closes(1002 if data == frame(3) else 1000)
        peer.eof()
        peer.end()
        receiving.result()


STATES: list[tuple[str, bytes]] = [
    ("idle", b""),
    ("mid-frame", frame(TEXT, b"hello")[:8]),
    ("mid-message", frame(TEXT, b"hello", final=False)),
    ("behind a message", frame(TEXT, b"hello")),
]


@pytest.mark.parametrize("how", ["end", "reset", "half"])
@pytest.mark.parametrize("data", [state[1] for state in STATES], ids=[state[0] for state in STATES])
def test_e13_i1_i24_the_peer_goes_away(data: bytes, how: str) -> None:
    with served() as (peer, own):
        peer.send(data)
        if how == "half":
            peer.half_close()
        elif how == "end":
            peer.end()
        else:
            until(lambda: _arrived(own) >= len(data), "the kernel has it")
            peer.abort()
        own.receive_forever()
        (end,) = own.ends
        assert end[0] == 1006
        assert end[1]
        assert own.messages == (["hello"] if data == STATES[3][1] else [])
        assert own.sock.fileno() == -1
        with pytest.raises(SocketClosed):
            own.send("x")


def _arrived(own: Connection) -> int:
    try:
        return len(own.sock.sock.recv(1 << 16, socket.MSG_PEEK))
    except BlockingIOError:
        return 0


@pytest.mark.parametrize("how", ["end", "reset"])
def test_i1_the_peer_goes_away_after_a_close(how: str) -> None:
    for closes_first in (True, False):
        with served() as (peer, own):
            if closes_first:
                closing = Running(own.close)
                peer.closes(1000)
            else:
                peer.send(close_frame())
                closing = Running(own.receive_forever)
                peer.closes(1000)
            peer.end() if how == "end" else peer.abort()
            closing.result()
            assert own.ends[0][0] == (1006 if closes_first else 1000)


def test_i2_a_send_to_who_is_gone_keeps_their_reason() -> None:
    with served() as (peer, own):
        peer.send(frame(TEXT, b"last words") + close_frame(1008, "because"))
        peer.end()
        with pytest.raises(SocketClosed):
            while True:
                own.send("x" * 1000)
        own.receive_forever()
        assert own.messages == ["last words"]
        assert own.ends == [(1008, "because")]


def test_what_ended_it_can_be_asked_for_again_and_again_and_keeps_nobody() -> None:
    with served() as (peer, own):
        peer.send(frame(3))
        peer.half_close()
        depths = []
        for _ in range(3):
            with pytest.raises(ProtocolError) as caught:
                own.recv()
            depths.append(len(caught.traceback))
            assert caught.value.__cause__ is None
        assert depths[0] == depths[2]


@pytest.mark.parametrize("module", ["wspy.connection", "wspy.websocket", "wspy.transport"])
def test_an_exception_at_any_step_of_the_end_leaves_no_socket_open_behind_close(module: str) -> None:
    ended: list[Recorder] = []

    def receive() -> None:
        with pytest.raises(SocketClosed):
            ended[-1].recv()

    with contextlib.ExitStack() as stack:
        for step in at_each_step(sys.modules[module], receive, behind_functions=False):
            assert step is None
            peer, own = stack.enter_context(served())
            peer.send(close_frame())
            peer.half_close()
            ended.append(own)
        for own in ended:
            own.close()
            assert own.sock.fileno() == -1
            assert len(own.ends) <= 1


def test_close_ends_the_listening_to_a_wrong_peer() -> None:
    with served(close_timeout=0.02) as (peer, own):
        own.sock.settimeout(0)
        peer.send(frame(3))
        until(lambda: _arrived(own), "the kernel has it")
        with pytest.raises(BlockingIOError):
            own.recv()
        assert own.closed
        assert own.sock.fileno() >= 0
        own.close()
        assert own.sock.fileno() == -1
        assert own.ends[0][0] == 1002


def test_m8_the_peers_close_is_told_whichever_thread_gives_up_waiting_for_the_end_of_tcp() -> None:
    with client_of(close_timeout=0.05) as (own, peer):
        receiving = Running(own.receive_forever)
        until(lambda: own._loops, "it receives")
        closing = Running(lambda: own.close(4000))
        peer.frame()
        peer.send(unmasked(CLOSE, b"\x0f\xa1why"))
        closing.result()
        receiving.result()
        assert own.ends == [(4001, "why")]


def test_a_close_that_is_sent_as_a_frame_is_waited_for_no_longer() -> None:
    with served(close_timeout=0.02) as (peer, own):
        told: list[str] = []
        own.send_frame(Frame(TEXT, "x"), lambda: told.append("sent"))
        assert told == ["sent"]
        own.send_frame(wspy.create_close_frame(3000))
        own.sock.settimeout(None)
        receiving = Running(own.receive_forever)
        receiving.result()
        assert own.ends[0][0] == 1006
        assert peer.message() == "x"
        peer.closes(3000)


def test_a_callback_closes_while_others_are_due() -> None:
    with both(close_timeout=None) as (client, server):
        receiving = Running(server.receive_forever)
        client.sock.queue_send(Frame(TEXT, "x"), client.close)
        client.sock.queue_send(Frame(TEXT, "y"), lambda: None)
        Running(client.sock.do_async_send).result()
        receiving.result()
        assert client.ends == server.ends == [(1000, "")]
        assert server.messages == ["x", "y"]


def test_the_socket_is_closed_beside_the_connection() -> None:
    with served() as (peer, own):
        receiving = Running(own.receive_forever)
        until(lambda: own.sock._held._users, "it receives")
        own.sock.close()
        receiving.result()
        assert own.ends[0][0] == 1006
        peer.eof()


def test_a_context_manager_closes_with_what_happened() -> None:
    for error, code in ((None, 1000), (KeyError(), 1011), (KeyboardInterrupt(), 1001)):
        with served() as (peer, own):

            def use(own: Recorder = own, error: BaseException | None = error) -> None:
                with own:
                    if error is not None:
                        raise error

            using = Running(use)
            peer.closes(code)
            peer.send(close_frame(code))
            peer.eof()
            peer.end()
            with pytest.raises(type(error)) if error is not None else contextlib.nullcontext():
                using.result()
            assert own.ends == [(code, "")]


# ---- making one ----


def test_connect_makes_a_connection_of_a_subclass() -> None:
    with listening(protocols=["chat"]) as listener:
        accepting = Running(lambda: listener.accept()[0])
        with Recorder.connect(
            "ws://{}:{}/p".format(*listener.getsockname()), protocols=["chat"], close_timeout=1
        ) as own:
            assert own.sock.protocol == "chat"
            assert own.close_timeout == 1
            assert own.told == [("onopen",)]
            server = Connection(accepting.result())
            receiving = Running(server.receive_forever)
        receiving.result()
        assert server.closed
        assert (server.close_code, server.close_reason) == (1000, "")


def test_connect_leaves_nothing_behind_if_it_fails() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            Connection.connect(unused.getsockname())
    with pytest.raises(ValueError, match="ws"):
        Connection.connect("http://here/")


def test_what_a_connection_can_not_be_made_of() -> None:
    wrong: Any = socket
    with pytest.raises(TypeError, match="websocket"):
        Connection(wrong)
    with websocket() as unopened, pytest.raises(SocketClosed, match="handshake"):
        Connection(unopened)
    with connected(strict=False) as (client, server):
        with pytest.raises(ValueError, match="strict"):
            Connection(server)
        for timeout in (-1, float("nan")):
            with pytest.raises(ValueError, match="close_timeout"):
                Connection(client, close_timeout=timeout)


def test_copies_are_refused_and_people_can_read_it() -> None:
    with served() as (_, own):
        for refused in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="copied or pickled"):
                refused(own)
        assert "127.0.0.1" in str(own)
        assert repr(own).startswith("<Recorder")
        own.sock.close()
        assert own.recv.__doc__
        with pytest.raises(SocketClosed):
            own.recv()
        assert "closed" in repr(own)


@pytest.mark.slow
def test_t8_a_thousand_connections_leave_nothing() -> None:
    def serve() -> None:
        for _ in range(1000):
            Connection(listener.accept()[0]).receive_forever()

    with listening() as listener:
        threads = threading.active_count()
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- no Path of each is needed
        serving = Running(serve)
        for i in range(1000):
            with Connection.connect(listener.getsockname()) as own:
                if i % 3 == 0:
                    own.send("x")
                if i % 3 == 1:
                    own.sock.close()
        serving.result()
        assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208 -- the same
        assert threading.active_count() == threads
    assert wspy.Connection is Connection


# ---- processes ----

CONVERSATION = """
import os, sys, threading, time
import wspy

def say(*words):
    print(*words, flush=True)

listener = wspy.websocket()
listener.bind(("127.0.0.1", 0))
listener.listen()
say("port", listener.getsockname()[1])
connection = wspy.Connection(listener.accept()[0])
listener.close()
"""


@contextlib.contextmanager
def conversation(source: str, patience: float, **variables: str) -> Iterator[tuple[Program, RawClient]]:
    """Run a program with a connection, and return it with its peer."""
    command = (*PYTHON, "-c", CONVERSATION + textwrap.dedent(source))
    with (
        Program(*command, patience=patience, **variables) as program,
        RawClient(("127.0.0.1", int(program.line().removeprefix("port ")))) as peer,
    ):
        peer.open()
        yield program, peer


def test_i17_a_child_goes_on_with_a_connection_that_its_parent_has_closed() -> None:
    with served({"onmessage": lambda own, message: own.send(message)}) as (peer, own):
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                own.receive_forever()
                status = 0
            os._exit(status)
        own.sock.close()
        peer.text("to the child")
        assert peer.message() == "to the child"
        peer.send(close_frame(1000))
        peer.closes(1000)
        peer.half_close()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_i17_the_end_of_a_child_is_not_that_of_the_connection() -> None:
    with served() as (peer, own):
        receiving = Running(own.recv)
        until(lambda: own.sock._held._users, "it waits")
        child = os.fork()
        if child == 0:
            own.sock.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        peer.text("still there")
        assert receiving.result().text == "still there"


@needs_compiler
def test_i18_the_clock_jumps(patience: float, tmp_path: Path) -> None:
    """No deadline depends on the time of day: calls end neither too early nor never."""
    source = """
        say("jumps", any(abs(time.time() - time.time()) > 1000 for _ in range(3)))
        connection.sock.settimeout(0.1)
        for _ in range(3):
            try:
                connection.recv()
            except TimeoutError:
                say("timed out")
        connection.sock.settimeout(600)
        connection.send(connection.recv())
        connection.close()
        say(connection.close_code)
    """
    with conversation(source, patience, LD_PRELOAD=clock_that_jumps(tmp_path)) as (program, peer):
        assert [program.line() for _ in range(4)] == ["jumps True", *["timed out"] * 3]
        peer.text("still here")
        assert peer.message() == "still here"
        peer.closes(1000)
        peer.send(close_frame(1000))
        peer.end()
        assert program.ended() == (0, "1000\n", "")


@pytest.mark.parametrize("end", ["", "sys.exit()", "raise ValueError('the reason')", "os._exit(0)"])
def test_i19_the_interpreter_ends_while_a_thread_receives(patience: float, end: str) -> None:
    source = """
        connection.onmessage = lambda message: say("received")
        threading.Thread(target=connection.receive_forever, daemon=True).start()
        sys.stdin.readline()
    """
    with conversation(textwrap.dedent(source) + end, patience) as (program, peer):
        peer.text("x")
        assert program.line() == "received"
        program.write("end")
        status, _, errors = program.ended()
        assert status == ("ValueError" in end), errors
        assert "Fatal" not in errors
        assert ("reason" in errors) == ("ValueError" in end)


# ---- how it ended, and limits of its own ----


@pytest.mark.parametrize("role", ["server", "client"])
def test_each_end_tells_of_the_same_closing_handshake(role: str) -> None:
    with both() as (client, server):
        first, second = (server, client) if role == "server" else (client, server)
        answering = Running(second.receive_forever)
        first.close(4000, "enough")
        answering.result()
        assert first.closure is not None
        assert second.closure is not None
        assert (first.closure.by, second.closure.by) == ("this side", "peer")
        assert (first.closure.sent, first.closure.received) == ((4000, "enough"), (4000, ""))
        assert (second.closure.sent, second.closure.received) == ((4000, ""), (4000, "enough"))
        assert first.closure.is_clean
        assert second.closure.is_clean
        assert first.sock.closure == first.closure


def test_onclose_finds_the_closure() -> None:
    found: list[Any] = []
    with served({"onclose": lambda own, *_: found.append(own.closure)}) as (peer, own):
        assert own.closure is None
        peer.send(close_frame(1001, "gone"))
        own.receive_forever()
        assert found == [own.closure]
        assert own.closure is not None
        assert (own.closure.code, own.closure.reason) == own.ends[0]


def test_a_lost_connection_has_an_errno() -> None:
    with served() as (peer, own):
        peer.abort()
        own.receive_forever()
        assert own.closure is not None
        assert (own.closure.by, own.closure.errno, own.closure.limit) == ("network", errno.ECONNRESET, None)


def test_what_a_send_has_left_is_counted() -> None:
    """Also what nobody tried to send any more when the connection was lost."""
    with served() as (peer, own):
        own.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            own.send(bytes(20_000_000))
        own.sock.queue_send(Frame(BINARY, b"x"))
        own.sock.queue_send(Frame(PING, b"x"))
        peer.abort()
        own.receive_forever()
        assert own.closure is not None
        assert own.closure.unsent_messages == 2
        assert 1_000_000 < own.closure.unsent_bytes < 20_000_020


def test_who_only_receives_notices_a_peer_that_takes_nothing(patience: float) -> None:
    """What waits are answers to Pings, or what a send has left; each call may be shorter than the deadline."""
    with served(write_timeout=0.3 * patience) as (_, own):
        own.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            own.send(bytes(20_000_000))
        with pytest.raises(SocketClosed, match="write_timeout"):
            for _ in range(1000):
                with contextlib.suppress(TimeoutError):
                    own.recv()
        assert own.closure is not None
        assert (own.closure.by, own.closure.limit, own.closure.unsent_messages) == ("this side", "write_timeout", 1)


def test_a_send_that_waits_for_a_peer_wakes_who_receives(patience: float) -> None:
    with served(write_timeout=0.2 * patience) as (_, own):
        receiving = Running(own.receive_forever)
        with pytest.raises(SocketClosed, match="write_timeout"):
            own.send(bytes(20_000_000))
        receiving.result()
        assert own.ends == [(1006, "the peer has taken nothing for write_timeout")]


def test_each_byte_that_is_taken_begins_the_write_timeout_anew(patience: float) -> None:
    size = 40_000_000
    with served(write_timeout=0.3 * patience) as (peer, own):
        sending = Running(lambda: own.send(bytes(size)))
        pause = threading.Event()
        left = size + 10
        began = time.monotonic()
        while time.monotonic() - began < 0.9 * patience:
            left -= len(peer.exactly(min(left, 1_000_000)))
            pause.wait(0.05 * patience)
        peer.exactly(left)
        sending.result()
        assert own.closure is None


def test_whoever_was_away_drops_nobody_who_has_read_meanwhile(patience: float) -> None:
    """The deadline has passed, and nobody looked: what the kernel takes now counts."""
    with served(write_timeout=0.2 * patience) as (peer, own):
        own.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            own.send(bytes(20_000_000))
        reading = Running(lambda: peer.exactly(20_000_010 + 3))
        threading.Event().wait(0.4 * patience)
        own.sock.settimeout(FOREVER)
        own.send(b"x")
        assert reading.result()[-3:] == b"\x82\x01x"


def test_a_peer_that_reads_nothing_is_dropped_with_a_reset(patience: float) -> None:
    with served(write_timeout=0.1 * patience) as (peer, own):
        with pytest.raises(SocketClosed):
            own.send(bytes(20_000_000))
        own.close()
        peer.reset()


@pytest.mark.parametrize("count", [50, 51])
def test_control_frames_in_a_second_are_limited(count: int) -> None:
    with served(max_controls=50) as (peer, own):
        peer.send(frame(PING) * (count - 1) + close_frame(4000))
        own.receive_forever()
        assert own.ends[0][0] == (4000 if count == 50 else 1008)
        assert [one for one in own.told if one[0] == "onpingreceived"] == [("onpingreceived", b"")] * (
            49 if count == 50 else 50
        )


def test_what_came_before_too_many_control_frames_is_delivered() -> None:
    with served(max_controls=3) as (peer, own):
        peer.send(frame(TEXT, b"before") + frame(PONG) * 4 + frame(TEXT, b"behind"))
        own.receive_forever()
        assert own.messages == ["before"]
        assert own.closure is not None
        assert (own.closure.limit, own.closure.sent) == ("max_controls", (1008, ""))
        peer.closes(1008)


def test_each_second_has_as_many_control_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("wspy.connection.monotonic", lambda: next(clock))
    with served(max_controls=2) as (peer, own):
        peer.send(frame(PONG) * 50 + frame(TEXT, b"all of them"))
        assert own.recv() == TextMessage("all of them")


def test_latency_is_that_of_the_last_ping_that_was_answered() -> None:
    with served() as (peer, own):
        assert own.latency is None
        own.send_ping(b"first")
        own.send_ping(b"second")
        peer.send(frame(PONG, b"first") + frame(PONG, b"never sent") + frame(TEXT, b"x"))
        own.recv()
        assert own.latency is None
        peer.send(frame(PONG, b"second") + frame(TEXT, b"x"))
        own.recv()
        assert own.latency is not None
        assert 0 < own.latency < FOREVER
        latency = own.latency
        peer.send(frame(PONG, b"second") + frame(TEXT, b"x"))
        own.recv()
        assert own.latency == latency


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("write_timeout", -1, ValueError),
        ("write_timeout", "1", TypeError),
        ("max_controls", 0, ValueError),
        ("max_controls", 1.5, TypeError),
    ],
)
def test_limits_that_are_none(name: str, value: Any, error: type[Exception]) -> None:
    with connected() as (client, _), pytest.raises(error, match=name):
        Connection(client, **{name: value})


def test_the_end_of_a_connection_over_an_abstract_unix_socket_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "wspy.connection")
    with websocket(sfamily=socket.AF_UNIX) as listener, websocket(sfamily=socket.AF_UNIX) as sock:
        name = f"\0wspy test {os.getpid()}"
        listener.settimeout(DEADLINE_S)
        listener.bind(name)
        listener.listen()
        accepting = Running(lambda: listener.accept()[0])
        sock.settimeout(DEADLINE_S)
        sock.connect(name)
        with accepting.result():
            own = Recorder(sock, close_timeout=0)
            own.close()
    assert len(own.ends) == 1
    assert len(caplog.messages) == 1
    assert "closed by" in caplog.messages[0]
