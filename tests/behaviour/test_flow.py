"""Does nobody have to hold more than agreed: paused readers, slow readers, backlogs with a limit?"""

from __future__ import annotations

import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import pytest
from drivers import DEADLINE_S, PATIENCE, PING, PONG, TEXT, close_frame, echo, frame, needs, only, until

import wspy
from wspy import async_client

if TYPE_CHECKING:
    from drivers import RawClient, Servers

MEASURED_S = 0.1


def is_idle(server: Any) -> bool:
    """Measure for a moment whether the server's thread does next to nothing."""
    turns, cpu = server.server.stats()["turns"], server.cpu_seconds()
    threading.Event().wait(MEASURED_S)
    turns, cpu = server.server.stats()["turns"] - turns, server.cpu_seconds() - cpu
    return bool(turns < 20 and cpu < MEASURED_S * 0.2 * PATIENCE)


# ---- pause_reading and resume_reading ----


@needs("pause")
def test_a_paused_client_gets_no_messages_and_all_of_them_later(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        if message.payload == "pause":
            client.pause_reading()

    server = serve(onmessage=onmessage)
    peer, other = server.open(), server.open()
    # in one batch: what arrived with the pause is held, and comes first
    peer.send(b"".join(frame(TEXT, text) for text in (b"before", b"pause", b"held 1", b"held 2")))
    server.wait(lambda: server.story(peer).messages[-1:] == ["pause"], "paused")
    peer.text("later 1")
    peer.text("later 2")
    other.text("not affected")
    server.wait(lambda: server.story(other).messages, "the other one")
    assert server.story(peer).messages == ["before", "pause"]
    server.client(peer).resume_reading()
    everything = ["before", "pause", "held 1", "held 2", "later 1", "later 2"]
    server.wait(lambda: len(server.story(peer).messages) == 6, "all of them")
    assert server.story(peer).messages == everything


@needs("pause")
def test_backpressure_reaches_the_peer(serve: Servers) -> None:
    """A paused connection is not read: the peer's kernel stops taking bytes."""
    server = serve()
    peer = server.open()
    client = server.client(peer)
    client.pause_reading()
    server.call(int)
    peer.socket.settimeout(0.2)
    data = frame(2, bytes(1 << 16))
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 64 << 20:
            peer.socket.sendall(data)
            sent += len(data)
    assert sent < 16 << 20
    assert server.bytes_read() < 1 << 20
    assert is_idle(server)
    assert server.story(peer).messages == []
    client.resume_reading()
    server.wait(lambda: len(server.story(peer).messages) >= sent // len(data), "all that was sent")


@needs("pause")
@pytest.mark.parametrize("state", ["nothing comes", "data waits", "the peer has gone", "the peer has reset"])
def test_a_paused_connection_costs_no_cpu(serve: Servers, state: str) -> None:
    server = serve()
    peer = server.open()
    client = server.client(peer)
    client.pause_reading()
    server.call(int)
    if state == "data waits":
        for _ in range(10):
            peer.text("x" * 1000)
    elif state == "the peer has gone":
        peer.text("x")
        peer.end()
    elif state == "the peer has reset":
        peer.abort()
    assert is_idle(server)
    client.resume_reading()
    if state == "the peer has gone":
        assert server.outcome(peer)[0] == 1006
        assert server.story(peer).messages == ["x"]


@needs("pause")
def test_a_resumed_client_may_be_paused_again_by_a_held_message(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        client.pause_reading()

    server = serve(onmessage=onmessage)
    peer = server.open()
    peer.send(b"".join(frame(TEXT, str(number).encode()) for number in range(10)))
    for number in range(10):
        server.wait(lambda number=number: len(server.story(peer).messages) > number, "one more")
        server.call(int)
        assert server.story(peer).messages == [str(n) for n in range(number + 1)]
        server.client(peer).resume_reading()


@needs("pause")
def test_pause_and_resume_from_another_thread_while_messages_come(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    client = server.client(peer)
    stop = threading.Event()

    def toggle() -> None:
        while not stop.is_set():
            client.pause_reading()
            client.resume_reading()

    toggler = threading.Thread(target=toggle)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # three threads take turns, and not of 5 ms
    toggler.start()
    try:
        for number in range(2000):
            peer.text(str(number))
    finally:
        stop.set()
        toggler.join()
        sys.setswitchinterval(interval)
    client.resume_reading()
    server.wait(lambda: len(server.story(peer).messages) == 2000, "all")
    assert server.story(peer).messages == [str(number) for number in range(2000)]


@needs("pause")
def test_held_messages_are_delivered_before_onclose(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        if message.payload == "pause":
            client.pause_reading()

    server = serve(onmessage=onmessage)
    peer = server.open()
    peer.send(frame(TEXT, b"pause") + frame(TEXT, b"held") + close_frame(1000))
    server.wait(lambda: server.story(peer).messages, "paused")
    server.client(peer).resume_reading()
    assert server.outcome(peer) == (1000, "")
    assert server.story(peer).messages == ["pause", "held"]


@needs("pause")
def test_a_paused_client_can_be_sent_to_and_closed(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    client = server.client(peer)
    client.pause_reading()
    client.send("while paused")
    assert peer.message() == "while paused"
    client.close()
    peer.closes(1000)
    peer.send(close_frame(1000))
    client.resume_reading()
    assert server.outcome(peer)[0] == 1000


@needs("pause")
def test_a_paused_client_can_be_aborted(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    client = server.client(peer)
    client.pause_reading()
    peer.text("never delivered")
    client.abort()
    peer.reset()
    assert server.outcome(peer)[0] == 1006
    assert server.story(peer).messages == []


@needs("pause")
def test_a_pause_holds_pings_and_pongs_for_handlers_too(serve: Servers) -> None:
    paused = threading.Semaphore(0)

    def onmessage(client: Any, message: Any) -> None:
        client.pause_reading()
        paused.release()

    handlers = {name: lambda client, payload: None for name in ("onpingreceived", "onpong")}
    server = serve(onmessage=onmessage, **handlers)
    peer = server.open()
    peer.send(frame(TEXT, b"1") + frame(PING, b"2") + frame(TEXT, b"3") + frame(PONG, b"4"))
    for _ in range(2):
        assert paused.acquire(timeout=DEADLINE_S)
        server.client(peer).resume_reading()
    server.wait(lambda: server.story(peer).named("onpong"), "onpong")
    names = [event.name for event in server.story(peer).events]
    assert names == ["onopen", "onmessage", "onpingreceived", "onmessage", "onpong"]


def overflow(peer: RawClient) -> int:
    """Send until nobody takes more; return how much was taken."""
    peer.socket.settimeout(0.2)
    data = frame(2, bytes(1 << 16))
    sent = 0
    try:
        while sent < 64 << 20:
            sent += peer.socket.send(data)
    except TimeoutError:
        return sent
    finally:
        peer.socket.settimeout(DEADLINE_S)
    raise AssertionError("everything was taken")


@needs("pause")
def test_a_pause_of_another_thread_outlasts_a_resume_that_is_under_way(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    client = server.client(peer)
    client.pause_reading()
    server.call(int)
    push = server.server._push

    def interrupted(commands: Any) -> None:
        server.server._push = push
        thread = threading.Thread(target=client.pause_reading)
        thread.start()
        thread.join()
        push(commands)

    server.server._push = interrupted
    client.resume_reading()
    for _ in range(3):
        server.call(int)
    assert server.server._push is push
    overflow(peer)
    assert server.bytes_read() < 1 << 20


@needs("pause")
def test_a_pause_is_a_pause_however_threads_have_paused_and_resumed_before(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    client = server.client(peer)

    def toggle() -> None:
        for _ in range(500):
            client.pause_reading()
            client.resume_reading()

    togglers = [threading.Thread(target=toggle) for _ in range(4)]
    for toggler in togglers:
        toggler.start()
    for toggler in togglers:
        toggler.join()
    client.pause_reading()
    for _ in range(3):
        server.call(int)
    overflow(peer)
    assert server.bytes_read() < 1 << 20
    assert server.story(peer).messages == []
    client.resume_reading()
    server.wait(lambda: server.story(peer).messages, "delivered again")


@needs("pause")
def test_a_pause_in_onframe_holds_the_message_of_that_frame(serve: Servers) -> None:
    paused = threading.Semaphore(0)

    def onframe(client: Any, frame: Any) -> None:
        if not frame.is_control:
            client.pause_reading()
            paused.release()

    server = serve(onframe=onframe)
    peer = server.open()
    peer.send(frame(TEXT, b"1") + frame(TEXT, b"2", final=False) + frame(0, b"3"))
    expected = ["onopen", "onframe"]
    for following in (["onmessage", "onframe"], ["onframe"], ["onmessage"]):
        assert paused.acquire(timeout=DEADLINE_S)
        server.call(int)
        assert [event.name for event in server.story(peer).events] == expected
        server.client(peer).resume_reading()
        expected += following
    peer.close()
    server.outcome(peer)
    expected += ["onframe", "onclose"]
    assert [event.name for event in server.story(peer).events] == expected
    assert server.story(peer).messages == ["1", "23"]


@needs("pause")
def test_what_onframe_holds_is_delivered_once_when_the_connection_ends(serve: Servers) -> None:
    server = serve(onframe=lambda client, frame: client.pause_reading())
    peer = server.open()
    peer.send(b"".join(frame(TEXT, str(number).encode()) for number in range(3)))
    server.wait(lambda: server.story(peer).named("onframe"), "paused")
    server.call(int)
    assert server.story(peer).messages == []
    peer.abort()
    server.client(peer).send("x")
    server.outcome(peer)
    names = [event.name for event in server.story(peer).events]
    assert names == ["onopen", *["onframe", "onmessage"] * 3, "onclose"]


# ---- a pause and the end ----

PATIENT: Final[dict[str, Any]] = {"close_timeout": None, "shutdown_timeout": 3600}
"""Whatever ends here does not end by a deadline."""


def pausing(client: Any, message: Any) -> None:
    """Do what the message says."""
    if message.payload.startswith("pause"):
        client.pause_reading()
    if message.payload == "pause and close":
        client.close(3000)
    if message.payload == "pause and fail":
        raise ArithmeticError


@needs("pause")
@pytest.mark.parametrize("by", ["the handler", "another thread", "a call"])
def test_a_close_ends_a_pause(serve: Servers, by: str) -> None:
    """What is held is delivered, in order, and then what comes before the peer's Close."""
    server = serve(onmessage=pausing, **PATIENT)
    peer = server.open()
    first = "pause and close" if by == "the handler" else "pause"
    peer.send(frame(TEXT, first.encode()) + frame(TEXT, b"held 1") + frame(TEXT, b"pause again"))
    server.wait(lambda: server.story(peer).messages, "paused")
    if by == "another thread":
        server.client(peer).close(3000)
    elif by == "a call":
        server.call(server.client(peer).close, 3000)
    peer.closes(3000)
    peer.send(frame(TEXT, b"under way") + close_frame(3000))
    peer.eof()
    assert server.outcome(peer) == (3000, "")
    assert server.story(peer).messages == [first, "held 1", "pause again", "under way"]


@needs("pause")
def test_a_close_and_a_pause_of_several_threads(serve: Servers) -> None:
    server = serve(**PATIENT)
    peers = [server.open() for _ in range(30)]
    clients = [server.client(peer) for peer in peers]

    def pause() -> None:
        for client in clients:
            client.pause_reading()

    threads = [threading.Thread(target=pause) for _ in range(2)]
    for thread in threads:
        thread.start()
    for client in clients:
        client.close()
    for thread in threads:
        thread.join()
    for peer in peers:
        peer.closes(1000)
        peer.send(frame(TEXT, b"under way") + close_frame(1000))
        peer.eof()
        assert server.outcome(peer) == (1000, "")
        assert server.story(peer).messages == ["under way"]


@needs("pause")
def test_a_pause_of_a_client_that_is_closing_does_nothing(serve: Servers) -> None:
    server = serve(**PATIENT)
    peer = server.open()
    client = server.client(peer)
    client.close()
    client.pause_reading()
    peer.closes(1000)
    peer.send(frame(TEXT, b"under way") + close_frame(1000))
    peer.eof()
    assert server.outcome(peer) == (1000, "")
    assert server.story(peer).messages == ["under way"]


@needs("pause")
def test_i7_of_a_client_whose_handler_fails_in_a_pause_only_the_close_is_read(serve: Servers) -> None:
    server = serve(onmessage=pausing, onerror=lambda *_: None, **PATIENT)
    peer = server.open()
    peer.send(frame(TEXT, b"pause and fail") + frame(TEXT, b"held"))
    peer.closes(1011)
    peer.send(frame(TEXT, b"under way") + close_frame(1011))
    peer.eof()
    assert server.outcome(peer)[0] == 1011
    assert server.story(peer).messages == ["pause and fail"]


@needs("pause")
def test_a_stop_ends_pauses(serve: Servers) -> None:
    server = serve(onmessage=pausing, **PATIENT)
    peer = server.open()
    peer.send(frame(TEXT, b"pause") + frame(TEXT, b"held"))
    server.wait(lambda: server.story(peer).messages, "paused")
    server.stop()
    peer.closes(1001)
    peer.send(close_frame(1001))
    peer.eof()
    peer.end()
    assert server.outcome(peer) == (1001, "")
    assert server.story(peer).messages == ["pause", "held"]
    assert server.ended()


@needs("pause")
def test_an_abort_of_another_thread_is_never_undone(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    client = server.client(peer)
    client.abort()
    for mode in (async_client.HOLD, async_client.DELIVER):
        client._change_mode(mode)
        assert client._mode == async_client.DROP


# ---- slow readers ----


def flood(client: Any, message: Any) -> None:
    """Send far more than the kernel takes."""
    for _ in range(100):
        client.send(bytes(100_000))


@needs("queue")
def test_h6_max_backlog_ends_a_client_that_does_not_read(serve: Servers) -> None:
    server = serve(onmessage=flood, max_backlog=1 << 20, onsent=lambda client, message: None, queues=True)
    other = server.open()
    peer = server.open(receive_buffer=4096)
    peer.text("flood")
    assert server.outcome(peer)[0] == 1008
    assert len(server.story(peer).named("onsent")) < 100
    peer.reset()
    server.client(other).send("not affected")
    assert other.message() == "not affected"


@needs("queue")
def test_h6_max_backlog_holds_for_broadcasts(serve: Servers) -> None:
    server = serve(max_backlog=1 << 20)
    slow, live = server.open(receive_buffer=4096), server.open()
    assert server.client(slow)
    assert server.client(live)
    for number in range(60):
        server.server.broadcast(bytes([number]) * 100_000)
        assert live.message() == bytes([number]) * 100_000
    assert server.outcome(slow)[0] == 1008


@needs("queue")
def test_a_backlog_up_to_the_limit_is_delivered(serve: Servers) -> None:
    """The limit is looked at before each send: one message alone may be larger."""
    server = serve(onopen=lambda client: client.send(bytes(8 << 20)), max_backlog=1 << 20)
    peer = server.open(receive_buffer=4096)
    assert server.client(peer).buffered_amount > 1 << 20
    assert len(peer.message()) == 8 << 20
    peer.close()


@needs("queue")
def test_buffered_amount(serve: Servers) -> None:
    server = serve(queues=True)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    assert client.buffered_amount == 0
    client.send(bytes(3_000_000))
    waiting = client.buffered_amount
    assert 1_000_000 < waiting <= 3_000_010
    client.send("x" * 100)
    if server.secure:  # the server's thread may be about to encrypt, and to write, the first
        assert 1_000_000 < client.buffered_amount <= waiting + 102
    else:
        assert client.buffered_amount == waiting + 102
    assert len(peer.message()) == 3_000_000
    assert peer.message() == "x" * 100
    until(lambda: client.buffered_amount == 0, "all is taken")


@only("epoll", because="the thread of a Server writes while a handler runs")
def test_buffered_amount_in_a_handler_counts_what_was_just_sent(serve: Servers) -> None:
    amounts: list[int] = []

    def onmessage(client: Any, message: Any) -> None:
        client.send(bytes(5_000_000))
        amounts.append(client.buffered_amount)
        client.send("small")
        amounts.append(client.buffered_amount)

    server = serve(onmessage=onmessage, queues=True)
    peer = server.open(receive_buffer=4096)
    peer.text("go")
    assert len(peer.message()) == 5_000_000
    assert amounts[0] > 1_000_000
    # a server with threads goes on writing meanwhile
    assert amounts[1] == amounts[0] + 7 or (server.kind is wspy.Server and 0 < amounts[1] < amounts[0])


@needs("queue")
def test_other_clients_are_served_while_one_does_not_read(serve: Servers) -> None:
    server = serve(onmessage=echo)
    slow = server.open(receive_buffer=4096)
    for _ in range(20):
        slow.binary(bytes(500_000))
    fast = server.open()
    for number in range(50):
        fast.text(str(number))
        assert fast.message() == str(number)
    for _ in range(20):
        assert slow.message() == bytes(500_000)


@needs("queue")
def test_h4_pings_to_a_peer_that_reads_nothing_do_not_pile_up(serve: Servers) -> None:
    """One Pong waits, the newest."""
    server = serve(onopen=lambda client: client.send(bytes(4_000_000)), ping_interval=None)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    before = client.buffered_amount
    for number in range(20_000):
        peer.send(frame(PING, str(number).encode()))
    until(lambda: server.bytes_read() > 20_000 * 7, "read")
    assert client.buffered_amount <= before + 139
    pongs = []
    while not pongs or pongs[-1] != b"19999":
        received = peer.frame()
        if received.opcode == PONG:
            pongs.append(received.payload)
    assert pongs == sorted(pongs, key=int)
    assert len(pongs) < 200


# ---- limits ----


@pytest.mark.parametrize("limit", [1, 5, 125, 126, 65535, 65536, 100_000])
def test_max_size_is_inclusive(serve: Servers, limit: int) -> None:
    server = serve(onmessage=echo, max_size=limit)
    peer = server.open()
    peer.binary(b"x" * limit)
    assert peer.message() == b"x" * limit
    peer.send(frame(2, b"x" * (limit + 1))[:14])
    peer.closes(1009)
    assert server.outcome(peer)[0] == 1009


def test_max_size_holds_for_the_sum_of_fragments(serve: Servers) -> None:
    server = serve(onmessage=echo, max_size=10)
    peer = server.open()
    for end in (b"", b"x"):
        peer.send(frame(2, b"x" * 6, final=False) + frame(0, b"x" * 4, final=not end))
        if end:
            peer.send(frame(0, end)[:6])
            peer.closes(1009)
        else:
            assert peer.message() == b"x" * 10


def test_no_max_size(serve: Servers) -> None:
    server = serve(onmessage=lambda client, message: client.send(str(len(message))), max_size=None)
    peer = server.open()
    peer.binary(bytes(5 << 20))
    assert peer.message() == str(5 << 20)


@pytest.mark.parametrize("limit", [1, 2, 50])
def test_max_fragments_is_inclusive(serve: Servers, limit: int) -> None:
    server = serve(onmessage=echo, max_fragments=limit)
    peer = server.open()
    peer.send(
        frame(2, b"x", final=limit == 1) + b"".join(frame(0, b"x", final=n == limit - 1) for n in range(1, limit))
    )
    assert peer.message() == b"x" * limit
    peer.send(frame(2, b"x", final=False) + b"".join(frame(0, b"x", final=False) for _ in range(limit)))
    peer.closes(1008)
    assert server.outcome(peer)[0] == 1008


@needs("policies")
def test_c18_max_connections(serve: Servers) -> None:
    server = serve(max_connections=3)
    peers = [server.open() for _ in range(3)]
    for _ in range(2):
        refused = server.connect()
        refused.send(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n")  # fmt: skip
        response = refused.response()
        assert response.status == 503
        assert int(response.headers["retry-after"]) > 0
        refused.eof()
    peers[0].close()
    server.outcome(peers[0])
    server.open().close()


@needs("queue", "prompt")
def test_notsent_lowat_is_set(serve: Servers) -> None:
    """The kernel holds back little of what a peer does not read: the limits of this side can work."""
    amounts = []
    for lowat in (16_384, 0):
        server = serve(onopen=lambda client: client.send(bytes(12 << 20)), notsent_lowat=lowat, max_backlog=32 << 20)
        peer = server.open(receive_buffer=4096)
        amounts.append(server.client(peer).buffered_amount)
    assert amounts[0] > amounts[1]


@needs("queue")
def test_a_large_receive_buffer_of_the_peer_takes_all(serve: Servers) -> None:
    server = serve(onopen=lambda client: client.send(bytes(100_000)))
    peer = server.open()
    client = server.client(peer)
    until(lambda: client.buffered_amount == 0, "the kernel has it")
    assert len(peer.message()) == 100_000


def silent(peer: RawClient) -> bool:
    """Whether nothing has come from the server."""
    peer.socket.setblocking(False)  # noqa: FBT003 -- as socket has it
    try:
        peer.socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        peer.socket.settimeout(DEADLINE_S)
    return False


@needs("calls")
def test_nothing_is_sent_that_nobody_asked_for(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    assert server.client(peer)
    server.call(int)
    assert silent(peer)
    assert isinstance(server.client(peer), wspy.AsyncClient)
