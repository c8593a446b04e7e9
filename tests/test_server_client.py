"""Does a client of a Server wait when it is told to, no longer, and hold up nobody else?

What it has in common with other clients is tested in behaviour/.
"""

from __future__ import annotations

import math
import signal
import textwrap
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from drivers import (
    BINARY,
    DEADLINE_S,
    PATIENCE,
    PING,
    PONG,
    TEXT,
    RawClient,
    Servers,
    close_frame,
    echo,
    frame,
    head,
    until,
)
from programs import PYTHON, Program

import wspy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT = 50_000


@pytest.fixture
def serve() -> Iterator[Servers]:
    with Servers("threads") as servers:
        yield servers


class Running:
    """A function in a thread of its own, and what becomes of it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.function = function
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:  # noqa: BLE001 -- looked at by the test
            self.error = error

    def ended(self) -> bool:
        self.thread.join(DEADLINE_S)
        return not self.thread.is_alive()


def waits(running: Running) -> bool:
    """Whether a call has not come back, after a while."""
    running.thread.join(0.05)
    return running.thread.is_alive()


def fill(server: Any, peer: RawClient) -> int:
    """Send to a peer that does not read until a send would wait; return how many messages of LIMIT bytes."""
    client = server.client(peer)
    count = 0
    while client.buffered_amount <= LIMIT:
        client.send(bytes(LIMIT))
        count += 1
    return count


def drain(peer: RawClient, count: int) -> None:
    for _ in range(count):
        assert peer.message() == bytes(LIMIT)


# ---- sending ----


def test_a_send_waits_until_the_kernel_has_taken_enough(serve: Servers) -> None:
    server = serve(write_limit=LIMIT)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    count = fill(server, peer)
    unsent = client.buffered_amount
    sending = Running(lambda: client.send("next"))
    assert waits(sending)
    assert client.buffered_amount == unsent, "nothing was queued"
    drain(peer, count)
    assert peer.message() == "next"
    assert sending.ended()
    assert sending.error is None


@pytest.mark.parametrize("how", ["timeout", "send_timeout", "now"])
def test_a_send_waits_no_longer_than_told_and_queues_nothing(serve: Servers, how: str) -> None:
    server = serve(write_limit=LIMIT, **({"send_timeout": 0.05} if how == "send_timeout" else {}))
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    count = fill(server, peer)
    unsent = client.buffered_amount
    options = {"timeout": {"timeout": 0.05}, "send_timeout": {}, "now": {"timeout": 0}}[how]
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(TimeoutError, match=f"more than {LIMIT} bytes are unsent"):
            client.send("late", **options)
    waited = time.monotonic() - began
    assert waited < 3 * PATIENCE
    assert how == "now" or waited >= 0.15
    assert client.buffered_amount == unsent
    assert not client._waiting, "who has given up is forgotten"
    drain(peer, count)
    until(lambda: client.buffered_amount <= LIMIT, "there is room")
    client.send("in time", **options)
    assert peer.message() == "in time"


def test_none_waits_longer_than_the_send_timeout_of_the_server(serve: Servers) -> None:
    server = serve(write_limit=LIMIT, send_timeout=0.01)
    peer = server.open(receive_buffer=4096)
    count = fill(server, peer)
    sending = Running(lambda: server.client(peer).send("patient", timeout=None))
    assert waits(sending)
    drain(peer, count)
    assert peer.message() == "patient"


@pytest.mark.parametrize(
    ("timeout", "error"), [(-1, ValueError), (math.nan, ValueError), ("1", TypeError)], ids=["-1", "nan", "str"]
)
def test_what_is_no_timeout_is_refused(serve: Servers, timeout: Any, error: type[Exception]) -> None:
    server = serve(write_limit=LIMIT)
    peer = server.open(receive_buffer=4096)
    fill(server, peer)
    with pytest.raises(error, match="timeout must be"):
        server.client(peer).send("x", timeout=timeout)
    with pytest.raises(error, match="timeout must be"):
        server.client(peer).recv(timeout=timeout)


ENDS: dict[str, Callable[[Any, RawClient], object]] = {
    "close": lambda client, _: client.close(),
    "abort": lambda client, _: client.abort(),
    "reset": lambda _, peer: peer.abort(),
    "server.close": lambda client, _: client.server.close(),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_send_that_waits_ends_with_the_connection(serve: Servers, end: str) -> None:
    server = serve(write_limit=LIMIT, ping_interval=0.05)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    fill(server, peer)
    sending = [Running(lambda: client.send("x")) for _ in range(3)]
    assert all(map(waits, sending))
    ENDS[end](client, peer)
    for one in sending:
        assert one.ended()
        assert isinstance(one.error, wspy.SocketClosed)


def test_h10_a_send_to_a_peer_that_takes_nothing_ends_with_its_deadline(serve: Servers) -> None:
    server = serve(write_limit=LIMIT, write_timeout=0.2)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    fill(server, peer)
    with pytest.raises(wspy.SocketClosed, match="write_timeout"):
        client.send("x")


def test_a_send_in_a_handler_waits_and_others_are_served(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        if message.payload == "flood":
            for _ in range(200):
                client.send(bytes(LIMIT))
        client.send("done")

    server = serve(onmessage=onmessage, write_limit=LIMIT)
    slow, other = server.open(receive_buffer=4096), server.open()
    slow.text("flood")
    until(lambda: server.client(slow).buffered_amount > LIMIT, "it waits")
    for _ in range(20):
        other.text("x")
        assert other.message() == "done"
    assert server.client(slow).buffered_amount <= 2 * LIMIT + 14, "memory is bounded"
    drain(slow, 200)
    assert slow.message() == "done"


def test_room_that_comes_while_a_send_begins_to_wait_is_noticed(serve: Servers) -> None:
    server = serve(write_limit=LIMIT)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    count = fill(server, peer)

    class Late(deque[Any]):
        def append(self, room: Any) -> None:
            drain(peer, count)
            until(lambda: client.buffered_amount == 0, "there is room, and it was told")
            super().append(room)

    client._waiting = Late()
    client.send("next", timeout=DEADLINE_S)
    assert peer.message() == "next"


def test_a_send_in_the_thread_of_the_server_does_not_wait(serve: Servers) -> None:
    server = serve(write_limit=LIMIT)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    count = fill(server, peer)
    server.server.call_soon(lambda: [client.send(bytes(LIMIT)) for _ in range(10)])
    until(lambda: client.buffered_amount > 10 * LIMIT, "queued")
    drain(peer, count + 10)


def test_a_broadcast_does_not_wait_and_sends_wait_for_it(serve: Servers) -> None:
    server = serve(write_limit=LIMIT)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    count = fill(server, peer)
    for _ in range(10):
        server.server.broadcast(bytes(LIMIT))
    assert client.buffered_amount > 10 * LIMIT
    sending = Running(lambda: client.send("behind"))
    assert waits(sending)
    drain(peer, count + 10)
    assert peer.message() == "behind"


def test_a_send_never_runs_into_max_backlog(serve: Servers) -> None:
    """The less of the two is what it waits for."""
    server = serve(onmessage=lambda client, _: [client.send(bytes(LIMIT)) for _ in range(100)], max_backlog=1000)
    peer = server.open(receive_buffer=4096)
    peer.text("go")
    drain(peer, 100)
    peer.close()


@pytest.mark.parametrize("marks", [False, True], ids=["", "with onsent"])
def test_many_threads_send_to_a_slow_peer(serve: Servers, marks: bool) -> None:
    handlers = {"onsent": lambda client, message: None} if marks else {}
    server = serve(write_limit=LIMIT, **handlers)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)

    def send_all(number: int) -> None:
        for turn in range(20):
            client.send(f"{number} {turn} " + "x" * 20_000)

    senders = [Running(lambda n=number: send_all(n)) for number in range(8)]
    received: list[list[int]] = [[] for _ in senders]
    for _ in range(8 * 20):
        number, turn, _ = str(peer.message()).split()
        received[int(number)].append(int(turn))
    assert received == [list(range(20))] * 8
    assert all(sender.ended() and sender.error is None for sender in senders)
    if marks:
        server.wait(lambda: len(server.story(peer).named("onsent")) == 160, "onsent")


# ---- receiving ----


def test_a_handler_receives_what_follows(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        parts = [client.recv() for _ in range(int(message.payload))]
        client.send("+".join(part.text for part in parts))

    server = serve(onmessage=onmessage)
    peer = server.open()
    peer.send(frame(TEXT, b"3") + frame(TEXT, b"a") + frame(TEXT, b"b"))
    assert not peer.waiting()
    peer.send(frame(TEXT, b"c", final=False) + frame(0, b"d") + frame(TEXT, b"0"))
    assert peer.message() == "a+b+cd"
    assert peer.message() == ""
    assert server.story(peer).messages == ["3", "0"], "what recv takes does not come to onmessage"


def test_a_handler_receives_all_there_is(serve: Servers) -> None:
    """In the style of a blocking server: onopen returns when the peer has gone."""

    def onopen(client: Any) -> None:
        for message in client:
            client.send(message)
        seen.append("the end")

    seen: list[str] = []
    server = serve(onopen=onopen)
    peer = server.open()
    for payload in ("text", b"binary", "x" * 100_000):
        if isinstance(payload, str):
            peer.text(payload)
        else:
            peer.binary(payload)
        assert peer.message() == payload
    peer.close()
    assert server.outcome(peer) == (1000, "")
    assert seen == ["the end"]
    assert server.story(peer).messages == []


@pytest.mark.parametrize("end", ["Close", "reset", "abort"])
def test_recv_ends_with_the_connection_after_all_that_came_before(serve: Servers, end: str) -> None:
    taken: list[Any] = []

    def onmessage(client: Any, message: Any) -> None:
        go_on.wait(DEADLINE_S)
        try:
            while True:
                taken.append(client.recv().payload)
        except wspy.SocketClosed as error:
            taken.append(error)

    go_on = threading.Event()
    server = serve(onmessage=onmessage)
    peer = server.open()
    client = server.client(peer)
    messages = b"".join(frame(TEXT, payload) for payload in (b"first", b"1", b"2"))
    peer.send(messages + (close_frame(3000) if end == "Close" else b""))
    server.wait(lambda: server.story(peer).messages, "called")
    if end == "reset":
        until(lambda: server.server.stats()["bytes_received"] == len(head()) + len(messages), "read")
        peer.abort()
    elif end == "abort":
        client.abort()
    go_on.set()
    code, _ = server.outcome(peer)
    assert code == (3000 if end == "Close" else 1006)
    closed = taken.pop()
    assert isinstance(closed, wspy.SocketClosed)
    assert taken == ([] if end == "abort" else ["1", "2"])
    assert server.story(peer).messages == ["first"]
    with pytest.raises(wspy.SocketClosed):
        client.recv()
    with pytest.raises(wspy.SocketClosed):
        client.recv(timeout=0)
    assert list(client) == []


def test_recv_waits_no_longer_than_told_and_loses_nothing(serve: Servers) -> None:
    waited: list[float] = []

    def onmessage(client: Any, message: Any) -> None:
        for timeout in (0.05, 0):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                client.recv(timeout=timeout)
            waited.append(time.monotonic() - began)
        client.send("now")
        client.send(client.recv(timeout=DEADLINE_S))

    server = serve(onmessage=onmessage)
    peer = server.open()
    peer.text("go")
    assert peer.message() == "now"
    assert waited[0] >= 0.05
    assert max(waited) < 1 * PATIENCE
    peer.text("at last")
    assert peer.message() == "at last"


@pytest.mark.slow
def test_recv_waits_no_longer_than_told_while_pings_come_faster_than_they_are_handled(serve: Servers) -> None:
    handled: list[bytes] = []
    when: list[int] = []

    def onpingreceived(_: Any, payload: bytes) -> None:
        handled.append(payload)
        time.sleep(0.001)  # work

    def onmessage(client: Any, message: Any) -> None:
        for timeout in (0, 0.05):
            with pytest.raises(TimeoutError):
                client.recv(timeout=timeout)
            when.append(len(handled))
        client.send("now")
        client.abort()

    server = serve(onmessage=onmessage, onpingreceived=onpingreceived)
    peer = server.open()
    peer.send(frame(TEXT, b"go") + frame(PING, b"") * 3000)
    server.wait(lambda: len(when) == 2, "in time")
    assert when[0] <= 16
    assert when[1] < 1500


def test_a_timeout_may_be_as_long_as_one_likes(serve: Servers) -> None:
    server = serve(onmessage=lambda client, _: [client.send(client.recv(timeout=t)) for t in (math.inf, 1e300)])
    peer = server.open()
    for text in ("go", "1", "2"):
        peer.text(text)
    assert [peer.message(), peer.message()] == ["1", "2"]


def test_other_events_are_handled_while_a_handler_receives(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        client.send_ping(b"mine")
        client.recv()

    handlers = dict.fromkeys(("onpingreceived", "onpong", "onping", "onsent"), lambda *_: None)
    server = serve(onmessage=onmessage, **handlers)
    peer = server.open()
    peer.text("go")
    assert peer.frame().payload == b"mine"
    peer.send(frame(PING, b"yours") + frame(PONG, b"mine"))
    story = server.story(peer)
    server.wait(lambda: len(story.events) == 5, "handled")
    names = [event.name for event in story.events]
    assert names[:2] == ["onopen", "onmessage"]
    # what is sent and what is received are two directions
    assert [name for name in names[2:] if name != "onping"] == ["onpingreceived", "onpong"]
    peer.text("end")


def test_i22_several_threads_receive(serve: Servers) -> None:
    """Each message goes to one of them, once, and then to onmessage again."""
    server = serve(onmessage=echo)
    peer = server.open()
    client = server.client(peer)
    receivers = [Running(client.recv) for _ in range(3)]
    until(lambda: len(client._takers) == 3, "they wait")
    for text in ("1", "2", "3"):
        peer.text(text)
    assert all(receiver.ended() for receiver in receivers)
    assert sorted(receiver.result.payload for receiver in receivers) == ["1", "2", "3"]
    peer.text("for the handler")
    assert peer.message() == "for the handler"
    assert server.story(peer).messages == ["for the handler"]


def test_i22_a_thread_and_a_handler_receive(serve: Servers) -> None:
    """The handler comes first: it runs."""

    def onmessage(client: Any, message: Any) -> None:
        entered.set()
        got.append(client.recv().payload)

    entered, got = threading.Event(), []
    server = serve(onmessage=onmessage)
    peer = server.open()
    peer.text("go")
    assert entered.wait(DEADLINE_S)
    elsewhere = Running(server.client(peer).recv)
    assert waits(elsewhere)
    peer.text("for the handler")
    peer.text("for the thread")
    assert elsewhere.ended()
    assert (got, elsewhere.result.payload) == (["for the handler"], "for the thread")


def test_a_thread_that_receives_gives_up_or_learns_of_the_end(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    client = server.client(peer)
    for timeout in (0, 0.05):
        with pytest.raises(TimeoutError):
            client.recv(timeout=timeout)
    assert not client._takers
    receiving = Running(client.recv)
    assert waits(receiving)
    peer.close()
    assert receiving.ended()
    assert isinstance(receiving.error, wspy.SocketClosed)
    assert receiving.error.rcvd == (1000, "")


def test_a_message_is_not_lost_between_a_timeout_and_its_delivery(serve: Servers) -> None:
    """Timeouts of all lengths, messages at all times: each one comes out once, here or there."""
    server = serve(onmessage=lambda client, message: None)
    peer = server.open()
    client = server.client(peer)
    here: list[str] = []
    stop = threading.Event()

    def receive() -> None:
        while not stop.is_set():
            try:
                here.append(client.recv(timeout=0.0001 * (len(here) % 5)).payload)
            except TimeoutError:
                continue

    receivers = [Running(receive) for _ in range(2)]
    for number in range(500):
        peer.text(str(number))
    there = server.story(peer).messages
    until(lambda: len(here) + len(server.story(peer).messages) == 500, "all came out")
    stop.set()
    assert all(receiver.ended() for receiver in receivers)
    there = server.story(peer).messages
    assert sorted(map(int, here + there)) == list(range(500))


INTERRUPTED = """
    import signal
    import wspy

    class Echo(wspy.Server):
        def onmessage(self, client, message):
            client.send(message)

    server = Echo(("127.0.0.1", 0)).start()
    print(server.address[1], flush=True)
    while not server.clients:
        pass
    client, = server.clients
    print("waits", flush=True)
    for wait in (client.recv, lambda: [client.send(bytes(100_000)) for _ in range(100)]):
        try:
            wait()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    client.close()
    server.stop()
    server.join()
