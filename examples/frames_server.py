"""Greet each client with a frame, and print the frames that it sends: python frames_server.py [PORT]."""

from __future__ import annotations

import contextlib
import socket
import sys

import wspy


def talk(client: wspy.websocket) -> None:
    client.send(wspy.Frame(wspy.OPCODE_TEXT, "Hello, Client!"))
    while True:
        frame = client.recv()
        print(frame, flush=True)
        if frame.opcode == wspy.OPCODE_CLOSE:
            client.send(wspy.create_close_frame())  # nothing answers by itself here: that is what Connection does


def serve(port: int) -> None:
    with wspy.websocket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        print("ws://{}:{}/".format(*listener.getsockname()), flush=True)
        while True:
            client, _ = listener.accept()
            with client, contextlib.suppress(wspy.SocketClosed, wspy.ProtocolError):
                talk(client)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    try:
        serve(port)
    except OSError as error:
        sys.exit(f"can't serve: {error}, port {port}")
    except KeyboardInterrupt:
        pass
