"""Is each command applied once, in order, and to the connection that it names?"""

from __future__ import annotations

import errno
import random
import socket
import struct
import sys
import threading

import pytest
from turns import (
    ABORT,
    ACCEPT,
    BINARY,
    BROADCAST,
    CLOSE,
    CLOSED,
    FOREVER,
    HEAD,
    OPENED,
    REFUSE,
    REQUEST,
    RESPOND,
    RESPONSE,
    SEND,
    SEND_FAR,
    SEND_MARK,
    SENT,
    SHIFT,
    TEXT,
    Pair,
    Turns,
    accept,
    exactly,
    far,
    faults,
    frame,
    kinds,
    received,
    server_frames,
    tcp_pair,
    text,
    to_the_end,
)

from wspy._core import lib

NORMAL = b"\x03\xe8"
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"


def number_frame(number: int) -> bytes:
    return frame(2, struct.pack(">I", number), key=None)


def numbers(data: bytes) -> list[int]:
    return [struct.unpack(">I", payload)[0] for _, payload in server_frames(data)]


def collect(turns: Turns, peer: socket.socket, size: int) -> bytes:
    """Turn until so many bytes came out at the peer."""
    data = b""
    while len(data) < size:
        turns.turn()
        data += received(peer)
    return data


# ---- batches ----


def test_an_empty_batch_changes_nothing() -> None:
    with Turns() as turns:
        assert lib.wspy_loop_submit(turns.loop, *turns.pack(0, [])) == lib.WSPY_OK
        assert turns.applied() == 0


def test_a_gap_is_an_error_and_nothing_is_applied(pair: Pair) -> None:
    with Turns() as turns:
        handle = turns.opened(pair)
        applied = turns.applied()
        for call in (lib.wspy_loop_submit, lambda *batch: lib.wspy_loop_turn(*batch, 0)):
            arguments = turns.pack(applied + 1, [(SEND << SHIFT | handle, number_frame(1))])
            assert call(turns.loop, *arguments) == lib.WSPY_ERROR_ARGUMENT
            assert turns.applied() == applied
        assert turns.settle() == []
        assert received(pair[1]) == b""


def test_what_was_applied_is_skipped(pair: Pair) -> None:
    with Turns() as turns:
        handle = turns.opened(pair)
        first = turns.applied()
        commands = [(SEND << SHIFT | handle, number_frame(i)) for i in range(20)]
        for start, end in ((0, 5), (0, 5), (2, 8), (8, 8), (0, 20), (19, 20), (3, 4)):
            batch = turns.pack(first + start, commands[start:end])
            assert lib.wspy_loop_submit(turns.loop, *batch) == lib.WSPY_OK
        assert turns.applied() == first + 20
        assert numbers(received(pair[1])) == list(range(20))


