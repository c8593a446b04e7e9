"""Do our clients and foreign servers understand each other's permessage-deflate, whatever they agree upon?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from compression import OFFERS, messages
from foreign import SERVERS, NodeServer

from wspy import Connection, DeflateMessage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foreign import Foreign

OFFERED = [*OFFERS, {"threshold": 0, "level": 1, "memory_level": 4}]


@pytest.fixture(params=[*SERVERS, "ws"])
def server(request: pytest.FixtureRequest, seconds: float) -> Iterator[Foreign]:
    """A foreign server that compresses: once for each of them."""
    made: Foreign
    if request.param == "ws":
        made = NodeServer(seconds, node=request.getfixturevalue("node"), deflate={"threshold": 0})
    else:
        made = SERVERS[request.param](seconds)
    with made:
        yield made


def converse(server: Foreign, offer: dict[str, Any], seconds: float, seed: int, count: int) -> DeflateMessage.Instance:
    """Let messages go there and come back, ten at a time; return the extension."""
    options = {"extensions": [DeflateMessage(**offer)], "max_size": None}
    with Connection.connect(server.url + "/echo", close_timeout=seconds, **options) as connection:
        connection.sock.settimeout(seconds)
        (instance,) = connection.sock.extension_instances
        sent = list(messages(seed, count))
        for start in range(0, count, 10):
            for number, message in enumerate(sent[start : start + 10]):
                size = 100 if number == 5 else None
                connection.send(message, size, compress=(None, True, False)[(start + number) % 3])
            assert [connection.recv().payload for _ in sent[start : start + 10]] == sent[start : start + 10]
        connection.close(1000)
        assert connection.close_code == 1000
        assert isinstance(instance, DeflateMessage.Instance)
        return instance


@pytest.mark.parametrize("offer", OFFERED, ids=str)
def test_messages_come_back_with_every_offer(server: Foreign, seconds: float, offer: dict[str, Any]) -> None:
    instance = converse(server, offer, seconds, 1, 60)
    for name in ("server_no_context_takeover", "client_no_context_takeover"):
        assert instance.parameters[name] >= offer.get(name, False)
    for name in ("server_max_window_bits", "client_max_window_bits"):
        assert int(instance.parameters[name]) <= offer.get(name, 15)


@pytest.mark.slow
def test_ten_thousand_random_messages_each_way(server: Foreign, seconds: float) -> None:
    for number, offer in enumerate(OFFERED):
        converse(server, offer, seconds, number, 10_000 // len(OFFERED))
