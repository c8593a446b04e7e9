"""Clients that nobody here wrote, behind one face: what differs between them is here, what they must see is in tests.

Each method waits for its end, and for no longer than the seconds that the peer was made with.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import aiohttp
import websockets.asyncio.client
import websockets.exceptions
import websockets.sync.client
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping
    from ssl import SSLContext
    from typing import Self

    from programs import Program


class Refused(Exception):  # noqa: N818 -- not an error: some tests expect it
    """The server has answered with another status than 101."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class End(NamedTuple):
    """How a connection ended, as the peer tells it. Some do not tell the reason if they closed first."""

    code: int
    reason: str | None


class Ended(Exception):  # noqa: N818 -- the same
    """There are no more messages."""


class Peer:
    """A connection of a foreign client.

    Args:
        url: of the server.
        seconds: what an operation may take.
        subprotocols: to offer.
        headers: for the request.
        deflate: offer permessage-deflate; with these parameters of RFC 7692 §7.1, if some are given.
    """

    sends_fragments: ClassVar[bool] = True
    answer_code: ClassVar[int | None] = None
    """What it answers to a Close frame, if that is not the code of the frame."""

    subprotocol: str | None
    extensions: str | None
    """The value of Sec-WebSocket-Extensions in the response."""
    headers: dict[str, str]
    """Of the response, with names in lower case."""

    def send(self, message: str | bytes) -> None:
        raise NotImplementedError

    def send_fragments(self, parts: Iterable[str] | Iterable[bytes]) -> None:
        raise NotImplementedError

    def receive(self) -> str | bytes:
        raise NotImplementedError

    def ping(self, payload: bytes) -> None:
        """Send a Ping and wait for the Pong that answers it."""
        raise NotImplementedError

    def close(self, code: int = 1000, reason: str = "") -> End:
        raise NotImplementedError

    def wait_closed(self) -> End:
        """Wait for the server to close."""
        raise NotImplementedError

    def free(self) -> None:
        """Let go of everything, closed or not."""

    def _read_head(self, headers: Iterable[tuple[str, str]]) -> None:
        self.headers = {name.lower(): value for name, value in headers}
        self.extensions = self.headers.get("sec-websocket-extensions")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


class SyncWebsockets(Peer):
    """websockets.sync."""

    def __init__(
        self,
        url: str,
        seconds: float,
        *,
        subprotocols: Iterable[str] = (),
        headers: Mapping[str, str] | None = None,
        deflate: bool | Mapping[str, bool | int] = True,
        ssl: SSLContext | None = None,
    ) -> None:
        self.seconds = seconds
        self._stack = contextlib.ExitStack()
        try:
            connection = websockets.sync.client.connect(
                url,
                subprotocols=[websockets.Subprotocol(name) for name in subprotocols] or None,
                additional_headers=headers,
                **_websockets_offer(deflate),
                ssl=ssl,
                proxy=None,
                open_timeout=seconds,
                close_timeout=seconds,
            )
            self._connection = self._stack.enter_context(connection)
        except websockets.exceptions.InvalidStatus as error:
            raise Refused(error.response.status_code) from None
        self.subprotocol = self._connection.subprotocol
        assert self._connection.response is not None
        self._read_head(self._connection.response.headers.raw_items())

    def send(self, message: str | bytes) -> None:
        self._connection.send(message)

    def send_fragments(self, parts: Iterable[str] | Iterable[bytes]) -> None:
        self._connection.send(parts)

    def receive(self) -> str | bytes:
        try:
            return self._connection.recv(timeout=self.seconds)
        except websockets.exceptions.ConnectionClosed:
            raise Ended from None

    def ping(self, payload: bytes) -> None:
        assert self._connection.ping(payload).wait(self.seconds)

    def close(self, code: int = 1000, reason: str = "") -> End:
        self._connection.close(code, reason)
        return self._end()

    def wait_closed(self) -> End:
        with contextlib.suppress(Ended):
            while True:
                self.receive()
        return self._end()

    def _end(self) -> End:
        return _websockets_end(self._connection.protocol.close_rcvd)

    def free(self) -> None:
        self._stack.close()


