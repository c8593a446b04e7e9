"""Are frames told from bytes whatever rules they break, and memory bounded all the same?"""

from __future__ import annotations

import pytest
from drivers import bytewise, deliveries
from measures import best_time
from reference import masked
from vectors import CLIENT, FIN, KEY, PING, SERVER, TEXT, Wire

from wspy import Frame
from wspy.errors import ProtocolError
from wspy.lenient import LenientReader

STRANGE = {
    "unmasked": Wire(FIN | TEXT, b"x", wrongly_masked=True).encode(SERVER),
    "masked": Wire(FIN | TEXT, b"x").encode(SERVER),
    "reserved bits": Wire(FIN | 0x70 | TEXT, b"x").encode(CLIENT),
    "reserved opcode": Wire(FIN | 3, b"x").encode(CLIENT),
    "reserved control opcode": Wire(FIN | 15, b"x").encode(CLIENT),
    "long control frame": Wire(FIN | PING, b"x" * 126).encode(CLIENT),
    "fragmented control frame": Wire(PING, b"x").encode(CLIENT),
    "16 bits for 5 bytes": Wire(FIN | TEXT, b"hello", extended=2).encode(CLIENT),
    "64 bits for 5 bytes": Wire(FIN | TEXT, b"hello", extended=8).encode(CLIENT),
    "no UTF-8": Wire(FIN | TEXT, b"\xff").encode(CLIENT),
    "a continuation of nothing": Wire(FIN, b"x").encode(CLIENT),
    "a Close of one byte": Wire(FIN | 8, b"x").encode(CLIENT),
    "large": Wire(FIN | 2, b"x" * 70_000).encode(CLIENT),
    "empty": Wire(FIN | 2).encode(CLIENT),
}
# by themselves, whatever extensions claim and whatever came before
BROKEN = {"long control frame", "fragmented control frame", "no UTF-8", "a Close of one byte"}


def read(pieces: list[bytes], max_size: int | None = 1 << 20) -> list[Frame]:
    reader, frames = LenientReader(max_size), []
    for piece in pieces:
        reader.feed(piece, frames)
    return frames


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_frame_arrives_as_it_was(name: str) -> None:
    data = STRANGE[name]
    for _, pieces in deliveries(data + STRANGE["unmasked"]):
        frame, last = read(pieces)
        if "bits for" not in name:
            assert frame.pack() == data
        assert frame.unchecked == (name in BROKEN)
        assert last == Frame(TEXT, "x")


def test_many_in_one_segment() -> None:
    frames = read([b"".join(STRANGE.values()) * 3])
    assert len(frames) == 3 * len(STRANGE)


@pytest.mark.parametrize("length", [10, 126, 70_000])
def test_d7_a_frame_over_the_limit_is_known_by_its_header(length: int) -> None:
    header = Wire(FIN | 2, announced=length).header(CLIENT)
    assert read([header], length) == []
    for pieces in ([header], bytewise(header), [STRANGE["unmasked"] + header]):
        reader, frames = LenientReader(length - 1 if length > 10 else 9), []
        with pytest.raises(ProtocolError) as caught:
            for piece in pieces:
                reader.feed(piece, frames)
        assert caught.value.code == 1009
        assert len(frames) == (len(pieces[0]) > len(header))


def test_d6_a_length_that_is_none_is_an_error_without_a_limit_too() -> None:
    with pytest.raises(ProtocolError) as caught:
        read([b"\x82\x7f" + b"\xff" * 8], None)
    assert caught.value.code in {1002, 1009}


def test_h3_a_frame_in_bytes_and_many_frames_take_linear_time(patience: float) -> None:
    data = Wire(FIN | 2, b"x" * 100_000).encode(CLIENT)
    assert best_time(lambda: read(bytewise(data))) < 2
    small = Wire(FIN | 2).encode(CLIENT) * 50_000
    assert best_time(lambda: read([small])) < 2


def test_a_masked_frame_keeps_its_key() -> None:
    (frame,) = read([STRANGE["masked"]])
    assert (frame.masking_key, frame.payload) == (KEY, b"x")
    assert masked(b"x", KEY) in STRANGE["masked"]
