"""Do the benchmarks measure, and notice everything that a server does wrong?"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from certificates import pem
from compression import TAIL, deflated
from native import COMPILE, COMPILER, SANITIZE, needs_compiler
from programs import PYTHON, Program

import wspy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

BENCHMARKS: Final = Path(__file__).resolve().parent.parent / "benchmarks"
SERVERS: Final = BENCHMARKS / "servers"
WARNINGS: Final = ["-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes"]
ACCEPT: Final = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
UPGRADED: Final = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
)

DEFLATING: Final = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def has_header(name: str) -> bool:
    """Return whether the compiler has what an option of the load client needs."""
    command = [str(COMPILER), "-E", "-include", name, "-x", "c", os.devnull]
    return COMPILER is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0


HAS_ZLIB: Final = has_header("zlib.h")
HAS_OPENSSL: Final = has_header("openssl/ssl.h")
needs_zlib = pytest.mark.skipif(not HAS_ZLIB, reason="needs zlib.h")
needs_openssl = pytest.mark.skipif(not HAS_OPENSSL, reason="needs openssl/ssl.h")
pytestmark = [needs_compiler, pytest.mark.slow]


class Load:
    """The load client, compiled with sanitizers where there are any."""

    def __init__(self, directory: Path, patience: float) -> None:
        self.program = directory / "load"
        self.patience = patience
        command = [str(COMPILER), *COMPILE, *WARNINGS, str(BENCHMARKS / "load.c"), "-o", str(self.program)]
        command += ["-DWITH_ZLIB", "-lz"] if HAS_ZLIB else []
        command += ["-DWITH_TLS", "-lssl", "-lcrypto"] if HAS_OPENSSL else []
        if subprocess.run([*command, *SANITIZE], capture_output=True, check=False).returncode != 0:
            plain = subprocess.run(command, capture_output=True, text=True, check=False)
            assert plain.returncode == 0, plain.stderr

    def run(self, port: int, pid: int, *options: str) -> tuple[int, dict[str, Any], str]:
        """Return the exit status, the figures, and what was told of faults."""
        # its sanitizers are its own, not those that Python may be running under
        environment = {key: value for key, value in os.environ.items() if key not in {"LD_PRELOAD", "ASAN_OPTIONS"}}
        times = ("--seconds=0.3", "--settle=0.1")
        result = subprocess.run(
            [str(self.program), f"--port={port}", f"--pid={pid}", *times, *options],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=20 * self.patience,
        )
        return result.returncode, json.loads(result.stdout or "{}"), result.stderr

    def measure(self, program: Program, port: int, *options: str) -> dict[str, Any]:
        """Measure a server that does nothing wrong."""
        status, figures, faults = self.run(port, program.process.pid, *options)
        assert (status, faults) == (0, "")
        assert figures["failed"] == figures["wrong"] == 0
        return figures


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory, patience: float) -> Load:
    return Load(tmp_path_factory.mktemp("load"), patience)


@contextlib.contextmanager
def running(script: str, patience: float, *words: str) -> Iterator[tuple[Program, int]]:
    """Start a script of servers/ and wait until it listens."""
    with socket.socket() as reserved:
        # Bound and not listening: nobody else gets this port, and the server does.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        with Program(*PYTHON, SERVERS / script, str(port), *words, patience=patience) as program:
            end = time.monotonic() + 20 * patience
            while not listens(port):
                assert program.process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
            yield program, port


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def serving(server: wspy.AsyncServer) -> Iterator[int]:
    """Run a server in a thread of this process."""
    server.start()
    yield server.address[1]
    server.close()
    server.join()


# ---- what is measured ----


@pytest.fixture(scope="module")
def echo(patience: float) -> Iterator[tuple[Program, int]]:
    with running("wspy_echo.py", patience) as server:
        yield server


@pytest.mark.parametrize(
    "options",
    [
        ("--connections=10",),
        ("--connections=1",),
        ("--connections=10", "--depth=16"),
        ("--connections=10", "--depth=16", "--text"),
        ("--connections=3", "--size=65536"),
        ("--connections=3", "--size=4096", "--fragments=8"),
        ("--connections=3", "--size=0", "--depth=2", "--fragments=3"),
        ("--connections=3", "--size=125"),
        ("--connections=3", "--size=126"),
        ("--connections=3", "--size=65535", "--depth=3", "--text"),
        ("--connections=2", "--size=700000", "--fragments=3"),
    ],
    ids=" ".join,
)
def test_echo(load: Load, echo: tuple[Program, int], options: tuple[str, ...]) -> None:
    figures = load.measure(*echo, *options)
    assert figures["count"] > 0
    assert figures["server_cpu_us"] >= 0
    assert figures["per_second"] == pytest.approx(figures["count"] / figures["seconds"], rel=0.01)
    assert figures["client_cpu_percent"] > 0
    assert figures["memory_kb"] > 1000
    assert "output_bytes" in figures


def test_the_size_of_what_comes_back_has_its_headers_in_it(load: Load, echo: tuple[Program, int]) -> None:
    assert load.measure(*echo, "--connections=2", "--size=126")["output_bytes"] == 4 + 126


def test_handshakes(load: Load, echo: tuple[Program, int]) -> None:
    figures = load.measure(*echo, "--mode=connect", "--connections=5")
    assert figures["count"] > 5
    assert figures["server_cpu_us"] > 0


def test_memory(load: Load, patience: float) -> None:
    with running("wspy_echo.py", patience) as (program, port):
        figures = load.measure(program, port, "--mode=hold", "--base=10", "--connections=200")
    assert figures["base"] == 10
    difference = figures["memory_kb"] - figures["base_memory_kb"]
    assert figures["bytes_per_connection"] == pytest.approx(difference * 1024 / 190, abs=0.1)


def test_broadcast(load: Load, patience: float) -> None:
    with running("wspy_broadcast.py", patience) as (program, port):
        figures = load.measure(program, port, "--mode=receive", "--connections=5", "--size=100")
    assert figures["count"] >= 5


def test_pings_are_answered(load: Load, patience: float) -> None:
    server = wspy.AsyncServer(("127.0.0.1", 0), ping_interval=0.05, ping_timeout=5 * patience)
    with serving(server) as port:
        status, figures, faults = load.run(port, os.getpid(), "--mode=receive", "--connections=3")
    assert (status, faults) == (0, "")
    assert figures["pings"] >= 3
    assert figures["count"] == 0


def test_nobody_is_there(load: Load) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        status, figures, faults = load.run(reserved.getsockname()[1], os.getpid(), "--connections=2")
    assert status == 1
    assert figures["failed"] == 2
    assert "Connection refused" in faults


@pytest.mark.parametrize(
    "options",
    [("--mode=none",), ("--connections=0",), ("--seconds=soon",), ("--base=100",), ("--host=localhost",), ("extra",)],
    ids=" ".join,
)
def test_misuse_is_told(load: Load, options: tuple[str, ...]) -> None:
    status, figures, faults = load.run(1, os.getpid(), *options)
    assert (status, figures) == (2, {})
    assert faults.startswith("load: ")


# ---- what servers do wrong ----


class Corrupting(wspy.AsyncServer):
    """Changes one bit of the tenth message."""

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.data = (client.data or 0) + 1
        payload = bytearray(message.bytes)
        if client.data == 10:
            payload[-1] ^= 1
        client.send(payload)


class Cutting(wspy.AsyncServer):
    """Leaves out the last byte."""

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message.bytes[:-1])


class Lengthening(wspy.AsyncServer):
    """Adds a byte."""

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message.bytes + b"x")


class Retyping(wspy.AsyncServer):
    """Sends binary messages as text."""

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message.bytes.decode("latin-1").encode("ascii", "replace").decode())


class Reordering(wspy.AsyncServer):
    """Answers the second message before the first."""

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        if client.data is None:
            client.data = message.bytes
        else:
            client.send(message.bytes)
            client.send(client.data)
            client.data = None


class Misaddressing(wspy.AsyncServer):
    """Sends each message to the other client."""

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        # the other one may not be there yet
        next((other for other in self.clients if other is not client), client).send(message)


class Repeating(wspy.AsyncServer):
    """Answers twice."""

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)
        client.send(message)


class Pushing(wspy.AsyncServer):
    """Speaks before it is spoken to."""

    def onopen(self, client: wspy.AsyncClient) -> None:
        client.send(b"hello")


class Silent(wspy.AsyncServer):
    """Answers nobody but the first client."""

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        if client is next(iter(self.clients)):
            client.send(message)


class Closing(wspy.AsyncServer):
    """Has had enough."""

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.close()


class Aborting(wspy.AsyncServer):
    """Says no word."""

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.abort()


# Which of them depends on whether the client has asked for something by then.
UNEXPECTED = "nobody asked for|differs"


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (Corrupting, "differs"),
        (Cutting, "differs"),
        (Lengthening, "differs"),
        (Retyping, "differs"),
        (Reordering, "differs"),
        (Misaddressing, UNEXPECTED),
        (Repeating, "nobody asked for"),
        (Pushing, UNEXPECTED),
        (Silent, "not one message"),
        (Closing, "Close frame"),
        (Aborting, "connection"),
    ],
)
def test_a_faulty_server_is_caught(load: Load, kind: type[wspy.AsyncServer], fault: str) -> None:
    with serving(kind(("127.0.0.1", 0))) as port:
        status, figures, faults = load.run(port, os.getpid(), "--connections=2", "--depth=2")
    assert status == 1
    wrong, failed = figures["wrong"], figures["failed"]
    assert {"differs": wrong, UNEXPECTED: wrong + failed}.get(fault, failed) > 0
    assert re.search(fault, faults)


def test_a_wrong_broadcast_is_caught(load: Load) -> None:
    with serving(Pushing(("127.0.0.1", 0))) as port:
        status, figures, _ = load.run(port, os.getpid(), "--mode=receive", "--connections=2", "--size=5")
    assert status == 1
    assert figures["wrong"] == 2


@contextlib.contextmanager
def scripted(response: str, script: Callable[[socket.socket], object]) -> Iterator[int]:
    """Serve one client: answer its request with a response, whatever that says, and run a script."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionResetError):
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(4096)
            connection.sendall(response.encode())
            script(connection)
            while connection.recv(4096):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"\x82\x80abcd", "§5.1"),
        (b"\xc2\x20", "§5.2"),
        (b"\x83\x20", "unknown opcode"),
        (b"\x8b\x00", "unknown opcode"),
        (b"\x82\x7e\x00\x20", "shortest"),
        (b"\x82\x7f\x00\x00\x00\x00\x00\x00\xff\xff", "shortest"),
        (b"\x80\x20", "§5.4"),
        (b"\x02\x00\x82\x00", "§5.4"),
        (b"\x09\x00", "§5.5"),
        (b"\x89\x7e\x00\x7e", "§5.5"),
        (b"\x88\x00", "Close frame"),
        (b"\x82", "not one message"),
    ],
)
def test_a_bad_frame_is_caught(load: Load, answer: bytes, fault: str) -> None:
    def script(connection: socket.socket) -> None:
        assert connection.recv(4096)
        connection.sendall(answer)

    with scripted(UPGRADED, script) as port:
        status, figures, faults = load.run(port, os.getpid(), "--connections=1")
    assert (status, figures["failed"]) == (1, 1)
    assert fault in faults


