"""Which thread runs a function that may block? One at once for each call, and afterwards the same one again."""

from __future__ import annotations

import threading
from collections import deque
from contextvars import Context
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Threads"]

MOST_IDLE: Final = 32
"""Threads that wait for their next call; when there are as many, one that has returned ends."""

_Job: TypeAlias = "tuple[str, Callable[..., object], tuple[Any, ...]]"


class Threads:
    """Threads for any number of calls at a time. They are daemons: who never returns holds up no interpreter."""

    def __init__(self) -> None:
        # a signal handler may end what it has interrupted
        self._lock = threading.RLock()
        self._busy: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._leaving: deque[_Worker] = deque()
        self._tell: Callable[[], object] | None = None

    @property
    def busy(self) -> int:
        """How many calls have not returned. Thread-safe."""
        return len(self._busy)

    def run(self, name: str, function: Callable[..., object], *arguments: Any) -> threading.Thread:
        """Call a function, which must not raise, in a thread of its own, and return that. Thread-safe.

        Args:
            name: of the thread, for as long as the call takes.
            function: what to call.
            arguments: what to call it with.

        Raises:
            RuntimeError: there are as many threads as the system allows.
        """
        job = (name, function, arguments)
        with self._lock:
            worker = self._idle.pop() if self._idle else None
            if worker is not None:
                self._busy.add(worker)
        if worker is None:
            worker = _Worker(self)
            with self._lock:
                self._busy.add(worker)
            try:
                worker.start()
            except BaseException:
                self._rests(worker)
                raise
        worker.jobs.put(job)
        return worker

    def end(self, tell: Callable[[], object]) -> None:
        """Keep no idle threads from now on. Thread-safe.

        Args:
            tell: called, in its thread, each time that a call has returned.
        """
        with self._lock:
            self._tell = tell
            idle, self._idle = self._idle, []
            self._leaving.extend(idle)
        for worker in idle:
            worker.jobs.put(None)

    def join(self, seconds: float) -> list[str]:
        """Wait until no thread is left, but not for ever; return the names of those that are."""
        end = monotonic() + seconds
        with self._lock:
            workers = [*self._busy, *self._idle, *self._leaving]
        for worker in workers:
            worker.join(max(end - monotonic(), 0))
        return [worker.name for worker in workers if worker.is_alive()]

    def forked(self) -> None:
        """In the child of a fork, where no other thread is: wait for none, and keep not even this one."""
        # another thread may have held it, and can't let go of it here
        self._lock = threading.RLock()
        self._tell = int
        for gone in (self._busy, self._idle, self._leaving):
            gone.clear()

    def _rests(self, worker: _Worker) -> bool:
        """Take a thread back whose call has returned, and return whether it is going to be used again."""
        with self._lock:
            self._busy.discard(worker)
            stays = self._tell is None and worker.is_alive() and len(self._idle) < MOST_IDLE
            if stays:
                self._idle.append(worker)
            else:
                while self._leaving and not self._leaving[0].is_alive():
                    self._leaving.popleft()
                if worker.is_alive():
                    self._leaving.append(worker)
        if self._tell is not None:
            self._tell()
        return stays


class _Worker(threading.Thread):
    """A thread that makes one call after the other."""

    def __init__(self, threads: Threads) -> None:
        super().__init__(name="wspy idle", daemon=True)
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = threads

    def run(self) -> None:
        """Make calls until there shall be no more."""
        stays = True
        while stays and (job := self.jobs.get()) is not None:
            self.name, function, arguments = job
            # of its own: what a call sets in it, such as decimal's precision, is not for the next one
            Context().run(function, *arguments)
            # what was called is not to be kept by a thread that only waits
            del job, function, arguments
            self.name = "wspy idle"
            stays = self._threads._rests(self)  # noqa: SLF001 -- the two are one thing
