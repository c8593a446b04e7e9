"""Does a server take its arguments as documented, leave nothing behind if they are wrong, and object to misuse?

What it does on the wire is in behaviour/ and hostile/.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
from drivers import RawClient, close_frame, head
from measures import PATIENCE
from steps import at_each_step

from wspy import AsyncServer, CoreError, TextMessage
from wspy import loop as core
from wspy.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ADDRESS: Final = ("127.0.0.1", 0)
DEADLINE_S: Final = 20.0 * PATIENCE
DEFAULTS: Final = {
    "loglevel": None,
    "protocols": (),
    "trusted_origins": (),
    "locations": (),
    "auth": None,
    "require_origin": False,
    "require_protocol": False,
    "extensions": (),
    "extra_headers": (),
    "server_header": f"wspy/{__version__}",
    "max_size": 1024 * 1024,
    "max_fragments": 128 * 1024,
    "max_controls": 100_000,
    "max_line": 8 * 1024,
    "max_header_line": 8 * 1024,
    "max_head": 64 * 1024,
    "max_headers": 100,
    "max_connections": None,
    "max_handshakes": None,
    "max_handshakes_per_address": None,
    "max_accept_rate": None,
    "max_backlog": 16 * 1024 * 1024,
    "write_limit": None,
    "write_policy": "raise",
    "notsent_lowat": 128 * 1024,
    "open_timeout": 10.0,
    "close_timeout": 10.0,
    "ping_interval": 20.0,
    "ping_timeout": 20.0,
    "write_timeout": 30.0,
    "idle_timeout": None,
    "idle_request_timeout": 30.0,
    "shutdown_timeout": 10.0,
    "keep_request": True,
    "backlog": 1024,
    "reuse_port": False,
    "ssl": None,
}
TIMES: Final = (
    "open_timeout",
    "close_timeout",
    "ping_interval",
    "ping_timeout",
    "write_timeout",
    "idle_timeout",
    "idle_request_timeout",
)
SIZES: Final = ("max_size", "max_fragments", "max_line", "max_header_line", "max_head", "max_headers", "max_backlog")

HEAD_SIZES: Final = ("max_line", "max_header_line", "max_head")
NUMBERS: Final = (*TIMES, *SIZES, "max_connections", "notsent_lowat", "shutdown_timeout", "backlog")


@pytest.fixture
def server() -> Iterator[AsyncServer]:
    with AsyncServer(ADDRESS) as server:
        yield server


@pytest.fixture
def running(server: AsyncServer) -> AsyncServer:
    """Return a server that runs in another thread by now."""
    begun = threading.Event()
    server.start()
    server.call_soon(begun.set)
    assert begun.wait(DEADLINE_S)
    return server


def in_thread_of(server: AsyncServer, function: Callable[[], object]) -> None:
    """Call a function in a server's thread, and wait for it."""
    done = threading.Event()

    def call() -> None:
        function()
        done.set()

    server.call_soon(call)
    assert done.wait(DEADLINE_S)


# ---- arguments ----


def test_defaults() -> None:
    parameters = list(inspect.signature(AsyncServer).parameters.values())
    assert parameters[0].name == "address"
    assert {parameter.name: parameter.default for parameter in parameters[1:]} == DEFAULTS
    assert {parameter.kind for parameter in parameters[1:]} == {inspect.Parameter.KEYWORD_ONLY}


