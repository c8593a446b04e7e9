"""websockets on asyncio: what comes in goes out: python websockets_echo.py PORT [keepalive] [uvloop] [deflate].

Compression is off, as in the other servers, and keepalive too unless asked for: it costs a task for each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


async def echo(connection: ServerConnection) -> None:
    # The load client resets connections: a traceback for each would cost more than the handshake that is measured.
    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            await connection.send(message)


async def main() -> None:
    port = int(sys.argv[1])
    interval = 20 if "keepalive" in sys.argv else None
    compression = "deflate" if "deflate" in sys.argv else None
    async with serve(echo, "127.0.0.1", port, compression=compression, ping_interval=interval) as server:
        await server.serve_forever()


if __name__ == "__main__":
    if "uvloop" in sys.argv:
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
