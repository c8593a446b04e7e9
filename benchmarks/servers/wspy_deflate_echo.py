"""wspy with permessage-deflate: what comes in goes out: python wspy_deflate_echo.py PORT."""

from __future__ import annotations

import sys

import wspy


class EchoServer(wspy.AsyncServer):
    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)


if __name__ == "__main__":
    EchoServer(("127.0.0.1", int(sys.argv[1])), extensions=[wspy.DeflateMessage]).run()
