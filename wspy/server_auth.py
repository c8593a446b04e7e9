"""Who is let in by a server, and how are they asked? Basic and Digest, RFC 9110 §11, 7617 and 7616."""

from __future__ import annotations

import hmac
import re
from abc import ABC, abstractmethod
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from inspect import signature
from os import PathLike, urandom
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast
from urllib.parse import unquote_to_bytes

from .auth import ALGORITHMS, Challenge, Digest, as_octets, checked_text, parse_challenges, quoted, split_basic
from .calls import is_async
from .errors import HandshakeError
from .limits import checked_count, checked_seconds
from .nonces import Nonces

if TYPE_CHECKING:
    from .http11 import Request

__all__ = [
    "Auth",
    "BasicAuth",
    "Credentials",
    "DigestAuth",
    "Policies",
    "StaleError",
    "WrongCredentialsError",
    "authenticate",
    "checked_policies",
]

Credentials: TypeAlias = tuple[str, str] | Iterable[tuple[str, str]] | Mapping[str, str]
Check: TypeAlias = Callable[[str, str], object]

_COUNT: Final = re.compile(r"[0-9A-Fa-f]{8}")
_MAC_SIZE: Final = 16
_RANDOM_SIZE: Final = 8
_TIME_SIZE: Final = 6
# What a client must say, RFC 7616 §3.4: a qop of the old kind would leave out what protects from replays.
_REQUIRED: Final = ("realm", "nonce", "uri", "response", "qop", "nc", "cnonce")
_MAX_NONCES: Final = 1 << 20
_CLOCK_SECONDS: Final = 5.0


class Auth(ABC):
    """A way to ask who a client is. Subclass it for another scheme.

    Thread-safe: one object may serve several servers.

    Args:
        realm: what the user name and the password are for, shown to people.
        delay: seconds after which wrong credentials are answered, so that guessing takes its time; not those that are
            absent, or whose nonce is too old. Others are served meanwhile, and ``open_timeout`` goes on: at its end the
            answer is given, whatever the delay. Who guesses may do so on many connections at once: each takes a
            descriptor for so long. A ``websocket`` that doesn't block answers at once.

    Attributes:
        scheme: its name in lower case, such as ``"basic"``.
        realm: as given.
        delay: as given.
        failures: how many credentials were refused.
        may_block: whether ``username`` may take its time, as it does in a function of yours. ``Server`` calls it in a
            thread then; ``AsyncServer`` and ``websocket.accept`` let everybody wait.

    Raises:
        TypeError: the realm isn't a str, or the delay no number.
        ValueError: the realm has control characters, or the delay is below 0 or infinite.
    """

    scheme = ""
    may_block = True

    def __init__(self, realm: str, *, delay: float = 0.0) -> None:
        self.realm = checked_text("the realm", realm)
        self.delay = _checked_delay(delay)
        self.failures = 0
        self._counting = Lock()

    @abstractmethod
    def challenges(self, now: float, *, stale: bool = False) -> list[str]:
        """Return values for ``WWW-Authenticate``, RFC 9110 §11.6.1.

        Args:
            now: seconds since the epoch.
            stale: whether nothing but the nonce was wrong.
        """

    @abstractmethod
    def username(self, credentials: Challenge, method: str, target: str, now: float) -> str | None:
        """Return who has sent these credentials; None if they are wrong.

        Args:
            credentials: of this scheme.
            method: of the request.
            target: of the request, as it was sent.
            now: seconds since the epoch.

        Raises:
            StaleError: they are right, but for their nonce.
            HandshakeError: they are malformed beyond what RFC 9110 §15.5.2 calls wrong: with status 400.
        """

    def onfailure(self, request: Request) -> None:  # noqa: B027 -- for subclasses that want it
        """Do something when credentials were refused, such as to count them by ``request.remote_address``.

        It is called where ``username`` is: who waits here lets others wait, see ``may_block``.
        """

    def refused(self, request: Request) -> None:
        """Count credentials that were refused, and tell ``onfailure``. Thread-safe."""
        with self._counting:
            self.failures += 1
        self.onfailure(request)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.realm!r}>"


