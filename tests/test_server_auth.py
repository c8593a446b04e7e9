"""Does a server let in whom it knows, and nobody else, and tell nobody why?"""

from __future__ import annotations

import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from copy import copy
from typing import TYPE_CHECKING, Any

import pytest

from wspy import HandshakeError, Headers, Request
from wspy.auth import basic_token, parse_challenges, quoted
from wspy.client_auth import ClientAuth
from wspy.server_auth import Auth, BasicAuth, DigestAuth, authenticate, checked_policies

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = 1_800_000_000.0
PEOPLE = [("user", "secret"), ("müller", "pä:ss"), ("", "")]
SECRET = b"0123456789abcdef"


def ask(policies: Any, value: str | None, now: float = NOW, target: str = "/chat?x=1", method: str = "GET") -> str:
    headers = Headers.from_parsed([] if value is None else [("Authorization", value)])
    request = Request(b"", method, target, target, "1.1", headers, is_websocket=True, keep_alive=True)
    return authenticate(checked_policies(policies), request, now)


def refused(policies: Any, value: str | None, now: float = NOW, target: str = "/chat?x=1", method: str = "GET") -> Any:
    with pytest.raises(HandshakeError) as caught:
        ask(policies, value, now, target, method)
    return caught.value


def asked(error: HandshakeError) -> list[str]:
    """Return the challenges of a refusal."""
    assert error.status == 401
    assert error.headers
    assert {name.lower() for name, _ in error.headers} == {"www-authenticate"}
    return [value for _, value in error.headers]


def answer(policy: Auth, username: str, password: str, now: float = NOW, target: str = "/chat?x=1") -> str:
    """Return what a client of ours answers."""
    value = ClientAuth(username, password).answer(policy.challenges(now), "GET", target)
    assert value is not None
    return value


def changed(value: str, **parameters: str | None) -> str:
    """Return credentials of Digest with other parameters; None leaves one out."""
    ((_, _, found),) = parse_challenges(value)
    merged = {**found, **parameters}
    return "Digest " + ", ".join(f"{name}={quoted(text)}" for name, text in merged.items() if text is not None)


# ---- which credentials there are ----


@pytest.mark.parametrize(
    "credentials",
    [
        ("user", "secret"),
        ["user", "secret"],
        [("user", "secret"), ("b", "c")],
        {"user": "secret"},
        iter([("user", "secret")]),
        lambda username, password: (username, password) == ("user", "secret"),
    ],
)
def test_forms_of_credentials(credentials: Any) -> None:
    policies = checked_policies(credentials)
    assert ask(policies, "Basic " + basic_token("user", "secret")) == "user"
    assert refused(policies, "Basic " + basic_token("user", "Secret")).status == 401


def test_policies_by_name() -> None:
    basic, digest = BasicAuth(("a", "b")), DigestAuth(("a", "b"))
    assert checked_policies(basic) == (basic,)
    assert checked_policies([digest, basic]) == (digest, basic)
    assert checked_policies(None) == ()


