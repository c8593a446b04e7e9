"""Are frames and their headers what RFC 6455 §5.2 says?"""

from __future__ import annotations

import array
import copy
import io
import mmap
import pickle
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reference import decode_frames, encode

import wspy
from wspy._core import ffi, lib
from wspy.codes import Opcode
from wspy.errors import ProtocolError, SocketClosed
from wspy.frames import (
    FIN,
    ControlFrame,
    Frame,
    close_payload,
    contains_frame,
    core_error,
    create_close_frame,
    fragments,
    frame_header,
    mask,
    new_key,
    packed,
    pop_frame,
    read_frame,
    receive_frame,
    received_frame,
    split_close,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = bytes.fromhex("37fa213d")
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


def test_a_frame_is_packed_with_the_key_it_was_made_with() -> None:
    frame = Frame(2, b"hello", mask=True)
    assert frame.pack() == frame.pack() == encode(0x82, b"hello", frame.masking_key)
    assert len(frame.masking_key) == 4


def test_section_5_3_a_frame_that_is_masked_only_when_packed_has_a_new_key_each_time() -> None:
    frame = Frame(2, b"hello")
    frame.mask = True
    keys = {decode_frames(frame.pack())[0][2] for _ in range(50)}
    assert len(keys) > 48
    assert None not in keys
    assert frame.masking_key == b""


# ---- attributes that were changed ----


@pytest.mark.parametrize("attribute", ["payload", "masking_key"])
@pytest.mark.parametrize("value", ["text", bytearray(b"keys"), memoryview(b"keys"), [1, 2, 3, 4], 7], ids=repr)
@pytest.mark.parametrize("opcode", [1, 2])
def test_bytes_can_not_become_something_else(attribute: str, value: Any, opcode: int) -> None:
    frame = Frame(opcode, b"hello")
    setattr(frame, attribute, value)
    for use in (frame.pack, frame.first_byte, lambda: frame.fragment(2)):
        with pytest.raises(TypeError, match="must be bytes"):
            use()


@pytest.mark.parametrize("value", ["1", 1.0, None])
def test_an_opcode_is_an_integer(value: Any) -> None:
    frame = Frame(1, b"hello")
    frame.opcode = value
    with pytest.raises(TypeError):
        frame.pack()
    with pytest.raises(TypeError):
        Frame(value, b"hello")


@pytest.mark.parametrize(
    ("attribute", "value", "match"),
    [
        ("opcode", 16, "from 0 to 15"),
        ("opcode", -1, "from 0 to 15"),
        ("opcode", 9, r"§5\.5"),
        ("payload", b"\xff", r"§8\.1"),
        ("masking_key", b"abc", "4 bytes"),
    ],
)
def test_what_was_changed_is_checked_again(attribute: str, value: Any, match: str) -> None:
    frame = Frame(1, b"hello" * 30)
    setattr(frame, attribute, value)
    for use in (frame.pack, lambda: frame.fragment(2)):
        with pytest.raises(ValueError, match=match):
            use()


# ---- arguments ----


def test_the_arguments_have_the_order_of_the_original() -> None:
    arguments: list[Any] = [1, b"x", b"keys", True, False, True, False, True]
    frame = Frame(*arguments)
    names = ["opcode", "payload", "masking_key", "mask", "final", "rsv1", "rsv2", "rsv3"]
    assert [getattr(frame, name) for name in names] == arguments
    assert ControlFrame(9, b"x", b"keys").masking_key == b"keys"
    with pytest.raises(TypeError):
        Frame(*arguments, True)  # type: ignore[misc]  # noqa: FBT003 -- that it can't be is what is tested


def test_a_frame_says_what_is_left_to_who_sends_it() -> None:
    frame = Frame(2, b"x")
    assert (frame.masking_key, frame.mask, frame.unchecked) == (b"", None, False)


@pytest.mark.parametrize("name", ["mask", "rsv1", "rsv2", "rsv3", "unchecked"])
@pytest.mark.parametrize("value", [2, 4, 5, "yes"])
def test_a_flag_is_true_or_false(name: str, value: Any) -> None:
    assert getattr(Frame(2, b"x", **{name: value}), name) is True
    assert getattr(Frame(2, b"x", **{name: 0}), name) is False


def in_a_map(data: bytes) -> mmap.mmap:
    mapping = mmap.mmap(-1, len(data))
    mapping[:] = data
    return mapping


BUFFERS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "a subclass": type("Bytes", (bytes,), {}),
    "bytearray": bytearray,
    "memoryview": memoryview,
    "with gaps": lambda data: memoryview(b"".join(bytes((byte, 0)) for byte in data))[::2],
    "backwards": lambda data: memoryview(data[::-1])[::-1],
    "a table": lambda data: memoryview(data).cast("B", (2, len(data) // 2)),
    "larger items": lambda data: memoryview(data).cast("H"),
    "array": lambda data: array.array("I", data),
    "mmap": in_a_map,
}
BUFFER = pytest.mark.parametrize("buffer", BUFFERS.values(), ids=BUFFERS)


@BUFFER
@pytest.mark.parametrize("opcode", [1, 2, 9])
def test_a_payload_is_any_buffer_of_which_a_copy_is_kept(buffer: Callable[[bytes], Any], opcode: int) -> None:
    data = bytes(range(8, 16)) * 2
    frame = Frame(opcode, buffer(data))
    assert type(frame.payload) is bytes
    assert frame.payload == data
    assert frame.pack() == encode(FIN | opcode, data)


@BUFFER
def test_a_key_is_any_buffer_of_four_bytes(buffer: Callable[[bytes], Any]) -> None:
    frame = Frame(2, b"hello", buffer(b"keys"))
    assert type(frame.masking_key) is bytes
    assert frame.pack() == encode(0x82, b"hello", b"keys")


def test_buffers_may_change_afterwards() -> None:
    payload, key = bytearray(b"hello"), bytearray(b"keys")
    frame = Frame(2, payload, key)
    payload[:], key[:] = b"other", b"lock"
    assert frame.pack() == encode(0x82, b"hello", b"keys")


def test_only_a_text_may_be_a_str() -> None:
    assert Frame(1, "é").payload == "é".encode()
    assert Frame(1, "").payload == b""
    for opcode in {*range(16)} - {1}:
        with pytest.raises(TypeError, match="can't be a str"):
            Frame(opcode, "x", unchecked=True)


@pytest.mark.parametrize("payload", [None, 5, 1.5, [1, 2], {1: 2}, object()], ids=repr)
@pytest.mark.parametrize("opcode", [1, 2, 8])
def test_a_payload_of_another_type(payload: Any, opcode: int) -> None:
    with pytest.raises(TypeError, match=f"a payload is bytes-like.* not {type(payload).__name__}"):
        Frame(opcode, payload, unchecked=True)


@pytest.mark.parametrize("key", ["keys", 5, [1, 2, 3, 4], 1.5], ids=repr)
def test_a_key_of_another_type(key: Any) -> None:
    with pytest.raises(TypeError):
        Frame(2, b"x", key, unchecked=True)


@pytest.mark.parametrize("empty", [b"", None, bytearray(), memoryview(b"")])
def test_no_key_is_no_key(empty: Any) -> None:
    assert Frame(2, b"x", empty).pack() == b"\x82\x01x"
    assert Frame(2, b"x", empty, mask=False).pack() == b"\x82\x01x"
    assert Frame(2, b"x", empty, mask=True).pack()[1] == 0x81


@pytest.mark.parametrize("mask", [None, False, True])
def test_a_key_wins_over_what_is_said_about_masking(mask: bool | None) -> None:
    frame = Frame(2, b"x", b"keys", mask)
    assert (frame.masking_key, frame.mask) == (b"keys", mask)
    assert frame.pack() == encode(0x82, b"x", b"keys")


def test_section_5_3_keys_are_drawn_anew() -> None:
    keys = {Frame(2, mask=True).masking_key for _ in range(100)}
    assert len(keys) > 98
    assert {len(key) for key in keys} == {4}
    assert Frame(2, mask=True) != Frame(2, mask=True)


def test_a_masking_key_is_part_of_a_frame() -> None:
    assert Frame(1, masking_key=b"keys") == Frame(1, masking_key=b"keys")
    assert Frame(1, masking_key=b"keys") != Frame(1)


def test_a_control_frame_is_equal_to_a_frame() -> None:
    assert ControlFrame(9, b"x") == Frame(9, b"x")
    assert repr(ControlFrame(9, b"x")) == str(ControlFrame(9, b"x")) == "<ControlFrame PING final 1 bytes b'x'>"


def test_each_attribute_is_copied_and_pickled() -> None:
    frame = ControlFrame(11, b"x" * 200, b"keys", mask=True, final=False, rsv1=True, rsv3=True, unchecked=True)
    for other in (copy.copy(frame), copy.deepcopy(frame), pickle.loads(pickle.dumps(frame))):  # noqa: S301 -- our own
        assert type(other) is ControlFrame
        assert vars(other) == vars(frame)
        assert other.pack() == frame.pack()


# ---- the rules for a frame by itself ----

BAD: list[tuple[str, int, bytes, dict[str, Any]]] = [
    (r"§5\.5\)", 9, b"x" * 126, {}),
    (r"§5\.5\)", 8, b"\x03\xe8" + b"x" * 124, {}),
    (r"§5\.5\)", 15, b"x" * 65_536, {}),
    (r"§5\.5\)", 9, b"", {"final": False}),
    (r"§5\.5\)", 8, b"\x03\xe8", {"final": False}),
    (r"§5\.2\)", 10, b"", {"rsv1": True}),
    (r"§5\.2\)", 8, b"", {"rsv2": True}),
    (r"§5\.2\)", 11, b"", {"rsv3": True}),
    (r"§5\.5\.1\)", 8, b"x", {}),
    (r"§7\.4", 8, b"\0\0", {}),
    (r"§7\.4", 8, b"\x03\xed", {}),
    (r"§7\.4", 8, b"\x03\xee", {}),
    (r"§7\.4", 8, b"\x03\xf7", {}),
    (r"§7\.4", 8, b"\x13\x88", {}),
    (r"§5\.5\.1\)", 8, b"\x03\xe8\xff", {}),
    (r"§5\.5\.1\)", 8, b"\x03\xe8\xc3", {}),
    (r"§8\.1\)", 1, b"\xff", {}),
    (r"§8\.1\)", 1, b"\xc3", {}),
    (r"§8\.1\)", 1, b"\xed\xa0\x80", {}),
    (r"§8\.1\)", 1, b"fine\xc0\x80", {"final": False}),
]


@pytest.mark.parametrize(("section", "opcode", "payload", "flags"), BAD, ids=str)
@pytest.mark.parametrize("key", [b"", b"keys"], ids=["plain", "masked"])
def test_a_frame_that_breaks_a_rule_by_itself(
    section: str, opcode: int, payload: bytes, flags: dict[str, Any], key: bytes
) -> None:
    for kind in (Frame, ControlFrame):
        with pytest.raises(ValueError, match=section) as caught:
            kind(opcode, payload, key, **flags)
        assert "unchecked=True" in str(caught.value)
        frame = kind(opcode, payload, key, **flags, unchecked=True)
        first = opcode | (FIN if frame.final else 0) | 0x40 * frame.rsv1 | 0x20 * frame.rsv2 | 0x10 * frame.rsv3
        assert frame.pack() == encode(first, payload, key or None)
        frame.unchecked = False
        with pytest.raises(ValueError, match=section):
            frame.pack()


@pytest.mark.parametrize(
    "frame",
    [
        Frame(9, b"x" * 125),
        Frame(8),
        Frame(8, b"\x03\xe8" + b"x" * 123),
        Frame(8, b"\x13\x87" + "é".encode()),
        Frame(1, b"\xc3", final=False),
        Frame(0, b"\xa9"),
        Frame(0, b"\xff", final=False),
        Frame(1, b"\xff", rsv1=True),
        Frame(3, b"\xff", rsv2=True),
        Frame(0, b"x", rsv3=True),
        Frame(15, b"\xff"),
        Frame(2, b"\xff" * 70_000),
    ],
    ids=repr,
)
def test_a_frame_that_is_right_somewhere_can_be_made(frame: Frame) -> None:
    assert read_frame(frame.pack()) == (frame, len(frame.pack()))


@pytest.mark.parametrize(
    "arguments",
    [(16, b""), (-1, b""), (1 << 70, b""), (2, b"", b"abc"), (2, b"", b"abcde"), (2, b"", b"x" * 8)],
    ids=repr,
)
def test_what_no_frame_can_be_is_refused_unchecked_too(arguments: tuple[Any, ...]) -> None:
    for unchecked in (False, True):
        with pytest.raises(ValueError, match=r"opcode is from 0 to 15|masking key has 4 bytes"):
            Frame(*arguments, unchecked=unchecked)


@given(
    st.integers(0, 15), st.binary(max_size=130), st.booleans(), st.tuples(st.booleans(), st.booleans(), st.booleans())
)
def test_what_can_be_made_can_be_packed_and_read(
    opcode: int, payload: bytes, final: bool, rsv: tuple[bool, bool, bool]
) -> None:
    try:
        frame = Frame(opcode, payload, None, None, final, *rsv)
    except ValueError:
        wrong = Frame(opcode, payload, None, None, final, *rsv, unchecked=True).pack()
        with pytest.raises(ProtocolError):
            read_frame(wrong)
        assert read_frame(wrong, strict=False)[0].unchecked
        return
    assert read_frame(frame.pack())[0] == frame
    assert not read_frame(frame.pack(), strict=False)[0].unchecked


# ---- what a frame tells ----


@pytest.mark.parametrize(
    ("frame", "fragmented"),
    [
        (Frame(2), False),
        (Frame(2, final=False), True),
        (Frame(0), True),
        (Frame(0, final=False), True),
        (ControlFrame(9), False),
    ],
    ids=repr,
)
def test_section_5_4_a_fragment_is_not_final_or_continues(frame: Frame, fragmented: bool) -> None:
    assert frame.is_fragmented() is fragmented


def test_the_text_of_a_frame() -> None:
    assert Frame(1, "é").text == "é"
    assert Frame(2, "é".encode()).text == "é"
    with pytest.raises(UnicodeDecodeError):
        _ = Frame(1, b"\xc3", final=False).text


def test_a_masked_payload() -> None:
    frame = Frame(1, "Hello", KEY)
    assert frame.mask_payload() == bytes.fromhex("7f9f4d5158")
    assert frame.pack()[6:] == frame.mask_payload()
    with pytest.raises(ValueError, match="4 bytes"):
        Frame(1, "Hello").mask_payload()


@BUFFER
def test_masking_twice_is_nothing(buffer: Callable[[bytes], Any]) -> None:
    data = bytes(range(200))
    masked = mask(buffer(data), buffer(b"keys"))
    assert type(masked) is bytes
    assert masked == encode(0x82, data, b"keys")[-200:]
    assert mask(masked, b"keys") == data


@given(st.binary(max_size=200), st.binary(min_size=4, max_size=4))
def test_masking_is_an_exclusive_or(data: bytes, key: bytes) -> None:
    assert mask(data, key) == bytes(byte ^ key[i % 4] for i, byte in enumerate(data))


@pytest.mark.parametrize("key", [b"", b"abc", b"abcde"])
def test_masking_takes_four_bytes(key: bytes) -> None:
    with pytest.raises(ValueError, match="4 bytes"):
        mask(b"x", key)


@pytest.mark.parametrize(("data", "key"), [("x", b"keys"), (b"x", "keys"), (5, b"keys"), (b"x", None)])
def test_masking_takes_bytes(data: Any, key: Any) -> None:
    with pytest.raises(TypeError):
        mask(data, key)


def test_masking_leaves_small_bytes_as_they_are() -> None:
    ones = [bytes((n,)) for n in range(256)]
    for one in (b"", *ones):
        mask(one, b"\xff\xff\xff\xff")
        Frame(2, one, b"\xff\xff\xff\xff").pack()
    assert ones == [bytes.fromhex(f"{n:02x}") for n in range(256)]
    assert bytes(bytearray()) == b""


# ---- Close frames ----


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"", (None, "")),
        (b"\x03\xe8", (1000, "")),
        (b"\x13\x87" + "é".encode() * 61, (4999, "é" * 61)),
    ],
)
def test_section_5_5_1_code_and_reason(payload: bytes, expected: tuple[int | None, str]) -> None:
    frame = ControlFrame(8, payload)
    assert frame.unpack_close() == expected
    assert create_close_frame(*expected) == frame
    assert close_payload(*expected) == payload
    assert split_close(payload) == (expected[0] or 1005, expected[1])


