"""Is a turn of the loop fair, bounded and quiet, and does the loop survive what fails around it?"""

from __future__ import annotations

import errno
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from measures import measures_memory, resident
from turns import (
    ABORT,
    ACCEPT,
    ACCEPT_PAUSED,
    BAD_HEAD,
    BROADCAST,
    CLOSED,
    FOREVER,
    GRANT,
    HEAD,
    OPENED,
    PAUSE,
    PINGED,
    REQUEST,
    RESPONSE,
    SEND,
    SEND_MARK,
    SENT,
    SHIFT,
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
    packed_memory,
    received,
    reset,
    server_frames,
    settings,
    tcp_pair,
    to_the_end,
)

from wspy._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


NORMAL = b"\x03\xe8"
TURN_EVENTS = 4096
TURN_BYTES = 1 << 20
READ_BYTES = 256 << 10


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as sock:
        yield sock


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def connected(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname()[:2])


# ---- making and ending ----


def test_a_loop_of_nothing_ends() -> None:
    before = descriptors()
    with Turns() as turns:
        assert descriptors() == before + 3
        assert turns.turn() == []
    assert descriptors() == before
    lib.wspy_loop_free(ffi.NULL)


def test_a_head_limit_above_the_arena_is_refused() -> None:
    packed = ffi.from_buffer("uint8_t[]", packed_memory())
    assert lib.wspy_loop_new(settings(max_head=(256 << 10) + 1), packed) == ffi.NULL
    assert ffi.errno == errno.EINVAL


def test_every_failing_call_of_new_is_survived() -> None:
    before = descriptors()
    packed = ffi.from_buffer("uint8_t[]", packed_memory())
    for call in (lib.WSPY_SYS_CREATE, lib.WSPY_SYS_ALLOCATE, lib.WSPY_SYS_EPOLL_CTL):
        for nth in range(1, 20):
            with faults(call, nth, 1, errno.ENOMEM):
                loop = lib.wspy_loop_new(settings(), packed)
                made = lib.wspy_sys_fail(call, 0, 0, 0, 0)
            if made < nth:
                lib.wspy_loop_free(loop)
                break
            assert loop == ffi.NULL
            assert ffi.errno == errno.ENOMEM
            assert descriptors() == before
        else:
            pytest.fail("more calls than anybody thought")


def test_close_closes_everything_and_later_calls_say_so(pair: Pair, listener: socket.socket) -> None:
    before = descriptors()
    with Turns() as turns:
        turns.listen(listener)
        handle = turns.opened(pair)
        assert lib.wspy_loop_close(turns.loop) == lib.WSPY_OK
        assert descriptors() == before - 1
        assert pair[1].recv(1) == b""
        closed = lib.WSPY_ERROR_CLOSED
        assert lib.wspy_loop_close(turns.loop) == lib.WSPY_OK
        assert lib.wspy_loop_turn(turns.loop, *turns.batch(), 0) == closed
        assert lib.wspy_loop_submit(turns.loop, *turns.batch()) == closed
        assert lib.wspy_loop_wake(turns.loop) == closed
        assert lib.wspy_loop_fd(turns.loop) == closed
        assert lib.wspy_loop_listen(turns.loop, listener.fileno()) == closed
        assert lib.wspy_loop_watch(turns.loop, listener.fileno()) == closed
        assert lib.wspy_loop_adopt(turns.loop, pair[1].fileno(), ffi.new("uint64_t *")) == closed
        assert lib.wspy_loop_alarm(turns.loop, 5) == lib.WSPY_OK
        assert lib.wspy_loop_peer(turns.loop, handle, ffi.new("uint8_t[16]"), *_two_numbers()) <= 0
        assert turns.stats()["connections"] == 0
        lib.wspy_loop_unlisten(turns.loop, listener.fileno())


def _two_numbers() -> tuple[object, object]:
    return ffi.new("uint32_t *"), ffi.new("uint32_t *")


def test_free_releases_connections_in_every_phase(listener: socket.socket) -> None:
    before = descriptors()
    peers = []
    with Turns() as turns:
        turns.listen(listener)
        silent, awaiting, opening, open_, ending, lingering = peers = [connected(listener) for _ in range(6)]
        for peer in peers[1:]:
            peer.sendall(REQUEST)
        heads: dict[int, int] = {}
        ports = {peer.getsockname()[1]: peer for peer in peers}
        while len(heads) < 5:
            for event in turns.turn(100):
                heads[peer_of(turns, event.handle)[1]] = event.handle
        assert ports.keys() >= heads.keys()
        handles = {ports[port]: handle for port, handle in heads.items()}
        turns.push(ACCEPT, handles[opening], accept(RESPONSE + bytes(32 << 20)))
        for peer in (open_, ending, lingering):
            turns.push(ACCEPT, handles[peer], accept())
        turns.settle()
        turns.push(SEND, handles[ending], frame(2, bytes(8 << 20), key=None))
        open_.sendall(frame(2, bytes(100_000))[:50_000])
        ending.sendall(b"\xff\xff")
        lingering.sendall(b"\xff\xff")
        turns.settle()
        assert silent
        assert awaiting
        assert turns.stats()["connections"] == 6
    for peer in peers:
        peer.close()
    assert descriptors() == before


def peer_of(turns: Turns, handle: int) -> tuple[int, int]:
    """Return the size of the peer's address and its port."""
    port, scope = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    return lib.wspy_loop_peer(turns.loop, handle, ffi.new("uint8_t[16]"), port, scope), port[0]


# ---- slots and handles ----


def test_a_freed_slot_is_used_again_but_not_in_the_same_turn(listener: socket.socket) -> None:
    with Turns() as turns:
        turns.listen(listener)
        handles: set[int] = set()
        slots = Counter()
        for _ in range(30):
            with connected(listener) as peer:
                peer.sendall(REQUEST)
                handle = turns.until(HEAD)[-1].handle
            assert handle not in handles, "a handle names one connection only"
            handles.add(handle)
            slots[handle & lib.WSPY_SLOT_MASK] += 1
            next_peer = connected(listener)  # arrives in the turn in which the first is gone
            events: list[Event] = []
            next_peer.sendall(REQUEST)
            turns.push(ABORT, handle)
            while CLOSED not in kinds(events) or HEAD not in kinds(events):
                fresh = turns.turn(100)
                assert len({event.handle & lib.WSPY_SLOT_MASK for event in fresh}) == len(
                    {event.handle for event in fresh}
                )
                events += fresh
            other = next(event.handle for event in events if event.kind == HEAD)
            handles.add(other)
            turns.push(ABORT, other)
            turns.until(CLOSED, other)
            next_peer.close()
        assert len(slots) <= 3


