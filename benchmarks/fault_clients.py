"""Who notices an injected fault? Clients of faults.py, which compare every byte, and note who loses a connection."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from soak_frames import BINARY, CLOSE, TEXT, Fault, Parser, new_key, pack, read_answer, request

if TYPE_CHECKING:
    import random

PATIENCE = 30.0
MOST_MESSAGES = 12
MOST_DIGITS = 5.9
"""Of a message's length: some have almost 800 KB, which is more than a socket takes at once."""

PIECE = 1 << 18


class LostError(Exception):
    """A connection did not end as it should."""


@dataclass
class Outcome:
    """What has become of all clients."""

    lost: dict[int, str] = field(default_factory=dict)
    """By the ports of those whose connections have ended too early, how."""
    faults: list[str] = field(default_factory=list)
    sessions: int = 0
    messages: int = 0


class Session:
    """One connection: some messages that have to come back, and a proper end.

    Args:
        reader: of the connection.
        writer: of the connection.
        chance: for what is sent.
        outcome: where it is counted.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random, outcome: Outcome
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._chance = chance
        self._outcome = outcome
        self._parser = Parser()

    async def run(self) -> None:
        """Use the connection to its end. Raises Fault, LostError, OSError and TimeoutError."""
        key = new_key(self._chance)
        self._writer.write(request(key, "/", ""))
        try:
            read_answer(await self._reader.readuntil(b"\r\n\r\n"), key)
        except asyncio.IncompleteReadError:
            raise LostError("before its 101") from None
        for _ in range(self._chance.randint(1, MOST_MESSAGES)):
            await self._echo()
        if self._chance.random() < 0.2:
            self._send(TEXT, b"abort")
            await self._await_end()
            return
        self._send(CLOSE, (1000).to_bytes(2, "big"))
        code = await self._closed()
        if code != 1000:
            raise LostError(f"with {code} instead of 1000")

    def _send(self, opcode: int, payload: bytes) -> None:
        self._writer.write(pack(opcode, payload, self._chance.randbytes(4)))

    async def _echo(self) -> None:
        payload = self._chance.randbytes(int(10 ** self._chance.uniform(0, MOST_DIGITS)))
        self._send(BINARY, payload)
        frames = list(self._parser.feed(await self._piece()))
        while not frames:
            frames = list(self._parser.feed(await self._piece()))
        if frames[0].opcode == CLOSE:
            raise LostError(f"with {int.from_bytes(frames[0].payload[:2], 'big')}")
        if len(frames) > 1 or frames[0].opcode != BINARY or frames[0].payload != payload:
            raise Fault(f"{len(payload)} bytes have come back otherwise than they were sent")
        self._outcome.messages += 1

    async def _piece(self) -> bytes:
        data = await self._reader.read(PIECE)
        if not data:
            raise LostError("without a Close")
        return data

    async def _closed(self) -> int:
        frames = list(self._parser.feed(await self._piece()))
        while not frames:
            frames = list(self._parser.feed(await self._piece()))
        if frames[0].opcode != CLOSE:
            raise Fault(f"opcode {frames[0].opcode} instead of a Close")
        await self._await_end()
        return int.from_bytes(frames[0].payload[:2], "big")

    async def _await_end(self) -> None:
        try:
            while await self._reader.read(PIECE):
                pass
        except ConnectionResetError:
            pass


async def one(port: int, chance: random.Random, outcome: Outcome) -> None:
    """Open one connection, use it, and note how it ended."""
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=PIECE)
    except (OSError, TimeoutError) as error:
        outcome.faults.append(f"can't connect: {error!r}")
        return
    mine = writer.get_extra_info("sockname")[1]
    begun = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE):
            await Session(reader, writer, chance, outcome).run()
        outcome.sessions += 1
    except Fault as fault:
        outcome.faults.append(f"port {mine}: {fault}")
    except TimeoutError:
        outcome.lost[mine] = f"nothing has happened for {time.monotonic() - begun:.0f} s"
    except (LostError, OSError) as error:
        outcome.lost[mine] = f"lost: {error!r}"
    finally:
        writer.transport.abort()
