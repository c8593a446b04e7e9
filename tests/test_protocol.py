"""Does each end of a connection keep RFC 6455 §5 to §8.1, however the bytes are cut?

Three witnesses: wire vectors (vectors.py), a slow decoder that was written from the RFC (reference.py), and the other
end, over a wire that is a list.
"""

from __future__ import annotations

import array
import gc
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import allocated
from reference import CLOSE_CODES, Decoder, Outcome, decode_frames, decodes, encode
from vectors import (
    BINARY,
    CLIENT,
    CLOSE,
    CONTINUATION,
    E_ACUTE,
    FIN,
    KEY,
    PING,
    PONG,
    RSV1,
    RSV2,
    RSV3,
    SERVER,
    TEXT,
    VECTORS,
    Vector,
    Wire,
    fragment,
    message,
)

from wspy._core import ffi, lib
from wspy.codes import Opcode, Role
from wspy.errors import CoreError, PingError, ProtocolError, SocketClosed
from wspy.frames import Frame, create_close_frame, received_frame
from wspy.messages import Message, TextMessage
from wspy.protocol import _PIECE, Event, Protocol, close_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

ROLES = pytest.mark.parametrize("role", [SERVER, CLIENT], ids=["server", "client"])
GRANULARITIES = pytest.mark.parametrize("frames", [False, True], ids=["messages", "frames"])
EACH_VECTOR = pytest.mark.parametrize("vector", VECTORS, ids=[vector.name for vector in VECTORS])
OTHER = {SERVER: CLIENT, CLIENT: SERVER}


def error_message(number: int) -> str:
    text, section = (ffi.string(of(number)).decode() for of in (lib.wspy_error_text, lib.wspy_error_section))
    return f"{text} ({section})"


ERROR_NAMES = {error_message(getattr(lib, f"WSPY_ERROR_{name}")): name for name in CLOSE_CODES}


def wire(role: Role, *wires: Wire) -> bytes:
    """Encode frames for an end of this role."""
    return b"".join(each.encode(role) for each in wires)


def text(payload: str) -> Wire:
    return Wire(FIN | TEXT, payload.encode())


def fed(protocol: Protocol, role: Role, *wires: Wire) -> list[Event]:
    return protocol.feed(wire(role, *wires))


def code_of(protocol: Protocol) -> int | None:
    """Return the close code of the error, if there is one."""
    return protocol.error.code if protocol.error else None


def outcome(protocol: Protocol, pieces: Iterable[bytes]) -> Outcome:
    """Feed the pieces, and return all that they lead to."""
    events: list[tuple[int, bytes, bool, int]] = []
    replies = b""
    for piece in pieces:
        events += protocol.feed(piece)
        replies += protocol.replies()
    pongs = decode_frames(replies)
    assert {first for first, _, _ in pongs} <= {FIN | PONG}
    closes = decode_frames(protocol.owed_close())
    assert [first for first, _, _ in closes] in ([], [FIN | CLOSE])
    error = protocol.error
    return Outcome(
        events,
        [payload for _, payload, _ in pongs],
        ERROR_NAMES[str(error)] if error else None,
        closes[0][1] if closes else None,
    )


def expected(vector: Vector, *, frames: bool) -> Outcome:
    events = vector.frames if frames else vector.messages
    return Outcome(list(events), list(vector.pongs), vector.error, vector.owed_close)


