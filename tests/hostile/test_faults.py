"""Does a fault end what it hits, and nothing else? Resets, system calls and allocations that fail. Rows H12, H13, I."""

from __future__ import annotations

import errno
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import pytest
from drivers import (
    BINARY,
    CONTINUATION,
    FRONT_ENDS,
    TEXT,
    ConnectionEndedError,
    RawClient,
    close_frame,
    echo,
    frame,
    head,
    needs,
    until,
)
from programs import Program
from turns import faults

from wspy._core import lib

if TYPE_CHECKING:
    from drivers import Servers

RESETS: dict[str, bytes] = {
    "before the 101": b"",
    "in the request line": head()[:8],
    "in the head": head()[:60],
    "right behind the head": head(),
    "in a frame header": head() + frame(TEXT, b"x" * 200)[:3],
    "in a frame": head() + frame(TEXT, b"x" * 200)[:-1],
    "in a large frame": head() + frame(TEXT, b"x" * 500_000)[:-1],
    "in a message": head() + frame(TEXT, b"x", final=False),
    "behind a message": head() + frame(TEXT, b"x"),
    "behind a Close": head() + close_frame(1000),
}


@pytest.mark.parametrize("end", ["abort", "end"])
@pytest.mark.parametrize("name", RESETS)
def test_i1_a_peer_that_goes_at_any_point(
    serve: Servers, caplog: pytest.LogCaptureFixture, name: str, end: str
) -> None:
    """One onclose if there was an onopen; the descriptor is free; nothing that looks like an error is logged."""
    caplog.set_level("WARNING")
    server = serve(onmessage=echo)
    for waits in (False, True):
        for _ in range(5):
            peer = server.connect()
            data = RESETS[name]
            try:
                peer.send(data)
            except ConnectionError:
                pass
            if waits:
                read = len(data) // 2
                until(lambda read=read: server.bytes_read() >= read, "some of it is read")
            getattr(peer, end)()
    server.open("/last").close()  # who came before it was accepted before it
    until(lambda: server.connections() == 0, "all are gone")
    if server.has("calls"):
        server.call(int)
    stories = [story for story in server.stories if story.client.path != "/last"]
    for story in stories:
        server.wait(lambda story=story: story.closed, "onclose")
        assert story.closed is not None
        assert story.closed[0] in ({1000, 1006} if "Close" in name else {1006})
    if len(RESETS[name]) < len(head()):
        assert stories == []
    assert caplog.records == []
    server.open().close()


# ---- system calls ----


@needs("seam")
@pytest.mark.parametrize("error", ["ECONNABORTED", "EPROTO", "EAGAIN", "EINTR", "ENOBUFS", "ENOMEM", "EMFILE", "ENFILE",
                                   "EPERM", "ENETDOWN", "EHOSTUNREACH", "ETIMEDOUT"])  # fmt: skip
def test_h12_accept_fails(serve: Servers, caplog: pytest.LogCaptureFixture, error: str) -> None:
    """It goes on: the next one is accepted, at once or a moment later."""
    server = serve(onmessage=echo)
    other = server.open()
    with faults(lib.WSPY_SYS_ACCEPT, nth=1, times=3, error=getattr(errno, error)):
        peers = [RawClient(server.address) for _ in range(3)]
        other.text("not affected")
        assert other.message() == "not affected"
        for peer in peers:
            peer.open()
            peer.close()
    assert len(caplog.records) <= 1


@needs("seam")
@pytest.mark.parametrize("error", ["ECONNRESET", "ETIMEDOUT", "EIO", "EBADF", "ENOTCONN"])
def test_recv_fails(serve: Servers, error: str) -> None:
    """The connection that is hit is gone; the listener and the others go on."""
    server = serve(onmessage=echo)
    other, peer = server.open(), server.open()
    assert server.client(peer)
    with faults(lib.WSPY_SYS_RECV, nth=1, times=1, error=getattr(errno, error)):
        peer.text("lost")
        assert server.outcome(peer)[0] == 1006
    other.text("fine")
    assert other.message() == "fine"


