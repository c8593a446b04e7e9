"""Is each connection told about once: onopen first, onclose last, with the code that says who ended it (R5, R6)?"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from drivers import (
    CLOSE,
    CONTINUATION,
    PONG,
    TEXT,
    ConnectionEndedError,
    Received,
    bytewise,
    close_frame,
    echo,
    frame,
    head,
    needs,
    only,
    until,
)
from turns import faults

import wspy
from wspy._core import lib

if TYPE_CHECKING:
    from collections.abc import Callable

    from drivers import RawClient, Servers

# ---- who ends it, and how ----


def peer_closes(peer: RawClient, client: Any) -> None:
    peer.close(3000, "enough")


def peer_closes_without_a_code(peer: RawClient, client: Any) -> None:
    peer.close(None)


def peer_ends_tcp(peer: RawClient, client: Any) -> None:
    peer.end()


def peer_half_closes(peer: RawClient, client: Any) -> None:
    peer.half_close()
    peer.eof()


def peer_resets(peer: RawClient, client: Any) -> None:
    peer.abort()


def peer_ends_in_a_frame(peer: RawClient, client: Any) -> None:
    peer.send(frame(TEXT, b"cut off")[:-1])
    peer.end()


def peer_breaks_a_rule(peer: RawClient, client: Any) -> None:
    peer.send(b"\xff\xff")
    peer.closes(1002)


def peer_sends_bad_text(peer: RawClient, client: Any) -> None:
    peer.send(frame(TEXT, b"\xff"))
    peer.closes(1007)


def server_closes(peer: RawClient, client: Any) -> None:
    client.close(4000, "bye")
    peer.closes(4000, "bye")
    peer.send(close_frame(4000, "bye"))
    peer.eof()


def server_closes_without_a_code(peer: RawClient, client: Any) -> None:
    client.close(None)
    peer.closes(None)
    peer.send(close_frame(None))
    peer.eof()


def server_closes_and_the_peer_has_another_code(peer: RawClient, client: Any) -> None:
    client.close(1000)
    peer.closes(1000)
    peer.send(close_frame(3001, "so be it"))
    peer.eof()


def server_closes_and_the_peer_ends_tcp(peer: RawClient, client: Any) -> None:
    client.close(1000)
    peer.closes(1000)
    peer.end()


def server_aborts(peer: RawClient, client: Any) -> None:
    client.abort()
    peer.reset()


def server_closes_then_aborts(peer: RawClient, client: Any) -> None:
    client.close()
    client.abort()
    peer.reset()


WAYS: list[tuple[Callable[[Any, Any], None], int, str | None]] = [
    (peer_closes, 3000, "enough"),
    (peer_closes_without_a_code, 1005, ""),
    (peer_ends_tcp, 1006, None),
    (peer_half_closes, 1006, None),
    (peer_resets, 1006, None),
    (peer_ends_in_a_frame, 1006, None),
    (peer_breaks_a_rule, 1002, None),
    (peer_sends_bad_text, 1007, None),
    (server_closes, 4000, "bye"),
    (server_closes_without_a_code, 1005, ""),
    (server_closes_and_the_peer_has_another_code, 3001, "so be it"),
    (server_closes_and_the_peer_ends_tcp, 1006, None),
    (server_aborts, 1006, None),
    (server_closes_then_aborts, 1006, None),
]
ENDS = [
    pytest.param(*way, id=way[0].__name__, marks=[needs("abort")] if "abort" in way[0].__name__ else []) for way in WAYS
]


@pytest.mark.parametrize(("end", "code", "reason"), ENDS)
def test_onopen_and_onclose_are_called_once_each(serve: Servers, end: Any, code: int, reason: str | None) -> None:
    server = serve(onmessage=echo)
    peer, other = server.open(), server.open()
    peer.text("before")
    assert peer.message() == "before"
    end(peer, server.client(peer))
    found = server.outcome(peer)
    assert found[0] == code
    assert reason in {None, found[1]}
    assert [event.name for event in server.story(peer).events] == ["onopen", "onmessage", "onclose"]
    other.text("not affected")
    assert other.message() == "not affected"


@pytest.mark.parametrize(("end", "code", "reason"), ENDS)
def test_a_client_that_is_closed_can_not_be_sent_to(serve: Servers, end: Any, code: int, reason: str | None) -> None:
    server = serve()
    peer = server.open()
    client = server.client(peer)
    end(peer, client)
    server.outcome(peer)
    assert client.closed
    if server.has("clients"):
        assert client not in server.server.clients
    for call in (lambda: client.send("x"), lambda: client.send(b"x" * 100_000), lambda: client.send("xyz", 1)):
        with pytest.raises(wspy.SocketClosed):
            call()
    with pytest.raises(wspy.SocketClosed):
        client.send_ping()
    # and what ends a connection may be asked for again and again
    client.close()
    if server.has("abort"):
        client.abort()
    if server.has("pause"):
        client.pause_reading()
        client.resume_reading()
    if server.has("queue"):
        assert client.buffered_amount == 0
    assert client.remote_address == peer.address


def test_c20_everything_in_one_segment_with_the_request(serve: Servers) -> None:
    """What follows the request is kept, and handled after the 101."""
    server = serve(onopen=lambda client: client.send("welcome"), onmessage=echo)
    peer = server.connect()
    peer.send(head() + frame(TEXT, b"early") + frame(TEXT, b"bird") + close_frame(1000))
    peer.opened()
    assert [peer.message() for _ in range(3)] == ["welcome", "early", "bird"]
    peer.closes(1000)
    peer.eof()
    server.outcome(peer)
    assert [event.name for event in server.story(peer).events] == ["onopen", "onmessage", "onmessage", "onclose"]


@pytest.mark.parametrize("ended", ["end", "abort"])
def test_i5_onclose_comes_after_all_messages_that_arrived_before(serve: Servers, ended: str) -> None:
    """Data that is pending at the end of a connection is delivered first."""
    entered, go_on = threading.Event(), threading.Event()

    def onmessage(client: Any, message: Any) -> None:
        if message.payload == "hold":
            entered.set()
            go_on.wait(20)

    server = serve(onmessage=onmessage)
    holder, peer = server.open(), server.open()
    holder.text("hold")
    entered.wait(20)
    # in one segment: a reset takes back what the kernel has not sent yet
    peer.send(b"".join(frame(TEXT, str(number).encode()) for number in range(100)))
    getattr(peer, ended)()
    go_on.set()
    assert server.outcome(peer)[0] == 1006
    assert server.story(peer).messages == [str(number) for number in range(100)]


def test_onclose_reports_the_code_that_this_side_sent_if_the_peer_agrees(serve: Servers) -> None:
    server = serve(onmessage=lambda client, _: client.close(3999, "é" * 61 + "!"))
    peer = server.open()
    peer.text("close")
    peer.closes(3999, "é" * 61 + "!")
    peer.send(close_frame(3999))
    assert server.outcome(peer) == (3999, "")


# ---- nothing before the 101 (R6) ----


@needs("seam")
@pytest.mark.parametrize("early", [False, True], ids=["", "frames behind the request"])
def test_c22_the_101_is_complete_before_any_frame(serve: Servers, early: bool) -> None:
    """The kernel takes one byte at a time: what onopen and onmessage send waits behind the 101."""
    server = serve(onopen=lambda client: client.send("first"), onmessage=echo)
    peer = server.connect()
    with faults(lib.WSPY_SYS_SEND, nth=0, short_io=1):
        peer.send(head() + (frame(TEXT, b"second") if early else b""))
        peer.opened()
        assert peer.message() == "first"
        if early:
            assert peer.message() == "second"
    assert next(event.name for event in server.story(peer).events) == "onopen"


def test_nothing_is_called_before_the_handshake(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peer = server.paced()
    request = head()
    peer.send_pieces(bytewise(request)[:-1])
    assert server.stories == []
    assert peer.waiting() == b""
    peer.send(request[-1:])
    peer.opened()


@pytest.mark.parametrize("size", [0, 30, -1], ids=["nothing", "half a request", "all but one byte"])
def test_c21_a_peer_that_goes_before_the_101_was_never_there(serve: Servers, size: int) -> None:
    server = serve()
    for number in range(10):
        peer = server.connect()
        peer.send(head()[:size])
        peer.abort() if number % 2 else peer.end()
    until(lambda: server.connections() == 0, "all are gone")
    assert server.stories == []


@needs("http")
def test_c21_a_peer_that_goes_while_its_handshake_is_decided(serve: Servers) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def onrequest(request: wspy.Request) -> None:
        if request.path == "/wait":
            entered.set()
            go_on.wait(20)

    server = serve(onrequest=onrequest)
    peer = server.connect()
    peer.send(head("/wait"))
    entered.wait(20)
    peer.abort()
    go_on.set()
    until(lambda: server.connections() == 0, "it is gone")
    for story in server.stories:  # if the 101 could be written, the connection was open
        assert [event.name for event in story.events] == ["onopen", "onclose"]
    server.open().close()


def test_frames_behind_a_refused_request_are_thrown_away(serve: Servers) -> None:
    server = serve(onmessage=echo, locations=["/here"])
    peer = server.connect()
    peer.send(head("/elsewhere") + frame(TEXT, b"never"))
    assert peer.response().status == 404
    peer.eof()
    assert server.stories == []


# ---- the closing handshake ----


def test_e10_messages_that_arrive_after_our_close_are_delivered(serve: Servers) -> None:
    """Until the peer's Close."""
    server = serve()
    peer = server.open()
    server.client(peer).close()
    peer.closes(1000)
    peer.text("still")
    peer.text("here")
    peer.send(close_frame(1000) + frame(TEXT, b"too late"))
    assert server.outcome(peer) == (1000, "")
    assert server.story(peer).messages == ["still", "here"]


