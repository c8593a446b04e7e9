"""The least that an echo server does, for benchmarks: python benchmark_echo.py PORT."""

from __future__ import annotations

import sys

import wspy


class EchoServer(wspy.AsyncServer):
    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)


if __name__ == "__main__":
    EchoServer(("127.0.0.1", int(sys.argv[1]))).run()
