"""How much memory do the connections of a server take, and what for?

Nothing is counted while they work: whoever asks has all of them looked at.
"""

from __future__ import annotations

import gc
from collections import Counter
from itertools import chain
from sys import getsizeof
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .deflate import spare_memory
from .http11 import Request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .async_client import AsyncClient, Rare
    from .extended import Exchange
    from .frames import Frame
    from .messages import Message
    from .serving import BaseServer

__all__ = ["Memory", "memory_of"]

# What CPython takes from malloc, and not from its own pools, which have no headers.
_POOLED: Final = 512

# Of a thread that waits in ``recv``, or for an event, as measured with CPython 3.11: mostly its stack.
_THREAD: Final = 17_000


class Memory(NamedTuple):
    """The bytes that the connections of a server take, by what for; ``total`` is the sum.

    Attributes:
        records: the connections themselves: in the core, as objects of Python, and what these need; with the places of
            connections that are gone, which are kept for the next ones.
        heads: request heads that are kept, or not complete.
        remainders: what was read and not handled yet: parts of messages, and messages that wait for a handler, or for
            the end of a pause.
        queues: what was sent and not taken by the kernel yet, and messages that wait for their ``onsent``.
        windows: what extensions hold to transform what follows, such as the windows of compression; and compressors
            that connections share, of all servers of the process.
        tls: what OpenSSL and its buffers hold.
        threads: of a ``Server``, those of its clients, with their stacks.
    """

    records: int
    heads: int
    remainders: int
    queues: int
    windows: int
    tls: int
    threads: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def memory_of(server: BaseServer[Any]) -> Memory:
    """Return what ``BaseServer.memory`` tells about. Thread-safe."""
    core = server.loop.memory()
    # copies, each made in one step: other threads go on meanwhile
    clients = [*server.clients, *server._opening.values()]
    rares = list(server._rares.values())
    exchanges = list(server._exchanges.values())
    return Memory(
        records=core["records"] + _records(server, clients, rares, exchanges),
        heads=core["heads"] + _heads(clients),
        remainders=core["remainders"] + _unhandled(clients, rares),
        queues=core["queues"] + _unsent(rares),
        windows=sum(instance.memory_used() for exchange in exchanges for instance in exchange.chain.instances)
        + spare_memory(server.handshake.extensions),
        tls=core["raw"] + (0 if server._secured is None else server._secured.memory_used()),
        threads=_THREAD * sum(client._thread is not None for client in clients),
    )


def taken(what: object) -> int:
    """Return how much CPython takes for an object, without those that it refers to."""
    size = getsizeof(what)
    return (size + 15 if size <= _POOLED else size + 23) & -16


def _all_taken(objects: Iterable[object]) -> int:
    return sum(map(taken, objects))


# ---- records ----


def _records(server: BaseServer[Any], clients: list[AsyncClient], rares: list[Rare], exchanges: list[Exchange]) -> int:
    tables = server.clients._slots, server._opening, server._rares, server._exchanges
    names = [client.username for client in clients if client.username is not None]
    return (
        _all_taken(tables)
        + _all_taken(names)
        + _alike(clients, type, lambda client: _all_taken(client._own()))
        + _alike(exchanges, _agreement, lambda exchange: _all_taken(_parts_of(exchange)))
        + sum(_all_taken((rare, rare.held, rare.sent, rare.fragments)) for rare in rares)
    )


def _alike(objects: list[Any], kind: Any, size: Any) -> int:
    """Return the size of objects that are of the same size if they are of the same kind."""
    kinds = list(map(kind, objects))
    examples = dict(zip(kinds, objects, strict=True))
    return sum(size(examples[each]) * count for each, count in Counter(kinds).items())


def _agreement(exchange: Exchange) -> int:
    return id(exchange.agreed)


def _parts_of(exchange: Exchange) -> list[Any]:
    """Return the objects of extensions at work, but for what all with the same agreement have in common."""
    steps = exchange.chain
    lists = steps.instances, steps._per_message, steps._per_frame
    parts = [exchange, exchange._seen, exchange._lock, exchange._delayed, steps, *lists, *chain(*lists)]
    for instance in steps.instances:
        values = vars(instance)
        # a copy: other threads go on, and may give it another one
        parts += [values, *(value for value in list(values.values()) if type(value).__module__.startswith(_PACKAGE))]
    return parts


_PACKAGE: Final = f"{__name__.partition('.')[0]}."


# ---- payloads ----


def _heads(clients: list[AsyncClient]) -> int:
    kept = [client._request for client in clients]
    return sum(taken(head.head if isinstance(head, Request) else head) for head in kept if head is not None)


def _payloads(messages: Iterable[Message | Frame]) -> int:
    return sum(taken(message) + taken(message.payload) for message in messages)


def _unhandled(clients: list[AsyncClient], rares: list[Rare]) -> int:
    inboxes = [client._inbox for client in clients if client._inbox is not None]
    events = chain(*(_events_in(inbox) for inbox in inboxes if not inbox.empty()))
    held = chain.from_iterable(tuple(rare.held) for rare in rares if rare.held)
    fragments = chain.from_iterable(tuple(rare.fragments) for rare in rares if rare.fragments)
    return _all_taken(fragments) + sum(taken(event) + taken(event[1]) for event in chain(events, held))


def _events_in(inbox: Any) -> list[Any]:
    """Return what is in a queue that nobody may take anything from: its list is what it refers to."""
    found = []
    for each in gc.get_referents(inbox):
        found += [one for one in (each if isinstance(each, list) else [each]) if isinstance(one, tuple)]
    return found


def _unsent(rares: list[Rare]) -> int:
    # a broadcast is one message for all
    waiting = {id(what): what for rare in rares if rare.sent for what in list(rare.sent.values())}
    return _payloads(waiting.values())
