"""How do bytes of one connection become TLS records, and records bytes again? No I/O: records come and go as bytes."""

from __future__ import annotations

import ssl
from contextlib import suppress
from copy import copy
from typing import Final

__all__ = ["TLS", "explained"]

# As long as a record may be (RFC 8446 §5.1): a read brings one at most.
RECORD: Final = 1 << 14

# A memory BIO keeps the memory of the most that it ever held: so it never holds much.
PIECE: Final = 1 << 15

# For who speaks HTTP where TLS is spoken: it has no keys to read anything else with.
_PLAIN_HTTP: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 36\r\nConnection: close\r\n\r\n"
    b"this port speaks HTTPS and WSS only\n"
)

_EXPLANATIONS: Final = {
    "HTTP_REQUEST": "it speaks HTTP without TLS",
    "NO_SHARED_CIPHER": "there is no cipher that both know, or no certificate",
    "WRONG_VERSION_NUMBER": "it doesn't speak TLS",
}


def explained(error: OSError) -> str:
    """Return what to tell people of a failure of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    reason: str = getattr(error, "reason", None) or str(error)
    return _EXPLANATIONS.get(reason, reason)


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
        failure: what ``receive`` raises from now on; what the peer is told of it, such as an alert, is among what
            ``take`` returns.
        has_news: whether there may be something to take, an end or a failure since ``take`` was called.

    Raises:
        ssl.SSLError, ValueError: the context is not for this side, or for this name.
    """

    __slots__ = (
        "_flows",
        "_incoming",
        "_is_writing",
        "_outgoing",
        "_read_record",
        "_sealed",
        "_waiting",
        "_write_record",
        "failure",
        "has_ended",
        "has_news",
        "is_open",
        "ssl_object",
    )

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        # plaintext that TLS does not take before the peer has sent something
        self._waiting = bytearray()
        self._is_writing = False  # what waits
        self._sealed: list[bytes] = []  # records that were taken out of the way
        self.ssl_object = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        # what SSLObject itself calls: two calls of Python less for each record
        inner = getattr(self.ssl_object, "_sslobj", self.ssl_object)
        self._read_record, self._write_record = inner.read, inner.write
        # whether all that is left to do is to turn records into plaintext, and plaintext into records
        self._flows = False
        self.is_open = False
        self.has_ended = False
        self.has_news = False
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
        size = len(data)
        if not self._flows or size > PIECE:
            return self._receive_carefully(data, [])
        # the quickest way for what most of it is: a record, which is longer than its plaintext
        incoming = self._incoming
        incoming.write(data)
        try:
            plaintext = self._read_record(size)
        except ssl.SSLError as error:
            if self._is_told(error, []):
                raise
            return b""
        if incoming.pending:
            return self._receive_carefully(b"", [plaintext])
        if self._outgoing.pending or not plaintext:
            self._flows, self.has_news = bool(plaintext), True
            self.has_ended = not plaintext  # close_notify, as the ssl module has it without an exception
        return plaintext

    def _receive_carefully(self, data: bytes, parts: list[bytes]) -> bytes:
        self._flows, self.has_news = False, True
        if self.failure is not None:
            raise copy(self.failure)
        if self.has_ended:
            return b""
        flows = False
        try:
            for start in range(0, len(data) or 1, PIECE):
                flows = self._take_in(data[start : start + PIECE], parts)
        except ssl.SSLError as error:
            flows = False
            if self._is_told(error, parts):
                raise
        if self._waiting and self.is_open:
            self._write_waiting()
        self._flows = flows and not self._waiting
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _take_in(self, data: bytes, parts: list[bytes]) -> bool:
        """Go on with the handshake, and add what can be read; return whether the next record is to be expected."""
        self._incoming.write(data)
        try:
            if not self.is_open:
                self._shake_hands()
            self._read(parts)
        except ssl.SSLWantReadError:  # a record is there in part
            return False
        return not self.has_ended

    def _shake_hands(self) -> None:
        self.ssl_object.do_handshake()
        self.is_open = True

    def _read(self, parts: list[bytes]) -> None:
        # What is left is asked for, since being told by an exception that nothing is costs as much as a record. And
        # nothing is left in TLS itself: whoever asks for a whole record gets all of it.
        while self._incoming.pending:
            part = self._read_record(RECORD)
            if not part:
                self.has_ended = True
                return
            parts.append(part)

    def _is_told(self, error: ssl.SSLError, parts: list[bytes]) -> bool:
        """Note why nothing more can be read; return whether it is to be raised, with nothing to return before."""
        self._flows, self.has_news = False, True
        if isinstance(error, ssl.SSLWantReadError):
            return False
        if isinstance(error, ssl.SSLZeroReturnError):
            self.has_ended = True
            return False
        if error.reason in _EXPLANATIONS:
            error.add_note(explained(error))
        self.failure = copy(error)  # a traceback would hold this, and so all that it has
        if error.reason == "HTTP_REQUEST":
            self._sealed.append(_PLAIN_HTTP)
        return not parts

    def send(self, data: bytes | memoryview) -> None:
        """Encrypt bytes for the peer; before the handshake is done they wait for it.

        Raises:
            ssl.SSLError: nothing can be sent any more.
        """
        if not data:
            return
        if self.is_open and not self._waiting and len(data) <= RECORD:
            with suppress(ssl.SSLWantReadError):
                self._write_record(data)
                return
        self._flows = False
        self._waiting += data
        if self.is_open:
            self._write_waiting()

    def _write_waiting(self) -> None:
        """Write as much of what waits as TLS takes."""
        if self._is_writing:
            return  # a signal handler that receives has interrupted it; it goes on afterwards
        self._is_writing = True
        written, size = 0, len(self._waiting)
        write = self._write_record
        try:
            with suppress(ssl.SSLWantReadError), memoryview(self._waiting) as view:
                while written < size:
                    with view[written : written + RECORD] as part:
                        written += write(part)
                    if self._outgoing.pending >= PIECE:
                        self._sealed.append(self._outgoing.read())
            del self._waiting[:written]
        finally:
            self._is_writing = False

    def seal(self, data: bytes) -> bytes:
        """Encrypt bytes and return the records that are to be sent now: ``send`` and ``take`` in one."""
        if not self._flows or self._sealed or not 0 < len(data) <= RECORD:
            self.send(data)
            return self.take()
        try:
            self._write_record(data)
        except ssl.SSLWantReadError:
            self._flows = False
            self._waiting += data
        return self._outgoing.read()

    @property
    def pending(self) -> int:
        """How many bytes ``take`` would return."""
        return sum(map(len, self._sealed)) + self._outgoing.pending

    def take(self) -> bytes:
        """Return the records that are to be sent now."""
        self.has_news = False
        if not self._sealed:
            return self._outgoing.read() if self._outgoing.pending else b""
        sealed, self._sealed = self._sealed, []
        return b"".join((*sealed, self._outgoing.read()))

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
