"""The compiled core, as core.h declares it: ``lib`` has its functions and constants, ``ffi`` makes and reads C data."""

from __future__ import annotations

try:
    from wspy._core._wspy import ffi, lib
except ModuleNotFoundError as error:
    if error.name != "wspy._core._wspy":
        raise
    raise ImportError(
        f"{__path__[0]} belongs to a checkout whose C core isn't built: `pip install -e .` builds it in place; "
        "to import an installed wspy, start Python in another directory",
        name=error.name,
    ) from None

__all__ = ["ffi", "lib"]
