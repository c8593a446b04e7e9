"""The protocol of RFC 6455 §5 to §7 for one end of a connection: bytes in; events, owed replies and errors out.

No I/O and no clock: whoever holds the transport brings what arrived and sends what is owed.
"""

from __future__ import annotations

from operator import index

from ._core import lib

__all__ = ["close_payload"]

_MAX_REASON = 123  # §5.5: a control frame holds 125 bytes, the code takes two


def close_payload(code: int | None, reason: str = "") -> bytes:
    """Return the payload of a Close frame, RFC 6455 §5.5.1. Thread-safe.

    Args:
        code: 1000 to 1003, 1007 to 1014, or 3000 to 4999 (§7.4 and the IANA registry); None for an empty payload.
        reason: at most 123 bytes as UTF-8; it is never cut.

    Raises:
        TypeError: ``code`` isn't an integer, or ``reason`` isn't a string.
        ValueError: a Close frame may not carry this code; the reason is too long, has a lone surrogate
            (``UnicodeEncodeError``), or comes without a code.
    """
    if not isinstance(reason, str):
        raise TypeError(f"reason must be str, not {type(reason).__name__}")
    if code is None:
        if reason:
            raise ValueError("a reason needs a code")
        return b""
    number = index(code)
    if not (0 <= number <= 0xFFFF and lib.wspy_close_code_valid(number)):
        raise ValueError(f"a Close frame can't carry the code {number}")
    encoded = reason.encode()
    if len(encoded) > _MAX_REASON:
        raise ValueError(f"a reason has at most {_MAX_REASON} bytes, this one has {len(encoded)}")
    return number.to_bytes(2) + encoded
