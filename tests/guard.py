"""Memory between two pages that nobody may touch: one byte too far, and the process dies."""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING

from wspy._core import ffi

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from wspy._core._wspy import CData

PAGE = mmap.PAGESIZE
PROT_NONE = 0
MPROTECT = ctypes.CDLL(None, use_errno=True).mprotect
MPROTECT.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class GuardedMemory:
    """At least ``size`` bytes; what is placed in it lies against one of the forbidden pages."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // PAGE) * PAGE
        self._mapping = mmap.mmap(-1, self.size + 2 * PAGE)
        self._anchor = ctypes.c_char.from_buffer(self._mapping)
        low_guard = ctypes.addressof(self._anchor)
        self._start = low_guard + PAGE
        for guard in (low_guard, self._start + self.size):
            if MPROTECT(guard, PAGE, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._anchor
        self._mapping.close()

    def _place(self, address: int, data: bytes) -> CData:
        ctypes.memmove(address, data, len(data))
        return ffi.cast("uint8_t *", address)

    def at_end(self, data: bytes) -> CData:
        """Copy data so that no byte after it may be touched."""
        return self._place(self._start + self.size - len(data), data)

    def at_start(self, data: bytes) -> CData:
        """Copy data so that no byte before it may be touched."""
        return self._place(self._start, data)
