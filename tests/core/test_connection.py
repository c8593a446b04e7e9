"""Does each connection of the loop read, write and end as its phase allows, whatever its peer and the kernel do?"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import threading
import time
from typing import Final

import pytest
from measures import measures_memory, resident
from turns import (
    ABORT,
    ACCEPT,
    BAD_HEAD,
    BINARY,
    BROADCAST,
    CLOSE,
    CLOSE_RECEIVED,
    CLOSED,
    DRAINED,
    ENDING,
    FAIL,
    FINISH,
    FOREVER,
    GRANT,
    HEAD,
    IDLE,
    OPENED,
    PAUSE,
    PINGED,
    PONG,
    REQUEST,
    RESPOND,
    RESPONSE,
    RESUME,
    SEND,
    SEND_MARK,
    SENT,
    TEXT,
    Event,
    Pair,
    Sealed,
    Turns,
    accept,
    exactly,
    faults,
    frame,
    kinds,
    received,
    reset,
    server_frames,
    tcp_pair,
    text,
    to_the_end,
)

from wspy._core import lib

CLOSE_FRAME = 8
PING_FRAME = 9
PONG_FRAME = 10
NORMAL = b"\x03\xe8"
PROTOCOL_ERROR = b"\x03\xea"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
KEEP_ALIVE = b"\x01"
CLOSE_AFTER = b"\x00"
REFUSED = [errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM]


@pytest.fixture(autouse=True, params=["plain", "sealed"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is made twice: as it stands, and with something in the place of TLS."""
    if request.param == "sealed":
        monkeypatch.setattr(sys.modules[__name__], "Turns", Sealed)


def plain_only(because: str) -> pytest.MarkDecorator:
    """Make a test once."""
    assert because
    return pytest.mark.parametrize("transport", ["plain"], indirect=True)