@needs("seam")
@pytest.mark.parametrize("error", ["EAGAIN", "ENOBUFS", "ENOMEM"])
def test_recv_and_send_have_nothing_now(serve: Servers, error: str) -> None:
    """That is no end: it is tried again."""
    server = serve(onmessage=echo)
    peer = server.open()
    for call in (lib.WSPY_SYS_RECV, lib.WSPY_SYS_SEND):
        with faults(call, nth=1, times=3, error=getattr(errno, error)):
            peer.text("once more")
            assert peer.message() == "once more"


@needs("seam")
@pytest.mark.parametrize("nth", range(1, 6))
def test_epoll_ctl_fails(serve: Servers, nth: int) -> None:
    """Out of watches or memory: that connection is lost, not the server."""
    server = serve(onmessage=echo)
    other = server.open()
    with faults(lib.WSPY_SYS_EPOLL_CTL, nth=nth, times=1, error=errno.ENOSPC):
        for _ in range(3):
            peer = server.connect()
            try:
                peer.open()
                peer.text("x")
                peer.message()
                peer.close()
            except (ConnectionEndedError, ConnectionError):
                pass
            peer.end()
    other.text("fine")
    assert other.message() == "fine"
    server.open().close()


@needs("seam")
def test_i3_epoll_wait_is_interrupted(serve: Servers) -> None:
    server = serve(onmessage=echo)
    peer = server.open()
    with faults(lib.WSPY_SYS_EPOLL_WAIT, nth=1, times=200, error=errno.EINTR):
        for number in range(20):
            peer.text(str(number))
            assert peer.message() == str(number)


# ---- allocations ----


def life(server: Any) -> None:
    """Everything that a connection allocates for: a long head, messages of all kinds, a queue, a broadcast."""
    with RawClient(server.address, receive_buffer=4096) as peer:
        request = head("/", [("X-Long", "x" * 3000)])
        peer.socket.settimeout(5)
        peer.send(request[:1000])
        peer.send(request[1000:])
        peer.opened()
        peer.send(frame(TEXT, b"a" * 300, final=False) + frame(CONTINUATION, b"b" * 300))
        peer.message()
        data = frame(BINARY, bytes(300_000))
        peer.send(data[:1000])
        peer.send(data[1000:])
        peer.message()
        server.server.broadcast("x" * 1_000_000, [client for client in server.server.clients if client.path == "/"])
        peer.message()
        peer.close()


@needs("seam")
@pytest.mark.slow
def test_h13_each_allocation_of_the_core_fails_once(serve: Servers) -> None:
    """The connection that it hits ends with 1011, or is cut; the next one is as if nothing had been."""
    server = serve(onmessage=echo, onsent=lambda client, message: None)
    witness = server.open("/witness")
    witness.text("known to the server")
    assert witness.message() == "known to the server"
    nth, is_hit = 0, True
    codes: set[int] = set()
    while is_hit:
        nth += 1
        known = len(server.stories)
        with faults(lib.WSPY_SYS_ALLOCATE, nth=nth, times=1):
            try:
                life(server)
                is_hit = False
            except (ConnectionEndedError, ConnectionError, TimeoutError, AssertionError):
                is_hit = True
            made = lib.wspy_sys_fail(lib.WSPY_SYS_ALLOCATE, 0, 0, 0, 0)
        is_hit = is_hit or made >= nth
        witness.text(f"after {nth}")
        assert witness.message() == f"after {nth}"
        for story in server.stories[known:]:
            server.wait(lambda story=story: story.closed, "onclose")
            codes.add(story.closed[0])
        assert nth < 500
    assert nth > 5
    assert codes <= {1000, 1005, 1006, 1009, 1011}, codes
    life(server)


@needs("seam")
@pytest.mark.slow
def test_h13_allocations_fail_for_a_while(serve: Servers) -> None:
    server = serve(onmessage=echo)
    witness = server.open("/witness")
    for times in (2, 5, 100):
        with faults(lib.WSPY_SYS_ALLOCATE, nth=1, times=times):
            for _ in range(3):
                try:
                    life(server)
                except (ConnectionEndedError, ConnectionError, TimeoutError, AssertionError):
                    continue
        witness.text("still here")
        assert witness.message() == "still here"
    life(server)