def test_overlapping_batches_of_several_threads_apply_each_command_once(pair: Pair) -> None:
    """Each thread submits, again and again, what it thinks is not applied yet."""
    count = 4000
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        first = turns.applied()
        commands = [(SEND << SHIFT | handle, number_frame(i)) for i in range(count)]
        results: set[int] = set()

        def submit(seed: int) -> None:
            dice = random.Random(seed)
            while (applied := turns.applied() - first) < count:
                start = max(0, applied - dice.randrange(20))
                batch = turns.pack(first + start, commands[start : applied + dice.randrange(20)])
                results.add(lib.wspy_loop_submit(turns.loop, *batch))

        threads = [threading.Thread(target=submit, args=(seed,)) for seed in range(4)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            for thread in threads:
                thread.start()
            data = exactly_while_turning(turns, peer, count * 6, first + count)
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert results == {lib.WSPY_OK}
        assert numbers(data) == list(range(count))


def exactly_while_turning(turns: Turns, peer: socket.socket, size: int, applied: int) -> bytes:
    data = b""
    while len(data) < size:
        turns._applied = turns.applied()
        assert turns._applied <= applied
        turns.turn()
        data += received(peer)
    turns._applied = applied
    return data


@pytest.mark.parametrize("size", range(40))
def test_a_batch_that_is_cut_off_is_an_error_behind_what_is_whole(pair: Pair, size: int) -> None:
    with Turns() as turns:
        handle = turns.opened(pair)
        first = turns.applied()
        batch, whole = turns.pack(first, [(SEND << SHIFT | handle, number_frame(i)) for i in range(3)])
        count = max(size - 8, 0) // ((whole - 8) // 3)
        result = lib.wspy_loop_submit(turns.loop, batch[:size], size)
        assert result == (lib.WSPY_OK if size >= 8 and (size - 8) % 18 == 0 else lib.WSPY_ERROR_ARGUMENT)
        assert turns.applied() == first + count
        assert numbers(received(pair[1])) == list(range(count))


def test_a_payload_may_lie_far_away(pair: Pair) -> None:
    frames = [number_frame(i) if i % 3 else frame(2, struct.pack(">I", i) * 3000, key=None) for i in range(30)]
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        for whole in frames:
            is_far = len(whole) > 100
            turns.push(SEND_FAR if is_far else SEND, handle, far(whole, 4) if is_far else whole)
        turns.submit()
        assert collect(turns, peer, len(b"".join(frames))) == b"".join(frames)


@pytest.mark.parametrize("payload", [b"", bytes(15), bytes(16 + 15)])
def test_a_far_send_that_says_not_where_is_none(pair: Pair, payload: bytes) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        turns.push(SEND_FAR, handle, payload)
        turns.push(SEND, handle, text(b"next"))
        turns.turn()
        assert received(peer) == text(b"next")


def test_i14_a_payload_at_an_address_may_change_after_the_call(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        message = bytearray(frame(2, b"before" * 200_000, key=None))
        expected = bytes(message)
        turns.push(SEND_FAR, handle, far(message, 10))
        turns.submit()
        message[:] = bytes(len(message))
        assert collect(turns, peer, len(expected)) == expected


# ---- runs of sends ----


@pytest.mark.parametrize("count", [1, 2, 31, 32, 61, 62, 63, 64, 65, 130, 500])
@pytest.mark.parametrize("short", [0, 997])
def test_sends_of_many_parts_leave_in_order(pair: Pair, count: int, short: int) -> None:
    """A far payload isn't copied behind its header, so that it takes two of the 64 parts of a call."""
    commands, kept = [], []
    expected = b""
    for i in range(count):
        payload = struct.pack(">I", i) * (2100 if i % 7 == 3 else 3)
        whole = frame(1 + i % 2, payload, key=None)
        is_far = i % 3 == 0
        command = (SEND_FAR if is_far else SEND) | (lib.WSPY_COMMAND_MARK if i % 2 else 0)
        commands.append((command, far(whole, len(whole) - len(payload)) if is_far else whole))
        kept.append(whole)
        expected += whole
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        with faults(lib.WSPY_SYS_SEND, short_io=short):
            for command, payload in commands:
                turns.push(command, handle, payload)
            events = turns.turn()
            data = received(peer)
            while len(data) < len(expected):
                events += turns.turn()
                data += received(peer)
            events += turns.settle()
        assert data == expected
        assert sum(event.start for event in events if event.kind == SENT) == count // 2


def test_consecutive_sends_leave_in_one_call(pair: Pair) -> None:
    with Turns() as turns:
        handle = turns.opened(pair)
        for i in range(60):
            turns.push(SEND, handle, text(b"%d" % i))
        lib.wspy_sys_fail(lib.WSPY_SYS_SEND, 0, 0, 0, 0)
        turns.turn()
        assert lib.wspy_sys_fail(lib.WSPY_SYS_SEND, 0, 0, 0, 0) == 1
        assert [payload for _, payload in server_frames(received(pair[1]))] == [b"%d" % i for i in range(60)]


def test_sends_to_several_connections_are_not_mixed() -> None:
    pairs = [socket.socketpair() for _ in range(5)]
    with Turns() as turns:
        handles = [turns.opened(pair) for pair in pairs]
        dice = random.Random(1)
        order = [dice.randrange(5) for _ in range(1000)]
        for number, which in enumerate(order):
            turns.push(SEND, handles[which], number_frame(number))
        turns.turn()
        for which, (_, peer) in enumerate(pairs):
            assert numbers(received(peer)) == [number for number, at in enumerate(order) if at == which]
            peer.close()


def test_commands_of_all_kinds_for_one_connection_keep_their_order(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        turns.push(SEND, handle, text(b"too early"))
        turns.push(CLOSE, handle, NORMAL)
        turns.push(ACCEPT, handle, accept())
        turns.push(SEND_MARK, handle, frame(1, b"one", key=None))
        turns.push(SEND, handle, text(b"two"))
        turns.push(CLOSE, handle, NORMAL)
        turns.push(SEND, handle, text(b"too late"))
        assert kinds(turns.settle()) == [OPENED, SENT]
        assert exactly(peer, len(RESPONSE)) == RESPONSE
        assert server_frames(received(peer)) == [(1, b"one"), (1, b"two"), (8, NORMAL)]


# ---- broadcast ----


def test_a_broadcast_reaches_whom_it_names_and_in_the_order_of_commands() -> None:
    pairs = [socket.socketpair() for _ in range(4)]
    with Turns() as turns:
        handles = [turns.opened(pair) for pair in pairs]
        turns.push(SEND, handles[0], text(b"before"))
        named = [handles[0], handles[2], handles[0] + (1 << 24), 0xFFFFFF]
        turns.push(BROADCAST, 0, struct.pack("=I4Q", 4, *named) + frame(1, b"all", key=None))
        turns.push(SEND, handles[0], text(b"after"))
        turns.turn()
        said = [[payload for _, payload in server_frames(received(peer))] for _, peer in pairs]
        assert said == [[b"before", b"all", b"after"], [], [b"all"], []]
        for _, peer in pairs:
            peer.close()


def test_a_broadcast_to_everybody_reaches_open_connections_only() -> None:
    pairs = [socket.socketpair() for _ in range(5)]
    with Turns() as turns:
        opened, closing, head, deciding, gone = pairs
        turns.opened(opened)
        closing_handle = turns.opened(closing)
        turns.push(CLOSE, closing_handle, NORMAL)
        turns.adopt(head[0])
        turns.awaiting(deciding)
        turns.push(ABORT, turns.opened(gone))
        turns.settle()
        turns.push(BROADCAST, 0, struct.pack("=I", FOREVER) + frame(1, b"all", key=None))
        turns.turn()
        assert server_frames(received(opened[1])) == [(1, b"all")]
        assert server_frames(received(closing[1])) == [(8, NORMAL)]
        assert received(head[1]) == received(deciding[1]) == b""
        for _, peer in pairs:
            peer.close()


def test_a_broadcast_waits_for_the_response(pair: Pair) -> None:
    with Turns() as turns:
        handle = turns.awaiting(pair)
        with faults(lib.WSPY_SYS_SEND, short_io=5):
            turns.push(ACCEPT, handle, accept())
            turns.push(BROADCAST, lib.WSPY_BROADCAST_MARK, struct.pack("=I", FOREVER) + frame(1, b"all", key=None))
            turns.submit()
            assert received(pair[1]) == RESPONSE[:5]
            events = turns.until(SENT)
        assert kinds(events) == [OPENED, SENT]
        assert received(pair[1]) == RESPONSE[5:] + frame(1, b"all", key=None)


@pytest.mark.parametrize("nth", range(1, 11))
def test_h13_a_broadcast_without_memory_ends_whom_it_could_not_reach(nth: int) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    message = frame(2, bytes(1 << 20), key=None)
    with Turns() as turns:
        handles = [turns.opened(pair) for pair in pairs]
        with faults(lib.WSPY_SYS_ALLOCATE, nth, 1, 12):
            turns.push(BROADCAST, lib.WSPY_BROADCAST_MARK, struct.pack("=I", FOREVER) + message)
            ended = [event.handle for event in turns.settle() if event.kind == CLOSED]
        assert len(ended) == 1
        for handle, (_, peer) in zip(handles, pairs, strict=True):
            if handle not in ended:
                assert collect(turns, peer, len(message)) == message
            peer.close()


def test_a_broadcast_keeps_its_place_among_the_replies_to_a_peer_that_has_closed(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        peer.sendall(frame(1, b"?") + frame(8, NORMAL))
        turns.until(TEXT)
        turns.push(SEND, handle, text(b"one"))
        turns.push(BROADCAST, 0, struct.pack("=I", FOREVER) + frame(1, b"two", key=None))
        turns.push(SEND, handle, text(b"three"))
        turns.until(CLOSED)
        assert server_frames(received(peer)) == [(1, b"one"), (1, b"two"), (1, b"three"), (8, NORMAL)]


@pytest.mark.parametrize("is_closing", [False, True])
def test_nothing_is_sent_after_an_abort(pair: Pair, is_closing: bool) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        if is_closing:
            peer.sendall(frame(8, NORMAL))
            turns.until(lib.WSPY_EVENT_CLOSE)
        turns.push(SEND, handle, text(b"before"))
        turns.push(ABORT, handle)
        turns.push(SEND, handle, text(b"after"))
        turns.push(BROADCAST, 0, struct.pack("=I", FOREVER) + frame(1, b"all", key=None))
        turns.push(CLOSE, handle, NORMAL)
        assert kinds(turns.until(CLOSED)) == [CLOSED]
        assert server_frames(received(peer)) == [(1, b"before")]


def test_nothing_is_sent_after_a_send_that_failed(pair: Pair) -> None:
    """A kernel that takes the next one all the same must not make a gap in the stream."""
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        with faults(lib.WSPY_SYS_SEND, 1, 1, errno.EHOSTUNREACH):
            turns.push(SEND, handle, text(b"one"))
            turns.push(CLOSE, handle, NORMAL)
            turns.push(SEND, handle, text(b"two"))
            turns.until(CLOSED)
        assert received(peer) == b""


# ---- the answer to a request ----


def test_an_answer_is_given_once(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        turns.push(RESPOND, handle, b"")
        turns.push(ACCEPT, handle, b"\0" * 7)
        turns.push(RESPOND, handle, b"\x01one")
        turns.push(RESPOND, handle, b"\x01two")
        turns.push(ACCEPT, handle, accept())
        assert turns.settle() == []
        assert received(peer) == b"one"
        peer.sendall(REQUEST)
        assert kinds(turns.until(HEAD)) == [HEAD]
        turns.push(ACCEPT, handle, accept())
        turns.until(OPENED)
        assert received(peer) == RESPONSE


def test_what_an_accept_claims_is_allowed(pair: Pair) -> None:
    rsv1_text = bytes([0xC1]) + frame(1, b"\xff")[1:]
    opcode_3 = frame(3, b"x")
    with Turns() as turns, pair[1] as peer:
        turns.opened(pair, rsv=lib.WSPY_RSV1, opcodes=1 << 3)
        peer.sendall(rsv1_text + opcode_3 + frame(2, b"y"))
        events = turns.settle()
        assert [event.payload for event in events] == [b"\xff", b"x", b"y"]
        assert events[0].kind & lib.WSPY_EVENT_RSV == 0x4000


def test_frames_are_delivered_one_by_one_if_asked(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        turns.opened(pair, granularity=lib.WSPY_FRAMES)
        peer.sendall(frame(1, b"a", final=False) + frame(0, b"b", final=False) + frame(0, b"c"))
        events = turns.settle()
        assert [event.payload for event in events] == [b"a", b"b", b"c"]
        not_final = lib.WSPY_EVENT_NOT_FINAL
        assert kinds(events) == [TEXT | not_final, not_final, 0]


def test_i15_refuse_answers_every_connection_whose_head_is_not_complete() -> None:
    """And says no word to those that have not begun one."""
    fresh, unread, partial, kept, deciding, opened = pairs = [tcp_pair() for _ in range(6)]
    with Turns() as turns:
        turns.adopt(fresh[0])
        turns.adopt(unread[0])
        turns.adopt(partial[0])
        partial[1].sendall(REQUEST[:10])
        kept_handle = turns.awaiting(kept)
        turns.push(RESPOND, kept_handle, b"\x01answer")
        deciding_handle = turns.awaiting(deciding)
        turns.opened(opened)
        turns.settle()
        unread[1].sendall(REQUEST[:1])
        turns.push(REFUSE, 0, UNAVAILABLE)
        assert turns.settle() == []
        assert fresh[1].recv(1) == kept[1].recv(7)[6:] == b"", "at once"
        assert to_the_end(unread[1], turns) == UNAVAILABLE
        assert to_the_end(partial[1], turns) == UNAVAILABLE
        assert received(deciding[1]) == received(opened[1]) == b""
        turns.push(ACCEPT, deciding_handle, accept())
        turns.until(OPENED)
        opened[1].sendall(frame(2, b"alive"))
        assert kinds(turns.until(BINARY)) == [BINARY]
        for _, peer in pairs:
            peer.close()


def test_i15_who_is_refused_gets_the_rest_of_the_last_answer_and_is_not_asked_again(pair: Pair) -> None:
    answer = bytes(range(256)) * 8192
    with Turns() as turns, pair[1] as peer:
        handle = turns.awaiting(pair)
        turns.push(RESPOND, handle, b"\x01" + answer)
        turns.turn()
        assert turns.backlog(handle) > 0
        turns.push(REFUSE, 0, UNAVAILABLE)
        turns.turn()
        peer.sendall(REQUEST)
        assert turns.settle() == []
        assert to_the_end(peer, turns) == answer