def fill(turns: Turns, handle: int, size: int = 1 << 20) -> bytes:
    """Send more than the kernel takes; return the frame."""
    message = frame(2, bytes(i % 251 for i in range(4096)) * (size // 4096), key=None)
    turns.push(SEND, handle, message)
    turns.turn()
    assert turns.backlog(handle) > 0
    return message


def drain(sock: socket.socket, size: int) -> None:
    """Receive at least so many bytes."""
    sock.settimeout(10)
    while size > 0:
        size -= len(sock.recv(1 << 20))


# ---- opening ----


def test_nothing_is_written_before_the_response_is(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.EAGAIN):
            turns.push(ACCEPT, handle, accept())
            turns.push(SEND_MARK, handle, frame(1, b"hello", key=None))
            turns.submit()
        assert received(peer) == b""
        assert kinds(turns.settle()) == [OPENED, SENT]
        assert received(peer) == RESPONSE + frame(1, b"hello", key=None)


@pytest.mark.parametrize("size", range(1, len(RESPONSE)))
def test_c22_a_response_in_parts_is_completed_before_any_frame(pair: Pair, size: int) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        message = frame(1, b"hello", key=None)
        with faults(lib.WSPY_SYS_SEND, short_io=size):
            turns.push(ACCEPT, handle, accept())
            turns.push(SEND_MARK, handle, message)
            events = turns.until(SENT)
        assert kinds(events) == [OPENED, SENT]
        assert received(peer) == RESPONSE + message


def test_c20_frames_behind_the_head_are_handled_after_the_response(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.awaiting(pair, REQUEST + frame(1, b"one"))
        peer.sendall(frame(1, b"two") + frame(PING_FRAME, b"three"))
        assert turns.settle() == []
        turns.push(ACCEPT, handle, accept())
        events = turns.settle()
        assert [(event.kind, event.payload) for event in events] == [(OPENED, b""), (TEXT, b"one"), (TEXT, b"two")]
        assert received(peer) == RESPONSE + frame(PONG_FRAME, b"three", key=None)


def test_c20_what_is_kept_behind_a_head_is_bounded(pair: Pair) -> None:
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    frames = frame(2, bytes(1000)) * 400
    with Turns() as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        peer.settimeout(0)
        sent = peer.send(frames)
        assert sent > 3 * 65536, "the kernel keeps enough for this test"
        turns.settle()
        assert turns.stats()["bytes_received"] <= len(REQUEST) + 65536
        turns.push(ACCEPT, handle, accept())
        assert len([event for event in turns.settle() if event.kind == BINARY]) == sent // 1008


def test_c21_a_peer_that_goes_before_the_answer(pair: Pair) -> None:
    with Turns() as turns:
        handle = turns.awaiting(pair)
        pair[1].close()
        turns.push(ACCEPT, handle, accept())
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [CLOSED]
        assert turns.stats()["connections"] == 0


def test_i1_a_reset_before_the_answer() -> None:
    ours, peer = tcp_pair()
    with Turns() as turns:
        handle = turns.awaiting((ours, peer))
        reset(peer)
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [CLOSED]
        assert (events[0].start, events[0].error, events[0].system_error) == (
            1006,
            lib.WSPY_ERROR_RESET,
            errno.ECONNRESET,
        )


@pytest.mark.parametrize("size", range(len(REQUEST)))
def test_i1_a_peer_that_goes_in_its_head_is_never_reported(pair: Pair, size: int) -> None:
    with Turns() as turns:
        turns.adopt(pair[0])
        pair[1].sendall(REQUEST[:size])
        turns.settle()
        pair[1].close()
        assert turns.settle() == []
        assert turns.stats()["connections"] == 0


def test_a22_a_head_in_single_bytes_is_one_piece(pair: Pair) -> None:
    request = REQUEST[:-2] + b"".join(b"field-%d: %s\r\n" % (i, b"x" * 90) for i in range(20)) + b"\r\n"
    with Turns() as turns, pair[1] as peer:
        turns.adopt(pair[0])
        events: list[Event] = []
        for i in range(len(request)):
            peer.sendall(request[i : i + 1])
            events += turns.turn(100)
        assert [event.payload for event in events] == [request]


# ---- plain HTTP ----


def test_b25_pipelined_requests_are_answered_in_order_one_at_a_time(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.adopt(pair[0])
        requests = [b"GET /%d HTTP/1.1\r\nHost: here\r\n\r\n" % i for i in range(50)]
        peer.sendall(b"".join(requests))
        for request in requests:
            events = turns.until(HEAD, handle)
            assert [event.payload for event in events] == [request]
            turns.push(RESPOND, handle, KEEP_ALIVE + ANSWER)
        assert turns.settle() == []
        assert received(peer) == ANSWER * 50


def test_b25_at_most_64_pipelined_requests_of_a_turn() -> None:
    pairs = [socket.socketpair() for _ in range(100)]
    with Turns() as turns:
        for ours, peer in pairs:
            turns.adopt(ours)
            peer.sendall(REQUEST * 2)
        heads = [event for _ in range(2) for event in turns.turn()]
        assert len(heads) == 100
        for event in heads:
            turns.push(RESPOND, event.handle, KEEP_ALIVE + ANSWER)
        assert [len(turns.turn()) for _ in range(3)] == [64, 36, 0]
        for _, peer in pairs:
            assert received(peer) == ANSWER
            peer.close()


def test_b30_the_thousandth_answer_is_the_last(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.adopt(pair[0])
        for i in range(1000):
            peer.sendall(REQUEST)
            assert kinds(turns.until(HEAD, handle)) == [HEAD]
            turns.push(RESPOND, handle, KEEP_ALIVE + b"x")
            turns.turn()
            assert exactly(peer, 1) == b"x", i
        peer.sendall(REQUEST)
        assert turns.settle() == []
        assert peer.recv(1) == b""


def test_b26_nothing_is_read_behind_a_last_answer(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.awaiting(pair, REQUEST + REQUEST)
        turns.push(RESPOND, handle, CLOSE_AFTER + ANSWER)
        assert turns.settle() == []
        assert peer.recv(1000) == ANSWER
        assert peer.recv(1000) == b""


@pytest.mark.parametrize("earlier", [0, 1])
def test_the_answer_to_a_bad_head_is_the_last(pair: Pair, earlier: int) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.adopt(pair[0])
        for _ in range(earlier):
            peer.sendall(REQUEST)
            turns.until(HEAD, handle)
            turns.push(RESPOND, handle, KEEP_ALIVE + ANSWER)
        peer.sendall(b"GET\r\n\r\n" + REQUEST)
        turns.until(BAD_HEAD, handle)
        turns.push(RESPOND, handle, KEEP_ALIVE + b"400")
        assert turns.settle() == []
        assert to_the_end(peer, turns) == ANSWER * earlier + b"400"


@pytest.mark.parametrize("keep", [KEEP_ALIVE, CLOSE_AFTER])
@pytest.mark.parametrize("is_early", [True, False])
def test_b31_a_peer_that_half_closes_gets_the_whole_answer(pair: Pair, keep: bytes, is_early: bool) -> None:
    answer = bytes(range(256)) * 8192
    with Turns() as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        if is_early:
            peer.shutdown(socket.SHUT_WR)
            turns.turn()
        turns.push(RESPOND, handle, keep + answer)
        turns.turn()
        if not is_early:
            peer.shutdown(socket.SHUT_WR)
            turns.turn()
        assert turns.backlog(handle) > 0
        assert to_the_end(peer, turns) == answer


def test_b31_a_peer_that_half_closes_behind_much_input_is_not_reset() -> None:
    ours, peer = tcp_pair()
    with Turns() as turns, peer:
        handle = turns.adopt(ours)
        peer.sendall(REQUEST * 3000)
        peer.shutdown(socket.SHUT_WR)
        turns.until(HEAD, handle)
        turns.push(RESPOND, handle, CLOSE_AFTER + ANSWER)
        assert to_the_end(peer, turns) == ANSWER


def test_a_connection_whose_answer_cannot_be_sent_is_gone(pair: Pair) -> None:
    with Turns() as turns:
        handle = turns.awaiting(pair)
        pair[1].close()
        turns.push(RESPOND, handle, KEEP_ALIVE + ANSWER)
        assert turns.settle() == []
        assert turns.stats()["connections"] == 0


# ---- the closing handshake ----


def test_e4_a_close_is_echoed_with_its_code(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(CLOSE_FRAME, NORMAL + b"bye"))
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [CLOSE_RECEIVED, CLOSED]
        assert events[0].payload == NORMAL + b"bye"
        assert (events[1].start, events[1].error) == (1005, 0)
        assert server_frames(received(peer)) == [(CLOSE_FRAME, NORMAL)]


def test_e1_an_empty_close_is_echoed_empty(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(CLOSE_FRAME))
        turns.until(CLOSED, handle)
        assert server_frames(received(peer)) == [(CLOSE_FRAME, b"")]


def test_e12_our_close_is_sent_and_answered(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        turns.push(CLOSE, handle, NORMAL + b"bye")
        assert turns.settle() == []
        assert server_frames(received(peer)) == [(CLOSE_FRAME, NORMAL + b"bye")]
        peer.sendall(frame(CLOSE_FRAME, NORMAL))
        events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1005, 0)
        assert received(peer) == b""


def test_e16_only_the_first_close_is_sent_and_nothing_after_it(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        turns.push(CLOSE, handle, NORMAL)
        turns.push(SEND, handle, frame(1, b"late", key=None))
        turns.push(CLOSE, handle, PROTOCOL_ERROR)
        peer.sendall(frame(PING_FRAME, b"?"))
        turns.settle()
        assert server_frames(received(peer)) == [(CLOSE_FRAME, NORMAL)]


def test_e10_messages_are_delivered_until_the_close_of_the_peer(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        turns.push(CLOSE, handle, NORMAL)
        turns.turn()
        peer.sendall(frame(1, b"one") + frame(1, b"two") + frame(CLOSE_FRAME) + frame(1, b"three"))
        events = turns.until(CLOSED, handle)
        assert [event.payload for event in events if event.kind == TEXT] == [b"one", b"two"]


def test_e9_replies_to_messages_before_a_close_leave_before_its_echo(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(1, b"one") + frame(1, b"two") + frame(CLOSE_FRAME, NORMAL))
        assert kinds(turns.until(CLOSE_RECEIVED)) == [TEXT, TEXT, CLOSE_RECEIVED]
        for reply in (b"1", b"2"):
            turns.push(SEND, handle, frame(1, reply, key=None))
        turns.until(CLOSED, handle)
        assert server_frames(received(peer)) == [(1, b"1"), (1, b"2"), (CLOSE_FRAME, NORMAL)]


def test_r3_replies_to_messages_before_a_violation_leave_before_its_close(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(1, b"one") + b"\xf1\x80" + frame(1, b"never"))
        assert kinds(turns.until(TEXT)) == [TEXT]
        turns.push(SEND, handle, frame(1, b"1", key=None))
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [CLOSED]
        assert (events[0].start, events[0].error) == (1002, lib.WSPY_ERROR_RSV)
        assert server_frames(received(peer)) == [(1, b"1"), (CLOSE_FRAME, PROTOCOL_ERROR)]
        assert peer.recv(1) == b""


def test_e13_a_greeting_is_sent_to_a_peer_that_has_half_closed(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        peer.shutdown(socket.SHUT_WR)
        turns.push(ACCEPT, handle, accept())
        turns.until(OPENED, handle)
        turns.push(SEND, handle, frame(1, b"hello", key=None))
        events = turns.until(CLOSED, handle)
        assert events[-1].error == lib.WSPY_ERROR_EOF
        assert received(peer) == RESPONSE + frame(1, b"hello", key=None)


@pytest.mark.parametrize("begun", [b"", b"\x81", frame(1, b"hello")[:-1], frame(1, b"hello", final=False)])
def test_e13_the_end_of_tcp_without_a_close(pair: Pair, begun: bytes) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(begun)
        turns.settle()
        peer.shutdown(socket.SHUT_WR)
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [CLOSED]
        assert (events[0].start, events[0].error) == (1006, lib.WSPY_ERROR_EOF)
        assert peer.recv(1) == b""
        assert turns.stats()["connections"] == 0


@pytest.mark.parametrize("begun", [b"", b"\x81", frame(1, b"hello")[:-1], frame(1, b"hello", final=False)])
def test_i1_a_reset(begun: bytes) -> None:
    ours, peer = tcp_pair()
    with Turns() as turns:
        handle = turns.opened((ours, peer))
        peer.sendall(begun)
        turns.settle()
        reset(peer)
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [CLOSED]
        assert (events[0].start, events[0].error, events[0].system_error) == (
            1006,
            lib.WSPY_ERROR_RESET,
            errno.ECONNRESET,
        )
        assert turns.settle() == []
        assert turns.stats()["connections"] == 0


def test_i5_data_before_a_reset_or_an_end_is_delivered() -> None:
    ours, peer = tcp_pair()
    with Turns() as turns:
        handle = turns.opened((ours, peer))
        peer.sendall(frame(1, b"last words"))
        peer.close()
        assert kinds(turns.until(CLOSED, handle)) == [TEXT, CLOSED]


def test_i2_a_failing_send_ends_the_connection(pair: Pair) -> None:
    with Turns() as turns:
        handle = turns.opened(pair)
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.EPIPE):
            turns.push(SEND_MARK, handle, frame(1, b"x", key=None))
            turns.push(SEND_MARK, handle, frame(1, b"y", key=None))
            events = turns.until(CLOSED, handle)
        assert kinds(events) == [CLOSED]
        assert (events[0].error, events[0].system_error) == (lib.WSPY_ERROR_RESET, errno.EPIPE)


def test_abort_resets() -> None:
    ours, peer = tcp_pair()
    with Turns() as turns, peer:
        handle = turns.opened((ours, peer))
        peer.sendall(frame(1, b"never delivered"))
        turns.push(ABORT, handle)
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [CLOSED]
        assert (events[0].start, events[0].error) == (1006, lib.WSPY_ERROR_ABORTED)
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_abort_ends_a_close_that_waits_for_a_slow_peer() -> None:
    ours, peer = tcp_pair()
    with Turns() as turns, peer:
        handle = turns.opened((ours, peer))
        fill(turns, handle, 16 << 20)
        peer.sendall(frame(CLOSE_FRAME, NORMAL))
        assert kinds(turns.settle()) == [CLOSE_RECEIVED]
        turns.push(ABORT, handle)
        events = turns.until(CLOSED, handle)
        assert (events[0].start, events[0].error) == (1006, lib.WSPY_ERROR_ABORTED)
        assert turns.stats()["connections"] == 0


def test_after_the_end_the_peer_may_read_in_peace() -> None:
    """A lingering close: no RST for what the peer still sends, which would destroy what it did not read yet."""
    ours, peer = tcp_pair()
    with Turns() as turns, peer:
        handle = turns.opened((ours, peer))
        peer.sendall(b"\xff\xff" + bytes(100_000))
        turns.until(CLOSED, handle)
        for _ in range(5):
            peer.sendall(bytes(10_000))
            turns.turn()
        assert server_frames(to_the_end(peer, turns)) == [(CLOSE_FRAME, PROTOCOL_ERROR)]
        assert turns.stats()["connections"] == 1
        peer.close()
        turns.until_empty()


@pytest.mark.slow
def test_what_is_thrown_away_after_the_end_is_bounded_by_bytes() -> None:
    ours, peer = tcp_pair()
    with Turns() as turns, peer:
        handle = turns.opened((ours, peer))
        peer.sendall(b"\xff\xff")
        turns.until(CLOSED, handle)
        turns.push(GRANT, handle, struct.pack("=I", FOREVER - 1))
        sent = 0
        peer.settimeout(0)
        end = time.monotonic() + 0.9  # before the time limit
        while turns.stats()["connections"] and time.monotonic() < end:
            try:
                sent += peer.send(bytes(65536))
            except BlockingIOError:
                turns.turn()
            except ConnectionError:
                break
            turns.turn()
        assert turns.stats()["connections"] == 0
        assert turns.stats()["bytes_received"] < 1 << 20


@pytest.mark.slow
def test_what_is_thrown_away_after_the_end_is_bounded_by_time(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(CLOSE_FRAME))
        turns.until(CLOSED, handle)
        began = time.monotonic()
        while turns.stats()["connections"]:
            turns.turn(100)
        assert 0.5 < time.monotonic() - began < 5


# ---- reading ----


def test_credit_is_the_number_of_messages_that_are_delivered(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair, credit=2)
        messages = [b"%d" % i for i in range(10)]
        peer.sendall(b"".join(frame(1, message) for message in messages))
        assert [event.payload for event in turns.settle()] == messages[:2]
        for granted, delivered in ((1, messages[2:3]), (4, messages[3:7]), (FOREVER, messages[7:])):
            turns.push(GRANT, handle, struct.pack("=I", granted))
            assert [event.payload for event in turns.settle()] == delivered
        peer.sendall(frame(1, b"more"))
        assert [event.payload for event in turns.settle()] == [b"more"]


def test_credit_stops_large_messages_too(pair: Pair) -> None:
    messages = [bytes([65 + i]) * 20_000 for i in range(5)]
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair, credit=1)
        peer.sendall(b"".join(frame(2, message) for message in messages))
        for message in messages:
            assert [event.payload for event in turns.settle()] == [message]
            turns.push(GRANT, handle, struct.pack("=I", 1))


def test_a_grant_of_the_wrong_size_is_no_grant(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair, credit=0)
        peer.sendall(frame(1, b"x"))
        turns.push(GRANT, handle, b"\xff" * 3)
        assert turns.settle() == []


def test_pause_holds_messages_and_resume_delivers_them(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        turns.push(PAUSE, handle)
        peer.sendall(frame(1, b"one"))
        assert turns.settle() == []
        turns.push(RESUME, handle)
        assert [event.payload for event in turns.settle()] == [b"one"]


def test_pause_holds_what_was_read_already(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.awaiting(pair, REQUEST + frame(1, b"one"))
        turns.push(ACCEPT, handle, accept())
        turns.push(PAUSE, handle)
        assert kinds(turns.settle()) == [OPENED]
        peer.sendall(frame(1, b"two"))
        assert turns.settle() == []
        turns.push(RESUME, handle)
        assert [event.payload for event in turns.settle()] == [b"one", b"two"]


@pytest.mark.parametrize("short", range(1, 8))
def test_i4_short_reads_and_writes(pair: Pair, short: int) -> None:
    messages = [b"x", b"", b"hello" * 20, bytes(300), bytes(range(256)) * 20]
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with Turns() as turns, pair[1] as peer, faults(lib.WSPY_SYS_SEND, short_io=short):
        handle = turns.opened(pair)
        peer.sendall(b"".join(frame(2, message) + frame(PING_FRAME, b"?") for message in messages))
        peer.sendall(frame(CLOSE_FRAME, NORMAL))
        events: list[Event] = []
        data = b""
        while CLOSED not in kinds(events):
            fresh = turns.turn(100)
            events += fresh
            data += received(peer)
            for event in fresh:
                if event.kind == BINARY:
                    turns.push(SEND, handle, frame(2, event.payload, key=None))
        assert [event.payload for event in events if event.kind == BINARY] == messages
        answers = server_frames(data + received(peer))
        assert [payload for opcode, payload in answers if opcode == 2] == messages
        assert answers[-1] == (CLOSE_FRAME, NORMAL)
        assert (PONG_FRAME, b"?") in answers


def test_h3_memory_follows_what_arrives_and_not_what_is_announced(pair: Pair) -> None:
    """Of a MiB that is announced a byte arrives: the allocations stay small."""
    with Turns() as turns, pair[1] as peer:
        turns.opened(pair)
        whole = frame(2, bytes(1 << 20))
        peer.sendall(whole[:15])
        lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, 0, 0, 0, 0)
        turns.settle()
        assert lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, 0, 0, 0, 0) <= 2


def test_i24_a_message_that_was_cut_off_is_never_delivered(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(2, bytes(300_000))[:200_000])
        turns.settle()
        peer.close()
        assert kinds(turns.until(CLOSED, handle)) == [CLOSED]


# ---- writing ----


def test_marks_are_reported_when_their_last_byte_was_taken(pair: Pair) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        messages = [frame(2, bytes([i]) * 3000, key=None) for i in range(20)]
        for number, message in enumerate(messages):
            turns.push(SEND_MARK if number % 2 else SEND, handle, message)
        events = turns.turn()
        data = b""
        marked = 0
        while len(data) < len(b"".join(messages)):
            marked += sum(event.start for event in events if event.kind == SENT)
            taken = len(data) + len(received_part := received(peer))
            data += received_part
            ends = [len(b"".join(messages[: i + 1])) for i in range(1, 20, 2)]
            assert marked <= sum(end <= taken for end in ends)
            events = turns.turn()
        events += turns.settle()
        assert marked + sum(event.start for event in events if event.kind == SENT) == 10
        assert data == b"".join(messages)
        assert turns.backlog(handle) == 0


def test_h6_more_unsent_bytes_than_allowed_end_the_connection(pair: Pair) -> None:
    with Turns(max_backlog=100_000) as turns, pair[1]:
        handle = turns.opened(pair)
        fill(turns, handle)
        assert turns.settle() == []
        turns.push(SEND, handle, frame(1, b"one too many", key=None))
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [CLOSED]
        assert (events[0].start, events[0].error) == (1008, lib.WSPY_ERROR_BACKLOG)
        assert turns.backlog(handle) > 0, "what was lost"


def test_h6_the_limit_is_the_same_for_messages_of_one_batch(pair: Pair) -> None:
    with Turns(max_backlog=1 << 20) as turns, pair[1]:
        handle = turns.opened(pair)
        for _ in range(60):
            turns.push(SEND, handle, frame(2, bytes(1 << 20), key=None))
        events = turns.until(CLOSED, handle)
        assert events[0].error == lib.WSPY_ERROR_BACKLOG
        assert turns.backlog(handle) < 3 << 20


def test_e17_a_close_is_queued_behind_any_backlog(pair: Pair) -> None:
    with Turns(max_backlog=1000) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        message = fill(turns, handle)
        turns.push(CLOSE, handle, NORMAL)
        assert turns.settle() == []
        peer.sendall(frame(CLOSE_FRAME, NORMAL))
        turns.settle()
        assert to_the_end(peer, turns) == message + frame(CLOSE_FRAME, NORMAL, key=None)


def test_e17_the_close_of_a_violation_is_queued_behind_any_backlog(pair: Pair) -> None:
    with Turns(max_backlog=1000) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        message = fill(turns, handle)
        peer.sendall(b"\xff\xff")
        assert turns.turn() == []
        assert to_the_end(peer, turns) == message + frame(CLOSE_FRAME, PROTOCOL_ERROR, key=None)


def test_e17_a_stream_that_is_cut_after_a_violation_is_reset() -> None:
    """Not ended as if it were whole."""
    ours, peer = tcp_pair()
    with Turns(max_backlog=1000) as turns, peer:
        handle = turns.opened((ours, peer))
        fill(turns, handle, 16 << 20)
        peer.sendall(frame(1, b"?") + b"\xff\xff")
        turns.until(TEXT)
        turns.push(SEND, handle, frame(1, b"too much", key=None))
        events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1002, lib.WSPY_ERROR_OPCODE)
        with pytest.raises(ConnectionResetError):
            to_the_end(peer, turns)


def test_e17_a_close_that_is_never_written_is_given_up(pair: Pair) -> None:
    with Turns(close_timeout_ms=50) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        fill(turns, handle)
        peer.sendall(b"\xff\xff")
        events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1002, lib.WSPY_ERROR_OPCODE)
        assert turns.stats()["connections"] == 0


def test_e17_an_answer_to_a_close_that_is_never_written_is_given_up() -> None:
    """The peer began the closing handshake and did not let it end: messages were lost, and 1000 would hide it."""
    ours, peer = tcp_pair()
    with Turns(close_timeout_ms=50) as turns, peer:
        handle = turns.opened((ours, peer))
        fill(turns, handle, 16 << 20)
        peer.sendall(frame(CLOSE_FRAME, NORMAL))
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [CLOSE_RECEIVED, CLOSED]
        assert (events[-1].start, events[-1].error) == (1006, lib.WSPY_ERROR_CLOSE_TIMEOUT)
        with pytest.raises(ConnectionResetError):
            to_the_end(peer, turns)


def test_a_pong_never_follows_our_close(pair: Pair) -> None:
    """The Pong waits behind a frame that is half written, and the Close is queued right behind that frame."""
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        message = frame(2, bytes(20_000), key=None)
        turns.push(SEND, handle, message)
        turns.turn()
        peer.sendall(frame(PING_FRAME, b"?"))
        turns.settle()
        turns.push(CLOSE, handle, NORMAL)
        turns.settle()
        peer.sendall(frame(CLOSE_FRAME, NORMAL))
        turns.settle()
        data = to_the_end(peer, turns)
        assert server_frames(data) == [(2, bytes(20_000)), (PONG_FRAME, b"?"), (CLOSE_FRAME, NORMAL)]


def test_an_end_that_waits_for_a_peer_ends_with_it() -> None:
    ours, peer = tcp_pair()
    with Turns() as turns:
        handle = turns.opened((ours, peer))
        fill(turns, handle, 16 << 20)
        peer.sendall(b"\xff\xff")
        assert turns.settle() == []
        reset(peer)
        events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1002, lib.WSPY_ERROR_OPCODE)
        assert turns.stats()["connections"] == 0


def test_a_close_that_can_neither_be_written_nor_waited_for(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(b"\xff\xff")
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.EAGAIN), faults(lib.WSPY_SYS_EPOLL_CTL, 1, 2, errno.ENOMEM):
            events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1002, lib.WSPY_ERROR_OPCODE)
        assert turns.stats()["connections"] == 0


def test_more_pongs_than_are_kept_room_for_leave_in_order() -> None:
    ours, peer = tcp_pair()
    pings = [b"%0125d" % i for i in range(1500)]
    with Turns() as turns, peer:
        turns.opened((ours, peer))
        peer.settimeout(5)
        peer.sendall(b"".join(frame(PING_FRAME, ping) for ping in pings))
        data = b""
        while len(data) < len(pings) * 127:
            turns.turn(100)
            data += received(peer)
        assert server_frames(data) == [(PONG_FRAME, ping) for ping in pings]


def test_h4_pings_of_a_peer_that_does_not_read_leave_one_pong(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        message = fill(turns, handle)
        waiting = turns.backlog(handle)
        for i in range(2000):
            peer.sendall(frame(PING_FRAME, b"%d" % i))
            if i % 10 == 9:
                turns.settle()
        turns.settle()
        assert turns.backlog(handle) <= waiting + 127
        data = b""
        while len(data) < len(message) + 6:
            data += received(peer)
            turns.turn()
        assert data == message + frame(PONG_FRAME, b"1999", key=None)


@pytest.mark.parametrize("first", [1, 3])
def test_no_pong_overtakes_those_that_the_kernel_refused(pair: Pair, first: int) -> None:
    """RFC 6455 §5.5.3 lets an answer to a later Ping stand for earlier ones: so they have to come in order."""
    pings = [b"%d" % number for number in range(first + 1)]
    with Turns() as turns, pair[1] as peer:
        turns.opened(pair)
        with faults(lib.WSPY_SYS_SEND, 1, 3, errno.EAGAIN):
            peer.sendall(b"".join(frame(PING_FRAME, ping) for ping in pings[:first]))
            turns.turn()
            peer.sendall(frame(PING_FRAME, pings[first]))
            turns.turn()
        turns.settle()
        assert server_frames(received(peer)) == [(PONG_FRAME, ping) for ping in pings]


def test_pongs_answer_every_ping_of_a_peer_that_reads(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        turns.opened(pair)
        peer.sendall(b"".join(frame(PING_FRAME, b"%d" % i) for i in range(500)))
        turns.settle()
        assert server_frames(received(peer)) == [(PONG_FRAME, b"%d" % i) for i in range(500)]


@pytest.mark.parametrize("error", REFUSED)
def test_h12_a_kernel_without_room_is_asked_again(pair: Pair, error: int) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        with faults(lib.WSPY_SYS_SEND, 1, 3, error):
            turns.push(SEND_MARK, handle, frame(1, b"hello", key=None))
            assert kinds(turns.until(SENT)) == [SENT]
        assert server_frames(received(peer)) == [(1, b"hello")]


@pytest.mark.parametrize("error", REFUSED)
def test_h12_a_kernel_without_memory_to_read_is_asked_again(pair: Pair, error: int) -> None:
    with Turns() as turns, pair[1] as peer:
        turns.opened(pair)
        peer.sendall(frame(1, b"hello"))
        with faults(lib.WSPY_SYS_RECV, 1, 3, error):
            assert kinds(turns.until(TEXT)) == [TEXT]


# ---- deadlines ----


def test_a2_a_connection_without_a_request_line_ends_silently(pair: Pair) -> None:
    with Turns(open_timeout_ms=50) as turns, pair[1] as peer:
        turns.adopt(pair[0])
        peer.sendall(b"GET / HTTP/1.1\r")
        assert to_the_end(peer, turns) == b""
        assert turns.stats()["timeouts"] == 1


def test_a4_a_head_that_is_never_complete_gets_an_answer(pair: Pair) -> None:
    with Turns(open_timeout_ms=50) as turns, pair[1] as peer:
        handle = turns.adopt(pair[0])
        peer.sendall(REQUEST[:-2])
        events = turns.until(BAD_HEAD, handle)
        assert kinds(events) == [BAD_HEAD]
        assert -events[0].start == lib.WSPY_ERROR_HEAD_TIMEOUT
        turns.push(RESPOND, handle, CLOSE_AFTER + b"408")
        assert to_the_end(peer, turns) == b"408"


@pytest.mark.slow
def test_a4_an_answer_that_never_comes_is_not_waited_for(pair: Pair) -> None:
    with Turns(open_timeout_ms=50) as turns, pair[1] as peer:
        handle = turns.adopt(pair[0])
        peer.sendall(REQUEST[:-2])
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [BAD_HEAD, CLOSED]
        assert events[-1].error == lib.WSPY_ERROR_OPEN_TIMEOUT


@pytest.mark.parametrize("behind", [b"", REQUEST[:9], frame(1, b"early")], ids=["nothing", "a request", "a frame"])
def test_the_decision_is_part_of_the_opening_deadline(pair: Pair, behind: bytes) -> None:
    with Turns(open_timeout_ms=50) as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        peer.sendall(behind)
        events = turns.until(BAD_HEAD, handle)
        assert [(event.kind, -event.start) for event in events] == [(BAD_HEAD, lib.WSPY_ERROR_OPEN_TIMEOUT)]
        assert turns.stats()["timeouts"] == 1
        turns.push(RESPOND, handle, KEEP_ALIVE + b"503")  # whatever is said: no request follows this one
        turns.push(ACCEPT, handle, accept())
        turns.push(RESPOND, handle, CLOSE_AFTER + ANSWER)
        assert to_the_end(peer, turns) == b"503"
        peer.close()
        assert turns.until_empty() == []


@pytest.mark.slow
def test_a_decision_that_never_comes_is_asked_for_once(pair: Pair) -> None:
    with Turns(open_timeout_ms=50) as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [BAD_HEAD, CLOSED]
        assert (events[-1].start, events[-1].error) == (1006, lib.WSPY_ERROR_OPEN_TIMEOUT)
        assert received(peer) == b""
        assert turns.stats()["connections"] == 0


def test_a_refusal_that_does_not_come_in_time_is_not_asked_for_again(pair: Pair) -> None:
    with Turns(open_timeout_ms=50) as turns, pair[1] as peer:
        handle = turns.adopt(pair[0])
        peer.sendall(b"\0")
        events = turns.until(CLOSED, handle)
        assert [(event.kind, event.error) for event in events[1:]] == [(CLOSED, lib.WSPY_ERROR_OPEN_TIMEOUT)]
        assert -events[0].start == lib.WSPY_ERROR_HEAD_SYNTAX


def test_the_answer_to_half_a_connection_whose_time_is_up(pair: Pair) -> None:
    """RFC 9112 §9.6: it may still be read."""
    with Turns(open_timeout_ms=50) as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        peer.shutdown(socket.SHUT_WR)
        turns.until(BAD_HEAD, handle)
        turns.push(RESPOND, handle, CLOSE_AFTER + b"503")
        assert to_the_end(peer, turns) == b"503"
        assert turns.until_empty() == []


def test_a_response_that_is_not_taken_is_part_of_the_opening_deadline(pair: Pair) -> None:
    with Turns(open_timeout_ms=50) as turns, pair[1]:
        handle = turns.awaiting(pair)
        turns.push(ACCEPT, handle, accept(RESPONSE + bytes(1 << 20)))
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [CLOSED]
        assert events[0].error == lib.WSPY_ERROR_OPEN_TIMEOUT


def test_b30_an_idle_connection_between_requests_ends_silently(pair: Pair) -> None:
    with Turns(open_timeout_ms=10_000, idle_request_ms=50) as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        turns.push(RESPOND, handle, KEEP_ALIVE + ANSWER)
        assert to_the_end(peer, turns) == ANSWER
        assert turns.stats()["timeouts"] == 1
        assert turns.stats()["silent_handshakes"] == 0, "that is open_timeout"


@pytest.mark.slow
def test_b30_an_answer_that_is_taken_slowly_is_not_idle(pair: Pair) -> None:
    answer = bytes(range(256)) * 8192
    with Turns(idle_request_ms=100) as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        turns.push(RESPOND, handle, KEEP_ALIVE + answer)
        turns.turn()
        data = b""
        peer.settimeout(0)
        began = time.monotonic()
        while turns.backlog(handle):
            turns.turn(20)
            try:
                data += peer.recv(65536)
            except BlockingIOError:
                continue
        assert time.monotonic() - began > 0.15
        data += to_the_end(peer, turns)
        assert data == answer
        assert turns.stats()["timeouts"] == 1


def test_the_next_request_has_a_deadline_of_its_own(pair: Pair) -> None:
    with Turns(open_timeout_ms=50) as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        turns.push(RESPOND, handle, KEEP_ALIVE + ANSWER)
        turns.turn(150)
        peer.sendall(REQUEST[:-2])
        events = turns.until(BAD_HEAD, handle)
        assert -events[0].start == lib.WSPY_ERROR_HEAD_TIMEOUT


def test_e11_a_close_that_is_never_answered(pair: Pair) -> None:
    with Turns(close_timeout_ms=50) as turns, pair[1]:
        handle = turns.opened(pair)
        turns.push(CLOSE, handle, NORMAL)
        events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1006, lib.WSPY_ERROR_CLOSE_TIMEOUT)


def test_e11_a_close_in_the_same_batch_as_the_response_that_waits(pair: Pair) -> None:
    with Turns(close_timeout_ms=50) as turns, pair[1]:
        handle = turns.awaiting(pair)
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.EAGAIN):
            turns.push(ACCEPT, handle, accept())
            turns.push(CLOSE, handle, NORMAL)
            turns.submit()
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [OPENED, CLOSED]
        assert events[-1].error == lib.WSPY_ERROR_CLOSE_TIMEOUT


def test_keepalive_pings_and_is_satisfied_by_a_pong(pair: Pair) -> None:
    with Turns(ping_interval_ms=50, ping_timeout_ms=5000, wants=lib.WSPY_WANT_PINGED | lib.WSPY_WANT_PONG) as turns:
        handle = turns.opened(pair)
        for _ in range(3):
            events = turns.until(PINGED, handle)
            payload = struct.pack(">I", events[-1].start)
            assert server_frames(received(pair[1])) == [(PING_FRAME, payload)]
            pair[1].sendall(frame(PONG_FRAME, payload))
            assert turns.until(PONG, handle)[-1].payload == payload


def test_h9_a_silent_peer_is_given_up(pair: Pair) -> None:
    with Turns(ping_interval_ms=50, ping_timeout_ms=50) as turns, pair[1]:
        handle = turns.opened(pair)
        events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1006, lib.WSPY_ERROR_PING_TIMEOUT)
        assert turns.stats()["timeouts"] == 1


def test_a_ping_that_waits_for_its_pong_is_not_followed_by_another(pair: Pair) -> None:
    with Turns(ping_interval_ms=20, ping_timeout_ms=120, wants=lib.WSPY_WANT_PINGED) as turns, pair[1]:
        handle = turns.opened(pair)
        began = time.monotonic()
        assert kinds(turns.until(CLOSED, handle)) == [PINGED, CLOSED]
        assert time.monotonic() - began > 0.12


@pytest.mark.parametrize("size", [1, 2, 5, 13])
def test_d19_a_peer_that_falls_silent_in_a_header_is_given_up(pair: Pair, size: int) -> None:
    with Turns(ping_interval_ms=50, ping_timeout_ms=50) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(2, bytes(70_000))[:size])
        events = turns.until(CLOSED, handle)
        assert events[-1].error == lib.WSPY_ERROR_PING_TIMEOUT


PINGS = {"ping_interval_ms": 50, "ping_timeout_ms": 50}


@pytest.mark.parametrize("pings", [{}, PINGS], ids=["without pings", "with pings"])
def test_h10_a_peer_that_accepts_no_byte_is_given_up(pair: Pair, pings: dict[str, int]) -> None:
    with Turns(write_timeout_ms=150, **pings) as turns, pair[1]:
        handle = turns.opened(pair)
        began = time.monotonic()
        fill(turns, handle)
        events = turns.until(CLOSED, handle)
        assert events[-1].error == lib.WSPY_ERROR_WRITE_TIMEOUT
        assert time.monotonic() - began >= 0.15
        assert turns.backlog(handle) > 0, "what was lost"


def test_h10_what_a_peer_sends_is_no_excuse_for_accepting_nothing(pair: Pair) -> None:
    with Turns(write_timeout_ms=150, **PINGS) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        fill(turns, handle)
        peer.settimeout(0)
        end = time.monotonic() + 10
        events: list[Event] = []
        while not events:
            assert time.monotonic() < end
            with contextlib.suppress(OSError):
                peer.send(frame(PONG_FRAME, b"alive"))
            events = turns.turn(10)
        assert events[-1].error == lib.WSPY_ERROR_WRITE_TIMEOUT


def test_each_byte_that_is_accepted_begins_the_write_timeout_anew(pair: Pair) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with Turns(write_timeout_ms=150) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        message = frame(2, bytes(200_000), key=None)
        turns.push(SEND, handle, message)
        data = b""
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            assert CLOSED not in kinds(turns.turn(30))
            data += peer.recv(5000)
        while len(data) < len(message):
            data += received(peer)
            turns.turn()
        assert server_frames(data) == [(2, bytes(200_000))]
        assert turns.backlog(handle) == 0
        for _ in range(5):
            assert turns.turn(50) == [], "and where nothing waits there is no deadline"


def test_a_connection_without_a_message_is_idle(pair: Pair) -> None:
    """Again and again, as long as nobody does anything about it; pings and pongs don't count."""
    with Turns(idle_timeout_ms=100, **PINGS) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        for _ in range(3):
            began = time.monotonic()
            found: list[int] = []
            while IDLE not in found:
                assert time.monotonic() - began < 10
                with contextlib.suppress(OSError):
                    peer.send(frame(PONG_FRAME, b"alive"))
                found += kinds(turns.turn(10))
            assert time.monotonic() - began >= 0.08
            assert CLOSED not in found
        assert turns.backlog(handle) == 0


@pytest.mark.parametrize("who", ["we", "the peer"])
def test_pings_are_no_sign_of_life_whoever_sends_them(pair: Pair, who: str) -> None:
    """Nor are the pongs: else who is pinged more often than ``idle_timeout`` would never be idle."""
    pings = {"ping_interval_ms": 30, "ping_timeout_ms": 5000} if who == "we" else {}
    with Turns(idle_timeout_ms=150, **pings) as turns, pair[1] as peer:
        turns.opened(pair)
        found: list[int] = []
        end = time.monotonic() + 10
        while IDLE not in found:
            assert time.monotonic() < end
            if received(peer) or who == "the peer":
                peer.sendall(frame(PONG_FRAME if who == "we" else PING_FRAME, b"?"))
            found += kinds(turns.turn(10))


@pytest.mark.parametrize("what", ["received", "in part", "sent", "broadcast"])
def test_a_message_either_way_is_a_sign_of_life(pair: Pair, what: str) -> None:
    with Turns(idle_timeout_ms=400, max_fragments=FOREVER) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        found: list[int] = []
        message = frame(1, b"x", key=None)
        if what == "in part":
            peer.sendall(frame(1, b"part of it", final=False))
        began = time.monotonic()
        while time.monotonic() - began < 0.9:
            if what == "received":
                peer.sendall(frame(1, b"x"))
            elif what == "in part":
                peer.sendall(frame(0, b"x", final=False))
            elif what == "sent":
                turns.push(SEND, handle, message)
            else:
                turns.push(BROADCAST, 0, struct.pack("=I", FOREVER) + message)
            found += kinds(turns.turn(20))
        assert IDLE not in found
        while IDLE not in found:
            assert time.monotonic() - began < 10
            found += kinds(turns.turn(20))


@pytest.mark.parametrize("by", ["pause", "credit"])
def test_a_peer_is_not_idle_while_nobody_reads_what_it_says(pair: Pair, by: str) -> None:
    with Turns(idle_timeout_ms=100) as turns, pair[1] as peer:
        handle = turns.opened(pair, credit=1 if by == "credit" else FOREVER)
        if by == "pause":
            turns.push(PAUSE, handle)
            turns.turn()
        peer.sendall(frame(1, b"x") * 2)
        found: list[int] = []
        began = time.monotonic()
        while time.monotonic() - began < 0.5:
            found += kinds(turns.turn(20))
        assert IDLE not in found
        turns.push(*((RESUME, handle) if by == "pause" else (GRANT, handle, struct.pack("=I", 5))))
        found += kinds(turns.until(IDLE, handle))
        assert found.count(TEXT) == 2


def test_pings_within_a_message_that_does_not_go_on_are_no_sign_of_life(pair: Pair) -> None:
    with Turns(idle_timeout_ms=150) as turns, pair[1] as peer:
        turns.opened(pair)
        peer.sendall(frame(1, b"part", final=False))
        ping = frame(PING_FRAME, b"alive")
        found: list[int] = []
        began = time.monotonic()
        while IDLE not in found:
            assert time.monotonic() - began < 3
            peer.sendall(ping[:3])
            found += kinds(turns.turn(10))
            peer.sendall(ping[3:])
            found += kinds(turns.turn(10))


def test_a_pause_is_no_sign_of_life(pair: Pair) -> None:
    with Turns(idle_timeout_ms=100) as turns, pair[1]:
        handle = turns.opened(pair)
        turns.push(PAUSE, handle)
        turns.until(IDLE, handle)


def test_h4_more_control_frames_in_a_second_than_allowed_end_the_connection(pair: Pair) -> None:
    with Turns(max_controls=100) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(PONG_FRAME, b"unasked") * 50 + frame(PING_FRAME) * 50)
        assert CLOSED not in kinds(turns.settle())
        peer.sendall(frame(PING_FRAME))
        events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1008, lib.WSPY_ERROR_CONTROL_RATE)
        assert server_frames(to_the_end(peer, turns))[-1] == (CLOSE_FRAME, b"\x03\xf0")


