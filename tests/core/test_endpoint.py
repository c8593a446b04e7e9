"""Does an endpoint keep what waits until it is taken, drop what was, and come through every failing allocation?"""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

import native
import pytest
from endpoints import NO_MEMORY, Endpoint
from guard import GuardedMemory
from memory import allocated
from reference import Decoder, decode_frames, encode
from vectors import (
    BINARY,
    CLIENT,
    CLOSE,
    CONTINUATION,
    FIN,
    KEY,
    PING,
    PONG,
    RSV1,
    SERVER,
    TEXT,
    VECTORS,
    Wire,
    message,
)

from wspy._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wspy._core._wspy import CData
    from wspy.codes import Role

ROLES = pytest.mark.parametrize("role", [SERVER, CLIENT], ids=["server", "client"])
GRANULARITIES = pytest.mark.parametrize("frames", [False, True], ids=["messages", "frames"])
SLICE = 64  # events that the endpoint makes room for at a time


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    yield
    lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, 0, 0, 0, 0)


def fail(nth: int, times: int = 1) -> int:
    """Make an allocation fail. Return how many there were since the last time."""
    return lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, nth, times, errno.ENOMEM, 0)


def wire(role: Role, *wires: Wire) -> bytes:
    return b"".join(each.encode(role) for each in wires)


def text(payload: bytes) -> Wire:
    return Wire(FIN | TEXT, payload)


def pongs(endpoint: Endpoint) -> list[bytes]:
    return [payload for _, payload, _ in decode_frames(endpoint.replies())]


def test_a_new_endpoint_has_nothing() -> None:
    endpoint = Endpoint(SERVER)
    assert (endpoint.event_count(), endpoint.events(), endpoint.replies()) == (0, [], b"")
    assert (endpoint.error(), endpoint.close_state(), endpoint.owed_close()) == (0, 0, b"")
    assert endpoint.detached(0) is None
    endpoint.clear()
    assert endpoint.feed(b"") == 0


def test_no_endpoint_can_be_freed() -> None:
    lib.wspy_endpoint_free(ffi.NULL)


def test_limits_are_copied() -> None:
    limits = ffi.new("wspy_limits *", (3, 3, 3))
    pointer = ffi.gc(lib.wspy_endpoint_new(SERVER, 0, limits, 0, 0), lib.wspy_endpoint_free)
    limits.max_size = 1000
    data = wire(SERVER, text(b"1234"))
    assert lib.wspy_endpoint_feed(pointer, data, len(data)) == lib.WSPY_ERROR_MESSAGE_SIZE


# ---- what waits ----


@ROLES
def test_events_add_up_until_they_are_cleared(role: Role) -> None:
    endpoint = Endpoint(role)
    for number in range(1, 300):
        assert endpoint.feed(wire(role, text(b"%d" % number))) == number
    assert endpoint.events() == [message(TEXT, b"%d" % number) for number in range(1, 300)]
    assert endpoint.events() == [message(TEXT, b"%d" % number) for number in range(1, 300)]
    endpoint.clear()
    assert endpoint.events() == []
    assert endpoint.feed(wire(role, text(b"next"))) == 1
    assert endpoint.events() == [message(TEXT, b"next")]


