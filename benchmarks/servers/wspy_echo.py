"""wspy: what comes in goes out: python wspy_echo.py PORT [drop-request].

With drop-request, request heads are not kept after the handshake, which is what most memory of an idle client is for.
"""

from __future__ import annotations

import sys

import wspy


class EchoServer(wspy.AsyncServer):
    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)


if __name__ == "__main__":
    EchoServer(("127.0.0.1", int(sys.argv[1])), keep_request="drop-request" not in sys.argv).run()
