"""Send the time to everybody each second, without a thread: python broadcast.py [PORT]."""

from __future__ import annotations

import sys
import time

import wspy


class ClockServer(wspy.AsyncServer):
    def tick(self) -> None:
        self.broadcast(time.strftime("%H:%M:%S"))
        self.call_later(1.01 - time.time() % 1, self.tick)  # when the next second has begun


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    try:
        server = ClockServer(("127.0.0.1", port))
    except OSError as error:
        sys.exit(f"can't serve: {error}")
    server.call_soon(lambda: print("ws://{}:{}/".format(*server.address), flush=True))
    server.call_soon(server.tick)
    server.run()
