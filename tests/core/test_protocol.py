"""Does the protocol's table of states and limits hold for every header in every state, at a linear price?"""

from __future__ import annotations

import itertools
import random
import time
from typing import TYPE_CHECKING, Any

import native
import pytest
from endpoints import ERROR_NAMES, Endpoint
from guard import GuardedMemory
from hypothesis import given
from hypothesis import strategies as st
from measures import PATIENCE
from memory import allocated
from reference import Decoder, encode
from vectors import (
    BINARY,
    CLIENT,
    CLOSE,
    CONTINUATION,
    FIN,
    KEY,
    PING,
    RSV1,
    SERVER,
    TEXT,
    VECTORS,
    Wire,
    fragment,
    message,
)

from wspy._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from wspy.codes import Role

ROLES = pytest.mark.parametrize("role", [SERVER, CLIENT], ids=["server", "client"])
GRANULARITIES = pytest.mark.parametrize("frames", [False, True], ids=["messages", "frames"])
NONE = 2**64 - 1


def wire(role: Role, *wires: Wire) -> bytes:
    return b"".join(each.encode(role) for each in wires)


# ---- the table of states ----

STATES = {
    "idle": (),
    "after a message": (Wire(FIN | TEXT, b"x"),),
    "in a text": (Wire(TEXT, b"x"),),
    "in an empty text": (Wire(TEXT),),
    "inside a code point": (Wire(TEXT, b"\xc3"),),
    "in a binary": (Wire(BINARY, b"x"),),
    "in a claimed text": (Wire(RSV1 | TEXT, b"\xff"),),
    "in a claimed opcode": (Wire(3, b"\xff"),),
    "after a fragment": (Wire(TEXT, b"x"), Wire(CONTINUATION, b"y")),
    "after a message in fragments": (Wire(BINARY, b"x"), Wire(FIN | CONTINUATION, b"y")),
    "after a ping in a message": (Wire(TEXT, b"x"), Wire(FIN | PING, b"y")),
}
CLAIMS: Mapping[str, Any] = {"rsv": RSV1, "opcodes": 1 << 3 | 1 << 11}


@ROLES
@GRANULARITIES
@pytest.mark.parametrize("state", STATES)
def test_section_5_every_first_byte_in_every_state(role: Role, frames: bool, state: str) -> None:
    before = wire(role, *STATES[state])
    options = CLAIMS if "claimed" in state else {}
    for first, masked in itertools.product(range(256), (False, True)):
        for payload in (b"", b"\x03", b"\x03\xe8", b"\xa9" * 126):
            data = before + encode(first, payload, KEY if masked else None)
            for pieces in ([data], [before, data[len(before) :]]):
                seen = Endpoint(role, frames=frames, **options).outcome(pieces)
                assert seen == Decoder(role, frames=frames, **options).decode(data), (first, masked, payload)


@ROLES
@pytest.mark.parametrize("claims", [(0, 0), (RSV1, 0), (0x70, 0), (0, 0xF8F8), (0x20, 0x0808), (0, 0x07)], ids=str)
def test_section_5_8_every_first_byte_with_every_claim(role: Role, claims: tuple[int, int]) -> None:
    options: dict[str, Any] = {"rsv": claims[0], "opcodes": claims[1]}
    for first, frames in itertools.product(range(256), (False, True)):
        data = wire(role, Wire(first, b"\xa9"), Wire(FIN | CONTINUATION, b"x"))
        seen = Endpoint(role, frames=frames, **options).outcome([data])
        assert seen == Decoder(role, frames=frames, **options).decode(data), first


@ROLES
def test_section_5_5_1_every_close_code(role: Role) -> None:
    for code in range(65536):
        if lib.wspy_close_code_valid(code) or code % 7 == 0 or code < 5100:
            data = wire(role, Wire(FIN | CLOSE, code.to_bytes(2)))
            endpoint = Endpoint(role)
            is_valid = code in range(1000, 1004) or code in range(1007, 1015) or code in range(3000, 5000)
            assert endpoint.feed(data) == (1 if is_valid else lib.WSPY_ERROR_CLOSE_CODE)


