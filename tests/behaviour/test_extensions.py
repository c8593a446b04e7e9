"""Do servers speak the extensions that they agreed upon, and leave alone who has none?"""

from __future__ import annotations

import random
import threading
import time
import zlib
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from certificates import client_context
from compression import RSV1, TAIL, Choosy, Deflating, compressed, deflated
from drivers import BINARY, FIN, PATIENCE, TEXT, close_frame, echo, frame, needs, until

import wspy
from wspy import DeflateFrame, DeflateMessage, Extension, Frame, ProtocolError

if TYPE_CHECKING:
    from drivers import Servers

pytestmark = needs("extensions")

MARKS = pytest.mark.parametrize(
    "handlers",
    [
        pytest.param({}, id=""),
        pytest.param({"onsent": lambda client, message: None}, id="with onsent", marks=needs("onsent")),
    ],
)
TEXT_OF_1000 = "compress this " * 72
OFFERS = [
    "",
    "; client_max_window_bits",
    "; server_no_context_takeover",
    "; client_no_context_takeover; server_no_context_takeover",
    "; server_max_window_bits=9; client_max_window_bits=9",
    "; server_max_window_bits=8",
]


class Reverse(Extension):
    """Turns every message around, whatever it is, without a bit that says so."""

    names: ClassVar = ("x-reverse",)

    class Instance(Extension.Instance):
        def onsend(self, frame: Frame) -> Frame:
            return Frame(frame.opcode, frame.payload[::-1], unchecked=True)

        onrecv = onsend


class Stamp(Extension):
    """Marks single frames by RSV2, and puts a byte before each."""

    names: ClassVar = ("x-stamp",)
    rsv2: ClassVar = True
    per_message: ClassVar = False

    class Instance(Extension.Instance):
        def onsend(self, frame: Frame) -> Frame:
            return Frame(
                frame.opcode, b"!" + frame.payload, final=frame.final, rsv1=frame.rsv1, rsv2=True, unchecked=True
            )

        def onrecv(self, frame: Frame) -> Frame:
            if not frame.rsv2 or frame.payload[:1] != b"!":
                raise ProtocolError(1002, "a frame has no stamp")
            return Frame(frame.opcode, frame.payload[1:], final=frame.final, rsv1=frame.rsv1, unchecked=True)


class Own(Extension):
    """Claims an opcode for messages and one for control frames."""

    names: ClassVar = ("x-own",)
    opcodes: ClassVar = (3, 11)
    only_marked: ClassVar = True

    class Instance(Extension.Instance):
        seen: ClassVar[list[bytes]] = []

        def onsend(self, frame: Frame) -> Frame:
            return Frame(frame.opcode, frame.payload[:124] + b"?") if frame.is_control else frame

        def onrecv(self, frame: Frame) -> Frame:
            self.seen.append(frame.payload)
            return frame


class Failing(Extension):
    """Fails at what it is told to."""

    names: ClassVar = ("x-failing",)

    class Instance(Extension.Instance):
        def onsend(self, frame: Frame) -> Frame:
            if b"fail to send" in frame.payload:
                raise RuntimeError("on purpose")
            return frame

        def onrecv(self, frame: Frame) -> Frame:
            if frame.payload == b"fail to receive":
                raise RuntimeError("on purpose")
            if frame.payload[:4] == b"code":
                raise ProtocolError(int(frame.payload[4:]), "a rule of x-failing")
            return frame


def offering(server: Any, name: str, **options: Any) -> Any:
    """Return a client after an opening handshake in which it offered an extension, and the server agreed."""
    peer = server.connect(**options)
    response = peer.open(headers=[("Sec-WebSocket-Extensions", name)])
    assert response.headers["sec-websocket-extensions"] == name
    return peer


# ---- who agrees on what ----


def test_who_offers_nothing_gets_nothing(serve: Servers) -> None:
    server = serve(onmessage=echo, extensions=[DeflateMessage, Stamp])
    peer = server.connect()
    assert "sec-websocket-extensions" not in peer.open().headers
    peer.text(TEXT_OF_1000)
    assert peer.message() == TEXT_OF_1000
    assert server.client(peer).extensions == ()
    peer.send(compressed(TEXT, b"text"))
    peer.closes(1002)


