"""Is the queue of what is sent whole, whatever interrupts who adds to it: signals, garbage collection, exceptions?"""

from __future__ import annotations

import ctypes
import dis
import gc
import os
import sys
import textwrap
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from drivers import DEADLINE_S, RawClient, close_frame, head, needs, until
from programs import PYTHON, Program

import wspy

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from drivers import Servers

PACKAGE = str(Path(wspy.__file__).parent)
SIZES = [0, 10, 200, 9000, 40_000]


class InterruptionError(BaseException):
    """What interrupts here."""


def label(client: int, number: int) -> str:
    """Return a message that says for whom it is, and shows if it is cut or mixed."""
    return f"{client} {number} " + "abcdefgh"[number % 8] * SIZES[number % len(SIZES)] + "."


def check(messages: list[Any], client: int, sent: set[int]) -> None:
    """Check that messages are this client's, whole, in order and single, and that none is missing that was sent."""
    numbers = [int(message.split()[1]) for message in messages]
    assert messages == [label(client, number) for number in numbers]
    assert numbers == sorted(set(numbers))
    assert sent <= set(numbers)


def received(peer: RawClient) -> list[Any]:
    """Receive messages to the one that says end."""
    found = [peer.message()]
    while found[-1] != "end":
        found.append(peer.message())
    return found[:-1]


# ---- an exception wherever there can be one ----


@cache
def interruptible(code: CodeType) -> frozenset[int]:
    """Return the offsets of instructions after which CPython looks for signals and asynchronous exceptions."""
    names = ("RESUME", "JUMP_BACKWARD", "CALL")
    return frozenset(found.offset for found in dis.get_instructions(code) if found.opname.startswith(names))


class Intruder:
    """A trace function that calls another one at the n-th bytecode within the package where CPython might switch."""

    def __init__(self, nth: int, intrude: Callable[[], None]) -> None:
        self.left = nth
        self.intrude = intrude
        self.places: dict[FrameType, frozenset[int]] = {}
        self.last: dict[FrameType, int] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return self
        if event == "call":
            frame.f_trace_opcodes = True
            self.places[frame] = interruptible(frame.f_code)
        elif event == "opcode":
            last, self.last[frame] = self.last.get(frame), frame.f_lasti
            self.left -= last in self.places[frame]
            if self.left == 0:
                self.left = -1
                self.intrude()
        return self


def interrupt() -> None:
    """Raise what no handler of errors expects."""
    raise InterruptionError


def interrupted(function: Callable[[], object], nth: int) -> bool:
    """Call a function that an exception interrupts at the n-th place; return whether it did.

    Not in a finalizer of what other tests left: it would be lost there.
    """
    previous = sys.gettrace()
    gc.disable()
    sys.settrace(Intruder(nth, interrupt))
    try:
        function()
    except InterruptionError:
        return True
    finally:
        sys.settrace(previous)
        gc.enable()
    return False