def cut(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Cut data at these places."""
    places = [0, *sorted(min(place, len(data)) for place in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def single_bytes(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def splits(data: bytes) -> Iterator[list[bytes]]:
    """Return data in two pieces, in every way; of much data, near its ends and at random."""
    places = list(range(len(data) + 1))
    if len(data) > 300:
        places = [*places[:40], *random.Random(len(data)).sample(places, 20), *places[-40:]]
    for place in places:
        yield [data[:place], data[place:]]


def mutate(data: bytes, mutations: Iterable[tuple[int, int]]) -> bytes:
    mutated = bytearray(data)
    for place, bits in mutations:
        if place < len(mutated):
            mutated[place] ^= bits
    return bytes(mutated)


# ---- the vectors ----


@EACH_VECTOR
def test_vector_whole(vector: Vector) -> None:
    for frames in (False, True):
        protocol = Protocol(vector.role, frames=frames, **vector.options)
        assert outcome(protocol, [vector.data]) == expected(vector, frames=frames)


@EACH_VECTOR
def test_r1_vector_byte_by_byte_and_at_every_split(vector: Vector) -> None:
    for frames in (False, True):
        for pieces in (single_bytes(vector.data), *splits(vector.data)):
            protocol = Protocol(vector.role, frames=frames, **vector.options)
            assert outcome(protocol, pieces) == expected(vector, frames=frames), [len(piece) for piece in pieces][:2]


@EACH_VECTOR
def test_vector_with_a_tail(vector: Vector) -> None:
    data = vector.data + wire(vector.role, Wire(FIN | PING, b"tail"), Wire(FIN | CLOSE))
    for frames in (False, True):
        whole = outcome(Protocol(vector.role, frames=frames, **vector.options), [data])
        assert whole == Decoder(vector.role, frames=frames, **vector.options).decode(data)
        before = expected(vector, frames=frames)
        tail = [] if before.error or before.close is not None else [message(PING, b"tail"), message(CLOSE, b"")]
        assert whole.events == before.events + tail


@EACH_VECTOR
def test_vector_with_each_bit_of_the_header_flipped(vector: Vector) -> None:
    for bit in range(8 * vector.header_size):
        flipped = mutate(vector.data, [(bit // 8, 1 << bit % 8)])
        for frames in (False, True):
            seen = outcome(Protocol(vector.role, frames=frames, **vector.options), [flipped])
            assert seen == Decoder(vector.role, frames=frames, **vector.options).decode(flipped), bit
            assert seen.error in {None, *CLOSE_CODES}


def test_each_rule_has_a_vector_for_each_role_it_binds() -> None:
    tested = {(vector.error, vector.role) for vector in VECTORS if vector.error}
    one_sided = {("UNMASKED", CLIENT), ("MASKED", SERVER)}
    assert tested == {(name, role) for name in CLOSE_CODES for role in Role} - one_sided


def test_no_two_vectors_share_a_name() -> None:
    assert max(Counter(vector.name for vector in VECTORS).values()) == 1


# ---- R1: the same for any segmentation, and as the reference says ----

PAYLOADS = st.one_of(
    st.binary(max_size=12),
    st.text(max_size=6).map(str.encode),
    st.sampled_from([b"", b"x" * 125, b"x" * 126, b"\xc3", b"\xa9", b"\x03\xe8", b"\x03\xe8bye", b"\x03\xed"]),
)
FIRST_BYTES = st.one_of(
    st.sampled_from([FIN | TEXT, FIN | BINARY, TEXT, BINARY, CONTINUATION, FIN | CONTINUATION, FIN | PING, FIN | PONG]),
    st.integers(0, 255),
)
KEYS = st.binary(min_size=4, max_size=4)
WIRES = st.lists(
    st.tuples(FIRST_BYTES, PAYLOADS, KEYS).map(lambda fields: Wire(fields[0], fields[1], key=fields[2])), max_size=8
)
OPTIONS = st.fixed_dictionaries(
    {
        "frames": st.booleans(),
        "close_sent": st.booleans(),
        "max_size": st.sampled_from([None, 1 << 20, 20, 3, 0]),
        "max_fragment_size": st.sampled_from([None, None, 12, 1]),
        "max_fragments": st.sampled_from([None, 131072, 3, 1, 0]),
        "rsv": st.sampled_from([0, 0, RSV1, RSV1 | RSV2 | RSV3]),
        "opcodes": st.sampled_from([0, 0, 0x0008, 0x8080, 0x0007]),
    }
)
MUTATIONS = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=2)
CUTS = st.lists(st.integers(0, 300), max_size=8)


def check_against_reference(
    role: Role, data: bytes, pieces: Sequence[bytes], *, close_sent: bool, **options: Any
) -> Outcome:
    protocol = Protocol(role, **options)
    if close_sent:
        assert protocol.close()
    seen = outcome(protocol, pieces)
    assert seen == Decoder(role, close_sent=close_sent, **options).decode(data)
    return seen


@ROLES
@given(WIRES, MUTATIONS, CUTS, OPTIONS)
def test_r1_random_frames_however_they_are_cut(
    role: Role, wires: list[Wire], mutations: list[tuple[int, int]], cuts: list[int], options: dict[str, Any]
) -> None:
    data = mutate(wire(role, *wires), mutations)
    whole = check_against_reference(role, data, [data], **options)
    assert whole == check_against_reference(role, data, cut(data, cuts), **options)


@ROLES
@given(st.binary(max_size=60), CUTS, OPTIONS)
def test_r1_random_bytes(role: Role, data: bytes, cuts: list[int], options: dict[str, Any]) -> None:
    check_against_reference(role, data, cut(data, cuts), **options)


def random_stream(chance: random.Random, role: Role) -> bytes:
    """Return some frames, mostly in an order that is right, sometimes damaged."""
    wires = []
    open_message = False
    for _ in range(chance.randrange(1, 9)):
        payload = chance.choice([b"", b"abc", E_ACUTE * chance.randrange(40), chance.randbytes(chance.randrange(200))])
        if chance.random() < 0.3:
            first = FIN | chance.choice([PING, PONG, PING, PONG, CLOSE])
            payload = payload[:125] if first != FIN | CLOSE else chance.choice([b"", b"\x03\xe8" + payload[:100]])
        else:
            final = chance.random() < 0.5
            opcode = CONTINUATION if open_message else chance.choice([TEXT, BINARY])
            first = opcode | (FIN if final else 0)
            open_message = not final
        wires.append(Wire(first, payload, key=chance.randbytes(4)))
    data = wire(role, *wires)
    if chance.random() < 0.5:
        data = mutate(data, [(chance.randrange(len(data)), 1 << chance.randrange(8))])
    return data


def run_random_streams(seed: int, count: int) -> Counter[str | None]:
    """Compare with the reference. Return how often each error was met."""
    chance = random.Random(seed)
    errors: Counter[str | None] = Counter()
    for _ in range(count):
        role = chance.choice([SERVER, CLIENT])
        options: dict[str, Any] = {
            "frames": chance.random() < 0.5,
            "close_sent": chance.random() < 0.1,
            "max_size": chance.choice([None, 1000, 200]),
            "max_fragments": chance.choice([None, 2]),
            "rsv": chance.choice([0, 0, RSV1]),
        }
        data = random_stream(chance, role)
        pieces = cut(data, chance.choices(range(len(data) + 1), k=chance.randrange(6)))
        errors[check_against_reference(role, data, pieces, **options).error] += 1
    return errors


@pytest.mark.slow
def test_t3_random_streams_as_the_reference_says() -> None:
    errors = run_random_streams(1, 3000)
    assert errors[None] > 300
    assert len(errors) > 10


@ROLES
def test_d17_a_thousand_frames_in_one_segment(role: Role) -> None:
    wires = [Wire(FIN | (TEXT if i % 3 else PING), b"%d" % i) for i in range(1000)]
    protocol = Protocol(role)
    assert fed(protocol, role, *wires) == [message(each.first & 15, each.payload) for each in wires]
    assert [payload for _, payload, _ in decode_frames(protocol.replies())] == [b"%d" % i for i in range(0, 1000, 3)]


@ROLES
@GRANULARITIES
def test_d18_random_mebibytes(role: Role, frames: bool) -> None:
    for seed in range(20):
        chance = random.Random(seed)
        data = chance.randbytes(1 << 20)
        whole = outcome(Protocol(role, frames=frames), [data])
        assert CLOSE_CODES[whole.error or "UTF8"] in {1002, 1007, 1009}
        assert outcome(Protocol(role, frames=frames), cut(data, [1, 2, 3, 5, 8, 13, 21, 34, 5000])) == whole


@ROLES
def test_a_frame_that_is_larger_than_what_is_fed_at_once(role: Role) -> None:
    payload = random.Random(1).randbytes(3 << 20)
    data = wire(role, Wire(FIN | PING, b"1"), Wire(FIN | BINARY, payload), Wire(FIN | PING, b"2"))
    protocol = Protocol(role, max_size=None)
    assert protocol.feed(data) == [message(PING, b"1"), message(BINARY, payload), message(PING, b"2")]
    assert [each for _, each, _ in decode_frames(protocol.replies())] == [b"1", b"2"]


@ROLES
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("more", [-15, -1, 0, 1, 15])
def test_as_much_as_is_fed_at_once(role: Role, kind: Any, pieces: int, more: int) -> None:
    end = wire(role, Wire(FIN | PING, b"end"))
    header = Wire(FIN | BINARY, announced=pieces * _PIECE).header(role)
    payload = random.Random(more).randbytes(pieces * _PIECE + more - len(header) - len(end))
    data = wire(role, Wire(FIN | BINARY, payload)) + end
    assert len(data) == pieces * _PIECE + more
    assert Protocol(role).feed(kind(data)) == [message(BINARY, payload), message(PING, b"end")]


# ---- §5.1 and §5.3: masking ----


def test_section_5_1_a_server_masks_nothing() -> None:
    protocol = Protocol(SERVER)
    fed(protocol, SERVER, Wire(FIN | PING, b"Hello"))
    assert protocol.replies() == bytes.fromhex("8a0548656c6c6f")
    assert protocol.close(1000, "bye") == b"\x88\x05\x03\xe8bye"


def test_section_5_1_a_client_masks_all() -> None:
    protocol = Protocol(CLIENT)
    fed(protocol, CLIENT, Wire(FIN | PING, b"Hello"), Wire(FIN | PING))
    frames = [*decode_frames(protocol.replies()), *decode_frames(protocol.close(1000, "bye"))]
    expected_frames = [(FIN | PONG, b"Hello"), (FIN | PONG, b""), (FIN | CLOSE, b"\x03\xe8bye")]
    assert [(first, payload) for first, payload, _ in frames] == expected_frames
    assert all(key is not None for _, _, key in frames)


def test_d20_each_frame_of_a_client_has_a_key_of_its_own() -> None:
    count = 2000
    protocol = Protocol(CLIENT)
    fed(protocol, CLIENT, *[Wire(FIN | PING)] * count)
    keys = [int.from_bytes(key or b"") for _, _, key in decode_frames(protocol.replies())]
    assert len(set(keys)) > count - 5
    # 12 standard deviations: each bit is set in half of them
    deviation = (count / 4) ** 0.5
    assert all(abs(sum(key >> bit & 1 for key in keys) - count / 2) < 12 * deviation for bit in range(32))


# ---- §5.2 and §5.4: what granularity changes ----


@ROLES
def test_section_9_1_a_claimed_bit_on_a_continuation_is_for_extensions_that_see_frames(role: Role) -> None:
    wires = [Wire(TEXT, b"ab\xc3"), Wire(RSV1 | CONTINUATION, b"\xff"), Wire(FIN | CONTINUATION, b"\xff")]
    seen = outcome(Protocol(role, rsv=RSV1, frames=True), [wire(role, *wires)])
    assert seen.error is None
    assert seen.events == [
        fragment(TEXT, b"ab\xc3"),
        fragment(CONTINUATION, b"\xff", RSV1),
        message(CONTINUATION, b"\xff"),
    ]
    assert outcome(Protocol(role, rsv=RSV1), [wire(role, *wires)]).error == "RSV"


@ROLES
def test_section_8_1_the_message_after_a_transformed_one_is_checked(role: Role) -> None:
    cut_off = [Wire(TEXT, b"\xc3"), Wire(FIN | RSV1 | CONTINUATION, b"?")]
    wires = [*cut_off, Wire(FIN | BINARY, b"\xff"), *cut_off, Wire(FIN | TEXT, b"fine"), Wire(FIN | TEXT, b"\xff")]
    seen = outcome(Protocol(role, rsv=RSV1, frames=True), [wire(role, *wires)])
    assert (len(seen.events), seen.error) == (6, "UTF8")


@ROLES
def test_section_6_2_messages_come_in_order_with_the_type_of_their_first_frame(role: Role) -> None:
    wires = [Wire(BINARY, b"1"), Wire(FIN | CONTINUATION, b"2"), Wire(TEXT, b"3"), Wire(FIN | CONTINUATION, b"4")]
    events = fed(Protocol(role), role, *wires, text("5"))
    assert events == [message(BINARY, b"12"), message(TEXT, b"34"), message(TEXT, b"5")]
    assert [type(event.opcode) for event in events] == [Opcode, Opcode, Opcode]


# ---- §5.5.2: pongs ----


@ROLES
@GRANULARITIES
def test_section_5_5_2_a_ping_inside_a_message_is_answered_before_its_end(role: Role, frames: bool) -> None:
    protocol = Protocol(role, frames=frames)
    fed(protocol, role, Wire(TEXT, b"a"), Wire(FIN | PING, b"1"))
    assert [payload for _, payload, _ in decode_frames(protocol.replies())] == [b"1"]


@ROLES
def test_section_5_5_2_a_ping_inside_a_frame_that_never_ends_is_payload(role: Role) -> None:
    protocol = Protocol(role)
    assert fed(protocol, role, Wire(FIN | BINARY, b"a", announced=1000), Wire(FIN | PING, b"1")) == []
    assert protocol.replies() == b""


@ROLES
def test_pongs_are_taken_once_and_kept_until_then(role: Role) -> None:
    protocol = Protocol(role)
    fed(protocol, role, Wire(FIN | PING, b"1"))
    fed(protocol, role, text("x"))
    fed(protocol, role, Wire(FIN | PING, b"2"))
    assert [payload for _, payload, _ in decode_frames(protocol.replies())] == [b"1", b"2"]
    assert protocol.replies() == b""


@ROLES
def test_r3_pongs_for_what_came_before_a_violation_are_owed(role: Role) -> None:
    protocol = Protocol(role)
    fed(protocol, role, Wire(FIN | PING, b"1"), Wire(FIN | 3), Wire(FIN | PING, b"2"))
    assert [payload for _, payload, _ in decode_frames(protocol.replies())] == [b"1"]


@ROLES
def test_r7_control_frames_inside_a_message_touch_none_of_its_state(role: Role) -> None:
    between = [Wire(FIN | PING, b"\xff"), Wire(FIN | PONG, b"\xa9")] * 3
    wires = [Wire(TEXT, E_ACUTE[:1]), *between, Wire(FIN | CONTINUATION, E_ACUTE[1:])]
    events = fed(Protocol(role, max_size=2, max_fragments=2), role, *wires)
    assert events[-1] == message(TEXT, E_ACUTE)
    assert len(events) == 7


# ---- §7.1: the closing handshake ----


@ROLES
def test_section_7_1_2_we_start_and_the_peer_echoes(role: Role) -> None:
    protocol = Protocol(role)
    assert (protocol.close_sent, protocol.close_received) == (False, False)
    [(first, payload, _)] = decode_frames(protocol.close(1001, "é"))
    assert (first, payload) == (FIN | CLOSE, b"\x03\xe9" + E_ACUTE)
    assert (protocol.close_sent, protocol.close_received) == (True, False)
    assert fed(protocol, role, Wire(FIN | CLOSE, b"\x03\xe9")) == [message(CLOSE, b"\x03\xe9")]
    assert (protocol.close_sent, protocol.close_received) == (True, True)
    assert protocol.owed_close() == b""
    assert protocol.error is None


@ROLES
def test_section_7_1_2_the_peer_starts_and_we_echo(role: Role) -> None:
    protocol = Protocol(role)
    fed(protocol, role, Wire(FIN | CLOSE, b"\x0f\xa0why"))
    assert (protocol.close_sent, protocol.close_received) == (False, True)
    assert [payload for _, payload, _ in decode_frames(protocol.owed_close())] == [b"\x0f\xa0"]
    assert (protocol.close_sent, protocol.close_received) == (True, True)
    assert protocol.owed_close() == b""


@ROLES
def test_section_5_5_1_an_empty_close_of_ours(role: Role) -> None:
    protocol = Protocol(role)
    assert [payload for _, payload, _ in decode_frames(protocol.close(None))] == [b""]


@ROLES
def test_e5_the_longest_reason_is_sent_and_its_echo_is_short(role: Role) -> None:
    reason = "é" * 61 + "!"
    payload = close_payload(1000, reason)
    assert len(payload) == 125
    protocol = Protocol(role)
    assert [each for _, each, _ in decode_frames(protocol.close(1000, reason))] == [payload]
    peer = Protocol(OTHER[role])
    [event] = fed(peer, OTHER[role], Wire(FIN | CLOSE, payload))
    assert event.payload == payload
    assert [each for _, each, _ in decode_frames(peer.owed_close())] == [b"\x03\xe8"]


@ROLES
def test_e8_nothing_is_handled_after_the_peers_close(role: Role) -> None:
    protocol = Protocol(role)
    fed(protocol, role, Wire(FIN | CLOSE))
    assert fed(protocol, role, text("x"), Wire(FIN | PING, b"1"), Wire(FIN | CLOSE), Wire(FIN | 3)) == []
    assert protocol.replies() == b""
    assert decode_frames(protocol.owed_close())
    assert protocol.feed(b"\xff" * 100) == []
    assert protocol.error is None
    assert protocol.owed_close() == b""


@ROLES
def test_e10_messages_arrive_until_the_peers_close(role: Role) -> None:
    protocol = Protocol(role)
    protocol.close()
    assert fed(protocol, role, text("1")) == [message(TEXT, b"1")]
    assert fed(protocol, role, text("2"), Wire(FIN | CLOSE), text("3")) == [message(TEXT, b"2"), message(CLOSE, b"")]


@ROLES
def test_section_5_5_1_nothing_is_sent_after_our_close(role: Role) -> None:
    protocol = Protocol(role)
    fed(protocol, role, Wire(FIN | PING, b"before"))
    protocol.close()
    assert fed(protocol, role, Wire(FIN | PING, b"after")) == [message(PING, b"after")]
    assert [payload for _, payload, _ in decode_frames(protocol.replies())] == [b"before"]


@ROLES
def test_section_7_1_7_a_violation_after_our_close_is_an_error_without_a_second_close(role: Role) -> None:
    protocol = Protocol(role)
    protocol.close()
    fed(protocol, role, Wire(FIN | 3))
    assert protocol.error is not None
    assert protocol.owed_close() == b""


@ROLES
def test_e12_both_send_a_close_at_once(role: Role) -> None:
    ours, theirs = Protocol(role), Protocol(OTHER[role])
    to_them, to_us = ours.close(1000), theirs.close(1001)
    assert [event.payload for event in theirs.feed(to_them)] == [b"\x03\xe8"]
    assert [event.payload for event in ours.feed(to_us)] == [b"\x03\xe9"]
    for each in (ours, theirs):
        assert (each.close_sent, each.close_received) == (True, True)
        assert each.owed_close() == b""


@ROLES
def test_e16_a_second_close_is_nothing(role: Role) -> None:
    protocol = Protocol(role)
    assert protocol.close(1000)
    assert protocol.close(1001) == b""
    assert protocol.owed_close() == b""


@ROLES
def test_e16_a_close_of_ours_is_nothing_while_an_echo_is_owed_or_after_it(role: Role) -> None:
    protocol = Protocol(role)
    fed(protocol, role, Wire(FIN | CLOSE, b"\x03\xe8"))
    assert protocol.close(1001) == b""
    assert [payload for _, payload, _ in decode_frames(protocol.owed_close())] == [b"\x03\xe8"]
    assert protocol.close(1001) == b""


@ROLES
def test_section_7_1_7_after_an_error_nothing_is_read_and_one_close_is_owed(role: Role) -> None:
    protocol = Protocol(role)
    assert fed(protocol, role, text("x"), Wire(FIN | 3), text("y")) == [message(TEXT, b"x")]
    error = protocol.error
    assert isinstance(error, ProtocolError)
    assert (error.code, error.message) == (1002, "the operation code is reserved (RFC 6455 §5.2)")
    assert fed(protocol, role, text("z"), Wire(FIN | PING)) == []
    assert protocol.replies() == b""
    assert protocol.error is error
    assert protocol.close(1000) == b""
    assert (protocol.close_sent, protocol.close_received) == (False, False)
    assert [payload for _, payload, _ in decode_frames(protocol.owed_close())] == [b"\x03\xea"]
    assert (protocol.close_sent, protocol.close_received) == (True, False)
    assert (protocol.owed_close(), protocol.close(1000)) == (b"", b"")


@ROLES
def test_e2_a_broken_close_does_not_count_as_received(role: Role) -> None:
    protocol = Protocol(role)
    assert fed(protocol, role, Wire(FIN | CLOSE, b"\x03")) == []
    assert not protocol.close_received


# ---- E15: what a Close of ours may carry ----


@pytest.mark.parametrize("code", [-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535, 65536, 1 << 32, 1 << 70])
def test_e15_a_code_that_no_close_may_carry(code: int) -> None:
    with pytest.raises(ValueError, match="can't carry"):
        close_payload(code)


@pytest.mark.parametrize("code", ["1000", 1000.0, b"\x03\xe8"])
def test_e15_a_code_that_is_no_integer(code: Any) -> None:
    with pytest.raises(TypeError):
        close_payload(code)


@pytest.mark.parametrize("reason", [None, b"bytes", bytearray(b"x"), 7, ["x"]])
def test_e15_a_reason_that_is_no_string(reason: Any) -> None:
    with pytest.raises(TypeError, match="reason must be str"):
        close_payload(1000, reason)


@pytest.mark.parametrize("reason", ["x" * 124, "é" * 62, "\U0001f600" * 31])
def test_e15_a_reason_that_is_too_long_is_not_cut(reason: str) -> None:
    with pytest.raises(ValueError, match="at most 123 bytes"):
        close_payload(1000, reason)


def test_e15_a_reason_with_a_lone_surrogate() -> None:
    with pytest.raises(UnicodeEncodeError):
        close_payload(1000, "\ud800")


def test_e15_a_reason_without_a_code() -> None:
    with pytest.raises(ValueError, match="needs a code"):
        close_payload(None, "why")


def test_section_7_4_every_code() -> None:
    valid = [code for code in range(-5, 70_000) if lib.wspy_close_code_valid(code)]
    assert valid == [*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)]


def test_the_payload_of_a_close() -> None:
    assert close_payload(None) == b""
    assert close_payload(1000) == b"\x03\xe8"
    assert close_payload(4999, "é" * 61) == b"\x13\x87" + E_ACUTE * 61


@ROLES
def test_e15_a_refused_close_changes_nothing(role: Role) -> None:
    protocol = Protocol(role)
    for code, reason in ((1005, ""), (1000, "x" * 124), (None, "x")):
        with pytest.raises(ValueError):
            protocol.close(code, reason)
    assert not protocol.close_sent
    assert protocol.close()


# ---- §8.1 and R2: what can be judged is judged at once ----


@ROLES
@GRANULARITIES
def test_f4_a_bad_byte_is_found_before_the_next_fragment(role: Role, frames: bool) -> None:
    protocol = Protocol(role, frames=frames)
    fed(protocol, role, Wire(TEXT, b"fine"), Wire(CONTINUATION, b"\xc3("))
    assert code_of(protocol) == 1007


@ROLES
@GRANULARITIES
def test_f5_a_bad_byte_is_found_before_the_end_of_its_frame(role: Role, frames: bool) -> None:
    data = wire(role, Wire(FIN | TEXT, b"fine\xf4\x90\x80\x80" + b"x" * 1000))
    header = len(data) - 1008
    protocol = Protocol(role, frames=frames)
    protocol.feed(data[: header + 5])
    assert code_of(protocol) is None  # f4 may start a code point
    protocol.feed(data[header + 5 : header + 6])
    assert protocol.error is not None  # f4 90 may not
    assert protocol.error.code == 1007


BROKEN = [vector for vector in VECTORS if vector.error]
JUDGED_BY_TWO_BYTES = [vector for vector in BROKEN if re.match(r"D(1|2|3|4|9|10|11|12|13) ", vector.name)]


@pytest.mark.parametrize("vector", BROKEN, ids=[vector.name for vector in BROKEN])
def test_r2_a_violation_is_found_at_the_byte_that_decides_it(vector: Vector) -> None:
    reference = Decoder(vector.role, **vector.options)
    deciding = next(n for n in range(len(vector.data) + 1) if reference.decode(vector.data[:n]).error)
    protocol = Protocol(vector.role, **vector.options)
    protocol.feed(vector.data[: deciding - 1])
    assert code_of(protocol) is None
    protocol.feed(vector.data[deciding - 1 : deciding])
    assert code_of(protocol) == CLOSE_CODES[vector.error or ""]


def test_r2_two_bytes_of_a_header_are_judged_before_the_third() -> None:
    assert len(JUDGED_BY_TWO_BYTES) > 100
    for vector in JUDGED_BY_TWO_BYTES:
        reference = Decoder(vector.role, **vector.options)
        start = next(
            n
            for n in range(len(vector.data) + 1)
            if reference.decode(vector.data[: n + 2]).error and not reference.decode(vector.data[: n + 1]).error
        )
        reference.decode(vector.data[:start])
        assert reference.at == start, vector.name  # a frame begins here


@ROLES
@pytest.mark.parametrize("length", [1 << 62, (1 << 32) + 1, 1 << 31, (1 << 20) + 1])
def test_d7_a_length_beyond_the_limit_is_refused_from_the_header_alone(role: Role, length: int) -> None:
    protocol = Protocol(role)
    lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, 0, 0, 0, 0)
    protocol.feed(Wire(FIN | BINARY, announced=length).header(role))
    assert lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, 0, 0, 0, 0) <= 2  # the input and the events, no payload
    assert code_of(protocol) == 1009


# ---- memory and time ----


@ROLES
@GRANULARITIES
def test_d7_an_announced_length_costs_nothing(role: Role, frames: bool) -> None:
    protocol = Protocol(role, frames=frames, max_size=None)
    before = allocated()
    protocol.feed(Wire(FIN | BINARY, announced=(1 << 63) - 1).header(role))
    protocol.feed(b"x" * 5000)
    assert protocol.error is None
    assert allocated() - before < 64 << 10


@ROLES
def test_d19_memory_follows_what_has_arrived(role: Role) -> None:
    protocol = Protocol(role, max_size=None)
    before = allocated()
    protocol.feed(Wire(FIN | BINARY, announced=1 << 40).header(role))
    for step in range(1, 7):
        protocol.feed(bytes(100_000 * step))
        arrived = 100_000 * sum(range(step + 1))
        assert allocated() - before < 2 * arrived + (512 << 10)


@ROLES
@pytest.mark.parametrize("payload", [b"", b"x"])
def test_h2_fragments_cost_no_memory_of_their_own(role: Role, payload: bytes) -> None:
    protocol = Protocol(role)
    fed(protocol, role, Wire(TEXT, payload))
    many = wire(role, Wire(CONTINUATION, payload)) * 1310
    before = allocated()
    for _ in range(100):
        protocol.feed(many)
    assert code_of(protocol) is None
    assert allocated() - before < 2 * 131_000 * len(payload) + (128 << 10)
    protocol.feed(many)
    assert code_of(protocol) == 1008


@ROLES
def test_h2_short_fragments_do_not_move_the_message_each_time(role: Role) -> None:
    protocol = Protocol(role)
    many = wire(role, *[Wire(CONTINUATION, b"12345678")] * 1000)
    fed(protocol, role, Wire(BINARY))
    lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, 0, 0, 0, 0)
    for _ in range(100):
        protocol.feed(many)
    growths = lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, 0, 0, 0, 0)
    assert growths < 3 * 100 + 20  # the input's copy and its table grow and shrink once per feed


@ROLES
def test_h3_a_frame_in_single_bytes_costs_no_more_than_twice_its_size(role: Role) -> None:
    size = 100_000
    data = wire(role, Wire(FIN | BINARY, bytes(size)))
    protocol = Protocol(role)
    before = allocated()
    lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, 0, 0, 0, 0)
    for i in range(len(data) - 1):
        assert not protocol.feed(data[i : i + 1])
    assert allocated() - before < 2 * size + (64 << 10)
    assert lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, 0, 0, 0, 0) < 40
    assert protocol.feed(data[-1:]) == [message(BINARY, bytes(size))]


@ROLES
def test_the_memory_of_a_burst_is_given_back(role: Role) -> None:
    burst = wire(role, *[text("x" * 50), Wire(FIN | PING, b"p" * 50)] * 5000)
    protocol = Protocol(role)
    fed(protocol, role, text("warm"), Wire(FIN | PING))
    before = allocated()
    for _ in range(3):
        assert len(protocol.feed(burst)) == 10_000
        assert protocol.replies()
    assert allocated() - before < 96 << 10


@ROLES
def test_the_memory_of_a_protocol_goes_with_it(role: Role) -> None:
    unfinished = Wire(TEXT, b"x" * 50_000).encode(role)
    before = 0
    for number in range(200):
        protocol = Protocol(role)
        protocol.feed(unfinished)
        protocol.feed(wire(role, Wire(FIN | PING, b"p")) * 300)
        del protocol
        if number == 20:
            gc.collect()
            before = allocated()
    assert allocated() - before < 1 << 20


@ROLES
def test_events_outlive_the_protocol(role: Role) -> None:
    protocol = Protocol(role)
    events = fed(protocol, role, text("in place"), Wire(TEXT, b"det"), Wire(FIN | CONTINUATION, b"ached"))
    fed(protocol, role, text("overwritten"))
    del protocol
    assert [event.payload for event in events] == [b"in place", b"detached"]


# ---- H13: without memory ----


@ROLES
@GRANULARITIES
def test_h13_each_allocation_fails_once(role: Role, frames: bool) -> None:
    data = wire(
        role,
        text("one"),
        Wire(FIN | PING, b"p"),
        Wire(TEXT, b"two"),
        *[Wire(CONTINUATION, b"x" * 600)] * 4,
        Wire(FIN | CONTINUATION),
        *[text("many")] * 200,
        *[Wire(FIN | PING, b"p" * 125)] * 5,
        Wire(FIN | CLOSE),
    )
    whole = outcome(Protocol(role, frames=frames), [data])
    failures = 0
    for nth in range(1, 100):
        lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, nth, 1, 12, 0)
        try:
            protocol = Protocol(role, frames=frames)
            events = [*protocol.feed(data[:40]), *protocol.feed(data[40:])]
        except MemoryError:
            assert nth == 1
            continue
        finally:
            made = lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, 0, 0, 0, 0)
        if made < nth:
            break
        if protocol.error is None:  # what failed was only a wish, such as giving memory back
            assert events == whole.events
            continue
        failures += 1
        assert (protocol.error.code, protocol.error.message) == (1011, "out of memory")
        assert events == whole.events[: len(events)]
        pings = [event.payload for event in events if event.opcode == PING]
        assert [payload for _, payload, _ in decode_frames(protocol.replies())][: len(pings)] == pings
        assert [payload for _, payload, _ in decode_frames(protocol.owed_close())] == [b"\x03\xf3"]
        assert protocol.feed(data) == []
    assert made < nth
    assert failures >= 4


# ---- the Python face ----


@pytest.mark.parametrize(
    "options",
    [
        {"max_size": -1},
        {"max_size": 2**64 - 1},
        {"max_fragment_size": -1},
        {"max_fragment_size": 2**64},
        {"max_fragments": -1},
        {"max_fragments": 2**32 - 1},
        {"rsv": 0x80},
        {"rsv": 0x0F},
        {"rsv": -1},
        {"opcodes": 1 << 8},
        {"opcodes": 1 << 9},
        {"opcodes": 1 << 16},
        {"opcodes": -1},
    ],
    ids=str,
)
def test_an_argument_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Protocol(SERVER, **options)


@pytest.mark.parametrize(
    "options",
    [{"max_size": 1.5}, {"max_fragment_size": "1"}, {"max_fragments": 2.0}, {"rsv": None}, {"opcodes": "3"}],
    ids=str,
)
def test_an_argument_of_a_wrong_type(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Protocol(SERVER, **options)


def test_a_role_that_there_is_not() -> None:
    with pytest.raises(ValueError):
        Protocol(2)  # type: ignore[arg-type]


def test_the_largest_limits() -> None:
    protocol = Protocol(SERVER, max_size=2**64 - 2, max_fragment_size=2**64 - 2, max_fragments=2**32 - 2)
    assert fed(protocol, SERVER, text("x")) == [message(TEXT, b"x")]


@ROLES
def test_the_default_limits(role: Role) -> None:
    protocol = Protocol(role)
    assert len(fed(protocol, role, Wire(FIN | BINARY, bytes(1 << 20)))) == 1
    protocol.feed(Wire(FIN | BINARY, announced=(1 << 20) + 1).header(role))
    assert code_of(protocol) == 1009


@pytest.mark.parametrize(
    "kind",
    [bytes, bytearray, memoryview, lambda data: array.array("B", data)],
    ids=["bytes", "bytearray", "memoryview", "array"],
)
@pytest.mark.parametrize("count", [1, 30_000])
def test_any_contiguous_bytes_can_be_fed(kind: Any, count: int) -> None:
    data = wire(SERVER, text("x")) * count
    assert Protocol(SERVER).feed(kind(data)) == [message(TEXT, b"x")] * count


def test_the_size_of_items_makes_no_difference() -> None:
    data = wire(SERVER, text("xy")) * 2
    assert Protocol(SERVER).feed(memoryview(data).cast("I")) == [message(TEXT, b"xy")] * 2


def test_what_was_fed_may_change_afterwards() -> None:
    protocol = Protocol(SERVER)
    data = bytearray(wire(SERVER, Wire(TEXT, b"ab"), Wire(FIN | CONTINUATION, b"c")))
    protocol.feed(data[:-1])
    last = data[-1:]
    data.clear()
    assert protocol.feed(last) == [message(TEXT, b"abc")]


@pytest.mark.parametrize("data", ["text", None, 7, [1]])
def test_what_is_not_bytes_can_not_be_fed(data: Any) -> None:
    protocol = Protocol(SERVER)
    with pytest.raises(TypeError):
        protocol.feed(data)
    assert fed(protocol, SERVER, text("x"))


def test_bytes_with_gaps_can_not_be_fed() -> None:
    protocol = Protocol(SERVER)
    with pytest.raises((ValueError, BufferError)):
        protocol.feed(memoryview(bytes(10))[::2])
    assert fed(protocol, SERVER, text("x"))


def test_nothing_can_be_fed() -> None:
    protocol = Protocol(SERVER)
    for empty in (b"", bytearray(), memoryview(b"")):
        assert protocol.feed(empty) == []
    assert (protocol.error, protocol.replies(), protocol.owed_close()) == (None, b"", b"")


def test_a_call_during_another_one_is_refused_and_changes_nothing() -> None:
    protocol = Protocol(SERVER)
    fed(protocol, SERVER, Wire(FIN | PING, b"p"), Wire(FIN | CLOSE))
    endpoint = protocol._idle.pop()
    for call in (lambda: protocol.feed(b"x"), protocol.replies, protocol.owed_close, protocol.close):
        with pytest.raises(RuntimeError, match="another call"):
            call()
    assert (protocol.error, protocol.close_sent, protocol.close_received) == (None, False, True)
    protocol._idle.append(endpoint)
    assert protocol.replies()
    assert protocol.owed_close()


def test_threads_that_do_not_take_turns_break_nothing() -> None:
    protocol = Protocol(SERVER)
    data = wire(SERVER, text("x" * 50), Wire(FIN | PING, b"p")) * 20
    counts: list[int] = []
    unexpected: list[BaseException] = []

    def feed_often() -> None:
        for _ in range(300):
            try:
                counts.append(len(protocol.feed(data)))
            except RuntimeError:
                continue
            except BaseException as error:  # noqa: BLE001 -- for the assertion below
                unexpected.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=feed_often) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not unexpected
    assert set(counts) == {40}
    assert len(decode_frames(protocol.replies())) == 20 * len(counts)
    assert protocol.error is None


def test_no_randomness_for_a_masking_key_is_an_error_of_ours() -> None:
    protocol = Protocol(CLIENT)
    with pytest.raises(CoreError, match="system call"):
        protocol._closing(lib.WSPY_ERROR_SYSTEM, began=True)


# ---- two ends and a wire ----


class Pair:
    """Two protocols, and what each has sent that the other one has not received yet."""

    def __init__(self, *, frames: bool) -> None:
        self.ends = {role: Protocol(role, frames=frames) for role in Role}
        self.under_way = dict.fromkeys(Role, b"")  # to this end
        self.sent: dict[Role, list[tuple[int, bytes]]] = {role: [] for role in Role}  # by this end
        self.received: dict[Role, list[tuple[int, bytes]]] = {role: [] for role in Role}
        self.unfinished: dict[Role, tuple[int, bytes] | None] = dict.fromkeys(Role)

    def write(self, role: Role, data: bytes) -> None:
        self.under_way[OTHER[role]] += data

    def send(self, role: Role, opcode: int, pieces: Sequence[bytes]) -> None:
        """Send a message in fragments, or a ping."""
        if self.ends[role].close_sent:
            return
        key = KEY if role is CLIENT else None
        for number, piece in enumerate(pieces):
            final = FIN if number == len(pieces) - 1 else 0
            self.write(role, encode(final | (CONTINUATION if number else opcode), piece, key))
        self.sent[role].append((opcode, b"".join(pieces)))

    def deliver(self, role: Role, count: int) -> None:
        """Let so many bytes arrive, and send what is owed for them."""
        arrived, self.under_way[role] = self.under_way[role][:count], self.under_way[role][count:]
        end = self.ends[role]
        for event in end.feed(arrived):
            self.receive(role, event)
        self.write(role, end.replies())
        if end.close_received or end.error:
            self.write(role, end.owed_close())

    def receive(self, role: Role, event: Event) -> None:
        """Join fragments."""
        if event.opcode >= CLOSE or (event.final and event.opcode):
            self.received[role].append((event.opcode, event.payload))
            return
        opcode, before = self.unfinished[role] or (event.opcode, b"")
        self.unfinished[role] = (opcode, before + event.payload)
        if event.final:
            self.received[role].append((opcode, before + event.payload))
            self.unfinished[role] = None

    def close(self, role: Role, code: int) -> None:
        frame = self.ends[role].close(code)
        if frame:
            self.sent[role].append((CLOSE, code.to_bytes(2)))
        self.write(role, frame)

    def settle(self) -> None:
        """Let all arrive."""
        while any(self.under_way.values()):
            for role in Role:
                self.deliver(role, len(self.under_way[role]))


WHO = st.sampled_from([SERVER, CLIENT])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("text"), WHO, st.lists(st.text(max_size=5).map(str.encode), min_size=1, max_size=4)),
        st.tuples(st.just("binary"), WHO, st.lists(st.binary(max_size=200), min_size=1, max_size=4)),
        st.tuples(st.just("ping"), WHO, st.lists(st.binary(max_size=125), min_size=1, max_size=1)),
        st.tuples(st.just("deliver"), WHO, st.integers(1, 300)),
    ),
    max_size=20,
)
OPCODES = {"text": TEXT, "binary": BINARY, "ping": PING}


def act(pair: Pair, steps: Iterable[tuple[str, Role, Any]]) -> None:
    for what, role, argument in steps:
        if what == "deliver":
            pair.deliver(role, argument)
        else:
            pair.send(role, OPCODES[what], argument)


def pings(log: Iterable[tuple[int, bytes]]) -> list[bytes]:
    return [payload for opcode, payload in log if opcode == PING]


@GRANULARITIES
@given(STEPS)
def test_all_that_one_end_sends_the_other_receives_in_order(frames: bool, steps: list[tuple[str, Role, Any]]) -> None:
    pair = Pair(frames=frames)
    act(pair, steps)
    pair.settle()
    for role, other in OTHER.items():
        assert pair.ends[role].error is None
        assert [each for each in pair.received[role] if each[0] != PONG] == pair.sent[other]
        pongs = [payload for opcode, payload in pair.received[role] if opcode == PONG]
        assert pongs == pings(pair.sent[role])


@GRANULARITIES
@given(st.lists(STEPS, min_size=3, max_size=3), WHO, st.none() | WHO)
def test_the_closing_handshake_ends_clean_on_both_ends(
    frames: bool, steps: list[list[tuple[str, Role, Any]]], first: Role, second: Role | None
) -> None:
    pair = Pair(frames=frames)
    act(pair, steps[0])
    pair.close(first, 1000)
    act(pair, steps[1])
    if second is not None:
        pair.close(second, 4000)
    act(pair, steps[2])
    pair.settle()
    for role, other in OTHER.items():
        end = pair.ends[role]
        assert (end.error, end.close_sent, end.close_received) == (None, True, True)
        assert (end.owed_close(), end.close()) == (b"", b"")
        received = [each for each in pair.received[role] if each[0] != PONG]
        sent = pair.sent[other]
        if (CLOSE, b"\x03\xe8") in sent or (CLOSE, b"\x0f\xa0") in sent:  # it started, so nothing it sent is lost
            assert received == sent
        else:  # it echoed
            assert received == [*sent, received[-1]]
            assert received[-1][0] == CLOSE


# ---- sending, §6.1 ----

PAYLOADS = [b"", b"x", b"x" * 125, b"x" * 126, b"x" * 65_535, b"x" * 65_536]


def talking() -> tuple[Protocol, Protocol]:
    """Return a server and a client without a limit."""
    return Protocol(SERVER, max_size=None), Protocol(CLIENT, max_size=None)


@ROLES
@pytest.mark.parametrize("size", [None, 1000])
@pytest.mark.parametrize("payload", PAYLOADS, ids=len)
def test_what_one_end_says_the_other_hears(role: Role, payload: bytes, size: int | None) -> None:
    ends = dict(zip((SERVER, CLIENT), talking(), strict=True))
    speaker, hearer = ends[role], ends[OTHER[role]]
    sent = speaker.message(payload, size) + speaker.ping(b"1") + speaker.message(payload.decode(), size)
    sent += speaker.pong("é") + speaker.message(TextMessage("end")) + speaker.close(1000)
    assert hearer.feed(sent) == [
        message(BINARY, payload),
        message(PING, b"1"),
        message(TEXT, payload),
        message(PONG, E_ACUTE),
        message(TEXT, b"end"),
        message(CLOSE, b"\x03\xe8"),
    ]
    assert hearer.error is None
    assert speaker.feed(hearer.replies() + hearer.owed_close())[-1] == message(CLOSE, b"\x03\xe8")
    assert speaker.error is None


@ROLES
@given(st.lists(st.tuples(st.text() | st.binary(), st.none() | st.integers(1, 9)), max_size=5))
def test_messages_however_they_are_split(role: Role, messages: list[tuple[str | bytes, int | None]]) -> None:
    speaker, hearer = Protocol(role), Protocol(OTHER[role])
    sent = b"".join(speaker.message(payload, size) for payload, size in messages)
    assert [(event.opcode, event.payload) for event in hearer.feed(sent)] == [
        (TEXT, payload.encode()) if isinstance(payload, str) else (BINARY, payload) for payload, _ in messages
    ]
    assert hearer.error is None


@ROLES
def test_section_5_4_the_frames_of_a_fragmented_message(role: Role) -> None:
    frames = decode_frames(Protocol(role).message("abcde", 2))
    assert [(first, payload) for first, payload, _ in frames] == [(TEXT, b"ab"), (0, b"cd"), (FIN, b"e")]
    keys = {key for _, _, key in frames}
    assert len(keys) == 3 if role is CLIENT else keys == {None}


def test_section_5_3_each_frame_that_a_client_says_has_a_key_of_its_own() -> None:
    protocol = Protocol(CLIENT)
    frames = decode_frames(protocol.message(bytes(1000), 1) + protocol.ping() + protocol.pong())
    keys = [key for _, _, key in frames]
    assert None not in keys
    assert len(set(keys)) > len(keys) - 3


@ROLES
@pytest.mark.parametrize("payload", [b"x" * 126, "é" * 63])
def test_section_5_5_a_control_frame_that_is_too_long(role: Role, payload: Any) -> None:
    protocol = Protocol(role)
    for say in (protocol.ping, protocol.pong):
        with pytest.raises(PingError, match="125"):
            say(payload)
        assert len(decode_frames(say(payload[:62]))) == 1


@ROLES
def test_section_5_5_1_nothing_is_said_after_a_close(role: Role) -> None:
    protocol = Protocol(role)
    sayings = [lambda: protocol.message("x"), lambda: protocol.message("x", 1), protocol.ping, protocol.pong]
    fed(protocol, role, Wire(FIN | TEXT, b"before"))
    protocol.close(4000, "é")
    fed(protocol, role, Wire(FIN | CLOSE, b"\x0f\xa1why"))
    for say in sayings:
        with pytest.raises(SocketClosed) as caught:
            say()
        assert caught.value.initialized
        assert (caught.value.sent, caught.value.rcvd) == ((4000, "é"), (4001, "why"))
        assert (caught.value.code, caught.value.reason) == (4001, "why")


@ROLES
def test_section_5_5_1_messages_may_be_said_until_the_echo(role: Role) -> None:
    protocol = Protocol(role)
    fed(protocol, role, Wire(FIN | CLOSE))
    assert decode_frames(protocol.message("an answer"))[0][1] == b"an answer"
    protocol.owed_close()
    with pytest.raises(SocketClosed) as caught:
        protocol.message("too late")
    assert not caught.value.initialized
    assert caught.value.sent == caught.value.rcvd == (1005, "")


@ROLES
def test_section_7_1_7_nothing_is_said_after_the_close_for_a_violation(role: Role) -> None:
    protocol = Protocol(role)
    fed(protocol, role, Wire(FIN | 3))
    protocol.owed_close()
    with pytest.raises(SocketClosed) as caught:
        protocol.ping()
    assert caught.value.initialized
    assert caught.value.rcvd is None
    assert caught.value.sent is not None
    assert (caught.value.sent[0], caught.value.code) == (1002, 1006)


def test_section_9_an_opcode_can_be_said_once_it_is_claimed() -> None:
    with pytest.raises(ValueError, match="reserved"):
        Protocol(SERVER).message(Message(3, b"x"))
    assert Protocol(SERVER, opcodes=1 << 3).message(Message(3, b"x")) == b"\x83\x01x"


@ROLES
@pytest.mark.parametrize(
    ("payload", "size", "error"),
    [(5, None, TypeError), (None, None, TypeError), ("x", 0, ValueError), ("\ud800", None, UnicodeEncodeError)],
)
def test_what_can_not_be_said(role: Role, payload: Any, size: Any, error: type[Exception]) -> None:
    protocol = Protocol(role)
    with pytest.raises(error):
        protocol.message(payload, size)
    assert decode_frames(protocol.message("next"))[0][1] == b"next"


def test_nothing_is_said_while_another_call_runs() -> None:
    protocol = Protocol(SERVER)
    endpoint = protocol._take()
    for say in (lambda: protocol.message("x"), protocol.ping, protocol.pong):
        with pytest.raises(RuntimeError, match="another call"):
            say()
    protocol._idle.append(endpoint)
    assert protocol.ping() == b"\x89\x00"


# ---- frames of one's own ----


def spoken(frames: bytes) -> list[tuple[int, bytes]]:
    """Return first byte and payload of each frame that was said."""
    return [(first, payload) for first, payload, _ in decode_frames(frames)]


@ROLES
@pytest.mark.parametrize("length", [0, 1, 125, 126, 1023, 1024, 1025, 65_535, 65_536, 300_000])
def test_a_frame_is_said_as_the_reference_has_it(role: Role, length: int) -> None:
    payload = random.Random(length).randbytes(length)
    [(first, said, key)] = decode_frames(Protocol(role).frames(Frame(BINARY, payload)))
    assert (first, said) == (FIN | BINARY, payload)
    assert (key is not None) is (role is CLIENT)
    plain = Protocol(SERVER).frames(Frame(BINARY, payload))
    assert plain == encode(FIN | BINARY, payload)
    assert Protocol(CLIENT).frames(Frame(BINARY, payload, KEY)) == encode(FIN | BINARY, payload, KEY)


@ROLES
def test_no_frames_are_nothing(role: Role) -> None:
    assert Protocol(role).frames() == b""


def said_bad(role: Role) -> dict[str, tuple[Sequence[Frame], Frame, str]]:
    """Return what comes before a frame that can't be sent, that frame, and the section that forbids it."""
    in_text, in_binary = Frame(TEXT, b"x", final=False), Frame(BINARY, b"x", final=False)
    masks = role is CLIENT
    return {
        "a continuation of nothing": ((), Frame(CONTINUATION, b"x"), "5.4"),
        "a continuation of what has ended": ((Frame(TEXT, b"x"),), Frame(CONTINUATION), "5.4"),
        "a continuation after the last one": ((in_text, Frame(CONTINUATION)), Frame(CONTINUATION), "5.4"),
        "a text in a text": ((in_text,), Frame(TEXT, b"x"), "5.4"),
        "a binary in a text": ((in_text, Frame(PING)), Frame(BINARY, b"x", final=False), "5.4"),
        "a text in a binary": ((in_binary,), Frame(TEXT, b"x", final=False), "5.4"),
        "a reserved opcode": ((), Frame(3), "5.2"),
        "a reserved control frame": ((), Frame(11), "5.2"),
        "a reserved bit": ((), Frame(TEXT, b"x", rsv1=True), "5.2"),
        "another reserved bit": ((), Frame(BINARY, b"x", rsv2=True), "5.2"),
        "a reserved bit later": ((in_binary,), Frame(CONTINUATION, b"x", rsv3=True), "5.2"),
        "a text that is none": ((in_text,), Frame(CONTINUATION, b"\xff"), "8.1"),
        "a text that ends too early": ((Frame(TEXT, b"\xc3", final=False),), Frame(CONTINUATION), "8.1"),
        "a surrogate in two frames": (
            (Frame(TEXT, b"\xed", final=False),),
            Frame(CONTINUATION, b"\xa0", final=False),
            "8.1",
        ),
        "the wrong masking": ((), Frame(BINARY, b"x", mask=not masks), "5.1"),
        "the wrong masking in a text": ((in_text,), Frame(CONTINUATION, mask=not masks), "5.1"),
        **({} if masks else {"a key": ((), Frame(BINARY, b"x", KEY), "5.1")}),
        **{
            f"a control frame that is none {number}": ((in_text,), frame, section)
            for number, (frame, section) in enumerate(
                [
                    (Frame(PING, b"x" * 126, unchecked=True), "5.5"),
                    (Frame(PONG, final=False, unchecked=True), "5.5"),
                    (Frame(PING, rsv1=True, unchecked=True), "5.2"),
                    (Frame(CLOSE, b"x", unchecked=True), "5.5.1"),
                    (Frame(CLOSE, b"\x03\xed", unchecked=True), "7.4"),
                    (Frame(CLOSE, b"\x03\xe8\xc3", unchecked=True), "5.5.1"),
                ]
            )
        },
    }


SAID_BAD = [(role, name) for role in Role for name in said_bad(role)]


@pytest.mark.parametrize(("role", "name"), SAID_BAD, ids=lambda each: str(getattr(each, "name", each)))
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "the last of several"])
def test_section_5_a_frame_that_breaks_a_rule_is_not_said_and_changes_nothing(
    role: Role, name: str, alone: bool
) -> None:
    before, bad, section = said_bad(role)[name]
    bad.unchecked = False
    speaker, hearer = Protocol(role), Protocol(OTHER[role])
    untouched, said = Protocol(role), b""
    for frame in before:
        said += speaker.frames(frame)
        untouched.frames(frame)
    with pytest.raises(ValueError, match=rf"§{re.escape(section)}[^.\d]") as caught:
        speaker.frames(*([bad] if alone else [Frame(PING), bad]))
    assert "unchecked=True" in str(caught.value)
    assert not speaker.close_sent
    # what ends an unfinished message in the state before, and only there
    for frame in (Frame(CONTINUATION, b"\x9f\xbf"), Frame(CONTINUATION, b"\xa9"), Frame(CONTINUATION, b"y"), Frame(2)):
        expected_frames: list[tuple[int, bytes]] | None
        try:
            expected_frames = spoken(untouched.frames(frame))
        except ValueError:
            with pytest.raises(ValueError, match="§"):
                speaker.frames(frame)
            continue
        more = speaker.frames(frame)
        assert spoken(more) == expected_frames
        said += more
    hearer.feed(said + speaker.message("next"))
    assert hearer.error is None


