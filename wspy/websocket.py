"""A socket that speaks frames: ``websocket``, blocking or driven by somebody else's event loop."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from collections import deque
from copy import copy
from functools import partial
from threading import get_ident
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeVar

from .attempts import Attempts
from .client_auth import ClientAuth
from .client_handshake import ClientHandshake
from .closure import how_it_ends
from .codes import CloseCode, Opcode, Role
from .connecting import connect_tcp, connect_unix, is_connected
from .deadline import Deadline
from .errors import HandshakeError, ProtocolError, ResponseError, SocketClosed, SSLError
from .exclusive import Exclusive
from .extending import Extending
from .extensions import checked_extensions
from .frames import Frame, is_close_code, received_frame, split_close
from .handshake import Fields, ServerHandshake
from .headers import Headers
from .heads import HeadReader
from .lenient import LenientReader
from .limits import NO_COUNT_LIMIT, NO_SIZE_LIMIT, Sizes, both_sizes, checked_limit, checked_seconds
from .outbox import Unsent
from .protocol import Event, Protocol
from .reception import LINGER_SECONDS, Accepted, Reception
from .server_auth import WrongCredentialsError, authenticate, checked_policies
from .transport import READ, Transport
from .uri import URI, parse_uri
from .version import __version__

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterable
    from ssl import SSLContext

    from .closure import Closure
    from .extensions import Agreement, Extension
    from .handshake import Acceptance
    from .http11 import Request
    from .messages import Sendable
    from .server_auth import Auth, Policies
    from .tls import TLS

__all__ = ["websocket"]

_T = TypeVar("_T")

log = logging.getLogger("wspy.websocket")

_MAX_REASON: Final = 123
_NOTHING: Final = Unsent(b"")
_NOT_UNDERSTOOD: Final = "an extension has failed: what follows can't be understood"


class websocket(Transport):
    """A socket that sends and receives frames.

    Like a socket it listens and accepts, or connects; the opening handshake is part of both. Afterwards either end
    sends and receives single ``Frame`` objects: nothing is answered or put together by itself, which is what
    ``Connection`` does. What arrives was checked by the rules of RFC 6455 §5, and so is what is sent.

    Any thread may call any method, ``close`` too. One at a time receives, while others send. Calls last no longer than
    ``settimeout`` says, which holds for a call as a whole; a call that was cut short by it has lost nothing. On a
    non-blocking socket, or beside other ones in an event loop, use ``queue_send``, ``do_async_send`` and
    ``do_async_recv``. It can't be copied or pickled.

    Args:
        sock: a stream socket to wrap; None for a new one. It may listen, or be connected already: ``connect`` and
            ``do_handshake`` make a WebSocket of it then. Its timeout becomes that of this object, and it is made
            non-blocking itself.
        origin: the value of ``Origin`` that a client sends, or None.
        protocols: the subprotocols that this end speaks, a client's preferred one first.
        extensions: what this end speaks, as ``Extension`` objects or classes, a client's preferred one first. Those
            that transform single frames do so in ``send`` and ``recv``; those that transform messages do so in a
            ``Connection``, or where ``apply_send_hooks`` and ``apply_recv_hooks`` are called. None does anything with
            ``strict=False``.
        location: the path, with a query, that a client asks for if ``connect`` isn't given a URI.
        trusted_origins: the origins of pages that a server lets in; empty for all. See ``AsyncServer``.
        locations: the paths that a server serves, without a query; empty for all.
        auth: a client's (user name, password) pair, for when the server asks, see ``connect``. A server's: who is let
            in, see ``AsyncServer``; ``request.username`` says who it is. Its function is called by ``accept``, where
            others wait meanwhile.
        ssl: an ``ssl.SSLContext``: a server's, with its certificate, to serve by TLS alone; a client's, for ``wss``
            URIs, and for addresses that are no URI. None: a client trusts for ``wss`` whom the system trusts.
            Renegotiation is switched off in it.
        extra_headers: header fields of a client's request, or of a server's 101.
        recv_callback: called by ``do_async_recv`` with each frame; None to keep them for ``recv``.
        sfamily: of a new socket: ``AF_INET``, ``AF_INET6`` or ``AF_UNIX``.
        sproto: of a new socket.
        strict: fail if the peer breaks a rule. False shows the frames as they are, ``frame.unchecked`` being True for
            those that break one by themselves, whatever an extension might allow.
        max_size: of a message over all its frames, in bytes; None for no limit. Or a pair: of a message, and of each
            of its frames as they arrive. Over it 1009. With ``strict=False`` of
            each frame.
        max_fragments: frames of a message; None for no limit. Over it 1008.
        open_timeout: seconds for the opening handshake, with the TCP connection of a client; None for ever.

    Attributes:
        origin, protocols, extensions, trusted_origins, locations, auth, ssl, extra_headers, strict, max_size,
            max_fragments, open_timeout: as given. What is changed counts for the opening handshakes that begin later.
        recv_callback: as given; may be changed at any time.
        protocol: the subprotocol that was agreed upon, or None.
        extension_instances: the extensions that were agreed upon, in the order in which they transform what is sent.
        request: a server's: the ``Request`` that it accepted. None before, and for a client.
        request_headers: of that request; None without one.
        response_headers: a client's: the header fields of the 101. None before, and for a server.
        location: the path with the query that was asked for.
        handshake_sent: whether the opening handshake is complete.
        closure: how the connection ended, as a ``Closure``; None before ``close``, and without an opening handshake.
            What the peer says in a Close frame isn't looked at with ``strict=False``.
        secure: whether this is over TLS.
        ssl_object: the ``ssl.SSLObject`` of that, which tells of certificates and ciphers; None without.

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
        extensions: Iterable[Extension | type[Extension]] = (),
        location: str = "/",
        trusted_origins: Iterable[str | re.Pattern[str] | None] = (),
        locations: Iterable[str] = (),
        auth: Policies | None = None,
        ssl: SSLContext | None = None,
        extra_headers: Fields = (),
        recv_callback: Callable[[Frame], object] | None = None,
        sfamily: int = socket.AF_INET,
        sproto: int = 0,
        strict: bool = True,
        max_size: Sizes = 1 << 20,
        max_fragments: int | None = 131_072,
        open_timeout: float | None = 10.0,
    ) -> None:
        self.origin = origin
        self.protocols = list(protocols) if not isinstance(protocols, str) else protocols
        self.extensions = checked_extensions(extensions)
        self.location = location
        self.trusted_origins = trusted_origins if isinstance(trusted_origins, str) else tuple(trusted_origins)
        self.locations = locations if isinstance(locations, str) else tuple(locations)
        self.auth = auth
        self.ssl = ssl
        self.extra_headers = Headers(extra_headers)
        self.recv_callback = recv_callback
        self.strict = strict
        self.max_size = max_size
        self.max_fragments = max_fragments
        self.open_timeout = checked_seconds("open_timeout", open_timeout)
        self.protocol: str | None = None
        self.request: Request | None = None
        self.response_headers: Headers | None = None
        self.extension_instances: list[Extension.Instance] = []
        for size in both_sizes(max_size):
            checked_limit("max_size", size, 0, NO_SIZE_LIMIT)
        checked_limit("max_fragments", max_fragments, 0, NO_COUNT_LIMIT)
        self._handshake = self._server_handshake()
        self._head: HeadReader | None = None  # of a server's handshake under way
        self._protocol: Protocol | None = None
        self._lenient: LenientReader | None = None
        self._extending: Extending | None = None
        self._sender = 0  # the thread that is making what it is about to queue, or tells extensions something
        self._delayed: deque[Callable[[], object]] = deque()  # what it, or its signal handler, wants to send meanwhile
        self._receiving = Exclusive("recv")
        self._accepting = Exclusive("accept")
        self._reception: Reception[Any] | None = None
        self._received: deque[Event | Frame] = deque()  # Frames are made of events when somebody takes them
        self._is_reading = False  # from reading bytes until their frames are in _received
        self._owns_sock = sock is None
        if sock is None:
            sock = socket.socket(sfamily, socket.SOCK_STREAM, sproto)
        elif not isinstance(sock, socket.socket):
            raise TypeError(f"a websocket wraps a socket, not {type(sock).__name__}: connect takes an address")
        elif sock.type != socket.SOCK_STREAM:
            raise ValueError("a websocket needs a stream socket")
        super().__init__(sock)

    def _server_handshake(self) -> ServerHandshake:
        return ServerHandshake(
            protocols=self.protocols,
            extensions=self.extensions,
            trusted_origins=self.trusted_origins,
            locations=self.locations,
            extra_headers=self.extra_headers,
            server_header=f"wspy/{__version__}",
        )

    @property
    def auth(self) -> Policies | None:
        """A client's user name and password, or who is let in by a server; as given."""
        return self._auth

    @auth.setter
    def auth(self, auth: Policies | None) -> None:
        self._pair = _pair(auth)
        self._policies: tuple[Auth, ...] | None = None if self._pair else checked_policies(auth)
        self._auth = auth

    def _its_policies(self) -> tuple[Auth, ...]:
        """Return who is let in: made once, since they remember what was used."""
        if self._policies is None:
            self._policies = checked_policies(self._pair)
        return self._policies

    # ---- TLS ----

    def enable_ssl(
        self, keyfile: str | None = None, certfile: str | None = None, *, ca_certs: str | None = None
    ) -> None:
        """Use TLS: make an ``ssl`` of files, as ``ssl.wrap_socket`` did. Who connects is a client, and else a server.

        Args:
            keyfile: the private key; None if it stands in ``certfile``.
            certfile: the certificate and those that lead to it; a client needs one if the server asks for it.
            ca_certs: of whom a client trusts, or of those who sign certificates of clients, which a server wants then.

        Raises:
            SSLError: the opening handshake has begun.
            OSError: a file can't be read, or isn't what it should be.
            ValueError: there is a key without a certificate.
        """
        if self._protocol is not None or self._head is not None:
            raise SSLError("TLS comes before the opening handshake: call enable_ssl before connect or do_handshake")
        from .contexts import client_context, server_context  # noqa: PLC0415 -- ssl is large, and nothing for many

        if certfile is None and keyfile is not None:
            raise ValueError("keyfile goes with the certfile of which it is the key")
        client = client_context(ca_certs)
        if certfile is None:
            self.ssl = client
            return
        client.load_cert_chain(certfile, keyfile)
        self.ssl = server_context(certfile, keyfile, ca_certs)
        self._ssl_to_connect = client

    def _secure_as_server(self) -> None:
        if self._ssl is not None:
            from .tls import TLS  # noqa: PLC0415 -- see above

            self._outbox.secure(TLS(self._ssl, server_side=True))

    def _client_tls(self, uri: URI) -> TLS:
        from .contexts import default_context  # noqa: PLC0415 -- see above
        from .tls import TLS  # noqa: PLC0415

        # RFC 6066 §3: no dot at the end
        return TLS(self._ssl or default_context(), server_side=False, server_hostname=uri.host.removesuffix("."))

    def _secure_as_client(self, tls: TLS, deadline: Deadline) -> None:
        """Do the handshake of TLS, RFC 8446 §4.

        Raises:
            OSError: it fails; ``ssl.SSLError`` if that is for TLS to say.
        """
        self._outbox.secure(tls)
        self._outbox.add_answers()
        while not tls.is_open:
            self._flush_all(deadline)
            self._wait(deadline, select.POLLIN)
            data = self._read(READ)
            if data:
                raise ResponseError("the server answers before it was asked")
            if data == b"":
                raise SocketClosed(message="the server has ended the connection instead of setting up TLS")

    # ---- closing ----

    def close(self) -> None:
        """Close the socket, without a closing handshake: send a Close frame before, or use ``Connection``.

        Calls of other threads that are waiting end with ``SocketClosed``: if there are any, both directions of TCP are
        shut down, for other processes that have the socket too. TLS is ended, if the kernel takes that at once.
        """
        self._say_goodbye()
        if self.closure is None and self._protocol is not None:
            self._explain(self._protocol)
        self._held.close()
        self._close_reception()

    def _explain(self, protocol: Protocol, told: tuple[int, str] | None = None, limit: str | None = None) -> Closure:
        """Note how the connection ends, once.

        Args:
            protocol: its own.
            told: code and reason for ``onclose``; None: those of the peer's Close, or of what happened.
            limit: the deadline that ends it.
        """
        left = (0, 0) if self._held.is_inherited else self._outbox.left()  # whose lock a thread of the parent may hold
        found = how_it_ends(
            protocol,
            self._failure or self._lost,
            told=told,
            limit=limit or self._limit,
            errno=self._errno,
            left=left,
            age=monotonic() - self._opened_at,
        )
        self.closure = found
        return found

    def _close_reception(self) -> None:
        """Close who is in the opening handshake. If somebody is in ``accept``, they do so when they leave."""
        if self._reception is not None and self._accepting.try_enter():
            try:
                self._reception.close()
            finally:
                self._accepting.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is a connection, and can't be copied or pickled")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.sock!r}>"

    # ---- opening as a server ----

    def listen(self, backlog: int = 128) -> None:
        """Let clients connect, see ``socket.listen``.

        Raises:
            TypeError, ValueError: ``auth`` can't be for servers.
            ValueError: ``ssl`` is for clients.
        """
        self._its_policies()
        super().listen(backlog)

    def accept(self) -> tuple[Self, Any]:
        """Accept a client, and return its ``websocket`` after the opening handshake, and its address.

        Who isn't let in, or isn't done within ``open_timeout``, gets an answer, and the log tells; other clients are
        let in meanwhile. Handshakes go on only while somebody calls this. If this socket is non-blocking, so is the one
        that is returned, and its handshake is left to ``do_async_recv``, as is its time.

        Raises:
            BlockingIOError: the socket is non-blocking, and nobody has connected.
            TimeoutError: nobody came, or was done, within the socket's timeout; the next call goes on with them.
            SocketClosed: this side has closed the socket.
            OSError: see ``socket.accept``.
        """
        if self._timeout == 0:
            return self._accept_now()
        deadline = self._deadline()
        self._accepting.enter(deadline)
        try:
            client, address = self._accept_next(deadline)
        except OSError:
            self._held.check()  # which woke the call, whatever it saw then
            raise
        finally:
            self._accepting.leave()
            if self._held.closed:
                self._close_reception()
        client.recv_callback = self.recv_callback
        return client, address

    def _accept_next(self, deadline: Deadline) -> Accepted[Self]:
        if self._reception is None:
            self._reception = Reception(websocket._refuse_late)
        with self._held as sock:
            return self._reception.receive(sock, self._serving, self.open_timeout, deadline)

    def _accept_now(self) -> tuple[Self, Any]:
        with self._held as listener:
            sock, address = listener.accept()
        try:
            client = self._serving(sock)
        except BaseException:
            sock.close()
            raise
        client.recv_callback = self.recv_callback
        client.settimeout(0)
        return client, address

    def _serving(self, sock: socket.socket) -> Self:
        """Return a new one of this kind for a client; what a subclass adds to ``__init__`` needs defaults."""
        client = self.__class__(
            sock,
            origin=self.origin,
            protocols=self.protocols,
            extensions=self.extensions,
            location=self.location,
            trusted_origins=self.trusted_origins,
            locations=self.locations,
            auth=self._its_policies() or None,
            ssl=self._ssl,
            extra_headers=self.extra_headers,
            strict=self.strict,
            max_size=self.max_size,
            max_fragments=self.max_fragments,
            open_timeout=self.open_timeout,
        )
        client._secure_as_server()  # noqa: SLF001 -- of this class
        client._head = HeadReader()  # noqa: SLF001
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def do_handshake(self) -> None:
        """Answer the opening handshake of a client on a socket that was accepted elsewhere.

        On a non-blocking socket this only says that there is one: ``do_async_recv`` performs it.

        Raises:
            HandshakeError: the client isn't let in; it was told why. Close the socket.
            SocketClosed: the client went away.
            TimeoutError: it took longer than ``open_timeout``, or than the socket's timeout. Close the socket.
            ssl.SSLError: the client doesn't speak TLS as ``ssl`` wants it. Close the socket.
            ValueError: the opening handshake is complete already, or ``ssl`` is for clients.
        """
        self._check_unopened()
        self._check_ssl(server_side=True)
        deadline = self._deadline().earlier(self.open_timeout)
        self._receiving.enter(deadline)
        try:
            self._check_unopened()  # by who was here before
            self._handshake = self._server_handshake()
            self._secure_as_server()
            self._head = HeadReader()
            if self._timeout != 0:
                with self._held:
                    self._open_as_server(deadline)
        finally:
            self._receiving.leave()

    def _open_as_server(self, deadline: Deadline) -> None:
        try:
            while self._head is not None:
                self._flush_all(deadline)
                self._wait(deadline, select.POLLIN)
                data = self._read(READ)
                if data is not None:
                    self._take_head(data)
            self._flush_all(deadline)
        except (HandshakeError, TimeoutError) as error:
            if isinstance(error, WrongCredentialsError) and error.delay:
                self._hold_back(deadline.earlier(error.delay))
            self._refuse_late()
            with contextlib.suppress(OSError):
                self._hang_up()
            raise

    def _hold_back(self, deadline: Deadline) -> None:
        """Let a client wait for its answer, unless it goes away."""
        with contextlib.suppress(TimeoutError):
            self._wait(deadline, 0)

    def _hang_up(self) -> None:
        """Send the answer to a client that isn't let in, and give it a moment to read it."""
        deadline = Deadline(LINGER_SECONDS)
        self._flush_all(deadline)
        self.shutdown(socket.SHUT_WR)
        self._drain(deadline)

    def _take_head(self, data: bytes) -> None:
        """Go on with the handshake of a server, whose answer is queued once the head is complete."""
        reader = self._head
        if reader is None:
            return
        if not data:
            self._fail_receiving("the client has ended the connection before its request was complete")
        head = b""
        try:
            found = reader.feed(data)
            if found is None:
                return
            head = found
            request = self._handshake.read(head)
            request.remote_address = self._peer()
            request.ssl_object = self.ssl_object
            accepted, protocol = self._accepted(request)
        except HandshakeError as error:
            self._refuse(error, head)
            raise
        self._head = None
        self.request, self.protocol, self.location = request, accepted.subprotocol, request.path
        self._outbox.add(Unsent(accepted.response))
        self._open(protocol, reader.rest)

    def _accepted(self, request: Request) -> tuple[Acceptance, Protocol]:
        policies = self._its_policies()
        try:
            if policies:
                request.username = authenticate(policies, request, time())
            accepted = self._handshake.accept(request)
            return accepted, self._new_protocol(Role.SERVER, accepted.extensions)
        except HandshakeError:
            raise
        except Exception as error:
            log.exception("an extension, or a function for auth, has failed in an opening handshake")
            raise HandshakeError(500, "an extension, or a function for auth, has failed") from error

    def _peer(self) -> Any:
        try:
            return self.sock.getpeername()
        except OSError as error:  # a reset that nobody has read yet
            self._fail_receiving("the connection is lost", error)

    def _refuse(self, error: HandshakeError, head: bytes) -> None:
        self._head = None
        self._failure = copy(error)  # without its traceback, which would keep this object
        self._outbox.add(Unsent(self._handshake.refuse(error, head)))

    def _refuse_late(self) -> None:
        """Answer a client whose request is not complete in time, RFC 9110 §15.5.9, if there is something to answer."""
        if self._head is not None and self._head.has_line:
            self._refuse(HandshakeError(408, "the request head was not complete in time"), b"")

    @property
    def request_headers(self) -> Headers | None:
        """The header fields of the request that a server accepted."""
        return None if self.request is None else self.request.headers

    # ---- opening as a client ----

    def connect(self, address: tuple[str, int] | str) -> None:
        """Connect to a server, with the opening handshake, within ``open_timeout`` and the socket's timeout.

        Redirects are followed, at most 10 of them, with new sockets; to another origin without credentials. A server
        that asks who this is (401) is told once, by the strongest of Digest and Basic that it offers, on a new socket,
        too; and again without being asked where it redirects on its own origin. A socket that was passed in can't be
        exchanged, so there both are errors like every other status.

        Args:
            address: ``"ws://host:port/path?query"``, or with ``wss`` for TLS; or (host, port), "" for this machine, and
                then ``location`` is asked for, by TLS if there is an ``ssl``; or so the path of a Unix socket. A socket
                that is connected already is used as it is. A user name and a password in a URI,
                ``"ws://user:password@host/"``, come before ``auth``.

        Raises:
            ResponseError: the server's answer is another one than 101, or a wrong one: with status, headers and body.
            SocketClosed: the server has reset the connection.
            TimeoutError: it took too long.
            OSError: there is no connection; ``ssl.SSLError`` if TLS fails, ``ssl.SSLCertVerificationError`` if nobody
                who is trusted says that this is the host that was asked for.
            TypeError: the address is neither a str nor a pair, or ``auth`` is no (user name, password) pair.
            ValueError: the URI is wrong, or ``ws`` though there is an ``ssl``, or that is for servers, or the socket is
                non-blocking: set it so afterwards.
        """
        if self._timeout == 0:
            raise ValueError("connect needs a socket that may wait: call setblocking(False) afterwards")
        self._check_unopened()
        deadline = self._deadline().earlier(self.open_timeout)
        if self._auth is not None and self._pair is None:
            raise TypeError("connect needs a (user name, password) pair for auth: anything else is for servers")
        if self._ssl_to_connect is not None:
            self.ssl = self._ssl_to_connect
        self._check_ssl(server_side=False)
        attempts = Attempts(self._uri(address), self.extra_headers, self._pair)
        path = address if isinstance(address, str) and self.family == socket.AF_UNIX and "://" not in address else None
        self._receiving.enter(deadline)
        try:
            self._check_unopened()  # by who was here before
            with self._held:
                self._open_at_last(attempts, path, deadline)
        except BaseException as error:
            if isinstance(error, ValueError) and not isinstance(error, OSError):
                raise  # before there was a connection
            self._say_goodbye()
            self.sock.close()
            self._held.check()  # which woke the call, whatever it saw then
            raise
        finally:
            self._receiving.leave()

    def _open_at_last(self, attempts: Attempts, path: str | None, deadline: Deadline) -> None:
        """Perform the opening handshake wherever redirects lead, and whoever asks who this is."""
        while True:
            try:
                self._open_as_client(attempts, path, deadline)
            except ResponseError as error:
                if not self._owns_sock or (path is not None and error.status != 401):
                    raise
                attempts.follow(error)
                self._say_goodbye()
                self.sock.close()
            else:
                return

    def _uri(self, address: tuple[str, int] | str) -> URI:
        if not isinstance(address, str):
            try:
                host, port = address[:2]
            except (TypeError, ValueError):
                raise TypeError('connect takes (host, port), or a URI: "ws://host:port/path"') from None
            return URI(secure=self._ssl is not None, host=host or "localhost", port=port, resource=self.location)
        if self.family == socket.AF_UNIX and "://" not in address:
            secure = self._ssl is not None
            return URI(secure=secure, host="localhost", port=443 if secure else 80, resource=self.location)
        uri = parse_uri(address)
        if self._ssl is not None and not uri.secure:
            raise ValueError("a URI with ws has no use for ssl: write wss for TLS")
        return uri

    def _open_as_client(self, attempts: Attempts, path: str | None, deadline: Deadline) -> None:
        uri = attempts.uri
        handshake = ClientHandshake(
            uri,
            origin=self.origin,
            protocols=self.protocols,
            extensions=self.extensions,
            extra_headers=attempts.headers,
        )
        protocol = self._new_protocol(Role.CLIENT, None)
        tls = self._client_tls(uri) if uri.secure else None
        self._start_again()
        if path is not None:
            connect_unix(self._fresh_socket(), path, deadline, self._held.check)
        elif not is_connected(self.sock):
            connect_tcp(self._fresh_socket(), uri, deadline, self._replacement if self._owns_sock else None)
        if tls is not None:
            self._secure_as_client(tls, deadline)
        self._outbox.add(Unsent(handshake.request))
        self._flush_all(deadline)
        self._await_answer(handshake, deadline)
        self.response_headers = handshake.response.headers if handshake.response else None
        self.protocol, self.location = handshake.subprotocol, uri.resource
        if handshake.extensions:
            try:
                protocol = self._new_protocol(Role.CLIENT, handshake.extensions)
            except ValueError:  # which otherwise means that there was no connection yet
                self.sock.close()
                raise
        if handshake.missing:
            self._leave(protocol, handshake)
        self._open(protocol, handshake.rest)

    def _leave(self, protocol: Protocol, handshake: ClientHandshake) -> NoReturn:
        """Tell a server what it should have agreed to, RFC 6455 §7.4.1 on 1010."""
        names = ", ".join(handshake.missing)
        self._outbox.add(Unsent(protocol.close(CloseCode.MANDATORY_EXTENSION, names[:_MAX_REASON])))
        with contextlib.suppress(OSError):
            self._hang_up()
        raise ResponseError(f"the server doesn't speak {names}, which is required", 101)

    def _start_again(self) -> None:
        """Forget what became of an earlier attempt."""
        self._begin_anew()
        self._is_reading = False

    def _fresh_socket(self) -> socket.socket:
        """Return the socket; a new one like it if an attempt has failed."""
        if self._owns_sock and self.sock.fileno() < 0:
            return self._replacement(self.sock.family)
        return self.sock

    def _replacement(self, family: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        self._held.replace(sock)
        return sock

    def _await_answer(self, handshake: ClientHandshake, deadline: Deadline) -> None:
        is_complete = False
        while not is_complete:
            try:
                self._wait(deadline, select.POLLIN)
                data = self._read(READ)
            except (TimeoutError, SocketClosed):
                if handshake.awaits_body:
                    handshake.feed_eof()
                raise
            is_complete = bool(data) and handshake.feed(data or b"")
            if not is_complete and (data == b"" or self._has_tls_ended()):
                handshake.feed_eof()

    # ---- after the handshake ----

    def _new_protocol(self, role: Role, agreed: Agreement | None) -> Protocol:
        max_size, max_fragment_size = both_sizes(self.max_size)
        self._extending = Extending(agreed, max_size) if agreed and self.strict else None
        self.extension_instances = [] if self._extending is None else self._extending.chain.instances
        rsv, opcodes = (agreed.rsv, agreed.opcodes) if agreed else (0, 0)
        return Protocol(
            role,
            frames=True,
            max_size=max_size,
            max_fragment_size=max_fragment_size,
            max_fragments=self.max_fragments,
            rsv=rsv,
            opcodes=opcodes,
        )

    def _open(self, protocol: Protocol, data: bytes) -> None:
        self._lenient = None if self.strict else LenientReader(_most_of_a_frame(self.max_size))
        self._opened_at = monotonic()
        self._protocol = protocol
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

    def _check_unopened(self) -> None:
        self._held.check()
        if self._protocol is not None or self._head is not None:
            raise ValueError("the opening handshake was done already: make another websocket")

    def _is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._held.closed or self._lost is not None or self._opened().close_sent

    # ---- sending ----

    def send(self, *frames: Frame) -> None:
        """Send frames, and return when the kernel has them. Thread-safe: frames of one call stay together.

        A client masks them, each with a new key, unless they say otherwise. After a timeout what is left of them leaves
        with the next call.

        Raises:
            RuntimeError: a signal handler calls this just when its thread receives, and nothing was sent. If that
                thread sends, this returns at once, and what is sent here comes behind that.
            SocketClosed: a Close was sent, which nothing may follow (RFC 6455 §5.5.1), or the connection is lost.
            TimeoutError: the kernel didn't take them within the socket's timeout.
            BlockingIOError: the socket is non-blocking, and the kernel didn't take all; see ``can_send``.
            TypeError: this is no frame.
            ValueError: a frame breaks a rule, and none of them was sent; see ``Frame.unchecked``.
            Exception: of an extension; the connection can't go on, and the peer was told 1011.
        """
        if frames:
            self._send_frames(frames)

    def _send_frames(self, frames: tuple[Frame, ...], callback: Callable[[], object] | None = None) -> None:
        unsent = self._queue(frames, callback)
        with self._held as sock:
            self._flush(unsent, sock)

    def queue_send(
        self,
        frame: Frame,
        callback: Callable[[], object] | None = None,
        recv_callback: Callable[[Frame], object] | None = None,
    ) -> None:
        """Queue a frame for ``do_async_send``. Thread-safe. How much is queued is up to the caller.

        Args:
            frame: the frame, which may be changed afterwards.
            callback: called without arguments when the kernel has the whole frame, by who has sent the last byte; never
                if the connection is lost before. Callbacks are called in the order of the frames.
            recv_callback: becomes ``self.recv_callback``.

        Raises:
            RuntimeError: see ``send``.
            SocketClosed: see ``send``.
            TypeError: see ``send``.
            ValueError: see ``send``.
        """
        self._queue((frame,), callback)
        if recv_callback is not None:
            self.recv_callback = recv_callback

    def _queue(self, frames: tuple[Frame, ...], callback: Callable[[], object] | None = None) -> Unsent:
        for frame in frames:
            if not isinstance(frame, Frame):
                raise TypeError(
                    f"a websocket sends Frame objects, not {type(frame).__name__}: Connection sends messages"
                )
        protocol = self._sendable()
        try:
            with self._outbox.lock:
                extending = self._extending
                if self._sender:
                    self._delayed.append(partial(self._queue, frames, callback))
                    return _NOTHING
                if extending is None or protocol.close_sent:
                    return self._queue_made(protocol, callback, frames)
                protocol.check(*frames)
                return self._queue_extended(protocol, callback, extending.singles, frames)
        finally:
            if self._delayed and not self._sender:
                self._catch_up()

    def _send_message(self, message: Sendable, fragment_size: int | None, compress: bool | None = None) -> None:
        protocol = self._protocol
        if protocol is None or self._lost is not None or self._held.closed:
            protocol = self._sendable()
        try:
            with self._outbox.lock:
                extending = self._extending
                if self._sender:
                    self._delayed.append(partial(self._send_message, message, fragment_size, compress))
                    return
                if extending is None or protocol.close_sent:
                    self._sender = get_ident()  # as in _queue_made, which would take longer
                    try:
                        unsent = Unsent(protocol.message(message, fragment_size), None, 1)
                        self._outbox.add(unsent)
                    finally:
                        self._sender = 0
                else:
                    frame = extending.message(message, compress)
                    if fragment_size is not None and fragment_size < 1:
                        raise ValueError("fragment_size must be at least 1")
                    if not protocol.is_between_messages:
                        protocol.check(frame)  # which says why not
                    unsent = self._queue_extended(protocol, None, extending.frames, frame, fragment_size)
        finally:
            if self._delayed and not self._sender:
                self._catch_up()
        with self._held as sock:
            self._flush(unsent, sock)

    def _queue_made(self, protocol: Protocol, callback: Callable[[], object] | None, frames: Iterable[Frame]) -> Unsent:
        """Queue frames; for who holds the lock.

        A signal handler that comes in between is delayed: what it sends, or its Close, is made to come behind.
        """
        self._sender = get_ident()
        try:
            unsent = Unsent(protocol.frames(*frames), callback, _messages_in(frames))
            self._outbox.add(unsent)
        finally:
            self._sender = 0
        return unsent

    def _queue_extended(
        self,
        protocol: Protocol,
        callback: Callable[[], object] | None,
        transform: Callable[..., list[Frame]],
        *arguments: Any,
    ) -> Unsent:
        """Queue what extensions make of something that is sent; see ``_queue_made``.

        What was compressed and not sent would be missing in the peer's window: so whatever is raised ends the
        connection with 1011. What could be wrong with what the caller has said was found before.
        """
        self._sender = get_ident()
        try:
            frames = transform(*arguments)
            unsent = Unsent(protocol.frames(*frames), callback, _messages_in(frames))
            self._outbox.add(unsent)
        except BaseException:
            self._say_close(CloseCode.INTERNAL_ERROR)
            raise
        finally:
            self._sender = 0
        return unsent

    def _catch_up(self) -> None:
        """Send what had to come behind something else, whose caller is not there any more."""
        while self._delayed:
            try:
                self._delayed.popleft()()
            except SocketClosed:
                log.debug("a message was sent too late to a connection that is closed")
            except Exception:
                log.exception("a message could not be sent")

    def _say_close(self, code: int) -> None:
        """Send a Close without waiting: the one that is owed, else with this code, unless one was sent."""
        protocol = self._opened()
        with self._outbox.lock:
            close = protocol.owed_close() or protocol.close(code)
            if close:
                self._outbox.add(Unsent(close))
        with contextlib.suppress(SocketClosed):
            self.do_async_send()

    def _reply(self, frame: Frame) -> None:
        """Answer a Ping without waiting: who receives must go on with that, also if the peer reads nothing."""
        protocol = self._sendable()
        with self._outbox.lock:
            self._outbox.add_pong(protocol.frames(frame))
        self.do_async_send()

    def _sendable(self) -> Protocol:
        protocol = self._opened()
        if not protocol.close_sent:  # else it says so itself, with both Closes
            self._held.check()
            if self._lost is not None:
                raise copy(self._lost)
        return protocol

    # ---- receiving ----

    def recv(self) -> Frame:
        """Receive a frame: a ``ControlFrame`` if it is one. Nothing is answered, not even a Ping or a Close.

        An exception of a signal handler may take a frame with it that was about to be returned. If it comes while what
        has arrived is looked at, the next call raises ``SocketClosed``, since a part of the stream is lost.

        Raises:
            SocketClosed: the connection has ended: by a Close, which was received before this, or without one.
            ProtocolError: the peer broke a rule, and was sent a Close that says so (RFC 6455 §7.1.7).
            TimeoutError: there was no whole frame within the socket's timeout; what has arrived of it is kept.
            BlockingIOError: the socket is non-blocking, and there is no whole frame.
            RuntimeError: a signal handler calls this while its thread does.
        """
        return self.recvn(1)[0]

    def recvn(self, n: int) -> list[Frame]:
        """Receive so many frames, and return them together; see ``recv``.

        Raises:
            SocketClosed: see ``recv``; this and what follows loses no frame: the next ``recv`` has the first of them.
            ProtocolError: see ``recv``.
            TimeoutError: see ``recv``.
            BlockingIOError: see ``recv``.
            RuntimeError: see ``recv``.
        """
        try:
            return self._recv_before(self._deadline(), n)
        except TimeoutError:
            raise self._too_late() from None

    def _recv_before(self, deadline: Deadline, n: int) -> list[Frame]:
        self._opened()
        self._receiving.enter(deadline)
        try:
            received = self._received
            if len(received) < n:
                self._receive(deadline, n)
            if self._extending is not None:
                return self._read_frames(n)
            return [self._frame(received.popleft()) for _ in range(n)]
        finally:
            self._receiving.leave()

    def _read_frames(self, n: int) -> list[Frame]:
        """Take so many frames, as extensions read them; those before one that breaks a rule are for the next call."""
        frames: list[Frame] = []
        try:
            while len(frames) < n:
                frames.append(self._frame(self._received.popleft()))
        except BaseException:
            self._received.extendleft(reversed(frames))
            raise
        return frames

    def _frame(self, received: Event | Frame) -> Frame:
        if isinstance(received, Frame):
            return received
        opcode, payload, final, rsv = received
        frame = received_frame(opcode, payload, final=final, rsv=rsv)
        if self._extending is None or Opcode.CLOSE <= opcode <= Opcode.PONG:
            return frame
        return self._read_by(self._extending.chain.receive_frame, frame)

    def _receive(self, deadline: Deadline, n: int = 1) -> None:
        """Read until so many events have arrived; for who has entered ``_receiving``."""
        with self._held as sock:
            while len(self._received) < n:
                if self._failure is not None or self._is_reading:
                    self._fail(self._why())
                if self._outbox.unsent and self._lost is None:
                    self._await_either(deadline)
                else:
                    self._await_readable(sock, deadline)
                self._is_reading = True
                data = self._read(self._read_size)
                if data is not None:
                    self._take(data)
                self._is_reading = False

    def _await_readable(self, sock: socket.socket, deadline: Deadline) -> None:
        poll = self._poll_of(sock)
        if self._extending is None:
            deadline.wait_with(poll)
        else:
            self._await_idly(self._extending, deadline, poll)
        self._held.check()  # which wakes who waits

    def _await_idly(self, extending: Extending, deadline: Deadline, poll: select.poll) -> None:
        """Wait for one socket, and tell extensions meanwhile that nothing is sent.

        Raises:
            TimeoutError: the time is up.
        """
        while True:
            self._look_idle(extending)
            first = deadline.earlier(extending.next_look)
            try:
                first.wait_with(poll)
            except TimeoutError:
                if first is deadline:
                    raise
            else:
                return

    def _look_idle(self, extending: Extending) -> None:
        if not extending.next_look.is_over:
            return
        with self._outbox.lock:
            if self._sender:
                extending.look_later()
                return
            self._sender = get_ident()
            try:
                extending.look_idle()
            finally:
                self._sender = 0
        if self._delayed and not self._sender:
            self._catch_up()

    def do_async_recv(self, bufsize: int = READ) -> None:
        """Read once, and hand frames to ``recv_callback``; for when the socket is readable.

        Goes on with the opening handshake of a server, too, whose answer ``do_async_send`` sends. After ``connect`` and
        ``accept`` call this once without waiting: frames may have come right behind the opening handshake.

        Args:
            bufsize: bytes to read at most, at least 1.

        Raises:
            HandshakeError: the client isn't let in; call ``do_async_send`` until ``can_send`` is False, then ``close``.
            SocketClosed: see ``recv``.
            ProtocolError: see ``recv``; the Close that says so is queued.
            ssl.SSLError: the client doesn't speak TLS as ``ssl`` wants it. Close the socket.
            BlockingIOError: another thread receives.
            ValueError: ``bufsize`` is below 1.
        """
        if bufsize < 1:
            raise ValueError(f"bufsize must be at least 1, not {bufsize}")
        try:
            self._receiving.enter(self._deadline())
        except TimeoutError:
            raise self._too_late() from None
        try:
            with self._held:
                self._read_once(bufsize)
        finally:
            self._receiving.leave()
        while self._received and self.recv_callback is not None:
            self.recv_callback(self._frame(self._received.popleft()))
        if self._failure is not None and not self._received:
            self._fail(self._failure)

    def _why(self) -> Exception:
        """Return why nothing more is received; that may be an exception of a signal handler."""
        if self._failure is None:  # _is_reading: a part of what had arrived is lost, and nobody knows what comes next
            self._failure = SocketClosed(message="receiving was interrupted by an exception: what had arrived is lost")
        return self._failure

    def _fail(self, failure: Exception) -> NoReturn:
        """Say why nothing more is received; to a peer that broke a rule, too (RFC 6455 §7.1.7).

        Not any earlier: nothing can be sent after a Close, and what came before the fault may be worth an answer.
        """
        if isinstance(failure, ProtocolError):
            self._say_close(failure.code)
        raise copy(failure)

    # ---- extensions ----

    def apply_send_hooks(self, frame: Frame, before_fragmentation: bool) -> Frame:
        """Return what extensions make of a frame that is to be sent, RFC 6455 §9.

        ``send`` does this for those that transform single frames. For those that transform messages this is called
        once for each message, by one thread at a time, and all are sent in this order: a ``Connection`` does it.

        Args:
            frame: a frame; or a whole message as one frame.
            before_fragmentation: whether it is the latter.

        Raises:
            Exception: of an extension; the connection can't go on then.
        """
        if self._extending is None:
            return frame
        return self._extending.chain.send_message(frame) if before_fragmentation else self._extending.single(frame)

    def apply_recv_hooks(self, frame: Frame, before_fragmentation: bool) -> Frame:
        """Return what a frame says that has arrived; see ``apply_send_hooks``.

        Raises:
            ProtocolError: the peer broke a rule of an extension, and was sent a Close that says so.
            Exception: of an extension; the peer was told 1011.
        """
        if self._extending is None:
            return frame
        if before_fragmentation:
            return self._read_by(self._extending.whole, [frame])
        return self._read_by(self._extending.chain.receive_frame, frame)

    def _read_by(self, read: Callable[..., _T], *arguments: Any) -> _T:
        """Return what extensions make of what has arrived; if that fails, nothing behind it counts (RFC 6455 §7.1.7).

        Raises:
            ProtocolError: the peer broke a rule of an extension, and was told so.
            Exception: of an extension; the peer was told 1011.
        """
        extending = self._extending
        if extending is not None and extending.has_failed:
            raise SocketClosed(initialized=True, message=_NOT_UNDERSTOOD)
        try:
            return read(*arguments)
        except BaseException as error:
            if isinstance(error, ProtocolError) and is_close_code(error.code):
                self._break_off(copy(error))
            else:
                if extending is not None:
                    extending.has_failed = True
                self._say_close(CloseCode.INTERNAL_ERROR)
            raise

    def _break_off(self, failure: ProtocolError) -> None:
        """Receive nothing more, and tell the peer which rule it broke that its protocol doesn't know of."""
        self._received.clear()
        self._failure = failure
        with self._outbox.lock:
            self._opened().fail(failure)
        self._say_close(failure.code)

    def _read_once(self, bufsize: int) -> None:
        if self._failure is not None or self._is_reading:
            self._failure = self._why()
            return
        if self._head is None:
            self._opened()
        if self._extending is not None:
            self._look_idle(self._extending)
        self._is_reading = True
        data = self._read(bufsize)
        if data is not None:
            self._take_head(data) if self._head is not None else self._take(data)
        self._is_reading = False

    def can_recv(self) -> bool:
        """Whether somebody wants frames: whether to watch for the socket to become readable."""
        return self.recv_callback is not None or self._head is not None

    def _take(self, data: bytes) -> None:
        """Take bytes from the peer, none at the end, and make frames of them."""
        protocol = self._opened()
        if not data:
            self._failure = self._failure or SocketClosed(message=self._end)
        elif self._lenient is not None:
            self._take_unchecked(self._lenient, data)
        else:
            self._take_checked(protocol, data)
        if self._outbox.tls is not None:
            self._look_behind(self._outbox.tls)

    def _take_checked(self, protocol: Protocol, data: bytes) -> None:
        with self._outbox.lock:
            events = protocol.feed(data)
            if protocol.is_replying:
                protocol.replies()  # whoever receives the Ping answers it
        self._received.extend(events)
        if events and events[-1][0] == Opcode.CLOSE:  # nothing follows it, RFC 6455 §1.4
            self._failure = self._closed_by_peer(protocol, events[-1][1])
        elif protocol.error is not None:
            self._failure = self._failure or protocol.error

    def _take_unchecked(self, lenient: LenientReader, data: bytes) -> None:
        frames: list[Frame] = []
        try:
            lenient.feed(data, frames)
        except ProtocolError as error:
            self._failure = copy(error)
        self._received.extend(frames)

    @staticmethod
    def _closed_by_peer(protocol: Protocol, payload: bytes) -> SocketClosed:
        began = protocol.close_sent
        message = "the peer has answered the Close" if began else "the peer has closed the connection"
        return SocketClosed(began, message, rcvd=split_close(payload))


def _messages_in(frames: Iterable[Frame]) -> int:
    """Return how many messages end in these frames."""
    return sum([frame.final and frame.opcode < Opcode.CLOSE for frame in frames])


def _most_of_a_frame(max_size: Sizes) -> int | None:
    limits = [size for size in both_sizes(max_size) if size is not None]
    return min(limits) if limits else None


def _pair(auth: Policies | None) -> tuple[str, str] | None:
    """Return the user name and the password that an argument ``auth`` is, if it is them.

    Raises:
        ValueError: one of them can't be sent.
    """
    if not isinstance(auth, tuple | list) or len(auth) != 2:
        return None
    username, password = auth
    if not isinstance(username, str) or not isinstance(password, str):
        return None
    ClientAuth(username, password)
    return username, password
