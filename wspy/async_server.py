"""A server in one thread: an epoll loop that calls handlers and queues what they send."""

from __future__ import annotations

import threading
from itertools import islice
from math import ceil, inf
from time import monotonic
from typing import TYPE_CHECKING, Final

from . import loop as core
from .async_client import DELIVER, DROP, HOLD, AsyncClient, MarkingClient
from .extended import ExtendedClient, ExtendedMarkingClient, Extends
from .limits import checked_seconds
from .messages import Message, ReceivedBinary, ReceivedText
from .serving import BaseServer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AsyncServer"]

# Queued replies leave before the end of a long batch: looked at after so many events, or after each one while
# handlers are slow.
STRIDE: Final = 16
SUBMIT_SECONDS: Final = 0.001

_RSV1: Final = 0x40
_COMPRESSED: Final = frozenset((_RSV1 << 8 | core.EVENT_TEXT, _RSV1 << 8 | core.EVENT_BINARY))

# In one call of handle_events: then the foreign loop has its turn again.
ROUNDS: Final = 16

# Seconds; in milliseconds it fits into an int of C.
MAX_WAIT: Final = 2_147_483.0


class AsyncServer(BaseServer[AsyncClient]):
    """A WebSocket server on epoll. Subclass it and override handlers; ``run`` it, or ``start`` it in a thread.

    Handlers are called one at a time in the thread that runs the server. An exception in a handler goes to
    ``onerror``, and closes that client with 1011; only ``KeyboardInterrupt`` and ``SystemExit`` stop the server, in
    order. Sizes are in bytes, times in seconds. None means no limit or never, for every limit and time but those of a
    request head, ``notsent_lowat`` and ``backlog``. Methods are for the thread that runs the server, unless they say
    otherwise.

    Args:
        address: (host, port), with "" for all interfaces and port 0 for any free one; the path of a Unix socket; or
            a socket that listens.
        loglevel: if given, ``logging.basicConfig(level=loglevel)`` is called; else logging is left alone.
        protocols: the subprotocols that the server speaks.
        trusted_origins: the origins of pages that may connect, as browsers send them (``https://host[:port]``), or
            compiled patterns for such; None for requests without one; empty for all; or ``"same-origin"``.
        locations: the paths that are served; empty for all.
        auth: who is let in, whatever they ask for: a (user name, password) pair, several of them, a mapping, a function
            of both that returns whether they are right, a ``BasicAuth`` or ``DigestAuth``, or several of those. Others
            get 401 with a challenge, and no handler hears of them. Basic sends passwords as they are: use it over TLS.
        require_origin: refuse a request without Origin.
        require_protocol: refuse a client that offers none of ``protocols``.
        extensions: what the server speaks, such as ``DeflateMessage``: ``Extension`` objects or classes.
        extra_headers: header fields for the 101 response, or a function that returns them for a request.
        server_header: the value of ``Server`` in responses; None to leave it out.
        max_size: of a message, after reassembly and decompression; over it the connection is closed with 1009. Or a
            pair: of a message, and of each of its frames as they arrive.
        max_fragments: frames of a message; over it 1008.
        max_controls: pings, pongs and other control frames of a client in a second; over it 1008.
        max_line: of the request line, up to 256 KiB; over it status 414.
        max_header_line: of one header line, up to 256 KiB; over it 431.
        max_head: of the request head, up to 256 KiB; over it 431.
        max_headers: header lines, up to 65,535; over it 431.
        max_connections: WebSockets at a time; over it 503. None: as many as there are descriptors, but 64 or half of
            them. Beyond those nobody is accepted, whatever is asked for here: the kernel keeps them waiting.
        max_handshakes: connections before their 101; with so many, the others wait in the kernel. Who sends nothing
            takes such a place, too, for ``open_timeout``: this is for servers that nobody can reach who means ill.
        max_handshakes_per_address: connections of one address, or one /64 of IPv6, before their 101; one more is
            reset. Not behind a proxy, which has one address for all.
        max_accept_rate: connections that are accepted in a second; more wait in the kernel.
        max_backlog: unsent bytes of a client, looked at before each send; over it the connection is aborted, 1008.
        write_limit: unsent bytes of a client, looked at before each send; beyond it ``write_policy`` says what is done.
            None for no such limit.
        write_policy: ``"raise"``: ``client.send`` raises ``WriteLimitError``; ``"drop"``: it does nothing, and
            ``broadcast`` passes over the client in both cases; ``"close"``: the connection is aborted, 1008.
            ``stats()["write_limit"]`` tells how often.
        notsent_lowat: bytes that the kernel may hold back unsent of each connection (TCP_NOTSENT_LOWAT); 0 for as
            many as it likes.
        open_timeout: from the TCP connection to the 101 response; over it status 408 if the request isn't complete, and
            503 if it isn't decided.
        close_timeout: for the closing handshake.
        ping_interval: without a byte from the client after which it is pinged.
        ping_timeout: without a byte after a ping, after which the client is dropped.
        write_timeout: without the client taking a byte of what waits for it, after which it is dropped.
        idle_timeout: without a message from or to the client, or a part of one, after which it is closed with 1001.
            Pings and pongs don't count.
        idle_request_timeout: between two plain HTTP requests of a connection.
        shutdown_timeout: for ``stop`` to deliver what is queued and close all connections.
        keep_request: keep request heads after ``onopen``, for ``client.request`` and ``client.path``.
        backlog: connections that the kernel completes before they are accepted.
        reuse_port: let other processes listen on the same port.
        ssl: an ``ssl.SSLContext`` with a certificate, to speak TLS and nothing else: ``wss``. ``open_timeout`` is for
            its handshake, too. Renegotiation is turned off in it.

    Attributes:
        address: where it listens, as ``socket.getsockname`` has it: with the port that was found for port 0.
        clients: the open connections: a collection that any thread may look at while they come and go. Some may be
            closing, for which ``client.send`` raises ``SocketClosed``: to send to many, use ``broadcast``, which
            passes those over.
        handshake: the rules for requests, that its arguments were made into.
        loop: the Python face of the C loop, for tests and measurements: not for applications.

    Raises:
        OSError: the address can't be had.
        TypeError: an argument is of another type, or a handler is ``async def``.
        ValueError: an argument is out of range.
    """

    _client_class = AsyncClient
    _marking_class = MarkingClient
    _extended_class = ExtendedClient
    _extended_marking_class = ExtendedMarkingClient
    _instead = (
        ", called in the server's thread: let a thread do what takes long and hand its result back with call_soon"
    )

    # ---- a foreign loop ----

    def fileno(self) -> int:
        """Return the descriptor that a foreign loop polls for reading, to call ``handle_events`` then."""
        return self.loop.fileno()

    def handle_events(self, timeout: float | None = 0) -> int:
        """Take what has come up, call handlers, and send what they queued.

        Args:
            timeout: seconds to wait for something; 0 and below only looks, None and infinity wait for ever.

        Returns:
            How many events were handled.

        Raises:
            RuntimeError: it was called from a handler, or the server runs by itself.
            TypeError: the timeout is no number.
            ValueError: the timeout is NaN.
            KeyboardInterrupt, SystemExit: a handler has raised it; the server is stopping then.
        """
        if self._busy:
            raise RuntimeError("handle_events was called from a handler")
        if self._unclaimed.locked() and not self.loop.closed:
            raise RuntimeError("the server runs already")
        timeout_ms = _waiting(timeout)
        self._thread = threading.get_ident()
        handled = count = self._turn(timeout_ms)
        for _ in range(ROUNDS):
            if not count and not self._calls.pending:
                break
            count = self._turn(0)
            handled += count
        else:
            self.loop.wake()
        if self._call_at is not None:
            self._set_alarm()  # the last one may have gone off within a turn, where a foreign loop can't hear it
        if self._exit is not None:
            error, self._exit = self._exit, None
            raise error
        return handled

    @property
    def finished(self) -> bool:
        """Whether a stop has come to its end: nothing is open, and the peers have read what was sent.

        For a foreign loop, which calls ``handle_events`` until then, and ``close`` at last.
        """
        return self._is_finished()

    # ---- handlers are called here, in the server's thread ----

    def _dispatch(self, count: int) -> None:
        """Call the handlers for a turn's events: the one loop of Python that every message passes."""
        events = self.loop.events(count)
        read = self.loop.packed()
        clients = self.clients._slots
        onmessage = self.onmessage
        other = self._other_event
        plain = None if self._secured is None else self._secured.others
        messages = -1 if self._frames else core.EVENT_BINARY
        submitted = monotonic() if count > STRIDE else 0.0
        stride = STRIDE
        while True:
            some = islice(events, stride)
            for slot, kind, start, length in some if plain is None else plain(some):
                if kind > messages or (client := clients[slot]) is None or client._mode:
                    other(slot, kind, start, length, read)
                    continue
                message: Message
                if kind == core.EVENT_TEXT:
                    message = ReceivedText()
                    message.payload = read(length).decode()
                else:
                    message = ReceivedBinary()
                    message.payload = read(length)
                try:
                    onmessage(client, message)
                except BaseException as error:  # noqa: BLE001 -- whatever it is, _handler_failed decides
                    self._handler_failed(client, error)
            count -= stride
            if count <= 0:
                return
            now = monotonic()
            if now - submitted > SUBMIT_SECONDS:
                stride = 1 if now - submitted > SUBMIT_SECONDS * STRIDE else STRIDE
                self.loop.submit()
                submitted = monotonic()

    def _other_event(self, slot: int, kind: int, start: int, length: int, read: Callable[[int], bytes]) -> None:
        """Handle what is no plain message; short compressed ones the quickest way, past _handle and what it calls."""
        client = self.clients._slots[slot] if kind in _COMPRESSED else None
        if not isinstance(client, Extends) or client._mode != DELIVER or self._frames:
            super()._other_event(slot, kind, start, length, read)
            return
        try:
            message = client._received_message(kind & 0x0F | _RSV1, read(length))
        except BaseException as error:  # noqa: BLE001 -- whatever it is, _not_read decides
            self._not_read(client, error)
            return
        if client._mode == DROP:  # onrecv may have aborted it
            return
        try:
            self.onmessage(client, message)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, _handler_failed decides
            self._handler_failed(client, error)

    _event = BaseServer._handle

    def _decide(self, handle: int, head: bytes) -> None:
        request = self._request(handle, head)
        self._settle(handle, request, self._decision(request))

    def _in_its_thread(self, client: AsyncClient, function: Callable[[], object]) -> None:  # noqa: ARG002 -- all have one
        if threading.get_ident() == self._thread:
            function()
        elif not self.loop.closed:
            self._in_next_turn(function)

    def _after_its_handler(self, client: AsyncClient, function: Callable[[AsyncClient], object]) -> None:
        self._in_next_turn(function, client)

    def _deliver_held(self, client: AsyncClient) -> None:
        rare = client._its_rare()
        if client._mode != HOLD or not rare.resumes:
            return
        rare.resumes = False
        client._change_mode(DELIVER)
        while rare.held and client._mode == DELIVER:
            self._deliver(client, *rare.held.popleft())
        if client._mode != DELIVER or client not in self.clients:
            return
        self._push(core.command(client._handle | core.RESUME))
        if client._mode == HOLD:  # a signal handler has paused it, before the core heard of the end of the last pause
            self._push(core.command(client._handle | core.PAUSE))
        self._flush()

    def _deliver_last(self, client: AsyncClient) -> None:
        held = client._its_rare().held
        while held and client._mode != DROP:
            self._deliver(client, *held.popleft())


def _waiting(timeout: float | None) -> int:
    """Return a timeout in milliseconds, as a turn takes it."""
    seconds = checked_seconds("timeout", timeout, at_least=-inf)
    if seconds is None:
        return -1
    # a longer one ends early, as each may
    return ceil(min(max(seconds, 0.0), MAX_WAIT) * 1000)
