"""A connection of a server, as its handlers see it, and all that are open.

Names with an underscore are shared with the servers, and with nothing else.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator
from copy import copy
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from . import loop as core
from .closure import closure
from .codes import CloseCode, Opcode
from .errors import PingError, ProtocolError, SocketClosed
from .frames import FIN, MAX_CONTROL, Frame, close_payload, fragments, received_frame
from .journal import peer_name
from .loop import BINARY_PREFIXES, SHORT, TEXT_PREFIXES
from .messages import (
    BinaryMessage,
    Message,
    ReceivedBinary,
    ReceivedText,
    Sendable,
    TextMessage,
    create_message,
)

if TYPE_CHECKING:
    from ssl import SSLObject

    from .closure import Closure
    from .extensions import Extension
    from .http11 import Request
    from .serving import BaseServer

__all__ = ["AnyClient", "AsyncClient", "Clients", "MarkingClient", "checked_control", "least_size", "limited"]

AnyClient = TypeVar("AnyClient", bound="AsyncClient")

Commands: TypeAlias = list[Any]  # keys, prefixes and payloads, as loop.py wants them

# AsyncClient._mode: what becomes of its events.
DELIVER: Final = 0
HOLD: Final = 1
DROP: Final = 2

MAX_FRAME: Final = (1 << 32) - 16  # with its header it has a length of 32 bits in the queue


class Rare:
    """What only some connections need, made when it is first needed."""

    __slots__ = (
        "close_code",
        "close_reason",
        "ending",
        "failure",
        "fragments",
        "held",
        "is_aborted",
        "is_over",
        "limit",
        "peer",
        "resumes",
        "sent",
        "ssl_object",
    )

    def __init__(self) -> None:
        # what arrived during a pause: kind, payload, and whether onframe has seen it
        self.held: deque[tuple[int, bytes, bool]] = deque()
        self.resumes = False
        # what the kernel has not taken yet, by the number of its command; taken from here while threads add
        self.sent: OrderedDict[int, Message | Frame] = OrderedDict()
        self.fragments: list[bytes] = []
        self.is_aborted = False
        self.failure: ProtocolError | None = None  # of what the peer sent, as an extension has found
        self.close_code: int | None = None
        self.close_reason = ""
        self.ending: core.Ending | None = None
        self.is_over = False  # onclose is next
        self.limit: str | None = None  # because of which this side has begun to close
        self.peer: core.Address | None = None
        self.ssl_object: SSLObject | None = None


class AsyncClient:
    """One client of an ``AsyncServer``; the server makes it.

    Every method may be called from any thread and from every handler, and none blocks. Clients can be compared,
    hashed and weakly referenced; each stands for one connection only.

    Attributes:
        server: the server it belongs to.
        data: free for the application; None at first.
        subprotocol: the one that was agreed upon, or None (RFC 6455 §1.9).
        username: who it is, as ``auth`` has found, or what ``onrequest`` has set as ``request.username``; or None.
    """

    __slots__ = (
        "__weakref__",
        "_key",
        "_mode",
        "_rare",
        "_request",
        "_state",
        "data",
        "server",
        "subprotocol",
        "username",
    )

    def __init__(self, server: BaseServer[Any], handle: int, request: Request, subprotocol: str | None) -> None:
        self.server = server
        self.data: Any = None
        self.subprotocol = subprotocol
        self.username = request.username
        self._key = core.key(handle)
        self._request: Request | bytes | None = request
        # changed by the server's thread only, but for the DROP of an abort
        self._mode = DELIVER
        # why nothing can be sent: None while something can, else who began to close
        self._state: SocketClosed | None = None
        self._rare: Rare | None = None

    # ---- sending ----

    def send(
        self,
        message: Sendable,
        fragment_size: int | None = None,
        compress: bool | None = None,  # noqa: ARG002 -- nothing compresses here; by position, since by name alone it costs
    ) -> None:
        """Queue a message and return at once; ``onsent`` tells when the kernel has it.

        Args:
            message: a ``TextMessage`` or a str, a ``BinaryMessage`` or a buffer. It may be changed afterwards.
            fragment_size: split it into frames of so many bytes of payload (RFC 6455 §5.4); None for one frame.
            compress: whether to compress it, if that was agreed upon; None leaves it to the extension.
                A secret should not be compressed together with what others have a say in (RFC 7692 §8).

        Raises:
            SocketClosed: the connection is closed or closing.
            TypeError: it is no message.
            ValueError: ``fragment_size`` is below 1; a text has a lone surrogate (RFC 3629 §3); a message above 4 GiB
                has no ``fragment_size``; or its opcode isn't text or binary, nor one that an extension has claimed.
            Exception: of an extension; the connection is closed with 1011.
        """
        kind = type(message)
        if kind is ReceivedBinary or kind is BinaryMessage:
            payload = message.payload  # type: ignore[union-attr]
            prefixes = BINARY_PREFIXES
        elif kind is ReceivedText or kind is TextMessage:
            payload = message.payload.encode()  # type: ignore[union-attr]
            prefixes = TEXT_PREFIXES
        elif kind is str:
            payload = message.encode()  # type: ignore[union-attr]
            prefixes = TEXT_PREFIXES
        else:
            whole = create_message(message)
            self._send_otherwise(whole, whole.bytes, fragment_size)
            return
        # nothing but immutable bytes may wait in the queue
        if fragment_size is None and self._state is None and type(payload) is bytes and len(payload) < SHORT:
            server = self.server
            server._push((self._key, prefixes[len(payload)], payload))
            # in a handler it waits for those that follow; every other thread does its own writing
            if get_ident() != server._busy:
                server._write()
            return
        self._send_otherwise(create_message(message), bytes(payload), fragment_size)  # type: ignore[arg-type]

    def _send_otherwise(self, message: Message, payload: bytes, fragment_size: int | None) -> None:
        self._check_open()
        if fragment_size is None and len(payload) > MAX_FRAME:
            raise ValueError("a message above 4 GiB needs a fragment_size")
        if len(payload) <= core.LARGE:
            self.server._push(self._commands(message, payload, fragment_size))
            self.server._flush()
            return
        self.server.loop.has_large = True
        self.server._push(self._commands(message, payload, fragment_size))
        # At once, even in a handler: a batch of such payloads is memory that malloc gives back to the system, and asks
        # for again, in each turn.
        self.server._submit()

    def _commands(self, message: Message, payload: bytes, fragment_size: int | None) -> Commands:
        """Return what to queue for a message: keys and payloads."""
        if fragment_size is None:
            return [self._key, core.message_prefix(FIN | message.opcode, len(payload)), payload]
        commands: Commands = []
        for first, part in fragments(message.opcode, payload, fragment_size):
            commands += (self._key, core.message_prefix(first, len(part)), part)
        return commands

    def _marked(self, commands: Commands, message: Message) -> Commands:  # noqa: ARG002 -- for MarkingClient
        """Return the commands of a message, and what tells of its end if somebody wants to know."""
        return commands

    def _check_open(self) -> None:
        if self._state is not None:
            # a new one for each who is told: it gets a traceback
            raise copy(self._state)

    def send_frame(self, frame: Frame) -> None:
        """Queue a control frame with an opcode from 11 to 15 that an extension has claimed (RFC 6455 §5.2, §9).

        Its ``onsend`` transforms it. Everything else has methods of its own: ``send``, ``send_ping``, ``close``.

        Raises:
            SocketClosed: the connection is closed or closing.
            TypeError: this is no ``Frame``.
            ValueError: it breaks a rule, such as that of 125 bytes; or no extension has claimed its opcode.
            Exception: of the extension; the connection is closed with 1011.
        """
        checked_control(frame, 0)

    def send_ping(self, payload: bytes | str = b"") -> None:
        """Queue a Ping (RFC 6455 §5.5.2); ``onping`` tells when the kernel has it, ``onpong`` when it was answered.

        Args:
            payload: at most 125 bytes; a str is sent as UTF-8.

        Raises:
            PingError: the payload is too long.
            SocketClosed: the connection is closed or closing.
        """
        data = payload.encode() if isinstance(payload, str) else bytes(memoryview(payload))
        if len(data) > MAX_CONTROL:
            raise PingError(f"the payload of a Ping has at most {MAX_CONTROL} bytes, this one has {len(data)}")
        self._check_open()
        self.server._push(self._ping_commands(data))
        self.server._flush()

    def _ping_commands(self, payload: bytes) -> Commands:
        prefix = core.message_prefix(FIN | Opcode.PING, len(payload))
        if not self.server._hears_pings:
            return [self._key, prefix, payload]
        ping = received_frame(Opcode.PING, payload)
        return [*core.note(self._handle, ping), core.key(self._handle | core.MARK), prefix, payload]

    # ---- ending ----

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        """Begin the closing handshake (RFC 6455 §7.1.2): what was queued before is still sent, then a Close frame.

        Messages go on arriving until the peer's Close, or until ``close_timeout``; then ``onclose`` is called. This
        ends a pause: what is held is delivered, since the peer's Close comes behind it. Nothing happens if the
        connection is closed or closing.

        Args:
            code: 1000 to 1003, 1007 to 1014 or 3000 to 4999; None for a Close frame without one.
            reason: at most 123 bytes of UTF-8.

        Raises:
            TypeError: the reason is not a str, or the code not an int.
            ValueError: the code may not be sent (RFC 6455 §7.4), or the reason is too long.
        """
        payload = close_payload(code, reason)
        if self._state is not None:
            return
        sent = (CloseCode.NO_STATUS if code is None else code, reason)
        self._state = SocketClosed(initialized=True, message="this side has closed the connection", sent=sent)
        self._push_in_order(core.command(self._handle | core.CLOSE, payload))
        self.server._flush()
        if self._mode == HOLD:
            self.resume_reading()

    def _push_in_order(self, commands: core.Command) -> None:
        """Queue commands behind what was sent before."""
        self.server._push(commands)

    def abort(self) -> None:
        """End the connection at once, with a reset: queued bytes are lost, and nothing is delivered but ``onclose``."""
        # in this order: see _change_mode
        self.server._rare_of(self).is_aborted = True
        self._mode = DROP
        if self._state is None:
            self._state = SocketClosed(initialized=True, message="this side has aborted the connection")
        if self.server.loop.closed:
            return
        self.server._push(core.command(self._handle | core.ABORT))
        self.server._flush()

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more, because either side has closed."""
        return self._state is not None

    @property
    def closure(self) -> Closure | None:
        """How the connection ended; None before ``onclose``. Thread-safe."""
        state, rare = self._state, self._rare
        if state is None or rare is None or rare.ending is None or not rare.is_over:
            return None
        return closure(rare.ending, state, rare.limit)

    @property
    def latency(self) -> float | None:
        """Seconds between the last keepalive ping that was answered and its pong; None before the first. Thread-safe.

        It includes how long this side took to come to the pong.
        """
        return self.server.loop.latency(self._handle)

    # ---- flow control ----

    def pause_reading(self) -> None:
        """Deliver no more messages until ``resume_reading``: the peer will have to wait, once buffers are full.

        In ``onframe`` this holds the message of that frame, too. From another thread it takes effect a little later.
        ``close`` and ``stop`` end a pause, and after them there is none.
        """
        self.server._in_its_thread(self, self._pause)

    def _pause(self) -> None:
        if self._is_closing():
            return
        if self._rare is not None:
            self._rare.resumes = False
        if self._mode != DELIVER:
            return
        self._change_mode(HOLD)
        self.server._push(core.command(self._handle | core.PAUSE))
        self.server._flush()
        if self._is_closing():  # another thread has begun to, and saw no pause that it could end
            self._resume()

    def resume_reading(self) -> None:
        """Deliver messages again, first those that had arrived."""
        self.server._in_its_thread(self, self._resume)

    def _resume(self) -> None:
        if self._mode == HOLD:
            self._its_rare().resumes = True
            # not now: the handler that asks for it has not returned yet
            self.server._after_its_handler(self, self.server._deliver_held)

    def _is_closing(self) -> bool:
        """Whether this side has begun to close."""
        return self._state is not None and self._state.initialized

    def _change_mode(self, mode: int) -> None:
        """Change what becomes of events, for the server's thread; an abort of another thread stays."""
        self._mode = mode
        if self._its_rare().is_aborted:
            self._mode = DROP

    @property
    def buffered_amount(self) -> int:
        """Bytes of queued messages that the kernel has not taken yet."""
        server = self.server
        # the child of a fork has closed what its parent goes on sending to
        if server.loop.closed or (self._state is not None and self not in server.clients):
            return 0
        server._submit()
        return server.loop.backlog(self._handle)

    # ---- who it is ----

    @property
    def extensions(self) -> tuple[Extension.Instance, ...]:
        """What was agreed upon, in the order in which it transforms what is sent (RFC 6455 §9.1)."""
        return ()

    @property
    def request(self) -> Request | None:
        """The request of the opening handshake, parsed anew at each look; None if it was not kept."""
        request = self._request
        if isinstance(request, bytes):
            request = self.server.handshake.read(self._kept(request))
            request.remote_address = self.remote_address
            request.ssl_object = self.ssl_object
            request.username = self.username
        return request

    def _keep(self, head: bytes) -> bytes:
        """Return a request head as it is kept."""
        return head

    def _kept(self, head: bytes) -> bytes:
        """Return a request head from what was kept."""
        return head

    @property
    def path(self) -> str | None:
        """The path with the query that was asked for (RFC 6455 §3); None if the request was not kept."""
        request = self.request
        return None if request is None else request.path

    @property
    def remote_address(self) -> core.Address | None:
        """The peer's address, as ``socket.getpeername`` has it: (host, port) for IPv4; "" for a Unix socket."""
        if self._rare is not None and self._rare.peer is not None:
            return self._rare.peer
        return self.server.loop.peer(self._handle)

    @property
    def ssl_object(self) -> SSLObject | None:
        """What tells about TLS, such as the client's certificate by ``getpeercert()``; None without TLS.

        It is not to be read from or written to.
        """
        if self._rare is not None and self._rare.ssl_object is not None:
            return self._rare.ssl_object
        return self.server._ssl_object(self._handle)

    @property
    def secure(self) -> bool:
        """Whether the connection goes through TLS."""
        return self.server.secure

    @property
    def _handle(self) -> int:
        """What the loop calls this connection; it never gives this name again."""
        return core.handle(self._key)

    # of those with a thread of their own, and where events wait for that
    _thread: Any = None
    _inbox: Any = None

    def _own(self) -> tuple[object, ...]:
        """Return the objects that each client of this kind has for itself alone, and whose size doesn't change."""
        return self, self._key

    def _its_rare(self) -> Rare:
        """Return the part that few connections need; for the server's thread."""
        if self._rare is None:
            # another thread may have made it: setdefault is atomic, and no lock that what interrupts this thread
            # could wait for
            self._rare = self.server._rares.setdefault(self._key, Rare())
        return self._rare

    def __str__(self) -> str:
        return peer_name(self.remote_address)

    def __repr__(self) -> str:
        return f"<AsyncClient {self}{' closed' if self.closed else ''}>"