def test_as_many_control_frames_as_allowed_may_come_in_each_second(pair: Pair) -> None:
    with Turns(max_controls=100) as turns, pair[1] as peer:
        turns.opened(pair)
        for seconds in (1.05, 0):
            peer.sendall(frame(PING_FRAME) * 100)
            assert CLOSED not in kinds(turns.settle())
            assert len(exactly(peer, 200)) == 200
            assert received(peer) == b""
            time.sleep(seconds)


def test_the_answer_to_a_ping_tells_the_latency(pair: Pair) -> None:
    with Turns(ping_interval_ms=500, ping_timeout_ms=5000, wants=lib.WSPY_WANT_PINGED) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        assert lib.wspy_loop_latency(turns.loop, handle) == -1
        (pinged,) = [event for event in turns.until(PINGED, handle) if event.kind == PINGED]
        peer.sendall(frame(PONG_FRAME, b"else") + frame(PONG_FRAME))
        turns.settle()
        assert lib.wspy_loop_latency(turns.loop, handle) == -1
        exactly(peer, 6)
        peer.settimeout(0.1)
        with pytest.raises(TimeoutError):
            peer.recv(1)
        peer.sendall(frame(PONG_FRAME, struct.pack(">I", pinged.start)))
        turns.settle()
        assert 100_000 <= lib.wspy_loop_latency(turns.loop, handle) < 5_000_000
        assert lib.wspy_loop_latency(turns.loop, handle + (1 << 24)) == -1


