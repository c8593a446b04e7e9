"""Let in who has a token, as programs send it (Bearer) or as browsers do (a cookie): python token_server.py [PORT]."""

from __future__ import annotations

import hashlib
import re
import secrets
import sys

import wspy


def digest(token: str) -> bytes:
    """Tokens are looked up by this: how long it takes tells nothing about them."""
    return hashlib.sha256(token.encode()).digest()


class TokenServer(wspy.AsyncServer):
    names: dict[bytes, str] = {}  # noqa: RUF012 -- there is one server

    def onrequest(self, request: wspy.Request) -> wspy.Response | None:
        found = re.fullmatch(r"Bearer +(\S+)", request.headers.get("Authorization", ""), re.IGNORECASE)
        found = found or re.search(r"(?:^|; )token=([\w-]+)", request.headers.get("Cookie", ""))
        request.username = self.names.get(digest(found[1])) if found else None
        if request.username is None:
            return wspy.Response(401, headers={"WWW-Authenticate": "Bearer"}, body="Who are you?\n")
        return None

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(f"{client.username} says: {message.bytes.decode(errors='replace')}")


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    try:
        # A browser sends the cookie for pages of any origin: only those of this one may use it.
        server = TokenServer(("127.0.0.1", port), trusted_origins="same-origin")
    except OSError as error:
        sys.exit(f"can't serve: {error}")
    token = secrets.token_urlsafe()
    server.names[digest(token)] = "Anna"
    server.call_soon(lambda: print("ws://{}:{}/\nAnna's token: {}".format(*server.address, token), flush=True))
    server.run()
