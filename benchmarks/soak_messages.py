"""What do soak.py's clients send, and does it come back once, in order and unchanged?"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections import deque
from typing import NamedTuple

from soak_frames import BINARY, MAX_SIZE, TEXT, Fault

EDGES = (0, 1, 125, 126, 127, 4_095, 4_096, 65_535, 65_536, MAX_SIZE)
SAMPLES = 100_000
_HEAD = 8 + 8 + 16 + 3


class Payloads:
    """Payloads of any size, cut from pools that are made once: noise, repetitions, words, characters of all lengths."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        words = [chance.randbytes(chance.randint(1, 9)).hex().encode() for _ in range(500)]
        characters = "aé€𝄞".encode()
        self._binary = [chance.randbytes(2 * MAX_SIZE), chance.randbytes(512) * (2 * MAX_SIZE // 512)]
        self._text = [
            b" ".join(chance.choices(words, k=2 * MAX_SIZE // 9))[: 2 * MAX_SIZE],
            "".join(chance.choices(characters.decode(), k=MAX_SIZE)).encode()[: 2 * MAX_SIZE],
        ]

    def body(self, chance: random.Random, size: int, *, text: bool) -> bytes:
        """Return so many bytes; up to 6 less of a text, which has to be UTF-8."""
        pool = chance.choice(self._text if text else self._binary)
        start = chance.randrange(len(pool) - size)
        end = start + size
        if text:
            while start < end and pool[start] & 0xC0 == 0x80:
                start += 1
            while end > start and pool[end] & 0xC0 == 0x80:
                end -= 1
        return pool[start:end]


def choose_size(chance: random.Random) -> int:
    """Return a length from 0 to 1 MiB: as likely between 100 and 1,000 as between 1,000 and 10,000."""
    if chance.random() < 0.05:
        return chance.choice(EDGES)
    return int(math.exp(chance.uniform(0, math.log(MAX_SIZE + 1)))) - 1


def digest(data: bytes) -> str:
    """Return what 64 bits of SHA-256 say of some bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


class Sent(NamedTuple):
    """A message that is on its way."""

    sequence: int
    opcode: int
    size: int
    digest: str
    at: float


class Exchange:
    """The messages of one connection. Each carries the number of that, its own, and a digest, if it is long enough.

    Args:
        connection: its number.
        chance: for what they are.
        payloads: where they are cut from.
    """

    def __init__(self, connection: int, chance: random.Random, payloads: Payloads) -> None:
        self._connection = connection
        self._chance = chance
        self._payloads = payloads
        self._sequence = 0
        self.on_way: deque[Sent] = deque()
        self.bytes_on_way = 0

    def new_message(self, size: int | None = None) -> tuple[int, bytes]:
        """Return opcode and payload of the next message, which is on its way from now on."""
        text = self._chance.random() < 0.5
        size = choose_size(self._chance) if size is None else size
        if size < _HEAD:
            payload = self._payloads.body(self._chance, size, text=text)
        else:
            body = self._payloads.body(self._chance, size - _HEAD, text=text)
            payload = f"{self._connection:08x} {self._sequence:08x} {digest(body)} ".encode() + body
        opcode = TEXT if text else BINARY
        self.on_way.append(Sent(self._sequence, opcode, len(payload), digest(payload), time.monotonic()))
        self.bytes_on_way += len(payload)
        self._sequence += 1
        return opcode, payload

    def check(self, opcode: int, payload: bytes) -> Sent:
        """Return what this is the answer to; raise Fault if it isn't what has to come now."""
        if not self.on_way:
            raise Fault(f"nothing is on its way, but {self._told(opcode, payload)} came")
        sent = self.on_way.popleft()
        if (sent.opcode, sent.size, sent.digest) != (opcode, len(payload), digest(payload)):
            expected = f"message {sent.sequence} with opcode {sent.opcode} and {sent.size} bytes"
            raise Fault(f"instead of {expected} there came {self._told(opcode, payload)}")
        self.bytes_on_way -= sent.size
        return sent

    def _told(self, opcode: int, payload: bytes) -> str:
        """Say what a message is that should not be here, as far as it can be known."""
        what = f"one with opcode {opcode} and {len(payload)} bytes"
        try:
            connection, sequence = int(payload[:8], 16), int(payload[9:17], 16)
            told = payload[18:34].decode()
        except ValueError:
            return what
        whole = "undamaged" if digest(payload[_HEAD:]) == told else "damaged"
        whose = "" if connection == self._connection else f" of connection {connection}"
        return f"message {sequence}{whose}, {whole}: {what}"


class Samples:
    """A fair choice of many figures."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._kept: list[float] = []
        self._count = 0

    def add(self, figure: float) -> None:
        """Take a figure into account."""
        self._count += 1
        if len(self._kept) < SAMPLES:
            self._kept.append(figure)
        elif (place := self._chance.randrange(self._count)) < SAMPLES:
            self._kept[place] = figure

    def quantile(self, part: float) -> float | None:
        """Return the figure below which such a part of all is."""
        if not self._kept:
            return None
        return sorted(self._kept)[min(int(part * len(self._kept)), len(self._kept) - 1)]
