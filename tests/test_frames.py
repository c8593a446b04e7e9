"""Are frames and their headers what RFC 6455 §5.2 says?"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from reference import encode

from wspy._core import ffi, lib
from wspy.codes import Opcode
from wspy.frames import FIN, Frame, frame_header

LENGTHS = [0, 1, 125, 126, 127, 65_535, 65_536, 2**32 - 1, 2**32, 2**63 - 1]


def decoded(header: bytes) -> tuple[int, int, int, int, int]:
    """Return how the core reads a header: its size, flags, opcode, whether it is masked, and the payload's length."""
    fields = ffi.new("wspy_frame_header *")
    size = lib.wspy_frame_decode(header, len(header), fields)
    return size, fields.flags, fields.opcode, fields.masked, fields.length


# ---- headers ----


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("first", [0x00, 0x01, 0x82, 0x8A, 0xC1, 0xFF])
def test_the_core_reads_what_a_header_says(first: int, length: int) -> None:
    header = frame_header(first, length)
    assert decoded(header) == (len(header), first & 0xF0, first & 0x0F, 0, length)


@pytest.mark.parametrize(("length", "size"), [(125, 2), (126, 4), (65_535, 4), (65_536, 10)])
def test_a_length_takes_no_more_bytes_than_it_must(length: int, size: int) -> None:
    assert len(frame_header(FIN, length)) == size


# ---- frames ----


def test_a_frame_is_whole_and_plain_unless_it_is_said_otherwise() -> None:
    frame = Frame(Opcode.PING)
    assert (frame.opcode, frame.payload, frame.final) == (9, b"", True)
    assert [frame.rsv1, frame.rsv2, frame.rsv3] == [False] * 3


@pytest.mark.parametrize("opcode", range(16))
def test_control_frames_have_the_highest_bit_of_the_opcode(opcode: int) -> None:
    assert Frame(opcode).is_control == bool(opcode & 8)


def test_frames_are_equal_if_all_of_them_is() -> None:
    frame = Frame(1, b"hello", final=False, rsv1=True)
    assert frame == Frame(1, bytearray(b"hello"), final=False, rsv1=True)
    for other in (
        Frame(2, b"hello", final=False, rsv1=True),
        Frame(1, b"hallo", final=False, rsv1=True),
        Frame(1, b"hello", rsv1=True),
        Frame(1, b"hello", final=False),
        Frame(1, b"hello", final=False, rsv1=True, rsv2=True),
        Frame(1, b"hello", final=False, rsv1=True, rsv3=True),
    ):
        assert frame != other
    assert frame != "frame"


def test_frames_can_be_changed_and_so_have_no_hash() -> None:
    frame = Frame(1, b"hello")
    frame.payload = b"goodbye"
    assert frame == Frame(1, b"goodbye")
    with pytest.raises(TypeError, match="unhashable"):
        hash(frame)


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (Frame(1, b"hello"), "<Frame TEXT final 5 bytes b'hello'>"),
        (Frame(0, final=False), "<Frame CONTINUATION 0 bytes b''>"),
        (Frame(2, b"x" * 30, rsv1=True), f"<Frame BINARY final rsv1 30 bytes b'{'x' * 30}'>"),
        (Frame(2, b"x" * 31, rsv2=True, rsv3=True), f"<Frame BINARY final rsv2 rsv3 31 bytes b'{'x' * 30}'...>"),
        (Frame(11, b"\n"), r"<Frame opcode 11 final 1 bytes b'\n'>"),
    ],
)
def test_a_repr_has_one_line_of_what_matters(frame: Frame, text: str) -> None:
    assert repr(frame) == text


def test_frames_can_be_copied_and_pickled() -> None:
    frame = Frame(1, b"hello", final=False, rsv1=True)
    assert copy.copy(frame) == copy.deepcopy(frame) == pickle.loads(pickle.dumps(frame)) == frame  # noqa: S301
    assert copy.copy(frame) is not frame


# ---- as on the wire ----


@pytest.mark.parametrize("length", [0, 1, 3, 4, 125, 126, 65_535, 65_536])
@pytest.mark.parametrize("key", [None, b"\x37\xfa\x21\x3d", b"\0\0\0\0"])
def test_a_frame_is_packed_as_the_reference_has_it(length: int, key: bytes | None) -> None:
    payload = bytes(range(256)) * (length // 256 + 1)
    frame = Frame(2, payload[:length], masking_key=key)
    assert frame.pack() == encode(0x82, payload[:length], key)
    assert frame.payload == payload[:length]


@pytest.mark.parametrize(
    ("flags", "first"),
    [({"final": False}, 0x02), ({"rsv1": True}, 0xC2), ({"rsv2": True}, 0xA2), ({"rsv3": True}, 0x92)],
)
def test_flags_are_packed(flags: dict[str, bool], first: int) -> None:
    assert Frame(2, b"x", **flags).pack() == bytes((first, 1)) + b"x"  # type: ignore[arg-type]


def test_section_5_7_examples() -> None:
    assert Frame(1, b"Hello").pack() == bytes.fromhex("810548656c6c6f")
    assert Frame(1, b"Hello", masking_key=bytes.fromhex("37fa213d")).pack() == bytes.fromhex("818537fa213d7f9f4d5158")
    assert Frame(9, b"Hello").pack() == bytes.fromhex("890548656c6c6f")


@pytest.mark.parametrize("buffer", [bytearray, memoryview])
def test_buffers_are_packed_and_left_as_they_are(buffer: Any) -> None:
    payload, key = buffer(b"hello"), buffer(b"keys")
    assert Frame(2, payload, masking_key=key).pack() == encode(0x82, b"hello", b"keys")
    assert bytes(payload) == b"hello"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"opcode": 16}, ValueError),
        ({"opcode": -1}, ValueError),
        ({"opcode": 2, "masking_key": b"abc"}, ValueError),
        ({"opcode": 2, "masking_key": b"abcde"}, ValueError),
        ({"opcode": 9, "payload": b"x" * 126}, ValueError),
        ({"opcode": 8, "final": False}, ValueError),
        ({"opcode": 2, "payload": "hello"}, TypeError),
        ({"opcode": 1, "masking_key": "keys"}, TypeError),
        ({"opcode": 1, "payload": 5}, TypeError),
        ({"opcode": 1, "payload": b"\xff"}, ValueError),
    ],
)
def test_what_is_no_frame_can_not_be_made(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Frame(**arguments)


def test_a_masking_key_is_part_of_a_frame() -> None:
    assert Frame(1).masking_key == b""
    assert Frame(1, masking_key=b"keys") == Frame(1, masking_key=b"keys")
    assert Frame(1, masking_key=b"keys") != Frame(1)
