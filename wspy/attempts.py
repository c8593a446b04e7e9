"""What does a client ask for next: where does a redirect lead, and how is the question answered who it is? No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .client_auth import ClientAuth
from .client_handshake import REDIRECTS
from .errors import ResponseError
from .headers import Headers

if TYPE_CHECKING:
    from .uri import URI

__all__ = ["MAX_REDIRECTS", "Attempts"]

MAX_REDIRECTS: Final = 10
# What was meant for one origin, another one must not see.
_CREDENTIALS: Final = frozenset(["authorization", "cookie", "host", "proxy-authorization"])


class Attempts:
    """The requests that it takes to open one connection, of which each but the first follows from an answer.

    A user name and a password are used when the server asks for them, and never on another origin than the first.
    Nothing that leads to another origin leads back to them. The server is answered once, wherever it redirects: from
    then on it is told with each request, and a 401 is the end, unless nothing but a nonce was too old.

    Args:
        uri: what to ask for first. Its user name and password come before ``auth``.
        headers: header fields of the user.
        auth: a (user name, password) pair, or None.

    Attributes:
        uri: what to ask for now.

    Raises:
        TypeError: a part of the pair isn't a str.
        ValueError: one has control characters or a lone surrogate.
    """

    def __init__(self, uri: URI, headers: Headers, auth: tuple[str, str] | None = None) -> None:
        self.uri = uri
        self._headers = headers
        pair = auth if uri.username is None else (uri.username, uri.password or "")
        self._auth = None if pair is None else ClientAuth(*pair)  # of this origin alone
        self._authorization: str | None = None
        self._redirects = 0

    @property
    def headers(self) -> Headers:
        """The header fields of the request that is next."""
        if self._authorization is None:
            return self._headers
        fields = [(name, value) for name, value in self._headers.items() if name.lower() != "authorization"]
        return Headers([*fields, ("Authorization", self._authorization)])

    def follow(self, answer: ResponseError) -> None:
        """Turn to the next request, if an answer that isn't the right one leads to one.

        Raises:
            ResponseError: it doesn't.
        """
        if answer.status == 401:
            self._authorization = _authorization(self._auth, answer, self.uri.resource)
            return
        target = _redirected(self.uri, answer)
        if self._redirects == MAX_REDIRECTS:
            raise _like(answer, f"the server redirects more than {MAX_REDIRECTS} times")
        self._redirects += 1
        if target.origin_key != self.uri.origin_key:
            self._auth = None
            self._headers = _without_credentials(self._headers)
        self.uri = target
        self._authorization = None if self._auth is None else self._auth.again("GET", target.resource)

    def __repr__(self) -> str:
        return f"<Attempts {self.uri!r}>"


def _authorization(auth: ClientAuth | None, answer: ResponseError, resource: str) -> str:
    if auth is None:
        message = "the server asks for credentials, and there are none for it: auth is a (user name, password) pair"
        raise _like(answer, message)
    try:
        value = auth.answer(answer.headers.get_all("www-authenticate"), "GET", resource)
    except ValueError as reason:
        raise _like(answer, f"the server can't be told who this is: {reason}") from None
    if value is None:
        raise _like(answer, "the server refused the credentials")
    return value


def _redirected(uri: URI, answer: ResponseError) -> URI:
    """Return where a redirect leads, RFC 9110 §15.4.

    Raises:
        ResponseError: this is no redirect, or one that can't be followed.
    """
    location = answer.headers.get("location")
    if answer.status not in REDIRECTS or location is None:
        raise answer
    try:
        return uri.redirected(location)
    except ValueError as reason:
        raise _like(answer, f"a redirect can't be followed: {reason}") from None


def _like(answer: ResponseError, message: str) -> ResponseError:
    return ResponseError(message, answer.status, answer.reason, answer.headers, answer.body)


def _without_credentials(headers: Headers) -> Headers:
    return Headers([(name, value) for name, value in headers.items() if name.lower() not in _CREDENTIALS])