@pytest.mark.parametrize(
    ("payload", "code"), [(b"x", 1002), (b"\x03\xed", 1002), (b"\x03\xe8\xff", 1007), (b"\x03\xe8" + b"x" * 124, 1002)]
)
def test_section_5_5_1_what_is_no_payload_of_a_close(payload: bytes, code: int) -> None:
    frame = ControlFrame(8, payload, unchecked=True)
    with pytest.raises(ProtocolError) as caught:
        frame.unpack_close()
    assert caught.value.code == code


@pytest.mark.parametrize("opcode", [1, 9, 10, 11])
def test_only_a_close_has_a_code(opcode: int) -> None:
    with pytest.raises(TypeError, match="not a Close"):
        ControlFrame(opcode, b"fine").unpack_close()


def test_a_close_frame_is_normal_unless_it_is_said_otherwise() -> None:
    assert create_close_frame() == ControlFrame(8, b"\x03\xe8")
    assert create_close_frame(None) == ControlFrame(8)
    assert type(create_close_frame(3000, reason="é")) is ControlFrame


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((1005,), ValueError), ((None, "x"), ValueError), ((1000, "x" * 124), ValueError), (("1000",), TypeError)],
)
def test_a_close_frame_that_can_not_be(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        create_close_frame(*arguments)


# ---- fragments ----


@pytest.mark.parametrize("length", [0, 1, 2, 3, 6, 7])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 1 << 70])
@pytest.mark.parametrize("opcode", [1, 2, 3])
def test_section_5_4_the_parts_of_a_message(length: int, size: int, opcode: int) -> None:
    payload = b"abcdefg"[:length]
    frames = Frame(opcode, payload).fragment(size)
    assert b"".join(frame.payload for frame in frames) == payload
    assert [frame.opcode for frame in frames] == [opcode] + [0] * (len(frames) - 1)
    assert [frame.final for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert [len(frame.payload) for frame in frames[:-1]] == [size] * (len(frames) - 1)
    assert len(frames) == max(-(-length // size), 1)
    assert [(frame.first_byte(), frame.payload) for frame in frames] == list(fragments(opcode, payload, size))


def test_the_bits_of_a_message_are_on_its_first_frame() -> None:
    frames = Frame(1, b"\xff" * 5, rsv1=True, rsv3=True).fragment(2)
    assert [(frame.rsv1, frame.rsv2, frame.rsv3) for frame in frames] == [(True, False, True), *[(False,) * 3] * 2]
    assert [frame.pack()[0] for frame in frames] == [0x51, 0x00, 0x80]


def test_a_fragment_can_be_split_further() -> None:
    assert [frame.first_byte() for frame in Frame(2, b"abc", final=False).fragment(2)] == [0x02, 0x00]
    assert [frame.first_byte() for frame in Frame(0, b"abc", final=False).fragment(2)] == [0x00, 0x00]
    assert [frame.first_byte() for frame in Frame(0, b"abc").fragment(2)] == [0x00, 0x80]


def test_a_text_is_split_inside_a_code_point() -> None:
    frames = Frame(1, "é€").fragment(1)
    assert [frame.payload for frame in frames] == [bytes((byte,)) for byte in "é€".encode()]
    assert b"".join(frame.pack() for frame in frames)


@pytest.mark.parametrize("kwargs", [{"mask": True}, {"masking_key": b"keys"}])
def test_section_5_3_fragments_have_keys_of_their_own(kwargs: Any) -> None:
    for frames in (Frame(2, bytes(60), **kwargs).fragment(1), Frame(2, bytes(60)).fragment(1, mask=True)):
        keys = {frame.masking_key for frame in frames}
        assert len(keys) > 58
        assert {len(key) for key in keys} == {4}
        assert {frame.mask for frame in frames} == {True}


def test_fragments_leave_masking_to_who_sends_them_like_their_frame() -> None:
    assert {frame.mask for frame in Frame(2, b"abc").fragment(1)} == {None}
    assert {frame.mask for frame in Frame(2, b"abc", mask=False).fragment(1)} == {False}
    frames = Frame(2, b"abc", mask=True).fragment(1, mask=False)
    assert {(frame.mask, frame.masking_key) for frame in frames} == {(False, b"")}


def test_fragments_are_as_checked_as_their_frame() -> None:
    assert {frame.unchecked for frame in Frame(2, b"abc").fragment(1)} == {False}
    assert {frame.unchecked for frame in Frame(1, b"\xff\xff", unchecked=True).fragment(1)} == {True}


@pytest.mark.parametrize("size", [0, -1])
def test_a_fragment_has_a_byte(size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Frame(2, b"abc").fragment(size)


@pytest.mark.parametrize("opcode", [8, 9, 10, 11])
@pytest.mark.parametrize("kind", [Frame, ControlFrame])
def test_section_5_5_a_control_frame_is_not_split(opcode: int, kind: type[Frame]) -> None:
    with pytest.raises(TypeError, match=r"§5\.5"):
        kind(opcode, b"\x03\xe8").fragment(1)
    frame = kind(opcode, b"\x03\xe8", unchecked=True)
    if kind is Frame:
        assert [each.first_byte() for each in frame.fragment(1)] == [opcode, FIN]
        return
    with pytest.raises(TypeError, match=r"§5\.5"):
        frame.fragment(1)


# ---- what arrives ----


def wire(first: int, payload: bytes, key: bytes | None, extended: int | None = None) -> bytes:
    """Encode a frame whose length takes so many further bytes."""
    if extended is None:
        return encode(first, payload, key)
    start = encode(first, b"", key)
    length = len(payload).to_bytes(extended)
    field = bytes((start[1] | {2: 126, 8: 127}[extended],))
    return start[:1] + field + length + start[2:] + (mask(payload, key) if key else payload)


FORMS = [
    (length, key)
    for length in (0, 1, 2, 124, 125, 126, 127, 255, 256, 65_535, 65_536, 70_000)
    for key in (None, KEY, b"\0\0\0\0")
]


def places(data: bytes) -> list[int]:
    """Return where to cut: everywhere, or near both ends."""
    size = len(data)
    return list(range(size)) if size < 400 else [*range(40), *range(size - 20, size)]


@pytest.mark.parametrize(("length", "key"), FORMS)
def test_d1_a_frame_is_complete_with_its_last_byte(length: int, key: bytes | None) -> None:
    payload = bytes(range(256)) * 274
    data = wire(0x82, payload[:length], key)
    for size in places(data):
        assert contains_frame(data[:size]) is False
        with pytest.raises(ValueError, match="no complete frame"):
            read_frame(data[:size])
        with pytest.raises(ValueError, match="no complete frame"):
            pop_frame(data[:size])
    expected = Frame(2, payload[:length], key)
    for rest in (b"", b"\x82", b"\xff" * 20, data):
        assert contains_frame(data + rest) is True
        assert read_frame(data + rest) == (expected, len(data))
        assert pop_frame(data + rest) == (expected, rest)
    frame, _ = read_frame(data)
    assert (frame.masking_key, frame.mask, frame.unchecked) == (key or b"", None, False)
    assert frame.pack() == data


@pytest.mark.parametrize(("length", "extended"), [(0, 2), (5, 2), (125, 2), (0, 8), (125, 8), (126, 8), (65_535, 8)])
@pytest.mark.parametrize("key", [None, KEY])
def test_section_5_2_a_length_in_too_many_bytes(length: int, extended: int, key: bytes | None) -> None:
    data = wire(0x82, bytes(length), key, extended)
    header = 2 + extended
    for size in places(data):
        assert contains_frame(data[:size]) is False
        with pytest.raises(ProtocolError if size >= header else ValueError) as caught:
            read_frame(data[:size])
        assert not isinstance(caught.value, ProtocolError) or caught.value.code == 1002
        with pytest.raises(ValueError, match="no complete frame"):
            read_frame(data[:size], strict=False)
    assert contains_frame(data) is True
    frame, size = read_frame(data + b"rest", strict=False)
    assert (frame, size) == (Frame(2, bytes(length), key), len(data))
    assert pop_frame(data + b"rest", strict=False) == (frame, b"rest")
    assert frame.pack() == wire(0x82, bytes(length), key)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("key", [b"", KEY])
def test_section_5_2_the_most_significant_bit_of_a_length(strict: bool, key: bytes) -> None:
    data = bytes((0x82, 0x80 * bool(key) | 127)) + (1 << 63).to_bytes(8) + key
    for size in range(10):
        assert contains_frame(data[:size]) is False
    for size in range(10, len(data) + 1):
        for read in (read_frame, pop_frame):
            with pytest.raises(ProtocolError, match=r"§5\.2"):
                read(data[:size], strict=strict)
        with pytest.raises(ProtocolError, match=r"§5\.2"):
            contains_frame(data[:size])


@pytest.mark.parametrize("length", [1 << 20, 1 << 40, (1 << 63) - 1])
def test_d7_an_announced_length_costs_nothing(length: int) -> None:
    data = b"\x82\x7f" + length.to_bytes(8) + b"x"
    assert contains_frame(data) is False
    with pytest.raises(ValueError, match="no complete frame"):
        read_frame(data)


@pytest.mark.parametrize(("section", "opcode", "payload", "flags"), BAD, ids=str)
@pytest.mark.parametrize("key", [b"", KEY], ids=["plain", "masked"])
def test_a_frame_that_breaks_a_rule_is_read_on_demand_only(
    section: str, opcode: int, payload: bytes, flags: dict[str, Any], key: bytes
) -> None:
    sent = Frame(opcode, payload, key, **flags, unchecked=True)
    data = sent.pack()
    assert contains_frame(data) is True
    with pytest.raises(ProtocolError, match=section):
        read_frame(data + b"rest")
    frame, rest = pop_frame(data + b"rest", strict=False)
    assert (frame, rest, frame.unchecked) == (sent, b"rest", True)
    assert frame.pack() == data


@pytest.mark.parametrize("second", [0x7E, 0x7F, 0xFE, 0xFF])
def test_section_5_5_the_length_of_a_control_frame_is_judged_by_its_second_byte(second: int) -> None:
    data = bytes((0x89, second))
    assert contains_frame(data) is False
    with pytest.raises(ProtocolError, match=r"§5\.5"):
        read_frame(data)
    with pytest.raises(ValueError, match="no complete frame"):
        read_frame(data, strict=False)


@pytest.mark.parametrize("opcode", range(16))
def test_control_frames_are_read_as_such(opcode: int) -> None:
    frame, _ = read_frame(Frame(opcode).pack())
    assert type(frame) is (ControlFrame if opcode >= 8 else Frame)
    assert type(received_frame(opcode, b"")) is type(frame)


@pytest.mark.parametrize("buffer", [BUFFERS[name] for name in BUFFERS if name not in {"with gaps", "backwards"}])
@pytest.mark.parametrize("size", [6, 70_000])
def test_a_frame_is_read_from_any_contiguous_buffer(buffer: Callable[[bytes], Any], size: int) -> None:
    data = Frame(2, b"x" * size, KEY).pack()
    data += b"\0" * (-len(data) % 4)
    assert contains_frame(buffer(data)) is True
    frame, taken = read_frame(buffer(data))
    assert (frame.payload, taken) == (b"x" * size, size + (6 if size < 126 else 14))
    assert pop_frame(buffer(data)) == (frame, data[taken:])
    assert type(pop_frame(buffer(data))[1]) is bytes


@pytest.mark.parametrize("data", ["text", None, 7, [0x82, 0], memoryview(bytes(8))[::2]], ids=repr)
def test_a_frame_is_read_from_bytes_only(data: Any) -> None:
    for read in (contains_frame, read_frame, pop_frame):
        with pytest.raises(TypeError):
            read(data)


FRAMES = st.builds(
    lambda opcode, payload, key, final, rsv: Frame(opcode, payload, key, None, final, *rsv, unchecked=True),
    st.integers(0, 15),
    st.binary(max_size=140) | st.sampled_from([bytes(126), bytes(65_535), bytes(65_536)]),
    st.none() | st.binary(min_size=4, max_size=4),
    st.booleans(),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)


@given(st.lists(FRAMES, min_size=1, max_size=4), st.binary(max_size=20))
def test_reading_undoes_packing(frames: list[Frame], rest: bytes) -> None:
    data = b"".join(frame.pack() for frame in frames) + rest
    for frame in frames:
        assert contains_frame(data)
        read, size = read_frame(data, strict=False)
        assert read == frame
        assert read.pack() == data[:size] == frame.pack()
        popped, data = pop_frame(data, strict=False)
        assert popped == frame
    assert data == rest


@given(st.binary(max_size=24))
@example(b"\x82\xfe\x00\x01keysx")
@example(b"\x88\x01x")
def test_any_bytes_are_a_frame_or_incomplete_or_wrong(data: bytes) -> None:
    try:
        whole = contains_frame(data)
    except ProtocolError:
        assert data[1] & 0x7F == 127
        assert data[2] & 0x80
        return
    if not whole:
        with pytest.raises(ValueError, match="no complete frame"):
            read_frame(data, strict=False)
        return
    frame, size = read_frame(data, strict=False)
    minimal = data[1] & 0x7F < 126 or len(frame.payload) > (125 if data[1] & 0x7F == 126 else 65_535)
    assert size <= len(data)
    assert (frame.pack() == data[:size]) is minimal
    try:
        strict, _ = read_frame(data)
    except ProtocolError:
        assert frame.unchecked or not minimal
    else:
        assert strict == frame
        assert not frame.unchecked


def test_names_of_the_package() -> None:
    names = ["ControlFrame", "Frame", "contains_frame", "create_close_frame", "mask", "pop_frame", "read_frame"]
    for name in names:
        assert getattr(wspy, name) is globals()[name]


# ---- from a socket ----


class Trickle:
    """What a socket receives, so many bytes a time at most. Remembers how much was asked for."""

    def __init__(self, data: bytes, most: int) -> None:
        self._data = io.BytesIO(data)
        self._most = most
        self.asked = 0

    def recv(self, size: int, /) -> bytes:
        assert size > 0
        self.asked = max(self.asked, self._data.tell() + size)
        return self._data.read(min(size, self._most))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(30)
        yield ours, theirs


@pytest.mark.parametrize(("length", "key"), FORMS)
@pytest.mark.parametrize("most", [1, 3, 1 << 20])
def test_not_a_byte_too_many_is_asked_for(length: int, key: bytes | None, most: int) -> None:
    frames = [Frame(2, bytes(length), key), Frame(9, b"next")]
    source = Trickle(b"".join(frame.pack() for frame in frames), most)
    assert receive_frame(source) == frames[0]
    assert source.asked == len(frames[0].pack())
    assert receive_frame(source) == frames[1]


def test_frames_from_a_socket_byte_by_byte(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    frames = [Frame(1, "é", KEY), Frame(2, bytes(126)), Frame(8, b"\x03\xe8"), Frame(2, b"x" * 70_000, KEY)]
    data = b"".join(frame.pack() for frame in frames)

    def write() -> None:
        for at in range(300):
            theirs.sendall(data[at : at + 1])
        theirs.sendall(data[300:] + b"rest")

    writer = threading.Thread(target=write)
    writer.start()
    assert [receive_frame(ours) for _ in frames] == frames
    assert ours.recv(100) == b"rest"
    writer.join()


@pytest.mark.parametrize("length", [0, 5, 126, 65_536])
@pytest.mark.parametrize("key", [None, KEY])
def test_a_connection_may_end_anywhere(length: int, key: bytes | None) -> None:
    data = wire(0x82, bytes(length), key)
    for size in places(data):
        with pytest.raises(SocketClosed, match="without a Close") as caught:
            receive_frame(Trickle(data[:size], 1 << 20))
        assert (caught.value.code, caught.value.initialized) == (1006, False)


def test_a_socket_that_ends(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(Frame(2, b"hello").pack() + b"\x82\x05he")
    theirs.shutdown(socket.SHUT_WR)
    assert receive_frame(ours) == Frame(2, b"hello")
    with pytest.raises(SocketClosed):
        receive_frame(ours)


@pytest.mark.parametrize(("max_size", "length"), [(0, 0), (0, 1), (5, 5), (5, 6), (1 << 20, (1 << 20) + 1)])
@pytest.mark.parametrize("key", [None, KEY])
def test_a_frame_over_the_limit_is_refused_from_its_header(max_size: int, length: int, key: bytes | None) -> None:
    data = wire(0x82, bytes(length), key)
    source = Trickle(data, 1 << 20)
    if length <= max_size:
        assert len(receive_frame(source, max_size=max_size).payload) == length
        return
    with pytest.raises(ProtocolError) as caught:
        receive_frame(source, max_size=max_size)
    assert caught.value.code == 1009
    assert source.asked == len(data) - length


def test_the_limits_of_the_limit() -> None:
    large = Frame(2, bytes((1 << 20) + 1)).pack()
    with pytest.raises(ProtocolError):
        receive_frame(Trickle(large, 1 << 20))
    assert len(receive_frame(Trickle(large, 1 << 20), max_size=None).payload) == (1 << 20) + 1
    for wrong, error in ((-1, ValueError), (1.5, TypeError), ("5", TypeError)):
        with pytest.raises(error):
            receive_frame(Trickle(large, 1), max_size=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "asked"),
    [(b"\x89\x7e", 2), (b"\x88\xff", 2), (b"\x82\x7e\0\x05", 4), (b"\x82\xff" + bytes(7) + b"\x05", 14)],
    ids=repr,
)
def test_what_a_header_decides_is_judged_before_more_is_received(data: bytes, asked: int) -> None:
    source = Trickle(data, 1 << 20)
    with pytest.raises(ProtocolError):
        receive_frame(source)
    assert source.asked == asked


def test_a_frame_that_breaks_rules_is_received_on_demand() -> None:
    data = wire(0x89, b"x" * 5, KEY, 8) + wire(0xC8, b"x" * 200, None)
    source = Trickle(data, 1)
    assert receive_frame(source, strict=False) == Frame(9, b"x" * 5, KEY)
    frame = receive_frame(source, strict=False)
    assert (frame.payload, frame.rsv1, frame.unchecked) == (b"x" * 200, True, True)
    with pytest.raises(ProtocolError, match=r"§5\.2"):
        receive_frame(Trickle(b"\x82\x7f\x80" + bytes(50), 1), strict=False)


def test_what_a_socket_raises_is_passed_on(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.settimeout(0)
    theirs.sendall(b"\x82")
    with pytest.raises(BlockingIOError):
        receive_frame(ours)


# ---- what other modules use ----


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65_536])
def test_packed_is_what_a_frame_packs(length: int) -> None:
    payload = b"x" * length
    assert packed(0x82, payload, b"") == Frame(2, payload).pack()
    assert packed(0xC1, payload, b"keys") == encode(0xC1, payload, b"keys")


@pytest.mark.parametrize("rsv", range(0, 0x80, 0x10))
def test_a_received_frame_has_what_arrived(rsv: int) -> None:
    frame = received_frame(1, b"\xff", final=False, rsv=rsv)
    assert frame.first_byte() == 1 | rsv
    assert (frame.payload, frame.final, frame.mask, frame.masking_key) == (b"\xff", False, None, b"")


def test_errors_of_the_core_have_a_section_and_a_code() -> None:
    error = core_error(lib.WSPY_ERROR_UTF8)
    assert (error.code, "§8.1" in error.message) == (1007, True)
    assert "(" not in core_error(lib.WSPY_ERROR_NO_MEMORY).message


def test_keys_are_random() -> None:
    assert len({new_key() for _ in range(100)}) > 98
