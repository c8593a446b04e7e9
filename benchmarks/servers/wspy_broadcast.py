"""wspy: a text of 100 bytes to every client, each 100 ms: python wspy_broadcast.py PORT."""

from __future__ import annotations

import sys

import wspy

SECONDS = 0.1
TEXT = "x" * 100


class BroadcastServer(wspy.AsyncServer):
    def tick(self) -> None:
        self.call_later(SECONDS, self.tick)
        self.broadcast(TEXT)


if __name__ == "__main__":
    server = BroadcastServer(("127.0.0.1", int(sys.argv[1])))
    server.call_soon(server.tick)
    server.run()
