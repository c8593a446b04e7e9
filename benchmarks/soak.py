"""Is anything lost, doubled, damaged or leaked, for as long as one likes?

    python benchmarks/soak.py --seconds 120
    python benchmarks/soak.py --seconds 3600 --json benchmarks/figures/NAME.json

Starts four servers of wspy, two on a port without TLS and two on one with it. Clients that share no code with wspy send
messages with numbers and digests, and verify that each comes back once, in order and unchanged; others vanish, reset,
flood, or talk nonsense meanwhile, and servers are stopped and started again. Exit status: 0 if all was well; 1 with any
fault, of which the first are told. README.md, beside this file, says what is looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import logging
import os
import platform
import random
import shlex
import signal
import ssl
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import compare  # noqa: E402 -- found only by the line above
from soak_churn import KINDS, Churn  # noqa: E402
from soak_clients import Tally, verified  # noqa: E402
from soak_frames import Fault  # noqa: E402
from soak_messages import Payloads, Samples  # noqa: E402
from soak_servers import Fleet, Recipe, Server, reserve  # noqa: E402
from soak_wire import Target  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

MIB = 1 << 20
ROUND_SECONDS = 15.0
MAX_ROUNDS = 60
TOLD = 20
"""Faults: more of them say nothing more."""

CHURN_PAUSE = 0.5
"""Seconds between two connections of the same troublemaker: most of the work is to be that of the others."""

AFTERMATH_SECONDS = 1.0

MEMORY_FACTOR = 1.1
MEMORY_SPARE = 8 * MIB
"""Bytes: malloc and Python can't give back what lies between two blocks in use, and threads are kept for others."""

FRONT_ENDS = {"epoll": ("epoll", "epoll"), "threads": ("threads", "threads"), "both": ("epoll", "threads")}


class Soak:
    """One run.

    Args:
        arguments: the command line.
        targets: the ports.
        fleet: the servers behind them.
    """

    def __init__(self, arguments: argparse.Namespace, targets: list[Target], fleet: Fleet) -> None:
        self._arguments = arguments
        self._targets = targets
        self._fleet = fleet
        self._numbers = count()
        self._payloads = Payloads(arguments.seed)
        self.tally = Tally(Samples(random.Random(arguments.seed)))
        self._churn = Churn(self._payloads, self.tally, deadline(arguments))
        self.faults: list[str] = []
        self._faulty = asyncio.Event()
        self.restarts = 0

    async def run(self) -> None:
        """Start the servers, let rounds follow each other, and stop the servers in order."""
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # or servers would stay behind
        try:
            await self._fleet.start()
            rounds = round_count(self._arguments.seconds)
            for number in range(rounds):
                await self._round(number, self._arguments.seconds / rounds, last=number == rounds - 1)
                if self.faults:
                    break
            else:
                self.faults += [fault for server in self._fleet.servers.values() for fault in memory_faults(server)]
                await self._fleet.stop()
        except Fault as fault:
            self.faults.append(str(fault))
        finally:
            await self._fleet.kill()

    async def _round(self, number: int, seconds: float, *, last: bool) -> None:
        """Put all clients on the servers; in the end nobody is left, and the servers are looked at."""
        until = time.monotonic() + seconds
        connections = self._arguments.connections
        work = [self._verify(place, until) for place in range(connections)]
        work += [self._disturb(place, until) for place in range(churners(connections))]
        await self._until_fault(asyncio.gather(*work, self._restart(number, seconds)))
        if self.faults:
            return
        for server in self._fleet.servers.values():
            await server.idles(last=last)

    async def _until_fault(self, work: asyncio.Future[Any]) -> None:
        """Wait until all is done; or for a moment after the first fault, in which others may show."""
        faulty: asyncio.Future[Any] = asyncio.ensure_future(self._faulty.wait())
        await asyncio.wait([work, faulty], return_when=asyncio.FIRST_COMPLETED)
        if self.faults:
            await asyncio.wait([work], timeout=AFTERMATH_SECONDS)
        faulty.cancel()
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work

    async def _verify(self, place: int, until: float) -> None:
        """Make one connection after the other that does nothing wrong."""
        while time.monotonic() < until and not self.faults:
            number = next(self._numbers)
            target = self._targets[(place + number) % 2]
            chance = self._chance(number)
            work = verified(number, target, chance, self._payloads, self.tally, until)
            await self._judged(f"connection {number}, verified {target.scheme}", work)

    async def _disturb(self, place: int, until: float) -> None:
        """Make one connection after the other that does: each kind once in any case, then those there is time for."""
        names = list(KINDS)
        names = names[place % len(names) :] + names[: place % len(names)]
        for lap in count():
            for name in names if lap else names[:1]:
                left = until - time.monotonic()
                if self.faults or left < 0:
                    return
                if lap and self._churn.seconds(name) > left:
                    continue
                number = next(self._numbers)
                target = self._targets[number % 2]
                work = self._churn.one(name, number, target, self._chance(number))
                await self._judged(f"connection {number}, {name} {target.scheme}", work)
                await asyncio.sleep(CHURN_PAUSE)

    async def _judged(self, who: str, work: Awaitable[None]) -> None:
        try:
            await work
        except (Fault, OSError) as fault:
            self._faulty.set()
            if len(self.faults) < TOLD:
                self.faults.append(f"{who}: {fault if isinstance(fault, Fault) else repr(fault)}")

    async def _restart(self, number: int, seconds: float) -> None:
        """Restart one of two on each port in the middle of a round: the other one is there from start to end."""
        await asyncio.sleep(seconds / 2)
        await self._fleet.restart(list(self._fleet.servers)[(1, 3)[number % 2]])
        self.restarts += 1

    def _chance(self, number: int) -> random.Random:
        return random.Random(f"{self._arguments.seed}:{number}")


