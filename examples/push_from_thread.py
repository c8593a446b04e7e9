"""Send the load of the machine to everybody each second, from a program with a loop of its own.

The server runs in a thread beside it: python push_from_thread.py [PORT].
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

import wspy


def main(port: int) -> None:
    with wspy.AsyncServer(("127.0.0.1", port)).start() as server, contextlib.suppress(KeyboardInterrupt):
        print("ws://{}:{}/".format(*server.address), flush=True)
        while True:
            server.broadcast(f"load {os.getloadavg()[0]}, clients {len(server.clients)}")
            time.sleep(1)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
    except OSError as error:
        sys.exit(f"can't serve: {error}")
