"""What does the log say of peers, when one of them does again and again what a line is written for?"""

from __future__ import annotations

import logging
import socket
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .loop import Address

__all__ = ["Journal", "peer_name"]

_SECONDS: Final = 1.0
_NETWORK: Final = 8  # bytes of an IPv6 address that say which subscriber it is
_MAPPED: Final = bytes(10) + b"\xff\xff"  # RFC 4291 §2.5.5.2: an address of IPv4 follows


def peer_name(address: Address | bytes | None) -> str:
    """Return what people call a peer: its host and port, or the name of its Unix socket, which it may choose."""
    if not address:
        return "unknown" if address is None else "unix"
    if not isinstance(address, tuple):
        return address if isinstance(address, str) and address.isprintable() else repr(address)
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _subscriber(address: Address | bytes | None) -> str:
    """Return what the lines about a peer are counted by: with IPv6, all that one subscriber can choose from is one."""
    if not isinstance(address, tuple):
        return ""
    host = address[0]
    if ":" not in host:
        return host
    try:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return host
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[len(_MAPPED) :])
    return socket.inet_ntop(socket.AF_INET6, packed[:_NETWORK].ljust(len(packed), b"\0")) + "/64"


class Journal:
    """Writes lines about peers, a few in each second for each address; how many were left out is said later.

    Addresses of an IPv6 /64 count as one, and so do all Unix sockets.

    Thread-safe, and fit for signal handlers: it has no lock, and what several threads count at once may come out a few
    too few.

    Args:
        log: where they go, with the level INFO.
        most: lines in a second for each address.
    """

    def __init__(self, log: logging.Logger, most: int = 5) -> None:
        self._log = log
        self._most = most
        self._counts: dict[str, int] = {}
        self._end = 0.0

    @property
    def is_open(self) -> bool:
        """Whether anybody reads it: else there is nothing to be made for it."""
        return self._log.isEnabledFor(logging.INFO)

    def tell(self, address: Address | bytes | None, message: str, *arguments: object) -> None:
        """Write a line, or leave it out.

        Args:
            address: the peer's; its port doesn't count.
            message: for ``logging``.
            arguments: for the message.
        """
        if not self.is_open:
            return
        host = _subscriber(address)
        now = monotonic()
        if now >= self._end:
            self._end = now + _SECONDS
            self.flush()
        count = self._counts[host] = self._counts.get(host, 0) + 1
        if count <= self._most:
            self._log.info(message, *arguments)

    def flush(self) -> None:
        """Say now how many lines were left out."""
        counts, self._counts = self._counts, {}
        for host, count in list(counts.items()):  # a thread may still be counting in it
            if count > self._most:
                self._log.info("left out %d more lines about %s", count - self._most, host or "local peers")
