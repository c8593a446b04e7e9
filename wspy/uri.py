"""``ws`` and ``wss`` URIs: what does one name, and where does a redirect lead (RFC 6455 §3, RFC 3986, RFC 3987)?

One strict grammar: what two parsers might read differently is refused, and never mended. Text beyond ASCII is the one
exception, for which RFC 3987 and IDNA give a single reading. What is refused raises ``ValueError`` with a fixed
sentence that never repeats the input, since a URI may hold a password, or a token in its query.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from .auth import checked_text
from .headers import parse_host

__all__ = ["URI", "parse_uri"]

_SCHEMES = {"ws": False, "wss": True}
# A server redirects as HTTP does, and knows itself by its http URI: RFC 6455 §4.1 leaves that to RFC 9110 §15.4.
_LOCATION_SCHEMES = {**_SCHEMES, "http": False, "https": True}
_DEFAULT_PORTS = {False: 80, True: 443}

# RFC 3986 appendix B; a colon in the first segment always ends a scheme (§4.2), if only an empty one.
_PARTS = re.compile(r"(?:([^:/?#]*):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(#.*)?", re.DOTALL)
# No URI or IRI has these: controls, every kind of space, and halves of characters.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\x9f\s\ud800-\udfff]")
_ESCAPE = r"%[0-9A-Fa-f]{2}"
_UNRESERVED = r"0-9A-Za-z._~\x80-\U0010ffff-"  # with the ucschar of RFC 3987 §2.2
_SUB_DELIMS = r"!$&'()*+,;="
_USERINFO = re.compile(rf"(?:[{_UNRESERVED}{_SUB_DELIMS}:]|{_ESCAPE})*+")
_RESOURCE = re.compile(rf"(?:[{_UNRESERVED}{_SUB_DELIMS}:@/?]|{_ESCAPE})*+")
_AUTHORITY = re.compile(r"(?:([^@]*+)@)?(\[[^\]@]*+\]|[^\[\]:@]*+)(?::([0-9]{0,5}))?")
# What a resolver takes for a name, with the lengths of RFC 1034 §3.1; names of services have underscores.
_LABEL = r"[0-9A-Za-z_-]{1,63}"
_NAME = re.compile(rf"(?=.{{1,254}}\Z){_LABEL}(?:\.{_LABEL})*\.?")
_MAX_NAME = 254
# All of an address but these is sent as it is: quote() would escape them.
_SAFE = "!$%&'()*+,;=:@/?~"


class URI(NamedTuple):
    """A WebSocket URI, as ``parse_uri`` makes it.

    Args:
        secure: whether the connection is over TLS.
        host: the name or address to connect to, in lower case: IDNA in ASCII, IPv6 without brackets.
        port: 1 to 65535.
        resource: path and query, as they are requested; at least ``"/"``.
        username: percent-decoded; None if the URI has none.
        password: percent-decoded; None if the URI has none.
    """

    secure: bool
    host: str
    port: int
    resource: str
    username: str | None = None
    password: str | None = None

    @property
    def host_header(self) -> str:
        """The value of ``Host``, RFC 6455 §4.1 item 4: with the port unless the scheme implies it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.secure] else f"{host}:{self.port}"

    @property
    def origin_key(self) -> tuple[bool, str, int]:
        """What two URIs of one origin have in common, RFC 6454 §4: what is secret to one host is not sent to others."""
        return self.secure, self.host, self.port

    def redirected(self, location: str) -> URI:
        """Return the URI that a ``Location`` leads to, RFC 9110 §10.2.2 and RFC 3986 §5.2.

        ``http`` stands for ``ws`` there, and ``https`` for ``wss``. A username and a password stay as long as the
        origin does.

        Args:
            location: absolute, or relative to this URI.

        Raises:
            ValueError: it is malformed, has a userinfo (a server does not choose the credentials of its clients) or a
                fragment, is of another scheme, or leads from ``wss`` to ``ws``.
        """
        if not location.isascii():  # RFC 9110 §10.2.2: not an IRI
            raise ValueError("the Location is malformed: it has a character beyond ASCII, RFC 3986 §2")
        scheme, authority, path, query = _split(location)
        if scheme is None:
            scheme = "wss" if self.secure else "ws"
        elif authority is None:
            raise ValueError("the Location has a scheme, but no host")
        secure = _LOCATION_SCHEMES.get(scheme.lower())
        if secure is None:
            raise ValueError("the Location is of another scheme than ws, wss, http and https")
        if self.secure and not secure:
            raise ValueError(
                "the Location leads from wss to ws: it is not followed, since others could read and change it"
            )
        if authority is None:
            return self._replace(resource=_checked_resource(*self._merged(path, query)))
        host, port, username, _ = _parse_authority(authority, secure=secure)
        if username is not None:
            raise ValueError("the Location has a username: a server does not choose the credentials of its clients")
        target = URI(secure, host, port, _checked_resource(_without_dots(path), query))
        if target.origin_key == self.origin_key:
            return target._replace(username=self.username, password=self.password)
        return target

    def _merged(self, path: str, query: str | None) -> tuple[str, str | None]:
        """Return path and query of a reference without a host, RFC 3986 §5.2.2."""
        own_path, mark, own_query = self.resource.partition("?")
        if not path:
            return own_path, own_query if query is None and mark else query
        if not path.startswith("/"):
            path = own_path[: own_path.rindex("/") + 1] + path
        return _without_dots(path), query

    def __repr__(self) -> str:
        # A query often holds a token that must not reach a log, and a password is one.
        scheme = "wss" if self.secure else "ws"
        return f"<URI {scheme}://{self.host_header}{self.resource.partition('?')[0]}>"