def round_count(seconds: float) -> int:
    """Return how many rounds there are: the first one warms up, so at least two."""
    return max(2, min(MAX_ROUNDS, round(seconds / ROUND_SECONDS)))


def churners(connections: int) -> int:
    """Return how many make trouble at a time: a tenth, but each kind."""
    return max(len(KINDS), connections // 10)


def deadline(arguments: argparse.Namespace) -> float:
    """Return how many seconds servers give a peer: more to many, which one process has to answer for."""
    return 3.0 + float(arguments.connections) / 25


def memory_faults(server: Server) -> Iterator[str]:
    """Tell if a server has more resident memory than when it was idle for the first time, and more than the bound."""
    sizes = server.trimmed
    if sizes and sizes[-1] > (bound := MEMORY_FACTOR * sizes[0] + MEMORY_SPARE):
        yield (
            f"server {server.name} had {sizes[0] / MIB:.1f} MiB after its first whole round, "
            f"and has {sizes[-1] / MIB:.1f} MiB at the end: more than {bound / MIB:.1f}"
        )


# ---- telling ----


def report(soak: Soak, fleet: Fleet, arguments: argparse.Namespace, took: float) -> dict[str, Any]:
    """Return everything that was found out."""
    servers = [*fleet.ended, *(server for server in fleet.servers.values() if server not in fleet.ended)]
    latency = soak.tally.latency
    return {
        "command": compare.without_places(shlex.join(["python", *sys.argv])),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "seed": arguments.seed,
        "seconds": round(took, 1),
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()},
        "versions": servers[0].start.get("versions") if servers else None,
        "counts": dict(soak.tally.counts),
        "restarts": soak.restarts,
        "connections": dict(sorted(soak.tally.connections.items())),
        "ended_by_restarts": dict(sorted(soak.tally.restarted.items())),
        "latency_ms": {
            name: None if (found := latency.quantile(part)) is None else round(found * 1000, 2)
            for name, part in (("p50", 0.5), ("p99", 0.99), ("most", 1.0))
        },
        "servers": {
            server.name: {
                "front_end": server.recipe.front_end,
                "start": server.start.get("rss"),
                "idle": [state["rss"] for state in server.idle],
                "descriptors": [server.start.get("descriptors"), *(state["descriptors"] for state in server.idle)],
                "trimmed": server.trimmed,
                "threads": [state["threads"] for state in server.idle],
                "calls": (server.end or {}).get("calls"),
            }
            for server in servers
        },
        "faults": soak.faults,
    }


def print_summary(found: dict[str, Any]) -> None:
    """Print what matters of it."""
    counts = found["counts"]
    for name, server in found["servers"].items():
        sizes = " ".join(f"{size / MIB:.1f}" for size in server["idle"])
        trimmed = " ".join(f"{size / MIB:.1f}" for size in server["trimmed"])
        print(f"  {name} {server['front_end']}: MiB when idle: {sizes or '-'}; trimmed: {trimmed or '-'}")
    for key in ("connections", "ended_by_restarts"):
        print(f"  {key}: " + ", ".join(f"{name} {number:,}" for name, number in found[key].items()))
    latency = found["latency_ms"]
    print(
        f"{counts.get('messages', 0):,} messages, {counts.get('bytes', 0) / MIB:,.0f} MiB, {found['seconds']} s, "
        f"seed {found['seed']}; round trip p50 {latency['p50']} ms, p99 {latency['p99']} ms; "
        f"{found['restarts']} restarts; faults: {len(found['faults']) or 'none'}"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    description, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="under load, in all (default: %(default)s)")
    parser.add_argument(
        "--front-end", choices=FRONT_ENDS, default="both", help="default: one process of each, per port"
    )
    parser.add_argument(
        "--connections", type=int, default=100, help="that are verified at a time (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of all that is chosen by chance")
    parser.add_argument("--server", type=Path, default=HERE / "servers" / "wspy_soak.py", help="another script like it")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    return parser.parse_args()


def recipes(arguments: argparse.Namespace, targets: list[Target], pem: Path) -> list[Recipe]:
    """Return how the servers are started; those at even places are not restarted."""
    found = []
    for target in targets:
        front_ends = FRONT_ENDS[arguments.front_end]
        if target.context:  # so that each front end has one that is there all the time
            front_ends = front_ends[::-1]
        for place, front_end in enumerate(front_ends):
            name = f"{target.scheme}-{place}"
            certificate = pem if target.context else None
            found.append(Recipe(arguments.server, target, name, front_end, certificate, deadline(arguments)))
    return found


def client_context() -> ssl.SSLContext:
    """Return a context that takes any certificate: these are not what is tested."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def main() -> int:
    """Run it, print and store; return the exit status."""
    arguments = parse_arguments()
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of connections that were reset, it tells much
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        pem = compare.make_certificate(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        targets = [Target(reserve(stack), None), Target(reserve(stack), client_context())]
        fleet = Fleet(recipes(arguments, targets, pem))
        soak = Soak(arguments, targets, fleet)
        asyncio.run(soak.run())
    found = report(soak, fleet, arguments, time.monotonic() - began)
    print_summary(found)
    for fault in soak.faults:
        print(f"fault: {fault}", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
