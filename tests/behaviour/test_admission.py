"""How many may come at a time, how many of one address, and how many in a second?"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from drivers import PATIENCE, RawClient, echo, head, needs, until

if TYPE_CHECKING:
    from drivers import Servers

pytestmark = needs("stats")


def is_served(peer: RawClient) -> bool:
    peer.send(head())
    peer.opened()
    return True


def is_reset(server: Any) -> None:
    with contextlib.suppress(ConnectionResetError):  # as early as that
        server.connect().reset()


def stats(server: Any, name: str) -> int:
    found: int = server.server.stats()[name]
    return found


def test_with_max_handshakes_the_others_wait_in_the_kernel(serve: Servers) -> None:
    server = serve(max_handshakes=2)
    silent = [server.connect() for _ in range(2)]
    until(lambda: stats(server, "accepted") == 2, "two are there")
    third = server.connect()
    until(lambda: stats(server, "full_handshakes") > 0, "accepting rests")
    assert stats(server, "accepted") == 2
    assert is_served(silent[0]), "who is open is in no handshake any more"
    assert is_served(third)
    silent[1].end()
    assert is_served(server.connect())


def test_who_waits_for_room_is_accepted_as_soon_as_there_is_some(serve: Servers) -> None:
    server = serve(max_handshakes=1)
    began = time.monotonic()
    peers = [server.connect() for _ in range(60)]
    assert all(is_served(peer) for peer in peers)
    assert time.monotonic() - began < 4 * PATIENCE, "accepting does not rest for 100 ms each time"


def test_one_more_of_an_address_is_reset(serve: Servers) -> None:
    server = serve(max_handshakes_per_address=2)
    silent = [server.connect() for _ in range(2)]
    until(lambda: stats(server, "accepted") == 2, "two are there")
    for number in range(3):
        is_reset(server)
        until(lambda number=number: stats(server, "full_addresses") == number + 1, "counted")  # type: ignore[misc]
    assert is_served(silent[0])
    silent[1].end()
    until(lambda: stats(server, "handshakes") == 0, "gone")
    assert [is_served(server.connect()) for _ in range(5)] == [True] * 5
    assert stats(server, "full_addresses") == 3


def test_other_addresses_are_not_affected(serve: Servers) -> None:
    server = serve(max_handshakes_per_address=1)
    silent = server.connect()
    until(lambda: stats(server, "accepted") == 1, "there")
    assert is_served(server.connect(source="127.0.0.2"))
    is_reset(server)
    assert is_served(silent)


def test_more_than_max_accept_rate_wait_for_the_next_seconds(serve: Servers) -> None:
    server = serve(max_accept_rate=10, onmessage=echo)
    began = time.monotonic()
    peers = [server.connect() for _ in range(15)]
    assert all(is_served(peer) for peer in peers[:10])
    assert time.monotonic() - began < 1 * PATIENCE, "a second's worth may come at once"
    assert all(is_served(peer) for peer in peers[10:])
    assert time.monotonic() - began > 0.4
    assert stats(server, "fast_accepts") > 0
    threading.Event().wait(0.3)
    turns = stats(server, "turns")
    threading.Event().wait(0.2)
    assert stats(server, "turns") - turns < 5, "and nothing turns in vain"
