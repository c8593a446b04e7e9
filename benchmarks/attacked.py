"""What attack.py attacks: an echo server with compression, one path and a password: python attacked.py PORT."""

from __future__ import annotations

import sys

import wspy


class EchoServer(wspy.AsyncServer):
    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)


if __name__ == "__main__":
    EchoServer(
        ("127.0.0.1", int(sys.argv[1])),
        extensions=[wspy.DeflateMessage],
        locations=("/",),
        auth=("Anna", "swordfish"),
    ).run()
