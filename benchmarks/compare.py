"""Which server spends less CPU and memory on the same WebSocket traffic?

    python benchmarks/compare.py --scenario d1,d16 NAME=COMMAND NAME=COMMAND ...
    python benchmarks/compare.py --all --peers PEERS/bin/python --json benchmarks/figures/NAME.json

COMMAND starts a server that echoes on 127.0.0.1:{port}, over TLS with the certificate and the key in {pem}. Servers run
in turn, A B A B, on a CPU of their own; load.c is compiled here and runs on another. Exit status: 0 if each run was
well; 1 if a byte was wrong, a connection failed or a server ended; such a run gives no figure. README.md, beside this
file, says what the figures mean.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import random
import re
import resource
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
COMPILE = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
# Options of load.c that a library is needed for: its header, its package in Debian, and what the compiler is told.
LIBRARIES = {
    "deflate": ("zlib.h", "zlib1g-dev", ["-DWITH_ZLIB", "-lz"]),
    "tls": ("openssl/ssl.h", "libssl-dev", ["-DWITH_TLS", "-lssl", "-lcrypto"]),
}
PACKAGES = ("wspy", "picows", "uvloop", "aiohttp", "websockets", "socketify", "cffi")
START_SECONDS = 20.0
SPARE_SECONDS = 150.0  # for load.c to open connections, which it gives up after 120
# Below the ports that Linux gives to clients: none of the load client's can be in a server's way.
PORTS = range(20_000, 32_000)


# ---- what is measured ----


@dataclass(frozen=True)
class Scenario:
    """What the load client does, and which of its figures is compared; ``options`` are those of load.c."""

    title: str
    options: dict[str, str | int]
    figure: str = "server_cpu_us"
    unit: str = "CPU µs per message"
    seconds: float = 3.0
    settle: float = 1.0

    def arguments(self, seconds: float | None, most_connections: int | None) -> list[str]:
        """Return the command line for load.c; with fewer connections and less time, to try things out."""
        options = {**self.options, "seconds": seconds or self.seconds, "settle": min(self.settle, seconds or 60)}
        if most_connections is not None and int(self.options["connections"]) > most_connections:
            options["connections"] = most_connections
            if "base" in options:
                options["base"] = most_connections // 3
        return [f"--{name}={value}" if value != "" else f"--{name}" for name, value in options.items()]


SCENARIOS = {
    "c1": Scenario("1 connection, 32 bytes, 1 in flight", {"connections": 1}),
    "c10": Scenario("10 connections, 32 bytes, 1 in flight", {"connections": 10}),
    "d1": Scenario("100 connections, 32 bytes, 1 in flight", {"connections": 100}),
    "d16": Scenario("100 connections, 32 bytes, 16 in flight", {"connections": 100, "depth": 16}),
    "text": Scenario("100 connections, 32 bytes of text, 16 in flight", {"connections": 100, "depth": 16, "text": ""}),
    "64k": Scenario("10 connections, 64 KiB, 1 in flight", {"connections": 10, "size": 65_536}),
    "many": Scenario("5,000 connections, 32 bytes, 1 in flight", {"connections": 5_000}),
    "frag": Scenario(
        "100 connections, 4 KiB in 8 fragments, 1 in flight", {"connections": 100, "size": 4_096, "fragments": 8}
    ),
    "handshake": Scenario(
        "opening handshakes, 50 at a time", {"mode": "connect", "connections": 50}, unit="CPU µs per connection"
    ),
    "broadcast": Scenario(
        "a text of 100 bytes to 2,000 clients, 10 times a second",
        {"mode": "receive", "connections": 2_000, "size": 100},
        unit="CPU µs per delivery",
    ),
    "slope": Scenario(
        "memory of an idle connection, from 5,000 to 15,000",
        {"mode": "hold", "base": 5_000, "connections": 15_000},
        figure="bytes_per_connection",
        unit="bytes per connection",
        settle=3.0,
    ),
    "idle15k": Scenario(
        "15,000 idle connections with keepalive each 20 s",
        {"mode": "receive", "connections": 15_000},
        figure="server_cpu_percent",
        unit="% of a CPU",
        seconds=30.0,
    ),
    "deflate": Scenario(
        "100 connections, 1 KiB of text, compressed, 1 in flight",
        {"connections": 100, "size": 1_024, "text": "", "deflate": ""},
    ),
    "deflate16k": Scenario(
        "10 connections, 16 KiB of text, compressed, 1 in flight",
        {"connections": 10, "size": 16_384, "text": "", "deflate": ""},
    ),
    "idle-deflate": Scenario(
        "memory of an idle connection that may compress, from 1,000 to 5,000",
        {"mode": "hold", "base": 1_000, "connections": 5_000, "deflate": ""},
        figure="bytes_per_connection",
        unit="bytes per connection",
        settle=3.0,
    ),
    "tls": Scenario("100 connections, 32 bytes over TLS, 1 in flight", {"connections": 100, "tls": ""}),
    "tls16": Scenario("100 connections, 32 bytes over TLS, 16 in flight", {"connections": 100, "depth": 16, "tls": ""}),
    "tls-64k": Scenario("10 connections, 64 KiB over TLS, 1 in flight", {"connections": 10, "size": 65_536, "tls": ""}),
    "tls-handshake": Scenario(
        "handshakes of TLS and WebSocket, 50 at a time",
        {"mode": "connect", "connections": 50, "tls": ""},
        unit="CPU µs per connection",
    ),
    "idle-tls": Scenario(
        "memory of an idle connection over TLS, from 1,000 to 5,000",
        {"mode": "hold", "base": 1_000, "connections": 5_000, "tls": ""},
        figure="bytes_per_connection",
        unit="bytes per connection",
        settle=3.0,
    ),
}

# The line-up of --all: a script in servers/ and its arguments. The package it needs is the first word of its name.
ECHO = {
    "wspy": "wspy_echo.py {port}",
    "picows": "picows_echo.py {port}",
    "picows-asyncio": "picows_echo.py {port} asyncio",
    "aiohttp": "aiohttp_echo.py {port}",
    "aiohttp-uvloop": "aiohttp_echo.py {port} uvloop",
    "websockets": "websockets_echo.py {port}",
    "socketify": "socketify_echo.py {port}",
}
# Handlers in threads, where nobody would mind as many threads as there are connections.
THREADS = {"wspy-threads": "wspy_threads_echo.py {port}", "websockets-threads": "websockets_threads_echo.py {port}"}
DEFLATE = {
    "wspy": "wspy_deflate_echo.py {port}",
    "picows": "picows_deflate_echo.py {port}",
    "aiohttp": "aiohttp_echo.py {port} deflate",
    "aiohttp-uvloop": "aiohttp_echo.py {port} deflate uvloop",
    "websockets": "websockets_echo.py {port} deflate",
}
TLS = {
    "wspy": "wspy_tls_echo.py {port} {pem}",
    "picows": "picows_echo.py {port} tls={pem}",
    "picows-asyncio": "picows_echo.py {port} asyncio tls={pem}",
    "websockets": "websockets_echo.py {port} tls={pem}",
}
LINE_UPS = dict.fromkeys(SCENARIOS, ECHO) | {
    **dict.fromkeys(("c1", "c10", "d1", "d16", "text", "64k", "handshake"), ECHO | THREADS),
    "broadcast": {"wspy": "wspy_broadcast.py {port}", "websockets": "websockets_broadcast.py {port}"},
    "slope": {"wspy": ECHO["wspy"], "wspy-drop-request": "wspy_echo.py {port} drop-request"} | ECHO,
    # The others have no keepalive, unless they are told to.
    "idle15k": {"wspy": ECHO["wspy"], "websockets": "websockets_echo.py {port} keepalive"},
    **dict.fromkeys(("deflate", "deflate16k", "idle-deflate"), DEFLATE),
    **dict.fromkeys(("tls", "tls16", "tls-64k", "tls-handshake", "idle-tls"), TLS),
}


# ---- running ----


@dataclass(frozen=True)
class Settings:
    """What the command line says about every run; ``load`` is the compiled client, ``pem`` what servers show it."""

    rounds: int
    seconds: float | None
    most_connections: int | None
    server_cpu: int
    load_cpu: int
    load: Path = field(default=Path())
    pem: Path = field(default=Path())


Run = dict[str, Any]


def compile_load(directory: Path, scenarios: list[str]) -> Path:
    """Compile load.c with the C compiler there is, as it is needed for some scenarios, and return the program."""
    compiler = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if compiler is None:
        sys.exit("compare.py: needs a C compiler")
    output = directory / "load"
    command = [compiler, *COMPILE, str(HERE / "load.c"), "-o", str(output)]
    for option, (header, package, words) in LIBRARIES.items():
        users = [name for name in scenarios if option in SCENARIOS[name].options]
        if users and not has_header(compiler, header):
            sys.exit(
                f"compare.py: {', '.join(users)}: {header} is missing, which is in the package {package} of Debian"
            )
        command += words if users else []
    subprocess.run(command, check=True)
    return output


def has_header(compiler: str, header: str) -> bool:
    """Return whether a program can be compiled with a library."""
    command = [compiler, *COMPILE, "-E", "-include", header, "-x", "c", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def make_certificate(directory: Path) -> Path:
    """Make a certificate and its key, and return the file that has both: RSA with 2,048 bits, as most servers have."""
    pem = directory / "server.pem"
    words = ["req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=localhost", "-days", "2"]
    command = ["openssl", *words, "-keyout", str(pem), "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True)
    return pem


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """Start the processes of this block on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """Return a port that nobody has."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            return port
    sys.exit("compare.py: no free port")


def wait_until_listening(server: subprocess.Popen[bytes], port: int) -> None:
    """Return once the server accepts, has ended, or has had time enough."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return


