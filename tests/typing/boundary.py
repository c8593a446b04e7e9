"""Type-checked, never run: foreign functions and constants have the types of core.h."""

from __future__ import annotations

from typing import assert_type

from wspy._core import ffi, lib

assert_type(lib.WSPY_ERROR_UTF8, int)
assert_type(lib.wspy_error_close_code(lib.WSPY_ERROR_UTF8), int)
assert_type(ffi.string(lib.wspy_error_text(lib.WSPY_ERROR_UTF8)), bytes)
assert_type(ffi.buffer(ffi.new("uint8_t[4]"))[0:2], bytes)
lib.wspy_mask(b"", 0, b"mask", 0)  # type: ignore[arg-type]  # bytes can't be masked in place
