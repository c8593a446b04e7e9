"""How an address becomes a listening socket."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import TypeAlias

__all__ = ["Address", "close_listener", "open_listener"]

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str | os.PathLike[str] | socket.socket


def open_listener(address: Address, *, backlog: int, reuse_port: bool) -> socket.socket:
    """Return a non-blocking listening socket.

    Args:
        address: host and port ("" for every interface, port 0 for any free one), the path of a Unix socket (a name
            that begins with NUL is abstract), or a socket that listens already, which is returned as it is.
        backlog: connections that the kernel completes before they are accepted.
        reuse_port: let other processes listen on the same port, SO_REUSEPORT.

    Raises:
        OSError: the address can't be had.
        ValueError: the socket doesn't listen, or a path is too long.
    """
    if isinstance(address, socket.socket):
        return _checked(address)
    if isinstance(address, str | os.PathLike):
        return _open_unix(os.fspath(address), backlog)
    return _open_tcp(address, backlog, reuse_port=reuse_port)


def _checked(listener: socket.socket) -> socket.socket:
    if listener.type != socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError("the socket must be a stream socket that listens: call listen() first")
    listener.setblocking(False)
    return listener


def _open_tcp(address: tuple[str, int] | tuple[str, int, int, int], backlog: int, *, reuse_port: bool) -> socket.socket:
    host, port = address[:2]
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # with no host given, one IPv6 socket serves both families where the system has IPv6
    family, _, _, _, target = min(found, key=lambda entry: entry[0] != socket.AF_INET6) if not host else found[0]
    try:
        return _listen(family, target, backlog, reuse_port=reuse_port, dual=not host)
    except OSError as error:
        if host or family != socket.AF_INET6 or error.errno == errno.EADDRINUSE:
            raise
        return _listen(socket.AF_INET, ("", port), backlog, reuse_port=reuse_port, dual=False)


def _listen(family: int, target: tuple[object, ...], backlog: int, *, reuse_port: bool, dual: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        listener.bind(target)
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _open_unix(path: str, backlog: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not path.startswith("\0"):
            _remove_stale(path)
        try:
            listener.bind(path)
        except OSError as error:
            if "too long" in str(error):
                raise ValueError("the path of a Unix socket has at most 107 bytes") from error
            raise
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    """Remove the socket that a server left behind; a live one, or anything else, stays for bind to complain."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def close_listener(listener: socket.socket) -> None:
    """Close a socket that ``open_listener`` made, and remove its path if it is still that socket's."""
    path = listener.getsockname() if listener.family == socket.AF_UNIX else None
    listener.close()
    if isinstance(path, str) and path:
        _remove_stale(path)
