"""Does it hold for many: thousands of clients at once, thousands in a row, none when there is no room?"""

from __future__ import annotations

import random
import resource
import selectors
import socket
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from drivers import DEADLINE_S, PATIENCE, RawClient, close_frame, echo, frame, head, needs, until
from programs import PYTHON, Program

if TYPE_CHECKING:
    from drivers import Servers

pytestmark = pytest.mark.slow

CLIENTS = 2000
ROUNDS = 3


class Peer:
    """One of many clients: an opening handshake, then echoes that have to be exact, then a close."""

    def __init__(self, address: Any, number: int) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)  # noqa: FBT003
        self.socket.connect_ex(address)
        chance = random.Random(number)
        self.messages = [chance.randbytes(chance.choice([0, 7, 125, 126, 3000])) for _ in range(ROUNDS)]
        self.output = head(f"/{number}")
        self.expected: list[bytes] = [b""]  # the 101 ends with an empty line, whatever its length
        self.input = b""
        self.turn = -1
        self.is_done = False

    def readable(self) -> None:
        """Take what has come; once it is what was expected, say the next thing."""
        data = self.socket.recv(65536)
        assert data or self.turn > ROUNDS, f"it ended in turn {self.turn}"
        self.is_done = not data
        self.input += data
        if self.turn == -1:
            if b"\r\n\r\n" not in self.input:
                return
            assert self.input.startswith(b"HTTP/1.1 101 ")
            self.input = self.input.partition(b"\r\n\r\n")[2]
        elif len(self.input) < len(self.awaited):
            return
        else:
            assert self.input == self.awaited
            self.input = b""
        self.advance()

    def advance(self) -> None:
        self.turn += 1
        if self.turn < ROUNDS:
            payload = self.messages[self.turn]
            self.output = frame(2, payload)
            length = len(payload)
            self.awaited = bytes([0x82, length]) if length < 126 else b"\x82\x7e" + length.to_bytes(2)
            self.awaited += payload
        elif self.turn == ROUNDS:
            self.output = close_frame(1000)
            self.awaited = b"\x88\x02\x03\xe8"

    def writable(self) -> None:
        """Send what waits."""
        sent = self.socket.send(self.output)
        self.output = self.output[sent:]


def drive(peers: list[Peer], deadline: float) -> None:
    """Let many clients go through their lives, all at once."""
    with selectors.EpollSelector() as selector:
        for peer in peers:
            selector.register(peer.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, peer)
        left = len(peers)
        while left:
            assert time.monotonic() < deadline, f"{left} of {len(peers)} are not done"
            for key, events in selector.select(1):
                peer: Peer = key.data
                if events & selectors.EVENT_WRITE and peer.output:
                    peer.writable()
                if events & selectors.EVENT_READ:
                    peer.readable()
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.output else 0)
                if peer.is_done:
                    selector.unregister(peer.socket)
                    left -= 1
                elif wanted != key.events:
                    selector.modify(peer.socket, wanted, peer)


@needs("policies", "raw sockets")
def test_two_thousand_clients_at_once(serve: Servers) -> None:
    """Each gets exactly its own echoes; afterwards nothing is left of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * CLIENTS + 200
    if hard < needed:
        pytest.skip(f"needs {needed} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    server = serve(onmessage=echo, max_connections=CLIENTS, backlog=4096)
    began = time.monotonic()
    peers: list[Peer] = []
    try:
        peers += [Peer(server.address, number) for number in range(CLIENTS)]
        drive(peers, began + 30 * PATIENCE)
        until(lambda: server.connections() == 0, "all are gone")
    finally:
        for peer in peers:
            peer.socket.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    server.wait(lambda: sum(story.closed is not None for story in server.stories) == CLIENTS, "onclose")
    by_path = {story.client.path: story for story in server.stories}
    assert len(by_path) == CLIENTS
    for number, peer in enumerate(peers):
        story = by_path[f"/{number}"]
        assert story.messages == peer.messages
        assert story.closed == (1000, "")
    assert len(server.server.clients) == 0


@needs("policies", "raw sockets")
def test_all_two_thousand_are_there_at_the_same_time(serve: Servers) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * CLIENTS + 200
    if hard < needed:
        pytest.skip(f"needs {needed} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    server = serve(max_connections=CLIENTS)
    peers = []
    try:
        for _ in range(CLIENTS):
            peer = socket.create_connection(server.address)
            peers.append(peer)
            peer.sendall(head())
        server.wait(lambda: len(server.stories) == CLIENTS, "onopen")
        assert len(server.server.clients) == CLIENTS
        server.server.broadcast("to all")
        for peer in peers:
            peer.settimeout(DEADLINE_S)
            data = b""
            while not data.endswith(b"\x81\x06to all"):
                more = peer.recv(4096)
                assert more
                data += more
        # one more does not fit
        last = server.connect()
        last.send(head())
        assert last.response().status == 503
    finally:
        for peer in peers:
            peer.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: len(server.server.clients) == 0, "all are gone")


def test_t8_churn(serve: Servers) -> None:
    """Four ways to end, a few hundred times; onopen and onclose are called as often, and descriptors come back."""
    server = serve(onmessage=echo)
    count = 400
    for number in range(count):
        peer = server.connect()
        peer.open(f"/{number}")
        peer.text(str(number))
        assert peer.message() == str(number)
        style = number % 4
        if style == 0:
            peer.close()
        elif style == 1:
            peer.end()
        elif style == 2:
            peer.abort()
        else:
            peer.send(frame(1, b"cut off")[:5])
            peer.end()
    server.wait(lambda: sum(story.closed is not None for story in server.stories) == count, "onclose")
    until(lambda: server.connections() == 0, "all are gone")
    assert len(server.stories) == count


@needs("raw sockets")
def test_h8_handshakes_that_drip(serve: Servers) -> None:
    """Hundreds of slow ones are gone at the deadline, and others are not held up by them."""
    server = serve(onmessage=echo, open_timeout=0.5)
    live = server.open()
    drips = [socket.create_connection(server.address) for _ in range(500)]
    latencies = []
    began = time.monotonic()
    data = head("/", [("X-Long", "x" * 5000)])
    position = 0
    while position == 0 or server.handshakes():
        assert time.monotonic() - began < 10 * PATIENCE
        for drip in drips:
            try:
                drip.send(data[position : position + 1])
            except OSError:
                continue
        position += 1
        assert position < len(data)
        sent = time.monotonic()
        live.text(str(position))
        assert live.message() == str(position)
        latencies.append(time.monotonic() - sent)
    assert time.monotonic() - began >= 0.5
    if server.has("stats"):
        assert server.server.stats()["timeouts"] == 500
    for drip in drips:
        drip.close()
    assert sorted(latencies)[int(len(latencies) * 0.99)] < 0.25 * PATIENCE
    assert time.monotonic() - began < 5 * PATIENCE


PROGRAM = """
    import logging
    import os
    import resource
    import sys
    import threading
    import time
    import wspy

    logging.basicConfig(level=logging.WARNING, format="LOG %(asctime)s %(message)s", stream=sys.stdout)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    class Server(getattr(wspy, os.environ["KIND"])):
        def onmessage(self, client, message):
            if message.payload == "status":
                stats = self.stats()
                client.send(f"{time.thread_time()} {stats['turns']} {stats['accept_errors']} {stats['clients']}")
            else:
                client.send(message)

    server = Server(("127.0.0.1", 0), max_connections=1000)
    print(server.address[1], flush=True)
    server.run()
    sys.stdout.flush()
