"""Send a file of any size to whoever connects, a piece at a time: python onsent_file.py [PORT] FILE.

The next piece is read when the kernel has taken the one before: a slow client costs one piece of memory.
"""

from __future__ import annotations

import sys

import wspy

PIECE = 1 << 16  # bytes


class FileServer(wspy.AsyncServer):
    def onopen(self, client: wspy.AsyncClient) -> None:
        client.data = open(sys.argv[-1], "rb")  # noqa: PTH123, SIM115 -- onclose closes it
        self.send_piece(client)

    def onsent(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        if not client.closed:
            self.send_piece(client)

    def send_piece(self, client: wspy.AsyncClient) -> None:
        if piece := client.data.read(PIECE):
            client.send(piece)
        else:
            client.close(1000, "that was all")

    def onclose(self, client: wspy.AsyncClient, code: int, reason: str) -> None:
        if client.data is not None:  # the file was there
            client.data.close()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 2 else 8000
    try:
        server = FileServer(("127.0.0.1", port))
    except OSError as error:
        sys.exit(f"can't serve: {error}")
    server.call_soon(lambda: print("ws://{}:{}/".format(*server.address), flush=True))
    server.run()