@pytest.mark.parametrize(
    ("credentials", "error"),
    [
        ("user", TypeError),
        ([], ValueError),
        ({}, ValueError),
        (("a", "b", "c"), TypeError),
        ([("a",)], TypeError),
        ([("a", 1)], TypeError),
        (("a", "b\n"), ValueError),
        ([("a:", "b")], ValueError),
        (5, TypeError),
        ([BasicAuth(("a", "b")), 5], TypeError),
        ([BasicAuth(("a", "b")), ("a", "b")], TypeError),
        ([("a", "b"), ("a", "c")], ValueError),
        (BasicAuth, TypeError),
        (lambda username: username, TypeError),
    ],
)
def test_what_are_no_credentials(credentials: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        checked_policies(credentials)


# ---- Basic ----


@pytest.mark.parametrize("pair", PEOPLE)
@pytest.mark.parametrize("scheme", ["Basic ", "basic ", "BASIC    "])
def test_k2_k4_k5_basic_lets_in(pair: tuple[str, str], scheme: str) -> None:
    assert ask(BasicAuth(PEOPLE), scheme + basic_token(*pair)) == pair[0]


def test_k1_nothing_or_an_unknown_scheme() -> None:
    policies = [DigestAuth(PEOPLE, "a realm"), BasicAuth(PEOPLE, 'a "realm"')]
    for value in (None, "Bearer abc", "Negotiate"):
        found = [parse_challenges(one)[0] for one in asked(refused(policies, value))]
        assert [(one.scheme, one.parameters.get("algorithm")) for one in found] == [
            ("digest", "SHA-256"),
            ("digest", "MD5"),
            ("basic", None),
        ]
        assert found[-1].parameters == {"realm": 'a "realm"', "charset": "UTF-8"}
        assert found[0].parameters["realm"] == "a realm"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "dXNlcjpzZWNyZXQ==",
        "dXNlcjpzZWNyZX",
        "dXNl cjpzZWNyZXQ=",
        "dXNlcjpzZWNyZXR=",
        "dXNlcg==",
        "bcO8bGxlcjpw5DpzcA==",
        "dXNlcgA6c2VjcmV0",
        "====",
        "d(Q",
        "dXNlcjpzZWNyZXQ=\n",
        basic_token("user", "secret2"),
        basic_token("User", "secret"),
        basic_token("user", ""),
        basic_token("nobody", "secret"),
        basic_token("", "secret"),
        basic_token("müller", "pa:ss"),
    ],
)
def test_k3_k4_k5_k6_basic_refuses(token: str) -> None:
    assert refused(BasicAuth(PEOPLE), "Basic " + token).status == 401


def test_k8_long_credentials() -> None:
    assert refused(BasicAuth(PEOPLE), "Basic " + basic_token("user", "x" * 8192)).status == 401


def test_k15_malformed_credentials_are_400() -> None:
    for value in ('Digest realm="x', "Digest a=1, a=1", "Bearer a, Bearer b", ""):
        assert refused([BasicAuth(PEOPLE), DigestAuth(PEOPLE)], value).status == 400


def test_k5_a_function_is_told_text_and_its_failure_is_passed_on() -> None:
    told: list[Any] = []
    assert refused(lambda *pair: told.append(pair), "Basic " + basic_token("müller", "pä:ss")).status == 401
    assert told == [("müller", "pä:ss")]
    assert refused(lambda *_: True, "Basic ====").status == 401
    with pytest.raises(ZeroDivisionError):
        ask(lambda *_: 1 / 0, "Basic " + basic_token("a", "b"))


