"""Is UTF-8 told from other bytes, and the first bad byte found, by both implementations and however a text is cut?"""

from __future__ import annotations

import functools
import itertools
import random
from typing import TYPE_CHECKING, NamedTuple

import pytest
from guard import GuardedMemory
from hypothesis import given
from hypothesis import strategies as st

from wspy._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from wspy._core._wspy import CData

ACCEPT = lib.WSPY_UTF8_ACCEPT
REJECT = lib.WSPY_UTF8_REJECT
NAMES = {0: "scalar", 1: "SIMD"}
AVAILABLE = sorted({lib.wspy_utf8_select(number) for number in (1, 0)})
BEST = lib.wspy_utf8_select(1)

# Both sides of every boundary in the table of RFC 3629 §4.
LEADS = bytes.fromhex("00 41 7f 80 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 f7 f8 fb fc fd fe ff")
SECONDS = bytes.fromhex("00 7f 80 8f 90 9f a0 bf c0 c2 e0 ed f0 f4 ff")
OTHERS = bytes.fromhex("00 7f 80 bf c0 e1 ff")
# A window of SIMD is 16 or 32 bytes, taken one, two or four at a time, after three bytes that are taken alone.
WINDOW_EDGES = sorted({edge + near for edge in (0, 3, 16, 19, 32, 35, 64, 67, 96, 128) for near in range(-4, 3)} - {-1})
TEXTS = {
    "ASCII": "The quick brown fox jumps over the lazy dog. ",
    "mixed": 'Größe, {"price": 12, "€": true} \U0001f600 and then some words, \t\0 ',
    "CJK": "漢字仮名交じり文",
    "four bytes": "\U0001f600\U0010ffff\U00010000\U0001f1e9",
    "two bytes": "éàüß",
}


class Verdict(NamedTuple):
    """How many bytes are accepted, and whether the text may end there; None once it is bad."""

    accepted: int
    complete: bool | None


@pytest.fixture(params=AVAILABLE, ids=NAMES.get)
def implementation(request: pytest.FixtureRequest) -> Iterator[int]:
    number: int = request.param
    assert lib.wspy_utf8_select(number) == number
    yield number
    lib.wspy_utf8_select(1)


