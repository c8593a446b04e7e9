"""What do the extensions of a ``websocket`` make of what it sends and receives?"""

from __future__ import annotations

from collections import deque
from copy import copy
from typing import TYPE_CHECKING

from .codes import CloseCode, Opcode
from .errors import ProtocolError
from .frames import FIN, Frame, received_frame
from .messages import create_message

if TYPE_CHECKING:
    from collections.abc import Callable

    from .extensions import Agreement, Chain
    from .messages import Sendable

__all__ = ["Extending"]


class Extending:
    """The extensions of one ``websocket`` at work.

    One thread may send while another one receives, but no two may do the same.

    Args:
        agreed: what both ends have agreed upon.
        max_size: of a message that was received and transformed, in bytes; None for no limit.

    Attributes:
        chain: the extensions.
        has_frames: whether one of them transforms single frames.
        has_failed: whether what still arrives can't be understood.
        sender: the thread in which they are transforming something that is sent; 0 if there is none.
        delayed: what the extension itself, or a signal handler, has asked to be sent meanwhile. It comes behind that.
    """

    __slots__ = ("_opcodes", "_reads_all", "chain", "delayed", "has_failed", "has_frames", "sender")

    def __init__(self, agreed: Agreement, max_size: int | None) -> None:
        self.chain: Chain = agreed.chain(max_size)
        self.has_frames = agreed.has_frames
        self.has_failed = False
        self.sender = 0
        self.delayed: deque[Callable[[], object]] = deque()
        self._opcodes = agreed.opcodes
        self._reads_all = agreed.reads_all

    def message(self, message: Sendable, compress: bool | None) -> Frame:
        """Return a message as one frame, for ``frames``.

        Raises:
            TypeError: it is no message.
            ValueError: its opcode is none that was claimed, or a text has a lone surrogate.
        """
        whole = create_message(message, self._opcodes)
        frame = received_frame(whole.opcode, whole.bytes)
        frame.compress = compress
        return frame

    def frames(self, frame: Frame, fragment_size: int | None) -> list[Frame]:
        """Return the frames that are sent instead of a message."""
        parts = self.chain.send(frame, fragment_size)
        return [
            received_frame(first & 0x0F, payload, final=bool(first & FIN), rsv=first & 0x70) for first, payload in parts
        ]

    def singles(self, frames: tuple[Frame, ...]) -> list[Frame]:
        """Return the frames that are sent instead of those that the user has made, see ``single``."""
        return list(map(self.single, frames))

    def single(self, frame: Frame) -> Frame:
        """Return the frame that is sent instead of one that the user has made."""
        if frame.unchecked:
            return frame
        # a copy: the user's own stays what it is, whatever extensions do with it
        if frame.opcode >= Opcode.CLOSE:
            return self.chain.send_control(copy(frame)) if frame.opcode > Opcode.PONG else frame
        return self.chain.send_frame(copy(frame)) if self.has_frames else frame

    def reads(self, opcode: int, rsv: int) -> bool:
        """Whether a message is for an extension to read; others were checked by the protocol and are what they are.

        Args:
            opcode: of the message.
            rsv: the reserved bits of its first frame.
        """
        return self._reads_all or bool(rsv) or opcode > Opcode.BINARY

    def whole(self, frames: list[Frame]) -> Frame:
        """Return what a message says whose frames have arrived.

        Raises:
            ProtocolError: it breaks a rule of an extension, is too long, or no UTF-8 although it is a text.
        """
        frame = frames[0]
        rsv = frame.first_byte() & 0x70  # those of the message (RFC 7692 §6.1)
        if len(frames) > 1:
            frame = received_frame(frame.opcode, b"".join([each.payload for each in frames]), rsv=rsv)
        if not self.reads(frame.opcode, rsv):
            return frame
        frame = self.chain.receive_message(frame)
        if frame.opcode == Opcode.TEXT:
            _check_text(frame.payload)
        return frame


def _check_text(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise ProtocolError(CloseCode.INVALID_DATA, "a text message is not valid UTF-8 (RFC 6455 §8.1)") from None
