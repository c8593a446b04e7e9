"""What can be measured of this process, and how much slower it may be than usual."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE: Final = float(os.environ.get("WSPY_PATIENCE", "1"))
"""The factor for a test's bound of time: 1, and more where everything is slow, as under a sanitizer."""

UNDER_ADDRESS_SANITIZER: Final = "asan" in os.environ.get("LD_PRELOAD", "")
"""Whether what was freed is kept, so that the memory of this process says little."""

measures_memory: Final = pytest.mark.skipif(UNDER_ADDRESS_SANITIZER, reason="AddressSanitizer keeps what was freed")
"""For a test that fails if memory isn't given back at once."""


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def best_time(function: Callable[[], object]) -> float:
    """Return the shortest of some runs in seconds of this process, without what a tracer or a sanitizer adds."""
    factor = 0.05 if sys.gettrace() else 1 / PATIENCE

    def once() -> float:
        start = time.process_time()
        function()
        return (time.process_time() - start) * factor

    return min(once() for _ in range(5))
