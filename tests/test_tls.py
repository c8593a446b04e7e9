"""Does TLS over memory say what TLS says, however its bytes are cut, and does it tell how it ends?"""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from certificates import client_context, server_context

from wspy.tls import TLS

LARGE = bytes(range(256)) * 400


def ends(**options: Any) -> tuple[TLS, TLS]:
    """Return a client and a server before their handshake."""
    name = options.pop("name", "localhost")
    client = TLS(client_context(**options), server_side=False, server_hostname=name)
    return client, TLS(server_context(), server_side=True)


def exchange(*both: TLS, size: int | None = None) -> list[bytes]:
    """Let both receive all that the other one sends, in pieces of a size; return the plaintext of each."""
    received = [b"", b""]
    is_quiet = False
    while not is_quiet:
        is_quiet = True
        for number, (one, other) in enumerate((both, both[::-1])):
            data = one.take()
            is_quiet = is_quiet and not data
            for start in range(0, len(data), size or len(data) or 1):
                received[1 - number] += other.receive(data[start : start + (size or len(data))])
    return received


def opened(**options: Any) -> tuple[TLS, TLS]:
    client, server = ends(**options)
    assert exchange(client, server) == [b"", b""]
    assert client.is_open
    assert server.is_open
    return client, server


@pytest.mark.parametrize("size", [1, 3, 1000, None])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_j5_a_conversation_however_it_is_cut(size: int | None, version: ssl.TLSVersion) -> None:
    client, server = ends(maximum_version=version)
    assert not client.is_open
    exchange(client, server, size=size)
    client.send(LARGE)
    server.send(b"small")
    server.send(b"")
    assert exchange(client, server, size=size) == [b"small", LARGE]
    assert client.ssl_object.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]


def test_j4_everything_is_returned_at_once() -> None:
    client, server = opened()
    client.send(LARGE)
    client.send(b"x")
    assert server.receive(client.take()) == LARGE + b"x"


def test_what_is_sent_before_the_handshake_waits_for_it() -> None:
    client, server = ends()
    client.send(b"early")
    assert exchange(client, server) == [b"", b"early"]


def test_the_end_is_told_from_what_was_cut_off() -> None:
    client, server = opened()
    client.send(b"last")
    client.close()
    client.close()
    assert server.receive(client.take()) == b"last"
    assert server.has_ended
    assert server.receive(b"more") == b""
    assert server.eof()
    assert not client.eof()


def test_what_breaks_tls_is_told_once_what_came_before_it_was_taken() -> None:
    client, server = opened()
    client.send(b"good")
    data = client.take()
    assert server.receive(data + b"GET / HTTP/1.1\r\n\r\n") == b"good"
    assert server.failure is not None
    for _ in range(2):
        with pytest.raises(ssl.SSLError):
            server.receive(b"")
    assert server.take(), "an alert"


def test_j2_plain_http_is_no_tls() -> None:
    with pytest.raises(ssl.SSLError, match="HTTP_REQUEST"):
        TLS(server_context(), server_side=True).receive(b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize("name", ["other.example", "127.0.0.2"])
def test_j11_a_certificate_of_another_host(name: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        exchange(*ends(name=name))
