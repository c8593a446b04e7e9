"""Which names are public? They stay: one that goes away is missed by somebody."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from typing import Any

import pytest

import wspy
from wspy.http11 import parse_request

PUBLIC = {
    "async_client": ["AsyncClient", "Clients"],
    "async_server": ["AsyncServer"],
    "codes": [
        "CLOSE_ABNORMAL",
        "CLOSE_BAD_GATEWAY",
        "CLOSE_GOING_AWAY",
        "CLOSE_INVALID_DATA",
        "CLOSE_MESSAGE_TOOBIG",
        "CLOSE_MISSING_EXTENSIONS",
        "CLOSE_NOACCEPT_DTYPE",
        "CLOSE_NORMAL",
        "CLOSE_NO_STATUS",
        "CLOSE_POLICY",
        "CLOSE_PROTOCOL_ERROR",
        "CLOSE_SERVICE_RESTART",
        "CLOSE_TLS_HANDSHAKE",
        "CLOSE_TRY_AGAIN_LATER",
        "CLOSE_UNABLE",
        "OPCODE_BINARY",
        "OPCODE_CLOSE",
        "OPCODE_CONTINUATION",
        "OPCODE_PING",
        "OPCODE_PONG",
        "OPCODE_TEXT",
        "CloseCode",
        "Opcode",
        "Role",
    ],
    "errors": [
        "CoreError",
        "HandshakeError",
        "PingError",
        "ProtocolError",
        "ResponseError",
        "SSLError",
        "WriteLimitError",
        "SocketClosed",
        "WebSocketError",
    ],
    "connection": ["Connection"],
    "deflate": ["DeflateFrame", "DeflateMessage"],
    "extensions": ["Extension"],
    "frames": [
        "ControlFrame",
        "Frame",
        "contains_frame",
        "create_close_frame",
        "mask",
        "pop_frame",
        "read_frame",
        "receive_frame",
    ],
    "headers": ["Headers"],
    "http11": ["Request", "Response"],
    "memory": ["Memory"],
    "messages": ["BinaryMessage", "Message", "TextMessage"],
    "protocol": ["Protocol"],
    "server": ["Server"],
    "server_client": ["Client"],
    "version": ["__version__"],
    "auth": ["Challenge"],
    "closure": ["Closure"],
    "server_auth": ["Auth", "BasicAuth", "DigestAuth", "StaleError"],
    "websocket": ["websocket"],
}


def test_the_public_names_are_these() -> None:
    assert sorted(wspy.__all__) == sorted(name for names in PUBLIC.values() for name in names)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names])
def test_a_public_name_stands_for_that_of_its_module(module: str, name: str) -> None:
    home = importlib.import_module(f"wspy.{module}")
    assert getattr(wspy, name) is getattr(home, name)
    assert name in home.__all__


@pytest.mark.parametrize("module", ["codes", "errors"])
def test_these_modules_have_nothing_else(module: str) -> None:
    assert sorted(importlib.import_module(f"wspy.{module}").__all__) == sorted(PUBLIC[module])


def test_a_star_import_brings_the_public_names_alone() -> None:
    program = "before = {*globals(), 'before'}; from wspy import *; print(*sorted(globals().keys() - before))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert result.stdout.split() == sorted(wspy.__all__)


# What users may rely on; all else that instances have begins with an underscore.
ATTRIBUTES = {
    wspy.AsyncServer: "address broadcast call_later call_soon clients close fileno finished handle_events handshake "
    "join loop memory onclose onerror onframe onmessage onopen onping onpingreceived onpong onrequest onsent "
    "reload_tls run secure start stats stop",
    wspy.AsyncClient: "abort buffered_amount close closed closure data extensions latency path pause_reading "
    "remote_address request resume_reading secure send send_frame send_ping server ssl_object subprotocol username",
    wspy.Server: "address broadcast call_later call_soon client_threads clients close handshake join loop memory "
    "onclose onerror onframe onmessage onopen onping onpingreceived onpong onrequest onsent quit_gracefully reload_tls "
    "remove_client run secure start stats stop",
    wspy.Client: "abort buffered_amount close closed closure data extensions latency path pause_reading recv "
    "remote_address request resume_reading secure send send_frame send_ping server ssl_object subprotocol username",
}


@pytest.mark.parametrize(
    ("server_kind", "client_kind"), [(wspy.AsyncServer, wspy.AsyncClient), (wspy.Server, wspy.Client)]
)
def test_a_server_and_its_clients_show_their_public_attributes_alone(server_kind: Any, client_kind: Any) -> None:
    with server_kind(("127.0.0.1", 0)) as server:
        client = client_kind(server, 0, parse_request(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"), None)
        for instance in (server, client):
            names = [name for name in dir(instance) if not name.startswith("_")]
            assert names == ATTRIBUTES[type(instance)].split()


def test_the_docstring_of_the_server_describes_its_attributes() -> None:
    with wspy.AsyncServer(("127.0.0.1", 0)) as server:
        text = inspect.cleandoc(wspy.AsyncServer.__doc__ or "").split("Attributes:\n")[1].split("\n\n")[0]
        assert re.findall(r"^    (\w+): ", text, re.MULTILINE) == sorted(n for n in vars(server) if n[0] != "_")


def test_the_docstring_of_stats_explains_each_key() -> None:
    with wspy.AsyncServer(("127.0.0.1", 0)) as server:
        explained = re.findall(r"``(\w+)``", (server.stats.__doc__ or "").split("\n", 1)[1])
        assert server.stats().keys() <= set(explained)


def test_help_says_where_to_start() -> None:
    text = wspy.__doc__ or ""
    assert "Start with ``AsyncServer``" in text
    for name in re.findall(r"``([A-Z][A-Za-z_]+)``", text):
        assert name in wspy.__all__
