"""Do the proofs find nothing amiss with servers that are well, and everything with those that are not?"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from measures import UNDER_ADDRESS_SANITIZER, measures_memory
from native import needs_compiler
from programs import PYTHON

import wspy

if TYPE_CHECKING:
    from collections.abc import Callable

    Prove = Callable[..., subprocess.CompletedProcess[str]]

BENCHMARKS: Final = Path(__file__).resolve().parent.parent / "benchmarks"
UNTRACEABLE: Final = 2
SHORT: Final = {
    "slow_readers.py": ("--seconds=1.5", "--scale=0.02", "--rate=100", "--limit=1048576"),
    "descriptors.py": ("--seconds=1", "--scale=0.1", "--limit=64"),
    "faults.py": ("--scale=0.05",),
    "shutdown.py": ("--runs=1", "--scale=0.03"),
}
NEEDS: Final = {
    "slow_readers.py": (measures_memory,),
    "descriptors.py": (needs_compiler,),
    "faults.py": (
        pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
        pytest.mark.skipif(UNDER_ADDRESS_SANITIZER, reason="LeakSanitizer traces the process itself"),
    ),
    "shutdown.py": (pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),),
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def prove(patience: float) -> Prove:
    """Return a function that runs a program in its shortest form."""
    cpus = sorted(os.sched_getaffinity(0))

    def run(program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [*PYTHON, BENCHMARKS / program, "--untimed", f"--cpus={cpus[0]},{cpus[-1]}", *SHORT[program], *words]
        environment = {**os.environ, "PYTHONPATH": str(Path(wspy.__file__).parent.parent)}
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=250 * patience
        )

    return run


def skip_if_untraceable(name: str, result: subprocess.CompletedProcess[str]) -> None:
    if name == "faults.py" and result.returncode == UNTRACEABLE:
        pytest.skip(f"strace may not trace: {result.stderr}")


def faulty_program(name: str, part: str, change: str, *faults: str, named: str) -> Any:
    """Return parameters for a server that is not well, and what is told of it."""
    return program(name, part, change, faults, named=named)


def program(name: str, *rest: Any, named: str = "") -> Any:
    """Return parameters that begin with a program, with what it needs."""
    return pytest.param(name, *rest, marks=NEEDS[name], id=f"{name.removesuffix('.py')} {named}".strip())


# ---- servers that are well ----


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        program("slow_readers.py", ("drop", "each", "close")),
        program("descriptors.py", ("known limit", "sudden limit")),
        program("faults.py", ("async", "threads")),
        program("shutdown.py", ("async", "threads", "async-tls", "threads-tls")),
    ],
)
def test_a_server_that_is_well_passes(prove: Prove, tmp_path: Path, name: str, parts: tuple[str, ...]) -> None:
    file = tmp_path / "found.json"
    result = prove(name, "--json", file)
    skip_if_untraceable(name, result)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert tuple(stored["parts"]) == parts
    assert all(figures["faults"] == [] for figures in stored["parts"].values())
    assert result.stdout.count("faults: none") == len(parts)
    assert str(BENCHMARKS.parent) not in json.dumps(stored)


# ---- servers that are not ----


def faulty(directory: Path, module: str, change: str) -> str:
    """Return the command of a server as it is in servers/, but for a change."""
    script = directory / "server.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(BENCHMARKS / 'servers')!r})\n"
        f"import wspy, {module} as served\n{change}",
        encoding="utf-8",
    )
    return f"{sys.executable} {script} {{port}}"


LOSES_A_BYTE: Final = """
class Server(served.BroadcastServer):
    def broadcast(self, message):
        super().broadcast(message[:-1] if self.number == 100 else message)
served.main(Server)
"""
SKIPS: Final = """
class Server(served.BroadcastServer):
    def broadcast(self, message):
        if self.number != 100:
            super().broadcast(message)
served.main(Server)
"""
KEEPS_ALL: Final = """
served.BroadcastServer.__init__ = lambda self, *a, **o: (
    wspy.AsyncServer.__init__(self, *a, max_backlog=None), setattr(self, "ended", {}))[0]
