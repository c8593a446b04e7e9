"""Is compression what RFC 7692 says, does it cost no more than it must, and does nothing corrupt get through?"""

from __future__ import annotations

import os
import random
import threading
import tracemalloc
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measures import PATIENCE, measures_memory
from programs import PYTHON, Program

from wspy import deflate
from wspy.codes import Role
from wspy.deflate import DeflateFrame, DeflateMessage, Deflater, Inflater
from wspy.errors import ProtocolError
from wspy.extensions import Extension, agree, confirm, offer
from wspy.frames import Frame, received_frame

CLIENT, SERVER = Role.CLIENT, Role.SERVER
NAME = "permessage-deflate"


def pair(client: Extension, server: Extension) -> tuple[Any, Any]:
    """Return the instances of a client and a server that have agreed."""
    agreement = agree([server], offer([client]), SERVER)
    assert agreement
    (one,) = confirm([client], agreement.answer, CLIENT).chain().instances
    (other,) = agreement.chain().instances
    return one, other


def plain(**options: Any) -> tuple[Any, Any]:
    return pair(DeflateMessage(**options), DeflateMessage())


def message(payload: bytes, *, compress: bool | None = None, opcode: int = 2) -> Frame:
    frame = received_frame(opcode, payload)
    frame.compress = compress
    return frame


def compressed(payload: bytes) -> Frame:
    return received_frame(2, payload, rsv=0x40)


def raw(data: bytes, bits: int = 15, flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
    stream = zlib.compressobj(6, zlib.DEFLATED, -bits)
    return (stream.compress(data) + stream.flush(flush)).removesuffix(b"\0\0\xff\xff")


def texts(seed: int, count: int, longest: int = 5000) -> list[bytes]:
    rng = random.Random(seed)
    return [bytes(rng.choices(b"abcdefgh \n", k=rng.randrange(longest))) for _ in range(count)]


# ---- negotiation of permessage-deflate, RFC 7692 §7.1 ----


@pytest.mark.parametrize(
    ("offered", "answer"),
    [
        ("", ""),
        ("; server_no_context_takeover", "; server_no_context_takeover"),
        ("; client_no_context_takeover", "; client_no_context_takeover"),
        ("; server_max_window_bits=10", "; server_max_window_bits=10"),
        ("; server_max_window_bits=15", "; server_max_window_bits=15"),
        ("; client_max_window_bits", ""),
        ("; client_max_window_bits=15", ""),
        ("; client_max_window_bits=9", "; client_max_window_bits=9"),
        ('; client_max_window_bits="10"', "; client_max_window_bits=10"),  # G6
        ("; server_max_window_bits=8", "; server_max_window_bits=8"),  # G4
    ],
)
def test_an_offer_is_answered_with_what_it_asks_for(offered: str, answer: str) -> None:
    assert agree([DeflateMessage()], NAME + offered, SERVER).answer == NAME + answer


@pytest.mark.parametrize(
    "offered",
    [
        "unknown", "server_no_context_takeover; server_no_context_takeover", "server_no_context_takeover=1",
        "client_no_context_takeover=true", "server_max_window_bits", "server_max_window_bits=7",
        "server_max_window_bits=16", "server_max_window_bits=015", "server_max_window_bits=abc",
        "client_max_window_bits=7", "client_max_window_bits=16", "client_max_window_bits=08",
        "client_max_window_bits; client_max_window_bits=10",
    ],
)  # fmt: skip
def test_g1_what_is_not_valid_is_declined_and_the_next_offer_tried(offered: str) -> None:
    assert agree([DeflateMessage()], f"{NAME}; {offered}", SERVER).answer == ""
    assert agree([DeflateMessage()], f"{NAME}; {offered}, {NAME}", SERVER).answer == NAME


def test_g5_a_clients_window_is_limited_only_if_it_can_be() -> None:
    server = DeflateMessage(client_max_window_bits=10)
    assert agree([server], NAME, SERVER).answer == NAME
    assert agree([server], f"{NAME}; client_max_window_bits", SERVER).answer == f"{NAME}; client_max_window_bits=10"
    assert agree([server], f"{NAME}; client_max_window_bits=9", SERVER).answer == f"{NAME}; client_max_window_bits=9"


def test_a_server_may_ask_for_less_by_itself() -> None:
    server = DeflateMessage(server_no_context_takeover=True, client_no_context_takeover=True, server_max_window_bits=9)
    assert agree([server], NAME, SERVER).answer == (
        f"{NAME}; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=9"
    )


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({}, "unknown"),
        ({}, "server_no_context_takeover; server_no_context_takeover"),
        ({}, "server_no_context_takeover=1"),
        ({}, "client_max_window_bits"),
        ({}, "client_max_window_bits=7"),
        ({}, "client_max_window_bits=16"),
        ({}, "server_max_window_bits=08"),
        ({"server_no_context_takeover": True}, ""),
        ({"server_max_window_bits": 10}, ""),
        ({"server_max_window_bits": 10}, "server_max_window_bits=11"),
        ({"client_max_window_bits": 10}, "client_max_window_bits=11"),
    ],
)
def test_g7_an_answer_that_breaks_the_rules_fails_the_connection(options: dict[str, Any], answer: str) -> None:
    with pytest.raises(ValueError):
        confirm([DeflateMessage(**options)], f"{NAME}; {answer}" if answer else NAME, CLIENT)


