"""Is the end of a request head found, wherever it is cut, and what can't be one refused?"""

from __future__ import annotations

import pytest
from drivers import head

from wspy.errors import HandshakeError
from wspy.heads import HeadReader

HEAD = head("/path?query")


@pytest.mark.parametrize("rest", [b"", b"\x81\x85frames"])
def test_a_head_at_every_split(rest: bytes) -> None:
    data = HEAD + rest
    for cut in range(len(data) + 1):
        reader = HeadReader()
        found = reader.feed(data[:cut])
        assert (found is None) == (cut < len(HEAD))
        if found is None:
            assert not reader.rest
            found = reader.feed(data[cut:])
            assert reader.rest == rest
        else:
            assert reader.rest == data[len(HEAD) : cut]
        assert found == HEAD


def test_a_head_byte_by_byte() -> None:
    reader = HeadReader()
    found = [reader.feed(HEAD[i : i + 1]) for i in range(len(HEAD))]
    assert found[-1] == HEAD
    assert found[:-1] == [None] * (len(HEAD) - 1)


def test_the_request_line_is_complete_with_its_end() -> None:
    reader = HeadReader()
    end = HEAD.index(b"\r\n") + 2
    reader.feed(HEAD[: end - 1])
    assert not reader.has_line
    reader.feed(HEAD[end - 1 : end])
    assert reader.has_line


@pytest.mark.parametrize(
    ("data", "limits", "status"),
    [
        (b"\x16\x03\x01", {}, 400),
        (b"M" * 33, {}, 501),
        (b"GET /" + b"x" * 100, {"max_line": 50}, 414),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 100, {"max_header_line": 50}, 431),
        (b"GET / HTTP/1.1\r\nA: b\r\nC: d\r\n", {"max_headers": 1}, 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10, {"max_head": 50}, 431),
    ],
)
def test_what_is_wrong_is_refused_at_every_split(data: bytes, limits: dict[str, int], status: int) -> None:
    for cut in range(len(data)):
        reader = HeadReader(**limits)
        with pytest.raises(HandshakeError) as caught:
            reader.feed(data[:cut])
            reader.feed(data[cut:])
        assert caught.value.status == status
