"""What have all servers over the loop in common: listening, handshakes, what becomes of events, running, stopping.

Where handlers are called is what they differ in: ``_event`` decides it for whatever happens to a client, ``_decide``
for a request. Names with an underscore are shared with the servers and with their clients.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
import warnings
import weakref
from collections import deque
from contextlib import suppress
from copy import copy
from functools import lru_cache, partial
from math import ceil, inf
from time import gmtime, monotonic, time
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeAlias, TypedDict, TypeVar

from . import loop as core
from .async_client import DELIVER, DROP, HOLD, AnyClient, AsyncClient, Clients, Rare, least_size, limited
from .calls import Call, Calls, is_async
from .codes import CloseCode, Opcode
from .errors import CoreError, HandshakeError, ProtocolError, SocketClosed, WriteLimitError
from .extended import Exchange, Extends
from .extensions import claimed_opcodes
from .frames import FIN, Frame, frame_header, is_close_code, received_frame
from .handshake import HEAD_STATUSES, Acceptance, ServerHandshake
from .http11 import Request, Response
from .journal import Journal, peer_name
from .limits import NO_COUNT_LIMIT, NO_SIZE_LIMIT, Sizes, both_sizes, checked_count, checked_limit, checked_seconds
from .listening import Address, close_listener, open_listener
from .loop import Loop, Settings, acceptance, broadcast_payload, error_text, failure
from .memory import Memory, memory_of
from .messages import BinaryMessage, Message, Sendable, TextMessage, create_message
from .server_auth import WrongCredentialsError, authenticate, checked_policies
from .signals import StopSignals
from .version import __version__

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Hashable, Iterable, Mapping
    from ssl import SSLContext, SSLObject

    from .extensions import Agreement, Extension
    from .secured import Secured
    from .server_auth import Policies

__all__ = ["BaseServer", "Options"]

_T = TypeVar("_T")

log = logging.getLogger("wspy.server")

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


class Options(TypedDict, total=False):
    """The arguments of a server by name; ``AsyncServer`` tells about each."""

    loglevel: int | str | None
    protocols: Iterable[str]
    trusted_origins: Iterable[str | re.Pattern[str] | None]
    locations: Iterable[str]
    auth: Policies | None
    require_origin: bool
    require_protocol: bool
    extensions: Iterable[Extension | type[Extension]]
    extra_headers: (
        Mapping[str, str]
        | Iterable[tuple[str, str]]
        | Callable[[Request], Mapping[str, str] | Iterable[tuple[str, str]]]
    )
    server_header: str | None
    max_size: Sizes
    max_fragments: int | None
    max_controls: int | None
    max_line: int
    max_header_line: int
    max_head: int
    max_headers: int
    max_connections: int | None
    max_handshakes: int | None
    max_handshakes_per_address: int | None
    max_accept_rate: int | None
    max_backlog: int | None
    notsent_lowat: int
    open_timeout: float | None
    close_timeout: float | None
    ping_interval: float | None
    ping_timeout: float | None
    write_timeout: float | None
    idle_timeout: float | None
    idle_request_timeout: float | None
    shutdown_timeout: float | None
    keep_request: bool
    backlog: int
    reuse_port: bool
    ssl: SSLContext | None


class BaseServer(Generic[AnyClient]):
    """A server but for the calling of handlers; see ``AsyncServer`` for its arguments."""

    def __init__(  # noqa: PLR0913 -- each is a policy of its own, by name
        self,
        address: Address,
        *,
        loglevel: int | str | None = None,
        protocols: Iterable[str] = (),
        trusted_origins: Iterable[str | re.Pattern[str] | None] = (),
        locations: Iterable[str] = (),
        auth: Policies | None = None,
        require_origin: bool = False,
        require_protocol: bool = False,
        extensions: Iterable[Extension | type[Extension]] = (),
        extra_headers: Mapping[str, str]
        | Iterable[tuple[str, str]]
        | Callable[[Request], Mapping[str, str] | Iterable[tuple[str, str]]] = (),
        server_header: str | None = f"wspy/{__version__}",
        max_size: Sizes = 1 << 20,
        max_fragments: int | None = 131_072,
        max_controls: int | None = 100_000,
        max_line: int = 8192,
        max_header_line: int = 8192,
        max_head: int = 65_536,
        max_headers: int = 100,
        max_connections: int | None = None,
        max_handshakes: int | None = None,
        max_handshakes_per_address: int | None = None,
        max_accept_rate: int | None = None,
        max_backlog: int | None = 16 << 20,
        write_limit: int | None = None,
        write_policy: WritePolicy = "raise",
        notsent_lowat: int = 131_072,
        open_timeout: float | None = 10.0,
        close_timeout: float | None = 10.0,
        ping_interval: float | None = 20.0,
        ping_timeout: float | None = 20.0,
        write_timeout: float | None = 30.0,
        idle_timeout: float | None = None,
        idle_request_timeout: float | None = 30.0,
        shutdown_timeout: float | None = 10.0,
        keep_request: bool = True,
        backlog: int = 1024,
        reuse_port: bool = False,
        ssl: SSLContext | None = None,
    ) -> None:
        _check_handlers(self, extra_headers)
        secure = None if ssl is None else _secured_by(ssl)
        if loglevel is not None:
            logging.basicConfig(level=loglevel)
        self.handshake = ServerHandshake(
            protocols=protocols,
            trusted_origins=trusted_origins,
            locations=locations,
            require_origin=require_origin,
            require_protocol=require_protocol,
            extensions=extensions,
            extra_headers=extra_headers,
            server_header=server_header,
            max_line=max_line,
            max_header_line=max_header_line,
            max_head=max_head,
            max_headers=max_headers,
        )
        self._policies = checked_policies(auth)
        self._most_unsent = checked_limit("write_limit", write_limit, 1, NO_SIZE_LIMIT)
        self._unwritten = 0
        """Bytes that handlers have sent, since the core was last given what is queued because of ``write_limit``."""
        self._write_policy = _checked_policy(write_policy, write_limit)
        self._minds_unsent = write_limit is not None and write_policy != "close"
        self._backlog_limit = "max_backlog"
        most = checked_limit("max_backlog", max_backlog, 1, NO_SIZE_LIMIT)
        if write_policy == "close" and write_limit is not None and self._most_unsent <= most:
            max_backlog, self._backlog_limit = self._most_unsent, "write_limit"
        self._shutdown_timeout = checked_seconds("shutdown_timeout", shutdown_timeout)
        self._keep_request = keep_request
        self._max_size, max_fragment_size = both_sizes(max_size)
        self._server_header = server_header
        self._max_connections = checked_limit("max_connections", max_connections, 0, NO_COUNT_LIMIT)
        if max_connections is None:
            self._max_connections = _descriptor_limit()
        checked_count("backlog", backlog, 0, (1 << 31) - 1)
        self._begin(
            Settings(
                max_size=self._max_size,
                max_fragment_size=max_fragment_size,
                max_fragments=max_fragments,
                max_controls=max_controls,
                max_line=max_line,
                max_header_line=max_header_line,
                max_head=max_head,
                max_headers=max_headers,
                max_backlog=max_backlog,
                max_sockets=_descriptor_limit(),
                max_handshakes=max_handshakes,
                max_handshakes_per_address=max_handshakes_per_address,
                max_accept_rate=max_accept_rate,
                broadcast_limit=self._most_unsent if self._minds_unsent else 0,
                notsent_lowat=notsent_lowat,
                open_timeout=open_timeout,
                close_timeout=close_timeout,
                ping_interval=ping_interval,
                ping_timeout=ping_timeout,
                write_timeout=write_timeout,
                idle_timeout=idle_timeout,
                idle_request_timeout=idle_request_timeout,
                wants_pings=self._overrides("onpingreceived", "onframe"),
                wants_pongs=self._overrides("onpong", "onframe"),
                wants_pinged=self._overrides("onping"),
                raw=secure is not None,
            )
        )
        self._secured: Secured | None = None if secure is None else secure(self.loop, self._journal)
        self._owns_listener = not isinstance(address, socket.socket)
        try:
            self._listener = open_listener(address, backlog=backlog, reuse_port=reuse_port)
        except BaseException:
            self.loop.close()
            raise
        _servers.add(self)
        try:
            self.loop.listen(self._listener)
        except BaseException:
            self._let_go()
            raise
        self.address = self._listener.getsockname()

    def _begin(self, settings: Settings) -> None:
        self._opening: dict[int, AnyClient] = {}
        self._held_back: dict[int, Call] = {}
        """By their handles, those whose answer is to come later, and what sends it."""
        self._journal = Journal(log)
        self._hits = dict.fromkeys(_LIMITS, 0)
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
        self.clients: Clients[AnyClient] = Clients()
        self._marks = self._overrides("onsent")
        self._make_client = self._marking_class if self._marks else self._client_class
        self._make_extended = self._extended_marking_class if self._marks else self._extended_class
        if self._minds_unsent:
            self._make_client, self._make_extended = limited(self._make_client), limited(self._make_extended)
        self._thread = 0
        self.loop = Loop(settings)
        # for clients: as few steps as possible on the way of a message
        self._push = self.loop.push
        self._busy = 0  # the thread that calls handlers now: what it queues leaves when they have returned
        self._rares: dict[bytes, Rare] = {}
        """Of open connections, by their keys."""
        self._exchanges: dict[bytes, Exchange] = {}
        """The same, of those that have used their extensions."""
        self._unlooked: deque[float] = deque({e.idle_seconds for e in self.handshake.extensions if e.idle_seconds})
        """How often to look for extensions that are idle, where nobody does so now."""
        self._claimed = claimed_opcodes(self.handshake.extensions)
        if self._marks or self._hears_pings:
            self.loop.notes = _Notes(self)

    def _overrides(self, *names: str) -> bool:
        return any(getattr(type(self), name) is not getattr(BaseServer, name) for name in names)

    # ---- handlers, to be overridden ----

    def onrequest(self, request: Request) -> Response | None:
        """Answer a request with plain HTTP, or refuse it; None lets the upgrade go on.

        Every method but CONNECT comes here, and what is returned answers it, HEAD without the body. With ``auth`` only
        what has the right credentials comes here, as ``request.username`` says. What is no upgrade
        and not answered gets 426, or 405 if it is no GET. A request with a body never comes here: it gets 413. An
        exception, or what is no ``Response``, goes to ``onerror`` and is answered with 500, a ``HandshakeError`` with
        its status.
        """

    def onopen(self, client: AnyClient) -> None:
        """Do something when a connection is open: its 101 response was handed to the kernel."""

    def onmessage(self, client: AnyClient, message: Message) -> None:
        """Do something with a ``TextMessage`` or ``BinaryMessage`` that arrived."""

    def onping(self, client: AnyClient, payload: bytes) -> None:
        """Do something when a Ping *was sent*: when the kernel had what ``send_ping`` queued, or a keepalive ping.

        In one order with ``onsent``, and never for a ping that was lost.
        """

    def onpingreceived(self, client: AnyClient, payload: bytes) -> None:
        """Do something when a Ping arrived; it was answered already (RFC 6455 §5.5.2)."""

    def onpong(self, client: AnyClient, payload: bytes) -> None:
        """Do something when a Pong arrived, asked for or not."""

    def onsent(self, client: AnyClient, message: Message) -> None:
        """Do something when the last byte of a message was handed to the kernel; in order, once for each."""

    def onclose(self, client: AnyClient, code: int, reason: str) -> None:
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

        ``client.closure`` tells the rest: who ended it, by which limit, and what was left unsent.
        """

    def onerror(self, client: AnyClient | None, error: BaseException) -> None:
        """Do something about an exception in a handler; the default logs it.

        Args:
            client: the connection, which is closed with 1011; None for ``onrequest`` (answered with 500) and for a
                function of ``call_soon`` or ``call_later``.
            error: the exception: any but ``KeyboardInterrupt`` and ``SystemExit``, which stop the server, and
                ``SocketClosed`` in a handler of a client that is closed: it just came too late.
        """
        log.error("exception in a handler%s", f" of {client}" if client else "", exc_info=error)

    def onframe(self, client: AnyClient, frame: Frame) -> None:
        """Do something with each frame that arrived, before its message is complete.

        Extensions for single frames have read it, and control frames that they have claimed come here, too. Those for
        messages have not: what is compressed still is, and has its reserved bit.
        """

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
        while self._stopping is None or not self._is_finished():
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
            self._dismiss(client)
        for answer in list(self._held_back.values()):
            answer()
        if self._shutdown_timeout is not None:
            self._call(self._shutdown_timeout, self._abort_all)

    def _dismiss(self, client: AnyClient) -> None:
        """Close a connection because the server stops."""
        client.close(CloseCode.GOING_AWAY)

    def _stop_at_once(self) -> None:
        self._stop_began = True
        self._stopping = min(monotonic(), inf if self._stopping is None else self._stopping)
        self._release_listener()
        self._abort_all()

    def _abort_all(self) -> None:
        for client in (*self._opening.values(), *self.clients):
            client.abort()

    def _is_finished(self) -> bool:
        """Whether a stop has come to its end: nothing is open, and the peers have read what was sent."""
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
        self._join_handlers()
        self._let_go()

    def _join_handlers(self) -> None:
        """Wait for handlers that run elsewhere, but not for ever."""

    def _let_go(self) -> None:
        """Give everything back, without another handler being called."""
        self._release_listener()
        self._held_back.clear()
        self.loop.close()
        self._journal.flush()
        self._thread = 0
        self._ended.set()

    def _leave_to_the_parent(self) -> None:
        """In the child of a fork: have nothing to do with what goes on in the parent."""
        self._thread = 0
        # another one: a thread that is not here may have held its lock
        self._ended = threading.Event()
        self._ended.set()
        if self._owns_listener:
            self._listener.close()

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

    # ---- TLS ----

    @property
    def secure(self) -> bool:
        """Whether the server speaks TLS. Thread-safe."""
        return self._secured is not None

    def reload_tls(
        self,
        certfile: SSLContext | str | bytes | os.PathLike[Any],
        keyfile: str | bytes | os.PathLike[Any] | None = None,
        password: Callable[[], str | bytes] | str | bytes | None = None,
    ) -> None:
        """Use another certificate from now on: new connections get it, open ones keep theirs. Thread-safe.

        It may be called by a signal handler, too. An encrypted key is decrypted twice, and new connections wait for the
        second time: if that is slow on purpose, make another context of it.

        If anything is wrong with it, that is raised and everything stays as it is. A context keeps one certificate for
        each kind of key, and forgets none: take another context to go from ECDSA to RSA, or the other way, since else
        some clients or all of them would still get the old certificate.

        Args:
            certfile: the path of a certificate chain, which is loaded into the server's context; or another context,
                which takes its place.
            keyfile: the path of its private key; None if that is in the same file.
            password: as for ``ssl.SSLContext.load_cert_chain``.

        Raises:
            OSError: a file can't be read.
            RuntimeError: the server has no ``ssl``.
            ssl.SSLError: certificate and key don't belong together, or are none.
            TypeError, ValueError: the context is none for servers.
        """
        if self._secured is None:
            raise RuntimeError("the server was made without ssl, and can't begin to speak TLS")
        self._secured.reload(certfile, keyfile, password)

    def _ssl_object(self, handle: int) -> SSLObject | None:
        return None if self._secured is None else self._secured.ssl_object(handle)

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

    def _look_for_idle(self) -> None:
        """Look from time to time for extensions that hold what they need to send, and don't. Thread-safe."""
        while self._unlooked:
            try:
                seconds = self._unlooked.popleft()
            except IndexError:  # another thread was quicker
                return
            self._call(seconds, self._end_idleness, seconds)

    def _end_idleness(self, seconds: float) -> None:
        self._unlooked.append(seconds)
        exchanges = list(self._exchanges.values())
        for exchange in exchanges:
            self._guarded(None, exchange.look_idle, seconds)
        if exchanges:
            self._look_for_idle()

    def _rare_of(self, client: AnyClient) -> Rare:
        """Return what few clients need, of one that is gone something that nobody keeps. Thread-safe."""
        return _rare_of(client, self.clients, self._rares)

    def broadcast(
        self, message: Sendable, clients: Iterable[AnyClient] | None = None, *, compress: bool | None = None
    ) -> None:
        """Send a message to many clients; it is encoded once. Thread-safe, and never blocks.

        It is compressed once for all whose messages don't refer to those before them and who agreed upon the same, and
        for each other client by itself. A client whose extension raises an exception is closed with 1011.

        Args:
            message: as for ``client.send``. One with an opcode that an extension has claimed passes over clients that
                haven't agreed upon that.
            clients: None for all that are open. Clients that are closed are passed over, as are all of a server that
                was closed.
            compress: as for ``client.send``.

        Raises:
            TypeError: it is no message.
            ValueError: a client is another server's, and nothing was sent; or a text has a lone surrogate.
        """
        whole = create_message(message, self._claimed)
        payload = whole.bytes
        told = None if clients is None else self._own(clients)
        if self.loop.closed:
            return
        if self.handshake.extensions:
            self._broadcast_extended(whole, list(self.clients) if told is None else told, compress)
            return
        frame = frame_header(FIN | whole.opcode, len(payload)) + payload
        if self._marks:
            self._broadcast_marked(whole, frame, list(self.clients) if told is None else told)
            return
        keys = None if told is None else [client._key for client in told]
        self._push(core.command(core.BROADCAST, broadcast_payload(frame, keys)))
        self._flush()

    def _has_room(self, client: AsyncClient, message: Sendable) -> bool:
        """Whether so little is unsent of a client that a message may be queued."""
        backlogs, slot = self.loop.backlogs, client._handle & core.SLOT
        if backlogs[slot] + self._unwritten > self._most_unsent:
            self._unwritten = 0
            self._submit()
        if backlogs[slot] <= self._most_unsent:
            if threading.get_ident() == self._busy:  # else it is written at once
                self._unwritten += least_size(message)
            return True
        self._hits["write_limit"] += 1
        return False

    def _may_send(self, client: AnyClient, message: Sendable) -> bool:
        """Whether a send is to be queued.

        Raises:
            WriteLimitError: it isn't, and whoever sends shall know.
        """
        if client._state is not None or self._has_room(client, message):
            return True
        if self._write_policy == "drop":
            return False
        raise WriteLimitError(
            f"more than {self._most_unsent} bytes are unsent: wait for onsent or a smaller buffered_amount, or close it"
        )

    def _own(self, clients: Iterable[AnyClient]) -> list[AnyClient]:
        """Return clients of this server: another's have the same handles."""
        own = list(clients)
        for client in own:
            if client.server is not self:
                raise ValueError(f"{client!r} is not a client of this server")
        return own

    def _broadcast_extended(self, message: Message, clients: list[AnyClient], compress: bool | None) -> None:
        """Send to those with extensions what they make of a message, and to the others what it is."""
        groups: dict[Hashable, tuple[Agreement | None, list[Any]]] = {}
        alone: list[Extends] = []
        for client in clients:
            agreed = client._agreed if isinstance(client, Extends) else None
            if message.opcode > Opcode.BINARY and not (agreed and agreed.opcodes >> message.opcode & 1):
                continue
            if isinstance(client, Extends) and client._agreed.sharing is None:
                alone.append(client)
            else:
                groups.setdefault(agreed and agreed.sharing, (agreed, []))[1].append(client)
        payload = message.bytes
        for agreed, told in groups.values():
            if agreed is None:
                frame = frame_header(FIN | message.opcode, len(payload)) + payload
            else:
                try:
                    frame = self._transformed(agreed, message, compress)
                except Exception:  # noqa: BLE001 -- each is closed for what it raises there, too
                    alone += told
                    continue
            if self._marks:
                self._broadcast_marked(message, frame, told)
            else:
                keys = [client._key for client in told]
                self._push(core.command(core.BROADCAST, broadcast_payload(frame, keys)))
        for one in alone:
            # of an extension, whose connection is closed, and the log says so: the others know nothing of it
            with suppress(Exception):
                if not self._minds_unsent or self._has_room(one, message):
                    one._send_transformed(message, None, compress)
        self._flush()

    @staticmethod
    def _transformed(agreed: Agreement, message: Message, compress: bool | None) -> bytes:
        """Return the frames that all get with whom this was agreed upon: their extensions remember nothing."""
        whole = received_frame(message.opcode, message.bytes)
        whole.compress = compress
        frames = agreed.chain().send(whole)
        return b"".join([frame_header(first, len(payload)) + payload for first, payload in frames])

    def _broadcast_marked(self, message: Message, frame: bytes, clients: list[AnyClient]) -> None:
        told = [
            client
            for client in clients
            if not client.closed and (not self._minds_unsent or self._has_room(client, message))
        ]
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
        - ``full_addresses``: connections that were one too many for ``max_handshakes_per_address``.
          ``full_handshakes``, ``fast_accepts``: pauses of accepting because of ``max_handshakes`` and
          ``max_accept_rate``.
        - ``accept_errors``: connections that could not be accepted. ``turns``: of the loop.
        - How often a limit or a deadline has ended a connection, a request or a send, by its name: ``max_size``,
          ``max_fragments``, ``max_controls``, ``max_line``, ``max_header_line``, ``max_head``, ``max_headers``,
          ``max_connections``, ``max_backlog``, ``write_limit``, ``open_timeout``, ``close_timeout``, ``ping_timeout``,
          ``write_timeout``, ``idle_timeout``.
        """
        counters = self.loop.stats()
        hits = dict(self._hits)
        hits["open_timeout"] += counters.pop("silent_handshakes")
        hits["write_limit"] += counters.pop("passed_over")
        return {"clients": len(self.clients), **counters, **hits}

    def memory(self) -> Memory:
        """Return how many bytes the connections take now, by what for. Thread-safe.

        It is what the process has from the system because of them: not what it has without any, what the kernel has
        for sockets, or ``client.data``. Every connection is looked at, and whatever waits to be handled or sent.

        Sizes are what malloc and CPython say. Estimates are: how much was written of a large block; the windows of
        zlib, by its documentation and what went through them; OpenSSL, 18,000 bytes, and a thread, 17,000, as measured
        of one that is idle.
        """
        return memory_of(self)

    # ---- where handlers are called: what servers differ in ----

    _client_class: type[AnyClient]
    _marking_class: type[AnyClient]
    _extended_class: type[Any]
    _extended_marking_class: type[Any]
    _instead = ""
    """What to do about a handler that takes long."""
    _credit: int | None = None
    """Messages that a connection may deliver before it is granted more; None for any number."""

    def _dispatch(self, count: int) -> None:
        """Handle a turn's events."""
        raise NotImplementedError

    def _event(self, client: AnyClient, kind: int, what: Any) -> None:
        """Let ``_handle`` be called where this client's handlers are: in the order of these calls."""
        raise NotImplementedError

    def _decide(self, handle: int, head: bytes) -> None:
        """Let ``_settle`` be called, in the server's thread, with what ``_decision`` returns or raises."""
        raise NotImplementedError

    def _in_its_thread(self, client: AnyClient, function: Callable[[], object]) -> None:
        """Call a function where this client's handlers are called: now if this is there, else soon. Thread-safe."""
        raise NotImplementedError

    def _after_its_handler(self, client: AnyClient, function: Callable[[AnyClient], object]) -> None:
        """Call a function with the client where its handlers are called, once the running one has returned."""
        raise NotImplementedError

    def _deliver_held(self, client: AnyClient) -> None:
        """Deliver what arrived before a pause, then read on; where this client's handlers are called."""
        raise NotImplementedError

    def _deliver_last(self, client: AnyClient) -> None:
        """Deliver what is held of a client whose connection has ended; in the server's thread."""

    # ---- turns ----

    def _flush(self) -> None:
        """Write what was queued, unless the server is going to do so when the running handler returns. Thread-safe."""
        # another thread, or a signal handler while the loop may be about to sleep
        if threading.get_ident() != self._busy:
            self._write()

    def _submit(self) -> None:
        """Write what was queued, unless there is nobody left to write to. Thread-safe."""
        if self.loop.closed:
            return
        try:
            self.loop.submit()
        except CoreError:
            if not self.loop.closed:  # by another thread, meanwhile
                raise

    _write = _submit
    """The same where nobody waits for it: another thread may be about to write it, too."""

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
        self._call_at = self._calls.next_at()
        self._set_alarm()
        return timeout_ms

    def _set_alarm(self) -> None:
        """End a wait when the earliest call is due, or up to a millisecond before."""
        at = self._call_at
        self.loop.alarm(0 if at is None else self.loop.now_ms() + max(ceil((at - monotonic()) * 1000), 1))

    def _other_event(self, slot: int, kind: int, start: int, length: int, read: Callable[[int], bytes]) -> None:
        name = _RARE_EVENTS.get(kind & 0xFF)
        if name is not None:
            getattr(self, name)(slot, start, length)
            return
        if kind & (core.EVENT_APART | core.EVENT_DETACHED):
            payload = self.loop.payload(kind, start, length)
        else:
            payload = read(length)
        client = self.clients._find(slot)
        if client is None:
            return
        kind &= ~(core.EVENT_APART | core.EVENT_DETACHED)
        self._event(client, kind, payload)

    # ---- calling handlers ----

    def _handle(self, client: AnyClient, kind: int, what: Any) -> None:
        """Call the handlers for what has happened to a client, if any are to be called now."""
        handler = _EVENT_HANDLERS.get(kind)
        if handler is not None:
            handler(self, client, what)
            return
        if kind == core.EVENT_CLOSE:
            self._peer_closes(client, what)
        if client._mode == HOLD:
            client._its_rare().held.append((kind, what, False))
        elif client._mode == DELIVER:
            self._deliver(client, kind, what)

    def _deliver(self, client: AnyClient, kind: int, payload: bytes, is_seen: bool = False) -> None:
        """Call the handlers for one message, or one frame, which onframe may have seen."""
        if isinstance(client, Extends) and not is_seen and (client._agreed.has_frames or kind & 0x0F > Opcode.PONG):
            frame = self._extend(client, client._received_frame, _frame(kind, payload))
            if frame is None:
                return
            kind, payload = _kind(frame), frame.payload
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
        elif kind & 0x0F < Opcode.CLOSE:
            self._deliver_data(client, kind, payload)

    def _deliver_data(self, client: AnyClient, kind: int, payload: bytes) -> None:
        first = kind & 0x0F | kind >> 8 & 0x70
        if kind & core.EVENT_NOT_FINAL or kind & 0x0F == Opcode.CONTINUATION:
            parts = client._its_rare().fragments
            parts.append(payload if parts else bytes([first]) + payload)
            if kind & core.EVENT_NOT_FINAL:
                return
            whole = b"".join(parts)
            parts.clear()
            first, payload = whole[0], whole[1:]
        message: Message | None
        if isinstance(client, Extends):
            message = self._extend(client, client._received_message, first, payload)
            if message is None or client._mode == DROP:  # onrecv may have aborted it
                return
        elif first == Opcode.TEXT:
            message = TextMessage(str(payload, "utf-8"))
        else:
            message = BinaryMessage(payload)
        self._deliver_message(client, message)

    def _extend(self, client: AnyClient, read: Callable[..., _T], *arguments: Any) -> _T | None:
        """Return what extensions make of something that has arrived; None if it ends the connection."""
        try:
            return read(*arguments)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, _not_read decides
            self._not_read(client, error)
        return None

    def _not_read(self, client: AnyClient, error: BaseException) -> None:
        """End a connection because of what an extension has raised about what arrived."""
        if isinstance(error, ProtocolError) and is_close_code(error.code):
            self._fail(client, error)
        else:
            self._handler_failed(client, error)

    def _fail(self, client: AnyClient, error: ProtocolError) -> None:
        """End a connection whose peer broke a rule of an extension (RFC 6455 §7.1.7): nothing behind that counts."""
        log.debug("%s: %s", client, error.message)
        rare = client._its_rare()
        rare.failure, rare.close_code = copy(error), None  # its traceback holds what was inflated, and the client
        client._mode = DROP
        if client._state is None:
            client._state = SocketClosed(initialized=True, message=error.message, sent=(error.code, ""))
        self._push(failure(client._handle, error.code))
        self._flush()

    def _deliver_message(self, client: AnyClient, message: Message) -> None:
        self._guarded(client, self.onmessage, client, message)

    def _opened(self, client: AnyClient, _: None) -> None:
        self._guarded(client, self.onopen, client)
        request = client._request
        client._request = client._keep(request.head) if self._keep_request and isinstance(request, Request) else None

    def _pinged(self, client: AnyClient, payload: bytes) -> None:
        if client._mode != DROP:
            self._guarded(client, self.onping, client, payload)

    def _sent(self, client: AnyClient, what: Message | Frame) -> None:
        if client._mode == DROP:
            return
        if isinstance(what, Frame):
            self._guarded(client, self.onping, client, what.payload)
        else:
            self._guarded(client, self.onsent, client, what)

    def _closed(self, client: AnyClient, outcome: tuple[int, str]) -> None:
        """Tell the application about the end: the peer's word if it said one, else what happened."""
        # who holds the client need not hold what is for nobody any more
        rare = client._its_rare()
        for gone in (rare.held, rare.sent, rare.fragments):
            gone.clear()
        code, reason = outcome if rare.close_code is None else (rare.close_code, rare.close_reason)
        if client._state is not None:
            client._state.code, client._state.reason = code, reason
        rare.is_over = True
        if self._journal.is_open:
            self._journal.tell(rare.peer, "%s %s", client, client.closure)
        try:
            self.onclose(client, code, reason)
        except BaseException as raised:  # noqa: BLE001 -- whatever it is, _handler_failed decides
            self._handler_failed(client, raised)

    # ---- failing handlers ----

    def _guarded(self, client: AnyClient | None, handler: Callable[..., object], *arguments: Any) -> None:
        try:
            handler(*arguments)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, _handler_failed decides
            self._handler_failed(client, error)

    def _handler_failed(self, client: AnyClient | None, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self._stop_for(error)
            return
        if client is not None and isinstance(error, SocketClosed) and client.closed:
            log.debug("a handler of %s has ended with its connection", client)
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
            self._read_to_the_end(client)

    def _read_to_the_end(self, client: AnyClient) -> None:
        """Read the peer's Close, of a paused client, too, and throw away what comes before it."""
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
        self._or_refuse(self._decide, handle, head)

    def _or_refuse(self, answer: Callable[..., object], handle: int, head: bytes, *arguments: Any) -> None:
        """Answer a request, or refuse it for what is raised meanwhile."""
        try:
            answer(handle, head, *arguments)
        except HandshakeError as error:
            self._refuse(handle, error, head)
        except BaseException as error:  # noqa: BLE001 -- whatever it is, _handler_failed decides
            self._handler_failed(None, error)
            self._refuse(handle, HandshakeError(500, "an exception was raised"), head)

    def _request(self, handle: int, head: bytes) -> Request:
        request = self.handshake.read(head)
        request.remote_address = self.loop.peer(handle)
        request.ssl_object = self._ssl_object(handle)
        return request

    def _decision(self, request: Request) -> Response | Acceptance:
        """Return the answer to a request; this is where the application is asked."""
        if self._policies:
            request.username = authenticate(self._policies, request, time())
        response = self.onrequest(request) if self._answers else None
        if response is None:
            return self.handshake.accept(request)
        if not isinstance(response, Response):
            raise TypeError(f"onrequest returns a Response or None, not {type(response).__name__}")
        return response

    def _settle(self, handle: int, request: Request, decision: Response | Acceptance) -> None:
        if isinstance(decision, Response):
            self._answer(handle, request, decision)
        else:
            self._accept(handle, request, decision)

    def _answer(self, handle: int, request: Request, response: Response) -> None:
        keep_alive = request.keep_alive and self._stopping is None
        head_only = request.method == "HEAD"
        encoded = response.encode(
            keep_alive=keep_alive, head_only=head_only, date=_http_date(int(time())), server=self._server_header
        )
        self._push(core.command(handle | core.RESPOND, (_KEEP_ALIVE if keep_alive else _LAST) + encoded))

    def _accept(self, handle: int, request: Request, accepted: Acceptance) -> None:
        if self._stopping is not None:
            raise HandshakeError(503, "the server is stopping")
        if len(self.clients) + len(self._opening) >= self._max_connections:
            self._hits["max_connections"] += 1
            raise HandshakeError(503, "there are max_connections already")
        agreed = accepted.extensions
        client: AnyClient
        if agreed is None:
            client = self._make_client(self, handle, request, accepted.subprotocol)
            response = acceptance(accepted.response, granularity=self._granularity, credit=self._credit)
        else:
            client = self._make_extended(self, handle, request, accepted.subprotocol, agreed)
            response = acceptance(
                accepted.response,
                granularity=core.FRAMES if agreed.has_frames else self._granularity,
                credit=self._credit,
                rsv=agreed.rsv,
                opcodes=agreed.opcodes,
            )
        self._opening[handle & core.SLOT] = client
        self._push(core.command(handle | core.ACCEPT, response))

    def _refuse(self, handle: int, error: HandshakeError, head: bytes = b"") -> None:
        date = _http_date(int(time()))
        try:
            response = self.handshake.refuse(error, head, date)
            peer = self.loop.peer(handle)
            self._journal.tell(
                peer, "refused %s from %s with %s: %s", _asked(head), peer_name(peer), error.status, error.message
            )
        except Exception:
            # the application may have made it, changed it, or raised a subclass that lacks what is needed
            log.exception("a HandshakeError can't be sent: answered with 500")
            response = self.handshake.refuse(HandshakeError(500, ""), head, date)
        answer = core.command(handle | core.RESPOND, _LAST + response)
        if isinstance(error, WrongCredentialsError) and error.delay and self._stopping is None:
            self._held_back[handle] = self._call(error.delay, self._answer_at_last, handle, answer)
        else:
            self._push(answer)

    def _answer_at_last(self, handle: int, answer: core.Command) -> None:
        del self._held_back[handle]
        self._push(answer)

    def _on_bad_head(self, slot: int, start: int, _: int) -> None:
        handle = self.loop.handle(slot)
        if start == core.OPEN_TIMEOUT_ERROR:
            self._on_undecided(handle)
            return
        status = HEAD_STATUSES[start]
        if start in core.LIMITS:
            self._hits[core.LIMITS[start]] += 1
        peer = self.loop.peer(handle)
        self._journal.tell(peer, "refused a request from %s with %s: %s", peer_name(peer), status, error_text(start))
        response = self.handshake.refuse_core(start, _http_date(int(time())))
        self._push(core.command(handle | core.RESPOND, _LAST + response))

    def _on_undecided(self, handle: int, head: bytes = b"") -> None:
        """Answer a request whose time is up: what is decided later is too late."""
        self._hits["open_timeout"] += 1
        answer = self._held_back.get(handle)
        if answer is not None:
            answer()
        else:
            self._refuse(handle, HandshakeError(503, error_text(core.OPEN_TIMEOUT_ERROR)), head)

    def _on_opened(self, slot: int, _start: int, _length: int) -> None:
        client = self._opening.pop(slot, None)
        if client is None:
            return
        self.clients._add(slot, client)
        self._event(client, core.EVENT_OPENED, None)

    # ---- what else happens to a connection ----

    def _on_pinged(self, slot: int, start: int, _: int) -> None:
        client = self.clients._find(slot)
        if client is not None:
            self._event(client, core.EVENT_PINGED, start.to_bytes(4, "big"))

    def _on_sent(self, slot: int, start: int, _: int) -> None:
        client = self.clients._find(slot)
        if client is None:
            return
        sent = client._its_rare().sent
        for _ in range(min(start, len(sent))):
            self._event(client, core.EVENT_SENT, sent.popitem(last=False)[1])

    def _peer_closes(self, client: AnyClient, payload: bytes) -> None:
        rare = client._its_rare()
        if rare.failure is not None:
            return
        rare.close_code = int.from_bytes(payload[:2], "big") if payload else CloseCode.NO_STATUS
        rare.close_reason = str(payload[2:], "utf-8")
        rcvd = (rare.close_code, rare.close_reason)
        state = client._state
        if state is None:
            client._state = SocketClosed(message="the peer has closed the connection", rcvd=rcvd)
        else:
            state.rcvd, (state.code, state.reason) = rcvd, rcvd

    def _on_closed(self, slot: int, start: int, error: int) -> None:
        if self._held_back and (answer := self._held_back.pop(self.loop.handle(slot), None)) is not None:
            answer.cancel()
        opening = self._opening.pop(slot, None)
        if opening is not None:
            self._journal.tell(opening.remote_address, "%s went away before its handshake was answered", opening)
            self._rares.pop(opening._key, None)
            self._exchanges.pop(opening._key, None)
        client = self.clients._find(slot)
        if client is None:
            return
        rare = client._its_rare()
        self._deliver_last(client)
        self.clients._remove(slot)
        self._rares.pop(client._key, None)
        self._exchanges.pop(client._key, None)
        rare.ending = self.loop.ending(client._handle, error)
        if rare.failure is not None and rare.ending.error == core.EXTENSION_ERROR:
            rare.limit = rare.failure.limit
        limit = rare.limit or core.LIMITS.get(rare.ending.error)
        if limit == "max_backlog":
            limit = rare.limit = self._backlog_limit
        if limit in self._hits:
            self._hits[limit] += 1
        rare.peer = self.loop.peer(client._handle)
        rare.ssl_object = self._ssl_object(client._handle)
        reason = "" if rare.close_code is not None else error_text(error & 0xFF, error >> 8)
        if rare.failure is not None and error & 0xFF == core.EXTENSION_ERROR:
            reason = rare.failure.message
        if limit == "write_limit" and reason:
            reason = _TOO_MUCH_UNSENT
        if client._state is None:
            client._state = SocketClosed(message=f"the connection is closed: {reason}")
        self._event(client, core.EVENT_CLOSED, (start, reason))

    def _on_idle(self, slot: int, _start: int, _length: int) -> None:
        client = self.clients._find(slot)
        if client is None or client._state is not None:
            return
        client._its_rare().limit = "idle_timeout"
        client.close(CloseCode.GOING_AWAY)

    def _on_accept_paused(self, _slot: int, start: int, _length: int) -> None:
        now = monotonic()
        if now - self._accept_warned >= 1:
            self._accept_warned = now
            log.warning("can't accept connections for now: %s", error_text(2, start))

    _accept_warned = float("-inf")


_TOO_MUCH_UNSENT: Final = "more unsent bytes than write_limit"

_LIMITS: Final = (
    "max_size",
    "max_fragments",
    "max_controls",
    "max_line",
    "max_header_line",
    "max_head",
    "max_headers",
    "max_connections",
    "max_backlog",
    "write_limit",
    "open_timeout",
    "close_timeout",
    "ping_timeout",
    "write_timeout",
    "idle_timeout",
)

_RARE_EVENTS: Final = {
    core.EVENT_HEAD: "_on_head",
    core.EVENT_BAD_HEAD: "_on_bad_head",
    core.EVENT_OPENED: "_on_opened",
    core.EVENT_SENT: "_on_sent",
    core.EVENT_CLOSED: "_on_closed",
    core.EVENT_PINGED: "_on_pinged",
    core.EVENT_ACCEPT_PAUSED: "_on_accept_paused",
    core.EVENT_DRAINED: "_on_drained",
    core.EVENT_IDLE: "_on_idle",
    core.EVENT_ENDING: "_on_ending",
}

_EVENT_HANDLERS: Final[dict[int, Callable[[BaseServer[Any], Any, Any], None]]] = {
    core.EVENT_OPENED: BaseServer._opened,
    core.EVENT_PINGED: BaseServer._pinged,
    core.EVENT_SENT: BaseServer._sent,
    core.EVENT_CLOSED: BaseServer._closed,
}


def _rare_of(client: AsyncClient, clients: Clients[Any], rares: dict[bytes, Rare]) -> Rare:
    rare = rares.setdefault(client._key, Rare())
    # the server's thread takes a client away first, and then this
    if client not in clients:
        rares.pop(client._key, None)
    return rare


class _Notes:
    """Where the core's notes go: to the messages and pings that a connection waits to see sent. Thread-safe."""

    def __init__(self, server: BaseServer[Any]) -> None:
        self._clients = server.clients
        self._rares = server._rares

    def __call__(self, handle: int, number: int, what: Message | Frame) -> None:
        client = self._clients._find(handle & core.SLOT)
        if client is None or client._handle != handle:
            return
        _rare_of(client, self._clients, self._rares).sent[number] = what


WritePolicy: TypeAlias = Literal["raise", "drop", "close"]


def _checked_policy(write_policy: WritePolicy, write_limit: int | None) -> WritePolicy:
    if write_policy not in ("raise", "drop", "close"):
        raise ValueError(f"write_policy is 'raise', 'drop' or 'close', or 'wait' of a Server, not {write_policy!r}")
    if write_policy != "raise" and write_limit is None:
        raise ValueError(f"write_policy={write_policy!r} says what happens beyond write_limit, which has to be given")
    return write_policy


def _check_handlers(server: BaseServer[Any], extra_headers: object) -> None:
    """Refuse handlers that would only make coroutines: nobody would run those."""
    for name in _HANDLERS:
        if is_async(getattr(server, name)):
            raise TypeError(
                f"{type(server).__name__}.{name} is async def, but handlers are plain functions{server._instead}. "
                "An asyncio API is planned"
            )
    if is_async(extra_headers):
        raise TypeError("extra_headers is async def, but it has to be a plain function")


def _secured_by(context: SSLContext) -> Callable[[Loop, Journal], Secured]:
    """Return what makes the TLS of a server with this context."""
    # the ssl module takes longer to import than all of wspy: only who needs it pays
    from .contexts import checked_server_context  # noqa: PLC0415
    from .secured import Secured  # noqa: PLC0415

    return partial(Secured, checked_server_context(context))


_servers: weakref.WeakSet[BaseServer[Any]] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """In the child of a fork, serve nothing: connections were let go of by loop.py, and here go the listeners."""
    for server in list(_servers):
        server._leave_to_the_parent()


os.register_at_fork(after_in_child=_leave_to_the_parent)


def _asked(head: bytes) -> str:
    """Return method and path of a request head for the log: escaped, cut, and without the query and its secrets."""
    line = head.lstrip(b"\r\n").partition(b"\r\n")[0].decode("latin-1")
    method, _, target = line.partition(" ")
    path = target.rpartition(" ")[0].partition("?")[0]
    return ascii(f"{method} {path}")[1:-1][:100]


def _frame(kind: int, payload: bytes) -> Frame:
    return received_frame(kind & 0x0F, payload, final=not kind & core.EVENT_NOT_FINAL, rsv=kind >> 8 & 0x70)


def _kind(frame: Frame) -> int:
    """Return the kind of event that a frame would be."""
    return frame.first_byte() & 0x0F | (frame.first_byte() & 0x70) << 8 | (not frame.final) * core.EVENT_NOT_FINAL


# Never by strftime, whose names are those of a locale.
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@lru_cache(maxsize=1)
def _http_date(seconds: int) -> str:
    """Return a time since the epoch as ``Date`` has it: an IMF-fixdate, RFC 9110 §5.6.7."""
    at = gmtime(seconds)
    day = f"{_DAYS[at.tm_wday]}, {at.tm_mday:02} {_MONTHS[at.tm_mon - 1]} {at.tm_year}"
    return f"{day} {at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"


def _descriptor_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - SPARE_DESCRIPTORS, soft // 2, 1)
