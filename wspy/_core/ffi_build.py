"""How core.h and the C files become the extension module ``wspy._core._wspy``.

setup.py runs this file at build time, from the root of the source tree; it is never imported at run time.
"""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

CORE = Path("wspy", "_core")

# No -march: SIMD is chosen at run time. Nothing but the module's init function is exported, so that a symbol of
# another library can't take the place of ours.
COMPILE = ["-std=c11", "-O2", "-fvisibility=hidden", "-Wall"]
LINK = ["-pthread"]


def cdef() -> str:
    """Return the part of core.h that Python sees: what stands between its two markers."""
    header = (CORE / "core.h").read_text(encoding="utf-8")
    _, _, rest = header.partition("/* cdef begins */")
    declarations, end, _ = rest.partition("/* cdef ends */")
    if not end:
        raise ValueError("core.h lacks a cdef marker")
    return declarations


def sanitize() -> list[str]:
    """Return the flags for the sanitizers named by WSPY_SANITIZE, such as ``address,undefined``."""
    names = os.environ.get("WSPY_SANITIZE", "")
    if not names:
        return []
    # Python's own flags have -fwrapv, under which an overflow is no fault.
    flags = ["-fno-wrapv", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1", "-UNDEBUG"]
    return [f"-fsanitize={names}", *flags]


ffi = FFI()
ffi.cdef(cdef())
ffi.set_source(
    "wspy._core._wspy",
    '#include "core.h"',
    sources=sorted(str(source) for source in CORE.glob("*.c")),
    depends=[*sorted(str(header) for header in CORE.glob("*.h")), str(CORE / "ffi_build.py")],
    include_dirs=[str(CORE)],
    extra_compile_args=COMPILE + sanitize(),
    extra_link_args=LINK + sanitize(),
)
