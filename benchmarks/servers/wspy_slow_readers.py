"""wspy for slow_readers.py: numbered messages to all clients: python wspy_slow_readers.py PORT POLICY WHOSE LIMIT RATE.

A message begins with its number and the time by CLOCK_MONOTONIC, 8 bytes each; the rest follows from the number. If
WHOSE is "shared" it is broadcast, and if "each" each client gets one of its own. At its end the server tells how
clients have ended, and how many messages there were.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from typing import Literal, cast

import wspy

SIZE = 16_384
BLOCK = random.Random(6455).randbytes(2 * SIZE)


def content(number: int) -> bytes:
    """Return what follows the number and the time in a message."""
    start = number * 7 % SIZE
    return BLOCK[start : start + SIZE - 16]


class BroadcastServer(wspy.AsyncServer):
    seconds = 0.05
    number = 0
    shared = True

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.ended: Counter[str] = Counter()

    def tick(self) -> None:
        """Send one, at a time that does not depend on how long the one before took."""
        self.due = max(self.due + self.seconds, time.monotonic())
        self.call_later(self.due - time.monotonic(), self.tick)
        self.send_one()

    def send_one(self) -> None:
        head = self.number.to_bytes(8, "big") + time.monotonic_ns().to_bytes(8, "big")
        message = head + content(self.number)
        if self.shared:
            self.broadcast(message)
        else:
            for client in self.clients:
                client.send(bytes(bytearray(message)))
        self.number += 1

    def onclose(self, client: wspy.AsyncClient, code: int, reason: str) -> None:  # noqa: ARG002 -- a handler's signature
        limit = client.closure.limit if client.closure else None
        self.ended[f"{code} {limit}"] += 1


def main(kind: type[BroadcastServer] = BroadcastServer) -> None:
    """Serve until SIGTERM."""
    policy, whose, limit, rate = sys.argv[2:]
    server = kind(
        ("127.0.0.1", int(sys.argv[1])),
        write_limit=int(limit),
        write_policy=cast("Literal['drop', 'close']", policy),
        ping_interval=None,  # a ping would wait behind what a slow reader has not read
    )
    server.shared = whose == "shared"
    server.seconds = 1 / float(rate)
    server.due = time.monotonic()
    server.call_soon(server.tick)
    server.run()
    print(json.dumps({"ended": server.ended, "messages": server.number}), flush=True)


if __name__ == "__main__":
    main()