@ROLES
def test_all_frames_are_looked_at_before_one_counts_as_said(role: Role) -> None:
    speaker = Protocol(role)
    begin, end = Frame(TEXT, b"\xc3", final=False), Frame(CONTINUATION, b"\xa9")
    bad: list[Any] = [
        Frame(TEXT, b"x"),
        Frame(CONTINUATION, b"x"),
        Frame(3),
        "text",
        b"bytes",
        Message(TEXT, "x"),
        None,
    ]
    for attribute, value in (("opcode", 16), ("payload", "x"), ("payload", None), ("masking_key", b"abc")):
        for unchecked in (False, True):
            broken = Frame(BINARY, b"x", unchecked=unchecked)
            setattr(broken, attribute, value)
            bad.append(broken)
    for last in bad:
        with pytest.raises((ValueError, TypeError)):
            speaker.frames(begin, last)
        with pytest.raises((ValueError, TypeError)):
            speaker.frames(begin, end, Frame(CLOSE), last)
    assert not speaker.close_sent
    assert spoken(speaker.frames(begin, end)) == [(TEXT, b"\xc3"), (FIN, b"\xa9")]
    assert spoken(speaker.frames(begin)) == [(TEXT, b"\xc3")]
    for last in bad[1:]:
        with pytest.raises((ValueError, TypeError)):
            speaker.frames(end, last)
    assert spoken(speaker.frames(end, Frame(CLOSE))) == [(FIN, b"\xa9"), (FIN | CLOSE, b"")]


