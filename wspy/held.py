"""May a socket be closed now, or is somebody still using it?"""

from __future__ import annotations

import contextlib
import os
import socket

from .errors import SocketClosed

__all__ = ["HeldSocket"]


class _Forks:
    """How many children this process has had that may use its connections."""

    count = 0

    @classmethod
    def another(cls) -> None:
        cls.count += 1


os.register_at_fork(after_in_parent=_Forks.another)


class HeldSocket:
    """A socket that any thread may close at any time. Use it as a context manager around whatever uses the socket.

    A descriptor that is closed may stand for another file a moment later, so that a thread inside a system call would
    read and write that. Therefore the last one who uses the socket closes it; ``close`` makes all of them hurry.

    There is no lock that a signal handler could wait for in vain: users are counted by a list, whose steps are atomic.

    Args:
        sock: the socket. It is made non-blocking, since threads can be woken from ``poll`` only.

    Attributes:
        sock: the socket.
        closed: whether ``close`` was called.
    """

    __slots__ = ("_forks", "_process", "_users", "closed", "sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self.sock = sock
        self.closed = False
        self._users: list[None] = []
        self._process = os.getpid()
        self._forks = _Forks.count

    @property
    def may_be_shared(self) -> bool:
        """Whether a parent or a child may go on with the connection: there was a fork since it was made."""
        return self.is_inherited or self._forks != _Forks.count

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a child of the one that has made it."""
        return self._process != os.getpid()

    def __enter__(self) -> socket.socket:
        """Use the socket.

        Raises:
            SocketClosed: ``close`` was called.
        """
        self._users.append(None)
        if self.closed:
            self.__exit__()
            self.check()
        return self.sock

    def __exit__(self, *_: object) -> None:
        self._users.pop()
        if self.closed and not self._users:
            self.sock.close()

    def check(self) -> None:
        """Raise SocketClosed if ``close`` was called."""
        if self.closed:
            raise SocketClosed(initialized=True, message="this side has closed the socket")

    def replace(self, sock: socket.socket) -> None:
        """Close the socket and use another one instead; for the one who uses it.

        Raises:
            SocketClosed: ``close`` was called; the other one is closed.
        """
        sock.settimeout(0)
        self.sock.close()
        self.sock = sock
        self.check()

    def close(self) -> None:
        """Close the socket, or have it closed by who uses it, as soon as it was woken. Thread-safe; twice is fine."""
        self.closed = True
        # in a forked child they are threads of the parent, whose connection it is
        if self.is_inherited:
            self.sock.close()
        elif self._users:
            self._users.append(None)
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            self.__exit__()
        else:
            self.sock.close()
