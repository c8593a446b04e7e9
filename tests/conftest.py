"""What holds for every test: the installed package is tested, nothing is left open, nothing is skipped unseen."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from measures import PATIENCE, UNDER_ADDRESS_SANITIZER

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

ROOT = Path(__file__).resolve().parent.parent
DESCRIPTORS = Path("/proc/self/fd")


def prefer_the_installed_package() -> None:
    """Take the checkout out of sys.path, here and in child processes, unless wspy is installed nowhere else."""
    everything = sys.path[:]
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    if importlib.util.find_spec("wspy"):
        os.environ["PYTHONSAFEPATH"] = "1"
    else:
        sys.path[:] = everything


prefer_the_installed_package()

# Tests are repeatable: the same examples in each run, and none remembered. WSPY_EXPLORE=1 looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("explore" if os.environ.get("WSPY_EXPLORE") else "repeatable")


def let_threads_end() -> None:
    """Wait until no thread is left but Python's and the watchdog of ``faulthandler_timeout``.

    One that is over for Python still gives its memory back. The allocator of AddressSanitizer has locks, and what is
    locked while another thread forks stays so for the child.
    """
    end = time.monotonic() + 60
    while len(list(Path("/proc/self/task").iterdir())) > len(sys._current_frames()) + 1:
        assert time.monotonic() < end, "there are threads of somebody else"


def pytest_configure(config: pytest.Config) -> None:
    """Know the markers of the shared scenarios."""
    config.addinivalue_line("markers", "needs(*capabilities): not for front ends that lack one of them (drivers.py)")
    if UNDER_ADDRESS_SANITIZER:
        os.register_at_fork(before=let_threads_end)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a front end has not got."""
    if not any("front_end" in getattr(item, "fixturenames", ()) for item in items):
        return
    from drivers import is_out_of_reach  # noqa: PLC0415 -- its asserts are rewritten by now

    left_out = [item for item in items if is_out_of_reach(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def collect_garbage() -> None:
    """Collect it, and spare later collections a walk through what is left: twenty thousand tests and their reports."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    """Begin without garbage."""
    collect_garbage()


def pytest_report_header() -> str:
    """Say which wspy is tested."""
    try:
        from wspy import _core  # noqa: PLC0415 -- found only now that sys.path is settled
    except ImportError as error:
        raise pytest.UsageError(f"wspy isn't installed ({error}); install it with: pip install .[test]") from error
    return f"wspy: {Path(_core.__file__).parent.parent}"


def open_descriptors() -> set[tuple[int, str]]:
    """Return each open descriptor and what it stands for."""
    found = set()
    for entry in DESCRIPTORS.iterdir():
        try:
            found.add((int(entry.name), str(entry.readlink())))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


@pytest.fixture(scope="module", autouse=True)
def no_leaked_descriptors() -> Iterator[None]:
    """Fail a module whose tests leave descriptors open."""
    before = open_descriptors()  # those before it have left no garbage
    yield
    collect_garbage()
    leaked = sorted(open_descriptors() - before)
    assert not leaked, f"descriptors left open: {leaked}"


@pytest.fixture(scope="session")
def patience() -> float:
    """Return the factor for a test's bound of time: 1, and more where everything is slow, as under a sanitizer."""
    return PATIENCE


def must_run(node: pytest.Item | pytest.Collector) -> bool:
    """Whether a skip is a failure: in CI the peers of the interoperability tests are installed."""
    return bool(os.environ.get("WSPY_CI")) and node.path.is_relative_to(ROOT / "tests" / "interop")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a forbidden skip of a test into a failure."""
    report = yield
    if report.skipped and must_run(item) and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but CI has to run it: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a forbidden skip of a whole module into a failure."""
    report = yield
    if report.skipped and must_run(collector):
        report.outcome = "failed"
        report.longrepr = f"skipped, but CI has to run it: {report.longrepr}"
    return report
