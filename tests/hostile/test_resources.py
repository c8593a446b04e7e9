"""Does no peer make the server hold, or do, more than its limits say? Rows H."""

from __future__ import annotations

import gc
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from drivers import BINARY, CONTINUATION, PING, PONG, TEXT, RawClient, close_frame, echo, frame, needs, until
from measures import PATIENCE, UNDER_ADDRESS_SANITIZER, measures_memory, resident

if TYPE_CHECKING:
    from drivers import Servers

MIB = 1 << 20


def test_h1_the_header_of_the_last_fragment_is_enough(serve: Servers) -> None:
    server = serve(max_size=MIB)
    peer = server.open()
    quarter = frame(BINARY, bytes(MIB // 4), final=False)
    rest = frame(CONTINUATION, bytes(MIB // 4), final=False)
    peer.send(quarter + rest * 3)
    last = frame(CONTINUATION, b"x")
    peer.send(last[:6])
    peer.closes(1009)
    assert server.outcome(peer)[0] == 1009
    assert server.story(peer).messages == []


@pytest.mark.parametrize("max_size", [(None, 1000), (100_000, 1000)])
def test_h1_a_frame_has_a_limit_of_its_own(serve: Servers, max_size: tuple[int | None, int | None]) -> None:
    server = serve(max_size=max_size, onmessage=echo)
    peer = server.open()
    peer.send(frame(BINARY, bytes(1000), final=False) + frame(CONTINUATION, bytes(1000)))
    assert peer.message() == bytes(2000)
    peer.send(frame(BINARY, bytes(1001))[:8])  # its header is enough
    peer.closes(1009)
    assert server.outcome(peer)[0] == 1009


def test_h1_a_message_of_small_frames_has_its_limit_as_ever(serve: Servers) -> None:
    server = serve(max_size=(2000, 1000), onmessage=echo)
    peer = server.open()
    thousand = frame(BINARY, bytes(1000), final=False)
    peer.send(thousand + frame(CONTINUATION, bytes(1000)))
    assert peer.message() == bytes(2000)
    peer.send(thousand + frame(CONTINUATION, bytes(1000), final=False) + frame(CONTINUATION, b"x"))
    peer.closes(1009)


@pytest.mark.slow
@pytest.mark.parametrize("payload", [b"", b"x"], ids=["empty", "1 byte"])
def test_h2_endless_fragments(serve: Servers, payload: bytes) -> None:
    """Up to the count limit, with next to no memory for each."""
    server = serve()
    peer = server.open()
    gc.collect()
    before = resident()
    fragment = frame(CONTINUATION, payload, final=False)
    peer.send(frame(TEXT, payload, final=False) + fragment * 131_071)
    until(lambda: server.bytes_read() > 131_072 * len(fragment), "read")
    assert server.story(peer).closed is None
    assert UNDER_ADDRESS_SANITIZER or resident() - before < 8 * MIB
    cpu = server.cpu_seconds()
    assert cpu < 2 * PATIENCE
    peer.send(fragment)
    peer.closes(1008)
    assert server.outcome(peer)[0] == 1008


@pytest.mark.slow
def test_h3_one_legal_frame_in_segments_of_one_byte(serve: Servers) -> None:
    """In linear time and twice its size."""
    server = serve(onmessage=lambda client, message: client.send(str(len(message))))
    times = []
    for size in (20_000, 80_000):
        peer = server.open()
        cpu = server.cpu_seconds()
        for byte in memoryview(frame(TEXT, b"x" * size)).cast("c"):
            peer.socket.send(byte)
        assert peer.message() == str(size)
        times.append(server.cpu_seconds() - cpu)
        peer.end()
    # four times as much may take four times as long, and twice that on a bad day
    assert times[1] < times[0] * 8 + 0.1 * PATIENCE, times


@pytest.mark.slow
@measures_memory
def test_h3_memory_of_a_frame_that_drips(serve: Servers) -> None:
    server = serve(max_size=16 * MIB)
    peer = server.open()
    gc.collect()
    data = frame(BINARY, bytes(16 * MIB))
    before = resident()
    peer.send(data[: 8 * MIB])
    until(lambda: server.bytes_read() >= 8 * MIB, "read")
    assert resident() - before < 2 * 16 * MIB


def test_h4_pings_are_answered_while_the_peer_reads(serve: Servers) -> None:
    """RFC 6455 §5.5.2: each of them, unless the pipe is full."""
    server = serve()
    peer = server.open()
    count = 50_000
    received: list[int] = []

    def read() -> None:
        received.extend(len(peer.frame().payload) for _ in range(count))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for _ in range(count // 1000):
        peer.send(frame(PING, b"?") * 1000)
        # in step with the reader: then no answer meets a full pipe
        sent = server.bytes_read()
        until(lambda sent=sent: len(received) * 7 + 1000 * 7 >= sent - 300 or not reader.is_alive(), "read")
    reader.join(20)
    assert received == [1] * count


@needs("queue")
@pytest.mark.slow
@measures_memory
def test_h4_pings_that_nobody_reads_the_answers_of(serve: Servers) -> None:
    server = serve(queues=True, ping_interval=None)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    gc.collect()
    before = resident()
    pings = frame(PING, b"x" * 125) * 1000
    peer.socket.settimeout(20)
    for _ in range(100):
        peer.send(pings)
    until(lambda: server.bytes_read() >= 100 * len(pings), "read")
    # what one read asked for may wait, when the pipe fills up in the middle of it; then only the newest
    assert client.buffered_amount < 300_000
    assert resident() - before < 8 * MIB
    # and it is still the peer of old
    client.send("after it all")
    received = peer.frame()
    while received.opcode == PONG:
        received = peer.frame()
    assert received.payload == b"after it all"


def test_h5_a_flood_of_pongs(serve: Servers) -> None:
    """Nobody asked; nobody is told, and they count as bytes only."""
    server = serve(onmessage=echo)
    peer = server.open()
    pongs = frame(PONG, b"unsolicited") * 50_000
    peer.send(pongs)
    peer.text("after them")
    assert peer.message() == "after them"
    assert server.bytes_read() >= len(pongs)
    if server.has("stats"):
        assert server.server.stats()["messages_received"] == 1
    assert [event.name for event in server.story(peer).events] == ["onopen", "onmessage"]


@needs("queue")
def test_h6_other_clients_are_not_affected_by_a_slow_reader(serve: Servers) -> None:
    """The application keeps sending: the soft signal is buffered_amount, the hard limit ends that client."""
    server = serve(max_backlog=MIB, onmessage=echo, queues=True)
    slow, other = server.open(receive_buffer=4096), server.open()
    client = server.client(slow)
    amounts = []
    while not client.closed:
        client.send(bytes(10_000))
        amounts.append(client.buffered_amount)
        other.text("x")
        assert other.message() == "x"
        assert len(amounts) < 2000
    assert max(amounts) <= MIB + 10_010
    assert any(0 < amount < MIB for amount in amounts)
    assert server.outcome(slow)[0] == 1008


@pytest.mark.slow
def test_h16_a_largest_text_of_4_byte_characters(serve: Servers) -> None:
    server = serve(onmessage=echo)
    text = "\U0001f600" * (MIB // 4)
    peer = server.open()
    peer.text(text)
    assert peer.message() == text


def test_h17_a_largest_text_takes_little_time(serve: Servers) -> None:
    server = serve()
    for text in ("é" * (MIB // 2), "a" * (MIB - 3) + "€"):
        peer = server.open()
        data = frame(TEXT, text.encode())
        cpu = server.cpu_seconds()
        peer.send(data)
        server.wait(lambda peer=peer: server.story(peer).messages, "delivered")
        assert server.cpu_seconds() - cpu < 0.05 * PATIENCE


@needs("stats")
def test_connections_that_do_nothing_cost_nothing(serve: Servers) -> None:
    server = serve()
    peers = [server.open() for _ in range(100)]
    assert all(server.client(peer) for peer in peers)
    turns = server.server.stats()["turns"]
    threading.Event().wait(0.1)
    assert server.server.stats()["turns"] - turns < 5


def test_h15_bad_frames_write_no_flood_of_logs(serve: Servers, caplog: pytest.LogCaptureFixture) -> None:
    """At the level that is the default nothing is written about what peers do wrong."""
    caplog.set_level("WARNING")
    server = serve()
    for number in range(100):
        peer = server.open() if number % 2 else server.connect()
        peer.send(b"\xff\xff\0")
        if number % 2:
            peer.closes(1002)
        else:
            assert peer.response().status == 400
        peer.end()
    assert caplog.records == []


def test_a_burst_of_connections_does_not_hold_up_the_others(serve: Servers) -> None:
    server = serve(onmessage=echo)
    live = server.open()
    peers: list[RawClient] = []
    latencies: list[float] = []
    for _ in range(300):
        peer = server.connect()
        peers.append(peer)
        began = time.monotonic()
        live.text("x")
        assert live.message() == "x"
        latencies.append(time.monotonic() - began)
    for peer in peers:
        peer.open()
        peer.send(close_frame(1000))
    assert sorted(latencies)[-3] < 0.25 * PATIENCE


def messages_of(server: Any, peer: RawClient) -> list[Any]:
    return list(server.story(peer).messages)


def test_fairness_between_a_flood_and_a_single_message(serve: Servers) -> None:
    """A turn reads so much of one connection, then the next one's."""
    server = serve(max_size=None)
    flooder, other = server.open(), server.open()
    stop = threading.Event()

    def flood() -> None:
        data = frame(BINARY, bytes(1000)) * 200
        while not stop.is_set():
            try:
                flooder.send(data)
            except OSError:
                return

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for number in range(30):
            began = time.monotonic()
            other.text(str(number))
            server.wait(lambda number=number: len(messages_of(server, other)) > number, "delivered")
            assert time.monotonic() - began < 1 * PATIENCE
    finally:
        stop.set()
        thread.join()
        flooder.abort()
