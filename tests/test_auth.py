"""Are challenges and credentials read as they were written, and digests computed as RFC 7616 says?"""

from __future__ import annotations

import hashlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wspy.auth import (
    ALGORITHMS,
    Challenge,
    Digest,
    as_octets,
    basic_token,
    checked_text,
    parse_challenges,
    quoted,
    split_basic,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('Basic realm="x"', [("basic", "", {"realm": "x"})]),
        ("Basic", [("basic", "", {})]),
        ("BASIC   dXNlcjpw", [("basic", "dXNlcjpw", {})]),
        ("Basic dQ==", [("basic", "dQ==", {})]),
        ("Negotiate, NTLM", [("negotiate", "", {}), ("ntlm", "", {})]),
        ("NTLM abc==, Digest nonce=1", [("ntlm", "abc==", {}), ("digest", "", {"nonce": "1"})]),
        (
            'Digest realm = "a" , NONCE="==", qop="auth,auth-int"',
            [("digest", "", {"realm": "a", "nonce": "==", "qop": "auth,auth-int"})],
        ),
        ('Digest realm="a, \\"b\\" \\\\ Basic c=d"', [("digest", "", {"realm": 'a, "b" \\ Basic c=d'})]),
        ('Digest realm=""', [("digest", "", {"realm": ""})]),
        (", ,Basic realm=x, , Digest realm=y,", [("basic", "", {"realm": "x"}), ("digest", "", {"realm": "y"})]),
        ("Digest , realm=x", [("digest", "", {"realm": "x"})]),
        ('Digest realm="a\tb"', [("digest", "", {"realm": "a\tb"})]),
    ],
)
def test_challenges_are_read(value: str, expected: list[Challenge]) -> None:
    assert parse_challenges(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ,, ",
        '"x"',
        "=",
        'Basic realm="x',
        'Basic realm="x\\',
        "Digest a=1 b=2",
        'Digest a="1"b=2',
        "Digest a=1, a=2",
        "Digest a=1, A=2",
        "Digest a=@",
        "realm=x",
        "Basic dQ== realm=x",
        "Basic dQ==, realm=x",
        "Basic d(Q",
        "Basic\tdQ==",
    ],
)
def test_k15_what_is_malformed_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"challenge|credentials"):
        parse_challenges(value)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f")))
def test_what_is_quoted_is_read_again(text: str) -> None:
    assert parse_challenges(f"Digest realm={quoted(text)}, x=y")[0].parameters == {"realm": text, "x": "y"}


@given(st.text(st.sampled_from('aB9=,; \t"\\')))
def test_reading_ends(value: str) -> None:
    try:
        found = parse_challenges(value)
    except ValueError:
        return
    assert all(challenge.scheme for challenge in found)


@pytest.mark.parametrize("value", ['Digest a="' + "\\" * 60_001, "Basic " * 12_000, "a=," * 20_000, " ," * 30_000 + "(",
                                   "Digest " + "a " * 30_000, "x" * 65_536, "Digest a=" + "=" * 60_000])  # fmt: skip
def test_time_is_linear(value: str, patience: float) -> None:
    began = time.perf_counter()
    with pytest.raises(ValueError):
        parse_challenges(value + "\x00")
    assert time.perf_counter() - began < 0.5 * patience


def test_text_that_can_not_be_sent() -> None:
    for text in ("a\x00", "a\n", "\x7f", "a\x85"):
        with pytest.raises(ValueError, match="the password has control characters") as caught:
            checked_text("the password", text)
        assert text not in str(caught.value)
    with pytest.raises(ValueError, match="surrogate"):
        checked_text("the password", "\ud800")
    with pytest.raises(TypeError, match="the password must be str, not bytes"):
        checked_text("the password", b"x")  # type: ignore[arg-type]


# ---- Basic ----


@pytest.mark.parametrize("pair", [("user", "pass"), ("", ""), ("u", "a:b::"), ("müller", "пароль 🔑")])
def test_k4_k5_basic(pair: tuple[str, str]) -> None:
    assert split_basic(basic_token(*pair)) == pair


def test_basic_as_in_rfc_7617_section_2() -> None:
    assert basic_token("Aladdin", "open sesame") == "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert basic_token("test", "123£") == "dGVzdDoxMjPCow=="


def test_k4_a_colon_ends_the_user_name() -> None:
    with pytest.raises(ValueError, match="colon"):
        basic_token("a:b", "c")


@pytest.mark.parametrize(
    "token",
    [
        "dTpw=",
        "dTpw\n",
        "dTpwc",
        "dTpwcA=",
        "dTpwcB==",
        "dTpw-_8=",
        "dT pw",
        "=",
        "",
        "dXA=",
        "//86",
        "dQA6cA==",
        "dTpwAA==",
    ],
)
def test_k3_k4_k5_k6_what_is_no_token_of_basic(token: str) -> None:
    with pytest.raises(ValueError, match=r"credentials|control"):
        split_basic(token)


# ---- Digest ----

# RFC 7616 §3.9.1
EXAMPLE = {
    "nonce": "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
    "method": "GET",
    "uri": "/dir/index.html",
    "nc": "00000001",
    "cnonce": "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
}
IDENTITY = ("Mufasa", "http-auth@example.org", "Circle of Life")


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("sha-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
)
def test_digest_as_in_rfc_7616_section_3_9_1(algorithm: str, expected: str) -> None:
    assert Digest(algorithm).response(*IDENTITY, **EXAMPLE) == expected


def test_digest_without_qop_as_in_rfc_2069() -> None:
    """RFC 2617 §3.2.2.1: KD(H(A1), nonce ":" H(A2))."""
    response = Digest("MD5").response("u", "r", "p", nonce="n", method="GET", uri="/", qop="")
    key, request = (hashlib.md5(part).hexdigest() for part in (b"u:r:p", b"GET:/"))  # noqa: S324 -- the algorithm asked for
    assert response == hashlib.md5(f"{key}:n:{request}".encode()).hexdigest()  # noqa: S324 -- the same


def test_digest_with_a_session() -> None:
    """RFC 7616 §3.4.2: H(A1) is the hash of the usual one, nonce and cnonce."""
    digest = Digest("SHA-256-sess")
    assert digest.has_session
    first = hashlib.sha256(b"u:r:p").hexdigest()
    key = hashlib.sha256(f"{first}:n:c".encode()).hexdigest()
    request = hashlib.sha256(b"GET:/").hexdigest()
    expected = hashlib.sha256(f"{key}:n:00000001:c:auth:{request}".encode()).hexdigest()
    said = {"nonce": "n", "method": "GET", "uri": "/", "nc": "00000001", "cnonce": "c"}
    assert digest.response("u", "r", "p", **said) == expected


def test_octets_are_hashed_as_they_came() -> None:
    expected = hashlib.sha256("jäsøn:é:пароль".encode()).hexdigest()
    assert Digest("SHA-256").hash("jäsøn:é:пароль".encode()) == expected
    identity = tuple(map(as_octets, ("jäsøn", "é", "пароль")))
    request = hashlib.sha256(b"GET:/").hexdigest()
    whole = hashlib.sha256(f"{expected}:n:00000001:c:auth:{request}".encode()).hexdigest()
    said = {"nonce": "n", "method": "GET", "uri": "/", "nc": "00000001", "cnonce": "c"}
    assert Digest("SHA-256").response(*identity, **said) == whole  # type: ignore[arg-type]


def test_an_algorithm_that_nobody_knows() -> None:
    with pytest.raises(ValueError, match="unknown algorithm"):
        Digest("SHA-1")
    assert list(ALGORITHMS)[:2] == ["sha-256", "md5"]
