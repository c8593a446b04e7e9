"""A client's socket with TLS in it, for tests: made of memory BIOs, since ssl.SSLSocket can't be half closed."""

from __future__ import annotations

import contextlib
import socket
import ssl
from functools import cache
from typing import Any

from certificates import client_context


@cache
def _trusting() -> ssl.SSLContext:
    """Return the context of most clients, for all of them."""
    return client_context()


class TLSSocket:
    """A connected socket whose bytes are encrypted; what it has not got, the socket below has.

    The handshake begins with the first byte that is sent or waited for.

    Args:
        plain: the connected socket, which belongs to this one from then on.
        context: of a client.
        name: of the server.
    """

    def __init__(
        self, plain: socket.socket, context: ssl.SSLContext | None = None, name: str | None = "localhost"
    ) -> None:
        self.plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (context or _trusting()).wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._is_open = False
        self._unsent = b""  # ciphertext
        self._seen = b""  # plaintext that was looked at and not taken
        self.is_cut_off = False
        """Whether TCP has ended without close_notify."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def flush(self) -> None:
        """Send what is encrypted."""
        self._unsent += self._outgoing.read()
        while self._unsent:
            self._unsent = self._unsent[self.plain.send(self._unsent) :]

    def sealed(self, data: bytes = b"") -> bytes:
        """Return what would be sent for some plaintext, or to begin the handshake, without sending it."""
        if self._is_open:
            self.tls.write(data)
        else:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
        return self._outgoing.read()

    def _more(self) -> bool:
        """Receive ciphertext; return False at its end."""
        data = self.plain.recv(1 << 18)
        self._incoming.write(data) if data else self._incoming.write_eof()
        return bool(data)

    def shake_hands(self) -> None:
        """Perform the TLS handshake, unless that was done."""
        while not self._is_open:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                if not self._more():
                    raise ConnectionResetError("TCP has ended within the TLS handshake") from None
            else:
                self._is_open = True
                self.flush()

    def send(self, data: bytes) -> int:
        """Send some of it; what TLS has taken counts as sent."""
        self.shake_hands()
        self.flush()
        sent = self.tls.write(memoryview(data)[: 1 << 14])
        with contextlib.suppress(BlockingIOError, TimeoutError):
            self.flush()
        return sent

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        self.shake_hands()
        rest = memoryview(data)
        while rest:
            rest = rest[self.tls.write(rest) :]
            self.flush()

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive plaintext; b"" at the end of TCP, with close_notify before it or not."""
        data = self._seen or self._recv(size)
        keep = data if flags & socket.MSG_PEEK else data[size:]
        self._seen = keep
        return data[:size]

    def _recv(self, size: int) -> bytes:
        self.shake_hands()
        while True:
            try:
                return self.tls.read(size) or self._end()
            except ssl.SSLWantReadError:
                self._more()
            except ssl.SSLZeroReturnError:
                return self._end()
            except ssl.SSLEOFError:
                self.is_cut_off = True
                return b""

    def _end(self) -> bytes:
        """Expect nothing behind close_notify but the end of TCP."""
        assert self._incoming.pending == 0
        assert self.plain.recv(1) == b"", "something follows close_notify"
        return b""

    def shutdown(self, how: int) -> None:
        """End this half with close_notify, or both without."""
        if how == socket.SHUT_WR and self._is_open:
            with contextlib.suppress(ssl.SSLError):
                self.tls.unwrap()
            self.flush()
        self.plain.shutdown(how)
