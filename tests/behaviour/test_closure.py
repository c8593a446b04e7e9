"""Is it told of each connection who ended it, and how: client.closure, and one line of the log?"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Any

import pytest
from compression import Deflating
from drivers import CLOSE, CONTINUATION, DEADLINE_S, PATIENCE, PING, PONG, TEXT, close_frame, echo, frame, needs, until

from wspy import DeflateMessage

if TYPE_CHECKING:
    from collections.abc import Callable

    from drivers import RawClient, Servers


def peer_closes(peer: RawClient, client: Any) -> None:
    peer.close(3000, "enough")


def peer_closes_without_a_code(peer: RawClient, client: Any) -> None:
    peer.close(None)


def peer_ends_tcp(peer: RawClient, client: Any) -> None:
    peer.end()


def peer_resets(peer: RawClient, client: Any) -> None:
    peer.abort()


def peer_breaks_a_rule(peer: RawClient, client: Any) -> None:
    peer.send(b"\xff\xff")
    peer.closes(1002)


def peer_sends_too_much(peer: RawClient, client: Any) -> None:
    peer.send(frame(TEXT, b"x" * 101))
    peer.closes(1009)


def peer_sends_too_many_fragments(peer: RawClient, client: Any) -> None:
    peer.send(frame(TEXT, final=False) + frame(CONTINUATION, final=False) * 3)
    peer.closes(1008)


def peer_sends_too_many_controls(peer: RawClient, client: Any) -> None:
    peer.send(frame(PING) * 51)
    while (received := peer.frame()).opcode == PONG:
        pass
    assert received[:2] == (CLOSE, (1008).to_bytes(2))


def server_closes(peer: RawClient, client: Any) -> None:
    client.close(4000, "bye")
    peer.closes(4000, "bye")
    peer.send(close_frame(4001, "bye bye"))
    peer.eof()


def server_closes_and_the_peer_ends_tcp(peer: RawClient, client: Any) -> None:
    client.close(1000)
    peer.closes(1000)
    peer.end()


def server_closes_and_the_peer_says_nothing(peer: RawClient, client: Any) -> None:
    client.close(1000, "late")
    peer.closes(1000, "late")


def server_aborts(peer: RawClient, client: Any) -> None:
    client.abort()
    peer.reset()


WAYS: list[tuple[Callable[[Any, Any], None], dict[str, Any]]] = [
    (peer_closes, {"by": "peer", "received": (3000, "enough"), "sent": (3000, ""), "is_clean": True}),
    (peer_closes_without_a_code, {"by": "peer", "received": (1005, ""), "sent": (1005, ""), "is_clean": True}),
    (peer_ends_tcp, {"by": "peer"}),
    (peer_breaks_a_rule, {"by": "this side", "sent": (1002, "")}),
    (peer_sends_too_much, {"by": "this side", "sent": (1009, ""), "limit": "max_size"}),
    (peer_sends_too_many_fragments, {"by": "this side", "sent": (1008, ""), "limit": "max_fragments"}),
    (peer_sends_too_many_controls, {"by": "this side", "sent": (1008, ""), "limit": "max_controls"}),
    (server_closes, {"by": "this side", "sent": (4000, "bye"), "received": (4001, "bye bye"), "is_clean": True}),
    (server_closes_and_the_peer_ends_tcp, {"by": "this side", "sent": (1000, "")}),
    (server_closes_and_the_peer_says_nothing, {"by": "this side", "sent": (1000, "late"), "limit": "close_timeout"}),
    (server_aborts, {"by": "this side"}),
]
NEEDS = {server_aborts: needs("abort")}
NOTHING = {"received": None, "sent": None, "is_clean": False, "limit": None, "errno": None}
LIMITS = {"max_size": 100, "max_fragments": 3, "max_controls": 50}


def facts(closure: Any) -> dict[str, Any]:
    return {name: getattr(closure, name) for name in ("by", *NOTHING)}


@pytest.mark.parametrize(
    ("end", "expected"), [pytest.param(*way, id=way[0].__name__, marks=NEEDS.get(way[0], ())) for way in WAYS]
)
def test_who_ended_it_and_how(
    serve: Servers, end: Any, expected: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    found: list[Any] = []
    close_timeout = 0.4 + 0.1 * PATIENCE if expected.get("limit") == "close_timeout" else DEADLINE_S
    server = serve(onclose=lambda client, *_: found.append(client.closure), close_timeout=close_timeout, **LIMITS)
    caplog.set_level("INFO", server.logger)
    began = time.monotonic()
    peer = server.open()
    client = server.client(peer)
    assert client.closure is None
    end(peer, client)
    code, reason = server.outcome(peer)
    (closure,) = found
    assert facts(closure) == NOTHING | expected
    assert (closure.code, closure.reason) == (code, reason)
    assert (closure.unsent_bytes, closure.unsent_messages) == (0, 0)
    assert 0 <= closure.age <= time.monotonic() - began + 0.1
    assert client.closure == closure, "for as long as anybody has the client"
    (line,) = [message for message in caplog.messages if "closed by" in message]
    host, port = peer.address
    assert line.startswith(
        f"{host}:{port} closed by {'this side' if closure.by == 'this side' else 'the peer'} with {code}"
    )
    assert (f"for {closure.limit}" in line) == (closure.limit is not None)


def test_a_connection_that_is_lost_has_an_errno(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    peer.abort()
    server.outcome(peer)
    closure = server.story(peer).client.closure
    assert facts(closure) == NOTHING | {"by": "network", "errno": errno.ECONNRESET}
    assert "Connection reset by peer" in str(closure)


def test_a_bomb_is_told_by_the_limit_that_it_breaks(serve: Servers) -> None:
    server = serve(max_size=1000, extensions=[DeflateMessage])
    peer = Deflating(server.connect())
    peer.send(bytes(1001))
    peer.peer.closes(1009)
    server.outcome(peer.peer)
    closure = server.story(peer.peer).client.closure
    assert facts(closure) == NOTHING | {"by": "this side", "sent": (1009, ""), "limit": "max_size"}
    if server.has("stats"):
        assert server.server.stats()["max_size"] == 1


@needs("keepalive")
def test_silence_is_cut_off_by_a_deadline(serve: Servers) -> None:
    server = serve(ping_interval=0.1, ping_timeout=0.2)
    peer = server.open()
    server.outcome(peer)
    closure = server.story(peer).client.closure
    assert facts(closure) == NOTHING | {"by": "this side", "limit": "ping_timeout"}
    assert closure.age >= 0.2


def test_a_peer_that_takes_nothing_is_cut_off_by_a_deadline(serve: Servers) -> None:
    """On the way are the message that nobody reads, and what comes behind it where a send doesn't wait."""
    server = serve(write_timeout=0.2 * PATIENCE, onmessage=lambda client, _: client.send(bytes(20_000_000)))
    peer = server.open(receive_buffer=4096)
    peer.text("send much")
    story = server.story(peer)
    server.wait(lambda: story.closed, "onclose")
    closure = story.client.closure
    assert facts(closure) == NOTHING | {"by": "this side", "limit": "write_timeout"}
    assert closure.unsent_messages == 1
    assert 10_000_000 < closure.unsent_bytes <= 20_001_000 * (1 + server.secure)
    peer.reset()


