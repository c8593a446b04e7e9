"""Compression: permessage-deflate (RFC 7692) and its predecessor, deflate-frame.

A window is made when it is first needed: a connection that never compresses has none. What arrives is inflated no
further than its limit, so that a bomb costs that much memory and no more.
"""

from __future__ import annotations

import os
import re
import zlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, ClassVar, Final

from .codes import CloseCode, Opcode, Role
from .errors import ProtocolError
from .extensions import Extension, Parameters, checked_idle_seconds, too_big
from .frames import received_frame
from .limits import checked_count

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from .extensions import Value
    from .frames import Frame

__all__ = ["DeflateFrame", "DeflateMessage"]

# RFC 7692 §7.2.1: what ends a stream after Z_SYNC_FLUSH, and is not sent.
_TAIL: Final = b"\x00\x00\xff\xff"
_EMPTY: Final = b"\x00"  # §7.2.3.6: an empty block without its tail
# An empty stored block that is the last one: a stream that was cut off inside a block doesn't end with it.
_END: Final = b"\x01\x00\x00\xff\xff"
_TAIL_AND_END: Final = _TAIL + _END
_UNUSED: Final = (b"", _END)  # the latter if the last block was marked as that, and its length was not sent
_BITS: Final = re.compile(r"[89]|1[0-5]")  # §7.1.2: without leading zeros
# For want of a window of 256 bytes zlib refers back 250 bytes at most with one of 512.
_LEAST_ZLIB_BITS: Final = 9
# Z_MEM_ERROR, which zlib finds late: a window to inflate is made when it is first needed.
_NO_MEMORY: Final = "Error -4 "
_NO_LIMIT: Final = 1 << 62
# Of one message. What begins behind each takes 2 µs, and the peer two bytes that say nothing.
_MAX_LAST_BLOCKS: Final = 1000
# More than any window has.
_FULL: Final = 1 << 20
# So much is given to zlib, and taken from it, at once.
_PIECE: Final = 16_384
_STEP: Final = 65_536


# Compressors that nobody uses now, by their settings. Who needs one takes it away, so that neither another thread nor a
# signal handler can come between two of its calls; pop and append are atomic. Of what many threads have needed at once
# some are kept for each core.
_SPARE: Final = os.cpu_count() or 1
_idle: Final[defaultdict[tuple[int, int, int], list[Any]]] = defaultdict(list)


# What zlib 1.2.13 and CPython take for a stream, beside what depends on its settings.
_DEFLATE_STATE: Final = 6_400
_INFLATE_STATE: Final = 8_192


def _resident(size: int, used: int) -> int:
    """Return how much the system gives for a block whose first ``used`` bytes were written: by pages, once they are."""
    return min(size, used + 4096)


def _compressor_memory(settings: tuple[int, int, int], passed: int, largest: int, used_before: int = 0) -> int:
    """Return about how many bytes a compressor takes, by what zlib's zconf.h says of its blocks.

    Args:
        settings: level, memory level and bits of the window.
        passed: bytes that were compressed: so far windows have been written.
        largest: of the messages, in bytes: so far are symbols gathered, and output, before they leave.
        used_before: bytes of its window that something else has had before, and given back.
    """
    _, memory_level, bits = settings
    hashes = gathered = 1 << (memory_level + 8)
    window = links = 2 << bits
    return (
        _DEFLATE_STATE
        + hashes
        + _resident(gathered, largest + 4096)
        + _resident(window, passed + used_before)
        + _resident(links, 2 * passed)
    )


