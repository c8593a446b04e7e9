"""Who suffers when the kernel refuses something to a server?

    python benchmarks/faults.py
    python benchmarks/faults.py --faults 50000 --json benchmarks/figures/NAME.json

strace makes system calls of a server fail that echoes for clients which compare every byte; of an AsyncServer, then of
a Server. To reach: after a failure that passes nobody notices anything; after one that means the end of a connection
that one ends, and no other; nothing hangs, no descriptor is lost, and the process ends in order. Exit status: 1 if not,
2 if strace is missing or may not trace. README.md, beside this file, says more.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import proofs  # noqa: E402 -- found only by the line above
from fault_clients import Outcome, one  # noqa: E402

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

CLIENTS = 40
"""More than a Server keeps threads for."""

FEWEST = 6

ROUND_SECONDS = 120.0
"""After which a round ends without all of its faults."""

LEAST_CALLS = 12
IDLE_SECONDS = 30.0
ASLEEP = 5
"""How often in a row a server has to be seen asleep, to be taken for idle."""


@dataclass(frozen=True)
class Call:
    """How a system call may fail.

    ``passing`` are errors that the kernel may report and that say nothing of a connection: nobody may notice.
    ``ending`` are those after which a connection is lost; if strace can't tell which, the line has the word ``blind``.
    Every ``step``-th call fails.
    """

    passing: tuple[str, ...] = ()
    ending: tuple[str, ...] = ()
    step: int = 3
    blind: str | None = None

    def error(self, number: int) -> str:
        """Return what it fails with in a round."""
        errors = (*self.passing, *self.ending)
        return errors[number % len(errors)]


# Not close: strace would leave the descriptor open, which the kernel does not, whatever it says. Not the eventfd's
# write: it fails only where the counter is full, and so the loop awake. Not brk: it says what there is, and never -1.
# Not futex: only waiting may fail, and strace can't tell that from waking.
CALLS = {
    "accept4": Call(("EINTR", "EAGAIN", "ECONNABORTED", "EMFILE", "ENOBUFS", "ENOMEM")),
    "recvfrom": Call(("EINTR", "EAGAIN", "ENOMEM", "ENOBUFS"), ("ECONNRESET", "ETIMEDOUT"), step=11),
    "sendto": Call(("EINTR", "EAGAIN", "ENOBUFS", "ENOMEM"), ("EPIPE", "ECONNRESET"), step=7),
    "sendmsg": Call(("EAGAIN", "ENOBUFS", "ENOMEM", "EINTR"), ("ECONNRESET", "EPIPE"), step=5),
    "epoll_wait": Call(("EINTR",), step=5),
    "epoll_ctl": Call((), ("ENOMEM", "ENOSPC"), step=7),
    "setsockopt": Call(("ENOBUFS", "ENOMEM", "EINVAL")),
    "shutdown": Call((), ("ENOTCONN",), step=5),
    "read": Call(("EAGAIN", "EINTR")),
    "timerfd_settime": Call(("ENOMEM",), step=2),
    "mmap": Call(("ENOMEM",), step=2),
    "munmap": Call(("ENOMEM",), step=2),
    "mremap": Call(("ENOMEM",), step=2),
    "madvise": Call(("ENOMEM", "EAGAIN"), step=2),
}
# A Server makes threads, and the client for whom there is none ends. There munmap is left alone: it may fail only where
# a mapping is cut in two, and so glibc aborts if it does for a thread's stack.
THREAD = {
    "mmap": Call((), ("ENOMEM",), blind="MAP_STACK"),
    "mprotect": Call((), ("ENOMEM",), blind="mprotect"),
    "clone3": Call((), ("EAGAIN",), blind="clone3"),
}
FRONT_ENDS = {
    "async": CALLS,
    "threads": {name: call for name, call in CALLS.items() if name != "munmap"} | THREAD,
}
ROUNDS = max(len((*call.passing, *call.ending)) for call in CALLS.values())
INJECTED = re.compile(r"(\w+)\((.*)= -1 (E\w+) .*\(INJECTED\)$")
PEER = re.compile(r"->[^\]]*:(\d+)\]>")


class UntraceableError(Exception):
    """strace may not do its work here."""


@dataclass
class Injected:
    """The faults of a round, as strace tells them."""

    counts: Counter[str] = field(default_factory=Counter)
    """By system call and error."""
    hit: set[int] = field(default_factory=set)
    """The ports of clients whose connections have a reason to end."""
    blind: int = 0
    """Those that may end a connection, and don't say which."""


