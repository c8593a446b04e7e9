"""Is a payload masked as RFC 6455 §5.3 says, by every implementation, wherever it lies, and nothing beside it?"""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest
from guard import GuardedMemory
from hypothesis import given
from hypothesis import strategies as st

from wspy._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wspy._core._wspy import CData

NAMES = {0: "scalar", 1: "SSE2", 2: "AVX2", 3: "NEON"}
AVAILABLE = sorted({lib.wspy_mask_select(number) for number in NAMES})
BEST = lib.wspy_mask_select(-1)
KEY = bytes.fromhex("37fa213d")
MAX_LENGTH = 300
SIZES = [4, 125, 126, 1 << 10, 65535, 65536, 1 << 20, 16 << 20]


@pytest.fixture(params=AVAILABLE, ids=NAMES.get)
def implementation(request: pytest.FixtureRequest) -> Iterator[int]:
    number: int = request.param
    assert lib.wspy_mask_select(number) == number
    yield number
    lib.wspy_mask_select(-1)


def naive(data: bytes, key: bytes, offset: int = 0) -> bytes:
    return bytes(byte ^ key[(offset + i) % 4] for i, byte in enumerate(data))


def naive_long(data: bytes, key: bytes) -> bytes:
    """Return the same for many bytes, as one number."""
    keys = (key * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data) ^ int.from_bytes(keys)).to_bytes(len(data))


def masked(data: bytes, key: bytes, offset: int = 0) -> bytes:
    memory = ffi.new("uint8_t[]", data)
    lib.wspy_mask(memory, len(data), key, offset)
    return ffi.buffer(memory)[: len(data)]


def masked_into(data: bytes, key: bytes, offset: int = 0) -> bytes:
    memory = ffi.new("uint8_t[]", len(data) + 1)
    lib.wspy_mask_into(memory, data, len(data), key, offset)
    return ffi.buffer(memory)[: len(data)]


WAYS = pytest.mark.parametrize("way", [masked, masked_into], ids=["in place", "into"])


def test_the_example_of_rfc_6455_section_5_7(implementation: int) -> None:
    assert masked(b"Hello", KEY) == bytes.fromhex("7f9f4d5158")


def test_an_absent_implementation_gives_way_to_the_next_lower_one() -> None:
    for number in NAMES:
        assert lib.wspy_mask_select(number) == max(each for each in AVAILABLE if each <= number)
    for number in (-1, -7, 4, 99):
        assert lib.wspy_mask_select(number) == BEST == max(AVAILABLE)


# ---- every alignment, offset and length: one slot of memory for each length, and one comparison for all slots ----

STRIDE = 448
FILLER = b"\xa5"


def slots(source: bytes) -> bytes:
    """Return the slots: source[:0], source[:1] and so on, each up to its stride filled with FILLER."""
    return b"".join(source[:length].ljust(STRIDE, FILLER) for length in range(MAX_LENGTH + 1))


def aligned(size: int) -> tuple[CData, CData]:
    """Return memory and a pointer in it that is a multiple of 64, with room for size bytes more."""
    memory = ffi.new("uint8_t[]", size + 64)
    return memory, memory + -int(ffi.cast("uintptr_t", memory)) % 64


def test_every_alignment_offset_and_length_in_place(implementation: int) -> None:
    source = random.Random(1).randbytes(MAX_LENGTH)
    before = slots(source)
    _memory, base = aligned(len(before) + 64)
    for offset in range(8):
        after = slots(naive(source, KEY, offset))
        for alignment in range(64):
            start = base + alignment
            ffi.memmove(start, before, len(before))
            for length in range(MAX_LENGTH + 1):
                lib.wspy_mask(start + STRIDE * length, length, KEY, offset)
            assert ffi.buffer(start, len(before))[:] == after, (offset, alignment)


def test_every_alignment_offset_and_length_into(implementation: int) -> None:
    source = random.Random(2).randbytes(MAX_LENGTH)
    size = STRIDE * (MAX_LENGTH + 1)
    _memory, base = aligned(size + 64)
    _source_memory, source_base = aligned(MAX_LENGTH + 64)
    for offset in range(8):
        after = slots(naive(source, KEY, offset))
        for alignment in range(64):
            start = base + alignment
            data = source_base + (7 * alignment + offset) % 64
            ffi.memmove(start, FILLER * size, size)
            ffi.memmove(data, source, MAX_LENGTH)
            for length in range(MAX_LENGTH + 1):
                lib.wspy_mask_into(start + STRIDE * length, data, length, KEY, offset)
            assert ffi.buffer(start, size)[:] == after, (offset, alignment)
            assert ffi.buffer(data, MAX_LENGTH)[:] == source