class Deflater:
    """One direction of a connection that is compressed: a stream with one window, or messages of their own.

    Args:
        bits: of the window, 8 to 15.
        takeover: whether a message may refer to those before it.
        level: 0 to 9, or -1 for zlib's default.
        memory_level: 1 to 9.
    """

    __slots__ = ("_compressor", "_idle", "_largest", "_noted", "_room", "_settings", "_takeover")

    def __init__(self, bits: int, *, takeover: bool, level: int, memory_level: int) -> None:
        self._settings = (level, memory_level, max(bits, _LEAST_ZLIB_BITS))
        self._takeover = takeover
        self._compressor: Any = None
        self._idle = _idle[self._settings]
        # of the window that was not written yet, and the longest message: for memory_used
        self._room = self._largest = 0
        self._noted = 0  # a message that is no longer than this changes neither

    @property
    def takeover(self) -> bool:
        """Whether a message may refer to those before it."""
        return self._takeover

    def deflate(self, data: bytes) -> bytes | None:
        """Return the compressed form of a message, RFC 7692 §7.2.1; None if there is no memory for that."""
        if not data:
            return _EMPTY
        try:
            return self._deflate_behind(data) if self._takeover else self._deflate_alone(data)
        except MemoryError:
            # it may have a part of the message in its window, which the peer is not going to have
            self._compressor = None
            return None

    def _deflate_behind(self, data: bytes) -> bytes:
        """Compress a message that may refer to those before it."""
        if self._compressor is None:
            self._compressor = self._new_compressor()
            self._room = 2 << self._settings[2]
            self._largest = self._noted = 0
        if len(data) > self._noted:
            self._note(len(data))
        output: bytes = self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        return output.removesuffix(_TAIL)

    def _note(self, size: int) -> None:
        """Note how much of the compressor's memory is written by a message."""
        self._room = max(self._room - size, 0)
        self._largest = max(self._largest, size)
        if not self._room:
            self._noted = self._largest

    def memory_used(self, used_before: int) -> int:
        """Return about how many bytes the window takes that this connection has, and what belongs to it; thread-safe.

        An estimate by how much was compressed: the system gives pages when they are first written.

        Args:
            used_before: bytes that the connection has needed for a moment, and that malloc is likely to use again here.
        """
        if self._compressor is None:
            return 0
        passed = (2 << self._settings[2]) - self._room
        return _compressor_memory(self._settings, passed, self._largest, used_before)

    def _deflate_alone(self, data: bytes) -> bytes:
        """Compress a message without context takeover, by a compressor of all such connections."""
        idle = self._idle
        try:
            compressor = idle.pop()
        except IndexError:
            compressor = self._new_compressor()
        # Z_FULL_FLUSH makes it forget; if something is raised in between, it is not used again
        packed: bytes = compressor.compress(data) + compressor.flush(zlib.Z_FULL_FLUSH)
        if len(idle) < _SPARE:
            idle.append(compressor)
        return packed.removesuffix(_TAIL)

    def _new_compressor(self) -> Any:
        level, memory_level, bits = self._settings
        return zlib.compressobj(level, zlib.DEFLATED, -bits, memory_level)

    def release(self) -> None:
        """Give the window back; what follows refers to nothing before it, which the peer need not know."""
        self._compressor = None


