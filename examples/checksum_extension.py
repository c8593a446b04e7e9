"""Echo messages with a CRC-32 behind each, for what TCP misses, marked by RSV2: python checksum_extension.py [PORT]."""

from __future__ import annotations

import sys
import zlib
from typing import ClassVar

import wspy


class Checksum(wspy.Extension):
    names: ClassVar = ("x-crc32",)
    rsv2: ClassVar = True

    class Instance(wspy.Extension.Instance):
        def onsend(self, frame: wspy.Frame) -> wspy.Frame:
            return wspy.Frame(frame.opcode, frame.payload + zlib.crc32(frame.payload).to_bytes(4), rsv2=True)

        def onrecv(self, frame: wspy.Frame) -> wspy.Frame:
            payload, checksum = frame.payload[:-4], frame.payload[-4:]
            if not frame.rsv2 or zlib.crc32(payload).to_bytes(4) != checksum:
                raise wspy.ProtocolError(wspy.CLOSE_INVALID_DATA, "a checksum is wrong")
            return wspy.Frame(frame.opcode, payload, unchecked=True)  # the server looks whether it is UTF-8


class EchoServer(wspy.AsyncServer):
    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    try:
        server = EchoServer(("127.0.0.1", port), extensions=[Checksum, wspy.DeflateMessage])
    except OSError as error:
        sys.exit(f"can't serve: {error}")
    server.call_soon(lambda: print("ws://{}:{}/".format(*server.address), flush=True))
    server.run()