def test_a_paused_connection_notices_a_reset() -> None:
    ours, peer = tcp_pair()
    with Turns(ping_interval_ms=50, ping_timeout_ms=50) as turns:
        handle = turns.opened((ours, peer))
        turns.push(PAUSE, handle)
        turns.turn()
        reset(peer)
        events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1006, lib.WSPY_ERROR_RESET)


def test_a_paused_connection_keeps_what_came_before_a_reset() -> None:
    ours, peer = tcp_pair()
    with Turns(ping_interval_ms=50, ping_timeout_ms=50) as turns:
        handle = turns.opened((ours, peer))
        turns.push(PAUSE, handle)
        turns.turn()
        peer.sendall(frame(1, b"last words"))
        reset(peer)
        for _ in range(20):
            assert turns.turn(20) == []
        turns.push(RESUME, handle)
        events = turns.until(CLOSED, handle)
        assert [event.payload for event in events] == [b"last words", b""]


def test_close_lifts_a_pause(pair: Pair) -> None:
    with Turns(close_timeout_ms=10_000) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        turns.push(PAUSE, handle)
        turns.turn()
        peer.sendall(frame(1, b"waits") + frame(CLOSE_FRAME, NORMAL))
        assert turns.settle() == []
        turns.push(CLOSE, handle, NORMAL)
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [TEXT, CLOSE_RECEIVED, CLOSED]
        assert events[-1].error == lib.WSPY_OK


