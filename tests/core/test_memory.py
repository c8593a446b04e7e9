"""Does the loop say what its connections take, each byte where it belongs, and once?"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import pytest
from measures import UNDER_ADDRESS_SANITIZER
from memory import allocated
from turns import (
    ABORT,
    BROADCAST,
    FEED,
    FOREVER,
    HEAD,
    RAW,
    REQUEST,
    SEND,
    TEXT,
    Pair,
    Sealed,
    Turns,
    frame,
    tcp_pair,
)

from wspy._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS: Final = ("records", "heads", "remainders", "queues", "raw")
HEAD_READ: Final = 16 << 10
BLOCK: Final = 4096 + 256
"""As much as may be counted beside the bytes themselves: a page, and what the core and malloc have in front."""


def memory(turns: Turns) -> dict[str, int]:
    """Return what the loop says."""
    found = ffi.new("wspy_memory *")
    assert lib.wspy_loop_memory(turns.loop, found) == lib.WSPY_OK
    return {kind: int(getattr(found, kind)) for kind in KINDS}


def beside_records(turns: Turns) -> dict[str, int]:
    """Return what the loop says but for records, without zeros."""
    found = memory(turns)
    del found["records"]
    return {kind: size for kind, size in found.items() if size}


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Sixteen pairs of connected sockets, the first of each with little room in the kernel."""
    made = [tcp_pair() for _ in range(16)]
    for ours, _ in made:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    yield made
    for pair in made:
        for each in pair:
            each.close()


def test_a_loop_without_connections_has_nothing_for_them() -> None:
    with Turns() as turns:
        assert memory(turns) == dict.fromkeys(KINDS, 0)


def test_an_idle_connection_is_a_record_and_nothing_else(pair: Pair) -> None:
    with Turns() as turns:
        turns.opened(pair)
        assert beside_records(turns) == {}
        assert 200 <= memory(turns)["records"] <= 300


def test_the_place_of_a_connection_that_is_gone_is_kept_and_used_again(pairs: list[Pair]) -> None:
    with Turns() as turns:
        turns.push(ABORT, turns.opened(pairs[0]))
        turns.until_empty()
        one = memory(turns)["records"]
        assert one
        turns.turn()
        turns.opened(pairs[1])
        assert memory(turns)["records"] == one
        turns.opened(pairs[2])
        assert memory(turns)["records"] == 2 * one


def test_the_beginning_of_a_request_head_is_a_head(pair: Pair) -> None:
    with Turns() as turns:
        handle = turns.adopt(pair[0])
        for size in range(1, len(REQUEST)):
            pair[1].sendall(REQUEST[size - 1 : size])
            while turns.stats()["bytes_received"] < size:
                turns.turn(100)
            assert set(beside_records(turns)) == {"heads"}
            assert size <= beside_records(turns)["heads"] <= size + BLOCK
        pair[1].sendall(REQUEST[-1:])
        turns.until(HEAD, handle)
        assert beside_records(turns) == {}


def test_what_follows_a_head_that_is_not_decided_is_a_remainder(pair: Pair) -> None:
    with Turns() as turns:
        turns.awaiting(pair, REQUEST + bytes(1000))
        assert 1000 <= beside_records(turns)["remainders"] <= 1000 + BLOCK


@pytest.mark.parametrize("size", [1, 4, 100, 5000, 100_000])
def test_a_part_of_a_message_is_a_remainder_until_the_rest_has_come(pair: Pair, size: int) -> None:
    whole = frame(1, b"x" * 200_000)
    with Turns() as turns:
        turns.opened(pair)
        before = turns.stats()["bytes_received"]
        pair[1].sendall(whole[:size])
        while turns.stats()["bytes_received"] < before + size:
            turns.turn(100)
        payload = max(size - 14, 0)  # the header is not kept, once it is complete
        assert set(beside_records(turns)) == {"remainders"}
        assert payload < beside_records(turns)["remainders"] <= payload + BLOCK
        pair[1].sendall(whole[size:])
        turns.until(TEXT)
        assert beside_records(turns) == {}


def test_what_was_read_and_may_not_be_delivered_is_a_remainder(pair: Pair) -> None:
    with Turns() as turns:
        turns.opened(pair, credit=1)
        pair[1].sendall(frame(1, b"a") + 9 * frame(1, b"x" * 100))
        turns.until(TEXT)
        assert 900 < beside_records(turns)["remainders"] <= 950 + BLOCK


