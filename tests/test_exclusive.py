"""Does one thread at a time come in, and nobody wait longer than they may, or for themselves?"""

from __future__ import annotations

import threading

import pytest
from drivers import DEADLINE_S
from sockets import Running
from steps import at_each_step

from wspy import exclusive as module
from wspy.deadline import Deadline
from wspy.exclusive import Exclusive


def test_one_after_the_other() -> None:
    exclusive = Exclusive("recv")
    refused = threading.Event()
    exclusive.enter(Deadline(0))
    assert exclusive.is_mine
    with pytest.raises(RuntimeError, match="recv"):
        exclusive.enter(Deadline(None))

    def other() -> bool:
        assert not exclusive.is_mine
        assert not exclusive.try_enter()
        with pytest.raises(TimeoutError):
            exclusive.enter(Deadline(0.01))
        refused.set()
        exclusive.enter(Deadline(DEADLINE_S))
        exclusive.leave()
        exclusive.enter(Deadline(None))
        exclusive.leave()
        return True

    running = Running(other)
    assert refused.wait(DEADLINE_S)
    exclusive.leave()
    assert running.result()
    assert not exclusive.is_mine
    assert exclusive.try_enter()
    assert not exclusive.try_enter()
    with pytest.raises(RuntimeError, match="recv"):
        exclusive.enter(Deadline(0))
    exclusive.leave()


def test_an_exception_anywhere_leaves_nobody_inside() -> None:
    exclusive = Exclusive("recv")

    def other() -> None:
        exclusive.enter(Deadline(0))
        exclusive.leave()

    def enter_and_leave() -> None:
        for _ in range(4):
            exclusive.enter(Deadline(0))
            exclusive.leave()

    for _ in at_each_step(module, enter_and_leave):
        Running(other).result()


def test_a_signal_handler_is_refused_at_any_time_inside() -> None:
    exclusive, inside = Exclusive("recv"), 0

    def handle_signal() -> None:
        nonlocal inside
        try:
            exclusive.enter(Deadline(None))
        except RuntimeError:
            inside += 1
            assert not exclusive.try_enter()
        else:
            exclusive.leave()

    def enter_and_leave() -> None:
        for _ in range(4):
            exclusive.enter(Deadline(0))
            exclusive.leave()

    for _ in at_each_step(module, enter_and_leave, handle_signal):
        assert not exclusive.is_mine
    assert inside