class StaleError(Exception):
    """The credentials are right, but their nonce is too old, or was used already."""


class WrongCredentialsError(HandshakeError):
    """A client isn't who it says.

    Attributes:
        delay: seconds after which it is to be told, see ``Auth``.
    """

    delay = 0.0


class BasicAuth(Auth):
    """User name and password as they are, RFC 7617: for TLS only.

    How long an answer takes tells nothing about which part was wrong.

    Args:
        credentials: a (user name, password) pair, several of them, a mapping, or a function of both that returns
            whether they are right.
        realm: see ``Auth``.
        delay: see ``Auth``.

    Raises:
        TypeError: the credentials are something else, or not str, or the function is ``async def``; see ``Auth``, too.
        ValueError: there are none, a user name has a colon, or one has control characters; see ``Auth``, too.
    """

    scheme = "basic"

    def __init__(self, credentials: Credentials | Check, realm: str = "WebSocket", *, delay: float = 0.0) -> None:
        super().__init__(realm, delay=delay)
        self._key = urandom(32)
        self._check = _checked_function(credentials, "a user name and a password", 2)
        self.may_block = self._check is not None
        pairs = [] if callable(credentials) else _pairs(credentials)
        if any(":" in username for username, _ in pairs):
            raise ValueError("a user name for Basic has no colon (RFC 7617 §2)")
        self._usernames = {self._digest(*pair): pair[0] for pair in pairs}

    def challenges(self, now: float, *, stale: bool = False) -> list[str]:  # noqa: ARG002 -- Digest's
        """Return the challenge of RFC 7617 §2 and §2.1."""
        return [f'Basic realm={quoted(as_octets(self.realm))}, charset="UTF-8"']

    def username(self, credentials: Challenge, method: str, target: str, now: float) -> str | None:  # noqa: ARG002
        """Return who has sent these credentials; None if they are wrong."""
        try:
            username, password = split_basic(credentials.token)
        except ValueError:
            return None
        if self._check is not None:
            return username if _checked_answer(self._check(username, password)) else None
        # Who doesn't know the key can't choose which digests are alike: looking one up tells nothing by its time.
        return self._usernames.get(self._digest(username, password))

    def _digest(self, username: str, password: str) -> bytes:
        return blake2b(f"{username}:{password}".encode(), key=self._key).digest()