def checked_control(frame: Frame, opcodes: int) -> bytes:
    """Return the payload of a control frame that an extension has claimed.

    Args:
        frame: what the user wants to send.
        opcodes: that were claimed, bit n for opcode n.

    Raises:
        TypeError: it is no frame.
        ValueError: it can't be sent.
    """
    if not isinstance(frame, Frame):
        raise TypeError(f"this is no Frame but of type {type(frame).__name__}: messages are for send")
    if not frame.is_control or frame.opcode <= Opcode.PONG:
        raise ValueError(f"opcode {frame.opcode} is not for extensions to claim: use send, send_ping or close")
    if not opcodes >> frame.opcode & 1:
        raise ValueError(f"opcode {frame.opcode} is reserved, and no extension has claimed it (RFC 6455 §5.2)")
    if frame.first_byte() != FIN | frame.opcode or len(frame.payload) > MAX_CONTROL:
        raise ValueError(
            f"a control frame is final, with {MAX_CONTROL} bytes at most and no reserved bit (RFC 6455 §5.5)"
        )
    return frame.payload


class MarkingClient(AsyncClient):
    """A client of a server that overrides ``onsent``: every message leaves a note of itself in the queue."""

    __slots__ = ()

    def send(
        self,
        message: Sendable,
        fragment_size: int | None = None,
        compress: bool | None = None,  # noqa: ARG002 -- see AsyncClient
    ) -> None:
        """See ``AsyncClient.send``."""
        whole = create_message(message)
        self._send_otherwise(whole, whole.bytes, fragment_size)

    def _commands(self, message: Message, payload: bytes, fragment_size: int | None) -> Commands:
        return self._marked(super()._commands(message, payload, fragment_size), message)

    def _marked(self, commands: Commands, message: Message) -> Commands:
        commands[-3] = core.key(self._handle | core.MARK)
        return [*core.note(self._handle, message), *commands]


