"""What is on the wire between soak.py's clients and a server? Handshakes, frames and compression, without I/O.

Made of the standard library alone, with nothing of wspy's: an error there can't hide behind the same one here.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MAX_SIZE = 1 << 20
"""The default of wspy's ``max_size``, which is the longest message that is sent and that may come back."""


class Fault(Exception):  # noqa: N818 -- that of a server, and what this program is for
    """A server has done what it must not do."""


# ---- the opening handshake, RFC 6455 §4 ----


def request(key: bytes, path: str, offer: str) -> bytes:
    """Return a request head; the offer is that of Sec-WebSocket-Extensions."""
    extensions = f"Sec-WebSocket-Extensions: {offer}\r\n" if offer else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{extensions}"
        f"Sec-WebSocket-Key: {key.decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def new_key(chance: random.Random) -> bytes:
    """Return a Sec-WebSocket-Key."""
    return base64.b64encode(chance.randbytes(16))


def read_answer(head: bytes, key: bytes) -> dict[str, str]:
    """Return the header fields of a 101; raise Fault for everything else."""
    status, *lines = head.decode("latin-1").split("\r\n")
    if not status.startswith("HTTP/1.1 101 "):
        raise Fault(f"no 101 but {status!r}")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    accept = base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest()).decode()
    if fields.get("sec-websocket-accept") != accept:
        raise Fault(f"Sec-WebSocket-Accept is {fields.get('sec-websocket-accept')!r}")
    return fields


# ---- frames, RFC 6455 §5 ----


class Frame(NamedTuple):
    """A frame that has arrived."""

    opcode: int
    payload: bytes
    final: bool
    rsv1: bool


def masked(payload: bytes, key: bytes) -> bytes:
    """Return a payload as a client sends it, §5.3."""
    size = len(payload)
    mask = int.from_bytes((key * (size // 4 + 1))[:size], "little")
    return (int.from_bytes(payload, "little") ^ mask).to_bytes(size, "little")


def pack(opcode: int, payload: bytes, key: bytes, *, final: bool = True, rsv1: bool = False) -> bytes:
    """Return a frame of a client, §5.2."""
    first, size = final << 7 | rsv1 << 6 | opcode, len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + key + masked(payload, key)


class Parser:
    """Frames of a server from bytes in any portions.

    Args:
        compression: whether RSV1 was agreed upon.
    """

    def __init__(self, *, compression: bool = False) -> None:
        self._compression = compression
        self._buffer = bytearray()

    @property
    def rest(self) -> int:
        """How many bytes there are of a frame that has not arrived as a whole."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete now; raise Fault if one breaks a rule."""
        self._buffer += data
        while (size := self._sizes()) is not None:
            head, whole = size
            if len(self._buffer) < whole:
                return
            first, payload = self._buffer[0], bytes(memoryview(self._buffer)[head:whole])
            del self._buffer[:whole]
            yield Frame(first & 15, payload, bool(first & 0x80), bool(first & 0x40))

    def _sizes(self) -> tuple[int, int] | None:
        """Return the length of the next frame's header, and with its payload; None if that is not known yet."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, length = buffer[0], buffer[1]
        head = {126: 4, 127: 10}.get(length, 2)
        if len(buffer) < head:
            return None
        if head > 2:
            length = int.from_bytes(buffer[2:head], "big")
        self._judge(first, buffer[1], length)
        return head, head + length

    def _judge(self, first: int, second: int, length: int) -> None:
        opcode, final = first & 15, first & 0x80
        if opcode not in {CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG}:
            raise Fault(f"opcode {opcode}")
        if first & 0x30 or (first & 0x40 and (not self._compression or opcode not in {TEXT, BINARY})):
            raise Fault(f"reserved bits in {first:#x}")
        if second & 0x80:
            raise Fault("a masked frame")
        if opcode >= CLOSE and (not final or length > 125):
            raise Fault(f"a control frame that starts with {first:#x} and has {length} bytes")
        if (second == 126 and length < 126) or (second == 127 and length < 1 << 16):
            raise Fault(f"a length of {length} that is too long")
        if length > MAX_SIZE + MAX_SIZE // 16:  # what can't be compressed grows
            raise Fault(f"a frame of {length} bytes")


# ---- permessage-deflate, RFC 7692 ----

TAIL = b"\x00\x00\xff\xff"


def new_offer(chance: random.Random) -> str:
    """Return one of the offers that a client may make, §7.1."""
    parameters = [
        name for name in ("server_no_context_takeover", "client_no_context_takeover") if chance.random() < 0.3
    ]
    if chance.random() < 0.5:
        parameters.append("client_max_window_bits")
    if chance.random() < 0.3:
        parameters.append(f"server_max_window_bits={chance.randint(9, 15)}")
    return "; ".join(["permessage-deflate", *parameters])


class Compression:
    """Both directions of a connection, by what the server has agreed to."""

    def __init__(self, answer: str) -> None:
        name, *parameters = [word.strip() for word in answer.split(";")]
        if name != "permessage-deflate":
            raise Fault(f"the extension {answer!r}, which nobody wants")
        agreed = dict(word.partition("=")[::2] for word in parameters)
        self._bits = max(int(agreed.get("client_max_window_bits", 15)), 9)
        self._peers_bits = int(agreed.get("server_max_window_bits", 15))
        self._forgets = "client_no_context_takeover" in agreed
        self._peer_forgets = "server_no_context_takeover" in agreed
        self._restart()
        self._restart_inflating()

    def _restart(self) -> None:
        self._deflate = zlib.compressobj(1, zlib.DEFLATED, -self._bits)

    def _restart_inflating(self) -> None:
        # with the window that was agreed upon, and no larger one: what refers further back is an error, §7.1.2.1
        self._inflate = zlib.decompressobj(-max(self._peers_bits, 9))

    def deflate(self, payload: bytes) -> bytes:
        """Compress a message, §7.2.1."""
        data = self._deflate.compress(payload) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        if self._forgets:
            self._restart()
        return data.removesuffix(TAIL)

    def inflate(self, data: bytes) -> bytes:
        """Return what a message says, §7.2.2; raise Fault if that is nothing, or too long."""
        try:
            payload = self._inflate.decompress(data + TAIL, MAX_SIZE + 1)
        except zlib.error as error:
            raise Fault(f"a message that can't be inflated: {error}") from None
        if len(payload) > MAX_SIZE or self._inflate.unconsumed_tail:
            raise Fault(f"a message that becomes more than {MAX_SIZE} bytes")
        if self._peer_forgets:
            self._restart_inflating()
        return payload
