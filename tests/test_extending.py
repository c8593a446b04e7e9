"""Do websocket and Connection, each as client and as server, send and receive what extensions make of it?"""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from compression import RSV1, Choosy, compressed, deflated
from drivers import BINARY, CLOSE, FIN, TEXT, RawClient, frame, head, until
from sockets import RawServer, Running, connected, listening
from steps import at_each_step

from wspy import (
    OPCODE_BINARY,
    OPCODE_TEXT,
    Connection,
    DeflateFrame,
    DeflateMessage,
    Extension,
    Frame,
    ProtocolError,
    ResponseError,
    Role,
    SocketClosed,
    websocket,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT_OF_1000 = "compress this " * 72
PARAMETERS: list[dict[str, Any]] = [
    {},
    {"server_no_context_takeover": True},
    {"client_no_context_takeover": True, "server_no_context_takeover": True},
    {"client_max_window_bits": 9, "server_max_window_bits": 9},
    {"server_max_window_bits": 8},
]


class Stamp(Extension):
    """Marks single frames by RSV2, and puts a byte before each."""

    names: ClassVar = ("x-stamp",)
    rsv2: ClassVar = True
    per_message: ClassVar = False

    class Instance(Extension.Instance):
        def onsend(self, frame: Frame) -> Frame:
            frame.payload, frame.rsv2 = b"!" + frame.payload, True
            return frame

        def onrecv(self, frame: Frame) -> Frame:
            if not frame.rsv2 or frame.payload[:1] != b"!":
                raise ProtocolError(3000, "a frame has no stamp")
            frame.payload, frame.rsv2 = frame.payload[1:], False
            return frame


class Failing(Extension):
    """Fails where it is told to."""

    names: ClassVar = ("x-failing",)

    class Instance(Extension.Instance):
        def onsend(self, frame: Frame) -> Frame:
            if frame.payload == b"fail to send":
                raise ZeroDivisionError
            return frame

        def onrecv(self, frame: Frame) -> Frame:
            if frame.payload == b"fail to receive":
                raise ZeroDivisionError
            return frame


@contextlib.contextmanager
def both(client: list[Any], server: list[Any], **options: Any) -> Iterator[tuple[websocket, websocket]]:
    """Return both ends of a connection, which speak these extensions."""
    with connected({"extensions": client}, extensions=server, **options) as (one, other):
        yield one, other


@contextlib.contextmanager
def speaking(*extensions: Any, **options: Any) -> Iterator[tuple[Any, websocket]]:
    """Return a client that sends any bytes, and the server's end that has agreed upon extensions with it."""
    with listening(extensions=extensions, **options) as listener:
        accepting = Running(lambda: listener.accept()[0])
        names = ", ".join(extension.names[0] for extension in extensions)
        with RawClient(listener.getsockname()) as peer:
            peer.claimed = 0x70
            peer.open(headers=[("Sec-WebSocket-Extensions", names)])
            with accepting.result() as server:
                server.settimeout(20)
                yield peer, server


# ---- who agrees on what ----


def test_both_ends_know_what_was_agreed_upon() -> None:
    with both([DeflateMessage(server_max_window_bits=10), Stamp], [Stamp, DeflateMessage]) as (client, server):
        for end in (client, server):
            deflate, stamp = end.extension_instances
            assert isinstance(deflate, DeflateMessage.Instance)
            assert deflate.parameters["server_max_window_bits"] == 10
            assert isinstance(stamp, Stamp.Instance)


@pytest.mark.parametrize(("client", "server"), [([], [DeflateMessage]), ([DeflateMessage], []), ([Stamp], [Failing])])
def test_nothing_was_agreed_upon(client: list[Any], server: list[Any]) -> None:
    with both(client, server) as ends:
        assert [end.extension_instances for end in ends] == [[], []]
        Connection(ends[0]).send(TEXT_OF_1000, compress=True)
        found = ends[1].recv()
        assert (found.text, found.rsv1) == (TEXT_OF_1000, False)


@pytest.mark.parametrize(
    "answer",
    ["x-other", "permessage-deflate, permessage-deflate", "permessage-deflate; server_max_window_bits=16",
     "permessage-deflate; client_max_window_bits=15; x", "permessage-deflate;", 'permessage-deflate; a="'],
)  # fmt: skip
def test_rfc6455_4_1_an_answer_that_was_not_asked_for(answer: str) -> None:
    with raw_server_before(extensions=[DeflateMessage]) as (client, server, connecting):
        server.read_request()
        assert (server.field("sec-websocket-extensions") or "").startswith("permessage-deflate")
        server.answer(f"Sec-WebSocket-Extensions: {answer}")
        with pytest.raises(ResponseError, match="Sec-WebSocket-Extensions"):
            connecting.result()
        assert not client.handshake_sent


@contextlib.contextmanager
def raw_server_before(**options: Any) -> Iterator[tuple[websocket, Any, Running]]:
    """Return a client in its opening handshake, and a server that has not answered."""
    with socket.create_server(("127.0.0.1", 0)) as listener, websocket(**options) as client:
        client.settimeout(20)
        connecting = Running(lambda: client.connect(listener.getsockname()))
        sock, _ = listener.accept()
        with sock:
            yield client, RawServer(sock), connecting


def test_rfc6455_7_4_1_a_client_goes_away_without_what_it_needs() -> None:
    needed = DeflateMessage()
    needed.required = True
    with raw_server_before(extensions=[Stamp, needed]) as (client, server, connecting):
        server.read_request()
        server.answer("Sec-WebSocket-Extensions: x-stamp", behind=b"\x81\x01x")
        assert server.frame() == (FIN | CLOSE, (1010).to_bytes(2) + b"permessage-deflate")
        server.end()
        with pytest.raises(ResponseError, match="permessage-deflate, which is required") as caught:
            connecting.result()
        assert caught.value.status == 101
        assert not client.handshake_sent


def test_what_is_required_and_agreed_upon_is_enough() -> None:
    needed = DeflateMessage()
    needed.required = True
    with both([needed], [DeflateMessage]) as (client, _):
        assert client.handshake_sent


def test_an_instance_that_can_not_be_made_is_500_for_one_client() -> None:
    with listening(extensions=[Choosy]) as listener:
        accepting = Running(lambda: listener.accept()[0])
        with RawClient(listener.getsockname()) as peer:
            peer.send(head(headers=[("Sec-WebSocket-Extensions", "x-choosy; key=256")]))
            assert peer.response().status == 500
        with RawClient(listener.getsockname()) as peer:
            peer.open(headers=[("Sec-WebSocket-Extensions", "x-choosy; key=255")])
            with accepting.result() as server:
                assert server.extension_instances[0].parameters == {"key": 255}


def test_an_instance_that_can_not_be_made_ends_a_client() -> None:
    with raw_server_before(extensions=[Choosy]) as (client, server, connecting):
        server.read_request()
        server.answer("Sec-WebSocket-Extensions: x-choosy; key=256")
        with pytest.raises(ValueError, match="256"):
            connecting.result()
        assert not client.handshake_sent
        server.eof()


# ---- frames ----


def test_frames_are_transformed_where_they_are_sent_and_taken() -> None:
    with both([Stamp], [Stamp]) as (client, server):
        for one, other in ((client, server), (server, client)):
            one.send(Frame(OPCODE_TEXT, "a", final=False), Frame(0, b"b"))
            one.queue_send(Frame(OPCODE_BINARY, b"c"))
            one.do_async_send()
            found = other.recvn(3)
            assert [(each.opcode, each.payload, each.final, each.rsv2) for each in found] == [
                (1, b"a", False, False), (0, b"b", True, False), (2, b"c", True, False),
            ]  # fmt: skip
        with speaking(Stamp) as (peer, own):
            own.send(Frame(OPCODE_TEXT, "x"))
            assert peer.frame() == (TEXT, b"!x", True)
            assert peer.rsv == 0x20


def test_a_frame_may_be_sent_again() -> None:
    with speaking(Stamp) as (peer, own):
        again = Frame(OPCODE_TEXT, "x")
        for _ in range(2):
            own.send(again)
            assert peer.frame() == (TEXT, b"!x", True)
        assert again == Frame(OPCODE_TEXT, "x")


@pytest.mark.parametrize("extension", [DeflateMessage, Stamp])
def test_a_frame_that_can_not_be_sent_leaves_the_connection_open(extension: Any) -> None:
    with both([extension], [extension]) as (client, server):
        for wrong in ([Frame(0)], [Frame(12)], [Frame(OPCODE_TEXT, rsv3=True)], [Frame(OPCODE_TEXT)] * 2 + [Frame(0)],
                      [Frame(OPCODE_TEXT, mask=False)]):  # fmt: skip
            with pytest.raises(ValueError):
                client.send(*wrong)
        client.send(Frame(OPCODE_TEXT, "a", final=False))
        with pytest.raises(ValueError):
            Connection(client).send("in between")
        client.send(Frame(0, b"b"))
        assert [each.payload for each in server.recvn(2)] == [b"a", b"b"]


def test_an_unchecked_frame_is_sent_as_it_is() -> None:
    with speaking(Stamp) as (peer, own):
        own.send(Frame(OPCODE_TEXT, b"x", rsv2=True, unchecked=True))
        assert peer.frame() == (TEXT, b"x", True)


def test_frames_for_a_callback() -> None:
    found: list[bytes] = []
    with speaking(Stamp) as (peer, own):
        own.recv_callback = lambda each: found.append(each.payload)
        peer.send(frame(TEXT, b"!one", rsv=0x20) + frame(TEXT, b"!two", rsv=0x20) + frame(TEXT, b"three"))
        with pytest.raises(ProtocolError, match="stamp"):
            while True:
                own.do_async_recv()
        assert found == [b"one", b"two"]
        peer.closes(3000)


def test_frames_before_one_that_breaks_a_rule_are_not_lost() -> None:
    with speaking(Stamp) as (peer, own):
        good = [frame(TEXT, b"!%d" % number, rsv=0x20) for number in range(3)]
        peer.send(b"".join(good) + frame(TEXT, b"bad") + frame(TEXT, b"!never", rsv=0x20))
        with pytest.raises(ProtocolError, match="stamp"):
            own.recvn(5)
        assert [own.recv().payload for _ in range(3)] == [b"0", b"1", b"2"]
        with pytest.raises(ProtocolError, match="stamp") as caught:
            own.recv()
        assert caught.value.code == 3000
        peer.closes(3000)


def test_control_frames_are_what_they_are() -> None:
    with speaking(Stamp) as (peer, own):
        peer.send(frame(9, b"ping"))
        assert own.recv().payload == b"ping"
        own.send(Frame(OPCODE_TEXT, "x"))
        peer.frame()


def test_hooks_for_messages_are_called_by_who_wants_to() -> None:
    with both([DeflateMessage], [DeflateMessage]) as (client, server):
        whole = Frame(OPCODE_TEXT, TEXT_OF_1000)
        packed = client.apply_send_hooks(whole, before_fragmentation=True)
        assert packed.rsv1
        assert len(packed.payload) < 100
        client.send(*packed.fragment(20))
        parts = [server.recv() for _ in range(-(-len(packed.payload) // 20))]
        assert [part.rsv1 for part in parts] == [True] + [False] * (len(parts) - 1)
        joined = Frame(OPCODE_TEXT, b"".join(part.payload for part in parts), rsv1=True, unchecked=True)
        assert server.apply_recv_hooks(joined, before_fragmentation=True).text == TEXT_OF_1000
        corrupt = Frame(OPCODE_TEXT, b"\x07", rsv1=True, unchecked=True)
        with pytest.raises(ProtocolError) as caught:
            server.apply_recv_hooks(corrupt, before_fragmentation=True)
        assert caught.value.code == 1007
        assert client.recv().payload[:2] == (1007).to_bytes(2)


def test_hooks_without_extensions_do_nothing() -> None:
    with connected() as (client, _):
        whole = Frame(OPCODE_TEXT, TEXT_OF_1000)
        for before in (True, False):
            assert client.apply_send_hooks(whole, before_fragmentation=before) is whole
            assert client.apply_recv_hooks(whole, before_fragmentation=before) is whole


def test_who_looks_at_everything_sees_what_was_sent() -> None:
    with speaking(Stamp, strict=False) as (peer, own):
        peer.send(frame(TEXT, b"no stamp"))
        assert own.recv().payload == b"no stamp"


# ---- messages ----


class Mark(Extension):
    """Marks every message by RSV3 and a byte, and knows of no other bit."""

    names: ClassVar = ("x-mark",)
    rsv3: ClassVar = True

    class Instance(Extension.Instance):
        def onsend(self, frame: Frame) -> Frame:
            return Frame(frame.opcode, frame.payload + b"?", rsv3=True)

        def onrecv(self, frame: Frame) -> Frame:
            if not frame.rsv3 or frame.payload[-1:] != b"?":
                raise ProtocolError(3000, "a message has no mark")
            return Frame(frame.opcode, frame.payload[:-1], unchecked=True)


@pytest.mark.parametrize("extensions", [[Mark, DeflateMessage], [DeflateMessage, Mark], [DeflateMessage, Stamp, Mark]])
def test_rfc6455_9_extensions_leave_the_bits_of_others_alone(extensions: list[Any]) -> None:
    with both(extensions, extensions[::-1]) as ends:
        one, other = map(Connection, ends)
        for sender, receiver in ((one, other), (other, one)):
            for message in (TEXT_OF_1000, "short", b"\xff" * 100):
                for size in (None, 10):
                    sender.send(message, size)
                    assert receiver.recv().payload == message


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_messages_both_ways(parameters: dict[str, Any]) -> None:
    noise = random.Random(3).randbytes(3000)
    with both([DeflateMessage(**parameters)], [DeflateMessage(threshold=0)], max_size=1 << 24) as ends:
        one, other = map(Connection, ends)
        for sender, receiver in ((one, other), (other, one)):
            for message in (TEXT_OF_1000, noise, "", b"", "Größe \U0001f600", TEXT_OF_1000 * 100, TEXT_OF_1000):
                for size in (None, 1000):
                    for compress in (None, True, False):
                        sending = Running(partial(sender.send, message, size, compress=compress))
                        assert receiver.recv().payload == message
                        sending.result()


def test_bits_on_the_wire() -> None:
    with speaking(DeflateMessage) as (peer, own):
        connection = Connection(own)
        connection.send(TEXT_OF_1000)
        assert peer.frame() == (TEXT, deflated_by_default(TEXT_OF_1000), True)
        assert peer.rsv == RSV1
        connection.send("short")
        assert peer.frame() == (TEXT, b"short", True)
        assert peer.rsv == 0
        connection.send(random.Random(1).randbytes(100), 30, compress=True)
        bits = []
        final = False
        while not final:
            _, _, final = peer.frame()
            bits.append(peer.rsv)
        assert bits == [RSV1] + [0] * (len(bits) - 1)


def deflated_by_default(text: str) -> bytes:
    """Return what an end with the usual parameters makes of its first message."""
    instance = DeflateMessage.Instance(Role.SERVER, DeflateMessage().agreed(Role.SERVER, [], []))
    return instance.deflater.deflate(text.encode())


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"\x07", rsv=RSV1), 1007),
        (compressed(TEXT, b"\xff"), 1007),
        (compressed(BINARY, bytes(2_000_000)), 1009),
        (frame(TEXT, deflated(b"x")[:3], final=False, rsv=RSV1) + frame(0, b"", rsv=RSV1), 1002),
    ],
    ids=["G12", "G17", "G15", "G11"],
)
def test_what_breaks_a_rule_is_told_behind_what_came_before(data: bytes, code: int) -> None:
    with speaking(DeflateMessage) as (peer, own):
        connection = Connection(own)
        peer.send(compressed(TEXT, b"before") + data + frame(TEXT, b"never") + frame(CLOSE, b"\x03\xe8"))
        message = connection.recv()
        assert message.payload == "before"
        connection.send(message, compress=False)
        assert peer.message() == "before"
        receiving = Running(connection.recv)
        peer.closes(code)
        peer.end()
        with pytest.raises(ProtocolError) as caught:
            receiving.result()
        assert (caught.value.code, connection.close_code) == (code, code)