def test_answers_may_be_fragmented_and_interrupted(load: Load) -> None:
    pongs = []

    def unmasked(frame: bytes) -> bytes:
        return bytes(byte ^ frame[2 + i % 4] for i, byte in enumerate(frame[6:]))

    def script(connection: socket.socket) -> None:
        for _ in range(3):
            payload = unmasked(connection.recv(4096))
            connection.sendall(b"\x02\x02" + payload[:2] + b"\x89\x04ping\x8a\x00\x00\x00")
            pongs.append(connection.recv(4096))
            for byte in b"\x80\x03" + payload[2:]:
                connection.sendall(bytes([byte]))

    with scripted(UPGRADED, script) as port:
        status, figures, faults = load.run(port, os.getpid(), "--connections=1", "--size=5")
    assert (status, figures["wrong"], faults) == (0, 0, "")
    assert [(pong[:2], unmasked(pong)) for pong in pongs] == [(b"\x8a\x84", b"ping")] * 3


def test_a_pong_waits_for_the_end_of_a_message(load: Load, patience: float) -> None:
    size = 16 << 20  # more than the kernel takes while nobody reads
    pongs = []

    def script(connection: socket.socket) -> None:
        connection.recv(1, socket.MSG_PEEK)
        connection.sendall(b"\x89\x04ping")
        with connection.makefile("rb") as stream:
            stream.read(2 + 8 + 4 + size)
            pongs.append(stream.read(2 + 4 + 4)[:2])

    with scripted(UPGRADED, script) as port:
        options = ("--connections=1", f"--size={size}", f"--seconds={0.5 * patience}")
        status, figures, faults = load.run(port, os.getpid(), *options)
    assert (status, figures["failed"], pongs) == (1, 1, [b"\x8a\x84"])
    assert "not one message" in faults


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        ("HTTP/1.1 404 Not Found\r\n\r\n", "status"),
        (UPGRADED.replace("101", "200"), "status"),
        (UPGRADED.replace("websocket", "h2c"), "something else"),
        (UPGRADED.replace("Connection: Upgrade", "Connection: close"), "something else"),
        (UPGRADED.replace(ACCEPT, ACCEPT.swapcase()), "another key"),
        (UPGRADED.replace("Sec-WebSocket-Accept", "X"), "another key"),
        (UPGRADED.replace("\r\n\r\n", "\r\nsec-websocket-extensions: permessage-deflate\r\n\r\n"), "not offered"),
        (UPGRADED.replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: chat\r\n\r\n"), "not offered"),
        ("HTTP/1.1 101 " + "x" * 9000, "too long"),
    ],
    ids=range(9),
)
def test_a_bad_response_is_caught(load: Load, response: str, fault: str) -> None:
    with scripted(response, lambda _connection: None) as port:
        status, figures, faults = load.run(port, os.getpid(), "--connections=1")
    assert (status, figures["failed"]) == (1, 1)
    assert fault in faults


