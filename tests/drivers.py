"""How does a test start a front end and speak to it? Front ends by name, and a client that sends any bytes.

A scenario gets the fixture ``serve`` (behaviour/conftest.py has it), gives it handlers as plain functions, and so
runs on each entry of ``FRONT_ENDS``. A new front end is a subclass of ``Server`` and an entry there; one with TLS is
the same class with ``secure`` set; what one has not got stands in its ``lacks``, and scenarios that need it are marked
with ``needs``. What happened to each client is written down in its ``Story``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import select
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import pytest
from certificates import server_context
from measures import PATIENCE
from reference import masked
from tls_socket import TLSSocket

import wspy
from wspy._core import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

DEADLINE_S: Final = 15.0 * PATIENCE
"""Nothing is waited for any longer, so that a defect is a failure and not a hang."""
BLOCKED_S: Final = 0.5 * PATIENCE
"""Who has not returned from a handler after so long is blocked, on purpose."""

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN: Final = 0x80
KEY: Final = base64.b64encode(b"the sample nonce").decode()
MASKING_KEY: Final = bytes.fromhex("37fa213d")
HANDLERS: Final = (
    "onopen", "onmessage", "onping", "onpingreceived", "onpong", "onsent", "onclose", "onerror", "onframe", "onrequest",
)  # fmt: skip
ALWAYS: Final = ("onopen", "onmessage", "onclose", "onerror")
"""What is always written down. The others cost something, or change how a front end works: only if a test asks."""


# ---- waiting ----


def until(predicate: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait until something holds that nobody tells of; fail after the deadline."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not predicate():
        assert time.monotonic() < end, f"in {deadline_s} s not true: {what}"
        pause.wait(0.0005)


# ---- what a peer sends ----


def frame(opcode: int, payload: bytes = b"", *, final: bool = True, key: bytes = MASKING_KEY, rsv: int = 0) -> bytes:
    """Return a frame as a client sends it."""
    first = opcode | (FIN if final else 0) | rsv
    length = len(payload)
    if length < 126:
        header = bytes([first, 0x80 | length])
    elif length < 1 << 16:
        header = struct.pack(">BBH", first, 0x80 | 126, length)
    else:
        header = struct.pack(">BBQ", first, 0x80 | 127, length)
    return header + key + masked(payload, key)


def close_frame(code: int | None = 1000, reason: str = "") -> bytes:
    """Return a Close frame as a client sends it; with None, an empty one."""
    return frame(CLOSE, b"" if code is None else code.to_bytes(2) + reason.encode())


def head(path: str = "/", headers: Iterable[tuple[str, str]] = (), *, without: Iterable[str] = ()) -> bytes:
    """Return the request of an opening handshake; ``headers`` come last, those named in ``without`` are left out."""
    usual = {
        "Host": "here",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    }
    lines = [f"{name}: {value}" for name, value in usual.items() if name not in without]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode("latin-1")


def accept_value(key: str = KEY) -> str:
    """Return Sec-WebSocket-Accept for a key, RFC 6455 §4.2.2."""
    return base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()  # noqa: S324


# ---- how it is cut ----


def at(data: bytes, *positions: int) -> list[bytes]:
    """Cut at positions."""
    ends = [0, *positions, len(data)]
    return [data[start:end] for start, end in itertools.pairwise(ends)]


def bytewise(data: bytes) -> list[bytes]:
    """Cut everywhere."""
    return [data[i : i + 1] for i in range(len(data))]


LONG: Final = 4000


def mostly_bytewise(data: bytes, edge: int = 100) -> list[bytes]:
    """Cut everywhere near both ends, and somewhere in between."""
    middle = data[edge:-edge]
    step = len(middle) // 100
    pieces = [middle[start : start + step] for start in range(0, len(middle), step)]
    return [*bytewise(data[:edge]), *pieces, *bytewise(data[-edge:])]


def deliveries(data: bytes, *, most: int = 8, short: int = 24) -> Iterator[tuple[str, list[bytes]]]:
    """Yield ways to send the same bytes: whole, each byte alone, and in two parts, cut everywhere if they are few.

    Args:
        data: what is sent.
        most: about how many cuts in two parts.
        short: up to this many bytes there is one cut at each place.
    """
    yield "whole", [data]
    if len(data) < 2:
        return
    yield "bytes", bytewise(data) if len(data) <= LONG else mostly_bytewise(data)
    cuts = list(range(1, len(data)))
    if len(data) > short:
        step = max(len(data) // most, 1)
        # behind the first bytes, before the last ones, and evenly in between
        cuts = sorted({1, 2, len(data) - 2, len(data) - 1, *range(step, len(data) - 1, step)})
    for cut in cuts:
        yield f"cut at {cut}", at(data, cut)


# ---- what a peer receives ----


class Response(NamedTuple):
    """An HTTP response; names of headers in lower case."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes
    head: bytes


