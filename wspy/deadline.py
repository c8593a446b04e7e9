"""How long may a blocking call still take?"""

from __future__ import annotations

import select
from time import monotonic
from typing import TYPE_CHECKING, Final

from .errors import SocketClosed

if TYPE_CHECKING:
    import socket

__all__ = ["NEVER", "Deadline"]

# poll takes milliseconds in a C int
_MAX_WAIT: Final = 1e6


class Deadline:
    """The end of a call that waits several times.

    The first time it looks at least, even if there are 0 seconds. Later nobody prolongs the call by always having
    something ready.

    Args:
        seconds: from now; None for never.
    """

    __slots__ = ("_end", "_has_waited")

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else monotonic() + seconds
        self._has_waited = False

    @property
    def remaining(self) -> float | None:
        """Seconds that are left, at least 0; None if there is no end."""
        return None if self._end is None else max(self._end - monotonic(), 0.0)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left."""
        return self._end is not None and self._end <= monotonic()

    def earlier(self, other: Deadline | float | None) -> Deadline:
        """Return the deadline that ends first: this one or the other, which may be in so many seconds from now."""
        if not isinstance(other, Deadline):
            other = Deadline(other)
        if self._end is None or (other._end is not None and other._end < self._end):
            return other
        return self

    def wait(self, sock: socket.socket, events: int) -> int:
        """Wait for events of ``select.poll``, and return those that there are.

        Raises:
            SocketClosed: this side has closed the socket.
            TimeoutError: the time is up.
        """
        fd = sock.fileno()
        if fd < 0:
            raise SocketClosed(initialized=True, message="this side has closed the socket")
        poll = select.poll()
        poll.register(fd, events)
        return self.wait_with(poll)

    def wait_with(self, poll: select.poll) -> int:
        """Wait for one socket that is registered already; see ``wait``.

        Raises:
            TimeoutError: the time is up.
        """
        found = self.poll(poll)
        if not found:
            raise TimeoutError("timed out")
        return found[0][1]

    def poll(self, poll: select.poll) -> list[tuple[int, int]]:
        """Wait for any of the descriptors that are registered; return events by descriptor, none when time is up."""
        if self._end is None:
            return poll.poll()
        if self._has_waited and self.is_over:
            return []
        self._has_waited = True
        while True:
            remaining = max(self._end - monotonic(), 0.0)
            found = poll.poll(min(remaining, _MAX_WAIT) * 1000)
            if found or remaining <= _MAX_WAIT:
                return found


NEVER: Final = Deadline(None)
"""One that has no end, for all who need one."""
