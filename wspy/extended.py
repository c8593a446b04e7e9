"""How does a client of a server send and receive if extensions were agreed upon?

Names with an underscore are shared with the servers, and with nothing else.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from functools import partial
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, Final

from . import loop as core
from .async_client import MAX_FRAME, AsyncClient, MarkingClient, checked_control
from .codes import CloseCode, Opcode
from .deflate import DeflateMessage
from .errors import ProtocolError, SocketClosed
from .frames import FIN, received_frame
from .messages import Message, ReceivedBinary, ReceivedText, create_message

if TYPE_CHECKING:
    from collections.abc import Callable

    from .extensions import Agreement, Extension
    from .frames import Frame
    from .http11 import Request
    from .messages import Sendable
    from .serving import BaseServer

__all__ = ["Exchange", "ExtendedClient", "ExtendedMarkingClient", "Extends"]

log = logging.getLogger("wspy.server")

_COMPRESSED: Final = FIN | 0x40  # RSV1
_INVALID_TEXT: Final = "a text message is not valid UTF-8 (RFC 6455 §8.1)"


_LEFT_OUT: Final = b"\0"  # which no head has
_OFFER: Final = re.compile(rb"\r\nsec-websocket-extensions:[ \t]*", re.IGNORECASE)


def _offer_at(head: bytes) -> int:
    """Return where the first offer of extensions begins in a request head that has one."""
    found = _OFFER.search(head)
    return found.end() if found else 0


class Exchange:
    """The extensions of one connection at work, from its first message on.

    What they send depends on what they have sent, so messages have to reach the queue in the order in which they were
    transformed: one thread at a time does both.

    Args:
        agreed: what was agreed upon.
        max_size: of a message that was received and transformed, in bytes; None for no limit.
    """

    __slots__ = (
        "_delayed",
        "_lock",
        "_seen",
        "_sender",
        "agreed",
        "chain",
        "deflate",
        "has_failed",
        "is_orderly",
        "sent",
    )

    def __init__(self, agreed: Agreement, max_size: int | None = None) -> None:
        self.agreed = agreed
        self.chain = agreed.chain(max_size)
        instances = self.chain.instances
        # nothing but permessage-deflate, as it mostly is: it needs no frames
        is_alone = len(instances) == 1 and type(instances[0]) is DeflateMessage.Instance
        self.deflate: Any = instances[0] if is_alone else None
        self.is_orderly = agreed.sharing is None
        """Whether messages refer to others; without context takeover they don't."""
        self.has_failed = False
        self.sent = 0
        """What was sent, counted."""
        self._seen: dict[float, int] = {}  # of that, when it was last looked at, by idle_seconds
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
                while self._delayed:
                    self._catch_up()
                # nor between the last look and this
                self._sender = 0

    def frames(
        self, opcode: int, payload: bytes, fragment_size: int | None, compress: bool | None
    ) -> list[tuple[int, bytes]]:
        """Return what to send instead of a message: first byte and payload of each frame; see ``Chain.send``."""
        if self.deflate is not None and fragment_size is None:
            packed = self.deflate.deflate(payload, compress)
            return [(FIN | opcode, payload) if packed is None else (_COMPRESSED | opcode, packed)]
        frame = received_frame(opcode, payload)
        frame.compress = compress
        return self.chain.send(frame, fragment_size)

    def look_idle(self, seconds: float) -> None:
        """Let extensions with these ``idle_seconds`` give back what they need to send, if nothing was sent since."""
        if self._seen.get(seconds) == self.sent:
            self.in_order(self._idle, seconds)
        self._seen[seconds] = self.sent

    def _idle(self, seconds: float) -> None:
        for instance in self.chain.idling(seconds):
            instance.onidle()

    def _catch_up(self) -> None:
        try:
            self._delayed.popleft()()
        except SocketClosed:
            log.debug("a message was sent too late to a connection that is closed")
        except Exception:
            log.exception("a message could not be sent")


