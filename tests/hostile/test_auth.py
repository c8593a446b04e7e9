"""Who hasn't the right credentials: do they get in, hold anybody up, or learn anything? Rows K; heads.py has more."""

from __future__ import annotations

import re
import threading
import time
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pytest
from drivers import FRONT_ENDS, PATIENCE, TEXT, at, deliveries, echo, frame, head, needs, only, until
from heads import PEOPLE, field, token

from wspy import BasicAuth, DigestAuth, Request
from wspy.auth import Digest, as_octets, parse_challenges, quoted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from drivers import RawClient, Servers

RIGHT = b"Authorization: Basic " + token("user", "secret")


def asked(peer: RawClient) -> list[dict[str, str]]:
    """Receive a 401 with nothing behind it, and return the parameters of its challenges of Digest."""
    response = peer.response()
    assert response.status == 401, response
    assert response.headers["connection"] == "close"
    assert response.body == b"401 Unauthorized\n"
    peer.eof()
    peer.end()
    return [
        parameters for scheme, _, parameters in parse_challenges(response.headers["www-authenticate"]) if parameters
    ]


def challenge(server: Any, request: bytes | None = None) -> dict[str, str]:
    """Return the first challenge of Digest."""
    peer = server.connect()
    peer.send(head() if request is None else request)
    return asked(peer)[0]


def answered(asked: dict[str, str], pair: tuple[str, str] = ("user", "secret"), **changes: str | None) -> bytes:
    """Return a header line with credentials of Digest, some of which are as they must not be; None leaves one out."""
    said: dict[str, str | None] = {
        "username": as_octets(pair[0]),
        "realm": asked["realm"],
        "nonce": asked["nonce"],
        "uri": "/",
        "algorithm": asked["algorithm"],
        "qop": "auth",
        "nc": "00000001",
        "cnonce": 'a, "cnonce"',
        "opaque": asked["opaque"],
    }
    said |= {name: value for name, value in changes.items() if name not in {"method", "response"}}
    said["response"] = changes.get("response") or Digest(asked["algorithm"]).response(
        said["username"] or "",
        said["realm"] or "",
        as_octets(pair[1]),
        nonce=said["nonce"] or "",
        method=changes.get("method") or "GET",
        uri=said["uri"] or "",
        nc=said["nc"] or "",
        cnonce=said["cnonce"] or "",
    )
    text = ", ".join(f"{name}={quoted(value)}" for name, value in said.items() if value is not None)
    return f"Authorization: Digest {text}".encode("latin-1")


@pytest.mark.parametrize("pair", PEOPLE.items())
def test_k5_k15_a_digest_lets_in_however_it_is_cut(serve: Servers, pair: tuple[str, str]) -> None:
    """With commas and escapes inside quotes, and a count that rises."""
    server = serve(auth=DigestAuth(PEOPLE, 'the "realm", with \\'), onmessage=echo)
    found = challenge(server)
    assert found["realm"] == 'the "realm", with \\'
    template = field(answered(found, pair))
    for count, (_, pieces) in enumerate(deliveries(template, most=3), 1):
        request = field(answered(found, pair, nc=f"{count:08x}"))
        assert len(request) == len(template)
        peer = server.paced()
        peer.send_pieces(at(request, *accumulate(map(len, pieces[:-1]))))
        peer.opened()
        assert server.client(peer).request.username == pair[0]
        peer.end()


