"""Does a client that reads slowly harm those that don't, or cost more memory than it may?

    python benchmarks/slow_readers.py
    python benchmarks/slow_readers.py --seconds 1200 --json benchmarks/figures/NAME.json

A server sends 16 KiB to all its clients, 20 times a second: 200 read what comes, 1,000 read 1 KiB per second. It runs
with each policy for what is beyond its limit. To reach: the 200 get every byte in order, 99 % within 100 ms; each of
the 1,000 takes no more memory than the limit, and with the policy "close" ends by it. Exit status: 1 if not. README.md,
beside this file, says more.
"""

from __future__ import annotations

import contextlib
import heapq
import selectors
import socket
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "servers")]

import attack  # noqa: E402 -- found only by the line above
import proofs  # noqa: E402
from soak_frames import BINARY, Fault, Parser  # noqa: E402
from wspy_slow_readers import SIZE, content  # noqa: E402

if TYPE_CHECKING:
    import argparse

SLOW, LIVE = 1000, 200
SLOW_BYTES = 1024
"""Which a slow client reads each second."""

SLOW_BUFFER = 4096
PARTS = {"drop": ("drop", "shared"), "each": ("drop", "each"), "close": ("close", "shared")}
"""What is done about a client that is over the limit, and whether all share one message in the server's memory."""

LIVE_PIECE = 1 << 18
P99_MS = 100.0
SETTLE_SECONDS = 1.0
REACHED = 0.9
"""The part of the broadcasts without which they did not take place."""


class Stream:
    """What arrives at one client, byte by byte the messages that were sent.

    Args:
        may_miss: whether the server may have passed it over.
    """

    def __init__(self, *, may_miss: bool) -> None:
        self._may_miss = may_miss
        self._parser = Parser()
        self._last: int | None = None
        self.count = 0

    def feed(self, data: bytes) -> list[float]:
        """Take some bytes; return how long ago the messages that are complete now were sent.

        Raises:
            Fault: they are not those that should have come.
        """
        ages = []
        for frame in self._parser.feed(data):
            if frame.opcode != BINARY or not frame.final:
                raise Fault(f"a frame with opcode {frame.opcode}")
            number, at = (int.from_bytes(frame.payload[start : start + 8], "big") for start in (0, 8))
            ages.append((time.monotonic_ns() - at) / 1e9)
            self._check(number, frame.payload)
        return ages

    def _check(self, number: int, payload: bytes) -> None:
        last = number - 1 if self._last is None else self._last
        if number <= last or (number != last + 1 and not self._may_miss):
            raise Fault(f"message {number} follows {last}")
        if payload[16:] != content(number):
            raise Fault(f"message {number} is not what was sent")
        self._last = number
        self.count += 1