# ---- limits, at the limit and one beyond ----


def decides(role: Role, wires: list[Wire], **limits: int) -> int:
    """Feed all but the last frame's payload. Return the error."""
    data = wire(role, *wires[:-1]) + wires[-1].header(role)
    endpoint = Endpoint(role, **limits)  # type: ignore[arg-type]
    endpoint.feed(data)
    return endpoint.error()


@ROLES
@pytest.mark.parametrize("limit", [0, 1, 125, 126, 65535, 65536, 1 << 20, 1 << 32, (1 << 63) - 2])
def test_h1_max_size_in_one_frame(role: Role, limit: int) -> None:
    for length, error in ((limit, 0), (limit + 1, lib.WSPY_ERROR_MESSAGE_SIZE)):
        for first in (FIN | TEXT, BINARY):
            assert decides(role, [Wire(first, announced=length)], max_size=limit) == error
            assert decides(role, [Wire(first, announced=length)], max_size=NONE) == 0


@ROLES
@pytest.mark.parametrize("limit", [2, 126, 65536, 1 << 32, (1 << 63) + 1, NONE - 1])
def test_d8_max_size_over_fragments(role: Role, limit: int) -> None:
    for so_far in (b"", b"x", b"xy"):
        rest = limit - len(so_far)
        for length, error in ((rest, 0), (rest + 1, lib.WSPY_ERROR_MESSAGE_SIZE)):
            if length < 1 << 63:
                wires = [Wire(BINARY, so_far), Wire(CONTINUATION, announced=length)]
                assert decides(role, wires, max_size=limit) == error


@ROLES
@pytest.mark.parametrize("limit", [0, 1, 1023, 1024, 1 << 20, 1 << 62])
def test_g16_what_extensions_are_to_read_may_be_a_little_longer(role: Role, limit: int) -> None:
    most = limit + limit // 16 + 64
    for length, error in ((most, 0), (most + 1, lib.WSPY_ERROR_MESSAGE_SIZE)):
        for first, claims in ((RSV1 | TEXT, {"rsv": RSV1}), (TEXT, {"opcodes": 0x07}), (3, {"opcodes": 1 << 3})):
            assert decides(role, [Wire(first, announced=length)], max_size=limit, **claims) == error
            fragments = [Wire(first, b"x"), Wire(CONTINUATION, announced=length - 1)]
            assert decides(role, fragments, max_size=limit, **claims) == error
    unmarked = [Wire(FIN | BINARY, announced=limit + 1)]
    assert decides(role, unmarked, max_size=limit, rsv=RSV1) == lib.WSPY_ERROR_MESSAGE_SIZE
    assert decides(role, [Wire(FIN | RSV1 | BINARY, announced=1 << 62)], max_size=NONE, rsv=RSV1) == 0


@ROLES
@pytest.mark.parametrize("limit", [0, 1, 126, 65536])
def test_h1_max_fragment_size(role: Role, limit: int) -> None:
    for length, error in ((limit, 0), (limit + 1, lib.WSPY_ERROR_FRAGMENT_SIZE)):
        assert decides(role, [Wire(FIN | BINARY, announced=length)], max_fragment_size=limit) == error
        wires = [Wire(TEXT), Wire(FIN | CONTINUATION, announced=length)]
        assert decides(role, wires, max_fragment_size=limit) == error


