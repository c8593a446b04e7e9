"""Messages over a ``websocket``: control frames answered, fragments joined, the closing handshake done.

Names of ``websocket`` with an underscore are shared with this file, and with nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from threading import TIMEOUT_MAX, Event, Lock, get_ident
from typing import TYPE_CHECKING, Any, Self

from .codes import CloseCode, Opcode, Role
from .deadline import Deadline
from .errors import PingError, ProtocolError, SocketClosed
from .frames import Frame, create_close_frame, received_frame
from .messages import BinaryMessage, Message, Sendable, TextMessage, create_message
from .websocket import websocket

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Connection"]

log = logging.getLogger("wspy.connection")

_MAX_CONTROL = 125


class Connection:
    """A connection that sends and receives messages, over a ``websocket`` after its opening handshake.

    Pings are answered, fragments joined, and both ends of the closing handshake done by whoever receives: so there
    should always be somebody who does, by ``recv``, iteration or ``receive_forever``. Subclass it and override
    handlers, or use it as it is. Any thread may send, and close; one at a time receives, others wait for it.

    Calls last no longer than the timeout of the socket says, see ``websocket.settimeout``.

    Args:
        sock: the ``websocket``, which belongs to the connection from now on.
        close_timeout: seconds for ``close`` to do the closing handshake; None for ever.

    Attributes:
        sock: the ``websocket``.
        closed: whether the connection has ended.
        close_code: what ``onclose`` was told, None before.
        close_reason: the same of the reason.

    Raises:
        SocketClosed: the websocket had no opening handshake.
    """

    def __init__(self, sock: websocket, *, close_timeout: float | None = 10.0) -> None:
        self.sock = sock
        self.close_timeout = close_timeout
        self.close_code: int | None = None
        self.close_reason = ""
        self._role = sock._opened().role
        self._fragments: list[Frame] = []
        self._reading = Lock()
        self._reader = 0  # the thread that holds it
        self._ending = Lock()
        self._ended = Event()
        self.onopen()

    @classmethod
    def connect(cls, address: tuple[str, int] | str, *, close_timeout: float | None = 10.0, **options: Any) -> Self:
        """Return a connection to a server.

        Args:
            address: a ``ws://`` URI, or what else ``websocket.connect`` takes.
            close_timeout: see ``Connection``.
            options: of ``websocket``, such as ``protocols``.

        Raises:
            ResponseError: see ``websocket.connect``, as for the others.
            SocketClosed: the server has reset the connection.
            TimeoutError: it took too long.
            OSError: there is no connection.
            ValueError: the URI is wrong.
        """
        sock = websocket(**options)
        try:
            sock.connect(address)
            return cls(sock, close_timeout=close_timeout)
        except BaseException:
            sock.close()
            raise

    # ---- handlers, to be overridden ----

    def onopen(self) -> None:
        """Do something when the connection is made, at the end of ``Connection()``."""

    def onmessage(self, message: Message) -> None:
        """Do something with a message that ``receive_forever`` has received."""

    def onping(self, payload: bytes) -> None:
        """Do something when a Ping *was sent* by ``send_ping``."""

    def onpingreceived(self, payload: bytes) -> None:
        """Do something when a Ping arrived; it was answered already (RFC 6455 §5.5.2)."""

    def onpong(self, payload: bytes) -> None:
        """Do something when a Pong arrived, asked for or not (RFC 6455 §5.5.3)."""

    def onclose(self, code: int, reason: str) -> None:
        """Do something when the connection has ended: once, and last.

        Both arguments are what the peer's Close frame says, whoever began. Without one they say what happened: 1006 if
        the connection was lost or timed out, and 1002, 1007, 1008 or 1009 if the peer broke a rule.

        Args:
            code: the close code; 1005 if the peer's Close frame had none.
            reason: of the peer's Close frame, or a sentence that says what happened.
        """

    def onerror(self, e: Exception) -> None:
        """Do something about an exception of ``onmessage`` in ``receive_forever``; the default logs it."""
        log.error("exception in a handler of %r", self, exc_info=e)

    # ---- sending ----

    def send(self, message: Sendable, fragment_size: int | None = None, mask: bool | None = None) -> None:
        """Send a message, and return when the kernel has it. Thread-safe.

        Args:
            message: a ``TextMessage`` or a str, a ``BinaryMessage`` or a buffer.
            fragment_size: split it into frames of so many bytes of payload (RFC 6455 §5.4); None for one frame.
            mask: see ``Frame``; by default a client masks.

        Raises:
            SocketClosed: the connection is closed or closing.
            TimeoutError: the kernel didn't take it in time. What is left of it leaves with the next call.
            TypeError: it is no message.
            ValueError: ``fragment_size`` is below 1, a text has a lone surrogate (RFC 3629 §3), or ``mask`` is against
                the rules.
        """
        if mask is None:
            self.sock._send_message(message, fragment_size)
        else:
            self.sock.send(*self.message_to_frames(message, fragment_size, mask))

    def send_frame(self, frame: Frame) -> None:
        """Send a single frame; see ``websocket.send``. Thread-safe."""
        self.sock.send(frame)

    def send_ping(self, payload: bytes | str = b"") -> None:
        """Send a Ping, and call ``onping``; any number may be unanswered. Thread-safe.

        Args:
            payload: at most 125 bytes; a str is sent as UTF-8.

        Raises:
            PingError: the payload is too long.
            SocketClosed: the connection is closed or closing.
            TimeoutError: see ``send``.
        """
        data = payload.encode() if isinstance(payload, str) else bytes(memoryview(payload))
        if len(data) > _MAX_CONTROL:
            raise PingError(f"the payload of a Ping has at most {_MAX_CONTROL} bytes, this one has {len(data)}")
        self.sock.send(received_frame(Opcode.PING, data))
        self.onping(data)

    def send_pong(self, payload: bytes | str = b"") -> None:
        """Send a Pong that nobody has asked for (RFC 6455 §5.5.3). Thread-safe; see ``send_ping``."""
        data = payload.encode() if isinstance(payload, str) else bytes(memoryview(payload))
        if len(data) > _MAX_CONTROL:
            raise PingError(f"the payload of a Pong has at most {_MAX_CONTROL} bytes, this one has {len(data)}")
        self.sock.send(received_frame(Opcode.PONG, data))

    def send_close_frame(self, code: int | None = 1000, reason: str = "") -> None:
        """Begin the closing handshake, and return: whoever receives goes on with it. Thread-safe; see ``close``."""
        self.sock.send(create_close_frame(code, reason))

    @staticmethod
    def message_to_frames(message: Sendable, fragment_size: int | None = None, mask: bool | None = None) -> list[Frame]:
        """Return the frames of a message; see ``send``."""
        whole = create_message(message)
        return [whole.frame(mask)] if fragment_size is None else whole.fragment(fragment_size, mask)

    @staticmethod
    def concat_fragments(fragments: list[Frame]) -> Message:
        """Return the message of which these are all frames, in order; their payloads were checked already."""
        payload = fragments[0].payload if len(fragments) == 1 else b"".join([frame.payload for frame in fragments])
        opcode = fragments[0].opcode
        if opcode == Opcode.TEXT:
            return TextMessage(payload.decode())
        return BinaryMessage(payload) if opcode == Opcode.BINARY else Message(opcode, payload)

    # ---- receiving ----

    def recv(self) -> Message:
        """Receive a message. Pings are answered meanwhile.

        Raises:
            SocketClosed: the connection has ended; ``onclose`` was called.
            ProtocolError: the peer broke a rule, and was told so; ``onclose`` was called.
            TimeoutError: there was no message within the socket's timeout. Nothing that has arrived is lost.
        """
        if self._reader == get_ident():
            raise RuntimeError("recv was called by a handler that recv has called")
        with self._reading:
            self._reader = get_ident()
            try:
                return self._recv()
            finally:
                self._reader = 0

    def _recv(self) -> Message:
        if self._ended.is_set():
            raise SocketClosed(message="the connection is closed", code=self.close_code, reason=self.close_reason)
        deadline = None
        while True:
            try:
                if deadline is None:
                    deadline = Deadline(self.sock.gettimeout())
                    frame = self.sock.recv()
                else:
                    frame = self.sock._recv_before(deadline)
            except (SocketClosed, ProtocolError) as error:
                self._end_by(error)
                raise
            if frame.opcode >= Opcode.CLOSE:
                self.handle_control_frame(frame)
                continue
            self._fragments.append(frame)
            if frame.final:
                fragments, self._fragments = self._fragments, []
                return self.concat_fragments(fragments)

    def handle_control_frame(self, frame: Frame) -> None:
        """Answer a control frame that arrived; for subclasses, which may claim more of them."""
        if frame.opcode == Opcode.PING:
            with contextlib.suppress(SocketClosed):  # §5.5.1: nothing may follow our own Close
                self.sock._reply(received_frame(Opcode.PONG, frame.payload))
            self.onpingreceived(frame.payload)
        elif frame.opcode == Opcode.PONG:
            self.onpong(frame.payload)

    def __iter__(self) -> Iterator[Message]:
        """Yield messages until the connection ends.

        Raises:
            ProtocolError: the peer broke a rule.
            TimeoutError: see ``recv``.
        """
        while True:
            try:
                message = self.recv()
            except SocketClosed:
                return
            yield message

    def receive_forever(self) -> None:
        """Call ``onmessage`` with each message, until the connection has ended.

        An exception of it goes to ``onerror``, and ends the connection with 1011. ``KeyboardInterrupt`` and
        ``SystemExit`` are raised again after the connection was closed with 1001.

        Raises:
            TimeoutError: see ``recv``; may be called again.
        """
        try:
            while self._handle_next():
                pass
        except (KeyboardInterrupt, SystemExit):
            self.close(CloseCode.GOING_AWAY)
            raise

    def _handle_next(self) -> bool:
        """Receive a message and hand it over; return whether there may be another one."""
        try:
            message = self.recv()
        except (SocketClosed, ProtocolError):
            return False
        except TimeoutError:
            raise
        except Exception as error:  # noqa: BLE001 -- of a handler that was called meanwhile
            return self._handler_failed(error)
        try:
            self.onmessage(message)
        except Exception as error:  # noqa: BLE001 -- onerror decides what it means
            if not (isinstance(error, SocketClosed) and self.sock._is_closing()):
                return self._handler_failed(error)
        return True

    def _handler_failed(self, error: Exception) -> bool:
        self.onerror(error)
        self.close(CloseCode.INTERNAL_ERROR)
        return False

    # ---- ending ----

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        """Do the closing handshake (RFC 6455 §7.1.2), and close the socket. Thread-safe; twice is fine.

        Returns when that is done, after ``close_timeout`` at the latest. Messages that arrive meanwhile are dropped,
        unless another thread receives, which goes on with them until the peer's Close. Of a handler that ``recv`` has
        called this only sends the Close.

        Args:
            code: 1000 to 1003, 1007 to 1014 or 3000 to 4999; None for a Close frame without one.
            reason: at most 123 bytes of UTF-8.

        Raises:
            TypeError: the reason is not a str, or the code not an int.
            ValueError: the code may not be sent (RFC 6455 §7.4), or the reason is too long.
        """
        frame = create_close_frame(code, reason)
        if self._ended.is_set():
            return
        deadline = Deadline(self.close_timeout)
        with contextlib.suppress(SocketClosed, TimeoutError):
            self.sock._send_before(deadline, frame)
        if self._reader == get_ident():
            return
        try:
            self._await_end(deadline)
        finally:
            self._end(CloseCode.ABNORMAL, "the closing handshake took longer than close_timeout")

    def _await_end(self, deadline: Deadline) -> None:
        """Read until the peer's Close, or wait for the thread that does."""
        remaining = deadline.remaining
        if not self._reading.acquire(timeout=-1 if remaining is None else min(remaining, TIMEOUT_MAX)):
            return
        self._reader = get_ident()
        try:
            while not self._ended.is_set():
                frame = self.sock._recv_before(deadline)
                if frame.opcode >= Opcode.CLOSE:
                    self.handle_control_frame(frame)
        except (SocketClosed, ProtocolError) as error:
            self._end_by(error)
        except TimeoutError:
            return
        finally:
            self._reader = 0
            self._reading.release()

    def _end_by(self, error: SocketClosed | ProtocolError) -> None:
        """End the connection because nothing more will be received."""
        if isinstance(error, SocketClosed) and error.rcvd is not None:
            self._finish_handshake(error.rcvd)
            self._end(*error.rcvd)
        else:
            self._end(error.code, error.message)

    def _finish_handshake(self, rcvd: tuple[int, str]) -> None:
        """Echo the peer's Close if it began, and let the server end TCP first (RFC 6455 §5.5.1, §7.1.1)."""
        deadline = Deadline(self.close_timeout)
        code = None if rcvd[0] == CloseCode.NO_STATUS else rcvd[0]
        with contextlib.suppress(SocketClosed, TimeoutError, OSError):
            self.sock._send_before(deadline, create_close_frame(code))
        with contextlib.suppress(OSError):
            if self._role is Role.SERVER:
                self.shutdown_write()
            self.sock._await_eof(deadline)

    def shutdown_write(self) -> None:
        """End the sending direction of TCP."""
        self.sock.shutdown(socket.SHUT_WR)

    def _end(self, code: int, reason: str) -> None:
        with self._ending:
            if self._ended.is_set():
                return
            self.close_code, self.close_reason = code, reason
            self._ended.set()
        with contextlib.suppress(OSError):  # wakes who waits in another thread, which close alone doesn't
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.onclose(code, reason)

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._ended.is_set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return repr(self.sock)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.sock!r}{' closed' if self.closed else ''}>"
