"""websockets on asyncio: what comes in goes out: python websockets_echo.py PORT [WORD...].

The words are keepalive, uvloop, deflate and tls=PEM. Compression is off, as in the other servers, and keepalive too
unless asked for: it costs a task for each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


async def echo(connection: ServerConnection) -> None:
    # The load client resets connections: a traceback for each would cost more than the handshake that is measured.
    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            await connection.send(message)


def tls() -> ssl.SSLContext | None:
    files = [word.removeprefix("tls=") for word in sys.argv if word.startswith("tls=")]
    if not files:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files[0])
    return context


async def main() -> None:
    port = int(sys.argv[1])
    interval = 20 if "keepalive" in sys.argv else None
    compression = "deflate" if "deflate" in sys.argv else None
    options = {"compression": compression, "ping_interval": interval, "ssl": tls()}
    async with serve(echo, "127.0.0.1", port, **options) as server:
        await server.serve_forever()


if __name__ == "__main__":
    if "uvloop" in sys.argv:
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