class Inflater:
    """The other direction.

    Args:
        bits: of the peer's window, 8 to 15.
        takeover: whether a message may refer to those before it.
    """

    __slots__ = ("_bits", "_room", "_stream", "_takeover")

    def __init__(self, bits: int, *, takeover: bool) -> None:
        self._bits = max(bits, _LEAST_ZLIB_BITS)
        self._takeover = takeover
        self._stream: Any = None
        self._room = 0  # of the window that was not written yet, below 0 once all was: for memory_used

    def inflate(self, data: bytes, limit: int) -> bytes:
        """Return what a compressed message says, RFC 7692 §7.2.2.

        Raises:
            ProtocolError: with 1009 if it is longer than the limit, 1007 if it is corrupt or cut off, 1008 if it is
                made of very many streams.
            MemoryError: there is no memory for a window.
        """
        if not data:
            return b""
        stream = self._stream
        if stream is None:
            stream = self._new_stream()
        try:
            if len(data) <= _PIECE:  # most messages are done in one step
                part: bytes = stream.decompress(data, _STEP)
                if len(part) < _STEP and not stream.eof:
                    self._end()
                    self._room -= len(part)
                    if len(part) > limit:
                        raise too_big()
                    return part
                output = _Output(limit)
                output.add(part)
                self._pour(self._left(), output)
            else:
                output = _Output(limit)
                view = memoryview(data)
                for start in range(0, len(view), _PIECE):
                    self._pour(view[start : start + _PIECE], output)
            self._end()
        except zlib.error as error:
            if str(error).startswith(_NO_MEMORY):
                raise MemoryError("there is no memory for a window") from None
            raise ProtocolError(CloseCode.INVALID_DATA, "a compressed message is corrupt (RFC 7692 §7.2.2)") from None
        finally:
            if not self._takeover:
                self._stream = None
        return output.whole()

    def _new_stream(self) -> Any:
        self._room = 1 << self._bits
        self._stream = zlib.decompressobj(-self._bits)
        return self._stream

    def memory_used(self) -> int:
        """Return about how many bytes the peer's window takes, and what belongs to it; thread-safe.

        An estimate, as that of a ``Deflater``.
        """
        if self._stream is None:
            return 0
        window = 1 << self._bits
        return _INFLATE_STATE + _resident(window, window - self._room)

    @property
    def copied(self) -> int:
        """How many bytes of a window ``_end`` copies, whatever was written of it, and throws away."""
        return 0 if self._stream is None else 1 << self._bits

    def _left(self) -> bytes:
        """Return what was not inflated yet of what was given; a last block may be followed by another stream."""
        stream = self._stream
        if not stream.eof:
            return bytes(stream.unconsumed_tail)
        self._stream = None
        return bytes(stream.unused_data)

    def _pour(self, data: bytes | memoryview, output: _Output) -> None:
        """Inflate some of a message. All of it: a full step may leave something behind even if no input is left."""
        is_full = self._stream is not None
        while data or is_full:
            if self._stream is None:
                output.count_stream()
                self._new_stream()
            step = output.step
            part = self._stream.decompress(data, step)
            self._room -= len(part)
            output.add(part)
            data = self._left()
            is_full = len(part) == step and self._stream is not None

    def _end(self) -> None:
        """Give the stream what was not sent, and refuse one that ends inside a block, which zlib takes for whole."""
        stream = self._stream
        if stream is None:  # the last block was marked as that (§7.2.3.4)
            return
        if not self._takeover:  # in one call, which most of it is
            is_whole = not stream.decompress(_TAIL_AND_END) and stream.eof and stream.unused_data in _UNUSED
        elif stream.decompress(_TAIL):
            is_whole = False
        elif stream.eof:  # the last block again, and what was not sent is its length
            self._stream = None
            is_whole = not stream.unused_data
        else:
            probe = stream.copy()
            is_whole = not probe.decompress(_END) and probe.eof
        if not is_whole:
            raise ProtocolError(CloseCode.INVALID_DATA, "a compressed message is cut off (RFC 7692 §7.2.2)")


