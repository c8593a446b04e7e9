"""One blocking client of one library: what does a round trip cost it? python client_load.py LIBRARY PORT DEPTH SECONDS.

DEPTH messages of 32 bytes are on their way at any time; each answer is compared with what was sent, and followed by the
next message. Prints a JSON object with the CPU time of this process, or ends with status 1 if an answer is wrong.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Client = tuple[Callable[[bytes], object], Callable[[], object]]

MESSAGES = 64
SIZE = 32
SETTLE_SECONDS = 0.2


def wspy(url: str, stack: ExitStack) -> Client:
    """Return send and receive of wspy.Connection; the end of the stack closes it."""
    from wspy import Connection  # noqa: PLC0415 -- the others may be missing

    connection = stack.enter_context(Connection.connect(url))
    return connection.send, lambda: connection.recv().payload


def websockets(url: str, stack: ExitStack) -> Client:
    """Return the same of websockets.sync.client."""
    from websockets.sync.client import connect  # noqa: PLC0415 -- the same

    connection = stack.enter_context(connect(url, compression=None, ping_interval=None, proxy=None))
    return connection.send, connection.recv


def websocket_client(url: str, stack: ExitStack) -> Client:
    """Return the same of websocket-client, whose module is websocket."""
    from websocket import create_connection  # noqa: PLC0415 -- the same

    connection = create_connection(url)
    stack.callback(connection.close)
    return connection.send_binary, connection.recv


def bare_socket(url: str, stack: ExitStack) -> Client:
    """Return the same of nothing but a socket, whose frames need no masking and whose answers have 34 bytes."""
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", int(url.strip("/").rpartition(":")[2]))))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(REQUEST)
    buffer = bytearray()
    while b"\r\n\r\n" not in buffer:
        buffer += connection.recv(4096)
    buffer.clear()
    header = bytes([0x82, 0x80 | SIZE, 0, 0, 0, 0])  # a masking key of zeros masks nothing

    def receive() -> bytes:
        while len(buffer) < SIZE + 2:
            buffer.extend(connection.recv(16_384))
        payload = bytes(buffer[2 : SIZE + 2])
        del buffer[: SIZE + 2]
        return payload

    return lambda payload: connection.send(header + payload), receive


REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
LIBRARIES = {"wspy": wspy, "websockets": websockets, "websocket-client": websocket_client, "socket": bare_socket}


def exchange(client: Client, depth: int, seconds: float) -> int:
    """Send and receive for so long; return the number of answers. Raises ValueError if one is wrong."""
    send, receive = client
    chance = random.Random(1)
    payloads = [chance.randbytes(SIZE) for _ in range(MESSAGES)]
    for number in range(depth):
        send(payloads[number])
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for number in range(MESSAGES):
            if receive() != payloads[number]:
                raise ValueError("an answer differs from what was sent")
            send(payloads[(number + depth) % MESSAGES])
        count += MESSAGES
    for number in range(depth):
        if receive() != payloads[number]:
            raise ValueError("an answer differs from what was sent")
    return count + depth


def main() -> int:
    """Measure, and print what was measured; return the exit status."""
    library, port, depth, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    with ExitStack() as stack:
        client = LIBRARIES[library](f"ws://127.0.0.1:{port}/", stack)
        try:
            exchange(client, depth, min(SETTLE_SECONDS, seconds))
            began, used = time.monotonic(), time.process_time()
            count = exchange(client, depth, seconds)
            took, used = time.monotonic() - began, time.process_time() - used
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
    figures = {
        "client_cpu_us": used / count * 1e6,
        "client_cpu_percent": used / took * 100,
        "per_second": count / took,
        "messages": count,
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
