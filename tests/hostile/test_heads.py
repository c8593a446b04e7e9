"""Is every hostile request head answered as its row says, however it arrives?"""

from __future__ import annotations

import random
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from drivers import PATIENCE, Servers, deliveries, echo, head, needs, until
from heads import CASES, GET, HOST, Case, field

import wspy

if TYPE_CHECKING:
    from drivers import RawClient

DATE = re.compile(rb"Date: [^\r]*\r\n")


def answer(peer: RawClient, case: Case) -> tuple[int, bytes]:
    """Receive what a case is answered with, check what all answers have in common, and return it without its date."""
    response = peer.response(to_head_request=case.data.startswith(b"HEAD"))
    assert response.status == case.status, (case.name, response)
    if response.status == 101:
        return response.status, response.head
    for name, value in case.headers.items():
        assert response.headers[name] == value
    assert response.headers["connection"] == ("upgrade, close" if "upgrade" in response.headers else "close")
    if not case.data.startswith(b"HEAD"):
        assert response.body.startswith(b"%d " % response.status), "L6: a fixed text"
        assert int(response.headers["content-length"]) == len(response.body)
        assert response.headers["content-type"].startswith("text/plain")
    assert peer.waiting() == b""
    peer.eof()
    return response.status, DATE.sub(b"", response.head) + response.body


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_answer(serve: Servers, case: Case) -> None:
    """Whole; and without anything behind it, if its last byte decides."""
    server = serve(onmessage=echo, **case.options)
    peer = server.connect()
    peer.send(case.data)
    answer(peer, case)
    peer.end()
    if case.promptly:
        before = server.connect()
        before.send(case.data[:-1])
        until(lambda: server.bytes_read() == 2 * len(case.data) - 1, "read")
        assert before.waiting() == b"", "it was answered a byte too early"
        before.send(case.data[-1:])
        answer(before, case)
    if case.status != 101:
        assert server.stories == []
        other = server.open("/", case.others)
        other.close()


@pytest.mark.slow
def test_a22_the_way_it_is_cut_makes_no_difference(serve: Servers) -> None:
    """R1: every case byte by byte, and at a sample of cuts; short ones at every cut."""
    servers: dict[str, Any] = {}
    for case in CASES:
        options = repr(case.options)
        if options not in servers:
            enough = {"max_connections": 100_000} if serve.has("policies") else {}
            servers[options] = serve(onmessage=echo, **enough, **case.options)
        expected = None
        for name, pieces in deliveries(case.data, most=8, short=30):
            peer = servers[options].paced()
            peer.send_pieces(pieces)
            found = answer(peer, case)
            expected = expected or found
            assert found == expected, (case.name, name)
            peer.end()


@pytest.mark.parametrize("size", [8193, 70_000])
def test_b12_a_line_in_segments_of_one_byte(serve: Servers, size: int) -> None:
    """At the limit and not later, in time that does not grow with what came before."""
    server = serve()
    cpu = server.cpu_seconds()
    for start, status in ((GET + HOST + b"X: ", 431), (b"GET /", 414)):
        peer = server.paced()
        peer.send_pieces([start])
        sent = 0
        while sent < size and not peer.is_ended():
            sent += 1
            try:
                peer.send(b"y")
            except ConnectionError:
                break
        assert peer.response().status == status
    assert server.cpu_seconds() - cpu < 5 * PATIENCE


def test_a21_a_mebibyte_of_zeros(serve: Servers) -> None:
    server = serve()
    for data in (bytes(1 << 20), random.Random(7).randbytes(1 << 20)):
        peer = server.connect()
        try:
            peer.send(data)
        except ConnectionError:
            pass  # it has given up before
        else:
            assert peer.response().status == 400
        peer.end()
    until(lambda: server.connections() == 0, "all are gone")
    server.open().close()


@pytest.mark.parametrize("seed", range(10))
def test_a21_random_bytes(serve: Servers, seed: int) -> None:
    server = serve()
    chance = random.Random(seed)
    for _ in range(10):
        peer = server.connect()
        peer.send(chance.choice([b"", b"GET ", b"GET / HTTP/1.1\r\n", GET + b"Host: "]) + chance.randbytes(200) + b"\0")
        assert peer.response().status in {400, 501, 505}
        peer.eof()
        peer.end()
    assert server.stories == []


def test_b9_8_bit_bytes_are_exposed_as_latin_1(serve: Servers) -> None:
    server = serve()
    peer = server.connect()
    value = bytes(range(0xA1, 0x100))
    peer.send(field(b"X-Opaque: " + value))
    peer.opened()
    assert server.client(peer).request.headers["x-opaque"] == value.decode("latin-1")


