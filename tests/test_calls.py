"""Is each call made once, in order and in time, and is nothing kept of those that were cancelled?"""

from __future__ import annotations

import functools
import gc
import math
import random
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from wspy.calls import CENTURY, Call, Calls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CENTURY_S = 100 * 365 * 24 * 60 * 60


class Clock:
    """What ``time.monotonic`` is in these tests."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("wspy.calls.monotonic", clock)
    return clock


@pytest.fixture
def calls(clock: Clock) -> Calls:
    return Calls()


@pytest.fixture
def ran() -> list[Any]:
    return []


def run(calls: Calls) -> None:
    for call in calls.due():
        call()


# ---- order ----


def test_calls_are_made_in_the_order_of_their_times(calls: Calls, clock: Clock, ran: list[Any]) -> None:
    for delay in (3, 1, 0, 2, 0.5):
        calls.add(delay, ran.append, (delay,))
    clock.now += 2
    run(calls)
    assert ran == [0, 0.5, 1, 2]
    clock.now += 1
    run(calls)
    assert ran == [0, 0.5, 1, 2, 3]
    run(calls)
    assert len(ran) == 5


def test_calls_of_one_time_are_made_in_the_order_of_their_addition(calls: Calls, clock: Clock, ran: list[Any]) -> None:
    for number in range(100):
        calls.add(1, ran.append, (number,))
    clock.now += 1
    run(calls)
    assert ran == list(range(100))


def test_a_call_is_not_made_too_early(calls: Calls, clock: Clock, ran: list[Any]) -> None:
    calls.add(1, ran.append, ("late",))
    clock.now += 0.999
    run(calls)
    assert ran == []


def test_arguments_are_passed_on(calls: Calls, ran: list[Any]) -> None:
    calls.add(0, lambda *arguments: ran.append(arguments), (1, "two", None))
    run(calls)
    assert ran == [(1, "two", None)]


def test_what_a_call_adds_is_not_made_in_the_same_turn(calls: Calls, ran: list[Any]) -> None:
    def add_again(number: int) -> None:
        ran.append(number)
        calls.add(0, add_again, (number + 1,))

    calls.add(0, add_again, (1,))
    run(calls)
    assert ran == [1]
    assert calls.pending
    run(calls)
    assert ran == [1, 2]


def test_an_exception_in_between_loses_no_call(calls: Calls, ran: list[Any]) -> None:
    calls.add(0, math.sqrt, (-1,))
    calls.add(0, ran.append, ("next",))
    with pytest.raises(ValueError, match="math domain"):
        run(calls)
    assert calls.next_at() == 1000
    run(calls)
    assert ran == ["next"]


# ---- when to look ----


def test_there_is_nothing_to_look_at_until_something_is_added(calls: Calls) -> None:
    assert not calls.pending
    assert calls.next_at() is None
    calls.add(5, print, ())
    assert calls.pending
    run(calls)
    assert not calls.pending
    assert calls.next_at() == 1005
    calls.add(3, print, ())
    run(calls)
    assert calls.next_at() == 1003


def test_what_a_call_adds_for_later_is_not_pending(calls: Calls) -> None:
    calls.add(0, calls.add, (5, print, ()))
    run(calls)
    assert not calls.pending
    assert calls.next_at() == 1005


def test_what_an_exception_kept_from_being_made_is_pending(calls: Calls) -> None:
    calls.add(0, math.sqrt, (-1,))
    calls.add(0, print, ())
    with pytest.raises(ValueError, match="math domain"):
        run(calls)
    assert calls.pending


def test_a_call_that_was_cancelled_wakes_nobody(calls: Calls, clock: Clock) -> None:
    first = calls.add(1, print, ())
    for delay in range(2, 10):
        calls.add(delay, print, ())
    run(calls)
    assert calls.next_at() == 1001
    first.cancel()
    run(calls)
    assert calls.next_at() == 1002


# ---- delays ----


@pytest.mark.parametrize("delay", [0, -1, -math.inf])
def test_what_is_late_already_is_made_at_once(calls: Calls, ran: list[Any], delay: float) -> None:
    calls.add(delay, ran.append, ("now",))
    run(calls)
    assert ran == ["now"]


@pytest.mark.parametrize("delay", [CENTURY_S, CENTURY_S + 1, 10**400, 1e300, math.inf])
def test_no_delay_is_too_long_for_a_clock(calls: Calls, delay: float) -> None:
    assert CENTURY == CENTURY_S
    assert calls.add(delay, print, ()).at == 1000 + CENTURY_S


def test_nan_has_no_place_in_the_order(calls: Calls) -> None:
    with pytest.raises(ValueError, match="NaN"):
        calls.add(math.nan, print, ())
    assert not calls.pending


async def coroutine() -> None: ...


async def generator() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("delay", "function", "message"),
    [
        ("1", print, "the delay must be a number of seconds, not of type str"),
        (None, print, "the delay must be a number of seconds, not of type NoneType"),
        (1, None, "can't be called: it is of type NoneType"),
        (1, "print", "can't be called: it is of type str"),
        (1, coroutine, "coroutine .* is async def"),
        (1, functools.partial(coroutine), "is async def"),
        (1, generator, "generator .* is async def"),
    ],
)
def test_what_makes_no_call_is_refused(calls: Calls, delay: Any, function: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        calls.add(delay, function, ())
    assert not calls.pending


# ---- cancelling ----


def test_a_cancelled_call_is_not_made(calls: Calls, clock: Clock, ran: list[Any]) -> None:
    for cancel_first in (True, False):
        call = calls.add(1, ran.append, ("cancelled",))
        calls.add(1, ran.append, ("kept",))
        if not cancel_first:
            run(calls)
        call.cancel()
        call.cancel()
        clock.now += 1
        run(calls)
    assert ran == ["kept", "kept"]


def test_a_call_may_cancel_those_behind_it(calls: Calls, ran: list[Any]) -> None:
    later: list[Call] = []
    calls.add(0, lambda: [call.cancel() for call in later], ())
    later.append(calls.add(0, ran.append, ("cancelled",)))
    calls.add(0, ran.append, ("kept",))
    run(calls)
    assert ran == ["kept"]


def test_a_call_may_cancel_itself(calls: Calls, ran: list[Any]) -> None:
    own = []

    def function() -> None:
        own[0].cancel()
        ran.append("made")

    own.append(calls.add(0, function, ()))
    run(calls)
    assert ran == ["made"]


def test_a_call_is_made_once(calls: Calls, ran: list[Any]) -> None:
    call = calls.add(0, ran.append, ("made",))
    run(calls)
    call()
    call.cancel()
    call()
    assert ran == ["made"]


class Large:
    """Something that a call holds."""

    def __call__(self, other: Large) -> None:
        """Be called."""


@pytest.mark.parametrize("end", [lambda calls, _: run(calls), lambda _, call: call.cancel()], ids=["made", "cancelled"])
def test_a_call_that_is_over_holds_nothing(calls: Calls, end: Callable[[Calls, Call], None]) -> None:
    function, argument = Large(), Large()
    alive = [weakref.ref(function), weakref.ref(argument)]
    call = calls.add(0, function, (argument,))
    del function, argument
    assert None not in [reference() for reference in alive]
    end(calls, call)
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def kept(calls: Calls) -> int:
    return len(calls._added) + len(calls._heap) + len(calls._cancelled)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_cancelled_calls_with_far_deadlines_do_not_pile_up(calls: Calls, batch: int) -> None:
    for _ in range(10_000 // batch):
        for call in [calls.add(3600, print, ()) for _ in range(batch)]:
            call.cancel()
        run(calls)
        assert kept(calls) == 0


def test_cancelled_calls_among_others_are_never_more_than_these(calls: Calls, clock: Clock, ran: list[Any]) -> None:
    for number in range(100):
        calls.add(7200, ran.append, (number,))
    for _ in range(10_000):
        calls.add(3600, print, ()).cancel()
        run(calls)
        assert kept(calls) <= 301
    clock.now += 7200
    run(calls)
    assert ran == list(range(100))


def test_a_few_cancelled_calls_among_many_are_not_worth_a_search(calls: Calls) -> None:
    many = [calls.add(3600, print, ()) for _ in range(1000)]
    run(calls)
    heap = calls._heap
    for call in many[500:999]:
        call.cancel()
        run(calls)
    assert calls._heap is heap
    many[1].cancel()
    many[2].cancel()
    run(calls)
    assert len(calls._heap) == 499


def test_the_order_is_the_same_without_those_that_were_cancelled(calls: Calls, clock: Clock, ran: list[Any]) -> None:
    rng = random.Random(8)
    added = [calls.add(delay, ran.append, (delay,)) for delay in rng.sample(range(1, 1000), 500)]
    run(calls)
    for call in rng.sample(added, 300):
        call.cancel()
    run(calls)
    assert kept(calls) == 200
    clock.now += 1000
    run(calls)
    assert ran == sorted(ran)
    assert len(ran) == 200


def test_cancelling_what_was_made_costs_nothing(calls: Calls) -> None:
    calls.add(3600, print, ())
    for call in [calls.add(0, len, ((),)) for _ in range(1000)]:
        run(calls)
        call.cancel()
    assert kept(calls) == 1


# ---- threads ----


def test_any_thread_adds_and_cancels(ran: list[Any]) -> None:
    calls = Calls()
    counts = range(2000)
    done = threading.Barrier(9)

    def add(name: int) -> None:
        for number in counts:
            call = calls.add(0, ran.append, ((name, number),))
            far = calls.add(3600, ran.append, ("never",))
            far.cancel()
            if number % 2:
                call.cancel()
        done.wait()

    threads = [threading.Thread(target=add, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    while done.n_waiting < 8:
        run(calls)
    done.wait()
    for thread in threads:
        thread.join()
    run(calls)
    for name in range(8):
        numbers = [number for other, number in ran if other == name]
        assert numbers == sorted(set(numbers))
        assert set(numbers) >= set(counts[::2])
    assert "never" not in ran
    assert kept(calls) == 0


def test_two_threads_that_cancel_one_call_do_no_harm(calls: Calls) -> None:
    call = calls.add(3600, print, ())
    for _ in range(2):
        call.function = print  # what the other thread saw a moment ago
        call.cancel()
    run(calls)
    assert kept(calls) == 0
