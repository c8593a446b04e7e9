"""What do handlers learn about TLS, and does it end in order? For front ends that speak it, and for the others."""

from __future__ import annotations

import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
from certificates import authority, client_context
from drivers import FRONT_ENDS, PLAIN, SECURE, echo, head, needs, only, until
from tls_socket import TLSSocket

import wspy

if TYPE_CHECKING:
    from drivers import Servers

secure = only(*SECURE, because="about TLS")


def asking_for_certificates() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("localhost").configure_cert(context)
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def with_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    authority().issue_cert("someone@example.org").configure_cert(context)
    return context


def who(tls: ssl.SSLObject | None) -> Any:
    assert tls is not None
    found = tls.getpeercert()
    assert found is not None
    return dict(found["subjectAltName"])["email"]


@secure
@needs("http")
def test_handlers_know_the_certificate_of_the_client(serve: Servers) -> None:
    seen: list[Any] = []
    closed = threading.Event()

    def onclose(client: Any, code: int, reason: str) -> None:
        seen.append(who(client.ssl_object))
        closed.set()

    server = serve(
        ssl=asking_for_certificates(),
        onrequest=lambda request: seen.append((request.secure, who(request.ssl_object))),
        onopen=lambda client: seen.append((client.secure, who(client.ssl_object), who(client.request.ssl_object))),
        onmessage=echo,
        onclose=onclose,
    )
    peer = server.connect()
    peer.socket = TLSSocket(peer.socket.plain, with_certificate())
    peer.open()
    peer.text("hello")
    assert peer.message() == "hello"
    peer.close()
    assert closed.wait(10)
    someone = "someone@example.org"
    assert seen == [(True, someone), (True, someone, someone), someone]


@secure
def test_a_client_without_the_certificate_that_is_asked_for(serve: Servers) -> None:
    server = serve(ssl=asking_for_certificates())
    peer = server.connect()
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        peer.open()
    assert server.stories == []
    until(lambda: server.connections() == 0, "ended")


@only(*[name for name in PLAIN if "http" not in FRONT_ENDS[name].lacks], because="a websocket is asked in its own test")
def test_without_tls_there_is_nothing_to_know(serve: Servers) -> None:
    seen: list[Any] = []
    server = serve(onrequest=lambda request: seen.append((request.secure, request.ssl_object)))
    client = server.client(server.open())
    assert seen == [(False, None)]
    assert not client.secure
    assert client.ssl_object is None
    assert not server.server.secure
    with pytest.raises(RuntimeError, match="without ssl"):
        server.server.reload_tls("anything")


@secure
@needs("http")
def test_plain_answers_one_after_the_other(serve: Servers) -> None:
    server = serve(onrequest=lambda request: wspy.Response(200, body=request.path))
    peer = server.connect()
    peer.send(head("/one") + head("/two"))
    assert [peer.response().body for _ in range(2)] == [b"/one", b"/two"]
    peer.send(b"GET /three HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
    assert peer.response().body == b"/three"
    peer.eof()
    assert not peer.socket.is_cut_off


@secure
@needs("stop")
def test_a_stop_ends_handshakes_that_have_not_begun_or_not_ended(serve: Servers) -> None:
    server = serve()
    silent, half, done, opened = server.connect(), server.connect(), server.connect(), server.open()
    half.socket.plain.sendall(half.socket.sealed()[:50])
    done.socket.shake_hands()
    until(lambda: server.connections() == 4, "accepted")
    server.stop()
    opened.closes(1001)
    opened.half_close()
    assert server.ended(5)
    for peer in (silent, half, done):
        peer.end()


@secure
@needs("http")
@pytest.mark.parametrize("kind", [ssl.PROTOCOL_TLS_CLIENT, None], ids=["for clients", "none"])
def test_what_is_no_context_for_servers_is_refused(front_end: str, kind: Any) -> None:
    wrong = object() if kind is None else client_context()
    with pytest.raises((TypeError, ValueError), match=r"ssl is"):
        FRONT_ENDS[front_end].kind(("127.0.0.1", 0), ssl=wrong)
