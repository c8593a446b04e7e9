"""How much memory does the C library hold for this process?"""

from __future__ import annotations

import ctypes
import gc

_FIELDS = "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


_MALLINFO = ctypes.CDLL(None).mallinfo2
_MALLINFO.restype = _Mallinfo


def allocated() -> int:
    """Return the bytes that malloc has given out and not got back; 0 under a sanitizer, which has its own malloc."""
    gc.collect()
    info = _MALLINFO()
    return int(info.uordblks + info.hblkhd)
