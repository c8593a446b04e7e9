"""C programs that test parts of the core from inside: compiled with sanitizers where there are any, one run a test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

CORE: Final = Path(__file__).resolve().parent.parent / "wspy" / "_core"
PROGRAMS: Final = Path(__file__).resolve().parent / "core" / "native"
COMPILER: Final = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
COMPILE: Final = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
SANITIZE: Final = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


def names(program: str) -> list[str]:
    """Return the tests of a program, in the order of its source."""
    return re.findall(r"^TEST\((\w+)\)", (PROGRAMS / f"{program}.c").read_text(encoding="utf-8"), re.MULTILINE)


def build(program: str, sources: list[str], directory: Path) -> Path:
    """Compile a program with files of the core; with sanitizers if the compiler has them."""
    output = directory / program
    files = [str(PROGRAMS / f"{program}.c"), *(str(CORE / source) for source in sources)]
    command = [str(COMPILER), *COMPILE, f"-I{CORE}", f"-I{PROGRAMS}", *files, "-o", str(output)]
    if subprocess.run([*command, *SANITIZE], capture_output=True, check=False).returncode != 0:
        plain = subprocess.run(command, capture_output=True, text=True, check=False)
        assert plain.returncode == 0, plain.stderr
    return output


def run(program: Path, name: str) -> None:
    """Run one test of a program; fail with what it printed."""
    # its sanitizers are its own, not those that Python may be running under
    environment = {key: value for key, value in os.environ.items() if key not in {"LD_PRELOAD", "ASAN_OPTIONS"}}
    result = subprocess.run(
        [str(program), name], capture_output=True, text=True, check=False, env=environment, timeout=50
    )
    if result.returncode != 0:
        pytest.fail(f"{name}: exit status {result.returncode}\n{result.stdout}{result.stderr}", pytrace=False)
