"""What happens if a signal handler comes, at whichever step of the interpreter?"""

from __future__ import annotations

import dis
import gc
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def interrupt() -> None:
    """Raise what ``at_each_step`` expects."""
    raise InterruptedError


def _ask_for_opcodes() -> None:
    """CPython 3.12 traces opcodes only from the settrace on that follows the first frame that asks for it."""

    def ask(frame: Any, _event: str, _: object) -> None:
        frame.f_trace_opcodes = True

    def be_traced() -> None:
        pass

    previous = sys.gettrace()
    sys.settrace(ask)
    try:
        be_traced()
    finally:
        sys.settrace(previous)


def at_each_step(
    modules: ModuleType | Sequence[ModuleType],
    call: Callable[[], object],
    action: Callable[[], object] = interrupt,
    *,
    behind_functions: bool = True,
    least: int = 6,
) -> Iterator[None]:
    """Make a call again and again, with an action at the first, second, third ... place in modules where signals come.

    There the interpreter runs handlers, and raises KeyboardInterrupt: when a function begins, behind a call, and when
    a loop goes back. Yields before each call; ends when the call has no more such places.

    CPython has none behind a call of a function that is written in Python; they count unless ``behind_functions`` is
    False. There have to be so many places at ``least``, or something is wrong with the test.
    """
    files = {module.__file__ for module in ([modules] if isinstance(modules, ModuleType) else modules)}
    steps = left = 0
    last: dict[Any, str] = {}
    _ask_for_opcodes()

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal left
        if event == "call" and not behind_functions:
            last[frame.f_back] = ""
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "call":
            last[frame] = "RESUME"  # which CPython 3.11 doesn't tell of
        if event == "opcode":
            before = last.get(frame, "")
            last[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            left -= before.startswith(("CALL", "RESUME", "JUMP_BACKWARD"))
            if left == 0:
                left = -1
                action()
        return trace

    while left <= 0:
        steps += 1
        left = steps
        last.clear()
        yield
        previous = sys.gettrace()
        gc.disable()  # in a finalizer of what other tests left, an exception would be lost
        sys.settrace(trace)
        try:
            call()
        except InterruptedError:
            pass
        finally:
            sys.settrace(previous)
            gc.enable()
    assert steps >= least
