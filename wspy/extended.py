"""How does a client of a server send and receive if extensions were agreed upon?

Names with an underscore are shared with the servers, and with nothing else.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, Final

from . import loop as core
from .async_client import MAX_FRAME, AsyncClient, MarkingClient
from .codes import CloseCode, Opcode
from .deflate import DeflateMessage
from .errors import ProtocolError, SocketClosed
from .frames import FIN, received_frame
from .messages import Message, ReceivedBinary, ReceivedText, create_message

if TYPE_CHECKING:
    from collections.abc import Callable

    from .extensions import Agreement, Chain, Extension
    from .frames import Frame
    from .http11 import Request
    from .messages import Sendable
    from .serving import BaseServer

__all__ = ["Exchange", "ExtendedClient", "ExtendedMarkingClient", "Extends"]

log = logging.getLogger("wspy.server")

_COMPRESSED: Final = FIN | 0x40  # RSV1
_INVALID_TEXT: Final = "a text message is not valid UTF-8 (RFC 6455 §8.1)"


class Exchange:
    """The extensions of one connection at work, from its first message on.

    What they send depends on what they have sent, so messages have to reach the queue in the order in which they were
    transformed: one thread at a time does both.

    Args:
        chain: the extensions.
        is_orderly: whether that holds; without context takeover it doesn't.
    """

    __slots__ = ("_delayed", "_lock", "_sender", "chain", "deflate", "has_failed", "is_orderly")

    def __init__(self, chain: Chain, *, is_orderly: bool = True) -> None:
        self.chain = chain
        instances = chain.instances
        # nothing but permessage-deflate, as it mostly is: it needs no frames
        is_alone = len(instances) == 1 and type(instances[0]) is DeflateMessage.Instance
        self.deflate: Any = instances[0] if is_alone else None
        self.is_orderly = is_orderly
        self.has_failed = False
        self._lock = Lock()
        self._sender = 0  # the thread that holds the lock
        self._delayed: deque[Callable[[], object]] = deque()

    def in_order(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function alone: behind that of another thread, and behind the one that this thread is in.

        The latter is what a signal handler or a finalizer asks for that interrupts it, or the extension itself.
        """
        thread = get_ident()
        if self._sender == thread:
            self._delayed.append(partial(function, *arguments))
            return
        with self._lock:
            # no signal handler can run between the lock and this
            self._sender = thread
            try:
                function(*arguments)
            finally:
                if self._delayed:
                    self._catch_up()
                self._sender = 0

    def _catch_up(self) -> None:
        while self._delayed:
            try:
                self._delayed.popleft()()
            except SocketClosed:
                log.debug("a message was sent too late to a connection that is closed")
            except Exception:
                log.exception("a message could not be sent")


