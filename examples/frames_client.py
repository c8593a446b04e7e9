"""Exchange single frames with a server, such as frames_server.py: python frames_client.py [PORT]."""

from __future__ import annotations

import sys

import wspy

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    sock = wspy.websocket(location="/my/path")
    try:
        sock.connect(("127.0.0.1", port))
    except (OSError, wspy.ResponseError) as error:
        sys.exit(f"can't connect: {error}, port {port}")
    with sock:
        print(sock.recv())
        sock.send(wspy.Frame(wspy.OPCODE_TEXT, "Hello, ", final=False), wspy.Frame(wspy.OPCODE_PING, b"are you there?"))
        sock.send(wspy.Frame(wspy.OPCODE_CONTINUATION, b"Server!"), wspy.create_close_frame(1000, "that was all"))
        print(sock.recv())
