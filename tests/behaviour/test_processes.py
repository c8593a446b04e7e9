"""What do signals, forks and the end of the interpreter do to a server and its clients?"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pytest
from drivers import RawClient, close_frame, head, only
from native import clock_that_jumps, needs_compiler
from programs import PYTHON, Program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self

pytestmark = pytest.mark.slow  # each starts an interpreter

PRELUDE = """
    import faulthandler, gc, logging, os, signal, sys, threading, time
    import wspy

    def say(*words):
        os.write(1, " ".join(map(str, words)).encode() + b"\\n")

    class Server(getattr(wspy, os.environ["KIND"])):
        def onopen(self, client):
            say("onopen", client.path)

        def onmessage(self, client, message):
            if message.payload == "fill":
                client.send(b"f" * 3_000_000)
                say("filled")
            else:
                client.send(message)

        def onclose(self, client, code, reason):
            say("onclose", client.path, code)

    server = Server(("127.0.0.1", 0), shutdown_timeout=10)
    say("port", server.address[1])
"""


class Launched(Program):
    """A server in a process of its own: the prelude, and what is given."""

    def __init__(self, source: str, kind: str, patience: float, *, preload: str = "") -> None:
        code = textwrap.dedent(PRELUDE) + textwrap.dedent(source)
        environment = ("env", f"LD_PRELOAD={preload}") if preload else ()
        super().__init__(*environment, *PYTHON, "-X", "faulthandler", "-c", code, patience=patience, KIND=kind)
        self.address = ("127.0.0.1", 0)

    def __enter__(self) -> Self:
        super().__enter__()
        self.address = ("127.0.0.1", int(self.line().removeprefix("port ")))
        return self

    def end(self) -> tuple[int, list[str], str]:
        """Wait for its end; return its exit status, the rest of its output, and what it has to complain about."""
        output, errors = self.process.communicate(timeout=self.seconds)
        return self.process.returncode, (self._unread + output).decode().splitlines(), errors.decode()

    def open(self, path: str = "/", receive_buffer: int | None = None) -> RawClient:
        """Return a client after its opening handshake and its onopen."""
        peer = RawClient(self.address, receive_buffer=receive_buffer)
        peer.open(path)
        assert self.line() == f"onopen {path}"
        return peer


@pytest.fixture
def launch(server_kind: type[Any], patience: float) -> Iterator[Callable[..., Launched]]:
    """Starts programs that end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda source, **options: stack.enter_context(Launched(source, server_kind.__name__, patience, **options))


RUN = """
    server.run()
    say("run has returned")
"""


# ---- signals ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_i15_a_signal_ends_the_server_in_order(launch: Callable[..., Launched], number: int) -> None:
    """Queued data is delivered, everybody is told 1001, a handshake under way 503; each onclose once, status 0."""
    program = launch(RUN)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(program.open(f"/{name}")) for name in range(3)]
        slow = stack.enter_context(program.open("/slow", receive_buffer=4096))
        slow.text("fill")
        assert program.line() == "filled"
        half = stack.enter_context(RawClient(program.address))
        half.send(head()[:-2])
        peers[0].text("the server has read the half request")
        peers[0].message()
        program.process.send_signal(number)
        assert half.response().status == 503
        half.eof()
        half.end()
        for peer in peers:
            peer.closes(1001)
            peer.send(close_frame(1001))
            peer.eof()
            peer.end()
        assert program.process.poll() is None
        with pytest.raises(ConnectionRefusedError):
            RawClient(program.address)
        assert slow.message() == b"f" * 3_000_000
        slow.closes(1001)
        slow.send(close_frame(1001))
        slow.eof()
    status, lines, errors = program.end()
    assert status == 0, errors
    assert sorted(lines[:-1]) == ["onclose /0 1001", "onclose /1 1001", "onclose /2 1001", "onclose /slow 1001"]
    assert lines[-1] == "run has returned"
    assert errors == ""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_i16_a_second_signal_ends_at_once(launch: Callable[..., Launched], second: int) -> None:
    program = launch(RUN)
    with program.open() as peer:
        program.process.send_signal(signal.SIGTERM)
        peer.closes(1001)  # and no answer
        began = time.monotonic()
        program.process.send_signal(second)
        status, lines, errors = program.end()
        assert time.monotonic() - began < 8
    assert status == 0, errors
    assert lines == ["onclose / 1006", "run has returned"]


