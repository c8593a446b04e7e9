"""How a test runs a program: it reads lines, interrupts and awaits, all within bounds of time."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import wspy

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

PYTHON: Final = (sys.executable, "-W", "error")


class Program:
    """A process that ends with the ``with`` block at the latest.

    Args:
        command: the program and its arguments.
        patience: the factor for bounds of time.
        variables: of the environment, beside those of this process.
    """

    def __init__(self, *command: str | Path, patience: float = 1, **variables: str) -> None:
        self.seconds = 20 * patience
        # Python programs import the wspy that is tested, whatever directory they are in.
        environment = {**os.environ, "PYTHONPATH": str(Path(wspy.__file__).parent.parent), **variables}
        # What this process ignores, a child would ignore too: no shell's "&" may hide SIGINT from it.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
            )
        finally:
            signal.signal(signal.SIGINT, handler)
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=self.seconds)

    def write(self, line: str) -> None:
        """Write a line to the standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def line(self) -> str:
        """Return the next line of the standard output, without its end."""
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        end = time.monotonic() + self.seconds
        while b"\n" not in self._unread:
            readable, _, _ = select.select([pipe], [], [], max(end - time.monotonic(), 0))
            assert readable, f"no line within {self.seconds} s"
            piece = os.read(pipe, 1 << 20)
            assert piece, f"the program has ended: {self.process.communicate()[1].decode()}"
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def ended(self) -> tuple[int, str, str]:
        """Wait for the end; return the exit status, and what is left of the standard output and error."""
        out, err = self.process.communicate(timeout=self.seconds)
        return self.process.returncode, (self._unread + out).decode(), err.decode()

    def interrupt(self) -> tuple[int, str, str]:
        """Press Ctrl-C; return the exit status, and what is left of the standard output and error."""
        self.process.send_signal(signal.SIGINT)
        return self.ended()