class Extends(AsyncClient):
    """What clients with extensions have in common; their slot is in the classes below, whose bases differ."""

    __slots__ = ()

    _extended: Agreement | Exchange
    """What was agreed upon, until the first message; one slot, since most of many connections are idle."""

    @property
    def _agreed(self) -> Agreement:
        extended = self._extended
        return extended.agreed if isinstance(extended, Exchange) else extended

    @property
    def _exchange(self) -> Exchange | None:
        extended = self._extended
        return extended if isinstance(extended, Exchange) else None

    def _its_exchange(self) -> Exchange:
        """Return the extensions at work; whoever comes first makes them, from any thread."""
        extended = self._extended
        if isinstance(extended, Exchange):
            return extended
        server = self.server
        try:
            made = Exchange(extended, server._max_size)
        except BaseException:
            log.exception("%s is closed: an extension has failed", self)
            self.close(CloseCode.INTERNAL_ERROR)
            raise
        # atomic: see _its_rare
        exchange = server._exchanges.setdefault(self._key, made)
        self._extended = exchange  # type: ignore[misc]  # the slot of a class below
        if self not in server.clients and self._state is not None:
            server._exchanges.pop(self._key, None)
        server._look_for_idle()
        return exchange

    # ---- the request, without what is the same for all that have agreed on this ----

    def _keep(self, head: bytes) -> bytes:
        offer = _offer_at(head)
        offered = self._agreed.offered
        if not head.startswith(offered + b"\r\n", offer):
            return head
        return head[:offer] + _LEFT_OUT + head[offer + len(offered) :]

    def _kept(self, head: bytes) -> bytes:
        offer = _offer_at(head)
        if not head.startswith(_LEFT_OUT, offer):
            return head
        return head[:offer] + self._agreed.offered + head[offer + 1 :]

    @property
    def extensions(self) -> tuple[Extension.Instance, ...]:
        """What was agreed upon, in the order in which it transforms what is sent (RFC 6455 §9.1)."""
        return tuple(self._its_exchange().chain.instances)

    # ---- sending ----

    def send(
        self,
        message: Sendable,
        fragment_size: int | None = None,
        compress: bool | None = None,
    ) -> None:
        """See ``AsyncClient.send``."""
        self._send_transformed(create_message(message, self._agreed.opcodes), fragment_size, compress)

    def _send_transformed(self, message: Message, fragment_size: int | None, compress: bool | None) -> None:
        exchange = self._extended
        if isinstance(exchange, Exchange) and not exchange.is_orderly and fragment_size is None and self._state is None:
            deflate = exchange.deflate
            if deflate is not None and self._send_alone(deflate, message, compress):
                return
        self._check_open()
        if fragment_size is not None and fragment_size < 1:
            raise ValueError("fragment_size must be at least 1")
        payload = message.bytes
        if fragment_size is None and len(payload) > MAX_FRAME:
            raise ValueError("a message above 4 GiB needs a fragment_size")
        if self.server.loop.closed:
            return
        exchange = self._its_exchange()
        try:
            exchange.in_order(
                self._transform, exchange, self._message_commands, message, payload, fragment_size, compress
            )
        finally:  # after a failure the Close is queued
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

    def send_frame(self, frame: Frame) -> None:
        """See ``AsyncClient.send_frame``."""
        payload = checked_control(frame, self._agreed.opcodes)
        self._check_open()
        if self.server.loop.closed:
            return
        exchange = self._its_exchange()
        try:
            exchange.in_order(self._transform, exchange, self._control_commands, received_frame(frame.opcode, payload))
        finally:
            self.server._flush()

    def _transform(self, exchange: Exchange, transform: Callable[..., list[Any]], *arguments: Any) -> None:
        """Queue what extensions make of something: in order, see ``Exchange``."""
        exchange.sent += 1
        if exchange.has_failed:
            self._check_open()
        try:
            self.server._push(transform(exchange, *arguments))
        except BaseException:
            # what was compressed and not sent is missing in the peer's window
            exchange.has_failed = True
            log.exception("%s is closed: an extension has failed", self)
            self.close(CloseCode.INTERNAL_ERROR)
            raise

    def _message_commands(
        self, exchange: Exchange, message: Message, payload: bytes, fragment_size: int | None, compress: bool | None
    ) -> list[Any]:
        commands: list[Any] = []
        for first, part in exchange.frames(message.opcode, payload, fragment_size, compress):
            if len(part) > core.LARGE:
                self.server.loop.has_large = True
            commands += (self._key, core.message_prefix(first, len(part)), part)
        return self._marked(commands, message)

    def _control_commands(self, exchange: Exchange, frame: Frame) -> list[Any]:
        frame = exchange.chain.send_control(frame)
        return [self._key, core.message_prefix(frame.first_byte(), len(frame.payload)), frame.payload]

    def _push_in_order(self, commands: core.Command) -> None:
        exchange = self._exchange
        # in the child of a fork the lock may be that of a thread that isn't there
        if exchange is None or self.server.loop.closed:
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
        exchange = self._its_exchange()
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

    __slots__ = ("_extended",)

    def __init__(
        self, server: BaseServer[Any], handle: int, request: Request, subprotocol: str | None, agreed: Agreement
    ) -> None:
        super().__init__(server, handle, request, subprotocol)
        self._extended = agreed


class ExtendedMarkingClient(Extends, MarkingClient):
    """The same, of one that overrides ``onsent``."""

    __slots__ = ("_extended",)

    def __init__(
        self, server: BaseServer[Any], handle: int, request: Request, subprotocol: str | None, agreed: Agreement
    ) -> None:
        super().__init__(server, handle, request, subprotocol)
        self._extended = agreed