# ---- the peer has gone, and what it sent before has not been read ----


@pytest.mark.parametrize("error", [errno.EPIPE, errno.ECONNRESET, errno.EHOSTUNREACH])
@pytest.mark.parametrize("is_waiting", [False, True], ids=["the first byte", "what waited"])
def test_i5_a_write_that_fails_discards_nothing_that_was_received(is_waiting: bool, error: int) -> None:
    ours, peer = tcp_pair()
    with Turns() as turns, peer:
        handle = turns.opened((ours, peer))
        if is_waiting:
            fill(turns, handle, 16 << 20)
        peer.sendall(frame(1, b"one") + frame(1, b"two") + frame(CLOSE_FRAME, NORMAL))
        with faults(lib.WSPY_SYS_SEND, 1, 1, error):
            if is_waiting:
                assert received(peer), "the kernel takes more, at the same time as there is something to read"
            else:
                turns.push(SEND, handle, text(b"too late"))
            events = turns.until(CLOSED, handle)
        assert [event.payload for event in events[:3]] == [b"one", b"two", NORMAL]
        assert kinds(events) == [TEXT, TEXT, CLOSE_RECEIVED, CLOSED]
        assert events[-1].error == lib.WSPY_ERROR_RESET
        assert events[-1].system_error == error


def test_i5_the_peer_closes_while_we_send() -> None:
    ours, peer = tcp_pair()
    with Turns() as turns:
        handle = turns.opened((ours, peer))
        peer.sendall(frame(1, b"one") + frame(1, b"two") + frame(CLOSE_FRAME, NORMAL))
        peer.close()
        for _ in range(3):
            turns.push(SEND, handle, text(b"hello"))
            turns.submit()
        assert kinds(turns.until(CLOSED, handle)) == [TEXT, TEXT, CLOSE_RECEIVED, CLOSED]