@pytest.mark.slow
def test_k9_time_tells_nothing() -> None:
    """CVE-2021-33880; Welch's t over samples taken in turn."""
    policy = BasicAuth([("user", "a" * 30), *((f"user{i}", "b" * 30) for i in range(1000))])
    tokens = [basic_token(*pair) for pair in (("nobo", "a" * 30), ("user", "x" + "a" * 29), ("user", "a" * 29 + "x"))]
    credentials = [parse_challenges("Basic " + token)[0] for token in tokens]
    samples: list[list[int]] = [[] for _ in credentials]
    clock = time.perf_counter_ns
    order = list(range(len(credentials)))
    for _ in range(20_000):
        random.shuffle(order)
        for kind in order:
            began = clock()
            policy.username(credentials[kind], "GET", "/", NOW)
            samples[kind].append(clock() - began)
    # what the scheduler adds is in the highest tenth
    trimmed = [sorted(each)[: len(each) * 9 // 10] for each in samples]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        a, b = trimmed[one], trimmed[other]
        error = (statistics.pvariance(a) / len(a) + statistics.pvariance(b) / len(b)) ** 0.5
        difference = abs(statistics.fmean(a) - statistics.fmean(b))
        assert difference < 4.5 * error or difference < 50  # nanoseconds


def test_a_function_may_fail_in_any_way_and_that_is_not_the_clients_fault() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        ask(lambda _, password: int(password), "Basic " + basic_token("a", "b"))


def test_a_coroutine_lets_nobody_in() -> None:
    async def check(username: str, password: str) -> bool:
        return False

    for make in (BasicAuth, DigestAuth, checked_policies):
        with pytest.raises(TypeError, match="async def"):
            make(check)
    made: list[Any] = []

    def disguised(username: str, password: str) -> Any:
        made.append(check(username, password))
        return made[-1]

    with pytest.raises(TypeError, match="await"):
        ask(disguised, "Basic " + basic_token("a", "b"))
    made[0].close()


def test_whose_functions_may_block() -> None:
    assert not BasicAuth(PEOPLE).may_block
    assert not DigestAuth(PEOPLE).may_block
    assert BasicAuth(lambda *_: False).may_block
    assert DigestAuth({"a": "b"}.get).may_block
    assert DigestAuth(PEOPLE, replayed=lambda *_: False).may_block


def test_two_policies_of_one_scheme_are_both_asked() -> None:
    policies = [BasicAuth(("a", "b"), "one"), BasicAuth(("c", "d"), "other")]
    assert ask(policies, "Basic " + basic_token("a", "b")) == "a"
    assert ask(policies, "Basic " + basic_token("c", "d")) == "c"
    assert len(asked(refused(policies, "Basic " + basic_token("a", "d")))) == 2
    assert [policy.failures for policy in policies] == [1, 1]


# ---- Digest ----


@pytest.mark.parametrize("pair", PEOPLE)
@pytest.mark.parametrize("algorithms", [("SHA-256", "MD5"), ("MD5",), ("sha-512-256",)])
@pytest.mark.parametrize("realm", ["WebSocket", 'with "quotes" \\, and commas', "café"])
def test_digest_lets_in(pair: tuple[str, str], algorithms: tuple[str, ...], realm: str) -> None:
    policy = DigestAuth(PEOPLE, realm, algorithms=algorithms)
    assert ask(policy, answer(policy, *pair)) == pair[0]
    assert refused(policy, answer(policy, pair[0], pair[1] + "x")).status == 401
    assert policy.failures == 1


def test_digest_with_a_function() -> None:
    policy = DigestAuth({"a": "b"}.get)
    assert ask(policy, answer(policy, "a", "b")) == "a"
    assert refused(policy, answer(policy, "c", "b")).status == 401


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"realm": "other"}, 401),
        ({"opaque": "0" * 32}, 401),
        ({"opaque": None}, 401),
        ({"uri": "/other"}, 400),
        ({"username": "nobody"}, 401),
        ({"username": None}, 401),
        ({"username*": "UTF-8''user"}, 401),
        ({"username": None, "username*": "latin-1''user"}, 401),
        ({"username": None, "username*": "user"}, 401),
        ({"username": "\xff"}, 401),
        ({"response": "0" * 64}, 401),
        ({"response": "\xff" * 64}, 401),
        ({"nonce": "abc"}, 401),
        ({"nonce": ""}, 401),
        ({"nonce": "\xff"}, 401),
        ({"nonce": "A" * 40}, 401),
        ({"nc": "00000000"}, 401),
        ({"nc": "0000000g"}, 400),
        ({"nc": "1"}, 400),
        ({"nc": "00000002"}, 401),
        ({"qop": None}, 401),
        ({"qop": "auth-int"}, 401),
        ({"cnonce": ""}, 401),
        ({"cnonce": None}, 401),
        ({"algorithm": "MD5"}, 401),
        ({"algorithm": "SHA-256-sess"}, 401),
        ({"algorithm": "SHA-1"}, 401),
        ({"algorithm": None}, 401),
    ],
)
def test_k10_k12_k13_k14_a_changed_parameter(parameters: dict[str, str | None], status: int) -> None:
    policy = DigestAuth(PEOPLE, algorithms=["SHA-256"])
    value = answer(policy, "user", "secret")
    error = refused(policy, changed(value, **parameters))
    assert error.status == status
    if status == 401:
        assert all("stale" not in challenge for challenge in asked(error))
    assert ask(policy, value) == "user"


