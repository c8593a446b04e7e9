"""What must a stream of frames lead to? Wire vectors, as data, for the decoders of both roles and both granularities.

A vector is a stream from the peer with all that it must lead to. ``VECTORS`` holds the examples of RFC 6455 as they are
printed there, and each rule once per role: masked for a server, unmasked for a client. Names begin with the row of
the list of hostile inputs that they come from, where there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from reference import CLOSE_CODES, masked

from wspy.codes import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN, RSV1, RSV2, RSV3 = 0x80, 0x40, 0x20, 0x10
KEY = bytes.fromhex("37fa213d")
SERVER, CLIENT = Role.SERVER, Role.CLIENT

EventFields = tuple[int, bytes, bool, int]  # opcode, payload, final, rsv


class Vector(NamedTuple):
    """A stream from the peer.

    Args:
        name: what is special about it.
        section: the deciding section of RFC 6455, or another RFC with its number.
        role: who decodes it.
        data: the stream.
        messages: the events in message granularity.
        frames: the events in frame granularity.
        pongs: payloads of the pongs that are owed.
        error: name of the broken rule, a key of ``CLOSE_CODES``; None if all is well.
        options: limits and claims, as arguments of ``Protocol``.
        header_size: bytes of its first frame's header.
    """

    name: str
    section: str
    role: Role
    data: bytes
    messages: tuple[EventFields, ...]
    frames: tuple[EventFields, ...]
    pongs: tuple[bytes, ...]
    error: str | None
    options: Mapping[str, Any]
    header_size: int

    @property
    def owed_close(self) -> bytes | None:
        """The payload of the Close that is owed in the end, §5.5.1 and §7.1.7."""
        if self.error:
            return CLOSE_CODES[self.error].to_bytes(2)
        return next((payload[:2] for opcode, payload, _, _ in self.messages if opcode == CLOSE), None)


class Wire(NamedTuple):
    """One frame to encode, as wrong as one likes."""

    first: int
    payload: bytes = b""
    announced: int | None = None  # payload length in the header, if it isn't that of payload
    extended: int | None = None  # 0, 2 or 8 bytes of extended payload length, if not the shortest form
    wrongly_masked: bool = False  # masked if it must not be, and the other way round
    key: bytes = KEY

    def header(self, role: Role) -> bytes:
        """Encode the header for a decoder of this role."""
        length = len(self.payload) if self.announced is None else self.announced
        shortest = 0 if length < 126 else 2 if length < 1 << 16 else 8
        extended = shortest if self.extended is None else self.extended
        is_masked = (role is SERVER) is not self.wrongly_masked
        second = (0x80 if is_masked else 0) | {0: length, 2: 126, 8: 127}[extended]
        size = b"" if not extended else length.to_bytes(extended)
        return bytes([self.first, second]) + size + (self.key if is_masked else b"")

    def encode(self, role: Role) -> bytes:
        """Encode the frame for a decoder of this role."""
        is_masked = (role is SERVER) is not self.wrongly_masked
        return self.header(role) + (masked(self.payload, self.key) if is_masked else self.payload)


def message(opcode: int, payload: bytes, rsv: int = 0) -> EventFields:
    return (opcode, payload, True, rsv)


def fragment(opcode: int, payload: bytes, rsv: int = 0) -> EventFields:
    return (opcode, payload, False, rsv)


def rule(
    name: str,
    section: str,
    *wires: Wire,
    events: Iterable[EventFields] = (),
    frames: Iterable[EventFields] | None = None,
    pongs: Iterable[bytes] = (),
    error: str | None = None,
    roles: Iterable[Role] = (SERVER, CLIENT),
    **options: Any,
) -> Iterator[Vector]:
    """Make a vector for each role. frames: the events in frame granularity, if they differ."""
    events = tuple(events)
    frames = events if frames is None else tuple(frames)
    for role in roles:
        data = b"".join(wire.encode(role) for wire in wires)
        size = len(wires[0].header(role))
        yield Vector(
            f"{name} ({role.name.lower()})",
            section,
            role,
            data,
            events,
            frames,
            tuple(pongs),
            error,
            options,
            size,
        )


def rfc(name: str, role: Role, stream: str, *, events: Iterable[EventFields], **rest: Iterable[EventFields]) -> Vector:
    """Make a vector of an example in §5.7, as printed there."""
    events = tuple(events)
    pongs = tuple(payload for opcode, payload, _, _ in events if opcode == PING)
    frames = tuple(rest.get("frames", events))
    data = bytes.fromhex(stream)
    return Vector(f"5.7 {name}", "5.7", role, data, events, frames, pongs, None, {}, 6 if role is SERVER else 2)


HELLO = message(TEXT, b"Hello")
CLOSE_1000 = Wire(FIN | CLOSE, b"\x03\xe8")
TAIL = Wire(FIN | TEXT, b"tail")
E_ACUTE = "é".encode()
SIZES = (0, 1, 125, 126, 127, 65535, 65536)


def examples() -> Iterator[Vector]:
    """§5.7."""
    yield rfc("a single-frame unmasked text message", CLIENT, "810548656c6c6f", events=[HELLO])
    yield rfc("a single-frame masked text message", SERVER, "818537fa213d7f9f4d5158", events=[HELLO])
    halves = [fragment(TEXT, b"Hel"), message(CONTINUATION, b"lo")]
    yield rfc("a fragmented unmasked text message", CLIENT, "010348656c80026c6f", events=[HELLO], frames=halves)
    yield rfc("an unmasked ping request", CLIENT, "890548656c6c6f", events=[message(PING, b"Hello")])
    yield rfc("a masked pong response", SERVER, "8a8537fa213d7f9f4d5158", events=[message(PONG, b"Hello")])
    yield from rule(
        "5.7 256 bytes of binary data",
        "5.7",
        Wire(FIN | BINARY, bytes(range(256))),
        events=[message(BINARY, bytes(range(256)))],
    )
    yield from rule(
        "5.7 64 KiB of binary data", "5.7", Wire(FIN | BINARY, bytes(65536)), events=[message(BINARY, bytes(65536))]
    )


def data_frames() -> Iterator[Vector]:
    """§5.2 to §5.6: what is right."""
    for size in SIZES:
        for opcode in (TEXT, BINARY):
            name = f"D15 {size} bytes in one frame of opcode {opcode}"
            yield from rule(name, "5.6", Wire(FIN | opcode, b"x" * size), events=[message(opcode, b"x" * size)])
    yield from rule(
        "D16 a masking key of zeros", "5.3", Wire(FIN | TEXT, b"plain", key=bytes(4)), events=[message(TEXT, b"plain")]
    )
    yield from rule(
        "D14 control frames between fragments",
        "5.4",
        Wire(TEXT, b"a" + E_ACUTE[:1]),
        Wire(FIN | PING, b"1"),
        Wire(CONTINUATION, E_ACUTE[1:]),
        Wire(FIN | PONG, b"2"),
        Wire(FIN | PING),
        Wire(FIN | CONTINUATION, b"b"),
        events=[message(PING, b"1"), message(PONG, b"2"), message(PING, b""), message(TEXT, b"a" + E_ACUTE + b"b")],
        frames=[
            fragment(TEXT, b"a" + E_ACUTE[:1]),
            message(PING, b"1"),
            fragment(CONTINUATION, E_ACUTE[1:]),
            message(PONG, b"2"),
            message(PING, b""),
            message(CONTINUATION, b"b"),
        ],
        pongs=[b"1", b""],
    )
    yield from rule(
        "D15 empty fragments",
        "5.4",
        Wire(BINARY),
        Wire(CONTINUATION),
        Wire(FIN | CONTINUATION),
        Wire(TEXT, b"x"),
        Wire(FIN | CONTINUATION),
        events=[message(BINARY, b""), message(TEXT, b"x")],
        frames=[
            fragment(BINARY, b""),
            fragment(CONTINUATION, b""),
            message(CONTINUATION, b""),
            fragment(TEXT, b"x"),
            message(CONTINUATION, b""),
        ],
    )
    yield from rule(
        "5.4 fragments of all header sizes",
        "5.4",
        Wire(BINARY, b"a" * 126),
        Wire(CONTINUATION, b"b" * 65536),
        Wire(FIN | CONTINUATION, b"c"),
        events=[message(BINARY, b"a" * 126 + b"b" * 65536 + b"c")],
        frames=[fragment(BINARY, b"a" * 126), fragment(CONTINUATION, b"b" * 65536), message(CONTINUATION, b"c")],
    )
    yield from rule(
        "5.5 control frames of 0 and 125 bytes",
        "5.5",
        *(Wire(FIN | opcode, b"c" * size) for opcode in (PING, PONG) for size in (0, 125)),
        events=[message(opcode, b"c" * size) for opcode in (PING, PONG) for size in (0, 125)],
        pongs=[b"", b"c" * 125],
    )
    yield from rule("5.5.3 an unsolicited pong", "5.5.3", Wire(FIN | PONG, b"?"), events=[message(PONG, b"?")])


def wrong_headers() -> Iterator[Vector]:
    """§5.1, §5.2 and §5.5: what the header alone decides."""
    for bits in range(RSV3, FIN, RSV3):
        for opcode in (TEXT, BINARY, PING, PONG, CLOSE):
            yield from rule(f"D1 bits {bits:#x} on opcode {opcode}", "5.2", Wire(FIN | bits | opcode), error="RSV")
        yield from rule(
            f"D1 bits {bits:#x} on a continuation",
            "5.2",
            Wire(BINARY, b"a"),
            Wire(FIN | bits | CONTINUATION),
            frames=[fragment(BINARY, b"a")],
            error="RSV",
        )
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        for payload in (b"", b"payload"):
            yield from rule(
                f"D2 opcode {opcode}, {len(payload)} bytes", "5.2", Wire(FIN | opcode, payload), error="OPCODE"
            )
    for opcode in (TEXT, BINARY, PING, PONG, CLOSE):
        wire = Wire(FIN | opcode, wrongly_masked=True)
        yield from rule(f"D3 opcode {opcode} is not masked", "5.1", wire, error="UNMASKED", roles=[SERVER])
        yield from rule(f"D4 opcode {opcode} is masked", "5.1", wire, error="MASKED", roles=[CLIENT])
    for length, extended in ((0, 2), (5, 2), (125, 2), (0, 8), (5, 8), (126, 8), (65535, 8)):
        wire = Wire(FIN | BINARY, announced=length, extended=extended)
        yield from rule(f"D5 {length} in {extended} bytes", "5.2", wire, error="LENGTH_FORM")
    for length in (1 << 63, (1 << 63) + 5, (1 << 64) - 1):
        yield from rule(f"D6 length {length:#x}", "5.2", Wire(FIN | BINARY, announced=length), error="LENGTH_RANGE")
    for opcode in (PING, PONG, CLOSE):
        for announced in (126, 65536):
            wire = Wire(FIN | opcode, announced=announced)
            yield from rule(f"D9 opcode {opcode}, {announced} bytes", "5.5", wire, error="CONTROL_LENGTH")
        yield from rule(f"D10 opcode {opcode} in fragments", "5.5", Wire(opcode), error="CONTROL_FRAGMENT")


def wrong_order() -> Iterator[Vector]:
    """§5.4."""
    for first in (CONTINUATION, FIN | CONTINUATION):
        yield from rule(f"D11 starts with {first:#x}", "5.4", Wire(first, b"x"), error="CONTINUATION")
        yield from rule(
            f"D11 {first:#x} after a message",
            "5.4",
            Wire(FIN | TEXT, b"x"),
            Wire(first),
            events=[message(TEXT, b"x")],
            error="CONTINUATION",
        )
        yield from rule(
            f"D11 {first:#x} after a message in fragments",
            "5.4",
            Wire(TEXT, b"x"),
            Wire(FIN | CONTINUATION, b"y"),
            Wire(first),
            events=[message(TEXT, b"xy")],
            frames=[fragment(TEXT, b"x"), message(CONTINUATION, b"y")],
            error="CONTINUATION",
        )
    for opened in (TEXT, BINARY):
        for payload in (b"", b"x"):
            for first in (FIN | TEXT, FIN | BINARY, TEXT, BINARY):
                yield from rule(
                    f"{'D12' if payload else 'D13'} {first:#x} inside a message of opcode {opened}",
                    "5.4",
                    Wire(opened, payload),
                    Wire(first, b"y"),
                    frames=[fragment(opened, payload)],
                    error="INTERLEAVED",
                )


def limits() -> Iterator[Vector]:
    """§10.4."""
    for length in (1 << 62, (1 << 32) + 1, 1 << 31, (1 << 20) + 1):
        yield from rule(
            f"D7 {length:#x} bytes announced", "10.4", Wire(FIN | BINARY, announced=length), error="MESSAGE_SIZE"
        )
        yield from rule(
            f"D7 {length:#x} bytes announced, in fragments", "10.4", Wire(TEXT, announced=length), error="MESSAGE_SIZE"
        )
    for max_size in ((1 << 62) + 5, 1 << 63):
        yield from rule(
            f"D8 two lengths whose sum is beyond {max_size:#x}",
            "10.4",
            Wire(BINARY, b"12345"),
            Wire(FIN | CONTINUATION, announced=(1 << 63) - 1),
            frames=[fragment(BINARY, b"12345")],
            error="MESSAGE_SIZE",
            max_size=max_size,
        )
    yield from rule(
        "H1 as large as max_size", "10.4", Wire(FIN | TEXT, b"12345"), events=[message(TEXT, b"12345")], max_size=5
    )
    yield from rule("H1 larger than max_size", "10.4", Wire(FIN | TEXT, b"123456"), error="MESSAGE_SIZE", max_size=5)
    yield from rule("H1 empty, with max_size 0", "10.4", Wire(FIN | TEXT), events=[message(TEXT, b"")], max_size=0)
    yield from rule(
        "H1 fragments as large as max_size, twice",
        "10.4",
        *[Wire(BINARY, b"123"), Wire(CONTINUATION, b"45"), Wire(FIN | CONTINUATION)] * 2,
        events=[message(BINARY, b"12345")] * 2,
        frames=[fragment(BINARY, b"123"), fragment(CONTINUATION, b"45"), message(CONTINUATION, b"")] * 2,
        max_size=5,
    )
    yield from rule(
        "H1 the last fragment's header is too much",
        "10.4",
        Wire(BINARY, b"123"),
        Wire(CONTINUATION, b"45"),
        Wire(FIN | CONTINUATION, announced=1),
        frames=[fragment(BINARY, b"123"), fragment(CONTINUATION, b"45")],
        error="MESSAGE_SIZE",
        max_size=5,
    )
    yield from rule(
        "H1 fragments as large as max_fragment_size",
        "10.4",
        Wire(BINARY, b"123"),
        Wire(FIN | CONTINUATION, b"456"),
        events=[message(BINARY, b"123456")],
        frames=[fragment(BINARY, b"123"), message(CONTINUATION, b"456")],
        max_fragment_size=3,
    )
    for first in (BINARY, FIN | BINARY):
        wire = Wire(first, announced=4)
        yield from rule(
            f"H1 {first:#x} larger than max_fragment_size", "10.4", wire, error="FRAGMENT_SIZE", max_fragment_size=3
        )
    yield from rule(
        "H1 control frames do not count",
        "10.4",
        Wire(FIN | PING, b"p" * 125),
        events=[message(PING, b"p" * 125)],
        pongs=[b"p" * 125],
        max_size=0,
        max_fragment_size=0,
        max_fragments=0,
    )
    yield from rule(
        "H2 as many fragments as max_fragments, twice",
        "10.4",
        *[Wire(TEXT), Wire(CONTINUATION), Wire(FIN | PONG), Wire(FIN | CONTINUATION, b"x")] * 2,
        events=[message(PONG, b""), message(TEXT, b"x")] * 2,
        frames=[fragment(TEXT, b""), fragment(CONTINUATION, b""), message(PONG, b""), message(CONTINUATION, b"x")] * 2,
        max_fragments=3,
    )
    yield from rule(
        "H2 one fragment more than max_fragments",
        "10.4",
        Wire(TEXT),
        Wire(CONTINUATION),
        Wire(FIN | CONTINUATION),
        frames=[fragment(TEXT, b""), fragment(CONTINUATION, b"")],
        error="FRAGMENT_COUNT",
        max_fragments=2,
    )


def closes() -> Iterator[Vector]:
    """§5.5.1 and §7.4."""
    yield from rule("E1 an empty Close", "5.5.1", Wire(FIN | CLOSE), events=[message(CLOSE, b"")])
    yield from rule("E2 a Close of one byte", "5.5.1", Wire(FIN | CLOSE, b"\x03"), error="CLOSE_LENGTH")
    for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):
        yield from rule(f"E3 code {code}", "7.4", Wire(FIN | CLOSE, code.to_bytes(2)), error="CLOSE_CODE")
    for code in (*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999):
        yield from rule(
            f"E4 code {code}", "7.4", Wire(FIN | CLOSE, code.to_bytes(2)), events=[message(CLOSE, code.to_bytes(2))]
        )
    longest = b"\x03\xe8" + E_ACUTE * 61 + b"!"
    yield from rule("E5 a reason of 123 bytes", "5.5.1", Wire(FIN | CLOSE, longest), events=[message(CLOSE, longest)])
    for reason in (b"\xff", b"a\xed\xa0\x80", b"abc\xe2\x82"):
        wire = Wire(FIN | CLOSE, b"\x03\xe8" + reason)
        yield from rule(f"E6 the reason is {reason.hex()}", "8.1", wire, error="CLOSE_UTF8")
    yield from rule(
        "E7 a Close inside a message",
        "5.4",
        Wire(TEXT, b"par"),
        CLOSE_1000,
        Wire(FIN | CONTINUATION, b"tial"),
        events=[message(CLOSE, b"\x03\xe8")],
        frames=[fragment(TEXT, b"par"), message(CLOSE, b"\x03\xe8")],
    )
    yield from rule(
        "E8 frames after the Close",
        "1.4",
        Wire(FIN | CLOSE),
        TAIL,
        Wire(FIN | PING, b"?"),
        CLOSE_1000,
        Wire(FIN | 15),
        events=[message(CLOSE, b"")],
    )
    yield from rule(
        "E9 messages, a ping and a Close in one segment",
        "1.4",
        TAIL,
        Wire(FIN | PING, b"?"),
        TAIL,
        CLOSE_1000,
        events=[message(TEXT, b"tail"), message(PING, b"?"), message(TEXT, b"tail"), message(CLOSE, b"\x03\xe8")],
        pongs=[b"?"],
    )


def texts() -> Iterator[Vector]:
    """§8.1."""
    for bad in ("ff", "c0af", "eda080", "f4908080", "f5", "80", "61bf", "e08080", "f0808080", "fe"):
        payload = bytes.fromhex(bad)
        yield from rule(f"F1 {bad}", "8.1", Wire(FIN | TEXT, payload), error="UTF8")
        yield from rule(f"F1 {bad} in a fragment", "8.1", Wire(TEXT, payload), error="UTF8")
        yield from rule(f"F7 {bad} in binary", "5.6", Wire(FIN | BINARY, payload), events=[message(BINARY, payload)])
    whole = "\U0001f600é€".encode()
    yield from rule(
        "F2 each byte a fragment",
        "5.6",
        Wire(TEXT),
        *(Wire(CONTINUATION, whole[i : i + 1]) for i in range(len(whole))),
        Wire(FIN | CONTINUATION),
        events=[message(TEXT, whole)],
        frames=[
            fragment(TEXT, b""),
            *(fragment(CONTINUATION, whole[i : i + 1]) for i in range(len(whole))),
            message(CONTINUATION, b""),
        ],
    )
    for cut in ("c3", "e282", "f09f98"):
        payload = b"x" + bytes.fromhex(cut)
        yield from rule(f"F3 ends with {cut}", "8.1", Wire(FIN | TEXT, payload), error="UTF8")
        yield from rule(
            f"F3 ends with {cut}, in fragments",
            "8.1",
            Wire(TEXT, payload),
            Wire(FIN | CONTINUATION),
            frames=[fragment(TEXT, payload)],
            error="UTF8",
        )
    yield from rule(
        "F3 the next message does not go on",
        "8.1",
        Wire(FIN | TEXT, b"x"),
        Wire(FIN | TEXT, E_ACUTE[1:]),
        events=[message(TEXT, b"x")],
        error="UTF8",
    )
    yield from rule(
        "F4 a bad byte in the first of many fragments",
        "8.1",
        Wire(TEXT, b"a\xff"),
        Wire(CONTINUATION, b"b"),
        error="UTF8",
    )
    yield from rule(
        "F5 a bad byte early in a large frame", "8.1", Wire(FIN | TEXT, b"a\xff", announced=100000), error="UTF8"
    )
    for text in ("\0", "\ufffe", "\U0010ffff", "\ufeffbom", "\ud7ff\ue000"):
        payload = text.encode()
        yield from rule(f"F6 {payload.hex()}", "8.1", Wire(FIN | TEXT, payload), events=[message(TEXT, payload)])


def claims() -> Iterator[Vector]:
    """§5.8 and §9.1: what extensions have claimed."""
    for bit in (RSV1, RSV2, RSV3):
        opaque = message(TEXT, b"\xff", bit)
        yield from rule(f"9.1 a claimed bit {bit:#x}", "9.1", Wire(FIN | bit | TEXT, b"\xff"), events=[opaque], rsv=bit)
        other = RSV1 if bit != RSV1 else RSV2
        yield from rule(f"D1 not the claimed bit {bit:#x}", "5.2", Wire(FIN | other | TEXT), error="RSV", rsv=bit)
        for opcode in (PING, PONG, CLOSE):
            wire = Wire(FIN | bit | opcode)
            yield from rule(
                f"G11 bit {bit:#x} on opcode {opcode}", "7692 6.1", wire, error="RSV", rsv=RSV1 | RSV2 | RSV3
            )
    yield from rule(
        "9.1 a claimed bit on the first fragment",
        "7692 6.1",
        Wire(RSV1 | TEXT, b"\xc3"),
        Wire(FIN | CONTINUATION, b"\xff"),
        Wire(FIN | TEXT, b"plain"),
        events=[message(TEXT, b"\xc3\xff", RSV1), message(TEXT, b"plain")],
        frames=[fragment(TEXT, b"\xc3", RSV1), message(CONTINUATION, b"\xff"), message(TEXT, b"plain")],
        rsv=RSV1,
    )
    yield from rule(
        "9.1 a message without the claimed bit is checked",
        "8.1",
        Wire(FIN | RSV1 | TEXT, b"\xff"),
        Wire(FIN | TEXT, b"\xff"),
        events=[message(TEXT, b"\xff", RSV1)],
        error="UTF8",
        rsv=RSV1,
    )
    yield from rule(
        "5.8 a claimed data opcode", "5.8", Wire(FIN | 3, b"\xff"), events=[message(3, b"\xff")], opcodes=1 << 3
    )
    yield from rule(
        "5.8 a claimed data opcode in fragments",
        "5.8",
        Wire(7, b"\xff"),
        Wire(FIN | CONTINUATION, b"\xfe"),
        events=[message(7, b"\xff\xfe")],
        frames=[fragment(7, b"\xff"), message(CONTINUATION, b"\xfe")],
        opcodes=1 << 7,
    )
    yield from rule(
        "5.8 a claimed control opcode", "5.8", Wire(FIN | 15, b"\xff"), events=[message(15, b"\xff")], opcodes=1 << 15
    )
    yield from rule(
        "5.8 a claimed control opcode in fragments", "5.5", Wire(15), error="CONTROL_FRAGMENT", opcodes=1 << 15
    )
    yield from rule("D2 not the claimed opcode", "5.2", Wire(FIN | 4), error="OPCODE", opcodes=1 << 3)


VECTORS = [
    *examples(),
    *data_frames(),
    *wrong_headers(),
    *wrong_order(),
    *limits(),
    *closes(),
    *texts(),
    *claims(),
]
