"""What does a peer say and hear that speaks permessage-deflate, by zlib and RFC 7692 alone? And one more extension."""

from __future__ import annotations

import random
import zlib
from typing import TYPE_CHECKING, Any, ClassVar, Final

from drivers import BINARY, CONTINUATION, TEXT, frame

from wspy import Extension

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivers import RawClient

RSV1: Final = 0x40
TAIL: Final = b"\x00\x00\xff\xff"
NAME: Final = "permessage-deflate"
LONG_TEXT: Final = "".join(random.Random(7).choices(["one ", "two, ", "drei ", "四 ", '{"key": 5}', "\0"], k=40_000))
NOISE: Final = random.Random(8).randbytes(200_000)

OFFERS: Final[list[dict[str, Any]]] = [
    {},
    {"server_no_context_takeover": True},
    {"client_no_context_takeover": True},
    {"server_no_context_takeover": True, "client_no_context_takeover": True},
    {"server_max_window_bits": 9},
    {"client_max_window_bits": 9},
    {"server_max_window_bits": 12, "client_max_window_bits": 10, "server_no_context_takeover": True},
]
"""What a client may offer, of either role's parameters."""


def deflated(data: bytes, *, bits: int = 15, flush: int = zlib.Z_SYNC_FLUSH, level: int = 6) -> bytes:
    """Return a message that is compressed by itself, RFC 7692 §7.2.1."""
    stream = zlib.compressobj(level, zlib.DEFLATED, -bits)
    return (stream.compress(data) + stream.flush(flush)).removesuffix(TAIL)


def compressed(opcode: int, data: bytes, **options: Any) -> bytes:
    """Return the frame of such a message."""
    return frame(opcode, deflated(data, **options), rsv=RSV1)


TEXT_OF_1000: Final = "compress this " * 72
SAMPLES: Final = {  # RFC 7692 §7.2.3.1 to §7.2.3.5, each in its frames
    "7.2.3.1": [b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00"],
    "7.2.3.1 in fragments": [b"\x41\x03\xf2\x48\xcd", b"\x80\x04\xc9\xc9\x07\x00"],
    "7.2.3.2": [b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00", b"\xc1\x05\xf2\x00\x11\x00\x00"],
    "7.2.3.3": [b"\xc1\x0b\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00"],
    "7.2.3.4": [b"\xc1\x08\xf3\x48\xcd\xc9\xc9\x07\x00\x00"],
    "7.2.3.5": [b"\xc1\x0d\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00"],
}
CORRUPT: Final = {
    "G12 a reserved block": b"\x07",
    "G12 a distance too far": deflated(b"abc" * 100)[:-5] + b"\xff" * 9,
    "G12 lengths that differ": b"\x00\x05\x00\x00\x00hello\x00",
    "G12 random": random.Random(12).randbytes(500),
    "G13 half a message": deflated(TEXT_OF_1000.encode())[:-6],
    "G13 without its end": deflated(TEXT_OF_1000.encode())[:-1],
    "G13 one byte": deflated(TEXT_OF_1000.encode())[:1],
    "G13 half a stored block": b"\x00\x09\x00\xf6\xffhell",
    "G14 behind a last block": deflated(b"last", flush=zlib.Z_FINISH) + b"\x07garbage",
}
"""Payloads of compressed messages that can't be inflated, RFC 7692 §7.2.2, by their row."""


class Deflating:
    """A raw client that has agreed on permessage-deflate.

    Args:
        peer: a client that has sent nothing yet.
        parameters: what it offers, from the first semicolon on.
    """

    def __init__(self, peer: RawClient, parameters: str = "; client_max_window_bits") -> None:
        self.peer = peer
        peer.claimed = RSV1
        answer = peer.open(headers=[("Sec-WebSocket-Extensions", NAME + parameters)]).headers
        name, *found = answer["sec-websocket-extensions"].split("; ")
        assert name == NAME
        self.agreed = dict(one.partition("=")[::2] for one in found)
        self._bits = max(int(self.agreed.get("client_max_window_bits", 15)), 9)
        self._peers_bits = int(self.agreed.get("server_max_window_bits", 15))
        self._deflater: Any = None
        self._inflater: Any = None

    def deflate(self, data: bytes) -> bytes:
        """Return what stands for a message."""
        if self._deflater is None or "client_no_context_takeover" in self.agreed:
            self._deflater = zlib.compressobj(6, zlib.DEFLATED, -self._bits)
        return bytes(self._deflater.compress(data) + self._deflater.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)

    def send(self, message: str | bytes, size: int | None = None) -> None:
        """Send a compressed message, in fragments of so many bytes if that is said."""
        opcode, data = (TEXT, message.encode()) if isinstance(message, str) else (BINARY, message)
        payload = self.deflate(data)
        step = size or max(len(payload), 1)
        parts = [payload[start : start + step] for start in range(0, len(payload), step)]
        for number, part in enumerate(parts):
            first = (opcode, RSV1) if number == 0 else (CONTINUATION, 0)
            self.peer.send(frame(first[0], part, final=number == len(parts) - 1, rsv=first[1]))

    def receive(self) -> tuple[str | bytes, bool]:
        """Receive a message; say whether it was compressed."""
        opcode, payload, final = self.peer.frame()
        is_compressed = bool(self.peer.rsv)
        while not final:
            continuation, part, final = self.peer.frame()
            assert continuation == CONTINUATION
            assert not self.peer.rsv  # RFC 7692 §6.1
            payload += part
        if is_compressed:
            payload = self.inflate(payload)
        return (payload.decode() if opcode == TEXT else payload), is_compressed

    def inflate(self, payload: bytes) -> bytes:
        """Return what a compressed message says."""
        if self._inflater is None or "server_no_context_takeover" in self.agreed:
            self._inflater = zlib.decompressobj(-max(self._peers_bits, 9))
        return bytes(self._inflater.decompress(payload + TAIL))


def messages(seed: int, count: int) -> Iterator[str | bytes]:
    """Yield messages of all kinds: most are short, some are long, some can't be compressed."""
    chance = random.Random(seed)
    for _ in range(count):
        size = min(int(chance.expovariate(1 / 300)), 5000) if chance.random() < 0.98 else chance.randrange(100_000)
        start = chance.randrange(len(LONG_TEXT) - size)
        kind = chance.randrange(3)
        if kind == 0:
            yield LONG_TEXT[start : start + size]
        else:
            yield (NOISE if kind == 1 else LONG_TEXT.encode())[start : start + size]


class Choosy(Extension):
    """Has a parameter that it can't do anything with if it is too large."""

    names: ClassVar = ("x-choosy",)
    defaults: ClassVar = {"key": 1}

    class Instance(Extension.Instance):
        def __init__(self, role: Any, parameters: Any) -> None:
            super().__init__(role, parameters)
            self.key = bytes([parameters["key"]])