@ROLES
@pytest.mark.parametrize("what", ["text", b"bytes", None, Message(TEXT, "x"), [Frame(TEXT)]], ids=repr)
def test_only_frames_are_said_as_frames(role: Role, what: Any) -> None:
    with pytest.raises(TypeError, match="a Frame can be sent here"):
        Protocol(role).frames(what)


@ROLES
def test_section_8_1_a_text_is_judged_over_all_its_frames_however_it_is_split(role: Role) -> None:
    for data in (
        "aé€\U0001f600z".encode(),
        b"a\xc3(",
        b"\xf0\x9f\x98",
        b"\xf4\x90\x80\x80",
        b"\xed\xa0\x80",
        b"\xe0\x80",
    ):
        valid = decodes(data)
        for cuts in ([], *[[place] for place in range(len(data) + 1)], list(range(len(data) + 1))):
            pieces = cut(data, cuts)
            frames = [
                Frame(CONTINUATION if number else TEXT, piece, final=number == len(pieces) - 1, unchecked=True)
                for number, piece in enumerate(pieces)
            ]
            for frame in frames:
                frame.unchecked = False
            speaker = Protocol(role)
            if valid:
                assert Protocol(OTHER[role]).feed(speaker.frames(*frames)) == [message(TEXT, data)]
                continue
            with pytest.raises(ValueError, match=r"§8\.1"):
                speaker.frames(*frames)
            with pytest.raises(ValueError, match=r"§8\.1"):
                for frame in frames:
                    speaker.frames(frame)


