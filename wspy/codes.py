"""Numbers of RFC 6455: operation codes, close codes and roles.

The plain ``OPCODE_*`` and ``CLOSE_*`` names are those of the original wspy; they are the same enum members, and so
compare and print as integers.
"""

from __future__ import annotations

from enum import IntEnum

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
    "CloseCode",
    "Opcode",
    "Role",
]


class Opcode(IntEnum):
    """Operation codes of frames, RFC 6455 §5.2."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """Close codes, RFC 6455 §7.4.1 and the IANA registry.

    ``NO_STATUS``, ``ABNORMAL`` and ``TLS_HANDSHAKE`` are only reported, never sent.
    """

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


class Role(IntEnum):
    """Which end of a connection this is, RFC 6455 §2."""

    SERVER = 0
    CLIENT = 1


OPCODE_CONTINUATION = Opcode.CONTINUATION
OPCODE_TEXT = Opcode.TEXT
OPCODE_BINARY = Opcode.BINARY
OPCODE_CLOSE = Opcode.CLOSE
OPCODE_PING = Opcode.PING
OPCODE_PONG = Opcode.PONG

CLOSE_NORMAL = CloseCode.NORMAL
CLOSE_GOING_AWAY = CloseCode.GOING_AWAY
CLOSE_PROTOCOL_ERROR = CloseCode.PROTOCOL_ERROR
CLOSE_NOACCEPT_DTYPE = CloseCode.UNSUPPORTED_DATA
CLOSE_NO_STATUS = CloseCode.NO_STATUS
CLOSE_ABNORMAL = CloseCode.ABNORMAL
CLOSE_INVALID_DATA = CloseCode.INVALID_DATA
CLOSE_POLICY = CloseCode.POLICY_VIOLATION
CLOSE_MESSAGE_TOOBIG = CloseCode.MESSAGE_TOO_BIG
CLOSE_MISSING_EXTENSIONS = CloseCode.MANDATORY_EXTENSION
CLOSE_UNABLE = CloseCode.INTERNAL_ERROR
CLOSE_SERVICE_RESTART = CloseCode.SERVICE_RESTART
CLOSE_TRY_AGAIN_LATER = CloseCode.TRY_AGAIN_LATER
CLOSE_BAD_GATEWAY = CloseCode.BAD_GATEWAY
CLOSE_TLS_HANDSHAKE = CloseCode.TLS_HANDSHAKE