def test_a_write_that_fails_ends_a_connection_without_input(pair: Pair) -> None:
    with Turns() as turns, pair[1]:
        handle = turns.opened(pair)
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.ETIMEDOUT):
            turns.push(SEND, handle, text(b"hello"))
            events = turns.until(CLOSED, handle)
        assert (events[-1].error, events[-1].system_error) == (lib.WSPY_ERROR_RESET, errno.ETIMEDOUT)


def test_a_write_that_fails_ends_a_paused_connection(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        turns.push(PAUSE, handle)
        turns.turn()
        peer.sendall(frame(1, b"not asked for"))
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.EPIPE):
            turns.push(SEND, handle, text(b"hello"))
            assert kinds(turns.until(CLOSED, handle)) == [CLOSED]


def test_a_write_that_fails_ends_a_connection_that_is_paused_next(pair: Pair) -> None:
    with Turns() as turns, pair[1]:
        handle = turns.opened(pair)
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.EPIPE):
            turns.push(SEND, handle, text(b"hello"))
            turns.push(PAUSE, handle)
            assert kinds(turns.until(CLOSED, handle)) == [CLOSED]


def test_e13_replies_reach_a_peer_that_closed_its_half() -> None:
    ours, peer = tcp_pair()
    with Turns(close_timeout_ms=10_000) as turns, peer:
        handle = turns.opened((ours, peer))
        peer.sendall(frame(1, b"all of it"))
        peer.shutdown(socket.SHUT_WR)
        turns.until(TEXT)
        message = frame(2, os.urandom(8 << 20), key=None)
        turns.push(SEND, handle, message)
        assert to_the_end(peer, turns) == message
        turns.until_empty()


def test_e13_a_peer_that_closed_its_half_and_reads_nothing_is_given_up() -> None:
    ours, peer = tcp_pair()
    with Turns(close_timeout_ms=50) as turns, peer:
        handle = turns.opened((ours, peer))
        fill(turns, handle, 16 << 20)
        peer.shutdown(socket.SHUT_WR)
        events = turns.until(CLOSED, handle)
        assert events[-1].error == lib.WSPY_ERROR_EOF
        assert turns.backlog(handle) > 0, "what was lost"


@plain_only("with TLS our Close is no system call of its own")
def test_e12_a_close_that_was_lost_is_no_half_of_a_closing_handshake(pair: Pair) -> None:
    """The peer's arrived: but ours never left, and with it what was sent before it."""
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(CLOSE_FRAME, NORMAL))
        turns.push(CLOSE, handle, NORMAL)
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.ECONNRESET):
            events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1006, lib.WSPY_ERROR_RESET)


def test_abort_does_not_hide_what_the_peer_did(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        fill(turns, handle)
        peer.sendall(b"\xff\xff")
        assert turns.turn() == []
        turns.push(ABORT, handle)
        events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1002, lib.WSPY_ERROR_OPCODE)


# ---- what one connection may cost ----


@measures_memory
def test_d19_a_remainder_does_not_pin_what_it_was_read_with() -> None:
    pairs = [socket.socketpair() for _ in range(100)]
    with Turns() as turns:
        for pair in pairs:
            turns.opened(pair)
        data = frame(2) * 15_000 + frame(PONG_FRAME, b"?")[:1]
        turns.settle()
        before = resident()
        for _, peer in pairs:
            peer.sendall(data)
            turns.settle()
        assert resident() - before < 4 << 20
        for _, peer in pairs:
            peer.close()


@measures_memory
def test_h6_small_broadcasts_cost_what_is_counted(pair: Pair) -> None:
    with Turns() as turns, pair[1]:
        handle = turns.opened(pair)
        fill(turns, handle)
        before, counted = resident(), turns.backlog(handle)
        for _ in range(100):
            for _ in range(1000):
                turns.push(BROADCAST, 0, struct.pack("=I", FOREVER) + text(b"tick"))
            turns.submit()
        counted = turns.backlog(handle) - counted
        assert counted == 600_000
        assert resident() - before < 4 * counted


@plain_only("a turn of Sealed may be several")
def test_a_turn_writes_only_so_much_to_one_connection() -> None:
    ours, peer = tcp_pair()
    with Turns() as turns, peer:
        handle = turns.opened((ours, peer))
        fill(turns, handle, 32 << 20)
        reader = threading.Thread(target=drain, args=(peer, 32 << 20))
        reader.start()
        end = time.monotonic() + 10
        while turns.backlog(handle):
            assert time.monotonic() < end
            before = turns.backlog(handle)
            turns.turn(100)
            assert before - turns.backlog(handle) <= 256 << 10
        reader.join()


@pytest.mark.slow
def test_a_peer_that_reads_slowly_lives(pair: Pair) -> None:
    with Turns(ping_interval_ms=60, ping_timeout_ms=60) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        message = fill(turns, handle, 2 << 20)
        data = b""
        peer.settimeout(0)
        began = time.monotonic()
        while turns.backlog(handle):
            assert turns.turn(20) == []
            try:
                data += peer.recv(65536)
            except BlockingIOError:
                continue
        assert time.monotonic() - began > 0.15, "slower than the deadlines"
        data += received(peer)
        assert data == message


@pytest.mark.slow
def test_a_peer_that_we_do_not_read_is_not_given_up(pair: Pair) -> None:
    with Turns(ping_interval_ms=40, ping_timeout_ms=40) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        turns.push(PAUSE, handle)
        peer.sendall(frame(1, b"hello"))
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            assert turns.turn(50) == []
        turns.push(RESUME, handle)
        assert kinds(turns.until(TEXT)) == [TEXT]


@pytest.mark.slow
def test_a_loop_that_reads_late_gives_nobody_up(pair: Pair) -> None:
    """The handler that takes long: the deadline has passed, and the pong is there, when the next turn begins."""
    with Turns(ping_interval_ms=40, ping_timeout_ms=40, wants=lib.WSPY_WANT_PINGED) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        for _ in range(3):
            events = turns.until(PINGED, handle)
            peer.sendall(frame(PONG_FRAME, struct.pack(">I", events[-1].start)))
            peer.settimeout(0.15)
            assert exactly(peer, 6)
            with pytest.raises(TimeoutError):
                peer.settimeout(0.15)
                peer.recv(1)
            assert CLOSED not in kinds(turns.turn())


