"""The server of memory.py: it takes one scenario by name, and tells after each line what it has: see that.

    python memory_server.py SCENARIO [PEM]

It writes its port. A line is a number of bytes: when so many have come, and were handled, it writes an object.
"""

from __future__ import annotations

import gc
import json
import resource
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any

import wspy

BACKLOG = [bytes(1024)] * 16
SECONDS = 60.0


class EchoServer(wspy.AsyncServer):
    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)


class TalkativeServer(wspy.AsyncServer):
    """A server that answers with more than its clients take."""

    def onmessage(self, client: wspy.AsyncClient, _: wspy.Message) -> None:
        for message in BACKLOG:
            client.send(message)


class NotingServer(TalkativeServer):
    """The same, of which Python keeps what was sent, too."""

    def onmessage(self, client: wspy.AsyncClient, _: wspy.Message) -> None:
        for message in BACKLOG:
            client.send(bytearray(message))

    def onsent(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        pass


class PausingServer(wspy.AsyncServer):
    """A server that lets messages wait, those that have come with the first one."""

    def onmessage(self, client: wspy.AsyncClient, _: wspy.Message) -> None:
        client.pause_reading()


def listener() -> socket.socket:
    """Return a socket of which connections inherit that the kernel keeps little of what isn't read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sock.bind(("127.0.0.1", 0))
    sock.listen(1024)
    return sock


def make_server(scenario: str, pem: str | None) -> Any:
    """Return what serves a scenario."""
    options: dict[str, Any] = {"max_connections": None, "ping_interval": None, "write_timeout": None}
    if scenario == "idle-drop-request":
        options["keep_request"] = False
    if scenario.startswith("windows"):
        bits = 12 if scenario.endswith("12") else 15
        options["extensions"] = [wspy.DeflateMessage(server_max_window_bits=bits, client_max_window_bits=bits)]
    if scenario == "tls":
        options["ssl"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        options["ssl"].load_cert_chain(str(pem))
    kinds = {"queue": TalkativeServer, "sent": NotingServer, "threads": ThreadServer, "paused": PausingServer}
    return kinds.get(scenario, EchoServer)(listener(), **options)


class ThreadServer(wspy.Server):
    def onmessage(self, client: wspy.Client, message: wspy.Message) -> None:
        client.send(message)


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def wait_for(server: Any, count: int) -> None:
    """Return when so many bytes have come and handlers have returned."""
    end = time.monotonic() + SECONDS
    while server.stats()["bytes_received"] < count:
        if time.monotonic() > end:
            sys.exit(f"{count} bytes have not come: {server.stats()}")
        time.sleep(0.01)
    for _ in range(2):  # what was queued by the first leaves before the second
        handled = threading.Event()
        server.call_soon(handled.set)
        handled.wait(SECONDS)


def told(server: Any) -> dict[str, Any]:
    """Return what the server says of itself, and what the system says."""
    gc.collect()
    found = resident()  # before, since asking takes some, too
    start = time.perf_counter()
    memory = server.memory()
    milliseconds = (time.perf_counter() - start) * 1000
    return {
        "clients": len(server.clients),
        "memory": memory._asdict(),
        "total": memory.total,
        "resident": found,
        "milliseconds": milliseconds,
    }


def main() -> None:
    """Serve until there are no more lines."""
    server = make_server(sys.argv[1], *(sys.argv[2:] or [None]))
    print(server.address[1], flush=True)
    with server.start():
        for line in sys.stdin:
            wait_for(server, int(line))
            print(json.dumps(told(server)), flush=True)


if __name__ == "__main__":
    main()
