"""The compiled core, as core.h declares it: ``lib`` has its functions and constants, ``ffi`` makes and reads C data."""

from __future__ import annotations

from wspy._core._wspy import ffi, lib

__all__ = ["ffi", "lib"]