@ROLES
def test_section_5_2_what_was_claimed_can_be_said(role: Role) -> None:
    speaker = Protocol(role, frames=True, rsv=RSV1 | RSV3, opcodes=1 << 3 | 1 << 11)
    frames = [
        Frame(TEXT, b"\xff", rsv1=True, final=False),
        Frame(11, b"\xff"),
        Frame(CONTINUATION, b"\xff", rsv3=True),
        Frame(3, b"\xff", final=False),
        Frame(CONTINUATION, b"\xff"),
    ]
    said = speaker.frames(*frames)
    assert [first for first, _ in spoken(said)] == [TEXT | RSV1, FIN | 11, FIN | RSV3, 3, FIN]
    hearer = Protocol(OTHER[role], frames=True, rsv=RSV1 | RSV3, opcodes=1 << 3 | 1 << 11)
    assert len(hearer.feed(said)) == 5
    for wrong in (Frame(TEXT, rsv2=True), Frame(4), Frame(12), Frame(TEXT, b"\xff", rsv2=True, rsv1=True)):
        with pytest.raises(ValueError, match=r"§5\.2"):
            speaker.frames(wrong)


@ROLES
def test_section_9_1_in_messages_a_claimed_bit_is_on_the_first_frame_alone(role: Role) -> None:
    speaker = Protocol(role, rsv=RSV1)
    frames = Frame(TEXT, b"\xff\xff", rsv1=True).fragment(1)
    assert [first for first, _ in spoken(speaker.frames(*frames))] == [TEXT | RSV1, FIN]
    with pytest.raises(ValueError, match=r"§5\.2"):
        speaker.frames(frames[0], Frame(CONTINUATION, rsv1=True))
    # the bit of a message is forgotten with it
    with pytest.raises(ValueError, match=r"§8\.1"):
        speaker.frames(*frames, Frame(TEXT, b"\xc3", final=False), Frame(CONTINUATION))