class Strace:
    """strace, attached to a server within a ``with`` block.

    Args:
        server: what it traces.
        calls: what may fail.
        number: of this round, which decides with what each of them fails.
    """

    def __init__(self, server: proofs.Served, calls: dict[str, Call], number: int) -> None:
        self._server = server
        self._calls = calls
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115 -- it is closed with the block
        self._seen = 0
        self._rest = ""
        self.injected = Injected()
        words = ["strace", "-f", "-qq", "-yy", "-s0", "-o", self._log.name, "-e", "status=failed"]
        words += ["-p", str(server.pid), "-e", f"trace={','.join(calls)}"]
        for name, call in calls.items():
            words += ["-e", f"inject={name}:error={call.error(number)}:when={call.step}+{call.step}"]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 -- the same
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=self._said)

    def __enter__(self) -> Self:
        try:
            while not (is_traced(self._server.pid) or self.ended()):
                time.sleep(proofs.POLL_SECONDS)
        except UntraceableError:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._await_sleep()
        self._process.terminate()
        self._process.wait()
        self.look()
        self._close()

    def _close(self) -> None:
        self._log.close()
        self._said.close()

    def _await_sleep(self) -> None:
        """Wait until the server waits for something: a call at which strace leaves while it fails gets ENOSYS."""
        asleep, end = 0, time.monotonic() + IDLE_SECONDS
        while asleep < ASLEEP and self._process.poll() is None and time.monotonic() < end:
            asleep = asleep + 1 if is_asleep(self._server.pid) else 0
            time.sleep(proofs.POLL_SECONDS)

    def look(self) -> int:
        """Read what has been told since, and return how many faults there were."""
        data = os.pread(self._log.fileno(), 1 << 24, self._seen)
        self._seen += len(data)
        *lines, self._rest = (self._rest + data.decode(errors="replace")).split("\n")
        for line in lines:
            self._take(line)
        return self.injected.counts.total()

    def ended(self) -> bool:
        """Whether it has ended, as it does with the server.

        Raises:
            UntraceableError: the server has not.
        """
        if self._process.poll() is None:
            return False
        try:
            self._server.process.wait(1)
        except subprocess.TimeoutExpired:
            said = os.pread(self._said.fileno(), 1000, 0).decode(errors="replace")
            raise UntraceableError(said.strip() or "strace has ended") from None
        return True

    def _take(self, line: str) -> None:
        found = INJECTED.search(line)
        if found is None:
            return
        name, words, error = found.groups()
        self.injected.counts[f"{name} {error}"] += 1
        call = self._calls[name]
        if error not in call.ending:
            return
        peer = PEER.search(words)
        if peer is not None:  # else the listener's, or of one that has gone already
            self.injected.hit.add(int(peer.group(1)))
        self.injected.blind += call.blind is not None and call.blind in line


async def run_round(strace: Strace, port: int, quota: int, clients: int, chance: random.Random) -> Outcome:
    """Let clients come and go until there were so many faults, each as long as it likes."""
    outcome, end = Outcome(), time.monotonic() + ROUND_SECONDS

    async def keep_busy() -> None:
        while strace.look() < quota and time.monotonic() < end and not (outcome.faults or strace.ended()):
            await one(port, chance, outcome)

    await asyncio.gather(*(keep_busy() for _ in range(clients)))
    return outcome


def is_traced(pid: int) -> bool:
    """Whether strace has come to a process."""
    return "\nTracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")


