"""How do soak.py's clients get bytes to a server and back, and how do they go away?"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from soak_frames import CLOSE, Compression, Fault, Frame, Parser, new_key, pack, read_answer, request

if TYPE_CHECKING:
    import random
    import ssl
    from collections.abc import AsyncIterator

PATIENCE = 30.0
"""Seconds for a server to do what it has to do: it only waits that long for one that has lost something."""

PIECE = 1 << 18


class RestartedError(Exception):
    """The server stops, as it was told, and so no end of a connection is a fault."""


@dataclass
class Target:
    """A port, and which of the processes behind it are told to stop. TLS if there is a context."""

    port: int
    context: ssl.SSLContext | None
    stopping: set[str] = field(default_factory=set)
    """The processes that were told to stop, which is for good."""
    restarts: int = 0
    """How often one has begun or ended to stop: what waits to be accepted meanwhile is reset by the kernel."""

    @property
    def scheme(self) -> str:
        return "wss" if self.context else "ws"


class Wire:
    """A connection on which bytes go over, before and after the opening handshake.

    Args:
        target: where it leads.
        reader: of the connection.
        writer: of the connection.
        chance: for keys and masks.
    """

    def __init__(
        self, target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random
    ) -> None:
        self.target = target
        self.process = ""
        self.compression: Compression | None = None
        self.chance = chance
        self._reader = reader
        self._writer = writer
        self._parser = Parser()
        self._restarts = target.restarts
        self._kept = b""

    def told(self, what: object) -> Fault:
        """Return a fault on this connection, as a text that names the process."""
        return Fault(f"server {self.process or 'unknown'}: {what}")

    @classmethod
    async def connect(
        cls, target: Target, chance: random.Random, *, receive_buffer: int = 0, raw: bool = False
    ) -> Self:
        """Return a connection without the opening handshake of WebSocket; a raw one is without TLS, too."""
        context = None if raw else target.context
        restarts = target.restarts
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)  # noqa: FBT003 -- of socket
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", target.port))
                reader, writer = await asyncio.open_connection(
                    sock=sock,
                    ssl=context,
                    server_hostname="localhost" if context else None,
                    limit=receive_buffer or PIECE,
                )
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError) and (target.restarts != restarts or target.restarts % 2):
                raise RestartedError from error
            raise
        wire = cls(target, reader, writer, chance)
        wire._restarts = restarts
        return wire

    @classmethod
    async def open(
        cls, target: Target, chance: random.Random, *, path: str = "/", offer: str = "", receive_buffer: int = 0
    ) -> Self:
        """Return a connection after the opening handshake.

        Raises:
            Fault: the answer is wrong.
            RestartedError: the server stops.
            OSError: the server can't be reached.
        """
        wire = await cls.connect(target, chance, receive_buffer=receive_buffer)
        try:
            await wire.shake_hands(path, offer)
        except (Fault, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            wire.drop()
            if wire.may_be_lost():
                raise RestartedError from error
            raise Fault(f"the opening handshake failed: {error!r}") from error
        except BaseException:
            wire.drop()
            raise
        return wire

    async def shake_hands(self, path: str, offer: str) -> None:
        """Perform the opening handshake, RFC 6455 §4.1."""
        key = new_key(self.chance)
        self._writer.write(request(key, path, offer))
        async with asyncio.timeout(PATIENCE):
            fields = read_answer(await self._reader.readuntil(b"\r\n\r\n"), key)
        self.process = fields.get("x-process", "")
        extensions = fields.get("sec-websocket-extensions", "")
        if offer or extensions:
            if not (offer and extensions):
                raise Fault(f"extensions: asked for {offer!r}, got {extensions!r}")
            self.compression = Compression(extensions)
            self._parser = Parser(compression=True)

    def may_be_lost(self) -> bool:
        """Whether a restart explains the end of this connection."""
        if self.process:
            return self.process in self.target.stopping
        return self.target.restarts != self._restarts or self.target.restarts % 2 == 1

    # ---- what goes out ----

    def key(self) -> bytes:
        """Return a masking key; the one of zeros more often than by chance."""
        return self.chance.randbytes(4) if self.chance.random() < 0.95 else bytes(4)

    def frame(self, opcode: int, payload: bytes = b"", *, final: bool = True, rsv1: bool = False) -> bytes:
        """Return a frame as it is sent."""
        return pack(opcode, payload, self.key(), final=final, rsv1=rsv1)

    def write(self, data: bytes) -> None:
        """Queue bytes."""
        self._writer.write(data)

    def write_close(self, code: int) -> None:
        """Queue a Close, RFC 6455 §5.5.1."""
        self.write(self.frame(CLOSE, code.to_bytes(2, "big") + b"enough"))

    async def drain(self) -> None:
        """Wait until there is not much in the queue."""
        await self._writer.drain()

    # ---- what comes in ----

    async def read(self, size: int = PIECE) -> bytes:
        """Return some bytes, or none at the end. Raises TimeoutError, and OSError after a reset."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.read(size)

    def keep(self, data: bytes) -> None:
        """Leave bytes that were read to ``frames``."""
        self._kept += data

    async def frames(self) -> AsyncIterator[Frame]:
        """Yield the frames that arrive, until the end. Raises Fault, TimeoutError and OSError."""
        data, self._kept = self._kept or await self.read(), b""
        while data:
            for frame in self._parser.feed(data):
                yield frame
            data = await self.read()

    @property
    def rest(self) -> int:
        """How many bytes have arrived of an incomplete frame."""
        return self._parser.rest

    async def ends(self, seconds: float) -> bytes:
        """Wait until the server ends the connection, in whatever way; return what came before, up to some length.

        Raises:
            Fault: it hasn't within that time.
        """
        start = b""
        try:
            async with asyncio.timeout(seconds):
                while data := await self._reader.read(PIECE):
                    start = start or data
        except TimeoutError:
            raise Fault(f"not ended within {seconds:.0f} s") from None
        except OSError:
            pass
        return start

    # ---- going away ----

    def drop(self) -> None:
        """Close the socket with no word to anybody."""
        self._writer.transport.abort()

    def reset(self) -> None:
        """Close the socket by RST."""
        sock: socket.socket | None = self._writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.drop()
