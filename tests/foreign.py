"""Servers that nobody here wrote, behind one face: what each is asked to do is in the path of the request.

- ``/echo``: each message comes back; ``/fragments``: in fragments.
- ``/ping``: each message is sent as a Ping, and comes back when its Pong is there.
- ``/close?code=…&reason=…``: a message is answered by a Close.
- ``/request``: path and header fields come as JSON.
- ``/flood?count=…&size=…``: so many messages are sent while as many are received, and then the number of bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import websockets.asyncio.server
import websockets.exceptions
import websockets.sync.server
from aiohttp import WSMsgType, web
from certificates import pem, server_context

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from programs import Program

PIECES = 3
"""In how many fragments a message comes back."""


class Asked(NamedTuple):
    """What a path asks for."""

    what: str
    code: int | None
    reason: str
    messages: int
    size: int


def asked(target: str) -> Asked:
    """Read a path."""
    parts = urlsplit(target)
    query = dict(parse_qsl(parts.query))
    code = int(query["code"]) if "code" in query else None
    return Asked(parts.path, code, query.get("reason", ""), int(query.get("count", 0)), int(query.get("size", 0)))


def in_pieces(message: str | bytes) -> list[Any]:
    """Cut a message."""
    size = len(message) // PIECES + 1
    return [message[start : start + size] for start in range(0, max(len(message), 1), size)]


def described(path: str, headers: Iterable[tuple[str, str]]) -> str:
    return json.dumps({"path": path, "headers": {name.lower(): value for name, value in headers}})


class Foreign:
    """A server while the ``with`` block lasts.

    Args:
        seconds: what starting and ending may take.
        subprotocols: that it speaks.
        secure: whether by TLS.
    """

    sends_fragments: ClassVar[bool] = True
    refuses_subprotocols: ClassVar[bool] = False
    """Whether it answers 400 to who offers none that it speaks, and not 101 without one."""

    def __init__(self, seconds: float, *, subprotocols: Iterable[str] = (), secure: bool = False) -> None:
        self.seconds = seconds
        self.subprotocols = list(subprotocols)
        self.ssl = server_context() if secure else None
        self.port = 0
        self._ended: SimpleQueue[tuple[int, str]] = SimpleQueue()

    @property
    def url(self) -> str:
        return f"{'wss' if self.ssl else 'ws'}://127.0.0.1:{self.port}"

    def ended(self) -> tuple[int, str]:
        """Return how the next connection ended."""
        return self._ended.get(timeout=self.seconds)

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class ThreadingWebsockets(Foreign):
    """websockets.sync."""

    refuses_subprotocols = True

    def start(self) -> None:
        self._server = websockets.sync.server.serve(
            self._handle,
            "127.0.0.1",
            0,
            ssl=self.ssl,
            subprotocols=[websockets.Subprotocol(name) for name in self.subprotocols] or None,
            max_size=None,
            close_timeout=self.seconds,
        )
        self.port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join(self.seconds)
        assert not self._thread.is_alive()

    def _handle(self, connection: websockets.sync.server.ServerConnection) -> None:
        assert connection.request is not None
        wanted = asked(connection.request.path)
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            if wanted.what == "/request":
                connection.send(described(connection.request.path, connection.request.headers.raw_items()))
            if wanted.what == "/flood":
                self._flood(connection, wanted)
            for message in connection:
                self._answer(connection, wanted, message)
        connection.close()
        self._ended.put((connection.close_code or 1006, connection.close_reason or ""))

    def _answer(self, connection: websockets.sync.server.ServerConnection, wanted: Asked, message: str | bytes) -> None:
        if wanted.what == "/fragments":
            connection.send(in_pieces(message))
        elif wanted.what == "/ping":
            assert connection.ping(message).wait(self.seconds)
            connection.send(message)
        elif wanted.what == "/close":
            assert wanted.code is not None
            connection.close(wanted.code, wanted.reason)
        else:
            connection.send(message)

    def _flood(self, connection: websockets.sync.server.ServerConnection, wanted: Asked) -> None:
        def send() -> None:
            for _ in range(wanted.messages):
                connection.send(bytes(wanted.size))

        sender = threading.Thread(target=send)
        sender.start()
        received = sum(len(connection.recv()) for _ in range(wanted.messages))
        sender.join(self.seconds)
        connection.send(str(received))


class LoopForeign(Foreign):
    """What servers for asyncio have in common: a loop in a thread of its own."""

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._run(self.open())

    def _run(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(self.seconds)

    def stop(self) -> None:
        try:
            self._run(self.leave())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(self.seconds)
            assert not self._thread.is_alive()
            self._loop.close()

    async def open(self) -> None:
        raise NotImplementedError

    async def leave(self) -> None:
        raise NotImplementedError


class AsyncioWebsockets(LoopForeign):
    """websockets.asyncio."""

    refuses_subprotocols = True

    async def open(self) -> None:
        self._server = await websockets.asyncio.server.serve(
            self._handle,
            "127.0.0.1",
            0,
            ssl=self.ssl,
            subprotocols=[websockets.Subprotocol(name) for name in self.subprotocols] or None,
            max_size=None,
            close_timeout=self.seconds,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def leave(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _handle(self, connection: websockets.asyncio.server.ServerConnection) -> None:
        assert connection.request is not None
        wanted = asked(connection.request.path)
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            if wanted.what == "/request":
                await connection.send(described(connection.request.path, connection.request.headers.raw_items()))
            if wanted.what == "/flood":
                await self._flood(connection, wanted)
            async for message in connection:
                await self._answer(connection, wanted, message)
        await connection.wait_closed()
        self._ended.put((connection.close_code or 1006, connection.close_reason or ""))

    async def _answer(
        self, connection: websockets.asyncio.server.ServerConnection, wanted: Asked, message: str | bytes
    ) -> None:
        if wanted.what == "/fragments":
            await connection.send(in_pieces(message))
        elif wanted.what == "/ping":
            await (await connection.ping(message))
            await connection.send(message)
        elif wanted.what == "/close":
            assert wanted.code is not None
            await connection.close(wanted.code, wanted.reason)
        else:
            await connection.send(message)

    async def _flood(self, connection: websockets.asyncio.server.ServerConnection, wanted: Asked) -> None:
        async def send() -> None:
            for _ in range(wanted.messages):
                await connection.send(bytes(wanted.size))

        sender = asyncio.create_task(send())
        received = sum([len(await connection.recv()) for _ in range(wanted.messages)])
        await sender
        await connection.send(str(received))


class AiohttpServer(LoopForeign):
    """aiohttp: it can't send fragments, and serves plain HTTP beside the WebSocket."""

    sends_fragments = False

    async def open(self) -> None:
        application = web.Application()
        application.router.add_get("/unauthorized", self._unauthorized)
        application.router.add_get("/moved", self._moved)
        application.router.add_get("/loop", self._moved)
        application.router.add_get("/plain", self._plain)
        for path in ("/echo", "/fragments", "/ping", "/close", "/request", "/flood"):
            application.router.add_get(path, self._handle)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self.ssl)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def leave(self) -> None:
        await self._runner.cleanup()

    @staticmethod
    async def _unauthorized(_: web.Request) -> web.Response:
        return web.Response(status=401, text="who are you?", headers={"WWW-Authenticate": 'Basic realm="here"'})

    @staticmethod
    async def _plain(_: web.Request) -> web.Response:
        return web.Response(text="no WebSocket here")

    @staticmethod
    async def _moved(request: web.Request) -> web.Response:
        status, target = int(request.query.get("status", 302)), request.query.get("to", "/loop")
        return web.Response(status=status, headers={"Location": target})

    async def _handle(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=self.subprotocols, max_msg_size=0, autoping=False, autoclose=False)
        await socket.prepare(request)
        wanted = asked(request.path_qs)
        if wanted.what == "/request":
            await socket.send_str(described(request.path_qs, request.headers.items()))
        sender = asyncio.create_task(self._send_flood(socket, wanted))
        end = None
        received, count = 0, 0
        while end is None:
            message = await socket.receive()
            if message.type is WSMsgType.CLOSE:
                end = message.data or 1005, message.extra or ""
                await socket.close(code=message.data or 1000)
            elif message.type in {WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR}:
                end = socket.close_code or 1006, ""
            elif wanted.what != "/flood":
                await self._answer(socket, wanted, message)
            else:
                received, count = received + len(message.data), count + 1
                if count == wanted.messages:
                    await sender
                    await socket.send_str(str(received))
        await sender
        self._ended.put(end)
        return socket

    @staticmethod
    async def _send_flood(socket: web.WebSocketResponse, wanted: Asked) -> None:
        for _ in range(wanted.messages):
            await socket.send_bytes(bytes(wanted.size))

    @staticmethod
    async def _answer(socket: web.WebSocketResponse, wanted: Asked, message: Any) -> None:
        if message.type is WSMsgType.PING:
            await socket.pong(message.data)
        elif wanted.what == "/close":
            await socket.close(code=wanted.code or 1000, message=wanted.reason.encode())
        elif wanted.what == "/ping" and message.type is not WSMsgType.PONG:
            await socket.ping(message.data if isinstance(message.data, bytes) else message.data.encode())
        elif message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        else:
            await socket.send_bytes(message.data)


class NodeServer(Foreign):
    """The package ws of Node.js; see ws_peer.cjs."""

    def __init__(
        self,
        seconds: float,
        *,
        node: Program,
        subprotocols: Iterable[str] = (),
        secure: bool = False,
        deflate: bool | dict[str, Any] = False,
    ) -> None:
        super().__init__(seconds, subprotocols=subprotocols, secure=secure)
        self._node = node
        self._deflate = deflate

    def _ask(self, operation: str, **arguments: Any) -> Any:
        self._node.write(json.dumps({"operation": operation, **arguments}))
        answer = json.loads(self._node.line())
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def start(self) -> None:
        tls = pem() if self.ssl else None
        self.port = self._ask("listen", subprotocols=self.subprotocols, deflate=self._deflate, tls=tls)

    def ended(self) -> tuple[int, str]:
        code, reason = self._ask("ended", port=self.port)
        return code, reason

    def stop(self) -> None:
        self._ask("stop", port=self.port)


SERVERS: dict[str, type[Foreign]] = {
    "websockets.asyncio": AsyncioWebsockets,
    "websockets.sync": ThreadingWebsockets,
    "aiohttp": AiohttpServer,
}
"""Those of Python, by name."""
