"""What do those clients do that go away without a word, want too much, or talk nonsense; and what becomes of them?

Each kind is one function, which raises Fault if the server doesn't deal with it as it should.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from soak_frames import BINARY, CLOSE, CONTINUATION, MAX_SIZE, PING, PONG, TEXT, Fault, Frame, new_key, request
from soak_messages import Exchange
from soak_wire import RestartedError, Target, Wire

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Awaitable, Callable

    from soak_clients import Tally
    from soak_messages import Payloads

MAX_FRAGMENTS = 131_072
"""The default of wspy."""

SECONDS = 3.0
"""For what is slow."""

GREED = 32 << 20
"""Bytes: more than what a server of wspy keeps for a client, and the kernel beside it."""

PINGS = 2_000
BOMB = 64 << 20
SLACK = 10.0
"""Seconds that a server may be late on a busy machine."""


@dataclass(frozen=True)
class Kind:
    """What a client does once it is connected, and how it is connected for that."""

    act: Callable[[Churn, Wire, Exchange], Awaitable[None]]
    opens: bool = True
    """Whether there is an opening handshake before."""
    offer: str = ""
    receive_buffer: int = 0
    seconds: float = 0.0
    """How long it takes at least, beside a deadline of the server if ``waits``."""
    waits: bool = False


class Churn:
    """Connections of those who should not be trusted.

    Args:
        payloads: for what they send.
        tally: where they are counted.
        deadline: seconds that the server gives a peer for anything.
    """

    def __init__(self, payloads: Payloads, tally: Tally, deadline: float) -> None:
        self._payloads = payloads
        self._tally = tally
        self._deadline = deadline

    def seconds(self, name: str) -> float:
        """Return how long a kind takes, if nothing else does."""
        return KINDS[name].seconds + KINDS[name].waits * self._deadline

    async def one(self, name: str, number: int, target: Target, chance: random.Random) -> None:
        """Make one connection of a kind, and count it."""
        try:
            await self._one(KINDS[name], number, target, chance)
        except RestartedError:
            self._tally.restarted[name] += 1
        else:
            self._tally.connections[name] += 1

    async def _one(self, kind: Kind, number: int, target: Target, chance: random.Random) -> None:
        if kind.opens:
            wire = await Wire.open(target, chance, offer=kind.offer, receive_buffer=kind.receive_buffer)
        else:
            wire = await Wire.connect(target, chance, raw=kind.act is Churn.garbage and chance.random() < 0.3)
        try:
            await kind.act(self, wire, Exchange(number, chance, self._payloads))
        except (Fault, OSError) as error:
            if wire.may_be_lost():
                raise RestartedError from error
            raise wire.told(error if isinstance(error, Fault) else repr(error)) from error
        finally:
            wire.drop()

    # ---- those who go away ----

    async def vanish(self, wire: Wire, exchange: Exchange) -> None:
        """Close the socket after, or within, some messages whose answers nobody waits for."""
        self._write_some(wire, exchange)
        if wire.chance.random() < 0.5:
            wire.write(wire.frame(BINARY, bytes(1_000), final=False))
        await asyncio.sleep(wire.chance.choice((0, 0.01, 0.1)))

    async def reset(self, wire: Wire, exchange: Exchange) -> None:
        """Reset the connection in the middle of a frame."""
        self._write_some(wire, exchange)
        self._write_part(wire, exchange, wire.chance.choice((100, 10_000, MAX_SIZE)))
        await asyncio.sleep(wire.chance.choice((0, 0.01, 0.1)))
        wire.reset()

    async def half_open(self, wire: Wire, exchange: Exchange) -> None:
        """Say no more, and answer no ping: the server has to end it within ping_interval and ping_timeout."""
        if wire.chance.random() < 0.5:
            self._write_part(wire, exchange, 5_000)
        await wire.ends(self._deadline + SLACK)

    async def slow_handshake(self, wire: Wire, _: Exchange) -> None:
        """Send a request that never ends, byte by byte: the server has to end it within open_timeout."""
        ending = asyncio.create_task(wire.ends(self._deadline + SLACK))
        try:
            for byte in request(new_key(wire.chance), "/" + "x" * 4_000, ""):
                if ending.done():
                    break
                wire.write(bytes((byte,)))
                await asyncio.sleep(0.05)
            await ending
        finally:
            ending.cancel()

    def _write_some(self, wire: Wire, exchange: Exchange) -> None:
        for _ in range(wire.chance.randint(0, 3)):
            wire.write(wire.frame(*exchange.new_message()))

    def _write_part(self, wire: Wire, exchange: Exchange, size: int) -> None:
        frame = wire.frame(*exchange.new_message(size))
        wire.write(frame[: wire.chance.randrange(1, len(frame))])

    # ---- those who are slow ----

    async def slow_reader(self, wire: Wire, exchange: Exchange) -> None:
        """Read 1 KiB a second, and the rest later: all of it has to be there."""
        for _ in range(4):
            wire.write(wire.frame(*exchange.new_message(wire.chance.choice((10_000, 100_000, 300_000)))))
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            await asyncio.sleep(1)
            wire.write(wire.frame(PONG))  # so that nobody takes it for half-open
            wire.keep(await wire.read(1_024))
        await self._take_all(wire, exchange)

    async def slow_sender(self, wire: Wire, exchange: Exchange) -> None:
        """Send messages byte by byte."""
        frames = b"".join(wire.frame(*exchange.new_message(size)) for size in (0, 1, 50, 60))
        for byte in frames:
            wire.write(bytes((byte,)))
            await asyncio.sleep(SECONDS / len(frames))
        await self._take_all(wire, exchange)

    async def greedy(self, wire: Wire, exchange: Exchange) -> None:
        """Send much and read nothing: the server may end that, or let it wait; in threads it may only wait."""
        sent, until = 0, asyncio.get_running_loop().time() + SECONDS
        try:
            async with asyncio.timeout_at(until):
                while sent < GREED:
                    opcode, payload = exchange.new_message(500_000)
                    wire.write(wire.frame(opcode, payload))
                    sent += len(payload)
                    await wire.drain()
        except OSError:  # TimeoutError is one, too
            return

    async def _take_all(self, wire: Wire, exchange: Exchange) -> None:
        """Read until each message has come back, and end properly."""
        async for frame in self._without_pings(wire):
            if frame.opcode == CLOSE:
                await self._judge_close(wire, frame.payload, 1000)
                break
            self._tally.answered(exchange.check(frame.opcode, frame.payload))
            if not exchange.on_way:
                wire.write_close(1000)
        if exchange.on_way:
            raise Fault(f"{len(exchange.on_way)} messages were lost, the first is {exchange.on_way[0].sequence}")

    # ---- those who want too much ----

    async def ping_flood(self, wire: Wire, _: Exchange) -> None:
        """Send pings without a pause: answers may be passed over, but not the last one, RFC 6455 §5.5.3."""
        pings = [number.to_bytes(125, "big") for number in range(PINGS)]
        wire.write(b"".join(wire.frame(PING, ping) for ping in pings))
        last = -1
        async for frame in self._without_pings(wire):
            if frame.opcode == CLOSE:
                await self._judge_close(wire, frame.payload, 1000)
                break
            number = int.from_bytes(frame.payload, "big")
            if frame.opcode != PONG or not last < number < PINGS or frame.payload != pings[number]:
                raise Fault(f"opcode {frame.opcode} with {len(frame.payload)} bytes after the answer to ping {last}")
            last = number
            if last == PINGS - 1:
                wire.write_close(1000)
        if last < PINGS - 1:
            raise Fault(f"of {PINGS} pings the last was not answered")

    async def empty_fragments(self, wire: Wire, _: Exchange) -> None:
        """Send a message of empty frames that never ends, §5.4: 1008."""
        wire.write(wire.frame(TEXT, final=False))
        some = wire.frame(CONTINUATION, final=False) * 1_024
        for _lap in range(MAX_FRAGMENTS // 1_024):
            wire.write(some)
            await wire.drain()
        await self._ends_with(wire, 1008)

    async def bomb(self, wire: Wire, _: Exchange) -> None:
        """Send a message that is small only as it comes, or a header that promises a tebibyte: 1009."""
        if wire.chance.random() < 0.5:
            wire.write(wire.frame(BINARY, bomb(), rsv1=True))
        else:
            wire.write(b"\x82\xff" + (1 << 40).to_bytes(8, "big") + wire.key())
        await self._ends_with(wire, 1009)

    async def garbage(self, wire: Wire, _: Exchange) -> None:
        """Send what is no request, or one that must be refused."""
        wire.write(garbage(wire.chance))
        answer = await wire.ends(SLACK)
        if answer.startswith(b"HTTP/1.1 ") and not answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")):
            raise Fault(f"nonsense was answered with {answer[:30]!r}")

    # ---- how they end ----

    async def _without_pings(self, wire: Wire) -> AsyncIterator[Frame]:
        async for frame in wire.frames():
            if frame.opcode == PING:
                wire.write(wire.frame(PONG, frame.payload))
            else:
                yield frame

    async def _ends_with(self, wire: Wire, code: int) -> None:
        """Read until the server closes with that code."""
        async for frame in self._without_pings(wire):
            if frame.opcode == CLOSE:
                await self._judge_close(wire, frame.payload, code, answer=True)
                return
            if frame.opcode != PONG:
                raise Fault(f"opcode {frame.opcode} instead of a Close with {code}")
        raise Fault(f"ended without the Close with {code}")

    async def _judge_close(self, wire: Wire, payload: bytes, code: int, *, answer: bool = False) -> None:
        found = int.from_bytes(payload[:2], "big")
        if found != code:
            raise Fault(f"closed with {found} {payload[2:]!r}, and not with {code}")
        if answer:
            wire.write(wire.frame(CLOSE, payload[:2]))
        await wire.ends(SLACK)


KINDS = {
    "half-open": Kind(Churn.half_open, seconds=1, waits=True),
    "slow handshake": Kind(Churn.slow_handshake, opens=False, waits=True),
    "slow reader": Kind(Churn.slow_reader, receive_buffer=4_096, seconds=SECONDS),
    "slow sender": Kind(Churn.slow_sender, seconds=SECONDS),
    "greedy": Kind(Churn.greedy, receive_buffer=4_096, seconds=SECONDS),
    "vanish": Kind(Churn.vanish),
    "reset": Kind(Churn.reset),
    "ping flood": Kind(Churn.ping_flood),
    "empty fragments": Kind(Churn.empty_fragments),
    "garbage": Kind(Churn.garbage, opens=False),
    "bomb": Kind(Churn.bomb, offer="permessage-deflate"),
}


@lru_cache(maxsize=1)
def bomb() -> bytes:
    """Return what inflates to 64 MiB."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = bytes(1 << 20)
    packed = b"".join(deflate.compress(piece) for _ in range(BOMB // len(piece)))
    return packed + deflate.flush(zlib.Z_SYNC_FLUSH)[:-4]


def garbage(chance: random.Random) -> bytes:
    """Return bytes that no server may take for a request it serves."""
    whole = request(new_key(chance), "/", "")
    return chance.choice(
        (
            chance.randbytes(300),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(32),  # TLS, or TLS within TLS
            b"GET /" + b"x" * 10_000,
            b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
            whole.replace(b"\r\n", b"\n"),
            whole.replace(b"Sec-WebSocket-Key", b"Sec-WebSocket-Clue"),
            whole.replace(b"Version: 13", b"Version: 12"),
            whole.replace(b"Host", b"Host : x\r\nHost"),
            whole.replace(b"GET", b"PUT"),
            whole[:-2] + b"Content-Length: 5\r\n\r\nhello",
        )
    )
