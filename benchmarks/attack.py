"""Are refusals cheap? How long do clients that do nothing wrong wait while others attack the server?

    python benchmarks/attack.py --json benchmarks/figures/NAME.json
    python benchmarks/attack.py --load bombs,garbage --seconds 30 --server 'python server.py {port}'

For each load a server is started, 200 clients send messages at fixed times, first in quiet and then under the load, and
compare every byte that comes back. The server has a CPU of its own; the clients, live.c, and the load, attack.c, share
another, where the load has only what the clients leave. To reach: their p99 is at most a fifth more than in quiet, or
below 20 ms. Exit status: 0 if that holds for each load; 1 if not, if a byte was wrong, a client was lost or a load did
not take place. README.md, beside this file, says more.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import compare  # noqa: E402 -- found only by the line above

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

RATIO = 1.2
LIMIT_MS = 20.0
MIX_LIMIT_MS = 250.0
MEMORY_LIMIT_KB = 256 * 1024
LOG_LINES_LIMIT = 10.0
"""Per second; as the limit of memory, which is what an attack adds, it holds for every load."""

REACHED = 0.9
"""The part of its rate without which a load did not take place."""

SETTLE_SECONDS = 1.5
"""From the begin of a load to that of measuring: by then connections that are held for a second end, too."""

SPARE_SECONDS = 30.0
PATIENCE_SECONDS = 20.0
"""For a load to take place on a busy machine, where nothing is asked of rates."""


# ---- what is sent ----


def request(path: str = "/", credentials: str = "Anna:swordfish", extensions: str = "") -> bytes:
    """Return the head of an opening handshake with the key of RFC 6455 §1.3 and credentials for HTTP Basic."""
    encoded = base64.b64encode(credentials.encode()).decode()
    extra = f"Sec-WebSocket-Extensions: {extensions}\r\n" if extensions else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Basic {encoded}\r\n{extra}\r\n"
    ).encode()


def frame(first: int, payload: bytes = b"") -> bytes:
    """Return a masked frame (RFC 6455 §5.2) of up to 125 bytes, or of 64 KiB and more; the key is zero."""
    length = len(payload)
    extended = b"" if length <= 125 else length.to_bytes(8, "big")
    return bytes((first, 0x80 | (127 if extended else length))) + extended + bytes(4) + payload


@cache
def bomb() -> bytes:
    """Return a compressed frame of almost 1 MiB, which max_size lets pass, with a thousand times as many zeros."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    first, then = (deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    payload = first + then * ((1_040_000 - len(first)) // len(then))
    return frame(0xC1, payload.removesuffix(b"\0\0\xff\xff"))


def slow_head() -> bytes:
    """Return a head that is too long for its time: each byte of it takes 100 ms."""
    return request().replace(b"\r\n\r\n", b"\r\nCookie: " + b"x" * 2000)


# ---- the loads ----


@dataclass(frozen=True)
class Load:
    """One thing that attackers do; fields are the options of attack.c."""

    title: str
    rate: float | None = None
    connections: int | None = None
    hold: float | None = None
    first: Callable[[], bytes] | None = None
    drip: float | None = None
    then: Callable[[], bytes] | None = None
    again: int | None = None
    deaf: bool = False
    reset: bool = False
    answer: int | None = None
    answers_late: bool = False
    unit: int = 0
    """The bytes of each of the frames that a flooder sends."""

    def scaled(self, scale: float) -> dict[str, float]:
        """Return the option that says how much there is of it, and its value."""
        if self.rate is not None:
            return {"rate": self.rate * scale}
        return {"connections": max(1, round((self.connections or 0) * scale))}

    def arguments(self, name: str, scale: float, directory: Path) -> list[str]:
        """Write what is sent to files, and return the options for attack.c."""
        options: dict[str, Any] = {"name": name, **self.scaled(scale), "hold": self.hold}
        for part, make in {"first": self.first, "then": self.then}.items():
            if make is not None:
                options[part] = directory / f"{name}.{part}"
                options[part].write_bytes(make())
        options |= {"drip": self.drip, "again": self.again, "answer": self.answer}
        flags = [f"--{flag}" for flag in ("deaf", "reset") if getattr(self, flag)]
        return [f"--{key}={value}" for key, value in options.items() if value is not None] + flags