@pytest.mark.parametrize(
    "options",
    [
        {"client_max_window_bits": 7}, {"client_max_window_bits": 16}, {"server_max_window_bits": 7},
        {"server_max_window_bits": 16}, {"level": 10}, {"level": -2}, {"memory_level": 0}, {"memory_level": 10},
        {"threshold": -1}, {"idle_seconds": 0}, {"idle_seconds": float("nan")},
    ],
)  # fmt: skip
def test_arguments_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        DeflateMessage(**options)


@pytest.mark.parametrize("name", ["level", "memory_level", "threshold", "idle_seconds"])
def test_arguments_of_another_type(name: str) -> None:
    for value in ("6", 1.5) if name != "idle_seconds" else ("6",):
        for kind in (DeflateMessage, DeflateFrame):
            with pytest.raises(TypeError, match=name):
                kind(**{name: value})


# ---- messages ----


@pytest.mark.parametrize(
    ("client_bits", "server_bits", "client_alone", "server_alone"),
    list(product([8, 9, 12, 15], [8, 9, 12, 15], [False, True], [False, True])),
)
def test_messages_come_back_with_all_parameters(
    client_bits: int, server_bits: int, client_alone: bool, server_alone: bool
) -> None:
    client, server = plain(
        client_max_window_bits=client_bits,
        server_max_window_bits=server_bits,
        client_no_context_takeover=client_alone,
        server_no_context_takeover=server_alone,
    )
    for payload in texts(client_bits * 16 + server_bits, 30):
        for sender, receiver in ((client, server), (server, client)):
            sent = sender.onsend(message(payload, compress=True))
            assert sent.rsv1
            assert receiver.onrecv(sent) == message(payload)


def test_g4_a_window_of_256_bytes_is_enough_for_what_is_sent_for_it() -> None:
    _, server = plain(server_max_window_bits=8)
    stream = zlib.decompressobj(-9)
    for payload in texts(4, 50):
        data = server.onsend(message(payload, compress=True)).payload
        assert stream.decompress(data + b"\0\0\xff\xff") == payload


def test_g8_the_examples_of_the_rfc() -> None:
    client, server = plain()
    hello = bytes.fromhex("f248cdc9c90700")
    assert client.onsend(message(b"Hello", compress=True)).payload == hello  # §7.2.3.1
    assert server.onrecv(compressed(hello)).payload == b"Hello"
    assert client.onsend(message(b"Hello", compress=True)).payload == bytes.fromhex("f200110000")  # §7.2.3.2
    assert server.onrecv(compressed(bytes.fromhex("f200110000"))).payload == b"Hello"
    assert server.onrecv(compressed(bytes.fromhex("000500faff48656c6c6f00"))).payload == b"Hello"  # §7.2.3.3
    assert server.onrecv(compressed(bytes.fromhex("f348cdc9c9070000"))).payload == b"Hello"  # §7.2.3.4
    assert server.onrecv(compressed(bytes.fromhex("f248050000 00ffff cac9c90700"))).payload == b"Hello"  # §7.2.3.5
    assert client.onsend(message(b"", compress=True)).payload == b"\0"  # §7.2.3.6


@pytest.mark.parametrize("payload", [b"\0", b""])
def test_g10_an_empty_message(payload: bytes) -> None:
    for options in ({}, {"client_no_context_takeover": True}):
        _, server = plain(**options)
        for _ in range(3):
            assert server.onrecv(compressed(payload)).payload == b""


