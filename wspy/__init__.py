"""WebSockets at every level of the protocol (RFC 6455).

Start with ``AsyncServer``: subclass it, override handlers such as ``onmessage``, and ``run`` it. Its docstring lists
every argument and handler; those of ``AsyncClient`` say what a handler can do with a connection.

    import wspy

    class Echo(wspy.AsyncServer):
        def onmessage(self, client, message):
            client.send(message)

    Echo(("127.0.0.1", 8000)).run()

``Server`` does the same with a thread for each client, so that handlers may wait.

What else there is:

- ``TextMessage`` and ``BinaryMessage``: what arrives. A str or bytes can be sent as it is.
- ``Request`` and ``Response``: plain HTTP on the same port, by ``onrequest``.
- ``SocketClosed``: raised by what sends on a closing connection. ``HandshakeError``: raise it to refuse a request.
  ``ResponseError``: how a server refused this side's.
- ``Connection``: messages, for clients (``Connection.connect("wss://...")``) and for servers of your own making.
- ``websocket``: a socket that sends and receives single frames.
- ``Frame`` and ``ControlFrame``: single frames; ``read_frame``, ``pop_frame``, ``contains_frame``, ``receive_frame``,
  ``create_close_frame`` and ``mask``: from bytes and to them.
- ``Protocol``: the protocol without I/O, for both roles, to use with sockets of your own.
- ``DeflateMessage``: compression (RFC 7692), for ``extensions=`` of a server; ``DeflateFrame``, its predecessor;
  ``Extension``, to write others.
- ``BasicAuth`` and ``DigestAuth``: who is let in, for ``auth=`` of a server; ``Auth``, ``Challenge`` and
  ``StaleError``, to write others.
- ``CloseCode``, ``Opcode`` and ``Role``: the numbers of RFC 6455, also as ``CLOSE_NORMAL``, ``OPCODE_TEXT`` and so on.

An asyncio API is not there yet.
"""

from __future__ import annotations

from .async_client import AsyncClient, Clients
from .async_server import AsyncServer
from .auth import Challenge
from .closure import Closure
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
from .connection import Connection
from .deflate import DeflateFrame, DeflateMessage
from .errors import (
    CoreError,
    HandshakeError,
    PingError,
    ProtocolError,
    ResponseError,
    SocketClosed,
    SSLError,
    WebSocketError,
    WriteLimitError,
)
from .extensions import Extension
from .frames import (
    ControlFrame,
    Frame,
    contains_frame,
    create_close_frame,
    mask,
    pop_frame,
    read_frame,
    receive_frame,
)
from .headers import Headers
from .http11 import Request, Response
from .memory import Memory
from .messages import BinaryMessage, Message, TextMessage
from .protocol import Protocol
from .server import Server
from .server_auth import Auth, BasicAuth, DigestAuth, StaleError
from .server_client import Client
from .version import __version__
from .websocket import websocket

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
    "Auth",
    "BasicAuth",
    "BinaryMessage",
    "Challenge",
    "Client",
    "Clients",
    "CloseCode",
    "Closure",
    "Connection",
    "ControlFrame",
    "CoreError",
    "DeflateFrame",
    "DeflateMessage",
    "DigestAuth",
    "Extension",
    "Frame",
    "HandshakeError",
    "Headers",
    "Memory",
    "Message",
    "Opcode",
    "PingError",
    "Protocol",
    "ProtocolError",
    "Request",
    "Response",
    "ResponseError",
    "Role",
    "SSLError",
    "Server",
    "SocketClosed",
    "StaleError",
    "TextMessage",
    "WebSocketError",
    "WriteLimitError",
    "__version__",
    "contains_frame",
    "create_close_frame",
    "mask",
    "pop_frame",
    "read_frame",
    "receive_frame",
    "websocket",
]
