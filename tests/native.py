"""What tests compile: a clock, and programs that test the core from inside, with sanitizers if there are any."""

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

# It calls the kernel itself: a sanitizer asks for the time before dlsym can be used.
_CLOCK: Final = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long jump(void)
{
    static long calls;
    return ++calls % 2 ? 3600 : -3600;
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    int result = (int)syscall(SYS_clock_gettime, clock, at);
    if (clock == CLOCK_REALTIME)
        at->tv_sec += jump();
    return result;
}

int gettimeofday(struct timeval *at, void *zone)
{
    int result = (int)syscall(SYS_gettimeofday, at, zone);
    at->tv_sec += jump();
    return result;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
"""


def clock_that_jumps(directory: Path) -> str:
    """Return an LD_PRELOAD with which the time of day is an hour off, now ahead and now behind."""
    source, shim = directory / "jump.c", directory / "jump.so"
    source.write_text(_CLOCK, encoding="utf-8")
    subprocess.run([str(COMPILER), "-shared", "-fPIC", str(source), "-o", str(shim)], check=True)
    return ":".join(filter(None, [os.environ.get("LD_PRELOAD"), str(shim)]))


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
