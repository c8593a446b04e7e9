"""Which clients of a listener are in their opening handshake, and who of them comes next?"""

from __future__ import annotations

import errno
import logging
import select
import socket
import typing
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from .deadline import NEVER, Deadline
from .errors import HandshakeError, ProtocolError, SocketClosed
from .journal import Journal
from .server_auth import WrongCredentialsError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LINGER_BYTES", "LINGER_SECONDS", "Accepted", "Guest", "Reception"]

log = logging.getLogger("wspy.websocket")

# While so many are in their handshake, others wait in the kernel's queue.
_MAX_OPENING: Final = 1024
# How long a peer is listened to that was sent away: if nobody read what it still sends, a RST would destroy the answer.
LINGER_SECONDS: Final = 1.0
LINGER_BYTES: Final = 1 << 20
_READ: Final = 16_384

# accept(2): errors of the connection that was waiting, or of the network; not of this socket.
_PASSING: Final = frozenset(
    [
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPROTO,
    ]
)
# As long as handshakes are under way, there is hope for another descriptor, and for memory.
_EXHAUSTED: Final = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])


class Guest(typing.Protocol):
    """What a ``websocket`` that is being opened can do, without waiting."""

    @property
    def sock(self) -> socket.socket:
        """The socket."""

    @property
    def handshake_sent(self) -> bool:
        """Whether the opening handshake is complete."""

    def shutdown(self, how: int) -> None:
        """End one direction of TCP."""

    def do_async_recv(self) -> None:
        """Read once."""

    def do_async_send(self) -> None:
        """Write what the kernel takes."""

    def can_send(self) -> bool:
        """Whether there is something to write."""

    def close(self) -> None:
        """Close the socket."""


_GuestT = TypeVar("_GuestT", bound=Guest)


class _Opening(Generic[_GuestT]):
    """A client in its opening handshake."""

    def __init__(self, client: _GuestT, address: Any, deadline: Deadline, journal: Journal) -> None:
        self.client = client
        self._journal = journal
        self.address = address
        self.deadline = deadline
        self.is_refused = False
        self._is_held_back = False
        self._left: int | None = None  # of what is still read from one who was refused, once the answer is sent

    @property
    def events(self) -> int:
        """What to wait for: nothing but the end of the connection, while the answer is held back."""
        if self._is_held_back:
            return 0
        return select.POLLOUT if self.client.can_send() else select.POLLIN

    @property
    def is_open(self) -> bool:
        """Whether the handshake is complete, and its answer sent."""
        return self.client.handshake_sent and not self.client.can_send()

    def go_on(self) -> None:
        """Read or write once.

        Raises:
            OSError: the client is gone, or was listened to for long enough.
        """
        if self._is_held_back:
            raise SocketClosed
        if self._left is not None:
            self._drain(self._left)
            return
        try:
            if not self.client.can_send():
                self.client.do_async_recv()
        except HandshakeError as error:
            its_time = self.deadline
            self.refused(error)
            if isinstance(error, WrongCredentialsError) and error.delay:
                self._is_held_back, self.deadline = True, its_time.earlier(error.delay)
                return
        except ProtocolError:
            pass  # of a frame behind the request head: the next recv raises it again
        self._send_answer()

    def _send_answer(self) -> None:
        self.client.do_async_send()
        if self.is_refused and not self.client.can_send():
            self.client.shutdown(socket.SHUT_WR)
            self._left = LINGER_BYTES

    def _drain(self, left: int) -> None:
        size = len(self.client.sock.recv(_READ, socket.MSG_DONTWAIT))
        self._left = left - size
        if not size or self._left <= 0:
            raise SocketClosed

    def refused(self, reason: object) -> None:
        """Give the client a moment to read why it isn't let in."""
        self._journal.tell(self.address, "refused a client at %r: %s", self.address, reason)
        self.is_refused = True
        self.deadline = Deadline(LINGER_SECONDS)

    def time_is_up(self, refuse_late: Callable[[_GuestT], None]) -> bool:
        """Send an answer that was held back, or that it took too long, if there is one; tell whether it ends now."""
        if self._is_held_back:
            self._is_held_back, self.deadline = False, Deadline(LINGER_SECONDS)
            self._send_answer()
            return False
        if self.is_refused or self.client.handshake_sent:
            return True
        self.refused("the opening handshake took longer than open_timeout")
        refuse_late(self.client)
        if not self.client.can_send():
            return True
        self._send_answer()
        return False


class Accepted(NamedTuple, Generic[_GuestT]):
    """A client that is let in, and its address."""

    client: _GuestT
    address: Any


