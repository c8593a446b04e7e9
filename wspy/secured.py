"""How do the connections of a server get through TLS? What came becomes plaintext, and what goes becomes ciphertext.

The core has the sockets and everything above TLS; here is what the raw mode of core.h leaves to Python: events become
commands. All of it is called in the server's thread, but for what says otherwise.
"""

from __future__ import annotations

import logging
import os
import ssl
from contextlib import contextmanager, nullcontext
from copy import copy
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

from . import loop as core
from .contexts import checked_server_context
from .journal import peer_name
from .tls import TLS, explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .journal import Journal
    from .loop import Event, Loop

__all__ = ["Secured"]

log = logging.getLogger("wspy.server")


@contextmanager
def _copied(path: str | bytes | os.PathLike[Any]) -> Iterator[str]:
    """Give the path of a copy of a file, in memory: what renews it may do so between one reading and the next."""
    with Path(os.fsdecode(path)).open("rb") as file, os.fdopen(os.memfd_create("certificate"), "wb") as copy:
        copy.write(file.read())
        copy.flush()
        yield f"/proc/self/fd/{copy.fileno()}"


def _as_strict(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return a new context that takes the certificates that another one takes, and refuses what that refuses."""
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # which keys and signatures are too weak depends on this alone
    trial.set_ciphers(f"ALL:@SECLEVEL={context.security_level}")
    return trial


class _Connection(TLS):
    """The TLS of one connection of the loop, and the keys of the commands that are for it."""

    __slots__ = ("abort_key", "end_key", "feed_key", "handle", "send_key")

    def __init__(self, context: ssl.SSLContext, handle: int) -> None:
        super().__init__(context, server_side=True)
        self.handle = handle
        self.feed_key = core.key(handle | core.FEED)
        self.send_key = core.key(handle | core.RAW_SEND)
        self.end_key = core.key(handle | core.FEED_END)
        self.abort_key = core.key(handle | core.ABORT)


class Secured:
    """The TLS of all connections of a loop.

    Args:
        context: as ``checked_server_context`` returns it.
        loop: whose settings say ``raw``.
        journal: where it is told with whom TLS fails.
    """

    def __init__(self, context: ssl.SSLContext, loop: Loop, journal: Journal) -> None:
        self._context = context
        # An SSL_CTX may not be changed while a connection is made from it. A signal handler that reloads may have
        # interrupted the one or the other, between two calls of OpenSSL: it would wait for itself.
        self._loading = RLock()
        self._loop = loop
        self._push = loop.push
        self._journal = journal
        self._connections: dict[int, _Connection] = {}
        """By slot, from the first bytes of the peer on."""

    # ---- certificates ----

    def reload(
        self,
        certfile: ssl.SSLContext | str | bytes | os.PathLike[Any],
        keyfile: str | bytes | os.PathLike[Any] | None,
        password: Callable[[], str | bytes] | str | bytes | None,
    ) -> None:
        """Use another context, or another certificate, for connections to come. Thread-safe."""
        if isinstance(certfile, ssl.SSLContext):
            if keyfile is not None or password is not None:
                raise TypeError(
                    "a context has its keys already: keyfile and password go with the path of a certificate"
                )
            self._context = checked_server_context(certfile)
            return
        said = lru_cache(maxsize=1)(password) if callable(password) else password
        with _copied(certfile) as chain, nullcontext() if keyfile is None else _copied(keyfile) as key:
            # whatever is wrong with the files is found out here, while the context in use is as it was
            _as_strict(self._context).load_cert_chain(chain, key, said)
            with self._loading:
                self._context.load_cert_chain(chain, key, said)

    # ---- events ----

    def others(self, events: Iterable[Event]) -> Iterator[Event]:
        """Yield the events that are not about TLS, and answer those that are with commands.

        Every record passes this one loop, so it calls as little as it can.
        """
        get, arena, push = self._connections.get, self._loop.arena, self._push
        for slot, kind, start, length in events:
            if kind != _RAW and kind != _OUT:  # noqa: PLR1714 -- a set takes longer
                if kind in (_OUT_LAST, core.EVENT_GONE):
                    self._end(slot, kind, arena[start : start + length])
                else:
                    yield slot, kind, start, length
                continue
            connection = get(slot) or self._begin(slot)
            if connection is None:
                continue
            try:
                if kind == _OUT:
                    ciphertext = connection.seal(arena[start : start + length])
                    size = len(ciphertext)
                    prefix = _SEALED[size] if size < _SHORT else core.prefix(size, core.OUT)
                    push((connection.send_key, prefix, ciphertext))
                    continue
                plaintext = connection.receive(arena[start : start + length]) if length else b""
                size = len(plaintext)
                if connection.has_news or not 0 < size < _SHORT:
                    self._feed(connection, plaintext, is_last=not length)
                else:
                    push((connection.feed_key, _PLAIN[size], plaintext))
            except BaseException as error:  # noqa: BLE001 -- whatever it is, _broken decides
                self._broken(connection, kind, error)

    def _begin(self, slot: int) -> _Connection | None:
        """Return a new connection; None if there can be no TLS for it, such as without memory."""
        handle = self._loop.handle(slot)
        try:
            with self._loading:
                connection = _Connection(self._context, handle)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, _lost decides
            self._lost(handle, error)
            return None
        self._connections[slot] = connection
        return connection

    def _feed(self, connection: _Connection, plaintext: bytes, *, is_last: bool) -> None:
        """Hand on what has come, and whatever else there is to be told. Nothing follows the last."""
        if is_last:
            connection.eof()
            self._push((connection.end_key, *_CLEAN))
            return
        answer = connection.take()
        if answer:
            self._push((connection.send_key, core.prefix(len(answer), b"\0"), answer))
        if plaintext:
            self._push((connection.feed_key, core.prefix(len(plaintext)), plaintext))
        if connection.failure is not None:
            raise copy(connection.failure)
        if connection.has_ended:
            self._push((connection.end_key, *_CLEAN))

    def _end(self, slot: int, kind: int, plaintext: bytes) -> None:
        """Send the last that goes to a peer, with close_notify behind it: OUT_LAST. Or forget it: GONE."""
        if kind == core.EVENT_GONE:
            gone = self._connections.pop(slot, None)
            if gone is not None and not gone.is_open and gone.failure is None:
                self._log(gone, "it left" if gone.has_ended else "its handshake was not completed in time")
            return
        connection = self._connections.get(slot) or self._begin(slot)
        if connection is None:
            return
        try:
            ciphertext = connection.seal(plaintext)
            connection.close()
            ciphertext += connection.take()
            self._push((connection.send_key, core.prefix(len(ciphertext), core.OUT_AND_LAST), ciphertext))
        except BaseException as error:  # noqa: BLE001 -- whatever it is, _broken decides
            self._broken(connection, kind, error)

    # ---- what goes wrong ----

    def _broken(self, connection: _Connection, kind: int, error: BaseException) -> None:
        if not isinstance(error, ssl.SSLError):
            self._lost(connection.handle, error)
        elif kind == _RAW:
            self._failed(connection, error)
        else:
            self._log(connection, explained(error))
            self._push((connection.abort_key, _NOTHING, b""))

    def _failed(self, connection: _Connection, error: ssl.SSLError) -> None:
        """End a connection whose peer does not speak TLS, or not as it has to, behind the alert that says so."""
        self._log(connection, explained(error))
        last = connection.take()
        if last:
            self._push((connection.send_key, core.prefix(len(last), b"\0"), last))
        self._push((connection.end_key, *_FAILED))

    def _lost(self, handle: int, error: BaseException) -> None:
        """End a connection of whose stream a part may be lost: nobody could make sense of what follows."""
        self._push((core.key(handle | core.ABORT), _NOTHING, b""))
        if not isinstance(error, Exception):
            raise error
        log.error("exception in the TLS of %s", peer_name(self._loop.peer(handle)), exc_info=error)

    def _log(self, connection: _Connection, reason: str) -> None:
        peer = self._loop.peer(connection.handle)
        self._journal.tell(peer, "TLS with %s has failed: %s", peer_name(peer), reason)

    def memory_used(self) -> int:
        """Return about how many bytes OpenSSL and the objects above it take for all connections. Thread-safe."""
        return len(self._connections) * _OPENSSL

    def ssl_object(self, handle: int) -> ssl.SSLObject | None:
        """Return what tells about the TLS of a connection; None once it is gone. Thread-safe."""
        connection = self._connections.get(handle & core.SLOT)
        return connection.ssl_object if connection is not None and connection.handle == handle else None


# Their payloads always lie apart.
_RAW: Final = core.EVENT_RAW | core.EVENT_APART
_OUT: Final = core.EVENT_OUT | core.EVENT_APART
_OUT_LAST: Final = core.EVENT_OUT_LAST | core.EVENT_APART

# Of a connection of OpenSSL 3.0 over TLS 1.3, as measured when it is idle: with its session and its two memory BIOs.
_OPENSSL: Final = 18_000

_SHORT: Final = 512
"""Prefixes of shorter payloads need not be made."""
_PLAIN: Final = tuple(core.prefix(size) for size in range(_SHORT))
_SEALED: Final = tuple(core.prefix(size, core.OUT) for size in range(_SHORT))
_NOTHING: Final = core.prefix(0)
_CLEAN: Final = (core.prefix(1), b"\0")
_FAILED: Final = (core.prefix(1), b"\1")
