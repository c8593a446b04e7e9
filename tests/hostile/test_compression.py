"""Does every row of G hold on every front end: hostile offers, bombs, corrupt streams, and what is lost on the way?"""

from __future__ import annotations

import gc
import random
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from compression import CORRUPT, NAME, RSV1, SAMPLES, TEXT_OF_1000, Deflating, compressed, deflated
from drivers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FRONT_ENDS,
    PING,
    PONG,
    TEXT,
    RawClient,
    bytewise,
    close_frame,
    echo,
    frame,
    needs,
    only,
)
from measures import PATIENCE, measures_memory, resident
from programs import PYTHON, Program

from wspy import DeflateFrame, DeflateMessage, ProtocolError, SocketClosed

if TYPE_CHECKING:
    from drivers import Servers

pytestmark = needs("extensions")

MIB = 1 << 20
MALFORMED = [
    "unknown", "server_no_context_takeover; server_no_context_takeover", "server_no_context_takeover=1",
    "server_max_window_bits", "server_max_window_bits=7", "server_max_window_bits=16", "server_max_window_bits=015",
    "server_max_window_bits=abc", "client_max_window_bits=7", "client_max_window_bits=16",
]  # fmt: skip


def answer(server: Any, offer: str) -> str | None:
    """Return what a server answers to an offer."""
    found = server.connect().open(headers=[("Sec-WebSocket-Extensions", offer)])
    value: str | None = found.headers.get("sec-websocket-extensions")
    return value


def fails(server: Any, peer: Any, code: int, *, messages: list[Any] | None = None) -> None:
    """Expect that a server fails the connection with a code, and delivers nothing of what was wrong."""
    peer.closes(code)
    peer.eof()
    assert server.outcome(peer)[0] == code
    assert server.story(peer).messages == (messages or [])


# ---- negotiation ----


def test_g1_g2_g3_offers_that_are_malformed_are_declined(serve: Servers) -> None:
    server = serve(extensions=[DeflateMessage])
    for parameters in MALFORMED:
        assert answer(server, f"{NAME}; {parameters}") is None
        assert answer(server, f"{NAME}; {parameters}, {NAME}; server_no_context_takeover, {NAME}") == (
            f"{NAME}; server_no_context_takeover"
        )


def test_g4_a_window_of_256_bytes_is_kept_to(serve: Servers) -> None:
    server = serve(onmessage=echo, extensions=[DeflateMessage])
    peer = Deflating(server.connect(), "; server_max_window_bits=8")
    assert peer.agreed["server_max_window_bits"] == "8"
    chance = random.Random(4)
    for _ in range(50):
        message = bytes(chance.choices(b"abcd", k=chance.randrange(1000)))
        peer.send(message)
        assert peer.receive()[0] == message


def test_g5_g6_the_clients_window(serve: Servers) -> None:
    server = serve(extensions=[DeflateMessage(client_max_window_bits=11)])
    assert answer(server, NAME) == NAME
    assert answer(server, f"{NAME}; client_max_window_bits") == f"{NAME}; client_max_window_bits=11"
    assert answer(server, f'{NAME}; client_max_window_bits="10"') == f"{NAME}; client_max_window_bits=10"


# ---- streams ----


@pytest.mark.parametrize("name", SAMPLES)
def test_g8_the_samples_of_rfc_7692(serve: Servers, name: str) -> None:
    server = serve(extensions=[DeflateMessage])
    peer = Deflating(server.connect()).peer
    frames = SAMPLES[name]
    for plain in frames:
        peer.send(frame(plain[0] & 0x0F, plain[2:], final=bool(plain[0] & 0x80), rsv=plain[0] & 0x40))
    count = sum(bool(plain[0] & 0x80) for plain in frames)
    server.wait(lambda: server.story(peer).messages == ["Hello"] * count)


def test_g9_a_last_block_is_not_the_last_of_the_connection(serve: Servers) -> None:
    server = serve(onmessage=echo, extensions=[DeflateMessage])
    peer = Deflating(server.connect())
    last = deflated(b"last", flush=zlib.Z_FINISH)
    for payload in (last, last + b"\0"):
        peer.peer.send(frame(TEXT, payload, rsv=RSV1))
        assert peer.receive()[0] == "last"
        peer._deflater = None
        peer.send(TEXT_OF_1000)
        assert peer.receive()[0] == TEXT_OF_1000


