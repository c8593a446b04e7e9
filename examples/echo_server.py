"""Echo every message, and serve a page to try it in a browser: python echo_server.py [PORT]."""

from __future__ import annotations

import sys
from pathlib import Path

import wspy

PAGE = Path(__file__).with_name("echo.html").read_bytes()


class EchoServer(wspy.AsyncServer):
    def onrequest(self, request: wspy.Request) -> wspy.Response | None:
        if request.is_websocket:
            return None  # go on with the WebSocket
        if request.path.partition("?")[0] != "/":
            return wspy.Response(404, body="There is only a page at /\n")
        return wspy.Response(200, headers={"Content-Type": "text/html; charset=utf-8"}, body=PAGE)

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    try:
        server = EchoServer(("127.0.0.1", port))
    except OSError as error:
        sys.exit(f"can't serve: {error}")
    # Printed by the running server: from then on Ctrl-C ends it gracefully.
    server.call_soon(lambda: print("http://{}:{}/".format(*server.address), flush=True))
    server.run()