def test_commands_for_a_connection_that_is_gone_are_skipped(pair: Pair) -> None:
    with Turns() as turns:
        first = turns.opened(pair)
        turns.push(ABORT, first)
        turns.until(CLOSED)
        turns.turn()
        ours, peer = socket.socketpair()
        with peer:
            second = turns.opened((ours, peer))
            assert first & lib.WSPY_SLOT_MASK == second & lib.WSPY_SLOT_MASK
            for command in range(20):
                if command not in {BROADCAST, lib.WSPY_COMMAND_REFUSE}:
                    turns.push(command, first, bytes(100))
            assert turns.settle() == []
            assert received(peer) == b""
            turns.push(SEND, second, frame(1, b"here", key=None))
            turns.turn()
            assert server_frames(received(peer)) == [(TEXT, b"here")]


def test_garbage_commands_do_no_harm(pair: Pair) -> None:
    with Turns() as turns:
        handle = turns.opened(pair)
        for command in (18, 100, 4095):
            turns.push(command, handle, b"?")
        turns.push(SEND, (1 << SHIFT) - 1, b"?")
        turns.push(BROADCAST, 0, b"")
        turns.push(BROADCAST, 0, b"\x05\0\0\0")
        turns.push(BROADCAST, 0, struct.pack("=IQ", 2, handle) + b"?")
        turns.push(lib.WSPY_COMMAND_NOTE, handle, b"?")
        turns.push(ACCEPT, handle, b"")
        turns.push(ACCEPT, handle, accept())
        assert turns.settle() == []
        assert received(pair[1]) == b""


# ---- listeners ----


def test_connections_are_accepted_with_their_addresses(listener: socket.socket) -> None:
    with Turns() as turns:
        turns.listen(listener)
        with connected(listener) as peer:
            peer.sendall(REQUEST)
            handle = turns.until(HEAD)[0].handle
            assert peer_of(turns, handle) == (4, peer.getsockname()[1])
            turns.push(ABORT, handle)
            turns.until(CLOSED)
            assert peer_of(turns, handle) == (4, peer.getsockname()[1]), "also after the end"
            assert peer_of(turns, handle + (1 << 24))[0] == lib.WSPY_ERROR_HANDLE


def test_addresses_of_ipv6_and_unix_sockets(tmp_path: object) -> None:
    with Turns() as turns:
        if socket.has_ipv6:
            with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
                turns.listen(listener)
                with connected(listener) as peer:
                    peer.sendall(REQUEST)
                    assert peer_of(turns, turns.until(HEAD)[0].handle) == (16, peer.getsockname()[1])
                lib.wspy_loop_unlisten(turns.loop, listener.fileno())
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{tmp_path}/socket")
            listener.listen()
            turns.listen(listener)
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(f"{tmp_path}/socket")
                peer.sendall(REQUEST)
                assert peer_of(turns, turns.until(HEAD)[-1].handle) == (0, 0)


def test_at_most_sixteen_listeners() -> None:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(17)]
    with Turns() as turns:
        for listener in listeners[:16]:
            turns.listen(listener)
        assert lib.wspy_loop_listen(turns.loop, listeners[16].fileno()) == lib.WSPY_ERROR_ARGUMENT
        assert lib.wspy_loop_unlisten(turns.loop, listeners[3].fileno()) == lib.WSPY_OK
        assert lib.wspy_loop_unlisten(turns.loop, listeners[3].fileno()) == lib.WSPY_ERROR_ARGUMENT
        turns.listen(listeners[16])
        with connected(listeners[16]) as peer:
            peer.sendall(REQUEST)
            turns.until(HEAD)
        assert lib.wspy_loop_listen(turns.loop, -1) == lib.WSPY_ERROR_ARGUMENT
        assert lib.wspy_loop_unlisten(turns.loop, -1) == lib.WSPY_ERROR_ARGUMENT
    for listener in listeners:
        listener.close()


def test_at_most_64_accepts_and_heads_a_turn(listener: socket.socket) -> None:
    with Turns() as turns:
        turns.listen(listener)
        peers = [connected(listener) for _ in range(150)]
        turns.turn(100)
        assert turns.stats()["connections"] == 64
        turns.turn()
        turns.turn()
        assert turns.stats()["connections"] == 150
        for peer in peers:
            peer.sendall(REQUEST)
        counts = [len(turns.turn(100)) for _ in range(3)]
        assert counts == [64, 64, 22]
        for peer in peers:
            peer.close()


@pytest.mark.parametrize("error", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTUNREACH])
def test_h12_after_a_connection_that_was_lost_the_next_is_accepted(listener: socket.socket, error: int) -> None:
    with Turns() as turns:
        turns.listen(listener)
        with connected(listener) as peer, faults(lib.WSPY_SYS_ACCEPT, 1, 1, error):
            peer.sendall(REQUEST)
            assert kinds(turns.until(HEAD)) == [HEAD]
        assert turns.stats()["accept_errors"] == 1


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL, errno.EBADF])
def test_h11_a_listener_that_fails_is_left_alone_for_a_while(listener: socket.socket, error: int) -> None:
    with Turns() as turns:
        turns.listen(listener)
        with connected(listener) as peer, faults(lib.WSPY_SYS_ACCEPT, 1, 1, error):
            peer.sendall(REQUEST)
            began = time.monotonic()
            events = turns.until(HEAD)
            assert kinds(events) == [ACCEPT_PAUSED, HEAD]
            assert events[0].start == error
            assert time.monotonic() - began > 0.09
            assert turns.stats()["turns"] < 8


def test_h11_a_listener_that_epoll_does_not_take_back_is_tried_again(listener: socket.socket) -> None:
    with Turns() as turns:
        turns.listen(listener)
        with connected(listener) as peer:
            peer.sendall(REQUEST)
            with faults(lib.WSPY_SYS_ACCEPT, 1, 1, errno.EMFILE), faults(lib.WSPY_SYS_EPOLL_CTL, 2, 1, errno.ENOSPC):
                began = time.monotonic()
                assert kinds(turns.until(HEAD)) == [ACCEPT_PAUSED, HEAD]
            assert time.monotonic() - began > 0.19


