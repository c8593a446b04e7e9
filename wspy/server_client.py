"""A connection of a Server, as its handlers see it: they may wait for it.

Names with an underscore are shared with the servers, and with nothing else.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import TIMEOUT_MAX, Lock, get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from . import loop as core
from .async_client import DELIVER, DROP, AsyncClient, MarkingClient, Rare
from .codes import CloseCode
from .errors import SocketClosed
from .extended import Extends
from .limits import checked_seconds
from .messages import received_message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from threading import Thread
    from types import EllipsisType

    from .extensions import Agreement
    from .http11 import Request
    from .messages import Message, Sendable
    from .server import Server

__all__ = ["Client", "ExtendedMarkingThreadClient", "ExtendedThreadClient", "MarkingThreadClient"]

# In the inbox, beside the kinds of events: look at the calls.
CALL: Final = -1

# As _thread_id: there was one.
ENDED: Final = -1

_COSTS_NO_CREDIT: Final = frozenset((core.EVENT_CLOSE, core.EVENT_OPENED, core.EVENT_SENT, core.EVENT_PINGED))


class Client(AsyncClient):
    """One client of a ``Server``; the server makes it.

    Every method may be called from any thread and from every handler. Only ``send``, ``recv`` and iteration wait; they
    hold up nobody but who calls them. A client can be iterated over: that yields messages as ``recv`` returns them, and
    ends with the connection.

    Attributes:
        server: the server it belongs to.
        data: free for the application; None at first.
        subprotocol: the one that was agreed upon, or None (RFC 6455 §1.9).
    """

    __slots__ = (
        "_calls",
        "_inbox",
        "_message",
        "_outcome",
        "_put",
        "_simple",
        "_slot",
        "_taken",
        "_takers",
        "_thread",
        "_thread_id",
        "_waiting",
    )

    server: Server

    def __init__(self, server: Server, handle: int, request: Request, subprotocol: str | None) -> None:
        super().__init__(server, handle, request, subprotocol)
        # made at once: two threads look at it, and next to a thread it is small
        self._rare = server._rares[self._key] = Rare()
        self._slot = handle & core.SLOT
        self._simple = CALL if server._frames else core.EVENT_BINARY
        self._inbox: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self._put = self._inbox.put
        self._calls: deque[Callable[[], object]] = deque()
        self._thread: Thread | None = None
        self._thread_id = 0
        self._message: Message | None = None
        self._taken = 0  # since more credit was granted
        self._outcome: tuple[int, str] | None = None  # for onclose, when the thread has come so far
        self._takers: deque[_Taker] = deque()
        self._waiting: deque[Lock] = deque()  # sends

    # ---- sending ----

    def send(
        self,
        message: Sendable,
        fragment_size: int | None = None,
        compress: bool | None = None,  # noqa: ARG002 -- see AsyncClient
        timeout: float | EllipsisType | None = ...,
    ) -> None:
        """Queue a message, once no more than ``write_limit`` of this client is unsent; ``onsent`` tells of its end.

        The thread of the server itself, which calls the functions of ``call_soon`` and ``call_later``, never waits:
        there ``max_backlog`` is the limit.

        Args:
            message: a ``TextMessage`` or a str, a ``BinaryMessage`` or a buffer. It may be changed afterwards.
            fragment_size: split it into frames of so many bytes of payload (RFC 6455 §5.4); None for one frame.
            compress: see ``AsyncClient.send``.
            timeout: seconds to wait; None for ever; by default ``send_timeout`` of the server.

        Raises:
            SocketClosed: the connection is closed or closing, or became so while this waited.
            TimeoutError: too much was unsent for too long; the message was not queued.
            TypeError: it is no message.
            ValueError: ``fragment_size`` is below 1; a text has a lone surrogate (RFC 3629 §3); a message above 4 GiB
                has no ``fragment_size``; or its opcode isn't text or binary, nor one that an extension has claimed.
            Exception: of an extension; the connection is closed with 1011.
        """
        server = self.server
        if server._backlogs[self._slot] > server._write_limit:
            self._wait_for_room(timeout)
        super().send(message, fragment_size)

    def _wait_for_room(self, timeout: float | EllipsisType | None) -> None:
        server = self.server
        seconds = server._send_timeout if timeout is ... else checked_seconds("timeout", timeout)
        end = None if seconds is None else monotonic() + seconds
        while self._is_full():
            if get_ident() == server._thread:
                return
            room = Lock()
            room.acquire()
            self._waiting.append(room)
            # it may have come, and nobody was told, before this one was in the queue
            if self._is_full() and not room.acquire(timeout=_left(end)):
                with suppress(ValueError):
                    self._waiting.remove(room)
                raise TimeoutError(
                    f"more than {server._write_limit} bytes are unsent after {seconds} seconds of waiting: try again "
                    "later, or close the connection"
                )

    def _is_full(self) -> bool:
        """Whether a send has to wait, of a connection that is open."""
        self._check_open()
        server = self.server
        return server._backlogs[self._slot] > server._write_limit and not server.loop.closed

    def _wake_senders(self) -> None:
        """Let those who wait to send look again. Thread-safe."""
        while self._waiting:
            try:
                room = self._waiting.popleft()
            except IndexError:  # another thread was quicker
                return
            room.release()

    # ---- receiving ----

    def recv(self, timeout: float | None = None) -> Message:
        """Wait for the next message and return it, instead of its going to ``onmessage``.

        In a handler of this client: other events are handled meanwhile, in the order in which they come; a handler that
        runs when the time is up is waited for. In another thread: messages are handed over when no handler of this
        client runs.

        Args:
            timeout: seconds to wait; 0 for what has arrived already; None for ever.

        Raises:
            SocketClosed: the connection has ended, and all that came before was taken.
            TimeoutError: no message came in time.
        """
        seconds = checked_seconds("timeout", timeout)
        end = None if seconds is None else monotonic() + seconds
        message = self._take(end) if get_ident() == self._thread_id else self._take_from_elsewhere(end)
        if message is None:
            self._check_open()
            raise SocketClosed(message="the connection is closed")
        return message

    def __iter__(self) -> Iterator[Message]:
        """Yield messages to the end of the connection."""
        while True:
            try:
                message = self.recv()
            except SocketClosed:
                return
            yield message

    def _take(self, end: float | None) -> Message | None:
        """Return the next message, None if there will be none any more; handle what else happens. In its own thread."""
        held = self._its_rare().held
        rest = -1
        while True:
            while self._calls:
                self._calls.popleft()()
            if held and (self._mode == DELIVER or self._outcome is not None):
                self._deliver(*held.popleft())
            elif self._outcome is not None:
                return None
            else:
                if end is not None and end <= monotonic():
                    # what has come in time, but not what a peer adds for ever
                    rest = self._inbox.qsize() if rest < 0 else rest - 1
                    if not rest:
                        raise TimeoutError("no message came in time")
                kind, what = self._next_event(end)
                if CALL < kind <= self._simple and self._mode == DELIVER:
                    return self._received(kind, what)
                self._handle_event(kind, what)
            if self._message is not None:
                message, self._message = self._message, None
                return message

    def _next_event(self, end: float | None) -> tuple[int, Any]:
        if self._inbox.empty():
            self.server._at_work.discard(self)
        if end is None:
            return self._inbox.get()
        try:
            return self._inbox.get(timeout=_left(end))
        except Empty:
            raise TimeoutError("no message came in time") from None

    def _received(self, kind: int, payload: bytes) -> Message:
        """Return a message: the quickest way, for most of them."""
        self._taken += 1
        if self._taken == self.server._grants:
            self._grant()
        return received_message(kind, payload)

    def _handle_event(self, kind: int, what: Any) -> None:
        if kind == core.EVENT_CLOSED:
            self._outcome = what
        elif kind == core.EVENT_ENDING:
            self.server._finish(self)
        elif kind != CALL:
            if self._mode == DELIVER:
                self._spend(kind)
            self.server._handle(self, kind, what)

    def _deliver(self, kind: int, payload: bytes, is_seen: bool) -> None:
        if not is_seen:
            self._spend(kind)
        if self._mode != DROP:
            self.server._deliver(self, kind, payload, is_seen)

    def _spend(self, kind: int) -> None:
        """Count what is delivered, and grant as much again."""
        if kind & 0x7F in _COSTS_NO_CREDIT:
            return
        self._taken += 1
        if self._taken == self.server._grants:
            self._grant()

    def _grant(self) -> None:
        count, self._taken = self._taken, 0
        self.server._push(core.grant(self._handle, count))
        self.server._write()

    def _take_from_elsewhere(self, end: float | None) -> Message | None:
        taker = _Taker()
        self._takers.append(taker)
        if self._outcome is not None:
            self._give_up_takers()
        try:
            is_ready = taker.ready.acquire(timeout=_left(end))
        except BaseException:  # Ctrl-C in the main thread
            self._withdraw(taker)
            raise
        if not is_ready:
            if self._withdraw(taker):
                raise TimeoutError("no message came in time")
            taker.ready.acquire()
        return taker.message

    def _withdraw(self, taker: _Taker) -> bool:
        """Take back that a thread waits, unless a message is being handed over to it."""
        try:
            self._takers.remove(taker)
        except ValueError:
            return False
        return True

    def _hand_over(self, message: Message) -> bool:
        """Give a message to another thread that waits for one, if there is one."""
        while self._takers:
            try:
                taker = self._takers.popleft()
            except IndexError:  # it waits no longer
                return False
            taker.message = message
            taker.ready.release()
            return True
        return False

    def _give_up_takers(self) -> None:
        while self._takers:
            try:
                self._takers.popleft().ready.release()
            except IndexError:
                return

    # ---- ending ----

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        """See ``AsyncClient.close``; who waits in ``send`` gets ``SocketClosed``."""
        super().close(code, reason)
        self._wake_senders()

    def abort(self) -> None:
        """See ``AsyncClient.abort``; who waits in ``send`` gets ``SocketClosed``."""
        super().abort()
        self._wake_senders()

    def _own(self) -> tuple[object, ...]:
        queues = self._inbox, self._calls, self._takers, self._waiting
        return *super()._own(), *queues, self._put

    def _leave_to_the_parent(self) -> None:
        """In the child of a fork: be closed, without a handler being called."""
        self._its_rare().held.clear()
        self._calls.clear()
        if self._state is None:
            self._state = SocketClosed(message="the connection is that of the process that has forked")
        self._outcome = CloseCode.ABNORMAL, ""

    def __repr__(self) -> str:
        return f"<Client {self}{' closed' if self.closed else ''}>"


class MarkingThreadClient(MarkingClient, Client):
    """A client of a server that overrides ``onsent``."""

    __slots__ = ()

    def send(
        self,
        message: Sendable,
        fragment_size: int | None = None,
        compress: bool | None = None,  # noqa: ARG002 -- see AsyncClient
        timeout: float | EllipsisType | None = ...,
    ) -> None:
        """See ``Client.send``."""
        server = self.server
        if server._backlogs[self._slot] > server._write_limit:
            self._wait_for_room(timeout)
        MarkingClient.send(self, message, fragment_size)


class ExtendedThreadClient(Extends, Client):
    """A client that extensions were agreed upon with."""

    __slots__ = ("_extended",)

    def __init__(
        self, server: Server, handle: int, request: Request, subprotocol: str | None, agreed: Agreement
    ) -> None:
        super().__init__(server, handle, request, subprotocol)
        self._extended = agreed

    def send(
        self,
        message: Sendable,
        fragment_size: int | None = None,
        compress: bool | None = None,
        timeout: float | EllipsisType | None = ...,
    ) -> None:
        """See ``Client.send``."""
        server = self.server
        if server._backlogs[self._slot] > server._write_limit:
            self._wait_for_room(timeout)
        Extends.send(self, message, fragment_size, compress=compress)


class ExtendedMarkingThreadClient(ExtendedThreadClient, MarkingClient):
    """The same, of a server that overrides ``onsent``."""

    __slots__ = ()


def _left(end: float | None) -> float:
    """Return the seconds to an end, as a lock wants them."""
    return -1 if end is None else max(min(end - monotonic(), TIMEOUT_MAX), 0)


class _Taker:
    """Another thread that waits for a message."""

    __slots__ = ("message", "ready")

    def __init__(self) -> None:
        self.message: Message | None = None
        self.ready = Lock()
        self.ready.acquire()
