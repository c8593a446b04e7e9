"""Do call_soon and call_later call: once, in order, in the server's thread, and not when cancelled?"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from drivers import (
    PATIENCE,
    echo,
    needs,
    only,
    until,
)

if TYPE_CHECKING:
    from drivers import Servers


pytestmark = needs("calls")


def test_a_call_runs_in_the_thread_of_the_server(serve: Servers) -> None:
    server = serve()
    here = threading.get_ident()
    there = server.call(threading.get_ident)
    assert there != here
    assert server.call(threading.get_ident) == there


def test_calls_run_in_order(serve: Servers) -> None:
    server = serve()
    called: list[int] = []
    for number in range(1000):
        server.server.call_soon(called.append, number)
    until(lambda: len(called) == 1000, "all")
    assert called == list(range(1000))


def test_later_calls_run_in_the_order_of_their_times(serve: Servers) -> None:
    server = serve()

    def is_in_order() -> bool:
        """Return whether calls came in their order; false, too, if the machine was too busy to arrange for them."""
        called: list[str] = []
        done = threading.Event()

        def schedule() -> float:
            began = time.monotonic()
            for delay, name in ((0.03, "third"), (0.01, "first"), (0.02, "second")):
                server.server.call_later(delay, called.append, name)
            server.server.call_later(0.04, done.set)
            return time.monotonic() - began

        took = server.call(schedule)
        assert done.wait(10)
        assert took > 0.009 or called == ["first", "second", "third"]
        return bool(took <= 0.009)

    assert any(is_in_order() for _ in range(100))


@pytest.mark.parametrize("delay", [0.001, 0.02, 0.1])
def test_a_later_call_is_never_early_and_hardly_late(serve: Servers, delay: float) -> None:
    server = serve()
    times: list[float] = []
    began = time.monotonic()
    server.server.call_later(delay, lambda: times.append(time.monotonic()))
    until(lambda: times, "called")
    assert times[0] - began >= delay
    assert times[0] - began < delay + 0.3 * PATIENCE


@only("epoll", because="a Server makes calls while the handler that asks for them still runs")
def test_calls_from_handlers(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        client.server.call_soon(client.send, "soon")
        client.server.call_later(0.01, client.send, "later")
        client.send("now")

    server = serve(onmessage=onmessage)
    peer = server.open()
    peer.text("go")
    assert [peer.message() for _ in range(3)] == ["now", "soon", "later"]


def test_calls_from_calls(serve: Servers) -> None:
    server = serve()
    called: list[int] = []

    def again(number: int) -> None:
        called.append(number)
        if number < 100:
            server.server.call_soon(again, number + 1)

    server.server.call_soon(again, 0)
    until(lambda: len(called) == 101, "all")
    assert called == list(range(101))


def test_a_call_that_always_comes_again_lets_others_in(serve: Servers) -> None:
    stop = threading.Event()

    def again() -> None:
        if not stop.is_set():
            server.server.call_soon(again)

    server = serve(onmessage=echo)
    server.server.call_soon(again)
    peer = server.open()
    for number in range(20):
        peer.text(str(number))
        assert peer.message() == str(number)
    stop.set()


def test_a_call_that_always_comes_again_does_not_keep_the_server_from_ending(serve: Servers) -> None:
    server = serve(shutdown_timeout=0.2)
    functions = [lambda: server.server.call_soon(functions[0])]
    server.server.call_soon(functions[0])
    server.stop()
    try:
        assert server.ended(10)
    finally:
        functions[0] = lambda: None


@pytest.mark.parametrize("where", ["here", "in the server's thread"])
def test_a_cancelled_call_is_not_made(serve: Servers, where: str) -> None:
    server = serve()
    called: list[str] = []

    def cancel() -> None:
        soon = server.server.call_soon(called.append, "soon")
        later = server.server.call_later(0.01, called.append, "later")
        soon.cancel()
        later.cancel()
        later.cancel()

    if where == "here":
        later = [server.server.call_later(30, called.append, "later") for _ in range(3)]
        for call in later:
            call.cancel()
    else:
        server.call(cancel)
    done = threading.Event()
    server.server.call_later(0.03, done.set)
    assert done.wait(10)
    assert called == []


def test_a_call_may_cancel_the_next_one(serve: Servers) -> None:
    server = serve()
    called: list[str] = []

    def schedule() -> None:
        first = server.server.call_soon(lambda: (called.append("first"), second.cancel()))
        second = server.server.call_soon(called.append, "second")
        assert first is not second

    server.call(schedule)
    server.call(int)
    assert called == ["first"]


def test_a_cancelled_call_lets_go_of_what_it_holds(serve: Servers) -> None:
    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)
    server = serve()
    call = server.server.call_later(3600, print, held)
    del held
    assert gone() is not None
    call.cancel()
    gc.collect()
    assert gone() is None


def test_calls_from_many_threads(serve: Servers) -> None:
    server = serve()
    called: list[tuple[int, int]] = []

    def add(number: int) -> None:
        for turn in range(200):
            server.server.call_soon(called.append, (number, turn))
            server.server.call_later(0.001, called.append, (number + 10, turn))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: len(called) == 2400, "all")
    for number in range(6):
        assert [turn for who, turn in called if who == number] == list(range(200))
        assert [turn for who, turn in called if who == number + 10] == list(range(200))


def test_a_distant_call_costs_nothing(serve: Servers) -> None:
    server = serve()
    for _ in range(100):
        server.server.call_later(3600, int)
    server.call(int)
    turns = server.server.stats()["turns"]
    threading.Event().wait(0.05)
    assert server.server.stats()["turns"] - turns < 5


def test_a_negative_delay_is_soon(serve: Servers) -> None:
    server = serve()
    called = threading.Event()
    server.server.call_later(-1, called.set)
    assert called.wait(10)


def test_a_call_that_was_made_before_the_start(server_kind: type[Any]) -> None:
    called = threading.Event()
    with server_kind(("127.0.0.1", 0)) as server:
        server.call_soon(called.set)
        server.start()
        assert called.wait(10)