@ROLES
@pytest.mark.parametrize("size", [0, 1, 200, 5000])
def test_payloads_of_all_kinds_wait_side_by_side(role: Role, size: int) -> None:
    endpoint = Endpoint(role)
    expected = []
    for number in range(100):
        payload = bytes([number]) * size
        wires = [
            Wire(FIN | BINARY, payload),
            Wire(BINARY, payload),
            Wire(FIN | PING, payload[:125]),
            Wire(FIN | CONTINUATION, payload),
        ]
        for each in wires:
            data = each.encode(role)
            endpoint.feed(data[: len(data) // 2])
            endpoint.feed(data[len(data) // 2 :])
        expected += [message(BINARY, payload), message(PING, payload[:125]), message(BINARY, payload * 2)]
    assert endpoint.events() == expected
    assert pongs(endpoint) == [bytes([number]) * min(size, 125) for number in range(100)]


@ROLES
@pytest.mark.parametrize("count", [SLICE - 1, SLICE, SLICE + 1, 2 * SLICE, 1000, 5000])
def test_more_events_than_a_slice(role: Role, count: int) -> None:
    endpoint = Endpoint(role)
    assert endpoint.feed(wire(role, text(b"x")) * count) == count
    assert endpoint.events() == [message(TEXT, b"x")] * count
    endpoint.clear()
    assert endpoint.feed(wire(role, text(b"y"))) == 1
    assert endpoint.events() == [message(TEXT, b"y")]


@ROLES
def test_many_detached_payloads(role: Role) -> None:
    endpoint = Endpoint(role)
    data = wire(role, Wire(TEXT, b"a"), Wire(FIN | CONTINUATION, b"b"))
    assert endpoint.feed(data * 700) == 700
    assert endpoint.events() == [message(TEXT, b"ab")] * 700
    assert endpoint.detached(699) == b"ab"
    assert endpoint.detached(700) is None
    assert endpoint.detached(2**32 - 1) is None
    endpoint.clear()
    assert endpoint.detached(0) is None
    assert endpoint.feed(data) == 1
    assert endpoint.events() == [message(TEXT, b"ab")]


@ROLES
def test_replies_add_up_until_they_are_cleared(role: Role) -> None:
    endpoint = Endpoint(role)
    endpoint.feed(wire(role, Wire(FIN | PING, b"1"), Wire(FIN | PING, b"2")))
    endpoint.feed(wire(role, Wire(FIN | PING, b"3")))
    assert pongs(endpoint) == [b"1", b"2", b"3"]
    endpoint.clear()
    assert pongs(endpoint) == []
    endpoint.feed(wire(role, Wire(FIN | PING, b"4")))
    assert pongs(endpoint) == [b"4"]


@ROLES
@pytest.mark.parametrize("kept", [Wire(FIN | PING, b"p" * 125), Wire(FIN | TEXT, b"t" * 126), Wire(FIN | CLOSE)])
def test_what_is_incomplete_survives_a_clear(role: Role, kept: Wire) -> None:
    whole = kept.encode(role)
    for size in range(len(whole)):
        endpoint = Endpoint(role)
        assert endpoint.feed(wire(role, text(b"first")) + whole[:size]) == 1
        endpoint.clear()
        assert endpoint.feed(whole[size:]) == 1
        assert endpoint.events() == [message(kept.first & 15, kept.payload)]


@ROLES
def test_the_count_after_an_error_is_that_of_what_came_before(role: Role) -> None:
    endpoint = Endpoint(role)
    data = wire(role, text(b"a"), text(b"b"), Wire(FIN | 3), text(b"c"))
    assert endpoint.feed(data) == lib.WSPY_ERROR_OPCODE
    assert endpoint.events() == [message(TEXT, b"a"), message(TEXT, b"b")]
    for _ in range(2):
        assert endpoint.feed(data) == lib.WSPY_ERROR_OPCODE
        assert endpoint.event_count() == 2
        assert endpoint.feed(b"") == lib.WSPY_ERROR_OPCODE
    endpoint.clear()
    assert (endpoint.feed(data), endpoint.event_count(), endpoint.error()) == (-17, 0, -17)


@ROLES
def test_after_the_peers_close_input_is_ignored(role: Role) -> None:
    endpoint = Endpoint(role)
    assert endpoint.feed(wire(role, Wire(FIN | CLOSE), text(b"x"))) == 1
    assert endpoint.feed(wire(role, text(b"x"))) == 1
    endpoint.clear()
    assert endpoint.feed(b"\xff" * 100) == 0
    assert endpoint.error() == 0


@ROLES
@GRANULARITIES
def test_each_vector_with_and_without_clearing(role: Role, frames: bool) -> None:
    for vector in VECTORS:
        if vector.role is not role or len(vector.data) > 1000:
            continue
        expected = Decoder(role, frames=frames, **vector.options).decode(vector.data)
        pieces = [vector.data[i : i + 3] for i in range(0, len(vector.data), 3)]
        for clear_each in (True, False):
            endpoint = Endpoint(role, frames=frames, **vector.options)
            assert endpoint.outcome(pieces, clear_each=clear_each) == expected, vector.name


# ---- the caller's memory ----


@ROLES
def test_input_is_neither_changed_nor_read_beyond(role: Role) -> None:
    data = wire(role, Wire(FIN | TEXT, b"payload" * 20), Wire(FIN | PING, b"ping"), Wire(BINARY, b"x"))
    with GuardedMemory(len(data)) as memory:
        for size in range(len(data) + 1):
            for place in (memory.at_start, memory.at_end):
                pointer = place(data[:size])
                Endpoint(role).feed(pointer, size)
                assert ffi.buffer(pointer, size)[:] == data[:size]


@ROLES
def test_a_close_needs_139_bytes_at_most(role: Role) -> None:
    with GuardedMemory(139) as memory:
        output = memory.at_end(bytes(139))
        pointer = Endpoint(role).pointer
        size = lib.wspy_endpoint_close(pointer, b"\x03\xe8" + b"x" * 123, 125, output)
        assert size == (127 if role is SERVER else 131)


@ROLES
def test_a_close_that_is_too_long_is_refused(role: Role) -> None:
    endpoint = Endpoint(role)
    with pytest.raises(ValueError, match=str(lib.WSPY_ERROR_ARGUMENT)):
        endpoint.close(b"\x03\xe8" + b"x" * 124)
    assert endpoint.close_state() == 0
    assert endpoint.close()
    assert endpoint.close_state() == 1
    assert endpoint.close() == b""


def test_more_than_an_arena_can_hold_is_refused_and_changes_nothing() -> None:
    endpoint = Endpoint(CLIENT)
    endpoint.feed(wire(CLIENT, text(b"x")))
    assert endpoint.feed(b"", 2**32) == lib.WSPY_ERROR_ARGUMENT
    assert endpoint.feed(b"", 2**32 - 3) == lib.WSPY_ERROR_ARGUMENT  # beside the three bytes that wait
    assert (endpoint.error(), endpoint.event_count()) == (0, 1)
    endpoint.clear()
    assert endpoint.feed(wire(CLIENT, text(b"y"))) == 1


# ---- memory ----


@ROLES
def test_a_burst_leaves_no_more_than_16_kib_of_each_kind(role: Role) -> None:
    endpoint = Endpoint(role)
    endpoint.feed(b"")
    before = allocated()
    data = wire(role, Wire(FIN | PING, b"p" * 100), Wire(TEXT, b"d"), Wire(FIN | CONTINUATION, b"etached"))
    endpoint.feed(data * 5000)
    endpoint.clear()
    assert allocated() - before < 48 << 10
    incomplete = Wire(FIN | PING, b"p" * 100).encode(role)[:50]
    endpoint.feed(data * 5000 + incomplete)
    endpoint.clear()
    assert allocated() - before < 48 << 10
    endpoint.feed(Wire(FIN | PING, b"p" * 100).encode(role)[50:])
    assert endpoint.events() == [message(PING, b"p" * 100)]


@ROLES
@pytest.mark.parametrize("last", [Wire(FIN | CLOSE), Wire(FIN | 3)], ids=["close", "error"])
def test_e7_the_memory_of_a_message_that_is_cut_off_is_given_back(role: Role, last: Wire) -> None:
    endpoint = Endpoint(role)
    endpoint.feed(wire(role, text(b"warm")))
    endpoint.clear()
    before = allocated()
    endpoint.feed(wire(role, Wire(TEXT, b"x" * 200_000)))
    endpoint.clear()
    assert allocated() - before >= 200_000 or not before
    endpoint.feed(wire(role, last))
    assert allocated() - before < 32 << 10


@ROLES
def test_detached_payloads_go_with_a_clear(role: Role) -> None:
    endpoint = Endpoint(role)
    data = wire(role, Wire(BINARY, b"x" * 10_000), Wire(FIN | CONTINUATION))
    endpoint.feed(data)
    endpoint.clear()
    before = allocated()
    for _ in range(50):
        assert endpoint.feed(data) == 1
        assert endpoint.detached(0) == b"x" * 10_000
        endpoint.clear()
        assert endpoint.detached(0) is None
    assert allocated() - before < 16 << 10


@ROLES
def test_giving_memory_back_may_fail(role: Role) -> None:
    endpoint = Endpoint(role)
    data = wire(role, Wire(FIN | PING, b"p" * 100), text(b"x" * 100))
    endpoint.feed(data * 1000)
    fail(1, times=100)
    endpoint.clear()
    assert fail(0) == 2  # the arena and the replies
    assert endpoint.feed(data) == 2
    assert endpoint.events() == [message(PING, b"p" * 100), message(TEXT, b"x" * 100)]


def scenario(role: Role) -> bytes:
    return wire(
        role,
        text(b"one"),
        Wire(FIN | PING, b"ping"),
        Wire(TEXT, b"two"),
        *[Wire(CONTINUATION, b"x" * 900), Wire(FIN | PING, b"p" * 125)] * 5,
        Wire(FIN | CONTINUATION),
        *[Wire(BINARY, b"d"), Wire(FIN | CONTINUATION, b"etached")] * 20,
        *[text(b"many")] * 3 * SLICE,
        Wire(FIN | BINARY, b"large" * 5000),
        Wire(FIN | PONG),
        Wire(FIN | CLOSE, b"\x03\xe8"),
    )


@ROLES
@GRANULARITIES
@pytest.mark.parametrize("piece", [7, 1000, 100_000])
@pytest.mark.parametrize("clear_each", [True, False], ids=["cleared", "kept"])
def test_h13_each_allocation_fails_once(role: Role, frames: bool, piece: int, clear_each: bool) -> None:
    data = scenario(role)
    pieces = [data[i : i + piece] for i in range(0, len(data), piece)]
    whole = Endpoint(role, frames=frames, max_size=None).outcome(pieces)
    assert whole.close == b"\x03\xe8"
    failures = nth = 0
    while True:
        nth += 1
        fail(nth)
        try:
            endpoint = Endpoint(role, frames=frames, max_size=None)
        except MemoryError:
            assert nth == 1
            continue
        seen = endpoint.outcome(pieces, clear_each=clear_each)
        if fail(0) < nth:
            break
        if endpoint.error() != NO_MEMORY:  # only giving memory back has failed
            assert seen == whole
            continue
        failures += 1
        assert seen.events == whole.events[: len(seen.events)]
        assert seen.pongs == whole.pongs[: len(seen.pongs)]
        assert seen.close == b"\x03\xf3"
        assert endpoint.close() == b""
    assert seen == whole
    assert failures >= 6


@ROLES
def test_h13_without_any_memory_from_some_point_on(role: Role) -> None:
    data = scenario(role)
    for nth in range(2, 60):
        endpoint = Endpoint(role, max_size=None)
        fail(nth - 1, times=1000)
        endpoint.feed(data)
        endpoint.clear()
        assert endpoint.error() in {0, NO_MEMORY}
        if endpoint.error():
            assert endpoint.feed(data) == NO_MEMORY
        fail(0)


@ROLES
def test_h13_failures_leak_nothing(role: Role) -> None:
    data = scenario(role)

    def sweep() -> None:
        for nth in range(1, 40):
            fail(nth)
            try:
                endpoint = Endpoint(role, max_size=None)
            except MemoryError:
                continue
            endpoint.feed(data[:5000])
            endpoint.feed(data[5000:])
            if nth % 2:
                endpoint.clear()
        fail(0)

    sweep()
    before = allocated()
    for _ in range(5):
        sweep()
    assert allocated() - before < 16 << 10


# ---- steps ----

MOVED = lib.WSPY_ENDPOINT_MOVED


@ROLES
def test_a_step_drops_what_was_there(role: Role) -> None:
    endpoint = Endpoint(role)
    first = wire(role, text(b"1"), Wire(FIN | PING, b"2"))
    assert endpoint.step(first) == 2 | MOVED
    assert endpoint.step(first) == 2
    assert endpoint.events() == [message(TEXT, b"1"), message(PING, b"2")]
    assert pongs(endpoint) == [b"2"]
    assert endpoint.step(b"") == 0
    assert (endpoint.events(), pongs(endpoint)) == ([], [])


@ROLES
def test_a_step_says_whenever_events_or_arena_are_elsewhere_or_of_another_size(role: Role) -> None:
    single = wire(role, Wire(FIN | BINARY))
    moves = stays = 0
    for seed in range(400):
        chance = random.Random(seed)
        endpoint = Endpoint(role)
        seen: tuple[object, ...] = ()
        for _ in range(8):
            count = chance.choice([0, 1, 2, 60, 63, 64, 65, 128, 200, 500, 512, 513, 600, 1000, 2000])
            size = seed % 4 and chance.randrange((0, 130, 10_000, 20_000)[seed % 4])
            told = endpoint.step(single * count + wire(role, Wire(FIN | BINARY, bytes(size))))
            assert told & ~MOVED == count + 1 == endpoint.event_count()
            assert bool(told & MOVED) is (endpoint.places() != seen)
            seen = endpoint.places()
            moves, stays = moves + bool(told & MOVED), stays + (not told & MOVED)
            if chance.random() < 0.3:
                endpoint.clear()
    assert moves > 100
    assert stays > 100


@ROLES
@GRANULARITIES
@pytest.mark.parametrize("piece", [1, 3, 100_000])
def test_steps_lead_to_what_feeding_leads_to(role: Role, frames: bool, piece: int) -> None:
    for vector in VECTORS:
        if vector.role is not role or len(vector.data) > 1000:
            continue
        whole = Decoder(role, frames=frames, **vector.options).decode(vector.data)
        endpoint = Endpoint(role, frames=frames, **vector.options)
        events, answers = [], b""
        for at in range(0, len(vector.data), piece):
            count = endpoint.step(vector.data[at : at + piece])
            assert count == endpoint.error() if count < 0 else count & ~MOVED == endpoint.event_count()
            events += endpoint.events()
            answers += endpoint.replies()
        assert events == whole.events, vector.name
        assert [payload for _, payload, _ in decode_frames(answers)] == whole.pongs, vector.name


@ROLES
def test_an_error_of_a_step_is_sticky_and_drops_its_events_with_the_next(role: Role) -> None:
    endpoint = Endpoint(role)
    assert endpoint.step(wire(role, text(b"a"), Wire(FIN | 3))) == lib.WSPY_ERROR_OPCODE
    assert endpoint.events() == [message(TEXT, b"a")]
    assert endpoint.step(wire(role, text(b"b"))) == lib.WSPY_ERROR_OPCODE
    assert endpoint.events() == []


@ROLES
def test_a_step_neither_changes_input_nor_reads_beyond(role: Role) -> None:
    data = wire(role, Wire(FIN | TEXT, b"payload" * 20), Wire(FIN | PING, b"ping"), Wire(BINARY, b"x"))
    with GuardedMemory(len(data)) as memory:
        for size in range(len(data) + 1):
            for place in (memory.at_start, memory.at_end):
                pointer = place(data[:size])
                Endpoint(role).step(pointer, size)
                assert ffi.buffer(pointer, size)[:] == data[:size]


@ROLES
@GRANULARITIES
@pytest.mark.parametrize("piece", [7, 1000, 100_000])
def test_h13_each_allocation_of_a_step_fails_once(role: Role, frames: bool, piece: int) -> None:
    data = scenario(role)
    whole = Decoder(role, frames=frames, max_size=None).decode(data)
    failures = nth = made = 0
    while made >= nth:  # as long as there was one to fail
        nth += 1
        endpoint = Endpoint(role, frames=frames, max_size=None)
        fail(nth)
        events, count = [], 0
        for at in range(0, len(data), piece):
            count = endpoint.step(data[at : at + piece])
            assert count == endpoint.error() if count < 0 else count & ~MOVED == endpoint.event_count()
            events += endpoint.events()
        made = fail(0)
        if endpoint.error():
            assert endpoint.error() == NO_MEMORY == count
            assert events == whole.events[: len(events)]
            failures += 1
        else:  # only giving memory back has failed, if anything
            assert events == whole.events
    assert failures >= 5


# ---- what is sent ----

MASKED, UNCHECKED, WITH_KEY = lib.WSPY_SEND_MASKED, lib.WSPY_SEND_UNCHECKED, lib.WSPY_SEND_KEY
OTHER = {SERVER: CLIENT, CLIENT: SERVER}
LENGTHS = [0, 1, 125, 126, 127, 65_535, 65_536]


def new_sending() -> CData:
    return ffi.new("wspy_sending *")


def state(sending: CData) -> bytes:
    return ffi.buffer(sending)[:]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("how", [0, MASKED | WITH_KEY, UNCHECKED, UNCHECKED | MASKED | WITH_KEY])
def test_a_frame_is_written_as_the_reference_has_it(length: int, how: int) -> None:
    payload = random.Random(length).randbytes(length)
    endpoint = Endpoint(CLIENT if how & MASKED else SERVER)
    key = KEY if how & MASKED else None
    assert endpoint.send(new_sending(), FIN | BINARY, payload, how, KEY) == encode(FIN | BINARY, payload, key)


@ROLES
@pytest.mark.parametrize("length", LENGTHS)
def test_a_frame_is_written_to_its_own_bytes_only_and_its_payload_only_read(role: Role, length: int) -> None:
    payload = random.Random(length).randbytes(length)
    how = MASKED if role is CLIENT else 0
    size = len(encode(FIN | BINARY, payload, KEY if how else None))
    with GuardedMemory(length) as source, GuardedMemory(size) as target:
        for place, output in (
            (source.at_end, target.at_end(bytes(size))),
            (source.at_start, target.at_start(bytes(size))),
        ):
            data = place(payload)
            pointer = Endpoint(role).pointer
            sending = new_sending()
            assert lib.wspy_endpoint_send(pointer, sending, FIN | BINARY, how, b"", data, length, output) == size
            assert decode_frames(ffi.buffer(output, size)[:])[0][:2] == (FIN | BINARY, payload)
            assert ffi.buffer(data, length)[:] == payload


@pytest.mark.parametrize("length", LENGTHS)
def test_the_longest_header_has_room(length: int) -> None:
    with GuardedMemory(length + lib.WSPY_HEADER_MAX) as memory:
        output = memory.at_end(bytes(length + lib.WSPY_HEADER_MAX))
        pointer = Endpoint(CLIENT).pointer
        size = lib.wspy_endpoint_send(pointer, new_sending(), FIN | BINARY, MASKED, b"", bytes(length), length, output)
        assert size <= length + lib.WSPY_HEADER_MAX


@ROLES
def test_a_key_of_four_bytes_is_read(role: Role) -> None:
    with GuardedMemory(4) as memory:
        output = ffi.new("uint8_t[20]")
        how = MASKED | WITH_KEY | UNCHECKED
        for key in (memory.at_end(KEY), memory.at_start(KEY)):
            size = lib.wspy_endpoint_send(
                Endpoint(role).pointer, new_sending(), FIN | BINARY, how, key, b"x", 1, output
            )
            assert ffi.buffer(output, size)[:] == encode(FIN | BINARY, b"x", KEY)


@ROLES
@pytest.mark.parametrize("first", [FIN | CONTINUATION, FIN | 3, FIN | RSV1 | TEXT, PING])
def test_what_can_not_be_sent_is_not_written_and_changes_nothing(role: Role, first: int) -> None:
    endpoint, sending = Endpoint(role), new_sending()
    how = MASKED if role is CLIENT else 0
    output = ffi.new("uint8_t[]", b"\xa5" * 20)
    error = endpoint.check(sending, first, b"x")
    assert error < 0
    assert lib.wspy_endpoint_send(endpoint.pointer, sending, first, how, b"", b"x", 1, output) == error
    assert ffi.buffer(output)[:20] == b"\xa5" * 20
    assert not any(state(sending))


@ROLES
def test_section_5_1_masking_is_looked_at_first_and_by_sending_alone(role: Role) -> None:
    endpoint, sending = Endpoint(role), new_sending()
    wrong = 0 if role is CLIENT else MASKED
    error = lib.WSPY_ERROR_UNMASKED if role is CLIENT else lib.WSPY_ERROR_MASKED
    assert endpoint.send(sending, FIN | 3, b"x", wrong) == error
    assert endpoint.send(sending, TEXT, b"x", wrong) == error
    assert not any(state(sending))
    assert endpoint.check(sending, TEXT, b"x") == 0
    assert any(state(sending))


@ROLES
def test_an_unchecked_frame_changes_nothing(role: Role) -> None:
    endpoint, sending = Endpoint(role), new_sending()
    for first in range(256):
        for length in (0, 1, 126):
            assert endpoint.send(sending, first, b"\xff" * length, UNCHECKED) == encode(first, b"\xff" * length)
    assert not any(state(sending))
    assert endpoint.close_state() == 0


@ROLES
def test_a_close_that_is_sent_is_the_close(role: Role) -> None:
    how = MASKED if role is CLIENT else 0
    endpoint, sending = Endpoint(role), new_sending()
    assert endpoint.check(sending, FIN | CLOSE, b"\x03\xe8") == 0
    assert (sending.closed, endpoint.close_state()) == (1, 0)
    sending = new_sending()
    assert endpoint.send(sending, FIN | CLOSE, b"x", how) == lib.WSPY_ERROR_CLOSE_LENGTH
    assert (sending.closed, endpoint.close_state()) == (0, 0)
    assert endpoint.send(sending, FIN | CLOSE, b"\x03\xe8", how)
    assert (sending.closed, endpoint.close_state()) == (1, 1)
    assert (endpoint.close(), endpoint.owed_close()) == (b"", b"")
    endpoint.feed(wire(role, Wire(FIN | PING, b"late"), Wire(FIN | CLOSE)))
    assert (endpoint.replies(), endpoint.owed_close(), endpoint.close_state()) == (b"", b"", 3)


@ROLES
@pytest.mark.parametrize("last", [Wire(FIN | CLOSE), Wire(FIN | 3)], ids=["close", "error"])
def test_a_close_that_is_sent_is_owed_no_more(role: Role, last: Wire) -> None:
    endpoint, sending = Endpoint(role), new_sending()
    endpoint.feed(last.encode(role))
    assert endpoint.send(sending, FIN | TEXT, b"x", MASKED if role is CLIENT else 0)
    assert endpoint.send(sending, FIN | CLOSE, b"", MASKED if role is CLIENT else 0)
    assert endpoint.owed_close() == b""


@ROLES
def test_what_is_sent_allocates_nothing(role: Role) -> None:
    endpoint, sending = Endpoint(role), new_sending()
    fail(1, times=1000)
    for first in (TEXT, FIN | PING, FIN | CONTINUATION, FIN | CLOSE):
        frame = endpoint.send(sending, first, b"", MASKED if role is CLIENT else 0)
        assert isinstance(frame, bytes)
    assert fail(0) == 0


# ---- keys, with a source of them that is known: see native/test_endpoint.c ----


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = ["protocol.c", "frame.c", "mask.c", "utf8.c", "errors.c"]  # endpoint.c is in the program itself
    return native.build("test_endpoint", sources, tmp_path_factory.mktemp("native"))


@native.needs_compiler
@pytest.mark.parametrize("name", native.names("test_endpoint"))
def test_keys(program: Path, name: str) -> None:
    native.run(program, name)
