"""Send a file of any size to whoever connects, a piece at a time: python onsent_file.py PORT FILE.

The next piece is read when the kernel has taken the one before: a slow client costs one piece of memory.
"""

from __future__ import annotations

import sys

import wspy

PIECE = 1 << 16  # bytes


class FileServer(wspy.AsyncServer):
    def onopen(self, client: wspy.AsyncClient) -> None:
        client.data = open(sys.argv[2], "rb")  # noqa: PTH123, SIM115 -- onclose closes it
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
        client.data.close()


if __name__ == "__main__":
    server = FileServer(("127.0.0.1", int(sys.argv[1])))
    server.call_soon(lambda: print("ws://{}:{}/".format(*server.address), flush=True))
    server.run()
