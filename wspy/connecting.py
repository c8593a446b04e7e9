"""How does a URI become a connected socket?"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from .deadline import Deadline
    from .uri import URI

__all__ = ["connect_tcp", "connect_unix", "is_connected"]

_LEAST_SECONDS: Final = 1e-3  # a timeout of 0 would be none
_LONGEST_PAUSE: Final = 0.05


def is_connected(sock: socket.socket) -> bool:
    """Tell whether a socket has a peer."""
    if sock.fileno() < 0:
        return False
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def connect_tcp(
    sock: socket.socket, uri: URI, deadline: Deadline, replacement: Callable[[int], socket.socket] | None
) -> socket.socket:
    """Connect a socket to the first address of a host that takes it, and return it, non-blocking.

    Looking up the name takes as long as it takes: the system knows no deadline for that.

    Args:
        sock: one that is not connected.
        uri: with host and port.
        deadline: for all addresses together; each gets a fair share of what is left.
        replacement: closes the last socket, and returns a new one of a family: for an address of another family, and
            for a second address. None if the socket has to be this one.

    Raises:
        TimeoutError: the time is up.
        OSError: no address can be connected to.
    """
    found = socket.getaddrinfo(uri.host, uri.port, sock.family if replacement is None else 0, socket.SOCK_STREAM)
    found.sort(key=lambda entry: entry[0] != sock.family)
    if replacement is None:
        del found[1:]
    failure: OSError = TimeoutError("timed out")
    is_used = False
    for number, (family, _, _, _, address) in enumerate(found):
        if deadline.is_over:
            break
        if replacement is not None and (is_used or sock.family != family):
            sock = replacement(family)
        is_used = True
        try:
            _connect(sock, address, deadline, len(found) - number)
        except OSError as error:
            failure = error
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    raise failure


def _connect(sock: socket.socket, address: Any, deadline: Deadline, share: int) -> None:
    remaining = deadline.remaining
    sock.settimeout(None if remaining is None else max(remaining / share, _LEAST_SECONDS))
    try:
        sock.connect(address)
    finally:
        sock.settimeout(0)


def connect_unix(sock: socket.socket, path: str, deadline: Deadline, check: Callable[[], None]) -> None:
    """Connect a Unix socket.

    Args:
        sock: one that is not connected, and non-blocking.
        path: where the server listens.
        deadline: of all attempts.
        check: raises if the connection isn't wanted any more, since nothing wakes who waits here.

    Raises:
        TimeoutError: the time is up, while the queue of the server is full.
        OSError: nobody is there.
    """
    pause = _LEAST_SECONDS
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:  # connect(2): the queue is full, and nothing tells when it isn't any more
            remaining = deadline.remaining
            if remaining == 0:
                raise TimeoutError("timed out") from None
            time.sleep(pause if remaining is None else min(pause, remaining))
            pause = min(2 * pause, _LONGEST_PAUSE)
            check()
        else:
            return
