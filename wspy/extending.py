"""What do the extensions of a ``websocket`` make of what it sends and receives?"""

from __future__ import annotations

import logging
from copy import copy
from typing import TYPE_CHECKING

from .codes import CloseCode, Opcode
from .deadline import NEVER, Deadline
from .errors import ProtocolError
from .frames import FIN, Frame, received_frame
from .messages import create_message

if TYPE_CHECKING:
    from .extensions import Agreement, Chain, Extension
    from .messages import Sendable

__all__ = ["Extending"]

log = logging.getLogger("wspy.websocket")


class Extending:
    """The extensions of one ``websocket`` at work.

    One thread may send while another one receives, but no two may do the same.

    Args:
        agreed: what both ends have agreed upon.
        max_size: of a message that was received and transformed, in bytes; None for no limit.

    Attributes:
        chain: the extensions.
        next_look: when ``look_idle`` should be called.
        has_frames: whether one of them transforms single frames.
        has_failed: whether what still arrives can't be understood.
    """

    __slots__ = (
        "_looks",
        "_opcodes",
        "_reads_all",
        "_sent",
        "chain",
        "has_failed",
        "has_frames",
        "next_look",
    )

    def __init__(self, agreed: Agreement, max_size: int | None) -> None:
        self.chain: Chain = agreed.chain(max_size)
        self.has_frames = agreed.has_frames
        self.has_failed = False
        self._sent = 0  # counted
        self._looks = [_Look(seconds, self.chain.idling(seconds)) for seconds in self.chain.idle_times()]
        self.next_look = NEVER
        self._set_next_look()
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
        self._sent += 1
        parts = self.chain.send(frame, fragment_size)
        return [
            received_frame(first & 0x0F, payload, final=bool(first & FIN), rsv=first & 0x70) for first, payload in parts
        ]

    def singles(self, frames: tuple[Frame, ...]) -> list[Frame]:
        """Return the frames that are sent instead of those that the user has made, see ``single``."""
        self._sent += 1
        return list(map(self.single, frames))

    def single(self, frame: Frame) -> Frame:
        """Return the frame that is sent instead of one that the user has made."""
        if frame.unchecked:
            return frame
        # a copy: the user's own stays what it is, whatever extensions do with it
        if frame.opcode >= Opcode.CLOSE:
            return self.chain.send_control(copy(frame)) if frame.opcode > Opcode.PONG else frame
        return self.chain.send_frame(copy(frame)) if self.has_frames else frame

    def look_idle(self) -> None:
        """Let extensions give back what they need to send, if nothing was sent for as long as they say."""
        for look in self._looks:
            if look.at.is_over:
                if look.seen == self._sent:
                    look.tell()
                look.seen, look.at = self._sent, Deadline(look.seconds)
        self._set_next_look()

    def look_later(self) -> None:
        """Put off what is due: something is being sent just now."""
        for look in self._looks:
            look.at = Deadline(look.seconds)
        self._set_next_look()

    def _set_next_look(self) -> None:
        self.next_look = NEVER
        for look in self._looks:
            self.next_look = self.next_look.earlier(look.at)

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


class _Look:
    """Who wants to hear that nothing was sent for so many seconds?"""

    __slots__ = ("at", "instances", "seconds", "seen")

    def __init__(self, seconds: float, instances: list[Extension.Instance]) -> None:
        self.seconds = seconds
        self.instances = instances
        self.at = Deadline(seconds)
        self.seen = 0  # of what was sent

    def tell(self) -> None:
        for instance in self.instances:
            try:
                instance.onidle()
            except Exception:
                log.exception("exception in onidle of an extension")


def _check_text(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise ProtocolError(CloseCode.INVALID_DATA, "a text message is not valid UTF-8 (RFC 6455 §8.1)") from None