class Received(NamedTuple):
    """A frame of the server."""

    opcode: int
    payload: bytes
    final: bool = True


class ConnectionEndedError(AssertionError):
    """The server has ended the connection where something else was expected."""


class RawClient:
    """A TCP or Unix connection to a server, and the most naive parser of what comes back.

    Args:
        address: of the server.
        receive_buffer: bytes that the kernel keeps for this end, about.
        source: the address to connect from.
        pace: returns how many bytes the server has read in all, and may wait a moment for as many as it is given; then
            each piece is read before the next one is sent.
        secure: whether to speak TLS; its handshake comes with the first byte that is sent.
    """

    def __init__(
        self,
        address: Any,
        *,
        receive_buffer: int | None = None,
        source: str | None = None,
        pace: Callable[[int], int] | None = None,
        secure: bool = False,
    ) -> None:
        family = (
            socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if len(address) == 4 else socket.AF_INET
        )
        self.socket: Any = socket.socket(family, socket.SOCK_STREAM)
        self._pace = pace
        self._data = bytearray()
        self.claimed = 0
        """The reserved bits that the server may set."""
        self.rsv = 0
        """Those of the last frame."""
        try:
            if receive_buffer is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if family != socket.AF_UNIX:
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if source is not None:
                self.socket.bind((source, 0))
            self.socket.settimeout(DEADLINE_S)
            self.socket.connect(address)
        except BaseException:
            self.socket.close()
            raise
        self.address = self.socket.getsockname()
        if secure:
            self.socket = TLSSocket(self.socket)

    # ---- sending ----

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    def send_pieces(self, pieces: Iterable[bytes]) -> bool:
        """Send one piece after the other, each in a segment of its own, until the server ends the connection.

        Returns whether everything was sent.
        """
        for piece in pieces:
            if self.is_ended():
                return False
            before = self._pace(0) if self._pace else 0
            try:
                self.socket.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                return False
            self._wait_until_read(before + len(piece))
        return True

    def _polled(self, events: int) -> bool:
        poll = select.poll()
        poll.register(self.socket, events)
        return bool(poll.poll(0))

    def is_ended(self) -> bool:
        """Whether the server has sent a FIN or a RST."""
        return self._polled(select.POLLRDHUP)

    def _wait_until_read(self, count: int) -> None:
        if self._pace is None:
            return
        end = time.monotonic() + DEADLINE_S
        while self._pace(count) < count and not self.is_ended():
            assert time.monotonic() < end, "the server does not read"

    def text(self, text: str) -> None:
        """Send a text message."""
        self.send(frame(TEXT, text.encode()))

    def binary(self, payload: bytes) -> None:
        """Send a binary message."""
        self.send(frame(BINARY, payload))

    def half_close(self) -> None:
        """Send a FIN, and go on receiving."""
        self.socket.shutdown(socket.SHUT_WR)

    # ---- the opening handshake ----

    def open(self, path: str = "/", headers: Iterable[tuple[str, str]] = ()) -> Response:
        """Perform the opening handshake."""
        self.send(head(path, headers))
        return self.opened()

    def opened(self) -> Response:
        """Receive the response that opens the connection, RFC 6455 §4.1."""
        response = self.response()
        assert response.status == 101, response
        assert response.headers["upgrade"] == "websocket"
        assert response.headers["connection"] == "Upgrade"
        assert response.headers["sec-websocket-accept"] == accept_value()
        return response

    def response(self, *, to_head_request: bool = False) -> Response:
        """Receive one HTTP response."""
        while b"\r\n\r\n" not in self._data:
            self._more()
        end = self._data.index(b"\r\n\r\n") + 4
        raw = self._take(end)
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        version, status, reason = first.split(" ", 2)
        assert version == "HTTP/1.1", first
        headers: dict[str, str] = {}
        for line in lines:
            name, value = line.split(": ", 1)
            if name.lower() == "www-authenticate" and name.lower() in headers:
                value = f"{headers[name.lower()]}, {value}"  # RFC 9110 §11.6.1
            else:
                assert name.lower() not in headers, f"{name} is repeated"
            headers[name.lower()] = value
        length = 0 if to_head_request else int(headers.get("content-length", "0"))
        return Response(int(status), reason, headers, self.exactly(length), raw)

    # ---- frames ----

    def frame(self) -> Received:
        """Receive one frame."""
        first, second = self.exactly(2)
        self.rsv = first & 0x70
        assert self.rsv & ~self.claimed == 0, "a reserved bit is set"
        assert second & 0x80 == 0, "a server does not mask (RFC 6455 §5.1)"
        length = second
        if second == 126:
            length = int.from_bytes(self.exactly(2))
            assert length >= 126, "the length is not in its shortest form"
        elif second == 127:
            length = int.from_bytes(self.exactly(8))
            assert length >= 1 << 16, "the length is not in its shortest form"
        return Received(first & 0x0F, self.exactly(length), bool(first & FIN))

    def message(self) -> str | bytes:
        """Receive one message, of any number of frames with nothing between them: a str or bytes."""
        opcode, payload, final = self.frame()
        assert opcode in {TEXT, BINARY}, f"opcode {opcode}, {payload!r}"
        parts = [payload]
        while not final:
            continuation, payload, final = self.frame()
            assert continuation == CONTINUATION
            parts.append(payload)
        whole = b"".join(parts)
        return whole.decode() if opcode == TEXT else whole

    def closes(self, code: int | None, reason: str | None = None) -> None:
        """Receive a Close frame; code None: without a payload; reason None: any."""
        opcode, payload, final = self.frame()
        assert opcode == CLOSE, f"opcode {opcode}, {payload[:50]!r}"
        assert final
        found = int.from_bytes(payload[:2]) if payload else None
        assert found == code, f"{found} {payload[2:].decode()!r}"
        assert reason in {None, payload[2:].decode()}

    def frames(self) -> list[Received]:
        """Receive whole frames to the end of the connection."""
        found = []
        while self._data or not self._at_end():
            found.append(self.frame())
        return found

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        """Perform the closing handshake from this side, to the end of TCP."""
        self.send(close_frame(code, reason))
        self.closes(code)
        self.eof()
        assert not getattr(self.socket, "is_cut_off", False), "close_notify is missing (RFC 8446 §6.1)"
        self.end()

    # ---- bytes ----

    def _more(self) -> None:
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionResetError:
            raise ConnectionEndedError(f"reset after {bytes(self._data[:200])!r}") from None
        if not data:
            raise ConnectionEndedError(f"the end after {bytes(self._data[:200])!r}")
        self._data += data

    def _take(self, size: int) -> bytes:
        data = bytes(self._data[:size])
        del self._data[:size]
        return data

    def exactly(self, size: int) -> bytes:
        """Receive so many bytes."""
        if size > len(self._data) + (1 << 18):
            return self._large(size)
        while len(self._data) < size:
            self._more()
        return self._take(size)

    def _large(self, size: int) -> bytes:
        whole = bytearray(self._take(len(self._data)))
        while len(whole) < size:
            self._more()
            whole += self._take(size - len(whole))
        return bytes(whole)

    def _at_end(self) -> bool:
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionResetError:
            return True
        self._data += data
        return not data

    def waiting(self) -> bytes:
        """Return what has arrived and was not taken, without waiting for more."""
        self.socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while data := self.socket.recv(1 << 18):
                self._data += data
        self.socket.settimeout(DEADLINE_S)
        return bytes(self._data)

    def eof(self) -> None:
        """Expect the end of the connection by a FIN, and nothing before it."""
        assert not self._data, bytes(self._data[:200])
        data = self.socket.recv(1 << 18)
        assert data == b"", data[:200]

    def reset(self) -> None:
        """Expect the end of the connection by a RST, whatever is received before it."""
        end = time.monotonic() + DEADLINE_S
        with contextlib.suppress(ConnectionResetError):
            while self.socket.recv(1 << 18):
                assert time.monotonic() < end
            raise AssertionError("it ended by a FIN")

    # ---- ending ----

    def abort(self) -> None:
        """End the connection with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def end(self) -> None:
        """End the connection without a word; twice is fine."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