@pytest.mark.parametrize("payload", [b"", b"\0", b"\2\0"])
def test_g10_empty_messages(serve: Servers, payload: bytes) -> None:
    server = serve(onmessage=echo, extensions=[DeflateMessage])
    peer = Deflating(server.connect())
    peer.peer.send(frame(TEXT, payload, rsv=RSV1) + frame(BINARY, payload, rsv=RSV1))
    assert [peer.receive()[0], peer.receive()[0]] == ["", b""]


@pytest.mark.parametrize("opcode", [CONTINUATION, CLOSE, PING, PONG])
def test_g11_the_bit_where_it_can_not_be(serve: Servers, opcode: int) -> None:
    server = serve(extensions=[DeflateMessage])
    peer = Deflating(server.connect()).peer
    start = frame(TEXT, b"a", final=False) if opcode == CONTINUATION else b""
    peer.send(start + frame(opcode, rsv=RSV1))
    fails(server, peer, 1002)


@pytest.mark.parametrize("name", CORRUPT)
def test_a_corrupt_message(serve: Servers, name: str) -> None:
    server = serve(extensions=[DeflateMessage])
    peer = Deflating(server.connect())
    peer.send("before")
    behind = frame(TEXT, b"never") + close_frame(1000)
    peer.peer.send(frame(BINARY, CORRUPT[name], rsv=RSV1) + behind)
    fails(server, peer.peer, 1007, messages=["before"])


@pytest.mark.slow
def test_g13_a_message_that_is_cut_anywhere(serve: Servers) -> None:
    server = serve(extensions=[DeflateMessage])
    whole = deflated(b"".join(b"%d, %d; " % (number, number * number) for number in range(30)))
    for size in range(1, len(whole)):
        peer = Deflating(server.connect()).peer
        peer.send(frame(TEXT, whole[:size], rsv=RSV1))
        fails(server, peer, 1007)


def test_g17_compressed_text_that_is_not_utf_8(serve: Servers) -> None:
    server = serve(extensions=[DeflateMessage])
    for text in (b"\xff", b"a\xed\xa0\x80", b"\xf0\x9f\x98"):
        peer = Deflating(server.connect()).peer
        peer.send(compressed(TEXT, text))
        fails(server, peer, 1007)
        peer = Deflating(server.connect()).peer
        peer.send(compressed(BINARY, text))
        server.wait(lambda peer=peer, text=text: server.story(peer).messages == [text])


def test_g18_plain_messages_leave_the_window_alone(serve: Servers) -> None:
    server = serve(onmessage=echo, extensions=[DeflateMessage])
    peer = Deflating(server.connect())
    for number in range(20):
        peer.send(f"{number} {TEXT_OF_1000}")
        peer.peer.text(f"plain {number}")
        assert [peer.receive()[0], peer.receive()[0]] == [f"{number} {TEXT_OF_1000}", f"plain {number}"]


def test_g19_a_reference_to_a_message_that_was_to_be_forgotten(serve: Servers) -> None:
    server = serve(extensions=[DeflateMessage(client_no_context_takeover=True)])
    peer = Deflating(server.connect())
    assert "client_no_context_takeover" in peer.agreed
    del peer.agreed["client_no_context_takeover"]
    peer.send("one " * 9)
    peer.send("one " * 9)
    fails(server, peer.peer, 1007, messages=["one " * 9])


def test_a_message_of_many_last_blocks_does_not_hold_the_others_up(serve: Servers) -> None:
    """Each of them begins another stream, which takes much longer than its two bytes: 1 s for 1 MiB."""
    server = serve(extensions=[DeflateMessage])
    peer = Deflating(server.connect()).peer
    peer.send(frame(BINARY, b"\3\0" * 1000, rsv=RSV1))
    server.wait(lambda: server.story(peer).messages == [b""])
    peer.send(frame(BINARY, b"\3\0" * 1002, rsv=RSV1))
    fails(server, peer, 1008, messages=[b""])


def test_what_is_compressed_may_arrive_in_any_pieces(serve: Servers) -> None:
    server = serve(onmessage=echo, extensions=[DeflateMessage])
    peer = Deflating(server.paced())
    data = peer.deflate(b"in any pieces")
    peer.peer.send_pieces(bytewise(frame(BINARY, data[:5], final=False, rsv=RSV1) + frame(CONTINUATION, data[5:])))
    assert peer.receive()[0] == b"in any pieces"