def test_what_the_kernel_has_not_taken_is_a_queue(pair: Pair) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with Turns() as turns:
        handle = turns.opened(pair)
        sent = 0
        while turns.backlog(handle) < 1 << 20:
            turns.push(SEND, handle, frame(2, bytes(10_000), key=None))
            sent += 10_004
            turns.turn()
        unsent = turns.backlog(handle)
        assert set(beside_records(turns)) == {"queues"}
        assert unsent <= beside_records(turns)["queues"] <= 1.25 * unsent
        pair[1].settimeout(0)
        read = 0
        while read < sent:
            turns.turn()
            try:
                read += len(pair[1].recv(1 << 20))
            except BlockingIOError:
                continue
        turns.settle()
        assert beside_records(turns) == {}


def test_a_payload_that_connections_share_counts_once(pairs: list[Pair]) -> None:
    payload = bytes(1 << 20)
    with Turns() as turns:
        for pair in pairs:
            turns.opened(pair)
        turns.push(BROADCAST, 0, FOREVER.to_bytes(4, "little") + frame(2, payload, key=None))
        turns.turn()
        assert turns.stats()["backlog"] > 8 << 20
        assert len(payload) <= beside_records(turns)["queues"] <= len(payload) + len(pairs) * 1024 + BLOCK


@pytest.mark.skipif(UNDER_ADDRESS_SANITIZER, reason="AddressSanitizer has a malloc of its own")
def test_blocks_are_as_large_as_malloc_has_made_them(pairs: list[Pair]) -> None:
    with Turns() as turns:
        handles = [turns.opened(pair) for pair in pairs]
        pairs[0][1].sendall(frame(1, b"x")[:1])
        while not beside_records(turns):
            turns.turn(100)
        assert beside_records(turns)["remainders"] % 16 == 0  # with the header
        before, said = allocated(), sum(memory(turns).values())
        for (_, peer), handle in list(zip(pairs, handles, strict=True))[1:]:
            peer.sendall(frame(1, b"x" * 100)[:50] if handle % 2 else frame(1, b"x" * 3000)[:2000])
            for _ in range(64):
                turns.push(SEND, handle, frame(2, bytes(1000), key=None))
            turns.turn()
        turns.settle()
        # a queue's last block is written in part, and it may have grown
        assert sum(memory(turns).values()) - said == pytest.approx(allocated() - before, rel=0.02)


def test_what_stands_between_a_connection_and_tls_counts_by_what_it_holds(pair: Pair) -> None:
    with Turns(raw=1) as turns:
        handle = turns.adopt(pair[0])
        own = beside_records(turns)
        assert set(own) == {"raw"}
        pair[1].sendall(b"ciphertext")
        turns.until(RAW, handle)
        turns.push(FEED, handle, REQUEST[:5])
        turns.settle()
        assert set(beside_records(turns)) == {"raw", "heads"}
        turns.push(FEED, handle, REQUEST[5:] + bytes(40_000))
        turns.until(HEAD, handle)
        # a read of what follows the head may have been copied, and the rest with it is where it was
        assert 40_000 <= beside_records(turns)["remainders"] <= 40_000 + HEAD_READ + 2 * BLOCK
        assert beside_records(turns)["raw"] == own["raw"]


def test_plaintext_that_waits_for_its_encryption_is_a_queue(pair: Pair) -> None:
    with Sealed() as turns:
        handle = turns.opened(pair)
        assert set(beside_records(turns)) == {"raw"}
        turns.push(SEND, handle, frame(2, bytes(50_000), key=None))
        turns.submit()
        assert 50_000 <= beside_records(turns)["queues"] <= 50_004 + BLOCK


def test_a_loop_that_was_closed_says_what_it_still_has(pair: Pair) -> None:
    with Turns() as turns:
        turns.opened(pair)
        pair[1].sendall(frame(1, b"x" * 3000)[:2000])
        while not beside_records(turns):
            turns.turn(100)
        assert lib.wspy_loop_close(turns.loop) == lib.WSPY_OK
        assert beside_records(turns) == {}
        assert memory(turns)["records"]