def parse_uri(text: str) -> URI:
    """Parse a ``ws`` or ``wss`` URI, RFC 6455 §3.

    Path and query are kept as they are; characters beyond ASCII are percent-encoded as UTF-8 (RFC 3987 §3.1), and a
    host with such is put in ASCII by IDNA. Credentials may stand before the host, percent-encoded.

    Raises:
        TypeError: it is no str.
        ValueError: the grammar is broken, the scheme is another one, or there is a fragment.
    """
    if not isinstance(text, str):
        raise TypeError(f"a URI is a str, not of type {type(text).__name__}")
    scheme, authority, path, query = _split(text)
    secure = _SCHEMES.get((scheme or "").lower())
    if secure is None or authority is None:
        raise ValueError("a WebSocket URI begins with ws:// or wss://, RFC 6455 §3")
    host, port, username, password = _parse_authority(authority, secure=secure)
    return URI(secure, host, port, _checked_resource(path, query), username, password)


def _split(text: str) -> tuple[str | None, str | None, str, str | None]:
    """Return scheme, authority, path and query of a reference."""
    if _FORBIDDEN.search(text):
        raise ValueError("the URI has a space or a control character: percent-encode it, such as %20")
    parts = _PARTS.fullmatch(text)
    scheme, authority, path, query, fragment = parts.groups()  # type: ignore[union-attr] # it matches everything
    if fragment is not None:
        raise ValueError("the URI has a fragment, which RFC 6455 §3 forbids: a # that is meant is written %23")
    return scheme, authority, path, query


def _parse_authority(text: str, *, secure: bool) -> tuple[str, int, str | None, str | None]:
    """Return host, port, username and password, RFC 3986 §3.2."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise ValueError("the host or the port of the URI is malformed; in a password, percent-encode : / ? # @")
    userinfo, host, digits = match.groups()
    host, port = parse_host(f"{_ascii_host(host)}:{digits or ''}")
    username, password = _credentials(userinfo)
    return host.strip("[]"), port or _DEFAULT_PORTS[secure], username, password


def _ascii_host(host: str) -> str:
    if host.startswith("["):
        if "%" in host:
            raise ValueError("the IPv6 address of the URI has a zone, which is nothing to tell a server (RFC 6874 §4)")
        return host
    if not host:
        raise ValueError("the URI has no host")
    if not host.isascii() and len(host) <= _MAX_NAME:
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            raise ValueError("the host of the URI is no internationalised domain name") from None
    # Judged behind IDNA, which maps some characters to delimiters.
    if not _NAME.fullmatch(host):
        raise ValueError("the host of the URI is malformed")
    return host


def _credentials(userinfo: str | None) -> tuple[str | None, str | None]:
    if userinfo is None:
        return None, None
    if not _USERINFO.fullmatch(userinfo):
        raise ValueError(
            "the username or the password of the URI is malformed: percent-encode what is no letter or digit"
        )
    username, colon, password = userinfo.partition(":")
    return _decoded(username), _decoded(password) if colon else None


def _decoded(text: str) -> str:
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise ValueError("the username or the password of the URI is not UTF-8") from None
    return checked_text("the username or the password of the URI", decoded)


def _checked_resource(path: str, query: str | None) -> str:
    """Return the resource name, RFC 6455 §3."""
    resource = (path or "/") if query is None else f"{path or '/'}?{query}"
    if not _RESOURCE.fullmatch(resource):
        raise ValueError('the path or the query of the URI is malformed: percent-encode " % < > [ ] ^ ` { | } and \\')
    return quote(resource, safe=_SAFE)


def _without_dots(path: str) -> str:
    """Remove dot segments, RFC 3986 §5.2.4, of a path that is empty or begins with a slash."""
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments[1:]:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)
