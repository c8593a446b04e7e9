"""Is every hostile stream of frames failed with its code, after all that came before, however it arrives? D, E, F."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from drivers import (
    BINARY,
    CLOSE,
    PONG,
    TEXT,
    Servers,
    bytewise,
    close_frame,
    deliveries,
    echo,
    frame,
    needs,
    until,
)
from measures import measures_memory, resident
from reference import CLOSE_CODES
from vectors import SERVER, VECTORS, Vector

if TYPE_CHECKING:
    from drivers import RawClient

# What a server can be told: it has no claims of extensions, and its limits are at least 1.
OPTIONS = {"max_size", "max_fragments"}
STREAMS = [
    vector
    for vector in VECTORS
    if vector.role is SERVER and vector.options.keys() <= OPTIONS and all(vector.options.values())
]


def expected_messages(vector: Vector) -> list[Any]:
    """Return what onmessage gets."""
    return [
        payload.decode() if opcode == TEXT else payload
        for opcode, payload, _, _ in vector.messages
        if opcode in {TEXT, BINARY}
    ]


def expected_end(vector: Vector) -> int | None:
    """Return the code for onclose; None if the stream leaves the connection open."""
    if vector.error:
        return CLOSE_CODES[vector.error]
    for opcode, payload, _, _ in vector.messages:
        if opcode == CLOSE:
            return int.from_bytes(payload[:2]) if payload else 1005
    return None


def check(server: Any, peer: RawClient, vector: Vector) -> None:
    """Check what the peer gets and what the handlers are told."""
    code = expected_end(vector)
    if code is None:
        peer.send(close_frame(4001))
    received = peer.frames()
    data = [(opcode, payload) for opcode, payload, _ in received if opcode in {TEXT, BINARY}]
    pongs = [payload for opcode, payload, _ in received if opcode == PONG]
    messages = expected_messages(vector)
    assert [payload.decode() if opcode == TEXT else payload for opcode, payload in data] == messages
    assert pongs == list(vector.pongs)
    # one Close, and it is the last frame
    assert [one.opcode for one in received].index(CLOSE) == len(received) - 1
    said = received[-1].payload
    assert said[:2] == (vector.owed_close if code is not None else (4001).to_bytes(2))
    assert len(said) <= 125
    peer.end()
    outcome, reason = server.outcome(peer)
    assert outcome == (code or 4001)
    assert "\0" not in reason
    assert server.story(peer).messages == messages
    names = [event.name for event in server.story(peer).events if event.name != "onframe"]
    assert names == ["onopen", *["onmessage"] * len(messages), "onclose"]


def check_frames(server: Any, peer: RawClient, vector: Vector) -> None:
    """Check what onframe got: each frame, before its message."""
    frames = [(one.opcode, one.payload, one.final, 0) for one in server.story(peer).named("onframe")]
    assert frames[: len(vector.frames)] == list(vector.frames)
    assert len(frames) == len(vector.frames) + (expected_end(vector) is None)


@pytest.mark.parametrize("vector", STREAMS, ids=lambda vector: vector.name)
def test_d_e_f_a_stream(serve: Servers, vector: Vector) -> None:
    server = serve(onmessage=echo, **vector.options)
    peer = server.open()
    peer.send(vector.data)
    check(server, peer, vector)


@pytest.mark.parametrize("is_tapped", [False, pytest.param(True, marks=needs("onframe"))], ids=["", "with onframe"])
@pytest.mark.slow
def test_d17_the_way_a_stream_is_cut_makes_no_difference(serve: Servers, is_tapped: bool) -> None:
    """R1: every stream byte by byte, and at a sample of cuts; short ones at every cut."""
    handlers: dict[str, Any] = {"onframe": lambda client, frame: None} if is_tapped else {}
    servers: dict[str, Any] = {}
    for vector in STREAMS:
        options = repr(vector.options)
        if options not in servers:
            servers[options] = serve(onmessage=echo, **handlers, **vector.options)
        server = servers[options]
        for _, pieces in deliveries(vector.data, most=3, short=14):
            peer = server.paced()
            peer.open()
            peer.send_pieces(pieces)
            check(server, peer, vector)
            if is_tapped:
                check_frames(server, peer, vector)


VIOLATIONS = [vector for vector in STREAMS if vector.error and len(vector.data) < 200]


@pytest.mark.parametrize("vector", VIOLATIONS, ids=lambda vector: vector.name)
def test_r2_r3_a_violation_is_judged_at_once_and_after_what_came_before(serve: Servers, vector: Vector) -> None:
    """With messages in front of it, in the same segment; nothing behind it counts."""
    server = serve(onmessage=echo, **vector.options)
    before = frame(BINARY, b"1") + frame(TEXT, b"2") + frame(9, b"ping")
    behind = frame(TEXT, b"never") + frame(9, b"never") + close_frame(1000)
    peer = server.open()
    peer.send(before + vector.data + behind)
    received = peer.frames()
    assert [one.payload for one in received if one.opcode in {TEXT, BINARY}][:2] == [b"1", b"2"]
    assert [one.payload for one in received if one.opcode == PONG] == [b"ping", *vector.pongs]
    assert received[-1].opcode == CLOSE
    assert received[-1].payload[:2] == CLOSE_CODES[str(vector.error)].to_bytes(2)
    assert server.outcome(peer)[0] == CLOSE_CODES[str(vector.error)]
    assert server.story(peer).messages == [b"1", "2", *expected_messages(vector)]


@pytest.mark.parametrize(("data", "size", "code"), [
    (b"\xf1\x80", 2, 1002),  # D1: the first byte is enough, but a header has two
    (b"\x83\x80", 2, 1002),  # D2
    (b"\x81\x05", 2, 1002),  # D3
    (b"\x82\xfe\x00\x05", 4, 1002),  # D5
    (b"\x82\xff\x80\0\0\0\0\0\0\0", 10, 1002),  # D6
    (b"\x82\xff\x40\0\0\0\0\0\0\0key!", 14, 1009),  # D7: what is too large here may be fine elsewhere
    (b"\x89\xfe", 2, 1002),  # D9
    (b"\x09\x80", 2, 1002),  # D10
    (b"\x00\x80", 2, 1002),  # D11
    (frame(TEXT, b"a\xff", final=False), 8, 1007),  # F4
    (b"\x81\xfe\xff\xff" + frame(TEXT, b"a\xff")[2:], 10, 1007),  # F5
], ids=["D1", "D2", "D3", "D5", "D6", "D7", "D9", "D10", "D11", "F4", "F5"])  # fmt: skip
def test_the_byte_that_decides(serve: Servers, data: bytes, size: int, code: int) -> None:
    """Not a byte earlier, and nothing more is waited for."""
    assert len(data) == size
    server = serve()
    peer = server.paced()
    peer.open()
    peer.send_pieces(bytewise(data[:-1]))
    assert peer.waiting() == b""
    peer.send(data[-1:])
    peer.closes(code)
    peer.eof()


def test_d7_nothing_is_allocated_for_what_is_only_announced(serve: Servers) -> None:
    """Also below the limit, and without one."""
    server = serve(max_size=None)
    before = resident()
    for length in (1 << 30, 1 << 40, (1 << 62) + 1):
        peer = server.open()
        peer.send(b"\x82\xff" + length.to_bytes(8) + bytes(4) + b"x" * 1000)
    until(lambda: server.bytes_read() > 3000, "read")
    assert resident() - before < 8 << 20


@measures_memory
def test_d19_memory_follows_what_has_arrived(serve: Servers) -> None:
    server = serve()
    before = resident()
    for _ in range(100):
        peer = server.open()
        peer.send(frame(BINARY, bytes(1 << 20))[:100])
    until(lambda: server.bytes_read() > 10_000, "read")
    assert resident() - before < 8 << 20


@pytest.mark.parametrize("seed", range(5))
def test_d18_a_random_mebibyte(serve: Servers, seed: int) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    data = random.Random(seed).randbytes(1 << 20)
    try:
        peer.send(data)
    except ConnectionError:
        pass  # it has given up before
    else:
        received = peer.frames()
        assert received[-1].opcode == CLOSE
        assert int.from_bytes(received[-1].payload) in {1002, 1007, 1009}
    assert server.outcome(peer)[0] in {1002, 1006, 1007, 1009}
    server.open().close()


@pytest.mark.slow
def test_d18_frames_with_flipped_bits(serve: Servers) -> None:
    """Each bit of the first bytes of a stream: a defined end, and never a message that was not sent."""
    server = serve(onmessage=echo)
    stream = (
        frame(TEXT, b"one")
        + frame(9, b"?")
        + frame(BINARY, bytes(130))
        + frame(TEXT, b"a", final=False)
        + frame(0, b"b")
    )
    for position in range(20):
        for bit in range(8):
            data = bytearray(stream)
            data[position] ^= 1 << bit
            peer = server.open()
            peer.send(bytes(data) + close_frame(4002) * 30)
            peer.half_close()
            peer.frames()
            peer.end()
            assert server.outcome(peer)[0] in {1002, 1005, 1006, 1007, 1009, 4002}
    server.open().close()


def test_f8_a_long_text_of_all_kinds_at_many_cuts(serve: Servers) -> None:
    """64 KiB; that every cut gives the same verdict is tested where the validator is."""
    chance = random.Random(8)
    text = "".join(chance.choice("aé€\U0001f600 ") for _ in range(30_000))
    data = frame(TEXT, text.encode())
    server = serve(onmessage=echo)
    for step in (4093, 7, 65_000):
        peer = server.paced() if step > 1000 else server.connect()
        peer.open()
        peer.send_pieces([data[start : start + step] for start in range(0, len(data), step)])
        assert peer.message() == text
        peer.end()
    bad = bytearray(text.encode())
    bad[-1] = 0xC3
    peer = server.open()
    peer.send(frame(TEXT, bytes(bad)))
    peer.closes(1007)


def test_e8_a_flood_behind_a_close_is_thrown_away(serve: Servers) -> None:
    server = serve(onmessage=echo, onpingreceived=lambda client, payload: None)
    peer = server.open()
    peer.send(close_frame(1000) + frame(TEXT, b"x") * 1000 + frame(9) * 1000 + close_frame(1001) * 10)
    peer.closes(1000)
    peer.eof()
    assert server.outcome(peer) == (1000, "")
    assert [event.name for event in server.story(peer).events] == ["onopen", "onclose"]
