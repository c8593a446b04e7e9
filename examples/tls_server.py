"""Echo over TLS, and take a new certificate while serving, at SIGHUP: python tls_server.py [PORT] [PEM].

A file for a try:
openssl req -x509 -nodes -newkey rsa -subj /CN=x -addext subjectAltName=IP:127.0.0.1 -keyout server.pem -out server.pem
"""

from __future__ import annotations

import signal
import ssl
import sys

import wspy


class SecureEcho(wspy.AsyncServer):
    def onopen(self, client: wspy.AsyncClient) -> None:
        if client.ssl_object:
            print(f"{client} speaks {client.ssl_object.version()}", flush=True)

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)

    def reload(self, pem: str) -> None:
        try:
            self.reload_tls(pem)
        except OSError as error:
            print(f"still with the old certificate: {error}", flush=True)
        else:
            print("with the new certificate", flush=True)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    pem = sys.argv[2] if len(sys.argv) > 2 else "server.pem"
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pem)
        server = SecureEcho(("127.0.0.1", port), ssl=context)
    except OSError as error:
        sys.exit(f"can't serve: {error}")
    signal.signal(signal.SIGHUP, lambda *_: server.call_soon(server.reload, pem))
    server.call_soon(lambda: print("wss://{}:{}/".format(*server.address), flush=True))
    server.run()
