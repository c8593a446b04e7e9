"""Is what was sent sent: once, whole, in order, from any thread, and reported by onsent if and only if it left?"""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any

import pytest
from drivers import (
    BINARY,
    CONTINUATION,
    DEADLINE_S,
    TEXT,
    close_frame,
    echo,
    frame,
    needs,
    only,
    until,
)
from turns import faults

import wspy
from wspy import async_client
from wspy._core import lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from drivers import RawClient, Servers


def together(*functions: Callable[[], object]) -> None:
    """Run functions in threads of their own at the same time, and raise what they raise."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], object]) -> None:
        try:
            barrier.wait(DEADLINE_S)
            function()
        except BaseException as error:  # noqa: BLE001 -- raised again below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


# ---- threads ----


def test_any_thread_may_send(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    client = server.client(peer)
    for payload in ("text", b"bytes", b"L" * 100_000):
        together(lambda payload=payload: client.send(payload))
        assert peer.message() == payload


@needs("prompt")
def test_another_thread_does_not_wait_for_a_handler(serve: Servers) -> None:
    """Whoever sends writes: a handler that takes long delays its own client only."""
    entered, go_on = threading.Event(), threading.Event()

    def onmessage(client: Any, message: Any) -> None:
        entered.set()
        go_on.wait(2 * DEADLINE_S)

    server = serve(onmessage=onmessage)
    busy, peer = server.open(), server.open()
    client = server.client(peer)
    busy.text("x")
    entered.wait(DEADLINE_S)
    try:
        client.send("meanwhile")
        assert peer.message() == "meanwhile"
        client.send(b"L" * 100_000)
        assert peer.message() == b"L" * 100_000
        if server.has("broadcast"):
            server.server.broadcast("to all")
            assert peer.message() == "to all"
        client.send_ping(b"ping")
        assert peer.frame().payload == b"ping"
        client.close()
        peer.closes(1000)
    finally:
        go_on.set()


@needs("prompt")
def test_a_long_message_leaves_before_its_handler_returns(serve: Servers) -> None:
    """What is queued keeps its memory, so that what is long does not wait for the end of a batch."""
    arrived = threading.Event()
    waited: list[bool] = []

    def onmessage(client: Any, message: Any) -> None:
        client.send("first")
        client.send(b"L" * 10_000)
        waited.append(arrived.wait(DEADLINE_S))

    server = serve(onmessage=onmessage)
    peer = server.open()
    peer.text("go")
    assert peer.message() == "first"
    assert peer.message() == b"L" * 10_000
    arrived.set()
    until(lambda: waited, "the handler returns")
    assert waited == [True]


@pytest.mark.slow
@pytest.mark.parametrize("marks", [False, pytest.param(True, marks=needs("onsent"))], ids=["", "with onsent"])
def test_i11_eight_threads_and_fragments(serve: Servers, marks: bool) -> None:
    """Frames of another message never come between the fragments of one; each thread's order is kept."""
    handlers = {"onsent": lambda client, message: None} if marks else {}
    server = serve(**handlers)
    peers = [server.open(), server.open()]
    clients = [server.client(peer) for peer in peers]
    count = 150

    def sender(number: int) -> None:
        chance = random.Random(number)
        for turn in range(count):
            padding = "x" * chance.choice([0, 5, 200, 9000])
            size = chance.choice([None, None, 100, 4000])
            for client in clients:
                client.send(f"{number} {turn} {padding}", size)

    received: list[list[str]] = [[], []]

    def reader(index: int) -> None:
        received[index] = [str(peers[index].message()) for _ in range(8 * count)]

    together(*(lambda number=number: sender(number) for number in range(8)), lambda: reader(0), lambda: reader(1))
    for messages in received:
        for number in range(8):
            turns = [message.split()[1] for message in messages if message.split()[0] == str(number)]
            assert turns == [str(turn) for turn in range(count)]
    if marks:
        for peer, messages in zip(peers, received, strict=True):
            server.wait(lambda peer=peer: len(server.story(peer).named("onsent")) == 8 * count, "onsent")
            assert server.story(peer).named("onsent") == messages


