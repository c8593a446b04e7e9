"""Does a client answer challenges rightly, once, and with the strongest scheme?"""

from __future__ import annotations

import pytest

from wspy.auth import Digest, parse_challenges
from wspy.client_auth import ClientAuth

BASIC = 'Basic realm="x"'
DIGEST = 'Digest realm="x", nonce="n", qop="auth"'


def said(answer: str | None) -> dict[str, str]:
    """Return the parameters of credentials of Digest."""
    assert answer is not None
    ((scheme, token, parameters),) = parse_challenges(answer)
    assert (scheme, token) == ("digest", "")
    return parameters


def test_basic() -> None:
    assert ClientAuth("Aladdin", "open sesame").answer([BASIC], "GET", "/") == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256", "MD5-sess", "SHA-256-sess", "sha-256"])
@pytest.mark.parametrize("realm", ["x", "with spaces", 'and "quotes" \\, = commas', "", "m\xc3\xbc"])
@pytest.mark.parametrize("opaque", ["", "o p", None])
def test_digest(algorithm: str, realm: str, opaque: str | None) -> None:
    escaped = realm.replace("\\", "\\\\").replace('"', '\\"')
    asked = f'Digest realm="{escaped}", nonce="a+b/c==", qop="auth, auth-int", algorithm={algorithm}'
    if opaque is not None:
        asked += f', opaque="{opaque}"'
    answer = said(ClientAuth("user", "secret").answer([asked], "GET", '/p?q="x"'))
    assert answer["username"] == "user"
    assert (answer["realm"], answer["nonce"], answer["uri"]) == (realm, "a+b/c==", '/p?q="x"')
    assert (answer["qop"], answer["nc"], answer.get("opaque")) == ("auth", "00000001", opaque)
    assert answer["algorithm"] == algorithm
    expected = Digest(algorithm).response(
        "user", realm, "secret", nonce="a+b/c==", method="GET", uri='/p?q="x"', nc="00000001", cnonce=answer["cnonce"]
    )
    assert answer["response"] == expected
    assert len(answer["cnonce"]) >= 16


def test_digest_without_qop() -> None:
    answer = said(ClientAuth("u", "p").answer(['Digest realm="r", nonce="n"'], "GET", "/"))
    assert answer.keys() == {"username", "realm", "nonce", "uri", "response"}
    assert answer["response"] == Digest("MD5").response("u", "r", "p", nonce="n", method="GET", uri="/", qop="")


def test_client_nonces_differ() -> None:
    assert len({said(ClientAuth("u", "p").answer([DIGEST], "GET", "/"))["cnonce"] for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("values", "scheme"),
    [
        ([BASIC, DIGEST], "MD5"),
        ([f"{BASIC}, {DIGEST}"], "MD5"),
        ([DIGEST, DIGEST + ", algorithm=SHA-256", BASIC], "SHA-256"),
        ([DIGEST + ", algorithm=SHA-256-sess", DIGEST], "SHA-256-sess"),
        (["Negotiate", DIGEST + ", algorithm=SHA-1", BASIC], "Basic"),
        (['Digest realm="x", nonce="n", qop="auth-int"', BASIC], "Basic"),
        (["Digest realm=x", BASIC], "Basic"),
        (['Digest realm="x', BASIC], "Basic"),
    ],
)
def test_the_strongest_that_is_known_is_chosen(values: list[str], scheme: str) -> None:
    answer = ClientAuth("u", "p").answer(values, "GET", "/")
    assert answer is not None
    if scheme == "Basic":
        assert answer.startswith("Basic ")
    else:
        assert said(answer).get("algorithm", "MD5") == scheme


@pytest.mark.parametrize("values", [[], ["Negotiate"], ["Basic"], ["=="], ['Digest nonce="n"']])
def test_nothing_that_can_be_answered(values: list[str]) -> None:
    assert ClientAuth("u", "p").answer(values, "GET", "/") is None


def test_k19_an_answer_is_given_once() -> None:
    for challenge in (BASIC, DIGEST, DIGEST + ", stale=false"):
        auth = ClientAuth("u", "p")
        assert auth.answer([challenge], "GET", "/")
        assert auth.answer([challenge], "GET", "/") is None
    auth = ClientAuth("u", "p")
    assert auth.answer([DIGEST], "GET", "/")
    assert auth.answer([BASIC], "GET", "/") is None


def test_a_nonce_that_was_too_old_is_answered_once_more() -> None:
    """RFC 7616 §3.3."""
    auth = ClientAuth("u", "p")
    assert said(auth.answer([DIGEST], "GET", "/"))["nc"] == "00000001"
    again = 'Digest realm="x", nonce="n2", qop="auth", stale=TRUE'
    assert said(auth.answer([again], "GET", "/"))["nonce"] == "n2"
    assert auth.answer([again], "GET", "/") is None


def test_the_same_nonce_again_is_counted() -> None:
    """RFC 7616 §3.4: nc."""
    auth = ClientAuth("u", "p")
    auth.answer([DIGEST], "GET", "/")
    assert said(auth.answer([DIGEST + ", stale=true"], "GET", "/"))["nc"] == "00000002"


def test_again_without_being_asked() -> None:
    auth = ClientAuth("u", "p")
    assert auth.again("GET", "/") is None
    first = said(auth.answer([DIGEST], "GET", "/a"))
    second = said(auth.again("GET", "/b"))
    assert (first["nc"], second["nc"], second["uri"]) == ("00000001", "00000002", "/b")
    assert first["cnonce"] != second["cnonce"]
    assert auth.answer([DIGEST], "GET", "/b") is None
    auth = ClientAuth("Aladdin", "open sesame")
    assert auth.answer([BASIC], "GET", "/") == auth.again("GET", "/b") == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="


def test_names_beyond_ascii() -> None:
    """RFC 7616 §3.4: username*, and §4: UTF-8."""
    answer = said(ClientAuth("jäsøn", "ü").answer([DIGEST + ", charset=UTF-8"], "GET", "/"))
    assert answer["username*"] == "UTF-8''j%C3%A4s%C3%B8n"
    assert "username" not in answer
    assert said(ClientAuth("jäsøn", "ü").answer([DIGEST], "GET", "/"))["username"].encode("latin-1") == "jäsøn".encode()


def test_a_hashed_user_name() -> None:
    """RFC 7616 §3.4.4."""
    answer = said(ClientAuth("u", "p").answer([DIGEST + ", userhash=true, algorithm=SHA-256"], "GET", "/"))
    assert answer["username"] == Digest("SHA-256").hash(b"u:x")
    assert answer["userhash"] == "true"


def test_k17_nothing_is_shown() -> None:
    assert repr(ClientAuth("the user", "the password")) == "<ClientAuth>"
    with pytest.raises(ValueError, match="colon") as caught:
        ClientAuth("a:b", "secret").answer([BASIC], "GET", "/")
    assert "secret" not in str(caught.value)


def test_what_is_no_user_name() -> None:
    with pytest.raises(ValueError, match="the user name has control"):
        ClientAuth("a\n", "b")
    with pytest.raises(TypeError, match="the password must be str"):
        ClientAuth("a", None)  # type: ignore[arg-type]