def test_k10_another_method() -> None:
    policy = DigestAuth(PEOPLE)
    assert refused(policy, answer(policy, "user", "secret"), method="POST").status == 401


def test_username_in_its_extended_form() -> None:
    """RFC 7616 §3.4."""
    policy = DigestAuth(PEOPLE)
    value = answer(policy, "müller", "pä:ss")
    assert "username*=UTF-8''m%C3%BCller" in value
    assert ask(policy, value) == "müller"


@pytest.mark.parametrize(
    "username", ["username*=UTF-8''a%00", "username*=UTF-8''a%0D%0A", 'username="a\t"', 'username="\xc2\x85"']
)
def test_k6_digest_asks_for_no_control_characters(username: str) -> None:
    """As in Basic (RFC 7617 §2): a function need not know what a database, a path or a log makes of them."""
    asked_for: list[str] = []

    def password(name: str) -> str | None:
        asked_for.append(name)
        return None

    policy = DigestAuth(password)
    value = answer(policy, "user", "secret").replace('username="user"', username)
    assert username in value
    assert refused(policy, value).status == 401
    assert asked_for == []


def test_k11_an_old_nonce_is_stale() -> None:
    policy = DigestAuth(PEOPLE, lifetime=10)
    value = answer(policy, "user", "secret")
    challenges = asked(refused(policy, value, NOW + 10.1))
    assert all("stale=true" in challenge for challenge in challenges)
    nonces = {parse_challenges(challenge)[0].parameters["nonce"] for challenge in challenges}
    assert not nonces & {parse_challenges(value)[0].parameters["nonce"]}
    assert policy.failures == 0
    for wrong in (changed(value, response="0" * 64), answer(policy, "user", "wrong")):
        assert all("stale" not in challenge for challenge in asked(refused(policy, wrong, NOW + 10.1)))
    assert ask(policy, value, NOW + 9.9) == "user"
    assert all(
        "stale=true" in challenge for challenge in asked(refused(policy, answer(policy, "user", "secret"), NOW - 6))
    )


def test_k11_our_client_goes_on_with_the_fresh_nonce() -> None:
    policy = DigestAuth(PEOPLE, lifetime=10)
    client = ClientAuth("user", "secret")
    first = client.answer(policy.challenges(NOW), "GET", "/")
    error = refused(policy, first, NOW + 60, "/")
    again = client.answer(asked(error), "GET", "/")
    assert ask(policy, again, NOW + 60, "/") == "user"


def test_k12_a_count_is_good_once_and_rises() -> None:
    policy = DigestAuth(PEOPLE)
    client = ClientAuth("user", "secret")
    (challenge, _) = policy.challenges(NOW)
    first = client.answer([challenge], "GET", "/")
    second = client.answer([challenge + ", stale=true"], "GET", "/")
    assert ask(policy, second, target="/") == "user"
    for used in (second, first, second):
        assert all("stale=true" in one for one in asked(refused(policy, used, target="/")))


def test_k14_objects_that_share_a_secret(tmp_path: Path) -> None:
    memory = tmp_path / "nonces"
    one, other = (DigestAuth(PEOPLE, secret=SECRET, memory=memory) for _ in range(2))
    value = answer(one, "user", "secret")
    assert ask(other, value) == "user"
    for policy in (one, other, DigestAuth(PEOPLE, secret=SECRET, memory=memory)):
        assert "stale=true" in asked(refused(policy, value))[0]
    for stranger in (DigestAuth(PEOPLE), DigestAuth(PEOPLE, "other realm", secret=SECRET, memory=memory)):
        assert "stale" not in asked(refused(one, answer(stranger, "user", "secret")))[0]


