"""Hostile input for every front end; the tables of it are imported by their bare names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.append(str(Path(__file__).resolve().parent))
pytest.register_assert_rewrite("drivers")

from drivers import PLAIN, Servers  # noqa: E402 -- its asserts are rewritten only from here on

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=PLAIN)
def front_end(request: pytest.FixtureRequest) -> str:
    """The name of a front end: without TLS, unless a test is about that."""
    return str(request.param)


@pytest.fixture
def serve(front_end: str) -> Iterator[Servers]:
    """Starts servers that end with the test: ``serve(onmessage=..., max_size=...)``."""
    with Servers(front_end) as servers:
        yield servers
