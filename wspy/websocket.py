"""A socket that speaks frames: ``websocket``, blocking or driven by somebody else's event loop."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from collections import deque
from copy import copy
from threading import TIMEOUT_MAX, Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Self

from .client_handshake import ClientHandshake
from .codes import CloseCode, Opcode, Role
from .connecting import MAX_REDIRECTS, connect_tcp, is_connected, redirected, without_credentials
from .deadline import Deadline
from .errors import HandshakeError, ProtocolError, ResponseError, SocketClosed
from .frames import Frame, contains_frame, pop_frame, received_frame, split_close
from .handshake import Fields, ServerHandshake
from .headers import Headers
from .heads import HeadReader
from .protocol import Protocol
from .uri import URI, parse_uri
from .version import __version__

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterable

    from .http11 import Request
    from .messages import Sendable

__all__ = ["websocket"]

log = logging.getLogger("wspy.websocket")

# Bytes in one read; more is asked for once so much was there.
_READ: Final = 16_384
_LARGE_READ: Final = 262_144
# Answers to pings that wait for the kernel.
_MAX_REPLIES: Final = 64
_ENDED: Final = "the peer has ended the connection without a Close frame"


class _Unsent(NamedTuple):
    """What the kernel has not taken yet, and whom to tell when it has."""

    data: bytes | memoryview
    callback: Callable[[], object] | None


class websocket:
    """A socket that sends and receives frames.

    Like a socket it listens and accepts, or connects; the opening handshake is part of both. Afterwards either end
    sends and receives single ``Frame`` objects: nothing is answered or put together by itself, which is what
    ``Connection`` does. What arrives was checked by the rules of RFC 6455 §5, and so is what is sent.

    One thread may receive while others send. Calls last no longer than the socket's timeout says, which holds for a
    call as a whole; a call that was cut short by it has lost nothing. On a non-blocking socket, or beside other ones
    in an event loop, use ``queue_send``, ``do_async_send`` and ``do_async_recv``.

    Args:
        sock: a stream socket to wrap; None for a new one. It may listen, or be connected already: ``connect`` and
            ``do_handshake`` make a WebSocket of it then.
        origin: the value of ``Origin`` that a client sends, or None.
        protocols: the subprotocols that this end speaks, a client's preferred one first.
        location: the path, with a query, that a client asks for if ``connect`` isn't given a URI.
        trusted_origins: the origins of pages that a server lets in; see ``AsyncServer``.
        locations: the paths that a server serves; empty for all.
        extra_headers: header fields of a client's request, or of a server's 101.
        recv_callback: called by ``do_async_recv`` with each frame; None to keep them for ``recv``.
        sfamily: of a new socket: ``AF_INET``, ``AF_INET6`` or ``AF_UNIX``.
        sproto: of a new socket.
        strict: fail if the peer breaks a rule. False shows the frames as they are, ``frame.unchecked`` being True for
            those that break one by themselves.
        max_size: of a message over all its frames, in bytes; None for no limit. Over it 1009.
        max_fragments: frames of a message; None for no limit. Over it 1008.
        open_timeout: seconds for the opening handshake, with the TCP connection of a client; None for ever.

    Attributes:
        sock: the wrapped socket.
        protocol: the subprotocol that was agreed upon, or None.
        request: a server's: the ``Request`` that it accepted. None before, and for a client.
        request_headers: of that request; None without one.
        response_headers: a client's: the header fields of the 101. None before, and for a server.
        location: the path with the query that was asked for.
        handshake_sent: whether the opening handshake is complete.
        secure: whether this is over TLS.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range.
    """

    def __init__(  # noqa: PLR0913 -- each is a policy of its own, by name
        self,
        sock: socket.socket | None = None,
        *,
        origin: str | None = None,
        protocols: Iterable[str] = (),
        location: str = "/",
        trusted_origins: Iterable[str | re.Pattern[str] | None] = (),
        locations: Iterable[str] = (),
        extra_headers: Fields = (),
        recv_callback: Callable[[Frame], object] | None = None,
        sfamily: int = socket.AF_INET,
        sproto: int = 0,
        strict: bool = True,
        max_size: int | None = 1 << 20,
        max_fragments: int | None = 131_072,
        open_timeout: float | None = 10.0,
    ) -> None:
        self.origin = origin
        self.protocols = list(protocols)
        self.location = location
        self.trusted_origins = trusted_origins
        self.locations = locations
        self.extra_headers = Headers(extra_headers)
        self.recv_callback = recv_callback
        self.strict = strict
        self.max_size = max_size
        self.max_fragments = max_fragments
        self.open_timeout = open_timeout
        self.secure = False
        self.protocol: str | None = None
        self.request: Request | None = None
        self.response_headers: Headers | None = None
        self._handshake = ServerHandshake(
            protocols=self.protocols,
            trusted_origins=trusted_origins,
            locations=locations,
            extra_headers=self.extra_headers,
            server_header=f"wspy/{__version__}",
        )
        self._head: HeadReader | None = None  # of a server's handshake under way
        self._protocol: Protocol | None = None
        # both for a moment only, never while the kernel makes somebody wait
        self._speaking = Lock()  # the protocol, and the end of _unsent
        self._writing = Lock()  # the front of _unsent: whoever holds it writes for all
        self._unsent: deque[_Unsent] = deque()
        self._received: deque[Frame] = deque()
        self._kept = b""  # of an incomplete frame, if nothing is checked
        self._failure: Exception | None = None
        self._read_size = _READ
        self._owns_sock = sock is None
        self.sock = socket.socket(sfamily, socket.SOCK_STREAM, sproto) if sock is None else sock

    # ---- the wrapped socket ----

    @property
    def family(self) -> int:
        """The address family of the socket."""
        return self.sock.family

    @property
    def type(self) -> int:
        """The type of the socket, which is ``SOCK_STREAM``."""
        return self.sock.type

    @property
    def proto(self) -> int:
        """The protocol number of the socket."""
        return self.sock.proto

    def bind(self, address: Any) -> None:
        """Bind the socket to a local address, see ``socket.bind``."""
        self.sock.bind(address)

    def listen(self, backlog: int = 128) -> None:
        """Let clients connect, see ``socket.listen``."""
        self.sock.listen(backlog)

    def fileno(self) -> int:
        """Return the descriptor of the socket, -1 once it is closed."""
        return self.sock.fileno()

    def getpeername(self) -> Any:
        """Return the address of the peer."""
        return self.sock.getpeername()

    def getsockname(self) -> Any:
        """Return the own address."""
        return self.sock.getsockname()

    def getsockopt(self, level: int, option: int, length: int = 0) -> int | bytes:
        """Return an option of the socket, see ``socket.getsockopt``."""
        return self.sock.getsockopt(level, option, length) if length else self.sock.getsockopt(level, option)

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """Set an option of the socket, see ``socket.setsockopt``."""
        self.sock.setsockopt(level, option, value)

    def setblocking(self, flag: bool) -> None:
        """Make calls wait, or not, see ``socket.setblocking``."""
        self.sock.setblocking(flag)

    def settimeout(self, seconds: float | None) -> None:
        """Let calls wait for so many seconds, see ``socket.settimeout``."""
        self.sock.settimeout(seconds)

    def gettimeout(self) -> float | None:
        """Return the timeout in seconds; None for ever."""
        return self.sock.gettimeout()

    def shutdown(self, how: int) -> None:
        """End one direction of TCP or both, see ``socket.shutdown``."""
        self.sock.shutdown(how)

    def close(self) -> None:
        """Close the socket, without a closing handshake: send a Close frame before, or use ``Connection``."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- opening as a server ----

    def accept(self) -> tuple[Self, Any]:
        """Accept a client, and return its ``websocket`` after the opening handshake, and its address.

        Who isn't let in, or isn't done within ``open_timeout``, gets an answer, and the next client is waited for: the
        log tells. So a silent client holds the others for that long; a ``Server`` doesn't let it. If this socket is
        non-blocking, so is the one that is returned, and its handshake is left to ``do_async_recv``.

        Raises:
            BlockingIOError: the socket is non-blocking, and nobody has connected.
            TimeoutError: nobody came within the socket's timeout.
            OSError: see ``socket.accept``.
        """
        timeout = self.sock.gettimeout()
        deadline = Deadline(timeout)
        while True:
            sock, address = self.sock.accept()
            client = self._serving(sock)
            if timeout == 0:
                sock.settimeout(0)
                return client, address
            try:
                client._open_as_server(deadline.earlier(self.open_timeout))  # noqa: SLF001 -- of this class
            except (HandshakeError, OSError) as error:
                log.info("refused a client at %r: %s", address, error)
                client.close()
            except BaseException:
                client.close()
                raise
            else:
                return client, address
            deadline.wait(self.sock, select.POLLIN)

    def _serving(self, sock: socket.socket) -> Self:
        """Return a new one of this kind for a client; what a subclass adds to ``__init__`` needs defaults."""
        client = self.__class__(
            sock,
            origin=self.origin,
            protocols=self.protocols,
            location=self.location,
            trusted_origins=self.trusted_origins,
            locations=self.locations,
            extra_headers=self.extra_headers,
            recv_callback=self.recv_callback,
            strict=self.strict,
            max_size=self.max_size,
            max_fragments=self.max_fragments,
            open_timeout=self.open_timeout,
        )
        client._head = HeadReader()  # noqa: SLF001 -- of this class
        return client

    def do_handshake(self) -> None:
        """Answer the opening handshake of a client on a socket that was accepted elsewhere.

        Raises:
            HandshakeError: the client isn't let in; it was told why. Close the socket.
            SocketClosed: the client went away.
            TimeoutError: it took longer than ``open_timeout``, or than the socket's timeout.
        """
        self._head = HeadReader()
        self._open_as_server(Deadline(self.sock.gettimeout()).earlier(self.open_timeout))

    def _open_as_server(self, deadline: Deadline) -> None:
        try:
            while self._head is not None:
                deadline.wait(self.sock, select.POLLIN)
                self._take_head(self._some(_READ))
        except TimeoutError:
            if self._head is not None and self._head.has_line:
                self._refuse(HandshakeError(408, "the request head was not complete in open_timeout"), b"")
            raise
        finally:
            with contextlib.suppress(OSError):
                self._flush(deadline)

    def _take_head(self, data: bytes) -> None:
        """Go on with the handshake of a server, whose answer is queued once the head is complete."""
        reader = self._head
        if reader is None:
            return
        if not data:
            self._lost("the client has ended the connection before its request was complete")
        head = b""
        try:
            found = reader.feed(data)
            if found is None:
                return
            head = found
            request = self._handshake.read(head)
            request.remote_address = self.sock.getpeername()
            accepted = self._handshake.accept(request)
        except HandshakeError as error:
            self._refuse(error, head)
            raise
        self._head = None
        self.request, self.protocol, self.location = request, accepted.subprotocol, request.path
        self._unsent.append(_Unsent(accepted.response, None))
        self._open(Role.SERVER, reader.rest)

    def _refuse(self, error: HandshakeError, head: bytes) -> None:
        self._head = None
        self._failure = error
        self._unsent.append(_Unsent(self._handshake.refuse(error, head), None))

    @property
    def request_headers(self) -> Headers | None:
        """The header fields of the request that a server accepted."""
        return None if self.request is None else self.request.headers

    # ---- opening as a client ----

    def connect(self, address: tuple[str, int] | str) -> None:
        """Connect to a server, with the opening handshake, within ``open_timeout`` and the socket's timeout.

        Redirects are followed, at most 10 of them, with new sockets; to another origin without credentials. A socket
        that was passed in can't be exchanged, so there they are errors like every other status.

        Args:
            address: ``"ws://host:port/path?query"``; or (host, port), "" for this machine, and then ``location`` is
                asked for; or the path of a Unix socket. A socket that is connected already is used as it is.

        Raises:
            ResponseError: the server's answer is another one than 101, or a wrong one: with status, headers and body.
            SocketClosed: the server has reset the connection.
            TimeoutError: it took too long.
            OSError: there is no connection.
            ValueError: the URI is wrong, or the socket non-blocking: set it so afterwards.
        """
        timeout = self.sock.gettimeout()
        if timeout == 0:
            raise ValueError("connect needs a socket that may wait: call setblocking(False) afterwards")
        deadline = Deadline(timeout).earlier(self.open_timeout)
        uri, headers = self._uri(address), self.extra_headers
        path = address if isinstance(address, str) and self.sock.family == socket.AF_UNIX else None
        for _ in range(MAX_REDIRECTS + 1):
            try:
                self._connect_tcp(uri, path, deadline)
                self._open_as_client(uri, headers, deadline)
                self.sock.settimeout(timeout)
            except ResponseError as error:
                self.sock.close()
                if not self._owns_sock or path is not None:
                    raise
                other = redirected(uri, error)
                _check_plain(other)
                if other.origin_key != uri.origin_key:
                    headers = without_credentials(headers)
                uri = other
            except BaseException:
                self.sock.close()
                raise
            else:
                return
        raise ResponseError(f"the server redirects more than {MAX_REDIRECTS} times")

    def _uri(self, address: tuple[str, int] | str) -> URI:
        if not isinstance(address, str):
            host, port = address[:2]
            return URI(secure=False, host=host or "localhost", port=port, resource=self.location)
        if self.sock.family == socket.AF_UNIX and "://" not in address:
            return URI(secure=False, host="localhost", port=80, resource=self.location)
        uri = parse_uri(address)
        _check_plain(uri)
        return uri

    def _connect_tcp(self, uri: URI, path: str | None, deadline: Deadline) -> None:
        if is_connected(self.sock):
            return
        if path is None:
            self.sock = connect_tcp(self.sock, uri, deadline, is_replaceable=self._owns_sock)
            return
        self.sock.settimeout(deadline.remaining)
        self.sock.connect(path)

    def _open_as_client(self, uri: URI, headers: Headers, deadline: Deadline) -> None:
        handshake = ClientHandshake(uri, origin=self.origin, protocols=self.protocols, extra_headers=headers)
        self._unsent.append(_Unsent(handshake.request, None))
        self._flush(deadline)
        while True:
            try:
                deadline.wait(self.sock, select.POLLIN)
            except TimeoutError:
                if handshake.awaits_body:
                    handshake.feed_eof()
                raise
            data = self._some(_READ)
            if not data:
                handshake.feed_eof()
            if handshake.feed(data):
                break
        self.response_headers = handshake.response.headers if handshake.response else None
        self.protocol, self.location = handshake.subprotocol, uri.resource
        self._open(Role.CLIENT, handshake.rest)

    # ---- after the handshake ----

    def _open(self, role: Role, data: bytes) -> None:
        self._protocol = Protocol(role, frames=True, max_size=self.max_size, max_fragments=self.max_fragments)
        if data:
            self._take(data)

    @property
    def handshake_sent(self) -> bool:
        """Whether the opening handshake is complete."""
        return self._protocol is not None

    def _opened(self) -> Protocol:
        if self._protocol is None:
            raise SocketClosed(message="there was no opening handshake yet: connect, accept or do_handshake first")
        return self._protocol

    def _is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._failure is not None or self._protocol is None or self._protocol.close_sent

    # ---- sending ----

    def send(self, *frames: Frame) -> None:
        """Send frames, and return when the kernel has them. Thread-safe: frames of one call stay together.

        A client masks them, each with a new key, unless they say otherwise. After a timeout what is left of them leaves
        with the next call.

        Raises:
            SocketClosed: a Close was sent, which nothing may follow (RFC 6455 §5.5.1), or the connection is lost.
            TimeoutError: the kernel didn't take them within the socket's timeout, or at once if that is 0.
            TypeError: this is no frame.
            ValueError: a frame breaks a rule, and none of them was sent; see ``Frame.unchecked``.
        """
        self._queue(frames, None)
        self._flush(Deadline(self.sock.gettimeout()))

    def queue_send(
        self,
        frame: Frame,
        callback: Callable[[], object] | None = None,
        recv_callback: Callable[[Frame], object] | None = None,
    ) -> None:
        """Queue a frame for ``do_async_send``. Thread-safe.

        Args:
            frame: the frame, which may be changed afterwards.
            callback: called without arguments when the kernel has the whole frame.
            recv_callback: becomes ``self.recv_callback``.

        Raises:
            SocketClosed: see ``send``.
            TypeError: see ``send``.
            ValueError: see ``send``.
        """
        if recv_callback is not None:
            self.recv_callback = recv_callback
        self._queue((frame,), callback)

    def _queue(self, frames: tuple[Frame, ...], callback: Callable[[], object] | None) -> None:
        for frame in frames:
            if not isinstance(frame, Frame):
                raise TypeError(
                    f"a websocket sends Frame objects, not {type(frame).__name__}: Connection sends messages"
                )
        protocol = self._opened()
        with self._speaking:
            self._unsent.append(_Unsent(protocol.frames(*frames), callback))

    def _send_before(self, deadline: Deadline, *frames: Frame) -> None:
        self._queue(frames, None)
        self._flush(deadline)

    def _send_message(self, message: Sendable, fragment_size: int | None) -> None:
        protocol = self._opened()
        with self._speaking:
            self._unsent.append(_Unsent(protocol.message(message, fragment_size), None))
        self._flush(Deadline(self.sock.gettimeout()))

    def _reply(self, frame: Frame) -> None:
        """Queue an answer, for who receives must not wait for a peer that doesn't; a few such answers, then it must."""
        self._queue((frame,), None)
        if len(self._unsent) > _MAX_REPLIES:
            self._flush(Deadline(self.sock.gettimeout()))
        else:
            self.do_async_send()

    def _flush(self, deadline: Deadline) -> None:
        """Write what is queued. Whoever writes does so for all who come meanwhile, who wait until it is done."""
        while self._unsent:
            remaining = deadline.remaining
            if not self._writing.acquire(timeout=-1 if remaining is None else min(remaining, TIMEOUT_MAX)):
                raise TimeoutError("timed out")
            written: list[_Unsent] = []
            try:
                while self._write(written):
                    deadline.wait(self.sock, select.POLLOUT)
            finally:
                self._writing.release()
                _tell(written)

    def do_async_send(self) -> None:
        """Write of what is queued as much as the kernel takes now; for when the socket is writable. Thread-safe.

        Raises:
            SocketClosed: the connection is lost.
        """
        if not self._writing.acquire(blocking=False):
            return  # another thread writes, and for this one as well
        written: list[_Unsent] = []
        try:
            self._write(written)
        finally:
            self._writing.release()
            _tell(written)

    def _write(self, written: list[_Unsent]) -> bool:
        """Write of what is queued as much as the kernel takes now; return whether there is more."""
        unsent = self._unsent
        while unsent:
            data, callback = unsent[0]
            try:
                size = self.sock.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            except OSError as error:
                self._lost("the connection is lost", error)
            if size < len(data):
                unsent[0] = _Unsent(memoryview(data)[size:], callback)
                return True
            written.append(unsent.popleft())
        return False

    def can_send(self) -> bool:
        """Whether something is queued: whether to watch for the socket to become writable."""
        return bool(self._unsent)

    # ---- receiving ----

    def recv(self) -> Frame:
        """Receive a frame: a ``ControlFrame`` if it is one. Nothing is answered, not even a Ping or a Close.

        Raises:
            SocketClosed: the connection has ended: by a Close, which was received before this, or without one.
            ProtocolError: the peer broke a rule, and was sent a Close that says so (RFC 6455 §7.1.7).
            TimeoutError: there was no whole frame within the socket's timeout; what has arrived of it is kept.
            BlockingIOError: the socket is non-blocking, and there is no whole frame.
        """
        if not self._received:
            self._receive(Deadline(self.sock.gettimeout()))
        return self._received.popleft()

    def _recv_before(self, deadline: Deadline) -> Frame:
        if not self._received:
            self._receive(deadline, is_first=False)
        return self._received.popleft()

    def recvn(self, n: int) -> list[Frame]:
        """Receive so many frames, and return them together; see ``recv``.

        Raises:
            SocketClosed: see ``recv``; this and what follows loses no frame: the next ``recv`` has the first of them.
            ProtocolError: see ``recv``.
            TimeoutError: see ``recv``.
            BlockingIOError: see ``recv``.
        """
        deadline = Deadline(self.sock.gettimeout())
        is_first = True
        while len(self._received) < n:
            self._receive(deadline, is_first=is_first)
            is_first = False
        return [self._received.popleft() for _ in range(n)]

    def _receive(self, deadline: Deadline, *, is_first: bool = True) -> None:
        """Receive until there is one more frame."""
        self._opened()
        count = len(self._received)
        while len(self._received) == count:
            if self._failure is not None:
                raise copy(self._failure)
            if self._unsent or not is_first:
                self._await_input(deadline)
            is_first = False
            self._take(self._some(self._read_size))

    def _await_input(self, deadline: Deadline) -> None:
        """Wait for something to read, and write meanwhile what is left of answers and of calls that have timed out."""
        while self._unsent and not self._writing.locked():
            self.do_async_send()
            if self._unsent and deadline.wait(self.sock, select.POLLIN | select.POLLOUT) & ~select.POLLOUT:
                return
        deadline.wait(self.sock, select.POLLIN)

    def _await_eof(self, deadline: Deadline) -> None:
        """Read and forget, until the peer ends TCP.

        Raises:
            SocketClosed: it was reset.
            TimeoutError: the time is up.
        """
        while True:
            deadline.wait(self.sock, select.POLLIN)
            if not self._some(_READ):
                return

    def do_async_recv(self, bufsize: int = _READ) -> None:
        """Read once, and hand frames to ``recv_callback``; for when the socket is readable.

        Goes on with the opening handshake of a server, too, whose answer ``do_async_send`` sends.

        Args:
            bufsize: bytes to read at most.

        Raises:
            HandshakeError: the client isn't let in; call ``do_async_send`` until ``can_send`` is False, then ``close``.
            SocketClosed: see ``recv``.
            ProtocolError: see ``recv``; the Close that says so is queued.
        """
        try:
            data = self.sock.recv(bufsize, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError as error:
            self._lost("the connection is lost", error)
        if self._head is not None:
            self._take_head(data)
        else:
            self._opened()
            self._take(data)
        while self._received and self.recv_callback is not None:
            self.recv_callback(self._received.popleft())
        if self._failure is not None and not self._received:
            raise copy(self._failure)

    def can_recv(self) -> bool:
        """Whether somebody wants frames: whether to watch for the socket to become readable."""
        return self.recv_callback is not None or self._head is not None

    def _some(self, size: int) -> bytes:
        try:
            data = self.sock.recv(size)
        except (TimeoutError, BlockingIOError):
            raise
        except OSError as error:  # also that another thread has closed the socket
            self._lost("the connection is lost", error)
        if len(data) == size:
            self._read_size = _LARGE_READ
        elif len(data) < _READ:
            self._read_size = _READ
        return data

    def _take(self, data: bytes) -> None:
        """Take bytes from the peer, none at the end, and make frames of them."""
        protocol = self._opened()
        if not data:
            self._failure = self._failure or SocketClosed(message=_ENDED)
            return
        if not self.strict:
            self._take_unchecked(data)
            return
        with self._speaking:
            events = protocol.feed(data)
            error = protocol.error
            if error is not None:
                self._unsent.append(_Unsent(protocol.owed_close(), None))
            if any(event.opcode == Opcode.PING for event in events):
                protocol.replies()  # whoever receives it answers it
        for opcode, payload, final, rsv in events:
            self._received.append(received_frame(opcode, payload, final=final, rsv=rsv))
            if opcode == Opcode.CLOSE:
                self._failure = self._closed_by_peer(payload)
        if error is not None and self._failure is None:
            self._fail(error)

    def _take_unchecked(self, data: bytes) -> None:
        data = self._kept + data
        try:
            while contains_frame(data):
                frame, data = pop_frame(data, strict=False)
                self._received.append(frame)
        except ProtocolError as error:
            self._failure = error
        if self.max_size is not None and len(data) > self.max_size + 14:
            self._failure = ProtocolError(CloseCode.MESSAGE_TOO_BIG, "a frame is longer than max_size")
        self._kept = data

    def _fail(self, error: ProtocolError) -> None:
        """Fail the connection, RFC 6455 §7.1.7: its Close is queued, and sent if the kernel takes it now."""
        self._failure = error
        with contextlib.suppress(OSError):
            self.do_async_send()

    def _closed_by_peer(self, payload: bytes) -> SocketClosed:
        began = self._opened().close_sent
        message = "the peer has answered the Close" if began else "the peer has closed the connection"
        return SocketClosed(began, message, rcvd=split_close(payload))

    def _lost(self, message: str, cause: OSError | None = None) -> NoReturn:
        self._failure = SocketClosed(message=message if cause is None else f"{message}: {cause.strerror}")
        raise copy(self._failure) from cause

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.sock!r}>"


def _check_plain(uri: URI) -> None:
    if uri.secure:
        raise ValueError("wss needs TLS, which is not there yet")
    if uri.username is not None:
        raise ValueError("credentials in a URI are not supported yet: pass Authorization in extra_headers")


def _tell(written: list[_Unsent]) -> None:
    """Call the callbacks of what was written, when others may write again."""
    for _, callback in written:
        if callback is not None:
            callback()
