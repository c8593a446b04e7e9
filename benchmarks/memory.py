"""Is what ``server.memory()`` says what the system says?

    python benchmarks/memory.py [--scenario idle,queue] [--connections 10000] [--json benchmarks/figures/NAME.json]

A server gets some connections first, so that its buffers are there, and then all of them; each of them comes into the
state that the scenario is about. The growth of ``memory().total`` is compared with that of the resident memory of the
server's process. Exit status: 0 if each ratio is from 0.9 to 1.1. Each process needs a descriptor for each connection.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import ssl
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import compare  # noqa: E402 -- found only by the line above

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST = 500
REQUEST = (
    b"GET /chat?room=lobby HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Origin: http://127.0.0.1\r\nUser-Agent: memory.py\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
)
OFFER = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
TAIL = b"\x00\x00\xff\xff"


@dataclass
class Peer:
    """One connection, seen from here."""

    sock: socket.socket
    sent: int = 0

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)
        self.sent += len(data)

    def read_to(self, end: bytes) -> None:
        found = b""
        while not found.endswith(end):
            piece = self.sock.recv(65_536)
            if not piece:
                sys.exit(f"memory.py: the server has closed a connection, after {found[:100]!r}")
            found += piece


def frame(payload: bytes, first: int = 0x82, announced: int | None = None) -> bytes:
    """Return a frame, or the beginning of one that is longer."""
    length = len(payload) if announced is None else announced
    size = bytes([0x80 | length]) if length < 126 else b"\xfe" + length.to_bytes(2, "big")
    return bytes([first]) + size + bytes(4) + payload


def texts(count: int) -> list[bytes]:
    """Return messages of 1 KiB, about as compressible as records in JSON."""
    chance = random.Random(1)
    words = [bytes(chance.choices(b"abcdefghijklmnop", k=chance.randint(2, 9))) for _ in range(300)]
    return [b" ".join(chance.choices(words, k=400))[:1023] + b"\n" for _ in range(count)]


def packed(messages: list[bytes], bits: int) -> list[bytes]:
    """Return the frames of a compressed stream, RFC 7692 §7.2.1."""
    stream = zlib.compressobj(6, zlib.DEFLATED, -bits)
    parts = [stream.compress(message) + stream.flush(zlib.Z_SYNC_FLUSH) for message in messages]
    return [frame(part.removesuffix(TAIL), 0xC1) for part in parts]


def nothing(peer: Peer) -> None:
    """Stay idle."""


def half_a_message(peer: Peer) -> None:
    peer.send(frame(bytes(4096), announced=8192))


def half_a_header(peer: Peer) -> None:
    peer.send(b"\x82\xfe\x10")


def one_message(peer: Peer) -> None:
    peer.send(frame(b"go on"))


def four_messages(peer: Peer) -> None:
    peer.send(4 * frame(bytes(1000)))


def compressing(count: int, bits: int) -> Callable[[Peer], None]:
    """Return what sends compressed messages, and takes their echoes."""
    frames = packed(texts(count), bits)

    def exchange(peer: Peer) -> None:
        for each in frames:
            peer.send(each)
            header = peer.sock.recv(4, socket.MSG_WAITALL)
            size = header[1] if header[1] < 126 else int.from_bytes(header[2:], "big")
            left = size - 2 if header[1] < 126 else size
            peer.sock.recv(left, socket.MSG_WAITALL)

    return exchange


@dataclass(frozen=True)
class Scenario:
    """What becomes of each connection."""

    title: str
    act: Callable[[Peer], None] = nothing
    offer: bytes = b""
    figure: str = "ratio"
    unit: str = "memory() / resident memory"


SCENARIOS = {
    "idle": Scenario("idle, the request head is kept"),
    "idle-drop-request": Scenario("idle, the request head is dropped"),
    "header": Scenario("idle in the middle of a frame header", half_a_header),
    "remainder": Scenario("4 of 8 KiB of a message have come", half_a_message),
    "paused": Scenario("3 messages of 1 KB wait for the end of a pause", four_messages),
    "queue": Scenario("16 messages of 1 KiB to a peer that reads nothing", one_message),
    "sent": Scenario("the same with onsent", one_message),
    "windows": Scenario("compression, 15 bits, 3 messages of 1 KiB each way", compressing(3, 15), OFFER),
    "windows-15": Scenario("compression, 15 bits, 80 messages of 1 KiB each way", compressing(80, 15), OFFER),
    "windows-12": Scenario("compression, 12 bits, 20 messages of 1 KiB each way", compressing(20, 12), OFFER),
    "tls": Scenario("idle over TLS"),
    "threads": Scenario("idle, a thread for each"),
}


class Peers:
    """All connections to one server.

    Args:
        scenario: what they do.
        port: of the server.
        over_tls: whether that speaks TLS.
    """

    def __init__(self, scenario: Scenario, port: int, *, over_tls: bool) -> None:
        self._scenario = scenario
        self._port = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if over_tls else None
        if self._context is not None:
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE
        self._peers: list[Peer] = []

    def grow(self, count: int) -> int:
        """Open connections until there are so many; return how many bytes all have sent."""
        while len(self._peers) < count:
            self._peers.append(self._opened())
        return sum(peer.sent for peer in self._peers)

    def _opened(self) -> Peer:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        # else a few thousand connections would find no port that isn't taken in TIME_WAIT
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.settimeout(20)
        sock.connect(("127.0.0.1", self._port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(sock if self._context is None else self._context.wrap_socket(sock))
        peer.send(REQUEST + self._scenario.offer + b"\r\n")
        peer.read_to(b"\r\n\r\n")
        self._scenario.act(peer)
        return peer


def run_once(python: str, name: str, connections: int, first: int, pem: Path | None) -> dict[str, Any]:
    """Return what a server says of itself before and after most connections came, and the ratio of what was added."""
    command = [python, str(HERE / "memory_server.py"), name, *([] if pem is None else [str(pem)])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        peers = Peers(SCENARIOS[name], int(server.stdout.readline()), over_tls=pem is not None)
        states = []
        for count in (first, connections):
            print(peers.grow(count), file=server.stdin, flush=True)
            states.append(json.loads(server.stdout.readline()))
        server.stdin.close()
        server.kill()
    before, after = states
    added = connections - first
    return {
        "before": before,
        "after": after,
        "memory": {kind: (size - before["memory"][kind]) / added for kind, size in after["memory"].items()},
        "resident": (after["resident"] - before["resident"]) / added,
        "milliseconds": after["milliseconds"],
        "ratio": (after["total"] - before["total"]) / (after["resident"] - before["resident"]),
    }


def print_run(name: str, run: dict[str, Any]) -> None:
    """Print bytes per connection."""
    kinds = ", ".join(f"{kind} {size:,.0f}" for kind, size in run["memory"].items() if size)
    said, found = sum(run["memory"].values()), run["resident"]
    print(f"{name}: {SCENARIOS[name].title}")
    print(
        f"  memory() {said:,.0f}, resident {found:,.0f}: {run['ratio']:.3f}; in {run['milliseconds']:.1f} ms; {kinds}"
    )
    sys.stdout.flush()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    description, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has wspy")
    parser.add_argument("--scenario", default=",".join(SCENARIOS), help="some of: %(default)s")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=FIRST, help="how many come before anything is measured")
    parser.add_argument("--json", type=Path, help="a file for all raw figures")
    arguments = parser.parse_args()
    arguments.scenario = arguments.scenario.split(",")
    if unknown := set(arguments.scenario) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    return arguments


def main() -> int:
    """Measure, print and store; return the exit status."""
    arguments = parse_arguments()
    compare.allow_descriptors()
    settings = compare.Settings(1, None, arguments.connections, 0, 0)
    report = compare.conditions(settings)
    well = True
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.scenario:
            pem = compare.make_certificate(Path(scratch)) if name == "tls" else None
            run = run_once(arguments.python, name, arguments.connections, arguments.first, pem)
            print_run(name, run)
            well = well and 0.9 <= run["ratio"] <= 1.1
            report["scenarios"][name] = {"title": SCENARIOS[name].title, "runs": [run]}
            if arguments.json:
                arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
