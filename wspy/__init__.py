"""WebSockets at every level of the protocol (RFC 6455)."""

from __future__ import annotations

from .async_client import AsyncClient, Clients
from .async_server import AsyncServer
from .codes import (
    CLOSE_ABNORMAL,
    CLOSE_BAD_GATEWAY,
    CLOSE_GOING_AWAY,
    CLOSE_INVALID_DATA,
    CLOSE_MESSAGE_TOOBIG,
    CLOSE_MISSING_EXTENSIONS,
    CLOSE_NO_STATUS,
    CLOSE_NOACCEPT_DTYPE,
    CLOSE_NORMAL,
    CLOSE_POLICY,
    CLOSE_PROTOCOL_ERROR,
    CLOSE_SERVICE_RESTART,
    CLOSE_TLS_HANDSHAKE,
    CLOSE_TRY_AGAIN_LATER,
    CLOSE_UNABLE,
    OPCODE_BINARY,
    OPCODE_CLOSE,
    OPCODE_CONTINUATION,
    OPCODE_PING,
    OPCODE_PONG,
    OPCODE_TEXT,
    CloseCode,
    Opcode,
    Role,
)
from .errors import CoreError, HandshakeError, PingError, ProtocolError, SocketClosed, SSLError, WebSocketError
from .frames import Frame
from .headers import Headers
from .http11 import Request, Response
from .messages import BinaryMessage, Message, TextMessage
from .protocol import Protocol
from .version import __version__

__all__ = [
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
    "AsyncClient",
    "AsyncServer",
    "BinaryMessage",
    "Clients",
    "CloseCode",
    "CoreError",
    "Frame",
    "HandshakeError",
    "Headers",
    "Message",
    "Opcode",
    "PingError",
    "Protocol",
    "ProtocolError",
    "Request",
    "Response",
    "Role",
    "SSLError",
    "SocketClosed",
    "TextMessage",
    "WebSocketError",
    "__version__",
]
