"""Echo the frames of any number of clients in a loop of your own: python selectors_loop.py [PORT]."""

from __future__ import annotations

import contextlib
import socket
import sys
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector

import wspy


def accept(listener: wspy.websocket) -> None:
    client, _ = listener.accept()  # non-blocking as the listener is, and before its opening handshake
    client.recv_callback = client.queue_send  # a Ping and a Close, too
    selector.register(client, EVENT_READ, go_on)


def go_on(client: wspy.websocket) -> None:
    try:
        client.do_async_recv()
        client.do_async_send()
        selector.modify(client, EVENT_READ | EVENT_WRITE * client.can_send(), go_on)
    except (OSError, wspy.ProtocolError, wspy.HandshakeError):
        selector.unregister(client)
        with client, contextlib.suppress(OSError):
            client.do_async_send()  # a Close, or the reason why the client isn't let in


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    with wspy.websocket() as listener, DefaultSelector() as selector, contextlib.suppress(KeyboardInterrupt):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            sys.exit(f"can't serve: {error}, port {port}")
        listener.listen()
        listener.settimeout(0)
        selector.register(listener, EVENT_READ, accept)
        print("ws://{}:{}/".format(*listener.getsockname()), flush=True)
        while True:
            for key, _ in selector.select():
                key.data(key.fileobj)