@ROLES
@GRANULARITIES
@pytest.mark.parametrize("limit", [1, 2, 3, 100, 131072])
def test_h2_max_fragments(role: Role, frames: bool, limit: int) -> None:
    endpoint = Endpoint(role, frames=frames, max_fragments=limit)
    for opcode in (TEXT, BINARY):
        endpoint.feed(wire(role, Wire(opcode if limit > 1 else FIN | opcode)))
        endpoint.feed(wire(role, Wire(CONTINUATION)) * (limit - 2))
        assert endpoint.feed(wire(role, Wire(FIN | CONTINUATION)) * (limit > 1)) >= 0
        endpoint.clear()
    endpoint.feed(wire(role, Wire(TEXT)) + wire(role, Wire(CONTINUATION)) * (limit - 1))
    assert endpoint.error() == 0
    assert endpoint.feed(wire(role, Wire(FIN | CONTINUATION))) == lib.WSPY_ERROR_FRAGMENT_COUNT


@ROLES
def test_h2_no_limit_of_fragments(role: Role) -> None:
    endpoint = Endpoint(role, max_fragments=2**32 - 1)
    endpoint.feed(wire(role, Wire(BINARY)))
    for _ in range(20):
        assert endpoint.feed(wire(role, Wire(CONTINUATION)) * 10_000) == 0
        endpoint.clear()


@ROLES
def test_r7_control_frames_count_for_no_limit(role: Role) -> None:
    endpoint = Endpoint(role, max_size=2, max_fragment_size=1, max_fragments=2)
    between = [Wire(FIN | PING, b"x" * 125)] * 5
    wires = [Wire(BINARY, b"1"), *between, Wire(FIN | CONTINUATION, b"2")]
    assert endpoint.feed(wire(role, *wires)) == 6
    assert endpoint.events()[-1] == message(BINARY, b"12")


@ROLES
def test_the_next_message_starts_at_zero(role: Role) -> None:
    endpoint = Endpoint(role, max_size=3, max_fragments=2)
    wires = [Wire(BINARY, b"12"), Wire(FIN | CONTINUATION, b"3")] * 3 + [Wire(FIN | BINARY, b"123")] * 3
    assert endpoint.feed(wire(role, *wires)) == 6


# ---- the twins of masking and validation ----


@pytest.fixture(params=[0, 1], ids=["scalar", "best"])
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    lib.wspy_mask_select(0 if request.param == 0 else -1)
    lib.wspy_utf8_select(request.param)
    yield
    lib.wspy_mask_select(-1)
    lib.wspy_utf8_select(1)


@ROLES
@GRANULARITIES
def test_the_vectors_with_both_implementations(role: Role, frames: bool, implementation: None) -> None:
    for vector in VECTORS:
        if vector.role is role:
            endpoint = Endpoint(role, frames=frames, **vector.options)
            seen = endpoint.outcome([vector.data[:9], vector.data[9:200], vector.data[200:]])
            events = vector.frames if frames else vector.messages
            assert seen == (list(events), list(vector.pongs), vector.error, vector.owed_close), vector.name


