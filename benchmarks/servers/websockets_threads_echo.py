"""websockets with threads: what comes in goes out: python websockets_threads_echo.py PORT.

Compression and keepalive are off, as in websockets_echo.py: here the latter would cost a thread for each connection.
"""

from __future__ import annotations

import contextlib
import sys

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve


def echo(connection: ServerConnection) -> None:
    # The load client resets connections: a traceback for each would cost more than the handshake that is measured.
    with contextlib.suppress(ConnectionClosed):
        for message in connection:
            connection.send(message)


if __name__ == "__main__":
    with serve(echo, "127.0.0.1", int(sys.argv[1]), compression=None, ping_interval=None) as server:
        server.serve_forever()
