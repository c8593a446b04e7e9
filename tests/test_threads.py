"""Does each call get a thread at once, and is none left behind?"""

from __future__ import annotations

import contextvars
import threading
import weakref
from typing import TYPE_CHECKING

import pytest
from drivers import DEADLINE_S, until

from wspy import threads as module
from wspy.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def threads() -> Iterator[Threads]:
    pool = Threads()
    yield pool
    pool.end(int)
    assert pool.join(DEADLINE_S) == []


def test_each_call_has_a_thread_whatever_the_others_do(threads: Threads) -> None:
    together = threading.Barrier(50)
    met: list[int] = []
    for _ in range(50):
        threads.run("one", lambda: (together.wait(DEADLINE_S), met.append(threading.get_ident())))
    until(lambda: len(met) == 50, "all have met")
    assert len(set(met)) == 50


def test_a_thread_is_used_again(threads: Threads) -> None:
    seen = [threads.run("again", int) for _ in range(1)]
    for _ in range(20):
        until(lambda: threads.busy == 0, "it has returned")
        seen.append(threads.run("again", int))
    assert len(set(seen)) == 1


def test_the_thread_has_the_name_and_the_arguments_of_the_call(threads: Threads) -> None:
    seen: list[tuple[str, int, bool]] = []
    for number in range(3):
        thread = threads.run(
            f"call {number}",
            lambda n: seen.append((threading.current_thread().name, n, threading.current_thread().daemon)),
            number,
        )
        until(lambda: threads.busy == 0, "it has returned")
        until(lambda thread=thread: thread.name == "wspy idle", "it waits")
    assert seen == [(f"call {number}", number, True) for number in range(3)]


def test_a_context_ends_with_its_call(threads: Threads) -> None:
    variable = contextvars.ContextVar("variable", default="first")
    seen: list[tuple[str, int]] = []

    def call() -> None:
        seen.append((variable.get(), threading.get_ident()))
        variable.set("changed")

    for count in (1, 2):
        threads.run("one", call)
        until(lambda count=count: len(seen) == count and threads.busy == 0, "it has returned")  # type: ignore[misc]
    assert seen == [seen[0]] * 2 == [("first", seen[0][1])] * 2


def test_few_threads_wait_for_more(threads: Threads) -> None:
    before = threading.active_count()
    together = threading.Barrier(module.MOST_IDLE + 20)
    for _ in range(module.MOST_IDLE + 20):
        threads.run("many", together.wait, DEADLINE_S)
    until(lambda: threading.active_count() == before + module.MOST_IDLE, "the others have ended")


def test_what_was_called_is_forgotten(threads: Threads) -> None:
    class Held:
        def call(self, other: object) -> None: ...

    held, argument = Held(), Held()
    gone = [weakref.ref(held), weakref.ref(argument)]
    threads.run("once", held.call, argument)
    del held, argument
    until(lambda: not any(reference() for reference in gone), "without the garbage collector")


def test_after_the_end_who_returns_is_told_of_and_ends() -> None:
    threads = Threads()
    before = threading.active_count()
    go_on, told = threading.Event(), threading.Semaphore(0)
    threads.run("idle", int)
    until(lambda: threads.busy == 0, "idle")
    threads.run("short", go_on.wait, DEADLINE_S)
    threads.end(told.release)
    threads.run("late", int)
    assert told.acquire(timeout=DEADLINE_S)
    until(lambda: threads.join(0) == ["short"], "all but one have ended, which has begun")
    go_on.set()
    assert told.acquire(timeout=DEADLINE_S)
    assert threads.join(DEADLINE_S) == []
    assert threading.active_count() == before


def test_who_never_returns_is_named_and_not_waited_for() -> None:
    threads = Threads()
    go_on = threading.Event()
    threads.run("stuck", go_on.wait, DEADLINE_S)
    threads.end(int)
    assert threads.join(0.01) == ["stuck"]
    go_on.set()
    assert threads.join(DEADLINE_S) == []


def test_a_thread_that_can_not_be_had_is_no_busy_one(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        with pytest.raises(RuntimeError, match="new thread"):
            threads.run("none", int)
    assert threads.busy == 0
    threads.run("one", int)