def _websockets_offer(deflate: bool | Mapping[str, bool | int]) -> dict[str, Any]:
    if isinstance(deflate, bool):
        return {"compression": "deflate" if deflate else None}
    factory: Any = ClientPerMessageDeflateFactory
    return {"compression": None, "extensions": [factory(**deflate)]}


def _websockets_end(close: Any) -> End:
    return End(1006, "") if close is None else End(int(close.code), close.reason)


class AsyncPeer(Peer):
    """What clients for asyncio have in common: a loop of their own, which runs only within calls."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._runner = asyncio.Runner()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(asyncio.wait_for(coroutine, self.seconds))

    def free(self) -> None:
        try:
            self.run(self.leave())
            with contextlib.suppress(TimeoutError):
                self._runner.run(asyncio.wait_for(self._last_words(), 2))
        finally:
            self._runner.close()

    async def leave(self) -> None:
        raise NotImplementedError

    @staticmethod
    async def _last_words() -> None:
        """Wait until every transport is closed: over TLS that takes an answer, and a loop that ends waits for none."""
        watched = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]
        while len(watched) > 1:  # noqa: ASYNC110 -- one is the loop's own; nobody tells of the others
            await asyncio.sleep(0.005)


class AsyncWebsockets(AsyncPeer):
    """websockets.asyncio."""

    def __init__(
        self,
        url: str,
        seconds: float,
        *,
        subprotocols: Iterable[str] = (),
        headers: Mapping[str, str] | None = None,
        deflate: bool | Mapping[str, bool | int] = True,
        ssl: SSLContext | None = None,
    ) -> None:
        super().__init__(seconds)
        self._stack = contextlib.AsyncExitStack()
        connecting = websockets.asyncio.client.connect(
            url,
            subprotocols=[websockets.Subprotocol(name) for name in subprotocols] or None,
            additional_headers=headers,
            **_websockets_offer(deflate),
            ssl=ssl,
            proxy=None,
            open_timeout=seconds,
            close_timeout=seconds,
        )
        try:
            self._connection = self.run(self._stack.enter_async_context(connecting))
        except websockets.exceptions.InvalidStatus as error:
            self._runner.close()
            raise Refused(error.response.status_code) from None
        self.subprotocol = self._connection.subprotocol
        self._read_head(self._connection.response.headers.raw_items())

    def send(self, message: str | bytes) -> None:
        self.run(self._connection.send(message))

    def send_fragments(self, parts: Iterable[str] | Iterable[bytes]) -> None:
        self.run(self._connection.send(parts))

    def receive(self) -> str | bytes:
        try:
            message: str | bytes = self.run(self._connection.recv())
        except websockets.exceptions.ConnectionClosed:
            raise Ended from None
        return message

    def ping(self, payload: bytes) -> None:
        async def ping() -> None:
            await (await self._connection.ping(payload))

        self.run(ping())

    def close(self, code: int = 1000, reason: str = "") -> End:
        self.run(self._connection.close(code, reason))
        return _websockets_end(self._connection.protocol.close_rcvd)

    def wait_closed(self) -> End:
        self.run(self._connection.wait_closed())
        return _websockets_end(self._connection.protocol.close_rcvd)

    async def leave(self) -> None:
        await self._stack.aclose()


class Aiohttp(AsyncPeer):
    """The client of aiohttp. It answers pings while somebody receives, and has no way to send fragments."""

    sends_fragments = False
    answer_code = 1000

    def __init__(
        self,
        url: str,
        seconds: float,
        *,
        subprotocols: Iterable[str] = (),
        headers: Mapping[str, str] | None = None,
        deflate: bool | Mapping[str, bool | int] = True,
        ssl: SSLContext | None = None,
    ) -> None:
        super().__init__(seconds)
        self._connection: Any = None
        self._session = self.run(self._open_session())
        options: dict[str, Any] = {
            "protocols": subprotocols,
            "headers": headers,
            "compress": int(deflate.get("client_max_window_bits", 15))
            if not isinstance(deflate, bool)
            else 15 * deflate,
            "autoping": False,
            "max_msg_size": 0,
            "ssl": ssl or True,
        }
        try:
            self._connection = self.run(self._session.ws_connect(url, **options))
        except aiohttp.WSServerHandshakeError as error:
            self.free()
            raise Refused(error.status) from None
        self.subprotocol = self._connection.protocol
        self._read_head(self._connection._response.headers.items())

    @staticmethod
    async def _open_session() -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    def send(self, message: str | bytes) -> None:
        send = self._connection.send_str if isinstance(message, str) else self._connection.send_bytes
        self.run(send(message))

    def receive(self) -> str | bytes:
        message = self._next()
        if message.type not in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY}:
            raise Ended
        content: str | bytes = message.data
        return content

    def _next(self) -> aiohttp.WSMessage:
        while True:
            message: aiohttp.WSMessage = self.run(self._connection.receive())
            if message.type is not aiohttp.WSMsgType.PING:
                return message
            self.run(self._connection.pong(message.data))

    def ping(self, payload: bytes) -> None:
        self.run(self._connection.ping(payload))
        message = self._next()
        assert (message.type, message.data) == (aiohttp.WSMsgType.PONG, payload)

    def close(self, code: int = 1000, reason: str = "") -> End:
        self.run(self._connection.close(code=code, message=reason.encode()))
        return End(self._connection.close_code, None)

    def wait_closed(self) -> End:
        message = self._next()
        while message.type in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.PONG}:
            message = self._next()
        if message.type is aiohttp.WSMsgType.CLOSE:
            return End(message.data or 1005, message.extra or "")
        return End(self._connection.close_code, None)

    async def leave(self) -> None:
        if self._connection is not None:
            self._connection._response.close()
        await self._session.close()


class NodeWs(Peer):
    """The package ws of Node.js: all its connections live in one process, which takes a line for each operation."""

    def __init__(
        self,
        node: Program,
        url: str,
        *,
        subprotocols: Iterable[str] = (),
        headers: Mapping[str, str] | None = None,
        deflate: bool | Mapping[str, bool | int] = True,
    ) -> None:
        self._node = node
        options = {
            "url": url,
            "subprotocols": list(subprotocols),
            "headers": headers or {},
            "deflate": deflate if isinstance(deflate, bool) else _node_offer(deflate),
        }
        opened = self._ask("open", **options)
        if "status" in opened:
            raise Refused(opened["status"])
        self._id = opened["id"]
        self.subprotocol = opened["subprotocol"] or None
        self._read_head(opened["headers"])

    def _ask(self, operation: str, **arguments: Any) -> Any:
        self._node.write(json.dumps({"operation": operation, **arguments}))
        answer = json.loads(self._node.line())
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def send(self, message: str | bytes) -> None:
        self._ask("send", id=self._id, message=_packed(message), fin=True)

    def send_fragments(self, parts: Iterable[str] | Iterable[bytes]) -> None:
        *parts, last = parts
        for part in parts:
            self._ask("send", id=self._id, message=_packed(part), fin=False)
        self.send(last)

    def receive(self) -> str | bytes:
        message = self._ask("receive", id=self._id)
        if message is None:
            raise Ended
        content: str | bytes = message["text"] if "text" in message else base64.b64decode(message["binary"])
        return content

    def ping(self, payload: bytes) -> None:
        assert self._ask("ping", id=self._id, message=_packed(payload)) == _packed(payload)

    def close(self, code: int = 1000, reason: str = "") -> End:
        return End(*self._ask("close", id=self._id, code=code, reason=reason))

    def wait_closed(self) -> End:
        return End(*self._ask("closed", id=self._id))

    def free(self) -> None:
        self._ask("free", id=self._id)


def _node_offer(parameters: Mapping[str, bool | int]) -> dict[str, bool | int]:
    """Return parameters by the names that ws has for them; it leaves short messages alone unless told otherwise."""
    words = {name: name.split("_") for name in parameters}
    return {
        "threshold": 0,
        **{first + "".join(map(str.title, more)): parameters[name] for name, (first, *more) in words.items()},
    }


def _packed(message: str | bytes) -> dict[str, str]:
    """Return a message as JSON has it."""
    if isinstance(message, str):
        return {"text": message}
    return {"binary": base64.b64encode(message).decode()}