def test_a_signal_without_clients_ends_at_once(launch: Callable[..., Launched]) -> None:
    program = launch(RUN)
    began = time.monotonic()
    with program.open() as peer:
        peer.close()
        assert program.line() == "onclose / 1000"
    program.process.send_signal(signal.SIGTERM)
    status, _, errors = program.end()
    assert status == 0, errors
    assert time.monotonic() - began < 5


def test_a_signal_during_a_long_handler(launch: Callable[..., Launched]) -> None:
    program = launch(
        """
        def onmessage(client, message):
            say("entered")
            sys.stdin.readline()
            client.send("done")

        server.onmessage = onmessage
        server.run()
        """
    )
    with program.open() as peer:
        peer.text("x")
        assert program.line() == "entered"
        program.process.send_signal(signal.SIGTERM)
        program.write("go on")
        assert peer.message() == "done"
        peer.closes(1001)
        peer.send(close_frame(1001))
    assert program.end()[0] == 0


def test_handlers_of_the_user_are_left_alone(launch: Callable[..., Launched]) -> None:
    program = launch(
        """
        got = []
        signal.signal(signal.SIGTERM, lambda number, frame: (say("mine"), server.stop()))
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        server.call_soon(lambda: say("SIGTERM kept", signal.getsignal(signal.SIGTERM) is before[0]))
        server.call_soon(lambda: say("SIGINT taken", signal.getsignal(signal.SIGINT) is not before[1]))
        server.run()
        say("restored", [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before)
        say("wake-up descriptor", signal.set_wakeup_fd(-1))
        """
    )
    assert [program.line(), program.line()] == ["SIGTERM kept True", "SIGINT taken True"]
    program.process.send_signal(signal.SIGTERM)
    status, lines, errors = program.end()
    assert status == 0, errors
    assert lines == ["mine", "restored True", "wake-up descriptor -1"]


def test_handlers_are_restored_after_an_exception(launch: Callable[..., Launched]) -> None:
    program = launch(
        """
        def onopen(client):
            raise SystemExit(3)

        server.onopen = onopen
        try:
            server.run()
        finally:
            defaults = signal.SIG_DFL, signal.default_int_handler
            say("restored", all(signal.getsignal(n) in defaults for n in (signal.SIGTERM, signal.SIGINT)))
            say("wake-up descriptor", signal.set_wakeup_fd(-1))
        """
    )
    with RawClient(program.address) as peer:
        peer.open()
        peer.closes(1001)
    status, lines, _ = program.end()
    assert status == 3
    assert lines[-2:] == ["restored True", "wake-up descriptor -1"]


def test_a_wake_up_descriptor_of_somebody_else_is_left_alone(launch: Callable[..., Launched]) -> None:
    """As in a program that runs asyncio too: signals still end the server."""
    program = launch(
        """
        import socket
        mine = socket.socketpair()
        mine[1].setblocking(False)
        signal.set_wakeup_fd(mine[1].fileno(), warn_on_full_buffer=False)
        server.call_soon(say, "runs")
        server.run()
        say("kept", signal.set_wakeup_fd(-1) == mine[1].fileno())
        for end in mine:
            end.close()
        """
    )
    assert program.line() == "runs"
    with program.open() as peer:
        program.process.send_signal(signal.SIGTERM)
        peer.closes(1001)
        peer.send(close_frame(1001))
        peer.eof()
    status, lines, errors = program.end()
    assert status == 0, errors
    assert lines[-1] == "kept True"


def test_no_signal_handlers_outside_of_the_main_thread(launch: Callable[..., Launched]) -> None:
    program = launch(
        """
        defaults = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        server.start()
        server.call_soon(lambda: say("kept", (signal.getsignal(15), signal.getsignal(2)) == defaults))
        try:
            while True:
                signal.pause()
        except KeyboardInterrupt:
            server.stop()
            server.join()
            say("joined")
        """
    )
    assert program.line() == "kept True"
    with program.open() as peer:
        program.process.send_signal(signal.SIGINT)
        peer.closes(1001)
        peer.send(close_frame(1001))
    status, lines, errors = program.end()
    assert status == 0, errors
    assert lines[-1] == "joined"


