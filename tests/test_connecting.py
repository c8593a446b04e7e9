"""Does a name become a connection, within its time, and lead a redirect no further than it may?"""

from __future__ import annotations

import socket

import pytest

from wspy.connecting import connect_tcp, is_connected, redirected, without_credentials
from wspy.deadline import Deadline
from wspy.errors import ResponseError
from wspy.headers import Headers
from wspy.uri import parse_uri


def test_a_socket_is_connected_or_not() -> None:
    one, other = socket.socketpair()
    with other:
        assert is_connected(one)
        one.close()
    assert not is_connected(one)
    with socket.socket() as fresh:
        assert not is_connected(fresh)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_the_family_follows_the_address(host: str) -> None:
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listener.listen()
        uri = parse_uri(f"ws://{host}:{listener.getsockname()[1]}/")
        with connect_tcp(socket.socket(), uri, Deadline(10), is_replaceable=True) as sock:
            assert sock.getpeername() == listener.getsockname()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_socket_that_must_stay_is_the_one_that_is_connected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        uri = parse_uri(f"ws://localhost:{listener.getsockname()[1]}/")
        assert connect_tcp(sock, uri, Deadline(10), is_replaceable=False) is sock


def test_nobody_there_is_an_error_of_the_system() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = parse_uri(f"ws://127.0.0.1:{unused.getsockname()[1]}/")
        with pytest.raises(ConnectionRefusedError):
            connect_tcp(socket.socket(), uri, Deadline(10), is_replaceable=True)


def answer(status: int, location: str | None) -> ResponseError:
    return ResponseError("no", status, "", {} if location is None else {"Location": location})


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_a_redirect_leads_where_it_says(status: int) -> None:
    assert redirected(parse_uri("ws://a/b"), answer(status, "/c?d")) == parse_uri("ws://a/c?d")
    assert redirected(parse_uri("ws://a/b"), answer(status, "ws://e:1/f")) == parse_uri("ws://e:1/f")


@pytest.mark.parametrize(
    ("status", "location"), [(200, "/c"), (304, "/c"), (404, "/c"), (302, None), (302, "ftp://a/"), (302, "ws://a:0/")]
)
def test_m7_what_leads_nowhere_is_an_error_with_the_status(status: int, location: str | None) -> None:
    with pytest.raises(ResponseError) as caught:
        redirected(parse_uri("ws://a/b"), answer(status, location))
    assert caught.value.status == status


def test_m7_from_wss_to_ws_is_refused() -> None:
    with pytest.raises(ResponseError, match="redirect"):
        redirected(parse_uri("wss://a/b"), answer(302, "ws://a/b"))


def test_credentials_stay_with_their_origin() -> None:
    headers = Headers({"Authorization": "a", "COOKIE": "b", "Proxy-Authorization": "c", "Host": "d", "X-Other": "e"})
    assert without_credentials(headers) == Headers({"X-Other": "e"})
