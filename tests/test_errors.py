"""Is it clear from an exception whose fault it is, and does it survive a copy?"""

from __future__ import annotations

import copy
import pickle
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest

from wspy import errors
from wspy.errors import (
    CoreError,
    HandshakeError,
    PingError,
    ProtocolError,
    ResponseError,
    SocketClosed,
    SSLError,
    WebSocketError,
    WriteLimitError,
)
from wspy.headers import Headers

if TYPE_CHECKING:
    from collections.abc import Callable

ERRORS = [
    WebSocketError("a sentence"),
    CoreError("a sentence"),
    SocketClosed(initialized=True, message="a sentence", code=1000, reason="bye", rcvd=(1000, "bye"), sent=(1000, "")),
    HandshakeError(405, "a sentence", (("Allow", "GET"),)),
    ResponseError("a sentence", 404, "Gone fishing", [("Set-Cookie", "a=b"), ("Set-Cookie", "c=d")], b"not here"),
    ProtocolError(1002, "a sentence"),
    PingError("a sentence"),
    SSLError("a sentence"),
    WriteLimitError("a sentence"),
]


def test_each_exception_is_in_this_test() -> None:
    assert {type(error).__name__ for error in ERRORS} == set(errors.__all__)


# The only ones that are bases of others, besides that of all.
MORE_BASES: dict[type[WebSocketError], set[type[WebSocketError]]] = {ResponseError: {HandshakeError}}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_all_have_one_base_and_none_is_that_of_another(error: WebSocketError) -> None:
    kinds = [kind for kind in map(type, ERRORS) if isinstance(error, kind)]
    assert set(kinds) == {WebSocketError, type(error)} | MORE_BASES.get(type(error), set())
    assert not isinstance(error, ValueError | TypeError)
    assert str(error) == "a sentence"


def test_a_closed_socket_is_a_connection_error() -> None:
    assert isinstance(SocketClosed(), ConnectionError)
    assert SocketClosed().initialized is False
    assert SocketClosed().message == str(SocketClosed()) == "the connection is closed"
    assert SocketClosed(initialized=True).initialized is True
    assert str(SocketClosed(message="gone")) == "gone"
    assert SocketClosed(initialized=True).errno is None


def test_the_fault_of_a_peer_has_its_answer() -> None:
    assert HandshakeError(400, "no").status == 400
    assert HandshakeError(400, "no").headers == ()
    assert HandshakeError(405, "no", (("Allow", "GET"),)).headers == (("Allow", "GET"),)
    assert HandshakeError(400, "no").message == "no"
    assert ProtocolError(1002, "no").code == 1002
    assert ProtocolError(1002, "no").message == "no"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301
def test_exceptions_can_be_copied_and_pickled(
    error: WebSocketError, twin: Callable[[WebSocketError], WebSocketError]
) -> None:
    error.add_note("seen by a test")
    copied = twin(error)
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert vars(copied) == vars(error)
    assert copied.args == error.args


@pytest.mark.parametrize("status", [300, 404, 599, HTTPStatus.FORBIDDEN])
def test_a_handshake_fails_with_the_status_of_a_failure(status: int) -> None:
    assert HandshakeError(status, "no").status == status


@pytest.mark.parametrize("headers", [{"Retry-After": "5"}, [("Retry-After", "5")], Headers([("Retry-After", "5")])])
def test_headers_of_a_failure_are_kept_as_pairs(headers: Any) -> None:
    assert HandshakeError(429, "slow down", headers).headers == (("Retry-After", "5"),)


@pytest.mark.parametrize(
    ("status", "headers", "error", "text"),
    [
        (101, (), ValueError, "from 300 to 599, not 101"),
        (299, (), ValueError, "from 300 to 599, not 299"),
        (600, (), ValueError, "from 300 to 599, not 600"),
        ("403", (), TypeError, "an int, not str"),
        (None, (), TypeError, "an int, not NoneType"),
        (403.0, (), TypeError, "an int, not float"),
        (429, (("Retry-After", 5),), TypeError, "use str()"),
        (429, ((5, "Retry-After"),), TypeError, "use str()"),
        (429, {"Retry-After": b"5"}, TypeError, "use str()"),
        (429, ("Retry-After", "5"), TypeError, "pairs"),
        (429, (("Retry-After",),), TypeError, "pairs"),
        (429, 5, TypeError, "iterable"),
        (403, (("A", "b\r\nc"),), ValueError, "control characters"),
        (403, (("A b", "c"),), ValueError, "token"),
    ],
)
def test_a_failure_that_can_not_be_sent_is_refused_where_it_is_made(
    status: Any, headers: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        HandshakeError(status, "no", headers)


def test_the_answer_of_a_server_is_told_as_it_was() -> None:
    nothing = ResponseError("no")
    assert (nothing.status, nothing.reason, nothing.headers, nothing.body) == (0, "", Headers(), b"")
    fields = [("Set-Cookie", "a=b"), ("Set-Cookie", "c=d")]
    refused = ResponseError("no", 200, "Fine", fields, b"<p>")
    assert (refused.status, refused.reason, refused.body) == (200, "Fine", b"<p>")
    assert refused.headers["set-cookie"] == "a=b, c=d"
    assert list(refused.headers.items()) == fields
    assert repr(refused) == "ResponseError('no')"


def test_a_closed_socket_knows_both_close_frames() -> None:
    nothing = SocketClosed()
    assert (nothing.code, nothing.reason, nothing.rcvd, nothing.sent) == (1006, "", None, None)
    received = SocketClosed(rcvd=(4000, "why"), sent=(1000, ""))
    assert (received.code, received.reason) == (4000, "why")
    assert (received.rcvd, received.sent) == ((4000, "why"), (1000, ""))
    told = SocketClosed(code=1002, reason="a rule", sent=(1002, ""))
    assert (told.code, told.reason) == (1002, "a rule")
