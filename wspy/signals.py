"""SIGINT and SIGTERM as a count that a loop looks at, for as long as it runs.

Nothing is installed outside the main thread, and no handler that somebody else has set is replaced.
"""

from __future__ import annotations

import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["StopSignals"]

_DEFAULT = {signal.SIG_DFL, signal.default_int_handler}


class StopSignals:
    """A context manager around the run of a loop; ``count`` tells how many signals came.

    Args:
        watch: called with a descriptor that becomes readable when a signal comes, and with -1 in the end.
    """

    def __init__(self, watch: Callable[[int], object]) -> None:
        self.count = 0
        self._watch = watch
        self._previous: dict[int, Any] = {}
        self._sockets: tuple[socket.socket, socket.socket] | None = None

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.count += 1

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        ours = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) in _DEFAULT]
        if ours:
            self._open_wakeup()
        for number in ours:
            self._previous[number] = signal.signal(number, self._received)
        return self

    def _open_wakeup(self) -> None:
        # Python writes into it when the signal arrives, which also ends a wait that was about to begin.
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        other = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        if other != -1:  # somebody else's: theirs goes on
            signal.set_wakeup_fd(other)
            reader.close()
            writer.close()
            return
        self._sockets = reader, writer
        self._watch(reader.fileno())

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        if self._sockets is not None:
            signal.set_wakeup_fd(-1)
            self._watch(-1)
            for end in self._sockets:
                end.close()
            self._sockets = None