class DigestAuth(Auth):
    """A digest of the password instead of itself, RFC 7616. Each use of a nonce counts once.

    Args:
        credentials: a (user name, password) pair, several of them, a mapping, or a function that returns the password
            of a user name, or None.
        realm: see ``Auth``.
        algorithms: of ``"SHA-256"``, ``"SHA-512-256"`` and ``"MD5"``, what is offered first first. Browsers know
            SHA-256; MD5 is for old clients.
        secret: what nonces are signed with, at least 16 bytes; the same one in several processes lets each of them
            accept the nonces of the others, so it needs ``memory`` or ``replayed``. None for one of this object's own:
            it serves processes that are forked from this one, too.
        lifetime: seconds for which a nonce can be used.
        max_nonces: how many nonces are remembered, from 1 to 1,048,576, in 8 bytes each. When they are many, some are
            too old before their time, and their clients asked again; none is let in twice, nor when the clock is set
            back: who comes then may have to wait until it is where it was.
        memory: the path of a file that remembers them, such as one below ``/dev/shm``, for processes that share a
            secret on one machine. It is made if there is none, for this user alone.
        replayed: called with a nonce and its count instead of remembering them here: returns whether the nonce was
            used with this count or a higher one; for processes that share a secret on several machines.
        delay: see ``Auth``.

    Raises:
        OSError: there is no such memory.
        TypeError: an argument is of another type.
        ValueError: an algorithm is unknown, the secret is too short, or has nothing that remembers for all who share
            it; the memory is another user's, open to others, or for another ``max_nonces``; or a number is out of
            range. See ``BasicAuth``, too.
    """

    scheme = "digest"

    def __init__(  # noqa: PLR0913 -- each is a choice of its own, by name
        self,
        credentials: Credentials | Callable[[str], str | None],
        realm: str = "WebSocket",
        *,
        algorithms: Iterable[str] = ("SHA-256", "MD5"),
        secret: bytes | None = None,
        lifetime: float = 300.0,
        max_nonces: int = 65_536,
        memory: str | PathLike[str] | None = None,
        replayed: Callable[[str, int], bool] | None = None,
        delay: float = 0.0,
    ) -> None:
        super().__init__(realm, delay=delay)
        function = _checked_function(credentials, "a user name", 1)
        self._passwords = function or dict(_pairs(credentials)).get
        self.may_block = callable(credentials) or replayed is not None
        self._algorithms = {name.lower(): _checked_algorithm(name) for name in algorithms}
        if not self._algorithms:
            raise ValueError("algorithms: there is none")
        if isinstance(secret, str):
            raise TypeError("a secret is bytes, not str")
        if secret is not None and len(secret) < 16:
            raise ValueError("a secret has at least 16 bytes")
        _check_sharing(secret, memory, replayed)
        if not lifetime > 0:
            raise ValueError("a lifetime is above 0")
        self._secret = urandom(32) if secret is None else bytes(secret)
        self._lifetime = lifetime
        # now, not at the first use: so the children of forks have the same
        self._nonces = Nonces(checked_count("max_nonces", max_nonces, 1, _MAX_NONCES), memory)
        self._replayed = replayed
        self._opaque = self._signed(b"opaque").hex()
        self._unknown = urandom(16).hex()

    def challenges(self, now: float, *, stale: bool = False) -> list[str]:
        """Return one challenge for each algorithm, RFC 7616 §3.3 and §3.7."""
        realm = quoted(as_octets(self.realm))
        end = f'opaque="{self._opaque}", charset=UTF-8{", stale=true" if stale else ""}'
        return [
            f'Digest realm={realm}, qop="auth", algorithm={name}, nonce="{self._nonce(now)}", {end}'
            for name in self._algorithms.values()
        ]

    def username(self, credentials: Challenge, method: str, target: str, now: float) -> str | None:
        """Return who has sent these credentials; None if they are wrong. See ``Auth.username``."""
        said = credentials.parameters
        if not said.keys() >= {*_REQUIRED} or said["qop"] != "auth" or not said["cnonce"]:
            return None
        if not _COUNT.fullmatch(said["nc"]):
            raise HandshakeError(400, "the count of a nonce has eight hexadecimal digits (RFC 7616 §3.4)")
        if said["uri"] != target:
            raise HandshakeError(400, "the credentials are for another target (RFC 7616 §3.4.6)")
        algorithm = said.get("algorithm", "MD5").lower()
        if algorithm not in self._algorithms or said["realm"] != as_octets(self.realm):
            return None
        if said.get("opaque") != self._opaque or int(said["nc"], 16) == 0:
            return None
        made = self._made(said["nonce"])
        username = _username_of(said)
        if made is None or username is None or not self._is_right(username, algorithm, said, method):
            return None
        age = now - int.from_bytes(made[:_TIME_SIZE]) / 1000
        # A clock may be set back a little, and machines that share a secret have clocks that differ: a client that was
        # told stale, and got its next nonce of the machine ahead, would give up. Each is good once all the same.
        if not -_CLOCK_SECONDS <= age <= self._lifetime or self._is_used(said["nonce"], made, int(said["nc"], 16)):
            raise StaleError
        return username

    def _is_used(self, nonce: str, made: bytes, count: int) -> bool:
        if self._replayed is not None:
            return self._replayed(nonce, count)
        return self._nonces.is_used(int.from_bytes(made[:_TIME_SIZE]), int.from_bytes(made[_TIME_SIZE:]), count)

    def _is_right(self, username: str, algorithm: str, said: dict[str, str], method: str) -> bool:
        password = self._passwords(username)
        if password is not None and not isinstance(password, str):
            raise TypeError(f"the function for passwords returned {type(password).__name__}, not str or None")
        expected = Digest(algorithm).response(
            as_octets(username),
            said["realm"],
            as_octets(self._unknown if password is None else password),
            nonce=said["nonce"],
            method=method,
            uri=said["uri"],
            nc=said["nc"],
            cnonce=said["cnonce"],
        )
        # compared as bytes, which may be anything; and whoever is unknown takes as long as who is known
        is_same = hmac.compare_digest(expected.encode(), said["response"].lower().encode())
        return is_same and password is not None

    # ---- nonces, RFC 7616 §3.3 and §5.4: when it was made, a random part, and a signature of both ----

    def _nonce(self, now: float) -> str:
        made = int(now * 1000).to_bytes(_TIME_SIZE) + urandom(_RANDOM_SIZE)
        return b2a_base64(made + self._signed(made), newline=False).decode()

    def _made(self, nonce: str) -> bytes | None:
        """Return what this server has made a nonce of, its time first; None if it hasn't."""
        try:
            data = a2b_base64(nonce.encode("latin-1"), strict_mode=True)
        except Base64Error:
            return None
        made, signature = data[:-_MAC_SIZE], data[-_MAC_SIZE:]
        is_ours = len(made) == _TIME_SIZE + _RANDOM_SIZE and hmac.compare_digest(signature, self._signed(made))
        return made if is_ours else None

    def _signed(self, data: bytes) -> bytes:
        return hmac.digest(self._secret, data + self.realm.encode(), "sha256")[:_MAC_SIZE]


