"""Certificates for tests: of an authority that exists as long as the tests do, and of nobody whom a system trusts."""

from __future__ import annotations

import datetime as dt
import ssl
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import trustme

if TYPE_CHECKING:
    from collections.abc import Iterable

HOSTS = ("localhost", "127.0.0.1", "::1", "name.example")
PAST = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)


@lru_cache(maxsize=1)
def authority() -> trustme.CA:
    """Return who signs all certificates but those that shouldn't be trusted."""
    return trustme.CA()


@lru_cache(maxsize=8)
def _issued(hosts: tuple[str, ...], expires: dt.datetime | None, signer: trustme.CA) -> trustme.LeafCert:
    return signer.issue_cert(*hosts, not_before=PAST if expires else None, not_after=expires)


def server_context(
    hosts: Iterable[str] = HOSTS, *, expires: dt.datetime | None = None, signer: trustme.CA | None = None
) -> ssl.SSLContext:
    """Return a new context for a server with these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _issued(tuple(hosts), expires, signer or authority()).configure_cert(context)
    return context


def pem() -> dict[str, str]:
    """Return the certificate and the private key of a server as text."""
    issued = _issued(HOSTS, None, authority())
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return {"cert": chain.decode(), "key": issued.private_key_pem.bytes().decode()}


def client_context(**options: Any) -> ssl.SSLContext:
    """Return a new context for a client that trusts the authority; options are attributes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    for name, value in options.items():
        setattr(context, name, value)
    return context
