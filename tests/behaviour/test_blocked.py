"""Does a handler that blocks, or a pause, cost no healthy peer its connection, whatever deadlines pass meanwhile?"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import pytest
from drivers import CLOSE, DEADLINE_S, FRONT_ENDS, PATIENCE, PING, PONG, TEXT, Received, Servers, close_frame, frame

if TYPE_CHECKING:
    from drivers import RawClient

MUCH = 12_000_000
"""More than the kernel takes for a peer that doesn't read."""


class Handler:
    """An ``onmessage`` that blocks, or sends much, if it is asked to."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.entered = threading.Event()

    def __call__(self, client: Any, message: Any) -> None:
        if message.payload == "block":
            self.entered.set()
            threading.Event().wait(self.seconds)
        elif message.payload == "send much":
            client.send(bytes(MUCH))
        client.send(message)


class Healthy:
    """A peer that asks for something, reads and answers pings until its text comes back, and closes.

    It runs in a thread of its own. Once it hears of the server it rests, until somebody blocks.

    Args:
        server: whose peer it is.
        text: what it sends; if this is "late", then not before it was pinged.
        entered: set when somebody blocks.
        options: of ``server.open``.
    """

    def __init__(self, server: Any, text: str, entered: threading.Event, **options: Any) -> None:
        self.peer: RawClient = server.open(**options)
        self.is_resting = threading.Event()
        self._text, self._entered = text, entered
        self._is_late = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def _live(self) -> None:
        try:
            if self._text != "late":
                self.peer.text(self._text)
            while (received := self._next()) != Received(TEXT, self._text.encode()):
                if received.opcode == PING:
                    self.peer.send(frame(PONG, received.payload))
                    if self._text == "late" and not self._is_late:
                        self._is_late = True
                        self.peer.text("late")
            self.peer.send(close_frame())
            while self._next().opcode != CLOSE:
                pass
        except BaseException as error:  # noqa: BLE001 -- raised again below
            self._error = error

    def _next(self) -> Received:
        opcode = self.peer.exactly(1)[0] & 0x0F
        self.is_resting.set()
        assert self._entered.wait(DEADLINE_S)
        size = self.peer.exactly(1)[0]
        if size == 127:
            size = int.from_bytes(self.peer.exactly(8))
        return Received(opcode, self.peer.exactly(size))

    def check(self) -> None:
        """Wait until it has closed."""
        self._thread.join(2 * DEADLINE_S)
        if self._error is not None:
            raise self._error
        assert not self._thread.is_alive()


class Blocked:
    """A server one of whose handlers blocks while others owe a Pong, have to read, or are paused.

    Args:
        servers: makes it.
        seconds: how long it blocks.
        deadline: the others' for a Pong, and for taking what was sent.
    """

    def __init__(self, servers: Servers, seconds: float, deadline: float) -> None:
        self.handler = Handler(seconds)
        pings = {"ping_interval": 0.2 * PATIENCE, "ping_timeout": deadline} if servers.has("keepalive") else {}
        self.server = servers(onmessage=self.handler, write_timeout=deadline, queues=True, **pings)
        self.healthy: list[Healthy] = []
        self.paused: RawClient | None = None
        if servers.has("pause"):
            self.paused = self._paused()
        if pings:
            self._add("late")
        self._add("send much", receive_buffer=4096)
        self.healthy.append(Healthy(self.server, "block", self.handler.entered))

    def _paused(self) -> RawClient:
        """Return a peer whose Pong nobody reads."""
        peer: RawClient = self.server.open()
        ping = peer.frame()
        self.server.client(peer).pause_reading()
        self.server.call(lambda: None)
        peer.send(frame(PONG, ping.payload))
        return peer

    def _add(self, text: str, **options: Any) -> None:
        """Add a peer, and wait until it rests."""
        self.healthy.append(Healthy(self.server, text, self.handler.entered, **options))
        assert self.healthy[-1].is_resting.wait(DEADLINE_S)

    def check(self) -> None:
        """Wait until all have got what they wait for."""
        for one in self.healthy:
            one.check()
        if self.paused is not None:
            self.paused.text("was paused")
            self.server.client(self.paused).resume_reading()
            while (received := self.paused.frame()).opcode == PING:
                pass
            assert received.payload == b"was paused"
        for one in self.healthy:
            assert self.server.outcome(one.peer) == (1000, "")


@pytest.mark.slow
def test_a_handler_that_blocks_drops_nobody(serve: Servers) -> None:
    """Longer than each deadline: what has arrived is read, and what can be sent is sent, before they are looked at."""
    Blocked(serve, seconds=1.5 * PATIENCE, deadline=1.0 * PATIENCE).check()


@pytest.mark.slow
def test_a_handler_that_blocks_for_10_seconds_drops_nobody() -> None:
    """On all front ends at a time."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Servers(name)) for name in FRONT_ENDS]
        for blocked in [Blocked(each, seconds=10, deadline=2 * PATIENCE) for each in servers]:
            blocked.check()
