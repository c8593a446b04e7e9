"""How did a connection end: who ended it, was it in order, and what was lost?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from . import loop as core
from .codes import CloseCode
from .errors import ProtocolError, SocketClosed

if TYPE_CHECKING:
    from .protocol import Protocol

__all__ = ["Closure", "closure", "how_it_ends"]

By: TypeAlias = Literal["peer", "this side", "network"]

_WITHOUT_A_CLOSE: Final = {0, core.LOST, core.CUT, core.CLOSE_TIMEOUT, core.ABORTED, core.BACKLOG}


@dataclass(frozen=True, slots=True)
class Closure:
    """How a connection ended.

    Attributes:
        by: who ended it: ``"peer"``, ``"this side"`` or ``"network"``: whoever sent the first Close, or what came
            instead. A peer that breaks a rule, or keeps this side waiting, is cut off by this side.
        is_clean: whether there was a closing handshake (RFC 6455 §7.1.4).
        code: what ``onclose`` got.
        reason: the same.
        received: code and reason of the peer's Close frame; None if there was none. 1005 stands for no code.
        sent: the same of this side's; None if it did not leave.
        limit: the argument that says so, of the server, the ``Connection`` or the ``websocket``, if it was a limit or a
            deadline: such as ``"max_size"`` or ``"write_timeout"``; else None.
        errno: of the system call that failed, such as ``errno.ECONNRESET``; else None.
        unsent_bytes: how much the kernel never took. What it took may be lost, too, unless the end is clean.
        unsent_messages: of how many messages that was, with one that was sent in part; with TLS there may be a few more
            that ended less than 256 KiB before.
        age: seconds from the opening handshake to the end.
    """

    by: By
    is_clean: bool
    code: int
    reason: str
    received: tuple[int, str] | None
    sent: tuple[int, str] | None
    limit: str | None
    errno: int | None
    unsent_bytes: int
    unsent_messages: int
    age: float

    def __str__(self) -> str:
        """Return it in words, for a log: what a peer has said is escaped."""
        words = [f"closed by the {self.by}" if self.by != "this side" else "closed by this side"]
        words.append(f"with {self.code} {self.reason!r}" if self.reason else f"with {self.code}")
        if not self.is_clean:
            words.append("without a closing handshake")
        if self.limit is not None:
            words.append(f"for {self.limit}")
        if self.errno is not None:
            words.append(f"({os.strerror(self.errno)})")
        words.append(f"after {self.age:.3f} s")
        if self.unsent_bytes or self.unsent_messages:
            words.append(f"with {self.unsent_messages} messages ({self.unsent_bytes} bytes) unsent")
        return " ".join(words)


def closure(ending: core.Ending, state: SocketClosed, limit: str | None = None) -> Closure:
    """Return what is to be told of an end.

    Args:
        ending: what the core knows.
        state: what is raised to who sends, with the code and the reason that ``onclose`` gets.
        limit: because of which this side has begun to close.
    """
    error, code, sent = ending.error, state.code, state.sent
    if error == 0 and sent is None and state.rcvd is not None:
        sent = (state.rcvd[0], "")  # a Close is answered with its code, RFC 6455 §5.5.1
    elif sent is None and error not in _WITHOUT_A_CLOSE and code != CloseCode.ABNORMAL:
        sent = (code, "")
    if ending.unsent_bytes:  # a Close is the last of them, RFC 6455 §5.5.1
        sent = None
    return Closure(
        by=_by(error, state),
        is_clean=error == 0,
        code=int(code),
        reason=state.reason,
        received=_plain(state.rcvd),
        sent=_plain(sent),
        limit=limit or core.LIMITS.get(error),
        errno=ending.errno or None,
        unsent_bytes=ending.unsent_bytes,
        unsent_messages=ending.unsent_messages,
        age=ending.age,
    )


def how_it_ends(  # noqa: PLR0913 -- what is known of a connection, each by its name
    protocol: Protocol,
    failure: Exception | None,
    *,
    told: tuple[int, str] | None,
    limit: str | None,
    errno: int,
    left: tuple[int, int],
    age: float,
) -> Closure:
    """Return what is to be told of the end of a connection without a loop.

    Args:
        protocol: its own, which knows both Close frames.
        failure: why nothing more was received; None if this side has ended it.
        told: code and reason for ``onclose``; None: those of the peer's Close, or of what happened.
        limit: the deadline that has ended it.
        errno: of the system call that failed, 0 if none did.
        left: how many bytes the kernel never took, and of how many messages.
        age: in seconds.
    """
    if isinstance(failure, ProtocolError):
        code, reason, limit = failure.code, failure.message, failure.limit
    else:
        code, reason = protocol.rcvd or (CloseCode.ABNORMAL, "" if failure is None else str(failure))
    code, reason = told or (code, reason)
    state = SocketClosed(protocol.began_closing, code=code, reason=reason, rcvd=protocol.rcvd, sent=protocol.sent)
    error = _error(protocol, failure, has_errno=errno != 0, has_limit=limit is not None, is_all_sent=not left[0])
    return closure(core.Ending(error, errno if error == core.LOST else 0, age, *left), state, limit)


def _error(
    protocol: Protocol, failure: Exception | None, *, has_errno: bool, has_limit: bool, is_all_sent: bool
) -> int:
    """Return what a loop would say of an end."""
    if isinstance(failure, ProtocolError):
        return core.EXTENSION_ERROR
    if protocol.rcvd is not None and protocol.sent is not None and is_all_sent:
        return 0
    if has_limit:
        return core.ABORTED
    if has_errno:
        return core.LOST
    is_cut = isinstance(failure, SocketClosed) and not failure.initialized and protocol.rcvd is None
    return core.CUT if is_cut else core.ABORTED


def _plain(close: tuple[int, str] | None) -> tuple[int, str] | None:
    """Return code and reason without the names that some codes have here."""
    return None if close is None else (int(close[0]), close[1])


def _by(error: int, state: SocketClosed) -> By:
    if state.rcvd is not None and not state.initialized:
        return "peer"
    if state.sent is not None and state.initialized:
        return "this side"
    if error == core.LOST:
        return "network"
    return "peer" if error == core.CUT else "this side"
