"""The grammar of header fields: names, values, tokens, lists, hosts, extension parameters.

Input was received as bytes and is judged as latin-1 text, so that every octet has a character (RFC 9110 §5.5).
What breaks a grammar raises ``ValueError`` with a fixed sentence that never repeats the input. Each function takes
time linear in its argument: lists are split and each piece is matched once, without backtracking.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import AddressValueError, IPv6Address
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "FIELD_VALUE",
    "TOKEN",
    "Headers",
    "is_token",
    "parse_extensions",
    "parse_host",
    "parse_token_list",
]

# Pattern text for one character of a token (RFC 9110 §5.6.2) and one of a field value with its whitespace (§5.5).
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]"  # noqa: S105 - a pattern
FIELD_VALUE = r"[\t -~\x80-\xff]"

_TOKEN = re.compile(rf"{TOKEN}++")
_FIELD_VALUE = re.compile(rf"{FIELD_VALUE}*+")
# RFC 6455 §9.1: a quoted value must be a token once its quoted pairs are undone, so no other character can occur.
_QUOTED_TOKEN = re.compile(rf'"(?:\\?{TOKEN})+"')
# RFC 3986 §3.2.2 and §3.2.3: reg-name, IPv4address among them, or IP-literal; IPvFuture was never given a meaning.
_HOST = re.compile(
    r"((?:[0-9A-Za-z._~!$&'()*+,;=-]++|%[0-9A-Fa-f]{2})+|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{0,5}))?",
)
_OWS = " \t"
_SECRETS = frozenset(["authorization", "cookie", "proxy-authorization", "set-cookie"])


def is_token(text: str) -> bool:
    """Tell whether this is a token, RFC 9110 §5.6.2."""
    return _TOKEN.fullmatch(text) is not None


def _elements(value: str) -> list[str]:
    """Split a list, RFC 9110 §5.6.1.2: a recipient must ignore empty elements."""
    return [element for piece in value.split(",") if (element := piece.strip(_OWS))]


def parse_token_list(value: str) -> list[str]:
    """Parse ``#token``, such as the value of ``Connection``, RFC 9110 §5.6.1.

    Empty elements are ignored and don't count: the result is empty if there is nothing else.

    Raises:
        ValueError: an element isn't a token.
    """
    elements = _elements(value)
    # None of them is empty: all are tokens if together they have no other character.
    if elements and not _TOKEN.fullmatch("".join(elements)):
        raise ValueError("an element of the list is not a token")
    return elements


def parse_extensions(value: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """Parse ``Sec-WebSocket-Extensions``, RFC 6455 §9.1: names in order, each with its parameters in order.

    A parameter without a value has None. Quoted values come unquoted. Whitespace may stand around every separator:
    RFC 6455 uses the implied whitespace of RFC 2616 §2.1.

    Raises:
        ValueError: the grammar is broken, or no extension is named.
    """
    extensions = [_extension(element) for element in _elements(value)]
    if not extensions:
        raise ValueError("the list of extensions is empty")
    return extensions


def _extension(element: str) -> tuple[str, list[tuple[str, str | None]]]:
    # Valid quoted values hold neither "," nor ";", so a piece that was cut out of one is seen to be malformed.
    name, *parameters = element.split(";")
    return _require_token(name), [_parameter(parameter) for parameter in parameters]


def _parameter(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    if not equals:
        return _require_token(name), None
    value = value.strip(_OWS)
    if _QUOTED_TOKEN.fullmatch(value):
        return _require_token(name), value[1:-1].replace("\\", "")
    return _require_token(name), _require_token(value)


def _require_token(text: str) -> str:
    text = text.strip(_OWS)
    if not _TOKEN.fullmatch(text):
        raise ValueError("a name or a value is not a token")
    return text


def parse_host(value: str) -> tuple[str, int | None]:
    """Parse ``uri-host [":" port]``, as in ``Host`` and in the authority of a target, RFC 9110 §4.2.1 and §7.2.

    Returns:
        The host in lower case (an IPv6 address in brackets and in its shortest form), and the port, or None if it
        is absent or empty.

    Raises:
        ValueError: the grammar is broken, the host is empty, or the port is not within 1 to 65535.
    """
    match = _HOST.fullmatch(value)
    if match is None:
        raise ValueError("the host is malformed")
    host, digits = match.groups()
    host = _shortest_ipv6(host) if host[0] == "[" else host.lower()
    if not digits:
        return host, None
    port = int(digits)
    if not 1 <= port <= 65535:
        raise ValueError("the port of the host is out of range")
    return host, port


def _shortest_ipv6(literal: str) -> str:
    try:
        address = IPv6Address(literal[1:-1])
    except AddressValueError:
        raise ValueError("the IPv6 address of the host is malformed") from None
    # RFC 5952 §5, which str() follows from CPython 3.13 on
    return f"[{address}]" if address.ipv4_mapped is None else f"[::ffff:{address.ipv4_mapped}]"


class Headers:
    """Header fields in their order, found by name without regard to case; repeated fields are kept.

    ``headers[name]`` joins the values of a repeated field with ``", "`` (RFC 9110 §5.3). Iteration yields each name
    once, as first spelt, and ``len()`` counts them; ``items()`` yields every field line. Two are equal if the same
    names have the same values. Values are text whose characters are the octets on the wire (latin-1).

    Args:
        fields: a mapping, another ``Headers``, or (name, value) pairs.

    Raises:
        TypeError: they are none of these, or a name or a value is not a str.
        ValueError: a name is not a token, or a value has a control character or one beyond latin-1.
    """

    __slots__ = ("_fields", "_values")

    def __init__(self, fields: Headers | Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None:
        self._fields: list[tuple[str, str]] = []
        self._values: dict[str, str] = {}
        pairs: Iterable[tuple[str, str]] = fields.items() if isinstance(fields, Headers | Mapping) else fields
        for pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:  # type: ignore[redundant-expr]
                raise TypeError("headers are a mapping, or pairs of a name and a value")
            self.add(*pair)

    @classmethod
    def from_parsed(cls, fields: list[tuple[str, str]]) -> Headers:
        """Take over a list of fields that a parser has already checked."""
        headers = cls.__new__(cls)
        values = {name.lower(): value for name, value in fields}
        if len(values) != len(fields):
            values = _join_repeated(fields)
        headers._fields, headers._values = fields, values  # noqa: SLF001 - the class's own
        return headers

    def add(self, name: str, value: str) -> None:
        """Append a field line.

        Raises:
            TypeError: as for the class.
            ValueError: as for the class.
        """
        try:
            is_name, is_value = _TOKEN.fullmatch(name), _FIELD_VALUE.fullmatch(value)
        except TypeError:
            raise TypeError("name and value of a header must be str: use str() on what is not") from None
        if not is_name:
            raise ValueError("a header name must be a token, RFC 9110 §5.1")
        if not is_value:
            raise ValueError("a header value must be latin-1 without control characters, RFC 9110 §5.5")
        self._fields.append((name, value))
        key = name.lower()
        self._values[key] = f"{self._values[key]}, {value}" if key in self._values else value

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    @overload
    def get(self, name: str, default: None = None) -> str | None: ...

    @overload
    def get(self, name: str, default: str) -> str: ...

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return what ``headers[name]`` is, or the default if there is no such field."""
        return self._values.get(name.lower(), default)

    def get_all(self, name: str) -> list[str]:
        """Return the value of each field line of this name, in order."""
        key = name.lower()
        return [value for other, value in self._fields if other.lower() == key]

    def keys(self) -> Iterator[str]:
        """Return an iterator over the names: each once, as first spelt."""
        return iter(self)

    def items(self) -> Iterator[tuple[str, str]]:
        """Return an iterator over name and value of every field line."""
        return iter(self._fields)

    @property
    def repeated(self) -> bool:
        """Whether some field occurs more than once."""
        return len(self._fields) != len(self._values)

    def encode(self) -> bytes:
        """Return the field lines as on the wire, without the empty line that ends a head."""
        return "".join([f"{name}: {value}\r\n" for name, value in self._fields]).encode("latin-1")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter({name.lower(): name for name, _ in reversed(self._fields)}[key] for key in self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Headers):
            return NotImplemented
        return self._values == other._values

    __hash__ = None  # type: ignore[assignment] # it can change

    def __repr__(self) -> str:
        # Credentials must not reach a log by way of a repr.
        shown = [(name, "..." if name.lower() in _SECRETS else value) for name, value in self._fields]
        return f"Headers({shown!r})"


def _join_repeated(fields: list[tuple[str, str]]) -> dict[str, str]:
    values: dict[str, list[str]] = {}
    for name, value in fields:
        values.setdefault(name.lower(), []).append(value)
    return {name: ", ".join(parts) for name, parts in values.items()}
