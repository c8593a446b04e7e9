"""Do foreign clients and AsyncServer end connections in the same way, with every code and in both directions?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from peers import End, Ended, Peer
from recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    import wspy

# RFC 6455 §7.4 and the registry of IANA: all that may be sent, and the ends of the range for everybody.
CODES = [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 4999]
REASONS = ["", "Tschüs", "x" * 123]


@pytest.mark.parametrize("code", CODES)
def test_the_peer_closes(server: Recorder, connect: Callable[..., Peer], seconds: float, code: int) -> None:
    peer = connect(server.url)
    assert peer.close(code, "so long").code == code
    assert server.ended.get(timeout=seconds) == (code, "so long")


@pytest.mark.parametrize("code", CODES)
def test_the_server_closes(server: Recorder, connect: Callable[..., Peer], seconds: float, code: int) -> None:
    peer = connect(server.url)
    server.opened.get(timeout=seconds).close(code, "so long")
    assert peer.wait_closed() == End(code, "so long")
    assert server.ended.get(timeout=seconds)[0] == (peer.answer_code or code)


@pytest.mark.parametrize("reason", REASONS, ids=len)
def test_the_reason_of_the_peer(server: Recorder, connect: Callable[..., Peer], seconds: float, reason: str) -> None:
    peer = connect(server.url)
    peer.close(4000, reason)
    assert server.ended.get(timeout=seconds) == (4000, reason)


@pytest.mark.parametrize("reason", REASONS, ids=len)
def test_the_reason_of_the_server(server: Recorder, connect: Callable[..., Peer], seconds: float, reason: str) -> None:
    peer = connect(server.url)
    server.opened.get(timeout=seconds).close(4000, reason)
    assert peer.wait_closed() == End(4000, reason)


def test_the_server_closes_without_a_code(server: Recorder, connect: Callable[..., Peer], seconds: float) -> None:
    peer = connect(server.url)
    server.opened.get(timeout=seconds).close(None)
    assert peer.wait_closed() == End(1005, "")
    assert server.ended.get(timeout=seconds) == (peer.answer_code or 1005, "")


def test_what_was_sent_before_the_close_arrives(server: Recorder, connect: Callable[..., Peer], seconds: float) -> None:
    peer = connect(server.url)
    client = server.opened.get(timeout=seconds)
    messages = ["x" * 100_000, "last"]
    for message in messages:
        client.send(message)
    client.close()
    assert [peer.receive() for _ in messages] == messages
    with pytest.raises(Ended):
        peer.receive()
    assert server.ended.get(timeout=seconds)[0] == 1000


def test_a_stop_tells_every_client(server: Recorder, connect: Callable[..., Peer], seconds: float) -> None:
    peers = [connect(server.url) for _ in range(3)]
    for _ in peers:
        server.opened.get(timeout=seconds)
    server.stop()
    assert [peer.wait_closed().code for peer in peers] == [1001] * 3
    assert server.join(seconds)
    assert [server.ended.get(timeout=seconds)[0] for _ in peers] == [peers[0].answer_code or 1001] * 3


def test_an_abort_is_an_abnormal_end(server: Recorder, connect: Callable[..., Peer], seconds: float) -> None:
    peer = connect(server.url)
    server.opened.get(timeout=seconds).abort()
    assert peer.wait_closed().code == 1006
    assert server.ended.get(timeout=seconds)[0] == 1006


def test_a_message_over_max_size(serve: Callable[..., Recorder], connect: Callable[..., Peer], seconds: float) -> None:
    server = serve(max_size=1000)
    peer = connect(server.url)
    peer.send("x" * 1000)
    assert peer.receive() == "x" * 1000
    peer.send("x" * 1001)
    assert peer.wait_closed().code == 1009
    assert server.ended.get(timeout=seconds)[0] == 1009


class Failing(Recorder):
    """Can't take messages."""

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        raise ZeroDivisionError


def test_an_exception_in_a_handler(connect: Callable[..., Peer], seconds: float) -> None:
    with Failing() as server:
        server.start()
        peer = connect(server.url)
        peer.send("x")
        assert peer.wait_closed().code == 1011
        assert isinstance(server.errors.get(timeout=seconds), ZeroDivisionError)