def test_h11_without_room_in_the_epoll_set_a_connection_is_refused(listener: socket.socket) -> None:
    before = descriptors()
    with Turns() as turns:
        turns.listen(listener)
        with connected(listener) as peer, faults(lib.WSPY_SYS_EPOLL_CTL, 1, 1, errno.ENOSPC):
            events = turns.until(ACCEPT_PAUSED)
            assert kinds(events) == [ACCEPT_PAUSED]
            peer.settimeout(5)
            assert peer.recv(1) == b""
        assert turns.stats()["connections"] == 0
        with connected(listener) as peer:
            peer.sendall(REQUEST)
            assert kinds(turns.until(HEAD)) == [HEAD]
    assert descriptors() == before


EXHAUSTED = """
import resource, socket, sys, time
sys.path[:0] = [{tests!r}]
from turns import *

listener = socket.create_server(("127.0.0.1", 0))
with Turns() as turns:
    turns.listen(listener)
    first = socket.create_connection(listener.getsockname())
    first.sendall(REQUEST)
    handle = turns.until(HEAD)[0].handle
    turns.push(ACCEPT, handle, accept())
    turns.until(OPENED)
    waiting = [socket.create_connection(listener.getsockname()) for _ in range(3)]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = max(sock.fileno() for sock in waiting) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    turns.until(ACCEPT_PAUSED)
    began, spent, count = time.monotonic(), time.process_time(), turns.stats()["turns"]
    while time.monotonic() < began + 0.35:
        turns.turn(1000)
    print("turns", turns.stats()["turns"] - count)
    print("milliseconds", round(1000 * (time.process_time() - spent)))
    first.sendall(frame(1, b"still here"))
    print("message", [event.payload for event in turns.until(TEXT) if event.payload])
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    waiting[0].sendall(REQUEST)
    turns.until(HEAD)
    print("accepted", turns.stats()["connections"])
"""


@pytest.mark.slow
def test_h11_without_descriptors_the_loop_is_quiet_and_recovers() -> None:
    script = EXHAUSTED.format(tests=str(Path(__file__).resolve().parent.parent))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert result.returncode == 0, result.stderr
    said = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert int(said["turns"]) <= 10
    assert int(said["milliseconds"]) < 30
    assert said["message"] == "[b'still here']"
    assert int(said["accepted"]) == 4


def test_no_more_connections_are_accepted_than_allowed(listener: socket.socket) -> None:
    """Silent ones count, too: descriptors are left for everything else."""
    with Turns(max_connections=5) as turns:
        turns.listen(listener)
        silent = [connected(listener) for _ in range(8)]
        events = turns.until(ACCEPT_PAUSED)
        assert [event.start for event in events] == [errno.EMFILE]
        turns.settle()
        assert turns.stats()["connections"] == 5
        for sock in silent[:3]:
            sock.close()
        end = time.monotonic() + 10
        while turns.stats()["accepted"] < 8:
            assert time.monotonic() < end
            turns.turn(10)
        assert turns.stats()["connections"] == 5
        for sock in silent:
            sock.close()


def test_b_heads_come_behind_established_connections_and_so_many_in_a_turn(pair: Pair) -> None:
    waiting = [socket.socketpair() for _ in range(200)]
    with Turns() as turns:
        handle = turns.opened(pair)
        for ours, peer in waiting:
            turns.adopt(ours)
            peer.sendall(REQUEST)
        seen = 0
        while seen < len(waiting):
            pair[1].sendall(frame(1, b"me first"))
            events = turns.turn()
            assert [event.handle == handle for event in events] == [True] + [False] * (len(events) - 1)
            assert 1 < len(events) <= 65
            seen += len(events) - 1
        for _, peer in waiting:
            peer.close()


# ---- adopting ----


def test_adopt_without_room_leaves_the_descriptor_to_its_owner(pair: Pair) -> None:
    calls = [
        (lib.WSPY_SYS_ALLOCATE, errno.ENOMEM, lib.WSPY_ERROR_NO_MEMORY),
        (lib.WSPY_SYS_EPOLL_CTL, errno.ENOSPC, lib.WSPY_ERROR_SYSTEM),
    ]
    with Turns() as turns:
        handle = ffi.new("uint64_t *", 77)
        for call, error, expected in calls:
            with faults(call, 1, 1, error):
                result = lib.wspy_loop_adopt(turns.loop, pair[0].fileno(), handle)
            assert result == expected
            assert handle[0] == 77
            assert turns.stats()["connections"] == 0
            pair[1].sendall(b"x")
            assert pair[0].recv(1) == b"x", "it is open, and nobody else's"
        assert turns.opened(pair) & lib.WSPY_SLOT_MASK == 0


def test_adopt_and_listen_set_what_the_settings_say(listener: socket.socket) -> None:
    ours, peer = tcp_pair()
    tcp_notsent_lowat = 25
    with Turns(notsent_lowat=54_321) as turns, peer:
        copy = ours.dup()
        turns.adopt(ours)
        turns.listen(listener)
        for sock in (copy, listener):
            assert sock.getsockopt(socket.IPPROTO_TCP, tcp_notsent_lowat) == 54_321
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        copy.close()


# ---- a turn is bounded and fair ----


def tiny(count: int, length: int = 1) -> bytes:
    return frame(2, b"x" * length) * count


class Flood:
    """Peers that send tiny frames as fast as the kernel takes them."""

    def __init__(self, peers: list[socket.socket]) -> None:
        self._left = dict.fromkeys(peers, b"")
        self._data = tiny(12_000)

    def go_on(self) -> None:
        """Send until each peer's kernel takes no more, or a turn's worth is sent."""
        for peer, left in self._left.items():
            peer.settimeout(0)
            data = left + self._data
            try:
                sent = peer.send(data)
            except BlockingIOError:
                continue
            cut = (len(data) - sent) % 7
            self._left[peer] = data[len(data) - cut :] if cut else b""


def test_a_turn_has_at_most_4096_events() -> None:
    ours, peer = tcp_pair()
    with Turns() as turns, peer:
        turns.opened((ours, peer))
        peer.settimeout(5)
        sender = threading.Thread(target=peer.sendall, args=(tiny(20_000),))
        sender.start()
        counts = []
        while sum(counts) < 20_000:
            counts.append(len(turns.turn(100)))
        sender.join()
        assert max(counts) == TURN_EVENTS