# ---- what happened in a server ----


class Event(NamedTuple):
    """A call of a handler; messages as str or bytes, exceptions as they are."""

    name: str
    arguments: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{argument!r:.40}' for argument in self.arguments)})"


class Story:
    """What happened to one client, in order."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.events: list[Event] = []

    def named(self, name: str) -> list[Any]:
        """Return the arguments of each call of a handler; of those with one argument, the argument."""
        found = [event.arguments for event in list(self.events) if event.name == name]
        return [arguments[0] if len(arguments) == 1 else arguments for arguments in found]

    @property
    def messages(self) -> list[Any]:
        """What onmessage got."""
        return self.named("onmessage")

    @property
    def closed(self) -> tuple[int, str] | None:
        """What onclose got."""
        found = self.named("onclose")
        return found[0] if found else None

    def check(self) -> None:
        """Check what holds for every connection: onopen first, onclose once and last."""
        names = [event.name for event in self.events]
        assert names[0] == "onopen", names[:10]
        assert names.count("onopen") == 1
        assert names.count("onclose") <= 1
        # an exception in onclose itself is the one thing that may follow it
        after = names[names.index("onclose") + 1 :] if "onclose" in names else []
        assert after in ([], ["onerror"]), names[-10:]


def plain(argument: Any) -> Any:
    """Return messages as str or bytes: what is written down may not be changed by what a handler does."""
    if isinstance(argument, wspy.Message):
        return argument.payload if isinstance(argument.payload, str) else bytes(argument.payload)
    return argument


class Server(ABC):
    """A front end while it runs, with its peers. What it can't do, its subclass leaves out.

    Args:
        address: to listen on.
        handlers: functions by the names in ``HANDLERS``; they get the client first.
        options: arguments of the front end.
    """

    kind: type[Any]
    logger = "wspy.server"
    """Where it tells of connections that have ended."""
    secure = False
    queueing: Mapping[str, Any] = {}
    """Arguments with which a send queues whatever the peer does; where it does so anyway, none."""
    lacks: ClassVar[Mapping[str, str]] = {}
    """What it has not got, of what a scenario may need, and why: see ``needs``.

    Those that take the class of a server, by the fixture ``server_kind``, need "kind" without saying so."""

    def __init__(self, address: Any, handlers: Mapping[str, Callable[..., Any]], options: Mapping[str, Any]) -> None:
        self._handlers = handlers
        self._changed = threading.Condition()
        self._peers: list[RawClient] = []
        self.stories: list[Story] = []
        self.errors: list[BaseException] = []
        """What onerror got without a client."""
        self.expects_errors = "onerror" in handlers
        self._by_client: dict[int, Story] = {}
        self._opened: set[int] = set()  # clients whose onopen has returned
        self.address = address

    # ---- for subclasses ----

    def handle(self, name: str, client: Any, *arguments: Any) -> Any:
        """Write down that a handler was called, and call the test's."""
        with self._changed:
            if client is None:
                self.errors.append(arguments[-1])
            else:
                self._story(client).events.append(Event(name, tuple(map(plain, arguments))))
            self._changed.notify_all()
        handler = self._handlers.get(name)
        try:
            return handler(client, *arguments) if handler is not None else None
        finally:
            if name == "onopen":
                with self._changed:
                    self._opened.add(id(client))
                    self._changed.notify_all()

    def _story(self, client: Any) -> Story:
        story = self._by_client.get(id(client))
        if story is None:
            story = self._by_client[id(client)] = Story(client)
            self.stories.append(story)
        return story

    @abstractmethod
    def start(self) -> None:
        """Begin to serve; when this returns, ``address`` can be connected to."""

    @abstractmethod
    def stop(self) -> None:
        """Ask for a graceful end."""

    @abstractmethod
    def close(self) -> None:
        """End at once, and wait for the end."""

    @abstractmethod
    def ended(self, timeout: float) -> bool:
        """Wait for the end; return whether it came."""

    @abstractmethod
    def bytes_read(self, expected: int = 0) -> int:
        """Return how many bytes it has read from all peers; it may wait a moment for as many as are expected."""

    @abstractmethod
    def connections(self) -> int:
        """Return how many connections there are, also those without an opening handshake."""

    @abstractmethod
    def handshakes(self) -> int:
        """Return how many of them have no opening handshake yet."""

    @abstractmethod
    def cpu_seconds(self) -> float:
        """Return the CPU time that it has used, without that of the test."""

    # ---- for tests ----

    def has(self, capability: str) -> bool:
        """Return whether a part of a scenario can be asked for; a whole one says what it ``needs``."""
        return capability not in self.lacks

    def wait(self, predicate: Callable[[], object], what: str = "") -> None:
        """Wait until something holds that a call of a handler brings about."""
        with self._changed:
            reached = self._changed.wait_for(lambda: predicate(), DEADLINE_S)  # noqa: PLW0108 -- a new call each time
        assert reached, f"{what or 'not reached'}; {[story.events[-5:] for story in self.stories[-5:]]!r:.2000}"

    def connect(self, **options: Any) -> RawClient:
        """Return a client whose connection is there and nothing more."""
        peer = RawClient(self.address, secure=self.secure, **options)
        self._peers.append(peer)
        return peer

    def paced(self) -> RawClient:
        """Return a client whose pieces arrive one by one, if no other peer sends meanwhile."""
        return self.connect(pace=self.bytes_read)

    def open(self, path: str = "/", headers: Iterable[tuple[str, str]] = (), **options: Any) -> RawClient:
        """Return a client after its opening handshake."""
        peer = self.connect(**options)
        peer.open(path, headers)
        return peer

    def story(self, peer: RawClient) -> Story:
        """Return what happened to a peer, once its onopen was called."""
        found: list[Story] = []

        def is_there() -> bool:
            # the latest: a port may be used again
            latest = (story for story in reversed(self.stories) if story.client.remote_address[:2] == peer.address[:2])
            found.extend(islice(latest, 1))
            return bool(found)

        self.wait(is_there, "onopen")
        return found[0]

    def client(self, peer: RawClient) -> Any:
        """Return the server's object for a peer, once its onopen has returned."""
        client = self.story(peer).client
        self.wait(lambda: id(client) in self._opened, "onopen has returned")
        return client

    def outcome(self, peer: RawClient) -> tuple[int, str]:
        """Return what onclose got for a peer, once it was called."""
        story = self.story(peer)
        self.wait(lambda: story.closed, "onclose")
        assert story.closed is not None
        return story.closed

    def finish(self) -> None:
        """End everything, and check what holds for every server."""
        for peer in self._peers:
            peer.end()
        self.close()
        for story in self.stories:
            story.check()
        if not self.expects_errors:
            raised = [*self.errors, *(error for story in self.stories for error in story.named("onerror"))]
            assert not raised, raised