@needs("queue")
@pytest.mark.slow
@pytest.mark.parametrize("marks", [False, True], ids=["", "with onsent"])
@pytest.mark.parametrize("size", [None, 3000], ids=["whole", "in fragments"])
@pytest.mark.parametrize("where", ["another thread", "a handler"])
def test_send_is_interrupted_everywhere(serve: Servers, where: str, size: int | None, marks: bool) -> None:
    """A message is sent or it is not: never half, never twice, never to somebody else, and the next ones are."""
    sent: list[set[int]] = [set(), set()]
    clients: list[Any] = []
    counts: list[int] = []

    def interrupt_all() -> None:
        number = 0
        for length in range(len(SIZES)):
            nth, was_interrupted = 0, True
            while was_interrupted:
                nth += 1
                was_interrupted = False
                for index, client in enumerate(clients):
                    number += 1
                    n = number * len(SIZES) + length
                    was = interrupted(lambda c=client, i=index, n=n: c.send(label(i, n), size), nth)
                    was_interrupted |= was
                    if not was:
                        sent[index].add(n)
                    number += 1
                    large = number * len(SIZES) + SIZES.index(9000)
                    client.send(label(index, large))  # takes with it what was left in the queue, in a handler as well
                    sent[index].add(large)
            counts.append(nth)
        for client in clients:
            client.send("end")

    handlers: dict[str, Any] = {"onsent": lambda client, message: None} if marks else {}
    if where == "a handler":
        handlers["onmessage"] = lambda client, message: interrupt_all()
    server = serve(**handlers)
    peers = [server.open(), server.open()]
    clients += [server.client(peer) for peer in peers]
    results: list[list[Any]] = [[], []]

    def read(index: int) -> None:
        results[index] = received(peers[index])

    readers = [threading.Thread(target=read, args=(index,)) for index in range(2)]
    for reader in readers:
        reader.start()
    if where == "a handler":
        peers[0].text("go")
    else:
        interrupt_all()
    for reader in readers:
        reader.join(2 * DEADLINE_S)
    assert min(counts) > 3, counts
    for index in range(2):
        check(results[index], index, sent[index])
    if marks:
        for peer, messages in zip(peers, results, strict=True):
            server.wait(lambda peer=peer: "end" in server.story(peer).named("onsent"), "onsent")
            assert server.story(peer).named("onsent") == [*messages, "end"]


@needs("queue")
@pytest.mark.slow
@pytest.mark.parametrize("action", ["close", "abort", "broadcast", "send_ping", "pause", "call_soon"])
def test_other_calls_are_interrupted_everywhere(serve: Servers, action: str) -> None:
    """Whatever becomes of the call itself, the server goes on, and so does everybody else."""
    server = serve(onmessage=lambda client, message: client.send(message))
    witness = server.open()
    watching = server.client(witness)
    nth, goes_on = 0, True
    while goes_on:
        nth += 1
        with server.open() as peer:
            client = server.client(peer)
            calls: dict[str, Callable[[], object]] = {
                "close": lambda client=client: client.close(3000, "reason"),
                "abort": client.abort,
                "broadcast": lambda: server.server.broadcast("to all", [watching]),
                "send_ping": client.send_ping,
                "pause": lambda client=client: (client.pause_reading(), client.resume_reading()),
                "call_soon": lambda: server.server.call_soon(int),
            }
            goes_on = interrupted(calls[action], nth)
        watching.send(f"after {nth}")
        found = witness.message()
        if found == "to all":
            found = witness.message()
        assert found == f"after {nth}"
    assert nth > 2
    witness.text("fine")
    assert witness.message() == "fine"


# ---- somebody else who sends, at every point of a turn ----


class Echo(wspy.AsyncServer):
    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)


class MarkedEcho(Echo):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sent: list[Any] = []

    def onsent(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        self.sent.append(message.payload)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Echo, MarkedEcho])