def test_i10_send_after_close_from_any_thread(serve: Servers) -> None:
    """SocketClosed is raised, and nothing follows the Close frame, while eight threads try."""
    server = serve()
    peer = server.open()
    client = server.client(peer)

    def sender() -> None:
        with pytest.raises(wspy.SocketClosed):
            for _ in range(1_000_000):
                client.send("x")

    def closer() -> None:
        client.close(3000)

    together(*[sender] * 7, closer)
    for send in (lambda: client.send("x"), lambda: client.send(b"x" * 10_000), client.send_ping):
        with pytest.raises(wspy.SocketClosed) as caught:
            send()
        assert caught.value.initialized
    received = peer.frame()
    while received.opcode == TEXT:
        received = peer.frame()
    assert received.payload == (3000).to_bytes(2)
    peer.send(close_frame(3000))
    peer.eof()


def test_send_after_the_close_of_the_peer(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    client = server.client(peer)
    peer.close()
    server.outcome(peer)
    with pytest.raises(wspy.SocketClosed) as caught:
        client.send("x")
    assert not caught.value.initialized


# ---- what can't be sent ----


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65536, -1])
def test_e15_close_codes_that_may_not_be_sent(serve: Servers, code: int) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    client = server.client(peer)
    with pytest.raises(ValueError):
        client.close(code)
    peer.text("open")
    assert peer.message() == "open"
    client.close(1000)
    peer.closes(1000)


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (1000, "x" * 124, ValueError),
        (1000, "é" * 62, ValueError),
        (1000, "\ud800", ValueError),
        (None, "a reason without a code", ValueError),
        (1000, b"bytes", TypeError),
        (1000, None, TypeError),
        ("1000", "", TypeError),
        (1000.0, "", TypeError),
    ],
    ids=repr,
)
def test_e15_close_reasons_that_can_not_be_sent(serve: Servers, code: Any, reason: Any, error: type[Exception]) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    with pytest.raises(error):
        server.client(peer).close(code, reason)
    peer.text("open")
    assert peer.message() == "open"


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999])
def test_e4_close_codes_that_may_be_sent(serve: Servers, code: int) -> None:
    server = serve()
    peer = server.open()
    server.client(peer).close(code, "é" * 61 + "!")
    peer.closes(code, "é" * 61 + "!")


def test_e16_close_twice_and_from_many_threads(serve: Servers) -> None:
    server = serve(onclose=lambda client, code, reason: client.close())
    peer = server.open()
    client = server.client(peer)
    together(*(lambda code=code: client.close(code) for code in range(3000, 3008)))
    client.close(4000)
    (closing,) = [peer.frame()]
    assert 3000 <= int.from_bytes(closing.payload) < 3008
    peer.send(close_frame(3000))
    peer.eof()
    server.outcome(peer)


def test_pings_have_at_most_125_bytes(serve: Servers) -> None:
    server = serve(onpong=lambda client, payload: None)
    peer = server.open()
    client = server.client(peer)
    for wrong in (b"x" * 126, "é" * 63):
        with pytest.raises(wspy.PingError):
            client.send_ping(wrong)
    for payload in (b"", "é", b"x" * 125, bytearray(b"ping"), memoryview(b"ping")):
        client.send_ping(payload)
        received = peer.frame()
        sent = payload.encode() if isinstance(payload, str) else bytes(payload)
        assert (received.opcode, received.payload) == (9, sent)
        peer.send(frame(10, received.payload))
        server.wait(lambda sent=sent: server.story(peer).named("onpong")[-1:] == [sent], "onpong")


def test_onping_tells_of_pings_that_are_sent(serve: Servers) -> None:
    server = serve(onping=lambda client, payload: None)
    peer = server.open()
    server.client(peer).send_ping(b"from another thread")
    assert peer.frame().payload == b"from another thread"
    server.wait(lambda: server.story(peer).named("onping") == [b"from another thread"], "onping")


@needs("onsent", "prompt")
def test_onping_and_onsent_come_in_the_order_of_what_is_sent(serve: Servers) -> None:
    """And only when the kernel has it: what waits for a slow peer was not sent yet."""
    server = serve(onping=lambda client, payload: None, onsent=lambda client, message: None, queues=True)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    client.send("first")
    client.send_ping(b"1")
    client.send(bytes(8 << 20))
    client.send_ping(b"2")
    client.send("last")
    assert client.buffered_amount > 0
    server.call(int)
    assert server.story(peer).named("onping") == [b"1"]
    assert peer.message() == "first"
    assert peer.frame().payload == b"1"
    assert len(peer.message()) == 8 << 20
    assert peer.frame().payload == b"2"
    assert peer.message() == "last"
    server.wait(lambda: len(server.story(peer).named("onsent")) == 3, "all is sent")
    names = [event.name for event in server.story(peer).events]
    assert names == ["onopen", "onsent", "onping", "onsent", "onping", "onsent"]


