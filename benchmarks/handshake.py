"""How much CPU does an opening handshake take in Python: from a request head to the 101, without I/O?

    python benchmarks/handshake.py [--repeat 15]

prints the best and the median of several runs in microseconds of this process. Targets: the small head in at most
7 µs, Chromium's in at most 12 µs.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from typing import TYPE_CHECKING

from wspy.errors import HandshakeError
from wspy.handshake import ServerHandshake

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
SMALL = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:9001\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    + KEY
    + b"Sec-WebSocket-Version: 13\r\n\r\n"
)
CHROMIUM = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:9001\r\nConnection: Upgrade\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
    b"\r\nUpgrade: websocket\r\nOrigin: http://127.0.0.1:9001\r\nSec-WebSocket-Version: 13\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\n"
    + KEY
    + b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)
COOKIE = CHROMIUM[:-2] + b"Cookie: session=" + b"0123456789abcdef" * 8 + b"\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
REFUSED = SMALL.replace(b"Version: 13", b"Version: 8")
LARGE = SMALL[:-2] + (b"X: " + b"y" * 7995 + b"\r\n") * 8 + b"\r\n"


def measure(function: Callable[[], object], repeat: int, count: int) -> tuple[float, float]:
    """Return the best and the median of some runs, in microseconds of CPU per call."""
    runs = []
    for _ in range(repeat):
        start = time.process_time()
        for _ in range(count):
            function()
        runs.append((time.process_time() - start) / count * 1e6)
    return min(runs), statistics.median(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=15, help="runs of each measurement")
    repeat: int = parser.parse_args().repeat

    plain = ServerHandshake(server_header="wspy")
    strict = ServerHandshake(
        server_header="wspy", protocols=["chat"], trusted_origins="same-origin", locations=["/"], require_origin=True
    )

    def refuse(head: bytes) -> bytes:
        try:
            return plain.accept(plain.read(head)).response
        except HandshakeError as error:
            return plain.refuse(error, head)

    cases: list[tuple[str, bytes, Callable[[bytes], object]]] = [
        ("small: read and accept", SMALL, lambda head: plain.accept(plain.read(head))),
        ("small: read", SMALL, plain.read),
        ("Chromium: read and accept", CHROMIUM, lambda head: plain.accept(plain.read(head))),
        ("Chromium: read", CHROMIUM, plain.read),
        ("Chromium, cookie, every policy", COOKIE, lambda head: strict.accept(strict.read(head))),
        ("small: refused with 426", REFUSED, refuse),
        ("64 KiB: read and accept", LARGE, lambda head: plain.accept(plain.read(head))),
    ]
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}")
    gc.disable()
    for name, head, function in cases:
        best, median = measure(
            lambda head=head, function=function: function(head), repeat, max(20, 3_000_000 // len(head))
        )
        print(f"{name:34} {len(head):6} bytes   best {best:7.2f} µs   median {median:7.2f} µs")


if __name__ == "__main__":
    main()
