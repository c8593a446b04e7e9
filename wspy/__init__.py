"""WebSockets at every level of the protocol (RFC 6455)."""

from __future__ import annotations

from .async_client import AsyncClient
from .async_server import AsyncServer
from .codes import *  # noqa: F403
from .errors import CoreError, HandshakeError, PingError, ProtocolError, SocketClosed, SSLError, WebSocketError
from .frames import Frame
from .http11 import Request, Response
from .messages import BinaryMessage, Message, TextMessage
from .version import __version__