def test_g9_messages_go_on_after_a_last_block() -> None:
    client, server = plain()
    assert server.onrecv(compressed(raw(b"final", flush=zlib.Z_FINISH))).payload == b"final"
    for payload in texts(9, 20):
        assert server.onrecv(client.onsend(message(payload, compress=True))).payload == payload
        assert server.onrecv(compressed(raw(b"again", flush=zlib.Z_FINISH) + b"\0")).payload == b"again"
        client.deflater.release()


@pytest.mark.parametrize("options", [{}, {"client_no_context_takeover": True}])
def test_g14_what_is_left_over_after_a_last_block_is_decoded(options: dict[str, bool]) -> None:
    _, server = plain(**options)
    twice = raw(b"one", flush=zlib.Z_FINISH) + raw(b"two")
    assert server.onrecv(compressed(twice)).payload == b"onetwo"


@pytest.mark.parametrize("options", [{}, {"client_no_context_takeover": True}])
def test_g12_what_is_corrupt_is_1007(options: dict[str, bool]) -> None:
    for data in (b"\xff" * 10, b"\x07", raw(b"hello" * 100)[:-3] + b"\xff\xff\xff", b"\xab" * 300):
        _, server = plain(**options)
        with pytest.raises(ProtocolError) as caught:
            server.onrecv(compressed(data))
        assert caught.value.code == 1007


@pytest.mark.parametrize("options", [{}, {"client_no_context_takeover": True}])
def test_g13_what_is_cut_off_is_1007(options: dict[str, bool]) -> None:
    for payload in [bytes(range(256)) * 3, *texts(13, 10, 400)]:
        whole = raw(payload)
        for end in range(1, len(whole)):
            _, server = plain(**options)
            with pytest.raises(ProtocolError) as caught:
                server.onrecv(compressed(whole[:end]))
            assert caught.value.code == 1007


def test_g19_a_reference_to_a_message_before_is_1007_without_takeover() -> None:
    client, _ = plain()
    _, server = plain(client_no_context_takeover=True)
    first, second = (client.onsend(message(b"the same text again", compress=True)) for _ in range(2))
    assert server.onrecv(first).payload == b"the same text again"
    with pytest.raises(ProtocolError) as caught:
        server.onrecv(second)
    assert caught.value.code == 1007


def test_g18_plain_messages_leave_the_window_alone() -> None:
    client, server = plain()
    for payload in texts(18, 30):
        assert server.onrecv(client.onsend(message(payload, compress=True))).payload == payload
        sent = client.onsend(message(payload, compress=False))
        assert not sent.rsv1
        assert server.onrecv(sent).payload == payload


@pytest.mark.parametrize(("size", "limit"), [(0, 0), (1, 1), (1000, 1000), (1000, 999), (1, 0), (70_000, 69_999)])
def test_g16_the_limit_holds_to_the_byte(size: int, limit: int) -> None:
    client, server = plain()
    server.max_size = limit
    sent = client.onsend(message(b"x" * size, compress=True))
    if size <= limit:
        assert server.onrecv(sent).payload == b"x" * size
        return
    with pytest.raises(ProtocolError) as caught:
        server.onrecv(sent)
    assert caught.value.code == 1009


@pytest.mark.parametrize("options", [{}, {"client_no_context_takeover": True}])
def test_g15_a_bomb_costs_no_more_than_the_limit(options: dict[str, bool]) -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(stream.compress(bytes(1 << 20)) for _ in range(256)) + stream.flush(zlib.Z_SYNC_FLUSH)
    finals = raw(bytes(60_000), flush=zlib.Z_FINISH) * 2000
    for data in (bomb.removesuffix(b"\0\0\xff\xff"), finals):
        _, server = plain(**options)
        server.max_size = 1 << 20
        frame = compressed(data)
        tracemalloc.start()
        with pytest.raises(ProtocolError) as caught:
            server.onrecv(frame)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert caught.value.code == 1009
        assert peak < (2 << 20) + len(data) + (64 << 10)


def test_what_is_short_is_not_compressed_unless_it_is_asked_for() -> None:
    client, _ = plain(threshold=10)
    assert not client.onsend(message(b"x" * 9)).rsv1
    assert client.onsend(message(b"x" * 10)).rsv1
    assert client.onsend(message(b"x" * 9, compress=True)).rsv1
    assert not client.onsend(message(b"x" * 10, compress=False)).rsv1