SLOW: dict[str, bytes] = {
    "B14 the same name 90 times": b"".join(b"X-Same: " + b"y" * 700 + b"\r\n" for _ in range(90)),
    "C13 7900 spaces in a list": b"Sec-WebSocket-Protocol: b" + b" " * 7900 + b"x\r\n",
    "H17 a list of 4000 extensions": b"Sec-WebSocket-Extensions: " + b"a," * 4000 + b"a\r\n",
    "H17 an extension of 2600 parameters": b"Sec-WebSocket-Extensions: a" + b";b=" * 2600 + b"\r\n",
    "H17 quotes": b'Sec-WebSocket-Extensions: a; b="' + b"\\" * 8000 + b"\r\n",
    "H17 a list of 4000 options": b"Connection: " + b"a," * 4000 + b"\r\n",
    "H17 tabs and spaces": b"Connection: a" + b" \t" * 4000 + b"b\r\n",
    "H17 a Host of dots": b"X-Host: " + b"." * 8000 + b"\r\n",
    "H17 a largest head": b"".join(b"X-%d: " % n + b"\xff" * 8000 + b"\r\n" for n in range(8)),
}


@pytest.mark.parametrize("name", SLOW)
def test_b14_c13_h17_the_worst_head_takes_little_time(serve: Servers, name: str) -> None:
    """Time of the server's thread for one of them: linear parsers, no way back."""
    server = serve()
    data = head()[:-2] + SLOW[name] + b"\r\n"
    used = []
    for _ in range(5):
        cpu = server.cpu_seconds()
        peer = server.connect()
        peer.send(data)
        peer.response()
        peer.end()
        used.append(server.cpu_seconds() - cpu)
    assert min(used) < 0.005 * PATIENCE


def test_l6_l5_nothing_of_the_request_is_repeated(serve: Servers, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the answer nor, unescaped, in the log."""
    caplog.set_level("DEBUG")
    server = serve(locations=["/here"])
    evil = [
        head("/<script>%0d%0aevil%1b[31m"),
        head("/here", [("X-Evil", "evil\x80\x9b31m")], without=["Host"]),
        field(b"Host: evil\xff"),
        head("/evil" * 1000),
        head(
            "/here",
            [("Origin", "https://evil.example"), ("Sec-WebSocket-Version", "evil")],
            without=["Sec-WebSocket-Version"],
        ),
    ]
    for data in evil:
        peer = server.connect()
        peer.send(data)
        response = peer.response()
        assert response.status >= 400
        assert b"evil" not in response.head.lower()
        assert b"evil" not in response.body.lower()
    until(lambda: len(caplog.records) >= len(evil), "logged")
    for record in caplog.records:
        text = record.getMessage()
        assert len(text) < 300
        assert text.isprintable()
        assert not any("\x80" <= character <= "\xa6" for character in text)


def test_l8_percent_signs_are_no_formats(serve: Servers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    server = serve()
    peer = server.open("/%s%d%n%(name)s")
    peer.send(b"\x88\x8a\0\0\0\0\x03\xe8%s%d%n%%")
    assert server.outcome(peer) == (1000, "%s%d%n%%")
    refused = server.connect()
    refused.send(head("/%s%d%n", without=["Host"]))
    assert refused.response().status == 400


def test_l7_a_close_reason_is_escaped_in_the_log(serve: Servers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    server = serve()
    peer = server.open()
    reason = b"one\ntwo\x1b[31m"
    peer.send(bytes([0x88, 0x80 | (2 + len(reason)), 0, 0, 0, 0]) + b"\x03\xe8" + reason)
    assert server.outcome(peer) == (1000, reason.decode())
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize("reason", ["a\r\nb", "a\nb", "\0", "\u20ac"], ids=repr)
@needs("http")
def test_l2_a_reason_phrase_that_can_not_be_sent(serve: Servers, reason: str) -> None:
    errors: list[BaseException] = []
    server = serve(
        onrequest=lambda request: wspy.Response(403, reason), onerror=lambda client, error: errors.append(error)
    )
    peer = server.connect()
    peer.send(head())
    response = peer.response()
    assert (response.status, response.reason) == (500, "Internal Server Error")
    peer.eof()
    assert [type(error) for error in [*errors, *server.errors]][:1] == [ValueError]


def test_l3_a_subprotocol_that_is_no_token(serve: Servers) -> None:
    for wrong in (["a b"], ["a\r\n"], [""], ["é"], ["a", "a"]):
        with pytest.raises(ValueError):
            serve(protocols=wrong)


def test_answers_come_in_time_when_the_peer_sends_on(serve: Servers) -> None:
    """A lingering close: the answer isn't lost in a reset while the peer still sends."""
    server = serve()
    peer = server.connect()
    began = time.monotonic()
    peer.send(b"GET /\0")
    for _ in range(100):
        peer.send(b"x" * 1000)
    assert peer.response().status == 400
    peer.eof()
    assert time.monotonic() - began < 5 * PATIENCE
