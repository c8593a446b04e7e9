"""Every scenario here runs on every front end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

pytest.register_assert_rewrite("drivers")

from drivers import FRONT_ENDS, Servers  # noqa: E402 -- its asserts are rewritten only from here on

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest) -> str:
    """The name of a front end."""
    return str(request.param)


@pytest.fixture
def server_kind(front_end: str) -> type[Any]:
    """The class of a front end, for tests that make a server by themselves."""
    return FRONT_ENDS[front_end].kind


@pytest.fixture
def serve(front_end: str) -> Iterator[Servers]:
    """Starts servers that end with the test: ``serve(onmessage=..., max_size=...)``."""
    with Servers(front_end) as servers:
        yield servers
