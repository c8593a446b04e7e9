"""Is what a server says of its memory what the system says, and does each byte stand where it belongs?"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from certificates import server_context
from compression import Deflating
from drivers import PATIENCE, RawClient, frame, until
from measures import best_time, measures_memory
from memory import allocated
from programs import PYTHON

import wspy
from wspy.memory import Memory, taken

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

BENCHMARK: Final = Path(__file__).resolve().parent.parent / "benchmarks" / "memory.py"
KINDS: Final = ("records", "heads", "remainders", "queues", "windows", "tls", "threads")

# How many connections make enough of a difference, and take little time.
SCENARIOS: Final = {
    "idle": 6000,
    "idle-drop-request": 6000,
    "header": 5000,
    "remainder": 3000,
    "paused": 2500,
    "queue": 2500,
    "sent": 2500,
    "windows": 1500,
    "windows-12": 1200,
    "threads": 800,
}


def added(before: Memory, after: Memory) -> dict[str, int]:
    """Return what there is more of, by kind."""
    pairs = zip(KINDS, before, after, strict=True)
    return {kind: now - then for kind, then, now in pairs if now != then}


# ---- all of it ----


@pytest.mark.slow
@measures_memory
@pytest.mark.parametrize("scenario", [*SCENARIOS, "tls"])
def test_it_is_within_a_tenth_of_resident_memory(scenario: str, tmp_path: Path) -> None:
    if scenario == "tls" and ssl.OPENSSL_VERSION_INFO[:2] != (3, 0):
        pytest.skip("what OpenSSL takes was measured with 3.0")
    stored = tmp_path / "figures.json"
    options = [f"--scenario={scenario}", f"--connections={SCENARIOS.get(scenario, 1200)}", f"--json={stored}"]
    environment = {**os.environ, "PYTHONPATH": str(Path(wspy.__file__).parent.parent)}
    result = subprocess.run(
        [*PYTHON, str(BENCHMARK), *options], capture_output=True, text=True, check=False, env=environment, timeout=50
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = json.loads(stored.read_text(encoding="utf-8"))["scenarios"][scenario]["runs"]
    assert 0.9 <= run["ratio"] <= 1.1
    assert sum(run["after"]["memory"].values()) == run["after"]["total"]


@pytest.mark.slow
def test_a_thousand_connections_are_looked_at_in_half_a_millisecond() -> None:
    with Crowd(1000) as crowd:
        assert best_time(crowd.server.memory) < 0.005


# ---- by kind ----


class Crowd:
    """A server with some clients of its own process, which say nothing.

    Args:
        count: of the clients.
        kind: of the server.
        options: of the server.
    """

    def __init__(self, count: int = 0, kind: type[Any] = wspy.AsyncServer, **options: Any) -> None:
        self.arrived: list[Any] = []
        names: dict[str, Callable[..., Any]] = {
            "onmessage": lambda _, client, message: self.arrived.append((client, message)),
            "onclose": lambda *_: None,
        }
        names |= {name: options.pop(name) for name in list(options) if name.startswith("on")}
        self.server = type("Crowded", (kind,), names)(("127.0.0.1", 0), **options)
        self.peers: list[RawClient] = []
        self.server.start()
        for _ in range(count):
            self.join()

    def join(self) -> RawClient:
        """Return a client after its opening handshake."""
        peer = RawClient(self.server.address)
        self.peers.append(peer)
        peer.open()
        until(lambda: len(self.server.clients) == len(self.peers), "it is open")
        self.settle()
        return peer

    def settle(self) -> None:
        """Return when whatever has come was handled, and what handlers have queued has left."""
        for _ in range(2):
            handled = threading.Event()
            self.server.call_soon(handled.set)
            assert handled.wait(20 * PATIENCE)

    def added_by(self, action: Callable[[], object], count: int = 0) -> dict[str, int]:
        """Return what an action adds, once so many bytes of it have come."""
        before, arrived = self.server.memory(), self.server.stats()["bytes_received"] + count
        action()
        until(lambda: self.server.stats()["bytes_received"] >= arrived, "it has come")
        self.settle()
        return added(before, self.server.memory())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self.peers:
            peer.end()
        self.server.close()
        assert self.server.join(20 * PATIENCE)


def test_it_is_a_tuple_with_a_name_for_each_kind() -> None:
    memory = Memory(*range(len(KINDS)))
    assert memory._fields == KINDS
    assert memory.total == sum(range(len(KINDS)))
    with pytest.raises(AttributeError):
        memory.heads = 1  # type: ignore[misc]


@pytest.mark.parametrize("kind", [wspy.AsyncServer, wspy.Server])
def test_a_server_without_clients_has_next_to_nothing_for_them(kind: type[Any]) -> None:
    with kind(("127.0.0.1", 0)) as server:
        assert 0 < server.memory().total < 1024


@pytest.mark.parametrize("keep_request", [True, False])
def test_a_client_is_a_record_and_the_head_that_is_kept(keep_request: bool) -> None:
    with Crowd(8, keep_request=keep_request) as crowd:
        memory = crowd.server.memory()
        heads = sum(taken(client._request) for client in crowd.server.clients if keep_request)
        assert memory.heads == heads
        assert 8 * 350 <= memory.records <= 8 * 550
        assert memory.total == memory.records + memory.heads


def test_a_client_in_a_thread_counts_what_it_has_for_that() -> None:
    with Crowd(4, wspy.Server) as crowd:
        memory = crowd.server.memory()
        assert memory.threads == 4 * 17_000
        assert memory.records > 4 * 3000
        assert memory.total == memory.records + memory.heads + memory.threads


def test_a_message_that_has_come_in_part_is_a_remainder() -> None:
    with Crowd(1) as crowd:
        part = frame(1, b"x" * 10_000)[:6000]
        found = crowd.added_by(lambda: crowd.peers[0].send(part), len(part))
        assert set(found) == {"remainders"}
        assert 5900 < found["remainders"] < 11_000


def test_fragments_that_python_keeps_are_remainders() -> None:
    with Crowd(1, onframe=lambda *_: None) as crowd:
        parts = frame(1, b"x" * 3000, final=False) + frame(0, b"y" * 3000, final=False)
        found = crowd.added_by(lambda: crowd.peers[0].send(parts), len(parts))
        assert set(found) == {"remainders", "records"}
        assert 6000 < found["remainders"] < 6200
        assert found["records"] < 2000


def test_what_is_held_during_a_pause_is_a_remainder() -> None:
    with Crowd(1, onmessage=lambda _, client, __: client.pause_reading()) as crowd:
        whole = frame(1, b"first") + frame(1, b"x" * 2000) + frame(2, b"y" * 2000)
        found = crowd.added_by(lambda: crowd.peers[0].send(whole), len(whole))
        assert set(found) == {"remainders", "records"}
        assert 4000 < found["remainders"] < 4500


def test_what_waits_for_a_thread_is_a_remainder() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def onmessage(_: Any, __: Any, message: wspy.Message) -> None:
        if message.text == "first":
            entered.set()
            assert go_on.wait(20 * PATIENCE)

    with Crowd(1, wspy.Server, onmessage=onmessage) as crowd:
        crowd.peers[0].send(frame(1, b"first"))
        assert entered.wait(20 * PATIENCE)
        whole = 3 * frame(1, b"x" * 5000)
        found = crowd.added_by(lambda: crowd.peers[0].send(whole), len(whole))
        assert 15_000 < found.pop("remainders") < 16_000
        assert not found
        go_on.set()
        until(lambda: not crowd.server.memory().remainders, "they were handled")


def test_what_a_peer_does_not_read_is_a_queue() -> None:
    with Crowd(1) as crowd:
        (client,) = crowd.server.clients

        def send() -> None:
            while client.buffered_amount < 1 << 20:
                client.send(bytes(50_000))

        found = crowd.added_by(send)
        assert set(found) == {"queues"}
        assert client.buffered_amount <= found["queues"] <= 1.25 * client.buffered_amount


def test_a_message_that_waits_for_onsent_counts_once_for_all_it_is_sent_to() -> None:
    with Crowd(4, onsent=lambda *_: None) as crowd:
        message = wspy.BinaryMessage(bytes(1 << 20))

        def send() -> None:
            for _ in range(8):
                crowd.server.broadcast(message)

        found = crowd.added_by(send)
        assert set(found) == {"queues", "records"}
        # eight payloads that are shared in the core, and the one that Python has
        assert found["queues"] < 9.5 * (1 << 20)
        assert found["queues"] > 1 << 20
        crowd.server._abort_all()


def test_commands_that_wait_to_be_applied_are_queues() -> None:
    with wspy.AsyncServer(("127.0.0.1", 0)) as server:
        before = server.memory()
        server._push((bytes(8), bytes(6), bytes(5000)))
        assert 5000 < added(before, server.memory())["queues"] < 5300
        server.loop._queue[1:] = []


# ---- compression ----


def test_a_window_counts_once_there_is_one_and_until_it_was_given_back() -> None:
    with Crowd(extensions=[wspy.DeflateMessage(server_max_window_bits=12, client_max_window_bits=12)]) as crowd:
        deflating = Deflating(RawClient(crowd.server.address))
        crowd.peers.append(deflating.peer)
        until(lambda: crowd.server.clients, "it is open")
        crowd.settle()
        (client,) = crowd.server.clients
        shared = crowd.server.memory().windows
        found = crowd.added_by(lambda: client.send("text " * 1000))
        assert 30_000 < found.pop("windows") < 60_000
        assert found.pop("records") < 4000
        assert not found
        found = crowd.added_by(lambda: deflating.send("text " * 1000), 20)
        assert 8_000 < found["windows"] < 20_000
        client.extensions[0].onidle()
        assert crowd.server.memory().windows - shared == found["windows"]


def test_what_was_never_written_of_a_window_does_not_count() -> None:
    extension = wspy.DeflateMessage()
    sizes = []
    for count in (1, 10, 100):
        instance = extension.Instance(wspy.Role.SERVER, extension.agreed(wspy.Role.SERVER, [], []))
        assert instance.memory_used() == 0
        for _ in range(count):
            instance.deflate(os.urandom(1000), compress=True)
        sizes.append(instance.memory_used())
    assert 30_000 < sizes[0] < 60_000 < sizes[1] < 100_000
    assert 150_000 < sizes[2] < 170_000


def test_compressors_that_connections_share_count_once_and_only_where_there_are_extensions() -> None:
    extension = wspy.DeflateMessage(server_no_context_takeover=True, client_no_context_takeover=True, memory_level=3)
    agreed = extension.agreed(wspy.Role.SERVER, [], [("server_no_context_takeover", None)])
    with wspy.AsyncServer(("127.0.0.1", 0), extensions=[extension]) as server:
        before = server.memory()
        for _ in range(5):
            instance = extension.Instance(wspy.Role.SERVER, agreed)
            instance.deflate(bytes(1000), compress=True)
            assert instance.memory_used() == 0
        assert 100_000 < added(before, server.memory())["windows"] < 200_000
    with wspy.AsyncServer(("127.0.0.1", 0)) as server:
        assert server.memory().windows == 0


def test_an_extension_of_the_user_says_what_it_has() -> None:
    class Hoarding(wspy.Extension):
        names = ("hoarding",)
        rsv1 = True

        class Instance(wspy.Extension.Instance):
            def memory_used(self) -> int:
                return 12_345

    with Crowd(extensions=[Hoarding]) as crowd:
        peer = RawClient(crowd.server.address)
        crowd.peers.append(peer)
        peer.open(headers=[("Sec-WebSocket-Extensions", "hoarding")])
        until(lambda: crowd.server.clients, "it is open")
        (client,) = crowd.server.clients
        assert crowd.server.memory().windows == 0
        client.send("one")
        assert crowd.server.memory().windows == 12_345


def test_tls_counts_as_long_as_there_is_a_connection() -> None:
    with Crowd(ssl=server_context()) as crowd:
        peer = RawClient(crowd.server.address, secure=True)
        peer.open()
        until(lambda: crowd.server.clients, "it is open")
        crowd.settle()
        memory = crowd.server.memory()
        assert 18_000 <= memory.tls <= 18_500
        assert memory.total == memory.records + memory.heads + memory.tls
        peer.abort()
        until(lambda: not crowd.server.memory().tls, "it has gone")


# ---- any time, from anywhere ----


def test_it_may_be_asked_in_a_handler_and_after_the_end() -> None:
    found: list[Memory] = []
    with Crowd(2, onmessage=lambda server, *_: found.append(server.memory())) as crowd:
        crowd.added_by(lambda: crowd.peers[0].send(frame(1, b"now")), 9)
        assert found[0].heads
    memory = crowd.server.memory()
    assert memory.total == memory.records


def test_threads_may_ask_while_clients_come_and_go() -> None:
    with Crowd(onsent=lambda *_: None) as crowd:
        end = threading.Event()
        raised: list[BaseException] = []

        def ask() -> None:
            try:
                while not end.is_set():
                    assert crowd.server.memory().total >= 0
            except BaseException as error:  # noqa: BLE001 -- looked at below
                raised.append(error)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(60):
            peer = RawClient(crowd.server.address)
            peer.open()
            peer.send(frame(1, b"x" * 100)[: 50 + number % 50])
            crowd.server.broadcast("to all")
            peer.abort()
        end.set()
        for thread in threads:
            thread.join(20 * PATIENCE)
        assert not raised
        until(lambda: not crowd.server.clients, "all have gone")
        crowd.settle()
        memory = crowd.server.memory()
        assert memory.total == memory.records


@measures_memory
def test_asking_keeps_nothing() -> None:
    with Crowd(20) as crowd:
        for _ in range(5):
            crowd.server.memory()
        before = allocated()
        for _ in range(200):
            crowd.server.memory()
        assert allocated() - before < 20_000


def test_sizes_are_those_of_blocks() -> None:
    assert taken(b"") % 16 == 0
    assert taken(b"x" * 100) == -(-sys.getsizeof(b"x" * 100) // 16) * 16
    # behind 512 bytes malloc has a header
    assert taken(b"x" * 10_000) == -(-(sys.getsizeof(b"x" * 10_000) + 8) // 16) * 16