Policies: TypeAlias = Auth | tuple[str, str] | Iterable[Auth] | Iterable[tuple[str, str]] | Mapping[str, str] | Check


def checked_policies(auth: Policies | None) -> tuple[Auth, ...]:
    """Return the policies that an argument ``auth`` means; what is no ``Auth`` stands for that of ``BasicAuth``.

    Raises:
        TypeError: see ``BasicAuth``.
        ValueError: see ``BasicAuth``.
    """
    if auth is None:
        return ()
    if isinstance(auth, Auth):
        return (auth,)
    if not callable(auth) and not isinstance(auth, Mapping | str) and hasattr(auth, "__iter__"):
        auth = tuple(auth)  # type: ignore[assignment]
        if auth and all(isinstance(policy, Auth) for policy in cast("tuple[object, ...]", auth)):
            return cast("tuple[Auth, ...]", auth)
    return (BasicAuth(cast("Credentials | Check", auth)),)


def authenticate(policies: tuple[Auth, ...], request: Request, now: float) -> str:
    """Return who a client is.

    Args:
        policies: what is accepted, and offered in this order.
        request: with one ``Authorization`` at most.
        now: seconds since the epoch.

    Raises:
        WrongCredentialsError: 401, as below, to be answered after its delay.
        HandshakeError: 401 with the challenges (RFC 9110 §15.5.2), or 400 for what is malformed.
        Exception: of a function of the user: answer with 500.
    """
    value = request.headers.get("authorization")
    if value is None:
        raise HandshakeError(401, "the client has sent no credentials", _challenges(policies, now))
    try:
        (credentials,) = parse_challenges(value)
    except ValueError:
        if value[:6].lower() == "basic ":  # RFC 7617 §2: what is no token is no credentials
            raise HandshakeError(401, "the credentials for basic are malformed", _challenges(policies, now)) from None
        raise HandshakeError(400, "the credentials are malformed") from None
    asked = [policy for policy in policies if policy.scheme == credentials.scheme]
    for policy in asked:
        try:
            username = policy.username(credentials, request.method, request.target, now)
        except StaleError:
            message = "the nonce of the credentials is too old, or was used"
            raise HandshakeError(401, message, _challenges(policies, now, stale=True)) from None
        if username is not None:
            return username
    if not asked:
        raise HandshakeError(401, "the credentials are of another scheme", _challenges(policies, now))
    for policy in asked:
        policy.refused(request)
    message = f"the credentials for {credentials.scheme} are wrong"
    wrong = WrongCredentialsError(401, message, _challenges(policies, now))
    wrong.delay = max(policy.delay for policy in asked)
    raise wrong


