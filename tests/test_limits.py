"""Is it said which argument is wrong, and what it may be?"""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from wspy.limits import both_sizes, checked_count, checked_limit, checked_seconds, milliseconds


class Number:
    """An integer of somebody else's."""

    def __index__(self) -> int:
        return 5


@pytest.mark.parametrize("value", [1, 5, 10, True, Number()])
def test_a_count_in_range(value: Any) -> None:
    assert checked_count("max_line", value, 1, 10) == value.__index__()


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0, ValueError, "max_line must be from 1 to 10, not 0"),
        (11, ValueError, "max_line must be from 1 to 10, not 11"),
        (None, TypeError, "max_line must be an int from 1 to 10, not None"),
        (1.5, TypeError, "max_line must be an int from 1 to 10, not of type float"),
        ("1", TypeError, "max_line must be an int from 1 to 10, not of type str"),
    ],
)
def test_a_count_out_of_range(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        checked_count("max_line", value, 1, 10)


@pytest.mark.parametrize(("value", "limit"), [(None, 100), (1, 1), (99, 99), (Number(), 5)])
def test_a_limit_in_range(value: Any, limit: int) -> None:
    assert checked_limit("max_size", value, 1, 100) == limit


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0, ValueError, "max_size must be from 1 to 99, or None for no limit, not 0"),
        (100, ValueError, "max_size must be from 1 to 99, or None for no limit, not 100"),
        ("1", TypeError, "max_size must be an int, or None for no limit, not of type str"),
        (1.5, TypeError, "max_size must be an int, or None for no limit, not of type float"),
    ],
)
def test_a_limit_out_of_range(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        checked_limit("max_size", value, 1, 100)


@pytest.mark.parametrize(("value", "seconds"), [(None, None), (math.inf, None), (0, 0), (0.5, 0.5), (1e300, 1e300)])
def test_seconds_in_range(value: float | None, seconds: float | None) -> None:
    assert checked_seconds("shutdown_timeout", value) == seconds


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-0.5, ValueError, "shutdown_timeout must be at least 0 seconds, or None for never, not -0.5"),
        (math.nan, ValueError, "shutdown_timeout must be at least 0 seconds, or None for never, not nan"),
        ("1", TypeError, "shutdown_timeout must be a number of seconds, or None for never, not of type str"),
    ],
)
def test_seconds_out_of_range(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        checked_seconds("shutdown_timeout", value)


@pytest.mark.parametrize(
    ("value", "count"), [(None, 7), (1e-9, 1), (0.0124, 12), (1, 1000), (2_147_483, 2_147_483_000)]
)
def test_milliseconds_in_range(value: float | None, count: int) -> None:
    assert milliseconds("open_timeout", value, 7) == count


@pytest.mark.parametrize("value", [0, -1, 2_147_484, math.inf, math.nan])
def test_milliseconds_out_of_range(value: float) -> None:
    text = f"open_timeout must be above 0 and up to 2147483 seconds, or None for never, not {value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        milliseconds("open_timeout", value, 7)


def test_milliseconds_of_something_else() -> None:
    with pytest.raises(
        TypeError, match=r"^open_timeout must be a number of seconds, or None for never, not of type str$"
    ):
        milliseconds("open_timeout", "1", 7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("max_size", "sizes"), [(5, (5, None)), (None, (None, None)), ((5, 3), (5, 3)), ((None, 3), (None, 3))]
)
def test_both_sizes(max_size: Any, sizes: tuple[int | None, int | None]) -> None:
    assert both_sizes(max_size) == sizes


@pytest.mark.parametrize("max_size", [(), (1,), (1, 2, 3)])
def test_other_tuples_are_no_sizes(max_size: Any) -> None:
    with pytest.raises(TypeError, match="pair"):
        both_sizes(max_size)