"""


SILENCE = """
    import os
    import resource
    import wspy

    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    class Server(getattr(wspy, os.environ["KIND"])):
        def onmessage(self, client, message):
            with open("/dev/null"):
                client.send(message)

    server = Server(("127.0.0.1", 0), max_connections=192)
    print(server.address[1], flush=True)
    server.run()
"""


def test_h11_silent_connections_leave_descriptors_for_the_server_itself(
    server_kind: type[Any], patience: float
) -> None:
    with Program(*PYTHON, "-c", textwrap.dedent(SILENCE), patience=patience, KIND=server_kind.__name__) as program:
        address = ("127.0.0.1", int(program.line()))
        with RawClient(address) as peer:
            peer.open()
            silent = [RawClient(address) for _ in range(300)]
            for number in range(10):
                peer.text(str(number))
                assert peer.message() == str(number)
            for other in silent:
                other.end()
            peer.close()
        with RawClient(address) as late:
            late.open()
            late.close()


def test_h11_no_descriptors(server_kind: type[Any], patience: float) -> None:
    """EMFILE: who is there is served, nothing spins, one line a second is logged, and it goes on when there is room."""
    with Program(*PYTHON, "-c", textwrap.dedent(PROGRAM), patience=patience, KIND=server_kind.__name__) as program:
        address = ("127.0.0.1", int(program.line()))
        inside: list[RawClient] = []
        waiting: list[RawClient] = []

        def status() -> tuple[float, int, int, int]:
            inside[0].text("status")
            cpu, turns, errors, clients = str(inside[0].message()).split()
            return float(cpu), int(turns), int(errors), int(clients)

        try:
            for _ in range(100):  # the kernel completes the connections that the server can't accept
                peer = RawClient(address)
                peer.send(head())
                waiting.append(peer)
            while len(inside) < 30 or status()[2] == 0:
                peer = waiting.pop(0)
                peer.opened()
                inside.append(peer)
            while waiting and len(inside) < status()[3]:
                peer = waiting.pop(0)
                peer.opened()
                inside.append(peer)
            assert len(waiting) > 30

            began = time.monotonic()
            cpu, turns, errors, _ = status()
            latencies = []
            while time.monotonic() - began < 1.2:
                for number, peer in enumerate(inside):
                    sent = time.monotonic()
                    peer.text(str(number))
                    assert peer.message() == str(number)
                    latencies.append(time.monotonic() - sent)
                threading.Event().wait(0.1)
            assert sorted(latencies)[int(len(latencies) * 0.99)] < 0.1 * PATIENCE
            used, turned, failed, _ = (
                after - before for after, before in zip(status(), (cpu, turns, errors, 0), strict=True)
            )
            assert failed <= 3 + 10 * (time.monotonic() - began), "it is tried again every 100 ms"
            assert turned < len(latencies) * 2 + 100
            assert used < 0.2 * PATIENCE, "it spins"

            # one goes, one comes
            for _ in range(5):
                inside.pop().close()
                freed = time.monotonic()
                peer = waiting.pop(0)
                peer.opened()
                assert time.monotonic() - freed < 1 * PATIENCE
                inside.append(peer)
            for peer in inside[1:]:
                peer.end()
            for peer in waiting:
                peer.opened()
                peer.text("at last")
                assert peer.message() == "at last"
                peer.end()
        finally:
            for peer in (*inside, *waiting):
                peer.end()
        status_code, output, errors_text = program.interrupt()
        assert status_code == 0, errors_text
        lines = [line for line in output.splitlines() if line.startswith("LOG")]
        assert 1 <= len(lines) <= 1 + int(time.monotonic() - began + 2), lines
        assert all("can't accept" in line for line in lines)