# ---- compression ----


# ---- over TLS ----


@pytest.fixture(scope="module")
def tls_echo(tmp_path_factory: pytest.TempPathFactory, patience: float) -> Iterator[tuple[Program, int]]:
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_text("".join(pem().values()))
    with running("wspy_tls_echo.py", patience, str(path)) as server:
        yield server


@needs_openssl
@pytest.mark.parametrize(
    "options",
    [
        ("--connections=10",),
        ("--connections=10", "--depth=16", "--text"),
        ("--connections=3", "--size=700000", "--fragments=3"),
    ],
    ids=" ".join,
)
def test_echo_over_tls(load: Load, tls_echo: tuple[Program, int], options: tuple[str, ...]) -> None:
    assert load.measure(*tls_echo, "--tls", *options)["count"] > 5


@needs_openssl
def test_memory_and_handshakes_over_tls(load: Load, tls_echo: tuple[Program, int]) -> None:
    assert load.measure(*tls_echo, "--tls", "--mode=hold", "--base=1", "--connections=20")["base"] == 1
    assert load.measure(*tls_echo, "--tls", "--mode=connect", "--connections=5")["count"] > 5


@needs_openssl
def test_who_speaks_no_tls_fails(load: Load, echo: tuple[Program, int]) -> None:
    program, port = echo
    status, figures, faults = load.run(port, program.process.pid, "--tls", "--connections=2")
    assert status != 0
    assert figures.get("failed", 2) == 2
    assert faults


