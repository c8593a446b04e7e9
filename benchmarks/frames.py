"""What does one message as one frame cost without I/O, from a client's bytes to a server's, beside sans-I/O peers?

    python benchmarks/frames.py [--rounds 7] [--seconds 0.05]

Each way packs a masked binary message, and parses it at the other end. Ways run in turn, round by round; a figure is
the least of its rounds, in microseconds of this process, and the ratio is that of the best peer to wspy. Peers that are
not installed are reported as missing.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.metadata
import platform
import random
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from wspy import Frame, Opcode, Protocol, Role

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {"32 B": 32, "1 KiB": 1 << 10, "64 KiB": 1 << 16}


class Way(NamedTuple):
    """One way to speak and to hear.

    Args:
        say: returns the bytes of a message.
        hear: returns the payload that it finds in them.
    """

    say: Callable[[bytes], bytes]
    hear: Callable[[bytes], bytes]


# ---- the ways ----


def wspy_frames() -> Way:
    client, server = Protocol(Role.CLIENT, frames=True), Protocol(Role.SERVER, frames=True)
    return Way(lambda payload: client.frames(Frame(Opcode.BINARY, payload)), lambda data: server.feed(data)[0].payload)


def wspy_messages() -> Way:
    client, server = Protocol(Role.CLIENT), Protocol(Role.SERVER)
    return Way(client.message, lambda data: server.feed(data)[0].payload)


def websockets_protocol() -> Way:
    module: Any = importlib.import_module("websockets.protocol")
    client = module.Protocol(module.Side.CLIENT, state=module.State.OPEN)
    server = module.Protocol(module.Side.SERVER, state=module.State.OPEN)

    def say(payload: bytes) -> bytes:
        client.send_binary(payload)
        data: bytes = b"".join(client.data_to_send())
        return data

    def hear(data: bytes) -> bytes:
        server.receive_data(data)
        payload: bytes = server.events_received()[0].data
        return payload

    return Way(say, hear)


def wsproto_frames() -> Way:
    module: Any = importlib.import_module("wsproto.frame_protocol")
    client = module.FrameProtocol(client=True, extensions=[])
    server = module.FrameProtocol(client=False, extensions=[])

    def say(payload: bytes) -> bytes:
        data: bytes = client.send_data(payload, fin=True)
        return data

    def hear(data: bytes) -> bytes:
        server.receive_bytes(data)
        return b"".join([frame.payload for frame in server.received_frames()])

    return Way(say, hear)


OURS: dict[str, Callable[[], Way]] = {"wspy, frames": wspy_frames, "wspy, message": wspy_messages}
PEERS: dict[str, Callable[[], Way]] = {
    "websockets, Protocol": websockets_protocol,
    "wsproto, FrameProtocol": wsproto_frames,
}


def installed(ways: dict[str, Callable[[], Way]]) -> dict[str, Way]:
    """Return the ways that there are here."""
    found = {}
    for name, make in ways.items():
        try:
            found[name] = make()
        except ImportError:
            print(f"{name}: missing", file=sys.stderr)
    return found


# ---- measuring ----


def microseconds(function: Callable[[bytes], bytes], argument: bytes, seconds: float) -> float:
    """Return the CPU time of a call, over about so many seconds."""
    count, spent = 8, 0.0
    while spent < seconds:
        count *= 2
        start = time.process_time()
        for _ in range(count):
            function(argument)
        spent = time.process_time() - start
    return spent / count * 1e6


def measure(ways: dict[str, Way], payload: bytes, rounds: int, seconds: float) -> dict[str, tuple[float, float]]:
    """Return the least that packing and parsing have cost in each way."""
    least = dict.fromkeys(ways, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, way in ways.items():
            data = way.say(payload)
            if way.hear(data) != payload:
                raise SystemExit(f"{name} has changed the payload")
            pack, parse = microseconds(way.say, payload, seconds), microseconds(way.hear, data, seconds)
            least[name] = min(least[name][0], pack), min(least[name][1], parse)
    return least


def print_table(size: str, figures: dict[str, tuple[float, float]]) -> None:
    """Print what each way costs, and how much more the best peer does than ours."""
    best = min((sum(cost) for name, cost in figures.items() if name in PEERS), default=None)
    print(f"\n{size:24}{'pack':>10}{'parse':>10}{'both':>10}{'ratio':>10}")
    for name, (pack, parse) in figures.items():
        ratio = f"{best / (pack + parse):.2f}" if best and name in OURS else ""
        print(f"{name:24}{pack:>10.2f}{parse:>10.2f}{pack + parse:>10.2f}{ratio:>10}".rstrip())


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="of each figure")
    parser.add_argument("--seconds", type=float, default=0.05, help="of one round of one figure")
    options = parser.parse_args()
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}")
    print(", ".join(f"{package} {version(package)}" for package in ("wspy", "websockets", "wsproto")))
    ways = installed({**OURS, **PEERS})
    gc.disable()
    for name, size in SIZES.items():
        print_table(name, measure(ways, random.Random(size).randbytes(size), options.rounds, options.seconds))


if __name__ == "__main__":
    main()
