"""Messages over a ``websocket``: control frames answered, fragments joined, the closing handshake done.

Names of ``websocket`` with an underscore are shared with this file, and with nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections import deque
from copy import copy
from threading import Condition, RLock, get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast

from .codes import CloseCode, Opcode, Role
from .deadline import Deadline
from .errors import PingError, ProtocolError, SocketClosed
from .frames import MAX_CONTROL, Frame, create_close_frame, received_frame, too_many_controls
from .journal import Journal, peer_name
from .limits import NO_COUNT_LIMIT, checked_limit, checked_seconds
from .messages import BinaryMessage, Message, Sendable, TextMessage, create_message, received_message
from .protocol import Event
from .reception import LINGER_SECONDS
from .websocket import websocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .closure import Closure
    from .extending import Extending
    from .loop import Address

__all__ = ["Connection"]

log = logging.getLogger("wspy.connection")
_journal = Journal(log)

_CONTROL = int(Opcode.CLOSE)
_BINARY = int(Opcode.BINARY)
# Fragments that are joined before all are there: a frame takes more memory than its few bytes (RFC 6455 §10.4).
_JOINED = 256


class _NoMessageError(Exception):
    """Receiving has raised this, and not a handler that it has called."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Connection:
    """A connection that sends and receives messages, over a ``websocket`` after its opening handshake.

    Pings are answered, fragments joined, and both ends of the closing handshake done by whoever receives: so there
    should always be somebody who does, by ``recv``, iteration or ``receive_forever``. Subclass it and override
    handlers, or use it as it is. Any thread may send, and close; one at a time receives, others wait for it.

    Calls last no longer than the timeout of the socket says, see ``websocket.settimeout``; what they were about is
    done by the next call. It can't be copied or pickled.

    Args:
        sock: the ``websocket``, which belongs to the connection from now on.
        close_timeout: seconds for ``close`` to do the closing handshake; None for ever.
        write_timeout: seconds in which the peer takes nothing of what waits for it, while somebody sends or receives,
            after which it is dropped; None for ever.
        max_controls: pings, pongs and other control frames of the peer in a second; None for no limit. Over it 1008.

    Attributes:
        sock: the ``websocket``.
        closed: whether the connection has ended.
        close_code: what ``onclose`` was told, None before.
        close_reason: the same of the reason.
        closure: how the connection ended, as a ``Closure``; None before ``onclose``.
        latency: seconds between the last ``send_ping`` that was answered and its Pong; None before the first. It
            includes how long this side took to receive it.

    Raises:
        SocketClosed: the websocket had no opening handshake.
        TypeError: this is no ``websocket``, or an argument no number.
        ValueError: an argument is out of range, or the websocket is not ``strict``.
        Exception: of ``onopen``; the connection was closed with 1011.
    """

    def __init__(
        self,
        sock: websocket,
        *,
        close_timeout: float | None = 10.0,
        write_timeout: float | None = 30.0,
        max_controls: int | None = 100_000,
    ) -> None:
        if not isinstance(sock, websocket):
            raise TypeError(f"a Connection is made of a websocket, not of type {type(sock).__name__}")
        if not sock.strict:
            raise ValueError("a Connection relies on the rules: its websocket must be strict")
        self.sock = sock
        self.close_timeout = checked_seconds("close_timeout", close_timeout)
        sock._write_timeout = checked_seconds("write_timeout", write_timeout)
        self._max_controls = checked_limit("max_controls", max_controls, 1, NO_COUNT_LIMIT)
        self._controls, self._second = 0, 0.0  # how many have arrived in the second that ends then
        self.latency: float | None = None
        self._pinged: tuple[bytes, float] | None = None  # the last Ping, until its Pong arrives
        self.close_code: int | None = None
        self.close_reason = ""
        self.closure: Closure | None = None
        self._role = sock._opened().role
        self._remote_address = self._address()
        self._fragments: list[Event] = []
        self._joined = 0  # how many of them, at the beginning, are of several that were joined
        self._receiving = sock._receiving
        self._received = cast("deque[Event]", sock._received)  # a strict one has nothing else
        self._extending = sock._extending
        self._joins = type(self).concat_fragments is not Connection.concat_fragments  # whole messages, too
        self._last: SocketClosed | ProtocolError | None = None  # why there are no more frames
        self._closing: Deadline | None = None  # once a Close was sent or received
        self._lingering: Deadline | None = None  # while the peer is listened to after the end
        self._loops: list[int] = []  # the threads that receive one message after the other
        self._loop_ends = Condition()
        self._ending = RLock()
        self.closed = False
        try:
            self.onopen()
        except BaseException as error:
            self._close_because_of(error)
            raise

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} can't be copied or pickled")

    @classmethod
    def connect(
        cls,
        address: tuple[str, int] | str,
        *,
        close_timeout: float | None = 10.0,
        write_timeout: float | None = 30.0,
        max_controls: int | None = 100_000,
        **options: Any,
    ) -> Self:
        """Return a connection to a server.

        Args:
            address: a ``ws://`` or ``wss://`` URI, or what else ``websocket.connect`` takes.
            close_timeout: see ``Connection``.
            write_timeout: see ``Connection``.
            max_controls: see ``Connection``.
            options: of ``websocket``, such as ``protocols``, ``auth`` and ``ssl``.

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
            return cls(sock, close_timeout=close_timeout, write_timeout=write_timeout, max_controls=max_controls)
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

        ``closure`` tells the rest: who ended it, by which limit, and what was left unsent. Both arguments are what the
        peer's Close frame says, whoever began. Without one they say what happened: 1006 if
        the connection was lost or timed out, and 1002, 1007, 1008 or 1009 if the peer broke a rule.

        Args:
            code: the close code; 1005 if the peer's Close frame had none.
            reason: of the peer's Close frame, or a sentence that says what happened.
        """

    def onerror(self, e: Exception) -> None:
        """Do something about an exception of a handler; the default logs it.

        That is any handler in ``receive_forever``; elsewhere ``onclose``, and what is called while ``close`` waits. The
        others raise theirs from ``recv``, ``send_ping`` and ``Connection()``. What this raises itself is logged.
        """
        log.error("exception in a handler of %r", self, exc_info=e)

    # ---- sending ----

    def send(
        self,
        message: Sendable,
        fragment_size: int | None = None,
        mask: bool | None = None,
        *,
        compress: bool | None = None,
    ) -> None:
        """Send a message, and return when the kernel has it. Thread-safe.

        Args:
            message: a ``TextMessage`` or a str, a ``BinaryMessage`` or a buffer.
            fragment_size: split it into frames of so many bytes of payload (RFC 6455 §5.4); None for one frame.
            mask: see ``Frame``; by default a client masks. With extensions there is no choice.
            compress: whether to compress it, if that was agreed upon; None leaves it to the extension.

        Raises:
            Exception: of an extension; the connection is closed with 1011.
            RuntimeError: a signal handler calls this just when its thread receives. See ``websocket.send``.
            SocketClosed: the connection is closed or closing.
            TimeoutError: the kernel didn't take it in time. What is left of it leaves with the next call.
            TypeError: it is no message.
            ValueError: ``fragment_size`` is below 1, a text has a lone surrogate (RFC 3629 §3), or ``mask`` is against
                the rules.
        """
        if type(self).message_to_frames is Connection.message_to_frames and (mask is None or self._extending):
            try:
                self.sock._send_message(message, fragment_size, compress)
            except SocketClosed as error:
                raise self._explained(error) from None
        else:
            self._send(*self.message_to_frames(message, fragment_size, mask))

    def send_frame(self, frame: Frame, callback: Callable[[], object] | None = None) -> None:
        """Send a single frame; see ``websocket.send``. Thread-safe. A Close begins the closing handshake.

        Args:
            frame: the frame. Extensions that transform messages do nothing with it, but for a control frame that one of
                them has claimed.
            callback: called without arguments when the kernel has it, see ``websocket.queue_send``.
        """
        if getattr(frame, "opcode", None) == Opcode.CLOSE:
            self._begin_closing()
        self._send(frame, callback=callback)

    def _send(self, *frames: Frame, callback: Callable[[], object] | None = None) -> None:
        try:
            self.sock._send_frames(frames, callback)
        except SocketClosed as error:
            raise self._explained(error) from None

    def _explained(self, error: SocketClosed) -> SocketClosed:
        """Let the exception say how the connection ended, as ``onclose`` was told."""
        if self.close_code is not None:
            error.code, error.reason = self.close_code, self.close_reason
        return error

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
        if len(data) > MAX_CONTROL:
            raise PingError(f"the payload of a Ping has at most {MAX_CONTROL} bytes, this one has {len(data)}")
        self._pinged = data, monotonic()
        self._send(received_frame(Opcode.PING, data))
        self.onping(data)

    def send_pong(self, payload: bytes | str = b"") -> None:
        """Send a Pong that nobody has asked for (RFC 6455 §5.5.3). Thread-safe; see ``send_ping``."""
        data = payload.encode() if isinstance(payload, str) else bytes(memoryview(payload))
        if len(data) > MAX_CONTROL:
            raise PingError(f"the payload of a Pong has at most {MAX_CONTROL} bytes, this one has {len(data)}")
        self._send(received_frame(Opcode.PONG, data))

    def send_close_frame(self, code: int | None = 1000, reason: str = "") -> None:
        """Send a Close, and return: whoever receives goes on with the closing handshake. Thread-safe; see ``close``.

        From now on ``close_timeout`` counts for who receives; who is waiting already goes on for as long as they may.

        Raises:
            SocketClosed: the connection is closed or closing.
            TimeoutError: see ``send``.
            TypeError: see ``close``.
            ValueError: see ``close``.
        """
        self.send_frame(create_close_frame(code, reason))

    @staticmethod
    def message_to_frames(message: Sendable, fragment_size: int | None = None, mask: bool | None = None) -> list[Frame]:
        """Return the frames of a message, for ``send``; subclasses may make others.

        Those that do call ``sock.apply_send_hooks`` if extensions transform messages.
        """
        whole = create_message(message)
        return [whole.frame(mask)] if fragment_size is None else whole.fragment(fragment_size, mask)

    @staticmethod
    def concat_fragments(fragments: list[Frame]) -> Message:
        """Return the message of these frames, whose payloads were checked already; subclasses may make another one.

        Args:
            fragments: in order. Of a message in very many of them, some come joined.
        """
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
            BlockingIOError: the socket is non-blocking, and there is no whole message.
            RuntimeError: this was called by a handler that ``recv`` has called.
            Exception: of a handler. Nothing but the frame that it was called for is lost. Or of an extension; the
                connection is closed with 1011.
        """
        try:
            return self._next()
        except _NoMessageError as stop:
            raise stop.error from None

    def _next(self) -> Message:
        """Receive a message.

        Raises:
            _NoMessageError: there is none.
            Exception: of a handler.
        """
        if self.closed and (self._lingering is None or self._receiving.is_mine):
            raise _NoMessageError(self._why())
        deadline = self.sock._deadline()
        try:
            self._receiving.enter(deadline)
        except TimeoutError:
            raise _NoMessageError(self.sock._too_late()) from None
        except RuntimeError as misuse:
            raise _NoMessageError(misuse) from None
        try:
            if self._extending is not None:
                return self._next_extended(self._extending, deadline)
            while not (self._fragments and self._fragments[-1].final):
                opcode, payload, final, _ = self._event(deadline)
                if opcode >= _CONTROL:
                    self._received.popleft()
                    self._handle_control(received_frame(opcode, payload))
                elif final and not self._fragments and not self._joins and opcode <= _BINARY:
                    self._received.popleft()
                    return received_message(opcode, payload)
                else:
                    self._keep()
            return self.concat_fragments(self._frames())
        finally:
            self._receiving.leave()

    def _next_extended(self, extending: Extending, deadline: Deadline) -> Message:
        """Receive a message as extensions read it: not before it is asked for, since it may take more memory then."""
        while True:
            opcode, payload, final, rsv = self._event(deadline)
            if extending.has_failed and opcode < _CONTROL:
                self._received.popleft()
                continue
            if final and not self._fragments and not self._joins and not extending.reads(opcode, rsv):
                self._received.popleft()
                return received_message(opcode, payload)
            frame: Frame | None = None
            try:
                if opcode >= _CONTROL:
                    self._handle_control(self.sock._frame(self._received.popleft()))
                elif extending.has_frames or (rsv and opcode == Opcode.CONTINUATION):
                    self.sock._read_by(self._keep_read, extending)
                else:
                    self._keep()
                if final and opcode < _CONTROL:
                    frame = self.sock._read_by(extending.whole, self._frames())
            except ProtocolError:
                if self.sock._failure is None:  # of a handler
                    raise
                self._fragments, self._joined = [], 0
            if frame is not None:
                return self.concat_fragments([frame])

    def _keep_read(self, extending: Extending) -> None:
        """Keep a fragment that has arrived, as extensions read it."""
        opcode, payload, final, rsv = self._received.popleft()
        frame = extending.chain.receive_frame(received_frame(opcode, payload, final=final, rsv=rsv))
        self._received.appendleft(Event(frame.opcode, frame.payload, final, frame.first_byte() & 0x70))
        self._keep()

    def _keep(self) -> None:
        """Keep a fragment that has arrived. Many are joined, each once, so that time is linear.

        An exception of a signal handler may come at any time, and must not leave a hole in the message: so a fragment
        is moved in a single step of the interpreter.
        """
        kept = self._fragments
        kept.extend(map(deque.popleft, (self._received,)))
        if len(kept) - self._joined == _JOINED:
            recent = kept[self._joined :]
            payload = b"".join([part.payload for part in recent])
            kept[self._joined :] = [recent[0]._replace(payload=payload, final=recent[-1].final)]
            self._joined += 1

    def _frames(self) -> list[Frame]:
        """Take the fragments that were kept."""
        frames = [
            received_frame(opcode, payload, final=final, rsv=rsv) for opcode, payload, final, rsv in self._fragments
        ]
        self._fragments, self._joined = [], 0
        return frames

    def _event(self, deadline: Deadline) -> Event:
        """Wait for a frame, and return what the protocol tells of it; for who has entered ``_receiving``.

        It stays the first one in ``_received``.

        Raises:
            _NoMessageError: there is none.
        """
        if self._last is None:
            try:
                if not self._received:
                    self.sock._receive(self._in_time(deadline))
                return self._received[0]
            except TimeoutError:
                self._check_time()
            except (SocketClosed, ProtocolError) as error:
                self._last = copy(error)  # without its traceback, which would keep the caller's frames
                self._begin_closing()
        if self._last is not None:
            self._finish(self._last, deadline)
        raise _NoMessageError(self._why())

    def _in_time(self, deadline: Deadline) -> Deadline:
        return deadline if self._closing is None else deadline.earlier(self._closing)

    def _begin_closing(self) -> Deadline:
        """Begin to count ``close_timeout``, once."""
        if self._closing is None:
            self._closing = Deadline(self.close_timeout)
        return self._closing

    def _check_time(self) -> None:
        """End the connection if the closing handshake takes too long; else only a call does.

        Raises:
            _NoMessageError: it is the call.
        """
        if self._closing is None or not self._closing.is_over:
            raise _NoMessageError(self.sock._too_late())
        self._give_up()

    def _why(self) -> SocketClosed | ProtocolError:
        """Return what is raised when the connection has ended."""
        if isinstance(self._last, ProtocolError) or (self._last is not None and self._last.rcvd is not None):
            return copy(self._last)
        return SocketClosed(
            message=f"the connection is closed: {self.close_reason}"
            if self.close_reason
            else "the connection is closed",
            code=self.close_code,
            reason=self.close_reason,
        )

    def _handle_control(self, frame: Frame) -> None:
        """Handle a control frame, unless it is one too many, which ends the connection (RFC 6455 §10.4)."""
        now = monotonic()
        if now >= self._second:
            self._controls, self._second = 0, now + 1
        self._controls += 1
        if self._controls <= self._max_controls:
            self.handle_control_frame(frame)
        else:
            self.sock._break_off(too_many_controls())

    def handle_control_frame(self, frame: Frame) -> None:
        """Answer a control frame that arrived; for subclasses, which may claim more of them."""
        if frame.opcode == Opcode.PING:
            with contextlib.suppress(SocketClosed):  # §5.5.1: nothing may follow our own Close
                self.sock._reply(received_frame(Opcode.PONG, frame.payload))
            self.onpingreceived(frame.payload)
        elif frame.opcode == Opcode.PONG:
            self._note_latency(frame.payload)
            self.onpong(frame.payload)

    def _note_latency(self, payload: bytes) -> None:
        pinged = self._pinged
        if pinged is not None and pinged[0] == payload:
            self.latency, self._pinged = monotonic() - pinged[1], None

    def __iter__(self) -> Iterator[Message]:
        """Yield messages until the connection ends.

        Raises:
            ProtocolError: the peer broke a rule.
            TimeoutError: see ``recv``.
        """
        with self._looping():
            while True:
                try:
                    message = self._next()
                except _NoMessageError as stop:
                    if isinstance(stop.error, SocketClosed):
                        return
                    raise stop.error from None
                yield message

    @contextlib.contextmanager
    def _looping(self) -> Iterator[None]:
        """Let other threads know that this one will receive whatever arrives."""
        me = get_ident()
        self._loops.append(me)
        try:
            yield
        finally:
            with self._loop_ends:
                self._loops.remove(me)
                self._loop_ends.notify_all()

    def receive_forever(self) -> None:
        """Call ``onmessage`` with each message, until the connection has ended.

        An exception of a handler goes to ``onerror``, and ends the connection with 1011; but not ``SocketClosed`` while
        it is closing anyway. After ``KeyboardInterrupt``, ``SystemExit`` and the like the connection is closed with
        1001, and they are raised again.

        Raises:
            TimeoutError: see ``recv``; may be called again.
            BlockingIOError: see ``recv``; may be called again.
            RuntimeError: see ``recv``; nothing is closed.
        """
        try:
            with self._looping():
                while self._handle_next():
                    pass
        except (TimeoutError, BlockingIOError, RuntimeError):  # of receiving: no handler's leaves _handle_next
            raise
        except BaseException as error:
            self._close_because_of(error)
            raise

    def _handle_next(self) -> bool:
        """Receive a message and hand it over; return whether there may be another one."""
        try:
            self.onmessage(self._next())
        except _NoMessageError as stop:
            if isinstance(stop.error, SocketClosed | ProtocolError):
                return False
            raise stop.error from None
        except Exception as error:  # noqa: BLE001 -- onerror decides what it means
            if not (isinstance(error, SocketClosed) and self.sock._is_closing()):
                self._handler_failed(error)
        return True

    def _handler_failed(self, error: Exception) -> None:
        self._tell_of(error)
        self.close(CloseCode.INTERNAL_ERROR)

    def _tell_of(self, error: Exception) -> None:
        try:
            self.onerror(error)
        except Exception:
            log.exception("exception in onerror of %r", self)

    def _close_because_of(self, error: BaseException) -> None:
        self.close(CloseCode.INTERNAL_ERROR if isinstance(error, Exception) else CloseCode.GOING_AWAY)

    # ---- ending ----

    def close(self, code: int | None = 1000, reason: str = "") -> None:
        """Do the closing handshake (RFC 6455 §7.1.2), and close the socket. Thread-safe; twice is fine.

        Returns when that is done, after ``close_timeout`` at the latest. Messages that arrive meanwhile are dropped,
        unless another thread receives, which goes on with them until the peer's Close. Of a handler that ``recv`` has
        called, and of a signal handler that has interrupted it or a ``send``, this is
        ``send_close_frame``.

        Args:
            code: 1000 to 1003, 1007 to 1014 or 3000 to 4999; None for a Close frame without one.
            reason: at most 123 bytes of UTF-8.

        Raises:
            RuntimeError: see ``send``.
            TypeError: the reason is not a str, or the code not an int.
            ValueError: the code may not be sent (RFC 6455 §7.4), or the reason is too long.
        """
        frame = create_close_frame(code, reason)
        if self.closed and self._lingering is None:
            self.sock.close()  # an exception of a signal handler may have come before that
            return
        closing = self._begin_closing()
        if self._receiving.is_mine or self._is_sending() or self.sock._outbox.is_interrupted():
            self._say(frame)
            return
        try:
            self._say(frame)
            self._await_end(closing)
        finally:
            self._give_up()

    def _say(self, close: Frame) -> None:
        with contextlib.suppress(SocketClosed):  # it was said already, or can't be
            self.sock._queue((close,))
            self.sock.do_async_send()

    def _give_up(self) -> None:
        """End the connection now, if it hasn't ended; if the peer's last word was heard, with that."""
        if self._last is None:
            message = "the closing handshake took longer than close_timeout"
            self._end(CloseCode.ABNORMAL, message, limit="close_timeout")
        else:
            self._end(*self._told(self._last))
        self.sock.close()

    def _is_sending(self) -> bool:
        """Whether this is called by an extension, or a signal handler, while this thread makes what it sends."""
        return self.sock._sender == get_ident()

    def _await_end(self, closing: Deadline) -> None:
        """Read until the connection has ended, or wait for the thread that does."""
        try:
            if self._is_received_by_another() or not self._receiving.try_enter():
                with contextlib.suppress(SocketClosed):
                    self.sock._flush_all(closing)
                with self._loop_ends:
                    self._loop_ends.wait_for(lambda: not self._is_received_by_another(), closing.remaining)
                self._receiving.enter(closing)
        except TimeoutError:
            return
        try:
            while True:
                opcode, payload, _, _ = self._event(closing)
                self._received.popleft()
                if opcode >= _CONTROL:
                    self._handle_while_closing(received_frame(opcode, payload))
        except _NoMessageError:
            return
        finally:
            self._receiving.leave()

    def _is_received_by_another(self) -> bool:
        """Whether another thread is in a loop, and hands on what still arrives."""
        return any(thread != get_ident() for thread in self._loops)

    def _handle_while_closing(self, frame: Frame) -> None:
        try:
            self._handle_control(frame)
        except Exception as error:  # noqa: BLE001 -- onerror decides what it means
            self._tell_of(error)

    def _finish(self, last: SocketClosed | ProtocolError, deadline: Deadline) -> None:
        """End the connection because nothing more is received.

        Raises:
            _NoMessageError: it takes longer than the call may.
        """
        try:
            if not self.closed:
                self._say_the_last(last, self._in_time(deadline))
        except TimeoutError:
            if self._closing is not None and not self._closing.is_over:
                raise _NoMessageError(self.sock._too_late()) from None
        except OSError:
            pass  # there is nobody any more whom to tell
        self._end(*self._told(last))
        self._linger(deadline)

    @staticmethod
    def _told(last: SocketClosed | ProtocolError) -> tuple[int, str]:
        """Return what ``onclose`` is told."""
        if isinstance(last, SocketClosed):
            return last.code, last.reason or ("" if last.rcvd else last.message)
        return last.code, last.message

    def _say_the_last(self, last: SocketClosed | ProtocolError, deadline: Deadline) -> None:
        """Send what is still to be sent, and let the server be the first to end TCP (RFC 6455 §5.5.1, §7.1.1).

        Raises:
            OSError: the peer is gone, or takes too long.
        """
        rcvd = last.rcvd if isinstance(last, SocketClosed) else None
        if rcvd is not None:
            with contextlib.suppress(SocketClosed):  # it is sent
                self.sock._queue((create_close_frame(None if rcvd[0] == CloseCode.NO_STATUS else rcvd[0]),))
        self.sock._flush_all(deadline)
        if rcvd is not None and self._role is Role.CLIENT:
            self.sock._drain(deadline)
        elif rcvd is not None or isinstance(last, ProtocolError):
            self.sock.shutdown(socket.SHUT_WR)
            self._lingering = Deadline(LINGER_SECONDS)

    def _linger(self, deadline: Deadline) -> None:
        """Listen for a moment after the end, see ``websocket._drain``, and close the socket.

        Raises:
            _NoMessageError: it takes longer than the call may.
        """
        if self._lingering is not None:
            try:
                self.sock._drain(deadline.earlier(self._lingering))
            except TimeoutError:
                if not self._lingering.is_over:
                    raise _NoMessageError(self.sock._too_late()) from None
            except OSError:
                pass  # the peer is gone
            self._lingering = None
        self.sock.close()

    def shutdown_write(self) -> None:
        """End the sending direction of TCP."""
        self.sock.shutdown(socket.SHUT_WR)

    def _end(self, code: int, reason: str, *, limit: str | None = None) -> None:
        with self._ending:
            if self.closed:
                return
            self.closure = self.sock._explain(self.sock._opened(), (code, reason), limit)
            self.close_code, self.close_reason = code, reason
            if _journal.is_open:
                _journal.tell(self._remote_address, "%s %s", peer_name(self._remote_address), self.closure)
            self.closed = True
            if self._lingering is None:
                self.sock.close()
        try:
            self.onclose(code, reason)
        except Exception as error:  # noqa: BLE001 -- onerror decides what it means
            self._tell_of(error)
        except BaseException:
            self.sock.close()
            raise

    def _address(self) -> Address | bytes | None:
        """Return that of the peer, as far as it is still known."""
        request = self.sock.request
        if request is not None:
            return request.remote_address
        try:
            address: Address | bytes = self.sock.getpeername()
        except OSError:
            return None
        return address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
        else:
            self._close_because_of(error)

    def __str__(self) -> str:
        return repr(self.sock)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.sock!r}{' closed' if self.closed else ''}>"