@pytest.mark.parametrize("who_first", ["parent", "child"])
def test_k14_forked_workers_let_in_once_between_them(who_first: str) -> None:
    policy = DigestAuth(PEOPLE)
    value = answer(policy, "user", "secret")
    if who_first == "parent":
        assert ask(policy, value) == "user"
    child = os.fork()
    if not child:
        code = 2
        try:
            code = int(ask(policy, value) != "user")
        except HandshakeError as error:
            code = 10 + ("stale=true" in asked(error)[0])
        finally:
            os._exit(code)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if who_first == "parent":
        assert ended == 11
    else:
        assert ended == 0
        assert "stale=true" in asked(refused(policy, value))[0]


WORKER = """
import sys
from wspy import DigestAuth, HandshakeError, Headers, Request
from wspy.server_auth import authenticate

policy = DigestAuth(("user", "secret"), secret=b"0123456789abcdef", memory=sys.argv[1])
headers = Headers.from_parsed([("Authorization", sys.argv[2])])
request = Request(b"", "GET", "/chat?x=1", "/chat?x=1", "1.1", headers, is_websocket=True, keep_alive=True)
try:
    print(authenticate((policy,), request, float(sys.argv[3])))
except HandshakeError as error:
    print("stale" if "stale=true" in error.headers[0][1] else "refused")
"""


