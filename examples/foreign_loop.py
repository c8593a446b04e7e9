"""Let asyncio drive an AsyncServer beside everything else that it does: python foreign_loop.py [PORT]."""

from __future__ import annotations

import asyncio
import signal
import sys

import wspy


class EchoServer(wspy.AsyncServer):
    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()

    def turn() -> None:
        server.handle_events()
        if server.finished:
            finished.set()

    with EchoServer(("127.0.0.1", port)) as server:
        loop.add_signal_handler(signal.SIGINT, server.stop)
        loop.add_reader(server.fileno(), turn)
        print("ws://{}:{}/".format(*server.address), flush=True)
        await finished.wait()
        loop.remove_reader(server.fileno())


if __name__ == "__main__":
    try:
        asyncio.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 8000))
    except OSError as error:
        sys.exit(f"can't serve: {error}")
