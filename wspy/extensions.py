"""Extensions of the protocol, RFC 6455 §9: what one is, and how the two ends agree on some.

No I/O. A server that reads ``Sec-WebSocket-Extensions`` calls ``agree``, a client calls ``offer`` and then ``confirm``;
both get an ``Agreement``, which makes a ``Chain`` for each connection: that transforms what is sent and what arrives.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, TypeAlias

from .codes import CloseCode, Opcode
from .errors import ProtocolError
from .frames import FIN, MAX_CONTROL, fragments, received_frame
from .headers import is_token, parse_extensions
from .limits import checked_seconds

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from .codes import Role
    from .frames import Frame

__all__ = [
    "Agreement",
    "Chain",
    "Extension",
    "Parameters",
    "agree",
    "checked_extensions",
    "checked_idle_seconds",
    "claimed_opcodes",
    "confirm",
    "offer",
    "too_big",
]

Parameters: TypeAlias = list[tuple[str, str | None]]
"""Names and values in their order; None for a parameter without a value."""

Value: TypeAlias = bool | int | str

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,8}")
# Whoever looks for idle connections has to have other things to do.
_LEAST_IDLE_SECONDS: Final = 0.01
_RESERVED: Final = frozenset([3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
# Reserved bits as in the first byte of a frame, RFC 6455 §5.2.
_RSV1, _RSV2, _RSV3, _RSV = 0x40, 0x20, 0x10, 0x70
# Continuation, text and binary: claimed, they tell the core that every message is for an extension to read.
_DATA: Final = 0x07


def too_big() -> ProtocolError:
    """Return the exception for a message that is longer than its limit."""
    message = "the message is larger than max_size (RFC 6455 §10.4)"
    return ProtocolError(CloseCode.MESSAGE_TOO_BIG, message, limit="max_size")


class Extension:
    """One extension, as an endpoint speaks it with all of its peers. Subclass it, with an ``Instance`` inside.

    It transforms what others send, and sends nothing itself. What has an opcode that it claims is sent by
    ``client.send(Message(3, ...))`` and ``client.send_frame(Frame(11, ...))`` of a server, and by the same methods of a
    ``Connection``; what arrives is for ``onmessage``, or for a server's ``onframe`` and ``handle_control_frame`` of a
    ``Connection``.

    What a subclass sets:

    Attributes:
        names: by which it is negotiated, the preferred one first.
        rsv1: whether it claims this reserved bit, as are ``rsv2`` and ``rsv3``.
        rsv2: see ``rsv1``.
        rsv3: see ``rsv1``.
        opcodes: the reserved opcodes that it claims: 3 to 7 for data, 11 to 15 for control frames.
        per_message: whether its instances transform messages, before they are fragmented and after they are whole;
            otherwise single frames.
        only_marked: whether a message that arrives without its reserved bits and opcodes is none of its business, and
            goes past its ``onrecv``: for most of them that is the quickest way. Single frames never do.
        idle_seconds: after so long, to twice as long, without anything that was sent, ``onidle`` is called; None for
            never. A server looks by itself, a ``websocket`` and a ``Connection`` while somebody receives, and whenever
            ``do_async_recv`` is called.
        required: whether a client goes away with 1010 if the server declines it (RFC 6455 §7.4.1); may be set on
            an object, too.
        defaults: its parameters, by name. A bool stands for a parameter without a value, a number for one in decimal
            digits, a str for any token.

    Args:
        parameters: values that this endpoint wants instead of the defaults: a client asks for them; a server takes what
            it is asked for, unless ``accept`` is overridden.

    Raises:
        TypeError: there is no such parameter, or its value is of another type; or ``idle_seconds`` is no number.
        ValueError: a value can't be written: a number has 1 to 9 digits, a str is a token (RFC 6455 §9.1); or the class
            claims what can't be claimed.
    """

    names: ClassVar[tuple[str, ...]] = ()
    rsv1: ClassVar[bool] = False
    rsv2: ClassVar[bool] = False
    rsv3: ClassVar[bool] = False
    opcodes: ClassVar[tuple[int, ...]] = ()
    per_message: ClassVar[bool] = True
    only_marked: ClassVar[bool] = False
    required: bool = False
    idle_seconds: float | None = None
    defaults: ClassVar[Mapping[str, Value]] = {}

    class Instance:
        """An extension on one connection, made when the first message is sent or arrives.

        ``onsend`` and ``onidle`` are called by one thread at a time, and so is ``onrecv``, which may run beside them.

        Args:
            role: which end this is.
            parameters: what was agreed upon: a value for each of ``defaults``.

        Attributes:
            max_size: limit of a message after ``onrecv``, in bytes; None for no limit. Set by the connection.
        """

        max_size: int | None = None

        def __init__(self, role: Role, parameters: Mapping[str, Value]) -> None:
            self.role = role
            self.parameters = parameters

        def onsend(self, frame: Frame) -> Frame:
            """Return what is sent instead of a frame, or of a whole message as one frame; or of a control frame.

            Control frames come here if this extension has claimed their opcode, and stay what they are: of that opcode,
            with 125 bytes at most (RFC 6455 §5.5). A message becomes a message. A frame stays the first one, a later
            one, the last one that it is: its ``final`` is copied.

            The frame may be changed and returned. A new one that breaks a rule by itself, as a text does that is no
            UTF-8 any more, is made with ``unchecked=True``. Reserved bits that others have claimed stay as they are,
            whatever they are in what is returned.

            What this raises is raised to who sends, and closes the connection with 1011; so does what can't be sent.
            ``frame.compress`` is what was said when it was sent.
            """
            return frame

        def onidle(self) -> None:
            """Give back what the next ``onsend`` can make anew: nothing was sent for a while."""

        def memory_used(self) -> int:
            """Return the bytes that it holds for what follows, as windows are: see ``server.memory``.

            It is asked by any thread, while others may be in every other method.
            """
            return 0

        def onrecv(self, frame: Frame) -> Frame:
            """Return what has arrived in a frame, a whole message as one frame, or a control frame; see ``onsend``.

            Raises:
                ProtocolError: the peer broke the rules of the extension, and is told the code. Every other exception
                    is a fault of this side, which closes with 1011.
            """
            return frame

    def __init__(self, **parameters: Value) -> None:
        self._check_class()
        for name, value in parameters.items():
            if name not in self.defaults:
                raise TypeError(f"{type(self).__name__} has no parameter {name}")
            if type(value) is not type(self.defaults[name]):
                raise TypeError(
                    f"{name} must be of type {type(self.defaults[name]).__name__}, not {type(value).__name__}"
                )
            _check_value(name, value)
        self.parameters: dict[str, Value] = {**self.defaults, **parameters}

    def _check_class(self) -> None:
        if not self.names or not all(map(is_token, (*self.names, *self.defaults))):
            raise ValueError("the names of an extension and of its parameters are tokens, and it has one at least")
        if not _RESERVED.issuperset(self.opcodes):
            raise ValueError("an extension can claim the opcodes 3 to 7 and 11 to 15 (RFC 6455 §5.2)")
        checked_idle_seconds(self.idle_seconds)

    @property
    def rsv(self) -> int:
        """The reserved bits that it claims, as in the first byte of a frame: 0x40, 0x20 and 0x10."""
        return _RSV1 * self.rsv1 | _RSV2 * self.rsv2 | _RSV3 * self.rsv3

    # ---- negotiation, which a subclass may do in its own way ----

    def offers(self) -> list[Parameters]:
        """Return what a client asks for, the preferred parameters first; by default what differs from the defaults."""
        return [self.written({n: v for n, v in self.parameters.items() if v != self.defaults[n]})]

    def accept(self, offered: Parameters) -> Parameters | None:
        """Return a server's answer to an offer, None to decline it; by default the offer, if it can be read.

        What this end wants is in ``self.parameters``; ``read`` says what the offer wants, ``written`` makes an answer.
        A server keeps the answer for the next request with the same offers.
        """
        try:
            self.read(offered)
        except ValueError:
            return None
        return offered

    def agreed(self, role: Role, offered: Parameters, answer: Parameters) -> Mapping[str, Value]:  # noqa: ARG002
        """Return the parameters of an instance: by default the defaults with what the server's answer says.

        Args:
            role: which end this is.
            offered: what the client asked for: of its own side, the first of ``offers``.
            answer: what the server said.

        Raises:
            ValueError: the answer is none to what a client has offered.
        """
        return self.read(answer)

    def sharing(self, role: Role, parameters: Mapping[str, Value]) -> Hashable:  # noqa: ARG002 -- for subclasses
        """Return what instances have in common that transform the same frame to the same bytes.

        A broadcast is transformed once for all of them. None, as by default: each has to do it by itself.
        """
        return None

    def read(self, parameters: Parameters) -> dict[str, Value]:
        """Return the values that parameters have, and the defaults of those that are absent.

        Raises:
            ValueError: one is unknown, repeated, or not of its type.
        """
        values = dict(self.defaults)
        names = [name for name, _ in parameters]
        if len(set(names)) != len(names):
            raise ValueError("a parameter is repeated")
        for name, text in parameters:
            if name not in values:
                raise ValueError("a parameter is unknown")
            values[name] = _read(self.defaults[name], text)
        return values

    @staticmethod
    def written(values: Mapping[str, Value]) -> Parameters:
        """Return parameters as they are written; False stands for none."""
        return [(name, None if value is True else str(value)) for name, value in values.items() if value is not False]


def checked_idle_seconds(value: float | None) -> float | None:
    """Return what ``Extension.idle_seconds`` may be.

    Raises:
        TypeError: it is neither a number nor None.
        ValueError: it is too short to be looked at so often.
    """
    return checked_seconds("idle_seconds", value, at_least=_LEAST_IDLE_SECONDS)


def _check_value(name: str, value: Value) -> None:
    """Check what is going to be written without quotes, and read as what it is."""
    if isinstance(value, str):
        if not is_token(value):
            raise ValueError(f"{name} must be a token (RFC 6455 §9.1)")
    elif not _NUMBER.fullmatch(str(int(value))):
        raise ValueError(f"{name} must be a number of 1 to 9 digits")


def _read(default: Value, text: str | None) -> Value:
    if isinstance(default, bool):
        if text is not None:
            raise ValueError("a parameter has a value and must have none")
        return True
    if text is None:
        raise ValueError("a parameter has no value")
    if isinstance(default, str):
        return text
    if not _NUMBER.fullmatch(text):
        raise ValueError("a parameter is no number")
    return int(text)


class _Part(NamedTuple):
    """One extension of an agreement."""

    name: str
    extension: Extension
    offered: Parameters
    answer: Parameters


class Agreement:
    """The extensions that two ends have agreed upon: the same for all connections with this offer and this answer.

    Immutable, and true if there are any.

    Args:
        parts: of the agreement, in the order in which they transform what is sent.
        role: which end this is.
        offered: see below.

    Attributes:
        offered: the value of the request's field, as a server got it.
        answer: the value of the response's field, "" for none.
        rsv: the reserved bits that they have claimed: 0x40, 0x20 and 0x10.
        opcodes: the opcodes that they have claimed, bit n for opcode n: reserved ones, and 0 to 2 if all messages are
            for them to read.
        has_frames: whether one of them transforms single frames.
        reads_all: whether one of them reads every message, and not only those with its bits and opcodes.
        sharing: what connections have in common that send the same for the same message; None if they don't.

    Raises:
        ValueError: an answer is none to what a client has offered.
    """

    __slots__ = ("_parts", "_role", "answer", "has_frames", "offered", "opcodes", "reads_all", "rsv", "sharing")

    def __init__(self, parts: Iterable[_Part], role: Role, offered: str = "") -> None:
        self.offered = offered.encode("latin-1")
        listed = list(parts)
        self._role = role
        self._parts = [(part.extension, part.extension.agreed(role, part.offered, part.answer)) for part in listed]
        self.answer = ", ".join(_written(part.name, part.answer) for part in listed)
        extensions = [part.extension for part in listed]
        self.has_frames = not all(extension.per_message for extension in extensions)
        self.rsv = 0
        for extension in extensions:
            self.rsv |= extension.rsv
        self.opcodes = claimed_opcodes(extensions)
        self.reads_all = self.has_frames or not all(extension.only_marked for extension in extensions)
        if self.reads_all:
            self.opcodes |= _DATA
        shared = [(id(extension), extension.sharing(role, values)) for extension, values in self._parts]
        self.sharing: Hashable = None if any(key is None for _, key in shared) else tuple(shared)

    def __bool__(self) -> bool:
        return bool(self._parts)

    def __contains__(self, extension: Extension) -> bool:
        return any(extension is agreed for agreed, _ in self._parts)

    def chain(self, max_size: int | None = None) -> Chain:
        """Return the extensions for one connection.

        Args:
            max_size: of a message that was received and transformed, in bytes; None for no limit.
        """
        return Chain(self._parts, self._role, max_size)


class _Step(NamedTuple):
    """What becomes of messages, or of frames, by one extension."""

    instance: Extension.Instance
    rsv: int  # that it has claimed
    marks: tuple[int, ...] | None  # opcodes of what it reads, beside what has these bits; None if it reads all


class Chain:
    """The extensions of one connection, in the order in which they transform what is sent.

    One thread may send while another one receives, but no two may do the same.

    Args:
        parts: each extension with the parameters of its instance.
        role: which end this is.
        max_size: see ``Agreement.chain``.

    Attributes:
        instances: those of the extensions, in order.
    """

    __slots__ = (
        "_first_only",
        "_max_size",
        "_parts",
        "_per_frame",
        "_per_message",
        "_size",
        "instances",
    )

    def __init__(self, parts: list[tuple[Extension, Mapping[str, Value]]], role: Role, max_size: int | None) -> None:
        self.instances: list[Extension.Instance] = []
        self._per_message: list[_Step] = []
        self._per_frame: list[_Step] = []
        self._max_size = max_size
        self._size = 0  # of the message under way, as far as it was received
        self._first_only = 0
        self._parts = parts  # of all connections with this agreement
        for extension, parameters in parts:
            instance = extension.Instance(role, parameters)
            instance.max_size = max_size
            self.instances.append(instance)
            is_choosy = extension.only_marked and extension.per_message
            step = _Step(instance, extension.rsv, extension.opcodes if is_choosy else None)
            (self._per_message if extension.per_message else self._per_frame).append(step)
            self._first_only |= extension.rsv if extension.per_message else 0

    def send(self, frame: Frame, fragment_size: int | None = None) -> list[tuple[int, bytes]]:
        """Return what to send instead of a message: first byte and payload of each frame.

        Args:
            frame: the whole message; ``frame.compress`` says what was asked for.
            fragment_size: bytes of payload of each frame but the last, after the message is transformed; None for one.

        Raises:
            ValueError: an extension has made something that can't be sent.
            Exception: whatever an extension raises: what follows could not be understood, so the connection ends.
        """
        frame = self.send_message(frame)
        if fragment_size is None and not self._per_frame:  # as most are
            return [(frame.first_byte(), frame.payload)]
        frames = [frame] if fragment_size is None else _fragments(frame, fragment_size)
        frames = [self.send_frame(each) for each in frames]
        return [(each.first_byte(), each.payload) for each in frames]

    def send_message(self, frame: Frame) -> Frame:
        """Return what is sent instead of a message, before it is split and others see its frames."""
        frame = self._sent(self._per_message, frame)
        if not frame.final or not self._is_data(frame.opcode):
            raise ValueError("an extension has made of a message what is none: copy its opcode (RFC 6455 §5.6)")
        return frame

    def send_frame(self, frame: Frame) -> Frame:
        """Return what is sent instead of a single frame, when those that transform messages have seen it."""
        was_final, was_first = frame.final, frame.opcode != Opcode.CONTINUATION
        frame = self._sent(self._per_frame, frame)
        is_in_place = self._is_data(frame.opcode) if was_first else frame.opcode == Opcode.CONTINUATION
        if frame.final != was_final or not is_in_place:
            raise ValueError("an extension has moved a frame in its message: copy opcode and final (RFC 6455 §5.4)")
        return frame

    def send_control(self, frame: Frame) -> Frame:
        """Return what is sent instead of a control frame: another one, if an extension has claimed its opcode."""
        instance = self._claimant(frame.opcode)
        if instance is None:
            return frame
        opcode = frame.opcode
        frame = instance.onsend(frame)
        if frame.first_byte() != FIN | opcode or len(frame.payload) > MAX_CONTROL:
            raise ValueError("an extension has made of a control frame what is none of that opcode (RFC 6455 §5.5)")
        return frame

    def _is_data(self, opcode: int) -> bool:
        if opcode in {Opcode.TEXT, Opcode.BINARY}:
            return True
        return opcode < Opcode.CLOSE and self._claimant(opcode) is not None

    def _claimant(self, opcode: int) -> Extension.Instance | None:
        for (extension, _), instance in zip(self._parts, self.instances, strict=True):
            if opcode in extension.opcodes:
                return instance
        return None

    def idle_times(self) -> set[float]:
        """Return the different ``idle_seconds`` of these extensions."""
        return {extension.idle_seconds for extension, _ in self._parts if extension.idle_seconds is not None}

    def idling(self, seconds: float) -> list[Extension.Instance]:
        """Return the instances of extensions with these ``idle_seconds``."""
        pairs = zip(self._parts, self.instances, strict=True)
        return [instance for (extension, _), instance in pairs if extension.idle_seconds == seconds]

    @staticmethod
    def _sent(steps: list[_Step], frame: Frame) -> Frame:
        compress = frame.compress
        for instance, rsv, _ in steps:
            before = frame.first_byte()
            frame = _keep_bits(instance.onsend(frame), before, rsv)
            frame.compress = compress
        return frame

    @staticmethod
    def _received(steps: list[_Step], frame: Frame) -> Frame:
        for instance, rsv, marks in reversed(steps):
            before = frame.first_byte()
            if marks is None or before & rsv or frame.opcode in marks:
                frame = _keep_bits(instance.onrecv(frame), before, rsv)
        return frame

    def receive_frame(self, frame: Frame) -> Frame:
        """Return what a frame says that has arrived: a part of a message, or a control frame that was claimed.

        Raises:
            ProtocolError: the peer broke the rules of an extension.
        """
        if frame.opcode >= Opcode.CLOSE:
            # whose it is knows what it says: RFC 6455, or who has claimed it
            instance = self._claimant(frame.opcode)
            return frame if instance is None else instance.onrecv(frame)
        if frame.opcode == Opcode.CONTINUATION and frame.first_byte() & self._first_only:
            raise ProtocolError(
                CloseCode.PROTOCOL_ERROR, "a reserved bit of the whole message is set behind its start (RFC 7692 §6.1)"
            )
        frame = self._received(self._per_frame, frame)
        if self._per_frame:
            self._count(frame)
        return frame

    def _count(self, frame: Frame) -> None:
        """Hold all frames of a message together to the limit: of those that arrived the core has done so."""
        size = len(frame.payload)
        self._size = self._size + size if frame.opcode == Opcode.CONTINUATION else size
        if self._max_size is not None and self._size > self._max_size:
            raise too_big()

    def receive_message(self, frame: Frame) -> Frame:
        """Return what a whole message says, as one frame.

        Raises:
            ProtocolError: the peer broke the rules of an extension, or the message is over ``max_size``.
        """
        frame = self._received(self._per_message, frame)
        if self._max_size is not None and len(frame.payload) > self._max_size:
            raise too_big()
        return frame


def _keep_bits(frame: Frame, before: int, own: int) -> Frame:
    """Return what an extension has made, with the reserved bits of others as they were (RFC 6455 §9).

    Args:
        frame: that it has made.
        before: the first byte of that it was given.
        own: the reserved bits that it has claimed.

    Raises:
        ValueError: it has set the bit of another one, or of none.
    """
    after = frame.first_byte()
    if after & ~before & ~own & _RSV:
        raise ValueError("an extension has set a reserved bit that it has not claimed (RFC 6455 §5.2)")
    if not before & ~own & ~after & _RSV:
        return frame
    return received_frame(frame.opcode, frame.payload, final=frame.final, rsv=after & own | before & ~own & _RSV)


def _fragments(frame: Frame, size: int) -> list[Frame]:
    """Split a message, RFC 6455 §5.4; its reserved bits are those of the first frame (RFC 7692 §6.1)."""
    rsv = frame.first_byte() & _RSV
    frames = []
    for first, part in fragments(frame.opcode, frame.payload, size):
        frames.append(received_frame(first & 0x0F, part, final=bool(first & FIN), rsv=rsv))
        frames[-1].compress = frame.compress
        rsv = 0
    return frames


def checked_extensions(extensions: Iterable[Extension | type[Extension]]) -> tuple[Extension, ...]:
    """Return extensions, with an instance for each class.

    Raises:
        TypeError: one is none, or they are no collection.
        ValueError: two of them have a name in common; or see ``Extension``.
    """
    try:
        listed = list(extensions)
    except TypeError:
        raise TypeError(f"extensions must be a list, such as [DeflateMessage], not {extensions!r}") from None
    known = []
    for extension in listed:
        one = extension() if isinstance(extension, type) and issubclass(extension, Extension) else extension
        if not isinstance(one, Extension):
            raise TypeError(f"extensions: {one!r} is neither an Extension nor a subclass of it")
        known.append(one)
    names = [name for extension in known for name in extension.names]
    if len(set(names)) != len(names):
        raise ValueError("extensions: two have the same name")
    return tuple(known)


def claimed_opcodes(extensions: Iterable[Extension]) -> int:
    """Return the opcodes that any of them claims, bit n for opcode n."""
    claimed = 0
    for extension in extensions:
        for opcode in extension.opcodes:
            claimed |= 1 << opcode
    return claimed


def agree(extensions: Iterable[Extension], offered: str | None, role: Role) -> Agreement:
    """Choose from a client's offers, in its order, what a server speaks too (RFC 6455 §9.1).

    An extension is agreed upon once, and not at all beside one that has its name, a reserved bit or an opcode of it.

    Args:
        extensions: that the server speaks.
        offered: the value of the request's field; None if it has none.
        role: of the instances.

    Raises:
        ValueError: the value is malformed.
    """
    agreed: list[_Part] = []
    known = list(extensions) if offered else []
    for name, parameters in parse_extensions(offered) if offered and known else ():
        for extension in known:
            if name not in extension.names or any(_conflict(extension, other.extension) for other in agreed):
                continue
            answer = extension.accept(parameters)
            if answer is not None:
                agreed.append(_Part(name, extension, parameters, answer))
                break
    return Agreement(agreed, role, offered or "")


def offer(extensions: Iterable[Extension]) -> str:
    """Return the value of the field for a client's request, "" for none."""
    return ", ".join(_written(name, each) for one in extensions for name in one.names for each in one.offers())


