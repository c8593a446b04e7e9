"""What waits for the kernel, in which order, and who is told when the kernel has it?"""

from __future__ import annotations

import errno
import socket
from collections import deque
from threading import RLock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from .tls import TLS

__all__ = ["Outbox", "Unsent"]

_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
# Of what TLS answers by itself, such as a KeyUpdate (RFC 8446 §4.6.3): more is owed to nobody who reads.
_MAX_ANSWERS: Final = 65_536
# Plaintext that becomes records at once: nobody can receive meanwhile.
_SLICE: Final = 1 << 18


class Unsent:
    """Frames that leave together.

    Args:
        data: the bytes.
        callback: called when the kernel has all of them.
        messages: how many messages end in them.
    """

    __slots__ = ("callback", "data", "messages", "rest", "sizes")

    def __init__(self, data: bytes, callback: Callable[[], object] | None = None, messages: int = 0) -> None:
        self.data = data
        self.callback = callback
        self.messages = messages
        self.sizes: list[int] = []  # of what the kernel has taken
        self.rest: bytes | memoryview = b""  # what comes behind ``data``, and has to be made records of

    def left(self) -> bytes | memoryview:
        """Return what the kernel has not taken yet."""
        if not self.sizes:
            return self.data
        size = sum(self.sizes)
        self.sizes[:] = (size,)
        return memoryview(self.data)[size:]

    def is_sent(self) -> bool:
        """Whether the kernel has all of it."""
        return not self.rest and sum(self.sizes) >= len(self.data)  # any thread asks: see seal

    def seal(self, tls: TLS) -> None:
        """Put records in the place of what comes next; what TLS had to say by itself goes first."""
        plaintext = self.rest or self.data
        rest: bytes | memoryview = b""
        if len(plaintext) > _SLICE:
            view = memoryview(plaintext)
            plaintext, rest = view[:_SLICE], view[_SLICE:]
        tls.send(plaintext)
        # in this order: so it never looks as if all were sent
        self.sizes.clear()
        self.data = tls.take()
        self.rest = rest