def test_i3_interrupted_system_calls(launch: Callable[..., Launched]) -> None:
    """A timer signal every millisecond while messages of all sizes are echoed."""
    program = launch(
        """
        count = [0]

        def tick(number, frame):
            count[0] += 1

        signal.signal(signal.SIGALRM, tick)
        signal.siginterrupt(signal.SIGALRM, True)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        server.run()
        signal.setitimer(signal.ITIMER_REAL, 0)
        say("ticks", count[0] > 20)
        """
    )
    with program.open() as peer, program.open() as slow:
        slow.text("fill")
        assert program.line() == "filled"
        for number in range(600):
            text = str(number) + "x" * (number * 100)
            peer.text(text)
            assert peer.message() == text
        assert slow.message() == b"f" * 3_000_000
        program.process.send_signal(signal.SIGTERM)
        for one in (peer, slow):
            one.closes(1001)
            one.send(close_frame(1001))
    status, lines, errors = program.end()
    assert status == 0, errors
    assert lines[-1] == "ticks True"


# ---- forks ----


def test_i17_a_child_leaves_the_connections_of_its_parent_alone(launch: Callable[..., Launched]) -> None:
    program = launch(
        """
        def descriptors():
            found = []
            for name in os.listdir("/proc/self/fd"):
                try:
                    found.append(os.readlink(f"/proc/self/fd/{name}"))
                except OSError:
                    pass
            return [one for one in found if one.startswith(("socket:", "anon_inode:"))]

        def attempt(function):
            try:
                function()
            except Exception as error:
                return type(error).__name__
            return "done"

        def fork(client):
            child = os.fork()
            if child == 0:
                say("child has", *sorted({name.partition(":")[0] for name in descriptors()}), len(descriptors()))
                say("child turns", attempt(server.run))
                say("child sends", attempt(lambda: client.send("from the child")))
                say("child closes", attempt(client.close), attempt(client.abort), attempt(server.close))
                os._exit(0)
            os.waitpid(child, 0)
            client.send("from the parent")

        def onmessage(client, message):
            if message.payload == "fork":
                fork(client)
            else:
                client.send(message)

        server.onmessage = onmessage
        server.run()
        """
    )
    with program.open() as peer, program.open() as other:
        peer.text("fork")
        assert peer.message() == "from the parent"
        # the two that wake up at signals are Python's; the loop's own, the listener and the connections are gone
        assert program.line() == "child has socket 2"
        assert program.line() == "child turns RuntimeError"
        assert program.line().startswith("child sends ")
        assert program.line().startswith("child closes ")
        for one in (peer, other):
            one.text("still fine")
            assert one.message() == "still fine"
        # the child has not touched the listener either
        with program.open() as third:
            third.text("new")
            assert third.message() == "new"
            program.process.send_signal(signal.SIGTERM)
            for one in (peer, other, third):
                one.closes(1001)
                one.send(close_frame(1001))
    status, _, errors = program.end()
    assert status == 0, errors


def test_i17_a_child_may_have_a_server_of_its_own(launch: Callable[..., Launched]) -> None:
    program = launch(
        """
        server.start()
        child = os.fork()
        if child == 0:
            mine = Server(("127.0.0.1", 0))
            say("child port", mine.address[1])
            mine.run()
            os._exit(0)
        say("child is", child)
        sys.stdout.flush()
        os.waitpid(child, 0)
        server.stop()
        server.join()
        """
    )
    lines = sorted([program.line(), program.line()])
    port, child = int(lines[1].split()[-1]), int(lines[0].split()[-1])
    with program.open("/parent") as peer, RawClient(("127.0.0.1", port)) as other:
        other.open("/child")
        assert program.line() == "onopen /child"
        for one in (peer, other):
            one.text("hello")
            assert one.message() == "hello"
        os.kill(child, signal.SIGTERM)
        other.closes(1001)
        other.send(close_frame(1001))
        other.eof()
        other.end()
        peer.closes(1001)
        peer.send(close_frame(1001))
    status, _, errors = program.end()
    assert status == 0, errors


def test_i17_a_child_that_lives_on_does_not_keep_connections_open(launch: Callable[..., Launched]) -> None:
    """A program that forks a worker: when the parent closes, the peer sees the end."""
    program = launch(
        """
        server.start()

        def fork():
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(writer)
                os.read(reader, 1)  # until the parent is gone
                os._exit(0)
            os.close(reader)
            say("forked")

        server.call_soon(lambda: None)
        while not server.clients:
            time.sleep(0.001)
        fork()
        server.stop()
        server.join()
        say("ended")
        """
    )
    with RawClient(program.address) as peer:
        peer.open()
        peer.closes(1001)
        peer.send(close_frame(1001))
        peer.eof()
    status, lines, errors = program.end()
    assert status == 0, errors
    assert lines[-1] == "ended"


