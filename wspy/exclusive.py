"""Who may do what only one thread at a time may?"""

from __future__ import annotations

from threading import TIMEOUT_MAX, RLock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from .deadline import Deadline

__all__ = ["Exclusive"]


class Exclusive:
    """Lets one thread in at a time. The others wait in front of it, until their deadlines.

    Whoever is inside already is refused, a handler or a signal handler: it would wait for itself. If ``enter`` raises
    whatever a signal handler has raised, nobody is inside.

    Args:
        what: a verb, such as ``"recv"``, for messages.

    Attributes:
        leave: call it to let the next one in. It is a single step of the interpreter: a function could be interrupted
            before it has done anything.
    """

    __slots__ = ("_lock", "_what", "leave")

    def __init__(self, what: str) -> None:
        self._lock: Any = RLock()  # tells whose it is from the moment it is taken, unlike a Lock and an attribute
        self._what = what
        self.leave: Callable[[], None] = self._lock.release

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread is inside."""
        return bool(self._lock._is_owned())  # noqa: SLF001 -- as threading.Condition does

    def enter(self, deadline: Deadline) -> None:
        """Go in. Call ``leave`` afterwards.

        Raises:
            RuntimeError: the calling thread is inside already.
            TimeoutError: another thread stays there for too long.
        """
        lock = self._lock
        if lock._is_owned():  # noqa: SLF001 -- as above
            raise RuntimeError(f"{self._what} was called by what {self._what} has called")
        try:
            if not lock.acquire(False):  # noqa: FBT003 -- a keyword would take longer
                self._await_turn(deadline)
        except BaseException:
            if lock._is_owned():  # noqa: SLF001 -- as above
                lock.release()
            raise

    def _await_turn(self, deadline: Deadline) -> None:
        remaining = deadline.remaining
        if not self._lock.acquire(timeout=-1 if remaining is None else min(remaining, TIMEOUT_MAX)):
            raise TimeoutError("timed out")

    def try_enter(self) -> bool:
        """Go in if nobody is inside, not even the calling thread, and tell whether that was so."""
        return not self.is_mine and bool(self._lock.acquire(blocking=False))
