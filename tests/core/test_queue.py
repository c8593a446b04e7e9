"""Do queued bytes leave in order, whatever the kernel takes at a time? See native/test_queue.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

import native
import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = native.needs_compiler


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native.build("test_queue", ["queue.c", "frame.c", "sys.c"], tmp_path_factory.mktemp("native"))


@pytest.mark.parametrize("name", native.names("test_queue"))
def test_queue(program: Path, name: str) -> None:
    native.run(program, name)