def test_what_was_queued_before_close_is_delivered(serve: Servers) -> None:
    def onmessage(client: Any, message: Any) -> None:
        for size in (5, 9000, 2_000_000):
            client.send(b"x" * size)
        client.close(1000, "done")

    server = serve(onmessage=onmessage)
    peer = server.open(receive_buffer=4096)
    peer.text("go")
    assert [len(peer.message()) for _ in range(3)] == [5, 9000, 2_000_000]
    peer.closes(1000, "done")
    peer.send(close_frame(1000))
    peer.eof()


def test_e9_replies_to_messages_before_a_close_leave_before_its_echo(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    peer.send(b"".join(frame(TEXT, str(number).encode()) for number in range(50)) + close_frame(1001, "away"))
    assert [peer.message() for _ in range(50)] == [str(number) for number in range(50)]
    peer.closes(1001)
    peer.eof()


def test_e12_both_sides_close_at_once(serve: Servers) -> None:
    server = serve(onmessage=lambda client, _: client.close(3000))
    peer = server.open()
    peer.send(frame(TEXT, b"close") + close_frame(3001))
    received = peer.frames()
    assert [one.opcode for one in received] == [CLOSE]
    assert server.outcome(peer)[0] == 3001


def test_e13_replies_are_attempted_after_a_half_close(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    peer.send(frame(TEXT, b"one") + frame(TEXT, b"two") + frame(TEXT, b"cut off")[:-1])
    peer.half_close()
    assert [peer.message(), peer.message()] == ["one", "two"]
    peer.eof()
    assert server.outcome(peer)[0] == 1006
    assert server.story(peer).messages == ["one", "two"]


def test_nothing_is_said_after_the_close(serve: Servers) -> None:
    """R6: neither a Pong nor a message, whatever still arrives."""
    server = serve(onmessage=lambda client, _: client.close())
    peer = server.open()
    peer.text("close")
    peer.closes(1000)
    peer.send(frame(9, b"ping") + frame(TEXT, b"x") + close_frame(1000))
    peer.eof()


def test_i24_a_partial_message_is_never_delivered(serve: Servers) -> None:
    server = serve()
    whole = frame(TEXT, b"x" * 70_000)
    fragmented = frame(TEXT, b"a fragment", final=False) + frame(CONTINUATION, b"x" * 70_000)
    for data in (whole, fragmented):
        for end in (1, 2, 9, 14, 20, 40, 20_000, len(data) - 1):
            peer = server.open()
            peer.send(data[:end])
            peer.end()
            assert server.outcome(peer)[0] == 1006
            assert server.story(peer).messages == []


def test_the_echo_of_a_close_has_no_reason_that_was_not_said(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    peer.send(close_frame(1000, "x" * 123))
    (echoed,) = peer.frames()
    assert echoed.opcode == CLOSE
    assert echoed.payload[:2] == (1000).to_bytes(2)
    assert len(echoed.payload) <= 125
    assert server.outcome(peer) == (1000, "x" * 123)


# ---- clients as objects ----


@needs("clients")
def test_clients_are_values_of_their_own(serve: Servers) -> None:
    server = serve()
    one, two = server.open(), server.open()
    first, second = server.client(one), server.client(two)
    assert first != second
    assert len({first, second, first}) == 2
    assert first in server.server.clients
    assert weakref.ref(first)() is first
    assert str(first) == f"{one.address[0]}:{one.address[1]}"
    assert str(first) in repr(first)


def test_a_client_is_forgotten_once_it_is_closed(server_kind: type[Any]) -> None:
    """Nothing of the server keeps it: a server of many connections does not grow."""
    clients: list[weakref.ref[Any]] = []

    class Server(server_kind):
        def onopen(self, client: wspy.AsyncClient) -> None:
            clients.append(weakref.ref(client))

    from drivers import RawClient  # noqa: PLC0415

    with Server(("127.0.0.1", 0)).start() as server:
        for _ in range(5):
            peer = RawClient(server.address)
            peer.open()
            peer.close()
        until(lambda: not any(client() for client in clients), "clients are freed without the garbage collector")


@needs("abort", "pause")
def test_a_slot_that_is_used_again_does_not_confuse_clients(serve: Servers) -> None:
    """I6: commands and events of an old connection never reach the next one in its place."""
    server = serve(onmessage=echo)
    old = []
    for number in range(50):
        peer = server.open()
        client = server.client(peer)
        for former in old:
            former.close()
            former.abort()
            former.pause_reading()
            with pytest.raises(wspy.SocketClosed):
                former.send("to the wrong one")
        peer.text(str(number))
        assert peer.message() == str(number)
        peer.abort() if number % 2 else peer.close()
        server.outcome(peer)
        old.append(client)


@only("epoll", because="a Server calls the handlers of two clients at a time: each may abort the other")
def test_i6_events_of_a_client_that_is_aborted_in_the_same_batch_are_dropped(serve: Servers) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def onmessage(client: Any, message: Any) -> None:
        if message.payload == "hold":
            entered.set()
            go_on.wait(20)
            return
        for other in client.server.clients:
            if other is not client and other is not server.client(holder):
                other.abort()

    server = serve(onmessage=onmessage)
    holder = server.open()
    pair = [server.open(), server.open()]
    holder.text("hold")
    entered.wait(20)
    for peer in pair:
        peer.text("first one wins")
    go_on.set()
    until(lambda: any(server.story(peer).closed for peer in pair), "one is aborted")
    counts = sorted(len(server.story(peer).messages) for peer in pair)
    assert counts == [0, 1]


def test_pings_are_answered_at_once(serve: Servers) -> None:
    server = serve()
    peer = server.open()
    for payload in (b"", b"x", b"\0" * 125):
        peer.send(frame(9, payload))
        assert peer.frame() == Received(PONG, payload)


@needs("abort")
def test_the_end_is_an_error_for_who_expects_more(serve: Servers) -> None:
    """The raw client itself: an end is not mistaken for data."""
    server = serve(onopen=lambda client: client.abort())
    peer = server.connect()
    peer.send(head())
    with pytest.raises(ConnectionEndedError):
        peer.opened(), peer.frame()


@needs("pause")
@pytest.mark.parametrize("handler", ["onsent", "onframe"])
def test_who_keeps_a_closed_client_keeps_nothing_of_what_it_was_sent(serve: Servers, handler: str) -> None:
    def onmessage(client: Any, message: Any) -> None:
        client.pause_reading()

    server = serve(**{handler: lambda *_: None, "onmessage": onmessage}, queues=True)
    peer = server.open(receive_buffer=4096)
    client = server.client(peer)
    for _ in range(4):
        client.send(bytes(2 << 20))
    peer.send(b"".join(frame(TEXT, text) for text in (b"1", b"2", b"3")) + frame(TEXT, b"half", final=False))
    server.wait(lambda: server.story(peer).messages, "paused")
    peer.abort()
    server.outcome(peer)
    assert not client._rare.sent
    assert not client._rare.held
    assert not client._rare.fragments
    assert server.server._rares == {}
