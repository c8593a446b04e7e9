"""Do deadlines end what takes too long, and nothing else?"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from drivers import PATIENCE, PING, PONG, close_frame, echo, frame, head, needs, only, until

if TYPE_CHECKING:
    from drivers import Servers

# A tick of the timers is 16 ms: a deadline comes at most one of them late, and never early.
LATE_S = 1.0 * PATIENCE
# More than the kernel takes for a peer that doesn't read.
MUCH = 12_000_000


def lasts(began: float, expected: float) -> bool:
    """Whether so many seconds have passed, not less and hardly more."""
    return expected * 0.95 <= time.monotonic() - began < expected + LATE_S


# ---- open_timeout ----


@pytest.mark.parametrize(
    "sent",
    [b"", b"\r\n", b"GET / HTTP/1.1\r", b"GET / HT"],
    ids=["A2 nothing", "A2 an empty line", "A3 all but the LF of the request line", "A3 half a request line"],
)
def test_before_the_request_line_is_complete_it_ends_without_a_word(serve: Servers, sent: bytes) -> None:
    server = serve(open_timeout=0.1)
    began = time.monotonic()
    peer = server.connect()
    peer.send(sent)
    peer.eof()
    assert lasts(began, 0.1)
    assert server.stories == []


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n", head()[:-2], head()[:60]], ids=["1", "2", "3"])
def test_a4_after_the_request_line_it_is_answered_with_408(serve: Servers, sent: bytes) -> None:
    server = serve(open_timeout=0.1)
    began = time.monotonic()
    peer = server.connect()
    peer.send(sent)
    response = peer.response()
    assert response.status == 408
    assert response.headers["connection"] == "close"
    peer.eof()
    assert lasts(began, 0.1)


def test_a_head_that_drips_has_the_same_deadline(serve: Servers) -> None:
    """In total: a byte now and then does not move it."""
    server = serve(open_timeout=0.2)
    began = time.monotonic()
    peer = server.paced()
    line, _, rest = head().partition(b"\r\n")
    peer.send_pieces([line + b"\r\n"])  # without it there is nothing to answer
    pause = threading.Event()
    for byte in rest * 10:
        if peer.is_ended() or peer.waiting():
            break
        peer.send_pieces([bytes([byte])])
        pause.wait(0.002)
    assert peer.response().status == 408
    assert lasts(began, 0.2)


def test_an_open_connection_has_no_such_deadline(serve: Servers) -> None:
    server = serve(onmessage=echo, open_timeout=0.05)
    peer = server.open()
    server.connect().eof()  # one that came later is gone
    peer.text("still here")
    assert peer.message() == "still here"


class Decision:
    """An ``onrequest`` that waits, if it is asked for ``/wait``."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()

    def __call__(self, request: Any) -> None:
        if request.path.startswith("/wait"):
            self.entered.set()
            self.go_on.wait(20)


@only("epoll", "epoll-tls", because="the others go on while somebody decides")
def test_a_slow_decision_is_no_fault_of_the_peer(serve: Servers) -> None:
    """Nor of others: what they have sent in time is read, and decrypted, before they are judged."""
    decision = Decision()
    server = serve(onrequest=decision, onmessage=echo, open_timeout=0.6 + 0.1 * PATIENCE)
    peer, other = server.connect(), server.connect()
    if server.secure:
        other.socket.shake_hands()
    peer.send(head("/wait"))
    assert decision.entered.wait(20)
    other.send(head())
    threading.Event().wait(0.8 + 0.1 * PATIENCE)
    decision.go_on.set()
    peer.opened()
    other.opened()