def test_g20_nothing_is_allocated_before_it_is_needed() -> None:
    client, server = plain()
    assert client.deflater._compressor is None
    assert server.inflater._stream is None


def test_a_released_window_comes_back_by_itself() -> None:
    client, server = plain()
    for number, payload in enumerate(texts(21, 30)):
        assert server.onrecv(client.onsend(message(payload, compress=True))).payload == payload
        if number % 3 == 0:
            client.deflater.release()
            assert client.deflater._compressor is None


def test_connections_without_takeover_share_a_compressor_and_nothing_else() -> None:
    pairs = [plain(client_no_context_takeover=True) for _ in range(5)]
    for payload in texts(5, 20):
        for client, server in pairs:
            assert server.onrecv(client.onsend(message(payload, compress=True))).payload == payload


def test_of_many_compressors_that_were_needed_at_once_some_are_kept() -> None:
    settings = (1, 1, 9)
    deflater = Deflater(9, takeover=False, level=1, memory_level=1)
    data = texts(9, 1, 500_000)[0] * 3
    together = threading.Barrier(40)

    def compress() -> None:
        together.wait(20)
        deflater.deflate(data)

    threads = [threading.Thread(target=compress) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < len(deflate._idle[settings]) <= 4 * (os.cpu_count() or 1)


@measures_memory
@pytest.mark.parametrize(
    ("what", "outcomes"), [("inflating", "MemoryError whole"), ("deflating", "NoneType compressed")]
)
def test_h14_a_lack_of_memory_is_no_fault_of_the_peer_and_corrupts_nothing(what: str, outcomes: str) -> None:
    with Program(*PYTHON, Path(__file__).parent / "starved.py", what, patience=PATIENCE) as program:
        assert program.ended() == (0, outcomes + "\n", "")


# ---- deflate-frame ----


@pytest.mark.parametrize("name", ["deflate-frame", "x-webkit-deflate-frame"])
@pytest.mark.parametrize(
    ("offered", "answer"),
    [
        ("", ""), ("; max_window_bits=9", ""), ("; no_context_takeover", ""),
        ("; max_window_bits=7", None), ("; max_window_bits=16", None), ("; max_window_bits", None),
        ("; no_context_takeover=1", None), ("; unknown", None),
    ],
)  # fmt: skip
def test_g23_negotiation_of_deflate_frame(name: str, offered: str, answer: str | None) -> None:
    assert agree([DeflateFrame()], name + offered, SERVER).answer == ("" if answer is None else name + answer)


def test_g23_only_one_of_the_two_is_agreed_upon() -> None:
    both = [DeflateMessage(), DeflateFrame()]
    assert agree(both, "permessage-deflate, deflate-frame", SERVER).answer == "permessage-deflate"
    assert agree(both, "deflate-frame, permessage-deflate", SERVER).answer == "deflate-frame"


@pytest.mark.parametrize("bits", [8, 15])
@pytest.mark.parametrize("alone", [False, True])
def test_frames_come_back(bits: int, alone: bool) -> None:
    client, server = pair(DeflateFrame(bits, alone), DeflateFrame())
    for payload in texts(bits, 30):
        for sender, receiver in ((client, server), (server, client)):
            for frame in message(payload).fragment(1000):
                sent = sender.onsend(frame)
                assert sent.rsv1 == (len(frame.payload) >= 20)
                assert receiver.onrecv(sent) == frame


def test_an_end_asks_the_other_one_to_forget() -> None:
    client, server = pair(DeflateFrame(9, no_context_takeover=True), DeflateFrame())
    assert server.deflater.takeover is False
    assert client.deflater.takeover is True


def test_control_frames_are_left_alone() -> None:
    client, server = pair(DeflateFrame(threshold=0), DeflateFrame())
    ping = Frame(9, b"x" * 100)
    assert client.onsend(ping) is ping
    assert server.onrecv(ping) is ping


def test_g23_the_limit_is_for_the_whole_message() -> None:
    client, server = pair(DeflateFrame(), DeflateFrame())
    server.max_size = 1999
    first, second = message(b"x" * 2000).fragment(1000)
    for _ in range(2):
        server.onrecv(client.onsend(first))
        with pytest.raises(ProtocolError) as caught:
            server.onrecv(client.onsend(second))
        assert caught.value.code == 1009
        client, server = pair(DeflateFrame(), DeflateFrame())
        server.max_size = 1999


@pytest.mark.parametrize("takeover", [True, False])
@pytest.mark.parametrize("more", [b"", b"x" * 20_000], ids=["short", "long"])
@pytest.mark.parametrize("size", [0, 10, 65_535, 65_536, 65_537, 300_000])
def test_a_last_block_ends_wherever_it_likes(takeover: bool, more: bytes, size: int) -> None:
    """RFC 7692 §7.2.3.4: also if what is not sent is a part of it, and before more of the same message."""
    inflater = Inflater(15, takeover=takeover)
    data = bytes(size) + random.Random(size).randbytes(len(more))
    last = raw(data, flush=zlib.Z_FINISH)
    stored = raw(data) + b"\0\0\xff\xff\x01"  # an empty last block, but for its length
    for packed, expected in [
        (last, data), (last + b"\0", data), (last + raw(b"more"), data + b"more"), (stored, data),
        (last + last, data * 2), (b"\x01", b""), (b"\x01\x00\x00\xff\xff" + last, data),
    ]:  # fmt: skip
        assert inflater.inflate(packed, 1 << 20) == expected
        assert inflater.inflate(raw(b"next"), 1 << 20) == b"next"
    for cut in (last[:-1], b"\x02", b"\x03", b"\xab" * 300):
        with pytest.raises(ProtocolError) as caught:
            Inflater(15, takeover=takeover).inflate(cut, 1 << 20)
        assert caught.value.code == 1007


# ---- whatever arrives ----

PAYLOADS = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda part, count: part * count, st.binary(min_size=1, max_size=40), st.integers(1, 4000)),
)