# ---- limits ----


@pytest.mark.parametrize("fragments", [1, 3], ids=["one frame", "fragments"])
@pytest.mark.parametrize("filler", ["zeros", "random"])
def test_g16_the_limit_is_for_what_is_inflated(serve: Servers, fragments: int, filler: str) -> None:
    """What can't be compressed is a little longer than the limit on its way."""
    server = serve(max_size=100_000, extensions=[DeflateMessage])
    chance = random.Random(16)
    for size, is_fine in [(99_999, True), (100_000, True), (100_001, False)]:
        message = bytes(size) if filler == "zeros" else chance.randbytes(size)
        peer = Deflating(server.connect())
        peer.send(message, len(deflated(message)) // fragments + 1)
        if is_fine:
            server.wait(lambda peer=peer, message=message: server.story(peer.peer).messages == [message])
        else:
            fails(server, peer.peer, 1009)


@cache
def zeros(size: int) -> bytes:
    """Return what so many MiB of zeros are compressed to."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = bytes(MIB)
    return b"".join([stream.compress(piece) for _ in range(size)]) + stream.flush(zlib.Z_SYNC_FLUSH)[:-4]


@measures_memory
@pytest.mark.parametrize("size", [16, 1024], ids=["16 MiB", "1 GiB"])
@pytest.mark.parametrize("fragments", [1, 4], ids=["one frame", "fragments"])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_g15_a_bomb_costs_no_more_than_the_limit(serve: Servers, size: int, fragments: int, opcode: int) -> None:
    server = serve(max_size=MIB, extensions=[DeflateMessage, DeflateFrame])
    bomb = zeros(size)
    peer = Deflating(server.connect())
    peer.send(bytes(MIB))
    server.wait(lambda: server.story(peer.peer).messages)
    step = len(bomb) // fragments + 1
    parts = [bomb[start : start + step] for start in range(0, len(bomb), step)]
    frames = [
        frame(CONTINUATION if number else opcode, part, final=number == len(parts) - 1, rsv=0 if number else RSV1)
        for number, part in enumerate(parts)
    ]
    before = resident()
    peer.peer.send_pieces(frames)
    peer.peer.closes(1009)
    assert server.outcome(peer.peer)[0] == 1009
    assert resident() - before < 2 * len(bomb) + 2 * MIB


def remains() -> set[int]:
    """Return what exists of large pieces in lists, and of exceptions that hold what they passed."""
    found = gc.get_objects()
    lists = [one for one in found if isinstance(one, list) and len(one) > 10]
    pieces = {id(part) for one in lists for part in one if isinstance(part, bytes) and len(part) >= 16_384}
    return pieces | {id(one) for one in found if isinstance(one, ProtocolError) and one.__traceback__}


def test_g15_a_bomb_leaves_nothing_for_the_garbage_collector(serve: Servers) -> None:
    """Else 50 of them in a second would fill the memory before it runs."""
    server = serve(max_size=MIB, extensions=[DeflateMessage])
    peer = Deflating(server.connect())
    bomb = frame(TEXT, zeros(16), rsv=RSV1)
    gc.collect()
    gc.disable()
    try:
        before = remains()
        peer.peer.send(bomb)
        peer.peer.closes(1009)
        server.outcome(peer.peer)
        assert remains() <= before
    finally:
        gc.enable()


@pytest.mark.parametrize("memory_level", [1, 5, 9])
def test_g15_what_can_not_be_compressed_may_be_as_long_as_the_limit(serve: Servers, memory_level: int) -> None:
    """It is longer on the wire: by a twentieth where zlib has little memory."""
    server = serve(max_size=MIB, extensions=[DeflateMessage], onmessage=echo)
    noise = random.Random(1).randbytes(MIB)
    stream = zlib.compressobj(9, zlib.DEFLATED, -15, memory_level)
    peer = Deflating(server.connect())
    peer.peer.send(frame(BINARY, (stream.compress(noise) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4], rsv=RSV1))
    assert peer.receive()[0] == noise


# ---- what is sent ----


def test_g20_who_never_compresses_has_no_window(serve: Servers) -> None:
    server = serve(onmessage=echo, extensions=[DeflateMessage])
    peers = [Deflating(server.connect()) for _ in range(100)]
    for peer in peers:
        peer.peer.text("short")
        assert peer.receive() == ("short", False)
        (instance,) = server.client(peer.peer).extensions
        assert instance.deflater._compressor is None
        assert instance.inflater._stream is None


@needs("queue")
@pytest.mark.parametrize("parameters", ["", "; server_no_context_takeover"])
def test_g21_what_is_not_sent_is_missing_in_no_window(serve: Servers, parameters: str) -> None:
    """Too much that is unsent ends a connection: what follows could not be understood. Others go on."""
    server = serve(queues=True, max_backlog=100_000, notsent_lowat=0, extensions=[DeflateMessage])
    peer, other = (Deflating(server.connect(receive_buffer=4096), parameters) for _ in range(2))
    client = server.client(peer.peer)
    message = random.Random(21).randbytes(50_000)
    for _ in range(3):
        client.send(message)
        assert peer.receive() == (message, True)
    with pytest.raises(SocketClosed):
        for _ in range(1000):
            client.send(message)
    assert server.outcome(peer.peer)[0] == 1008
    server.client(other.peer).send(message)
    server.client(other.peer).send(TEXT_OF_1000)
    assert [other.receive(), other.receive()] == [(message, True), (TEXT_OF_1000, True)]


def test_g22_a_secret_can_be_kept_out_of_compression(serve: Servers) -> None:
    server = serve(extensions=[DeflateMessage])
    peer = Deflating(server.connect())
    client = server.client(peer.peer)
    client.send("what others say " * 50)
    client.send("secret " * 50, compress=False)
    client.send("what others say " * 50)
    found = [peer.receive() for _ in range(3)]
    assert [was_compressed for _, was_compressed in found] == [True, False, True]


# ---- without memory ----


@measures_memory
@needs("kind")
@only("epoll", because="of several threads any may take the last of the memory")
def test_h14_there_is_no_memory_for_a_window(front_end: str) -> None:
    """What is sent is not compressed, what can't be read is 1011 for one connection; all the others go on."""
    program = Path(__file__).parent.parent / "starved.py"
    # a thread would have an arena of its own, whose address space is reserved already
    arenas = {"MALLOC_ARENA_MAX": "1"}
    kind = FRONT_ENDS[front_end].kind.__name__
    with Program(*PYTHON, program, "serving", kind, patience=PATIENCE, **arenas) as server:
        host, port = server.line().split()
        one, other = (Deflating(RawClient((host, int(port)))) for _ in range(2))
        for peer in (one, other):
            peer.send("send")
            message, was_compressed = peer.receive()
            assert (len(message) > 5000, was_compressed) == (True, False)
            peer.send(message)
            assert peer.receive() == (message, True)
        hungry = Deflating(RawClient((host, int(port))))
        hungry.peer.send(frame(TEXT, b"starve") + frame(BINARY, hungry.deflate(bytes(message)), rsv=RSV1))
        assert server.line() == "MemoryError"
        hungry.peer.closes(1011)
        other.send(message)
        assert other.receive() == (message, True)
        for peer in (one, other, hungry):
            peer.peer.end()
        status, _, errors = server.interrupt()
        assert (status, errors) == (0, "")


# ---- deflate-frame ----


def test_g23_deflate_frame(serve: Servers) -> None:
    server = serve(onmessage=echo, max_size=1000, extensions=[DeflateMessage, DeflateFrame])
    for parameters in (
        "unknown",
        "max_window_bits",
        "max_window_bits=7",
        "max_window_bits=16",
        "no_context_takeover=1",
    ):
        assert answer(server, f"deflate-frame; {parameters}") is None
    assert answer(server, f"deflate-frame, {NAME}") == "deflate-frame"
    assert answer(server, f"{NAME}, deflate-frame") == NAME
    for data, code in [
        (frame(PING, rsv=RSV1), 1002),
        (frame(BINARY, b"\x07", rsv=RSV1), 1007),
        (compressed(BINARY, bytes(1001)), 1009),
        (bytes([compressed(BINARY, bytes(600))[0] & 0x7F]) + compressed(BINARY, bytes(600))[1:]
         + compressed(CONTINUATION, bytes(600)), 1009),
        (compressed(TEXT, b"\xff"), 1007),
    ]:  # fmt: skip
        peer = server.connect()
        peer.open(headers=[("Sec-WebSocket-Extensions", "deflate-frame")])
        peer.send(data)
        fails(server, peer, code)