def test_a_client_is_told_what_was_agreed_upon(serve: Servers) -> None:
    server = serve(extensions=[DeflateMessage(server_max_window_bits=12), Own])
    peer = server.connect()
    offer = "x-own, permessage-deflate; unknown, permessage-deflate; server_no_context_takeover"
    answer = "x-own, permessage-deflate; server_no_context_takeover; server_max_window_bits=12"
    assert peer.open(headers=[("Sec-WebSocket-Extensions", offer)]).headers["sec-websocket-extensions"] == answer
    own, deflate = server.client(peer).extensions
    assert isinstance(own, Own.Instance)
    assert deflate.parameters["server_max_window_bits"] == 12
    assert deflate.max_size == 1 << 20


def test_what_an_extension_raises_in_the_handshake_is_a_fault_of_this_side(serve: Servers) -> None:
    class Broken(Own):
        def accept(self, offered: Any) -> Any:
            raise RuntimeError("on purpose")

    server = serve(onerror=lambda client, error: None, extensions=[Broken])
    peer = server.connect()
    peer.send(b"GET / HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
              b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
              b"Sec-WebSocket-Extensions: x-own\r\n\r\n")  # fmt: skip
    assert peer.response().status == 500
    if server.has("http"):
        server.wait(lambda: server.errors, "onerror")


# ---- permessage-deflate ----


@MARKS
@pytest.mark.parametrize("offer", OFFERS)
def test_messages_come_back_compressed(serve: Servers, handlers: Any, offer: str) -> None:
    server = serve(onmessage=echo, extensions=[DeflateMessage], **handlers)
    peer = Deflating(server.connect(), offer)
    messages = [TEXT_OF_1000, b"\0" * 50_000, "ü" * 10_000, TEXT_OF_1000, random.Random(1).randbytes(70_000)]
    for message in messages:
        peer.send(message)
        assert peer.receive() == (message, True)
    for size in (1, 7, 100_000):
        peer.send(TEXT_OF_1000, size)
        assert peer.receive() == (TEXT_OF_1000, True)
    assert server.story(peer.peer).messages == [*messages, *[TEXT_OF_1000] * 3]
    if handlers:
        server.wait(lambda: len(server.story(peer.peer).named("onsent")) == len(messages) + 3, "onsent")
    peer.peer.close()


@pytest.mark.parametrize("offer", OFFERS)
def test_many_messages_in_one_segment(serve: Servers, offer: str) -> None:
    server = serve(onmessage=echo, extensions=[DeflateMessage])
    peer = Deflating(server.connect(), offer)
    messages = [f"{number} {TEXT_OF_1000[number:]}" for number in range(40)]
    peer.peer.send(b"".join(frame(TEXT, peer.deflate(each.encode()), rsv=0x40) for each in messages))
    assert [peer.receive()[0] for _ in messages] == messages


def test_g18_short_and_unwanted_ones_are_not_compressed(serve: Servers) -> None:
    server = serve(extensions=[DeflateMessage(threshold=100)])
    peer = Deflating(server.connect())
    client = server.client(peer.peer)
    expected: list[tuple[Any, bool]] = []
    for message, compress, is_compressed in [
        ("x" * 99, None, False), ("x" * 100, None, True), ("x" * 99, True, True), (TEXT_OF_1000, False, False),
        (b"y" * 5000, None, True), ("", None, False), ("", True, True), (b"", True, True), (TEXT_OF_1000, None, True),
    ]:  # fmt: skip
        client.send(message, compress=compress)
        expected.append((message, is_compressed))
    assert [peer.receive() for _ in expected] == expected


def test_g18_uncompressed_messages_of_the_peer_between_compressed_ones(serve: Servers) -> None:
    server = serve(onmessage=echo, extensions=[DeflateMessage])
    peer = Deflating(server.connect())
    for _ in range(3):
        peer.send(TEXT_OF_1000)
        peer.peer.text(TEXT_OF_1000[::-1])
        peer.peer.binary(b"short")
        assert [peer.receive()[0] for _ in range(3)] == [TEXT_OF_1000, TEXT_OF_1000[::-1], b"short"]


def test_fragments_of_a_compressed_message_have_the_bit_first(serve: Servers) -> None:
    server = serve(extensions=[DeflateMessage])
    peer = Deflating(server.connect())
    message = random.Random(2).randbytes(5000)
    server.client(peer.peer).send(message, fragment_size=1000)
    first, *others = [peer.peer.frame() for _ in range(6)]
    assert (first.opcode, first.final, len(first.payload)) == (BINARY, False, 1000)
    assert [other.opcode for other in others] == [0] * 5
    assert peer.inflate(b"".join(one.payload for one in (first, *others))) == message
    assert not peer.peer.rsv