def python_says(data: bytes) -> Verdict:
    """Return the verdict of Python's strict decoder."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return Verdict(len(data), complete=False)
        bad = error.start if error.reason == "invalid start byte" else error.end
        return Verdict(bad, complete=None)
    return Verdict(len(data), complete=True)


def verdict_of(state: int, accepted: int) -> Verdict:
    return Verdict(accepted, None if state == REJECT else state == ACCEPT)


def feed(data: bytes | CData, length: int | None = None) -> Verdict:
    """Return the verdict of the core on all data at once."""
    state = ffi.new("uint32_t *")
    accepted = lib.wspy_utf8_feed(state, data, len(data) if length is None else length)
    return verdict_of(state[0], accepted)


def feed_parts(data: bytes, cuts: Sequence[int]) -> Verdict:
    """Return the verdict of the core on data that comes in parts."""
    state = ffi.new("uint32_t *")
    memory = ffi.from_buffer("uint8_t[]", data)
    accepted = 0
    for start, end in itertools.pairwise([0, *cuts, len(data)]):
        taken = lib.wspy_utf8_feed(state, memory + start, end - start)
        assert 0 <= taken <= end - start
        assert (taken < end - start) == (state[0] == REJECT and start < end)
        accepted += taken
        if state[0] == REJECT:
            assert lib.wspy_utf8_feed(state, b"a", 1) == 0
            assert state[0] == REJECT
            break
    return verdict_of(state[0], accepted)


def check_all_splits(data: bytes) -> None:
    expected = python_says(data)
    assert feed(data) == expected, data
    assert feed_parts(data, range(1, len(data))) == expected, data
    for cut in range(len(data) + 1):
        assert feed_parts(data, [cut]) == expected, (data, cut)


def test_the_scalar_twin_is_always_there() -> None:
    assert lib.wspy_utf8_select(0) == 0
    assert lib.wspy_utf8_select(1) == BEST == max(AVAILABLE)


# ---- vectors ----


@pytest.mark.parametrize(
    ("data", "bad"),
    [
        ("ff", 0),
        ("c0 af", 0),
        ("c1 bf", 0),
        ("ed a0 80", 1),
        ("ed bf bf", 1),
        ("e0 80 80", 1),
        ("e0 9f bf", 1),
        ("f0 8f bf bf", 1),
        ("f4 90 80 80", 1),
        ("f5", 0),
        ("f8 88 80 80 80", 0),
        ("80", 0),
        ("bf", 0),
        ("c3 28", 1),
        ("e2 82 28", 2),
        ("f0 9f 98 28", 3),
        ("e2 82 ac 80", 3),
        ("61 80", 1),
        ("ce ba e1 bd b9 cf 83 ce bc ce b5 ed a0 80 65 64 69 74 65 64", 12),
    ],
    ids=lambda value: f"F1-{value.replace(' ', '')}" if isinstance(value, str) else None,
)
def test_f1_the_first_byte_that_makes_the_text_impossible(implementation: int, data: str, bad: int) -> None:
    sequence = bytes.fromhex(data)
    for before in ("", "a", "é€\U0001f600", "a" * 29, "漢" * 21, "ab" * 64):
        for after in (b"", b"a" * 70, "é".encode() * 70):
            text = before.encode() + sequence + after
            assert feed(text) == Verdict(len(before.encode()) + bad, complete=None)


@pytest.mark.parametrize("end", [0x7F, 0x7FF, 0xD7FF, 0xFFFF, 0x10FFFF], ids=hex)
def test_f2_a_code_point_may_be_split_anywhere(implementation: int, end: int) -> None:
    check_all_splits(("a" * 40 + chr(end) + "b" * 40).encode())


@pytest.mark.parametrize("text", ["é", "€", "\U0001f600", "\ud7ff", "\U0010ffff"])
def test_f3_a_text_may_not_end_inside_a_code_point(implementation: int, text: str) -> None:
    for before in range(80):
        data = b"a" * before + text.encode()
        for missing in range(1, len(text.encode())):
            assert feed(data[:-missing]) == Verdict(len(data) - missing, complete=False)


@pytest.mark.parametrize("size", [10, 100, 1 << 20])
def test_f4_f5_a_bad_byte_is_found_before_the_text_ends(implementation: int, size: int) -> None:
    data = b"a" * 5 + b"\xff" + b"a" * size
    assert feed_parts(data, [6]) == feed(data) == Verdict(5, complete=None)


def test_f6_every_code_point_is_accepted(implementation: int) -> None:
    points = (chr(point) for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF)
    data = "".join(points).encode()
    assert feed(data) == Verdict(len(data), complete=True)


@pytest.mark.parametrize("text", ["\0", "\ufffe", "\uffff", "\ufeff", "\U0010ffff"], ids=ascii)
def test_f6_odd_code_points_are_accepted(implementation: int, text: str) -> None:
    check_all_splits(text.encode() * 40)


def test_nothing_is_accepted_after_a_bad_byte(implementation: int) -> None:
    for length in (0, 1, 3, 4, 8, 16, 33, 64, 200):
        for state in (REJECT, 9, 10, 63, 64, 2**32 - 1):
            pointer = ffi.new("uint32_t *", state)
            assert lib.wspy_utf8_feed(pointer, b"a" * length, length) == 0
            assert pointer[0] == REJECT


def test_nothing_changes_no_state(implementation: int) -> None:
    for data in (b"", b"\xc3", b"\xe2\x82", b"\xf4"):
        state = ffi.new("uint32_t *")
        lib.wspy_utf8_feed(state, data, len(data))
        before = state[0]
        assert lib.wspy_utf8_feed(state, ffi.NULL, 0) == 0
        assert state[0] == before


# ---- exhaustively ----


def by_verdict(sequences: Iterable[bytes]) -> dict[Verdict, list[bytes]]:
    found: dict[Verdict, list[bytes]] = {}
    for sequence in sequences:
        found.setdefault(python_says(sequence), []).append(sequence)
    return found


@functools.cache
def short_sequences() -> dict[Verdict, list[bytes]]:
    """Return every sequence of one and two bytes, and of three but for those that only differ in what is not judged.

    That is the byte after a bad one, and which of the ASCII bytes comes first.
    """
    found = []
    for first in range(256):
        found.append(bytes([first]))
        for second in range(256):
            pair = bytes([first, second])
            found.append(pair)
            if first in range(1, 0x7F) and first != 0x41:
                continue
            is_bad = python_says(pair).complete is None
            found.extend(pair + bytes([third]) for third in ((0x00, 0x80, 0xFF) if is_bad else range(256)))
    return by_verdict(found)


@functools.cache
def long_sequences() -> dict[Verdict, list[bytes]]:
    """Return every sequence of four bytes that lie next to the boundaries of RFC 3629 §4."""
    return by_verdict(map(bytes, itertools.product(LEADS, SECONDS, OTHERS, OTHERS)))


def check_in_place(sequences: dict[Verdict, list[bytes]], before: bytes, after: bytes) -> None:
    """Check sequences between other text, where what was incomplete at its end is bad."""
    memory = ffi.new("uint8_t[]", before + bytes(4) + after)
    start = memory + len(before)
    state = ffi.new("uint32_t *")
    for (accepted, complete), group in sequences.items():
        is_good = complete or (complete is False and not after)
        for sequence in group:
            size = len(sequence)
            length = len(before) + size + len(after)
            ffi.memmove(start, sequence, size)
            ffi.memmove(start + size, after, len(after))
            state[0] = ACCEPT
            taken = lib.wspy_utf8_feed(state, memory, length)
            if is_good:
                assert (taken, state[0] == ACCEPT, state[0] == REJECT) == (length, complete, False), (before, sequence)
            else:
                assert (taken, state[0]) == (len(before) + accepted, REJECT), (before, sequence)


@pytest.mark.slow
def test_every_sequence_of_up_to_three_bytes_alone(implementation: int) -> None:
    check_in_place(short_sequences(), b"", b"")


@pytest.mark.slow
def test_every_sequence_of_up_to_three_bytes_on_the_edge_of_a_window(implementation: int) -> None:
    check_in_place(short_sequences(), "漢字€".encode() * 3 + b"abcd", "é".encode() * 24)


@pytest.mark.parametrize("before", ["", "a" * 15, "a" * 30, "漢" * 21 + "ab", "a" * 63])
def test_sequences_of_four_bytes(implementation: int, before: str) -> None:
    check_in_place(long_sequences(), before.encode(), b"")
    check_in_place(long_sequences(), before.encode(), b"a" * 67)


@pytest.mark.parametrize("filler", ["a", "é", "漢", "\U0001f600"])
def test_bad_bytes_on_every_edge_of_a_window(implementation: int, filler: str) -> None:
    bad = [
        "80",
        "c0",
        "c2",
        "e0 9f",
        "ed a0",
        "ef bf",
        "f0 8f",
        "f4 90",
        "f0 9f 98",
        "ff",
        "c2 80 80",
        "f1 80 80 80 80",
    ]
    for edge in WINDOW_EDGES:
        before = b"x" * (edge % len(filler.encode())) + filler.encode() * (edge // len(filler.encode()))
        for sequence in map(bytes.fromhex, bad):
            for after in (b"", b"a", filler.encode() * 40):
                data = before + sequence + after
                assert feed(data) == python_says(data), data


# ---- every split, every length ----


@pytest.mark.parametrize("filler", ["a", "é", "漢"])
@pytest.mark.parametrize("bad", [0x80, 0xC0, 0xFF], ids=hex)
def test_a_bad_byte_anywhere_in_a_text_of_any_length(implementation: int, filler: str, bad: int) -> None:
    unit = filler.encode()
    for count in range(180 // len(unit)):
        memory = ffi.new("uint8_t[]", unit * count + bytes([bad]) + unit * count)
        at = len(unit) * count
        for length in range(at + 1, 2 * at + 2):
            assert feed(memory, length) == Verdict(at, complete=None)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_split_of_a_short_text(implementation: int, text: str) -> None:
    data = (text * 6).encode()[:200]
    check_all_splits(data)
    for position in (0, 1, 31, 64, 100, len(data) - 1):
        check_all_splits(data[:position] + b"\xff" + data[position + 1 :])


def mixed_text(size: int) -> bytes:
    chooser = random.Random(9)
    data = b"".join(
        "".join(chooser.choices(text, k=chooser.randrange(90))).encode() for text in TEXTS.values() for _ in range(400)
    )
    assert len(data) >= size
    return data[:size]


def splits_of(size: int, implementation: int) -> Iterator[int]:
    """Yield every split, or for the slow twin those near the edges of windows and then some."""
    for split in range(size + 1):
        if implementation or split % 512 in (0, 1, 15, 16, 17, 31, 32, 33, 35, 64, 66, 67) or split > size - 40:
            yield split


@pytest.mark.slow
@pytest.mark.parametrize("is_bad", [False, True], ids=["good", "bad"])
def test_f8_every_split_of_64_kib(implementation: int, is_bad: bool) -> None:
    data = mixed_text(64 << 10)
    if is_bad:
        data = data[:-200] + b"a\xed\xa0" + data[-197:]
    expected = python_says(data)
    memory = ffi.from_buffer("uint8_t[]", data)
    state = ffi.new("uint32_t *")
    for split in splits_of(len(data), implementation):
        state[0] = ACCEPT
        accepted = lib.wspy_utf8_feed(state, memory, split)
        accepted += lib.wspy_utf8_feed(state, memory + split, len(data) - split)
        assert verdict_of(state[0], accepted) == expected, split


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_byte_outside_is_touched(implementation: int, text: str) -> None:
    data = (text * 8).encode()
    with GuardedMemory(300) as memory:
        for length in range(min(len(data), 300)):
            for part in (data[:length], data[:length] + b"\xf0", data[-length:] if length else b""):
                expected = python_says(part)
                assert feed(memory.at_end(part), len(part)) == expected
                assert feed(memory.at_start(part), len(part)) == expected


# ---- generated ----

PIECES = st.one_of(
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=4),
    st.sampled_from([b"a" * 16, b"a" * 32, b"a" * 64, b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80"]),
)


@given(st.lists(PIECES, max_size=12).map(b"".join), st.lists(st.integers(0, 700), max_size=5))
def test_generated_bytes_in_generated_parts(data: bytes, cuts: list[int]) -> None:
    for number in AVAILABLE:
        lib.wspy_utf8_select(number)
        assert feed(data) == python_says(data)
        assert feed_parts(data, sorted(min(cut, len(data)) for cut in cuts)) == python_says(data)
    lib.wspy_utf8_select(1)


@given(st.text())
def test_every_text_that_python_encodes_is_accepted(text: str) -> None:
    assert feed(text.encode()) == Verdict(len(text.encode()), complete=True)
