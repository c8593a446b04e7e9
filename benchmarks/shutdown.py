"""Does everything that a server has taken to send arrive, if it is stopped meanwhile?

    python benchmarks/shutdown.py
    python benchmarks/shutdown.py --runs 500 --json benchmarks/figures/NAME.json

1,000 clients have 256 KiB each coming, and read nothing yet; then the server gets SIGTERM, and they begin to read. To
reach: every message that ``send`` has taken arrives whole and in order, then a Close frame with 1001, and the process
ends with status 0 within its deadline. This for AsyncServer and Server, without TLS and, with fewer clients, over it.
Exit status: 1 if not. README.md, beside this file, says more.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import ssl
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "servers")]

import compare  # noqa: E402 -- found only by the line above
import proofs  # noqa: E402
from soak_frames import BINARY, CLOSE, Fault, Parser, pack  # noqa: E402
from wspy_shutdown import FIRST, SIZE, content  # noqa: E402

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Iterator

CLIENTS = {"async": 1000, "threads": 1000, "async-tls": 250, "threads-tls": 250}
DEADLINE_SECONDS = 10.0
"""The default of ``shutdown_timeout``."""

SPARE_SECONDS = 1.5
"""For the process to end after its deadline."""

RECEIVE_BUFFER = 16_384
"""What is sent is to wait in the server and not in the kernel."""

PIECE = 1 << 17


class Reader:
    """One client, which reads nothing until it is asked to.

    Args:
        port: of the server.
        number: of this client.
        context: for TLS.
    """

    def __init__(self, port: int, number: int, context: ssl.SSLContext | None) -> None:
        self.socket: socket.socket = proofs.connected(
            port, receive_buffer=RECEIVE_BUFFER, context=context, path=f"/{number}"
        )
        self.socket.setblocking(False)  # noqa: FBT003 -- of socket
        self.number = number
        self.count = 0
        self.code: int | None = None
        self._parser = Parser()

    def read(self) -> bool:
        """Take what there is, and return whether the end has come. Raises Fault."""
        for data in self._pieces():
            if not data:
                return True
            for frame in self._parser.feed(data):
                self._take(frame.opcode, frame.payload)
        return False

    def _pieces(self) -> Iterator[bytes]:
        """Yield what has arrived, until there is no more: TLS may hold what no selector sees."""
        data = b" "
        while data:
            try:
                data = self.socket.recv(PIECE)
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            except OSError as error:
                raise Fault(f"lost by {error!r} after {self.count} messages") from None
            yield data

    def _take(self, opcode: int, payload: bytes) -> None:
        if self.code is not None:
            raise Fault(f"a frame with opcode {opcode} after the Close")
        if opcode == CLOSE:
            self.code = int.from_bytes(payload[:2], "big")
            self.socket.sendall(pack(CLOSE, payload, bytes(4)))
        elif opcode != BINARY or payload != content(self.number, self.count):
            raise Fault(f"message {self.count} is not what was sent")
        else:
            self.count += 1


def connect_all(port: int, count: int, pem: Path | None) -> list[Reader]:
    """Open so many connections, one after the other."""
    context = None
    if pem is not None:
        context = ssl.create_default_context(cafile=str(pem))
        context.check_hostname = False
    return [Reader(port, number, context) for number in range(count)]


def read_all(readers: list[Reader], seconds: float) -> list[str]:
    """Let all read to the end, and return the faults."""
    faults, end = [], time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            selector.register(reader.socket, selectors.EVENT_READ, reader)
        while selector.get_map() and (left := end - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                try:
                    done = key.data.read()
                except Fault as fault:
                    faults.append(f"client {key.data.number}: {fault}")
                    done = True
                if done:
                    selector.unregister(key.fileobj)
                    key.data.socket.close()
        faults += [f"client {key.data.number}: its connection does not end" for key in selector.get_map().values()]
    return faults


def stop_once(command: str, count: int, pem: Path | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Stop a fresh server while so much is on its way, and return figures and faults."""
    with proofs.serving(command, arguments.server_cpu, pem or HERE) as server, contextlib.ExitStack() as stack:
        try:
            readers = connect_all(server.port, count, pem)
        except OSError as error:
            return {"faults": [f"can't connect: {error!r}", *server.stop(), *server.complaints()]}
        for reader in readers:
            stack.callback(reader.socket.close)
        if server.told("opened") != count:
            return {"faults": [f"not all of {count} clients were sent something", *server.complaints()]}
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        faults = read_all(readers, DEADLINE_SECONDS + proofs.END_SECONDS)
        faults += server.ended()
        took = time.monotonic() - begun
        accepted = server.told("accepted") or {}
    faults += [fault for reader in readers for fault in lost(reader, accepted.get(str(reader.number), 0))]
    if took > DEADLINE_SECONDS + SPARE_SECONDS and not arguments.untimed:
        faults.append(f"it ended {took:.1f} s after SIGTERM, and {DEADLINE_SECONDS:.0f} s are allowed")
    return {"seconds": took, "messages": sum(accepted.values()), "faults": faults}


def lost(reader: Reader, accepted: int) -> list[str]:
    """Return what a client has not got that it should have."""
    found = []
    if reader.count != accepted or accepted < FIRST:
        found.append(f"client {reader.number}: {reader.count} messages have arrived, and {accepted} were sent")
    if reader.code != 1001:
        found.append(f"client {reader.number}: was told {reader.code} and not 1001")
    return found


def run_part(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Stop servers of one kind, one after the other, and return figures and faults."""
    count = proofs.scaled(CLIENTS[part], arguments)
    front_end, _, tls = part.partition("-")
    faults: list[str] = []
    seconds, messages = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        pem = compare.make_certificate(Path(scratch)) if tls else None
        words = (front_end, count, *(("{pem}",) if tls else ()))
        command = proofs.command(arguments, "wspy_shutdown.py", *words)
        while len(seconds) < arguments.runs and not faults:
            run = stop_once(command, count, pem, arguments)
            faults += run["faults"]
            seconds.append(run.get("seconds", 0.0))
            messages += run.get("messages", 0)
    return {
        "clients": count,
        "runs": len(seconds),
        "messages": messages,
        "mib": messages * SIZE / 2**20,
        "seconds": proofs.percentiles(seconds, unit=1.0),
        "faults": faults,
    }


def main() -> int:
    """Stop all kinds of servers, print and store; return the exit status."""
    parser = proofs.arguments_for(__doc__ or "", "servers/wspy_shutdown.py", CLIENTS)
    parser.add_argument("--runs", type=int, default=10, help="of each part (default: %(default)s)")
    arguments = proofs.read_arguments(parser, CLIENTS)
    return proofs.conclude(arguments, {part: partial(run_part, part, arguments) for part in arguments.part})


if __name__ == "__main__":
    sys.exit(main())