@plain_only("a submit alone writes nothing through TLS")
def test_opened_is_reported_before_the_first_ping(pair: Pair) -> None:
    """The response was written from another thread, and the loop was busy for longer than the interval."""
    with Turns(ping_interval_ms=20, wants=lib.WSPY_WANT_PINGED) as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        turns.push(ACCEPT, handle, accept())
        turns.submit()
        exactly(peer, len(RESPONSE))
        peer.settimeout(0.1)
        with pytest.raises(TimeoutError):
            peer.recv(1)
        events: list[Event] = []
        while PINGED not in kinds(events):
            events += turns.turn(50)
        assert kinds(events) == [OPENED, PINGED]


# ---- without memory ----


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_h13_a_connection_without_memory_for_its_message_ends(nth: int) -> None:
    ours, peer = tcp_pair()
    with Turns() as turns, peer:
        handle = turns.opened((ours, peer))
        peer.settimeout(0)
        message = frame(2, bytes(1 << 20))
        with faults(lib.WSPY_SYS_ALLOCATE, nth, 1, errno.ENOMEM):
            for start in range(0, len(message), 50_000):
                peer.send(message[start : start + 50_000])
                if events := turns.turn():
                    break
            events += turns.until(CLOSED, handle) if not events else []
        assert kinds(events) == [CLOSED]
        assert (events[0].start, events[0].error) == (1011, lib.WSPY_ERROR_NO_MEMORY)


def test_h13_a_connection_without_memory_for_its_close_ends(pair: Pair) -> None:
    with Turns() as turns, pair[1]:
        handle = turns.opened(pair)
        fill(turns, handle)
        with faults(lib.WSPY_SYS_ALLOCATE, 1, 1, errno.ENOMEM):
            turns.push(CLOSE, handle, NORMAL)
            events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1011, lib.WSPY_ERROR_NO_MEMORY)


@plain_only("the first allocation is of another kind: see test_raw.py")
def test_h13_a_connection_without_memory_for_its_queue_ends(pair: Pair) -> None:
    for nth in (1, 2, 3):
        ours, peer = socket.socketpair()
        with Turns() as turns, peer:
            handle = turns.opened((ours, peer))
            with faults(lib.WSPY_SYS_ALLOCATE, nth, 1, errno.ENOMEM):
                turns.push(SEND, handle, frame(2, bytes(1 << 20), key=None))
                turns.push(SEND_MARK, handle, frame(2, bytes(1 << 20), key=None))
                events = turns.until(CLOSED, handle)
            assert events[-1].error == lib.WSPY_ERROR_NO_MEMORY
            assert turns.stats()["connections"] == 0


# ---- room to write again ----


def test_who_waits_to_send_is_told_when_there_is_room(pair: Pair) -> None:
    with Turns(wants=lib.WSPY_WANT_DRAINED, write_limit=50_000) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        message = fill(turns, handle)
        assert turns.settle() == []
        assert turns.backlog(handle) > 50_000
        events = []
        left = len(message)
        while not events:
            left -= len(received(peer))
            events = turns.turn(10)
        assert [(event.handle, event.kind, event.payload) for event in events] == [(handle, DRAINED, b"")]
        assert turns.backlog(handle) <= 50_000
        while left:
            left -= len(received(peer))
            assert turns.turn() == [], "once is enough"
        turns.push(SEND_MARK, handle, text(b"more"))
        assert kinds(turns.settle()) == [SENT]


@pytest.mark.parametrize("changes", [{}, {"wants": lib.WSPY_WANT_DRAINED, "write_limit": 1 << 30}])
def test_room_is_not_told_of_unless_somebody_could_wait(pair: Pair, changes: dict[str, int]) -> None:
    with Turns(**changes) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        left = len(fill(turns, handle))
        while left:
            left -= len(received(peer))
            assert turns.turn() == []
        assert turns.backlog(handle) == 0


def test_there_is_room_when_a_shorter_pong_takes_the_place_of_one_that_waits(pair: Pair) -> None:
    """RFC 6455 §5.5.2: only the newest Ping is answered, so that the backlog gets smaller although nothing was sent."""
    limit = 2 << 20
    with Turns(wants=lib.WSPY_WANT_DRAINED, write_limit=limit) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        fill(turns, handle)
        turns.push(SEND, handle, frame(2, bytes(limit - 100 - turns.backlog(handle)), key=None))
        turns.turn()
        peer.sendall(frame(PING_FRAME, bytes(125)))
        assert turns.settle() == []
        assert turns.backlog(handle) > limit
        peer.sendall(frame(PING_FRAME, b""))
        assert kinds(turns.until(DRAINED, handle)) == [DRAINED]
        assert limit - 100 < turns.backlog(handle) < limit


def test_of_an_answer_that_is_the_last_no_room_is_told(pair: Pair) -> None:
    with Turns(wants=lib.WSPY_WANT_DRAINED, write_limit=1000) as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        answer = bytes(range(256)) * 8192
        turns.push(RESPOND, handle, CLOSE_AFTER + answer)
        turns.turn()
        assert turns.backlog(handle) > 1000
        data = b""
        while len(data) < len(answer):
            data += received(peer)
            assert turns.turn() == []
        assert data == answer


def test_of_what_is_lost_no_room_comes(pair: Pair) -> None:
    with Turns(wants=lib.WSPY_WANT_DRAINED, write_limit=1000) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        fill(turns, handle)
        reset(peer)
        assert kinds(turns.until(CLOSED, handle)) == [CLOSED]


# ---- ends that wait for answers ----

ENDS: Final[dict[str, tuple[bytes, int, bytes]]] = {
    "a Close": (frame(CLOSE_FRAME, NORMAL), lib.WSPY_OK, frame(CLOSE_FRAME, NORMAL, key=None)),
    "a violation": (b"\xff\xff", lib.WSPY_ERROR_OPCODE, frame(CLOSE_FRAME, PROTOCOL_ERROR, key=None)),
    "the end of TCP": (b"", lib.WSPY_ERROR_EOF, b""),
}


@pytest.mark.parametrize("name", ENDS)
def test_e9_an_end_waits_for_what_came_before_to_be_answered(pair: Pair, name: str) -> None:
    last, error, said = ENDS[name]
    with Turns(wants=lib.WSPY_WANT_ENDING) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(1, b"question") + last)
        if not last:
            peer.shutdown(socket.SHUT_WR)
        events = turns.until(ENDING, handle)
        assert kinds(events) == [TEXT, *([CLOSE_RECEIVED] if name == "a Close" else []), ENDING]
        assert turns.settle() == []
        assert received(peer) == b""
        for answer in (b"answer", b"another"):
            turns.push(SEND, handle, text(answer))
            assert turns.settle() == []
        turns.push(FINISH, handle)
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [CLOSED]
        assert events[0].error == error
        assert to_the_end(peer, turns) == text(b"answer") + text(b"another") + said


def test_e9_an_end_that_waits_finishes_by_a_submit(pair: Pair) -> None:
    with Turns(wants=lib.WSPY_WANT_ENDING) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(CLOSE_FRAME, NORMAL))
        turns.until(ENDING, handle)
        turns.push(SEND, handle, text(b"answer"))
        turns.push(FINISH, handle)
        turns.submit()
        turns.until(CLOSED, handle)
        assert to_the_end(peer, turns) == text(b"answer") + frame(CLOSE_FRAME, NORMAL, key=None)


def test_an_end_that_waits_goes_on_writing_and_is_not_over_when_all_is_written(pair: Pair) -> None:
    with Turns(wants=lib.WSPY_WANT_ENDING) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        message = fill(turns, handle)
        peer.sendall(frame(CLOSE_FRAME, NORMAL))
        turns.until(ENDING, handle)
        data = b""
        while len(data) < len(message):
            assert turns.turn() == []
            data += received(peer)
        turns.push(SEND, handle, text(b"answer"))
        assert turns.settle() == []
        turns.push(FINISH, handle)
        assert to_the_end(peer, turns) == text(b"answer") + frame(CLOSE_FRAME, NORMAL, key=None)


def test_e11_an_end_waits_no_longer_than_close_timeout(pair: Pair) -> None:
    with Turns(wants=lib.WSPY_WANT_ENDING, close_timeout_ms=50) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(CLOSE_FRAME, NORMAL))
        turns.until(ENDING, handle)
        began = time.monotonic()
        events = turns.until(CLOSED, handle)
        assert time.monotonic() - began >= 0.03
        assert events[0].error == lib.WSPY_OK
        assert turns.stats()["timeouts"] == 0
        turns.push(FINISH, handle)
        assert to_the_end(peer, turns) == frame(CLOSE_FRAME, NORMAL, key=None)


def test_an_end_does_not_wait_once_nothing_can_be_sent(pair: Pair) -> None:
    """RFC 6455 §5.5.1: after our own Close there is no answer."""
    with Turns(wants=lib.WSPY_WANT_ENDING) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        turns.push(CLOSE, handle, NORMAL)
        turns.turn()
        peer.sendall(frame(1, b"last") + frame(CLOSE_FRAME, NORMAL))
        assert kinds(turns.until(CLOSED, handle)) == [TEXT, CLOSE_RECEIVED, CLOSED]


def test_an_end_that_waits_can_be_aborted(pair: Pair) -> None:
    with Turns(wants=lib.WSPY_WANT_ENDING) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(CLOSE_FRAME, NORMAL))
        turns.until(ENDING, handle)
        turns.push(ABORT, handle)
        assert turns.until(CLOSED, handle)[-1].error == lib.WSPY_ERROR_ABORTED
        assert turns.stats()["connections"] == 0
        turns.push(FINISH, handle)
        assert turns.settle() == []


