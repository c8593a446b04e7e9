"""How the C core is compiled; everything else about the distribution is in pyproject.toml."""

from __future__ import annotations

import sysconfig

from setuptools import setup

# One module for CPython 3.11 and later (PEP 384); free-threaded builds have no such ABI before 3.15.
STABLE_ABI = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp311"}}

setup(cffi_modules=["wspy/_core/ffi_build.py:ffi"], options=STABLE_ABI)
