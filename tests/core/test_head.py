"""Is the end of a request head found, and the first byte that can't belong to one, however the bytes come in?"""

from __future__ import annotations

import itertools
import random
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest
from guard import GuardedMemory
from hypothesis import given
from hypothesis import strategies as st

from wspy._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wspy._core._wspy import CData

SYNTAX = lib.WSPY_ERROR_HEAD_SYNTAX
METHOD = lib.WSPY_ERROR_HEAD_METHOD
LINE = lib.WSPY_ERROR_HEAD_LINE
FIELD = lib.WSPY_ERROR_HEAD_FIELD
FIELD_COUNT = lib.WSPY_ERROR_HEAD_FIELD_COUNT
SIZE = lib.WSPY_ERROR_HEAD_SIZE
COMPLETE = 1
MORE = 0


class Limits(NamedTuple):
    """In the order of wspy_head_limits."""

    max_line: int = 8192
    max_field: int = 8192
    max_size: int = 65536
    max_fields: int = 100


class Outcome(NamedTuple):
    """COMPLETE, MORE or an error; the bytes before its end, or before the bad one; is the request line complete."""

    result: int
    size: int
    has_line: bool


DEFAULTS = Limits()
REQUEST_LINE = b"GET /chat HTTP/1.1\r\n"
FIELDS = (
    b"Host: server.example.com\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
REQUEST = REQUEST_LINE + FIELDS + b"\r\n"
TOKEN = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"


# ---- a plain reading of the rules, to compare with ----


class Stopped(Exception):  # noqa: N818 -- not an error: more bytes may be all that lacks
    """Where and why reading stops before the end of the head."""


class Reader:
    """Reads one head with regular expressions, from the start and all at once."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        self.data = data[: limits.max_size]
        self.limits = limits
        self.at = 0
        self.has_line = False

    def next_is(self, pattern: bytes) -> bool:
        return re.compile(b"[" + pattern + b"]").match(self.data, self.at) is not None

    def need(self, pattern: bytes) -> None:
        """Read one byte."""
        if self.at == len(self.data):
            raise Stopped(MORE)
        if not self.next_is(pattern):
            raise Stopped(SYNTAX)
        self.at += 1

    def skip(self, pattern: bytes, end: int) -> None:
        """Read bytes up to a limit."""
        found = re.compile(b"[" + pattern + b"]*").match(self.data, self.at, min(end, len(self.data)))
        assert found is not None
        self.at = found.end()

    def skip_in_line(self, pattern: bytes, end: int, error: int) -> None:
        """Read bytes up to the limit of the line, which only CR may follow."""
        self.skip(pattern, end)
        if self.at == end and self.next_is(rb"^\r"):
            raise Stopped(error)

    def read_request_line(self) -> None:
        start = self.at
        end = start + self.limits.max_line
        self.skip(TOKEN, min(start + 32, end))
        if self.at == end and self.next_is(rb"^\r"):
            raise Stopped(LINE)
        if self.at == start + 32 and self.next_is(TOKEN):
            raise Stopped(METHOD)
        self.need(b" " if self.at > start else TOKEN)
        self.skip_in_line(rb"\x20-\x7e", end, LINE)
        self.need(rb"\r")
        self.need(rb"\n")
        self.has_line = True

    def read_field(self) -> None:
        end = self.at + self.limits.max_field
        self.skip_in_line(TOKEN, end, FIELD)
        self.need(b":")
        self.skip_in_line(rb"\t\x20-\x7e\x80-\xff", end, FIELD)
        self.need(rb"\r")
        self.need(rb"\n")

    def read(self) -> None:
        for _ in range(5):
            if self.next_is(rb"\r"):
                self.need(rb"\r")
                self.need(rb"\n")
        self.read_request_line()
        count = 0
        while self.at < len(self.data) and not self.next_is(rb"\r"):
            if not self.next_is(TOKEN):
                raise Stopped(SYNTAX)
            if count == self.limits.max_fields:
                raise Stopped(FIELD_COUNT)
            self.read_field()
            count += 1
        self.need(rb"\r")
        self.need(rb"\n")


def plainly_read(data: bytes, limits: Limits) -> Outcome:
    reader = Reader(data, limits)
    try:
        reader.read()
    except Stopped as stopped:
        result = stopped.args[0]
        if result == MORE and len(data) > limits.max_size:
            result = SIZE
        return Outcome(result, reader.at, reader.has_line)
    return Outcome(COMPLETE, reader.at, has_line=True)


# ---- the scanner ----


def scan(data: bytes, limits: Limits = DEFAULTS, cuts: Iterable[int] = ()) -> Outcome:
    """Feed data cut at these places, and check what holds after each call."""
    scanner = ffi.new("wspy_head_scanner *")
    c_limits = ffi.new("wspy_head_limits *", limits)
    memory = ffi.from_buffer("uint8_t[]", data)
    had_line = 0
    for start, end in itertools.pairwise([0, *cuts, len(data)]):
        result = lib.wspy_head_feed(scanner, c_limits, memory + start, end - start)
        has_line = lib.wspy_head_has_line(scanner)
        assert has_line >= had_line
        had_line = has_line
        if result < 0:
            check_that_it_stays(result, scanner, c_limits)
            return Outcome(result, scanner.size, bool(has_line))
        assert (result > 0) == (scanner.state == lib.WSPY_HEAD_COMPLETE)
        if result > 0:
            assert start + result == scanner.size
            check_that_it_stays(0, scanner, c_limits)
            return Outcome(COMPLETE, scanner.size, bool(has_line))
        assert scanner.size == end
    return Outcome(MORE, scanner.size, bool(had_line))


def check_that_it_stays(result: int, scanner: CData, c_limits: CData) -> None:
    """Check that a scanner that has ended takes no further bytes."""
    before = ffi.buffer(scanner)[:]
    for more in (b"", b"GET / HTTP/1.1\r\n\r\n"):
        assert lib.wspy_head_feed(scanner, c_limits, more, len(more)) == result
    assert ffi.buffer(scanner)[:] == before


def splits_of(size: int) -> Iterable[int]:
    """Return every split of a head of ordinary size, and a sample for a big one."""
    if size <= 1500:
        return range(size + 1)
    return sorted({*range(0, size, 251), *range(size - 40, size + 1), *range(8150, min(size, 8250))})


def check(data: bytes, expected: Outcome, limits: Limits = DEFAULTS) -> None:
    """Check whole, byte by byte and at every split, and with bytes behind it (A22)."""
    assert plainly_read(data, limits) == expected
    assert scan(data, limits) == expected
    assert scan(data, limits, range(1, len(data))) == expected
    for cut in splits_of(len(data)):
        assert scan(data, limits, [cut]) == expected, cut
    if expected.result != MORE:
        assert scan(data + b"GET / HTTP/1.1\r\n\r\n", limits) == expected


def lines(*fields: bytes) -> bytes:
    return REQUEST_LINE + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def case(row: str, data: bytes, result: int, size: int) -> object:
    return pytest.param(data, result, size, id=row)


# ---- heads that are complete ----


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(REQUEST, id="the example of RFC 6455 §1.2"),
        pytest.param(b"\r\n" + REQUEST, id="A1-one empty line"),
        pytest.param(b"\r\n" * 2 + REQUEST, id="A1-two empty lines"),
        pytest.param(b"\r\n" * 5 + REQUEST, id="A1-five empty lines"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="no field"),
        pytest.param(b"a" * 32 + b" / HTTP/1.1\r\n\r\n", id="A6-a method of 32 bytes"),
        pytest.param(b"!#$%&'*+-.^_`|~09AZaz / HTTP/1.1\r\n\r\n", id="A6-every kind of token byte"),
        pytest.param(b"GET \r\n\r\n", id="what follows the method is judged later"),
        pytest.param(lines(b"!#$%&'*+-.^_`|~09AZaz:"), id="B7-every kind of token byte"),
        pytest.param(lines(b"a:", b"b: ", b"c:\t", b"d: \t "), id="empty values"),
        pytest.param(lines(b"a: b\tc d"), id="B8-HTAB and SP in a value"),
        pytest.param(lines(b"a: " + bytes(range(0x80, 0x100))), id="B9-obs-text in a value"),
        pytest.param(lines(b"a: " + bytes(range(0x20, 0x7F)) * 3), id="B8-every VCHAR in a value"),
        pytest.param(lines(*[b"a: b"] * 100), id="B10-100 fields"),
        pytest.param(lines(b"Sec-WebSocket-Extensions-And-Much-More-Than-One-Vector: x"), id="a long name"),
    ],
)
def test_a_head_is_complete_at_its_last_byte(data: bytes) -> None:
    check(data, Outcome(COMPLETE, len(data), has_line=True))
    check(data[:-1], Outcome(MORE, len(data) - 1, has_line=True))


def test_a_head_is_incomplete_up_to_its_last_byte() -> None:
    for size in range(len(REQUEST)):
        assert scan(REQUEST[:size]) == Outcome(MORE, size, has_line=size >= len(REQUEST_LINE))


def test_every_byte_of_a_value_that_may_stand_there() -> None:
    for byte in range(256):
        for before in (0, 3, 15, 16, 40):
            data = lines(b"name:" + b"x" * before + bytes([byte]) + b"y" * 20)
            bad = len(REQUEST_LINE) + 5 + before
            if byte == 0x09 or (byte >= 0x20 and byte != 0x7F):
                assert scan(data) == Outcome(COMPLETE, len(data), has_line=True), byte
            else:  # after CR the byte behind it is the bad one
                assert scan(data) == Outcome(SYNTAX, bad + (byte == 0x0D), has_line=True), byte


def test_every_byte_of_a_name_that_may_stand_there() -> None:
    for byte in range(256):
        for before in (0, 1, 15, 16, 40):
            data = lines(b"x" * before + bytes([byte]) + b"y" * 20 + b":z")
            bad = len(REQUEST_LINE) + before
            if re.match(b"[" + TOKEN + b"]", bytes([byte])) or (byte == 0x3A and before):
                assert scan(data) == Outcome(COMPLETE, len(data), has_line=True), byte
            else:  # CR first is the end of the head, which LF must follow
                assert scan(data) == Outcome(SYNTAX, bad + (byte == 0x0D and before == 0), has_line=True), byte


def test_every_byte_of_a_request_line_that_may_stand_there() -> None:
    for byte in range(256):
        for before in (1, 15, 16, 40):
            data = b"GET " + b"/" * before + bytes([byte]) + b"y" * 20 + b" HTTP/1.1\r\n\r\n"
            if 0x20 <= byte <= 0x7E:
                assert scan(data) == Outcome(COMPLETE, len(data), has_line=True), byte
            else:
                assert scan(data) == Outcome(SYNTAX, 4 + before + (byte == 0x0D), has_line=False), byte


def test_every_byte_of_a_method_that_may_stand_there() -> None:
    for byte in range(256):
        for before in (0, 1, 10):
            data = b"x" * before + bytes([byte]) + b"y / HTTP/1.1\r\n\r\n"
            if re.match(b"[" + TOKEN + b"]", bytes([byte])) or (byte == 0x20 and before):
                assert scan(data) == Outcome(COMPLETE, len(data), has_line=True), byte
            else:  # CR first begins an empty line, which LF must follow
                assert scan(data) == Outcome(SYNTAX, before + (byte == 0x0D and before == 0), has_line=False), byte


# ---- bytes that can't belong to any request ----

START = len(REQUEST_LINE)


@pytest.mark.parametrize(
    ("data", "result", "bad"),
    [
        case("A1-six empty lines", b"\r\n" * 6 + REQUEST, SYNTAX, 10),
        case("A1-LF as an empty line", b"\n" + REQUEST, SYNTAX, 0),
        case("A1-CR without LF", b"\r" + REQUEST, SYNTAX, 1),
        case("A1-whitespace first", b" " + REQUEST, SYNTAX, 0),
        case("A6-empty method", b" / HTTP/1.1\r\n\r\n", SYNTAX, 0),
        case("A6-NUL in the method", b"GE\0T / HTTP/1.1\r\n\r\n", SYNTAX, 2),
        case("A6-parenthesis in the method", b"G(T / HTTP/1.1\r\n\r\n", SYNTAX, 1),
        case("A6-method of 33 bytes", b"a" * 33 + b" / HTTP/1.1\r\n\r\n", METHOD, 32),
        case("A6-method without end", b"a" * 9000, METHOD, 32),
        case("A6-no token after 32 bytes", b"a" * 32 + b"(", SYNTAX, 32),
        case("A6-HTAB after the method", b"GET\t/ HTTP/1.1\r\n\r\n", SYNTAX, 3),
        case("A6-line end after the method", b"GET\r\n\r\n", SYNTAX, 3),
        case("A19-LF ends the request line", b"GET / HTTP/1.1\n\r\n", SYNTAX, 14),
        case("A19-LF ends a field", REQUEST_LINE + b"a: b\n\r\n", SYNTAX, START + 4),
        case("A19-LF ends a name", REQUEST_LINE + b"a\r\n\r\n", SYNTAX, START + 1),
        case("A19-LF ends the head", REQUEST_LINE + b"a: b\r\n\n", SYNTAX, START + 6),
        case("A20-CR in the request line", b"GET /\r HTTP/1.1\r\n\r\n", SYNTAX, 6),
        case("A20-CR CR LF after the request line", b"GET / HTTP/1.1\r\r\n\r\n", SYNTAX, 15),
        case("A20-CR in a value", REQUEST_LINE + b"a: b\rc\r\n\r\n", SYNTAX, START + 5),
        case("A20-CR in a name", REQUEST_LINE + b"a\rb: c\r\n\r\n", SYNTAX, START + 1),
        case("A20-CR at the end", REQUEST_LINE + b"a: b\r\n\rx", SYNTAX, START + 7),
        case("A21-a response", b"HTTP/1.1 200 OK\r\n\r\n", SYNTAX, 4),
        case("A21-a TLS ClientHello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32), SYNTAX, 0),
        case("A21-zeros", bytes(1 << 20), SYNTAX, 0),
        case("A21-control byte in the request line", b"GET /\x01 HTTP/1.1\r\n\r\n", SYNTAX, 5),
        case("A21-DEL in the request line", b"GET /\x7f HTTP/1.1\r\n\r\n", SYNTAX, 5),
        case("A21-byte over 7F in the request line", "GET /é HTTP/1.1\r\n\r\n".encode(), SYNTAX, 5),
        case("A21-HTAB in the request line", b"GET /\tHTTP/1.1\r\n\r\n", SYNTAX, 5),
        case("B4-SP before the colon", lines(b"Host : a"), SYNTAX, START + 4),
        case("B4-HTAB before the colon", lines(b"Host\t: a"), SYNTAX, START + 4),
        case("B5-SP after the request line", lines(b" Host: a"), SYNTAX, START),
        case("B5-HTAB after the request line", lines(b"\tHost: a"), SYNTAX, START),
        case("B5-a line of SP after the request line", lines(b" "), SYNTAX, START),
        case("B6-obs-fold with SP", lines(b"a: b", b" c"), SYNTAX, START + 6),
        case("B6-obs-fold with HTAB", lines(b"a: b", b"\tc"), SYNTAX, START + 6),
        case("B7-empty name", lines(b": a"), SYNTAX, START),
        case("B7-no colon", lines(b"Host"), SYNTAX, START + 4),
        case("B7-name with SP", lines(b"Ho st: a"), SYNTAX, START + 2),
        case("B7-name with NUL", lines(b"Ho\0st: a"), SYNTAX, START + 2),
        case("B7-name with é", lines("Hoést: a".encode()), SYNTAX, START + 2),
        case("B7-name with é in Latin-1", lines(b"Ho\xe9st: a"), SYNTAX, START + 2),
        case("B7-name with a quotation mark", lines(b'Ho"st: a'), SYNTAX, START + 2),
        case("B8-value with NUL", lines(b"a: b\0c"), SYNTAX, START + 4),
        case("B8-value with CR", lines(b"a: b\rc"), SYNTAX, START + 5),
        case("B8-value with LF", lines(b"a: b\nc"), SYNTAX, START + 4),
        case("B8-value with a control byte", lines(b"a: b\x1fc"), SYNTAX, START + 4),
        case("B8-value with DEL", lines(b"a: b\x7fc"), SYNTAX, START + 4),
        case("B10-101 fields", lines(*[b"a%d: b" % i for i in range(100, 201)]), FIELD_COUNT, START + 100 * 9),
        case("B10-101 fields of one name", lines(*[b"a: b"] * 101), FIELD_COUNT, START + 100 * 6),
        case("B10-only whitespace after 100 fields", lines(*[b"a: b"] * 100, b" c"), SYNTAX, START + 100 * 6),
        case("B11-2000 fields", lines(*[b"a: b"] * 2000, b"Upgrade: websocket"), FIELD_COUNT, START + 100 * 6),
    ],
)
def test_the_first_byte_that_cannot_be_is_refused(data: bytes, result: int, bad: int) -> None:
    data = data[: bad + 1500]
    check(data, Outcome(result, bad, has_line=bad >= START and data.startswith(REQUEST_LINE)))
    for size in range(max(bad - 40, 0), bad + 1):
        assert scan(data[:size]).result == MORE


def test_a21_random_bytes() -> None:
    chooser = random.Random(10)
    for _ in range(300):
        data = chooser.randbytes(200)
        outcome = plainly_read(data, DEFAULTS)
        assert scan(data) == scan(data, cuts=range(1, len(data))) == outcome


# ---- limits: at the limit, and one byte over it ----


@pytest.mark.parametrize("limit", [40, 8192])
def test_a5_the_request_line_is_limited(limit: int) -> None:
    limits = Limits(max_line=limit)
    line = b"GET /".ljust(limit - 9, b"a") + b" HTTP/1.1"
    check(line + b"\r\n\r\n", Outcome(COMPLETE, limit + 4, has_line=True), limits)
    check(line + b"a\r\n\r\n", Outcome(LINE, limit, has_line=False), limits)
    check(line + b"a" * 1000, Outcome(LINE, limit, has_line=False), limits)
    check(line + b"\n", Outcome(LINE, limit, has_line=False), limits)
    check(line + b"\r\r", Outcome(SYNTAX, limit + 1, has_line=False), limits)


def test_a5_the_limit_is_not_waited_for() -> None:
    assert scan(b"GET /" + b"a" * 8187) == Outcome(MORE, 8192, has_line=False)
    assert scan(b"GET /" + b"a" * 8188) == Outcome(LINE, 8192, has_line=False)
    assert scan(b"GET /" + b"a" * 69995) == Outcome(LINE, 8192, has_line=False)


@pytest.mark.parametrize("limit", [0, 1, 3, 4, 31, 32, 33])
def test_a5_a_limit_inside_the_method_counts_before_it(limit: int) -> None:
    limits = Limits(max_line=limit)
    for data in (b"a" * 40, b"a" * limit + b" ", b"a" * limit + b"(", b"a" * limit + b"\r", b"a" * 32 + b"  "):
        outcome = plainly_read(data, limits)
        check(data, outcome, limits)
    assert scan(b"a" * 40, limits).result == (LINE if limit <= 32 else METHOD)


@pytest.mark.parametrize("limit", [20, 8192])
def test_b12_a_field_line_is_limited(limit: int) -> None:
    limits = Limits(max_field=limit)
    field = b"name: ".ljust(limit, b"a")
    check(lines(field), Outcome(COMPLETE, START + limit + 4, has_line=True), limits)
    check(lines(b"a: b", field), Outcome(COMPLETE, START + limit + 10, has_line=True), limits)
    check(lines(field + b"a"), Outcome(FIELD, START + limit, has_line=True), limits)
    check(lines(field + b":"), Outcome(FIELD, START + limit, has_line=True), limits)
    check(REQUEST_LINE + b"a" * (limit + 1), Outcome(FIELD, START + limit, has_line=True), limits)
    check(lines(b"a" * (limit - 1) + b":"), Outcome(COMPLETE, START + limit + 4, has_line=True), limits)
    check(lines(b"a" * limit + b":"), Outcome(FIELD, START + limit, has_line=True), limits)
    check(lines(b"a" * limit), Outcome(SYNTAX, START + limit, has_line=True), limits)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_b10_the_number_of_fields_is_limited(count: int) -> None:
    limits = Limits(max_fields=count)
    check(lines(*[b"a: b"] * count), Outcome(COMPLETE, START + 6 * count + 2, has_line=True), limits)
    check(lines(*[b"a: b"] * (count + 1)), Outcome(FIELD_COUNT, START + 6 * count, has_line=True), limits)


def test_b10_the_number_of_fields_never_wraps() -> None:
    limits = Limits(max_size=2**32 - 1, max_fields=2**32 - 1)
    data = lines(*[b"a:"] * 65535)
    assert scan(data, limits) == Outcome(COMPLETE, len(data), has_line=True)
    data = lines(*[b"a:"] * 65536)
    assert scan(data, limits) == Outcome(FIELD_COUNT, START + 4 * 65535, has_line=True)


def test_b13_the_head_is_limited_in_total() -> None:
    fields = [b"a: ".ljust(998, b"b")] * 65
    data = lines(*fields, b"c: ".ljust(65536 - 65000 - START - 4, b"d"))
    assert len(data) == 65536
    check(data, Outcome(COMPLETE, 65536, has_line=True))
    data = lines(*fields, b"c: ".ljust(65536 - 65000 - START - 3, b"d"))
    check(data, Outcome(SIZE, 65536, has_line=True))
    check(lines(*[b"a: ".ljust(998, b"b")] * 70), Outcome(SIZE, 65536, has_line=True))


def test_b13_every_limit_up_to_the_size_of_a_head() -> None:
    for size in range(len(REQUEST)):
        limits = Limits(max_size=size)
        expected = Outcome(SIZE, size, has_line=size >= START)
        assert scan(REQUEST, limits) == expected
        assert scan(REQUEST, limits, range(1, len(REQUEST))) == expected
        assert scan(REQUEST[:size], limits).result == MORE
    assert scan(REQUEST, Limits(max_size=len(REQUEST))).result == COMPLETE


def test_b13_empty_lines_count() -> None:
    data = b"\r\n" * 5 + REQUEST
    check(data, Outcome(COMPLETE, len(data), has_line=True), Limits(max_size=len(data)))
    check(data, Outcome(SIZE, len(data) - 1, has_line=True), Limits(max_size=len(data) - 1))


def test_the_rest_of_the_data_is_not_of_the_head() -> None:
    rest = b"\x81\x80\0\0\0\0" * 100
    scanner = ffi.new("wspy_head_scanner *")
    limits = ffi.new("wspy_head_limits *", Limits(max_size=len(REQUEST)))
    assert lib.wspy_head_feed(scanner, limits, REQUEST + rest, len(REQUEST + rest)) == len(REQUEST)
    assert (scanner.size, scanner.fields, scanner.empty_lines) == (len(REQUEST), 5, 0)


def test_a_state_that_never_was_is_refused() -> None:
    scanner = ffi.new("wspy_head_scanner *", {"state": 99})
    limits = ffi.new("wspy_head_limits *", DEFAULTS)
    assert lib.wspy_head_feed(scanner, limits, b"a", 1) == SYNTAX


def test_no_byte_outside_is_touched() -> None:
    limits = ffi.new("wspy_head_limits *", DEFAULTS)
    with GuardedMemory(len(REQUEST)) as memory:
        for start, end in itertools.combinations(range(len(REQUEST) + 1), 2):
            if end - start > 80:
                continue
            for place in (memory.at_end, memory.at_start):
                scanner = ffi.new("wspy_head_scanner *")
                lib.wspy_head_feed(scanner, limits, REQUEST, start)
                part = REQUEST[start:end]
                result = lib.wspy_head_feed(scanner, limits, place(part), len(part))
                assert result == (len(part) if end == len(REQUEST) else 0)


# ---- generated ----

NAMES = st.sampled_from([b"Host", b"a", b"Sec-WebSocket-Extensions", b"x_y.z", b"", b"a b", b"\xe9"])
VALUES = st.one_of(
    st.sampled_from([b"", b" a", b"\t", b"\x7f", b"\0", b"\xff" * 20, b"a" * 30]),
    st.binary(max_size=8),
)
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\r\n "])
FIELD_LINES = st.tuples(NAMES, st.sampled_from([b":"] * 8 + [b"", b" :"]), VALUES, ENDS).map(b"".join)
REQUEST_LINES = st.one_of(
    st.just(b"GET / HTTP/1.1\r\n"),
    st.tuples(st.integers(0, 34), st.sampled_from([b" ", b"\t", b""]), st.integers(0, 40), ENDS).map(
        lambda parts: b"a" * parts[0] + parts[1] + b"/" * parts[2] + parts[3]
    ),
)
HEADS = st.tuples(
    st.integers(0, 6).map(b"\r\n".__mul__), REQUEST_LINES, st.lists(FIELD_LINES, max_size=6).map(b"".join), ENDS
).map(b"".join)
SMALL_LIMITS = st.tuples(st.integers(0, 50), st.integers(0, 40), st.integers(0, 200), st.integers(0, 6)).map(
    Limits._make
)


@given(HEADS, st.one_of(st.just(DEFAULTS), SMALL_LIMITS), st.lists(st.integers(0, 300), max_size=8))
def test_generated_heads_in_generated_parts(data: bytes, limits: Limits, cuts: Sequence[int]) -> None:
    expected = plainly_read(data, limits)
    assert scan(data, limits) == expected
    assert scan(data, limits, sorted(min(cut, len(data)) for cut in cuts)) == expected
    assert scan(data, limits, range(1, len(data))) == expected


@given(st.binary(max_size=300), st.integers(0, len(REQUEST)))
def test_generated_bytes_after_a_good_start(data: bytes, start: int) -> None:
    data = REQUEST[:start] + data
    expected = plainly_read(data, DEFAULTS)
    assert scan(data) == scan(data, cuts=range(1, len(data))) == expected