class Slow:
    """One that reads a little each second; one that was ended comes again."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.ended = 0
        self.read = 0
        self._begin()

    def _begin(self) -> None:
        self._head: bytes | None = b""
        self._stream = Stream(may_miss=True)
        self._asked = False
        self._socket = socket.socket()
        self._socket.setblocking(False)  # noqa: FBT003 -- of socket
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
        self._socket.connect_ex(("127.0.0.1", self._port))

    def turn(self) -> None:
        """Do what there is to do each second. Raises Fault."""
        try:
            if not self._asked:
                self._socket.sendall(attack.request())
                self._asked = True
                return
            data = self._socket.recv(SLOW_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._take(data)
            return
        if self._asked:
            self.ended += 1
        self.close()
        self._begin()

    def _take(self, data: bytes) -> None:
        self.read += len(data)
        if self._head is None:
            self._stream.feed(data)
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if end:
            if not head.startswith(b"HTTP/1.1 101 "):
                raise Fault(f"no 101 but {head[:50]!r}")
            self._head = None
            self._stream.feed(rest)

    def close(self) -> None:
        self._socket.close()


class Crowd:
    """All clients of a server.

    Args:
        port: of the server.
        live: how many read what comes.
        slow: how many don't.
    """

    def __init__(self, port: int, live: int, slow: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._live = [proofs.connected(port) for _ in range(live)]
        self.streams = [Stream(may_miss=False) for _ in range(live)]
        for sock, stream in zip(self._live, self.streams, strict=True):
            sock.setblocking(False)  # noqa: FBT003 -- of socket
            self._selector.register(sock, selectors.EVENT_READ, stream)
        self.slow = [Slow(port) for _ in range(slow)]
        begun = time.monotonic()
        self._turns = [(begun + place / slow, place) for place in range(slow)]
        self.ages: list[float] = []
        self.faults: list[str] = []

    def run(self, seconds: float, *, measured: bool) -> None:
        """Read for so long, or until there is a fault."""
        end = time.monotonic() + seconds
        while not self.faults and (now := time.monotonic()) < end:
            due = self._turns[0][0]
            for key, _ in self._selector.select(max(0.0, min(due, end) - now)):
                ages = self._guarded("one that reads", partial(self._read, key.fileobj, key.data)) or []
                if measured:
                    self.ages += ages
            self._let_slow_ones_read()

    def _let_slow_ones_read(self) -> None:
        now = time.monotonic()
        while self._turns[0][0] <= now:
            at, place = self._turns[0]
            self._guarded(f"slow client {place}", self.slow[place].turn)
            heapq.heapreplace(self._turns, (max(at + 1, now), place))

    @staticmethod
    def _read(sock: Any, stream: Stream) -> list[float]:
        try:
            data = sock.recv(LIVE_PIECE)
        except OSError as error:
            raise Fault(f"lost by {error!r}") from None
        if not data:
            raise Fault("its connection has ended")
        return stream.feed(data)

    def _guarded(self, who: str, function: Any) -> Any:
        try:
            return function()
        except Fault as fault:
            self.faults.append(f"{who}: {fault}")

    def close(self) -> None:
        self._selector.close()
        for one in (*self._live, *self.slow):
            one.close()


def run_part(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Let clients read from a fresh server, and return figures and faults."""
    live, slow = proofs.scaled(LIVE, arguments), proofs.scaled(SLOW, arguments)
    command = proofs.command(arguments, "wspy_slow_readers.py", *PARTS[part], arguments.limit, arguments.rate)
    with proofs.serving(command, arguments.server_cpu) as server:
        memory = attack.memory_kb(server.pid, "VmRSS")
        try:
            crowd = Crowd(server.port, live, slow)
        except OSError as error:
            return {"faults": [f"can't connect: {error}", *server.stop(), *server.complaints()]}
        with contextlib.closing(crowd):
            crowd.run(SETTLE_SECONDS, measured=False)
            with proofs.Watch(server.pid) as watch:
                crowd.run(arguments.seconds, measured=True)
            added = attack.memory_kb(server.pid, "VmHWM") - memory
        faults = crowd.faults + server.stop()
        ended = Counter(server.told("ended"))
        figures = {
            "clients": {"live": live, "slow": slow},
            "messages": {"sent": server.told("messages") or 0, "read_by_each": min(s.count for s in crowd.streams)},
            "latency_ms": proofs.percentiles(crowd.ages),
            **watch.figures,
            "memory_added_mib": round(added / 1024, 1),
            "memory_allowed_mib": round((live + slow) * (arguments.limit + SIZE) / 2**20 + arguments.spare, 1),
            "bytes_read_by_slow": sum(one.read for one in crowd.slow),
            "slow_ended": sum(one.ended for one in crowd.slow),
            "ended_by_limit": ended["1008 write_limit"],
        }
    return {**figures, "faults": faults + amiss(part, figures, arguments)}


def amiss(part: str, figures: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    """Return what is not as it has to be."""
    found = []
    p99, wanted = figures["latency_ms"]["p99"], arguments.rate * arguments.seconds
    if not arguments.untimed and p99 > P99_MS:
        found.append(f"p99 is {p99:.1f} ms, more than {P99_MS:.0f} ms")
    if figures["messages"]["read_by_each"] < (1 if arguments.untimed else REACHED * wanted):
        found.append(f"only {figures['messages']['read_by_each']} broadcasts of {wanted:.0f} have arrived")
    if figures["memory_added_mib"] > figures["memory_allowed_mib"]:
        found.append(f"{figures['memory_added_mib']} MiB were added, and {figures['memory_allowed_mib']} are allowed")
    over = figures["ended_by_limit"]
    if part != "close" and (over or figures["slow_ended"]):
        found.append(f"{figures['slow_ended']} slow clients were ended, and none should have been")
    if part == "close" and over < figures["clients"]["slow"]:
        found.append(f"only {over} slow clients were ended by the limit, with 1008")
    if figures["slow_ended"] > over:
        found.append(f"{figures['slow_ended'] - over} slow clients were ended otherwise than by the limit")
    return found


def main() -> int:
    """Try each part, print and store; return the exit status."""
    parser = proofs.arguments_for(__doc__ or "", "servers/wspy_slow_readers.py", PARTS, 60.0)
    parser.add_argument("--limit", type=int, default=262_144, help="unsent bytes of a client (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=20.0, help="broadcasts per second (default: %(default)g)")
    parser.add_argument("--spare", type=float, default=32.0, help="MiB for clients themselves (default: %(default)g)")
    arguments = proofs.read_arguments(parser, PARTS)
    return proofs.conclude(arguments, {part: partial(run_part, part, arguments) for part in arguments.part})


if __name__ == "__main__":
    sys.exit(main())
