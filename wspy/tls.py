"""How do bytes of one connection become TLS records, and records bytes again? No I/O: records come and go as bytes."""

from __future__ import annotations

import ssl
from contextlib import suppress
from functools import lru_cache
from typing import Final

__all__ = ["TLS", "check_side", "checked_context", "default_context", "server_context"]

# As long as a record may be (RFC 8446 §5.1): a read brings one at most.
RECORD: Final = 1 << 14


class TLS:
    """The TLS of one connection. Not thread-safe: a lock, or one thread, is for its owner to see to.

    What ``take`` returns is to be sent after every other call, in order: a read may need an answer, too.

    Args:
        context: certificates, protocols, and what is asked of the peer.
        server_side: whether this is the end that the other one connects to.
        server_hostname: the name that a client asks for (SNI) and checks.

    Attributes:
        ssl_object: what tells about the peer's certificate, the cipher and so on; not to be read or written.
        is_open: whether the handshake is done.
        has_ended: whether the peer has sent close_notify (RFC 8446 §6.1), or ``eof`` was called.
        failure: what ``receive`` raises from now on; an alert, if one is due, is among what ``take`` returns.

    Raises:
        ssl.SSLError, ValueError: the context is not for this side, or for this name.
    """

    __slots__ = ("_incoming", "_outgoing", "_waiting", "failure", "has_ended", "is_open", "ssl_object")

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        # plaintext that TLS does not take before the peer has sent something
        self._waiting = bytearray()
        self.ssl_object = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        self.is_open = False
        self.has_ended = False
        self.failure: ssl.SSLError | None = None
        if not server_side:
            with suppress(ssl.SSLWantReadError):
                self._shake_hands()

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the peer; return all plaintext there is.

        Plaintext before a failure is returned, and the failure raised by the next call.

        Raises:
            ssl.SSLError: the peer broke TLS, or its certificate is refused.
        """
        if self.failure is not None:
            raise self.failure
        if self.has_ended:
            return b""
        parts: list[bytes] = []
        try:
            self._incoming.write(data)
            if not self.is_open:
                self._shake_hands()
            self._read(parts)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.has_ended = True
        except ssl.SSLError as error:
            self.failure = error
            if not parts:
                raise
        if self._waiting and self.is_open:
            self._write_waiting()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _shake_hands(self) -> None:
        self.ssl_object.do_handshake()
        self.is_open = True

    def _read(self, parts: list[bytes]) -> None:
        read, pending = self.ssl_object.read, self.ssl_object.pending
        # what is there is asked for, since being told by an exception that nothing is costs as much as a record
        while self._incoming.pending or pending():
            part = read(RECORD)
            if not part:  # close_notify, as the ssl module has it without an exception
                self.has_ended = True
                return
            parts.append(part)

    def send(self, data: bytes) -> None:
        """Encrypt bytes for the peer; before the handshake is done they wait for it.

        Raises:
            ssl.SSLError: nothing can be sent any more.
        """
        if not self.is_open or self._waiting:
            self._waiting += data
            if self.is_open:
                self._write_waiting()
            return
        written = self._write(data)
        if written < len(data):
            self._waiting += memoryview(data)[written:]

    def _write(self, data: bytes | bytearray) -> int:
        """Write as much as TLS takes; return how much."""
        size = len(data)
        if not size:
            return 0
        written = 0
        write = self.ssl_object.write
        with suppress(ssl.SSLWantReadError), memoryview(data) as view:
            written = write(view)
            while written < size:
                with view[written:] as rest:
                    written += write(rest)
        return written

    def _write_waiting(self) -> None:
        written = self._write(self._waiting)
        del self._waiting[:written]

    def take(self) -> bytes:
        """Return the records that are to be sent now."""
        return self._outgoing.read()

    def eof(self) -> bool:
        """Note that the peer has ended TCP; return whether it had sent close_notify, so that nothing can be missing."""
        is_clean = self.has_ended
        self.has_ended = True
        return is_clean

    def close(self) -> None:
        """Send close_notify behind what was sent; nothing can be sent after it. Nothing happens after a failure."""
        if self.is_open and self.failure is None:
            # the peer's close_notify need not be waited for (RFC 8446 §6.1)
            with suppress(ssl.SSLError):
                self.ssl_object.unwrap()


def checked_context(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return a context without renegotiation: a client of TLS 1.2 could make a server compute for nothing.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(
            f"ssl is an ssl.SSLContext, not {type(context).__name__}: ssl.create_default_context() makes one"
        )
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def check_side(context: ssl.SSLContext, *, server_side: bool) -> None:
    """Raise ValueError if a context is for the other side."""
    other = ssl.PROTOCOL_TLS_CLIENT if server_side else ssl.PROTOCOL_TLS_SERVER
    if context.protocol is other:
        purpose = "ssl.PROTOCOL_TLS_SERVER and has a certificate" if server_side else "ssl.PROTOCOL_TLS_CLIENT"
        raise ValueError(f"ssl is for the other side: make one that is {purpose}")


@lru_cache(maxsize=1)
def default_context(ca_certs: str | None = None) -> ssl.SSLContext:
    """Return what a client trusts: certificates of the file, or those that the system trusts, for the name it asks for.

    Made once, since reading what a system trusts takes as long as a hundred handshakes.
    """
    context = ssl.create_default_context(cafile=ca_certs)
    context.set_alpn_protocols(["http/1.1"])  # RFC 6455 §1.7: an upgrade of this version
    return checked_context(context)


def server_context(certfile: str, keyfile: str | None, ca_certs: str | None) -> ssl.SSLContext:
    """Return the context of a server that has a certificate; clients need one of ``ca_certs``, if that is given."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca_certs)
    context.load_cert_chain(certfile, keyfile)
    if ca_certs is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return checked_context(context)
