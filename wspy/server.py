"""A server with a thread for each client, above one thread for all sockets."""

from __future__ import annotations

import logging
import threading
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack

from . import loop as core
from .async_client import DELIVER, DROP, HOLD
from .codes import CloseCode
from .errors import HandshakeError
from .journal import peer_name
from .limits import NO_COUNT_LIMIT, NO_SIZE_LIMIT, checked_limit, checked_seconds
from .server_client import (
    CALL,
    ENDED,
    Client,
    ExtendedMarkingThreadClient,
    ExtendedThreadClient,
    MarkingThreadClient,
)
from .serving import BaseServer, Options, WritePolicy
from .threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from .handshake import Acceptance
    from .http11 import Request, Response
    from .listening import Address
    from .loop import Settings
    from .messages import Message

__all__ = ["Server"]

log = logging.getLogger("wspy.server")

# Seconds that handlers have for their end after their connections were aborted.
GRACE: Final = 1.0

# Seconds that handlers have for what they do when a stop begins, before their connections are closed.
HANDLER_SECONDS: Final = 1.0

# Seconds for a thread to end that has nothing left to do.
MOMENT: Final = 0.2

# Commands in the queue that are not left to another thread.
MANY: Final = 512

_OF_THE_END: Final = frozenset((core.EVENT_CLOSE, core.EVENT_ENDING))


