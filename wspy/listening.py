"""How an address becomes a listening socket, and what of it goes away in the end."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from typing import Any, Final, TypeAlias

__all__ = ["Address", "close_listener", "open_listener"]

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str | bytes | os.PathLike[str] | socket.socket

# The system has no such address, or not this family of addresses: the next one of the same name may do.
_ABSENT: Final = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}

# What was meant as host and port: as a path it would make a file of that name.
_HOST_AND_PORT: Final = re.compile(r"[^/\0]*:[0-9]+")

_MAX_PATH: Final = 107  # bytes in sockaddr_un beside the NUL that ends a path, or begins an abstract name (unix(7))


def open_listener(address: Address, *, backlog: int, reuse_port: bool) -> socket.socket:
    """Return a non-blocking listening socket.

    A Unix socket that a server left behind is replaced. One that is held by a process, and whatever else stands at its
    path, stays as it is.

    Args:
        address: host and port: "" for every interface, port 0 for any free one; a host name stands for the first of
            its addresses that this system has. Or the path of a Unix socket, or an abstract name after NUL. Or a
            socket that listens already, which is returned as it is, but non-blocking. What ``getsockname`` returns
            fits, too.
        backlog: connections that the kernel completes before they are accepted.
        reuse_port: let other processes listen on the same port, SO_REUSEPORT.

    Raises:
        OSError: the address can't be had.
        TypeError: it is none of these.
        ValueError: the socket doesn't listen; the path is empty, too long, or rather a host and a port; or the port is
            out of range.
    """
    if isinstance(address, socket.socket):
        return _checked(address)
    if isinstance(address, str | bytes) and _HOST_AND_PORT.fullmatch(os.fsdecode(address)):
        raise ValueError(f"{address!r} is no address: TCP takes (host, port), a Unix socket a path with a slash")
    if isinstance(address, str | bytes | os.PathLike):
        return _open_unix(os.fsdecode(address), backlog)
    return _open_tcp(address, backlog, reuse_port=reuse_port)


def close_listener(listener: socket.socket) -> None:
    """Close a socket that ``open_listener`` made, and remove its path if that is still its own.

    It isn't if another server has taken the path, or a child process still holds the socket. A path that can't be
    removed stays: ``open_listener`` replaces it.
    """
    path = listener.getsockname() if listener.family == socket.AF_UNIX else ""
    is_ours = isinstance(path, str) and path != "" and _is_held(path)
    listener.close()
    if is_ours:
        with contextlib.suppress(OSError):
            _remove_stale(path)


def _checked(listener: socket.socket) -> socket.socket:
    if hasattr(listener, "do_handshake"):
        raise ValueError("a socket with TLS would be accepted from without it")
    if listener.type != socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError("the socket must be a stream socket that listens: call listen() first")
    listener.settimeout(0)
    return listener


def _listen(family: int, target: Any, backlog: int, options: tuple[tuple[int, int, int], ...] = ()) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        for level, name, value in options:
            listener.setsockopt(level, name, value)
        listener.bind(target)
        listener.listen(backlog)
        listener.settimeout(0)
    except BaseException as error:
        close_listener(listener)
        if isinstance(error, OSError):
            error.filename = target  # str(error) names it
        raise
    return listener


# ---- TCP ----


def _open_tcp(address: object, backlog: int, *, reuse_port: bool) -> socket.socket:
    host, port = _host_and_port(address)
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    if not host:
        # one IPv6 socket serves both families, where the system has IPv6
        found.sort(key=lambda entry: entry[0] != socket.AF_INET6)
    failure = OSError()
    for family, _, _, _, target in found:
        try:
            return _listen(family, target, backlog, _tcp_options(family, reuse_port=reuse_port, dual=not host))
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            failure = error
    raise failure


def _host_and_port(address: object) -> tuple[str, int]:
    scope = 0
    match address:
        case (str(host), int(port)):
            pass
        case (str(host), int(port), int(), int(scope)):
            pass
        case _:
            raise TypeError("an address is (host, port), the path of a Unix socket, or a socket that listens")
    if not 0 <= port <= 0xFFFF:  # the C library takes it modulo 65536
        raise ValueError(f"a port is from 0 to 65535, not {port}")
    return f"{host}%{scope}" if scope else host, port


def _tcp_options(family: int, *, reuse_port: bool, dual: bool) -> tuple[tuple[int, int, int], ...]:
    options = [(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)]
    if reuse_port:
        options.append((socket.SOL_SOCKET, socket.SO_REUSEPORT, 1))
    if family == socket.AF_INET6:
        options.append((socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual))
    return tuple(options)


# ---- Unix sockets ----


def _open_unix(path: str, backlog: int) -> socket.socket:
    if not path:
        raise ValueError("the path of a Unix socket is empty")
    is_abstract = path.startswith("\0")
    length = len(os.fsencode(path)) - is_abstract
    if length > _MAX_PATH:
        raise ValueError(f"the path of a Unix socket has at most {_MAX_PATH} bytes, this one has {length}")
    if not is_abstract:
        _remove_stale(path)
    return _listen(socket.AF_UNIX, path, backlog)


def _remove_stale(path: str) -> None:
    """Remove a socket that no process holds; anything else stays for bind to complain about."""
    try:
        seen = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISSOCK(seen.st_mode):
        _remove_seen(path, seen)


def _remove_seen(path: str, seen: os.stat_result) -> None:
    """Remove the socket that was seen at a path if no process holds it, and nothing else has come there since.

    Several servers may see the same one. Only that which gets the abstract name made of its number may remove it, so
    that it can't be another's new socket that goes; the rest find the address in use.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        try:
            claim.bind(f"\0wspy replaces {seen.st_dev}:{seen.st_ino}")
            found = os.lstat(path)
        except OSError:
            return
        if os.path.samestat(found, seen) and not _is_held(path):
            os.unlink(path)  # noqa: PTH108 -- importing pathlib would take longer than all else here


def _is_held(path: str) -> bool:
    """Whether a process holds the socket of this path, or one can't say so.

    The connect of a datagram socket fails with ECONNREFUSED exactly if nobody does. Of a stream socket it would do so
    between bind and listen, too; it would wait if the backlog is full; and the server would see a connection.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:  # EPROTOTYPE: a stream socket is there
            return True
        return True