@ROLES
def test_a_message_can_not_begin_inside_one_but_a_ping_can(role: Role) -> None:
    speaker, hearer = Protocol(role), Protocol(OTHER[role])
    said = speaker.frames(Frame(TEXT, b"a", final=False))
    for say in (
        lambda: speaker.message("x"),
        lambda: speaker.message(b"x", 1),
        lambda: speaker.message(TextMessage("x")),
    ):
        with pytest.raises(ValueError, match=r"§5\.4"):
            say()
    said += speaker.ping(b"1") + speaker.frames(Frame(PING, b"2")) + speaker.pong()
    said += speaker.frames(Frame(CONTINUATION, b"b")) + speaker.message("c")
    assert hearer.feed(said) == [
        message(PING, b"1"),
        message(PING, b"2"),
        message(PONG, b""),
        message(TEXT, b"ab"),
        message(TEXT, b"c"),
    ]


@ROLES
def test_what_arrives_and_what_is_said_have_nothing_to_do_with_each_other(role: Role) -> None:
    protocol = Protocol(role, frames=True)
    fed(protocol, role, Wire(TEXT, b"\xc3"))
    protocol.frames(Frame(BINARY, b"\xff", final=False))
    assert fed(protocol, role, Wire(FIN | CONTINUATION, b"\xa9")) == [message(CONTINUATION, b"\xa9")]
    assert spoken(protocol.frames(Frame(CONTINUATION, b"\xff"))) == [(FIN, b"\xff")]
    assert protocol.error is None


