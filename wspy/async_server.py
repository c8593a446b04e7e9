"""A server in one thread: an epoll loop that calls handlers and queues what they send."""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
import warnings
import weakref
from functools import lru_cache
from itertools import islice
from math import ceil, inf
from time import gmtime, monotonic, time
from typing import TYPE_CHECKING, Any, Final, Self

from . import loop as core
from .async_client import DELIVER, DROP, HOLD, AsyncClient, Clients, MarkingClient, Rare, peer_name
from .calls import Call, Calls, is_async
from .codes import CloseCode, Opcode
from .errors import CoreError, HandshakeError, SocketClosed
from .frames import FIN, Frame, frame_header, received_frame
from .handshake import HEAD_STATUSES, ServerHandshake
from .http11 import Request, Response
from .limits import NO_COUNT_LIMIT, checked_count, checked_limit, checked_seconds
from .listening import Address, close_listener, open_listener
from .loop import Loop, Settings, acceptance, broadcast_payload, error_text
from .messages import BinaryMessage, Message, ReceivedBinary, ReceivedText, Sendable, TextMessage, create_message
from .signals import StopSignals
from .version import __version__

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["AsyncServer"]

log = logging.getLogger("wspy.server")

# Queued replies leave before the end of a long batch: looked at after so many events, or after each one while
# handlers are slow.
STRIDE: Final = 16
SUBMIT_SECONDS: Final = 0.001

# In one call of handle_events: then the foreign loop has its turn again.
ROUNDS: Final = 16

# Seconds; in milliseconds it fits into an int of C.
MAX_WAIT: Final = 2_147_483.0

# Descriptors that are left for everything but connections.
SPARE_DESCRIPTORS: Final = 64

_HANDLERS: Final = (
    "onclose",
    "onerror",
    "onframe",
    "onmessage",
    "onopen",
    "onping",
    "onpingreceived",
    "onpong",
    "onrequest",
    "onsent",
)

_KEEP_ALIVE: Final = b"\1"
_LAST: Final = b"\0"


