"""An AsyncServer for tests: it echoes, and keeps what its handlers were told."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any

import wspy


class Recorder(wspy.AsyncServer):
    """Each queue has what one handler was told, in order; take from it with a timeout."""

    def __init__(self, **options: Any) -> None:
        super().__init__(("127.0.0.1", 0), **options)
        self.opened: SimpleQueue[wspy.AsyncClient] = SimpleQueue()
        self.pings: SimpleQueue[bytes] = SimpleQueue()
        self.pongs: SimpleQueue[bytes] = SimpleQueue()
        self.ended: SimpleQueue[tuple[int, str]] = SimpleQueue()
        self.errors: SimpleQueue[BaseException] = SimpleQueue()

    @property
    def url(self) -> str:
        return "{}://{}:{}".format("wss" if self.secure else "ws", *self.address)

    def onopen(self, client: wspy.AsyncClient) -> None:
        self.opened.put(client)

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)

    def onpingreceived(self, client: wspy.AsyncClient, payload: bytes) -> None:
        self.pings.put(payload)

    def onpong(self, client: wspy.AsyncClient, payload: bytes) -> None:
        self.pongs.put(payload)

    def onclose(self, client: wspy.AsyncClient, code: int, reason: str) -> None:
        self.ended.put((code, reason))

    def onerror(self, client: wspy.AsyncClient | None, error: BaseException) -> None:
        self.errors.put(error)