class Server(BaseServer[Client]):
    """A WebSocket server whose handlers may block. Subclass it and override handlers; ``run`` or ``start`` it.

    The handlers of each client are called in a thread of that client's own, one at a time and in order: a handler that
    sleeps, computes, or waits in ``client.recv`` or ``client.send`` holds up its own client alone. ``onrequest`` and
    functions for ``auth`` and ``extra_headers`` are called in threads, too. Handshakes, pongs, deadlines and all
    reading and writing go on in the thread of the server, which ``run`` turns.

    An exception in a handler goes to ``onerror``, and closes that client with 1011; ``KeyboardInterrupt`` and
    ``SystemExit`` stop the server, in order.

    Args:
        address: as for ``AsyncServer``, with all of its other arguments.
        max_queue: messages of a client, or frames with ``onframe``, that are read ahead of its handlers, with Pings and
            Pongs if there are handlers for them; beyond that nothing of it is read and the peer has to wait. None for
            any number.
        write_limit: unsent bytes of a client above which ``client.send`` waits, or ``max_backlog`` if that is less;
            None to queue as ``AsyncServer`` does.
        write_policy: ``"wait"``, or what is done instead, see ``AsyncServer``.
        send_timeout: seconds that ``client.send`` waits; None for as long as the connection lasts, which
            ``write_timeout`` bounds when the peer takes nothing at all.
        options: the other arguments of ``AsyncServer``. ``shutdown_timeout`` is also for handlers to return: who does
            not, a second later, is told of in the log and left alone.

    Raises:
        OSError: the address can't be had.
        TypeError: an argument is of another type, or a handler is ``async def``.
        ValueError: an argument is out of range.
    """

    _client_class = Client
    _marking_class = MarkingThreadClient
    _extended_class = ExtendedThreadClient
    _extended_marking_class = ExtendedMarkingThreadClient
    _instead = ", called in a thread of each client, where they may wait"

    def __init__(
        self,
        address: Address,
        *,
        max_queue: int | None = 16,
        write_limit: int | None = 65_536,
        write_policy: WritePolicy | Literal["wait"] = "wait",
        send_timeout: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._credit = checked_limit("max_queue", max_queue, 1, NO_COUNT_LIMIT)
        self._grants = max(self._credit // 2, 1)
        self._write_limit = checked_limit("write_limit", write_limit, 1, NO_SIZE_LIMIT)
        waits = write_policy == "wait"
        if not waits:
            self._write_limit = NO_SIZE_LIMIT
        self._send_timeout = checked_seconds("send_timeout", send_timeout)
        self._asks_extra_headers = callable(options.get("extra_headers"))
        super().__init__(
            address,
            write_limit=None if waits else write_limit,
            write_policy="raise" if write_policy == "wait" else write_policy,
            **options,
        )

    def _begin(self, settings: Settings) -> None:
        limit = 0
        if self._write_limit != NO_SIZE_LIMIT:
            # else a send that need not wait would be one too many
            backlog = checked_limit("max_backlog", settings.max_backlog, 1, NO_SIZE_LIMIT)
            limit = self._write_limit = min(self._write_limit, backlog)
        super()._begin(settings._replace(write_limit=limit, wants_endings=True))
        self._threads = Threads()
        asks = any(policy.may_block for policy in self._policies)
        self._may_block = asks or self._answers or self._asks_extra_headers
        self._deciding: dict[int, bytes] = {}
        """The heads of requests that threads ask about, by the handles of their connections."""
        self._is_woken = False
        self._is_forked = False
        # clients with messages that were handed to their threads: with some that are done, and without some that aren't
        self._at_work: set[Client] = set()
        self._backlogs = self.loop.backlogs

    @property
    def client_threads(self) -> list[threading.Thread]:
        """The threads of the open connections. Thread-safe."""
        threads = [client._thread for client in self.clients]
        return [thread for thread in threads if thread is not None]

    def remove_client(self, client: Client, code: int | None = 1000, reason: str = "") -> None:
        """Close a connection; see ``client.close``."""
        client.close(code, reason)

    def quit_gracefully(self) -> None:
        """Stop gracefully; see ``stop``."""
        self.stop()

    # ---- the server's thread: what comes up is passed on ----

    def _dispatch(self, count: int) -> None:
        read = self.loop.packed()
        clients = self.clients._slots
        other = self._other_event
        events = self.loop.events(count)
        for slot, kind, start, length in events if self._secured is None else self._secured.others(events):
            if kind > core.EVENT_BINARY or (client := clients[slot]) is None or client._mode == DROP:
                other(slot, kind, start, length, read)
            else:
                self._at_work.add(client)
                client._put((kind, read(length)))

    def _event(self, client: Client, kind: int, what: Any) -> None:
        if kind == core.EVENT_OPENED:
            self._attend_to(client)
        elif kind == core.EVENT_CLOSED:
            client._wake_senders()
            client._put((kind, what))
        elif client._mode != DROP or kind in _OF_THE_END:
            client._put((kind, what))

    def _attend_to(self, client: Client) -> None:
        """Give a client its thread."""
        try:
            client._thread = self._threads.run(f"wspy {client}", self._attend, client)
        except RuntimeError as error:
            self._warn_of(error)
            client._mode = DROP
            client._outcome = (CloseCode.TRY_AGAIN_LATER, "")
            client._thread_id = ENDED
            client.close(CloseCode.TRY_AGAIN_LATER)
            self._read_to_the_end(client)
            self._finish(client)

    def _warn_of(self, error: RuntimeError) -> None:
        now = monotonic()
        if now - self._threads_warned >= 1:
            self._threads_warned = now
            log.warning("clients are turned away: %s", error)

    _threads_warned = -inf

    def _on_ending(self, slot: int, _start: int, _length: int) -> None:
        client = self.clients._find(slot)
        if client is not None:
            self._event(client, core.EVENT_ENDING, None)

    def _on_drained(self, slot: int, _start: int, _length: int) -> None:
        client = self.clients._find(slot)
        if client is not None:
            client._wake_senders()

    def _on_closed(self, slot: int, start: int, error: int) -> None:
        if self._deciding:
            self._deciding.pop(self.loop.handle(slot), None)
        super()._on_closed(slot, start, error)

    # ---- the thread of a client ----

    def _attend(self, client: Client) -> None:
        """Call the handlers of a client, from the first to the last."""
        client._thread_id = threading.get_ident()
        self._handle(client, core.EVENT_OPENED, None)
        held = client._its_rare().held
        while (client._outcome is None or held) and not self._is_forked:
            self._guarded(client, self._handle_next, client)
        if self._is_forked:
            return
        client._give_up_takers()
        self._at_work.discard(client)
        self._handle(client, core.EVENT_CLOSED, client._outcome)
        client._thread_id = ENDED
        client._calls.clear()

    def _handle_next(self, client: Client) -> None:
        message = client._take(None)
        if message is not None and not client._hand_over(message):
            self.onmessage(client, message)

    def _finish(self, client: Client) -> None:
        """Let the connection end: all that came before was handled."""
        self._push(core.command(client._handle | core.FINISH))
        self._flush()

    def _deliver_message(self, client: Client, message: Message) -> None:
        client._message = message

    def _in_its_thread(self, client: Client, function: Callable[[], object]) -> None:
        if threading.get_ident() == client._thread_id:
            function()
        elif client._thread_id != ENDED:
            client._calls.append(function)
            client._put((CALL, None))

    def _after_its_handler(self, client: Client, function: Callable[[Client], object]) -> None:
        self._in_its_thread(client, partial(client._calls.append, partial(function, client)))

    def _deliver_held(self, client: Client) -> None:
        rare = client._its_rare()
        if client._mode != HOLD or not rare.resumes:
            return
        rare.resumes = False
        client._change_mode(DELIVER)
        self._push(core.command(client._handle | core.RESUME))
        self._flush()

    def _read_to_the_end(self, client: Client) -> None:
        super()._read_to_the_end(client)
        self._push(core.grant(client._handle, core.UNLIMITED))
        self._flush()

    # ---- requests ----

    def _decide(self, handle: int, head: bytes) -> None:
        request = self._request(handle, head)
        if not self._may_block:
            self._settle(handle, request, self._decision(request))
            return
        self._deciding[handle] = head
        try:
            self._threads.run(f"wspy request of {peer_name(self.loop.peer(handle))}", self._ask, handle, head, request)
        except RuntimeError as error:
            del self._deciding[handle]
            self._warn_of(error)
            raise HandshakeError(503, str(error)) from error

    def _ask(self, handle: int, head: bytes, request: Request) -> None:
        """Ask the application about a request, in a thread that it may block."""
        decision: Response | Acceptance | HandshakeError
        try:
            decision = self._decision(request)
        except HandshakeError as error:
            decision = error
        except BaseException as error:  # noqa: BLE001 -- whatever it is, _handler_failed decides
            self._handler_failed(None, error)
            decision = HandshakeError(500, "an exception was raised")
        self._in_next_turn(self._decided, handle, head, request, decision)

    def _decided(
        self, handle: int, head: bytes, request: Request, decision: Response | Acceptance | HandshakeError
    ) -> None:
        """Answer a request, unless its connection has gone meanwhile, or its time was up."""
        if self._deciding.pop(handle, None) is not None:
            self._or_refuse(self._answer_with, handle, head, request, decision)

    def _answer_with(
        self, handle: int, _: bytes, request: Request, decision: Response | Acceptance | HandshakeError
    ) -> None:
        if isinstance(decision, HandshakeError):
            raise decision
        self._settle(handle, request, decision)

    def _on_undecided(self, handle: int, head: bytes = b"") -> None:
        super()._on_undecided(handle, self._deciding.pop(handle, head))

    # ---- writing ----

    def _write(self) -> None:
        """Write what was queued. While handlers of several clients run, the server's thread does it for all of them."""
        queued = self.loop.queued
        if len(self._at_work) < 2 or queued > MANY or self.loop.has_large:
            self._submit()
        elif not self._is_woken:
            try:
                self._is_woken = True
                self.loop.wake()
            except BaseException:
                self._is_woken = False
                raise

    def _turn(self, timeout_ms: int) -> int:
        # first: what is queued from here on is either part of this turn or wakes it
        self._is_woken = False
        return super()._turn(timeout_ms)

    # ---- ending ----

    def _stop(self) -> None:
        super()._stop()
        self._threads.end(self.loop.wake)
        limit = self._shutdown_timeout
        self._call(HANDLER_SECONDS if limit is None else min(HANDLER_SECONDS, limit / 2), self._dismiss_all)
        if limit is not None:
            self._call(limit + GRACE, int)

    def _dismiss(self, client: Client) -> None:
        """Close a connection when the handler that runs has returned: it may have an answer to send."""
        if client._thread is None:
            super()._dismiss(client)
        else:
            self._in_its_thread(client, partial(super()._dismiss, client))

    def _dismiss_all(self) -> None:
        """Close what is open: whoever waits in a handler, or sends for ever, is told by SocketClosed."""
        for client in self.clients:
            super()._dismiss(client)

    def _stop_at_once(self) -> None:
        super()._stop_at_once()
        self._threads.end(self.loop.wake)
        self._call(GRACE, int)

    def _is_finished(self) -> bool:
        if not super()._is_finished():
            return False
        return self._threads.busy == 0 or self._grace_left() <= 0

    def _grace_left(self) -> float:
        """Return the seconds that handlers still have, once a stop has begun."""
        return inf if self._stopping is None else self._stopping + GRACE - monotonic()

    def _join_handlers(self) -> None:
        # who has returned may need a moment to end
        for name in self._threads.join(max(self._grace_left(), MOMENT)):
            log.warning("%s still runs: a handler has not returned", name)

    def _let_go(self) -> None:
        super()._let_go()
        self._threads.end(int)

    def _leave_to_the_parent(self) -> None:
        super()._leave_to_the_parent()
        # else the thread that has forked would go on with its client, and wait for what nobody sends it any more
        self._is_forked = True
        self._threads.forked()
        self._at_work.clear()
        for client in self.clients:
            client._leave_to_the_parent()
