"""Was a nonce of Digest used already, in this process or in another one? RFC 7616 §3.4 and §5.4."""

from __future__ import annotations

import mmap
import os
import stat
from typing import Final

from ._core import ffi, lib

__all__ = ["Nonces"]

# A use of a nonce is one number: when it was made, in milliseconds until the year 2527, and its count.
_TIME_BITS: Final = 44
_COUNT_BITS: Final = 20
_SIZE: Final = 8
# rw-------: who may write it, lets replays in.
_MODE: Final = 0o600


class Nonces:
    """The newest uses of nonces, in memory that processes share. Thread-safe; one object serves the children of forks.

    Each nonce belongs to one of the places, by chance, and a place knows the newest nonce of its own that was used, and
    its highest count. An older one counts as used: so nothing is let in twice, and some are asked again who are new.

    It is one number per place that only rises, atomically, instead of a table with a lock: there is nothing that a
    process could leave locked when it is killed or forks, and nobody waits.

    Args:
        places: how many there are.
        path: of a file that is, or becomes, the memory, for processes that aren't forked from one that has made this
            object; None for no file.

    Raises:
        OSError: the file can't be made, opened, or have its room; or it is a symbolic link.
        ValueError: the file is another user's, others may read or write it, or it was made for another number of
            places.
    """

    __slots__ = ("_map", "_places", "_words")

    def __init__(self, places: int, path: str | os.PathLike[str] | None = None) -> None:
        self._places = places
        self._map = mmap.mmap(-1, places * _SIZE) if path is None else _mapped(os.fspath(path), places * _SIZE)
        self._words = ffi.from_buffer("uint64_t[]", self._map, require_writable=True)

    def is_used(self, made: int, place: int, count: int) -> bool:
        """Return whether a nonce was used with this count or a higher one, or is too old to know; and remember it.

        Args:
            made: when the nonce was made, in milliseconds since the epoch.
            place: any number that belongs to the nonce.
            count: from 1 on; above 1,048,575 it counts as used.
        """
        if made >> _TIME_BITS or count >> _COUNT_BITS:
            return True
        return not lib.wspy_nonce_use(self._words + place % self._places, made << _COUNT_BITS | count)


def _mapped(path: str, size: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _MODE)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ValueError(f"{path!r} must be a file of this user with mode 600, which nobody else can change")
        if found.st_size not in {0, size}:
            raise ValueError(
                f"{path!r} has {found.st_size} bytes instead of {size}: use the same max_nonces in all processes, "
                "or remove the file while none of them runs"
            )
        # What there is no room for would end the process when it is written. Nothing is overwritten, or shorter than
        # another process has just made it.
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