def test_h13_a_server_can_not_be_made_without_memory() -> None:
    """A clean error, and no descriptor left open."""
    import wspy  # noqa: PLC0415

    for nth in range(1, 4):
        with faults(lib.WSPY_SYS_CREATE, nth=nth, times=1, error=errno.EMFILE), pytest.raises(OSError):
            wspy.AsyncServer(("127.0.0.1", 0))
    with faults(lib.WSPY_SYS_ALLOCATE, nth=1, times=1), pytest.raises(OSError):
        wspy.AsyncServer(("127.0.0.1", 0))


# ---- pieces of everything ----


@needs("seam")
@pytest.mark.parametrize("size", [1, 2, 7])
def test_i4_everything_in_pieces(serve: Servers, size: int) -> None:
    """Recv and send move a few bytes at a time."""
    server = serve(onmessage=echo)
    with faults(lib.WSPY_SYS_SEND, nth=0, short_io=size):
        peer = server.open()
        for payload in (b"", b"x" * 125, b"y" * 3000):
            peer.binary(payload)
            assert peer.message() == payload
        peer.close()
    assert server.outcome(peer) == (1000, "")


def test_i6_descriptors_are_used_again_at_once(serve: Servers) -> None:
    """Ends and beginnings in the same turn: nobody gets what was meant for another."""
    entered, go_on = threading.Event(), threading.Event()

    def onmessage(client: Any, message: Any) -> None:
        if message.payload == "hold":
            entered.set()
            go_on.wait(20)
            entered.clear()
            go_on.clear()
        else:
            client.send(message)

    server = serve(onmessage=onmessage)
    holder = server.open("/holder")
    for turn in range(10):
        old = [server.open(f"/old{number}") for number in range(3)]
        holder.text("hold")
        entered.wait(20)
        for peer in old:
            peer.text("from the old one")
            peer.abort()
        new = []
        for number in range(3):
            peer = server.connect()
            peer.send(head(f"/new{turn}.{number}") + frame(TEXT, f"{turn}.{number}".encode()))
            new.append(peer)
        go_on.set()
        for number, peer in enumerate(new):
            peer.opened()
            assert peer.message() == f"{turn}.{number}"
            assert server.client(peer).path == f"/new{turn}.{number}"
            peer.close()


TALK = """
    import threading
    import wspy

    def serve():
        sock, _ = listener.accept()
        wspy.Connection(sock).send("from another interpreter")

    class Handlers:
        def onopen(self, client):
            client.send("from another interpreter")

    kind = "KIND"
    if kind == "connection":
        listener = wspy.websocket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=serve).start()
        address, end = listener.getsockname(), listener.close
    else:
        server = type("Server", (Handlers, getattr(wspy, kind)), {})(("127.0.0.1", 0))
        server.start()
        address, end = server.address, server.close
    connection = wspy.Connection.connect("ws://{}:{}/".format(*address))
    print(connection.recv(), flush=True)
    connection.sock.close()
    end()
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()
"""
INTERPRETERS = """
import sys

try:
    import _xxsubinterpreters as interpreters
    create = lambda: interpreters.create(isolated=False)
except ImportError:
    import _interpreters as interpreters
    create = lambda: interpreters.create("legacy")

for _ in range(2):
    one = create()
    failure = interpreters.run_string(one, "import sys; sys.path[:] = " + repr(sys.path) + chr(10) + sys.argv[1])
    assert failure is None, failure
    interpreters.destroy(one)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="there are no interpreters any more that share a GIL")
def test_i23_an_interpreter_beside_the_first(front_end: str) -> None:
    """Twice, one after the other: the core keeps nothing of an interpreter that is gone."""
    kind = FRONT_ENDS[front_end].kind.__name__ if front_end != "connection" else front_end
    with Program(sys.executable, "-c", INTERPRETERS, textwrap.dedent(TALK).replace("KIND", kind)) as program:
        assert [program.line(), program.line()] == ["from another interpreter"] * 2
        assert program.ended() == (0, "", "")