def test_k14_independent_processes_let_in_once_between_them(tmp_path: Path) -> None:
    memory = str(tmp_path / "nonces")
    policy = DigestAuth(PEOPLE, secret=SECRET, memory=memory)
    values = [answer(policy, "user", "secret", NOW + number) for number in range(2)]

    def worker(value: str) -> str:
        command = [sys.executable, "-c", WORKER, memory, value, str(NOW + 1)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    assert ask(policy, values[0], NOW + 1) == "user"
    assert [worker(values[0]), worker(values[1]), worker(values[1])] == ["stale", "user", "stale"]
    assert "stale=true" in asked(refused(policy, values[1], NOW + 1))[0]


def test_k14_a_clock_that_is_behind() -> None:
    policy = DigestAuth(PEOPLE, lifetime=10)
    ahead = answer(policy, "user", "secret", NOW + 4.9)
    assert ask(policy, ahead, NOW) == "user"
    assert "stale=true" in asked(refused(policy, ahead, NOW))[0]
    assert "stale=true" in asked(refused(policy, answer(policy, "user", "secret", NOW + 5.1), NOW))[0]


@pytest.mark.parametrize(
    "options",
    [
        {"secret": SECRET},
        {"memory": "nonces"},
        {"secret": SECRET, "memory": "nonces", "replayed": lambda *_: False},
    ],
)
def test_k14_what_processes_must_share(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"secret|not both"):
        DigestAuth(PEOPLE, **options)


def test_k14_counts_that_processes_share() -> None:
    used: set[tuple[str, int]] = set()

    def replayed(nonce: str, count: int) -> bool:
        is_used = (nonce, count) in used
        used.add((nonce, count))
        return is_used

    one, other = (DigestAuth(PEOPLE, secret=SECRET, replayed=replayed) for _ in range(2))
    value = answer(one, "user", "secret")
    assert ask(one, value) == "user"
    assert "stale=true" in asked(refused(other, value))[0]


def test_k12_what_is_remembered_is_bounded_and_what_is_not_counts_as_used() -> None:
    policy = DigestAuth(PEOPLE, max_nonces=3)
    values = [answer(policy, "user", "secret", NOW + i) for i in range(10)]
    for value in values:
        assert ask(policy, value, NOW + 10) == "user"
    for value in values:
        assert "stale=true" in asked(refused(policy, value, NOW + 10))[0]
    alone = DigestAuth(PEOPLE, max_nonces=1)
    late = answer(alone, "user", "secret", NOW)
    assert ask(alone, answer(alone, "user", "secret", NOW + 1), NOW + 1) == "user"
    assert "stale=true" in asked(refused(alone, late, NOW + 1))[0]


def test_threads_use_a_nonce_once() -> None:
    policy = DigestAuth(PEOPLE)
    value = answer(policy, "user", "secret")
    let_in: list[str] = []
    gate = threading.Barrier(8)

    def run() -> None:
        gate.wait(10)
        for _ in range(20):
            try:
                let_in.append(ask(policy, value))
            except HandshakeError:
                continue

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert let_in == ["user"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"algorithms": ["SHA-1"]}, ValueError),
        ({"algorithms": ["MD5-sess"]}, ValueError),
        ({"algorithms": []}, ValueError),
        ({"secret": b"short", "replayed": lambda *_: False}, ValueError),
        ({"lifetime": 0}, ValueError),
        ({"max_nonces": 0}, ValueError),
        ({"max_nonces": 1 << 21}, ValueError),
        ({"realm": "a\n"}, ValueError),
        ({"realm": 5}, TypeError),
    ],
)
def test_digest_that_can_not_be(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        DigestAuth(PEOPLE, **options)


# ---- failures ----


def test_k16_failures_are_counted_and_told_without_the_credentials() -> None:
    told: list[str] = []

    class Counting(BasicAuth):
        def onfailure(self, request: Request) -> None:
            told.append(request.target)

    policy = Counting(PEOPLE)
    for _ in range(3):
        refused(policy, "Basic " + basic_token("user", "wrong"))
    refused(policy, None)
    assert (policy.failures, told) == (3, ["/chat?x=1"] * 3)


def test_k16_the_longest_delay_of_those_who_were_asked() -> None:
    policies = [BasicAuth(PEOPLE, delay=1), BasicAuth(PEOPLE, "other", delay=2.5), DigestAuth(PEOPLE, delay=9)]
    wrong = "Basic " + basic_token("user", "wrong")
    assert refused(policies, wrong).delay == 2.5
    assert copy(refused(policies, wrong)).delay == 2.5
    assert refused(policies[2], answer(policies[2], "user", "wrong")).delay == 9
    assert refused(PEOPLE, wrong).delay == 0
    for value in (None, "Bearer abc", "Basic (", answer(policies[2], "user", "secret", NOW - 1000)):
        assert not hasattr(refused(policies, value), "delay")


@pytest.mark.parametrize("make", [BasicAuth, DigestAuth])
@pytest.mark.parametrize(
    ("delay", "error"),
    [(-1, ValueError), (float("nan"), ValueError), (float("inf"), ValueError), (None, ValueError), ("1", TypeError)],
)
def test_what_is_no_delay(make: Callable[..., Auth], delay: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="delay"):
        make(PEOPLE, delay=delay)


@pytest.mark.parametrize("make", [BasicAuth, DigestAuth])
def test_k17_nothing_is_shown(make: Callable[..., Auth]) -> None:
    policy = make([("theuser", "thepassword")], "a realm")
    for value in ("Basic " + basic_token("theuser", "thewrong"), answer(policy, "theuser", "thewrong")):
        error = refused(policy, value)
        for text in (repr(policy), str(error), repr(error), *asked(error)):
            assert not re.search("theuser|thepassword|thewrong", text)
    assert repr(policy) == f"<{type(policy).__name__} 'a realm'>"
    assert repr(parse_challenges("Basic " + basic_token("a", "b"))) == "[<Challenge basic>]"


def test_another_scheme() -> None:
    class Bearer(Auth):
        scheme = "bearer"

        def challenges(self, now: float, *, stale: bool = False) -> list[str]:
            return [f"Bearer realm={quoted(self.realm)}"]

        def username(self, credentials: Any, method: str, target: str, now: float) -> str | None:
            return "the bearer" if credentials.token == "abc" else None

    policies = [Bearer("x"), BasicAuth(PEOPLE)]
    assert ask(policies, "bearer abc") == "the bearer"
    assert len(asked(refused(policies, "bearer xyz"))) == 2
