"""Does TLS turn bytes into records and back, at every split, and tell each end apart?"""

from __future__ import annotations

import contextlib
import gc
import ssl
import weakref
from typing import TYPE_CHECKING

import pytest
from certificates import authority, client_context, server_context
from measures import measures_memory, resident

from wspy.tls import TLS

if TYPE_CHECKING:
    from collections.abc import Callable


def ends(
    client: ssl.SSLContext | None = None, server: ssl.SSLContext | None = None, name: str = "localhost"
) -> tuple[TLS, TLS]:
    """Return a client and a server."""
    return (
        TLS(client or client_context(), server_side=False, server_hostname=name),
        TLS(server or server_context(), server_side=True),
    )


def carry(one: TLS, other: TLS) -> bytes:
    """Bring what each has to say to the other, until both are silent; return the plaintext that came up."""
    plaintext = b""
    while True:
        there, back = one.take(), other.take()
        if not there and not back:
            return plaintext
        if there:
            plaintext += other.receive(there)
        if back:
            plaintext += one.receive(back)


def opened() -> tuple[TLS, TLS]:
    client, server = ends()
    assert carry(client, server) == b""
    assert client.is_open
    assert server.is_open
    return client, server


def only(version: ssl.TLSVersion, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """Return a context for one version of TLS."""
    context = make()
    context.minimum_version = context.maximum_version = version
    return context


def for_clients() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_handshake_in_both_versions(version: ssl.TLSVersion) -> None:
    client, server = ends(only(version, for_clients))
    carry(client, server)
    assert client.ssl_object.version() == server.ssl_object.version() == version.name.replace("_", ".")


def test_a_handshake_byte_by_byte() -> None:
    client, server = ends()
    while not (client.is_open and server.is_open):
        for one, other in ((client, server), (server, client)):
            for byte in one.take():
                assert other.receive(bytes([byte])) == b""


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 300_000])
def test_plaintext_comes_out_as_it_went_in(size: int) -> None:
    client, server = opened()
    message = bytes(i % 251 for i in range(size))
    for one, other in ((client, server), (server, client)):
        one.send(message)
        assert other.receive(one.take()) == message


@measures_memory
def test_much_at_once_does_not_stay_in_memory() -> None:
    pairs = [opened() for _ in range(30)]
    before = resident()
    for client, server in pairs:
        for one, other in ((client, server), (server, client)):
            one.send(bytes(1 << 20))
            assert len(other.receive(one.take())) == 1 << 20
    assert (resident() - before) / len(pairs) < 1 << 20


def test_records_at_every_split() -> None:
    client, server = opened()
    client.send(b"one")
    client.send(b"two")
    client.send(b"three" * 10)
    stream = client.take()
    # a record can be read once: so there is one stream, cut once at each place in turn
    assert b"".join(server.receive(stream[i : i + 1]) for i in range(len(stream))) == b"onetwo" + b"three" * 10


def test_j4_all_that_is_there_is_read() -> None:
    client, server = opened()
    for number in range(1000):
        client.send(b"%03d" % number)
    assert server.receive(client.take()) == b"".join(b"%03d" % number for number in range(1000))


def test_j6_what_is_sent_before_the_handshake_waits_for_it() -> None:
    client, server = ends()
    client.send(b"early, ")
    client.send(b"both")
    assert carry(client, server) == b"early, both"


def test_a_view_may_be_changed_afterwards() -> None:
    client, server = ends()
    data = bytearray(b"mine")
    client.send(data)
    data[:] = b"gone"
    assert carry(client, server) == b"mine"


def test_close_notify_is_an_end_and_nothing_follows_it() -> None:
    client, server = opened()
    client.send(b"last")
    client.close()
    assert server.receive(client.take()) == b"last"
    assert server.has_ended
    assert server.receive(b"whatever") == b""
    assert server.eof()
    server.send(b"an answer")  # RFC 8446 §6.1: the other direction goes on
    server.close()
    assert server.take()


def test_nothing_can_be_sent_behind_close_notify() -> None:
    client, _ = opened()
    client.close()
    client.close()
    client.take()
    with pytest.raises(ssl.SSLError):
        client.send(b"more")


def test_j8_an_end_without_close_notify_is_told_apart() -> None:
    client, server = opened()
    client.send(b"half a record")
    assert server.receive(client.take()[:-1]) == b""
    assert not server.eof()
    assert server.has_ended


def test_to_close_before_the_handshake_says_nothing() -> None:
    _, server = ends()
    server.close()
    assert server.take() == b""


def test_j2_what_is_no_tls_fails_for_good() -> None:
    _, server = ends()
    with pytest.raises(ssl.SSLError) as raised:
        server.receive(b"GET / HTTP/1.1\r\n\r\n")
    assert raised.value.reason == "HTTP_REQUEST"
    with pytest.raises(ssl.SSLError):
        server.receive(b"")
    server.close()


def test_plaintext_before_a_failure_is_returned_and_the_failure_comes_next() -> None:
    client, server = opened()
    client.send(b"good")
    good = client.take()
    client.send(b"bad")
    bad = bytearray(client.take())
    bad[-1] ^= 1
    assert server.receive(good + bytes(bad)) == b"good"
    assert server.failure is not None
    assert server.take()  # the alert
    with pytest.raises(ssl.SSLError):
        server.receive(b"")


def test_j11_the_name_is_checked() -> None:
    client, server = ends(name="elsewhere.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        carry(client, server)
    with contextlib.suppress(ssl.SSLError):
        carry(client, server)
    assert not server.is_open


def test_a_certificate_of_the_client() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("localhost").configure_cert(context)
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    known = for_clients()
    authority().issue_cert("someone@example.org").configure_cert(known)
    client, server = ends(known, context)
    carry(client, server)
    found = server.ssl_object.getpeercert()
    assert found is not None
    assert ("email", "someone@example.org") in found["subjectAltName"]


def test_a_context_for_the_other_side_is_refused() -> None:
    with pytest.raises(ssl.SSLError):
        TLS(client_context(), server_side=True)


def test_a_failure_does_not_keep_what_has_failed() -> None:
    """Else each client that speaks no TLS would cost 25 KiB until the garbage collector runs."""
    gc.collect()
    gc.disable()
    try:
        server = TLS(server_context(), server_side=True)
        with pytest.raises(ssl.SSLError):
            server.receive(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ssl.SSLError):
            server.receive(b"more")
        gone = weakref.ref(server.ssl_object)
        del server
        assert gone() is None
    finally:
        gc.enable()
