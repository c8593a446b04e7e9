"""Who may do what only one thread at a time may?"""

from __future__ import annotations

from threading import TIMEOUT_MAX, RLock, get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .deadline import Deadline

__all__ = ["Exclusive"]


class Exclusive:
    """Lets one thread in at a time. The others wait in front of it, until their deadlines.

    Whoever is inside already is refused, a handler or a signal handler: it would wait for itself.

    Args:
        what: a verb, such as ``"recv"``, for messages.
    """

    __slots__ = ("_lock", "_owner", "_what")

    def __init__(self, what: str) -> None:
        self._lock = RLock()  # a signal handler may come before there is an owner
        self._owner = 0
        self._what = what

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread is inside."""
        return self._owner == get_ident()

    def enter(self, deadline: Deadline) -> None:
        """Go in. Call ``leave`` afterwards.

        Raises:
            RuntimeError: the calling thread is inside already.
            TimeoutError: another thread stays there for too long.
        """
        if not self._lock.acquire(False):  # noqa: FBT003 -- a keyword would take longer
            remaining = deadline.remaining
            if not self._lock.acquire(timeout=-1 if remaining is None else min(remaining, TIMEOUT_MAX)):
                raise TimeoutError("timed out")
        if self._owner:  # this thread: none but the one inside gets the lock
            self._lock.release()
            raise RuntimeError(f"{self._what} was called by what {self._what} has called")
        self._owner = get_ident()

    def try_enter(self) -> bool:
        """Go in if nobody else is inside, and tell whether that was so."""
        if self._lock.acquire(blocking=False):
            self._owner = get_ident()
            return True
        return False

    def leave(self) -> None:
        """Let the next one in."""
        self._owner = 0
        self._lock.release()
