"""What do the header fields of HTTP authentication say, and what do Basic and Digest make of a password?

The grammar of RFC 9110 §11, and the computations of RFC 7617 and RFC 7616, for both roles.
"""

from __future__ import annotations

import hashlib
import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from typing import TYPE_CHECKING, Final, NamedTuple

from .headers import TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ALGORITHMS",
    "Challenge",
    "Digest",
    "as_octets",
    "basic_token",
    "checked_text",
    "parse_challenges",
    "quoted",
    "split_basic",
]

_PARAMETER = re.compile(rf'({TOKEN}++)[ \t]*+=[ \t]*+(?:({TOKEN}++)|"((?:[^"\\]|\\.)*+)")')
_TOKEN68 = re.compile(r"[0-9A-Za-z._~+/-]++=*+(?=[ \t]*+(?:,|\Z))")
_SCHEME = re.compile(rf"({TOKEN}++)(?: ++|(?=[ \t]*+(?:,|\Z)))")
_NOTHING = re.compile(r"[ \t,]*+")
_END = re.compile(r"[ \t]*+(?:,[ \t,]*+|\Z)")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_SPECIAL = re.compile(r'["\\]')
# RFC 7617 §2, RFC 7613 §3.1
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Challenge(NamedTuple):
    """What a server asks for, or a client's credentials: both are written in the same way (RFC 9110 §11.3, §11.4).

    Args:
        scheme: in lower case.
        token: of a scheme that has one, such as Basic; else "".
        parameters: by name in lower case, unquoted.
    """

    scheme: str
    token: str
    parameters: dict[str, str]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.scheme}>"  # what follows may be a password


def parse_challenges(value: str) -> list[Challenge]:
    """Parse ``WWW-Authenticate``, or ``Authorization``, which has one of them; RFC 9110 §11.6.

    Raises:
        ValueError: the grammar is broken, a parameter stands twice, or there is nothing.
    """
    found: list[Challenge] = []
    position = _after(_NOTHING, value, 0)
    while position < len(value):
        parameter = _PARAMETER.match(value, position)
        if parameter and found and not found[-1].token:
            _add(found[-1], *parameter.groups())
            position = _after(_END, value, parameter.end())
            continue
        scheme = _SCHEME.match(value, position)
        if scheme is None:
            raise ValueError("a challenge or credentials are malformed")
        token = _TOKEN68.match(value, scheme.end()) if scheme[0][-1] == " " else None
        found.append(Challenge(scheme[1].lower(), token[0] if token else "", {}))
        position = _after(_END, value, token.end()) if token else _after(_NOTHING, value, scheme.end())
    if not found:
        raise ValueError("there is no challenge, and there are no credentials")
    return found


def _after(pattern: re.Pattern[str], value: str, position: int) -> int:
    match = pattern.match(value, position)
    if match is None:
        raise ValueError("a parameter of a challenge or of credentials is malformed")
    return match.end()


def _add(challenge: Challenge, name: str, token: str | None, text: str | None) -> None:
    name = name.lower()
    if name in challenge.parameters:
        raise ValueError("a parameter of a challenge or of credentials stands twice")  # RFC 9110 §11.2
    challenge.parameters[name] = token if token is not None else _ESCAPED.sub(r"\1", text or "")


def quoted(text: str) -> str:
    """Return a quoted string, RFC 9110 §5.6.4, of text as in a ``Headers``: each character stands for an octet."""
    return '"' + _SPECIAL.sub(r"\\\g<0>", text) + '"'


def as_octets(text: str) -> str:
    """Return text of one's own as in a ``Headers``: each character stands for an octet of its UTF-8."""
    return text.encode().decode("latin-1")


def checked_text(what: str, text: str) -> str:
    """Return a user name or a password.

    Raises:
        TypeError: it isn't a str.
        ValueError: it has control characters (RFC 7617 §2) or a lone surrogate. It is not repeated.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} must be str, not {type(text).__name__}")
    if _CONTROLS.search(text):
        raise ValueError(f"{what} has control characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} has a lone surrogate") from None
    return text


# ---- Basic, RFC 7617 ----


def basic_token(username: str, password: str) -> str:
    """Return the credentials of Basic, in UTF-8.

    Raises:
        ValueError: the user name has a colon, which ends it.
    """
    if ":" in username:
        raise ValueError("Basic can't send a user name with a colon (RFC 7617 §2)")
    return b2a_base64(f"{username}:{password}".encode(), newline=False).decode()


def split_basic(token: str) -> tuple[str, str]:
    """Return the user name and the password of Basic's credentials.

    Raises:
        ValueError: they aren't base64 as RFC 4648 §4 writes it, not UTF-8, have no colon, or have control characters.
    """
    try:
        data = a2b_base64(token, strict_mode=True)
    except Base64Error:
        raise ValueError("the credentials are not base64") from None
    if b2a_base64(data, newline=False).decode() != token:  # RFC 4648 §3.5: bits that mean nothing are zero
        raise ValueError("the credentials are not base64")
    try:
        username, colon, password = data.decode().partition(":")
    except UnicodeDecodeError:
        raise ValueError("the credentials are not UTF-8") from None
    if not colon:
        raise ValueError("the credentials have no colon")
    return checked_text("the user name", username), checked_text("the password", password)


# ---- Digest, RFC 7616 ----


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha512_256(data: bytes) -> str:
    return hashlib.new("sha512_256", data).hexdigest()


ALGORITHMS: Final[dict[str, Callable[[bytes], str]]] = {"sha-256": _sha256, "md5": _md5}
"""The hash functions of Digest by name in lower case, the strongest one first (RFC 7616 §6.1)."""
if "sha512_256" in hashlib.algorithms_available:
    ALGORITHMS["sha-512-256"] = _sha512_256


class Digest:
    """How Digest computes, with one algorithm; RFC 7616 §3.4.

    Args:
        algorithm: such as ``"SHA-256"`` or ``"MD5-sess"``, in any case.

    Attributes:
        hash: the hash function: octets in, hexadecimal digits out.
        has_session: whether ``cnonce`` and ``nonce`` are part of the key.

    Raises:
        ValueError: it is unknown.
    """

    __slots__ = ("has_session", "hash")

    def __init__(self, algorithm: str) -> None:
        name = algorithm.lower()
        self.has_session = name.endswith("-sess")
        function = ALGORITHMS.get(name.removesuffix("-sess"))
        if function is None:
            raise ValueError("an unknown algorithm of Digest")
        self.hash = function

    def response(  # noqa: PLR0913 -- what it is computed of
        self,
        username: str,
        realm: str,
        password: str,
        *,
        nonce: str,
        method: str,
        uri: str,
        qop: str = "auth",
        nc: str = "",
        cnonce: str = "",
    ) -> str:
        """Return the value of ``response``; with an empty ``qop`` that of RFC 2069, which many old servers ask for.

        All arguments are text as in a ``Headers``: see ``as_octets`` for a user name and a password.
        """
        key = self._hash(username, realm, password)
        if self.has_session:
            key = self._hash(key, nonce, cnonce)
        request = self._hash(method, uri)
        if not qop:
            return self._hash(key, nonce, request)
        return self._hash(key, nonce, nc, cnonce, qop, request)

    def _hash(self, *parts: str) -> str:
        return self.hash(":".join(parts).encode("latin-1"))