class LimitedClient(AsyncClient):
    """What is put before the class of clients whose sends depend on what is unsent."""

    __slots__ = ()

    def send(
        self,
        message: Sendable,
        fragment_size: int | None = None,
        compress: bool | None = None,
        **options: Any,
    ) -> None:
        """See ``AsyncClient.send``; or raise ``WriteLimitError``, or do nothing, as ``write_policy`` says."""
        if self.server._may_send(self, message):
            super().send(message, fragment_size, compress, **options)


def least_size(message: Sendable) -> int:
    """Return how many bytes a message has, or, of a text that is not ASCII, fewer."""
    payload = message.payload if isinstance(message, Message) else message
    return len(payload) if isinstance(payload, str) else memoryview(payload).nbytes


_limited: dict[type, type] = {}


def limited(kind: type[AnyClient]) -> type[AnyClient]:
    """Return the class of clients like these whose ``send`` minds ``write_limit``."""
    if kind not in _limited:
        _limited[kind] = type(kind.__name__, (LimitedClient, kind), {"__slots__": (), "__module__": kind.__module__})
    return _limited[kind]


class Clients(Collection[AnyClient]):
    """The open connections of a server, now. Safe to use from any thread while they come and go."""

    def __init__(self) -> None:
        self._slots: list[AnyClient | None] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[AnyClient]:
        return iter([client for client in self._slots.copy() if client is not None])

    def __contains__(self, client: object) -> bool:
        return isinstance(client, AsyncClient) and self._find(client._handle & core.SLOT) is client

    def __repr__(self) -> str:
        return f"<Clients {len(self)}>"

    def _find(self, slot: int) -> AnyClient | None:
        return self._slots[slot] if slot < len(self._slots) else None

    def _add(self, slot: int, client: AnyClient) -> None:
        if slot >= len(self._slots):
            # to twice its length: each growth by a little leaves a hole behind, which nothing else fits into
            self._slots += [None] * max(slot + 1 - len(self._slots), len(self._slots))
        self._slots[slot] = client
        self._count += 1

    def _remove(self, slot: int) -> None:
        self._slots[slot] = None
        self._count -= 1
