"""Messages as values: what a handler receives and what it sends (RFC 6455 §5.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, cast

from .codes import Opcode
from .frames import Frame, new_key, received_frame

if TYPE_CHECKING:
    import builtins

__all__ = [
    "BinaryMessage",
    "Message",
    "ReceivedBinary",
    "ReceivedText",
    "Sendable",
    "TextMessage",
    "create_message",
    "received_message",
]

_TEXT = int(Opcode.TEXT)
Payload: TypeAlias = str | bytes | bytearray


class Message:
    """A whole message. It holds its payload by reference; a plain value, not thread-safe while it is being changed.

    Args:
        opcode: ``Opcode.TEXT``, ``Opcode.BINARY``, or one from 3 to 7 that an extension has claimed.
        payload: a str where the opcode is text, else bytes or a bytearray.

    Raises:
        TypeError: the payload doesn't go with the opcode.
        ValueError: messages don't have this opcode (RFC 6455 §5.6).
    """

    __slots__ = ("opcode", "payload")

    opcode: int
    payload: Payload

    def __init__(self, opcode: int, payload: Payload) -> None:
        if not Opcode.TEXT <= opcode < Opcode.CLOSE:
            raise ValueError(f"a message has an opcode from 1 to 7, not {opcode}")
        if not isinstance(payload, str if opcode == Opcode.TEXT else bytes | bytearray):
            raise TypeError(f"the payload of opcode {opcode} can't be of type {type(payload).__name__}")
        self.opcode = opcode
        self.payload = payload

    @property
    def is_text(self) -> bool:
        """Whether this is a text message."""
        return self.opcode == Opcode.TEXT

    @property
    def is_binary(self) -> bool:
        """Whether this is a binary message."""
        return self.opcode == Opcode.BINARY

    @property
    def text(self) -> str:
        """The payload as a str.

        Raises:
            UnicodeDecodeError: it is binary and not UTF-8.
        """
        return self.payload if isinstance(self.payload, str) else self.payload.decode()

    @property
    def bytes(self) -> builtins.bytes:
        """The payload as bytes, as on the wire.

        Raises:
            UnicodeEncodeError: a text has a lone surrogate, which UTF-8 can't hold (RFC 3629 §3).
        """
        return self.payload.encode() if isinstance(self.payload, str) else bytes(self.payload)

    def frame(self, mask: bool | None = None) -> Frame:
        """Return the message as one frame.

        Args:
            mask: give it a masking key, as the frames of a client have (RFC 6455 §5.3); None leaves it to who sends it.

        Raises:
            UnicodeEncodeError: see ``bytes``.
        """
        frame = received_frame(self.opcode, self.bytes)
        if mask is not None:
            frame.mask = mask
        if mask:
            frame.masking_key = new_key()
        return frame

    def fragment(self, size: int, mask: bool | None = None) -> list[Frame]:
        """Return the message as the frames of a fragmented one, RFC 6455 §5.4.

        Args:
            size: bytes of payload in each frame but the last, at least 1.
            mask: give each a masking key of its own; see ``frame``.

        Raises:
            UnicodeEncodeError: see ``bytes``.
            ValueError: ``size`` is below 1.
        """
        return self.frame().fragment(size, mask)

    def __str__(self) -> str:
        return self.text

    def __bytes__(self) -> builtins.bytes:
        return self.bytes

    def __len__(self) -> int:
        return len(self.payload)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return self.opcode == other.opcode and self.payload == other.payload

    __hash__ = None  # type: ignore[assignment]  # messages can be changed

    def __getstate__(self) -> object:
        attributes, slots = cast("tuple[object, dict[str, object]]", super().__getstate__())
        if isinstance(self, TextMessage | BinaryMessage):
            del slots["opcode"]  # their class has it, and a copy couldn't set it
        return attributes, slots

    def __repr__(self) -> str:
        start = self.payload[:30]
        more = "..." if len(self.payload) > len(start) else ""
        return f"<{type(self).__name__} {len(self.payload)} {start!r}{more}>"


class TextMessage(Message):
    """A text message; its payload is a str."""

    __slots__ = ()

    opcode = Opcode.TEXT
    payload: str

    def __init__(self, payload: str) -> None:
        if not isinstance(payload, str):
            raise TypeError(f"the payload of a TextMessage is a str, not {type(payload).__name__}")
        self.payload = payload


class BinaryMessage(Message):
    """A binary message; its payload is bytes or a bytearray, whatever other buffer it is made from."""

    __slots__ = ()

    opcode = Opcode.BINARY
    payload: bytes | bytearray

    def __init__(self, payload: bytes | bytearray | memoryview) -> None:
        # memoryview() refuses what bytes() would make zeros or nonsense of: a number, a list, a str
        try:
            self.payload = payload if isinstance(payload, bytes | bytearray) else bytes(memoryview(payload))
        except TypeError:
            raise TypeError(f"the payload of a BinaryMessage is bytes-like, not {type(payload).__name__}") from None


class ReceivedText(TextMessage):
    """A TextMessage that a loop made: without a call of __init__, which would cost more than all the rest."""

    __slots__ = ()
    __init__ = object.__init__

    def __reduce__(self) -> tuple[type[TextMessage], tuple[str]]:
        return TextMessage, (self.payload,)


class ReceivedBinary(BinaryMessage):
    """A BinaryMessage that a loop made."""

    __slots__ = ()
    __init__ = object.__init__

    def __reduce__(self) -> tuple[type[BinaryMessage], tuple[builtins.bytes | bytearray]]:
        return BinaryMessage, (self.payload,)


# What people see in reprs and logs is what they have to know.
ReceivedText.__name__ = ReceivedText.__qualname__ = "TextMessage"
ReceivedBinary.__name__ = ReceivedBinary.__qualname__ = "BinaryMessage"


def received_message(opcode: int, payload: builtins.bytes) -> Message:
    """Return a text or a binary message whose payload was checked already."""
    message: Message
    if opcode == _TEXT:
        message = ReceivedText()
        message.payload = payload.decode()
    else:
        message = ReceivedBinary()
        message.payload = payload
    return message


Sendable: TypeAlias = Message | str | bytes | bytearray | memoryview


def create_message(message: Sendable, opcodes: int = 0) -> Message:
    """Return what can be sent as a message: a str becomes text, a buffer becomes binary.

    Args:
        message: what is to be sent.
        opcodes: the reserved opcodes that extensions have claimed, bit n for opcode n (RFC 6455 §9).

    Raises:
        TypeError: it is none of these.
        ValueError: its opcode is that of a control frame, or one that no extension has claimed.
    """
    if isinstance(message, Message):
        _check_opcode(message.opcode, opcodes)
        return message
    if isinstance(message, str):
        return TextMessage(message)
    try:
        return BinaryMessage(message)
    except TypeError:
        kind = type(message).__name__
        raise TypeError(f"a message is a str, a buffer, a TextMessage or a BinaryMessage, not {kind}") from None


def _check_opcode(opcode: int, claimed: int) -> None:
    if opcode in {Opcode.TEXT, Opcode.BINARY}:
        return
    if Opcode.TEXT <= opcode < Opcode.CLOSE and claimed >> opcode & 1:
        return
    if opcode >= Opcode.CLOSE:
        raise ValueError(f"opcode {opcode} is that of a control frame: use send_ping or close (RFC 6455 §5.5)")
    raise ValueError(f"opcode {opcode} is reserved, and no extension has claimed it (RFC 6455 §5.2)")
