"""websockets: a text of 100 bytes to every client, each 100 ms: python websockets_broadcast.py PORT."""

from __future__ import annotations

import asyncio
import sys

from websockets.asyncio.server import ServerConnection, broadcast, serve

SECONDS = 0.1
TEXT = "x" * 100


async def wait(connection: ServerConnection) -> None:
    await connection.wait_closed()


async def main() -> None:
    async with serve(wait, "127.0.0.1", int(sys.argv[1]), compression=None, ping_interval=None) as server:
        while True:
            await asyncio.sleep(SECONDS)
            broadcast(server.connections, TEXT)


if __name__ == "__main__":
    asyncio.run(main())