def test_a_turn_has_at_most_a_mebibyte_and_a_bit() -> None:
    pairs = [tcp_pair() for _ in range(12)]
    with Turns() as turns:
        for pair in pairs:
            turns.opened(pair)
        data = frame(2, bytes(5000)) * 60
        threads = [threading.Thread(target=peer.sendall, args=(data,)) for _, peer in pairs]
        for _, peer in pairs:
            peer.settimeout(5)
        for thread in threads:
            thread.start()
        sizes = []
        while sum(sizes) < 12 * 60 * 5000:
            sizes.append(sum(len(event.payload) for event in turns.turn(100)))
        for thread in threads:
            thread.join()
        assert max(sizes) <= TURN_BYTES + READ_BYTES + 5014
        for _, peer in pairs:
            peer.close()


def test_of_one_connection_a_turn_reads_a_quarter_of_a_mebibyte() -> None:
    ours, peer = tcp_pair()
    with Turns(max_size=8 << 20) as turns, peer:
        turns.opened((ours, peer))
        peer.settimeout(5)
        sender = threading.Thread(target=peer.sendall, args=(frame(2, bytes(4 << 20)),))
        sender.start()
        events: list[Event] = []
        most = read = 0
        while not events:
            events = turns.turn(100)
            now = turns.stats()["bytes_received"]
            most, read = max(most, now - read), now
        sender.join()
        assert most <= READ_BYTES
        assert len(events[0].payload) == 4 << 20


@pytest.mark.slow
def test_deadlines_pass_under_a_flood() -> None:
    """Every turn is full, and a head that is never complete gets its answer, an idle peer its ping all the same."""
    flooder, slow, idle = tcp_pair(), tcp_pair(), tcp_pair()
    with Turns(open_timeout_ms=50, ping_interval_ms=50, wants=lib.WSPY_WANT_PINGED) as turns:
        turns.opened(flooder)
        idle_handle = turns.opened(idle)
        flood = Flood([flooder[1]])
        for _ in range(10):
            flood.go_on()
            turns.turn()
        slow_handle = turns.adopt(slow[0])
        slow[1].sendall(REQUEST[:-2])
        seen: dict[int, int] = {}
        end = time.monotonic() + 2
        while len(seen) < 2 and time.monotonic() < end:
            flood.go_on()
            events = turns.turn()
            assert len(events) >= TURN_EVENTS
            seen.update((event.handle, event.kind) for event in events if event.handle in {slow_handle, idle_handle})
        assert seen == {slow_handle: BAD_HEAD, idle_handle: PINGED}
        for _, peer in (flooder, slow, idle):
            peer.close()


@measures_memory
def test_the_memory_of_a_burst_is_given_back() -> None:
    pairs = [tcp_pair() for _ in range(25)]
    with Turns() as turns:
        for pair in pairs:
            turns.opened(pair)
        for _, peer in pairs:
            peer.settimeout(0)
            peer.send(frame(2, bytes(60_000)) * 2)
        events = turns.turn()
        assert sum(len(event.payload) for event in events) > 700_000
        before = resident()
        for _ in range(70):
            turns.turn()
        assert before - resident() > 256 << 10
        for _, peer in pairs:
            peer.close()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_established_connections_have_their_turn_under_a_flood(count: int) -> None:
    """Each flooder alone fills every turn; none of the others, and no newcomer, waits for long."""
    flooders = [tcp_pair() for _ in range(count)]
    quiet, newcomer = tcp_pair(), tcp_pair()
    with Turns() as turns:
        handles = [turns.opened(pair) for pair in flooders]
        quiet_handle = turns.opened(quiet)
        flood = Flood([peer for _, peer in flooders])
        for _ in range(10):
            flood.go_on()
            turns.turn()
        quiet[1].sendall(frame(1, b"may I?"))
        newcomer_handle = turns.adopt(newcomer[0])
        newcomer[1].sendall(REQUEST)
        waits: dict[int, int] = {}
        delivered: Counter[int] = Counter()
        for number in range(30 * count):
            events = turns.turn()
            delivered.update(event.handle for event in events)
            for event in events:
                if event.handle in {quiet_handle, newcomer_handle}:
                    waits.setdefault(event.handle, number)
            flood.go_on()
        assert waits.keys() == {quiet_handle, newcomer_handle}
        assert max(waits.values()) <= 12 * count, waits
        least, most = (choose(delivered[handle] for handle in handles) for choose in (min, max))
        assert most < 3 * least, delivered
        for _, peer in (*flooders, quiet, newcomer):
            peer.close()


# ---- quiet: what can't be consumed must not be reported for ever ----


def quiet_turns(turns: Turns) -> tuple[int, float]:
    """Turn for 0.3 s, 0.1 s at a time; return how many turns that took, and seconds of CPU."""
    turns.settle()
    began, spent, count = time.monotonic(), time.process_time(), 0
    while time.monotonic() < began + 0.3:
        assert turns.turn(100) == []
        count += 1
    return count, time.process_time() - spent


def assert_quiet(turns: Turns) -> None:
    count, spent = quiet_turns(turns)
    assert count <= 5
    assert spent < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("state", ["paused", "out of credit"])
@pytest.mark.parametrize("event", ["data", "end", "reset"])
def test_a_connection_that_may_not_be_read_is_quiet(state: str, event: str) -> None:
    ours, peer = tcp_pair()
    with Turns() as turns:
        handle = turns.opened((ours, peer), credit=0 if state == "out of credit" else FOREVER)
        if state == "paused":
            turns.push(PAUSE, handle)
        peer.sendall(frame(1, b"hello"))
        if event == "end":
            peer.shutdown(socket.SHUT_WR)
        if event == "reset":
            reset(peer)
        assert_quiet(turns)
        turns.push(lib.WSPY_COMMAND_RESUME, handle)
        turns.push(GRANT, handle, struct.pack("=I", FOREVER))
        events = turns.settle()
        assert kinds(events) == [TEXT] if event == "data" else [TEXT, CLOSED]
        peer.close()


@pytest.mark.slow
@pytest.mark.parametrize("event", ["data", "much data", "end", "reset"])
def test_a_connection_that_awaits_its_decision_is_quiet(event: str) -> None:
    ours, peer = tcp_pair()
    with Turns() as turns:
        handle = turns.awaiting((ours, peer))
        if event in {"data", "much data"}:
            peer.settimeout(0)
            peer.send(bytes(1000 if event == "data" else 1 << 20))
        if event == "end":
            peer.shutdown(socket.SHUT_WR)
        if event == "reset":
            reset(peer)
            turns.until(CLOSED, handle)
        assert_quiet(turns)
        peer.close()