"""


@pytest.mark.slow
def test_ctrl_c_in_a_thread_that_waits_loses_nothing(patience: float) -> None:
    with Program(*PYTHON, "-c", textwrap.dedent(INTERRUPTED), patience=patience) as program:
        with RawClient(("127.0.0.1", int(program.line())), receive_buffer=4096) as peer:
            peer.open()
            assert program.line() == "waits"
            until(lambda: is_asleep(program), "it waits for a message")
            program.process.send_signal(signal.SIGINT)
            assert program.line() == "interrupted"
            peer.text("for the handler")
            count = 0
            while (message := peer.message()) != "for the handler":
                assert message == bytes(100_000)
                count += 1
            until(lambda: is_asleep(program), "it waits for the peer")
            program.process.send_signal(signal.SIGINT)
            assert program.line() == "interrupted"
            while (received := peer.frame()).opcode == BINARY:
                assert received.payload == bytes(100_000)
            peer.send(close_frame(1000))
        assert program.ended() == (0, "", "")


def is_asleep(program: Program) -> bool:
    """Whether the main thread of a program sleeps, at three looks."""
    stat = Path(f"/proc/{program.process.pid}/task/{program.process.pid}/stat")
    looks = []
    for _ in range(3):
        looks.append(stat.read_text(encoding="ascii").rpartition(")")[2].split()[0])
        time.sleep(0.02)
    return looks == ["S"] * 3


def test_recv_in_a_pause_waits_for_its_end(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        client.pause_reading()
        paused.set()
        client.send(client.recv())

    paused = threading.Event()
    server = serve(onmessage=onmessage)
    peer = server.open()
    peer.send(frame(TEXT, b"go") + frame(TEXT, b"held"))
    assert paused.wait(DEADLINE_S)
    client = server.client(peer)
    until(lambda: client._its_rare().held, "held")
    assert not peer.waiting()
    client.resume_reading()
    assert peer.message() == "held"


# ---- who it is ----


def test_a_client_shows_what_it_is(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    client = server.client(peer)
    assert repr(client) == f"<Client 127.0.0.1:{peer.address[1]}>"
    assert client.server is server.server
    peer.close()
    server.outcome(peer)
    assert repr(client) == f"<Client 127.0.0.1:{peer.address[1]} closed>"


def test_a_client_that_has_ended_keeps_nothing_that_is_asked_of_it(serve: Servers) -> None:
    def onclose(client: Any, code: int, reason: str) -> None:
        assert Running(client.pause_reading).ended()

    server = serve(onclose=onclose)
    peer = server.open()
    client = server.client(peer)
    peer.close()
    server.outcome(peer)
    until(lambda: client._thread_id < 0, "its thread is through")
    for _ in range(3):
        client.pause_reading()
        client.resume_reading()
    until(lambda: not client._calls, "nothing is kept")
    assert client._inbox.qsize() <= 1
