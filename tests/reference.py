"""What does RFC 6455 say about a stream of frames? Slow and obvious, and written without a look at the C core.

All that has arrived is decoded from its first byte on: there is no state between two calls that could be wrong.
"""

from __future__ import annotations

import io
from typing import NamedTuple

from wspy.codes import Role

DEFINED = {0, 1, 2, 8, 9, 10}
SENDABLE_CODES = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
CLOSE_CODES = {  # what a broken rule is answered with
    "RSV": 1002,
    "OPCODE": 1002,
    "UNMASKED": 1002,
    "MASKED": 1002,
    "LENGTH_FORM": 1002,
    "LENGTH_RANGE": 1002,
    "CONTROL_LENGTH": 1002,
    "CONTROL_FRAGMENT": 1002,
    "CONTINUATION": 1002,
    "INTERLEAVED": 1002,
    "MESSAGE_SIZE": 1009,
    "FRAGMENT_SIZE": 1009,
    "FRAGMENT_COUNT": 1008,
    "UTF8": 1007,
    "CLOSE_LENGTH": 1002,
    "CLOSE_CODE": 1002,
    "CLOSE_UTF8": 1007,
}


class Outcome(NamedTuple):
    """What a stream leads to. Events are (opcode, payload, final, rsv); close is the payload of the owed Close."""

    events: list[tuple[int, bytes, bool, int]]
    pongs: list[bytes]
    error: str | None
    close: bytes | None


class ViolationError(Exception):
    """The name of the broken rule."""


class IncompleteError(Exception):
    """More bytes are needed."""


def masked(data: bytes, key: bytes) -> bytes:
    """Mask or unmask, as §5.3 has it, but for all bytes at once."""
    keys = (key * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data) ^ int.from_bytes(keys)).to_bytes(len(data))


def encode(first: int, payload: bytes, key: bytes | None = None) -> bytes:
    """Encode one frame, masked if there is a key."""
    size = len(payload)
    bit = 0 if key is None else 0x80
    if size < 126:
        header = bytes([first, bit | size])
    elif size < 1 << 16:
        header = bytes([first, bit | 126]) + size.to_bytes(2)
    else:
        header = bytes([first, bit | 127]) + size.to_bytes(8)
    return header + payload if key is None else header + key + masked(payload, key)


def decode_frames(data: bytes) -> list[tuple[int, bytes, bytes | None]]:
    """Decode frames that we wrote: the first byte, the payload, the masking key if there is one."""
    frames = []
    stream = io.BytesIO(data)
    while header := stream.read(2):
        first, second = header
        length = second & 0x7F
        if length >= 126:
            length = int.from_bytes(stream.read(2 if length == 126 else 8))
        key = stream.read(4) if second & 0x80 else None
        payload = stream.read(length)
        assert len(payload) == length, "a frame is cut off"
        frames.append((first, payload if key is None else masked(payload, key), key))
    return frames


def is_utf8(data: bytes, *, final: bool) -> bool:
    """Whether data is valid, or if not final, can be completed to something valid."""
    ends = [b"", *(byte * count for byte in (b"\x80", b"\xbf") for count in (1, 2, 3))]
    return any(decodes(data + end) for end in (ends[:1] if final else ends))


def decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class Decoder:
    def __init__(
        self,
        role: Role,
        *,
        frames: bool = False,
        max_size: int | None = 1 << 20,
        max_fragment_size: int | None = None,
        max_fragments: int | None = 131072,
        rsv: int = 0,
        opcodes: int = 0,
        close_sent: bool = False,
    ) -> None:
        self.role, self.frames, self.rsv, self.close_sent = role, frames, rsv, close_sent
        self.claimed = {n for n in range(16) if opcodes >> n & 1}
        self.opcodes = DEFINED | self.claimed
        self.max_size, self.max_fragment_size, self.max_fragments = max_size, max_fragment_size, max_fragments

    def decode(self, data: bytes) -> Outcome:
        self.data, self.at = data, 0
        self.message: list[bytes] | None = None  # the payloads of its frames, while it is unfinished
        self.opcode = self.message_rsv = self.size = 0
        self.text = b""
        self.outcome = Outcome([], [], None, None)
        try:
            while self.outcome.close is None:
                self.frame()
        except IncompleteError:
            return self.outcome
        except ViolationError as violation:
            error = str(violation)
            self.outcome = self.outcome._replace(error=error, close=CLOSE_CODES[error].to_bytes(2))
        return self.outcome._replace(close=None) if self.close_sent else self.outcome

    def need(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise IncompleteError
        self.at += count
        return self.data[self.at - count : self.at]

    def require(self, rule: str, holds: bool) -> None:
        if not holds:
            raise ViolationError(rule)

    def frame(self) -> None:
        first, second = self.need(2)
        final, rsv, opcode, length = bool(first & 0x80), first & 0x70, first & 0x0F, second & 0x7F
        self.start(opcode, rsv, final=final, is_masked=second >= 0x80, length=length)
        if length >= 126:
            extended, shortest = (2, 126) if length == 126 else (8, 1 << 16)
            length = int.from_bytes(self.need(extended))
            self.require("LENGTH_RANGE", length < 1 << 63)
            self.require("LENGTH_FORM", length >= shortest)
        key = self.need(4) if self.role is Role.SERVER else bytes(4)
        if opcode >= 8:
            self.control(opcode, masked(self.need(length), key))
        else:
            self.fragment(opcode, rsv, length, key, final=final)

    def start(self, opcode: int, rsv: int, *, final: bool, is_masked: bool, length: int) -> None:
        self.require("OPCODE", opcode in self.opcodes)
        claimed = 0 if opcode >= 8 or (opcode == 0 and not self.frames) else self.rsv
        self.require("RSV", not rsv & ~claimed)
        self.require("UNMASKED", is_masked or self.role is Role.CLIENT)
        self.require("MASKED", not is_masked or self.role is Role.SERVER)
        if opcode >= 8:
            self.require("CONTROL_LENGTH", length <= 125)
            self.require("CONTROL_FRAGMENT", final)
        elif opcode == 0:
            self.require("CONTINUATION", self.message is not None)
        else:
            self.require("INTERLEAVED", self.message is None)

    def fragment(self, opcode: int, rsv: int, length: int, key: bytes, *, final: bool) -> None:
        if self.message is None:
            self.message, self.text, self.size, self.message_rsv, self.opcode = [], b"", 0, 0, opcode
        self.size += length
        self.message_rsv |= rsv
        is_opaque = self.message_rsv or self.opcode in self.claimed
        more = self.max_size // 16 + 64 if self.max_size is not None and is_opaque else 0
        self.require("MESSAGE_SIZE", self.max_size is None or self.size <= self.max_size + more)
        self.require("FRAGMENT_SIZE", self.max_fragment_size is None or length <= self.max_fragment_size)
        many = opcode == 0 and self.max_fragments is not None and len(self.message) >= self.max_fragments
        self.require("FRAGMENT_COUNT", not many)
        payload = masked(self.data[self.at : self.at + length], key)
        is_whole = len(payload) == length
        if self.opcode == 1 and not is_opaque:
            self.text += payload
            self.require("UTF8", is_utf8(self.text, final=final and is_whole))
        self.need(length)
        self.message.append(payload)
        if self.frames:
            self.outcome.events.append((opcode, payload, final, rsv))
        elif final:
            self.outcome.events.append((self.opcode, b"".join(self.message), True, self.message_rsv))
        if final:
            self.message = None

    def control(self, opcode: int, payload: bytes) -> None:
        if opcode == 8:
            self.require("CLOSE_LENGTH", len(payload) != 1)
            self.require("CLOSE_CODE", not payload or int.from_bytes(payload[:2]) in SENDABLE_CODES)
            self.require("CLOSE_UTF8", is_utf8(payload[2:], final=True))
            self.outcome = self.outcome._replace(close=payload[:2])
        if opcode == 9 and not self.close_sent:
            self.outcome.pongs.append(payload)
        self.outcome.events.append((opcode, payload, True, 0))
