"""T2: does every hostile input lead to the same, however it is cut: the same events, and the same bytes as an answer?

Without sockets, so that there can be many runs: each input whole, byte by byte, in two parts cut everywhere, and in
random parts. ``WSPY_CHOPS`` is how many of those, if there are to be more; then long ones are cut everywhere, too.
"""

from __future__ import annotations

import logging
import os
import random
import re
import zlib
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from compression import CORRUPT, NAME, RSV1, SAMPLES, TEXT_OF_1000, compressed, deflated
from drivers import BINARY, CONTINUATION, PING, PONG, TEXT, at, bytewise, close_frame, frame, head
from heads import CASES, Case
from reference import decode_frames
from vectors import SERVER, VECTORS, Vector

from wspy import DeflateMessage, HandshakeError, ProtocolError, Role
from wspy.codes import Opcode
from wspy.extending import Extending
from wspy.frames import received_frame
from wspy.handshake import ServerHandshake
from wspy.heads import HeadReader
from wspy.protocol import Event, Protocol
from wspy.server_auth import authenticate, checked_policies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ASKED: Final = int(os.environ.get("WSPY_CHOPS", "0"))
RANDOM: Final = ASKED or 4
SHORT: Final = 12_000 if ASKED else 700
"""Up to so many bytes there is a cut in two at each place; in what is longer, near both ends and at some others."""
EDGE: Final = 100
LEAST: Final = 20_000
DATE: Final = re.compile(rb"Date: [^\r]*\r\n")
NOW: Final = 1e9

log = logging.getLogger(__name__)


class Input(NamedTuple):
    """What arrives, and what shows what becomes of it.

    Args:
        name: begins with its row.
        data: all bytes of it.
        run: feeds pieces, and returns everything that comes of them.
    """

    name: str
    data: bytes
    run: Callable[[Iterable[bytes]], Any]


def chops(data: bytes, chance: random.Random) -> Iterator[list[bytes]]:
    """Yield all ways to cut an input."""
    yield bytewise(data)
    size = len(data)
    places = range(1, size)
    if size > SHORT:
        places = [*places[:EDGE], *sorted(chance.sample(places[EDGE:-EDGE], EDGE)), *places[-EDGE:]]  # type: ignore[assignment]
    for place in places:
        yield at(data, place)
    for _ in range(RANDOM if size > 2 else 0):
        yield at(data, *sorted(chance.sample(range(1, size), chance.randint(1, min(size - 1, 8)))))


# ---- frames ----


def told(protocol: Protocol, events: list[Event], replies: bytes) -> tuple[Any, ...]:
    """Return what was delivered, and what the peer gets; a client's keys are random, and left out."""
    error = protocol.error
    answer = replies + protocol.owed_close()
    frames = [(first, payload) for first, payload, _ in decode_frames(answer)]
    return events, frames, protocol.rcvd, None if error is None else (error.code, error.message)


def fed(pieces: Iterable[bytes], role: Role, **options: Any) -> tuple[Any, ...]:
    """Feed a stream of frames."""
    protocol = Protocol(role, **options)
    events: list[Event] = []
    replies = b""
    for piece in pieces:
        events += protocol.feed(piece)
        replies += protocol.replies()
    return told(protocol, events, replies)


def of_vector(vector: Vector, *, frames: bool) -> Input:
    def run(pieces: Iterable[bytes]) -> tuple[Any, ...]:
        return fed(pieces, vector.role, frames=frames, **vector.options)

    return Input(f"{vector.name}, {vector.role.name}, {'frames' if frames else 'messages'}", vector.data, run)


# ---- request heads ----