class Reception(Generic[_GuestT]):
    """Performs the opening handshakes of a listener's clients side by side, so that none waits for a silent one.

    Not thread-safe.

    Args:
        refuse_late: queues the answer for a client whose time is up, RFC 9110 §15.5.9, if it is due one.
    """

    def __init__(self, refuse_late: Callable[[_GuestT], None]) -> None:
        self._refuse_late = refuse_late
        self._journal = Journal(log)
        self._opening: dict[int, _Opening[_GuestT]] = {}
        self._ready: deque[Accepted[_GuestT]] = deque()
        self._poll = select.poll()  # of all in _opening, and of the listener while there is room
        self._first = NEVER  # no later than the first of their deadlines
        self._is_exhausted = False
        self._is_admitting = False

    def receive(
        self,
        listener: socket.socket,
        serving: Callable[[socket.socket], _GuestT],
        seconds: float | None,
        deadline: Deadline,
    ) -> Accepted[_GuestT]:
        """Return the next client whose handshake is complete.

        Args:
            listener: where clients come from.
            serving: makes a client of a socket that was accepted.
            seconds: that each of them has for its handshake; None for ever.
            deadline: of this call. It ends no handshake: they go on in the next call.

        Raises:
            TimeoutError: the time is up.
            OSError: nothing can be accepted.
        """
        while not self._ready:
            if self._wait(listener, deadline):
                self._admit(listener, serving, seconds)
        return self._ready.popleft()

    def _wait(self, listener: socket.socket, deadline: Deadline) -> bool:
        """Wait for somebody to send something, to come, or to have no time left; tell whether somebody has come."""
        newcomers = listener.fileno()
        self._watch(newcomers)
        found = self._first.earlier(deadline).poll(self._poll)
        for fd, _ in found:
            if fd != newcomers:
                self._go_on(fd)
        if self._first.is_over:
            self._check_times()
        if not found and not self._ready and deadline.is_over:
            raise TimeoutError("timed out")
        return any(fd == newcomers for fd, _ in found)

    def _watch(self, newcomers: int) -> None:
        """Let newcomers wait in the kernel while there is no room for them."""
        admits = len(self._opening) < _MAX_OPENING and not self._is_exhausted
        if admits and not self._is_admitting:
            self._poll.register(newcomers, select.POLLIN)
        elif self._is_admitting and not admits:
            self._poll.unregister(newcomers)
        self._is_admitting = admits

    def _admit(
        self, listener: socket.socket, serving: Callable[[socket.socket], _GuestT], seconds: float | None
    ) -> None:
        try:
            sock, address = listener.accept()
        except BlockingIOError:  # it was there for another process
            return
        except OSError as error:
            self._is_exhausted = error.errno in _EXHAUSTED and bool(self._opening)
            if self._is_exhausted or error.errno in _PASSING:
                return
            raise
        try:
            client = serving(sock)
        except BaseException:
            sock.close()
            raise
        fd = sock.fileno()
        self._opening[fd] = _Opening(client, address, Deadline(seconds), self._journal)
        self._poll.register(fd, select.POLLIN)
        self._go_on(fd)

    def _go_on(self, fd: int) -> None:
        opening = self._opening[fd]
        try:
            opening.go_on()
        except BlockingIOError:
            pass
        except OSError as error:
            if not opening.is_refused:
                self._journal.tell(opening.address, "lost a client at %r: %s", opening.address, error)
            self._dismiss(fd)
            return
        if opening.is_open:
            self._leave(fd)
            self._ready.append(Accepted(opening.client, opening.address))
        else:
            self._await(fd, opening)

    def _await(self, fd: int, opening: _Opening[_GuestT]) -> None:
        """Wait for what a client has to do next, until its deadline."""
        self._poll.modify(fd, opening.events)
        self._first = self._first.earlier(opening.deadline)

    def _check_times(self) -> None:
        self._first = NEVER
        for fd, opening in list(self._opening.items()):
            if opening.deadline.is_over and self._is_dismissed(opening):
                self._dismiss(fd)
            else:
                self._await(fd, opening)

    def _is_dismissed(self, opening: _Opening[_GuestT]) -> bool:
        try:
            return opening.time_is_up(self._refuse_late)
        except OSError:
            return True

    def _dismiss(self, fd: int) -> None:
        self._leave(fd).client.close()

    def _leave(self, fd: int) -> _Opening[_GuestT]:
        self._poll.unregister(fd)
        self._is_exhausted = False
        return self._opening.pop(fd)

    def close(self) -> None:
        """Close all clients that nobody has got yet."""
        for fd in list(self._opening):
            self._dismiss(fd)
        while self._ready:
            self._ready.popleft().client.close()
        self._journal.flush()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._opening or self._ready)
