"""socketify, uWebSockets in C++ called through cffi: what comes in goes out: python socketify_echo.py PORT.

Compression is off, as in the other servers; the limits are those of the other servers.
"""

from __future__ import annotations

import sys

from socketify import App, CompressOptions, OpCode, WebSocket


def echo(connection: WebSocket, message: str | bytes, opcode: OpCode) -> None:
    connection.send(message, opcode)


if __name__ == "__main__":
    app = App()
    behaviour = {
        "compression": CompressOptions.DISABLED,
        "max_payload_length": 1 << 20,
        "max_backpressure": 16 << 20,
        "idle_timeout": 120,
        "message": echo,
    }
    app.ws("/*", behaviour)
    app.listen({"host": "127.0.0.1", "port": int(sys.argv[1])}, lambda _config: None)
    app.run()
