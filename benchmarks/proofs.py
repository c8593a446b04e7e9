"""How do the proofs start servers, hear of them, print what they found, and judge?

A proof is a program that asks whether a server keeps a promise while something goes wrong around it. Each has --part,
--scale, --untimed, --server and --json, and the exit status 1 with any fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import attack
import compare

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator

HERE = Path(__file__).resolve().parent
START_SECONDS = 20.0
OPEN_SECONDS = 30.0
END_SECONDS = 60.0
"""For a server to do what it was told: it only waits that long for one that does not."""

POLL_SECONDS = 0.02
TOLD = 10
"""Faults: more of them say nothing more."""


class Served:
    """A server that runs, and what it has written.

    Args:
        process: its process.
        port: where it listens.
        log: what it writes to.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
        self.process = process
        self.port = port
        self._log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def lines(self) -> list[str]:
        """Return the whole lines that it has written until now, without moving the place where it writes."""
        log = self._log.fileno()
        return os.pread(log, os.fstat(log).st_size, 0).decode(errors="replace").split("\n")[:-1]

    def told(self, key: str, seconds: float = END_SECONDS) -> Any:
        """Wait until it has told something, as a JSON object with this key, and return that; None if it does not."""
        end = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            for line in reversed(self.lines()):
                with contextlib.suppress(ValueError):
                    said = json.loads(line)
                    if isinstance(said, dict) and key in said:
                        return said[key]
            if ended or time.monotonic() > end:
                return None
            time.sleep(POLL_SECONDS)

    def complaints(self) -> list[str]:
        """Return the lines that are for people: warnings and errors."""
        return [line for line in self.lines() if not line.startswith("{")]

    def stop(self) -> list[str]:
        """Stop it by SIGTERM, and return what is amiss with how it ends."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> list[str]:
        """Wait for its end, and return what is amiss with that."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.process.wait(END_SECONDS)
            said = "\n".join(self.complaints()[-20:])
            return [f"the server ended with status {status}\n{said}".strip()] if status else []
        return [f"the server has not ended within {END_SECONDS:.0f} s"]


@contextlib.contextmanager
def serving(command: str, cpu: int, pem: Path = HERE) -> Iterator[Served]:
    """Start a server for this block, on a CPU of its own."""
    with tempfile.TemporaryFile() as log, compare.started(command, cpu, log, pem) as (process, port):
        yield Served(process, port, log)


def command(arguments: argparse.Namespace, script: str, *words: object) -> str:
    """Return the command of a script in servers/, or of what stands in for it; both are told the same words."""
    own = shlex.join([sys.executable, str(HERE / "servers" / script)]) + " {port}"
    return " ".join([arguments.server or own, *map(str, words)])


class Watch:
    """How busy a server is within a ``with`` block, and how long server and clients had to wait for a CPU.

    Args:
        pid: of the server.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.figures: dict[str, float] = {}

    def _now(self) -> tuple[float, float, float, float, int]:
        waited = (attack.waited_seconds(pid) for pid in (self._pid, os.getpid()))
        return (time.monotonic(), attack.cpu_seconds(self._pid), *waited, sleeps(self._pid))

    def __enter__(self) -> Self:
        self._before = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # it has ended
            passed, *spent, slept = (now - before for now, before in zip(self._now(), self._before, strict=True))
            names = ("server_cpu_percent", "server_waited_percent", "clients_waited_percent")
            self.figures = {name: round(100 * part / passed, 1) for name, part in zip(names, spent, strict=True)}
            self.figures["server_slept"] = slept


def sleeps(pid: int) -> int:
    """Return how often the first thread of a process has waited for something, by proc(5)'s status."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


# ---- clients ----