@pytest.mark.parametrize("size", [10, 40_000])
@pytest.mark.parametrize("who", ["a signal handler", "another thread"])
def test_somebody_else_sends_at_every_point_of_a_turn(kind: type[Echo], size: int, who: str) -> None:
    """As a signal handler in the thread of the loop, or as a thread that runs while the loop's waits for the GIL."""
    payload = "x" * size
    expected: list[str] = []
    with (
        kind(("127.0.0.1", 0)) as server,
        RawClient(server.address) as peer,
        RawClient(server.address) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        for one, path in ((peer, "/peer"), (other, "/other")):
            one.send(head(path))
            until(lambda: (server.handle_events(0.01) and False) or one.waiting(), "answered")  # noqa: B023
            one.opened()
        until(lambda: server.handle_events(0.01) >= 0 and len(server.clients) == 2, "open")
        (target,) = [client for client in server.clients if client.path == "/other"]
        calls: list[Future[None]] = []

        def intrude() -> None:
            expected.append(f"{len(expected)} " + payload)
            if who == "a signal handler":
                target.send(expected[-1])
                return
            calls.append(pool.submit(target.send, expected[-1]))
            wait(calls, 0.05)  # it may have to wait for a lock that the interrupted thread has

        nth = 0
        while len(expected) == nth:
            nth += 1
            peer.text(payload)
            sys.settrace(Intruder(nth, intrude))
            try:
                while not peer.waiting():
                    server.handle_events(0.01)
            finally:
                sys.settrace(None)
            assert peer.message() == payload
            wait(calls, DEADLINE_S)
            server.handle_events()
            if len(expected) == nth:
                assert other.message() == expected[-1]
        assert [call.exception() for call in calls] == [None] * len(calls)
        assert nth > 10
        if isinstance(server, MarkedEcho):
            until(lambda: server.handle_events(0.01) >= 0 and len(server.sent) == 2 * nth - 1, "onsent")
            assert sorted(server.sent) == sorted([payload] * nth + expected)


# ---- asynchronous exceptions ----


@needs("queue")
@pytest.mark.slow
def test_sends_are_interrupted_from_outside(serve: Servers) -> None:
    """PyThreadState_SetAsyncExc, as debuggers and supervisors of threads use it."""
    server = serve(max_backlog=None)  # with TLS nobody but the server's thread writes, and that may be behind
    peers = [server.open(), server.open()]
    clients = [server.client(peer) for peer in peers]
    sent: list[set[int]] = [set(), set()]
    # no locks of Python: an exception may come when one of those is held
    calm, end = os.pipe()
    begun = finished = False
    number = interruptions = 0

    def send_all() -> None:
        nonlocal begun, finished, number
        begun = True
        while number < 3000:
            number += 1
            for index, client in enumerate(clients):
                client.send(label(index, number))
                sent[index].add(number)
        finished = True
        os.read(calm, 1)

    def again(function: Callable[[], None]) -> None:
        nonlocal interruptions
        while True:
            try:
                function()
            except InterruptionError:
                interruptions += 1
            else:
                return

    def send() -> None:
        shielded: Callable[[], None] = send_all
        for _ in range(20):  # the next one may come while the last one is counted, and on a busy machine several do
            shielded = partial(again, shielded)
        shielded()

    results: list[list[Any]] = [[], []]

    def read(index: int) -> None:
        results[index] = received(peers[index])

    readers = [threading.Thread(target=read, args=(index,)) for index in range(2)]
    sender = threading.Thread(target=send)
    for thread in (*readers, sender):
        thread.start()
    until(lambda: begun, "the thread that sends")
    previous = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    gc.disable()  # in a finalizer of what other tests left it would be lost
    try:
        pause = threading.Event()
        while not finished and sender.is_alive():
            pause.wait(0.0005)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(sender.ident or 0), ctypes.py_object(InterruptionError)
            )
    finally:
        os.close(end)  # not before the last exception is on its way: a thread that has ended would leave it to others
        gc.enable()
        sys.setswitchinterval(previous)
    sender.join()
    os.close(calm)
    for client in clients:
        client.send("end")
    for reader in readers:
        reader.join(2 * DEADLINE_S)
    for index in range(2):
        check(results[index], index, sent[index])
    assert interruptions > 3


# ---- whoever else runs in between ----


@needs("queue")
@pytest.mark.slow
@pytest.mark.parametrize("marks", [False, True], ids=["", "with onsent"])
def test_garbage_collection_sends(serve: Servers, marks: bool) -> None:
    """A finalizer runs anywhere, also within send."""
    server = serve(**({"onsent": lambda client, message: None} if marks else {}), queues=True)
    peers = [server.open(), server.open()]
    clients = [server.client(peer) for peer in peers]
    count = 0
    active = True

    def collected(phase: str, info: dict[str, int]) -> None:
        nonlocal count
        if active and phase == "start":
            count += 1
            clients[1].send(label(1, count))

    thresholds = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(7)
    kept = []
    try:
        for number in range(1, 1500):
            kept.append([number])
            clients[0].send(label(0, number))
    finally:
        gc.set_threshold(*thresholds)
        active = False
        gc.callbacks.remove(collected)
    for client in clients:
        client.send("end")
    check(received(peers[0]), 0, set(range(1, 1500)))
    check(received(peers[1]), 1, set(range(1, count + 1)))
    assert count > 20


