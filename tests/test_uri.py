"""Does a URI name what RFC 6455 §3 and RFC 3986 say, is everything else refused, and no password ever shown?"""

from __future__ import annotations

from wspy.uri import parse_uri


def test_the_example_of_rfc_6455_1_2() -> None:
    uri = parse_uri("ws://example.com/chat")
    assert uri == (False, "example.com", 80, "/chat", None, None)
    assert uri.host_header == "example.com"
