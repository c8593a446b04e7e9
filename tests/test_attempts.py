"""Does an answer lead to the request that it should lead to, and no user name to a stranger?"""

from __future__ import annotations

import pytest

from wspy.attempts import MAX_REDIRECTS, Attempts
from wspy.auth import basic_token, parse_challenges
from wspy.errors import ResponseError
from wspy.headers import Headers
from wspy.uri import parse_uri

PAIR = ("user", "secret")
BASIC = "Basic " + basic_token(*PAIR)


def moved(location: str | None, status: int = 302) -> ResponseError:
    return ResponseError("no", status, "", {} if location is None else {"Location": location})


def asked(*challenges: str) -> ResponseError:
    return ResponseError("no", 401, "", [("WWW-Authenticate", challenge) for challenge in challenges])


BASICALLY = asked('Basic realm="x"')
DIGEST = 'Digest realm="x", nonce="1", qop="auth"'


def attempts(
    uri: str = "ws://a/b", headers: dict[str, str] | None = None, auth: tuple[str, str] | None = PAIR
) -> Attempts:
    return Attempts(parse_uri(uri), Headers(headers or {}), auth)


def said(ours: Attempts) -> tuple[str, str, str]:
    """Return nonce, count and uri of the credentials of Digest that are sent next."""
    ((scheme, _, parameters),) = parse_challenges(ours.headers["authorization"])
    assert scheme == "digest"
    return parameters["nonce"], parameters["nc"], parameters["uri"]


# ---- redirects ----


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_a_redirect_leads_where_it_says(status: int) -> None:
    for location, target in (("/c?d", "ws://a/c?d"), ("ws://e:1/f", "ws://e:1/f")):
        ours = attempts()
        ours.follow(moved(location, status))
        assert ours.uri == parse_uri(target)


@pytest.mark.parametrize(
    ("status", "location"), [(200, "/c"), (304, "/c"), (404, "/c"), (302, None), (302, "ftp://a/"), (302, "ws://a:0/")]
)
def test_m7_what_leads_nowhere_is_an_error_with_the_status(status: int, location: str | None) -> None:
    with pytest.raises(ResponseError) as caught:
        attempts().follow(moved(location, status))
    assert caught.value.status == status


def test_m7_from_wss_to_ws_is_refused() -> None:
    with pytest.raises(ResponseError, match="redirect"):
        attempts("wss://a/b").follow(moved("ws://a/b"))


def test_m7_from_ws_to_wss_is_another_origin() -> None:
    ours = attempts(headers={"Cookie": "a"})
    ours.follow(moved("wss://a/b", 301))
    assert ours.uri == parse_uri("wss://a/b")
    assert ours.headers == Headers()
    with pytest.raises(ResponseError):
        ours.follow(BASICALLY)


def test_m7_the_number_of_redirects_is_limited_and_questions_do_not_count() -> None:
    ours = attempts()
    for number in range(MAX_REDIRECTS):
        ours.follow(moved(f"/{number}"))
    ours.follow(BASICALLY)
    with pytest.raises(ResponseError, match="more than 10"):
        ours.follow(moved("/x"))


def test_header_fields_with_credentials_stay_with_their_origin() -> None:
    secret = {"Authorization": "a", "COOKIE": "b", "Proxy-Authorization": "c", "Host": "d"}
    ours = attempts(headers={**secret, "X-Other": "e"})
    ours.follow(moved("/c"))
    assert ours.headers == Headers({**secret, "X-Other": "e"})
    ours.follow(moved("ws://other/"))
    ours.follow(moved("ws://a/"))
    assert ours.headers == Headers({"X-Other": "e"})


# ---- who this is ----


def test_k19_a_question_is_answered_once() -> None:
    ours = attempts(headers={"authorization": "of old", "X-Other": "e"})
    assert ours.headers["authorization"] == "of old"
    ours.follow(BASICALLY)
    assert ours.headers == Headers([("X-Other", "e"), ("Authorization", BASIC)])
    with pytest.raises(ResponseError) as caught:
        ours.follow(BASICALLY)
    assert str(caught.value) == "the server refused the credentials"