class Server:
    """What answers a request head, and what comes behind it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._policies = checked_policies(options.pop("auth", None))
        self._handshake = ServerHandshake(server_header="wspy", **options)

    def run(self, pieces: Iterable[bytes]) -> tuple[Any, ...]:
        """Return the answer, what is made of the request, and of the frames behind it."""
        reader, rest = HeadReader(), iter(pieces)
        data = b""
        try:
            while not data:
                piece = next(rest, None)
                if piece is None:
                    return ("incomplete", reader.has_line)
                data = reader.feed(piece) or b""
            request = self._handshake.read(data)
            if self._policies:
                request.username = authenticate(self._policies, request, NOW)
            accepted = self._handshake.accept(request)
        except HandshakeError as error:
            return error.message, DATE.sub(b"", self._handshake.refuse(error, data))
        facts = (request.path, list(request.headers.items()), request.username, accepted.subprotocol)
        return DATE.sub(b"", accepted.response), facts, fed([reader.rest, *rest], SERVER)


def of_case(case: Case) -> Input:
    return Input(case.name, case.data, Server(dict(case.options)).run)


# ---- compression ----


@cache
def agreed() -> Any:
    """Return what a client and a server agree upon that both have permessage-deflate."""
    handshake = ServerHandshake(extensions=[DeflateMessage])
    request = handshake.read(head(headers=[("Sec-WebSocket-Extensions", NAME)]))
    return handshake.accept(request).extensions


class Compressed:
    """A connection that inflates whole messages, as ``Connection`` does."""

    def __init__(self, max_size: int) -> None:
        self.extending = Extending(agreed(), max_size)
        self.protocol = Protocol(SERVER, frames=True, max_size=max_size, rsv=RSV1)
        self.messages: list[Event] = []
        self._fragments: list[Event] = []
        self._replies = b""

    def take(self, event: Event) -> None:
        """Deliver a control frame, or a message when its last frame is there."""
        if event.opcode >= Opcode.CLOSE:
            self.messages.append(event)
            self._replies += self.protocol.pong(event.payload) if event.opcode == PING else b""
            return
        self._fragments.append(event)
        if event.final:
            frames = [received_frame(one.opcode, one.payload, final=one.final, rsv=one.rsv) for one in self._fragments]
            self._fragments = []
            whole = self.extending.whole(frames)
            self.messages.append(Event(whole.opcode, bytes(whole.payload), final=True, rsv=0))

    def run(self, pieces: Iterable[bytes]) -> tuple[Any, ...]:
        """Return what is delivered and answered."""
        try:
            for piece in pieces:
                for event in self.protocol.feed(piece):
                    self.take(event)
        except ProtocolError as error:
            self.protocol.fail(error)
        return told(self.protocol, self.messages, self._replies)


def of_compressed(name: str, *frames: bytes, max_size: int = 100_000) -> Input:
    return Input(name, b"".join(frames), lambda pieces: Compressed(max_size).run(pieces))


def compressed_streams() -> Iterator[Input]:
    """Section G, as far as it is about what arrives."""
    text = TEXT_OF_1000.encode()
    before, behind = compressed(TEXT, b"before"), frame(TEXT, b"behind") + close_frame(1000)
    for name, plain in SAMPLES.items():
        yield of_compressed(
            f"G8 sample {name}",
            *(frame(p[0] & 0x0F, p[2:], final=bool(p[0] & 0x80), rsv=p[0] & 0x40) for p in plain),
            behind,
        )
    last = frame(TEXT, deflated(b"last", flush=zlib.Z_FINISH), rsv=RSV1)
    yield of_compressed("G9 a last block in the middle", before, last, before, behind)
    for payload in (b"", b"\0", b"\2\0"):
        yield of_compressed(f"G10 empty as {payload!r}", frame(TEXT, payload, rsv=RSV1), behind)
    for opcode in (CONTINUATION, PING, PONG):
        start = frame(TEXT, b"a", final=False) if opcode == CONTINUATION else b""
        yield of_compressed(f"G11 on opcode {opcode}", before, start, frame(opcode, rsv=RSV1), behind)
    for name, payload in CORRUPT.items():
        yield of_compressed(
            name, before, frame(PING, b"1"), frame(BINARY, payload, rsv=RSV1), frame(PING, b"2"), behind
        )
    for size in (100, 1000, 1001, 100_000):
        bomb = deflated(bytes(size))
        parts = frame(BINARY, bomb[:3], final=False, rsv=RSV1) + frame(CONTINUATION, bomb[3:])
        yield of_compressed(f"G15 G16 {size} bytes", before, frame(BINARY, bomb, rsv=RSV1), behind, max_size=1000)
        yield of_compressed(f"G15 G16 {size} bytes in fragments", before, parts, behind, max_size=1000)
    for wrong in (b"\xff", b"a\xed\xa0\x80", b"\xf0\x9f\x98"):
        yield of_compressed(f"G17 {wrong!r}", before, compressed(TEXT, wrong), behind)
    yield of_compressed("G18 plain ones between", before, frame(TEXT, text), before, frame(PING, b"?"), before, behind)


# ---- all of them ----

# What is in one segment with a request: it has to reach the protocol as it is (C20).
BEHIND = [vector for vector in VECTORS if vector.role is SERVER and not vector.options and len(vector.data) < 30]
INPUTS: Final = {
    "frames": [of_vector(vector, frames=True) for vector in VECTORS],
    "messages": [of_vector(vector, frames=False) for vector in VECTORS],
    "heads": [of_case(case) for case in CASES],
    "heads and frames": [
        Input(f"C20 {vector.name}", head() + vector.data, Server({}).run) for vector in BEHIND[:: 1 if ASKED else 8]
    ],
    "compression": list(compressed_streams()),
}


def planned(inputs: Iterable[Input]) -> int:
    return sum(1 + sum(1 for _ in chops(one.data, random.Random(one.name))) for one in inputs)


@pytest.mark.slow
@pytest.mark.timeout(3600 if ASKED else 60)
@pytest.mark.parametrize("kind", INPUTS)
def test_t2_the_way_an_input_is_cut_makes_no_difference(kind: str) -> None:
    for name, data, run in INPUTS[kind]:
        expected = run([data])
        for pieces in chops(data, random.Random(name)):
            assert run(pieces) == expected, (name, [len(piece) for piece in pieces])


@pytest.mark.slow
def test_t2_there_are_enough_runs() -> None:
    counts = {kind: planned(inputs) for kind, inputs in INPUTS.items()}
    log.info("%d runs: %s", sum(counts.values()), counts)
    assert sum(counts.values()) >= (250_000 if ASKED >= 100 else LEAST), counts


def test_t2_the_inputs_lead_to_all_kinds_of_ends() -> None:
    """Else nothing would be shown: streams that break rules and that don't, heads that are let in and that aren't."""
    frames = [run([data]) for _, data, run in INPUTS["messages"]]
    assert {None, 1002, 1007, 1008, 1009} == {error and error[0] for *_, error in frames}
    starts = {
        found[0][:12] if len(found) == 3 else found[1][:12]
        for _, data, run in INPUTS["heads"]
        for found in [run([data])]
    }
    assert {b"HTTP/1.1 101", b"HTTP/1.1 400", b"HTTP/1.1 401", b"HTTP/1.1 413", b"HTTP/1.1 431"} <= starts
    ends = [run([data]) for _, data, run in INPUTS["compression"]]
    assert {None, 1002, 1007, 1009} == {error and error[0] for *_, error in ends}
