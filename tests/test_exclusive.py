"""Does one thread at a time come in, and nobody wait longer than they may, or for themselves?"""

from __future__ import annotations

import threading

import pytest
from drivers import DEADLINE_S
from sockets import Running

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
    exclusive.leave()
