"""What do the extensions of a ``websocket`` make of what it sends and receives?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .codes import CloseCode, Opcode
from .errors import ProtocolError
from .frames import FIN, Frame, received_frame
from .messages import create_message

if TYPE_CHECKING:
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
        has_frames: whether one of them transforms single frames.
        chain: the extensions.
    """

    __slots__ = ("_is_sending", "_opcodes", "chain", "has_frames")

    def __init__(self, agreed: Agreement, max_size: int | None) -> None:
        self.chain: Chain = agreed.chain(max_size)
        self.has_frames = agreed.has_frames
        self._opcodes = agreed.opcodes
        self._is_sending = False

    def message(self, message: Sendable) -> Frame:
        """Return a message as one frame, for ``frames``.

        Raises:
            TypeError: it is no message.
            ValueError: its opcode is none that was claimed, or a text has a lone surrogate.
        """
        whole = create_message(message, self._opcodes)
        return received_frame(whole.opcode, whole.bytes)

    def enter(self) -> None:
        """Begin to send something.

        Raises:
            RuntimeError: a signal handler sends while its thread does: what both say would depend on each other.
        """
        if self._is_sending:
            raise RuntimeError("the extensions of this websocket are at work in a call that this one has interrupted")
        self._is_sending = True

    def leave(self) -> None:
        """End what ``enter`` has begun."""
        self._is_sending = False

    def frames(self, frame: Frame, fragment_size: int | None) -> list[Frame]:
        """Return the frames that are sent instead of a message."""
        parts = self.chain.send(frame, fragment_size)
        return [
            received_frame(first & 0x0F, payload, final=bool(first & FIN), rsv=first & 0x70) for first, payload in parts
        ]

    def single(self, frame: Frame) -> Frame:
        """Return the frame that is sent instead of one that the user has made; control frames stay what they are."""
        if not self.has_frames or frame.unchecked or frame.opcode >= Opcode.CLOSE:
            return frame
        return self.chain.send_frame(frame)

    def whole(self, frames: list[Frame]) -> Frame:
        """Return what a message says whose frames have arrived.

        Raises:
            ProtocolError: it breaks a rule of an extension, is too long, or no UTF-8 although it is a text.
        """
        frame = frames[0]
        if len(frames) > 1:
            rsv = frame.first_byte() & 0x70  # those of the message (RFC 7692 §6.1)
            frame = received_frame(frame.opcode, b"".join([each.payload for each in frames]), rsv=rsv)
        frame = self.chain.receive_message(frame)
        if frame.opcode == Opcode.TEXT:
            try:
                frame.payload.decode()
            except UnicodeDecodeError:
                raise ProtocolError(
                    CloseCode.INVALID_DATA, "a text message is not valid UTF-8 (RFC 6455 §8.1)"
                ) from None
        return frame
