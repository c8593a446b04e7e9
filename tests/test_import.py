"""What do importing the library and making a server leave alone? All that belongs to the program around them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import wspy

OBSERVE = """
import asyncio, gc, json, logging, os, signal, socket, sys, threading, warnings

def state():
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    loggers = [name for name, logger in logging.root.manager.loggerDict.items()
               if isinstance(logger, logging.Logger) and (logger.handlers or logger.level or not logger.propagate)]
    return {
        "handlers of signals": [str(signal.getsignal(number)) for number in signal.valid_signals()],
        "wake-up descriptor": wakeup,
        "blocked signals": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "logging": [logging.root.level, str(logging.root.handlers), logging.lastResort.level, loggers],
        "logging calls": [str(logging.getLoggerClass()), str(logging.getLogRecordFactory())],
        "loop policy": [str(type(asyncio.get_event_loop_policy())), asyncio._get_running_loop()],
        "current loop": str(asyncio.get_event_loop_policy()._local._loop),
        "threads": threading.active_count(),
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "default timeout": socket.getdefaulttimeout(),
        "hooks": [str(sys.excepthook), str(threading.excepthook), str(sys.unraisablehook), sys.gettrace()],
        "gc": [gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()],
        "warnings": str(warnings.filters),
        "switch interval": sys.getswitchinterval(),
        "recursion limit": sys.getrecursionlimit(),
        "umask": [os.umask(0o022), os.umask(0o022)][0],
        "environment": dict(os.environ),
    }

before = state()
"""
REPORT = """
after = state()
print(json.dumps({name: [before[name], after[name]] for name in before if before[name] != after[name]}))
"""


MAKE = "import wspy; server = wspy.AsyncServer(('127.0.0.1', 0), {})\n"


def run(program: str) -> str:
    """Return what a program in a process of its own prints; nothing else may come of it."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def changes(program: str) -> dict[str, Any]:
    """Return what a program has changed: before and after, by name."""
    return dict(json.loads(run(OBSERVE + program + REPORT)))


def test_importing_changes_nothing() -> None:
    assert changes("import wspy") == {}


@pytest.mark.parametrize("arguments", ["", "loglevel=None"])
def test_making_a_server_opens_its_descriptors_and_no_more(arguments: str) -> None:
    made = changes(MAKE.format(arguments) + "import atexit; atexit.register(server.close)")
    assert list(made) == ["descriptors"]


@pytest.mark.parametrize(
    "program",
    [
        "server.close()",
        "server.call_soon(server.close)\nserver.run()",
        "server.start()\nserver.call_soon(server.close)\nserver.join()",
    ],
    ids=["made", "run", "started"],
)
def test_a_server_that_has_ended_leaves_nothing(program: str) -> None:
    assert changes(MAKE.format("") + program) == {}


def test_nothing_large_is_imported() -> None:
    program = "import sys; before = {*sys.modules}; import wspy; print(*sys.modules.keys() - before)"
    imported = {name.partition(".")[0] for name in run(program).split()}
    assert "wspy" in imported
    assert not imported & {"asyncio", "concurrent", "email", "multiprocessing", "ssl", "subprocess"}
    assert not imported & {"aiohttp", "cffi", "pycparser", "websockets"}


def test_each_module_can_be_imported_first() -> None:
    """In a process that has imported what wspy takes from elsewhere, and nothing of wspy itself."""
    program = """
import os, pkgutil, sys, wspy
names = [module.name for module in pkgutil.iter_modules(wspy.__path__, "wspy.") if not module.ispkg]
for name in names:
    __import__(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "wspy"]:
    del sys.modules[name]
for name in names:
    child = os.fork()
    if not child:
        try:
            __import__(name)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, name
print(len(names))
"""
    assert int(run(program)) > 10


def test_a_checkout_without_its_core_says_what_to_do(tmp_path: Path) -> None:
    package = Path(wspy.__file__).parent
    shutil.copytree(package, tmp_path / "wspy", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
try:
    import wspy
except ImportError as error:
    print(error)
"""
    message = run(program)
    assert message.startswith(
        f"{tmp_path}/wspy/_core belongs to a checkout whose C core isn't built: `pip install -e .`"
    )
    assert "start Python in another directory" in message


def test_what_else_keeps_the_core_from_being_imported_is_not_hidden() -> None:
    program = """
import sys
sys.modules["_cffi_backend"] = None
try:
    import wspy
except ImportError as error:
    print(error)
"""
    message = run(program)
    assert "_cffi_backend" in message
    assert "checkout" not in message