def inflated(data: bytes) -> bytes | None:
    """Return what a message says, byte by byte and without a limit; None if it is corrupt or cut off."""
    output = b""
    stream: Any = None
    try:
        for position in range(len(data)):
            stream = stream or zlib.decompressobj(-15)
            output += stream.decompress(data[position : position + 1])
            stream = None if stream.eof else stream
        if stream is None:
            return output
        if stream.decompress(b"\0\0\xff\xff"):
            return None
        if stream.eof:
            return None if stream.unused_data else output
        is_whole = not stream.decompress(b"\1\0\0\xff\xff") and stream.eof
    except zlib.error:
        return None
    return output if is_whole else None


def outcome(inflater: Inflater, data: bytes, limit: int) -> bytes | int:
    try:
        return inflater.inflate(data, limit)
    except ProtocolError as error:
        return error.code


@given(PAYLOADS, st.sampled_from([zlib.Z_SYNC_FLUSH, zlib.Z_FINISH]), st.integers(0, 9), st.data())
def test_a_stream_with_other_bytes_has_a_defined_end(
    payload: bytes, flush: int, level: int, data: st.DataObject
) -> None:
    """RFC 7692 §7.2.2: the same as byte by byte, with a limit that holds while it is inflated."""
    stream = zlib.compressobj(level, zlib.DEFLATED, -15)
    packed = bytearray((stream.compress(payload) + stream.flush(flush)).removesuffix(b"\0\0\xff\xff"))
    for position, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(packed) - 1), st.integers(0, 255)), max_size=2)
    ):
        packed[position] = byte
    message = bytes(packed[: data.draw(st.integers(1, len(packed)))] if data.draw(st.booleans()) else packed)
    limit = data.draw(st.sampled_from([0, len(payload) - 1 if payload else 0, len(payload), 1 << 20]))
    expected = inflated(message)
    for takeover in (True, False):
        found = outcome(Inflater(15, takeover=takeover), message, limit)
        if expected is not None and len(expected) <= limit:
            assert found == expected
        elif expected is not None:
            assert found == 1009
        else:  # what is found first
            assert found in {1007, 1009}


@given(
    st.lists(st.tuples(PAYLOADS, st.sampled_from([None, True, False])), max_size=8),
    st.integers(8, 15), st.booleans(), st.integers(-1, 9), st.integers(1, 9), st.booleans(),
)  # fmt: skip
def test_whatever_is_sent_comes_back(
    messages: list[tuple[bytes, bool | None]], bits: int, forgets: bool, level: int, memory_level: int, idles: bool
) -> None:
    client = DeflateMessage(client_max_window_bits=bits, server_max_window_bits=bits)
    options = {"server_no_context_takeover": forgets, "level": level, "memory_level": memory_level}
    receiver, sender = pair(client, DeflateMessage(**options))
    for payload, compress in messages:
        assert receiver.onrecv(sender.onsend(message(payload, compress=compress))).payload == payload
        if idles:
            sender.onidle()
