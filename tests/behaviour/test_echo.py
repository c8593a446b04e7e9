"""Do messages arrive as they were sent: each once, whole, in order, of the same kind?"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from drivers import BINARY, CONTINUATION, PING, PONG, TEXT, Received, at, bytewise, deliveries, echo, frame

import wspy

if TYPE_CHECKING:
    from drivers import Servers

SIZES = (0, 1, 125, 126, 127, 8191, 8192, 8193, 65535, 65536, 65537)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_of_each_size_comes_back(serve: Servers, opcode: int, size: int) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    payload = bytes(random.Random(size).choices(b"abcdefgh", k=size))
    peer.send(frame(opcode, payload))
    assert peer.frame() == Received(opcode, payload)
    peer.close()
    assert server.outcome(peer) == (1000, "")


def test_a_message_of_max_size_comes_back_and_not_one_byte_more(serve: Servers) -> None:
    server = serve(onmessage=echo)
    payload = random.Random(1).randbytes(1 << 20)
    peer = server.open()
    peer.binary(payload)
    assert peer.message() == payload
    peer.send(frame(BINARY, bytes((1 << 20) + 1))[:14])
    peer.closes(1009)
    assert server.outcome(peer)[0] == 1009


@pytest.mark.parametrize("text", ["", "plain", "é€\U0001f600", "\0", "\ufeffbom", "\U0010ffff\ufffe"])
def test_text_is_delivered_unchanged(serve: Servers, text: str) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    peer.text(text)
    assert peer.message() == text
    assert server.story(peer).messages == [text]


def test_the_types_of_messages(serve: Servers) -> None:
    types: list[type] = []

    def onmessage(client: Any, message: Any) -> None:
        types.append(wspy.TextMessage if isinstance(message, wspy.TextMessage) else wspy.BinaryMessage)
        assert isinstance(message, types[-1])
        client.send("seen")

    server = serve(onmessage=onmessage)
    peer = server.open()
    for data in (frame(TEXT, b"x"), frame(BINARY, b"x"), frame(TEXT, b"x", final=False) + frame(CONTINUATION, b"y")):
        peer.send(data)
        assert peer.message() == "seen"
    assert types == [wspy.TextMessage, wspy.BinaryMessage, wspy.TextMessage]


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ("text", "text"),
        (b"bytes", b"bytes"),
        (bytearray(b"bytearray"), b"bytearray"),
        (memoryview(b"a view of this")[2:6], b"view"),
        (memoryview(b"every other")[::2], b"eeyohr"),
        (wspy.TextMessage("message"), "message"),
        (wspy.BinaryMessage(bytearray(b"message")), b"message"),
        (b"", b""),
        ("", ""),
    ],
    ids=repr,
)
def test_what_can_be_sent(serve: Servers, sent: Any, received: str | bytes) -> None:
    server = serve(onopen=lambda client: client.send(sent))
    assert server.open().message() == received


@pytest.mark.parametrize("wrong", [None, 7, 7.5, ["text"], {"text": "x"}, object()], ids=repr)
def test_what_can_not_be_sent(serve: Servers, wrong: Any) -> None:
    raised: list[Exception] = []

    def onopen(client: Any) -> None:
        try:
            client.send(wrong)
        except TypeError as error:
            raised.append(error)
        client.send("usable")

    server = serve(onopen=onopen)
    assert server.open().message() == "usable"
    assert len(raised) == 1


def test_f9_a_lone_surrogate_is_an_error_and_the_connection_stays_usable(serve: Servers) -> None:
    raised: list[Exception] = []

    def onmessage(client: Any, message: Any) -> None:
        for attempt in (lambda: client.send("a\ud800b"), lambda: client.send("\udfff" * 10000)):
            try:
                attempt()
            except ValueError as error:
                raised.append(error)
        client.send(message)

    server = serve(onmessage=onmessage)
    peer = server.open()
    peer.text("first")
    assert peer.message() == "first"
    peer.text("second")
    assert peer.message() == "second"
    assert len(raised) == 4


# ---- fragments ----


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_message_in_fragments_is_delivered_whole(serve: Servers, cut: int) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    text = "é€x".encode()
    peer.send(frame(TEXT, text[:cut], final=False))
    peer.send(frame(CONTINUATION, b"", final=False))
    peer.send(frame(CONTINUATION, text[cut:]))
    assert peer.message() == "é€x"


def test_control_frames_between_fragments(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    peer.send(frame(TEXT, b"one, ", final=False))
    peer.send(frame(PING, b"ping"))
    assert peer.frame() == Received(PONG, b"ping")
    peer.send(frame(CONTINUATION, b"two, ", final=False) + frame(PONG, b"pong") + frame(CONTINUATION, b"three"))
    assert peer.message() == "one, two, three"
    assert server.story(peer).messages == ["one, two, three"]


@pytest.mark.parametrize("size", [1, 7, 125, 126, 4096, 65535, 65536, 100_000])
def test_a_message_is_sent_in_fragments(serve: Servers, size: int) -> None:
    payload = random.Random(size).randbytes(min(size * 3 + 1, 100_000))
    server = serve(onopen=lambda client: client.send(payload, size))
    peer = server.open()
    received = [peer.frame()]
    while not received[-1].final:
        received.append(peer.frame())
    assert [one.opcode for one in received] == [BINARY, *[CONTINUATION] * (len(received) - 1)]
    assert [len(one.payload) for one in received[:-1]] == [size] * (len(received) - 1)
    assert b"".join(one.payload for one in received) == payload


def test_an_empty_message_makes_one_fragment(serve: Servers) -> None:
    server = serve(onopen=lambda client: client.send("", 10))
    assert server.open().frame() == Received(TEXT, b"")


@pytest.mark.parametrize("size", [0, -1])
def test_a_fragment_has_at_least_one_byte(serve: Servers, size: int) -> None:
    raised: list[Exception] = []

    def onopen(client: Any) -> None:
        try:
            client.send("text", size)
        except ValueError as error:
            raised.append(error)
        client.send("usable")

    server = serve(onopen=onopen)
    assert server.open().message() == "usable"
    assert len(raised) == 1


# ---- order ----


def test_the_order_of_a_thousand_messages_in_one_segment(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    peer.send(b"".join(frame(TEXT, str(number).encode()) for number in range(1000)))
    assert [peer.message() for _ in range(1000)] == [str(number) for number in range(1000)]


def test_the_order_of_messages_of_all_sizes_and_ways_to_send(serve: Servers) -> None:
    """Short frames are joined, long ones go by pointer, fragments are many: all of them are one stream."""
    chance = random.Random(5)
    payloads = [chance.randbytes(chance.choice([0, 3, 125, 126, 5000, 8192, 8193, 70000])) for _ in range(200)]
    sizes = [chance.choice([None, None, 1000, 9000]) for _ in payloads]

    def onmessage(client: Any, message: Any) -> None:
        for payload, size in zip(payloads, sizes, strict=True):
            client.send(payload, size)
        client.send(message)

    server = serve(onmessage=onmessage)
    peer = server.open()
    peer.text("end")
    assert [peer.message() for _ in payloads] == payloads
    assert peer.message() == "end"


def test_peers_get_their_own_messages(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peers = [server.open() for _ in range(20)]
    for turn in range(10):
        for number, peer in enumerate(peers):
            peer.text(f"{number} {turn}")
    for number, peer in enumerate(peers):
        assert [peer.message() for _ in range(10)] == [f"{number} {turn}" for turn in range(10)]


def test_d17_the_way_a_stream_is_cut_makes_no_difference(serve: Servers) -> None:
    server = serve(onmessage=echo)
    stream = b"".join(
        [
            frame(TEXT, "é€".encode()),
            frame(BINARY, bytes(range(200))),
            frame(TEXT, "€".encode()[:1], final=False) + frame(PING, b"?") + frame(CONTINUATION, "€".encode()[1:]),
            frame(BINARY),
        ]
    )
    expected = [
        Received(TEXT, "é€".encode()),
        Received(BINARY, bytes(range(200))),
        Received(TEXT, "€".encode()),
        Received(BINARY, b""),
    ]
    for name, pieces in deliveries(stream, short=1000):
        peer = server.paced()
        peer.open()
        peer.send_pieces(pieces)
        received = [peer.frame() for _ in range(5)]
        received.remove(Received(PONG, b"?"))  # it may pass replies, which wait for their handler
        assert received == expected, name
        peer.end()


def test_a_large_frame_in_many_segments(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peer = server.paced()
    peer.open()
    payload = random.Random(3).randbytes(300_000)
    data = frame(BINARY, payload)
    peer.send_pieces([*bytewise(data[:40]), *at(data[40:], *range(1, 299_000, 9973))])
    assert peer.message() == payload