class Extends(AsyncClient):
    """What clients with extensions have in common; their slots are in the classes below, whose bases differ."""

    __slots__ = ()

    _agreed: Agreement
    _exchange: Exchange | None

    def _its_exchange(self) -> Exchange:
        """Return the extensions at work; whoever comes first makes them, from any thread."""
        if self._exchange is None:
            server = self.server
            fresh = Exchange(self._agreed.chain(server._max_size), is_orderly=self._agreed.sharing is None)
            # atomic: see _its_rare
            self._exchange = server._exchanges.setdefault(self._key, fresh)  # type: ignore[misc]  # in the slot of below
            if self not in server.clients and self._state is not None:
                server._exchanges.pop(self._key, None)
        return self._exchange

    @property
    def extensions(self) -> tuple[Extension.Instance, ...]:
        """What was agreed upon, in the order in which it transforms what is sent (RFC 6455 §9.1)."""
        return tuple(self._its_exchange().chain.instances)

    # ---- sending ----

    def send(self, message: Sendable, fragment_size: int | None = None, *, compress: bool | None = None) -> None:
        """See ``AsyncClient.send``."""
        self._send_transformed(create_message(message, self._agreed.opcodes), fragment_size, compress)

    def _send_transformed(self, message: Message, fragment_size: int | None, compress: bool | None) -> None:
        exchange = self._exchange
        if exchange is not None and not exchange.is_orderly and fragment_size is None and self._state is None:
            deflate = exchange.deflate
            if deflate is not None and self._send_alone(deflate, message, compress):
                return
        frame = received_frame(message.opcode, message.bytes)
        frame.compress = compress
        self._check_open()
        if fragment_size is not None and fragment_size < 1:
            raise ValueError("fragment_size must be at least 1")
        if fragment_size is None and len(frame.payload) > MAX_FRAME:
            raise ValueError("a message above 4 GiB needs a fragment_size")
        if self.server.loop.closed:
            return
        exchange = self._exchange or self._its_exchange()
        exchange.in_order(self._transform, exchange, message, frame, fragment_size)
        if self.server.loop.has_large:
            self.server._submit()
        else:
            self.server._flush()

    def _send_alone(self, deflate: DeflateMessage.Instance, message: Message, compress: bool | None) -> bool:
        """Send a message that is compressed by itself, the quickest way; return whether it was."""
        packed = deflate.deflate(message.bytes, compress)
        if packed is None:
            return False
        commands = [self._key, core.message_prefix(_COMPRESSED | message.opcode, len(packed)), packed]
        server = self.server
        if len(packed) > core.LARGE:
            server.loop.has_large = True
        server._push(self._marked(commands, message) if server._marks else commands)
        if len(packed) > core.LARGE:
            server._submit()
        elif get_ident() != server._busy:
            server._write()
        return True

    def _transform(self, exchange: Exchange, message: Message, frame: Frame, fragment_size: int | None) -> None:
        """Queue what extensions make of a message: in order, see ``Exchange``."""
        if exchange.has_failed:
            self._check_open()
        try:
            frames = exchange.chain.send(frame, fragment_size)
            commands: list[Any] = []
            for first, payload in frames:
                if len(payload) > core.LARGE:
                    self.server.loop.has_large = True
                commands += (self._key, core.message_prefix(first, len(payload)), payload)
            self.server._push(self._marked(commands, message))
        except BaseException:
            # what was compressed and not sent is missing in the peer's window
            exchange.has_failed = True
            log.exception("%s is closed: an extension has failed", self)
            self.close(CloseCode.INTERNAL_ERROR)
            raise

    def _push_in_order(self, commands: core.Command) -> None:
        exchange = self._exchange
        if exchange is None:
            self.server._push(commands)
        else:
            exchange.in_order(self.server._push, commands)

    # ---- receiving: where this client's handlers are called ----

    def _received_frame(self, frame: Frame) -> Frame:
        return self._its_exchange().chain.receive_frame(frame)

    def _received_message(self, first: int, payload: bytes) -> Message:
        """Return what a whole message says.

        Args:
            first: its opcode and reserved bits.
            payload: as it arrived.

        Raises:
            ProtocolError: the peer broke the rules of an extension.
        """
        exchange = self._exchange or self._its_exchange()
        opcode = first & 0x0F
        if exchange.deflate is None:
            frame = exchange.chain.receive_message(received_frame(opcode, payload, rsv=first & 0x70))
            opcode, payload = frame.opcode, frame.payload
        elif first != opcode:
            payload = exchange.deflate.inflate(payload)
        message: Message
        if opcode == Opcode.TEXT:
            message = ReceivedText()
            try:
                message.payload = str(payload, "utf-8")
            except UnicodeDecodeError:
                raise ProtocolError(CloseCode.INVALID_DATA, _INVALID_TEXT) from None
        elif opcode == Opcode.BINARY:
            message = ReceivedBinary()
            message.payload = payload
        else:
            message = Message(opcode, payload)
        return message


class ExtendedClient(Extends):
    """A client of an ``AsyncServer``."""

    __slots__ = ("_agreed", "_exchange")

    def __init__(
        self, server: BaseServer[Any], handle: int, request: Request, subprotocol: str | None, agreed: Agreement
    ) -> None:
        super().__init__(server, handle, request, subprotocol)
        self._agreed, self._exchange = agreed, None


class ExtendedMarkingClient(Extends, MarkingClient):
    """The same, of one that overrides ``onsent``."""

    __slots__ = ("_agreed", "_exchange")

    def __init__(
        self, server: BaseServer[Any], handle: int, request: Request, subprotocol: str | None, agreed: Agreement
    ) -> None:
        super().__init__(server, handle, request, subprotocol)
        self._agreed, self._exchange = agreed, None