def connected(
    port: int, *, path: str = "/", receive_buffer: int = 0, context: ssl.SSLContext | None = None
) -> socket.socket:
    """Return a socket after the opening handshake, of which nothing but the head was read.

    Raises:
        OSError: the server does not answer, or otherwise than with 101.
    """
    sock = socket.socket()
    try:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(OPEN_SECONDS)
        sock.connect(("127.0.0.1", port))
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname="localhost")
        sock.sendall(attack.request(path))
        _read_head(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _read_head(sock: socket.socket) -> None:
    """Read the answer to a request by the byte: what follows belongs to somebody else."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and (byte := sock.recv(1)):
        head += byte
    if not head.startswith(b"HTTP/1.1 101 "):
        raise ConnectionError(f"no 101 but {head[:50]!r}")


def live_settings(arguments: argparse.Namespace, clients: int, directory: Path) -> attack.Settings:
    """Return how attack.py's clients are to be started, which compare every byte; they were compiled there."""
    return attack.Settings(
        server="",
        seconds=0,
        clients=clients,
        rate=20.0,
        scale=1.0,
        untimed=arguments.untimed,
        server_cpu=arguments.server_cpu,
        load_cpu=arguments.load_cpu,
        programs=directory,
    )


# ---- the command line ----


def arguments_for(
    description: str, server: str, parts: Iterable[str], seconds: float | None = None
) -> argparse.ArgumentParser:
    """Return a parser for what all proofs are told."""
    first, _, rest = description.partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", metavar="COMMAND", help=f"instead of {server}; with {{port}} in it")
    parser.add_argument("--part", metavar="NAMES", default=",".join(parts), help="some of: %(default)s")
    if seconds is not None:
        parser.add_argument("--seconds", type=float, default=seconds, help="of each part (default: %(default)g)")
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1, to try things out: a part of the load")
    parser.add_argument("--untimed", action="store_true", help="ask nothing of latencies, on a busy machine")
    parser.add_argument("--cpus", default="0,1", help="of the server and of the others (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    return parser


def read_arguments(parser: argparse.ArgumentParser, parts: Iterable[str]) -> argparse.Namespace:
    """Read the command line, and allow as many descriptors as there may be."""
    arguments = parser.parse_args()
    arguments.part = arguments.part.split(",")
    if unknown := set(arguments.part) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if arguments.server is not None and "{port}" not in arguments.server:
        parser.error("--server needs {port}, where the port is put")
    if not arguments.scale > 0:
        parser.error("--scale is a positive number")
    arguments.server_cpu, arguments.load_cpu = map(int, arguments.cpus.split(","))
    compare.allow_descriptors()
    return arguments


def scaled(count: float, arguments: argparse.Namespace) -> int:
    """Return how many of something there are on this scale: at least one."""
    return max(1, round(count * arguments.scale))


def conclude(arguments: argparse.Namespace, parts: dict[str, Callable[[], dict[str, Any]]]) -> int:
    """Run the parts of a proof, print and store the figures of each, and return the exit status.

    What a part returns has "faults", which are told apart from its figures.
    """
    report = conditions(arguments)
    well = True
    with compare.pinned(arguments.load_cpu):
        for name, part in parts.items():
            figures = part()
            well = well and not figures["faults"]
            print_part(name, figures)
            report["parts"][name] = figures
            if arguments.json:
                text = json.dumps(report, indent=1, ensure_ascii=False)
                arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0 if well else 1


def print_part(name: str, figures: dict[str, Any]) -> None:
    """Print the figures of a part, and the verdict."""
    print(f"{name}:")
    for key, value in figures.items():
        if key != "faults":
            print(f"  {key.replace('_', ' ')}: {described(value)}")
    faults = figures["faults"]
    for fault in faults[:TOLD]:
        print(f"  FAULT: {fault}")
    print(f"  faults: {len(faults) or 'none'}", flush=True)


def described(value: Any) -> str:
    """Return a figure, or several of them, for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {described(part)}" for key, part in value.items()) or "none"
    return f"{value:,.2f}".removesuffix(".00") if isinstance(value, float | int) else str(value)


def conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return when, where and how it was measured, as compare.py stores it."""
    settings = compare.Settings(1, None, None, arguments.server_cpu, arguments.load_cpu)
    stored = compare.conditions(settings)
    for key in ("rounds", "most_connections", "scenarios"):
        del stored[key]
    python = shlex.split(arguments.server)[0] if arguments.server else sys.executable
    return stored | {"versions": compare.versions(python), "scale": arguments.scale, "parts": {}}


def percentiles(values: list[float], unit: float = 1000.0) -> dict[str, float]:
    """Return what is not exceeded by so many per cent of some seconds, in milliseconds unless another unit is given."""
    ordered = sorted(values) or [0.0]
    ranks = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        name: round(unit * ordered[min(len(ordered) - 1, int(rank * len(ordered)))], 3) for name, rank in ranks.items()
    }