REFUSED: dict[str, tuple[dict[str, str | None], int]] = {
    "K10 another realm": ({"realm": "other"}, 401),
    "K10 another opaque": ({"opaque": "0" * 32}, 401),
    "K10 no opaque": ({"opaque": None}, 401),
    "K10 another uri": ({"uri": "/other"}, 400),
    "K10 another method": ({"method": "POST"}, 401),
    "K12 a count of 0": ({"nc": "00000000"}, 401),
    "K12 a count that is no hexadecimal number": ({"nc": "0000000g"}, 400),
    "K12 a short count": ({"nc": "1"}, 400),
    "K13 no qop": ({"qop": None}, 401),
    "K13 auth-int": ({"qop": "auth-int"}, 401),
    "K13 an algorithm that was not offered": ({"algorithm": "MD5"}, 401),
    "K13 an algorithm with a session": ({"algorithm": "SHA-256-sess"}, 401),
    "K13 an unknown algorithm": ({"algorithm": "SHA-1"}, 401),
    "K14 a forged nonce": ({"nonce": "A" * 40}, 401),
    "K14 no nonce": ({"nonce": ""}, 401),
    "K14 bytes for a nonce": ({"nonce": "\xff"}, 401),
    "K5 bytes that are no UTF-8": ({"username": "\xff"}, 401),
    "K5 bytes for a response": ({"response": "\xff" * 64}, 401),
    "K4 somebody unknown": ({"username": "nobody"}, 401),
    "K4 no user name": ({"username": None}, 401),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_digest_that_is_refused(serve: Servers, name: str) -> None:
    changes, status = REFUSED[name]
    policy = DigestAuth(PEOPLE, algorithms=["SHA-256"])
    server = serve(auth=policy)
    found = challenge(server)
    peer = server.connect()
    peer.send(field(answered(found, **changes)))
    if status == 401:
        assert all("stale" not in parameters for parameters in asked(peer))
        assert policy.failures == 1
    else:
        assert peer.response().status == status
    assert server.stories == []
    last = server.connect()
    last.send(field(answered(found)))
    last.opened()


def test_k14_a_nonce_of_another_server(serve: Servers, tmp_path: Path) -> None:
    one, other = (serve(auth=DigestAuth(PEOPLE)) for _ in range(2))
    assert "stale" not in challenge(one, field(answered(challenge(other))))
    options = {"secret": b"0123456789abcdef", "memory": tmp_path / "nonces"}
    one, other = (serve(auth=DigestAuth(PEOPLE, **options)) for _ in range(2))
    credentials = field(answered(challenge(other)))
    peer = one.connect()
    peer.send(credentials)
    peer.opened()
    for server in (one, other):
        assert challenge(server, credentials)["stale"] == "true"


def test_k11_an_old_nonce_is_stale_and_the_next_one_fresh(serve: Servers) -> None:
    server = serve(auth=DigestAuth(PEOPLE, lifetime=1e-9))
    found = challenge(server)
    again = challenge(server, field(answered(found)))
    assert again["stale"] == "true"
    assert again["nonce"] != found["nonce"]
    assert "stale" not in challenge(server, field(answered(found, ("user", "mistaken"))))


def test_k12_a_count_is_good_once(serve: Servers) -> None:
    server = serve(auth=DigestAuth(PEOPLE))
    found = challenge(server)
    peer = server.connect()
    peer.send(field(answered(found, nc="00000005")))
    peer.opened()
    for count in ("00000005", "00000004", "00000001"):
        assert challenge(server, field(answered(found, nc=count)))["stale"] == "true"
    later = server.connect()
    later.send(field(answered(found, nc="00000006")))
    later.opened()
    server.wait(lambda: len(server.stories) == 2, "let in twice")


def test_k1_a_challenge_for_each_scheme(serve: Servers) -> None:
    peer = serve(auth=[DigestAuth(PEOPLE, "one"), BasicAuth(PEOPLE, "other")]).connect()
    peer.send(head())
    found = asked(peer)
    assert [(one["realm"], one.get("algorithm")) for one in found] == [
        ("one", "SHA-256"),
        ("one", "MD5"),
        ("other", None),
    ]


def test_k16_brute_force_is_counted_and_leaves_one_line_each(serve: Servers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    told: list[Request] = []

    class Counting(BasicAuth):
        def onfailure(self, request: Request) -> None:
            told.append(request)

    policy = Counting(PEOPLE)
    server = serve(auth=policy)
    for number in range(20):
        peer = server.connect()
        peer.send(field(b"Authorization: Basic " + token("user", str(number))))
        asked(peer)
    assert policy.failures == len(told) == 20
    assert {request.remote_address[0] for request in told if request.remote_address} == {"127.0.0.1"}
    assert server.stories == []
    # five in a second; how many were left out is said in the next one, or at the end
    server.close()
    wrong = ["credentials for basic are wrong" in message for message in caplog.messages]
    left_out = [re.fullmatch(r"left out (\d+) more lines about 127.0.0.1", message) for message in caplog.messages]
    assert sum(wrong) >= 5
    assert sum(wrong) + sum(int(found[1]) for found in left_out if found) == 20
    assert all(told != (found is not None) for told, found in zip(wrong, left_out, strict=True))


WRONG = b"Authorization: Basic " + token("user", "guessed")
LONG = 600.0
everywhere = pytest.mark.parametrize("front_end", FRONT_ENDS, indirect=True)


def guessing(server: Any, line: bytes = WRONG) -> RawClient:
    """Return a client with wrong credentials, which the server has read."""
    peer: RawClient = server.connect()
    failures = server.policy.failures
    peer.send(field(line))
    until(lambda: server.policy.failures > failures, "read")
    return peer


def slowly(serve: Servers, delay: float, **options: Any) -> Any:
    """Start a server that takes its time to say that credentials are wrong."""
    policy = BasicAuth(PEOPLE, delay=delay)
    server = serve(auth=policy, onmessage=echo, **options)
    server.policy = policy
    return server


@everywhere
def test_k16_wrong_credentials_are_answered_later(serve: Servers) -> None:
    server = slowly(serve, 0.2)
    for _ in range(2):
        began = time.monotonic()
        asked(guessing(server))
        assert time.monotonic() - began >= 0.2
    assert server.policy.failures == 2
    assert server.stories == []


@everywhere
def test_k16_others_are_served_meanwhile_and_nothing_is_left(serve: Servers, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server = slowly(serve, LONG, open_timeout=LONG)
    peers = [guessing(server) for _ in range(3)]
    other = server.connect()
    other.send(field(RIGHT))
    other.opened()
    other.text("x")
    assert other.message() == "x"
    assert [peer.waiting() for peer in peers] == [b""] * 3
    # at once, not when there is nobody who could be told any more
    assert sum("credentials for basic are wrong" in message for message in caplog.messages) == 3
    for peer in peers:
        peer.abort()
    until(lambda: server.connections() == 1, "let go of")
    if server.has("stats"):
        until(lambda: not server.server._held_back, "forgotten")


@only("threads", because="a function that takes long is called in a thread there")
def test_k16_a_delay_holds_no_thread(serve: Servers) -> None:
    policy = BasicAuth(lambda *_: False, delay=LONG)
    server = serve(auth=policy, open_timeout=LONG)
    server.policy = policy
    peers = [guessing(server) for _ in range(3)]
    until(lambda: len(server.server._held_back) == 3, "held back")
    until(lambda: server.server._threads.busy == 0, "without threads")
    assert [peer.waiting() for peer in peers] == [b""] * 3


@everywhere
def test_k16_only_what_is_wrong_waits(serve: Servers) -> None:
    server = slowly(serve, LONG)
    for lines in (head(), field(b"Authorization: Bearer abc"), field(b"Authorization: Basic (")):
        peer = server.connect()
        peer.send(lines)
        asked(peer)
    digest = serve(auth=DigestAuth(PEOPLE, lifetime=1e-9, delay=LONG))
    assert challenge(digest, field(answered(challenge(digest))))["stale"] == "true"


@everywhere
def test_k16_the_opening_handshake_ends_in_time_however_long_the_delay(serve: Servers) -> None:
    server = slowly(serve, LONG, open_timeout=0.4 + 0.1 * PATIENCE)
    asked(guessing(server))  # it has an answer at hand when time is up
    until(lambda: server.connections() == 0, "let go of")


@everywhere
def test_k16_who_has_sent_all_is_answered(serve: Servers) -> None:
    """RFC 9112 §9.6: half of the connection is closed, the answer is still due."""
    peer = guessing(slowly(serve, 0.2))
    peer.half_close()
    asked(peer)


@everywhere
@needs("stop")
def test_k16_a_stop_does_not_wait_for_the_delay(serve: Servers) -> None:
    server = slowly(serve, LONG, open_timeout=LONG, shutdown_timeout=LONG)
    peer = guessing(server)
    server.stop()
    asked(peer)
    assert server.ended(10 * PATIENCE)


@everywhere
def test_k16_an_end_does_not_wait_for_the_delay(serve: Servers) -> None:
    server = slowly(serve, LONG, open_timeout=LONG)
    peer = guessing(server)
    server.close()
    until(peer.is_ended, "ended")


@pytest.mark.parametrize("make", [BasicAuth, DigestAuth])
def test_k17_credentials_are_not_shown(
    serve: Servers, caplog: pytest.LogCaptureFixture, make: Callable[..., Any]
) -> None:
    caplog.set_level("DEBUG")
    server = serve(auth=make({"somebody": "horse"}), onmessage=echo)
    for password in ("horse", "donkey"):
        peer = server.connect()
        peer.send(head())
        found = asked(peer)
        line = b"Authorization: Basic " + token("somebody", password)
        if "nonce" in found[0]:
            line = answered(found[0], ("somebody", password))
        peer = server.connect()
        peer.send(field(line))
        if password == "horse":
            peer.opened()
            client = server.client(peer)
            assert "horse" not in f"{client} {client!r} {client.request!r}"
            peer.end()
            server.outcome(peer)
        else:
            asked(peer)
    until(lambda: any("wrong" in message for message in caplog.messages), "logged")
    secrets = ["horse", "donkey", "somebody", line.decode()[-20:], token("somebody", "horse").decode()]
    assert not any(secret in message for message in caplog.messages for secret in secrets)


class Slow:
    """A function for credentials that waits, and says when it began."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.gate = threading.Event()

    def __call__(self, username: str, password: str) -> bool:
        if username == "slow":
            self.began.set()
            assert self.gate.wait(10 * PATIENCE)
        return True


def slow_request() -> bytes:
    """Return a request whose credentials take long, with a message behind it."""
    return field(b"Authorization: Basic " + token("slow", "")) + frame(TEXT, b"behind")


def test_k18_nothing_is_handled_while_a_function_decides(serve: Servers) -> None:
    slow = Slow()
    server = serve(auth=slow, onmessage=echo)
    peer = server.connect()
    peer.send(slow_request())
    slow.began.wait(10 * PATIENCE)
    peer.text("later")
    assert peer.waiting() == b""
    assert server.stories == []
    slow.gate.set()
    peer.opened()
    assert [peer.message(), peer.message()] == ["behind", "later"]


@only("threads", because="a function that takes long is called in a thread there")
def test_k18_others_are_served_and_the_deadline_runs_while_a_function_decides(serve: Servers) -> None:
    slow = Slow()
    server = serve(auth=slow, onmessage=echo, open_timeout=0.8 + 0.1 * PATIENCE)
    late = server.connect()
    late.send(field(b"Authorization: Basic " + token("slow", "")))
    slow.began.wait(10 * PATIENCE)
    other = server.connect()
    other.send(field(RIGHT))
    other.opened()
    other.text("x")
    assert other.message() == "x"
    assert late.response().status == 503
    late.eof()
    slow.gate.set()
    other.text("y")
    assert other.message() == "y"
    assert len(server.stories) == 1