class Epoll(Server):
    """``AsyncServer`` in a thread of its own."""

    kind = wspy.AsyncServer

    def __init__(self, address: Any, handlers: Mapping[str, Callable[..., Any]], options: Mapping[str, Any]) -> None:
        super().__init__(address, handlers, options)
        methods = {name: self._method(name) for name in {*ALWAYS, *handlers}}
        if self.secure:
            options = {"ssl": server_context(), **options}
        self.server = type("Recorded", (self.kind,), methods)(address, **options)
        self.address = self.server.address

    def _method(self, name: str) -> Callable[..., Any]:
        if name == "onrequest":  # there is no client yet
            return lambda _, request: self._handlers["onrequest"](request)
        return lambda _, client, *arguments: self.handle(name, client, *arguments)

    def start(self) -> None:
        self.server.start()

    def stop(self) -> None:
        self.server.stop()

    def ended(self, timeout: float = DEADLINE_S) -> bool:
        return bool(self.server.join(timeout))

    def close(self) -> None:
        if self.server.loop.closed:
            return
        self.server.close()
        assert self.ended(), "it does not end"

    def bytes_read(self, expected: int = 0) -> int:
        # asked several times for each byte that a peer sends: one number, and not all that stats() has
        stats = ffi.new("wspy_stats *")
        assert lib.wspy_loop_stats(self.server.loop._loop, stats) == 0
        return stats.bytes_received

    def connections(self) -> int:
        return int(self.server.stats()["connections"])

    def handshakes(self) -> int:
        return int(self.server.stats()["handshakes"])

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the server's thread, and return what it returns."""
        result: Future[Any] = Future()

        def call() -> None:
            try:
                result.set_result(function(*arguments))
            except BaseException as error:  # noqa: BLE001 -- raised again below
                result.set_exception(error)

        self.server.call_soon(call)
        return result.result(DEADLINE_S)

    def change_tls(self, context: Any) -> None:
        """Serve who comes from now on with another context."""
        self.server.reload_tls(context)

    def cpu_seconds(self) -> float:
        """Return the CPU time that the server's thread has used."""
        return float(self.call(time.thread_time))