def test_the_docstring_describes_each_argument_in_order() -> None:
    text = inspect.getdoc(AsyncServer)
    assert text is not None
    arguments = text.split("Args:\n")[1].split("\n\n")[0]
    assert re.findall(r"^    (\w+): ", arguments, re.MULTILINE) == ["address", *DEFAULTS]


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name != "loglevel"])
def test_each_default_can_be_given(name: str) -> None:
    AsyncServer(ADDRESS, **{name: DEFAULTS[name]}).close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, None) for name in (*TIMES, "shutdown_timeout", "server_header")),
        *((name, None) for name in ("max_size", "max_fragments", "max_backlog", "max_connections")),
        *((name, 0.001) for name in TIMES),
        *((name, 2_147_483) for name in TIMES),
        *((name, 1) for name in SIZES),
        *((name, 256 * 1024) for name in HEAD_SIZES),
        ("max_headers", 65_535),
        ("max_fragments", 2**32 - 2),
        ("max_size", 2**63),
        ("max_connections", 1),
        ("max_connections", 0),
        ("notsent_lowat", 2**31 - 1),
        ("notsent_lowat", 0),
        ("shutdown_timeout", 0),
        ("shutdown_timeout", math.inf),
        ("backlog", 0),
        ("protocols", ["chat", "superchat"]),
        ("protocols", (name for name in ("chat", "superchat"))),
        ("locations", {"/", "/chat"}),
        ("trusted_origins", ["http://example.org", re.compile("https://.*"), "same-origin", None]),
        ("extra_headers", {"X-Served-By": "here"}),
        ("extra_headers", [("X-Served-By", "here"), ("X-Served-By", "there")]),
        ("extra_headers", lambda _request: {}),
        ("require_origin", True),
        ("require_protocol", True),
        ("keep_request", False),
        ("reuse_port", True),
    ],
)
def test_what_is_in_range_is_taken(name: str, value: Any) -> None:
    AsyncServer(ADDRESS, **{name: value}).close()


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *((name, value, ValueError) for name in TIMES for value in (0, -1, math.nan, math.inf, 2_147_484)),
        *((name, "10", TypeError) for name in TIMES),
        *((name, value, ValueError) for name in SIZES for value in (0, -1)),
        *((name, value, TypeError) for name in SIZES for value in ("1", 1.5)),
        *((name, 256 * 1024 + 1, ValueError) for name in HEAD_SIZES),
        ("max_headers", 65_536, ValueError),
        *((name, None, TypeError) for name in (*HEAD_SIZES, "max_headers", "notsent_lowat", "backlog")),
        ("max_fragments", 2**32 - 1, ValueError),
        *((name, 2**64 - 1, ValueError) for name in ("max_size", "max_backlog")),
        ("max_connections", -1, ValueError),
        ("max_connections", "many", TypeError),
        *(("shutdown_timeout", value, ValueError) for value in (-1, math.nan)),
        ("shutdown_timeout", "10", TypeError),
        *((name, value, ValueError) for name in ("notsent_lowat", "backlog") for value in (-1, 2**31)),
        ("notsent_lowat", "1", TypeError),
        ("backlog", "many", TypeError),
        ("protocols", "chat", TypeError),
        ("protocols", ["not a token"], ValueError),
        ("locations", "/", TypeError),
        ("locations", ["chat"], ValueError),
        ("trusted_origins", "http://example.org", TypeError),
        ("trusted_origins", [b"http://example.org"], TypeError),
        ("trusted_origins", ["*"], ValueError),
        ("extra_headers", {"X-Injected": "here\r\nX-Too: here"}, ValueError),
        ("extra_headers", {"Upgrade": "h2c"}, ValueError),
        ("extra_headers", 5, TypeError),
        ("server_header", "wspy\r\nX-Too: here", ValueError),
        ("server_header", 5, TypeError),
        ("nonsense", 5, TypeError),
    ],
)
def test_what_is_out_of_range_is_refused(tmp_path: Path, name: str, value: Any, error: type[Exception]) -> None:
    path = tmp_path / "socket"
    with pytest.raises(error) as caught:
        AsyncServer(path, **{name: value})
    assert not path.exists()
    if name in NUMBERS:
        assert str(caught.value).startswith(f"{name} must be ")


def test_without_max_connections_64_descriptors_are_left(server: AsyncServer) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert server._max_connections == max(soft - 64, 1)


# ---- addresses ----


def test_it_listens_once_it_is_made(server: AsyncServer) -> None:
    host, port = server.address
    assert host == ADDRESS[0]
    assert port > 0
    socket.create_connection(server.address).close()


