"""How does a URI become a connected socket, and where may a redirect lead?"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from .client_handshake import REDIRECTS
from .errors import ResponseError
from .headers import Headers

if TYPE_CHECKING:
    from .deadline import Deadline
    from .uri import URI

__all__ = ["MAX_REDIRECTS", "connect_tcp", "is_connected", "redirected", "without_credentials"]

MAX_REDIRECTS: Final = 10
# What was meant for one origin, another one must not see.
_CREDENTIALS: Final = frozenset(["authorization", "cookie", "host", "proxy-authorization"])
_LEAST_SECONDS: Final = 1e-3  # a timeout of 0 would be none


def is_connected(sock: socket.socket) -> bool:
    """Tell whether a socket has a peer."""
    if sock.fileno() < 0:
        return False
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def connect_tcp(sock: socket.socket, uri: URI, deadline: Deadline, *, is_replaceable: bool) -> socket.socket:
    """Connect a socket to the first address of a host that takes it, and return it.

    Args:
        sock: one that is not connected; closed if another one takes its place.
        uri: with host and port.
        deadline: for all addresses together.
        is_replaceable: whether another socket may be returned: for an address of another family, or a second one.

    Raises:
        TimeoutError: the time is up.
        OSError: no address can be connected to.
    """
    found = socket.getaddrinfo(uri.host, uri.port, 0 if is_replaceable else sock.family, socket.SOCK_STREAM)
    found.sort(key=lambda entry: entry[0] != sock.family)
    failure = OSError("the host has no address")
    for family, _, _, _, address in found if is_replaceable else found[:1]:
        if is_replaceable and (sock.fileno() < 0 or sock.family != family):
            sock.close()
            sock = socket.socket(family, socket.SOCK_STREAM)
        remaining = deadline.remaining
        sock.settimeout(remaining if remaining is None else max(remaining, _LEAST_SECONDS))
        try:
            sock.connect(address)
        except OSError as error:
            failure = error
            if is_replaceable:
                sock.close()
            if isinstance(error, TimeoutError):
                break
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    raise failure


def redirected(uri: URI, answer: ResponseError) -> URI:
    """Return where a redirect leads, RFC 9110 §15.4.

    Raises:
        ResponseError: this is no redirect, or one that can't be followed.
    """
    location = answer.headers.get("location")
    if answer.status not in REDIRECTS or location is None:
        raise answer
    try:
        return uri.redirected(location)
    except ValueError as reason:
        message = f"a redirect can't be followed: {reason}"
        raise ResponseError(message, answer.status, answer.reason, answer.headers) from None


def without_credentials(headers: Headers) -> Headers:
    """Return the header fields that another origin may see."""
    return Headers([(name, value) for name, value in headers.items() if name.lower() not in _CREDENTIALS])
