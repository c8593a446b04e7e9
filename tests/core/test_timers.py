"""Does the timer wheel give each timer when it is due? See native/test_timers.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

import native
import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = native.needs_compiler


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native.build("test_timers", ["timers.c"], tmp_path_factory.mktemp("native"))


@pytest.mark.parametrize("name", native.names("test_timers"))
def test_timers(program: Path, name: str) -> None:
    native.run(program, name)