def test_g15_single_frames_together_hold_the_limit() -> None:
    """Each is below it after it was inflated, and they are not kept until the last one."""
    with speaking(DeflateFrame, max_size=100_000) as (peer, own):
        connection = Connection(own)
        part = deflated(bytes(60_000))
        peer.send(frame(BINARY, part, final=False, rsv=RSV1) + frame(0, part, final=False, rsv=RSV1))
        receiving = Running(connection.recv)
        peer.closes(1009)
        peer.end()
        with pytest.raises(ProtocolError):
            receiving.result()


def test_an_extension_that_fails_to_receive() -> None:
    with speaking(Failing) as (peer, own):
        connection = Connection(own)
        peer.send(frame(TEXT, b"fail to receive") + frame(TEXT, b"never"))
        with pytest.raises(ZeroDivisionError):
            connection.recv()
        peer.closes(1011)
        peer.send(frame(CLOSE, (1011).to_bytes(2)))
        peer.half_close()
        with pytest.raises(SocketClosed) as caught:
            connection.recv()
        assert caught.value.rcvd == (1011, "")


def test_an_extension_that_fails_to_send() -> None:
    with speaking(Failing) as (peer, own):
        connection = Connection(own)
        with pytest.raises(ZeroDivisionError):
            connection.send("fail to send")
        with pytest.raises(SocketClosed):
            connection.send("more")
        peer.closes(1011)


