"""Echo the messages of one client after the other, without a loop or threads: python connection_echo.py [PORT]."""

from __future__ import annotations

import socket
import sys

import wspy


class EchoConnection(wspy.Connection):
    def onopen(self) -> None:
        print("opened at {}:{}".format(*self.sock.getpeername()), flush=True)

    def onmessage(self, message: wspy.Message) -> None:
        print(f"received {message!r}", flush=True)
        self.send(message)

    def onclose(self, code: int, reason: str) -> None:
        print(f"closed with {code}", flush=True)


def serve(port: int) -> None:
    with wspy.websocket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        print("ws://{}:{}/".format(*listener.getsockname()), flush=True)
        while True:
            EchoConnection(listener.accept()[0]).receive_forever()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    try:
        serve(port)
    except OSError as error:
        sys.exit(f"can't serve: {error}, port {port}")
    except KeyboardInterrupt:
        pass