def is_asleep(pid: int) -> bool:
    """Whether all threads of a process wait for something, and none is stopped by a tracer: proc(5)'s stat, field 3."""
    states = [
        path.read_text(encoding="utf-8").rpartition(") ")[2][0] for path in Path(f"/proc/{pid}/task").glob("*/stat")
    ]
    return all(state == "S" for state in states)


def unexplained(outcome: Outcome, injected: Injected) -> list[str]:
    """Return what clients have noticed that they should not have."""
    told = [f"port {port}: {how}" for port, how in outcome.lost.items() if port not in injected.hit]
    return outcome.faults + (told if len(told) > injected.blind else [])


def descriptors(pid: int) -> int:
    """Return how many a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def left_open(pid: int, before: int) -> list[str]:
    """Wait until a server has as many descriptors as before; return what is amiss if that does not come."""
    end = time.monotonic() + IDLE_SECONDS
    while (now := descriptors(pid)) > before:
        if time.monotonic() > end:
            return [f"{now} descriptors are open after all clients have gone, and {before} were before"]
        time.sleep(proofs.POLL_SECONDS)
    return []


def run_part(front_end: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Let everything fail to a fresh server, and return figures and faults."""
    calls, chance = FRONT_ENDS[front_end], random.Random(arguments.seed)
    counts: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    faults: list[str] = []
    quota = -(-proofs.scaled(arguments.faults, arguments) // ROUNDS)
    clients = max(FEWEST, proofs.scaled(CLIENTS, arguments))
    command = proofs.command(arguments, "wspy_faults.py", front_end)
    with proofs.serving(command, arguments.server_cpu) as server:
        asyncio.run(one(server.port, chance, Outcome()))  # so that all is there that stays
        before = descriptors(server.pid) if server.process.poll() is None else 0
        for number in range(ROUNDS):
            with Strace(server, calls, number) as strace:
                outcome = asyncio.run(run_round(strace, server.port, quota, clients, chance))
            faults += [f"round {number}: {fault}" for fault in unexplained(outcome, strace.injected)]
            counts += strace.injected.counts
            totals += Counter(sessions=outcome.sessions, messages=outcome.messages, lost=len(outcome.lost))
            totals["hit"] += len(strace.injected.hit) + strace.injected.blind
            if faults or server.process.poll() is not None:
                break
        else:
            faults += left_open(server.pid, before)
        faults += server.stop()
        faults += how_it_ended(server)
    figures = {"injected": counts.total(), "by_call": dict(sorted(counts.items())), **totals}
    return {**figures, "faults": faults + what_did_not_happen(counts, faults, arguments)}


def how_it_ended(server: proofs.Served) -> list[str]:
    """Return what a server has told that it should not have."""
    calls = server.told("calls", 0) or {}
    found = [f"the server ended with {calls}"] if calls.get("onopen") != calls.get("onclose") else []
    if any("Traceback" in line for line in server.complaints()):
        found.append("\n".join(server.complaints()[-30:]))
    return found


def what_did_not_happen(counts: Counter[str], faults: Iterable[str], arguments: argparse.Namespace) -> list[str]:
    """Return in what there were fewer faults than asked for: such a run says nothing."""
    names = {name.split()[0] for name in counts}
    if any(faults):
        return []
    found = []
    if counts.total() < proofs.scaled(arguments.faults, arguments):
        found.append(f"only {counts.total()} faults took place")
    if arguments.scale >= 1 and len(names) < LEAST_CALLS:
        found.append(f"only {', '.join(sorted(names))} have failed")
    return found


def main() -> int:
    """Let both kinds of servers fail, print and store; return the exit status."""
    parser = proofs.arguments_for(__doc__ or "", "servers/wspy_faults.py", FRONT_ENDS)
    parser.add_argument("--faults", type=int, default=1000, help="of each part (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=6455, help="of what clients send (default: %(default)s)")
    arguments = proofs.read_arguments(parser, FRONT_ENDS)
    if shutil.which("strace") is None:
        parser.error("strace is missing")
    try:
        return proofs.conclude(arguments, {part: partial(run_part, part, arguments) for part in arguments.part})
    except UntraceableError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
