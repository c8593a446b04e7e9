"""Is every response head that RFC 9112 or a limit forbids refused, and is the end of a body found?"""

from __future__ import annotations

from wspy.http_response import parse_response


def test_the_example_of_rfc_6455_1_2() -> None:
    head = parse_response(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    assert head[:3] == (101, "Switching Protocols", "1.1")
    assert dict(head.headers) == {"Upgrade": "websocket", "Connection": "Upgrade"}
