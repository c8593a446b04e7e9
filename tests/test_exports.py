"""Which names are public? They stay: one that goes away is missed by somebody."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import wspy

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
        "SSLError",
        "SocketClosed",
        "WebSocketError",
    ],
    "frames": ["Frame"],
    "headers": ["Headers"],
    "http11": ["Request", "Response"],
    "messages": ["BinaryMessage", "Message", "TextMessage"],
    "protocol": ["Protocol"],
    "version": ["__version__"],
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