def test_k11_k19_a_nonce_that_was_too_old_is_answered_once_more() -> None:
    ours = attempts()
    ours.follow(asked('Digest realm="x", nonce="1", qop="auth"'))
    assert 'nonce="1"' in ours.headers["authorization"]
    assert 'uri="/b"' in ours.headers["authorization"]
    stale = asked('Digest realm="x", nonce="2", qop="auth", stale=true')
    ours.follow(stale)
    assert 'nonce="2"' in ours.headers["authorization"]
    with pytest.raises(ResponseError):
        ours.follow(stale)


@pytest.mark.parametrize("challenges", [(), ("Bearer",), ("Negotiate", "Digest"), ("==",)])
def test_what_can_not_be_answered_is_an_error(challenges: tuple[str, ...]) -> None:
    with pytest.raises(ResponseError, match="refused") as caught:
        attempts().follow(asked(*challenges))
    assert caught.value.status == 401


def test_without_a_user_name_nothing_is_answered() -> None:
    with pytest.raises(ResponseError, match="asks for credentials"):
        attempts(auth=None).follow(BASICALLY)


def test_the_user_name_of_the_uri_comes_first() -> None:
    ours = attempts("ws://us%C3%A9r:p%3Aw@a/b")
    ours.follow(BASICALLY)
    assert ours.headers["authorization"] == "Basic " + basic_token("usér", "p:w")
    ours = attempts("ws://user@a/b")
    ours.follow(BASICALLY)
    assert ours.headers["authorization"] == "Basic " + basic_token("user", "")


@pytest.mark.parametrize("uri", ["ws://a/b", "ws://user:secret@a/b"])
def test_k19_a_redirect_on_the_same_origin_is_followed_with_the_answer(uri: str) -> None:
    ours = attempts(uri)
    ours.follow(moved("/a"))
    assert "authorization" not in ours.headers, "nobody has asked"
    ours.follow(BASICALLY)
    for number in range(3):
        ours.follow(moved(f"/{number}"))
        assert ours.headers["authorization"] == BASIC


@pytest.mark.parametrize("again", [BASICALLY, asked(DIGEST), asked(DIGEST + ", stale=false"), asked(DIGEST, "Basic")])
@pytest.mark.parametrize("first", [BASICALLY, asked(DIGEST)])
def test_k19_a_server_that_redirects_between_its_questions_is_answered_once(
    first: ResponseError, again: ResponseError
) -> None:
    ours = attempts()
    ours.follow(first)
    ours.follow(moved("/c"))
    with pytest.raises(ResponseError) as caught:
        ours.follow(again)
    assert (str(caught.value), caught.value.headers) == ("the server refused the credentials", again.headers)


def test_k19_a_digest_goes_on_behind_a_redirect_and_is_stale_once_in_all() -> None:
    """RFC 7616 §3.4: the same nonce, the next count, for the other resource."""
    ours = attempts()
    ours.follow(asked(DIGEST))
    assert said(ours) == ("1", "00000001", "/b")
    ours.follow(moved("/c?d"))
    assert said(ours) == ("1", "00000002", "/c?d")
    stale = asked(DIGEST.replace('"1"', '"2"') + ", stale=true")
    ours.follow(stale)
    assert said(ours) == ("2", "00000001", "/c?d")
    ours.follow(moved("/e"))
    assert said(ours) == ("2", "00000002", "/e")
    with pytest.raises(ResponseError):
        ours.follow(stale)


@pytest.mark.parametrize("other", ["ws://b/", "ws://a:81/", "ws://sub.a/"])
@pytest.mark.parametrize("uri", ["ws://a/b", "ws://user:secret@a/b"])
def test_k19_another_origin_is_told_nothing_and_the_first_one_nothing_more(uri: str, other: str) -> None:
    for answered in (False, True):
        ours = attempts(uri)
        if answered:
            ours.follow(BASICALLY)
        ours.follow(moved(other))
        for _ in range(2):
            assert "authorization" not in ours.headers
            with pytest.raises(ResponseError):
                ours.follow(BASICALLY)
            ours.follow(moved("ws://a/b"))


def test_k17_nothing_is_shown() -> None:
    ours = attempts("ws://user:secret@a/b?token=secret")
    ours.follow(BASICALLY)
    assert repr(ours) == "<Attempts <URI ws://a/b>>"
    colon = attempts("ws://us%3Aer:secret@a/b")
    with pytest.raises(ResponseError, match="colon") as caught:
        colon.follow(BASICALLY)
    assert caught.value.status == 401
    assert "secret" not in str(caught.value)