def test_what_can_not_be_sent_leaves_the_connection_open() -> None:
    with speaking(DeflateMessage) as (peer, own):
        connection = Connection(own)
        for wrong in (5, None, object()):
            with pytest.raises(TypeError):
                connection.send(wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="fragment_size"):
            connection.send("x", 0)
        with pytest.raises(UnicodeEncodeError):
            connection.send("\ud800")
        connection.send(TEXT_OF_1000)
        assert peer.frame()[0] == TEXT


def test_threads_share_one_window() -> None:
    with both([DeflateMessage], [DeflateMessage]) as ends:
        one, other = map(Connection, ends)
        threads = [
            threading.Thread(target=lambda n=n: [one.send(f"{n} {i} {TEXT_OF_1000}") for i in range(50)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        found = [other.recv().text for _ in range(200)]
        for thread in threads:
            thread.join(20)
        for n in range(4):
            assert [text for text in found if text.startswith(f"{n} ")] == [
                f"{n} {i} {TEXT_OF_1000}" for i in range(50)
            ]


@pytest.mark.parametrize("names", [("websocket", "transport"), ("deflate",), ("protocol",), ("outbox",)], ids=" ".join)
def test_a_signal_handler_that_sends_at_any_step_of_a_send_corrupts_nothing(names: tuple[str, ...]) -> None:
    """It comes before or behind the message that it interrupts; each refers to those that came before."""
    refused: list[str] = []
    with both([DeflateMessage], [DeflateMessage]) as ends:
        one, other = map(Connection, ends)
        expected: list[str] = []
        text = ""

        def interrupt() -> None:
            try:
                one.send(f"inner {text}")
            except RuntimeError:
                refused.append(text)
            else:
                expected.append(f"inner {text}")

        modules = [sys.modules[f"wspy.{name}"] for name in names]
        steps = at_each_step(modules, lambda: one.send(text), interrupt, behind_functions=False)
        for number, _ in enumerate(steps):
            assert sorted(other.recv().text for _ in expected) == sorted(expected)
            text = f"{number} {TEXT_OF_1000}"
            expected[:] = [text]
    assert not refused or names == ("protocol",)


def test_a_signal_handler_that_can_not_send_leaves_no_hole_in_the_window() -> None:
    """While bytes are taken the protocol is in use: nothing is compressed then."""
    with both([DeflateMessage], [DeflateMessage]) as ends:
        one, other = map(Connection, ends)
        refused = 0

        def interrupt() -> None:
            nonlocal refused
            try:
                one.send(f"inner {TEXT_OF_1000}")
            except RuntimeError:
                refused += 1
            else:
                assert other.recv().text == f"inner {TEXT_OF_1000}"

        for number, _ in enumerate(
            at_each_step(sys.modules["wspy.protocol"], one.recv, interrupt, behind_functions=False)
        ):
            one.send(f"{number} {TEXT_OF_1000}")
            assert other.recv().text == f"{number} {TEXT_OF_1000}"
            other.send("go on")
        assert refused


# ---- idle connections ----


def window(connection: Connection) -> Any:
    """Return what a connection compresses with, None if it has given it back."""
    (instance,) = connection.sock.extension_instances
    return instance.deflater._compressor  # type: ignore[attr-defined]


def test_who_only_receives_gives_the_window_to_send_back() -> None:
    """The server looks while it waits, and while it has enough to read; the client says when it has given it back."""
    with speaking(DeflateMessage(idle_seconds=0.01)) as (peer, own):
        connection = Connection(own)
        for _ in range(3):
            connection.send(TEXT_OF_1000)
            assert peer.frame()[0] == TEXT
            assert window(connection) is not None
            receiving = Running(connection.recv)
            until(lambda: window(connection) is None, "it is given back")
            peer.text("wake up")
            receiving.result()
        connection.send(TEXT_OF_1000)
        end = time.monotonic() + 20
        while window(connection) is not None:
            assert time.monotonic() < end
            peer.text("again and again")
            connection.recv()


def test_who_receives_in_a_loop_of_their_own_gives_it_back_too() -> None:
    with speaking(DeflateMessage(idle_seconds=0.01)) as (peer, own):
        connection = Connection(own)
        connection.send(TEXT_OF_1000)
        own.setblocking(flag=False)
        end = time.monotonic() + 20
        while window(connection) is not None:
            assert time.monotonic() < end
            own.do_async_recv()
        assert peer.frame()[0] == TEXT


def test_timeouts_are_those_of_the_call() -> None:
    with speaking(DeflateMessage(idle_seconds=0.01)) as (_, own):
        connection = Connection(own)
        for seconds in (0.1, 0.001):
            own.settimeout(seconds)
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                connection.recv()
            assert time.monotonic() - began >= seconds
        own.settimeout(0)
        with pytest.raises(BlockingIOError):
            connection.recv()


def test_each_extension_is_idle_in_its_own_time() -> None:
    class Restless(Failing):
        idle_seconds = 0.01

        class Instance(Extension.Instance):
            count = 0

            def onidle(self) -> None:
                self.count += 1
                connection.send("idle", compress=True)
                raise ZeroDivisionError

    with speaking(DeflateMessage(idle_seconds=3600), Restless) as (peer, own):
        connection = Connection(own)
        connection.send(TEXT_OF_1000)
        assert peer.frame()[0] == TEXT
        deflate, restless = own.extension_instances
        receiving = Running(connection.recv)
        assert peer.frame()[0] == TEXT
        assert peer.frame()[0] == TEXT
        peer.text("enough")
        receiving.result()
        assert restless.count >= 2  # type: ignore[attr-defined]
        assert deflate.deflater._compressor is not None  # type: ignore[attr-defined]


def test_concat_fragments_gets_what_the_message_says() -> None:
    class Joining(Connection):
        @staticmethod
        def concat_fragments(fragments: list[Frame]) -> Any:
            return [each.payload for each in fragments]

    with speaking(DeflateMessage) as (peer, own):
        packed = deflated(b"compressed")
        peer.send(frame(TEXT, packed[:2], final=False, rsv=RSV1) + frame(0, packed[2:]) + frame(TEXT, b"plain"))
        connection = Joining(own)
        assert [connection.recv(), connection.recv()] == [[b"compressed"], [b"plain"]]


def test_a_client_that_reads_what_came_with_the_101() -> None:
    with raw_server_before(extensions=[DeflateMessage]) as (client, server, connecting):
        server.read_request()
        message = bytes([FIN | RSV1 | TEXT]) + bytes([len(deflated(b"at once"))]) + deflated(b"at once")
        server.answer("Sec-WebSocket-Extensions: permessage-deflate", behind=message)
        connecting.result()
        assert Connection(client).recv().payload == "at once"