class Threaded(Epoll):
    """``Server``, whose clients have threads of their own."""

    kind = wspy.Server
    queueing: ClassVar = {"write_limit": None}

    def __init__(self, address: Any, handlers: Mapping[str, Callable[..., Any]], options: Mapping[str, Any]) -> None:
        self._inside: dict[object, tuple[int, float]] = {}
        """Of each handler of the test's that runs: in which thread, and since when."""
        super().__init__(address, handlers, options)

    def handle(self, name: str, client: Any, *arguments: Any) -> Any:
        return self._noted(super().handle, name, client, *arguments)

    def _method(self, name: str) -> Callable[..., Any]:
        method = super()._method(name)
        return (lambda _, request: self._noted(method, None, request)) if name == "onrequest" else method

    def _noted(self, handler: Callable[..., Any], *arguments: Any) -> Any:
        call = object()
        self._inside[call] = (threading.get_ident(), time.monotonic())
        try:
            return handler(*arguments)
        finally:
            del self._inside[call]

    def _blocked(self) -> set[int]:
        """Return the threads that don't come out of a handler, as it seems."""
        latest = time.monotonic() - BLOCKED_S
        return {thread for thread, since in list(self._inside.values()) if since < latest}

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the server's thread, and wait until threads have handled what came up before."""
        result = super().call(function, *arguments)
        until(self._are_attended, "who has gone was told of")
        for client in {*self.server.clients, *(story.client for story in list(self.stories))}:
            self._settle(client)
        return result

    def _are_attended(self) -> bool:
        return len(self.server.clients) + len(self._blocked()) >= self.server._threads.busy

    def _settle(self, client: Any) -> None:
        """Wait until a client's thread has nothing to do or has ended, or is blocked by the test."""
        done = threading.Event()

        def is_away() -> bool:
            return client._thread_id < 0 or client._thread_id in self._blocked()

        until(lambda: is_away() or client._inbox.empty(), "handled")
        self.server._in_its_thread(client, done.set)
        until(lambda: is_away() or done.is_set(), "handled")