@only("threads", "threads-tls", because="the others don't go on while somebody decides")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_decision_that_takes_too_long_is_made_without_it(
    serve: Servers, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """RFC 9110 §15.6.4; and, to HEAD, an answer without content: §9.3.2."""
    caplog.set_level("INFO", "wspy.server")
    decision = Decision()
    open_timeout = 0.8 + 0.1 * PATIENCE
    server = serve(onrequest=decision, onmessage=echo, open_timeout=open_timeout)
    began = time.monotonic()
    peer = server.connect()
    peer.send(head("/wait?secret") if method == "GET" else b"HEAD /wait?secret HTTP/1.1\r\nHost: here\r\n\r\n")
    response = peer.response(to_head_request=method == "HEAD")
    assert (response.status, response.headers["connection"]) == (503, "close")
    assert "retry-after" in response.headers
    peer.eof()
    assert time.monotonic() - began >= 0.95 * open_timeout
    decision.go_on.set()
    until(lambda: server.server._threads.busy == 0, "decided")
    other = server.open()
    other.text("others are served")
    assert other.message() == "others are served"
    asked = f"refused {method} /wait from {peer.address[0]}:{peer.address[1]}"
    why = "the opening handshake took longer than open_timeout"
    assert [message for message in caplog.messages if "refused" in message] == [f"{asked} with 503: {why}"]
    assert not server.server._deciding
    assert not server.server._opening
    assert len(server.stories) == 1


def test_no_open_timeout(serve: Servers) -> None:
    server = serve(open_timeout=None)
    peer = server.connect()
    with serve(open_timeout=0.05).connect() as other:
        other.eof()
    peer.open()


# ---- idle_request_timeout ----


@needs("http")
def test_b30_an_idle_keep_alive_connection_ends(serve: Servers) -> None:
    import wspy  # noqa: PLC0415

    server = serve(onrequest=lambda request: wspy.Response(200, body="hello"), idle_request_timeout=0.1)
    peer = server.connect()
    for _ in range(3):
        began = time.monotonic()
        peer.send(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        response = peer.response()
        assert (response.status, response.body, response.headers["connection"]) == (200, b"hello", "keep-alive")
    peer.eof()
    assert lasts(began, 0.1)


# ---- ping_interval and ping_timeout ----


@needs("keepalive")
def test_h9_a_silent_peer_is_pinged_and_then_dropped(serve: Servers) -> None:
    server = serve(ping_interval=0.1, ping_timeout=0.1, onping=lambda client, payload: None)
    began = time.monotonic()
    peer = server.open()
    ping = peer.frame()
    assert ping.opcode == PING
    assert lasts(began, 0.1)
    peer.reset()
    assert lasts(began, 0.2)
    code, reason = server.outcome(peer)
    assert code == 1006
    assert "ping_timeout" in reason
    assert server.story(peer).named("onping") == [ping.payload]


@needs("keepalive")
def test_a_peer_that_answers_stays(serve: Servers) -> None:
    server = serve(ping_interval=0.03, ping_timeout=0.3 * PATIENCE, onpong=lambda client, payload: None)
    peer = server.open()
    payloads: list[bytes] = []
    began = time.monotonic()
    while len(payloads) < 6 or time.monotonic() - began < 0.4 * PATIENCE:
        ping = peer.frame()
        assert ping.opcode == PING
        payloads.append(ping.payload)
        peer.send(frame(PONG, ping.payload))
    server.wait(lambda: len(server.story(peer).named("onpong")) == len(payloads), "onpong")
    assert server.story(peer).named("onpong") == payloads
    assert server.story(peer).closed is None


@needs("keepalive")
def test_any_byte_is_life(serve: Servers) -> None:
    """Whoever sends anything is not pinged, and whoever was pinged need not answer with a Pong."""
    server = serve(ping_interval=0.1, ping_timeout=0.2, onmessage=lambda client, message: None)
    pause = threading.Event()
    data = frame(1, b"x" * 100)

    def without_a_pause() -> bool:
        """Send for 0.4 s; return whether it was never silent for too long, as it may be on a busy machine."""
        peer = server.open()
        sent = [time.monotonic()]
        for position in range(40):
            with contextlib.suppress(OSError):  # dropped
                peer.send(data[position : position + 1])
            sent.append(time.monotonic())
            pause.wait(0.01)
        was_asked = peer.is_ended() or peer.waiting()
        if max(later - earlier for earlier, later in itertools.pairwise([*sent, time.monotonic()])) > 0.08:
            return False
        assert not was_asked
        peer.send(data[40:])
        server.wait(lambda: server.story(peer).messages, "delivered")
        return True

    assert any(without_a_pause() for _ in range(40))


@needs("keepalive")
def test_d19_a_header_and_then_nothing(serve: Servers) -> None:
    server = serve(ping_interval=0.05, ping_timeout=0.05, onping=lambda client, payload: None)
    peer = server.open()
    peer.send(frame(2, bytes(1_000_000))[:14])
    peer.reset()
    assert server.outcome(peer)[0] == 1006
    assert server.story(peer).named("onping")
    assert server.story(peer).messages == []


@needs("keepalive")
def test_no_pings(serve: Servers) -> None:
    silent = serve(ping_interval=None, onmessage=echo)
    peer = silent.open()
    with serve(ping_interval=0.05, ping_timeout=0.05).open() as other:
        other.frame()
        other.reset()
    assert peer.waiting() == b""
    peer.text("still here")
    assert peer.message() == "still here"


@needs("keepalive")
def test_no_ping_timeout(serve: Servers) -> None:
    server = serve(ping_interval=0.03, ping_timeout=None, onmessage=echo)
    peer = server.open()
    for _ in range(5):
        assert peer.frame().opcode == PING
    assert server.story(peer).closed is None


@needs("keepalive")
def test_a_blocked_handler_does_not_drop_healthy_peers(serve: Servers) -> None:
    """What has arrived is read before deadlines are looked at."""
    entered, go_on = threading.Event(), threading.Event()

    def onmessage(client: Any, message: Any) -> None:
        if message.payload == "block":
            entered.set()
            go_on.wait(20)
        else:
            client.send(message)

    server = serve(ping_interval=0.05, ping_timeout=0.3, onmessage=onmessage)
    blocker, peer = server.open(), server.open()
    ping = peer.frame()
    blocker.text("block")
    entered.wait(20)
    peer.send(frame(PONG, ping.payload))
    peer.text("in time")
    threading.Event().wait(0.4)  # the deadlines pass meanwhile
    go_on.set()
    received = peer.frame()
    while received.opcode == PING:
        received = peer.frame()
    assert received.payload == b"in time"


@needs("keepalive")
def test_a_paused_client_is_not_dropped(serve: Servers) -> None:
    """Its Pong can't be read."""
    server = serve(ping_interval=0.04, ping_timeout=0.04, onmessage=echo)
    peer = server.open()
    client = server.client(peer)
    client.pause_reading()
    peer.text("waits")
    with serve(ping_interval=0.1, ping_timeout=0.1).open() as other:
        other.frame()
        other.reset()
    assert server.story(peer).closed is None
    client.resume_reading()
    received = peer.frame()
    while received.opcode == PING:
        received = peer.frame()
    assert received.payload == b"waits"


def test_h10_a_peer_that_takes_nothing_is_dropped(serve: Servers) -> None:
    """Its TCP is alive, its program isn't: no byte of what is queued goes through."""
    server = serve(write_timeout=0.2, onmessage=lambda client, _: client.send(bytes(MUCH)))
    peer = server.open(receive_buffer=4096)
    story = server.story(peer)
    began = time.monotonic()
    peer.text("send much")
    server.wait(lambda: story.closed, "onclose")
    assert story.closed is not None
    assert story.closed[0] == 1006
    assert 0.2 * 0.95 <= time.monotonic() - began < 2 * PATIENCE
    peer.reset()


def test_h10_a_peer_that_takes_a_little_again_and_again_is_not_dropped(serve: Servers) -> None:
    """The kernel says that it takes more only once there is much room, which takes longer than write_timeout here."""
    write_timeout = 0.2 * PATIENCE
    server = serve(write_timeout=write_timeout, onmessage=lambda client, _: client.send(bytes(MUCH)))
    peer = server.open(receive_buffer=4096)
    peer.text("send much")
    pause, end = threading.Event(), time.monotonic() + 6 * write_timeout
    while time.monotonic() < end:
        peer.socket.recv(2000)
        pause.wait(write_timeout / 8)
    assert server.story(peer).closed is None


@needs("keepalive")
def test_a_peer_that_reads_slowly_is_not_dropped(serve: Servers) -> None:
    """Whatever the kernel takes is life too."""
    server = serve(ping_interval=0.1, ping_timeout=0.1)
    peer = server.open(receive_buffer=4096)
    server.client(peer).send(bytes(2_000_000))
    pause = threading.Event()
    left = 2_000_010
    began = time.monotonic()
    while left > 4096:
        left -= len(peer.exactly(min(left - 4096, 50_000)))
        pause.wait(0.02)
    assert time.monotonic() - began > 0.5
    assert server.story(peer).closed is None


# ---- close_timeout ----


def test_e11_a_peer_that_never_answers_a_close_is_dropped(serve: Servers) -> None:
    server = serve(close_timeout=0.1)
    peer = server.open()
    client = server.client(peer)
    began = time.monotonic()
    client.close(3000)
    peer.closes(3000)
    peer.reset() if server.has("abort") else peer.eof()
    assert lasts(began, 0.1)
    assert server.outcome(peer)[0] == 1006


def test_e11_messages_do_not_move_the_deadline(serve: Servers) -> None:
    server = serve(close_timeout=0.1)
    peer = server.open()
    client = server.client(peer)
    began = time.monotonic()
    client.close(3000)
    pause = threading.Event()
    sent = 0
    while not peer.is_ended():
        try:
            peer.text(str(sent))
        except OSError:
            break
        sent += 1
        pause.wait(0.005)
    assert lasts(began, 0.1)
    assert server.outcome(peer)[0] == 1006
    assert server.story(peer).messages[:5] == ["0", "1", "2", "3", "4"]


@needs("queue")
def test_e17_a_violation_while_the_queue_is_full_is_bounded_by_close_timeout(serve: Servers) -> None:
    server = serve(onopen=lambda client: client.send(bytes(4_000_000)), close_timeout=0.1)
    peer = server.open(receive_buffer=4096)
    assert server.client(peer)
    peer.send(b"\xff\xff")
    assert server.outcome(peer)[0] == 1002
    peer.reset()


def test_e17_the_close_frame_waits_behind_what_is_queued(serve: Servers) -> None:
    server = serve(onopen=lambda client: client.send(bytes(4_000_000)))
    peer = server.open(receive_buffer=4096)
    # who can't queue returns from onopen when the peer has read
    assert server.client(peer) if server.has("queue") else server.story(peer)
    peer.send(b"\xff\xff")
    assert len(peer.message()) == 4_000_000
    peer.closes(1002)
    assert server.outcome(peer)[0] == 1002


def test_m8_a_peer_that_does_not_end_tcp_is_not_waited_for(serve: Servers) -> None:
    """After the closing handshake the server has ended its half; the rest is given up a second later."""
    server = serve()
    peer = server.open()
    peer.send(close_frame(1000))
    peer.closes(1000)
    peer.eof()
    server.wait(lambda: server.story(peer).closed, "onclose")
    assert server.story(peer).closed[0] == 1000
    until(lambda: server.connections() == 0, "given up", 5 * PATIENCE)


def test_e14_the_server_ends_tcp_first(serve: Servers) -> None:
    """RFC 6455 §7.1.1: TIME_WAIT is on its side."""
    server = serve()
    peer = server.open()
    peer.close()
    assert server.outcome(peer)[0] == 1000
    ports = (server.address[1], peer.address[1])
    until(lambda: (ports, TIME_WAIT) in tcp_states(), "the server's end of the connection waits")


TIME_WAIT = 6


def tcp_states() -> set[tuple[tuple[int, int], int]]:
    """Return local and remote port of each IPv4 connection of this machine, with its state."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    fields = [line.split()[1:4] for line in lines]
    return {((int(local[-4:], 16), int(remote[-4:], 16)), int(state, 16)) for local, remote, state in fields}
