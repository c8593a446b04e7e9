"""wspy for shutdown.py: much for clients that don't read it yet: python wspy_shutdown.py PORT FRONT_END CLIENTS [PEM].

A client's path is its number. It is sent messages until it has six, or the server stops: those that ``send`` has taken
are counted, and told at the end. {"opened": CLIENTS} is written once each of them has four.
"""

from __future__ import annotations

import json
import random
import ssl
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import wspy

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 65_536
FIRST, MOST = 4, 6
"""Messages: what has to be queued, and what a handler tries to send."""

BLOCK = random.Random(6455).randbytes(2 * SIZE)


def content(client: int, number: int) -> bytes:
    """Return the message of a client with this number."""
    start = (client * 8 + number) * 7 % SIZE
    return client.to_bytes(4, "big") + number.to_bytes(4, "big") + BLOCK[start : start + SIZE - 8]


def send(client: Any, message: bytes) -> None:
    """Send it, or raise an exception."""
    client.send(message)


class Handlers:
    """What both servers do."""

    clients_expected = 0
    send: Callable[[Any, bytes], None] = staticmethod(send)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.accepted: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self._ready = 0
        self._lock = threading.Lock()

    def onopen(self, client: Any) -> None:
        path = client.path.removeprefix("/")
        for number in range(MOST):
            self.send(client, content(int(path), number))
            self.accepted[path] += 1
            if number + 1 == FIRST:
                self._note_ready()

    def _note_ready(self) -> None:
        with self._lock:
            self._ready += 1
            if self._ready == self.clients_expected:
                print(json.dumps({"opened": self._ready}), flush=True)

    def onclose(self, client: Any, code: int, reason: str) -> None:  # noqa: ARG002 -- a handler's signature
        with self._lock:
            self.closed[str(code)] += 1


class AsyncSender(Handlers, wspy.AsyncServer):
    """All handlers in one thread."""


class Sender(Handlers, wspy.Server):
    """The handlers of each client in a thread of its own, which waits once more than four messages are unsent."""


def main(sending: Callable[[Any, bytes], None] = send) -> None:
    """Serve until SIGTERM."""
    port, front_end, count, *pem = sys.argv[1:]
    context = None
    if pem:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*pem)
    address = ("127.0.0.1", int(port))
    server: AsyncSender | Sender
    if front_end == "async":
        server = AsyncSender(address, ssl=context)
    else:
        server = Sender(address, ssl=context, write_limit=(FIRST - 1) * SIZE)
    server.clients_expected = int(count)
    server.send = sending
    server.run()
    print(json.dumps({"accepted": server.accepted, "closed": server.closed}), flush=True)


if __name__ == "__main__":
    main()