def test_a_path_is_removed_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with AsyncServer(path) as server:
        assert server.address == str(path)
        assert path.is_socket()
    assert not path.exists()


def test_a_socket_of_the_caller_stays_open() -> None:
    with socket.create_server(ADDRESS) as listener:
        with AsyncServer(listener) as server:
            assert server.address == listener.getsockname()
        assert listener.fileno() >= 0
        with AsyncServer(listener):
            pass


@pytest.mark.parametrize(
    ("address", "error"),
    [
        (None, TypeError),
        ("", ValueError),
        (("127.0.0.1", 70_000), ValueError),
        (("127.0.0.1", "80"), TypeError),
        ("/nonexistent/directory/socket", OSError),
    ],
)
def test_what_is_no_address_is_refused(address: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        AsyncServer(address)


def test_a_listener_that_epoll_does_not_take_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no")

    path = tmp_path / "socket"
    with monkeypatch.context() as patch:
        patch.setattr(core.Loop, "listen", refuse)
        with pytest.raises(OSError, match="no"):
            AsyncServer(path)
        with socket.create_server(ADDRESS) as listener:
            with pytest.raises(OSError, match="no"):
                AsyncServer(listener)
            assert listener.fileno() >= 0
    assert not path.exists()


def test_an_address_in_use_is_refused(server: AsyncServer) -> None:
    with pytest.raises(OSError, match=re.escape(str(server.address))):
        AsyncServer(server.address)


def test_servers_may_share_a_port() -> None:
    with AsyncServer(ADDRESS, reuse_port=True) as server, AsyncServer(server.address, reuse_port=True) as other:
        assert other.address == server.address


# ---- logging ----


@pytest.mark.parametrize(
    ("argument", "level", "handlers"),
    [("", logging.WARNING, 0), ("loglevel=None", logging.WARNING, 0), ("loglevel='DEBUG'", logging.DEBUG, 1)],
)
def test_logging_is_configured_only_if_a_level_is_given(argument: str, level: int, handlers: int) -> None:
    program = f"""
import logging, wspy
wspy.AsyncServer({ADDRESS!r}, {argument}).close()
root = logging.getLogger()
print(root.level, len(root.handlers), logging.getLogger("wspy").level, logging.getLogger("wspy").handlers)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert result.stdout.split(maxsplit=3) == [str(level), str(handlers), "0", "[]\n"]
    assert result.stderr == ""


# ---- running ----


def test_it_runs_in_the_background_and_joins(running: AsyncServer) -> None:
    assert not running.join(0)
    names = [thread.name for thread in threading.enumerate() if thread.daemon]
    assert f"wspy {running.address}" in names
    running.stop()
    running.stop()
    assert running.join(DEADLINE_S)
    assert running.join(0)


def test_start_returns_the_server(server: AsyncServer) -> None:
    assert server.start() is server


def test_a_stop_without_clients_waits_for_nothing() -> None:
    server = AsyncServer(ADDRESS, shutdown_timeout=3600)
    try:
        server.start().stop()
        assert server.join(DEADLINE_S / 2)
    finally:
        server.close()
        assert server.join(DEADLINE_S)


def test_it_can_be_stopped_before_it_runs(server: AsyncServer) -> None:
    server.stop()
    server.run()
    assert server.join(0)


def test_a_context_ends_what_runs_in_the_background() -> None:
    with AsyncServer(ADDRESS).start() as server:
        pass
    assert server.join(0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address)


def test_close_from_another_thread(running: AsyncServer) -> None:
    running.close()
    assert running.join(DEADLINE_S)


def test_close_twice(server: AsyncServer) -> None:
    server.close()
    server.close()
    assert server.join(0)
    assert server.loop.closed


def test_a_server_that_was_forgotten_is_closed_with_a_warning() -> None:
    server = AsyncServer(ADDRESS)
    address = server.address
    with pytest.warns(ResourceWarning, match="AsyncServer was not closed"):
        del server
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_foreign_loop_can_drive_it(server: AsyncServer) -> None:
    calls: list[str] = []
    assert server.handle_events() == 0
    assert select.select([server.fileno()], [], [], 0)[0] == []
    caller = threading.Thread(target=server.call_soon, args=(calls.append, "called"))
    caller.start()
    assert select.select([server.fileno()], [], [], DEADLINE_S)[0]
    caller.join()
    server.handle_events()
    assert calls == ["called"]
    server.call_later(0.001, calls.append, "later")
    server.handle_events()
    while len(calls) < 2:
        assert select.select([server.fileno()], [], [], DEADLINE_S)[0]
        server.handle_events()
    assert calls == ["called", "later"]


def test_a_foreign_loop_hears_of_a_call_at_whichever_step_it_becomes_due(server: AsyncServer) -> None:
    calls = ["none yet"]

    def turn() -> None:
        calls.clear()
        server.call_later(0.001, calls.append, "later")
        server.handle_events()

    for _ in at_each_step(sys.modules["wspy.serving"], turn, partial(time.sleep, 0.002)):
        while not calls:
            assert select.select([server.fileno()], [], [], DEADLINE_S)[0]
            server.handle_events()


def test_waiting_for_ever_ends_with_a_call(server: AsyncServer) -> None:
    calls: list[str] = []
    server.call_soon(calls.append, "soon")
    server.handle_events(None)
    server.call_later(0.001, calls.append, "later")
    while len(calls) < 2:
        server.handle_events(None)
    assert calls == ["soon", "later"]


@pytest.mark.parametrize("timeout", [-1, -0.5, -math.inf, 0])
def test_a_timeout_that_is_over_only_looks(server: AsyncServer, timeout: float) -> None:
    assert server.handle_events(timeout) == 0


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 3e6, 2**31, None])
def test_a_timeout_may_be_as_long_as_one_likes(server: AsyncServer, timeout: float | None) -> None:
    calls: list[str] = []
    server.call_soon(calls.append, "called")
    server.handle_events(timeout)
    assert calls == ["called"]


@pytest.mark.parametrize(("timeout", "error"), [(math.nan, ValueError), ("1", TypeError)])
def test_what_is_no_timeout_is_refused(server: AsyncServer, timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="timeout must be"):
        server.handle_events(timeout)


def test_a_stop_may_wait_for_ever() -> None:
    with AsyncServer(ADDRESS, shutdown_timeout=None).start() as server, RawClient(server.address) as peer:
        peer.open()
        server.stop()
        peer.closes(1001)
        in_thread_of(server, lambda: None)
        assert not server.join(0)
        peer.send(close_frame(1001))
        peer.eof()
        assert server.join(DEADLINE_S)


def test_i16_two_signals_during_one_handler_are_two() -> None:
    """The second one ends at once: no deadline does it here."""
    late: list[str] = []

    class Server(AsyncServer):
        def onopen(self, client: Any) -> None:
            for _ in range(2):
                signal.raise_signal(signal.SIGTERM)

        def end(self) -> None:
            late.append("late")
            self.close()

    with Server(ADDRESS, close_timeout=None, shutdown_timeout=None) as server, RawClient(server.address) as peer:
        peer.send(head())
        server.call_later(DEADLINE_S, server.end)
        server.run()
        peer.reset()
    assert late == []


# ---- misuse ----


def test_it_can_not_run_twice_at_a_time(running: AsyncServer) -> None:
    with pytest.raises(RuntimeError, match="runs already"):
        running.run()
    with pytest.raises(RuntimeError, match="runs already"):
        running.start()
    assert not running.join(0)


def test_what_runs_by_itself_is_not_driven_from_outside(running: AsyncServer) -> None:
    thread = running._thread
    with pytest.raises(RuntimeError, match="runs already"):
        running.handle_events()
    assert running._thread == thread


def test_it_can_not_be_started_twice_before_the_first_one_has_begun(server: AsyncServer) -> None:
    server.start()
    with pytest.raises(RuntimeError, match="runs already"):
        server.start()


def test_of_two_threads_that_start_it_one_does(server: AsyncServer, monkeypatch: pytest.MonkeyPatch) -> None:
    make = threading.Thread
    raised: list[BaseException] = []

    def start_too() -> None:
        with pytest.raises(RuntimeError, match="runs already") as caught:
            server.start()
        raised.append(caught.value)

    def interrupted(*arguments: Any, **options: Any) -> threading.Thread:
        monkeypatch.setattr(threading, "Thread", make)
        other = make(target=start_too)
        other.start()
        other.join()
        return make(*arguments, **options)

    monkeypatch.setattr(threading, "Thread", interrupted)
    server.start()
    assert len(raised) == 1
    in_thread_of(server, lambda: None)


def test_it_can_be_started_once_a_thread_can_be_had(server: AsyncServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        with pytest.raises(RuntimeError, match="new thread"):
            server.start()
    server.start()
    in_thread_of(server, lambda: None)


def test_it_can_not_be_run_or_driven_by_its_own_calls(server: AsyncServer) -> None:
    raised: list[BaseException] = []

    def misuse(function: Callable[[], object]) -> None:
        with pytest.raises(RuntimeError) as caught:
            function()
        raised.append(caught.value)

    for function in (server.handle_events, server.run, server.start):
        server.call_soon(misuse, function)
    server.handle_events()
    assert len(raised) == 3
    assert server.handle_events() == 0


@pytest.mark.parametrize("name", ["run", "start"])
def test_it_can_not_run_again(server: AsyncServer, name: str) -> None:
    server.close()
    with pytest.raises(RuntimeError, match="closed"):
        getattr(server, name)()


@pytest.mark.parametrize("name", ["handle_events", "fileno"])
def test_a_closed_server_does_nothing_any_more(server: AsyncServer, name: str) -> None:
    server.close()
    with pytest.raises(CoreError, match="closed"):
        getattr(server, name)()


def test_what_is_harmless_may_be_called_on_a_closed_server(server: AsyncServer) -> None:
    server.close()
    server.stop()
    server.broadcast("nobody")
    assert server.join()
    assert server.stats()["connections"] == 0
    assert list(server.clients) == []
    with server:
        pass


def test_a_closed_server_calls_nothing(server: AsyncServer) -> None:
    server.close()
    for call in (lambda: server.call_soon(print), lambda: server.call_later(1, print)):
        with pytest.raises(RuntimeError, match="closed"):
            call()


@pytest.mark.parametrize(("delay", "function"), [("1", print), (1, None)])
def test_what_makes_no_call_is_refused(server: AsyncServer, delay: Any, function: Any) -> None:
    with pytest.raises(TypeError):
        server.call_later(delay, function)


HANDLERS: Final = sorted(name for name in dir(AsyncServer) if re.fullmatch("on[a-z]+", name))


@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_is_a_plain_function(tmp_path: Path, name: str) -> None:
    async def handler(self: AsyncServer, *_: Any) -> None: ...

    path = tmp_path / "socket"
    with pytest.raises(TypeError, match=f"^Chat.{name} is async def, but handlers are plain functions.* call_soon"):
        type("Chat", (AsyncServer,), {name: handler})(path)
    assert not path.exists()


def test_calls_are_of_plain_functions(server: AsyncServer) -> None:
    async def coroutine() -> None: ...

    for call in (lambda: server.call_soon(coroutine), lambda: server.call_later(1, coroutine)):
        with pytest.raises(TypeError, match=r"coroutine .* is async def"):
            call()


def test_extra_headers_are_of_a_plain_function(tmp_path: Path) -> None:
    async def extra_headers(request: Any) -> dict[str, str]:
        return {}

    with pytest.raises(TypeError, match=r"^extra_headers is async def"):
        AsyncServer(tmp_path / "socket", extra_headers=extra_headers)  # type: ignore[arg-type]


@pytest.mark.parametrize("message", [None, 5, ["hello"]])
def test_what_is_no_message_can_not_be_broadcast(server: AsyncServer, message: Any) -> None:
    with pytest.raises(TypeError):
        server.broadcast(message)


def test_a_lone_surrogate_can_not_be_broadcast(server: AsyncServer) -> None:
    with pytest.raises(UnicodeEncodeError):
        server.broadcast("\ud800")


# ---- what it knows ----


def test_stats_are_counters(server: AsyncServer) -> None:
    stats = server.stats()
    assert list(stats) == [
        "clients",
        "accepted",
        "opened",
        "closed",
        "refused",
        "messages_received",
        "bytes_received",
        "bytes_sent",
        "broadcasts",
        "protocol_errors",
        "timeouts",
        "accept_errors",
        "turns",
        "full_addresses",
        "full_handshakes",
        "fast_accepts",
        "connections",
        "handshakes",
        "backlog",
        *("max_size", "max_fragments", "max_controls", "max_line", "max_header_line", "max_head", "max_headers"),
        *("max_connections", "max_backlog", "write_limit", "open_timeout", "close_timeout", "ping_timeout"),
        *("write_timeout", "idle_timeout"),
    ]
    assert set(stats.values()) == {0}
    server.handle_events()
    assert server.stats()["turns"] > 0


def test_there_are_no_clients_at_first(server: AsyncServer) -> None:
    assert len(server.clients) == 0
    assert list(server.clients) == []
    assert repr(server.clients) == "<Clients 0>"
    assert "client" not in server.clients
    assert not server.clients


def test_a_long_delay_harms_nobody(running: AsyncServer) -> None:
    running.call_later(math.inf, print, "never")
    running.call_later(86_400 * 365, print, "next year")
    in_thread_of(running, lambda: None)
    in_thread_of(running, lambda: None)


def test_a_note_for_a_client_that_goes_meanwhile_leaves_nothing_behind() -> None:
    class Server(AsyncServer):
        def onsent(self, client: Any, message: Any) -> None: ...

    with Server(ADDRESS) as server, RawClient(server.address) as peer:
        peer.send(head())
        while not server.clients:
            server.handle_events(None)
        (client,) = server.clients
        assert server.loop.notes is not None
        found = iter([client, None])
        server.clients._find = lambda _: next(found)  # type: ignore[method-assign]
        server.loop.notes(client._handle, 0, TextMessage("late"))
        assert server._rares == {}
        del server.clients._find
        server.loop.notes(client._handle, 0, TextMessage("in time"))
        assert server._rares.keys() == {core.key(client._handle)}
        peer.end()
        while server.clients:
            server.handle_events(None)
        server.loop.notes(client._handle, 1, TextMessage("too late"))
        assert server._rares == {}


@pytest.mark.parametrize("run", ["run", "handle_events"])
def test_what_a_thread_sends_does_not_wait_for_a_long_handler(run: str) -> None:
    """From the first message on: nothing has to be learnt before."""
    received = threading.Event()

    class Server(AsyncServer):
        def onmessage(self, client: Any, message: Any) -> None:
            thread = threading.Thread(target=client.send, args=("progress",))
            thread.start()
            thread.join()
            received.wait(DEADLINE_S)
            self.stop()

    def serve() -> None:
        if run == "run":
            server.run()
        while not server.loop.closed and not server.finished:
            server.handle_events(None)
        server.close()

    with Server(ADDRESS) as server:
        serving = threading.Thread(target=serve)
        serving.start()
        with RawClient(server.address) as peer:
            peer.open()
            peer.text("x")
            assert peer.message() == "progress"
            received.set()
            peer.closes(1001)
            peer.send(close_frame(1001))
            peer.eof()
        server.loop.wake()
        serving.join(DEADLINE_S)
        assert not serving.is_alive()