class _Output:
    """What a message is inflated to, up to a limit."""

    __slots__ = ("_left", "_parts", "_streams")

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._parts: list[bytes] = []
        self._streams = 0

    @property
    def step(self) -> int:
        """How much may be inflated at once: never much more than the limit, which it takes one byte to be over."""
        return min(self._left, _STEP) + 1

    def add(self, part: bytes) -> None:
        if part:
            self._left -= len(part)
            if self._left < 0:
                raise too_big()
            self._parts.append(part)

    def count_stream(self) -> None:
        self._streams += 1
        if self._streams > _MAX_LAST_BLOCKS:
            raise ProtocolError(
                CloseCode.POLICY_VIOLATION, f"a compressed message has more than {_MAX_LAST_BLOCKS} last blocks"
            )

    def whole(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


def _memory_used(deflater: Deflater, inflater: Inflater) -> int:
    """Return about how many bytes the two directions of a connection take."""
    return deflater.memory_used(inflater.copied) + inflater.memory_used()


class DeflateMessage(Extension):
    """permessage-deflate, RFC 7692: compressed messages, for clients and servers.

    While there is no memory to compress, messages are sent as they are.

    Args:
        client_max_window_bits: of the window that the client compresses with: 8 to 15, which takes 2 ** bits bytes.
        client_no_context_takeover: whether messages of the client don't refer to those before them.
        server_max_window_bits: the same for the server.
        server_no_context_takeover: the same for the server.
        level: of compression: 0 to 9, or -1 for zlib's default.
        memory_level: of this end's compressor: 1 to 9, which takes 2 ** (level + 9) bytes.
        threshold: bytes below which a message is not compressed.
        idle_seconds: after so long, to twice as long, without a message that was sent a connection gives its compressor
            back, and what follows refers to nothing before it; None for never. See ``Extension``.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range.
    """

    names: ClassVar = ("permessage-deflate",)
    rsv1: ClassVar = True
    only_marked: ClassVar = True
    defaults: ClassVar = {
        "server_no_context_takeover": False,
        "client_no_context_takeover": False,
        "server_max_window_bits": 15,
        "client_max_window_bits": 15,
    }

    def __init__(  # noqa: PLR0913 -- the four parameters of RFC 7692 §7.1, and our own
        self,
        *,
        client_max_window_bits: int = 15,
        client_no_context_takeover: bool = False,
        server_max_window_bits: int = 15,
        server_no_context_takeover: bool = False,
        level: int = 4,
        memory_level: int = 6,
        threshold: int = 20,
        idle_seconds: float | None = 60.0,
    ) -> None:
        super().__init__(
            client_max_window_bits=client_max_window_bits,
            client_no_context_takeover=client_no_context_takeover,
            server_max_window_bits=server_max_window_bits,
            server_no_context_takeover=server_no_context_takeover,
        )
        for name in ("client_max_window_bits", "server_max_window_bits"):
            if not 8 <= int(self.parameters[name]) <= 15:
                raise ValueError(f"{name} must be from 8 to 15")
        self._settings = _checked_settings(level, memory_level, threshold)
        self.idle_seconds = checked_idle_seconds(idle_seconds)

    def offers(self) -> list[Parameters]:
        """Return what a client asks for, RFC 7692 §7.1."""
        values = self.parameters
        offered: Parameters = [(name, None) for name in _FLAGS if values[name]]
        if values["server_max_window_bits"] != 15:
            offered.append(("server_max_window_bits", str(values["server_max_window_bits"])))
        bits = values["client_max_window_bits"]
        offered.append(
            ("client_max_window_bits", None if bits == 15 else str(bits))
        )  # §7.1.2.2: a hint without a value
        return [offered]

    def accept(self, offered: Parameters) -> Parameters | None:
        """Return a server's answer to an offer, RFC 7692 §7.1; None to decline one that isn't valid."""
        try:
            asked = _read_deflate(offered, _MESSAGE_NAMES, hint_allowed=True)
        except ValueError:
            return None
        own = self.parameters
        answer: Parameters = [(name, None) for name in _FLAGS if name in asked or own[name]]
        bits = min(int(own["server_max_window_bits"]), asked.get("server_max_window_bits", 15))
        if bits != 15 or "server_max_window_bits" in asked:
            answer.append(("server_max_window_bits", str(bits)))
        if "client_max_window_bits" in asked:  # §7.1.2.2: never without having been offered
            bits = min(int(own["client_max_window_bits"]), asked["client_max_window_bits"])
            if bits != 15:
                answer.append(("client_max_window_bits", str(bits)))
        return answer

    def agreed(self, role: Role, offered: Parameters, answer: Parameters) -> Mapping[str, Value]:  # noqa: ARG002 -- in it
        """Return what holds for a connection.

        Raises:
            ValueError: a server's answer breaks RFC 7692 §7.1, or goes beyond what was offered.
        """
        found = _read_deflate(answer, _MESSAGE_NAMES)
        if role is Role.CLIENT:
            self._check_answer(found)
            self._keep_word(found)
        return {
            **self.defaults,
            **{name: True for name in _FLAGS if name in found},
            **{name: found.get(name, 15) for name in _WINDOWS},
            **self._settings,
        }

    def sharing(self, role: Role, parameters: Mapping[str, Value]) -> Hashable:
        """Return the settings of a compressor that connections without context takeover have in common."""
        own = "client" if role is Role.CLIENT else "server"
        if not parameters[f"{own}_no_context_takeover"]:
            return None
        return parameters[f"{own}_max_window_bits"]

    def _check_answer(self, found: Mapping[str, int]) -> None:
        own = self.parameters
        if own["server_no_context_takeover"] and "server_no_context_takeover" not in found:
            raise ValueError("the server insists on context takeover, RFC 7692 §7.1.1.1")
        if found.get("server_max_window_bits", 15) > int(own["server_max_window_bits"]):
            raise ValueError("the server's window is larger than was asked for, RFC 7692 §7.1.2.1")
        if found.get("client_max_window_bits", 8) > int(own["client_max_window_bits"]):
            raise ValueError("the client's window is larger than was offered, RFC 7692 §7.1.2.2")

    def _keep_word(self, found: dict[str, int]) -> None:
        """Add what a client does whether the server asks for it or not, RFC 7692 §7.1.1.2 and §7.1.2.2."""
        if self.parameters["client_no_context_takeover"]:
            found["client_no_context_takeover"] = 1
        found.setdefault("client_max_window_bits", int(self.parameters["client_max_window_bits"]))

    class Instance(Extension.Instance):
        """permessage-deflate on one connection."""

        def __init__(self, role: Role, parameters: Mapping[str, Value]) -> None:
            super().__init__(role, parameters)
            own, peers = ("client", "server") if role is Role.CLIENT else ("server", "client")
            self.threshold = int(parameters["threshold"])
            self.deflater = Deflater(
                int(parameters[f"{own}_max_window_bits"]),
                takeover=not parameters[f"{own}_no_context_takeover"],
                level=int(parameters["level"]),
                memory_level=int(parameters["memory_level"]),
            )
            self.inflater = Inflater(
                int(parameters[f"{peers}_max_window_bits"]), takeover=not parameters[f"{peers}_no_context_takeover"]
            )

        def onsend(self, frame: Frame) -> Frame:
            """Compress a message, RFC 7692 §6.1, if that was asked for, or nothing was and it isn't short."""
            packed = self.deflate(frame.payload, frame.compress)
            return frame if packed is None else received_frame(frame.opcode, packed, final=frame.final, rsv=_RSV1)

        def onrecv(self, frame: Frame) -> Frame:
            """Inflate a message that is marked as compressed, RFC 7692 §6.2."""
            if not frame.rsv1:
                return frame
            return received_frame(frame.opcode, self.inflate(frame.payload), final=frame.final)

        def onidle(self) -> None:
            """Give the window back."""
            self.deflater.release()

        def memory_used(self) -> int:
            """Return about how many bytes the two windows take."""
            return _memory_used(self.deflater, self.inflater)

        def deflate(self, payload: bytes, compress: bool | None) -> bytes | None:
            """Return the compressed form of a message, None for one that is sent as it is."""
            if compress is None:
                compress = len(payload) >= self.threshold
            return self.deflater.deflate(payload) if compress else None

        def inflate(self, payload: bytes) -> bytes:
            """Return what a message says that is marked as compressed."""
            return self.inflater.inflate(payload, _NO_LIMIT if self.max_size is None else self.max_size)


_RSV1: Final = 0x40
_FLAGS: Final = ("server_no_context_takeover", "client_no_context_takeover")
_WINDOWS: Final = ("server_max_window_bits", "client_max_window_bits")


_MESSAGE_NAMES: Final = (_FLAGS, _WINDOWS)
_FRAME_NAMES: Final = (("no_context_takeover",), ("max_window_bits",))


def _read_deflate(
    parameters: Parameters, names: tuple[tuple[str, ...], tuple[str, ...]], *, hint_allowed: bool = False
) -> dict[str, int]:
    """Return the parameters of an offer or an answer, RFC 7692 §7.1.

    Args:
        parameters: as they were read.
        names: of flags and of windows.
        hint_allowed: whether ``client_max_window_bits`` may have no value, §7.1.2.2.

    Raises:
        ValueError: one is unknown, repeated or out of range.
    """
    flags, windows = names
    found: dict[str, int] = {}
    for name, value in parameters:
        if name in found:
            raise ValueError("a parameter is repeated")
        if name in flags and value is None:
            found[name] = 1
        elif name in windows and value is not None and _BITS.fullmatch(value):
            found[name] = int(value)
        elif name == "client_max_window_bits" and value is None and hint_allowed:
            found[name] = 15
        else:
            raise ValueError("a parameter is unknown, or has a wrong value")
    return found


def _checked_settings(level: int, memory_level: int, threshold: int) -> dict[str, int]:
    return {
        "level": checked_count("level", level, -1, 9),
        "memory_level": checked_count("memory_level", memory_level, 1, 9),
        "threshold": checked_count("threshold", threshold, 0, _NO_LIMIT),
    }


class DeflateFrame(Extension):
    """deflate-frame, the draft before RFC 7692, also as ``x-webkit-deflate-frame``: each frame is compressed.

    An end's parameters are what it asks of the other one.

    Args:
        max_window_bits: of the window that the peer compresses with, 8 to 15.
        no_context_takeover: whether frames of the peer must not refer to those before them.
        level: of compression: 0 to 9, or -1 for zlib's default.
        memory_level: of this end's compressor, 1 to 9.
        threshold: bytes below which a frame is not compressed.
        idle_seconds: as for ``DeflateMessage``.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range.
    """

    names: ClassVar = ("deflate-frame", "x-webkit-deflate-frame")
    rsv1: ClassVar = True
    per_message: ClassVar = False
    defaults: ClassVar = {"max_window_bits": 15, "no_context_takeover": False}

    def __init__(
        self,
        max_window_bits: int = 15,
        no_context_takeover: bool = False,
        *,
        level: int = 4,
        memory_level: int = 6,
        threshold: int = 20,
        idle_seconds: float | None = 60.0,
    ) -> None:
        super().__init__(max_window_bits=max_window_bits, no_context_takeover=no_context_takeover)
        if not 8 <= max_window_bits <= 15:
            raise ValueError("max_window_bits must be from 8 to 15")
        self._settings = _checked_settings(level, memory_level, threshold)
        self.idle_seconds = checked_idle_seconds(idle_seconds)

    def accept(self, offered: Parameters) -> Parameters | None:
        """Return a server's answer, which is what it asks of the client; None to decline an offer that isn't valid."""
        try:
            _read_deflate(offered, _FRAME_NAMES)
        except ValueError:
            return None
        return self.offers()[0]

    def agreed(self, role: Role, offered: Parameters, answer: Parameters) -> Mapping[str, Value]:
        """Return what holds for a connection: ``peer_`` stands before what the peer asks for.

        Raises:
            ValueError: a server's answer has a parameter that is unknown, repeated or out of range.
        """
        asked = _read_deflate(offered if role is Role.SERVER else answer, _FRAME_NAMES)
        return {
            **self.parameters,
            "peer_max_window_bits": asked.get("max_window_bits", 15),
            "peer_no_context_takeover": "no_context_takeover" in asked,
            **self._settings,
        }

    class Instance(Extension.Instance):
        """deflate-frame on one connection."""

        def __init__(self, role: Role, parameters: Mapping[str, Value]) -> None:
            super().__init__(role, parameters)
            self.threshold = int(parameters["threshold"])
            self.deflater = Deflater(
                int(parameters["peer_max_window_bits"]),
                takeover=not parameters["peer_no_context_takeover"],
                level=int(parameters["level"]),
                memory_level=int(parameters["memory_level"]),
            )
            self.inflater = Inflater(int(parameters["max_window_bits"]), takeover=not parameters["no_context_takeover"])
            self._size = 0  # of the message so far

        def onidle(self) -> None:
            """Give the window back."""
            self.deflater.release()

        def memory_used(self) -> int:
            """Return about how many bytes the two windows take."""
            return _memory_used(self.deflater, self.inflater)

        def onsend(self, frame: Frame) -> Frame:
            """Compress a data frame, if that was asked for, or nothing was and it isn't short."""
            wanted = len(frame.payload) >= self.threshold if frame.compress is None else frame.compress
            if not wanted or frame.opcode >= Opcode.CLOSE:
                return frame
            packed = self.deflater.deflate(frame.payload)
            return frame if packed is None else received_frame(frame.opcode, packed, final=frame.final, rsv=_RSV1)

        def onrecv(self, frame: Frame) -> Frame:
            """Inflate a frame that is marked as compressed; the limit is for its whole message."""
            if frame.opcode >= Opcode.CLOSE:
                return frame
            if frame.opcode != Opcode.CONTINUATION:
                self._size = 0
            limit = _NO_LIMIT if self.max_size is None else self.max_size
            payload = frame.payload
            if frame.rsv1:
                payload = self.inflater.inflate(payload, limit - self._size)
            self._size += len(payload)
            if self._size > limit:
                raise too_big()
            return received_frame(frame.opcode, payload, final=frame.final)


def spare_memory(extensions: Iterable[Extension]) -> int:
    """Return about how many bytes compressors take that nobody uses now, if any of these shares them. Thread-safe."""
    if not any(isinstance(extension, DeflateMessage | DeflateFrame) for extension in extensions):
        return 0
    return sum(len(idle) * _compressor_memory(settings, _FULL, _FULL) for settings, idle in list(_idle.items()))