def test_nothing_compresses_for_who_has_no_extension(serve: Servers) -> None:
    server = serve(extensions=[DeflateMessage])
    peer = server.open()
    client = server.client(peer)
    client.send(TEXT_OF_1000, compress=True)
    client.send(b"x" * 1000, compress=True)
    assert [peer.message(), peer.message()] == [TEXT_OF_1000, b"x" * 1000]


@needs("broadcast")
@MARKS
def test_a_broadcast_reaches_everybody_as_they_agreed(serve: Servers, handlers: Any) -> None:
    server = serve(extensions=[DeflateMessage], **handlers)
    deflating = [Deflating(server.connect(), offer) for offer in (*OFFERS, *OFFERS)]
    plain = [server.open() for _ in range(2)]
    for peer in (*(one.peer for one in deflating), *plain):
        server.client(peer)
    server.server.broadcast(TEXT_OF_1000)
    server.server.broadcast(TEXT_OF_1000, compress=False)
    server.server.broadcast(b"short")
    some = [server.client(deflating[0].peer), server.client(deflating[2].peer), server.client(plain[0])]
    server.server.broadcast("to some", some, compress=True)
    for peer in deflating:
        assert [peer.receive() for _ in range(3)] == [(TEXT_OF_1000, True), (TEXT_OF_1000, False), (b"short", False)]
    for peer in plain:
        assert [peer.message() for _ in range(3)] == [TEXT_OF_1000, TEXT_OF_1000, b"short"]
    for peer in (deflating[0], deflating[2]):
        assert peer.receive() == ("to some", True)
    assert plain[0].message() == "to some"
    for client in server.server.clients:
        client.send("last")
    for peer in deflating:
        assert peer.receive() == ("last", False)
    if handlers:
        server.wait(lambda: len(server.story(deflating[0].peer).named("onsent")) == 5, "onsent")


@needs("broadcast")
def test_a_broadcast_passes_over_who_is_closed(serve: Servers) -> None:
    server = serve(extensions=[DeflateMessage])
    peers = [Deflating(server.connect()) for _ in range(3)]
    clients = [server.client(peer.peer) for peer in peers]
    clients[0].close()
    clients[1].abort()
    server.server.broadcast(TEXT_OF_1000, clients)
    assert peers[2].receive() == (TEXT_OF_1000, True)
    peers[0].peer.closes(1000)


