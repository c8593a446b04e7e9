"""Greet every client, ask for its name, and echo, each in a thread of its own: python threaded_server.py [PORT]."""

from __future__ import annotations

import sys

import wspy


class EchoServer(wspy.Server):
    def onopen(self, client: wspy.Client) -> None:
        print(f"Client {client} connected", flush=True)
        client.send("What is your name?")
        # This may take as long as it likes: nobody else waits for it.
        client.data = client.recv().bytes.decode(errors="replace")

    def onmessage(self, client: wspy.Client, message: wspy.Message) -> None:
        print(f"Received message {message.payload!r:.50} from {client.data!r:.50}", flush=True)
        client.send(message)

    def onclose(self, client: wspy.Client, code: int, reason: str) -> None:
        print(f"Client {client} disconnected: {code}", flush=True)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    try:
        server = EchoServer(("127.0.0.1", port))
    except OSError as error:
        sys.exit(f"can't serve: {error}")
    # Printed by the running server: from then on Ctrl-C ends it gracefully.
    server.call_soon(lambda: print("ws://{}:{}/".format(*server.address), flush=True))
    server.run()