def _challenges(policies: tuple[Auth, ...], now: float, *, stale: bool = False) -> list[tuple[str, str]]:
    fields = [value for policy in policies for value in policy.challenges(now, stale=stale)]
    return [("WWW-Authenticate", value) for value in fields]


def _checked_delay(delay: float) -> float:
    seconds = checked_seconds("delay", delay)
    if seconds is None:
        raise ValueError("the delay must be a number of seconds: a client is told at last")
    return seconds


def _check_sharing(secret: bytes | None, memory: object, replayed: object) -> None:
    """Let processes share a secret only if they share, too, which nonces were used (RFC 7616 §5.4)."""
    if memory is not None and replayed is not None:
        raise ValueError("either memory or replayed remembers nonces, not both")
    if secret is None and memory is not None:
        raise ValueError("memory is for processes that share a secret: give them one")
    if secret is not None and memory is None and replayed is None:
        raise ValueError(
            "a secret lets several processes accept the same nonces, each of them once: give memory, the path of a "
            "file that they share, or replayed; or no secret"
        )


def _checked_function(credentials: object, takes: str, count: int) -> Callable[..., Any] | None:
    """Return a function that is given for credentials, None if they are something else."""
    if not callable(credentials):
        return None
    if isinstance(credentials, type):
        raise TypeError(f"credentials are no class: make an object, {credentials.__name__}(...)")
    if is_async(credentials):
        raise TypeError("the function for credentials is async def, but it has to be a plain function")
    try:
        signature(credentials).bind(*range(count))
    except TypeError as reason:
        raise TypeError(f"the function for credentials has to take {takes}: {reason}") from None
    except ValueError:
        pass  # one of those of C that don't say what they take
    return credentials


def _checked_answer(answer: object) -> object:
    """Return what a function says; a coroutine is true, whatever it would say."""
    if hasattr(answer, "__await__"):
        raise TypeError("the function for credentials returned something to await, but it has to be a plain function")
    return answer


def _pairs(credentials: object) -> list[tuple[str, str]]:
    if isinstance(credentials, str) or not hasattr(credentials, "__iter__"):
        raise TypeError(
            f"credentials are (user name, password) pairs, a mapping or a function, not {type(credentials).__name__}"
        )
    several: list[object] = list(credentials.items() if isinstance(credentials, Mapping) else credentials)
    if len(several) == 2 and all(isinstance(part, str) for part in several):
        several = [tuple(several)]
    if not several:
        raise ValueError("there are no credentials: nobody could come in")
    pairs = [_pair(one) for one in several]
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a user name stands there twice: it has one password")
    return pairs


def _pair(one: object) -> tuple[str, str]:
    if not isinstance(one, tuple | list) or len(one) != 2:
        raise TypeError("credentials are (user name, password) pairs; or else all are objects such as BasicAuth")
    return checked_text("a user name", one[0]), checked_text("a password", one[1])


def _checked_algorithm(name: str) -> str:
    if name.lower() not in ALGORITHMS:
        raise ValueError(f"an algorithm is one of {', '.join(map(str.upper, ALGORITHMS))}")
    return name.upper()


def _username_of(said: dict[str, str]) -> str | None:
    """Return the user name of Digest, RFC 7616 §3.4: one of its two forms, in UTF-8."""
    extended = said.get("username*")
    if ("username" in said) == (extended is not None):
        return None
    octets = said["username"].encode("latin-1") if extended is None else _extended(extended)
    try:
        # what no password was set for, a function that looks for one need not be able to bear
        return checked_text("the user name", octets.decode())
    except ValueError:
        return None


def _extended(value: str) -> bytes:
    """Return what an extended value stands for, RFC 8187 §3.2; nothing that is UTF-8 if it is none."""
    charset, _, encoded = value.partition("'")
    return unquote_to_bytes(encoded.partition("'")[2]) if charset.upper() == "UTF-8" else b"\xff"
