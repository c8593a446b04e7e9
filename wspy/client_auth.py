"""How does a client answer a server that asks who it is? Basic and Digest, RFC 9110 §11, 7617 and 7616."""

from __future__ import annotations

import re
from os import urandom
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from .auth import ALGORITHMS, Challenge, Digest, as_octets, basic_token, checked_text, parse_challenges, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ClientAuth"]

_ASCII: Final = re.compile(r"[ -~]*")


class ClientAuth:
    """A user name and a password, for one origin; answers its challenges once.

    A second answer is given only if the server says that nothing but the nonce of the first was wrong (``stale``,
    RFC 7616 §3.3): whoever sends wrong credentials again and again locks an account. What the origin was told for one
    resource it is told for the next one without being asked, by ``again``.

    Args:
        username: the user name.
        password: the password.

    Raises:
        TypeError: one of them isn't a str.
        ValueError: one of them has control characters or a lone surrogate.
    """

    __slots__ = ("_answered", "_challenge", "_counts", "_password", "_username")

    def __init__(self, username: str, password: str) -> None:
        self._username = checked_text("the user name", username)
        self._password = checked_text("the password", password)
        self._answered: set[str] = set()  # the schemes; and "stale"
        self._challenge: Challenge | None = None  # the last one that was answered
        self._counts: dict[str, int] = {}  # how often a nonce was used, RFC 7616 §3.4

    def answer(self, values: Iterable[str], method: str, resource: str) -> str | None:
        """Return the value of ``Authorization`` that answers a 401; None if there is nothing (more) to be said.

        The strongest scheme that the server offers is chosen (RFC 7616 §3.7, §6.1).

        Args:
            values: those of ``WWW-Authenticate``. A malformed one counts as absent.
            method: of the request.
            resource: what was asked for: path and query.

        Raises:
            ValueError: the user name has a colon, and the server wants Basic.
        """
        challenges = [challenge for value in values for challenge in _parsed(value)]
        known = [challenge for challenge in challenges if _strength(challenge) is not None]
        for challenge in sorted(known, key=lambda challenge: _strength(challenge) or 0):
            if not self._may_answer(challenge):
                return None
            self._challenge = challenge
            return self.again(method, resource)
        return None

    def again(self, method: str, resource: str) -> str | None:
        """Return the value of ``Authorization`` for another resource of the same origin, or for the same one again.

        Where no challenge says otherwise, one is for all of an origin (RFC 7617 §2.2, RFC 7616 §3.3 on ``domain``).

        Args:
            method: of the request.
            resource: what is asked for: path and query.

        Returns:
            What the last challenge is answered with; None if none was answered.

        Raises:
            ValueError: the user name has a colon, and the server wants Basic.
        """
        if self._challenge is None:
            return None
        if self._challenge.scheme == "basic":
            return "Basic " + basic_token(self._username, self._password)
        return "Digest " + self._digest(self._challenge.parameters, method, resource)

    def _may_answer(self, challenge: Challenge) -> bool:
        if challenge.scheme not in self._answered:
            self._answered.add(challenge.scheme)
            return len(self._answered) == 1
        is_stale = challenge.parameters.get("stale", "").lower() == "true" and "stale" not in self._answered
        self._answered.add("stale")
        return is_stale

    def _digest(self, asked: dict[str, str], method: str, resource: str) -> str:
        """Return the credentials of Digest, RFC 7616 §3.4."""
        digest = Digest(asked.get("algorithm", "MD5"))
        username, realm, nonce = as_octets(self._username), asked["realm"], asked["nonce"]
        qop = "auth" if "qop" in asked else ""
        count = self._counts[nonce] = self._counts.get(nonce, 0) + 1
        nc, cnonce = f"{count:08x}", urandom(16).hex()
        response = digest.response(
            username,
            realm,
            as_octets(self._password),
            nonce=nonce,
            method=method,
            uri=resource,
            qop=qop,
            nc=nc,
            cnonce=cnonce,
        )
        fields = [*self._named(asked, digest), f"realm={quoted(realm)}", f"nonce={quoted(nonce)}"]
        fields += [f"uri={quoted(resource)}", f'response="{response}"']
        if "algorithm" in asked:
            fields.append(f"algorithm={asked['algorithm']}")
        if "opaque" in asked:
            fields.append(f"opaque={quoted(asked['opaque'])}")
        if qop or digest.has_session:
            fields.append(f'cnonce="{cnonce}"')
        if qop:
            fields += ["qop=auth", f"nc={nc}"]
        return ", ".join(fields)

    def _named(self, asked: dict[str, str], digest: Digest) -> list[str]:
        """Say who this is, RFC 7616 §3.4 and §3.4.4."""
        username = as_octets(self._username)
        if asked.get("userhash", "").lower() == "true":
            hashed = digest.hash(f"{username}:{asked['realm']}".encode("latin-1"))
            return [f'username="{hashed}"', "userhash=true"]
        if not _ASCII.fullmatch(self._username) and asked.get("charset", "").upper() == "UTF-8":
            return ["username*=UTF-8''" + quote(self._username, safe="")]
        return [f"username={quoted(username)}"]

    def __repr__(self) -> str:
        return "<ClientAuth>"


def _parsed(value: str) -> list[Challenge]:
    try:
        return parse_challenges(value)
    except ValueError:
        return []


def _strength(challenge: Challenge) -> int | None:
    """Return the place of a challenge among those that can be answered, the strongest one first; None for others."""
    asked = challenge.parameters
    if challenge.scheme == "basic":
        return len(ALGORITHMS) if "realm" in asked else None
    if challenge.scheme != "digest" or not {"realm", "nonce"} <= asked.keys():
        return None
    if "qop" in asked and "auth" not in {word.strip() for word in asked["qop"].lower().split(",")}:
        return None
    algorithm = asked.get("algorithm", "MD5").lower().removesuffix("-sess")
    return list(ALGORITHMS).index(algorithm) if algorithm in ALGORITHMS else None
