"""What does a server do that has no descriptor left, while many wait to be accepted?

    python benchmarks/descriptors.py
    python benchmarks/descriptors.py --seconds 900 --json benchmarks/figures/NAME.json

A server with 256 descriptors echoes what 200 clients send, every byte of it compared, and 1,000 more connect. It runs
twice: with a limit that it knows, and with one that only the kernel knows. To reach: it takes less than a fifth of a
CPU, the clients' p99 is below 100 ms, and a descriptor that becomes free is used within a second. Exit status: 1 if
not. README.md, beside this file, says more.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import attack  # noqa: E402 -- found only by the line above
import proofs  # noqa: E402

if TYPE_CHECKING:
    import argparse

LIMIT = 256
LIVE, WAITING = 200, 1000
PARTS = ("known limit", "sudden limit")
KEPT, OWN = 64, 8
"""Descriptors: those that a server keeps for others if it knows the limit, and those that it has itself at most."""

CPU_PERCENT = 20.0
P99_MS = 100.0
FREED_SECONDS = 1.0
UNUSED_SECONDS = 20.0
"""After which a descriptor counts as lost, however busy the machine is."""

LOG_LINES_LIMIT = 10.0
SETTLE_SECONDS = 1.0


class Waiting:
    """Those who have connected and asked, and wait for an answer.

    Args:
        port: of the server.
        count: how many there are.
    """

    def __init__(self, port: int, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._port = port
        self._open: list[socket.socket] = []
        """Those that have been answered."""
        self.faults: list[str] = []
        self.freed_after: list[float] = []
        for _ in range(count):
            self._connect()

    def _connect(self) -> None:
        sock = socket.socket()
        sock.settimeout(proofs.OPEN_SECONDS)
        # a reset leaves no port in TIME_WAIT
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.connect(("127.0.0.1", self._port))
        sock.sendall(attack.request())
        self._selector.register(sock, selectors.EVENT_READ)

    def _look(self, seconds: float) -> bool:
        """Wait so long for answers, and return whether there are any."""
        ready = self._selector.select(seconds)
        for key, _ in ready:
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            self._selector.unregister(sock)
            try:
                answer = sock.recv(4096)
            except OSError as error:
                answer = repr(error).encode()
            if answer.startswith(b"HTTP/1.1 101 "):
                self._open.append(sock)
            else:
                self.faults.append(f"one that waited got {answer[:60]!r}")
                sock.close()
        return bool(ready)

    def run(self, seconds: float) -> None:
        """Let one go each second, and see that another one takes its place."""
        settled = time.monotonic() + SETTLE_SECONDS
        while (left := settled - time.monotonic()) > 0:
            self._look(left)
        end = time.monotonic() + seconds
        while not self.faults and time.monotonic() < end:
            begun = time.monotonic()
            self._free_one()
            while (left := begun + 1 - time.monotonic()) > 0:
                self._look(left)

    def _free_one(self) -> None:
        """Reset one that is open, and note how long it takes until another one is."""
        if not self._open:
            self.faults.append("nobody who waited was ever accepted: there were no descriptors to begin with")
            return
        self._open.pop(0).close()
        begun = time.monotonic()
        if not self._look(UNUSED_SECONDS):
            self.faults.append(f"a free descriptor was not used within {UNUSED_SECONDS:.0f} s")
        self.freed_after.append(time.monotonic() - begun)
        self._connect()

    @property
    def accepted(self) -> int:
        return len(self._open)

    def close(self) -> None:
        waiting = [key.fileobj for key in self._selector.get_map().values()]
        self._selector.close()
        for sock in (*self._open, *waiting):
            assert isinstance(sock, socket.socket)
            sock.close()


def run_part(part: str, programs: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Exhaust the descriptors of a fresh server, and return figures and faults."""
    limit, how = arguments.limit, part.partition(" ")[0]
    most = (max(limit - KEPT, limit // 2) if how == "known" else limit) - OWN
    clients = min(proofs.scaled(LIVE, arguments), most)
    command = proofs.command(arguments, "wspy_descriptors.py", limit, how)
    with proofs.serving(command, arguments.server_cpu) as server:
        settings = proofs.live_settings(arguments, clients, programs)
        waiting = None
        with attack.Live(server.port, settings) as live, contextlib.ExitStack() as stack:
            if live.well:
                waiting = stack.enter_context(
                    contextlib.closing(Waiting(server.port, proofs.scaled(WAITING, arguments)))
                )
                figures = measured(live, waiting, server, arguments.seconds)
                lines = len(server.complaints())
        faults = [] if live.well else [f"live: {live.said.strip() or 'a client ended too early'}"]
        if waiting is None:
            return {"faults": [*faults, *server.stop(), *server.complaints()]}
        faults += [*waiting.faults, *server.stop()]
    figures |= {"clients": clients, "log_lines": lines}
    return {**figures, "faults": faults + amiss(figures, arguments)}


def measured(live: attack.Live, waiting: Waiting, server: proofs.Served, seconds: float) -> dict[str, Any]:
    """Measure clients, server and those who wait for so long."""
    heard: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: heard.update(live.measure(seconds + SETTLE_SECONDS)))
    with proofs.Watch(server.pid) as watch:
        thread.start()
        waiting.run(seconds)
        thread.join()
    return {
        "messages": heard.get("count", 0),
        "latency_ms": heard.get("latency_ms", {}),
        **watch.figures,
        "accepted_of_those_waiting": waiting.accepted,
        "freed": len(waiting.freed_after),
        "used_after_ms": proofs.percentiles(waiting.freed_after),
    }


def amiss(figures: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    """Return what is not as it has to be."""
    found = []
    if (busy := figures.get("server_cpu_percent", 0)) > CPU_PERCENT:
        found.append(f"the server took {busy:.0f} % of a CPU, more than {CPU_PERCENT:.0f} %")
    if figures.get("server_slept", arguments.seconds) < arguments.seconds:
        found.append("the server spins: it hardly ever waits")
    if figures["log_lines"] > LOG_LINES_LIMIT * (arguments.seconds + SETTLE_SECONDS):
        found.append(f"{figures['log_lines']} lines were logged")
    if arguments.untimed:
        return found
    if (p99 := figures["latency_ms"].get("p99", 0)) > P99_MS:
        found.append(f"p99 is {p99:.1f} ms, more than {P99_MS:.0f} ms")
    if (late := figures["used_after_ms"]["max"]) > 1000 * FREED_SECONDS:
        found.append(f"a free descriptor was used after {late:.0f} ms, later than {FREED_SECONDS:.0f} s")
    return found


def main() -> int:
    """Try both kinds of limit, print and store; return the exit status."""
    parser = proofs.arguments_for(__doc__ or "", "servers/wspy_descriptors.py", PARTS, 30.0)
    parser.add_argument("--limit", type=int, default=LIMIT, help="descriptors of the server (default: %(default)s)")
    arguments = proofs.read_arguments(parser, PARTS)
    with tempfile.TemporaryDirectory() as scratch:
        programs = Path(scratch)
        attack.compile_programs(programs, ["live"])
        parts = {part: partial(run_part, part, programs, arguments) for part in arguments.part}
        return proofs.conclude(arguments, parts)


if __name__ == "__main__":
    sys.exit(main())
