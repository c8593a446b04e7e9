"""wspy for soak.py: what comes in goes out; each line on stdin is answered with what there is in the process.

python wspy_soak.py --port PORT [--front-end epoll|threads] [--pem PEM] [--name NAME] [--deadline SECONDS]

The line "trim" gives memory back to the system before. SIGTERM stops it in order. Each line on stdout is a JSON object:
one when it listens, one for each line on stdin, and one at the end. ``main`` takes another function that answers
messages.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import ssl
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wspy

if TYPE_CHECKING:
    from collections.abc import Callable

    Echo = Callable[[Any, wspy.Message], object]

PAGE = os.sysconf("SC_PAGE_SIZE")


def echo(client: Any, message: wspy.Message) -> None:
    """Send a message back, in the fragments that the path asks for."""
    with contextlib.suppress(wspy.SocketClosed):  # the client has left meanwhile, or the server stops
        client.send(message, fragment_size=client.data)


class Handlers:
    """What both servers do with their clients, and how often."""

    answer: Echo = staticmethod(echo)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.calls: Counter[str] = Counter()
        self.lock = threading.Lock()

    def count(self, handler: str) -> None:
        with self.lock:
            self.calls[handler] += 1

    def onopen(self, client: Any) -> None:
        self.count("onopen")
        client.data = int(client.request.query.get("fragment", 0)) or None

    def onmessage(self, client: Any, message: wspy.Message) -> None:
        self.count("onmessage")
        self.answer(client, message)

    def onclose(self, client: Any, code: int, reason: str) -> None:  # noqa: ARG002 -- a handler's signature
        self.count("onclose")


class EpollEcho(Handlers, wspy.AsyncServer):
    """All handlers in one thread."""


class ThreadsEcho(Handlers, wspy.Server):
    """The handlers of each client in a thread of its own."""


FRONT_ENDS: dict[str, type[EpollEcho | ThreadsEcho]] = {"epoll": EpollEcho, "threads": ThreadsEcho}


def state(server: EpollEcho | ThreadsEcho) -> dict[str, Any]:
    """Return what there is in this process now, and what was counted."""
    with server.lock:
        calls = dict(server.calls)
    return {
        "calls": calls,
        "stats": server.stats() if not server.loop.closed else None,
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # noqa: PTH208 -- one of them is the listing's own
        "threads": threading.active_count(),
        "rss": int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE,
    }


def trim() -> None:
    """Give back what is only kept for later: Python's unreachable objects, and what malloc has in its arenas."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


def tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def answer_lines(server: EpollEcho | ThreadsEcho) -> None:
    """Answer each line with the state; not by sys.stdin, whose lock a thread would take along to the end."""
    while line := os.read(0, 100):  # whoever writes one waits for its answer
        if line == b"trim\n":
            trim()
        tell(state(server))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--front-end", choices=FRONT_ENDS, default="epoll")
    parser.add_argument("--pem", type=Path, help="certificate and key: speak TLS")
    parser.add_argument("--name", default="", help="what the header X-Process says")
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds for whatever a peer has to do")
    return parser.parse_args()


def main(answer: Echo = echo) -> None:
    """Serve until SIGTERM."""
    arguments = parse_arguments()
    context = None
    if arguments.pem:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(arguments.pem)
    server = FRONT_ENDS[arguments.front_end](
        ("127.0.0.1", arguments.port),
        reuse_port=True,
        ssl=context,
        extensions=[wspy.DeflateMessage],
        extra_headers={"X-Process": arguments.name},
        ping_interval=1,
        ping_timeout=arguments.deadline,
        open_timeout=arguments.deadline,
        close_timeout=arguments.deadline,
        shutdown_timeout=arguments.deadline,
    )
    server.answer = answer
    threading.Thread(target=answer_lines, args=(server,), daemon=True).start()
    versions = {"wspy": wspy.__version__, "python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION}
    server.call_soon(lambda: tell({"versions": versions, **state(server)}))
    server.run()
    tell(state(server))


if __name__ == "__main__":
    main()