class AsyncServer:
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
        require_origin: refuse a request without Origin.
        require_protocol: refuse a client that offers none of ``protocols``.
        extra_headers: header fields for the 101 response, or a function that returns them for a request.
        server_header: the value of ``Server`` in responses; None to leave it out.
        max_size: of a message, after reassembly; over it the connection is closed with 1009.
        max_fragments: frames of a message; over it 1008.
        max_line: of the request line, up to 256 KiB; over it status 414.
        max_header_line: of one header line, up to 256 KiB; over it 431.
        max_head: of the request head, up to 256 KiB; over it 431.
        max_headers: header lines, up to 65,535; over it 431.
        max_connections: WebSockets at a time; over it 503. None: as many as there are descriptors, but 64 or half of
            them. Beyond those nobody is accepted, whatever is asked for here: the kernel keeps them waiting.
        max_backlog: unsent bytes of a client, looked at before each send; over it the connection is aborted, 1008.
        notsent_lowat: bytes that the kernel may hold back unsent of each connection (TCP_NOTSENT_LOWAT); 0 for as
            many as it likes.
        open_timeout: from the TCP connection to the 101 response.
        close_timeout: for the closing handshake.
        ping_interval: without a byte from the client after which it is pinged.
        ping_timeout: without a byte after a ping, after which the client is dropped.
        idle_request_timeout: between two plain HTTP requests of a connection.
        shutdown_timeout: for ``stop`` to deliver what is queued and close all connections.
        keep_request: keep request heads after ``onopen``, for ``client.request`` and ``client.path``.
        backlog: connections that the kernel completes before they are accepted.
        reuse_port: let other processes listen on the same port.

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

    def __init__(  # noqa: PLR0913 -- each is a policy of its own, by name
        self,
        address: Address,
        *,
        loglevel: int | str | None = None,
        protocols: Iterable[str] = (),
        trusted_origins: Iterable[str | re.Pattern[str] | None] = (),
        locations: Iterable[str] = (),
        require_origin: bool = False,
        require_protocol: bool = False,
        extra_headers: Mapping[str, str]
        | Iterable[tuple[str, str]]
        | Callable[[Request], Mapping[str, str] | Iterable[tuple[str, str]]] = (),
        server_header: str | None = f"wspy/{__version__}",
        max_size: int | None = 1 << 20,
        max_fragments: int | None = 131_072,
        max_line: int = 8192,
        max_header_line: int = 8192,
        max_head: int = 65_536,
        max_headers: int = 100,
        max_connections: int | None = None,
        max_backlog: int | None = 16 << 20,
        notsent_lowat: int = 131_072,
        open_timeout: float | None = 10.0,
        close_timeout: float | None = 10.0,
        ping_interval: float | None = 20.0,
        ping_timeout: float | None = 20.0,
        idle_request_timeout: float | None = 30.0,
        shutdown_timeout: float | None = 10.0,
        keep_request: bool = True,
        backlog: int = 1024,
        reuse_port: bool = False,
    ) -> None:
        _check_handlers(self, extra_headers)
        if loglevel is not None:
            logging.basicConfig(level=loglevel)
        self.handshake = ServerHandshake(
            protocols=protocols,
            trusted_origins=trusted_origins,
            locations=locations,
            require_origin=require_origin,
            require_protocol=require_protocol,
            extra_headers=extra_headers,
            server_header=server_header,
            max_line=max_line,
            max_header_line=max_header_line,
            max_head=max_head,
            max_headers=max_headers,
        )
        self._shutdown_timeout = checked_seconds("shutdown_timeout", shutdown_timeout)
        self._keep_request = keep_request
        self._server_header = server_header
        self._max_connections = checked_limit("max_connections", max_connections, 0, NO_COUNT_LIMIT)
        if max_connections is None:
            self._max_connections = _descriptor_limit()
        checked_count("backlog", backlog, 0, (1 << 31) - 1)
        self._begin(
            Settings(
                max_size=max_size,
                max_fragments=max_fragments,
                max_line=max_line,
                max_header_line=max_header_line,
                max_head=max_head,
                max_headers=max_headers,
                max_backlog=max_backlog,
                max_sockets=_descriptor_limit(),
                notsent_lowat=notsent_lowat,
                open_timeout=open_timeout,
                close_timeout=close_timeout,
                ping_interval=ping_interval,
                ping_timeout=ping_timeout,
                idle_request_timeout=idle_request_timeout,
                wants_pings=self._overrides("onpingreceived", "onframe"),
                wants_pongs=self._overrides("onpong", "onframe"),
                wants_pinged=self._overrides("onping"),
            )
        )
        self._owns_listener = not isinstance(address, socket.socket)
        try:
            self._listener = open_listener(address, backlog=backlog, reuse_port=reuse_port)
        except BaseException:
            self.loop.close()
            raise
        try:
            self.loop.listen(self._listener)
        except BaseException:
            self._let_go()
            raise
        self.address = self._listener.getsockname()

    def _begin(self, settings: Settings) -> None:
        self._opening: dict[int, AsyncClient] = {}
        self._calls = Calls()
        self._call_at: float | None = None  # when the earliest call of later is due
        self._frames = self._overrides("onframe")
        self._answers = self._overrides("onrequest")
        self._hears_pings = self._overrides("onping")
        self._granularity = core.FRAMES if self._frames else core.MESSAGES
        self._stopping: float | None = None
        self._stop_began = False
        self._exit: BaseException | None = None
        self._unclaimed = threading.Lock()
        self._begun = threading.Event()
        self._ended = threading.Event()
        self._background: threading.Thread | None = None
        self.clients = Clients()
        self._marks = self._overrides("onsent")
        self._make_client = MarkingClient if self._marks else AsyncClient
        self._thread = 0
        self.loop = Loop(settings)
        # for clients: as few steps as possible on the way of a message
        self._push = self.loop.push
        self._busy = 0  # the thread that calls handlers now: what it queues leaves when they have returned
        self._rares: dict[bytes, Rare] = {}
        """Of open connections, by their keys."""
        if self._marks or self._hears_pings:
            self.loop.notes = _Notes(self)
        _servers.add(self)

    def _overrides(self, *names: str) -> bool:
        return any(getattr(type(self), name) is not getattr(AsyncServer, name) for name in names)

    # ---- handlers, to be overridden ----

    def onrequest(self, request: Request) -> Response | None:
        """Answer a request with plain HTTP, or refuse it; None lets the upgrade go on.

        Every method but CONNECT comes here, and what is returned answers it, HEAD without the body. What is no upgrade
        and not answered gets 426, or 405 if it is no GET. A request with a body never comes here: it gets 413. An
        exception, or what is no ``Response``, goes to ``onerror`` and is answered with 500, a ``HandshakeError`` with
        its status.
        """

    def onopen(self, client: AsyncClient) -> None:
        """Do something when a connection is open: its 101 response was handed to the kernel."""

    def onmessage(self, client: AsyncClient, message: Message) -> None:
        """Do something with a ``TextMessage`` or ``BinaryMessage`` that arrived."""

    def onping(self, client: AsyncClient, payload: bytes) -> None:
        """Do something when a Ping *was sent*: when the kernel had what ``send_ping`` queued, or a keepalive ping.

        In one order with ``onsent``, and never for a ping that was lost.
        """

    def onpingreceived(self, client: AsyncClient, payload: bytes) -> None:
        """Do something when a Ping arrived; it was answered already (RFC 6455 §5.5.2)."""

    def onpong(self, client: AsyncClient, payload: bytes) -> None:
        """Do something when a Pong arrived, asked for or not."""

    def onsent(self, client: AsyncClient, message: Message) -> None:
        """Do something when the last byte of a message was handed to the kernel; in order, once for each."""

    def onclose(self, client: AsyncClient, code: int, reason: str) -> None:
        """Do something when a connection is closed: once for each ``onopen``, and last.

        Both arguments are what the peer's Close frame says, whoever began. A peer that is told to close, by
        ``client.close(code)``, by ``stop`` (1001) or after an exception in a handler (1011), answers with the code
        that it was sent as a rule. Only without a Close frame from the peer they say what happened here:

        - 1006: the peer went away, was silent for longer than a timeout, or was aborted.
        - 1008: more than ``max_backlog`` was unsent, or a message had more than ``max_fragments``.
        - 1002, 1007, 1009: the peer broke a rule, and was told this code (RFC 6455 §7.4.1).

        Args:
            client: the connection.
            code: the close code; 1005 if the peer's Close frame had none.
            reason: of the peer's Close frame, often ""; without one a sentence that says what happened.
        """

    def onerror(self, client: AsyncClient | None, error: BaseException) -> None:
        """Do something about an exception in a handler; the default logs it.

        Args:
            client: the connection, which is closed with 1011; None for ``onrequest`` (answered with 500) and for a
                function of ``call_soon`` or ``call_later``.
            error: the exception: any but ``KeyboardInterrupt`` and ``SystemExit``, which stop the server.
        """
        log.error("exception in a handler%s", f" of {client}" if client else "", exc_info=error)

    def onframe(self, client: AsyncClient, frame: Frame) -> None:
        """Do something with each frame that arrived, before its message is complete."""

    # ---- running ----

    def run(self) -> None:
        """Serve until ``stop``. In the main thread SIGINT and SIGTERM stop, and a second one ends at once.

        Returns when every connection is closed. A handler's ``SystemExit`` is raised again after an orderly stop.

        Raises:
            RuntimeError: the server runs already, or was closed.
        """
        self._claim()
        self._serve()

    def _claim(self) -> None:
        """Let one caller run the server, and no other: it does so once in its life."""
        if self.loop.closed:
            raise RuntimeError("the server was closed")
        if self._thread or not self._unclaimed.acquire(blocking=False):
            raise RuntimeError("the server runs already")

    def _serve(self) -> None:
        try:
            with StopSignals(self.loop.watch) as signals:
                self._run(signals)
        finally:
            self.close()
        if isinstance(self._exit, SystemExit):
            raise self._exit

    def _run(self, signals: StopSignals) -> None:
        self._thread = threading.get_ident()
        self._begun.set()
        seen = 0
        while self._stopping is None or not self.finished:
            self._turn(-1)
            while seen < signals.count:
                seen += 1
                self._signalled()

    def _signalled(self) -> None:
        log.info("stopping%s: a signal has come", "" if self._stopping is None else " at once")
        if self._stopping is None:
            self.stop()
        else:
            self._stop_at_once()

    def start(self) -> Self:
        """Run in a background thread and return; the thread ends with ``stop`` or ``close``. Thread-safe.

        Raises:
            RuntimeError: the server runs already, or was closed.
        """
        self._claim()
        background = threading.Thread(target=self._serve, name=f"wspy {self.address}", daemon=True)
        try:
            background.start()
        except BaseException:  # there are too many
            self._unclaimed.release()
            raise
        self._background = background
        self._begun.wait()
        return self

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the server has ended, and return whether it has. Thread-safe, but not for handlers."""
        ended = self._ended.wait(timeout)
        if ended and self._background is not None:
            self._background.join(timeout)
        return ended

    def stop(self) -> None:
        """Stop gracefully, and return at once; twice is fine. Thread-safe, also from handlers.

        The listener is closed, so that the kernel refuses new connections; a socket that was passed in is only left
        to its owner. Handshakes under way are refused with 503. What was queued is delivered, pauses end, every
        client is told 1001, and ``onclose`` is called once for each. After ``shutdown_timeout`` the rest is aborted.
        """
        if self._stopping is None:
            self._stopping = monotonic() + (inf if self._shutdown_timeout is None else self._shutdown_timeout)
            self._in_next_turn(self._stop)

    def _stop(self) -> None:
        self._stop_began = True
        self._release_listener()
        refusal = HandshakeError(503, "the server is stopping")
        self._push(core.command(core.REFUSE, self.handshake.refuse(refusal, date=_http_date(int(time())))))
        for client in (*self._opening.values(), *self.clients):
            client.close(CloseCode.GOING_AWAY)
        if self._shutdown_timeout is not None:
            self._call(self._shutdown_timeout, self._abort_all)

    def _stop_at_once(self) -> None:
        self._stop_began = True
        self._stopping = monotonic()
        self._release_listener()
        self._abort_all()

    def _abort_all(self) -> None:
        for client in (*self._opening.values(), *self.clients):
            client.abort()

    @property
    def finished(self) -> bool:
        """Whether a stop has come to its end: nothing is open, and the peers have read what was sent.

        For a foreign loop, which calls ``handle_events`` until then, and ``close`` at last.
        """
        if self._stopping is None or self.clients or self._opening or not self._stop_began:
            return False
        return monotonic() > self._stopping or not self.loop.stats()["connections"]

    def close(self) -> None:
        """End at once: connections are reset, ``onclose`` is called for each. Twice is fine.

        From a handler, or from another thread than the running one, this asks for it; ``join`` waits.
        """
        if self._thread not in {0, threading.get_ident()}:
            self._in_next_turn(self._stop_at_once)
            return
        self._thread = threading.get_ident()
        self._stop_at_once()
        if self._busy or self.loop.closed:
            return
        while self.clients and self._turn(0):
            continue
        self._let_go()

    def _let_go(self) -> None:
        """Give everything back, without another handler being called."""
        self._release_listener()
        self.loop.close()
        self._thread = 0
        self._ended.set()

    def _release_listener(self) -> None:
        if self._listener.fileno() < 0:
            return
        self.loop.unlisten(self._listener)
        if self._owns_listener:
            close_listener(self._listener)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._background is None:
            self.close()
            return
        self.stop()
        self.join()

    def __del__(self) -> None:
        if hasattr(self, "address") and not self.loop.closed:
            warnings.warn(f"{type(self).__name__} was not closed", ResourceWarning, source=self, stacklevel=1)
            self._let_go()

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
        if self._exit is not None:
            error, self._exit = self._exit, None
            raise error
        return handled

    # ---- calls and broadcasts ----

    def call_soon(self, function: Callable[..., object], *arguments: Any) -> Call:
        """Call a function in the server's thread, in the next turn. Thread-safe.

        Raises:
            RuntimeError: the server was closed.
            TypeError: the function can't be called, or is ``async def``.
        """
        return self.call_later(0, function, *arguments)

    def call_later(self, delay: float, function: Callable[..., object], *arguments: Any) -> Call:
        """Call a function in the server's thread after ``delay`` seconds. Thread-safe.

        Returns:
            The call, which can be cancelled.

        Raises:
            RuntimeError: the server was closed.
            TypeError: the function can't be called or is ``async def``, or the delay is no number.
            ValueError: the delay is NaN.
        """
        if self.loop.closed:
            raise RuntimeError("the server was closed: nothing runs there any more")
        return self._call(delay, function, *arguments)

    def _in_next_turn(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in the server's thread, in the next turn if there is one. Thread-safe."""
        self._call(0, function, *arguments)

    def _call(self, delay: float, function: Callable[..., object], *arguments: Any) -> Call:
        call = self._calls.add(delay, function, arguments)
        if threading.get_ident() != self._busy:
            self.loop.wake()
        return call

    def _rare_of(self, client: AsyncClient) -> Rare:
        """Return what few clients need, of one that is gone something that nobody keeps. Thread-safe."""
        return _rare_of(client, self.clients, self._rares)

    def _in_its_thread(self, function: Callable[[], object]) -> None:
        """Call a function in the server's thread: now if this is it, else soon, unless the server is closed."""
        if threading.get_ident() == self._thread:
            function()
        elif not self.loop.closed:
            self._in_next_turn(function)

    def broadcast(self, message: Sendable, clients: Iterable[AsyncClient] | None = None) -> None:
        """Send a message to many clients; it is encoded once. Thread-safe, and never blocks.

        Args:
            message: as for ``client.send``.
            clients: None for all that are open. Clients that are closed are passed over, as are all of a server that
                was closed.

        Raises:
            TypeError: it is no message.
            ValueError: a client is another server's, and nothing was sent; or a text has a lone surrogate.
        """
        whole = create_message(message)
        payload = whole.bytes
        told = None if clients is None else self._own(clients)
        if self.loop.closed:
            return
        frame = frame_header(FIN | whole.opcode, len(payload)) + payload
        if self._marks:
            self._broadcast_marked(whole, frame, list(self.clients) if told is None else told)
            return
        keys = None if told is None else [client._key for client in told]
        self._push(core.command(core.BROADCAST, broadcast_payload(frame, keys)))
        self._flush()

    def _own(self, clients: Iterable[AsyncClient]) -> list[AsyncClient]:
        """Return clients of this server: another's have the same handles."""
        own = list(clients)
        for client in own:
            if client.server is not self:
                raise ValueError(f"{client!r} is not a client of this server")
        return own

    def _broadcast_marked(self, message: Message, frame: bytes, clients: list[AsyncClient]) -> None:
        told = [client for client in clients if not client.closed]
        notes = [item for client in told for item in core.note(client._handle, message)]
        payload = broadcast_payload(frame, [client._key for client in told])
        self._push((*notes, *core.command(core.BROADCAST_MARK, payload)))
        self._flush()

    def stats(self) -> dict[str, int]:
        """Return counters since the server was made, and what there is now. Thread-safe.

        - ``clients``: WebSockets that are open now; ``connections``: TCP connections in every phase;
          ``handshakes``: of these, the ones before their 101; ``backlog``: unsent bytes of all.
        - ``accepted``, ``closed``: TCP connections that came and went. ``opened``: those that became WebSockets.
        - ``refused``: request heads that were malformed, too long, or never complete. What was refused for another
          reason, such as its origin, is in the log alone.
        - ``messages_received``: data messages, or their frames with ``onframe``. ``bytes_received``, ``bytes_sent``:
          everything, heads and frame headers too. ``broadcasts``: calls of ``broadcast``.
        - ``protocol_errors``: peers that broke a rule of RFC 6455. ``timeouts``: deadlines that ended a connection.
        - ``accept_errors``: connections that could not be accepted. ``turns``: of the loop.
        """
        return {"clients": len(self.clients), **self.loop.stats()}

    # ---- turns ----

    def _flush(self) -> None:
        """Write what was queued, unless the server is going to do so when the running handler returns. Thread-safe."""
        # another thread, or a signal handler while the loop may be about to sleep
        if threading.get_ident() != self._busy:
            self._submit()

    def _submit(self) -> None:
        """Write what was queued, unless there is nobody left to write to. Thread-safe."""
        if self.loop.closed:
            return
        try:
            self.loop.submit()
        except CoreError:
            if not self.loop.closed:  # by another thread, meanwhile
                raise

    def _turn(self, timeout_ms: int) -> int:
        if self._calls.pending or self._call_at is not None:
            timeout_ms = self._run_calls(timeout_ms)
        count = self.loop.turn(timeout_ms)
        if count:
            self._busy = self._thread
            try:
                self._dispatch(count)
            finally:
                self._busy = 0
        return count

    def _run_calls(self, timeout_ms: int) -> int:
        """Run the calls that are due; return how long the turn may wait: not at all if there were any."""
        self._busy = threading.get_ident()
        try:
            for call in self._calls.due():
                timeout_ms = 0
                try:
                    call()
                except BaseException as error:  # noqa: BLE001 -- whatever it is, _handler_failed decides
                    self._handler_failed(None, error)
        finally:
            self._busy = 0
        if self._calls.pending:
            return 0
        at = self._call_at = self._calls.next_at()
        self.loop.alarm(0 if at is None else self.loop.now_ms() + max(ceil((at - monotonic()) * 1000), 1))
        return timeout_ms

    def _dispatch(self, count: int) -> None:
        """Call the handlers for a turn's events: the one loop of Python that every message passes."""
        events = self.loop.events(count)
        read = self.loop.packed()
        clients = self.clients._slots
        onmessage = self.onmessage
        other = self._other_event
        messages = -1 if self._frames else core.EVENT_BINARY
        submitted = monotonic() if count > STRIDE else 0.0
        stride = STRIDE
        while True:
            for slot, kind, start, length in islice(events, stride):
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
        handler = _RARE_EVENTS.get(kind & 0xFF)
        if handler is not None:
            handler(self, slot, start, length)
            return
        if kind & (core.EVENT_APART | core.EVENT_DETACHED):
            payload = self.loop.payload(kind, start, length)
        else:
            payload = read(length)
        client = self.clients._find(slot)
        if client is None:
            return
        kind &= ~(core.EVENT_APART | core.EVENT_DETACHED)
        if kind == core.EVENT_CLOSE:
            self._peer_closes(client, payload)
        if client._mode == HOLD:
            client._its_rare().held.append((kind, payload, False))
        elif client._mode == DELIVER:
            self._deliver(client, kind, payload)

    def _deliver(self, client: AsyncClient, kind: int, payload: bytes, is_seen: bool = False) -> None:
        """Call the handlers for one message, or one frame, which onframe may have seen."""
        if self._frames and not is_seen:
            self._guarded(client, self.onframe, client, _frame(kind, payload))
            if client._mode == HOLD:
                client._its_rare().held.appendleft((kind, payload, True))
            if client._mode != DELIVER:
                return
        if kind == core.EVENT_PING:
            self._guarded(client, self.onpingreceived, client, payload)
        elif kind == core.EVENT_PONG:
            self._guarded(client, self.onpong, client, payload)
        elif kind != core.EVENT_CLOSE:
            self._deliver_data(client, kind, payload)

    def _deliver_data(self, client: AsyncClient, kind: int, payload: bytes) -> None:
        opcode = kind & 0x0F
        if kind & core.EVENT_NOT_FINAL or opcode == Opcode.CONTINUATION:
            parts = client._its_rare().fragments
            parts.append(payload if parts else bytes([opcode]) + payload)
            if kind & core.EVENT_NOT_FINAL:
                return
            whole = b"".join(parts)
            parts.clear()
            opcode, payload = whole[0], whole[1:]
        message: Message
        if opcode == Opcode.TEXT:
            message = TextMessage(str(payload, "utf-8"))
        else:
            message = BinaryMessage(payload)
        self._guarded(client, self.onmessage, client, message)

    def _deliver_held(self, client: AsyncClient) -> None:
        """Deliver what arrived before a pause, then read on; in the server's thread."""
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

    # ---- failing handlers ----

    def _guarded(self, client: AsyncClient | None, handler: Callable[..., object], *arguments: Any) -> None:
        try:
            handler(*arguments)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, _handler_failed decides
            self._handler_failed(client, error)

    def _handler_failed(self, client: AsyncClient | None, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self._stop_for(error)
            return
        try:
            self.onerror(client, error)
        except (KeyboardInterrupt, SystemExit) as raised:
            self._stop_for(raised)
        except BaseException:
            log.exception("exception in onerror")
        if client is not None:
            client._mode = DROP
            client.close(CloseCode.INTERNAL_ERROR)
            # of a paused one, too, the peer's Close is read, and what comes before it thrown away
            self._push(core.command(client._handle | core.RESUME))

    def _stop_for(self, error: BaseException) -> None:
        """Stop in order: KeyboardInterrupt and SystemExit are how a program asks for its end."""
        log.info("stopping: a handler has raised %s", type(error).__name__)
        self._exit = error
        self.stop()

    # ---- the opening handshake ----

    def _on_head(self, slot: int, start: int, length: int) -> None:
        handle = self.loop.handle(slot)
        head = self.loop.payload(core.EVENT_APART, start, length)
        try:
            request = self.handshake.read(head)
            request.remote_address = self.loop.peer(handle)
            if self._answers and self._answer(handle, request):
                return
            self._accept(handle, request)
        except HandshakeError as error:
            self._refuse(handle, error, head)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, _handler_failed decides
            self._handler_failed(None, error)
            self._refuse(handle, HandshakeError(500, "an exception was raised"), head)

    def _answer(self, handle: int, request: Request) -> bool:
        response = self.onrequest(request)
        if response is None:
            return False
        if not isinstance(response, Response):
            raise TypeError(f"onrequest returns a Response or None, not {type(response).__name__}")
        keep_alive = request.keep_alive and self._stopping is None
        head_only = request.method == "HEAD"
        encoded = response.encode(
            keep_alive=keep_alive, head_only=head_only, date=_http_date(int(time())), server=self._server_header
        )
        self._push(core.command(handle | core.RESPOND, (_KEEP_ALIVE if keep_alive else _LAST) + encoded))
        return True

    def _accept(self, handle: int, request: Request) -> None:
        accepted = self.handshake.accept(request)
        if self._stopping is not None:
            raise HandshakeError(503, "the server is stopping")
        if len(self.clients) + len(self._opening) >= self._max_connections:
            raise HandshakeError(503, "there are max_connections already")
        self._opening[handle & core.SLOT] = self._make_client(self, handle, request, accepted.subprotocol)
        response = acceptance(accepted.response, granularity=self._granularity)
        self._push(core.command(handle | core.ACCEPT, response))

    def _refuse(self, handle: int, error: HandshakeError, head: bytes = b"") -> None:
        date = _http_date(int(time()))
        try:
            response = self.handshake.refuse(error, head, date)
            log.info("refused %s from %s with %s: %s", _asked(head), self._name(handle), error.status, error.message)
        except Exception:
            # the application may have made it, changed it, or raised a subclass that lacks what is needed
            log.exception("a HandshakeError can't be sent: answered with 500")
            response = self.handshake.refuse(HandshakeError(500, ""), head, date)
        self._push(core.command(handle | core.RESPOND, _LAST + response))

    def _on_bad_head(self, slot: int, start: int, _: int) -> None:
        handle = self.loop.handle(slot)
        status = HEAD_STATUSES[start]
        log.info("refused a request from %s with %s: %s", self._name(handle), status, error_text(start))
        response = self.handshake.refuse_core(start, _http_date(int(time())))
        self._push(core.command(handle | core.RESPOND, _LAST + response))

    def _name(self, handle: int) -> str:
        return peer_name(self.loop.peer(handle))

    def _on_opened(self, slot: int, _start: int, _length: int) -> None:
        client = self._opening.pop(slot, None)
        if client is None:
            return
        self.clients._add(slot, client)
        self._guarded(client, self.onopen, client)
        request = client._request
        client._request = request.head if self._keep_request and isinstance(request, Request) else None

    # ---- what else happens to a connection ----

    def _on_pinged(self, slot: int, start: int, _: int) -> None:
        client = self.clients._find(slot)
        if client is not None and client._mode != DROP:
            self._guarded(client, self.onping, client, start.to_bytes(4, "big"))

    def _on_sent(self, slot: int, start: int, _: int) -> None:
        client = self.clients._find(slot)
        if client is None:
            return
        sent = client._its_rare().sent
        for _ in range(min(start, len(sent))):
            _, what = sent.popitem(last=False)
            if client._mode == DROP:
                continue
            if isinstance(what, Frame):
                self._guarded(client, self.onping, client, what.payload)
            else:
                self._guarded(client, self.onsent, client, what)

    def _peer_closes(self, client: AsyncClient, payload: bytes) -> None:
        rare = client._its_rare()
        rare.close_code = int.from_bytes(payload[:2], "big") if payload else CloseCode.NO_STATUS
        rare.close_reason = str(payload[2:], "utf-8")
        rcvd = (rare.close_code, rare.close_reason)
        state = client._state
        if state is None:
            client._state = SocketClosed(message="the peer has closed the connection", rcvd=rcvd)
        else:
            state.rcvd, (state.code, state.reason) = rcvd, rcvd

    def _on_closed(self, slot: int, start: int, error: int) -> None:
        opening = self._opening.pop(slot, None)
        if opening is not None:
            log.info("%s went away before its handshake was answered", opening)
        client = self.clients._find(slot)
        if client is None:
            return
        rare = client._its_rare()
        while rare.held and client._mode != DROP:
            self._deliver(client, *rare.held.popleft())
        self.clients._remove(slot)
        self._rares.pop(client._key, None)
        # who holds the client need not hold what is for nobody any more
        for gone in (rare.held, rare.sent, rare.fragments):
            gone.clear()
        rare.peer = self.loop.peer(client._handle)
        code, reason = _verdict(rare, start, error)
        if client._state is None:
            client._state = SocketClosed(message=f"the connection is closed: {reason}")
        client._state.code, client._state.reason = code, reason
        log.debug("%s closed: %d %r", client, code, reason)
        try:
            self.onclose(client, code, reason)
        except BaseException as raised:  # noqa: BLE001 -- whatever it is, _handler_failed decides
            self._handler_failed(client, raised)

    def _on_accept_paused(self, _slot: int, start: int, _length: int) -> None:
        now = monotonic()
        if now - self._accept_warned >= 1:
            self._accept_warned = now
            log.warning("can't accept connections for now: %s", error_text(2, start))

    _accept_warned = float("-inf")


_RARE_EVENTS: Final[dict[int, Callable[[AsyncServer, int, int, int], None]]] = {
    core.EVENT_HEAD: AsyncServer._on_head,
    core.EVENT_BAD_HEAD: AsyncServer._on_bad_head,
    core.EVENT_OPENED: AsyncServer._on_opened,
    core.EVENT_SENT: AsyncServer._on_sent,
    core.EVENT_CLOSED: AsyncServer._on_closed,
    core.EVENT_PINGED: AsyncServer._on_pinged,
    core.EVENT_ACCEPT_PAUSED: AsyncServer._on_accept_paused,
}


def _rare_of(client: AsyncClient, clients: Clients, rares: dict[bytes, Rare]) -> Rare:
    rare = rares.setdefault(client._key, Rare())
    # the server's thread takes a client away first, and then this
    if client not in clients:
        rares.pop(client._key, None)
    return rare


class _Notes:
    """Where the core's notes go: to the messages and pings that a connection waits to see sent. Thread-safe."""

    def __init__(self, server: AsyncServer) -> None:
        self._clients = server.clients
        self._rares = server._rares

    def __call__(self, handle: int, number: int, what: Message | Frame) -> None:
        client = self._clients._find(handle & core.SLOT)
        if client is None or client._handle != handle:
            return
        _rare_of(client, self._clients, self._rares).sent[number] = what


def _check_handlers(server: AsyncServer, extra_headers: object) -> None:
    """Refuse handlers that would only make coroutines: nobody would run those."""
    for name in _HANDLERS:
        if is_async(getattr(server, name)):
            raise TypeError(
                f"{type(server).__name__}.{name} is async def, but handlers are plain functions, called in the "
                "server's thread: let a thread do what takes long and hand its result back with call_soon. "
                "An asyncio API is planned"
            )
    if is_async(extra_headers):
        raise TypeError("extra_headers is async def, but it has to be a plain function")


_servers: weakref.WeakSet[AsyncServer] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """In the child of a fork, serve nothing: connections were let go of by loop.py, and here go the listeners."""
    for server in list(_servers):
        server._thread = 0
        if server._owns_listener:
            server._listener.close()


os.register_at_fork(after_in_child=_leave_to_the_parent)


def _verdict(rare: Rare, code: int, error: int) -> tuple[int, str]:
    """Return what onclose is told: the peer's word if it said one, else what happened."""
    if rare.close_code is not None:
        return rare.close_code, rare.close_reason
    return code, error_text(error & 0xFF, error >> 8)


def _asked(head: bytes) -> str:
    """Return method and path of a request head for the log: escaped, cut, and without the query and its secrets."""
    line = head.lstrip(b"\r\n").partition(b"\r\n")[0].decode("latin-1")
    method, _, target = line.partition(" ")
    path = target.rpartition(" ")[0].partition("?")[0]
    return ascii(f"{method} {path}")[1:-1][:100]


def _frame(kind: int, payload: bytes) -> Frame:
    return received_frame(kind & 0x0F, payload, final=not kind & core.EVENT_NOT_FINAL, rsv=kind >> 8 & 0x70)


# Never by strftime, whose names are those of a locale.
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@lru_cache(maxsize=1)
def _http_date(seconds: int) -> str:
    """Return a time since the epoch as ``Date`` has it: an IMF-fixdate, RFC 9110 §5.6.7."""
    at = gmtime(seconds)
    day = f"{_DAYS[at.tm_wday]}, {at.tm_mday:02} {_MONTHS[at.tm_mon - 1]} {at.tm_year}"
    return f"{day} {at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"


def _waiting(timeout: float | None) -> int:
    """Return a timeout in milliseconds, as a turn takes it."""
    seconds = checked_seconds("timeout", timeout, at_least=-inf)
    if seconds is None:
        return -1
    # a longer one ends early, as each may
    return ceil(min(max(seconds, 0.0), MAX_WAIT) * 1000)


def _descriptor_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - SPARE_DESCRIPTORS, soft // 2, 1)
