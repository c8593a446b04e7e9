"""Does a client ask as RFC 6455 §4.1 has it, and take no answer but the right one?"""

from __future__ import annotations

from wspy.client_handshake import ClientHandshake
from wspy.handshake import ServerHandshake
from wspy.uri import parse_uri


def test_a_client_and_our_own_server() -> None:
    server = ServerHandshake(protocols=["chat"])
    client = ClientHandshake(parse_uri("ws://a/b?c"), protocols=["superchat", "chat"])
    request = server.read(client.request)
    assert (request.path, request.headers["host"]) == ("/b?c", "a")
    assert client.feed(server.accept(request).response + b"\x81\x00")
    assert (client.subprotocol, client.rest) == ("chat", b"\x81\x00")
