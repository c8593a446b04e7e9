"""Does soak.py find nothing amiss with servers that are well, and everything with those that are not?"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from programs import PYTHON

import wspy

if TYPE_CHECKING:
    from collections.abc import Callable

    Soak = Callable[..., subprocess.CompletedProcess[str]]

BENCHMARKS: Final = Path(__file__).resolve().parent.parent / "benchmarks"
KINDS: Final = {
    "bomb",
    "empty fragments",
    "garbage",
    "greedy",
    "half-open",
    "ping flood",
    "reset",
    "slow handshake",
    "slow reader",
    "slow sender",
    "vanish",
}
VERIFIED: Final = {"verified ws", "verified ws deflate", "verified wss", "verified wss deflate"}
MEMORY: Final = "echo(client, message)"
FAULTY: Final = """
import itertools, os, sys
sys.path.insert(0, {servers!r})
import wspy, wspy_soak

numbers, kept, echo = itertools.count(1), [], wspy_soak.echo

def answer(client, message):
    if next(numbers) % 100:
        echo(client, message)
    else:
        {action}

def trim():
    kept.append(b"x" * (100_000_000 if kept else 1))

if {action!r} == MEMORY:
    wspy_soak.trim = trim
wspy_soak.main(answer)
""".replace("MEMORY", repr(MEMORY))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate"),
]


@pytest.fixture
def soak(patience: float) -> Soak:
    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(wspy.__file__).parent.parent)}
        return subprocess.run(
            [*PYTHON, BENCHMARKS / "soak.py", "--connections=8", "--seed=1", *words],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=50 * patience,
        )

    return run


def test_servers_that_are_well_pass_and_every_kind_of_churn_takes_place(soak: Soak, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    result = soak("--seconds=5", "--json", file)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("faults: none\n")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert set(found["connections"]) | set(found["ended_by_restarts"]) == KINDS | VERIFIED
    assert set(found["connections"]) >= VERIFIED
    assert found["faults"] == []
    assert found["restarts"] == 2
    assert found["counts"]["messages"] > 100
    assert len(found["servers"]) == 4 + found["restarts"]
    for server in found["servers"].values():
        assert server["calls"].get("onopen", 0) == server["calls"].get("onclose", 0)
        assert len(set(server["descriptors"])) == 1


@pytest.mark.parametrize(
    ("action", "told"),
    [
        pytest.param("pass", r"connection \d+, .*: (instead of message \d+ .* there came|.*unanswered)", id="lost"),
        pytest.param(
            "echo(client, message); echo(client, message)",
            r"connection \d+, .*(there came|nothing is on its way|after the Close)",
            id="doubled",
        ),
        pytest.param(
            "echo(client, wspy.BinaryMessage(bytes(message.bytes[:-1]) + b'?'))",
            r"connection \d+, .*: instead of message \d+ with opcode",
            id="damaged",
        ),
        pytest.param("raise RuntimeError", r"connection \d+, .*: ended with 1011", id="raised"),
        pytest.param("client.abort()", r"connection \d+, .*(ended|lost|can't send)", id="aborted"),
        pytest.param(
            "echo(client, message); kept.append(os.open('/dev/null', os.O_RDONLY))",
            r"has \d+ descriptors open, and \d+ at its start",
            id="descriptors",
        ),
        pytest.param(MEMORY, "MiB at the end: more than", id="memory"),
    ],
)
def test_faults_are_found_and_told(soak: Soak, tmp_path: Path, action: str, told: str) -> None:
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY.format(servers=str(BENCHMARKS / "servers"), action=action), encoding="utf-8")
    result = soak("--seconds=6", "--front-end=epoll", "--server", script)
    assert result.returncode == 1
    assert re.search(told, result.stderr), result.stderr


def test_a_server_that_does_not_start_is_told_of(soak: Soak, tmp_path: Path) -> None:
    script = tmp_path / "faulty.py"
    script.write_text("raise SystemExit('on purpose')", encoding="utf-8")
    result = soak("--seconds=1", "--server", script)
    assert result.returncode == 1
    assert "server ws-0#0 has not answered" in result.stderr
    assert "on purpose" in result.stderr


def test_clients_share_no_code_with_what_they_test() -> None:
    for file in BENCHMARKS.glob("soak*.py"):
        assert not re.search(r"^\s*(import|from) wspy\b", file.read_text(encoding="utf-8"), re.MULTILINE), file