def test_threads_share_one_window(serve: Servers) -> None:
    """G21: what is compressed reaches the queue in that order, and a Close comes behind it."""
    server = serve(queues=True, extensions=[DeflateMessage])
    peer = Deflating(server.connect())
    client = server.client(peer.peer)

    def send(number: int) -> None:
        for index in range(50):
            client.send(f"{number} {index} {TEXT_OF_1000[index:]}")

    threads = [threading.Thread(target=send, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.send("last")
    client.close()
    found = [peer.receive()[0] for _ in range(200)]
    for number in range(4):
        expected = [f"{number} {index} {TEXT_OF_1000[index:]}" for index in range(50)]
        assert [one for one in found if str(one).startswith(f"{number} ")] == expected
    assert peer.receive() == ("last", False)
    peer.peer.closes(1000)


@needs("pause")
def test_a_pause_holds_what_is_compressed(serve: Servers) -> None:
    server = serve(onmessage=lambda client, message: client.pause_reading(), extensions=[DeflateMessage])
    peer = Deflating(server.connect())
    for number in range(5):
        peer.send(f"{number} {TEXT_OF_1000}")
    story = server.story(peer.peer)
    client = server.client(peer.peer)
    for number in range(5):
        server.wait(lambda number=number: len(story.messages) == number + 1, "a message")
        client.resume_reading()
    assert story.messages == [f"{number} {TEXT_OF_1000}" for number in range(5)]


# ---- extensions of users ----


def test_an_extension_without_bits_sees_every_message(serve: Servers) -> None:
    server = serve(onmessage=echo, extensions=[Reverse])
    peer = offering(server, "x-reverse")
    for message in ("abc", "Größe", ""):
        peer.send(frame(TEXT, message.encode()[::-1]))
        opcode, payload, _ = peer.frame()
        assert (opcode, payload[::-1].decode()) == (TEXT, message)
    peer.send(frame(BINARY, b"\1\2", final=False) + frame(0, b"\3"))
    assert peer.message() == b"\1\2\3"
    assert server.story(peer).messages == ["abc", "Größe", "", b"\3\2\1"]
    server.client(peer).send("all")
    assert peer.message() == "lla"
    if server.has("broadcast"):
        server.server.broadcast("all")
        assert peer.message() == "lla"
    peer.send(frame(TEXT, b"\xff"))
    peer.closes(1007)
    assert server.outcome(peer)[0] == 1007


@MARKS
def test_frames_and_messages_are_transformed_each_at_its_level(serve: Servers, handlers: Any) -> None:
    server = serve(onmessage=echo, extensions=[Reverse, Stamp], **handlers)
    peer = server.connect()
    response = peer.open(headers=[("Sec-WebSocket-Extensions", "x-reverse, x-stamp")])
    assert response.headers["sec-websocket-extensions"] == "x-reverse, x-stamp"
    peer.claimed = 0x20
    peer.send(frame(TEXT, b"!cba", rsv=0x20))
    assert peer.frame() == (TEXT, b"!cba", True)
    peer.send(frame(TEXT, b"!cb", final=False, rsv=0x20) + frame(9, b"ping") + frame(0, b"!a", rsv=0x20))
    assert peer.frame() == (10, b"ping", True)
    assert peer.frame() == (TEXT, b"!cba", True)
    server.client(peer).send("abcd", fragment_size=3)
    assert [peer.frame(), peer.frame()] == [(TEXT, b"!dcb", False), (0, b"!a", True)]
    assert peer.rsv == 0x20
    assert server.story(peer).messages == ["abc", "abc"]
    peer.send(frame(TEXT, b"no stamp"))
    peer.closes(1002)
    assert server.outcome(peer) == (1002, "a frame has no stamp")


def test_opcodes_can_be_claimed(serve: Servers) -> None:
    server = serve(onmessage=echo, extensions=[Own])
    peer = offering(server, "x-own")
    Own.Instance.seen.clear()
    for count in range(40):  # more than are read ahead
        peer.send(frame(11, b"control") + frame(3, b"own"))
        assert peer.frame() == (3, b"own", True)
        assert len(Own.Instance.seen) == 2 * count + 2
    assert server.story(peer).messages == [b"own"] * 40
    peer.text("text")
    assert peer.message() == "text"
    assert len(Own.Instance.seen) == 80
    with pytest.raises(ValueError, match="claimed"):
        server.client(peer).send(wspy.Message(4, b""))
    peer.send(frame(4, b"not claimed"))
    peer.closes(1002)


@pytest.mark.parametrize("offer", ["x-mark, permessage-deflate", "permessage-deflate, x-mark"])
def test_rfc6455_9_extensions_leave_the_bits_of_others_alone(serve: Servers, offer: str) -> None:
    class Mark(Extension):
        names: ClassVar = ("x-mark",)
        rsv3: ClassVar = True

        class Instance(Extension.Instance):
            def onsend(self, frame: Frame) -> Frame:
                return Frame(frame.opcode, frame.payload + b"?", rsv3=True)

            def onrecv(self, frame: Frame) -> Frame:
                return Frame(frame.opcode, frame.payload[:-1], rsv3=False, unchecked=True)

    server = serve(onmessage=echo, extensions=[DeflateMessage(server_no_context_takeover=True), Mark])
    peer = server.connect()
    peer.claimed = 0x50
    peer.open(headers=[("Sec-WebSocket-Extensions", offer)])
    text = TEXT_OF_1000.encode()
    is_marked_first = offer.startswith("x-mark")
    peer.send(frame(TEXT, deflated(text + b"?") if is_marked_first else deflated(text) + b"?", rsv=0x50))
    opcode, payload, _ = peer.frame()
    assert (opcode, peer.rsv) == (TEXT, 0x50)
    stream = zlib.decompressobj(-15)
    if is_marked_first:
        assert stream.decompress(payload + TAIL) == text + b"?"
    else:
        assert payload[-1:] == b"?"
        assert stream.decompress(payload[:-1] + TAIL) == text
    assert server.story(peer).messages == [TEXT_OF_1000]


def test_claimed_control_frames_are_sent_by_who_has_agreed_upon_them(serve: Servers) -> None:
    server = serve(onmessage=echo, extensions=[Own, Reverse, Stamp])
    peer = offering(server, "x-own, x-reverse, x-stamp")
    peer.claimed = 0x70
    client = server.client(peer)
    for payload in (b"", b"x" * 125):
        client.send_frame(Frame(11, payload))
        assert peer.frame() == (11, payload[:124] + b"?" if payload else b"?", True)
    assert not peer.rsv
    with pytest.raises(ValueError):
        client.send_frame(Frame(12))
    Own.Instance.seen.clear()
    peer.send(frame(11, b"control") + frame(TEXT, b"!txet", rsv=0x20))
    assert peer.frame() == (TEXT, b"!txet", True)
    assert Own.Instance.seen[0] == b"control"
    peer.close()
    with pytest.raises(wspy.SocketClosed):
        client.send_frame(Frame(11))


@needs("kind")
def test_what_no_client_can_send_as_a_frame(serve: Servers) -> None:
    server = serve(extensions=[Own])
    peers = [offering(server, "x-own"), server.open()]
    for peer in peers:
        client = server.client(peer)
        for wrong in (Frame(TEXT, "text"), Frame(9), Frame(8), Frame(12), Frame(3)):
            with pytest.raises(ValueError, match="opcode"):
                client.send_frame(wrong)
        with pytest.raises(TypeError):
            client.send_frame(b"bytes")
    with pytest.raises(ValueError, match="claimed"):
        client.send_frame(Frame(11))
    for options in ({"payload": b"x" * 126}, {"final": False}, {"rsv1": True}):
        with pytest.raises(ValueError, match="125"):
            server.client(peers[0]).send_frame(Frame(11, **options, unchecked=True))
    for peer in peers:
        server.client(peer).send("still there")
        assert peer.message() == "still there"


def test_who_reads_marked_messages_alone_never_sees_those_of_others(serve: Servers) -> None:
    server = serve(onmessage=echo, extensions=[Own, DeflateMessage, Reverse])
    peer = offering(server, "x-own, permessage-deflate, x-reverse")
    Own.Instance.seen.clear()
    peer.send(frame(TEXT, b"a") + frame(BINARY, deflated(b"b")[::-1], rsv=RSV1) + frame(3, b"c"))
    assert [peer.frame()[1] for _ in range(3)] == [b"a", b"b", b"c"]
    assert Own.Instance.seen == [b"c"]


def test_claimed_frames_keep_their_place_among_messages(serve: Servers) -> None:
    server = serve(queues=True, extensions=[Own])
    peer = offering(server, "x-own")
    client = server.client(peer)
    for number in range(5):
        client.send(f"{number}")
        client.send_frame(Frame(11, b"%d" % number))
        client.send(wspy.Message(3, b"%d" % number))
    client.close()
    for number in range(5):
        payload = b"%d" % number
        assert [peer.frame() for _ in range(3)] == [
            (TEXT, payload, True), (11, payload + b"?", True), (3, payload, True),
        ]  # fmt: skip
    peer.closes(1000)


@needs("broadcast")
def test_a_broadcast_with_a_claimed_opcode_is_for_those_who_know_it(serve: Servers) -> None:
    server = serve(extensions=[Own, DeflateMessage])
    knowing = offering(server, "x-own")
    others = [server.open(), Deflating(server.connect()).peer]
    for peer in (knowing, *others):
        server.client(peer)
    server.server.broadcast(wspy.Message(3, b"own"))
    server.server.broadcast("to all")
    assert knowing.frame() == (3, b"own", True)
    for peer in (knowing, *others):
        assert peer.message() == "to all"
    with pytest.raises(ValueError, match="claimed"):
        server.server.broadcast(wspy.Message(4, b""))


@needs("kind")
@pytest.mark.parametrize("what", ["text", "send", "broadcast", "send_frame"])
def test_an_instance_that_can_not_be_made_ends_its_connection_alone(serve: Servers, what: str) -> None:
    class Claiming(Choosy):
        opcodes: ClassVar = (11,)

    server = serve(onerror=lambda client, error: None, extensions=[Claiming])
    good, bad = offering(server, "x-choosy"), offering(server, "x-choosy; key=256")
    for peer in (good, bad):
        server.client(peer)
    if what == "text":
        bad.text("text")
    elif what == "broadcast":
        server.server.broadcast("all")
        assert good.message() == "all"
    else:
        with pytest.raises(ValueError, match="256"):
            getattr(server.client(bad), what)(Frame(11) if what == "send_frame" else "text")
    bad.closes(1011)
    server.client(good).send("still there")
    assert good.message() == "still there"


@pytest.mark.parametrize("what", ["ping", "close", "reserved", "fragment", "continuation", "bit"])
@pytest.mark.parametrize("per_message", [True, False])
def test_what_an_extension_makes_and_can_not_be_sent(serve: Servers, what: str, per_message: bool) -> None:
    made = {
        "ping": Frame(9), "close": Frame(8), "reserved": Frame(5), "fragment": Frame(TEXT, "a", final=False),
        "continuation": Frame(0), "bit": Frame(TEXT, rsv3=True),
    }  # fmt: skip

    class Wrong(Extension):
        names: ClassVar = ("x-wrong",)

        class Instance(Extension.Instance):
            def onsend(self, frame: Frame) -> Frame:
                return made.get(frame.payload.decode(), frame)

    Wrong.per_message = per_message
    server = serve(extensions=[Wrong])
    peer = offering(server, "x-wrong")
    client = server.client(peer)
    client.send("fine")
    with pytest.raises(ValueError):
        client.send(what)
    assert peer.message() == "fine"
    peer.closes(1011)


@needs("onframe")
def test_onframe_sees_frames_as_they_arrived(serve: Servers) -> None:
    frames: list[tuple[int, bytes, bool, bool]] = []

    def onframe(client: Any, frame: Any) -> None:
        frames.append((frame.opcode, frame.payload, frame.final, frame.rsv1))

    server = serve(onframe=onframe, onmessage=echo, extensions=[DeflateMessage])
    peer = Deflating(server.connect())
    payload = peer.deflate(TEXT_OF_1000.encode())
    peer.peer.send(frame(TEXT, payload[:9], final=False, rsv=0x40) + frame(0, payload[9:]) + frame(TEXT, b"plain"))
    assert [peer.receive()[0], peer.receive()[0]] == [TEXT_OF_1000, "plain"]
    assert frames == [(1, payload[:9], False, True), (0, payload[9:], True, False), (1, b"plain", True, False)]


@pytest.mark.parametrize("code", [1002, 1007, 1008, 1009, 1010, 3000, 4999])
def test_a_rule_of_an_extension_is_told_by_its_code(serve: Servers, code: int) -> None:
    server = serve(onmessage=echo, extensions=[Failing])
    peer = offering(server, "x-failing")
    behind = frame(TEXT, b"never") + close_frame(1000)
    peer.send(frame(TEXT, b"before") + frame(TEXT, b"code%d" % code) + behind)
    assert peer.message() == "before"
    peer.closes(code)
    peer.eof()
    assert server.outcome(peer) == (code, "a rule of x-failing")
    assert server.story(peer).messages == ["before"]
    if server.has("stats"):
        assert server.server.stats()["protocol_errors"] == 1


@pytest.mark.parametrize("payload", [b"fail to receive", b"code1006", b"code99999"])
def test_an_extension_that_raises_closes_with_1011(serve: Servers, payload: bytes) -> None:
    server = serve(onmessage=echo, onerror=lambda client, error: None, extensions=[Failing])
    peer = offering(server, "x-failing")
    peer.send(frame(TEXT, b"before") + frame(TEXT, payload) + frame(TEXT, b"never"))
    assert peer.message() == "before"
    peer.closes(1011)
    peer.send(close_frame(1011))
    assert server.outcome(peer) == (1011, "")
    assert len(server.story(peer).named("onerror")) == 1


def test_an_extension_that_raises_in_a_send_tells_who_sends(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        with pytest.raises(RuntimeError, match="on purpose"):
            client.send("fail to send")
        with pytest.raises(wspy.SocketClosed):
            client.send("more")

    server = serve(onmessage=onmessage, extensions=[Failing])
    peer = offering(server, "x-failing")
    began = time.monotonic()
    peer.text("go")
    peer.closes(1011)
    assert time.monotonic() - began < PATIENCE
    peer.send(close_frame(1011))
    assert server.outcome(peer) == (1011, "")


@needs("broadcast")
@pytest.mark.parametrize("is_shared", [False, True])
def test_an_extension_that_fails_in_a_broadcast_ends_its_connection_alone(serve: Servers, is_shared: bool) -> None:
    class Shared(Failing):
        def sharing(self, role: Any, parameters: Any) -> Any:
            return 1 if is_shared else None

    server = serve(extensions=[Shared])
    failing = [offering(server, "x-failing") for _ in range(2)]
    plain = [server.open() for _ in range(2)]
    for peer in (*failing, *plain):
        server.client(peer)
    server.server.broadcast("fail to send")
    for peer in failing:
        peer.closes(1011)
    server.server.broadcast("go on")
    for peer in plain:
        assert [peer.message(), peer.message()] == ["fail to send", "go on"]


@needs("abort")
def test_nothing_is_delivered_that_an_extension_has_aborted(serve: Servers) -> None:
    class Impatient(Extension):
        names: ClassVar = ("x-impatient",)
        rsv1: ClassVar = True

        class Instance(Extension.Instance):
            def onrecv(self, frame: Frame) -> Frame:
                if frame.payload == b"abort":
                    server.client(peer).abort()
                return frame

    server = serve(extensions=[Impatient])
    for rsv in (0, RSV1):
        peer = offering(server, "x-impatient")
        peer.send(frame(TEXT, b"before") + frame(TEXT, b"abort", rsv=rsv) + frame(TEXT, b"behind"))
        assert server.outcome(peer)[0] == 1006
        assert server.story(peer).messages == ["before"]


def test_an_extension_that_sends_while_it_sends_comes_behind_itself(serve: Servers) -> None:
    class Chatty(Extension):
        names: ClassVar = ("x-chatty",)

        class Instance(Extension.Instance):
            def onsend(self, frame: Frame) -> Frame:
                if frame.payload == b"one":
                    server.client(peer).send("two")
                    server.client(peer).close(4000)
                return frame

    server = serve(onmessage=lambda client, _: client.send("one"), extensions=[Chatty])
    peer = offering(server, "x-chatty")
    peer.text("go")
    assert [peer.message(), peer.message()] == ["one", "two"]
    peer.closes(4000)


def changing(bit: int, *, per_message: bool, is_choosy: bool) -> type[Extension]:
    """Return an extension that adds a byte, to everything or to about the half that it marks by its bit."""

    class Changing(Extension):
        class Instance(Extension.Instance):
            def __init__(self, role: Any, parameters: Any) -> None:
                super().__init__(role, parameters)
                self.chance = random.Random(5)

            def onsend(self, frame: Frame) -> Frame:
                if is_choosy and self.chance.random() < 0.5:
                    return frame
                frame.payload += b"!"
                if bit:
                    setattr(frame, f"rsv{bit}", True)
                return frame

            def onrecv(self, frame: Frame) -> Frame:
                if is_choosy and not getattr(frame, f"rsv{bit}"):
                    return frame
                assert frame.payload[-1:] == b"!"
                return Frame(frame.opcode, frame.payload[:-1], final=frame.final, unchecked=True)

    Changing.names = (f"x-{bit}-{per_message}-{is_choosy}",)
    Changing.rsv2, Changing.rsv3 = bit == 2, bit == 3
    Changing.per_message, Changing.only_marked = per_message, is_choosy
    return Changing


CHANGING = [
    changing(bit, per_message=per_message, is_choosy=is_choosy)
    for bit in (0, 2, 3) for per_message in (True, False) for is_choosy in (True, False) if bit or not is_choosy
]  # fmt: skip


@MARKS
@pytest.mark.parametrize("seed", range(10))
def test_any_stack_of_extensions_gives_back_what_it_was_given(serve: Servers, handlers: Any, seed: int) -> None:
    chance = random.Random(seed)
    known = [*chance.sample(CHANGING, 3), chance.choice([DeflateMessage, DeflateFrame])]
    if seed % 2 and serve.has("onframe"):
        handlers = {**handlers, "onframe": lambda client, frame: None}
    server = serve(
        onmessage=lambda client, message: client.send(message, 1 + len(message) // 3), extensions=known, **handlers
    )
    offered = chance.sample(known, len(known))
    url = "{}://{}:{}/".format("wss" if server.secure else "ws", *server.address)
    context = client_context() if server.secure else None
    with wspy.Connection.connect(url, extensions=offered, ssl=context) as connection:
        connection.sock.settimeout(PATIENCE)
        assert len(connection.sock.extension_instances) >= 2
        for message in (TEXT_OF_1000, "", b"", "Größe " * 50, b"\xff\0" * 300, "short"):
            for size in (None, 1 + len(message) // 4):
                connection.send(message, size, compress=chance.choice([None, True, False]))
                assert connection.recv().payload == message


# ---- deflate-frame ----


@pytest.mark.parametrize("name", ["deflate-frame", "x-webkit-deflate-frame"])
def test_deflate_frame(serve: Servers, name: str) -> None:
    server = serve(onmessage=echo, extensions=[DeflateMessage, DeflateFrame])
    peer = offering(server, name)
    peer.claimed = 0x40
    halves = compressed(TEXT, b"half one, " * 10, bits=15), compressed(0, b"half two " * 10)
    assert halves[0][0] & FIN
    peer.send(bytes([halves[0][0] & ~FIN]) + halves[0][1:] + halves[1])
    deflating = Deflating.__new__(Deflating)
    deflating.agreed, deflating._peers_bits, deflating._inflater = {}, 15, None
    opcode, payload, final = peer.frame()
    assert (opcode, final, peer.rsv) == (TEXT, True, 0x40)
    assert deflating.inflate(payload) == b"half one, " * 10 + b"half two " * 10
    server.client(peer).send("x" * 100 + "y" * 100, fragment_size=100)
    for character in (b"x", b"y"):
        _, payload, _ = peer.frame()
        assert peer.rsv == 0x40
        assert deflating.inflate(payload) == character * 100


# ---- idle connections ----


@needs("calls")
def test_who_is_idle_gives_its_window_back(serve: Servers) -> None:
    server = serve(onmessage=echo, extensions=[DeflateMessage(idle_seconds=0.02)])
    peer = Deflating(server.connect())
    client = server.client(peer.peer)
    for _ in range(3):
        peer.send(TEXT_OF_1000)
        assert peer.receive() == (TEXT_OF_1000, True)
        (instance,) = client.extensions
        until(lambda instance=instance: instance.deflater._compressor is None, "it is given back")
    peer.peer.close()
    until(lambda: server.server._unlooked, "nobody looks for nobody")


@needs("calls")
def test_each_extension_is_idle_in_its_own_time(serve: Servers) -> None:
    class Restless(Extension):
        names: ClassVar = ("x-restless",)
        idle_seconds = 0.02

        class Instance(Extension.Instance):
            count = 0

            def onidle(self) -> None:
                self.count += 1

    server = serve(onmessage=echo, extensions=[DeflateMessage(idle_seconds=None), Restless, DeflateFrame])
    peer = server.connect()
    peer.claimed = RSV1
    peer.open(headers=[("Sec-WebSocket-Extensions", "permessage-deflate, x-restless")])
    peer.text(TEXT_OF_1000)
    assert peer.frame().opcode == TEXT
    deflate, restless = server.client(peer).extensions
    until(lambda: restless.count > 2, "it is idle")
    assert deflate.deflater._compressor is not None
    peer.close()


@needs("calls")
def test_threads_that_begin_at_once_do_not_look_twice_as_often(serve: Servers) -> None:
    server = serve(extensions=[DeflateMessage(idle_seconds=3600)])
    clients = [server.client(Deflating(server.connect()).peer) for _ in range(8)]
    together = threading.Barrier(len(clients))

    def send(client: Any) -> None:
        together.wait(PATIENCE)
        client.send(TEXT_OF_1000)

    threads = [threading.Thread(target=send, args=[client]) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls = server.server._calls
    until(lambda: calls._heap and not calls.pending, "the server knows of it")
    assert len(calls._heap) == 1


@needs("calls")
def test_what_onidle_raises_is_told_and_hurts_nobody(serve: Servers) -> None:
    class Restless(Extension):
        names: ClassVar = ("x-restless",)
        idle_seconds = 0.01

        class Instance(Extension.Instance):
            def onidle(self) -> None:
                raise RuntimeError("on purpose")

    server = serve(onmessage=echo, onerror=lambda client, error: None, extensions=[Restless])
    peer = offering(server, "x-restless")
    peer.text("hello")
    assert peer.message() == "hello"
    server.wait(lambda: server.errors, "onerror")
    peer.text("still there")
    assert peer.message() == "still there"
    peer.close()
