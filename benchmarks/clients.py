"""Which blocking client spends less CPU on a round trip?

    python benchmarks/clients.py --peers PEERS/bin/python --json benchmarks/figures/NAME.json

Clients run in turn, A B A B, a fresh process each time, against a fresh wspy.AsyncServer on a CPU of its own; report.py
makes a table of the file. To reach: at most 0.7 of the best other client. Exit status: 0 if each run was well.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import compare  # noqa: E402 -- found only by the line above

CLIENTS = ("wspy", "websocket-client", "websockets")
"""The first one is compared with the others; the names are those of the packages, and of client_load.py."""

FLOOR = "socket"
"""A socket without a library, for --only: what the kernel takes of each figure."""

DEPTHS = {"rt1": 1, "rt16": 16}
SCENARIOS = {
    name: compare.Scenario(
        f"a blocking client, 32 bytes, {depth} in flight",
        {"depth": depth},
        figure="client_cpu_us",
        unit="CPU µs of the client per message",
    )
    for name, depth in DEPTHS.items()
}
SPARE_SECONDS = 30.0

VERSIONS = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def versions(interpreter: str) -> dict[str, str]:
    """Return what an interpreter has of the libraries."""
    found: dict[str, str] = json.loads(compare.output_of(interpreter, "-c", VERSIONS, *CLIENTS) or "{}")
    return found


def line_up(ours: str, peers: str, only: list[str]) -> dict[str, str]:
    """Return the interpreter for each client, without those that are not installed or not asked for."""
    found = {}
    for name in only or CLIENTS:
        interpreter = ours if name in {"wspy", FLOOR} else peers
        if name == FLOOR or name in versions(interpreter):
            found[name] = interpreter
        else:
            print(f"  {name}: not installed", file=sys.stderr)
    return found


def run_once(command: list[str], server: str, seconds: float, settings: compare.Settings) -> compare.Run:
    """Start a server, measure one client once, and return its figures; with the key "error" if anything was amiss."""
    with tempfile.TemporaryFile() as log, compare.started(server, settings.server_cpu, log) as (process, port):
        words = [word.replace("{port}", str(port)) for word in command]
        limit = SPARE_SECONDS + 3 * seconds
        with compare.pinned(settings.load_cpu):
            client = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = client.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            client.kill()
            out, err = client.communicate()
            err += f"not done after {limit:.0f} s"
        if process.poll() is not None:
            err += f"the server ended with status {process.returncode}"
    run: compare.Run = json.loads(out) if out else {}
    if client.returncode != 0 or err or not run:
        run["error"] = err.strip() or "nothing was measured"
    return run


def measure(
    scenario: compare.Scenario, clients: dict[str, str], server: str, settings: compare.Settings
) -> dict[str, Any]:
    """Run the clients in turn, round by round, and return what is stored of each."""
    seconds = settings.seconds or scenario.seconds
    load = [str(HERE / "client_load.py")]
    commands = {
        name: [interpreter, *load, name, "{port}", str(scenario.options["depth"]), str(seconds)]
        for name, interpreter in clients.items()
    }
    runs: dict[str, list[compare.Run]] = {name: [] for name in clients}
    for _ in range(settings.rounds):
        for name, command in commands.items():
            run = run_once(command, server, seconds, settings)
            runs[name].append(run)
            if "error" in run:
                print(f"  {name}: {run['error']}", file=sys.stderr, flush=True)
    return {
        name: {
            "command": compare.without_places(shlex.join(command)),
            "versions": versions(clients[name]),
            "runs": runs[name],
        }
        for name, command in commands.items()
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    description, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has wspy, for the server too")
    parser.add_argument("--peers", help="the interpreter that has the other libraries; default: --python")
    parser.add_argument("--only", metavar="NAMES", default="", help=f"some of {', '.join([*CLIENTS, FLOOR])}")
    parser.add_argument("--scenario", default=",".join(SCENARIOS), help="some of: %(default)s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, help="of measuring in each run, to try things out")
    parser.add_argument("--cpus", default="0,1", help="of the server and of the client (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="a file for all raw figures")
    arguments = parser.parse_args()
    arguments.scenario = arguments.scenario.split(",")
    arguments.only = [name for name in arguments.only.split(",") if name]
    if unknown := set(arguments.scenario) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    if unknown := set(arguments.only) - {*CLIENTS, FLOOR}:
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    return arguments


def main() -> int:
    """Compare, print and store; return the exit status."""
    arguments = parse_arguments()
    server_cpu, client_cpu = map(int, arguments.cpus.split(","))
    settings = compare.Settings(arguments.rounds, arguments.seconds, None, server_cpu, client_cpu)
    server = f"{shlex.quote(arguments.python)} {shlex.quote(str(HERE / 'servers'))}/wspy_echo.py {{port}}"
    clients = line_up(arguments.python, arguments.peers or arguments.python, arguments.only)
    report = compare.conditions(settings)
    well = bool(clients)
    for name in arguments.scenario:
        scenario = SCENARIOS[name]
        found = measure(scenario, clients, server, settings)
        runs = {client: what["runs"] for client, what in found.items()}
        compare.print_table(name, scenario, runs)
        well = well and not any("error" in run for its_runs in runs.values() for run in its_runs)
        report["scenarios"][name] = {
            "title": scenario.title,
            "unit": scenario.unit,
            "figure": scenario.figure,
            "load": compare.without_places(server),
            "servers": found,
        }
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