@pytest.mark.slow
def test_a_connection_with_a_queue_that_is_not_read_is_quiet() -> None:
    ours, peer = tcp_pair()
    with Turns() as turns, peer:
        handle = turns.opened((ours, peer))
        turns.push(SEND, handle, frame(2, bytes(16 << 20), key=None))
        turns.push(PAUSE, handle)
        peer.sendall(frame(1, b"hello"))
        assert_quiet(turns)


@pytest.mark.slow
def test_an_ending_and_a_lingering_connection_are_quiet() -> None:
    (ours, peer), (ours_2, peer_2) = tcp_pair(), tcp_pair()
    with Turns() as turns:
        handle = turns.opened((ours, peer))
        turns.push(SEND, handle, frame(2, bytes(16 << 20), key=None))
        turns.turn()
        turns.opened((ours_2, peer_2))
        for sock in (peer, peer_2):
            sock.sendall(b"\xff\xff")
        turns.until(CLOSED)
        peer.sendall(bytes(1000))
        assert_quiet(turns)
        assert turns.stats()["connections"] == 2
        peer.close()
        peer_2.close()


@pytest.mark.slow
def test_a_lingering_connection_that_epoll_does_not_let_go_is_not_waited_for() -> None:
    ours, peer = tcp_pair()
    with Turns() as turns, peer:
        handle = turns.opened((ours, peer))
        turns.push(SEND, handle, frame(2, bytes(16 << 20), key=None))
        peer.sendall(b"\xff\xff")
        turns.settle()
        with faults(lib.WSPY_SYS_EPOLL_CTL, 1, 1, errno.ENOMEM):
            data = b""
            while turns.backlog(handle):
                turns.turn()
                data += received(peer)
            assert kinds(turns.settle()) in ([], [CLOSED])
        count, _spent = quiet_turns(turns)
        assert count <= 5
        assert turns.stats()["connections"] == 0


@pytest.mark.slow
def test_a_loop_with_nothing_but_idle_connections_is_quiet(listener: socket.socket) -> None:
    with Turns(ping_interval_ms=60_000, ping_timeout_ms=60_000, open_timeout_ms=60_000) as turns:
        turns.listen(listener)
        pairs = [tcp_pair() for _ in range(20)]
        for pair in pairs[:10]:
            turns.opened(pair)
        for pair in pairs[10:]:
            turns.adopt(pair[0])
        assert_quiet(turns)
        for _, peer in pairs:
            peer.close()


# ---- waking ----


def test_wake_ends_the_running_and_the_next_wait(pair: Pair) -> None:
    with Turns() as turns:
        turns.opened(pair)
        assert lib.wspy_loop_wake(turns.loop) == lib.WSPY_OK
        assert turns.turn(10_000) == []
        thread = threading.Timer(0.02, lib.wspy_loop_wake, (turns.loop,))
        thread.start()
        began = time.monotonic()
        assert turns.turn(10_000) == []
        assert time.monotonic() - began < 5
        thread.join()


def test_an_alarm_ends_a_wait_once() -> None:
    with Turns() as turns:
        now = lib.wspy_loop_now_ms(turns.loop)
        assert lib.wspy_loop_alarm(turns.loop, now + 30) == lib.WSPY_OK
        began = time.monotonic()
        assert turns.turn(10_000) == []
        assert 0.02 < time.monotonic() - began < 5
        assert lib.wspy_loop_now_ms(turns.loop) >= now + 30
        began = time.monotonic()
        turns.turn(60)
        assert time.monotonic() - began > 0.05


def test_an_alarm_may_be_moved_and_taken_back() -> None:
    with Turns() as turns:
        now = lib.wspy_loop_now_ms(turns.loop)
        lib.wspy_loop_alarm(turns.loop, now + 60_000)
        lib.wspy_loop_alarm(turns.loop, now + 20)
        began = time.monotonic()
        turns.turn(10_000)
        assert time.monotonic() - began < 5
        lib.wspy_loop_alarm(turns.loop, lib.wspy_loop_now_ms(turns.loop) + 20)
        lib.wspy_loop_alarm(turns.loop, 0)
        before = turns.stats()["turns"]
        while lib.wspy_loop_now_ms(turns.loop) < now + 150:
            turns.turn(100)
        assert turns.stats()["turns"] - before <= 4


@pytest.mark.parametrize("at", [1, (1 << 62), (1 << 64) - 1])
def test_an_alarm_in_the_past_or_never(at: int) -> None:
    with Turns() as turns:
        lib.wspy_loop_alarm(turns.loop, at)
        turns.turn(20)
        count, _spent = quiet_turns(turns)
        assert count <= 5


def test_a_watched_descriptor_ends_a_wait_and_is_drained(pair: Pair) -> None:
    ours, theirs = pair
    ours.settimeout(0)
    with Turns() as turns:
        assert lib.wspy_loop_watch(turns.loop, ours.fileno()) == lib.WSPY_OK
        theirs.sendall(bytes(1000))
        assert turns.turn(10_000) == []
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        began = time.monotonic()
        turns.turn(30)
        assert time.monotonic() - began > 0.02
        assert lib.wspy_loop_watch(turns.loop, -1) == lib.WSPY_OK
        theirs.sendall(b"x")
        turns.turn()
        assert ours.recv(1) == b"x"
        assert lib.wspy_loop_watch(turns.loop, 1_000_000) == lib.WSPY_ERROR_SYSTEM


def test_the_descriptor_of_the_loop_is_readable_when_a_turn_has_work(pair: Pair) -> None:
    def is_readable(seconds: float) -> bool:
        return bool(select.select([lib.wspy_loop_fd(turns.loop)], [], [], seconds)[0])

    with Turns(ping_interval_ms=40, ping_timeout_ms=40) as turns:
        handle = turns.opened(pair)
        while is_readable(0):
            turns.turn()
        assert not is_readable(0)
        pair[1].sendall(frame(1, b"x"))
        assert is_readable(5)
        turns.turn()
        assert is_readable(5), "the keepalive"
        turns.turn()
        turns.push(SEND_MARK, handle, frame(1, b"y", key=None))
        turns.submit()
        assert is_readable(0), "what came up in submit"
        assert SENT in kinds(turns.turn())


# ---- threads ----


