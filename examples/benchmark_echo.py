"""The least that an echo server does, for benchmarks: python benchmark_echo.py [PORT]."""

from __future__ import annotations

import sys

import wspy


class EchoServer(wspy.AsyncServer):
    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    try:
        server = EchoServer(("127.0.0.1", port))
    except OSError as error:
        sys.exit(f"can't serve: {error}")
    server.call_soon(lambda: print("ws://{}:{}/".format(*server.address), flush=True))
    server.run()
