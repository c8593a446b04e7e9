"""How long may a blocking call still take?"""

from __future__ import annotations

import select
from time import monotonic
from typing import TYPE_CHECKING

from .errors import SocketClosed

if TYPE_CHECKING:
    import socket

__all__ = ["Deadline"]


class Deadline:
    """The end of a call that waits several times.

    Args:
        seconds: from now; None for never.
    """

    __slots__ = ("_end",)

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else monotonic() + seconds

    @property
    def remaining(self) -> float | None:
        """Seconds that are left, at least 0; None if there is no end."""
        return None if self._end is None else max(self._end - monotonic(), 0.0)

    def earlier(self, seconds: float | None) -> Deadline:
        """Return the deadline that ends first: this one, or one in so many seconds."""
        other = Deadline(seconds)
        if self._end is None or (other._end is not None and other._end < self._end):
            return other
        return self

    def wait(self, sock: socket.socket, events: int) -> int:
        """Wait for events of ``select.poll``, and return those that there are.

        Raises:
            SocketClosed: this side has closed the socket.
            TimeoutError: the time is up.
        """
        if sock.fileno() < 0:
            raise SocketClosed(initialized=True, message="this side has closed the socket")
        poll = select.poll()
        poll.register(sock, events)
        remaining = self.remaining
        found = poll.poll(None if remaining is None else remaining * 1000)
        if not found:
            raise TimeoutError("timed out")
        return found[0][1]
