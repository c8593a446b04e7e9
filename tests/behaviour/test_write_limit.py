"""What becomes of messages for a client that doesn't read: is the sender told, are they dropped, or is it closed?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from drivers import echo, needs, until

import wspy

if TYPE_CHECKING:
    from drivers import RawClient, Servers

pytestmark = needs("queue")

LIMIT = 100_000


def full(server: Any) -> tuple[RawClient, Any]:
    """Return a peer that doesn't read, and its client, who has more unsent than is allowed."""
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    client.send(bytes(10_000_000))
    until(lambda: client.buffered_amount > LIMIT, "it waits")
    return peer, client


def hits(server: Any) -> int:
    found: int = server.server.stats()["write_limit"]
    return found


def test_whoever_sends_is_told(serve: Servers) -> None:
    server = serve(write_limit=LIMIT, write_policy="raise", onmessage=echo)
    peer, client = full(server)
    with pytest.raises(wspy.WriteLimitError, match="100000"):
        client.send("more")
    with pytest.raises(BlockingIOError):
        client.send(b"more")
    assert hits(server) == 2
    other = server.open()
    other.text("not affected")
    assert other.message() == "not affected"
    assert peer.message() == bytes(10_000_000)
    until(lambda: client.buffered_amount <= LIMIT, "there is room again")
    client.send("again")
    assert peer.message() == "again"


@pytest.mark.parametrize("policy", ["raise", "drop"])
def test_what_one_handler_sends_is_looked_at_each_time(serve: Servers, policy: str) -> None:
    told: list[Exception] = []

    def flood(client: Any, message: wspy.Message) -> None:
        try:
            for _ in range(12_000):
                client.send(message)
        except wspy.WriteLimitError as error:
            told.append(error)
        unsent.append(client.buffered_amount)

    unsent: list[int] = []
    server = serve(write_limit=LIMIT, write_policy=policy, onmessage=flood)
    peer = server.open(receive_buffer=4096)
    peer.text("x" * 1000)
    until(lambda: unsent, "the handler has returned")
    assert LIMIT < unsent[0] <= LIMIT + 2000, "one message beyond it, and what TLS adds"
    assert len(told) == (policy == "raise")
    assert hits(server) > 0


def test_or_the_message_is_dropped(serve: Servers) -> None:
    server = serve(write_limit=LIMIT, write_policy="drop")
    peer, client = full(server)
    for number in range(3):
        client.send(f"dropped {number}")
    assert hits(server) == 3
    assert peer.message() == bytes(10_000_000)
    until(lambda: client.buffered_amount <= LIMIT, "there is room again")
    client.send("again")
    assert peer.message() == "again"


@pytest.mark.parametrize("policy", ["raise", "drop"])
@pytest.mark.parametrize("told", ["all", "some"])
def test_a_broadcast_passes_over_who_does_not_read(serve: Servers, policy: str, told: str) -> None:
    server = serve(write_limit=LIMIT, write_policy=policy)
    peer, client = full(server)
    other = server.open()
    clients = None if told == "all" else [client, server.client(other)]
    server.server.broadcast("for all who read", clients)
    assert other.message() == "for all who read"
    assert hits(server) == 1
    client.close()
    assert peer.message() == bytes(10_000_000)
    peer.closes(1000)


@pytest.mark.parametrize("compressing", [False, True], ids=["plain", "with an extension"])
def test_onsent_knows_nothing_of_a_broadcast_that_has_passed_over(serve: Servers, compressing: bool) -> None:
    sent: list[Any] = []
    extensions = [wspy.DeflateMessage] if compressing else []
    server = serve(
        write_limit=LIMIT,
        write_policy="drop",
        extensions=extensions,
        onsent=lambda _, message: sent.append(message.payload),
    )
    peer, client = full(server)
    for _ in range(3):
        server.server.broadcast("for all who read")
    assert hits(server) == 3
    assert peer.message() == bytes(10_000_000)
    until(lambda: client.buffered_amount <= LIMIT, "there is room again")
    client.send("again")
    assert peer.message() == "again"
    until(lambda: len(sent) == 2, "onsent was called")
    assert sent == [bytes(10_000_000), "again"]


def test_or_the_connection_is_closed(serve: Servers) -> None:
    server = serve(write_limit=LIMIT, write_policy="close")
    peer, client = full(server)
    client.send("one more")
    assert server.outcome(peer)[0] == 1008
    closure = server.story(peer).client.closure
    assert closure.limit == "write_limit"
    assert "write_limit" in closure.reason
    assert closure.sent is None, "no Close frame can be sent to who reads nothing"
    assert hits(server) == 1


def test_the_lower_of_two_limits_is_the_one_that_is_told(serve: Servers) -> None:
    server = serve(max_backlog=LIMIT, write_limit=10 * LIMIT, write_policy="close")
    peer, client = full(server)
    client.send("one more")
    assert server.outcome(peer)[0] == 1008
    assert server.story(peer).client.closure.limit == "max_backlog"
    assert (hits(server), server.server.stats()["max_backlog"]) == (0, 1)


@pytest.mark.parametrize("policy", ["raise", "drop"])
def test_a_closed_client_is_closed_whatever_is_unsent(serve: Servers, policy: str) -> None:
    server = serve(write_limit=LIMIT, write_policy=policy)
    _, client = full(server)
    client.abort()
    with pytest.raises(wspy.SocketClosed):
        client.send("x")


def test_compressed_messages_have_the_same_limit(serve: Servers) -> None:
    server = serve(write_limit=LIMIT, write_policy="raise", extensions=[wspy.DeflateMessage])
    peer = server.open(receive_buffer=4096, headers=[("Sec-WebSocket-Extensions", "permessage-deflate")])
    client = server.client(peer)
    client.send(bytes(10_000_000), compress=False)
    until(lambda: client.buffered_amount > LIMIT, "it waits")
    with pytest.raises(wspy.WriteLimitError):
        client.send("more", compress=True)


def test_other_policies_are_refused(server_kind: type[Any]) -> None:
    with pytest.raises(ValueError, match="write_policy"):
        server_kind(("127.0.0.1", 0), write_limit=1, write_policy="wait and see")
    with pytest.raises(ValueError, match="not \\[\\]"):
        server_kind(("127.0.0.1", 0), write_limit=1, write_policy=[])
    with pytest.raises(ValueError, match="write_limit, which has to be given"):
        server_kind(("127.0.0.1", 0), write_limit=None, write_policy="drop")
