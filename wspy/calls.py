"""Which functions run later in a loop's thread, and when.

Any thread adds and cancels, the loop's thread runs. What crosses threads goes through deques, whose operations are
atomic, so that a signal handler or a finalizer can't lock itself out; only the loop's thread touches the heap.
"""

from __future__ import annotations

import heapq
from collections import deque
from inspect import isasyncgenfunction, iscoroutinefunction
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Call", "Calls", "is_async"]

# Seconds. Nothing waits for longer: sums with it are finite, and in milliseconds it fits wherever a clock does.
CENTURY: Final = 100 * 365 * 86_400.0


class Call:
    """A function that is to be called once. ``cancel`` is thread-safe; a call that began is not stopped."""

    __slots__ = ("_cancelled", "_number", "arguments", "at", "function")

    def __init__(
        self,
        at: float,
        number: int,
        function: Callable[..., object],
        arguments: tuple[Any, ...],
        cancelled: deque[None],
    ) -> None:
        self.at = at
        self._number = number
        self.function: Callable[..., object] | None = function
        self.arguments = arguments
        self._cancelled = cancelled

    def cancel(self) -> None:
        """Don't call it any more, and let go of what it holds; twice is fine."""
        if self.function is not None:
            self.function = None
            self.arguments = ()
            self._cancelled.append(None)

    def __call__(self) -> None:
        """Call the function, once, and let go of what it holds."""
        function, arguments = self.function, self.arguments
        self.function = None
        self.arguments = ()
        if function is not None:
            function(*arguments)

    def __lt__(self, other: Call) -> bool:
        return (self.at, self._number) < (other.at, other._number)


class Calls:
    """Calls in the order of their times, and of their addition where the times are equal.

    ``pending`` is whether ``due`` has something to do now: cheap to ask in every turn.
    """

    def __init__(self) -> None:
        self._added: deque[Call] = deque()
        self._heap: list[Call] = []
        self._numbers = count()
        # its length counts the calls that were cancelled since the heap was last without any: at least those in it
        self._cancelled: deque[None] = deque()
        self.pending = False

    def add(self, delay: float, function: Callable[..., object], arguments: tuple[Any, ...]) -> Call:
        """Add a call ``delay`` seconds from now. Thread-safe; the loop's thread must be woken if it isn't this one.

        Args:
            delay: below 0 counts as 0; more than a century, infinity too, as a century.
            function: what to call.
            arguments: what to call it with.

        Raises:
            TypeError: ``function`` can't be called or is ``async def``, or ``delay`` is no number.
            ValueError: ``delay`` is NaN.
        """
        if not callable(function):
            raise TypeError(f"the function can't be called: it is of type {type(function).__name__}")
        if is_async(function):
            raise TypeError(f"{function!r} is async def: what is called later is a plain function")
        at = monotonic() + _checked_delay(delay)
        call = Call(at, next(self._numbers), function, arguments, self._cancelled)
        self._added.append(call)
        self.pending = True
        return call

    def due(self) -> Iterator[Call]:
        """Yield the calls whose time has come, in order; not those that are added meanwhile.

        Those that were cancelled may be among them, whatever their time: they do nothing.
        """
        self._sort_in()
        if 2 * len(self._cancelled) > len(self._heap):
            self._compact()
        now = monotonic()
        while self._heap and (self._heap[0].at <= now or self._heap[0].function is None):
            yield heapq.heappop(self._heap)
        self._sort_in()

    def _sort_in(self) -> None:
        self.pending = False  # first: what another thread adds from here on sets it again
        while self._added:
            heapq.heappush(self._heap, self._added.popleft())
        if self._heap and self._heap[0].at <= monotonic():
            self.pending = True

    def _compact(self) -> None:
        """Let go of cancelled calls: done only when they are many, each costs a constant time on average."""
        self._cancelled.clear()
        self._heap = [call for call in self._heap if call.function is not None]
        heapq.heapify(self._heap)

    def next_at(self) -> float | None:
        """Return when to look again, by ``time.monotonic``; None for when something is added."""
        return self._heap[0].at if self._heap else None


def is_async(function: object) -> bool:
    """Whether calling this only makes a coroutine, or an asynchronous generator, which nobody would run."""
    return iscoroutinefunction(function) or isasyncgenfunction(function)


def _checked_delay(delay: float) -> float:
    if delay != delay:  # noqa: PLR0124 -- so is NaN, which has no place in any order
        raise ValueError("the delay must be a number of seconds, not NaN")
    try:
        return float(min(max(delay, 0.0), CENTURY))
    except TypeError:
        raise TypeError(f"the delay must be a number of seconds, not of type {type(delay).__name__}") from None