def _fragments() -> bytes:
    return frame(0x01) + frame(0x00) * 10_000


def _pings() -> bytes:
    return frame(0x89) * 10_000


LOADS = {
    "silent": Load("1,000 connections per second that send nothing", rate=1000, hold=1),
    "half-head": Load("1,000 connections per second with half a head", rate=1000, hold=1, first=lambda: request()[:60]),
    "garbage": Load(
        "1,000 connections per second with garbage",
        rate=1000,
        hold=1,
        first=lambda: random.Random(6455).randbytes(512),
        answer=400,
    ),
    "wrong-path": Load(
        "1,000 connections per second with a wrong path",
        rate=1000,
        hold=1,
        first=lambda: request("/wp-login.php"),
        answer=404,
    ),
    "slow-handshakes": Load(
        "2,000 connections that send a byte of a head each 100 ms",
        connections=2000,
        first=slow_head,
        drip=0.1,
        answer=408,
        answers_late=True,
    ),
    "bombs": Load(
        "50 compressed messages of 1 MiB per second that would be 1 GiB",
        rate=50,
        hold=5,
        first=lambda: request(extensions="permessage-deflate"),
        then=bomb,
        answer=1009,
    ),
    "ping-flood": Load(
        "20 connections with empty pings that read the pongs",
        connections=20,
        first=request,
        then=_pings,
        again=0,
        unit=6,
        answer=1008,
        answers_late=True,
    ),
    "ping-flood-deaf": Load(
        "20 connections with empty pings that read nothing",
        connections=20,
        first=request,
        then=_pings,
        again=0,
        unit=6,
        deaf=True,
    ),
    "fragment-flood": Load(
        "20 connections with empty fragments, again and again",
        connections=20,
        first=request,
        then=_fragments,
        again=6,
        unit=6,
        answer=1008,
    ),
    "auth-guesses": Load(
        "200 wrong passwords per second", rate=200, hold=1, first=lambda: request(credentials="Anna:guess"), answer=401
    ),
    "rst": Load(
        "500 connections per second that are reset within a frame",
        rate=500,
        hold=5,
        first=request,
        then=lambda: frame(0x82, bytes(100))[:50],
        reset=True,
    ),
}

HALF_OPEN = Load("1,000 open connections of which nothing is heard", connections=1000, first=request, deaf=True)

MIX = {
    "slow-handshakes": LOADS["slow-handshakes"],
    "garbage": LOADS["garbage"],
    "bombs": LOADS["bombs"],
    "ping-flood": LOADS["ping-flood"],
    "fragment-flood": LOADS["fragment-flood"],
    "half-open": HALF_OPEN,
    "rst": LOADS["rst"],
    "auth-guesses": LOADS["auth-guesses"],
}
"""What ``all`` is."""

MIX_SCALES = {"garbage": 0.5}
TITLES = {name: load.title for name, load in LOADS.items()} | {"all": f"at once: {', '.join(MIX)}"}


def parts_of(name: str) -> dict[str, tuple[Load, float]]:
    """Return the loads that a name stands for, and the scale of each."""
    if name == "all":
        return {part: (load, MIX_SCALES.get(part, 1.0)) for part, load in MIX.items()}
    return {name: (LOADS[name], 1.0)}


# ---- running ----


@dataclass(frozen=True)
class Settings:
    """What the command line says about every run; ``programs`` is where live and attack were compiled."""

    server: str
    seconds: float
    clients: int
    rate: float
    scale: float
    untimed: bool
    server_cpu: int
    load_cpu: int
    programs: Path = field(default=Path())