class Outbox:
    """Bytes in the order in which they leave. Thread-safe.

    No byte is sent twice and none is left out, whatever exception a signal handler raises in between, and at whichever
    bytecode: what the kernel has taken is noted in the same step of the interpreter that calls it.

    With TLS, bytes become records when it is their turn: so what TLS has to say by itself goes before what only waits,
    and a Pong can still be replaced.

    Attributes:
        lock: held while something is added or written, and never while somebody waits for the kernel. Whoever makes
            bytes whose order counts makes and adds them under it; so does who reads by ``tls``.
        unsent: what the kernel doesn't have yet; not to be changed.
        tls: what makes records of all that leaves, or None.
        taken: how many bytes the kernel has taken so far, at least: it changes whenever it takes some.
    """

    __slots__ = (
        "_due",
        "_forgotten",
        "_is_sealing",
        "_is_writing",
        "_pong",
        "_sealed",
        "_state",
        "_teller",
        "lock",
        "taken",
        "tls",
        "unsent",
    )

    def __init__(self) -> None:
        self.unsent: deque[Unsent] = deque()
        self._due: deque[Unsent] = deque()  # sent, and nobody was told
        self._pong: Unsent | None = None  # the last one
        self.lock = RLock()  # a signal handler may come in between
        self._is_writing = False  # the thread that holds the lock
        self._teller: object = None  # who calls callbacks
        self._state = RLock()  # of _due and _teller
        self.tls: TLS | None = None
        self._sealed: Unsent | None = None  # what consists of records: the first of unsent, unless it is sent
        self._is_sealing = False
        self._forgotten = (0, 0)
        self.taken = 0

    def secure(self, tls: TLS | None) -> None:
        """Begin anew, and make records of all that leaves from now on, or not."""
        with self.lock:
            self.clear()
            self.tls = tls
            self._sealed = None
            self._is_sealing = False
            self._forgotten = (0, 0)

    def add_answers(self) -> None:
        """See to it that what TLS has to say by itself leaves, before all of which no records were made yet.

        It is left where it is until then: so no exception loses it, and who interrupts this may send.

        Raises:
            OSError: the peer lets answers be made and doesn't read them.
        """
        with self.lock:
            if self.tls is None:
                return
            pending = self.tls.pending
            if not pending or self._is_sealing:  # it goes with what is being made, or the next that is
                return
            if self.tls.is_open and pending > _MAX_ANSWERS:
                raise OSError(errno.ENOBUFS, "the peer asks TLS for answers, and doesn't read them")
            if not self.unsent or self.unsent[-1] is self._sealed:
                self.unsent.append(Unsent(b""))

    def _seal(self, tls: TLS, unsent: Unsent) -> None:
        """Make records of something that is next."""
        if self._is_sealing:  # an exception of a signal handler came in between: some records are lost, or made twice
            raise OSError(errno.ECONNABORTED, "an exception has interrupted the making of TLS records")
        self._is_sealing = True
        unsent.seal(tls)
        self._sealed = unsent
        self._is_sealing = False

    def __bool__(self) -> bool:
        """Whether ``write`` or ``tell`` has something to do."""
        return bool(self.unsent) or bool(self._due)

    def add(self, unsent: Unsent) -> None:
        """Add something to the end."""
        self.unsent.append(unsent)

    def add_pong(self, data: bytes) -> None:
        """Add a Pong, in the place of one that nothing was sent of yet.

        RFC 6455 §5.5.2 lets the most recent Ping alone be answered: so a peer that sends many, and reads nothing, costs
        the memory of one.
        """
        with self.lock:
            if self._is_writing:
                self.unsent.append(Unsent(data))
                return
            if self._pong is not None and not self._pong.sizes and self._pong is not self._sealed and self.unsent:
                self._pong.data = data
                return
            self._pong = Unsent(data)
            self.unsent.append(self._pong)

    def write(self, sock: socket.socket) -> bool:
        """Send as much as the kernel takes now; call ``tell`` afterwards.

        By TLS it ends within what is long, too: so others get at the lock. Return whether that is why.

        Raises:
            OSError: the kernel takes nothing any more.
        """
        with self.lock:
            if self._is_writing:
                return False  # a signal handler has interrupted it; it goes on afterwards
            try:
                self._is_writing = True
                while self.unsent:
                    unsent = self.unsent[0]
                    if self.tls is not None and unsent is not self._sealed:
                        self._seal(self.tls, unsent)
                    if not self._send(sock, unsent):
                        return False
                    if unsent.rest:
                        self._sealed = None
                        return True
                    if unsent.callback is None:
                        self.unsent.popleft()
                    else:
                        self._due.extend(map(deque.popleft, (self.unsent,)))
                return False
            finally:
                self._is_writing = False

    def is_interrupted(self) -> bool:
        """Whether the calling thread is in ``write`` already, which a signal handler has interrupted."""
        with self.lock:
            return self._is_writing

    def _send(self, sock: socket.socket, unsent: Unsent) -> bool:
        """Send what the kernel takes now of this; tell whether that was all."""
        left = unsent.left() if unsent.sizes else unsent.data
        if not left:
            return True
        try:
            unsent.sizes.extend(map(sock.send, (left,), (_FLAGS,)))
        except BlockingIOError:
            return False
        except TimeoutError as error:
            if error.errno is None and sock.gettimeout():  # somebody has set one of the socket itself
                return False
            raise
        self.taken += unsent.sizes[-1]
        return unsent.sizes[-1] == len(left)

    def tell(self) -> None:
        """Call the callbacks of what was sent, in order: one thread does it for all, and none inside another.

        An exception of a callback is raised; the next call goes on behind it.
        """
        if not self._due:
            return
        me = object()
        try:
            with self._state:
                self._teller = self._teller or me
            while self._teller is me:
                unsent = self._take_due()
                if unsent is not None and unsent.callback is not None:
                    unsent.callback()
        finally:
            if self._teller is me:
                self._teller = None

    def _take_due(self) -> Unsent | None:
        """Take the next one whom to tell of; if there is none, somebody else may come."""
        with self._state:
            if self._due:
                return self._due.popleft()
            self._teller = None
            return None

    def clear(self) -> None:
        """Forget what was not sent; its callbacks are never called."""
        with self.lock:
            self._forgotten = self.left()
            self.unsent.clear()

    def left(self) -> tuple[int, int]:
        """Return how many bytes the kernel never took, with what was forgotten, and of how many messages they are.

        With TLS, bytes of records count for what became records.
        """
        with self.lock:
            size, messages = self._forgotten
            for unsent in self.unsent:
                left = len(unsent.data) - sum(unsent.sizes) + len(unsent.rest)
                size += left
                messages += unsent.messages if left else 0
        return size, messages
