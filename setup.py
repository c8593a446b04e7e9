"""How the C core is compiled; everything else about the distribution is in pyproject.toml."""

from __future__ import annotations

import os
import sysconfig

from setuptools import setup

# One module for CPython 3.11 and later (PEP 384); free-threaded builds have no such ABI before 3.15.
OPTIONS = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp311"}}

# Objects with sanitizers in them must not be taken for up-to-date ones without, nor the other way round.
if sanitizers := os.environ.get("WSPY_SANITIZE"):
    OPTIONS["build"] = {"build_base": f"build/{sanitizers}"}

setup(cffi_modules=["wspy/_core/ffi_build.py:ffi"], options=OPTIONS)