def test_an_end_that_waits_loses_its_peer(pair: Pair) -> None:
    """Who waits for room to answer would wait for ever, if the end waited for the answer."""
    with Turns(wants=lib.WSPY_WANT_ENDING) as turns:
        handle = turns.opened(pair)
        pair[1].sendall(frame(CLOSE_FRAME, NORMAL))
        turns.until(ENDING, handle)
        reset(pair[1])
        assert turns.settle() == []
        turns.push(SEND, handle, text(b"to nobody"))
        assert turns.until(CLOSED, handle)[-1].error == lib.WSPY_ERROR_RESET
        assert turns.stats()["connections"] == 0
        turns.push(FINISH, handle)
        assert turns.settle() == []


def test_an_end_that_waits_loses_its_peer_and_what_was_queued(pair: Pair) -> None:
    with Turns(wants=lib.WSPY_WANT_ENDING) as turns:
        handle = turns.opened(pair)
        fill(turns, handle)
        pair[1].sendall(frame(CLOSE_FRAME, NORMAL))
        turns.until(ENDING, handle)
        reset(pair[1])
        assert turns.until(CLOSED, handle)[-1].error == lib.WSPY_ERROR_RESET


def test_an_end_that_waits_is_over_with_too_large_a_backlog(pair: Pair) -> None:
    with Turns(wants=lib.WSPY_WANT_ENDING, max_backlog=1000) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        fill(turns, handle)
        peer.sendall(frame(CLOSE_FRAME, NORMAL))
        turns.until(ENDING, handle)
        turns.push(SEND, handle, text(b"answer"))
        assert turns.until(CLOSED, handle)[-1].error == lib.WSPY_ERROR_BACKLOG


@pytest.mark.parametrize("nth", [pytest.param(1, id="begins"), pytest.param(2, id="stops")])
def test_h13_an_end_that_waits_can_not_tell_the_kernel_what_it_waits_for(pair: Pair, nth: int) -> None:
    """Without its interest in writing the answer would lie there until close_timeout; with it room is told for ever."""
    with Turns(wants=lib.WSPY_WANT_ENDING) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(CLOSE_FRAME, NORMAL))
        turns.until(ENDING, handle)
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.EAGAIN), faults(lib.WSPY_SYS_EPOLL_CTL, nth, 1, errno.ENOMEM):
            turns.push(SEND, handle, text(b"answer"))
            assert turns.until(CLOSED, handle)[-1].error == lib.WSPY_ERROR_RESET


def test_a_finish_of_what_is_not_ending_is_nothing(pair: Pair) -> None:
    with Turns(wants=lib.WSPY_WANT_ENDING) as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        turns.push(FINISH, handle)
        turns.push(ACCEPT, handle, accept())
        turns.until(OPENED, handle)
        turns.push(FINISH, handle)
        peer.sendall(frame(1, b"x"))
        assert kinds(turns.settle()) == [TEXT]


# ---- extensions ----

INVALID = b"\x03\xef"  # 1007
FAIL_1007 = struct.pack("=H", 1007)


def test_what_an_extension_has_to_see_says_so(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair, rsv=0x40, opcodes=1 << 3 | 1 << 11)
        peer.sendall(b"\xc1" + frame(1, b"\xff")[1:] + frame(1, b"text") + frame(3, b"own") + frame(11, b"control"))
        events = turns.until(11)
        claimed = lib.WSPY_EVENT_CLAIMED
        assert kinds(events) == [TEXT | 0x4000, TEXT, 3 | claimed, 11 | claimed]
        assert [event.payload for event in events] == [b"\xff", b"text", b"own", b"control"]
        assert handle


def test_texts_that_are_claimed_are_not_checked(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        turns.opened(pair, opcodes=0x07)
        peer.sendall(frame(1, b"a\xff", final=False) + frame(0, b"\xfe") + frame(2, b""))
        events = turns.until(BINARY)
        assert kinds(events) == [TEXT | lib.WSPY_EVENT_CLAIMED, BINARY | lib.WSPY_EVENT_CLAIMED]
        assert events[0].payload == b"a\xff\xfe"


def test_a_claimed_control_frame_costs_credit(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair, opcodes=1 << 11, credit=3)
        peer.sendall(frame(11, b"x") * 10)
        assert len(turns.settle()) == 3
        turns.push(GRANT, handle, (7).to_bytes(4, "little"))
        assert len(turns.settle()) == 7


@pytest.mark.parametrize("wants", [0, lib.WSPY_WANT_ENDING])
def test_a_rule_of_an_extension_ends_a_connection_like_any_other(pair: Pair, wants: int) -> None:
    with Turns(wants=wants) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(1, b"one") + frame(1, b"unfinished", final=False))
        turns.until(TEXT)
        turns.push(SEND, handle, text(b"1"))
        turns.push(FAIL, handle, FAIL_1007)
        turns.push(FAIL, handle, struct.pack("=H", 1002))  # the first counts
        turns.push(SEND, handle, text(b"2"))
        peer.sendall(frame(1, b"never"))
        if wants:
            assert kinds(turns.until(ENDING, handle)) == [ENDING]
            turns.push(FINISH, handle)
        events = turns.until(CLOSED, handle)
        assert kinds(events) == [CLOSED]
        assert (events[0].start, events[0].error) == (1007, lib.WSPY_ERROR_EXTENSION)
        # §5.5.1: what was queued before the end was carried out comes before the Close
        assert server_frames(to_the_end(peer, turns)) == [(1, b"1"), (1, b"2"), (CLOSE_FRAME, INVALID)]
        assert turns.stats()["protocol_errors"] == 1


@pytest.mark.parametrize("wants", [0, lib.WSPY_WANT_ENDING])
@pytest.mark.parametrize("end", ["Close", "violation", "FIN"])
def test_a_fault_in_what_came_before_the_end_is_what_counts(pair: Pair, wants: int, end: str) -> None:
    with Turns(wants=wants) as turns, pair[1] as peer:
        handle = turns.opened(pair)
        behind = {"Close": frame(8, NORMAL), "violation": b"\xf1\x80", "FIN": b""}[end]
        peer.sendall(frame(1, b"one") + behind)
        if end == "FIN":
            peer.shutdown(socket.SHUT_WR)
        turns.until(ENDING if wants else TEXT)
        turns.push(FAIL, handle, FAIL_1007)
        turns.push(FINISH, handle)
        events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1007, lib.WSPY_ERROR_EXTENSION)
        assert server_frames(to_the_end(peer, turns)) == [(CLOSE_FRAME, INVALID)]


def test_a_fault_after_our_close_ends_the_wait_for_the_peers(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        turns.push(CLOSE, handle, NORMAL)
        turns.turn()
        turns.push(FAIL, handle, FAIL_1007)
        events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1007, lib.WSPY_ERROR_EXTENSION)
        assert server_frames(to_the_end(peer, turns)) == [(CLOSE_FRAME, NORMAL)]


@pytest.mark.parametrize("payload", [b"", b"\1", struct.pack("=H", 1006), struct.pack("=H", 999), FAIL_1007 + b"x"])
def test_a_failure_without_a_code_that_can_be_sent_is_none(pair: Pair, payload: bytes) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        turns.push(FAIL, handle, payload)
        peer.sendall(frame(1, b"still open"))
        assert kinds(turns.until(TEXT)) == [TEXT]


def test_nothing_fails_before_it_is_open_or_after_its_end(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        turns.push(FAIL, handle, FAIL_1007)
        turns.turn()
        turns.push(ACCEPT, handle, accept())
        turns.until(OPENED, handle)
        turns.push(ABORT, handle)
        turns.push(FAIL, handle, FAIL_1007)
        events = turns.until(CLOSED, handle)
        assert (events[-1].start, events[-1].error) == (1006, lib.WSPY_ERROR_ABORTED)
        turns.push(FAIL, handle, FAIL_1007)
        turns.turn()
        assert peer


@plain_only("with TLS other allocations come first")
def test_h13_what_was_queued_before_memory_ran_out_counts_as_lost(pair: Pair) -> None:
    """The queue and its bytes had memory; the list of where messages end had none."""
    with Turns() as turns, pair[1]:
        handle = turns.opened(pair)
        turns.push(SEND, handle, frame(2, bytes(4 << 20), key=None))
        with faults(lib.WSPY_SYS_ALLOCATE, 3, 1, errno.ENOMEM):
            events = turns.until(CLOSED, handle)
        assert events[-1].error == lib.WSPY_ERROR_NO_MEMORY
        assert turns.backlog(handle) > 0


@plain_only("with TLS a queue has its Pong encrypted with the rest")
def test_h13_a_pong_that_finds_no_memory_does_not_keep_the_loop_busy(pair: Pair) -> None:
    """The kernel has room again, and nothing else waits: no event would say when there is memory."""
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        fill(turns, handle)
        peer.sendall(frame(PING_FRAME, b"?"))
        turns.settle()
        found: list[Event] = []
        with faults(lib.WSPY_SYS_ALLOCATE, 1, 1 << 30, errno.ENOMEM):
            for _ in range(1000):
                received(peer)
                found += turns.turn()
                if found:
                    break
        assert [(event.kind, event.error) for event in found] == [(CLOSED, lib.WSPY_ERROR_RESET)]