def confirm(extensions: Iterable[Extension], answered: str | None, role: Role) -> Agreement:
    """Check a server's answer.

    Raises:
        ValueError: the answer is malformed, or names what was not offered or can't go together (RFC 6455 §4.1, §9.1).
    """
    agreed: list[_Part] = []
    known = {name: extension for extension in extensions for name in extension.names}
    for name, parameters in parse_extensions(answered) if answered is not None else ():
        extension = known.get(name)
        if extension is None:
            raise ValueError("an extension was not offered")
        if any(_conflict(extension, other.extension) for other in agreed):
            raise ValueError("two extensions can't go together")
        agreed.append(_Part(name, extension, extension.offers()[0], parameters))
    return Agreement(agreed, role)


def _conflict(one: Extension, other: Extension) -> bool:
    return bool(
        one is other or one.rsv & other.rsv or {*one.opcodes} & {*other.opcodes} or {*one.names} & {*other.names}
    )


def _written(name: str, parameters: Parameters) -> str:
    # what an extension of the user's says goes into a head
    if not all(is_token(text) for pair in parameters for text in pair if text is not None):
        raise ValueError(f"an extension has a parameter for {name} that is no token (RFC 6455 §9.1)")
    return "; ".join([name, *(key if value is None else f"{key}={value}" for key, value in parameters)])
