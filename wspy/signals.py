"""SIGINT and SIGTERM as a count that a loop looks at, for as long as it runs.

Nothing is installed outside the main thread, and nothing that somebody else has set is replaced: neither a handler nor
a wake-up descriptor.
"""

from __future__ import annotations

import signal
import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["StopSignals"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_DEFAULTS: Final = (signal.SIG_DFL, signal.default_int_handler)


class StopSignals:
    """A context manager around the run of a loop; ``count`` tells how many signals came.

    Args:
        watch: called with a descriptor that becomes readable when a signal comes, and with -1 in the end. Not called
            where somebody else has a wake-up descriptor: a signal only interrupts a wait that has begun, then.
    """

    def __init__(self, watch: Callable[[int], object]) -> None:
        self.count = 0
        self._watch = watch
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        numbers = [number for number in _SIGNALS if signal.getsignal(number) in _DEFAULTS]
        # whatever is raised in between, KeyboardInterrupt too, what was done is undone
        with ExitStack() as undo:
            for number in numbers:
                undo.callback(self._restore, number, signal.getsignal(number))
            # before the first signal is counted, so that none is slept through
            if numbers:
                self._open_wakeup(undo)
            for number in numbers:
                signal.signal(number, self._received)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _received(self, *_: object) -> None:
        self.count += 1

    def _restore(self, number: int, handler: Any) -> None:
        if signal.getsignal(number) == self._received:
            signal.signal(number, handler)

    def _open_wakeup(self, undo: ExitStack) -> None:
        other = signal.set_wakeup_fd(-1)
        if other != -1:
            signal.set_wakeup_fd(other)
            return
        # Python writes into it when the signal arrives, which also ends a wait that was about to begin.
        reader, writer = socket.socketpair()
        undo.callback(reader.close)
        undo.callback(writer.close)
        reader.settimeout(0)
        writer.settimeout(0)
        undo.callback(_close_wakeup, writer.fileno())
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        undo.callback(self._watch, -1)
        self._watch(reader.fileno())


def _close_wakeup(ours: int) -> None:
    current = signal.set_wakeup_fd(-1)
    if current != ours:  # somebody has set theirs meanwhile
        signal.set_wakeup_fd(current)
