"""What becomes of compression in a process in which malloc has nothing left to give but a few holes?

Run as a program, it tells what a test asks for by its name.
"""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wspy
from wspy import DeflateMessage, ProtocolError
from wspy.deflate import Deflater, Inflater

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wspy import Message

KIB = 1024
TEXT = b"".join(b"%d, %d; " % (number, number * number) for number in range(600))


@contextlib.contextmanager
def starved(*holes: int) -> Iterator[None]:
    """Let malloc fail meanwhile, but for one piece of each of these sizes, and for what is very small."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    gc.collect()
    held: list[bytearray | None] = []
    for size in holes:
        held += [bytearray(size), bytearray(2 * KIB)]  # what stays keeps holes apart
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used, hard))
    try:
        for size in (64 * KIB, 16 * KIB, 4 * KIB, KIB):
            with contextlib.suppress(MemoryError):
                while True:
                    held.append(bytearray(size))
        for number in range(len(holes)):
            held[2 * number] = None
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def say(*words: object) -> None:
    """Write a line to the standard output."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def outcome(function: Any, *arguments: Any) -> Any:
    """Return what a function returns, or the exception that it raises."""
    try:
        return function(*arguments)
    except (MemoryError, ProtocolError) as error:
        return error


def inflating() -> None:
    """Inflate with holes of many sizes: all is well, or there is no memory; it is never the peer's fault."""
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = (stream.compress(TEXT) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]
    found = []
    for takeover in (False, True):
        for size in range(4 * KIB, 100 * KIB, 2 * KIB):
            inflater = Inflater(15, takeover=takeover)
            with starved(size, *[9 * KIB] * 4):
                result = outcome(inflater.inflate, packed, 1 << 20)
            found.append("whole" if result == TEXT else type(result).__name__)
            del result
    say(*sorted(set(found)))


def deflating() -> None:
    """Compress as long as there is memory for it, and again when there is some: the peer can read it all."""
    found = []
    for takeover in (False, True):
        for size in range(4 * KIB, 200 * KIB, 8 * KIB):
            deflater = Deflater(15, takeover=takeover, level=6, memory_level=6)
            peer = zlib.decompressobj(-15)
            with starved(size, *[9 * KIB] * 4):
                results = [outcome(deflater.deflate, TEXT)]
            results += [outcome(deflater.deflate, TEXT) for _ in range(2)]
            for result in results:
                if isinstance(result, bytes):
                    whole = peer.decompress(result + b"\0\0\xff\xff") == TEXT
                    found.append("compressed" if whole else "corrupt")
                else:
                    found.append(type(result).__name__)
            del results, result
    say(*sorted(set(found)))


class Starving:
    """Makes a server do what it is told to without memory."""

    def onmessage(self, client: Any, message: Message) -> None:
        if message.payload == "send":
            with starved(*[12 * KIB] * 8):
                client.send(TEXT)
        elif message.payload == "starve":
            client.data = starved(*[12 * KIB] * 8)
            client.data.__enter__()  # until onerror
        else:
            client.send(message)

    def onerror(self, client: Any, error: BaseException) -> None:
        client.data.__exit__(None, None, None)
        say(type(error).__name__)


def serving() -> None:
    """Serve by the class that is named, with an address on the first line."""
    kind = type("Server", (Starving, getattr(wspy, sys.argv[2])), {})
    server: Any = kind(("127.0.0.1", 0), extensions=[DeflateMessage(threshold=1000)])
    say(*server.address)
    server.run()


if __name__ == "__main__":
    {"inflating": inflating, "deflating": deflating, "serving": serving}[sys.argv[1]]()
