"""wspy for faults.py: echo in a process that strace may attach to: python wspy_faults.py PORT FRONT_END.

Who sends a text is aborted.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from collections import Counter
from typing import Any

import wspy

PR_SET_PTRACER, ANYBODY = 0x59616D61, ctypes.c_ulong(-1)
"""prctl(2): where Yama lets only parents trace, faults.py's strace isn't one."""

M_MMAP_THRESHOLD, MAPPED = -3, 65_536
"""mallopt(3): longer messages are mappings of their own, which may fail."""


class Handlers:
    """What both servers do."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def onopen(self, client: Any) -> None:  # noqa: ARG002 -- a handler's signature
        with self._lock:
            self.calls["onopen"] += 1

    def onmessage(self, client: Any, message: wspy.Message) -> None:
        if isinstance(message, wspy.TextMessage):
            client.abort()
        else:
            client.send(message)

    def onclose(self, client: Any, code: int, reason: str) -> None:  # noqa: ARG002 -- a handler's signature
        with self._lock:
            self.calls["onclose"] += 1


class AsyncEcho(Handlers, wspy.AsyncServer):
    """All handlers in one thread."""


class ThreadsEcho(Handlers, wspy.Server):
    """The handlers of each client in a thread of its own."""


FRONT_ENDS: dict[str, type[AsyncEcho | ThreadsEcho]] = {"async": AsyncEcho, "threads": ThreadsEcho}


def main(front_ends: dict[str, type[AsyncEcho | ThreadsEcho]] = FRONT_ENDS) -> None:
    """Serve until SIGTERM."""
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_THRESHOLD, MAPPED)
    library.prctl(PR_SET_PTRACER, ANYBODY, 0, 0, 0)
    server = front_ends[sys.argv[2]](("127.0.0.1", int(sys.argv[1])), max_size=2 << 20, close_timeout=2.0)
    server.run()
    print(json.dumps({"calls": server.calls}), flush=True)


if __name__ == "__main__":
    main()
