"""Extensions of the protocol, RFC 6455 §9: what one is, and how the two ends agree on some.

No I/O. A server that reads ``Sec-WebSocket-Extensions`` calls ``agree``, a client calls ``offer`` and then ``confirm``;
both get a ``Chain``, which transforms what is sent and what arrives on one connection.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, TypeAlias

from ._core import lib
from .headers import is_token, parse_extensions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .codes import Role
    from .frames import Frame

__all__ = ["Chain", "Extension", "Parameters", "agree", "confirm", "offer"]

Parameters: TypeAlias = list[tuple[str, str | None]]
"""Names and values in their order; None for a parameter without a value."""

Value: TypeAlias = bool | int | str

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,8}")
_RESERVED: Final = frozenset([3, 4, 5, 6, 7, 11, 12, 13, 14, 15])


class Extension:
    """One extension, as an endpoint speaks it with all of its peers. Subclass it, with an ``Instance`` inside.

    What a subclass sets:

    Attributes:
        names: by which it is negotiated, the preferred one first.
        rsv1: whether it claims this reserved bit, as are ``rsv2`` and ``rsv3``.
        rsv2: see ``rsv1``.
        rsv3: see ``rsv1``.
        opcodes: the reserved opcodes that it claims: 3 to 7 for data, 11 to 15 for control frames.
        per_message: whether its instances transform messages, before they are fragmented and after they are whole;
            otherwise single frames.
        defaults: its parameters, by name. A bool stands for a parameter without a value, a number for one in decimal
            digits, a str for any token.

    Args:
        parameters: values that this endpoint wants instead of the defaults.

    Raises:
        TypeError: there is no such parameter, or its value is of another type.
        ValueError: the class claims what can't be claimed.
    """

    names: ClassVar[tuple[str, ...]] = ()
    rsv1: ClassVar[bool] = False
    rsv2: ClassVar[bool] = False
    rsv3: ClassVar[bool] = False
    opcodes: ClassVar[tuple[int, ...]] = ()
    per_message: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Value]] = {}

    class Instance:
        """An extension on one connection.

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
            """Return what is sent instead of a frame, or of a whole message as one frame."""
            return frame

        def onrecv(self, frame: Frame) -> Frame:
            """Return what has arrived in a frame, or in a whole message as one frame.

            Raises:
                ProtocolError: the peer broke the rules of the extension.
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
        self.parameters: dict[str, Value] = {**self.defaults, **parameters}

    def _check_class(self) -> None:
        if not self.names or not all(map(is_token, (*self.names, *self.defaults))):
            raise ValueError("the names of an extension and of its parameters are tokens, and it has one at least")
        if not _RESERVED.issuperset(self.opcodes):
            raise ValueError("an extension can claim the opcodes 3 to 7 and 11 to 15 (RFC 6455 §5.2)")

    @property
    def rsv(self) -> int:
        """The reserved bits that it claims, as in the first byte of a frame: 0x40, 0x20 and 0x10."""
        return lib.WSPY_RSV1 * self.rsv1 | lib.WSPY_RSV2 * self.rsv2 | lib.WSPY_RSV3 * self.rsv3

    # ---- negotiation, which a subclass may do in its own way ----

    def offers(self) -> list[Parameters]:
        """Return what a client asks for, the preferred parameters first; by default what differs from the defaults."""
        return [self.written({n: v for n, v in self.parameters.items() if v != self.defaults[n]})]

    def accept(self, offered: Parameters) -> Parameters | None:
        """Return a server's answer to an offer, None to decline it; by default the offer, if it can be read."""
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


class Chain:
    """The extensions of one connection, in the order in which they transform what is sent. Not thread-safe.

    Args:
        agreed: each extension with its instance.

    Attributes:
        rsv: the reserved bits that they have claimed: 0x40, 0x20 and 0x10.
        opcodes: the reserved opcodes that they have claimed, bit n for opcode n.
        instances: those of the extensions, in order.
        per_message: those that transform whole messages.
        per_frame: those that transform single frames.
    """

    __slots__ = ("instances", "opcodes", "per_frame", "per_message", "rsv")

    def __init__(self, agreed: Iterable[tuple[Extension, Extension.Instance]] = ()) -> None:
        pairs = list(agreed)
        self.instances = [instance for _, instance in pairs]
        self.per_message = [instance for extension, instance in pairs if extension.per_message]
        self.per_frame = [instance for extension, instance in pairs if not extension.per_message]
        self.rsv = self.opcodes = 0
        for extension, _ in pairs:
            self.rsv |= extension.rsv
            self.opcodes |= sum(1 << opcode for opcode in extension.opcodes)


class _Agreement(NamedTuple):
    name: str
    extension: Extension
    offered: Parameters
    answer: Parameters


def agree(extensions: Iterable[Extension], offered: str | None, role: Role) -> tuple[str, Chain]:
    """Choose from a client's offers, in its order, what a server speaks too (RFC 6455 §9.1).

    An extension is agreed upon once, and not at all beside one that has its name, a reserved bit or an opcode of it.

    Args:
        extensions: that the server speaks.
        offered: the value of the request's field; None if it has none.
        role: of the instances.

    Returns:
        the value of the response's field, "" for none, and the chain.

    Raises:
        ValueError: the value is malformed.
    """
    agreed: list[_Agreement] = []
    known = list(extensions) if offered else []
    for name, parameters in parse_extensions(offered) if offered and known else ():
        for extension in known:
            if name not in extension.names or any(_conflict(extension, other.extension) for other in agreed):
                continue
            answer = extension.accept(parameters)
            if answer is not None:
                agreed.append(_Agreement(name, extension, parameters, answer))
                break
    chain = Chain((each.extension, _instance(each, role)) for each in agreed)
    return ", ".join(_written(each.name, each.answer) for each in agreed), chain


def offer(extensions: Iterable[Extension]) -> str:
    """Return the value of the field for a client's request, "" for none.

    Raises:
        ValueError: two of the extensions have a name in common.
    """
    known = list(extensions)
    names = [name for extension in known for name in extension.names]
    if len(set(names)) != len(names):
        raise ValueError("extensions: two have the same name")
    return ", ".join(_written(name, each) for one in known for name in one.names for each in one.offers())


def confirm(extensions: Iterable[Extension], answered: str | None, role: Role) -> Chain:
    """Check a server's answer, and return the chain.

    Raises:
        ValueError: the answer is malformed, or names what was not offered or can't go together (RFC 6455 §4.1, §9.1).
    """
    agreed: list[_Agreement] = []
    known = {name: extension for extension in extensions for name in extension.names}
    for name, parameters in parse_extensions(answered) if answered is not None else ():
        extension = known.get(name)
        if extension is None:
            raise ValueError("an extension was not offered")
        if any(_conflict(extension, other.extension) for other in agreed):
            raise ValueError("two extensions can't go together")
        agreed.append(_Agreement(name, extension, extension.offers()[0], parameters))
    return Chain((each.extension, _instance(each, role)) for each in agreed)


def _conflict(one: Extension, other: Extension) -> bool:
    return bool(
        one is other or one.rsv & other.rsv or {*one.opcodes} & {*other.opcodes} or {*one.names} & {*other.names}
    )


def _instance(agreement: _Agreement, role: Role) -> Extension.Instance:
    extension = agreement.extension
    return extension.Instance(role, extension.agreed(role, agreement.offered, agreement.answer))


def _written(name: str, parameters: Parameters) -> str:
    return "; ".join([name, *(key if value is None else f"{key}={value}" for key, value in parameters)])