def test_a_second_turn_is_refused_while_one_is_running(pair: Pair) -> None:
    with Turns() as turns:
        turns.opened(pair)
        results: list[int] = []
        waiting = threading.Thread(target=lambda: results.append(lib.wspy_loop_turn(turns.loop, *turns.batch(), -1)))
        before = turns.stats()["turns"]
        waiting.start()
        while turns.stats()["turns"] == before:
            pass
        assert lib.wspy_loop_turn(turns.loop, *turns.pack(turns._applied, []), 0) == lib.WSPY_ERROR_BUSY
        assert lib.wspy_loop_close(turns.loop) == lib.WSPY_ERROR_BUSY
        lib.wspy_loop_wake(turns.loop)
        waiting.join()
        assert results == [0]
        assert turns.turn() == []


def test_submit_writes_while_another_thread_waits_in_a_turn(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        events: list[Event] = []
        before = turns.stats()["turns"]
        waiting = threading.Thread(target=lambda: events.extend(turns.turn(10_000)))
        waiting.start()
        while turns.stats()["turns"] == before:
            pass
        message = frame(1, b"hello", key=None)
        batch = turns.pack(turns._applied, [(SEND << SHIFT | handle, message)])
        assert lib.wspy_loop_submit(turns.loop, *batch) == lib.WSPY_OK
        assert exactly(peer, len(message)) == message
        assert waiting.is_alive(), "nothing to report: the turn goes on"
        batch = turns.pack(turns._applied + 1, [(SEND_MARK << SHIFT | handle, message)])
        assert lib.wspy_loop_submit(turns.loop, *batch) == lib.WSPY_OK
        waiting.join(10)
        turns._applied += 2
        assert exactly(peer, len(message)) == message
        events += turns.settle()
        assert kinds(events) == [SENT]


def test_a_connection_that_is_adopted_by_another_thread_is_read(pair: Pair) -> None:
    with Turns(open_timeout_ms=10_000) as turns, pair[1] as peer:
        events: list[Event] = []
        before = turns.stats()["turns"]
        waiting = threading.Thread(target=lambda: events.extend(turns.turn(10_000)))
        waiting.start()
        while turns.stats()["turns"] == before:
            pass
        turns.adopt(pair[0])
        peer.sendall(REQUEST)
        waiting.join(10)
        events += turns.settle()
        assert kinds(events) == [HEAD]


# ---- a loop that was kept from turning ----


def late(listener: socket.socket, seconds: float) -> None:
    """Let time pass without a turn: what a handler does that takes long."""
    listener.settimeout(seconds)
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.settimeout(0)


def by_either(test: Callable[..., None]) -> Callable[..., None]:
    """Make a test twice: without TLS, and with what takes its place and needs a turn more for the same."""
    return pytest.mark.parametrize("kind", [Turns, Sealed])(test)


@pytest.mark.slow
@by_either
def test_a_late_loop_reads_every_head_that_came_in_time(listener: socket.socket, kind: type[Turns]) -> None:
    with kind(open_timeout_ms=100) as turns, socket.create_server(("127.0.0.1", 0)) as clock:
        turns.listen(listener)
        peers = [connected(listener) for _ in range(200)]
        while turns.stats()["connections"] < 200:
            turns.turn(100)
        for peer in peers:
            peer.sendall(REQUEST)
        late(clock, 0.3)
        assert kinds(turns.settle()) == [HEAD] * 200
        assert turns.stats()["connections"] == 200
        for peer in peers:
            peer.close()


@pytest.mark.slow
@by_either
def test_without_a_deadline_a_decision_may_take_as_long_as_it_likes(pair: Pair, kind: type[Turns]) -> None:
    with kind() as turns, socket.create_server(("127.0.0.1", 0)) as clock:
        turns.adopt(pair[0])
        late(clock, 0.2)
        pair[1].sendall(REQUEST)
        turns.until(HEAD)
        began = time.monotonic()
        while time.monotonic() < began + 1.3:
            assert turns.turn(100) == []


@pytest.mark.slow
@by_either
def test_a_late_loop_gives_nobody_up_who_let_something_through(pair: Pair, kind: type[Turns]) -> None:
    with kind(ping_interval_ms=50, ping_timeout_ms=50) as turns, socket.create_server(("127.0.0.1", 0)) as clock:
        handle = turns.opened(pair)
        turns.push(SEND, handle, frame(2, bytes(4 << 20), key=None))
        turns.turn()
        received(pair[1])
        late(clock, 0.3)
        with faults(lib.WSPY_SYS_EPOLL_WAIT, 1, 1, errno.EINTR):  # it did not come to this connection
            assert turns.turn() == []
        assert turns.settle() == []


@pytest.mark.slow
@by_either
@pytest.mark.parametrize("seconds", [0.1, 0.3], ids=["late", "very late"])
def test_a_late_loop_reads_a_close_that_came_in_time(pair: Pair, kind: type[Turns], seconds: float) -> None:
    with kind(close_timeout_ms=50) as turns, socket.create_server(("127.0.0.1", 0)) as clock:
        handle = turns.opened(pair)
        turns.push(lib.WSPY_COMMAND_CLOSE, handle, NORMAL)
        turns.turn()
        pair[1].sendall(frame(8, NORMAL))
        late(clock, seconds)
        assert turns.until(CLOSED)[-1].error == 0


@pytest.mark.slow
@by_either
def test_a_late_loop_that_comes_to_nothing_waits_for_what_lies_there(pair: Pair, kind: type[Turns]) -> None:
    with kind(close_timeout_ms=50) as turns, socket.create_server(("127.0.0.1", 0)) as clock:
        handle = turns.opened(pair)
        turns.push(lib.WSPY_COMMAND_CLOSE, handle, NORMAL)
        turns.turn()
        pair[1].sendall(frame(8, NORMAL))
        late(clock, 0.3)
        with faults(lib.WSPY_SYS_EPOLL_WAIT, 1, 1, errno.EINTR):
            events = turns.turn()
        events += turns.until(CLOSED)
        assert events[-1].error == 0


@pytest.mark.slow
@by_either
def test_a_late_loop_waits_for_the_answer_to_a_close_that_has_just_left(pair: Pair, kind: type[Turns]) -> None:
    """Another thread has closed it during a long handler."""
    with kind(close_timeout_ms=50) as turns, socket.create_server(("127.0.0.1", 0)) as clock, pair[1] as peer:
        handle = turns.opened(pair)
        turns.push(lib.WSPY_COMMAND_CLOSE, handle, NORMAL)
        turns.submit()
        if kind is Turns:
            peer.sendall(frame(8, NORMAL))
        late(clock, 0.3)
        events = turns.turn()
        assert exactly(peer, 4) == b"\x88\x02" + NORMAL
        if kind is Sealed:
            peer.sendall(frame(8, NORMAL))
        events += turns.until(CLOSED)
        assert events[-1].error == 0


@pytest.mark.slow
@by_either
@pytest.mark.parametrize("seconds", [0.1, 0.3], ids=["late", "very late"])
def test_a_late_decision_is_one_if_the_loop_had_no_time_to_say_so(
    pair: Pair, kind: type[Turns], seconds: float
) -> None:
    with kind(open_timeout_ms=50) as turns, socket.create_server(("127.0.0.1", 0)) as clock:
        handle = turns.awaiting(pair)
        late(clock, seconds)
        turns.push(ACCEPT, handle, accept())
        assert kinds(turns.until(OPENED)) == [OPENED]
        assert exactly(pair[1], len(RESPONSE)) == RESPONSE
        assert turns.settle() == []
        assert turns.stats()["timeouts"] == 0


@pytest.mark.slow
@by_either
@pytest.mark.parametrize("seconds", [0.1, 0.3], ids=["late", "very late"])
def test_a_late_loop_writes_an_end_that_the_kernel_takes(pair: Pair, kind: type[Turns], seconds: float) -> None:
    with kind(close_timeout_ms=50) as turns, socket.create_server(("127.0.0.1", 0)) as clock, pair[1] as peer:
        handle = turns.opened(pair)
        with faults(lib.WSPY_SYS_SEND, 1, 1000, errno.EAGAIN):
            turns.push(SEND, handle, frame(1, b"hello", key=None))
            turns.settle()
            peer.sendall(b"\xff\xff")
            assert turns.settle() == []
        late(clock, seconds)
        [closed] = turns.until(CLOSED)
        assert (closed.start, closed.error) == (1002, lib.WSPY_ERROR_OPCODE)
        assert to_the_end(peer, turns) == b"\x81\x05hello\x88\x02\x03\xea"


# ---- signals ----


def test_i3_a_signal_ends_the_wait_and_nothing_else(pair: Pair) -> None:
    with Turns() as turns:
        turns.opened(pair)
        with faults(lib.WSPY_SYS_EPOLL_WAIT, 1, 1, errno.EINTR):
            began = time.monotonic()
            assert turns.turn(10_000) == []
            assert time.monotonic() - began < 5
        pair[1].sendall(frame(1, b"x"))
        assert kinds(turns.turn(1000)) == [TEXT]


def test_a_failing_epoll_is_reported(pair: Pair) -> None:
    with Turns() as turns:
        turns.opened(pair)
        with faults(lib.WSPY_SYS_EPOLL_WAIT, 1, 1, errno.EBADF):
            assert lib.wspy_loop_turn(turns.loop, *turns.batch(), 0) == lib.WSPY_ERROR_SYSTEM
            assert ffi.errno == errno.EBADF
        pair[1].sendall(frame(1, b"x"))
        assert kinds(turns.turn(1000)) == [TEXT]


# ---- fork ----

FORK = """
import os, sys
sys.path[:0] = [{tests!r}]
from turns import *

pairs = [tcp_pair() for _ in range(3)]
with Turns() as turns:
    handles = [turns.opened(pair) for pair in pairs]
    turns.push(SEND, handles[0], frame(2, bytes(16 << 20), key=None))
    turns.turn()
    child = os.fork()
    if child == 0:
        lib.wspy_loop_abandon(turns.loop)
        results = [
            lib.wspy_loop_turn(turns.loop, *turns.batch(), 0),
            lib.wspy_loop_submit(turns.loop, *turns.batch()),
            lib.wspy_loop_wake(turns.loop),
            lib.wspy_loop_fd(turns.loop),
        ]
        lib.wspy_loop_free(turns.loop)
        os._exit(0 if results == [lib.WSPY_ERROR_CLOSED] * 4 else 1)
    print("child", os.waitpid(child, 0)[1])
    for handle, (_, peer) in zip(handles[1:], pairs[1:]):
        peer.sendall(frame(1, b"still here?"))
        turns.until(TEXT, handle)
        turns.push(SEND, handle, frame(1, b"yes", key=None))
        turns.turn()
        assert server_frames(received(peer)) == [(1, b"yes")]
    print("connections", turns.stats()["connections"])
"""


def test_i17_a_child_that_abandons_the_loop_leaves_it_to_its_parent() -> None:
    script = FORK.format(tests=str(Path(__file__).resolve().parent.parent))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["child", "0", "connections", "3"]


# ---- every n-th failing call ----


def conversation(turns: Turns, bystander: int) -> bool:
    """Have one connection do a bit of everything, as far as it lives; return whether it was opened."""
    ours, peer = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ours.settimeout(0)
    handle = ffi.new("uint64_t *")
    if lib.wspy_loop_adopt(turns.loop, ours.fileno(), handle) < 0:
        ours.close()
        peer.close()
        return False
    ours.detach()
    peer.settimeout(0)
    events: list[Event] = []
    steps = [
        (REQUEST[:10], []),
        (REQUEST[10:], []),
        (b"", [(SEND_MARK, frame(2, bytes(20_000), key=None))]),
        (frame(1, b"hello") + frame(9, b"?"), [(SEND_MARK, frame(1, b"x", key=None)), (PAUSE, b"")]),
        (frame(2, bytes(30_000)), [(lib.WSPY_COMMAND_RESUME, b""), (GRANT, b"\1\0\0\0")]),
        (frame(2, bytes(30_000), final=False) + frame(0, b"x"), [(BROADCAST, b"")]),
        (frame(8, NORMAL), [(lib.WSPY_COMMAND_CLOSE, NORMAL)]),
    ]
    for data, commands in steps:
        with_peer(peer, data)
        for command, payload in commands:
            if command == BROADCAST:
                turns.push(BROADCAST, 1, struct.pack("=IQ", 1, handle[0]) + frame(1, b"all", key=None))
            else:
                turns.push(command, handle[0], payload)
        for _ in range(6):
            fresh = turns.turn()
            if HEAD in kinds(fresh):
                turns.push(ACCEPT, handle[0], accept(credit=100))
            events += fresh
            with_peer(peer, b"")
    peer.close()
    turns.push(ABORT, handle[0])
    events += turns.until_only(1)
    mine = [event for event in events if event.handle == handle[0]]
    assert all(event.handle in {handle[0], bystander, 0} for event in events)
    reported = kinds(mine)
    assert reported.count(CLOSED) == (HEAD in reported), mine
    assert CLOSED not in reported[:-1], "the last event"
    assert OPENED not in reported or reported.index(OPENED) == 1, mine
    assert SENT not in reported or OPENED in reported
    return OPENED in reported


def with_peer(peer: socket.socket, data: bytes) -> None:
    """Let the peer send and receive what it can."""
    try:
        if data:
            peer.send(data)
        while peer.recv(65536):
            pass
    except (BlockingIOError, ConnectionError):
        pass


CALLS = {
    "allocate": (lib.WSPY_SYS_ALLOCATE, [errno.ENOMEM]),
    "recv": (lib.WSPY_SYS_RECV, [errno.ECONNRESET, errno.EAGAIN, errno.ENOMEM, errno.ETIMEDOUT]),
    "send": (lib.WSPY_SYS_SEND, [errno.EPIPE, errno.ECONNRESET, errno.EAGAIN, errno.ENOBUFS]),
    "epoll_ctl": (lib.WSPY_SYS_EPOLL_CTL, [errno.ENOMEM, errno.ENOSPC]),
    "epoll_wait": (lib.WSPY_SYS_EPOLL_WAIT, [errno.EINTR]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_only_the_connection_that_is_hit_by_a_failing_call_suffers(name: str, pair: Pair) -> None:
    call, errors = CALLS[name]
    before = descriptors()
    with Turns(open_timeout_ms=10_000, ping_interval_ms=10_000, ping_timeout_ms=10_000) as turns:
        bystander = turns.opened(pair)
        for error in errors:
            for times in (1, 3):
                nth, made = 0, 1
                while made >= nth:
                    nth += 1
                    with faults(call, nth, times, error):
                        conversation(turns, bystander)
                        made = lib.wspy_sys_fail(call, 0, 0, 0, 0)
                    pair[1].sendall(frame(1, b"here"))
                    assert [event.payload for event in turns.until(TEXT)] == [b"here"]
                    turns.push(SEND, bystander, frame(1, b"yes", key=None))
                    turns.turn()
                    assert server_frames(received(pair[1])) == [(1, b"yes")]
                assert nth > 1, "the call is made at all"
        assert conversation(turns, bystander)
    assert descriptors() == before - 1


def test_a_deadline_passes_though_the_timer_could_not_be_set(pair: Pair) -> None:
    with Turns(open_timeout_ms=50) as turns:
        with faults(lib.WSPY_SYS_TIMER, 1, 1_000_000, errno.ECANCELED):
            turns.adopt(pair[0])
            began = time.monotonic()
            turns.turn(10_000)
            while turns.stats()["connections"] and time.monotonic() < began + 5:
                turns.turn(10_000)
        assert turns.stats()["timeouts"] == 1
        assert time.monotonic() - began < 5


def test_broadcast_shares_one_payload() -> None:
    pairs = [socket.socketpair() for _ in range(100)]
    message = frame(2, bytes(1 << 20), key=None)
    with Turns() as turns:
        handles = [turns.opened(pair) for pair in pairs]
        turns.push(BROADCAST, 0, struct.pack("=I100Q", 100, *handles) + message)
        before = resident()
        turns.turn()
        assert turns.stats()["backlog"] > 50 << 20
        assert resident() - before < 16 << 20
        for _, peer in pairs[:3]:
            assert to_the_end_of(peer, turns, len(message)) == message
        for _, peer in pairs:
            peer.close()
        assert sorted(event.handle for event in turns.settle()) == sorted(handles)


def to_the_end_of(peer: socket.socket, turns: Turns, size: int) -> bytes:
    data = b""
    while len(data) < size:
        turns.turn()
        data += received(peer)
    return data


def test_h7_of_many_that_are_told_the_stalled_ones_wait_alone() -> None:
    pairs = [tcp_pair() for _ in range(20)]
    message = frame(2, bytes(100_000), key=None)
    with Turns(max_backlog=200_000) as turns:
        handles = [turns.opened(pair) for pair in pairs]
        stalled, live = pairs[:10], pairs[10:]
        for _, peer in pairs:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        ended: set[int] = set()
        for _ in range(100):
            turns.push(BROADCAST, 0, struct.pack("=I", FOREVER) + message)
            ended |= {event.handle for event in turns.settle() if event.kind == CLOSED}
            for _, peer in live:
                assert to_the_end_of(peer, turns, len(message)) == message
        assert ended == set(handles[:10])
        for _, peer in (*stalled, *live):
            peer.close()


def test_marks_of_a_broadcast_are_reported_for_each(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        for length in (10, 1 << 20):
            message = frame(2, bytes(length), key=None)
            turns.push(BROADCAST, lib.WSPY_BROADCAST_MARK, struct.pack("=IQ", 1, handle) + message)
            turns.push(SEND, handle, frame(1, b"after", key=None))
            assert to_the_end_of(peer, turns, len(message) + 7) == message + frame(1, b"after", key=None)
        assert turns.stats()["broadcasts"] == 2


def test_statistics_count(listener: socket.socket) -> None:
    with Turns() as turns:
        turns.listen(listener)
        with connected(listener) as peer:
            peer.sendall(REQUEST)
            handle = turns.until(HEAD)[0].handle
            assert turns.stats()["handshakes"] == 1
            turns.push(ACCEPT, handle, accept())
            turns.until(OPENED)
            peer.sendall(frame(1, b"x") + b"\xff\xff")
            turns.until(CLOSED)
            stats = turns.stats()
        turns.until_empty()
    said = {name: stats[name] for name in ("accepted", "opened", "messages_received", "protocol_errors", "handshakes")}
    assert said == {"accepted": 1, "opened": 1, "messages_received": 1, "protocol_errors": 1, "handshakes": 0}
    assert stats["bytes_received"] == len(REQUEST) + 9
    assert stats["bytes_sent"] == len(RESPONSE) + 4


def test_the_end_of_a_connection_is_flushed_before_the_peer_sees_it(pair: Pair) -> None:
    with Turns() as turns, pair[1] as peer:
        handle = turns.opened(pair)
        message = frame(2, bytes(1 << 20), key=None)
        turns.push(SEND, handle, message)
        turns.push(lib.WSPY_COMMAND_CLOSE, handle, NORMAL)
        turns.turn()
        peer.sendall(frame(8, NORMAL))
        assert to_the_end(peer, turns) == message + frame(8, NORMAL, key=None)
