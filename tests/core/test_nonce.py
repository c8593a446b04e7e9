"""Is each use of a nonce let in once, in the order of the numbers, whoever else writes to the same memory?"""

from __future__ import annotations

import mmap
import os
import threading

import pytest

from wspy._core import ffi, lib

MOST = (1 << 64) - 1


def test_only_what_is_above_the_newest_is_new() -> None:
    newest = ffi.new("uint64_t *")
    assert [lib.wspy_nonce_use(newest, use) for use in (0, 1, 1, 0, 5, 4, 5, 6, 1 << 63, MOST, MOST, 1)] == [
        *(0, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 0)
    ]
    assert newest[0] == MOST


@pytest.mark.parametrize("uses", [1, 5_000])
def test_of_threads_one_is_let_in(uses: int) -> None:
    newest = ffi.new("uint64_t *")
    let_in: list[int] = []
    gate = threading.Barrier(4)

    def run() -> None:
        gate.wait(10)
        let_in.extend(use for use in range(1, uses + 1) if lib.wspy_nonce_use(newest, use))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(let_in) == len(set(let_in))
    assert max(let_in) == newest[0] == uses


def test_of_processes_one_is_let_in() -> None:
    """Each says, in memory of its own place, how often it was let in."""
    uses, places = 200_000, range(1, 3)
    gate, parent = len(places) + 1, os.getpid()
    with (
        mmap.mmap(-1, 8 * (gate + 1)) as memory,
        ffi.from_buffer("uint64_t[]", memory, require_writable=True) as words,
    ):
        children = []
        for place in places:
            child = os.fork()
            if not child:
                # at the same moment, which a lock or a pipe would not be
                while not words[gate] and os.getppid() == parent:
                    continue
                words[place] = sum(lib.wspy_nonce_use(words + 0, use) for use in range(1, uses + 1))
                os._exit(0)
            children.append(child)
        words[gate] = 1
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(places)
        assert words[0] == uses
        assert 1 <= sum(words[place] for place in places) <= uses