@needs("queue")
def test_a_ping_that_was_lost_was_not_sent(serve: Servers) -> None:
    server = serve(onping=lambda client, payload: None)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    client.send(bytes(8 << 20))
    client.send_ping(b"lost")
    peer.abort()
    server.outcome(peer)
    assert server.story(peer).named("onping") == []


def test_a_ping_that_another_thread_sends_while_a_connection_ends_is_not_heard_of_after_onclose(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        thread = threading.Thread(target=client.send_ping)
        thread.start()
        thread.join()

    server = serve(onping=lambda client, payload: None, onmessage=onmessage)
    for _ in range(20):
        peer = server.open()
        peer.send(frame(1, b"x") + close_frame(1000))
        server.outcome(peer)
    if server.has("calls"):
        server.call(int)
    for story in server.stories:
        story.check()


@only("epoll", because="a Server makes what is kept of a client with the client")
def test_a_note_of_another_thread_and_what_the_server_keeps_of_a_client_are_in_one_place(
    serve: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the threads take turns, each message that is sent is told of once."""
    senders: list[threading.Thread] = []
    make = async_client.Rare.__init__

    def interrupted(rare: async_client.Rare) -> None:
        make(rare)
        if threading.get_ident() == server.server._thread and not senders:
            senders.append(threading.Thread(target=server.client(peer).send, args=("from a thread",)))
            senders[0].start()
            senders[0].join()

    def onmessage(client: Any, message: Any) -> None:
        client.pause_reading()
        client.resume_reading()

    server = serve(onmessage=onmessage, onsent=lambda client, message: None)
    peer = server.open()
    assert server.client(peer)
    monkeypatch.setattr(async_client.Rare, "__init__", interrupted)
    peer.text("x")
    assert peer.message() == "from a thread"
    server.wait(lambda: server.story(peer).named("onsent") == ["from a thread"], "onsent")
    server.client(peer).send("next")
    server.wait(lambda: server.story(peer).named("onsent") == ["from a thread", "next"], "onsent")


# ---- what SocketClosed knows ----


def refused(client: Any) -> wspy.SocketClosed:
    """Return what a send raises."""
    with pytest.raises(wspy.SocketClosed) as caught:
        client.send("too late")
    return caught.value


def test_socket_closed_by_this_side(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    client = server.client(peer)
    client.close(4000, "enough")
    closing = refused(client)
    assert (closing.initialized, closing.sent, closing.rcvd) == (True, (4000, "enough"), None)
    assert (closing.code, closing.reason) == (1006, "")
    peer.closes(4000)
    peer.send(close_frame(4001, "yes"))
    server.outcome(peer)
    closed = refused(client)
    assert (closed.initialized, closed.sent, closed.rcvd) == (True, (4000, "enough"), (4001, "yes"))
    assert (closed.code, closed.reason) == (4001, "yes")
    assert closing.rcvd is None


@pytest.mark.parametrize(("code", "rcvd"), [(4001, (4001, "")), (None, (1005, ""))])
def test_socket_closed_by_the_peer(serve: Servers, code: int | None, rcvd: tuple[int, str]) -> None:
    server = serve()
    peer = server.open()
    peer.close(code)
    server.outcome(peer)
    closed = refused(server.client(peer))
    assert (closed.initialized, closed.rcvd, (closed.code, closed.reason)) == (False, rcvd, rcvd)


def test_socket_closed_without_a_close_frame(serve: Servers) -> None:
    server = serve()
    gone, wrong = server.open(), server.open()
    gone.abort()
    wrong.send(frame(3, b""))
    for peer, code in ((gone, 1006), (wrong, 1002)):
        outcome = server.outcome(peer)
        assert outcome[0] == code
        closed = refused(server.client(peer))
        assert (closed.rcvd, (closed.code, closed.reason)) == (None, outcome)


# ---- payloads that change ----


@pytest.mark.parametrize("size", [5, 200, 8192, 8193, 3_000_000])
@pytest.mark.parametrize("kind", ["bytearray", "message", "memoryview", "fragments"])
def test_i14_a_payload_may_be_changed_after_send(serve: Servers, kind: str, size: int) -> None:
    """Also while the kernel has not taken it: the peer reads nothing before it was changed."""

    def onmessage(client: Any, message: Any) -> None:
        payload = bytearray(b"a" * size)
        sent: dict[str, Any] = {"message": wspy.BinaryMessage(payload), "memoryview": memoryview(payload)}
        client.send(sent.get(kind, payload), 1000 if kind == "fragments" else None)
        payload[:] = b"b" * size

    server = serve(onmessage=onmessage)
    peer = server.open(receive_buffer=4096)
    peer.text("go")
    until(lambda: server.story(peer).messages, "called")
    assert peer.message() == b"a" * size


# ---- onsent ----


@needs("onsent")
def test_onsent_comes_once_for_each_message_in_order(serve: Servers) -> None:
    server = serve(onmessage=echo, onsent=lambda client, message: None)
    peer = server.open()
    chance = random.Random(2)
    payloads = [str(number) + "x" * chance.choice([0, 100, 9000, 100_000]) for number in range(100)]
    for payload in payloads:
        peer.text(payload)
        assert peer.message() == payload
    server.wait(lambda: len(server.story(peer).named("onsent")) == 100, "onsent")
    assert server.story(peer).named("onsent") == payloads


@needs("onsent")
def test_onsent_of_a_fragmented_message_comes_once(serve: Servers) -> None:
    server = serve(onopen=lambda client: client.send("x" * 1000, 10), onsent=lambda client, message: None)
    peer = server.open()
    assert peer.message() == "x" * 1000
    server.client(peer).send("end")
    assert peer.message() == "end"
    server.wait(lambda: len(server.story(peer).named("onsent")) == 2, "onsent")
    assert server.story(peer).named("onsent") == ["x" * 1000, "end"]


@needs("onsent")
def test_onsent_gets_the_message_object(serve: Servers) -> None:
    message = wspy.TextMessage("this one")
    seen: list[Any] = []
    server = serve(onopen=lambda client: client.send(message), onsent=lambda client, sent: seen.append(sent))
    server.open().message()
    until(lambda: seen, "onsent")
    assert seen[0] is message


@needs("onsent")
def test_onsent_waits_for_the_kernel(serve: Servers) -> None:
    """A peer that does not read: only what the kernel has taken is reported, and the rest when it reads."""
    size, count = 100_000, 60

    def onmessage(client: Any, message: Any) -> None:
        for number in range(count):
            client.send(bytes([number]) * size)
        client.send("all queued")

    server = serve(onmessage=onmessage, onsent=lambda client, message: None, queues=True)
    peer = server.open(receive_buffer=4096)
    peer.text("go")
    server.wait(lambda: server.story(peer).messages, "called")
    client = server.client(peer)
    until(lambda: client.buffered_amount > size, "the handler has queued more than the kernel takes")
    server.call(int)  # and a turn later
    server.call(int)
    reported = len(server.story(peer).named("onsent"))
    assert reported < count
    assert client.buffered_amount > size
    for number in range(count):
        assert peer.message() == bytes([number]) * size
    assert peer.message() == "all queued"
    server.wait(lambda: len(server.story(peer).named("onsent")) == count + 1, "onsent")
    assert [sent[:1] for sent in server.story(peer).named("onsent")[:-1]] == [bytes([n]) for n in range(count)]
    assert client.buffered_amount == 0


@needs("onsent")
@pytest.mark.parametrize("end", ["reset", "abort", "end of TCP"])
def test_onsent_never_comes_for_a_message_that_is_lost(serve: Servers, end: str) -> None:
    def onmessage(client: Any, message: Any) -> None:
        for number in range(100):
            client.send(bytes([number]) * 100_000)

    server = serve(onmessage=onmessage, onsent=lambda client, message: None)
    peer = server.open(receive_buffer=4096)
    peer.text("go")
    server.wait(lambda: server.story(peer).messages, "called")
    is_free = threading.Event()
    server.server.call_soon(is_free.set)  # behind the handler, where that has the server's thread
    assert is_free.wait(DEADLINE_S)
    client = server.client(peer)
    until(lambda: client.buffered_amount, "the handler has queued more than the kernel takes")
    if end == "abort":
        client.abort()
    elif end == "reset":
        peer.abort()
    else:
        peer.end()
    server.outcome(peer)
    sent = server.story(peer).named("onsent")
    assert len(sent) < 100
    assert [one[:1] for one in sent] == [bytes([number]) for number in range(len(sent))]
    assert client.buffered_amount == 0


@needs("onsent")
def test_onsent_comes_before_onclose(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        client.send("one")
        client.send("two")
        client.close()

    server = serve(onmessage=onmessage, onsent=lambda client, message: None)
    peer = server.open()
    peer.text("go")
    assert [peer.message(), peer.message()] == ["one", "two"]
    peer.closes(1000)
    peer.send(close_frame(1000))
    server.outcome(peer)
    names = [event.name for event in server.story(peer).events]
    assert names == ["onopen", "onmessage", "onsent", "onsent", "onclose"]


@needs("onsent")
@pytest.mark.slow
def test_onsent_while_many_threads_send(serve: Servers) -> None:
    """The thread that sends and the thread that reports are not the same: none gets lost between them."""
    server = serve(onsent=lambda client, message: None)
    peers = [server.open() for _ in range(4)]
    clients = [server.client(peer) for peer in peers]
    count = 400

    def sender(client: Any) -> None:
        for number in range(count):
            client.send(str(number))

    def reader(peer: RawClient) -> None:
        for number in range(count):
            assert peer.message() == str(number)

    together(*(lambda c=client: sender(c) for client in clients), *(lambda p=peer: reader(p) for peer in peers))
    for peer in peers:
        server.wait(lambda peer=peer: len(server.story(peer).named("onsent")) == count, "onsent")
        assert server.story(peer).named("onsent") == [str(number) for number in range(count)]


# ---- what the kernel does to it ----


@needs("onsent", "seam")
def test_i4_the_kernel_takes_one_byte_at_a_time(serve: Servers) -> None:
    server = serve(onmessage=echo, onsent=lambda client, message: None)
    peer = server.open()
    payload = random.Random(1).randbytes(2000)
    with faults(lib.WSPY_SYS_SEND, nth=0, short_io=1):
        peer.send(frame(BINARY, payload) + frame(TEXT, b"a", final=False) + frame(CONTINUATION, b"b"))
        assert peer.message() == payload
        assert peer.message() == "ab"
    server.wait(lambda: len(server.story(peer).named("onsent")) == 2, "onsent")


@needs("seam")
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_i4_the_kernel_refuses_in_the_middle(serve: Servers, nth: int) -> None:
    """EAGAIN, then on with one-byte writes: bytes stay intact and in order."""
    server = serve(onmessage=echo)
    peer = server.open()
    with faults(lib.WSPY_SYS_SEND, nth=nth, times=5, error=11, short_io=7):
        for number in range(20):
            peer.text(f"{number} " + "x" * 100)
        for number in range(20):
            assert peer.message() == f"{number} " + "x" * 100


@needs("seam")
@pytest.mark.parametrize("error", [32, 104], ids=["EPIPE", "ECONNRESET"])
def test_i2_a_send_that_fails_ends_that_connection_only(serve: Servers, error: int) -> None:
    server = serve(onmessage=echo)
    other, peer = server.open(), server.open()
    client = server.client(peer)
    with faults(lib.WSPY_SYS_SEND, nth=1, times=1, error=error):
        client.send("fails")  # from this thread
    assert server.outcome(peer)[0] == 1006
    with pytest.raises(wspy.SocketClosed):
        client.send("x")
    other.text("fine")
    assert other.message() == "fine"


def test_i2_a_peer_that_is_gone_raises_no_signal(serve: Servers) -> None:
    """SIGPIPE is the default again, as in a program that asked for it; a send to nobody must not end the process."""
    import signal  # noqa: PLC0415

    previous = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        server = serve()
        for _ in range(5):
            peer = server.open()
            client = server.client(peer)
            peer.abort()
            with pytest.raises(wspy.SocketClosed):
                for _ in range(1_000_000):
                    client.send("x" * 1000)
            assert server.outcome(peer)[0] == 1006
    finally:
        signal.signal(signal.SIGPIPE, previous)
