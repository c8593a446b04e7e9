"""Does benchmarks/attack.py attack as it says, and notice everything that goes wrong meanwhile?"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from native import SANITIZE, needs_compiler
from programs import PYTHON

import wspy

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS: Final = Path(__file__).resolve().parent.parent / "benchmarks"
WARNINGS: Final = ["-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes"]
LOADS: Final = (
    "silent",
    "half-head",
    "garbage",
    "wrong-path",
    "slow-handshakes",
    "bombs",
    "ping-flood",
    "ping-flood-deaf",
    "fragment-flood",
    "auth-guesses",
    "rst",
    "all",
)
# all loads in a row take half a minute, and more on a busy machine
pytestmark = [needs_compiler, pytest.mark.slow, pytest.mark.timeout(200)]


def shortened(*arguments: str | Path) -> list[str | Path]:
    """Return options for a run that takes place, and of whose times nothing is asked."""
    cpus = sorted(os.sched_getaffinity(0))
    few = ("--seconds=0.5", "--clients=5", "--scale=0.05", "--untimed", f"--cpus={cpus[0]},{cpus[-1]}")
    return [*few, *arguments]


def run_attack(*arguments: str | Path, patience: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(wspy.__file__).parent.parent)}
    command = [*PYTHON, BENCHMARKS / "attack.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=100 * patience)


@pytest.fixture(scope="module")
def attack() -> ModuleType:
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("attack", BENCHMARKS / "attack.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["attack"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


# ---- a server that does nothing wrong ----


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory, patience: float) -> dict[str, Any]:
    stored = tmp_path_factory.mktemp("attack") / "figures.json"
    result = run_attack(*shortened(f"--json={stored}"), patience=patience)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    for name in LOADS:
        assert f"{name}: " in result.stdout
    figures: dict[str, Any] = json.loads(stored.read_text(encoding="utf-8"))
    return figures


@pytest.mark.parametrize("name", LOADS)
def test_clients_are_measured_in_quiet_and_under_each_load(figures: dict[str, Any], name: str) -> None:
    run = figures["loads"][name]
    assert run["faults"] == []
    for row in (run["quiet"], run["attacked"]):
        assert row["open"] == 5
        assert row["lost"] == row["wrong"] == 0
        assert row["count"] > 10
        latencies = list(row["latency_ms"].values())
        assert 0 < latencies[0] <= latencies[1] <= latencies[2] <= latencies[3]
        assert row["own_ms"]["p50"] <= latencies[-1]


@pytest.mark.parametrize(
    ("name", "part", "answer"),
    [
        ("garbage", "garbage", True),
        ("wrong-path", "wrong-path", True),
        ("auth-guesses", "auth-guesses", True),
        ("bombs", "bombs", True),
        ("fragment-flood", "fragment-flood", True),
        ("silent", "silent", False),
        ("half-head", "half-head", False),
        ("rst", "rst", False),
        ("all", "garbage", True),
        ("all", "auth-guesses", True),
    ],
)
def test_connections_come_at_their_rate_and_are_refused(
    figures: dict[str, Any], name: str, part: str, answer: bool
) -> None:
    what = figures["loads"][name]["attack"]["loads"][part]
    assert what["connections"] > 0
    assert what["failed"] == what["answered_otherwise"] == 0
    assert (what["answered"] > 0) == answer


@pytest.mark.parametrize(
    ("name", "part", "count"),
    [
        ("slow-handshakes", "slow-handshakes", 100),
        ("all", "slow-handshakes", 100),
        ("all", "half-open", 50),
    ],
)
def test_connections_are_held(figures: dict[str, Any], name: str, part: str, count: int) -> None:
    what = figures["loads"][name]["attack"]["loads"][part]
    assert what["connections"] == what["open"] == count
    assert what["ended"] == what["answered_otherwise"] == 0


@pytest.mark.parametrize("name", ["ping-flood", "ping-flood-deaf"])
def test_floods_of_pings_go_on_or_end_with_1008(figures: dict[str, Any], name: str) -> None:
    what = figures["loads"][name]["attack"]["loads"][name]
    assert what["connections"] > 0
    assert what["answered_otherwise"] == 0


@pytest.mark.parametrize("name", ["ping-flood", "ping-flood-deaf", "fragment-flood"])
def test_flooders_send_more_than_a_server_may_be_asked_for(figures: dict[str, Any], name: str) -> None:
    assert figures["loads"][name]["attack"]["loads"][name]["sent_bytes"] > 1_000_000


def test_what_is_stored_tells_nothing_of_whose_machine_it_was(figures: dict[str, Any]) -> None:
    assert figures["server"] == f"{Path(sys.executable).name} benchmarks/attacked.py {{port}}"
    assert figures["versions"]["wspy"] == wspy.__version__
    assert str(BENCHMARKS.parent) not in json.dumps(figures)


def test_a_slow_handshake_ends_in_408(tmp_path: Path, patience: float) -> None:
    server = serving(tmp_path, "client.send(message)", "open_timeout=0.5")
    result = run_attack(
        *shortened(
            f"--json={tmp_path / 'figures.json'}", "--load=slow-handshakes", f"--server={server}", "--seconds=1"
        ),
        patience=patience,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    what = figures["loads"]["slow-handshakes"]["attack"]["loads"]["slow-handshakes"]
    assert what["answered"] + what["ended"] >= 100
    assert what["connections"] >= 200


def test_the_programs_are_clean(attack: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No warning, and nothing that a sanitizer finds, where the compiler has them."""
    compile_options = list(attack.compare.COMPILE)
    monkeypatch.setattr(attack.compare, "COMPILE", [*compile_options, *WARNINGS])
    attack.compile_programs(tmp_path)
    monkeypatch.setattr(attack.compare, "COMPILE", [*compile_options, *SANITIZE])
    try:
        attack.compile_programs(tmp_path)
    except subprocess.CalledProcessError:
        pytest.skip("the compiler has no sanitizers")
    monkeypatch.setattr(sys, "argv", ["attack.py", *map(str, shortened("--load=all,fragment-flood"))])
    assert attack.main() == 0


