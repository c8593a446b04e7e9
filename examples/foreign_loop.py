"""Let asyncio drive an AsyncServer beside everything else that it does: python foreign_loop.py PORT."""

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
    interrupted, idle = asyncio.Event(), asyncio.Event()

    def turn() -> None:
        server.handle_events()
        if interrupted.is_set() and not server.stats()["connections"]:
            idle.set()

    with EchoServer(("127.0.0.1", port)) as server:
        loop.add_signal_handler(signal.SIGINT, interrupted.set)
        loop.add_reader(server.fileno(), turn)
        print("ws://{}:{}/".format(*server.address), flush=True)
        await interrupted.wait()
        server.stop()
        turn()
        await idle.wait()
        loop.remove_reader(server.fileno())


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