# ---- sizes, offsets, keys ----


@WAYS
def test_from_four_bytes_to_sixteen_mebibytes(implementation: int, way: Callable[[bytes, bytes], bytes]) -> None:
    data = random.Random(3).randbytes(max(SIZES))
    for size in SIZES:
        assert way(data[:size], KEY) == naive_long(data[:size], KEY), size


@WAYS
@pytest.mark.parametrize("offset", [2**31 - 1, 2**32 - 1, 2**63 + 2, 2**64 - 1])
def test_an_offset_counts_modulo_four(
    implementation: int, way: Callable[[bytes, bytes, int], bytes], offset: int
) -> None:
    for length in (0, 1, 3, 7, 15, 17, 40, 80, 200):
        assert way(bytes(length), KEY, offset) == naive(bytes(length), KEY, offset % 4)


@WAYS
def test_d16_a_key_of_zeros_changes_nothing(implementation: int, way: Callable[[bytes, bytes], bytes]) -> None:
    data = random.Random(4).randbytes(MAX_LENGTH)
    for length in range(MAX_LENGTH + 1):
        assert way(data[:length], bytes(4)) == data[:length]


def test_nothing_of_an_empty_payload_is_touched(implementation: int) -> None:
    lib.wspy_mask(ffi.NULL, 0, KEY, 3)
    lib.wspy_mask_into(ffi.NULL, ffi.NULL, 0, KEY, 3)


def test_output_and_input_may_be_equal(implementation: int) -> None:
    data = random.Random(5).randbytes(MAX_LENGTH)
    for length in range(MAX_LENGTH + 1):
        memory = ffi.new("uint8_t[]", data)
        lib.wspy_mask_into(memory, memory, length, KEY, 0)
        assert ffi.buffer(memory)[: len(data)] == naive(data[:length], KEY) + data[length:]


@given(st.binary(max_size=600), st.binary(min_size=4, max_size=4), st.lists(st.integers(0, 600), max_size=6))
def test_masked_in_pieces_is_masked_at_once(data: bytes, key: bytes, cuts: list[int]) -> None:
    for number in AVAILABLE:
        lib.wspy_mask_select(number)
        memory = ffi.new("uint8_t[]", data)
        at = 0
        for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
            lib.wspy_mask(memory + at, cut - at, key, at)
            at = cut
        once = ffi.buffer(memory)[: len(data)]
        assert once == naive(data, key)
        assert masked(once, key) == data
    lib.wspy_mask_select(-1)


# ---- the memory beside it ----


def test_no_byte_outside_is_touched_in_place(implementation: int) -> None:
    data = random.Random(6).randbytes(MAX_LENGTH)
    expected = naive(data, KEY)
    with GuardedMemory(MAX_LENGTH) as memory:
        for length in range(MAX_LENGTH + 1):
            for place in (memory.at_end, memory.at_start):
                payload = place(data[:length])
                lib.wspy_mask(payload, length, KEY, 0)
                assert ffi.buffer(payload, length)[:] == expected[:length]


def test_no_byte_outside_is_touched_into(implementation: int) -> None:
    data = random.Random(7).randbytes(MAX_LENGTH)
    expected = naive(data, KEY, 1)
    with GuardedMemory(MAX_LENGTH) as source, GuardedMemory(MAX_LENGTH) as target:
        for length in range(MAX_LENGTH + 1):
            for read, write in ((source.at_end, target.at_end), (source.at_start, target.at_start)):
                output = write(bytes(length))
                lib.wspy_mask_into(output, read(data[:length]), length, KEY, 1)
                assert ffi.buffer(output, length)[:] == expected[:length]


def test_no_byte_of_the_key_but_its_four_is_read(implementation: int) -> None:
    with GuardedMemory(4) as memory:
        for place in (memory.at_end, memory.at_start):
            for offset in range(4):
                output = ffi.new("uint8_t[]", 40)
                lib.wspy_mask(output, 40, place(KEY), offset)
                assert ffi.buffer(output)[:] == naive(bytes(40), KEY, offset)


def test_threads_may_mask_at_once() -> None:
    data = random.Random(8).randbytes(4096)
    expected = naive(data, KEY)
    wrong: list[int] = []

    def work(number: int) -> None:
        wrong.extend(number for _ in range(50) if masked(data, KEY) != expected)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