@pytest.fixture(scope="module")
def deflate_echo(patience: float) -> Iterator[tuple[Program, int]]:
    with running("wspy_deflate_echo.py", patience) as server:
        yield server


@needs_zlib
@pytest.mark.parametrize(
    ("size", "options"),
    [
        (1024, ("--connections=10", "--text")),
        (1024, ("--connections=10", "--text", "--depth=100")),
        (4096, ("--connections=3", "--text", "--fragments=8", "--depth=2")),
        (32, ("--connections=3", "--text")),
        (0, ("--connections=3", "--depth=2")),
        (1024, ("--connections=3",)),
        (65_535, ("--connections=3", "--text", "--depth=3")),
        (65_536, ("--connections=3", "--text")),
        (700_000, ("--connections=2", "--text", "--fragments=3")),
    ],
)
def test_compressed_echo(load: Load, deflate_echo: tuple[Program, int], size: int, options: tuple[str, ...]) -> None:
    figures = load.measure(*deflate_echo, "--deflate", f"--size={size}", *options)
    assert figures["count"] > 0
    if "--text" not in options:  # random bytes, which only grow
        assert size < figures["output_bytes"] < size + 20
    elif size >= 1024:
        assert size * 0.2 < figures["output_bytes"] < size * 0.6


@needs_zlib
def test_memory_and_handshakes_with_compression(load: Load, deflate_echo: tuple[Program, int]) -> None:
    assert load.measure(*deflate_echo, "--deflate", "--mode=hold", "--base=1", "--connections=20")["base"] == 1
    assert load.measure(*deflate_echo, "--deflate", "--mode=connect", "--connections=5")["count"] > 5


