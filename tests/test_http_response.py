"""Is every response head that RFC 9112 or a limit forbids refused, and is the end of a body found?

Rows M1 are named after the threat model's table.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from measures import best_time

from wspy.errors import ResponseError
from wspy.headers import Headers
from wspy.http11 import MAX_HEAD, MAX_HEADER_LINE, MAX_HEADERS, MAX_LINE, Response
from wspy.http_response import BodyReader, ResponseHead, parse_response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LINE = b"HTTP/1.1 101 Switching Protocols"


def head(line: bytes = LINE, fields: bytes = b"") -> bytes:
    return line + b"\r\n" + fields + b"\r\n"


def refused(data: bytes, **limits: int) -> str:
    """Return how a head is refused; such an answer says nothing."""
    with pytest.raises(ResponseError) as info:
        parse_response(data, **limits)
    error = info.value
    assert (error.status, error.reason, error.headers, error.body) == (0, "", Headers(), b"")
    assert re.fullmatch(r"[ -~§]+", error.message)
    return error.message


def is_accepted(data: bytes, **limits: int) -> bool:
    try:
        parse_response(data, **limits)
    except ResponseError:
        return False
    return True


# RFC 9112 §4


def test_the_example_of_rfc_6455_1_2() -> None:
    response = parse_response(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    )
    assert response[:3] == (101, "Switching Protocols", "1.1")
    assert list(response.headers.items()) == [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ("Sec-WebSocket-Protocol", "chat"),
    ]


@pytest.mark.parametrize(
    ("line", "status", "reason", "version"),
    [
        (b"HTTP/1.1 200 OK", 200, "OK", "1.1"),
        (b"HTTP/1.0 404 Not Found", 404, "Not Found", "1.0"),
        (b"HTTP/1.9 599 ", 599, "", "1.9"),
        (b"HTTP/1.1 100 ", 100, "", "1.1"),
        (b"HTTP/1.1 500  two  spaces ", 500, " two  spaces ", "1.1"),
        (b"HTTP/1.1 500 tab\tand \xe9", 500, "tab\tand é", "1.1"),
        (b"HTTP/1.1 200 200", 200, "200", "1.1"),
    ],
)
def test_status_lines(line: bytes, status: int, reason: str, version: str) -> None:
    assert parse_response(head(line)) == ResponseHead(status, reason, version, Headers())


BAD_LINES = [
    *(b"", b"HTTP/1.1", b"HTTP/1.1 ", b"HTTP/1.1 101", b"HTTP/1.1101 OK", b"HTTP/1.1  101 OK", b"HTTP/1.1\t101 OK"),
    *(b"HTTP/1.1 101\tOK", b" HTTP/1.1 101 OK", b"\r\nHTTP/1.1 101 OK", b"HTTP/1.1 10 OK", b"HTTP/1.1 1010 OK"),
    *(b"HTTP/1.1 099 OK", b"HTTP/1.1 000 OK", b"HTTP/1.1 600 OK", b"HTTP/1.1 999 OK", b"HTTP/1.1 1O1 OK"),
    *(b"HTTP/1.1 +10 OK", b"HTTP/1.1 -01 OK", b"HTTP/1.1 1_1 OK", b"HTTP/1.1 \xb2\xb3\xb9 OK", b"HTTP/1.1 101OK"),
    *(b"HTTP/2.0 101 OK", b"HTTP/0.9 101 OK", b"HTTP/1 101 OK", b"HTTP/1. 101 OK", b"HTTP/1.10 101 OK"),
    *(b"HTTP/11.1 101 OK", b"http/1.1 101 OK", b"HTTP /1.1 101 OK", b"HTTP/ 1.1 101 OK", b"HTTP/1.\xb2 101 OK"),
    *(b"HTTPS/1.1 101 OK", b"ICY 200 OK", b"GET / HTTP/1.1", b"SSH-2.0-server", b"220 mail ESMTP", b"101 OK"),
    *(b"Upgrade: websocket", b"HTTP/1.1: 101 OK", b"HTTP/1.1 101 OK\n", b"HTTP/1.1 101 OK\r", b"\xff\xfe"),
]


@pytest.mark.parametrize("line", BAD_LINES, ids=repr)
def test_m1_malformed_status_lines(line: bytes) -> None:
    assert "malformed" in refused(head(line))
    assert "malformed" in refused(head(line, b"A: b\r\n"))


@pytest.mark.parametrize("octet", range(256))
def test_m1_a_reason_has_no_control_octets(octet: int) -> None:
    good = octet == 9 or (octet >= 0x20 and octet != 0x7F)
    for reason in (b"%c", b"a%c", b"%ca", b"a%cb"):
        assert is_accepted(head(b"HTTP/1.1 404 " + reason % octet)) is good


TOKEN_OCTETS = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("octet", range(256))
def test_field_lines_have_the_grammar_of_requests(octet: int) -> None:
    """RFC 9112 §5: one grammar for both."""
    in_value = octet == 9 or (octet >= 0x20 and octet != 0x7F)
    assert is_accepted(head(fields=b"A: b%cc\r\n" % octet)) is in_value
    assert is_accepted(head(fields=b"a%cb: c\r\n" % octet)) is (octet in TOKEN_OCTETS or octet == ord(":"))
    assert is_accepted(head(fields=b"%cb: c\r\n" % octet)) is (octet in TOKEN_OCTETS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        head()[:-2],
        head()[:-1],
        head() + b"\x81",
        head() + b"\r\n",
        head().replace(b"\r\n", b"\n"),
        head(fields=b"A: b\n"),
        head(fields=b"A: b\r"),
        head(fields=b"A: b\r\n c\r\n"),
        head(fields=b"A: b\r\n\tc: d\r\n"),
        head(fields=b" A: b\r\n"),
        head(fields=b"A : b\r\n"),
        head(fields=b": b\r\n"),
        head(fields=b"A\r\n"),
        head(fields=b"A b: c\r\n"),
    ],
    ids=repr,
)
def test_m1_malformed_heads(data: bytes) -> None:
    assert "malformed" in refused(data)


@pytest.mark.parametrize("name", [b"Content-Length", b"location"])
def test_what_may_occur_once_is_not_repeated(name: bytes) -> None:
    fields = name + b": 0\r\n" + name.upper() + b": 0\r\n"
    assert "repeats" in refused(head(fields=fields))
    assert is_accepted(head(fields=name + b": 0\r\n"))


def test_other_fields_may_be_repeated() -> None:
    fields = b"Set-Cookie: a=b\r\nset-cookie: c=d\r\nA:\r\nB: \t e \t \r\n"
    assert list(parse_response(head(fields=fields)).headers.items()) == [
        ("Set-Cookie", "a=b"),
        ("set-cookie", "c=d"),
        ("A", ""),
        ("B", "e"),
    ]


# Limits, on both sides


def padded(size: int) -> bytes:
    """Return a head of so many bytes, in legal lines."""
    lines, rest = divmod(size - len(head()), 8000)
    return head(fields=(b"A: " + b"b" * 7995 + b"\r\n") * lines + b"B: " + b"b" * (rest - 5) + b"\r\n")


@pytest.mark.parametrize(
    ("make", "limit", "name", "message"),
    [
        (lambda n: head(LINE + b"a" * (n - len(LINE))), MAX_LINE, "max_line", "line"),
        (lambda n: head(fields=b"A:" + b"b" * (n - 2) + b"\r\n"), MAX_HEADER_LINE, "max_header_line", "line"),
        (lambda n: head(fields=b"A:\r\n" * (n - 1) + b"B:\r\n"), MAX_HEADERS, "max_headers", "many"),
        (padded, MAX_HEAD, "max_head", "head of the answer is too long"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_m1_limits(make: Callable[[int], bytes], limit: int, name: str, message: str) -> None:
    assert is_accepted(make(limit))
    assert message in refused(make(limit + 1))
    assert is_accepted(make(limit + 1), **{name: limit + 1})
    assert is_accepted(make(limit - 1), **{name: limit - 1})
    assert message in refused(make(limit), **{name: limit - 1})


WIDE = {"max_line": 1 << 30, "max_header_line": 1 << 30, "max_head": 1 << 30, "max_headers": 1 << 30}
ADVERSARIAL: dict[str, Callable[[int], bytes]] = {
    "reason": lambda n: head(LINE + b" \t" * 4000 * n),
    "reason-then-nul": lambda n: head(LINE + b" " * 8000 * n + b"\x00"),
    "digits": lambda n: head(b"HTTP/1.1 " + b"1" * 8000 * n),
    "spaces": lambda n: head(fields=(b"A:" + b" " * 8000 + b"b\r\n") * n),
    "trailing-spaces": lambda n: head(fields=(b"A: b" + b" " * 8000 + b"\r\n") * n),
    "one-name": lambda n: head(fields=b"A" * 8000 * n),
    "one-field": lambda n: head(fields=b"A:\r\n" * 2000 * n),
    "names": lambda n: head(fields=b"".join(b"A%d:\r\n" % i for i in range(1000 * n))),
    "lengths": lambda n: head(fields=b"Content-Length:\r\n" * 450 * n),
    "no-end": lambda n: head(fields=b"A:\r\n" * 2000 * n)[:-2],
    "crlf": lambda n: b"\r\n" * 4000 * n,
    "high": lambda n: b"\xff" * 8192 * n,
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_eight_times_the_malice_takes_eight_times_the_time(name: str) -> None:
    once, eightfold = ADVERSARIAL[name](2), ADVERSARIAL[name](16)
    limit = 8 * 2.5 * best_time(lambda: is_accepted(once, **WIDE)) + 0.001
    assert best_time(lambda: is_accepted(eightfold, **WIDE)) < limit
    assert best_time(lambda: is_accepted(ADVERSARIAL[name](8))) < 0.01


# Arbitrary bytes


def is_plain_head(data: bytes) -> bool:
    """Say whether these bytes are a response head by the letter of RFC 9112: the slow and obvious twin."""
    if not data.endswith(b"\r\n\r\n"):
        return False
    line, *fields = data[:-4].split(b"\r\n")
    parts = line.split(b" ", 2)
    return len(parts) == 3 and is_plain_line(*parts) and all(map(is_plain_field, fields))


def is_plain_line(version: bytes, status: bytes, reason: bytes) -> bool:
    digits = b"0123456789"
    return (
        len(version) == 8
        and version.startswith(b"HTTP/1.")
        and version[7] in digits
        and len(status) == 3
        and all(octet in digits for octet in status)
        and 100 <= int(status) <= 599
        and is_text(reason)
    )


def is_plain_field(line: bytes) -> bool:
    name, colon, value = line.partition(b":")
    return bool(name) and bool(colon) and all(octet in TOKEN_OCTETS for octet in name) and is_text(value)


def is_text(data: bytes) -> bool:
    return all(octet == 9 or (octet >= 0x20 and octet != 0x7F) for octet in data)


def check_arbitrary(data: bytes) -> None:
    if not is_accepted(data, **WIDE):
        assert not is_plain_head(data) or re.search(rb"(?i)content-length|location", data)
        return
    assert is_plain_head(data)
    response = parse_response(data, **WIDE)
    again = f"HTTP/{response.http_version} {response.status} {response.reason}\r\n".encode("latin-1")
    assert parse_response(again + response.headers.encode() + b"\r\n", **WIDE) == response


PIECES = st.sampled_from(
    [
        *(b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/2 ", b"101", b"200", b"999", b" OK\r\n", b" \r\n", b"\r\n", b"\r", b"\n"),
        *(
            b"A: b\r\n",
            b"A:",
            b":",
            b" ",
            b"\t",
            b"\x00",
            b"\xe9",
            b"\x7f",
            b"Content-Length: 5\r\n",
            b"Location: /\r\n",
        ),
    ]
)


@given(st.one_of(st.binary(max_size=99), st.lists(PIECES, max_size=16).map(b"".join)))
@example(b"HTTP/1.1 200 \r\n\r\n")
def test_arbitrary_bytes_are_a_head_to_the_letter_or_refused(data: bytes) -> None:
    for candidate in (data, data + b"\r\n\r\n", head(fields=data), head(fields=data + b"\r\n"), b"HTTP/1.1 " + data):
        check_arbitrary(candidate)


VALUE = st.text([chr(octet) for octet in [9, *range(0x20, 0x7F), *range(0x80, 0x100)]], max_size=20)


@given(st.integers(200, 599), VALUE, st.dictionaries(st.sampled_from(["X-A", "X-B"]), VALUE), st.binary(max_size=99))
def test_our_own_responses_are_read_as_they_were_written(
    status: int, reason: str, fields: dict[str, str], body: bytes
) -> None:
    encoded = Response(status, reason, fields, body).encode(keep_alive=False)
    size = encoded.index(b"\r\n\r\n") + 4
    response = parse_response(encoded[:size])
    assert response[:3] == (status, reason, "1.1")
    assert {name: value for name, value in response.headers.items() if name.startswith("X-")} == {
        name: value.strip(" \t") for name, value in fields.items()
    }
    reader = BodyReader(response, 99)
    reader.feed(encoded[size:])
    assert reader.content == encoded[size:]


# RFC 9112 §6.3: where a body ends


def body_reader(fields: bytes = b"", limit: int = 65536, status: int = 200, version: bytes = b"1.1") -> BodyReader:
    return BodyReader(parse_response(head(b"HTTP/%b %d OK" % (version, status), fields)), limit)


def feedings(data: bytes) -> Iterator[list[bytes]]:
    """Yield what arrives: whole, byte by byte, and in two at each place."""
    yield [data]
    yield [data[place : place + 1] for place in range(len(data))]
    for place in range(1, len(data)):
        yield [data[:place], data[place:]]


def read(reader: BodyReader, pieces: list[bytes]) -> bool | str:
    """Feed a body, and return whether it is complete, or what is wrong."""
    try:
        return any(reader.feed(piece) for piece in pieces)
    except ValueError as error:
        return str(error)


LENGTH = b"Content-Length: 5\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("fields", "data", "content", "outcome"),
    [
        (LENGTH, b"hello", b"hello", True),
        (LENGTH, b"hello, world", b"hello", True),
        (LENGTH, b"hell", b"hell", False),
        (b"content-length: 005\r\n", b"hello", b"hello", True),
        (b"", b"hello", b"hello", False),
        (CHUNKED, b"5\r\nhello\r\n0\r\n\r\n", b"hello", True),
        (CHUNKED, b"5\r\nhello\r\n0\r\n", b"hello", True),
        (CHUNKED, b"5\r\nhello\r\n0\r\nA: trailer\r\n\r\nmore", b"hello", True),
        (CHUNKED.replace(b"chunked", b"Chunked"), b"3\r\nabc\r\n000\r\n", b"abc", True),
        (CHUNKED, b"1\r\na\r\n1\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n", b"a\r\n", True),
        (CHUNKED, b'0A;a=b;c="d\xe9"\r\n0123456789\r\n00 \t;\r\n', b"0123456789", True),
        (CHUNKED, b"5\r\nhello\r\n", b"hello", False),
        (CHUNKED, b"5\r\nhello", b"hello", False),
        (CHUNKED, b"5\r\nhel", b"hel", False),
        (CHUNKED, b"ffffffffffffffff\r\nhel", b"hel", False),
        (CHUNKED, b"5", b"", False),
        (CHUNKED, b"5\r\nhello!\r\n", b"hello", "longer"),
        (CHUNKED, b"5\r\nhello5\r\nworld\r\n", b"hello", "longer"),
        (CHUNKED, b"\r\n5\r\nhello\r\n", b"", "malformed"),
        (CHUNKED, b"x\r\n", b"", "malformed"),
        (CHUNKED, b"-1\r\n", b"", "malformed"),
        (CHUNKED, b"0x5\r\nhello", b"", "malformed"),
        (CHUNKED, b" 5\r\nhello", b"", "malformed"),
        (CHUNKED, b"5 \r\nhello", b"", "malformed"),
        (CHUNKED, b"5;a\nb\r\nhello", b"", "malformed"),
        (CHUNKED, b"5\nhello\r\n0\r\n", b"", "malformed"),
        (CHUNKED, b"00000000000000005\r\nhello", b"", "malformed"),
        (CHUNKED, b"5;" + b"a" * 254 + b"\r\nhello\r\n0\r\n", b"hello", True),
        (CHUNKED, b"5;" + b"a" * 255 + b"\r\nhello\r\n0\r\n", b"", "too long"),
        (CHUNKED, b"5;" + b"a" * 999, b"", "too long"),
    ],
    ids=repr,
)  # fmt: skip
def test_bodies(fields: bytes, data: bytes, content: bytes, outcome: bool | str) -> None:
    for pieces in feedings(data):
        reader = body_reader(fields)
        found = read(reader, pieces)
        assert outcome in found if isinstance(outcome, str) and isinstance(found, str) else found == outcome
        assert reader.content == content


def test_a_body_without_octets() -> None:
    assert body_reader(b"Content-Length: 0\r\n").feed(b"") is True
    assert body_reader(LENGTH).feed(b"") is False
    assert body_reader(CHUNKED).feed(b"") is False
    assert body_reader().feed(b"") is False


@pytest.mark.parametrize("fields", [b"", LENGTH, CHUNKED, b"Transfer-Encoding: gzip\r\n", b"Content-Length: x\r\n"])
@pytest.mark.parametrize("status", [204, 304])
def test_some_statuses_have_no_body(status: int, fields: bytes) -> None:
    """RFC 9112 §6.3 item 1."""
    reader = body_reader(fields, status=status)
    assert reader.feed(b"x")
    assert reader.content == b""
    assert not reader.until_eof


@pytest.mark.parametrize(
    "fields",
    [
        b"Transfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked, gzip\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        CHUNKED + CHUNKED,
        b"Transfer-Encoding:\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked;a=b\r\n",
        CHUNKED + LENGTH,
        LENGTH + CHUNKED,
        *(b"Content-Length: " + value + b"\r\n" for value in (b"", b"+5", b"-5", b"5, 5", b"0x5", b"5 5", b"1" * 20)),
        b"Content-Length: \xb2\r\n",
    ],
    ids=repr,
)
def test_whose_end_can_not_be_told(fields: bytes) -> None:
    """RFC 9112 §6.1 and §6.3."""
    with pytest.raises(ValueError, match=r"its (Content-Length is malformed|Transfer-Encoding can't be read)"):
        body_reader(fields)


def test_no_chunks_in_http_1_0() -> None:
    """RFC 9112 §6.1."""
    with pytest.raises(ValueError, match="Transfer-Encoding"):
        body_reader(CHUNKED, version=b"1.0")
    assert body_reader(LENGTH, version=b"1.0").feed(b"hello")


@pytest.mark.parametrize(
    ("fields", "until_eof"), [(b"", True), (LENGTH, False), (CHUNKED, False), (b"Content-Length: 0\r\n", False)]
)
def test_whether_eof_ends_a_body(fields: bytes, until_eof: bool) -> None:
    reader = body_reader(fields)
    assert reader.until_eof is until_eof
    reader.feed(b"5\r\nhello\r\n0\r\n\r\n")
    assert reader.until_eof is until_eof


FRAMED: list[tuple[bytes, bytes]] = [
    (b"", b"hello"),
    (LENGTH, b"hello"),
    (CHUNKED, b"5\r\nhello\r\n0\r\n\r\n"),
    (CHUNKED, b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
    (CHUNKED, b"5\r\nhello, and so on" + b"x" * 999),
]


@pytest.mark.parametrize("limit", [0, 1, 4, 5])
@pytest.mark.parametrize(("fields", "data"), FRAMED)
def test_a_body_is_cut_at_the_limit(fields: bytes, data: bytes, limit: int) -> None:
    for pieces in feedings(data):
        reader = body_reader(fields, limit=limit)
        assert read(reader, pieces) is True
        assert reader.content == b"hello"[:limit]


@pytest.mark.parametrize(("fields", "data"), FRAMED[:4])
def test_a_body_below_the_limit_is_not_cut(fields: bytes, data: bytes) -> None:
    for pieces in feedings(data):
        reader = body_reader(fields, limit=6)
        assert read(reader, pieces) is bool(fields)
        assert reader.content == b"hello"


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=5), st.lists(st.integers(1, 300), min_size=1))
def test_chunks_are_joined(chunks: list[bytes], sizes: list[int]) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    reader = body_reader(CHUNKED)
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    assert read(reader, [*pieces, data]) is True
    assert reader.content == b"".join(chunks)


@given(st.binary(min_size=1, max_size=60), st.sampled_from([b"", LENGTH, CHUNKED]), st.integers(0, 9))
def test_arbitrary_bodies_are_never_another_exception(data: bytes, fields: bytes, limit: int) -> None:
    outcomes = set()
    for pieces in feedings(data):
        reader = body_reader(fields, limit)
        outcomes.add((read(reader, pieces), bytes(reader.content)))
        assert len(reader.content) <= limit
    assert len(outcomes) == 1


def test_a_body_of_one_octet_chunks_takes_linear_time() -> None:
    def run(count: int) -> float:
        data = b"1\r\nx\r\n" * count

        def whole() -> None:
            assert not body_reader(CHUNKED, 1 << 20).feed(data)

        def bytewise() -> None:
            reader = body_reader(CHUNKED, 1 << 20)
            assert not any(reader.feed(data[place : place + 1]) for place in range(len(data)))

        return best_time(whole) + best_time(bytewise)

    assert run(1600) < 8 * 2.5 * run(200) + 0.001


def test_what_is_kept_of_a_body_is_bounded() -> None:
    reader = body_reader(CHUNKED, 100)
    piece = b"1;" + b"a" * 250 + b"\r\nx\r\n"
    fed = 0
    while not reader.feed(piece):
        fed += 1
        assert len(reader._buffer) < 300
    assert fed == 99
