"""Does all come back to a client that does nothing wrong, until it ends the connection itself?"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from soak_frames import CLOSE, CONTINUATION, PING, PONG, Fault, Frame, new_offer
from soak_messages import Exchange, Payloads, Samples
from soak_wire import PATIENCE, RestartedError, Target, Wire

if TYPE_CHECKING:
    import random

    from soak_messages import Sent

MAX_ON_WAY = 1 << 20
"""Bytes: a message more is sent only below this."""

FRAGMENT_SIZES = (0, 0, 0, 1_000, 4_096, 100_000)
"""Of what the server sends; 0 for one frame."""

MOST_FRAGMENTS = 12


@dataclass
class Tally:
    """What was done, by all clients."""

    latency: Samples
    """Of round trips, in seconds; without those of clients that are slow themselves."""
    counts: Counter[str] = field(default_factory=Counter)
    connections: Counter[str] = field(default_factory=Counter)
    """Those that came to their proper end, by kind."""
    restarted: Counter[str] = field(default_factory=Counter)
    """Those that a restart has ended, by kind."""

    def answered(self, sent: Sent) -> None:
        """Count a message that has come back."""
        self.counts["messages"] += 1
        self.counts["bytes"] += sent.size


class Client:
    """One connection that sends messages, and verifies what comes back.

    Args:
        number: of this connection, of all.
        wire: what it goes over.
        payloads: for its messages.
        tally: where they are counted.
    """

    def __init__(self, number: int, wire: Wire, payloads: Payloads, tally: Tally) -> None:
        self._wire = wire
        self._chance = wire.chance
        self._tally = tally
        self.exchange = Exchange(number, wire.chance, payloads)
        self._pings: deque[bytes] = deque()
        self._past_pings: list[bytes] = []
        """Those that were answered, or passed over."""
        self._changed = asyncio.Event()
        self._fragments: list[Frame] = []
        self._closing = False
        """Whether a Close was sent: nothing may follow that, RFC 6455 §5.5.1."""
        self._closed: int | None = None

    async def live(self, messages: int, until: float, depth: int) -> None:
        """Send so many messages, or until that time, some at once; end properly.

        Raises:
            Fault: something was lost, doubled or damaged, or the end isn't right.
            RestartedError: the server was stopped, and has said so.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive())
                group.create_task(self._send(messages, until, depth))
        except BaseExceptionGroup as errors:
            error = errors.exceptions[0]  # the one that has cancelled the other
            raise self._wire.told(error) if isinstance(error, Fault) else error from None
        finally:
            self._wire.drop()

    # ---- sending ----

    async def _send(self, messages: int, until: float, depth: int) -> None:
        try:
            await self._send_messages(messages, until, depth)
            if self._chance.random() < 0.5:  # else the Close follows at once, and answers have to come before its echo
                await self._room(1, 1)
            if not self._closing:
                self._closing = True
                self._wire.write_close(1000)
            async with asyncio.timeout(PATIENCE):
                await self._wire.drain()
        except OSError as error:  # TimeoutError is one, too
            if not self._closing:
                raise Fault(f"can't send: {error!r}; {self._state()}") from error

    async def _send_messages(self, messages: int, until: float, depth: int) -> None:
        for _ in range(messages):
            await self._room(depth, MAX_ON_WAY)
            if self._closing or time.monotonic() > until:
                return
            await self.send(*self.exchange.new_message())

    async def _room(self, depth: int, size: int) -> None:
        """Wait until fewer messages and bytes are on their way, or the end has begun."""
        while not self._closing and (len(self.exchange.on_way) >= depth or self.exchange.bytes_on_way >= size):
            self._changed.clear()
            await self._changed.wait()

    async def send(self, opcode: int, payload: bytes) -> None:
        """Send a message: compressed or not, in one frame or in fragments with control frames in between."""
        compression = self._wire.compression
        compressed = compression is not None and self._chance.random() < 0.8
        data = compression.deflate(payload) if compression and compressed else payload
        pieces = self._pieces(data)
        for place, piece in enumerate(pieces):
            final = place == len(pieces) - 1
            first = CONTINUATION if place else opcode
            self._wire.write(self._wire.frame(first, piece, final=final, rsv1=compressed and not place))
            if not final or self._chance.random() < 0.05:
                self._write_control()
            async with asyncio.timeout(PATIENCE):
                await self._wire.drain()
            if self._closing:  # meanwhile: nothing may follow
                return

    def _pieces(self, data: bytes) -> list[bytes]:
        """Cut a message into frames, some of them empty, anywhere: within characters, too."""
        if self._chance.random() < 0.6:
            return [data]
        count = self._chance.randint(1, MOST_FRAGMENTS)
        cuts = sorted(self._chance.randint(0, len(data)) for _ in range(count))
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def _write_control(self) -> None:
        dice = self._chance.random()
        payload = self._chance.randbytes(self._chance.randint(0, 125))
        if dice < 0.3:
            self._pings.append(payload)
            self._wire.write(self._wire.frame(PING, payload))
        elif dice < 0.5:
            self._wire.write(self._wire.frame(PONG, payload))

    # ---- receiving ----

    async def _receive(self) -> None:
        try:
            async for frame in self._wire.frames():
                if self._closed is not None:
                    raise Fault(f"a frame with opcode {frame.opcode} after the Close")
                self._take(frame)
        except TimeoutError:
            raise Fault(f"nothing has arrived for {PATIENCE:.0f} s; {self._state()}") from None
        except OSError as error:
            raise Fault(f"lost by {error!r}; {self._state()}") from error
        finally:
            self._closing = True
            self._changed.set()
        self._judge_end()

    def _take(self, frame: Frame) -> None:
        if frame.opcode == CLOSE:
            self._take_close(frame.payload)
        elif frame.opcode == PING:
            if not self._closing:
                self._wire.write(self._wire.frame(PONG, frame.payload))
        elif frame.opcode == PONG:
            self._take_pong(frame.payload)
        else:
            self._take_data(frame)
        if self.exchange.on_way and time.monotonic() - self.exchange.on_way[0].at > PATIENCE:
            raise Fault(f"no answer for {PATIENCE:.0f} s; {self._state()}")

    def _take_data(self, frame: Frame) -> None:
        if bool(self._fragments) != (frame.opcode == CONTINUATION):
            raise Fault(f"opcode {frame.opcode} within a message or outside of one")
        self._fragments.append(frame)
        if not frame.final:
            return
        first = self._fragments[0]
        payload = b"".join(part.payload for part in self._fragments)
        self._fragments = []
        if first.rsv1:
            assert self._wire.compression is not None  # the parser has seen to it
            payload = self._wire.compression.inflate(payload)
        sent = self.exchange.check(first.opcode, payload)
        self._tally.answered(sent)
        self._tally.latency.add(time.monotonic() - sent.at)
        self._changed.set()

    def _take_pong(self, payload: bytes) -> None:
        """Take it for the first ping that it answers: those before it may have been passed over, RFC 6455 §5.5.3."""
        if payload not in self._pings:
            when = f"ping {self._past_pings.index(payload)}" if payload in self._past_pings else "none"
            past = len(self._past_pings)
            raise Fault(
                f"a Pong with {len(payload)} bytes answers {when}, but {past} of {past + len(self._pings)} are over"
            )
        while (ping := self._pings.popleft()) != payload:
            self._past_pings.append(ping)
        self._past_pings.append(ping)
        self._tally.counts["pongs"] += 1

    def _take_close(self, payload: bytes) -> None:
        self._closed = int.from_bytes(payload[:2], "big") if payload else 1005
        if not self._closing:
            self._closing = True
            self._wire.write(self._wire.frame(CLOSE, payload[:2]))
        self._changed.set()

    def _judge_end(self) -> None:
        """Raise what the end of the connection means, unless it is the proper one."""
        if self._closed is not None and self._wire.rest:
            raise Fault(f"{self._wire.rest} bytes after the Close")
        if self._closed == 1001 and self._wire.may_be_lost():
            self._tally.counts["unanswered at restarts"] += len(self.exchange.on_way)
            raise RestartedError
        if self._closed != 1000:
            how = "without a Close" if self._closed is None else f"with {self._closed}"
            raise Fault(f"ended {how}; {self._state()}")
        if self.exchange.on_way or self._fragments:
            raise Fault(f"closed before all answers had come: lost; {self._state()}")
        if self._pings:
            raise Fault(f"closed before {len(self._pings)} pings, of which the last was to be answered")

    def _state(self) -> str:
        on_way = self.exchange.on_way
        return f"{len(on_way)} messages unanswered, the first is {on_way[0].sequence}" if on_way else "none unanswered"


async def verified(
    number: int, target: Target, chance: random.Random, payloads: Payloads, tally: Tally, until: float
) -> None:
    """Open one connection of those that do nothing wrong, use it, close it, and count it."""
    kind = f"verified {target.scheme}"
    try:
        path = f"/?fragment={chance.choice(FRAGMENT_SIZES)}"
        offer = new_offer(chance) if chance.random() < 0.35 else ""
        wire = await Wire.open(target, chance, path=path, offer=offer)
        kind += " deflate" if wire.compression else ""
        messages = round(10 ** chance.uniform(0, 2.3))
        depth = chance.choice((1, 2, 4, 16))
        await Client(number, wire, payloads, tally).live(messages, until, depth)
    except RestartedError:
        tally.restarted[kind] += 1
        return
    tally.connections[kind] += 1
