"""Does a connection get through what takes the place of TLS: in order, within its bounds, and to its end?

What a connection does above it is tested by test_connection.py, each test of which is made with it, too.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from typing import Final

import pytest
from turns import (
    ABORT,
    ACCEPT,
    CLOSE,
    CLOSED,
    DRAINED,
    FEED,
    FEED_END,
    GONE,
    GRANT,
    HEAD,
    OPENED,
    OUT,
    OUT_LAST,
    PAUSE,
    RAW,
    RAW_SEND,
    REFUSE,
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
    tcp_pair,
    text,
    to_the_end,
)

from wspy._core import ffi, lib

ANSWERS: Final = lib.WSPY_RAW_OUT
LAST: Final = lib.WSPY_RAW_LAST
WINDOW: Final = 256 << 10
CLEAN: Final = b"\0"
FAILED: Final = b"\1"
CLOSE_NOTIFY: Final = b"<close_notify>"
NORMAL: Final = b"\x03\xe8"
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def sealed(plaintext: bytes) -> bytes:
    """Return ciphertext, which can't be taken for plaintext; the same back."""
    return bytes(plaintext.translate(bytes(byte ^ 0xFF for byte in range(256))))


def only(events: list[Event], kind: int) -> Event:
    """Return the one event there is."""
    assert kinds(events) == [kind]
    return events[0]


def fed(turns: Turns, handle: int, peer: socket.socket, plaintext: bytes) -> None:
    """Bring plaintext from the peer to a connection, by way of its ciphertext."""
    peer.sendall(sealed(plaintext))
    event = only(turns.until(RAW, handle), RAW)
    assert event.payload == sealed(plaintext)
    turns.push(FEED, handle, plaintext)


def passed_on(turns: Turns, event: Event, end: bytes = b"") -> bytes:
    """Answer OUT or OUT_LAST; return the plaintext."""
    bits = ANSWERS | (LAST if event.kind == OUT_LAST else 0)
    turns.push(RAW_SEND, event.handle, bytes([bits]) + sealed(event.payload) + end)
    return event.payload


def opened(turns: Turns, pair: Pair, **options: int) -> int:
    """Return the handle of a connection that is open, with nothing under way."""
    handle = turns.adopt(pair[0])
    fed(turns, handle, pair[1], REQUEST)
    turns.until(HEAD, handle)
    turns.push(ACCEPT, handle, accept(**options))
    assert passed_on(turns, only(turns.until(OUT), OUT)) == RESPONSE
    turns.until(OPENED, handle)
    assert exactly(pair[1], len(RESPONSE)) == sealed(RESPONSE)
    return handle


# ---- reading ----


