"""Is a frame header decoded and encoded as RFC 6455 §5.2 says, from every byte, and nothing beside it touched?"""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from guard import GuardedMemory
from hypothesis import given
from hypothesis import strategies as st

from wspy._core import ffi, lib

FORM = lib.WSPY_ERROR_LENGTH_FORM
RANGE = lib.WSPY_ERROR_LENGTH_RANGE
MAX = lib.WSPY_HEADER_MAX
KEY = bytes.fromhex("37fa213d")
BOUNDARIES = sorted(
    {
        0,
        1,
        124,
        (1 << 62) + 1,
        *(edge + step for edge in (125, 1 << 16, 1 << 31, 1 << 32, 1 << 62) for step in (-1, 0, 1, 2)),
    }
    | {(1 << 63) - 1}
)


class Header(NamedTuple):
    """size: of the header, 0 for incomplete, or an error."""

    size: int
    flags: int = 0
    opcode: int = 0
    length: int = 0
    key: bytes | None = None


def decoded(data: bytes) -> Header:
    with GuardedMemory(64) as memory:
        header = ffi.new("wspy_frame_header *")
        size = lib.wspy_frame_decode(memory.at_end(data), len(data), header)
        if size <= 0:
            return Header(size)
        key = ffi.buffer(header.masking_key)[:] if header.masked else None
        return Header(size, header.flags, header.opcode, header.length, key)


def naive(data: bytes) -> Header:
    """Decode slowly."""
    if len(data) < 2:
        return Header(0)
    length, at = data[1] & 127, 2
    if length >= 126:
        at = 4 if length == 126 else 10
        if len(data) < at:
            return Header(0)
        shortest = 126 if length == 126 else 65536
        length = int.from_bytes(data[2:at])
        if length >= 1 << 63:
            return Header(RANGE)
        if length < shortest:
            return Header(FORM)
    key = None
    if data[1] & 128:
        key, at = data[at : at + 4], at + 4
    return Header(at, data[0] & 0xF0, data[0] & 0x0F, length, key) if len(data) >= at else Header(0)


def encoded(first: int, length: int, key: bytes | None = None) -> bytes:
    header = ffi.new("wspy_frame_header *", (length, first & 0xF0, first & 0x0F, key is not None, key or bytes(4)))
    output = ffi.new("uint8_t[]", b"\xa5" * 32)
    size = lib.wspy_frame_encode(output, header)
    assert ffi.buffer(output)[size:32] == b"\xa5" * (32 - size)
    assert size <= MAX
    return ffi.buffer(output)[:size]


@pytest.mark.parametrize(
    ("wire", "header"),
    [
        ("8105", Header(2, 0x80, 1, 5)),
        ("818537fa213d", Header(6, 0x80, 1, 5, KEY)),
        ("0103", Header(2, 0, 1, 3)),
        ("8002", Header(2, 0x80, 0, 2)),
        ("8905", Header(2, 0x80, 9, 5)),
        ("8a8537fa213d", Header(6, 0x80, 10, 5, KEY)),
        ("827e0100", Header(4, 0x80, 2, 256)),
        ("827f0000000000010000", Header(10, 0x80, 2, 65536)),
    ],
)
def test_section_5_7_the_examples(wire: str, header: Header) -> None:
    assert decoded(bytes.fromhex(wire)) == header
    assert encoded(header.flags | header.opcode, header.length, header.key).hex() == wire


@pytest.mark.slow
def test_section_5_2_every_first_two_bytes() -> None:
    header = ffi.new("wspy_frame_header *")
    rest = bytes.fromhex("0100000000000001") + KEY
    for first in range(256):
        for second in range(256):
            data = bytes([first, second]) + rest
            size = lib.wspy_frame_decode(data, len(data), header)
            expected = naive(data)
            assert size == expected.size
            if size > 0:
                assert (header.flags, header.opcode, header.length) == expected[1:4]
                assert header.masked == (second >> 7)


@pytest.mark.parametrize("length", BOUNDARIES)
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "masked"])
def test_section_5_2_every_form_of_a_length(length: int, key: bytes | None) -> None:
    tail = key or b""
    mask = 0x80 if key else 0
    for extended, field in ((2, 126), (8, 127)):
        if length >= 1 << 8 * extended:
            continue
        header = decoded(bytes([0x82, mask | field]) + length.to_bytes(extended) + tail)
        is_shortest = length >= (126 if extended == 2 else 1 << 16)
        assert header == (Header(2 + extended + len(tail), 0x80, 2, length, key) if is_shortest else Header(FORM))
    wire = encoded(0x82, length, key)
    assert decoded(wire) == Header(len(wire), 0x80, 2, length, key)
    assert len(wire) == 2 + (0 if length < 126 else 2 if length < 1 << 16 else 8) + len(tail)


