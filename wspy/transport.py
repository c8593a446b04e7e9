"""How do bytes get over a socket that several threads use, by TLS or as they are?

Names with an underscore are shared with ``websocket``, and with nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
from copy import copy
from typing import TYPE_CHECKING, Any, Final, NoReturn

from .deadline import NEVER, Deadline
from .errors import SocketClosed
from .held import HeldSocket
from .limits import checked_seconds
from .outbox import Outbox, Unsent
from .reception import LINGER_BYTES

if TYPE_CHECKING:
    from ssl import SSLContext, SSLObject

    from .closure import Closure
    from .tls import TLS

__all__ = ["READ", "Transport"]

# Bytes in one read; more is asked for once so much was there.
READ: Final = 16_384
_LARGE_READ: Final = 262_144
_ENDED: Final = "the peer has ended the connection without a Close frame"
# RFC 8446 §6.1: that could have been anybody on the way, who has cut something off
_STALLED: Final = "the peer has taken nothing for write_timeout"
# Closing sends a RST then, and what the kernel has is dropped.
_NO_LINGERING: Final = struct.pack("ii", 1, 0)
_CUT: Final = "the connection was cut: the peer has said the end of neither the connection nor of TLS"


class Transport:
    """What a ``websocket`` has of a socket; see there.

    Any thread writes, and one at a time reads. No lock is held while the kernel makes somebody wait.

    Args:
        sock: the socket; its timeout becomes that of this object, and it is made non-blocking.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._outbox = Outbox()  # its lock is that of the protocol, too, and of TLS
        self._begin_anew()
        self._read_size = READ
        self._readable: tuple[int, select.poll] | None = None  # a descriptor, and what waits for it
        self._timeout = sock.gettimeout()
        self._write_timeout: float | None = None  # seconds in which the peer takes nothing of what waits
        self._held = HeldSocket(sock)

    def _begin_anew(self) -> None:
        """Forget what became of an earlier connection."""
        self._outbox.secure(None)
        self._failure: Exception | None = None  # why nothing more is received
        self._lost: SocketClosed | None = None  # why nothing more is sent
        self._end = _ENDED  # what it means that nothing more comes
        self._opened_at = 0.0  # by the opening handshake
        self.closure: Closure | None = None
        self._errno = 0  # of the system call because of which the connection is lost
        self._limit: str | None = None  # the deadline that has ended it
        self._stall: Deadline | None = None  # since the kernel takes nothing
        self._said_goodbye = False  # by close_notify

    @property
    def handshake_sent(self) -> bool:
        """Whether the opening handshake is complete."""
        raise NotImplementedError

    # ---- the socket ----

    @property
    def sock(self) -> socket.socket:
        """The socket; another one after a redirect. It is non-blocking, whatever ``gettimeout`` says."""
        return self._held.sock

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
        """Let clients connect, see ``socket.listen``.

        Raises:
            ValueError: ``ssl`` is for clients.
        """
        self._check_ssl(server_side=True)
        self.sock.listen(backlog)

    def fileno(self) -> int:
        """Return the descriptor of the socket, -1 once it is closed."""
        return -1 if self._held.closed else self.sock.fileno()

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
        self._timeout = None if flag else 0.0

    def settimeout(self, seconds: float | None) -> None:
        """Let calls that begin from now on wait for so many seconds; None for ever, 0 not at all.

        Raises:
            TypeError: it is no number.
            ValueError: it is below 0.
        """
        self._timeout = checked_seconds("the timeout", seconds)

    def gettimeout(self) -> float | None:
        """Return the timeout in seconds; None for ever."""
        return self._timeout

    def _deadline(self) -> Deadline:
        """Return the end of a call that begins now."""
        return NEVER if self._timeout is None else Deadline(self._timeout)

    def _too_late(self) -> OSError:
        if self._timeout == 0:
            return BlockingIOError(errno.EAGAIN, "the socket is non-blocking, and not all is done")
        return TimeoutError("timed out")

    def shutdown(self, how: int) -> None:
        """End one direction of TCP or both, see ``socket.shutdown``; that of sending with what ends TLS."""
        if how != socket.SHUT_RD:
            self._say_goodbye()
        self.sock.shutdown(how)

    # ---- TLS ----

    @property
    def ssl(self) -> SSLContext | None:
        """What TLS is made with; None for a client that verifies by what the system trusts, and for no TLS."""
        return self._ssl

    @ssl.setter
    def ssl(self, context: SSLContext | None) -> None:
        if context is not None:
            from .contexts import checked_context  # noqa: PLC0415 -- ssl is large, and nothing for who needs none

            checked_context(context)
        self._ssl = context
        self._ssl_to_connect: SSLContext | None = None  # if connecting takes another one

    def _check_ssl(self, *, server_side: bool) -> None:
        """Raise ValueError if there is a context, and it is for the other side."""
        if self._ssl is not None:
            from .contexts import check_side  # noqa: PLC0415 -- see above

            check_side(self._ssl, server_side=server_side)

    @property
    def secure(self) -> bool:
        """Whether this is over TLS."""
        return self._outbox.tls is not None

    @property
    def ssl_object(self) -> SSLObject | None:
        """What tells of the peer's certificate, the cipher and so on; None without TLS. Not to be read or written."""
        tls = self._outbox.tls
        return None if tls is None else tls.ssl_object

    def _plaintext(self, data: bytes | None) -> bytes | None:
        """Return what is in what the kernel has brought; nothing at the end, None if there is none yet."""
        tls = self._outbox.tls
        if tls is None or data is None:
            return data
        try:
            with self._outbox.lock:
                plaintext = tls.receive(data) if data else b""
                self._outbox.add_answers()
                if not data and not tls.eof():
                    self._end = _CUT
        except OSError as error:
            if error.errno is None:  # what a signal handler has raised
                raise
            with contextlib.suppress(OSError):  # the peer is told why, as far as it listens
                self._outbox.add_answers()
                self._outbox.write(self.sock)
            if not self.handshake_sent:
                raise
            self._fail_receiving("the connection is lost", error)
        return None if not plaintext and data and not tls.has_ended else plaintext

    def _look_behind(self, tls: TLS) -> None:
        """Note what came behind the plaintext that was taken: the end, or what breaks TLS."""
        if tls.failure is not None:
            with contextlib.suppress(OSError):
                self._outbox.write(self.sock)  # what tells the peer why
            self._failure = self._failure or SocketClosed(message=f"the connection is lost: {tls.failure.strerror}")
        elif tls.has_ended:
            self._failure = self._failure or SocketClosed(message=self._end)

    def _has_tls_ended(self) -> bool:
        tls = self._outbox.tls
        return tls is not None and tls.has_ended

    def _say_goodbye(self) -> None:
        """Send close_notify, RFC 8446 §6.1, unless that has to wait, or another process may go on."""
        tls = self._outbox.tls
        if tls is None or self._said_goodbye or self._held.closed or self._lost is not None:
            return
        if self._held.may_be_shared:
            return
        self._said_goodbye = True
        with contextlib.suppress(OSError), self._held as sock, self._outbox.lock:
            while self._outbox.write(sock):
                pass
            if not self._outbox.unsent:
                tls.close()
                self._outbox.add_answers()
                self._outbox.write(sock)

    # ---- writing ----

    def do_async_send(self) -> None:
        """Write of what is queued as much as the kernel takes now; for when the socket is writable. Thread-safe.

        An exception of a callback is raised here; the next call goes on with the other callbacks.

        Raises:
            SocketClosed: the connection is lost, or this side has closed the socket.
        """
        with self._held as sock:
            self._write_all(sock)

    def can_send(self) -> bool:
        """Whether something is queued: whether to watch for the socket to become writable."""
        return bool(self._outbox)

    def _flush(self, unsent: Unsent, sock: socket.socket) -> None:
        """Write until the kernel has this, by whichever thread; the socket is held."""
        if self._timeout == 0:
            self._write_all(sock)
        else:  # the rest of what is long waits until others had their turn
            self._write(sock)
        # what a signal handler sends that has interrupted the writing of its own thread is written by that
        if not unsent.is_sent() and not self._outbox.is_interrupted():
            self._await_sent(unsent, sock)

    def _await_sent(self, unsent: Unsent, sock: socket.socket) -> None:
        deadline = self._deadline()
        while not unsent.is_sent():
            try:
                self._await_room(deadline, select.POLLOUT)
            except TimeoutError:
                if unsent.is_sent():
                    return
                raise self._too_late() from None
            self._write(sock)

    def _flush_all(self, deadline: Deadline) -> None:
        """Write what is queued."""
        with self._held as sock:
            while True:
                self._write(sock)
                if not self._outbox.unsent:
                    return
                self._await_room(deadline, select.POLLOUT)

    def _write_all(self, sock: socket.socket) -> None:
        """Write until the kernel takes nothing more."""
        while self._write(sock):
            pass

    def _write(self, sock: socket.socket) -> bool:
        """Write some; return whether the kernel might take more."""
        failure, goes_on = self._lost, False
        if failure is None:
            try:
                before = self._outbox.taken
                goes_on = self._outbox.write(sock)
                if self._outbox.taken != before:
                    self._stall = None
            except OSError as error:
                if error.errno is None:  # what a signal handler has raised
                    raise
                failure = self._fail_sending(error)
        self._outbox.tell()
        if failure is not None:
            self._outbox.clear()  # of what was queued since
            raise copy(failure)
        return goes_on

    def _fail_sending(self, error: OSError) -> SocketClosed:
        """Note that nothing more is sent. What has arrived can still be received, such as the reason."""
        self._held.check()  # which may be the cause
        self._note_errno(error)
        self._lost = SocketClosed(message=f"the connection is lost: {error.strerror}")
        return self._lost

    def _note_errno(self, error: OSError) -> None:
        if not hasattr(error, "library"):  # an ssl.SSLError, which has numbers of its own
            self._errno = self._errno or error.errno or 0

    def _await_room(self, deadline: Deadline, events: int) -> int:
        """Wait until the kernel takes something, or for other events too; who takes nothing for too long is lost.

        That it has taken something is noted by the ``_write`` that follows.

        Raises:
            SocketClosed: so it was.
            TimeoutError: the deadline is over.
        """
        stall = self._stall = self._stall or Deadline(self._write_timeout)
        try:
            return self._wait(deadline.earlier(stall), events)
        except TimeoutError:
            if deadline.earlier(stall) is deadline:
                raise
            self._write(self.sock)  # there may be room, and too little of it to be told
            if self._stall is not stall:  # or there was for another thread
                return 0
            raise copy(self._give_peer_up()) from None

    def _give_peer_up(self) -> SocketClosed:
        """End the connection because of ``write_timeout``; others that wait are woken."""
        self._limit = "write_timeout"
        self._lost = SocketClosed(initialized=True, message=_STALLED)
        self._failure = self._failure or self._lost
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
            self.sock.shutdown(socket.SHUT_RDWR)
        self._outbox.clear()
        return self._lost

    # ---- reading ----

    def _poll_of(self, sock: socket.socket) -> select.poll:
        """Return what waits for the socket to become readable."""
        fd = sock.fileno()
        if self._readable is None or self._readable[0] != fd:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            self._readable = fd, poll
        return self._readable[1]

    def _await_either(self, deadline: Deadline) -> None:
        """Write answers, and what calls have left that have timed out, until there is something to read."""
        # what a signal handler has interrupted that receives can't go on meanwhile
        while self._outbox.unsent and self._lost is None and not self._outbox.is_interrupted():
            with contextlib.suppress(SocketClosed):
                self._write(self.sock)
            if self._outbox.unsent and self._await_room(deadline, select.POLLIN | select.POLLOUT) & ~select.POLLOUT:
                return
        self._wait(deadline, select.POLLIN)

    def _wait(self, deadline: Deadline, events: int) -> int:
        found = deadline.wait(self.sock, events)
        self._held.check()  # which wakes who waits
        return found

    def _read(self, size: int) -> bytes | None:
        """Read what there is, without waiting: nothing at the end, None if there is none yet."""
        data = self._fetch(size)
        return data if self._outbox.tls is None else self._plaintext(data)

    def _fetch(self, size: int) -> bytes | None:
        """Read what the kernel has, as it is: see ``_read``."""
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno is not None:
                self._note_errno(error)
                self._fail_receiving("the connection is lost", error)
            if not self.sock.gettimeout():  # else somebody has set one of the socket itself, and it is over
                raise  # what a signal handler has raised
            return None
        if len(data) == size:
            self._read_size = _LARGE_READ
        elif len(data) < READ:
            self._read_size = READ
        return data

    def _fail_receiving(self, message: str, cause: OSError | None = None) -> NoReturn:
        self._held.check()  # which may be the cause
        self._failure = SocketClosed(message=message if cause is None else f"{message}: {cause.strerror}")
        raise copy(self._failure) from cause

    def _drain(self, deadline: Deadline) -> None:
        """Read and forget, until the peer ends TCP, or goes on and on.

        If there were something unread when the socket is closed, a RST could destroy what was sent.

        Raises:
            OSError: this didn't succeed in time.
        """
        with self._held:
            left = LINGER_BYTES
            while left > 0:
                if self._has_tls_ended():  # some wait with TCP until that is answered
                    return
                self._wait(deadline, select.POLLIN)
                data = self._fetch(min(left, _LARGE_READ))
                left -= len(data or b"")  # of ciphertext: records may hold nothing
                if self._plaintext(data) == b"":
                    return
