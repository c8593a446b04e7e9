"""wspy, a thread for each client: what comes in goes out: python wspy_threads_echo.py PORT."""

from __future__ import annotations

import sys

import wspy


class EchoServer(wspy.Server):
    def onmessage(self, client: wspy.Client, message: wspy.Message) -> None:
        client.send(message)


if __name__ == "__main__":
    EchoServer(("127.0.0.1", int(sys.argv[1]))).run()