class Traffic:
    """What the sockets of a listener have received, and which of them are open."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.received = 0
        self.open: set[WatchedSocket] = set()


class WatchedSocket(socket.socket):
    """A socket whose traffic is counted, with that of those that it accepts."""

    traffic: Traffic

    def accept(self) -> tuple[WatchedSocket, Any]:
        plain, address = super().accept()
        sock = WatchedSocket(fileno=plain.detach())
        sock.traffic = self.traffic
        with self.traffic.changed:
            self.traffic.open.add(sock)
        return sock, address

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = super().recv(size, flags)
        with self.traffic.changed:
            self.traffic.received += len(data)
            self.traffic.changed.notify_all()
        return data

    def close(self) -> None:
        with self.traffic.changed:
            self.traffic.open.discard(self)
        super().close()


class Conversation(wspy.Connection):
    """A ``Connection`` that tells its front end, with the names that clients of a server have."""

    def __init__(self, sock: wspy.websocket, front_end: Connections, **policies: Any) -> None:
        self.front_end = front_end
        self.data: Any = None
        self.request, self.path, self.subprotocol = sock.request, sock.location, sock.protocol
        self.remote_address = sock.request.remote_address if sock.request else None
        super().__init__(sock, **policies)

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        """Close, without waiting for a peer that the calling thread may be, too."""
        if threading.get_ident() in self.front_end.threads:
            super().close(code, reason)
        else:
            self.front_end.run(partial(super().close, code, reason), self.sock._is_closing)

    @property
    def extensions(self) -> tuple[Any, ...]:
        return tuple(self.sock.extension_instances)

    def onopen(self) -> None:
        self.front_end.handle("onopen", self)

    def onmessage(self, message: wspy.Message) -> None:
        self.front_end.handle("onmessage", self, message)

    def onping(self, payload: bytes) -> None:
        self._optional("onping", payload)

    def onpingreceived(self, payload: bytes) -> None:
        self._optional("onpingreceived", payload)

    def onpong(self, payload: bytes) -> None:
        self._optional("onpong", payload)

    def _optional(self, name: str, payload: bytes) -> None:
        if self.front_end.wants(name):
            self.front_end.handle(name, self, payload)

    def onclose(self, code: int, reason: str) -> None:
        self.front_end.handle("onclose", self, code, reason)

    def onerror(self, e: Exception) -> None:
        self.front_end.handle("onerror", self, e)


class Connections(Server):
    """A ``websocket`` that listens, and a thread with a ``Connection`` for each client."""

    logger = "wspy.connection"
    lacks: ClassVar = {
        "abort": "a Connection ends by a closing handshake",
        "BaseException": "receive_forever raises what is no Exception",
        "broadcast": "a Connection knows no others",
        "calls": "no thread of its own calls anything later",
        "clients": "a Connection knows no others, and no server",
        "http": "a websocket takes opening handshakes and nothing else, and its user is asked about none",
        "keepalive": "it sends no pings of its own, and nobody counts while nobody receives",
        "kind": "a Connection is no server, and what is about the class of one isn't about it",
        "log": "it writes other lines",
        "onframe": "websocket has frames",
        "onopen": "Connection() raises what its onopen raises",
        "onsent": "send() returns when the kernel has it",
        "pause": "who wants no messages doesn't receive",
        "policies": "it has not got that argument",
        "queue": "send() waits for a peer that doesn't read",
        "seam": "it reads and writes by Python's sockets, whose system calls can't be made to fail",
        "stats": "it counts nothing",
        "stop": "there is no server to stop",
    }

    def __init__(self, address: Any, handlers: Mapping[str, Callable[..., Any]], options: Mapping[str, Any]) -> None:
        super().__init__(address, handlers, options)
        policies = {"ssl": server_context(), **options} if self.secure else dict(options)
        of_connection = policies.keys() & {"close_timeout", "write_timeout", "max_controls"}
        self._of_connection = {name: policies.pop(name) for name in of_connection}
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        listener = WatchedSocket(family, socket.SOCK_STREAM)
        self._traffic = listener.traffic = Traffic()
        try:
            self._listener = wspy.websocket(listener, **policies)
            self._listener.bind(address)
            self._listener.listen(1024)
        except BaseException:
            listener.close()
            raise
        self.address = self._listener.getsockname()
        wspy.connection._journal.flush()  # of the whole process: lines about this address don't count yet
        self.threads: dict[int, threading.Thread] = {}
        self._running = threading.Lock()  # these threads, whose CPU time can be asked for
        self._used_seconds = 0.0

    def wants(self, name: str) -> bool:
        """Return whether the test has such a handler."""
        return name in self._handlers

    def start(self) -> None:
        self._start(self._accept)

    def _start(self, function: Callable[[], object]) -> threading.Thread:
        is_listed = threading.Event()

        def run() -> None:
            ident = threading.get_ident()
            with self._running:
                self.threads[ident] = threading.current_thread()
            is_listed.set()
            try:
                function()
            finally:
                with self._running:
                    self._used_seconds += time.thread_time()
                    del self.threads[ident]

        thread = threading.Thread(target=run)
        thread.start()
        is_listed.wait(DEADLINE_S)
        return thread

    def run(self, function: Callable[[], object], is_done: Callable[[], bool]) -> None:
        """Call a function in a thread of its own, and return when it does what it is called for, or raise."""
        raised: list[BaseException] = []

        def call() -> None:
            try:
                function()
            except BaseException as error:  # noqa: BLE001 -- raised again below
                raised.append(error)

        thread = self._start(call)
        until(lambda: is_done() or not thread.is_alive(), "called")
        if raised:
            raise raised[0]

    def _accept(self) -> None:
        with self._listener, contextlib.suppress(OSError):  # close() shuts it down
            while True:
                sock, _ = self._listener.accept()
                self._start(partial(self._converse, sock))

    def _converse(self, sock: wspy.websocket) -> None:
        try:
            with sock:
                Conversation(sock, self, **self._of_connection).receive_forever()
        except BaseException as error:  # noqa: BLE001 -- finish() raises an assertion about it
            self.errors.append(error)

    def stop(self) -> None:
        raise NotImplementedError(self.lacks["stop"])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        end = time.monotonic() + DEADLINE_S
        while not self.ended(0.01) and time.monotonic() < end:
            with self._traffic.changed:
                for sock in self._traffic.open:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
        assert self.ended(), "it does not end"

    def ended(self, timeout: float = DEADLINE_S) -> bool:
        end = time.monotonic() + timeout
        while self.threads and time.monotonic() < end:
            with self._running:
                threads = list(self.threads.values())
            for thread in threads:
                thread.join(max(end - time.monotonic(), 0))
        return not self.threads

    def bytes_read(self, expected: int = 0) -> int:
        with self._traffic.changed:
            self._traffic.changed.wait_for(lambda: self._traffic.received >= expected, 0.001)
            return self._traffic.received

    def connections(self) -> int:
        # a thread calls onclose after its socket was closed; one of them accepts
        return max(len(self._traffic.open), len(self.threads) - 1)

    def outcome(self, peer: RawClient) -> tuple[int, str]:
        """As in ``Server``; a peer whose connection was ended by the server ends it, too, as RFC 6455 §7.1.1 has it.

        A server calls onclose without waiting for that, a Connection waits a second for it.
        """
        story = self.story(peer)
        if peer.socket.fileno() >= 0:
            until(lambda: story.closed or peer.is_ended(), "ended")
            with contextlib.suppress(OSError):  # nobody is left who could be told
                peer.half_close()
        return super().outcome(peer)

    def change_tls(self, context: Any) -> None:
        """Serve who comes from now on with another context."""
        self._listener.ssl = context

    def handshakes(self) -> int:
        return len(self._traffic.open) - sum(story.closed is None for story in self.stories)

    def cpu_seconds(self) -> float:
        with self._running:
            clocks = map(time.pthread_getcpuclockid, self.threads)
            return self._used_seconds + sum(time.clock_gettime(clock) for clock in clocks)


WITHOUT_TLS: Final = {
    "kind": "who makes a server by himself gets one without TLS",
    "prompt": "TLS needs the server's thread: for a handshake, and to encrypt what is sent",
    "raw sockets": "its peers speak TLS, and these don't",
    "seam": "one system call more or less is of TLS",
}


class SecureEpoll(Epoll):
    """``AsyncServer`` that speaks TLS."""

    secure = True
    lacks = WITHOUT_TLS


class SecureThreaded(Threaded):
    """``Server`` that speaks TLS."""

    secure = True
    lacks = WITHOUT_TLS


class SecureConnections(Connections):
    """The same that speaks TLS."""

    secure = True
    lacks: ClassVar = {**Connections.lacks, **WITHOUT_TLS}


FRONT_ENDS: Final[dict[str, type[Server]]] = {
    "epoll": Epoll,
    "threads": Threaded,
    "connection": Connections,
    "epoll-tls": SecureEpoll,
    "threads-tls": SecureThreaded,
    "connection-tls": SecureConnections,
}
PLAIN: Final = [name for name, kind in FRONT_ENDS.items() if not kind.secure]
SECURE: Final = [name for name, kind in FRONT_ENDS.items() if kind.secure]


def only(*front_ends: str, because: str) -> pytest.MarkDecorator:
    """Run a scenario on some front ends alone; ``because`` says what the others don't promise, or haven't got."""
    assert because
    return pytest.mark.parametrize("front_end", front_ends, indirect=True)


def needs(*capabilities: str) -> pytest.MarkDecorator:
    """Leave a scenario, or a parameter of it, out on front ends that ``lack`` one of these; they say why."""
    return pytest.mark.needs(*capabilities)


def marked(names: Iterable[str], needed: Mapping[str, str]) -> list[Any]:
    """Return parameters, each with what it needs, if anything."""
    return [pytest.param(name, marks=needs(needed[name])) if name in needed else name for name in names]


def is_out_of_reach(item: pytest.Item) -> bool:
    """Return whether a test needs what its front end has not got."""
    front_end = item.callspec.params.get("front_end") if hasattr(item, "callspec") else None
    if front_end is None:
        return False
    needed = {name for marker in item.iter_markers("needs") for name in marker.args}
    if "server_kind" in getattr(item, "fixturenames", ()):
        needed.add("kind")
    return not needed.isdisjoint(FRONT_ENDS[front_end].lacks)


class Servers:
    """The servers of a test: ``servers(onmessage=..., max_size=...)`` starts one, the end of the test ends all.

    A scenario whose peers don't read what it sends says ``queues=True``: else a send might wait for them.
    """

    def __init__(self, front_end: str) -> None:
        self.front_end = front_end
        self._servers: list[Server] = []

    def has(self, capability: str) -> bool:
        """Return whether servers have it, see ``Server.has``."""
        return capability not in FRONT_ENDS[self.front_end].lacks

    def __call__(self, address: Any = ("127.0.0.1", 0), *, queues: bool = False, **arguments: Any) -> Any:
        kind = FRONT_ENDS[self.front_end]
        handlers = {name: value for name, value in arguments.items() if name in HANDLERS}
        options = {name: value for name, value in arguments.items() if name not in HANDLERS}
        server = kind(address, handlers, {**options, **(kind.queueing if queues else {})})
        self._servers.append(server)
        server.start()
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:
            for server in self._servers:
                stack.callback(server.finish)


def echo(client: Any, message: Any) -> None:
    """Answer a message with itself: the handler of many tests."""
    client.send(message)