PROGRAM = """
    import os
    import signal
    import sys
    import wspy

    SIZES = [0, 10, 200, 9000, 40_000]

    def label(client, number):
        return f"{client} {number} " + "abcdefgh"[number % 8] * SIZES[number % len(SIZES)] + "."

    counts = {}
    def send(client, path):
        number = counts[path] = counts.get(path, 0) + 1
        client.send(label(path, number))

    class Server(getattr(wspy, os.environ["KIND"])):
        def onmessage(self, client, message):
            for other in list(self.clients):
                if other.path == "/handler":
                    send(other, "/handler")
            client.send(message)

    busy = []

    def tick(number, frame):
        if busy:  # one signal interrupts the handler of another
            return
        busy.append(True)
        try:
            send_to_all()
        finally:
            busy.clear()

    def send_to_all():
        counts["ticks"] = counts.get("ticks", 0) + 1
        for client in list(server.clients):
            if client.path == "/signal":
                send(client, "/signal")

    server = Server(("127.0.0.1", 0))
    print(server.address[1], flush=True)
    signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)

    def finish():
        signal.setitimer(signal.ITIMER_REAL, 0)
        for client in server.clients:
            client.send("end")
        print(counts["ticks"], counts["/handler"], counts["/signal"], flush=True)

    # in the thread whose bytecodes signal handlers run between: none of them is half way then
    server.onclose = lambda client, code, reason: server.call_soon(finish) if code == 4000 else None
    server.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("marks", [False, True], ids=["", "with onsent"])
def test_a_signal_handler_sends(server_kind: type[Any], patience: float, marks: bool) -> None:
    """It runs between any two bytecodes of the loop's thread: what it sends is one message like any other."""
    code = textwrap.dedent(PROGRAM)
    if marks:
        code = code.replace(
            "    def onmessage", "    def onsent(self, client, message):\n        pass\n\n    def onmessage"
        )
    with Program(*PYTHON, "-c", code, patience=patience, KIND=server_kind.__name__) as program:
        address = ("127.0.0.1", int(program.line()))
        with RawClient(address) as driver, RawClient(address) as handled, RawClient(address) as signalled:
            handled.open("/handler")
            signalled.open("/signal")
            driver.open("/driver")
            results: list[list[Any]] = [[], []]

            def read(index: int, peer: RawClient) -> None:
                results[index] = received(peer)

            readers = [threading.Thread(target=read, args=pair) for pair in enumerate((handled, signalled))]
            for reader in readers:
                reader.start()
            for number in range(1500):
                driver.text(str(number))
                assert driver.message() == str(number)
            driver.send(close_frame(4000))
            _, by_handler, by_signal = map(int, program.line().split())
            for reader in readers:
                reader.join(2 * DEADLINE_S)
    paths = ("/handler", "/signal")
    for messages, path, count in zip(results, paths, (by_handler, by_signal), strict=True):
        numbers = [int(message.split()[1]) for message in messages]
        assert messages == [f"{path} {n} " + "abcdefgh"[n % 8] * SIZES[n % 5] + "." for n in numbers]
        assert numbers == list(range(1, count + 1))
    assert by_signal > 50


def test_a_signal_handler_sends_while_nothing_else_happens(server_kind: type[Any], patience: float) -> None:
    """The loop may just be about to sleep: it must not sleep over what was queued."""
    code = textwrap.dedent(PROGRAM)
    with Program(*PYTHON, "-c", code, patience=patience, KIND=server_kind.__name__) as program:
        address = ("127.0.0.1", int(program.line()))
        with RawClient(address) as peer:
            peer.open("/signal")
            for number in range(1, 200):
                assert peer.message() == label("/signal", number)  # type: ignore[arg-type]


@needs("queue")
def test_a_server_counts_what_it_sends(serve: Servers) -> None:
    """The queue does not grow: what was applied is taken off."""
    server = serve()
    peer = server.open()
    client = server.client(peer)
    for number in range(100):
        client.send(str(number))
        assert peer.message() == str(number)
    until(lambda: len(server.server.loop._queue) == 1, "all is taken off")