# ---- what goes wrong ----


def serving(directory: Path, onmessage: str, options: str = "") -> str:
    """Return the command for a server that does something else with a message than to echo it."""
    script = directory / "server.py"
    script.write_text(
        "import sys, wspy\n"
        "class Server(wspy.AsyncServer):\n"
        "    def onmessage(self, client, message):\n"
        f"        {onmessage}\n"
        f"Server(('127.0.0.1', int(sys.argv[1])), {options}).run()\n",
        encoding="utf-8",
    )
    return f"{sys.executable} {script} {{port}}"


@pytest.mark.parametrize(
    ("onmessage", "fault"),
    [
        ("client.send(bytes([message.bytes[0] ^ 1]) + message.bytes[1:])", "differs"),
        ("client.send(message.bytes[:-1])", "differs"),
        ("client.send(message.bytes); client.send(message.bytes)", "nobody asked for"),
        ("client.send(message.bytes.hex())", "a frame that no echo has"),
        ("client.close()", "Close frame"),
        ("client.abort()", "client [0-9]: "),
        ("import os; os._exit(3)", "ended with status 3"),
    ],
)
def test_a_faulty_server_is_caught(tmp_path: Path, patience: float, onmessage: str, fault: str) -> None:
    server = serving(tmp_path, onmessage)
    result = run_attack(*shortened("--load=silent", f"--server={server}"), patience=patience)
    assert result.returncode == 1
    assert result.stderr == ""
    assert re.search(fault, result.stdout)


def test_a_server_that_lets_everybody_in_is_not_attacked(tmp_path: Path, patience: float) -> None:
    """Neither paths nor passwords nor compression: these loads did not take place."""
    server = serving(tmp_path, "client.send(message)")
    result = run_attack(*shortened("--load=auth-guesses,wrong-path", f"--server={server}"), patience=patience)
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.count("had the answer 101") == 2


def test_a_server_that_does_not_listen_is_told(patience: float) -> None:
    result = run_attack(*shortened("--load=silent", "--server=false {port}"), patience=patience)
    assert (result.returncode, result.stderr) == (1, "")
    assert "ended with status 1" in result.stdout


# ---- the verdict ----


def a_run(attack: ModuleType, **changed: Any) -> tuple[dict[str, Any], Any]:
    """Return figures of a load that was well, but for what is changed, and settings for them."""
    untimed = changed.pop("untimed", False)
    silent = {"connections": 1000, "per_second": 1000.0, "answered": 0, "answered_otherwise": 0, "ended": 0}
    run: dict[str, Any] = {
        "quiet": {"latency_ms": {"p99": 1.0}},
        "attacked": {"latency_ms": {"p99": changed.pop("p99", 1.0)}},
        "attack": {"seconds": 1.0, "loads": {"silent": silent | changed.pop("silent", {})}},
        "memory_added_kb": 0,
        "log_lines": 0,
    }
    run["quiet"]["latency_ms"]["p99"] = changed.pop("quiet", 1.0)
    settings = attack.Settings("", 1.0, 200, 20.0, 1.0, untimed, 0, 1)
    return run | changed, settings


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"p99": 20.0},
        {"p99": 36.0, "quiet": 30.0},
        {"silent": {"connections": 900}},
        {"memory_added_kb": 262_144},
        {"p99": 99.0, "untimed": True, "silent": {"connections": 1}},
    ],
    ids=str,
)
def test_what_is_well(attack: ModuleType, changed: dict[str, Any]) -> None:
    run, settings = a_run(attack, **changed)
    assert attack.faults("silent", run, settings) == []


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"p99": 20.1}, "p99 is 20.1 ms"),
        ({"p99": 36.1, "quiet": 30.0}, "p99 is 36.1 ms"),
        ({"silent": {"connections": 899}}, "only 899 connections of 1000"),
        ({"silent": {"connections": 0}, "untimed": True}, "only 0 connections of 1000"),
        ({"silent": {"answered_otherwise": 1, "other_answer": 500}}, "the answer 500"),
        ({"memory_added_kb": 262_145}, "256 MiB"),
        ({"log_lines": 36}, "36 lines"),
        ({"error": "no"}, "no"),
    ],
    ids=str,
)
def test_what_is_not(attack: ModuleType, changed: dict[str, Any], fault: str) -> None:
    run, settings = a_run(attack, **changed)
    (told,) = attack.faults("silent", run, settings)
    assert fault in told


# ---- the command line ----


@pytest.mark.parametrize("arguments", [("--load=none",), ("--server=echo",), ("--seconds=soon",)], ids=str)
def test_misuse_is_told(arguments: tuple[str, ...], patience: float) -> None:
    result = run_attack(*arguments, patience=patience)
    assert result.returncode == 2
    assert "usage" in result.stderr


def test_every_load_is_described(attack: ModuleType) -> None:
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert tuple(attack.TITLES) == LOADS
    assert all(f"| `{name}` |" in readme for name in LOADS)