kept = []
class Server(served.BroadcastServer):
    def onclose(self, client, code, reason):
        pass
    def send_one(self):
        super().send_one()
        kept.append(os.urandom(1 << 20))
served.main(Server)
"""
SPINS: Final = """
class Server(served.EchoServer):
    def onopen(self, client):
        self.onopen = lambda client: None
        self.spin()
    def spin(self):
        self.call_soon(self.spin)
served.main(Server)
"""
CHANGES_A_BYTE: Final = """
class Server(served.EchoServer):
    def onmessage(self, client, message):
        client.send(bytes([message.bytes[0] ^ 1]) + message.bytes[1:])
served.main(Server)
"""
ENDS_ANOTHER: Final = """
class Server(served.AsyncEcho):
    def onclose(self, client, code, reason):
        super().onclose(client, code, reason)
        for other in self.clients:
            return other.abort()
served.main({"async": Server})
"""
FORGETS_THE_QUEUE: Final = """
served.AsyncSender._dismiss = lambda self, client: client.abort()
served.main()
"""
CUTS_OFF: Final = "served.main(lambda client, message: client.send(message[:-1]))"
DIES: Final = """
served.AsyncSender._stop = lambda self: os._exit(3)
served.main()
"""


@pytest.mark.parametrize(
    ("name", "part", "change", "faults"),
    [
        faulty_program("slow_readers.py", "drop", LOSES_A_BYTE, "is not what was sent", named="loses a byte"),
        faulty_program("slow_readers.py", "drop", SKIPS, "message 101 follows 99", named="skips one"),
        faulty_program("slow_readers.py", "close", KEEPS_ALL, "MiB were added", "only 0 slow", named="has no limit"),
        faulty_program("descriptors.py", "known limit", SPINS, "the server spins", named="spins"),
        faulty_program(
            "descriptors.py", "known limit", CHANGES_A_BYTE, "differs from what was sent", named="changes a byte"
        ),
        faulty_program("faults.py", "async", ENDS_ANOTHER, "round 0: port", named="ends another"),
        faulty_program("shutdown.py", "async", FORGETS_THE_QUEUE, "lost by ", named="forgets the queue"),
        faulty_program("shutdown.py", "async", CUTS_OFF, "message 0 is not what was sent", named="cuts off"),
        faulty_program("shutdown.py", "async", DIES, "ended with status 3", named="dies"),
    ],
)
def test_a_faulty_server_is_caught(
    prove: Prove, tmp_path: Path, name: str, part: str, change: str, faults: tuple[str, ...]
) -> None:
    command = faulty(tmp_path, f"wspy_{name.removesuffix('.py')}", change)
    result = prove(name, f"--part={part}", f"--server={command}")
    skip_if_untraceable(name, result)
    assert (result.returncode, result.stderr) == (1, ""), result.stdout
    assert all(fault in result.stdout for fault in faults), result.stdout


# ---- the command line ----


@pytest.mark.parametrize(
    ("name", "word"),
    [
        program("slow_readers.py", "--part=none"),
        program("descriptors.py", "--server=echo"),
        program("faults.py", "--scale=0"),
        program("shutdown.py", "--runs=some"),
    ],
)
def test_misuse_is_told(prove: Prove, name: str, word: str) -> None:
    result = prove(name, word)
    assert result.returncode == 2
    assert "usage" in result.stderr


def test_a_strace_that_may_not_trace_is_told(prove: Prove, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strace = tmp_path / "strace"
    strace.write_text("#!/bin/sh\necho 'ptrace: Operation not permitted' >&2\nexit 1\n", encoding="utf-8")
    strace.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    result = prove("faults.py")
    assert (result.returncode, result.stdout) == (UNTRACEABLE, "")
    assert result.stderr == "ptrace: Operation not permitted\n"


@pytest.mark.parametrize("name", SHORT)
def test_every_program_is_described(name: str) -> None:
    assert f"`{name}`" in (BENCHMARKS / "README.md").read_text(encoding="utf-8")