def compile_programs(directory: Path, names: Iterable[str] = ("live", "attack")) -> None:
    """Compile live.c and attack.c, or one of them, with the C compiler there is."""
    compiler = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if compiler is None:
        sys.exit("attack.py: needs a C compiler")
    for name in names:
        command = [compiler, *compare.COMPILE, str(HERE / f"{name}.c"), "-o", str(directory / name)]
        subprocess.run(command, check=True)


class Live:
    """The clients that do nothing wrong, open within the ``with`` block."""

    def __init__(self, port: int, settings: Settings) -> None:
        head = settings.programs / "request"
        head.write_bytes(request())
        options = (f"--port={port}", f"--request={head}", f"--clients={settings.clients}", f"--rate={settings.rate}")
        with compare.pinned(settings.load_cpu):
            self.process = subprocess.Popen(
                [settings.programs / "live", *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        self.well = True

    def __enter__(self) -> Self:
        self._heard()  # once all are open
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.process.kill()
        self.said = self.process.communicate(timeout=SPARE_SECONDS)[1]
        self.well = self.well and self.process.returncode == 0

    def measure(self, seconds: float) -> dict[str, Any]:
        """Return the figures of messages that are sent from now on, for so many seconds; nothing after a failure."""
        self._say("b")
        time.sleep(seconds)
        self._say("e")
        return self._heard()

    def _say(self, word: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(word)
            self.process.stdin.flush()

    def _heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.well = self.well and bool(line)
        heard: dict[str, Any] = json.loads(line or "{}")
        return heard


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process: fields 14 and 15 of proc(5)'s stat."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waited_seconds(pid: int) -> float:
    """Return how long the first thread of a process was ready and had no CPU: somebody else had it."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="utf-8").split()[1]) / 1e9


def memory_kb(pid: int, which: str) -> int:
    """Return what proc(5) says of memory in a process's status: VmRSS is what it has now, VmHWM what it had at most."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{which}:")), 0)


def measured(live: Live, pid: int, seconds: float) -> dict[str, Any]:
    """Measure once, and how busy the server is meanwhile."""
    before, waited, begun = cpu_seconds(pid), waited_seconds(pid), time.monotonic()
    figures = live.measure(seconds)
    share = 100 / (time.monotonic() - begun)
    return {
        **figures,
        "server_cpu_percent": round((cpu_seconds(pid) - before) * share, 1),
        "server_waited_percent": round((waited_seconds(pid) - waited) * share, 1),
    }


def start_attack(name: str, port: int, seconds: float, settings: Settings) -> subprocess.Popen[str]:
    """Start a load. The clients go first on their CPU: else they would wait for the load, and not for the server.

    On a busy machine the CPU may never be idle, and so the load is a process like others where nothing is timed.
    """
    options = [
        option
        for part, (load, scale) in parts_of(name).items()
        for option in load.arguments(part, scale * settings.scale, settings.programs)
    ]
    if settings.untimed:
        options.insert(0, f"--patience={PATIENCE_SECONDS}")
    command = [str(settings.programs / "attack"), f"--port={port}", f"--seconds={seconds}", *options]
    with compare.pinned(settings.load_cpu):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not settings.untimed:
        os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
    return process


def measure_both(live: Live, pid: int, name: str, port: int, settings: Settings) -> compare.Run:
    """Measure a server in quiet, and then under a load if clients are left."""
    settle = min(SETTLE_SECONDS, settings.seconds)
    time.sleep(settle / 3)
    memory = memory_kb(pid, "VmRSS")
    quiet = measured(live, pid, settings.seconds)
    if not quiet.get("open"):
        return {"quiet": quiet}  # clients and servers don't survive their faults, and loads wait for servers
    attack = start_attack(name, port, settle + settings.seconds, settings)
    time.sleep(settle)
    attacked = measured(live, pid, settings.seconds)
    out, error = attack.communicate(timeout=settings.seconds + SPARE_SECONDS)
    run = {"quiet": quiet, "attacked": attacked, "attack": json.loads(out or "{}")}
    if error or attack.returncode != 0:
        run["error"] = error.strip() or f"attack ended with status {attack.returncode}"
    return run | {"memory_kb": memory, "memory_added_kb": max(0, memory_kb(pid, "VmHWM") - memory)}


def run_load(name: str, settings: Settings) -> compare.Run:
    """Attack a fresh server with a load, and return the figures; with the key "error" if anything was amiss."""
    run: compare.Run = {}
    with tempfile.TemporaryFile() as log, compare.started(settings.server, settings.server_cpu, log) as (server, port):
        with Live(port, settings) as live:
            if live.well:
                run = measure_both(live, server.pid, name, port, settings)
        error = run.get("error", "") + live.said
        if server.poll() is not None:
            error += f"the server ended with status {server.returncode}"
        log.seek(0)
        said = log.read().decode(errors="replace")
        run["log_lines"] = said.count("\n")
        if error or not live.well:
            run["error"] = f"{error.strip() or 'a client ended too early'}\n{said[-1000:]}".strip()
        return run


# ---- judging ----


def faults(name: str, run: compare.Run, settings: Settings) -> list[str]:
    """Return what is not as it has to be."""
    if "error" in run:
        return [run["error"]]
    found = [
        fault
        for part, (load, scale) in parts_of(name).items()
        for fault in what_did_not_happen(part, load, scale, run["attack"], settings)
    ]
    p99, quiet = run["attacked"]["latency_ms"]["p99"], run["quiet"]["latency_ms"]["p99"]
    limit = MIX_LIMIT_MS if name == "all" else LIMIT_MS
    if not settings.untimed and p99 > max(limit, RATIO * quiet):
        found.append(f"p99 is {p99:.1f} ms, more than {limit:.0f} ms")
    if run["memory_added_kb"] > MEMORY_LIMIT_KB:
        found.append(f"{run['memory_added_kb'] // 1024} MiB of memory were added")
    if run["log_lines"] > LOG_LINES_LIMIT * (2 * settings.seconds + SETTLE_SECONDS):
        found.append(f"{run['log_lines']} lines were logged")
    return found


def what_did_not_happen(part: str, load: Load, scale: float, attack: dict[str, Any], settings: Settings) -> list[str]:
    """Return in what a load was less than it should have been: such a figure says nothing."""
    what, found = attack["loads"][part], []
    wanted = load.scaled(scale * settings.scale)
    count = wanted["rate"] * attack["seconds"] if "rate" in wanted else wanted["connections"]
    if what["connections"] < (1 if settings.untimed else REACHED * count):
        found.append(f"{part}: only {what['connections']} connections of {count:.0f}")
    if what["answered_otherwise"]:
        found.append(f"{part}: {what['answered_otherwise']} had the answer {what['other_answer']}")
    if load.answer and not load.answers_late and not what["answered"] + what["ended"]:
        found.append(f"{part}: nobody was refused")
    if load.then and not what["sent_bytes"]:
        found.append(f"{part}: no WebSocket was opened")
    return found


# ---- printing ----


def print_run(name: str, run: compare.Run, found: list[str]) -> None:
    """Print the figures of both measurements, what the load was, and the verdict."""
    print(f"{name}: {TITLES[name]}")
    if run.get("quiet", {}).get("count") and run.get("attacked", {}).get("count"):
        titles = ("p50 ms", "p99 ms", "p99.9 ms", "max ms", "own p99", "messages", "server %", "waited %")
        print(f"  {'':12}" + "".join(f"{title:>11}" for title in titles))
        for row in ("quiet", "attacked"):
            figures = run[row]
            numbers = [*figures["latency_ms"].values(), figures["own_ms"]["p99"]]
            cells = [f"{value:.2f}" for value in numbers]
            cells += [f"{figures['count']:,}", f"{figures['server_cpu_percent']:.0f}"]
            cells.append(f"{figures['server_waited_percent']:.0f}")
            print(f"  {row:12}" + "".join(f"{cell:>11}" for cell in cells))
        print(f"  p99 times {run['attacked']['latency_ms']['p99'] / run['quiet']['latency_ms']['p99']:.2f}; ", end="")
        print(f"memory +{run['memory_added_kb'] / 1024:.1f} MiB; {run['log_lines']} lines logged; ", end="")
        print(f"the load took {run['attack']['cpu_percent']:.0f} % of a CPU")
        for part, (load, _) in parts_of(name).items():
            print(f"  {part}: {described(load, run['attack']['loads'][part], run['attack']['seconds'])}")
    print(f"  {'; '.join(found) or 'ok'}\n", flush=True)


def described(load: Load, what: dict[str, Any], seconds: float) -> str:
    """Return what a load has reached."""
    words = [f"{what['connections']:,} connections"]
    if load.rate is not None:
        words.append(f"{what['per_second']:,.0f}/s")
    words.append(f"{what['open']:,} open at the end")
    if load.unit:
        words.append(f"{what['sent_bytes'] / load.unit / seconds:,.0f} frames/s")
    if load.answer:
        words.append(f"{what['answered']:,} answered {load.answer}")
    if what["ended"]:
        words.append(f"{what['ended']:,} ended without an answer")
    return ", ".join(words)


# ---- the command line ----


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    description, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = f"{shlex.quote(sys.executable)} {shlex.quote(str(HERE / 'attacked.py'))} {{port}}"
    parser.add_argument("--load", metavar="NAMES", default=",".join(TITLES), help="some of: %(default)s")
    parser.add_argument(
        "--server", metavar="COMMAND", default=default, help="instead of attacked.py; with {port} in it"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of both measurements (default: %(default)g)")
    parser.add_argument("--clients", type=int, default=200, help="that do nothing wrong (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=20.0, help="messages of each per second (default: %(default)g)")
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1, to try things out: a part of each load")
    parser.add_argument("--untimed", action="store_true", help="ask nothing of latencies and rates, on a busy machine")
    parser.add_argument("--cpus", default="0,1", help="of the server and of the others (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    arguments = parser.parse_args()
    arguments.load = arguments.load.split(",")
    if unknown := set(arguments.load) - set(TITLES):
        parser.error(f"no such load: {', '.join(sorted(unknown))}")
    if "{port}" not in arguments.server:
        parser.error("--server needs {port}, where the port is put")
    return arguments


def main() -> int:
    """Attack, print and store; return the exit status."""
    arguments = parse_arguments()
    server_cpu, load_cpu = map(int, arguments.cpus.split(","))
    compare.allow_descriptors()
    well = True
    with tempfile.TemporaryDirectory() as scratch:
        compile_programs(Path(scratch))
        settings = Settings(
            server=arguments.server,
            seconds=arguments.seconds,
            clients=arguments.clients,
            rate=arguments.rate,
            scale=arguments.scale,
            untimed=arguments.untimed,
            server_cpu=server_cpu,
            load_cpu=load_cpu,
            programs=Path(scratch),
        )
        report = conditions(settings)
        for name in arguments.load:
            run = run_load(name, settings)
            found = faults(name, run, settings)
            print_run(name, run, found)
            well = well and not found
            report["loads"][name] = {"title": TITLES[name], **run, "faults": found}
            if arguments.json:
                arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if well else 1


def conditions(settings: Settings) -> dict[str, Any]:
    """Return when, where and how it was measured, as compare.py stores it."""
    as_compared = compare.Settings(1, settings.seconds, None, settings.server_cpu, settings.load_cpu)
    stored = compare.conditions(as_compared)
    for key in ("rounds", "most_connections", "scenarios"):
        del stored[key]
    return stored | {
        "server": compare.without_places(settings.server),
        "versions": compare.versions(shlex.split(settings.server)[0]),
        "clients": settings.clients,
        "rate": settings.rate,
        "scale": settings.scale,
        "loads": {},
    }


if __name__ == "__main__":
    sys.exit(main())