@pytest.mark.parametrize("length", [1 << 63, (1 << 63) + 5, (1 << 64) - 1])
def test_d6_the_most_significant_bit(length: int) -> None:
    assert decoded(bytes([0x82, 127]) + length.to_bytes(8)) == Header(RANGE)


@pytest.mark.parametrize(("length", "extended"), [(0, 2), (125, 2), (0, 8), (126, 8), (65535, 8)])
def test_d5_a_length_in_too_many_bytes_is_judged_before_the_masking_key(length: int, extended: int) -> None:
    data = bytes([0x82, 0x80 | (126 if extended == 2 else 127)]) + length.to_bytes(extended)
    assert decoded(data) == Header(FORM)
    assert decoded(data[:-1]) == Header(0)


@pytest.mark.parametrize("length", [0, 125, 126, 65535, 65536])
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "masked"])
def test_d17_a_header_cut_at_every_byte(length: int, key: bytes | None) -> None:
    wire = encoded(0x81, length, key)
    for size in range(len(wire)):
        assert decoded(wire[:size]) == Header(0)
    assert decoded(wire + b"payload").size == len(wire)


@pytest.mark.parametrize("wire", ["91", "9180", "b9fe01", "5a7f00"])
def test_flags_opcode_and_mask_are_known_after_two_bytes(wire: str) -> None:
    data = bytes.fromhex(wire)
    header = ffi.new("wspy_frame_header *", (7, 7, 7, 7, bytes(4)))
    assert lib.wspy_frame_decode(data, len(data), header) == 0
    known = (data[0] & 0xF0, data[0] & 0x0F, data[1] >> 7) if len(data) > 1 else (7, 7, 7)
    assert (header.flags, header.opcode, header.masked) == known


@pytest.mark.parametrize(("length", "extended"), [(0, 2), (125, 2), (0, 8), (126, 8), (65535, 8)])
@pytest.mark.parametrize("key", [b"", KEY], ids=["plain", "masked"])
def test_a_length_in_too_many_bytes_is_known_all_the_same(length: int, extended: int, key: bytes) -> None:
    data = bytes([0x82, 0x80 * bool(key) | (126 if extended == 2 else 127)]) + length.to_bytes(extended) + key
    with GuardedMemory(64) as memory:
        for size in range(2 + extended, len(data) + 1):
            header = ffi.new("wspy_frame_header *")
            assert lib.wspy_frame_decode(memory.at_end(data[:size]), size, header) == FORM
            assert (header.flags, header.opcode, header.masked, header.length) == (0x80, 2, bool(key), length)
            assert ffi.buffer(header.masking_key)[:] == (key if key and size == len(data) else bytes(4))


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1])
def test_a_length_out_of_range_is_known_all_the_same(length: int) -> None:
    header = ffi.new("wspy_frame_header *")
    data = bytes([0x82, 0xFF]) + length.to_bytes(8) + KEY
    assert lib.wspy_frame_decode(data, len(data), header) == RANGE
    assert (header.length, ffi.buffer(header.masking_key)[:]) == (length, KEY)


def test_each_header_bit_flipped_is_a_frame_or_incomplete_or_an_error() -> None:
    for length in (0, 5, 126, 70000):
        for key in (None, KEY):
            wire = bytearray(encoded(0x81, length, key))
            for bit in range(8 * len(wire)):
                wire[bit // 8] ^= 1 << bit % 8
                assert decoded(bytes(wire)) == naive(bytes(wire))
                wire[bit // 8] ^= 1 << bit % 8


@given(st.binary(max_size=16))
def test_any_bytes_are_decoded_as_by_the_naive_decoder(data: bytes) -> None:
    assert decoded(data) == naive(data)


@given(st.integers(0, 255), st.integers(0, (1 << 63) - 1), st.none() | st.binary(min_size=4, max_size=4))
def test_what_is_encoded_can_be_decoded(first: int, length: int, key: bytes | None) -> None:
    wire = encoded(first, length, key)
    assert decoded(wire) == naive(wire) == Header(len(wire), first & 0xF0, first & 0x0F, length, key)


def test_no_byte_outside_is_read_or_written() -> None:
    chance = random.Random(1)
    with GuardedMemory(64) as memory:
        for _ in range(200):
            key = chance.choice([None, KEY])
            length = chance.choice(BOUNDARIES)
            wire = encoded(0x82, length, key)
            header = ffi.new("wspy_frame_header *")
            for place in (memory.at_start, memory.at_end):
                assert lib.wspy_frame_decode(place(wire), len(wire), header) == len(wire)
                output = place(bytes(len(wire)))
                assert lib.wspy_frame_encode(output, header) == len(wire)
                assert ffi.buffer(output, len(wire))[:] == wire
