"""Does a message hold what it was made of, and nothing that couldn't be sent?"""

from __future__ import annotations

import array
import copy
import pickle
import typing
from typing import TYPE_CHECKING, Any

import pytest

from wspy.codes import Opcode
from wspy.frames import Frame, fragments
from wspy.messages import (
    BinaryMessage,
    Message,
    ReceivedBinary,
    ReceivedText,
    TextMessage,
    create_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable

LONE_SURROGATE = "\ud800"


def received(kind: type[Message], payload: Any) -> Message:
    """Return a message as a loop makes it."""
    message = kind()  # type: ignore[call-arg]
    message.payload = payload
    return message


MESSAGES = [
    TextMessage("höllo"),
    BinaryMessage(b"hello"),
    BinaryMessage(bytearray(b"hello")),
    Message(Opcode.TEXT, "höllo"),
    Message(3, b"hello"),
    received(ReceivedText, "höllo"),
    received(ReceivedBinary, b"hello"),
]


# ---- what they hold ----


def test_a_text_message_holds_a_str() -> None:
    message = TextMessage("höllo")
    assert (message.opcode, message.payload, message.text, message.bytes) == (1, "höllo", "höllo", "höllo".encode())
    assert (message.is_text, message.is_binary) == (True, False)
    assert (str(message), bytes(message), len(message)) == ("höllo", "höllo".encode(), 5)


def test_a_binary_message_holds_bytes() -> None:
    message = BinaryMessage(b"h\xc3\xb6llo")
    assert (message.opcode, message.payload, message.text) == (2, b"h\xc3\xb6llo", "höllo")
    assert (message.is_text, message.is_binary) == (False, True)
    assert (str(message), bytes(message), len(message)) == ("höllo", message.payload, 6)


def test_a_message_of_an_extension_is_neither() -> None:
    message = Message(3, bytearray(b"hello"))
    assert (message.is_text, message.is_binary, message.text, message.bytes) == (False, False, "hello", b"hello")


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_are_held_as_they_are(kind: type[bytes | bytearray]) -> None:
    payload = kind(b"hello")
    assert BinaryMessage(payload).payload is payload


def test_other_buffers_are_copied() -> None:
    numbers = array.array("H", [1, 2, 3])
    message = BinaryMessage(memoryview(numbers))
    numbers[0] = 9
    assert message.payload == array.array("H", [1, 2, 3]).tobytes()
    assert BinaryMessage(memoryview(b"hello")[::2]).payload == b"hlo"


def test_what_is_sent_does_not_change_with_the_payload() -> None:
    payload = bytearray(b"hello")
    sent = BinaryMessage(payload).bytes
    payload[0] = 0
    assert sent == b"hello"


@pytest.mark.parametrize("payload", [b"hello", None, 5])
def test_a_text_message_takes_nothing_but_a_str(payload: Any) -> None:
    with pytest.raises(TypeError, match="str"):
        TextMessage(payload)


@pytest.mark.parametrize("payload", ["hello", None, 5, [1, 2, 3]])
def test_a_binary_message_takes_nothing_but_buffers(payload: Any) -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        BinaryMessage(payload)


@pytest.mark.parametrize("opcode", [-1, 0, *range(8, 17)])
def test_section_5_6_messages_have_no_opcode_of_another_kind(opcode: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 7"):
        Message(opcode, b"hello")


@pytest.mark.parametrize(("opcode", "payload"), [(1, b"hello"), (2, "hello"), (3, "hello"), (3, None)])
def test_the_payload_goes_with_the_opcode(opcode: int, payload: Any) -> None:
    with pytest.raises(TypeError, match=f"opcode {opcode}"):
        Message(opcode, payload)


def test_what_is_no_utf8_has_no_text() -> None:
    with pytest.raises(UnicodeDecodeError):
        _ = BinaryMessage(b"\xff").text


def test_a_lone_surrogate_has_no_bytes() -> None:
    message = TextMessage(LONE_SURROGATE)
    assert message.text == LONE_SURROGATE
    with pytest.raises(UnicodeEncodeError):
        _ = message.bytes


# ---- as values ----


def test_messages_are_true_even_if_empty() -> None:
    assert TextMessage("")
    assert len(TextMessage("")) == 0


def test_messages_are_equal_if_opcode_and_payload_are() -> None:
    assert TextMessage("hello") == Message(1, "hello") == received(ReceivedText, "hello")
    assert BinaryMessage(b"hello") == BinaryMessage(bytearray(b"hello"))
    assert TextMessage("hello") != BinaryMessage(b"hello")
    assert TextMessage("hello") != TextMessage("hallo")
    assert TextMessage("hello") != "hello"


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_messages_can_be_changed_and_so_have_no_hash(message: Message) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(message)
    with pytest.raises(AttributeError):
        message.rsv1 = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda message: pickle.loads(pickle.dumps(message))])  # noqa: S301
def test_messages_can_be_copied_and_pickled(message: Message, twin: Callable[[Message], Message]) -> None:
    copied = twin(message)
    assert copied == message
    assert copied is not message
    assert repr(copied) == repr(message)


class Note(TextMessage):
    """A message with more to it than its payload."""

    def __init__(self, title: str, text: str) -> None:
        super().__init__(f"{title}: {text}")
        self.title = title