# ---- a Close of one's own ----


@ROLES
@pytest.mark.parametrize("alone", [True, False])
def test_section_5_5_1_a_close_among_frames_is_the_close(role: Role, alone: bool) -> None:
    speaker, hearer = Protocol(role), Protocol(OTHER[role])
    close = create_close_frame(4000, "é")
    said = speaker.frames(close) if alone else speaker.frames(Frame(TEXT, b"bye"), close)
    assert speaker.close_sent
    assert (speaker.close(), speaker.owed_close()) == (b"", b"")
    assert hearer.feed(said)[-1] == message(CLOSE, b"\x0f\xa0" + E_ACUTE)
    fed(speaker, role, Wire(FIN | PING, b"too late"))
    assert speaker.replies() == b""
    for say in (
        lambda: speaker.message("x"),
        speaker.ping,
        lambda: speaker.frames(Frame(TEXT)),
        lambda: speaker.frames(Frame(TEXT), Frame(TEXT)),
        lambda: speaker.frames(close),
        lambda: speaker.frames(close, close),
    ):
        with pytest.raises(SocketClosed) as caught:
            say()
        assert caught.value.initialized
        assert caught.value.sent == (4000, "é")
    fed(speaker, role, Wire(FIN | CLOSE))
    assert speaker.owed_close() == b""


@ROLES
def test_section_5_5_1_nothing_follows_a_close_among_several_frames(role: Role) -> None:
    speaker = Protocol(role)
    for last in (Frame(TEXT), Frame(PING), Frame(CLOSE)):
        with pytest.raises(ValueError, match=r"§5\.5\.1"):
            speaker.frames(Frame(CLOSE), last)
    assert not speaker.close_sent
    assert speaker.message("still open")
    assert speaker.close()


@ROLES
def test_section_5_5_1_a_close_of_ones_own_is_the_echo_that_is_owed(role: Role) -> None:
    speaker = Protocol(role)
    fed(speaker, role, Wire(FIN | CLOSE, b"\x03\xe9"))
    assert spoken(speaker.frames(Frame(BINARY, b"an answer"), create_close_frame(1001, "bye")))[-1][1] == b"\x03\xe9bye"
    assert speaker.owed_close() == b""
    with pytest.raises(SocketClosed) as caught:
        speaker.frames(Frame(PING))
    assert not caught.value.initialized
    assert (caught.value.sent, caught.value.rcvd) == ((1001, "bye"), (1001, ""))


@ROLES
def test_section_7_1_7_a_close_of_ones_own_answers_a_violation(role: Role) -> None:
    speaker = Protocol(role)
    fed(speaker, role, Wire(FIN | 3))
    assert spoken(speaker.frames(create_close_frame(1002, "no"))) == [(FIN | CLOSE, b"\x03\xeano")]
    assert (speaker.owed_close(), speaker.close_sent) == (b"", True)


@ROLES
@pytest.mark.parametrize("how", ["close", "echo", "error"])
def test_section_5_5_1_no_frame_follows_a_close_of_the_protocol(role: Role, how: str) -> None:
    speaker = Protocol(role)
    speaker.frames(Frame(TEXT, b"x", final=False))
    if how != "close":
        fed(speaker, role, Wire(FIN | (CLOSE if how == "echo" else 3)))
    assert speaker.close() if how == "close" else speaker.owed_close()
    for frames in ([Frame(PING)], [Frame(CONTINUATION)], [Frame(CONTINUATION), Frame(PING)], [Frame(CLOSE)]):
        with pytest.raises(SocketClosed) as caught:
            speaker.frames(*frames)
        assert caught.value.initialized is (how != "echo")


@ROLES
def test_a_message_that_is_unfinished_does_not_keep_one_from_closing(role: Role) -> None:
    speaker, hearer = Protocol(role), Protocol(OTHER[role])
    said = speaker.frames(Frame(TEXT, b"\xc3", final=False)) + speaker.close()
    assert hearer.feed(said) == [message(CLOSE, b"\x03\xe8")]


# ---- frames that are not checked ----

WRONG = [
    Frame(CONTINUATION, b"x", unchecked=True),
    Frame(TEXT, b"\xff", unchecked=True),
    Frame(TEXT, b"x", final=False, unchecked=True),
    Frame(3, b"x", rsv1=True, rsv2=True, rsv3=True, unchecked=True),
    Frame(PING, b"x" * 2000, final=False, unchecked=True),
    Frame(CLOSE, b"x", unchecked=True),
    Frame(CLOSE, b"", unchecked=True),
    Frame(15, b"x" * 70_000, unchecked=True),
]


@ROLES
@pytest.mark.parametrize("frame", WRONG, ids=repr)
def test_an_unchecked_frame_is_packed_and_forgotten(role: Role, frame: Frame) -> None:
    speaker, hearer = Protocol(role), Protocol(OTHER[role])
    began = speaker.frames(Frame(TEXT, b"\xc3", final=False))
    expected_frame = (frame.first_byte(), frame.payload)
    for said in (speaker.frames(frame), speaker.frames(frame, frame)):
        assert {(first, payload) for first, payload, _ in decode_frames(said)} == {expected_frame}
        assert {key is not None for _, _, key in decode_frames(said)} == {role is CLIENT}
    assert (speaker.close_sent, speaker.owed_close()) == (False, b"")
    ended = speaker.frames(frame, Frame(CONTINUATION, b"\xa9"))
    start = encode(*expected_frame, b"keys" if role is CLIENT else None)
    assert hearer.feed(began + ended[len(start) :]) == [message(TEXT, E_ACUTE)]
    assert speaker.close()
    assert spoken(speaker.frames(frame)) == [expected_frame]
    assert spoken(speaker.frames(frame, frame)) == [expected_frame] * 2


@ROLES
@pytest.mark.parametrize("length", [1, 5000])
def test_section_5_1_only_an_unchecked_frame_may_be_masked_wrongly(role: Role, length: int) -> None:
    payload = b"x" * length
    speaker = Protocol(role)
    assert speaker.frames(Frame(BINARY, payload, mask=False, unchecked=True)) == encode(FIN | BINARY, payload)
    assert speaker.frames(Frame(BINARY, payload, KEY, unchecked=True)) == encode(FIN | BINARY, payload, KEY)
    assert speaker.frames(Frame(BINARY, payload, KEY, mask=False, unchecked=True)) == encode(FIN | BINARY, payload, KEY)
    [(_, said, key)] = decode_frames(speaker.frames(Frame(BINARY, payload, mask=True, unchecked=True)))
    assert (said, key is None) == (payload, False)


@pytest.mark.parametrize("truth", [2, 4, 5, 7, "yes"])
def test_what_an_attribute_was_changed_to_is_only_true_or_false(truth: Any) -> None:
    server, client = Protocol(SERVER), Protocol(CLIENT)
    frame = Frame(BINARY, b"x")
    frame.mask = truth
    with pytest.raises(ValueError, match=r"§5\.1"):
        server.frames(frame)
    assert spoken(client.frames(frame)) == [(FIN | BINARY, b"x")]
    frame = Frame(CONTINUATION, b"x", unchecked=True)
    frame.unchecked = truth
    assert server.frames(frame) == b"\x80\x01x"
    assert spoken(client.frames(frame)) == [(FIN, b"x")]
    frame.final = frame.rsv1 = truth
    assert server.frames(frame) == b"\xc0\x01x"


# ---- the same as the reference, and as the other end ----

OWN_FRAMES = st.builds(
    lambda opcode, payload, final, rsv: (opcode, payload, final, rsv),
    st.sampled_from([CONTINUATION, CONTINUATION, TEXT, BINARY, PING, PONG]) | st.integers(0, 15),
    st.sampled_from([b"", b"x", b"\xc3", b"\xa9", E_ACUTE, b"\x03\xe8", b"x" * 126]) | st.binary(max_size=8),
    st.booleans(),
    st.sampled_from([0, 0, 0, RSV1, RSV2, RSV1 | RSV3]),
)


def own_frame(fields: tuple[int, bytes, bool, int]) -> Frame:
    """Return a frame that only its protocol has to judge."""
    opcode, payload, final, rsv = fields
    bits = {"rsv1": bool(rsv & RSV1), "rsv2": bool(rsv & RSV2), "rsv3": bool(rsv & RSV3)}
    frame = Frame(opcode, payload, final=final, **bits, unchecked=True)
    frame.unchecked = False
    return frame


@ROLES
@given(
    st.lists(st.lists(OWN_FRAMES, min_size=1, max_size=3), max_size=8),
    st.booleans(),
    st.sampled_from([0, RSV1, RSV1 | RSV2 | RSV3]),
    st.sampled_from([0, 0x0008, 0x8080, 0x0007]),
)
def test_what_can_be_said_is_what_the_reference_accepts(
    role: Role, groups: list[list[tuple[int, bytes, bool, int]]], frames: bool, rsv: int, opcodes: int
) -> None:
    claims: dict[str, Any] = {"frames": frames, "rsv": rsv, "opcodes": opcodes}
    speaker, hearer = Protocol(role, **claims), Protocol(OTHER[role], **claims)
    reference = Decoder(OTHER[role], **claims)
    key = KEY if role is CLIENT else None
    accepted, said, closed = b"", b"", False
    for group in groups:
        own = [own_frame(fields) for fields in group]
        candidate = b"".join(encode(frame.first_byte(), frame.payload, key) for frame in own)
        follows = any(frame.opcode == CLOSE for frame in own[:-1])
        error = reference.decode(accepted + candidate).error
        try:
            data = speaker.frames(*own)
        except SocketClosed:
            assert closed
            continue
        except ValueError:
            assert error or follows
            continue
        assert (error, follows, closed) == (None, False, False)
        assert spoken(data) == [(frame.first_byte(), frame.payload) for frame in own]
        assert {each is not None for _, _, each in decode_frames(data)} == {role is CLIENT}
        accepted, said, closed = accepted + candidate, said + data, own[-1].opcode == CLOSE
        assert speaker.close_sent is closed
    seen = outcome(hearer, [said])
    assert seen == reference.decode(accepted)
    assert seen.error is None


