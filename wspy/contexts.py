"""Which ``ssl.SSLContext`` may be used by which side, and which one does a client use that was given none?"""

from __future__ import annotations

import ssl
from functools import lru_cache

__all__ = [
    "check_side",
    "checked_context",
    "checked_server_context",
    "client_context",
    "default_context",
    "server_context",
]


def checked_context(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return a context without renegotiation: a client of TLS 1.2 could make a server compute for nothing.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(
            f"ssl is an ssl.SSLContext, not {type(context).__name__}: ssl.create_default_context() makes one"
        )
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def check_side(context: ssl.SSLContext, *, server_side: bool) -> None:
    """Raise ValueError if a context is for the other side."""
    other = ssl.PROTOCOL_TLS_CLIENT if server_side else ssl.PROTOCOL_TLS_SERVER
    if context.protocol is other:
        purpose = "ssl.PROTOCOL_TLS_SERVER and has a certificate" if server_side else "ssl.PROTOCOL_TLS_CLIENT"
        raise ValueError(f"ssl is for the other side: make one that is {purpose}")


def checked_server_context(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return a context as a server needs it.

    Raises:
        TypeError: it is none.
        ValueError: it is one for clients.
    """
    check_side(checked_context(context), server_side=True)
    return context


@lru_cache(maxsize=1)
def default_context() -> ssl.SSLContext:
    """Return what a client trusts that was given no context; not to be changed, nor to be handed to who might.

    Made once, since reading what a system trusts takes as long as a hundred handshakes.
    """
    return client_context(None)


def client_context(ca_certs: str | None) -> ssl.SSLContext:
    """Return a new context that trusts those of the file, or those that the system trusts, for the name it asks for."""
    context = ssl.create_default_context(cafile=ca_certs)
    context.set_alpn_protocols(["http/1.1"])  # RFC 6455 §1.7: an upgrade of this version
    return checked_context(context)


def server_context(certfile: str, keyfile: str | None, ca_certs: str | None) -> ssl.SSLContext:
    """Return the context of a server that has a certificate; clients need one of ``ca_certs``, if that is given."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca_certs)
    context.load_cert_chain(certfile, keyfile)
    if ca_certs is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return checked_context(context)