def test_a_request_and_a_message_come_by_way_of_python(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        fed(turns, handle, pair[1], frame(1, b"hello"))
        assert only(turns.turn(), TEXT).payload == b"hello"
        assert turns.stats()["bytes_received"] == len(REQUEST + frame(1, b"hello"))


def test_what_is_no_plaintext_yet_is_nothing(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = turns.adopt(pair[0])
        pair[1].sendall(REQUEST)  # ciphertext: what looks like a request is none
        assert only(turns.until(RAW), RAW).payload == REQUEST
        turns.push(FEED, handle)
        assert turns.settle() == []


def test_a_stream_is_read_at_every_split_of_what_is_fed(pair: Pair) -> None:
    stream = frame(1, b"one") + frame(9, b"?") + frame(2, bytes(300))
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        for cut in range(1, len(stream)):
            turns.push(FEED, handle, stream[:cut])
            turns.push(FEED, handle, stream[cut:])
            events = [event for event in turns.settle() if event.kind != OUT]
            assert [event.payload for event in events] == [b"one", bytes(300)], cut
            turns.push(RAW_SEND, handle, bytes([ANSWERS]))


def test_ciphertext_is_not_read_while_plaintext_may_not_be(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        turns.push(PAUSE, handle)
        turns.turn()
        pair[1].sendall(b"later")
        assert turns.settle() == []
        turns.push(RESUME, handle)
        assert only(turns.until(RAW), RAW).payload == b"later"


def test_without_credit_neither_plaintext_nor_ciphertext_is_read(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = opened(turns, pair, credit=1)
        fed(turns, handle, pair[1], frame(1, b"one") + frame(1, b"two"))
        assert only(turns.turn(), TEXT).payload == b"one"
        turns.push(FEED, handle, frame(1, b"three"))
        pair[1].sendall(sealed(frame(1, b"four")))
        assert turns.settle() == []
        found = []
        for _ in range(3):
            turns.push(GRANT, handle, struct.pack("=I", 1))
            events = turns.settle()
            found += [event.payload for event in events if event.kind == TEXT]
            for event in events:
                if event.kind == RAW:
                    turns.push(FEED, handle, sealed(event.payload))
        turns.push(GRANT, handle, struct.pack("=I", 9))
        found += [event.payload for event in turns.settle()]
        assert found == [b"one", b"two", b"three", b"four"][1:]


def test_at_most_a_window_of_ciphertext_is_read_at_once() -> None:
    ours, peer = tcp_pair()
    with Turns(raw=1) as turns, peer:
        handle = opened(turns, (ours, peer))
        peer.settimeout(0)
        sent = peer.send(bytes(4 << 20))
        got = 0
        while got < sent:
            events = turns.turn(1000)
            assert sum(event.length for event in events) <= 2 * WINDOW
            got += sum(event.length for event in events)
        turns.push(ABORT, handle)


def test_j10_little_is_read_at_once_of_what_brings_no_plaintext() -> None:
    """Decrypting a window of key updates takes long, and others wait meanwhile."""
    ours, peer = tcp_pair()
    with Turns(raw=1) as turns, peer:
        handle = opened(turns, (ours, peer))
        peer.settimeout(0)
        sizes, fed = [], 0
        for brings in [False] * 3 + [True] * 4 + [False] * 2:
            with contextlib.suppress(BlockingIOError):
                while True:
                    peer.send(bytes(1 << 20))
            size = sum(event.length for event in turns.until(RAW, handle))
            sizes.append(size)
            if brings:
                turns.push(FEED, handle, frame(2, bytes(size - 14)))
                turns.submit()
                fed += size
        most = 16 << 10
        assert max(sizes[:4]) <= most < min(sizes[4:8]), sizes
        assert sizes[8] <= most
        turns.push(ABORT, handle)


def test_j13_few_steps_of_handshakes_are_made_in_a_turn() -> None:
    pairs = [socket.socketpair() for _ in range(100)]
    with Turns(raw=1) as turns:
        for ours, peer in pairs:
            turns.adopt(ours)
            peer.sendall(b"ClientHello")
        steps = []
        while sum(steps) < len(pairs):
            steps.append(len(turns.turn(1000)))
        assert steps == [16] * 6 + [4]
        for _, peer in pairs:
            peer.close()


def test_j13_an_open_connection_comes_before_handshakes(pair: Pair) -> None:
    pairs = [socket.socketpair() for _ in range(40)]
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        for ours, peer in pairs:
            turns.adopt(ours)
            peer.sendall(b"ClientHello")
        turns.turn()
        pair[1].sendall(b"a message")
        assert turns.turn()[0].handle == handle
        for _, peer in pairs:
            peer.close()


# ---- the end of what the peer sends ----


@pytest.mark.parametrize("end", ["FIN", "RST"])
def test_an_end_comes_behind_what_was_read_before_it(end: str) -> None:
    ours, peer = tcp_pair()
    with Turns(raw=1) as turns, peer:
        handle = opened(turns, (ours, peer))
        peer.sendall(sealed(frame(1, b"last")))
        message = only(turns.until(RAW), RAW)
        reset(peer) if end == "RST" else peer.shutdown(socket.SHUT_WR)
        assert only(turns.until(RAW), RAW).payload == b""
        turns.push(FEED, handle, sealed(message.payload))
        turns.push(FEED_END, handle, CLEAN)
        events = turns.until(TEXT) + turns.until(OUT_LAST if end == "FIN" else CLOSED)
        assert kinds(events)[0] == TEXT
        if end == "FIN":
            passed_on(turns, events[-1], CLOSE_NOTIFY)
            events = turns.until(CLOSED)
            assert (events[0].start, events[0].error) == (1006, lib.WSPY_ERROR_EOF)
        else:
            assert (events[1].start, events[1].system_error) == (1006, errno.ECONNRESET)
        turns.until_empty()


def test_j9_close_notify_without_a_close_frame(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        turns.push(FEED_END, handle, CLEAN)
        passed_on(turns, only(turns.until(OUT_LAST), OUT_LAST), CLOSE_NOTIFY)
        assert [(event.kind, event.start) for event in turns.settle()] == [(CLOSED, 1006), (GONE, 0)]
        assert received(pair[1]) == CLOSE_NOTIFY


def test_an_end_is_read_again_when_a_request_was_answered(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = turns.adopt(pair[0])
        fed(turns, handle, pair[1], REQUEST)
        turns.until(HEAD)
        pair[1].shutdown(socket.SHUT_WR)
        only(turns.until(RAW), RAW)
        turns.push(FEED_END, handle, CLEAN)
        assert turns.settle() == []
        turns.push(ACCEPT, handle, accept())
        passed_on(turns, only(turns.until(OUT), OUT))
        assert kinds(turns.until(OPENED)) == [OPENED]
        passed_on(turns, only(turns.until(OUT_LAST), OUT_LAST))
        assert turns.until(CLOSED)[0].error == lib.WSPY_ERROR_EOF


def test_j2_a_failed_handshake_ends_behind_its_alert(pair: Pair) -> None:
    with Turns(raw=1, open_timeout_ms=60_000) as turns:
        handle = turns.adopt(pair[0])
        pair[1].sendall(REQUEST)
        only(turns.until(RAW), RAW)
        turns.push(RAW_SEND, handle, b"\0alert")
        turns.push(FEED_END, handle, FAILED)
        passed_on(turns, only(turns.until(OUT_LAST), OUT_LAST))
        assert to_the_end(pair[1], turns) == b"alert"
        assert turns.stats()["refused"] == 1
        pair[1].close()
        turns.until_empty()


def test_j2_a_failed_handshake_lingers_without_turning(pair: Pair) -> None:
    """Even if somebody lets it read on: the end of plaintext is nothing that it could go on with."""
    with Turns(raw=1) as turns:
        handle = turns.adopt(pair[0])
        turns.push(FEED_END, handle, FAILED)
        passed_on(turns, only(turns.until(OUT_LAST), OUT_LAST))
        turns.push(RESUME, handle)
        turns.settle()
        began = time.monotonic()
        turns.turn(100)
        assert time.monotonic() - began > 0.05


def test_a_failure_of_an_open_connection_ends_it_behind_its_alert() -> None:
    ours, peer = tcp_pair()
    with Turns(raw=1) as turns, peer:
        handle = opened(turns, (ours, peer))
        turns.push(RAW_SEND, handle, b"\0alert")
        turns.push(FEED, handle, frame(1, b"before"))
        turns.push(FEED_END, handle, FAILED)
        message, closed, gone = turns.until(GONE)
        assert message.payload == b"before"
        assert (closed.kind, closed.start, closed.system_error) == (CLOSED, 1006, errno.EPROTO)
        assert gone.handle == handle
        assert to_the_end(peer, turns) == b"alert"


# ---- writing ----


def test_messages_of_a_turn_leave_together(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        for word in (b"one", b"two", b"three"):
            turns.push(SEND, handle, text(word))
        event = only(turns.turn(), OUT)
        assert event.payload == text(b"one") + text(b"two") + text(b"three")
        assert turns.backlog(handle) == turns.stats()["backlog"] == event.length
        passed_on(turns, event)
        assert turns.settle() == []
        assert turns.backlog(handle) == turns.stats()["backlog"] == 0
        assert received(pair[1]) == sealed(event.payload)


def test_there_is_one_out_until_it_is_answered(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        turns.push(SEND, handle, text(b"one"))
        first = only(turns.turn(), OUT)
        turns.push(SEND, handle, text(b"two"))
        assert turns.settle() == []
        passed_on(turns, first)
        assert only(turns.turn(), OUT).payload == text(b"two")


def test_sent_waits_for_the_ciphertext(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        turns.push(SEND_MARK, handle, text(b"one"))
        event = only(turns.turn(), OUT)
        # what leaves meanwhile is not what the mark is about
        turns.push(RAW_SEND, handle, b"\0ticket")
        assert turns.settle() == []
        passed_on(turns, event)
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.EAGAIN):
            turns.submit()
        assert turns.backlog(handle) == event.length
        assert kinds(turns.settle()) == [SENT]
        assert received(pair[1]) == b"ticket" + sealed(event.payload)


@pytest.mark.parametrize("short_io", [1, 7, 100])
def test_ciphertext_leaves_in_order_however_little_the_kernel_takes(pair: Pair, short_io: int) -> None:
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        turns.push(SEND_MARK, handle, text(bytes(120)))
        event = only(turns.turn(), OUT)
        passed_on(turns, event)
        turns.push(RAW_SEND, handle, b"\0ticket")
        events, got = [], b""
        with faults(lib.WSPY_SYS_SEND, short_io=short_io):
            while not events:
                assert len(got) <= event.length + len(b"ticket")
                events = turns.turn(1000)
                got += received(pair[1])
        assert kinds(events) == [SENT]
        assert got == sealed(event.payload) + b"ticket"


def test_while_ciphertext_waits_plaintext_waits_as_it_does_for_the_kernel(pair: Pair) -> None:
    with Turns(raw=1, write_limit=100, wants=lib.WSPY_WANT_DRAINED) as turns:
        handle = opened(turns, pair)
        turns.push(SEND, handle, text(b"one"))
        passed_on(turns, only(turns.turn(), OUT))
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.EAGAIN):
            turns.submit()
        turns.push(SEND_MARK, handle, text(bytes(200)))
        turns.submit()
        assert turns.backlog(handle) == len(text(b"one") + text(bytes(200)))
        event = only(turns.until(OUT), OUT)
        assert event.payload == text(bytes(200))
        passed_on(turns, event)
        assert sorted(kinds(turns.settle())) == [SENT, DRAINED]


def test_nothing_is_reported_while_the_kernel_takes_no_ciphertext(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        turns.push(RAW_SEND, handle, b"\0" + bytes(1 << 20))
        turns.push(SEND, handle, text(b"later"))
        assert turns.settle() == []
        assert turns.backlog(handle) > len(text(b"later"))
        while not (events := turns.turn()):
            received(pair[1])
        assert only(events, OUT).payload == text(b"later")


def test_j10_answers_of_tls_that_nobody_reads_are_bounded(pair: Pair) -> None:
    """A peer may ask for as many as it likes (RFC 8446 §4.6.3), and max_backlog is about messages."""
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        for _ in range(2):
            turns.push(RAW_SEND, handle, b"\0" + bytes(1 << 20))
            size = 0
            while size < 1 << 20:
                turns.turn()
                size += len(received(pair[1]))
            turns.settle()
        turns.push(RAW_SEND, handle, b"\0" + bytes(1 << 20))
        turns.push(RAW_SEND, handle, b"\0more")
        assert turns.until(CLOSED)[0].error == lib.WSPY_ERROR_BACKLOG


@pytest.mark.parametrize("begins", [False, True], ids=["handshake", "request"])
def test_j10_answers_of_tls_buy_no_time(pair: Pair, begins: bool) -> None:
    """Only who takes an answer to a request has more of it than open_timeout, or idle_request_timeout."""
    with Turns(raw=1, open_timeout_ms=60, idle_request_ms=60 if begins else 60_000) as turns:
        handle = turns.adopt(pair[0])
        if begins:
            fed(turns, handle, pair[1], REQUEST)
            turns.until(HEAD, handle)
            turns.push(RESPOND, handle, b"\1" + ANSWER + bytes(1 << 20))
            passed_on(turns, only(turns.until(OUT), OUT))
        else:
            turns.push(RAW_SEND, handle, b"\0" + bytes(1 << 20))
        began = time.monotonic()
        while GONE not in kinds(turns.turn(10)):
            with contextlib.suppress(OSError):
                pair[1].send(b"x")
            assert time.monotonic() - began < 5, "it is still there"


def test_a_window_of_plaintext_waits_and_no_more(pair: Pair) -> None:
    message = frame(2, bytes(i % 251 for i in range(1 << 20)), key=None)
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        turns.push(SEND_MARK, handle, message)
        whole, got = b"", b""
        while len(whole) < len(message):
            event = only(turns.until(OUT), OUT)
            assert event.length <= WINDOW
            whole += passed_on(turns, event)
            turns.submit()
            got += received(pair[1])
            assert turns.backlog(handle) == len(message) - len(got)
        assert whole == message
        assert kinds(turns.settle()) == [SENT]
        assert sealed(got) == message


def test_many_large_messages_find_room_in_the_arena() -> None:
    pairs = [socket.socketpair() for _ in range(12)]
    with Turns(raw=1) as turns:
        handles = [opened(turns, pair) for pair in pairs]
        message = frame(2, bytes(250_000), key=None)
        for handle in handles:
            turns.push(SEND, handle, message)
        found: dict[int, bytes] = {}
        counts = []
        while len(found) < len(handles):
            events = turns.turn(1000)
            counts.append(len(events))
            found.update({event.handle: event.payload for event in events})
        assert set(found.values()) == {message}
        assert len(counts) > 1
        for _, peer in pairs:
            peer.close()


# ---- deadlines ----

# A turn brings ciphertext and then looks at deadlines, the next one brings its plaintext.


def passes(seconds: float) -> None:
    """Let time pass without a turn: what a handler does that takes long."""
    with socket.create_server(("127.0.0.1", 0)) as clock:
        clock.settimeout(seconds)
        with pytest.raises(TimeoutError):
            clock.accept()


@pytest.mark.slow
def test_a_late_loop_waits_for_what_follows_the_first_step_of_a_handshake(pair: Pair) -> None:
    with Turns(raw=1, open_timeout_ms=50) as turns:
        handle = turns.adopt(pair[0])
        pair[1].sendall(b"ClientHello")
        passes(0.3)
        assert only(turns.turn(), RAW).payload == b"ClientHello"
        turns.push(RAW_SEND, handle, b"\0ServerHello")
        assert turns.turn(100) == []
        assert exactly(pair[1], 11) == b"ServerHello"
        fed(turns, handle, pair[1], REQUEST)
        only(turns.until(HEAD), HEAD)


@pytest.mark.parametrize("phase", ["head", "close"])
def test_a_deadline_is_put_off_once_however_much_comes(pair: Pair, phase: str) -> None:
    with Turns(raw=1, **{"open_timeout_ms" if phase == "head" else "close_timeout_ms": 50}) as turns:
        if phase == "head":
            turns.adopt(pair[0])
        else:
            handle = opened(turns, pair)
            turns.push(CLOSE, handle, NORMAL)
            passed_on(turns, only(turns.turn(), OUT))
        began = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while turns.stats()["connections"]:
                assert time.monotonic() - began < 5
                pair[1].sendall(b"a byte of a record in every turn")
                turns.turn(10)
        assert turns.stats()["timeouts"] == 1


def test_a_peer_without_a_pong_is_given_up_while_something_leaves_in_each_turn(pair: Pair) -> None:
    with Turns(raw=1, ping_interval_ms=50, ping_timeout_ms=50) as turns, pair[1]:
        handle = opened(turns, pair)
        end = time.monotonic() + 10
        events: list[Event] = []
        while not any(event.kind == CLOSED for event in events):
            assert time.monotonic() < end, "it is never asked whether it is there"
            for event in events:
                if event.kind == OUT:
                    passed_on(turns, event)
            turns.push(SEND, handle, text(b"tick"))
            events = turns.turn()
            received(pair[1])
        assert [event.error for event in events if event.kind == CLOSED] == [lib.WSPY_ERROR_PING_TIMEOUT]


def test_plaintext_that_is_lost_on_its_way_does_not_keep_a_connection(pair: Pair) -> None:
    with Turns(raw=1, ping_interval_ms=50, ping_timeout_ms=50) as turns:
        handle = opened(turns, pair)
        turns.push(SEND, handle, text(b"lost"))
        only(turns.turn(), OUT)
        turns.push(SEND, handle, text(b"behind it"))
        assert turns.until(CLOSED)[0].error == lib.WSPY_ERROR_PING_TIMEOUT


def test_a_message_that_is_lost_counts_once(pair: Pair) -> None:
    """Also if it was lost when a send failed, and the connection ends later."""
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        turns.push(SEND, handle, text(b"lost"))
        out = only(turns.turn(), OUT)
        turns.push(RAW_SEND, handle, ANSWERS.to_bytes() + sealed(out.payload))
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.ECONNRESET):
            turns.until(CLOSED)
        ending = ffi.new("wspy_ending *")
        assert lib.wspy_loop_ending(turns.loop, handle, ending) == lib.WSPY_OK
        assert ending.unsent_messages == 1


def test_a_peer_that_has_gone_is_noticed_while_nothing_is_read() -> None:
    ours, peer = tcp_pair()
    with Turns(raw=1, ping_interval_ms=50) as turns:
        handle = opened(turns, (ours, peer))
        reset(peer)
        assert only(turns.until(RAW), RAW).payload == b""
        turns.push(PAUSE, handle)
        turns.push(FEED_END, handle, CLEAN)
        assert turns.until(CLOSED)[0].error == lib.WSPY_ERROR_RESET


def test_what_a_peer_has_sent_before_it_has_gone_is_waited_for() -> None:
    ours, peer = tcp_pair()
    with Turns(raw=1, ping_interval_ms=20) as turns:
        handle = opened(turns, (ours, peer))
        peer.sendall(sealed(frame(1, b"last")))
        only(turns.until(RAW), RAW)
        reset(peer)
        only(turns.until(RAW), RAW)
        turns.push(PAUSE, handle)
        turns.push(FEED, handle, frame(1, b"last"))
        turns.push(FEED_END, handle, CLEAN)
        passes(0.1)
        assert turns.settle() == []
        turns.push(RESUME, handle)
        assert turns.until(TEXT)[0].payload == b"last"


# ---- ending ----


@pytest.mark.parametrize("end", ["FIN", "a stop"])
def test_records_of_a_handshake_are_no_answer_that_an_end_waits_for(pair: Pair, end: str) -> None:
    with Turns(raw=1) as turns, pair[1] as peer, faults(lib.WSPY_SYS_SEND, 1, 1000, errno.EAGAIN):
        handle = turns.adopt(pair[0])
        peer.sendall(b"ClientHello")
        only(turns.until(RAW), RAW)
        turns.push(RAW_SEND, handle, b"\0ServerHello")
        turns.turn()
        assert turns.backlog(handle) == len(b"ServerHello")
        if end == "FIN":
            peer.shutdown(socket.SHUT_WR)
            assert only(turns.until(RAW), RAW).payload == b""
            turns.push(FEED_END, handle, CLEAN)
        else:
            turns.push(REFUSE, 0, ANSWER)
        only(turns.until(GONE), GONE)
        assert turns.stats()["connections"] == 0


def test_close_notify_follows_the_close_frame(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        turns.push(SEND, handle, text(b"one"))
        turns.push(CLOSE, handle, NORMAL)
        closing = only(turns.turn(), OUT)
        assert passed_on(turns, closing) == text(b"one") + frame(8, NORMAL, key=None)
        fed(turns, handle, pair[1], frame(8, NORMAL))
        events = turns.settle()
        assert kinds(events) == [lib.WSPY_EVENT_CLOSE, OUT_LAST]
        assert events[-1].payload == b""
        passed_on(turns, events[-1], CLOSE_NOTIFY)
        assert kinds(turns.until(CLOSED)) == [CLOSED]
        assert to_the_end(pair[1], turns) == sealed(text(b"one") + frame(8, NORMAL, key=None)) + CLOSE_NOTIFY
        pair[1].close()
        assert kinds(turns.until(GONE)) == [GONE]


def test_an_echoed_close_frame_and_close_notify_leave_together(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        fed(turns, handle, pair[1], frame(8, NORMAL))
        event = turns.until(OUT_LAST)[-1]
        assert event.payload == frame(8, NORMAL, key=None)
        passed_on(turns, event, CLOSE_NOTIFY)
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.EAGAIN):
            turns.submit()
            assert received(pair[1]) == b""
        assert kinds(turns.until(CLOSED)) == [CLOSED]
        assert received(pair[1]) == sealed(event.payload) + CLOSE_NOTIFY


def test_a_lingering_peer_is_not_decrypted(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = opened(turns, pair)
        fed(turns, handle, pair[1], frame(8, NORMAL))
        passed_on(turns, turns.until(OUT_LAST)[-1], CLOSE_NOTIFY)
        turns.until(CLOSED)
        pair[1].sendall(b"nobody reads that")
        assert turns.settle() == []
        # and what comes late does no harm
        turns.push(FEED, handle, frame(1, b"late"))
        turns.push(FEED_END, handle, FAILED)
        turns.push(RAW_SEND, handle, b"\3late")
        assert turns.settle() == []
        pair[1].close()
        only(turns.until(GONE), GONE)


def test_an_end_that_nobody_seals_has_its_deadline(pair: Pair) -> None:
    with Turns(raw=1, close_timeout_ms=50) as turns:
        handle = opened(turns, pair)
        fed(turns, handle, pair[1], frame(8, NORMAL))
        turns.until(OUT_LAST)
        assert kinds(turns.until(CLOSED)) == [CLOSED, GONE]
        assert turns.stats()["connections"] == 0


def test_a_plain_answer_ends_with_close_notify(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = turns.adopt(pair[0])
        fed(turns, handle, pair[1], REQUEST)
        turns.until(HEAD)
        turns.push(RESPOND, handle, b"\0" + ANSWER)
        event = only(turns.until(OUT_LAST), OUT_LAST)
        assert passed_on(turns, event, CLOSE_NOTIFY) == ANSWER
        assert to_the_end(pair[1], turns) == sealed(ANSWER) + CLOSE_NOTIFY


def test_a_half_read_request_is_refused_and_a_silent_one_is_dropped(pair: Pair) -> None:
    silent, other = socket.socketpair()
    with Turns(raw=1) as turns, other:
        handle = turns.adopt(pair[0])
        turns.adopt(silent)
        fed(turns, handle, pair[1], REQUEST[:9])
        turns.settle()
        turns.push(REFUSE, 0, ANSWER)
        events = turns.settle()
        assert sorted(kinds(events)) == [OUT_LAST, GONE]
        assert [event.payload for event in events if event.kind == OUT_LAST] == [ANSWER]


@pytest.mark.parametrize("phase", ["HEAD", "DECIDING", "OPENING", "OPEN", "ENDING"])
def test_python_hears_of_the_end_in_every_phase(pair: Pair, phase: str) -> None:
    with Turns(raw=1, open_timeout_ms=40, close_timeout_ms=40) as turns:
        handle = turns.adopt(pair[0])
        if phase != "HEAD":
            fed(turns, handle, pair[1], REQUEST)
            turns.until(HEAD)
        if phase in {"OPENING", "OPEN", "ENDING"}:
            turns.push(ACCEPT, handle, accept())
            event = only(turns.until(OUT), OUT)
            if phase != "OPENING":
                passed_on(turns, event)
                turns.until(OPENED)
        if phase == "OPEN":
            turns.push(ABORT, handle)
        if phase == "ENDING":
            turns.push(FEED_END, handle, CLEAN)
        events = turns.until(GONE)
        assert events[-1].handle == handle
        assert (CLOSED in kinds(events)) == (phase != "HEAD")
        assert turns.stats()["connections"] == 0


def test_a_slot_is_used_again_only_after_its_end_was_told() -> None:
    with Turns(raw=1) as turns:
        for _ in range(5):
            ours, peer = socket.socketpair()
            handle = turns.adopt(ours)
            peer.close()
            turns.until(RAW)
            turns.push(FEED_END, handle, CLEAN)
            assert turns.until(GONE)[-1].handle == handle
            turns.push(FEED, handle, b"late")
            turns.push(RAW_SEND, handle, b"\1late")
            turns.turn()


# ---- faults ----


def test_without_tls_its_commands_are_nothing(pair: Pair) -> None:
    with Turns() as turns:
        handle = turns.opened(pair)
        turns.push(FEED, handle, frame(1, b"no"))
        turns.push(FEED_END, handle, FAILED)
        turns.push(RAW_SEND, handle, b"\3no")
        turns.push(RAW_SEND, handle)
        turns.push(FEED_END, handle)
        assert turns.settle() == []
        assert received(pair[1]) == b""


def conversation(turns: Sealed, pair: Pair) -> None:
    """Speak to a connection from its first byte to its last, whatever fails."""
    ours, peer = pair
    peer.setblocking(False)  # noqa: FBT003
    handle = turns.adopt(ours)
    for data, command, payload in (
        (REQUEST, ACCEPT, accept()),
        (frame(1, b"one"), SEND_MARK, frame(2, bytes(300_000), key=None)),
        (frame(9, b"?"), SEND, text(b"two")),
        (frame(8, NORMAL), CLOSE, NORMAL),
    ):
        try:
            peer.sendall(data)
        except OSError:
            break
        turns.settle()
        turns.push(command, handle, payload)
        turns.settle()
        try:
            received(peer)
        except ConnectionResetError:
            break
    peer.close()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lib.WSPY_SYS_ALLOCATE, errno.ENOMEM),
        (lib.WSPY_SYS_RECV, errno.ECONNRESET),
        (lib.WSPY_SYS_RECV, errno.EAGAIN),
        (lib.WSPY_SYS_SEND, errno.EPIPE),
        (lib.WSPY_SYS_SEND, errno.EAGAIN),
        (lib.WSPY_SYS_EPOLL_CTL, errno.ENOMEM),
    ],
    ids=["allocate", "recv RST", "recv EAGAIN", "send EPIPE", "send EAGAIN", "epoll_ctl"],
)
def test_i4_each_call_that_fails_ends_the_connection_or_nothing(call: int, error: int) -> None:
    # the first allocations are those of the connection itself: see below
    for nth in range(3 if call == lib.WSPY_SYS_ALLOCATE else 2, 60):
        with Sealed(close_timeout_ms=20) as turns:
            pair = socket.socketpair()
            with pair[0], pair[1], faults(call, nth, 1, error):
                conversation(turns, pair)
                made = lib.wspy_sys_fail(call, 0, 0, 0, 0)
            turns.until_empty()
            turns.settle()
            assert len(turns.gone) == 1
        if made < nth:
            return
    raise AssertionError("it never ends")


def test_a_connection_that_epoll_does_not_take_leaves_nothing() -> None:
    ours, peer = socket.socketpair()
    with Turns(raw=1) as turns, ours, peer:
        with faults(lib.WSPY_SYS_EPOLL_CTL, 1, 1, errno.ENOSPC), pytest.raises(AssertionError):
            turns.adopt(ours)
        assert turns.stats()["connections"] == turns.stats()["backlog"] == 0


def test_i1_when_nothing_can_be_written_all_that_was_sent_is_read_first(pair: Pair) -> None:
    """Also if what was decrypted ends where a message does: the kernel may have more."""
    piece = 100_000
    whole = frame(2, bytes(2 * piece - 14))
    assert len(whole) == 2 * piece
    with Sealed() as turns:
        handle = turns.opened(pair)
        pair[1].setblocking(False)  # noqa: FBT003
        pair[1].sendall(whole + frame(1, b"last"))
        turns.push(SEND, handle, text(b"to nobody"))
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.EPIPE, short_io=piece):
            events = turns.until(CLOSED)
        assert [len(event.payload) for event in events[:-1]] == [2 * piece - 14, 4]
        assert events[-1].system_error == errno.EPIPE


def test_h13_a_connection_without_memory_is_not_accepted() -> None:
    with Turns(raw=1) as turns, socket.create_server(("127.0.0.1", 0)) as listener:
        turns.listen(listener)
        with socket.create_connection(listener.getsockname()) as peer:
            with faults(lib.WSPY_SYS_ALLOCATE, 2, 1, errno.ENOMEM):  # the first one is for a chunk of connections
                turns.turn(1000)
            assert turns.stats()["connections"] == 0
            peer.settimeout(10)
            assert peer.recv(1) == b""