@ROLES
@GRANULARITIES
@given(WIRES)
def test_what_was_received_can_be_said(role: Role, frames: bool, wires: list[Wire]) -> None:
    """What one end accepts, an end of the other role may send, and the same end hears it again."""
    claims: dict[str, Any] = {"frames": frames, "max_size": None, "rsv": RSV1, "opcodes": 1 << 3 | 1 << 11}
    first = Protocol(role, **claims)
    events = first.feed(wire(role, *wires))
    speaker, again = Protocol(OTHER[role], **claims), Protocol(role, **claims)
    heard = []
    for event in events:
        frame = received_frame(event.opcode, event.payload, final=event.final, rsv=event.rsv)
        heard += again.feed(speaker.frames(frame))
    assert heard == events
    assert again.error is None


# ---- §5.3: keys ----


@pytest.mark.parametrize("length", [0, 1, 2000])
def test_d20_the_same_frame_has_another_key_each_time(length: int) -> None:
    count = 2000
    protocol = Protocol(CLIENT)
    frame = Frame(BINARY, bytes(length))
    said = b"".join([protocol.frames(frame) for _ in range(count // 2)]) + protocol.frames(*[frame] * (count // 2))
    keys = [int.from_bytes(key or b"") for _, _, key in decode_frames(said)]
    assert len(keys) == count
    assert len(set(keys)) > count - 5
    # 12 standard deviations: each bit is set in half of them
    deviation = (count / 4) ** 0.5
    assert all(abs(sum(key >> bit & 1 for key in keys) - count / 2) < 12 * deviation for bit in range(32))
    assert (frame.masking_key, frame.mask) == (b"", None)


def test_section_5_3_two_protocols_share_no_keys() -> None:
    ends = [Protocol(CLIENT) for _ in range(20)]
    keys = {key for _ in range(20) for end in ends for _, _, key in decode_frames(end.message(b""))}
    assert len(keys) > 398


FORK = """
import os
from wspy import Protocol, Role

protocol = Protocol(Role.CLIENT)
protocol.message(b"")
reading, writing = os.pipe()
child = os.fork()
for _ in range(200):
    key = protocol.message(b"")[2:6]
    os.write(writing if child == 0 else 1, key)
if child == 0:
    os._exit(0)
os.close(writing)
assert os.waitpid(child, 0)[1] == 0
os.write(1, os.read(reading, 800))
"""


def test_n7_section_5_3_the_child_of_a_fork_has_keys_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, check=True, timeout=50)
    assert done.stderr == b""
    keys = [done.stdout[at : at + 4] for at in range(0, len(done.stdout), 4)]
    assert len(keys) == 400
    assert len(set(keys)) > 397


# ---- memory that is shared ----


@ROLES
def test_what_was_said_stays_as_it_was(role: Role) -> None:
    protocol, peer = Protocol(role), Protocol(OTHER[role], max_size=None)
    payloads = [bytes([n % 256]) * (n * 37 % 3000) for n in range(300)]
    said = [protocol.frames(Frame(BINARY, payload)) for payload in payloads]
    copies = [bytes(bytearray(each)) for each in said]
    assert said == copies
    assert [hash(each) for each in said] == [hash(each) for each in copies]
    assert [event.payload for each in said for event in peer.feed(each)] == payloads


@ROLES
def test_bytes_that_python_shares_are_never_written(role: Role) -> None:
    shared = [b"", *[bytes((n,)) for n in range(256)]]
    protocol = Protocol(role)
    for payload in shared:
        for frame in (Frame(BINARY, payload), Frame(BINARY, payload, mask=role is CLIENT), Frame(PING, payload)):
            assert spoken(protocol.frames(frame)) == [(frame.first_byte(), payload)]
            assert spoken(protocol.frames(frame, frame)) == [(frame.first_byte(), payload)] * 2
        assert spoken(protocol.message(payload))[0][1] == payload
        assert fed(protocol, role, Wire(FIN | BINARY, payload)) == [message(BINARY, payload)]
    assert shared == [b"", *[bytes.fromhex(f"{n:02x}") for n in range(256)]]
    assert (bytes(0), bytes(1), bytes((255,))) == (bytes.fromhex(""), bytes.fromhex("00"), bytes.fromhex("ff"))


@ROLES
@pytest.mark.parametrize("length", [100, 5000, 100_000])
def test_the_payload_of_a_frame_is_never_written(role: Role, length: int) -> None:
    payload = b"\x55" * length
    frame = Frame(TEXT, payload)
    for _ in range(3):
        Protocol(role).frames(frame, Frame(BINARY, payload))
        Protocol(role).message(payload)
        Protocol(role).message(payload.decode())
    assert payload == b"\x55" * length == frame.payload


@ROLES
def test_what_was_said_is_not_kept(role: Role) -> None:
    protocol = Protocol(role)
    protocol.message(b"warm")
    before = allocated()
    for _ in range(3):
        protocol.message(bytes(1 << 20))
        protocol.frames(*Frame(BINARY, bytes(1 << 20)).fragment(1000))
    assert allocated() - before < 64 << 10


@ROLES
@pytest.mark.parametrize("piece", [100, 4096, 4097, 70_000])
def test_memory_is_given_back_whatever_arrived(role: Role, piece: int) -> None:
    streams = [
        wire(role, Wire(FIN | BINARY, bytes(1 << 20))),
        wire(
            role, Wire(BINARY, bytes(300_000)), Wire(FIN | PING, b"p" * 125), Wire(FIN | CONTINUATION, bytes(300_000))
        ),
        wire(role, Wire(FIN | BINARY)) * 6_000,
        wire(role, Wire(FIN | PING, b"p")) * 6_000,
    ]
    protocol = Protocol(role)
    fed(protocol, role, text("warm"), Wire(FIN | PING))
    before = allocated()
    for stream in streams:
        for at in range(0, len(stream), piece):
            protocol.feed(stream[at : at + piece])
        protocol.replies()
        assert allocated() - before < 96 << 10


# ---- events of one step ----


@ROLES
@pytest.mark.parametrize("large", [0, 130, 4000, 10_000, 20_000])
def test_each_event_is_taken_however_their_table_grows(role: Role, large: int) -> None:
    chance = random.Random(large)
    single = wire(role, Wire(FIN | BINARY))
    for _ in range(80):
        protocol = Protocol(role)
        for _ in range(6):
            count = chance.choice([1, 2, 60, 63, 64, 65, 128, 200, 500, 512, 513, 600, 1000, 2000])
            size = large and chance.randrange(large)
            events = protocol.feed(single * count + wire(role, Wire(FIN | BINARY, bytes(size))))
            assert len(events) == count + 1
            assert len(events[-1].payload) == size


@ROLES
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_one_event_or_many_of_every_kind(role: Role, kind: Callable[[bytes], Any]) -> None:
    options: dict[str, Any] = {"rsv": RSV1, "opcodes": 1 << 3 | 1 << 11}
    wires = [
        Wire(FIN | TEXT, E_ACUTE),
        Wire(FIN | BINARY, b"x" * 5000),
        Wire(FIN | PING, b"1"),
        Wire(FIN | 3, b"claimed"),
        Wire(FIN | 11, b"claimed"),
        Wire(FIN | RSV1 | TEXT, b"\xff"),
        Wire(TEXT, b"\xc3"),
        Wire(FIN | PONG),
        Wire(FIN | CONTINUATION, b"\xa9"),
        Wire(BINARY),
        Wire(FIN | CONTINUATION),
    ]
    data = wire(role, *wires)
    for frames in (False, True):
        whole = Decoder(role, frames=frames, **options).decode(data)
        protocol = Protocol(role, frames=frames, **options)
        seen = [event for each in wires for event in protocol.feed(kind(each.encode(role)))]
        assert seen == whole.events
        assert Protocol(role, frames=frames, **options).feed(kind(data)) == whole.events
        assert {type(event) for event in seen} == {Event}
        assert {type(event.payload) for event in seen} == {bytes}


# ---- one call at a time ----


def test_no_frame_is_said_while_another_call_runs() -> None:
    protocol = Protocol(SERVER)
    begin = Frame(TEXT, b"x", final=False)
    endpoint = protocol._take()
    for say in (lambda: protocol.frames(begin), lambda: protocol.frames(begin, Frame(CONTINUATION))):
        with pytest.raises(RuntimeError, match="another call"):
            say()
    protocol._idle.append(endpoint)
    assert protocol.message("next") == b"\x81\x04next"
    assert protocol.frames(begin, Frame(PING)) == b"\x01\x01x\x89\x00"
    with pytest.raises(ValueError, match=r"§5\.4"):
        protocol.frames(Frame(PING), Frame(TEXT))
    assert protocol.frames(Frame(CONTINUATION)) == b"\x80\x00"


@pytest.mark.parametrize("count", [1, 3])
def test_threads_that_do_not_take_turns_say_all_or_nothing(count: int) -> None:
    protocol = Protocol(CLIENT)
    frames = Frame(TEXT, "é" * 3000).fragment(6000 // count)
    said: list[bytes] = []
    unexpected: list[BaseException] = []

    def say_often() -> None:
        for _ in range(200):
            try:
                said.append(protocol.frames(*frames))
            except RuntimeError:
                continue
            except BaseException as error:  # noqa: BLE001 -- for the assertion below
                unexpected.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=say_often) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not unexpected
    assert Protocol(SERVER).feed(b"".join(said)) == [message(TEXT, "é".encode() * 3000)] * len(said)
    keys = [key for _, _, key in decode_frames(b"".join(said))]
    assert len(set(keys)) > len(keys) - 3


def test_section_7_1_7_a_close_behind_what_an_extension_refuses_does_not_count() -> None:
    """However both arrive: the Close may have been looked at before the extension has read what came before it."""
    protocol = Protocol(SERVER)
    fed(protocol, SERVER, text("refused"), Wire(FIN | CLOSE, b"\x03\xe8"))
    assert protocol.rcvd == (1000, "")
    protocol.fail(ProtocolError(1007, "refused"))
    assert protocol.rcvd is None
    assert protocol.began_closing
    assert protocol.sent is None
    assert decode_frames(protocol.owed_close())[0][1] == (1007).to_bytes(2)
    assert protocol.sent == (1007, "")