def test_messages_of_users_can_be_copied_and_pickled() -> None:
    note = Note("title", "text")
    for copied in (copy.copy(note), pickle.loads(pickle.dumps(note))):  # noqa: S301
        assert type(copied) is Note
        assert (copied.title, copied.payload) == ("title", "title: text")


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (TextMessage("hello\n"), r"<TextMessage 6 'hello\n'>"),
        (BinaryMessage(b""), "<BinaryMessage 0 b''>"),
        (Message(3, b"x" * 30), f"<Message 30 b'{'x' * 30}'>"),
        (received(ReceivedText, "x" * 31), f"<TextMessage 31 '{'x' * 30}'...>"),
        (received(ReceivedBinary, b"hello"), "<BinaryMessage 5 b'hello'>"),
    ],
)
def test_a_repr_has_one_line_of_what_matters(message: Message, text: str) -> None:
    assert repr(message) == text


@pytest.mark.parametrize("kind", [Message, TextMessage, BinaryMessage])
def test_the_types_of_attributes_can_be_asked_for(kind: type[Message]) -> None:
    assert "payload" in typing.get_type_hints(kind)


# ---- what can be sent ----


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_a_message_is_sent_as_it_is(message: Message) -> None:
    assert create_message(message, 0xF8) is message


@pytest.mark.parametrize(
    ("sendable", "message"),
    [
        ("hello", TextMessage("hello")),
        (b"hello", BinaryMessage(b"hello")),
        (bytearray(b"hello"), BinaryMessage(b"hello")),
        (memoryview(b"hello"), BinaryMessage(b"hello")),
        (array.array("B", b"hello"), BinaryMessage(b"hello")),
    ],
)
def test_a_str_becomes_text_and_a_buffer_binary(sendable: Any, message: Message) -> None:
    created = create_message(sendable)
    assert type(created) is type(message)
    assert created == message


@pytest.mark.parametrize("sendable", [None, 5, ["hello"], {"type": "hello"}])
def test_nothing_else_can_be_sent(sendable: Any) -> None:
    kind = type(sendable).__name__
    with pytest.raises(TypeError, match=f"a message is a str, a buffer, a TextMessage or a BinaryMessage, not {kind}$"):
        create_message(sendable)


# ---- fragments, §5.4 ----


@pytest.mark.parametrize(
    ("payload", "size", "expected"),
    [
        (b"", 3, [(0x81, b"")]),
        (b"ab", 3, [(0x81, b"ab")]),
        (b"abc", 3, [(0x81, b"abc")]),
        (b"abcd", 3, [(0x01, b"abc"), (0x80, b"d")]),
        (b"abcdef", 3, [(0x01, b"abc"), (0x80, b"def")]),
        (b"abc", 1, [(0x01, b"a"), (0x00, b"b"), (0x80, b"c")]),
    ],
)
def test_the_first_fragment_has_the_opcode_and_the_last_is_final(
    payload: bytes, size: int, expected: list[tuple[int, bytes]]
) -> None:
    assert list(fragments(Opcode.TEXT, payload, size)) == expected


def test_fragments_may_be_long() -> None:
    assert [(first, len(part)) for first, part in fragments(3, b"x" * 65_662, 65_536)] == [(0x03, 65_536), (0x80, 126)]


@pytest.mark.parametrize("size", [0, -1])
def test_fragments_are_not_empty(size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list(fragments(Opcode.TEXT, b"hello", size))


@pytest.mark.parametrize("opcode", [3, 7])
def test_an_opcode_that_no_extension_has_claimed_is_not_sent(opcode: int) -> None:
    message = Message(opcode, b"")
    with pytest.raises(ValueError, match="reserved"):
        create_message(message)
    assert create_message(message, 1 << opcode) is message
    with pytest.raises(ValueError, match="reserved"):
        create_message(message, 0xF8 ^ 1 << opcode)


@pytest.mark.parametrize("opcode", [0, 8, 9, 10, 15, 99, -1])
def test_a_message_that_was_made_a_frame_of_another_kind_is_not_sent(opcode: int) -> None:
    message = Message(2, b"")
    message.opcode = opcode
    with pytest.raises(ValueError, match="send_ping or close" if opcode > 7 else "opcode"):
        create_message(message, 0xFFFF)


# ---- as frames ----


@pytest.mark.parametrize("message", [TextMessage("höllo"), BinaryMessage(b"hello"), Message(3, bytearray(b"hello"))])
def test_a_message_is_a_frame(message: Message) -> None:
    assert message.frame() == Frame(message.opcode, message.bytes)
    frame = message.frame(mask=True)
    assert len(frame.masking_key) == 4
    frame.masking_key = b""
    assert frame == message.frame()


def test_a_message_is_fragments() -> None:
    assert TextMessage("abcde").fragment(2) == [
        Frame(1, b"ab", final=False),
        Frame(0, b"cd", final=False),
        Frame(0, b"e"),
    ]
    assert BinaryMessage(b"").fragment(2) == [Frame(2, b"")]
    with pytest.raises(ValueError, match="at least 1"):
        BinaryMessage(b"").fragment(0)


def test_each_masked_frame_has_a_key_of_its_own() -> None:
    frames = [
        *BinaryMessage(bytes(500)).fragment(1, mask=True),
        *(TextMessage("x").frame(mask=True) for _ in range(500)),
    ]
    assert len({frame.masking_key for frame in frames}) > 997
    assert all(frame.masking_key and len(frame.masking_key) == 4 for frame in frames)