def test_i17_a_child_does_not_wait_for_a_thread_of_its_parent_that_compresses(launch: Callable[..., Launched]) -> None:
    program = launch(
        """
        server.close()
        opened, inside, go_on = threading.Event(), threading.Event(), threading.Event()

        class Waited(Server):
            def onopen(self, client):
                super().onopen(client)
                opened.set()

        class Slow(wspy.Extension):
            names = ("x-slow",)

            class Instance(wspy.Extension.Instance):
                def onsend(self, frame):
                    inside.set()
                    go_on.wait()
                    return frame

        server = Waited(("127.0.0.1", 0), extensions=[Slow]).start()
        say(server.address[1])
        opened.wait()
        (client,) = server.clients
        sending = threading.Thread(target=client.send, args=["text"])
        sending.start()
        inside.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            client.close()
            os._exit(0)
        say("child has ended with", os.waitpid(child, 0)[1])
        go_on.set()
        sending.join()
        server.stop()
        server.join()
        """
    )
    with RawClient(("127.0.0.1", int(program.line()))) as peer:
        peer.open(headers=[("Sec-WebSocket-Extensions", "x-slow")])
        assert program.line() == "onopen /"
        assert program.line() == "child has ended with 0"
        assert peer.message() == "text"
        peer.closes(1001)
        peer.send(close_frame(1001))
    status, _, errors = program.end()
    assert status == 0, errors


# ---- the end of the interpreter ----


@pytest.mark.parametrize("end", ["return", "sys.exit", "exception", "os._exit"])
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_i19_the_interpreter_ends_with_open_connections(launch: Callable[..., Launched], state: str, end: str) -> None:
    program = launch(
        f"""
        state, end = "{state}", "{end}"
        server.start()
        """
        """
        while len(server.clients) < 3:
            time.sleep(0.001)
        if state == "busy":
            def shout():
                while True:
                    server.broadcast("x" * 100)
            for _ in range(2):
                threading.Thread(target=shout, daemon=True).start()
            time.sleep(0.05)
        say("ends")
        if end == "sys.exit":
            sys.exit(0)
        if end == "exception":
            raise ValueError("the reason")
        if end == "os._exit":
            os._exit(0)
        """
    )
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            peer = stack.enter_context(RawClient(program.address))
            peer.open()
        status, lines, errors = program.end()
    # the thread of a client may say so later than the main thread
    assert [line for line in lines if line != "onopen /"] == ["ends"]
    assert status == (1 if end == "exception" else 0), errors
    assert "Fatal" not in errors
    assert "Segmentation" not in errors


@only("epoll", because="a Server has no handle_events, and its threads have it for as long as it runs")
def test_i19_a_server_in_a_cycle_at_exit(launch: Callable[..., Launched]) -> None:
    program = launch(
        """
        import warnings
        warnings.simplefilter("ignore")
        kept = []
        Server.onopen = lambda self, client: kept.append((self, client))
        while not kept:
            server.handle_events(0.1)
        say("ends")
        """
    )
    with RawClient(program.address) as peer:
        peer.open()
        assert program.line() == "ends"
        status, _, errors = program.end()
    assert status == 0, errors
    assert "Fatal" not in errors


# ---- clocks ----


@needs_compiler
def test_i18_the_clock_jumps(launch: Callable[..., Launched], tmp_path: Path) -> None:
    """An hour back and forth at each look: no deadline depends on the time of day."""
    preload = clock_that_jumps(tmp_path)
    program = launch(
        """
        say("jumps", any(abs(time.time() - time.time()) > 1000 for _ in range(3)))
        server.call_later(0.2, say, "later")
        server.run()
        """,
        preload=preload,
    )
    assert program.line() == "jumps True"
    with RawClient(program.address) as peer:
        peer.open()
        lines = [program.line(), program.line()]
        assert sorted(lines) == ["later", "onopen /"]
        peer.text("still here")
        assert peer.message() == "still here"
        program.process.send_signal(signal.SIGTERM)
        peer.closes(1001)
        peer.send(close_frame(1001))
    status, lines, errors = program.end()
    assert status == 0, errors
    assert lines[-1] == "onclose / 1001"


def test_the_socket_module_is_what_it_was() -> None:
    """No default of the process was changed by all this."""
    assert socket.getdefaulttimeout() is None