class Stubborn(wspy.DeflateMessage):
    """Keeps its window though it was asked not to."""

    def accept(self, offered: list[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
        return []


class Echo(wspy.AsyncServer):
    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)


@needs_zlib
def test_a_server_that_keeps_its_window_can_be_compared(load: Load) -> None:
    sizes = []
    for extension in (wspy.DeflateMessage(), wspy.DeflateMessage(server_max_window_bits=9), Stubborn()):
        with serving(Echo(("127.0.0.1", 0), extensions=[extension])) as port:
            status, figures, faults = load.run(
                port, os.getpid(), "--deflate", "--text", "--connections=3", "--size=200", "--depth=3"
            )
        assert (status, faults) == (0, "")
        sizes.append(figures["output_bytes"])
    assert sizes[2] < sizes[0] * 0.7
    assert sizes[2] < sizes[1] * 0.7


@needs_zlib
def test_a_compressed_broadcast(load: Load) -> None:
    class Greeting(wspy.AsyncServer):
        def onopen(self, client: wspy.AsyncClient) -> None:
            self.call_later(0.15, lambda: client.send("x" * 1000, compress=True))

    with serving(Greeting(("127.0.0.1", 0), extensions=[wspy.DeflateMessage])) as port:
        options = ("--deflate", "--mode=receive", "--connections=3", "--size=1000")
        status, figures, faults = load.run(port, os.getpid(), *options)
    assert (status, faults, figures["wrong"]) == (0, "", 0)


@needs_zlib
@pytest.mark.parametrize("kind", [Corrupting, Cutting, Lengthening, Retyping, Reordering])
def test_a_faulty_server_that_compresses_is_caught(load: Load, kind: type[wspy.AsyncServer]) -> None:
    with serving(kind(("127.0.0.1", 0), extensions=[wspy.DeflateMessage])) as port:
        status, figures, faults = load.run(port, os.getpid(), "--deflate", "--connections=2", "--depth=2")
    assert status == 1
    assert figures["wrong"] > 0
    assert "differs" in faults


def extended(answer: str) -> str:
    """Return the response of a server that agrees on extensions."""
    return UPGRADED.replace("\r\n\r\n", f"\r\nSec-WebSocket-Extensions: {answer}\r\n\r\n")


@needs_zlib
@pytest.mark.parametrize(
    ("response", "fault"),
    [
        (UPGRADED, "does not compress"),
        (extended(""), "§7.1"),
        (extended("permessage-deflate, permessage-deflate"), "§7.1"),
        (extended("permessage-deflated"), "§7.1"),
        (extended("deflate-frame"), "§7.1"),
        (extended("server_no_context_takeover"), "§7.1"),
        (extended("permessage-deflate; client_max_window_bits=10"), "§7.1"),
        (extended("permessage-deflate; server_no_context_takeover=1"), "§7.1"),
        (extended("permessage-deflate; server_max_window_bits"), "§7.1"),
        (extended("permessage-deflate; server_max_window_bits="), "§7.1"),
        (extended("permessage-deflate; server_max_window_bits=7"), "§7.1"),
        (extended("permessage-deflate; server_max_window_bits=16"), "§7.1"),
        (extended("permessage-deflate; server_max_window_bits=+9"), "§7.1"),
        (extended("permessage-deflate\r\nSec-WebSocket-Extensions: permessage-deflate"), "§7.1"),
        (extended(f"permessage-deflate; {'x' * 300}"), "§7.1"),
    ],
    ids=range(15),
)
def test_a_bad_agreement_is_caught(load: Load, response: str, fault: str) -> None:
    with scripted(response, lambda _connection: None) as port:
        status, figures, faults = load.run(port, os.getpid(), "--connections=1", "--deflate")
    assert (status, figures["failed"]) == (1, 1)
    assert fault in faults


def received(connection: socket.socket) -> bytes:
    """Return what a compressed message of the load client says; it is one short frame, behind pongs if any."""
    first = 0x8A
    while first == 0x8A:
        first, length, *key = connection.recv(6, socket.MSG_WAITALL)
        masked = connection.recv(length - 0x80, socket.MSG_WAITALL)
    assert first == 0xC1
    return zlib.decompressobj(-15).decompress(bytes(byte ^ key[i % 4] for i, byte in enumerate(masked)) + TAIL)


def framed(first: int, payload: bytes) -> bytes:
    assert len(payload) < 126
    return bytes([first, len(payload)]) + payload


def finished(data: bytes) -> bytes:
    """Return a message whose last block is marked as that, RFC 7692 §7.2.3.4, but for the byte behind it."""
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


def in_two_blocks(data: bytes) -> bytes:
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    half = stream.compress(data[:20]) + stream.flush(zlib.Z_SYNC_FLUSH)
    return half + (stream.compress(data[20:]) + stream.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)


def in_two_frames(packed: bytes, start: int) -> bytes:
    return framed(0x41, packed[:start]) + framed(0x89, b"ping") + framed(0x80, packed[start:])


@needs_zlib
@pytest.mark.parametrize(
    "answer",
    [
        lambda data: [framed(0xC1, deflated(data))],
        lambda data: [bytes([byte]) for byte in framed(0xC1, deflated(data))],
        lambda data: [in_two_frames(deflated(data), 0)],
        lambda data: [bytes([byte]) for byte in in_two_frames(deflated(data), 17)],
        lambda data: [framed(0xC1, deflated(data, level=0))],
        lambda data: [framed(0xC1, deflated(data, bits=9))],
        lambda data: [framed(0xC1, in_two_blocks(data))],
        lambda data: [framed(0xC1, finished(data) + b"\0")],
        lambda data: [framed(0x81, data)],
    ],
    ids=["whole", "bytes", "frames", "frames and bytes", "stored", "a small window", "blocks", "finished", "plain"],
)
def test_a_message_may_be_compressed_in_any_way(load: Load, answer: Callable[[bytes], list[bytes]]) -> None:
    def script(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(3):
            for piece in answer(received(connection)):
                connection.sendall(piece)

    with scripted(extended(DEFLATING), script) as port:
        options = ("--connections=1", "--deflate", "--text", "--size=90")
        status, figures, faults = load.run(port, os.getpid(), *options)
    assert (status, figures["wrong"], faults) == (0, 0, "")


@needs_zlib
def test_a_compressed_message_may_be_split_anywhere(load: Load) -> None:
    ends = []

    def script(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = 0
        while not ends:
            packed = deflated(received(connection))
            connection.sendall(framed(0x41, packed[:start]) + framed(0x80, packed[start:]))
            start += 1
            if start > len(packed):
                ends.append(start)

    with scripted(extended(DEFLATING), script) as port:
        options = ("--connections=1", "--deflate", "--text", "--size=90")
        status, figures, faults = load.run(port, os.getpid(), *options)
    assert (status, figures["wrong"], faults) == (0, 0, "")
    assert ends


@needs_zlib
@pytest.mark.parametrize(
    "answer",
    [
        lambda data: framed(0xC1, b"\x07" + deflated(data)),
        lambda data: framed(0xC1, b""),
        lambda data: framed(0xC1, b"\0"),
        lambda data: framed(0xC1, deflated(data)[:-1]),
        lambda data: framed(0xC1, deflated(data)[:40]),
        lambda data: framed(0xC1, deflated(data) + TAIL[:1]),
        lambda data: framed(0xC1, finished(data)),
        lambda data: framed(0xC1, finished(data)[:-1] + b"\0"),
        lambda data: framed(0xC1, deflated(data[:-1])),
        lambda data: framed(0xC1, deflated(data + b"x")),
        lambda data: framed(0xC1, deflated(data + bytes(200_000))[:125]),
        lambda data: framed(0xC2, deflated(data)),
        lambda data: framed(0x81, deflated(data)),
    ],
    ids=range(13),
)
def test_what_is_wrongly_compressed_is_caught(load: Load, answer: Callable[[bytes], bytes]) -> None:
    with scripted(extended(DEFLATING), lambda connection: connection.sendall(answer(received(connection)))) as port:
        options = ("--connections=1", "--deflate", "--text", "--size=90")
        status, figures, faults = load.run(port, os.getpid(), *options)
    assert (status, figures["wrong"]) == (1, 1)
    assert "differs" in faults


@needs_zlib
@pytest.mark.parametrize("promised", [True, False])
def test_a_reference_to_an_earlier_message_is_caught_if_none_was_promised(load: Load, promised: bool) -> None:
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)

    def script(connection: socket.socket) -> None:
        for _ in range(2):
            packed = stream.compress(received(connection)) + stream.flush(zlib.Z_SYNC_FLUSH)
            connection.sendall(framed(0xC1, packed.removesuffix(TAIL)))

    answer = DEFLATING if promised else "permessage-deflate; client_no_context_takeover"
    with scripted(extended(answer), script) as port:
        options = ("--connections=1", "--deflate", "--text", "--size=90")
        status, figures, _ = load.run(port, os.getpid(), *options)
    assert (status, figures["wrong"]) == ((1, 1) if promised else (0, 0))


@needs_zlib
@pytest.mark.parametrize("answer", [b"\x41\x00\xc0\x00", b"\xc9\x00", b"\xca\x00", b"\xa1\x00", b"\x91\x00"])
def test_a_reserved_bit_in_the_wrong_place_is_caught(load: Load, answer: bytes) -> None:
    def script(connection: socket.socket) -> None:
        assert connection.recv(4096)
        connection.sendall(answer)

    with scripted(extended(DEFLATING), script) as port:
        status, figures, faults = load.run(port, os.getpid(), "--connections=1", "--deflate")
    assert (status, figures["failed"]) == (1, 1)
    assert "RFC 7692 §6" in faults


# ---- comparing ----


def run_script(script: str, *arguments: str | Path, patience: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(wspy.__file__).parent.parent)}
    command = [*PYTHON, BENCHMARKS / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=50 * patience)


def shortened(*arguments: str | Path) -> tuple[str | Path, ...]:
    cpus = sorted(os.sched_getaffinity(0))
    return ("--seconds=0.2", "--connections=5", f"--cpus={cpus[0]},{cpus[-1]}", *arguments)


def imported(name: str) -> ModuleType:
    """Return a script as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    return imported("compare")


def test_frames_of_each_size_are_measured_in_each_way(patience: float) -> None:
    result = run_script("frames.py", "--rounds=1", "--seconds=0.001", patience=patience)
    assert result.returncode == 0, result.stderr
    missing = {line.partition(":")[0] for line in result.stderr.splitlines()}
    assert missing <= {"websockets, Protocol", "wsproto, FrameProtocol"}
    _, *tables = result.stdout.split("\n\n")
    assert [table.split("  ")[0] for table in tables] == ["32 B", "1 KiB", "64 KiB"]
    for table in tables:
        rows = [re.fullmatch(r"(\S+, \S+) ((?: +[\d.]+){3,4})", line) for line in table.splitlines()[1:]]
        assert {row[1] for row in rows if row} | missing == {
            "wspy, frames",
            "wspy, message",
            "websockets, Protocol",
            "wsproto, FrameProtocol",
        }
        for row in filter(None, rows):
            pack, parse, both, *_ = map(float, row[2].split())
            assert both == pytest.approx(pack + parse, abs=0.02)


def test_a_way_that_changes_payloads_gives_no_figure() -> None:
    frames = imported("frames")
    with pytest.raises(SystemExit, match="wrong has changed"):
        frames.measure({"wrong": frames.Way(bytes, lambda data: data[1:])}, b"payload", 1, 0.0)


def test_compare_stores_what_it_prints_and_report_renders_it(tmp_path: Path, patience: float) -> None:
    stored = tmp_path / "figures.json"
    command = f"{sys.executable} {SERVERS}/wspy_echo.py {{port}}"
    servers = (f"wspy={command}", f"other={command} drop-request")
    options = shortened("--rounds=2", "--scenario=d1,slope", f"--json={stored}")
    result = run_script("compare.py", *options, *servers, patience=patience)
    assert (result.returncode, result.stderr) == (0, "")

    figures = json.loads(stored.read_text(encoding="utf-8"))
    assert list(figures["scenarios"]) == ["d1", "slope"]
    other = figures["scenarios"]["d1"]["servers"]["other"]
    assert len(other["runs"]) == 2
    assert other["versions"]["wspy"] == wspy.__version__
    # what is published tells nothing of whose machine it was
    assert other["command"] == f"{Path(sys.executable).name} benchmarks/servers/wspy_echo.py {{port}} drop-request"
    least = min(run["server_cpu_us"] for run in other["runs"])
    assert f"{least:,.2f}" in result.stdout

    page = run_script("report.py", stored, "--scenario=d1", patience=patience)
    assert (page.returncode, page.stderr) == (0, "")
    assert "| `d1`: 100 connections" in page.stdout
    assert wspy.__version__ in page.stdout
    assert "slope" not in page.stdout
    assert "shortened" in page.stdout


@needs_zlib
def test_compare_shows_how_much_was_compressed(tmp_path: Path, patience: float) -> None:
    stored = tmp_path / "figures.json"
    options = shortened("--rounds=1", "--scenario=deflate16k,idle-deflate", f"--json={stored}")
    server = f"wspy={sys.executable} {SERVERS}/wspy_deflate_echo.py {{port}}"
    result = run_script("compare.py", *options, server, patience=patience)
    assert (result.returncode, result.stderr) == (0, "")
    run = json.loads(stored.read_text(encoding="utf-8"))["scenarios"]["deflate16k"]["servers"]["wspy"]["runs"][0]
    size = f"{run['output_bytes']:,.0f}"
    assert 3000 < run["output_bytes"] < 10_000
    assert re.search(rf"^  wspy .* {size}$", result.stdout, re.MULTILINE)

    page = run_script("report.py", stored, "--scenario=deflate16k", patience=patience)
    assert (page.returncode, page.stderr) == (0, "")
    assert f"Bytes of an answer in `deflate16k`: wspy {size}." in page.stdout


def test_compare_needs_zlib_only_where_something_is_compressed(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = compare.compile_load(tmp_path, ["d1", "slope"])
    result = subprocess.run([program, "--port=1", "--pid=1", "--deflate"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "-DWITH_ZLIB" in result.stderr
    monkeypatch.setattr(compare, "COMPILE", [*compare.COMPILE, "-nostdinc"])
    with pytest.raises(SystemExit, match=r"deflate, idle-deflate: zlib\.h is missing"):
        compare.compile_load(tmp_path, ["d1", "deflate", "idle-deflate"])


@pytest.mark.parametrize(
    ("server", "fault"),
    [
        ("pass", "ended with status 0"),
        ("import time; time.sleep(60)", "Connection refused"),
        ("import os; os.kill(os.getpid(), 9)", "ended with status -9"),
        ("raise SystemExit('no such thing')", "no such thing"),
    ],
)
def test_compare_gives_no_figure_of_a_broken_server(
    load: Load, compare: ModuleType, monkeypatch: pytest.MonkeyPatch, server: str, fault: str
) -> None:
    monkeypatch.setattr(compare, "START_SECONDS", 0.5)
    cpu = min(os.sched_getaffinity(0))
    settings = compare.Settings(1, 0.2, 2, cpu, cpu, load.program)
    scenario = compare.SCENARIOS["d1"]
    run = compare.run_once(shlex.join([sys.executable, "-c", server]), scenario, settings)
    assert fault in run["error"]
    assert compare.figures([run], scenario) == []


def test_compare_ends_with_1_if_a_server_is_wrong(tmp_path: Path, patience: float) -> None:
    script = tmp_path / "wrong.py"
    script.write_text(
        "import sys, wspy\n"
        "class Wrong(wspy.AsyncServer):\n"
        "    def onmessage(self, client, message):\n"
        "        client.send(bytes(len(message.bytes)))\n"
        "Wrong(('127.0.0.1', int(sys.argv[1]))).run()\n",
        encoding="utf-8",
    )
    options = shortened("--rounds=1", "--scenario=d1")
    result = run_script("compare.py", *options, f"wrong={sys.executable} {script} {{port}}", patience=patience)
    assert result.returncode == 1
    assert "differs" in result.stderr
    assert "failed" in result.stdout


@pytest.mark.parametrize("arguments", [(), ("--all", "a=b"), ("--scenario=d2", "a=b"), ("nameless",)])
def test_compare_refuses_misuse(arguments: tuple[str, ...], patience: float) -> None:
    result = run_script("compare.py", *arguments, patience=patience)
    assert result.returncode == 2
    assert "usage" in result.stderr


def test_some_of_all_servers_can_be_chosen(compare: ModuleType) -> None:
    python = sys.executable
    assert list(compare.line_up("slope", python, python, [])) >= ["wspy", "wspy-drop-request"]
    assert list(compare.line_up("slope", python, python, ["wspy"])) == ["wspy"]


def test_every_scenario_has_servers_and_is_described(compare: ModuleType) -> None:
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    used = {command.split()[0] for line_up in compare.LINE_UPS.values() for command in line_up.values()}
    others = {f"wspy_{name}.py" for name in ("descriptors", "faults", "shutdown", "slow_readers", "soak")}
    assert used | others == {path.name for path in SERVERS.glob("*.py")}
    assert set(compare.LINE_UPS) == set(compare.SCENARIOS)
    assert all(f"`{name}`" in readme for name in compare.SCENARIOS)
    assert all(next(iter(line_up)) == "wspy" for line_up in compare.LINE_UPS.values())


# ---- clients.py ----


def test_clients_stores_what_it_prints_and_report_renders_it(tmp_path: Path, patience: float) -> None:
    pytest.importorskip("websockets")
    stored = tmp_path / "figures.json"
    cpus = sorted(os.sched_getaffinity(0))
    options = ("--rounds=2", "--seconds=0.1", f"--cpus={cpus[0]},{cpus[-1]}", f"--json={stored}")
    result = run_script("clients.py", *options, "--only=wspy,websockets,socket", patience=patience)
    assert (result.returncode, result.stderr) == (0, "")
    figures = json.loads(stored.read_text(encoding="utf-8"))
    assert list(figures["scenarios"]) == ["rt1", "rt16"]
    ours = figures["scenarios"]["rt16"]["servers"]["wspy"]
    assert len(ours["runs"]) == 2
    assert ours["versions"]["wspy"] == wspy.__version__
    assert ours["command"].startswith(f"{Path(sys.executable).name} benchmarks/client_load.py wspy {{port}} 16 ")
    least = min(run["client_cpu_us"] for run in ours["runs"])
    assert f"{least:,.2f}" in result.stdout

    page = run_script("report.py", stored, "--servers=wspy,websockets", patience=patience)
    assert (page.returncode, page.stderr) == (0, "")
    assert "| `rt1`: a blocking client, 32 bytes, 1 in flight | CPU µs of the client per message |" in page.stdout
    assert f"wspy {wspy.__version__}" in page.stdout


def test_clients_passes_over_what_is_not_installed(patience: float) -> None:
    """The peers' interpreter has none of them: /bin/true is none at all."""
    cpus = sorted(os.sched_getaffinity(0))
    options = ("--rounds=1", "--seconds=0.1", "--scenario=rt1", f"--cpus={cpus[0]},{cpus[-1]}", "--peers=/bin/true")
    result = run_script("clients.py", *options, patience=patience)
    assert result.returncode == 0
    assert result.stderr.split() == ["websocket-client:", "not", "installed", "websockets:", "not", "installed"]
    assert " wspy " in result.stdout


@pytest.mark.parametrize("library", ["wspy", "websockets", "websocket-client", "socket"])
def test_a_wrong_answer_is_no_figure_of_a_client(library: str, patience: float) -> None:
    module = {"websocket-client": "websocket"}.get(library, library)
    pytest.importorskip(module)

    class Wrong(wspy.AsyncServer):
        def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
            client.send(bytes(len(message.bytes)))

    with Wrong(("127.0.0.1", 0)) as server:
        server.start()
        result = run_script("client_load.py", library, str(server.address[1]), "1", "0.1", patience=patience)
    assert (result.returncode, result.stdout) == (1, "")
    assert "differs" in result.stderr


@pytest.mark.parametrize("arguments", ["--scenario=rt2", "--only=nobody"])
def test_clients_refuses_misuse(arguments: str, patience: float) -> None:
    result = run_script("clients.py", arguments, patience=patience)
    assert result.returncode == 2
    assert "usage" in result.stderr