def test_lines_about_one_peer_are_few(serve: Servers, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    caplog.set_level("INFO", server.logger)
    began = time.monotonic()
    for _ in range(50):
        peer = server.open()
        peer.close()
        server.outcome(peer)
    seconds = int(time.monotonic() - began) + 2
    lines = [message for message in caplog.messages if "closed by" in message]
    assert 5 <= len(lines) <= 5 * seconds


@needs("queue")
@pytest.mark.parametrize("size", [10, 20_000], ids=["short", "long"])
def test_what_was_left_unsent_is_counted(serve: Servers, size: int) -> None:
    """The first message is more than the kernel takes: so all those behind it are unsent, too."""
    server = serve(queues=True, max_backlog=None)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    client.send(bytes(20_000_000))
    for number in range(50):
        client.send(bytes(size), fragment_size=size // 3 if number % 2 else None)
    for _ in range(10):
        server.server.broadcast("x" * size)
    until(lambda: client.buffered_amount > 60 * size, "it queues")
    client.abort()
    server.outcome(peer)
    closure = server.story(peer).client.closure
    assert closure.unsent_messages == 61
    assert 60 * size < closure.unsent_bytes < 20_000_000 + 60 * (size + 30)
    assert f"with 61 messages ({closure.unsent_bytes} bytes) unsent" in str(closure)


@needs("queue")
def test_what_was_sent_whole_is_not_counted(serve: Servers) -> None:
    server = serve(queues=True, max_backlog=None)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    for _ in range(20):
        client.send(bytes(100_000))
    assert [peer.message() for _ in range(10)] == [bytes(100_000)] * 10
    client.abort()
    server.outcome(peer)
    closure = server.story(peer).client.closure
    assert closure.unsent_messages <= 10 + 3 * server.secure  # TLS gets 256 KiB at once, of which one rest is all
    assert closure.unsent_bytes <= closure.unsent_messages * 100_010


def test_what_the_peer_says_is_escaped_in_the_log(serve: Servers, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    caplog.set_level("INFO", server.logger)
    peer = server.open()
    peer.close(1000, "a\r\n2001-01-01 INFO all is well\x1b[2J")
    server.outcome(peer)
    (line,) = [message for message in caplog.messages if "closed by" in message]
    assert "\\r\\n2001" in line
    assert line.isprintable()


@needs("stop")
def test_stop_is_told_as_what_this_side_did(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    server.stop()
    peer.closes(1001)
    peer.send(close_frame(1001))
    assert server.outcome(peer)[0] == 1001
    closure = server.story(peer).client.closure
    assert (closure.by, closure.is_clean, closure.sent) == ("this side", True, (1001, ""))
