"""Which functions run later in a loop's thread, and when.

Any thread adds, the loop's thread runs. Additions go through a deque, whose operations are atomic; only the loop's
thread touches the heap.
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Call", "Calls"]


class Call:
    """A function that is to be called once. ``cancel`` is thread-safe; a call that began is not stopped."""

    __slots__ = ("_number", "at", "function", "arguments")

    def __init__(self, at: float, number: int, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.at = at
        self._number = number
        self.function: Callable[..., object] | None = function
        self.arguments = arguments

    def cancel(self) -> None:
        """Don't call it any more; twice is fine."""
        self.function = None
        self.arguments = ()

    def __call__(self) -> None:
        function, arguments = self.function, self.arguments
        if function is not None:
            function(*arguments)

    def __lt__(self, other: Call) -> bool:
        return (self.at, self._number) < (other.at, other._number)


class Calls:
    """Calls in the order of their times, and of their addition where the times are equal.

    ``pending`` is whether there are any to look at now: cheap to ask in every turn.
    """

    def __init__(self) -> None:
        self._added: deque[Call] = deque()
        self._heap: list[Call] = []
        self._numbers = count()
        self.pending = False

    def add(self, delay: float, function: Callable[..., object], arguments: tuple[Any, ...]) -> Call:
        """Add a call ``delay`` seconds from now. Thread-safe; the loop's thread must be woken if it isn't this one."""
        call = Call(monotonic() + max(delay, 0.0), next(self._numbers), function, arguments)
        self._added.append(call)
        self.pending = True
        return call

    def due(self) -> Iterator[Call]:
        """Yield the calls whose time has come, in order; not those that are added meanwhile."""
        self.pending = False
        while self._added:
            heapq.heappush(self._heap, self._added.popleft())
        now = monotonic()
        while self._heap and (self._heap[0].at <= now or self._heap[0].function is None):
            yield heapq.heappop(self._heap)

    def next_at(self) -> float | None:
        """Return when to look again, by ``time.monotonic``; None for when something is added."""
        return self._heap[0].at if self._heap else None
