"""picows.websockets with permessage-deflate: what comes in goes out: python picows_deflate_echo.py PORT.

On uvloop. picows itself leaves compression to its user; this is its interface in the manner of websockets. Keepalive is
off, as in websockets_echo.py.
"""

from __future__ import annotations

import contextlib
import sys

import uvloop
from picows.websockets.asyncio.server import ServerConnection, serve
from picows.websockets.exceptions import ConnectionClosed


async def echo(connection: ServerConnection) -> None:
    # The load client resets connections: a traceback for each would cost more than the handshake that is measured.
    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            await connection.send(message)


async def main() -> None:
    async with serve(echo, "127.0.0.1", int(sys.argv[1]), compression="deflate", ping_interval=None) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
