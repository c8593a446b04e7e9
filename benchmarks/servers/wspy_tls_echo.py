"""wspy over TLS: what comes in goes out: python wspy_tls_echo.py PORT PEM."""

from __future__ import annotations

import ssl
import sys

import wspy


class EchoServer(wspy.AsyncServer):
    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)


if __name__ == "__main__":
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(sys.argv[2])
    EchoServer(("127.0.0.1", int(sys.argv[1])), ssl=context).run()
