"""Does everybody who asks a server hear who a client is, and nobody of those who are not let in?"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
from drivers import echo, head, needs

import wspy

if TYPE_CHECKING:
    from drivers import Servers

PAIR = ("user", "secret")
RIGHT = [("Authorization", "Basic " + base64.b64encode(b"user:secret").decode())]
WRONG = [("Authorization", "Basic " + base64.b64encode(b"user:other").decode())]
PLAIN = b"GET /path HTTP/1.1\r\nHost: here\r\n%b\r\n"

FORMS: dict[str, Any] = {
    "a pair": PAIR,
    "several pairs": [("other", "x"), PAIR],
    "a mapping": {"user": "secret"},
    "a function": lambda username, password: (username, password) == PAIR,
    "a policy": wspy.BasicAuth(PAIR),
    "several policies": [wspy.DigestAuth(PAIR), wspy.BasicAuth(PAIR)],
}


@pytest.mark.parametrize("form", FORMS)
def test_who_is_let_in_and_who_is_not(serve: Servers, form: str) -> None:
    server = serve(auth=FORMS[form], onmessage=echo)
    for headers in ([], WRONG):
        peer = server.connect()
        peer.send(head("/", headers))
        response = peer.response()
        assert (response.status, response.headers["www-authenticate"].partition(" ")[0]) in {
            (401, "Basic"),
            (401, "Digest"),
        }
        peer.eof()
    assert server.stories == []
    peer = server.open("/", RIGHT)
    peer.text("x")
    assert peer.message() == "x"
    assert server.client(peer).request.username == "user"


@pytest.mark.parametrize("wrong", ["user:secret", (), {}, ("user",), [("user", 1)], 5])
def test_what_can_not_be_asked_for(serve: Servers, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        serve(auth=wrong)


def test_a_function_that_fails_lets_nobody_in(serve: Servers) -> None:
    server = serve(auth=lambda *_: 1 / 0, onerror=lambda *_: None)
    peer = server.connect()
    peer.send(head("/", RIGHT))
    assert peer.response().status == 500
    assert server.stories == []


@needs("policies")
@pytest.mark.parametrize("keep", [True, False])
def test_handlers_know_the_user_name(serve: Servers, keep: bool) -> None:
    seen: list[Any] = []

    def look(client: Any, *_: Any) -> None:
        seen.append((client.username, client.request and client.request.username))

    server = serve(auth=PAIR, onopen=look, onmessage=look, onclose=look, keep_request=keep)
    peer = server.open("/", RIGHT)
    peer.text("x")
    peer.close()
    server.wait(lambda: len(seen) == 3, "onclose")
    assert seen == [("user", "user"), *[("user", "user" if keep else None)] * 2]


@needs("http")
def test_plain_http_is_guarded_too(serve: Servers) -> None:
    asked: list[Any] = []

    def onrequest(request: wspy.Request) -> wspy.Response:
        asked.append(request.username)
        return wspy.Response(200, body=f"hello, {request.username}\n")

    server = serve(auth=PAIR, onrequest=onrequest)
    for headers in (b"", b"%b: %b\r\n" % tuple(part.encode() for part in WRONG[0])):
        peer = server.connect()
        peer.send(PLAIN % headers)
        assert peer.response().status == 401
        peer.eof()
    assert asked == []
    peer = server.connect()
    for _ in range(2):
        peer.send(PLAIN % b"%b: %b\r\n" % tuple(part.encode() for part in RIGHT[0]))
        assert peer.response().body == b"hello, user\n"


@needs("http", "policies")
def test_onrequest_may_say_who_it_is(serve: Servers) -> None:
    """By a token or a cookie of its own."""

    def onrequest(request: wspy.Request) -> wspy.Response | None:
        if request.headers.get("authorization") != "Bearer abc":
            return wspy.Response(401, headers={"WWW-Authenticate": "Bearer"})
        request.username = "the bearer"
        return None

    server = serve(onrequest=onrequest)
    peer = server.connect()
    peer.send(head("/", RIGHT))
    assert peer.response().status == 401
    peer = server.open("/", [("Authorization", "Bearer abc")])
    client = server.client(peer)
    assert client.username == client.request.username == "the bearer"


def test_without_auth_nobody_is_asked(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peer = server.open("/", WRONG)
    assert server.client(peer).request.username is None