@ROLES
@given(
    st.lists(st.sampled_from(["a" * 70, "é", "€uro", "\U0001f600", "\0"]), max_size=8), st.lists(st.integers(0, 400))
)
def test_f2_a_text_cut_anywhere_into_fragments_and_segments(role: Role, parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts).encode()
    places = sorted({0, *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise([*places, len(text)])]
    wires = [Wire(CONTINUATION if number else TEXT, piece) for number, piece in enumerate(pieces)]
    data = wire(role, *wires[:-1], Wire(FIN | wires[-1].first, wires[-1].payload))
    for size in (1, 5, 64, len(data)):
        seen = Endpoint(role).outcome([data[i : i + size] for i in range(0, len(data), size)])
        assert seen.events == [message(TEXT, text)]


@ROLES
def test_masking_goes_on_at_every_phase(role: Role) -> None:
    payload = random.Random(1).randbytes(64)
    for first, second in itertools.combinations(range(20), 2):
        data = wire(role, Wire(BINARY, payload), Wire(FIN | CONTINUATION, payload[:-1], key=b"\x01\x80\xff\x7e"))
        pieces = [data[:first], data[first:second], data[second : second + 41], data[second + 41 :]]
        assert Endpoint(role).outcome(pieces).events == [message(BINARY, payload + payload[:-1])]


# ---- frame granularity ----


@ROLES
def test_a_frame_in_pieces_is_delivered_whole(role: Role) -> None:
    data = wire(role, Wire(TEXT, b"abc\xc3"), Wire(FIN | CONTINUATION, b"\xa9def"))
    for size in (1, 2, 3, 5):
        seen = Endpoint(role, frames=True).outcome([data[i : i + size] for i in range(0, len(data), size)])
        assert seen.events == [fragment(TEXT, b"abc\xc3"), message(CONTINUATION, b"\xa9def")]


@ROLES
def test_an_unfragmented_message_is_one_event_in_both_granularities(role: Role) -> None:
    data = wire(role, Wire(FIN | TEXT, b"x" * 1000))
    assert Endpoint(role, frames=True).outcome([data]) == Endpoint(role).outcome([data])


# ---- the closing handshake ----


@ROLES
def test_section_7_1_the_states_of_a_close(role: Role) -> None:
    endpoint = Endpoint(role)
    assert endpoint.close_state() == 0
    endpoint.feed(wire(role, Wire(FIN | CLOSE, b"\x03\xe9bye")))
    assert endpoint.close_state() == 2
    assert endpoint.close() == b""
    assert endpoint.owed_close()[:1] == b"\x88"
    assert endpoint.close_state() == 3
    assert endpoint.owed_close() == b""

    endpoint = Endpoint(role)
    assert endpoint.close()
    assert endpoint.close_state() == 1
    endpoint.feed(wire(role, Wire(FIN | CLOSE)))
    assert endpoint.close_state() == 3
    assert endpoint.owed_close() == b""

    endpoint = Endpoint(role)
    endpoint.feed(wire(role, Wire(FIN | 3)))
    assert endpoint.close_state() == 0
    assert endpoint.close() == b""
    assert endpoint.owed_close()
    assert endpoint.close_state() == 1


# ---- what is sent ----

OTHER = {SERVER: CLIENT, CLIENT: SERVER}


@ROLES
@GRANULARITIES
@pytest.mark.parametrize("name", STATES)
def test_section_5_every_first_byte_that_may_be_sent_in_every_state(role: Role, frames: bool, name: str) -> None:
    options = CLAIMS if "claimed" in name else {}
    reference = Decoder(OTHER[role], frames=frames, **options)
    before = wire(OTHER[role], *STATES[name])
    endpoint = Endpoint(role, frames=frames, **options)
    sending = ffi.new("wspy_sending *")
    for each in STATES[name]:
        if endpoint.check(sending, each.first, each.payload):
            return  # a state that this granularity doesn't have
    reached = ffi.buffer(sending)[:]
    key = KEY if role is CLIENT else None
    for first in range(256):
        for payload in (b"", b"\x03", b"\x03\xe8", b"\xa9", b"\xa9" * 126):
            following = ffi.new("wspy_sending *", sending[0])
            error = endpoint.check(following, first, payload)
            expected = reference.decode(before + encode(first, payload, key)).error
            assert ERROR_NAMES.get(error) == expected, (first, payload)
            assert not error or ffi.buffer(following)[:] == reached


@pytest.mark.parametrize("first", range(256))
def test_section_5_a_frame_by_itself_is_right_if_it_is_somewhere(first: int) -> None:
    opcode = first & 15
    begin = [Wire(BINARY)] if opcode == CONTINUATION else []
    reference = Decoder(CLIENT, frames=True, rsv=0x70, opcodes=0xF8F8)
    for payload in (b"", b"x", b"\x03\xe8", b"\x03\xed", b"\x03\xe8\xff", b"\xc3", b"\xff", b"x" * 125, b"x" * 126):
        error = lib.wspy_frame_check(first, payload, len(payload))
        expected = reference.decode(wire(CLIENT, *begin, Wire(first, payload))).error
        assert ERROR_NAMES.get(error) == expected, payload


def test_a_frame_by_itself_is_read_within_its_payload() -> None:
    payloads = [b"", b"\x03", b"\x03\xe8", b"\x03\xe8" + b"x" * 123, b"\xf0\x9f\x98\x80" * 20, b"\xf0", b"x" * 4000]
    with GuardedMemory(4096) as memory:
        for first, payload in itertools.product(range(256), payloads):
            error = lib.wspy_frame_check(first, payload, len(payload))
            for place in (memory.at_start, memory.at_end):
                assert lib.wspy_frame_check(first, place(payload), len(payload)) == error


# ---- price ----


@ROLES
def test_d7_an_announced_length_allocates_nothing(role: Role) -> None:
    for length in (1 << 20, 1 << 40, (1 << 63) - 1):
        endpoint = Endpoint(role, max_size=NONE)
        endpoint.feed(Wire(FIN | BINARY, announced=length).header(role) + b"x")
        endpoint.clear()
        before = allocated()
        for _ in range(2000):
            endpoint.feed(b"x")
            endpoint.clear()
        assert endpoint.error() == 0
        assert allocated() - before < 8 << 10


@ROLES
@pytest.mark.parametrize("piece", [1, 100])
def test_h3_a_message_in_short_pieces_grows_a_logarithmic_number_of_times(role: Role, piece: int) -> None:
    size = 200_000
    data = wire(role, Wire(BINARY, bytes(size // 2)), Wire(FIN | CONTINUATION, bytes(size // 2)))
    endpoint = Endpoint(role)
    lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, 0, 0, 0, 0)
    before = allocated()
    for at in range(0, len(data) - piece, piece):
        assert endpoint.feed(data[at : at + piece]) == 0
        endpoint.clear()
    assert lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, 0, 0, 0, 0) < 16
    assert allocated() - before <= 2 * size
    endpoint.feed(data[at + piece :])
    assert endpoint.events() == [message(BINARY, bytes(size))]


@ROLES
@pytest.mark.slow
def test_h3_the_last_bytes_cost_no_more_than_the_first(role: Role) -> None:
    part, parts = 20_000, 12
    data = wire(role, Wire(FIN | BINARY, bytes(part * parts)))
    memory = ffi.from_buffer("uint8_t[]", data)
    best = [1e9] * parts
    for _ in range(3):
        endpoint = Endpoint(role)
        for number in range(parts):
            begin = time.perf_counter()
            for at in range(number * part, (number + 1) * part):
                lib.wspy_endpoint_feed(endpoint.pointer, memory + at, 1)
                lib.wspy_endpoint_clear(endpoint.pointer)
            best[number] = min(best[number], time.perf_counter() - begin)
    assert best[-1] < 4 * PATIENCE * best[0]


@ROLES
@pytest.mark.slow
def test_h2_the_last_fragments_cost_no_more_than_the_first(role: Role) -> None:
    some = wire(role, Wire(CONTINUATION, b"12345678")) * 5000
    hold = []
    best = [1e9] * 25
    for _ in range(3):
        endpoint = Endpoint(role)
        endpoint.feed(wire(role, Wire(BINARY)))
        for number in range(len(best)):
            begin = time.perf_counter()
            assert endpoint.feed(some) == 0
            endpoint.clear()
            best[number] = min(best[number], time.perf_counter() - begin)
            hold.append(ffi.new("uint8_t[]", 5000))  # so that the message can't grow in place
    assert best[-1] < 6 * PATIENCE * best[0]


# ---- what only the loop asks of it: see native/test_protocol.c ----


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = ["protocol.c", "frame.c", "mask.c", "utf8.c", "errors.c", "sys.c"]
    return native.build("test_protocol", sources, tmp_path_factory.mktemp("native"))


@native.needs_compiler
@pytest.mark.parametrize("name", native.names("test_protocol"))
def test_for_the_loop(program: Path, name: str) -> None:
    native.run(program, name)
