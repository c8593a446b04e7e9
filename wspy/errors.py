"""The exception tree: what is raised, and whose fault it is.

Two sides never share a type: misuse by the caller raises ``ValueError``, ``TypeError`` or ``SocketClosed``; a peer
that breaks a rule raises ``HandshakeError`` (before the 101) or ``ProtocolError`` (after it), which carry the answer
that the peer is due. A server is due none before the 101: its ``ResponseError`` carries what it answered. Every
exception can be copied and pickled.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

from .codes import CloseCode
from .headers import Headers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "CoreError",
    "HandshakeError",
    "PingError",
    "ProtocolError",
    "ResponseError",
    "SSLError",
    "SocketClosed",
    "WebSocketError",
    "WriteLimitError",
]


class WebSocketError(Exception):
    """Base of every exception that this library defines."""


class CoreError(WebSocketError):
    """The C core reports a failure of its own: out of memory, or misuse of a loop."""


class SocketClosed(WebSocketError, ConnectionError):
    """The connection is closed or closing: nothing can be sent any more.

    Args:
        initialized: whether this side started the closing handshake.
        message: a sentence for people.
        code: what ``onclose`` gets, as far as it is known; by default that of ``rcvd``, or 1006.
        reason: the same for the reason.
        rcvd: code and reason of the peer's Close frame; None if there was none yet. 1005 stands for no code.
        sent: the same of this side's.
    """

    def __init__(
        self,
        initialized: bool = False,
        message: str = "the connection is closed",
        *,
        code: int | None = None,
        reason: str | None = None,
        rcvd: tuple[int, str] | None = None,
        sent: tuple[int, str] | None = None,
    ) -> None:
        super().__init__(message)
        told_code, told_reason = rcvd or (CloseCode.ABNORMAL, "")
        self.initialized = initialized
        self.message = message
        self.code = told_code if code is None else code
        self.reason = told_reason if reason is None else reason
        self.rcvd = rcvd
        self.sent = sent

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.initialized, self.message), self.__dict__


class HandshakeError(WebSocketError):
    """The opening handshake failed, RFC 6455 §4.

    Args:
        status: the HTTP status that answers it, from 300 to 599, such as 400.
        message: what was wrong, for the log; it is never sent to the peer.
        headers: extra header fields of the answer, such as ``Allow``: a mapping or (name, value) pairs of str.

    Raises:
        TypeError: the status isn't an int, or the headers aren't pairs of str.
        ValueError: the status isn't one of a failure, or a header can't be sent.
    """

    def __init__(
        self, status: int, message: str, headers: Headers | Mapping[str, str] | Iterable[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.status = _checked_status(status)
        self.message = message
        self.headers = tuple(Headers(headers).items())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, self.message, self.headers), self.__dict__


def _checked_status(status: int) -> int:
    try:
        number = index(status)
    except TypeError:
        raise TypeError(f"the status of a HandshakeError is an int, not {type(status).__name__}") from None
    # RFC 9110 §15: below are the informational ones and success
    if not 300 <= number <= 599:
        raise ValueError(f"the status of a HandshakeError is from 300 to 599, not {number}")
    return number


class ResponseError(HandshakeError):
    """The answer of a server is not the one that a client asked for, RFC 6455 §4.1.

    What the server sent is in the attributes, the message has nothing of it.

    Args:
        message: what was wrong.
        status: the status of the answer; 0 if there was no well-formed one.
        reason: the reason phrase of the server's choice.
        headers: its header fields; a redirect has ``headers["location"]``.
        body: the content of a refusal, which may be cut.
    """

    headers: Headers  # type: ignore[assignment] # as received, and not to be sent

    def __init__(
        self,
        message: str,
        status: int = 0,
        reason: str = "",
        headers: Headers | Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> None:
        WebSocketError.__init__(self, message)  # each status is possible here
        self.message = message
        self.status = status
        self.reason = reason
        self.headers = Headers(headers)
        self.body = body

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.status, self.reason, self.headers, self.body), self.__dict__


class ProtocolError(WebSocketError):
    """The peer broke a rule of RFC 6455 after the opening handshake.

    Args:
        code: the close code that answers it, such as 1002.
        message: which rule, with its section.
        limit: the argument that says so, if it is a limit: such as ``"max_size"``.
    """

    def __init__(self, code: int, message: str, *, limit: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.limit = limit

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.message), self.__dict__


class PingError(WebSocketError):
    """A ping can't be sent: its payload is longer than 125 bytes (RFC 6455 §5.5)."""


class WriteLimitError(WebSocketError, BlockingIOError):
    """More than ``write_limit`` waits for this client, and the message was not queued: send again when it has read."""


class SSLError(WebSocketError):
    """TLS was asked for too late, after the handshake."""
