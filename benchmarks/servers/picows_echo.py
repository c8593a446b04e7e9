"""picows: what comes in goes out: python picows_echo.py PORT [asyncio] [tls=PEM].

On uvloop, unless asyncio is asked for. picows hands over frames and leaves it to its user to join fragments.
"""

from __future__ import annotations

import asyncio
import ssl
import sys

from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server


class Echo(WSListener):
    def __init__(self) -> None:
        self.opcode = WSMsgType.CONTINUATION
        self.fragments: list[bytes] = []

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        opcode = frame.msg_type
        if opcode == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        elif frame.fin and opcode != WSMsgType.CONTINUATION:
            transport.send(opcode, frame.get_payload_as_bytes())
        else:
            self.join(transport, frame)

    def join(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type != WSMsgType.CONTINUATION:
            self.opcode = frame.msg_type
        self.fragments.append(frame.get_payload_as_bytes())
        if frame.fin:
            transport.send(self.opcode, b"".join(self.fragments))
            self.fragments.clear()


def listener(_request: WSUpgradeRequest) -> Echo:
    return Echo()


def tls() -> ssl.SSLContext | None:
    files = [word.removeprefix("tls=") for word in sys.argv if word.startswith("tls=")]
    if not files:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files[0])
    return context


async def main() -> None:
    server = await ws_create_server(listener, "127.0.0.1", int(sys.argv[1]), ssl=tls())
    await server.serve_forever()


if __name__ == "__main__":
    if "asyncio" in sys.argv:
        asyncio.run(main())
    else:
        import uvloop

        uvloop.run(main())