@contextlib.contextmanager
def started(command: str, cpu: int, log: IO[bytes], pem: Path = HERE) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a server for this block; yield it and its port."""
    port = free_port()
    words = shlex.split(command.replace("{port}", str(port)).replace("{pem}", str(pem)))
    with pinned(cpu):
        server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until_listening(server, port)
        yield server, port
    finally:
        server.kill()
        server.wait()


def run_once(command: str, scenario: Scenario, settings: Settings) -> Run:
    """Start a server, measure it once, and return load.c's object; with the key "error" if anything was amiss."""
    arguments = scenario.arguments(settings.seconds, settings.most_connections)
    cpu, pem = settings.server_cpu, settings.pem
    with tempfile.TemporaryFile() as log, started(command, cpu, log, pem) as (server, port):
        client = [str(settings.load), f"--port={port}", f"--pid={server.pid}", *arguments]
        limit = SPARE_SECONDS + 3 * (settings.seconds or scenario.seconds)
        with pinned(settings.load_cpu):
            process = subprocess.Popen(client, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += f"not done after {limit:.0f} s"
        run: Run = json.loads(out) if out else {}
        if server.poll() is not None:
            err += f"the server ended with status {server.returncode}"
        if process.returncode != 0 or err or scenario.figure not in run:
            log.seek(0)
            said = log.read().decode(errors="replace")[-1000:].strip()
            run["error"] = f"{err.strip() or 'nothing was measured'}\n{said}".strip()
        return run


def figures(runs: list[Run], scenario: Scenario) -> list[float]:
    """Return the figures of the runs that were well."""
    return [run[scenario.figure] for run in runs if "error" not in run]


def compare(scenario: Scenario, servers: dict[str, str], settings: Settings) -> dict[str, list[Run]]:
    """Run the servers in turn, round by round."""
    runs: dict[str, list[Run]] = {name: [] for name in servers}
    for _ in range(settings.rounds):
        for name, command in servers.items():
            run = run_once(command, scenario, settings)
            runs[name].append(run)
            if "error" in run:
                print(f"  {name}: {run['error']}", file=sys.stderr, flush=True)
    return runs


# ---- printing ----


def middle(runs: list[Run], key: str) -> str:
    """Return the median of something that not every mode measures."""
    values = [run[key] for run in runs if "error" not in run and key in run]
    return f"{statistics.median(values):,.0f}" if values else "-"


def print_table(name: str, scenario: Scenario, runs: dict[str, list[Run]]) -> None:
    """Print minima, medians, maxima, and the ratio of each minimum to the first one."""
    print(f"{name}: {scenario.title}; {scenario.unit}")
    titles = ("min", "median", "max", "ratio", "count/s", "server %", "client %", "bytes")
    print(f"  {'':24}" + "".join(f"{title:>11}" for title in titles))
    first = None
    for server, its_runs in runs.items():
        values = figures(its_runs, scenario)
        if not values:
            print(f"  {server:24}     failed")
            continue
        least = min(values)
        first = least if first is None else first
        ratio = f"{least / first:.2f}" if first else "-"
        numbers = "".join(f"{value:>11,.2f}" for value in (least, statistics.median(values), max(values)))
        keys = ("per_second", "server_cpu_percent", "client_cpu_percent", "output_bytes")
        print(f"  {server:24}{numbers}{ratio:>11}" + "".join(f"{middle(its_runs, key):>11}" for key in keys))
    print(flush=True)


# ---- what the figures were measured on ----


def output_of(*command: str | Path) -> str:
    """Return what a program prints, or nothing. It runs here, where nobody can import the checkout by accident."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor() -> str:
    """Return the model's name as lscpu tells it."""
    lines = output_of("lscpu").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model name")), "unknown")


def commit() -> str:
    """Return the commit of this checkout, or nothing where there is none."""
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no", ROOT / "wspy", HERE)
    return output_of("git", "rev-parse", "--short=12", "HEAD") + (" and changes" if changed else "")


VERSIONS = f"""
import importlib, importlib.metadata, importlib.util, json, platform
found = {{"python": platform.python_version()}}
for name in {PACKAGES}:
    if importlib.util.find_spec(name):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = importlib.import_module(name).__version__
print(json.dumps(found))
"""


def versions(interpreter: str) -> dict[str, str]:
    """Return what an interpreter has of the libraries, or nothing if it is none."""
    if "python" not in Path(interpreter).name:
        return {}
    found: dict[str, str] = json.loads(output_of(interpreter, "-c", VERSIONS) or "{}")
    return found


def without_places(command: str) -> str:
    """Return a command that tells nothing of the machine: paths are relative to the repository, or names."""
    words = []
    for word in shlex.split(command):
        path = Path(word)
        inside = path.is_absolute() and path.is_relative_to(ROOT) and not path.name.startswith("python")
        words.append(str(path.relative_to(ROOT)) if inside else path.name if path.is_absolute() else word)
    return " ".join(word if re.fullmatch(r"[\w=]*{\w+}", word) else shlex.quote(word) for word in words)


def conditions(settings: Settings) -> dict[str, Any]:
    """Return when, where and how it was measured."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": processor(),
            "cpus": os.cpu_count(),
            "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
        "commit": commit(),
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "most_connections": settings.most_connections,
        "server_cpu": settings.server_cpu,
        "load_cpu": settings.load_cpu,
        "scenarios": {},
    }


def description(
    scenario: Scenario, servers: dict[str, str], runs: dict[str, list[Run]], settings: Settings
) -> dict[str, Any]:
    """Return all raw figures of a scenario, and what they are figures of."""
    return {
        "title": scenario.title,
        "unit": scenario.unit,
        "figure": scenario.figure,
        "load": shlex.join(scenario.arguments(settings.seconds, settings.most_connections)),
        "servers": {
            name: {
                "command": without_places(command),
                "versions": versions(shlex.split(command)[0]),
                "runs": runs[name],
            }
            for name, command in servers.items()
        },
    }


# ---- the command line ----


def line_up(scenario: str, ours: str, peers: str, only: list[str]) -> dict[str, str]:
    """Return the commands of --all for a scenario, without the peers that are not installed or not asked for."""
    found = {}
    for name, script in LINE_UPS[scenario].items():
        if only and name not in only:
            continue
        package = script.partition("_")[0]
        interpreter = ours if package == "wspy" else peers
        if package in versions(interpreter):
            found[name] = f"{shlex.quote(interpreter)} {shlex.quote(str(HERE / 'servers'))}/{script}"
        else:
            print(f"  {name}: {package} is not installed", file=sys.stderr)
    return found


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    description, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("servers", nargs="*", metavar="NAME=COMMAND")
    parser.add_argument("--all", action="store_true", help="the servers in servers/, instead of NAME=COMMAND")
    parser.add_argument("--python", default=sys.executable, help="with --all: the interpreter that has wspy")
    parser.add_argument("--peers", help="with --all: the interpreter that has the other libraries; default: --python")
    parser.add_argument(
        "--only", metavar="NAMES", default="", help="with --all: some of its servers, such as wspy,picows"
    )
    parser.add_argument("--scenario", default=",".join(SCENARIOS), help="some of: %(default)s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, help="of measuring in each run, instead of what the scenario says")
    parser.add_argument("--connections", type=int, help="at most: to try things out, such figures mean nothing")
    parser.add_argument("--cpus", default="0,1", help="of the servers and of the load client (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="a file for all raw figures")
    arguments = parser.parse_args()
    arguments.scenario = arguments.scenario.split(",")
    arguments.only = [name for name in arguments.only.split(",") if name]
    if unknown := set(arguments.scenario) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    if arguments.all == bool(arguments.servers) or not all("=" in server for server in arguments.servers):
        parser.error("give NAME=COMMAND for each server, or --all")
    return arguments


def allow_descriptors() -> None:
    """Let the servers have as many descriptors as is allowed at all."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """Compare, print and store; return the exit status."""
    arguments = parse_arguments()
    given = dict(server.split("=", 1) for server in arguments.servers)
    server_cpu, load_cpu = map(int, arguments.cpus.split(","))
    allow_descriptors()
    well = True
    with tempfile.TemporaryDirectory() as scratch:
        load = compile_load(Path(scratch), arguments.scenario)
        tls = any("tls" in SCENARIOS[name].options for name in arguments.scenario)
        pem = make_certificate(Path(scratch)) if tls else Path()
        settings = Settings(arguments.rounds, arguments.seconds, arguments.connections, server_cpu, load_cpu, load, pem)
        report = conditions(settings)
        for name in arguments.scenario:
            scenario = SCENARIOS[name]
            servers = given or line_up(name, arguments.python, arguments.peers or arguments.python, arguments.only)
            runs = compare(scenario, servers, settings)
            print_table(name, scenario, runs)
            well = well and not any("error" in run for its_runs in runs.values() for run in its_runs)
            report["scenarios"][name] = description(scenario, servers, runs, settings)
            if arguments.json:  # each time: hours of measuring must not be lost to an interruption
                arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
