"""What an argument that is a number may be, and what is said if it isn't that."""

from __future__ import annotations

from operator import index
from typing import Final, TypeAlias

__all__ = [
    "NO_COUNT_LIMIT",
    "NO_SIZE_LIMIT",
    "Sizes",
    "both_sizes",
    "checked_count",
    "checked_limit",
    "checked_seconds",
    "milliseconds",
]

Sizes: TypeAlias = int | tuple[int | None, int | None] | None
"""The most bytes of a message; or of that, and of each of its frames. None for no limit."""

NO_SIZE_LIMIT: Final = (1 << 64) - 1
NO_COUNT_LIMIT: Final = (1 << 32) - 1
# As the core counts them, in 32 bits with one value for never.
_MAX_MILLISECONDS: Final = (1 << 31) - 1
_MAX_SECONDS: Final = _MAX_MILLISECONDS // 1000


def checked_count(name: str, value: int, low: int, high: int) -> int:
    """Return a number that is in range.

    Raises:
        TypeError: it is no integer.
        ValueError: it is out of range.
    """
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int from {low} to {high}, not {_named(value)}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {number}")
    return number


def checked_limit(name: str, value: int | None, low: int, unlimited: int) -> int:
    """Return a limit that is in range; what stands for none if it is None.

    Raises:
        TypeError: it is neither an integer nor None.
        ValueError: it is out of range.
    """
    if value is None:
        return unlimited
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, or None for no limit, not {_named(value)}") from None
    if not low <= number < unlimited:
        raise ValueError(f"{name} must be from {low} to {unlimited - 1}, or None for no limit, not {number}")
    return number


def both_sizes(max_size: Sizes) -> tuple[int | None, int | None]:
    """Return the limit of a message, and that of each of its frames.

    Raises:
        TypeError: it is a tuple of another length. The limits themselves aren't looked at.
    """
    if not isinstance(max_size, tuple):
        return max_size, None
    if len(max_size) != 2:
        raise TypeError("max_size is an int, None, or a pair: that of a message, and that of each of its frames")
    return max_size


def checked_seconds(name: str, value: float | None, *, at_least: float = 0.0) -> float | None:
    """Return a number of seconds that is in range; None, for never, of infinity too.

    Raises:
        TypeError: it is neither a number nor None.
        ValueError: it is below the least, or NaN.
    """
    if value is None:
        return None
    try:
        in_range = value >= at_least
    except TypeError:
        raise TypeError(f"{name} must be a number of seconds, or None for never, not {_named(value)}") from None
    if not in_range:  # so is NaN, which is in no order
        raise ValueError(f"{name} must be at least {at_least:g} seconds, or None for never, not {value!r}")
    return None if value == float("inf") else value


def milliseconds(name: str, value: float | None, forever: int) -> int:
    """Return a deadline in milliseconds, at least one; what stands for never if it is None.

    Raises:
        TypeError: it is neither a number nor None.
        ValueError: it is out of range.
    """
    if value is None:
        return forever
    try:
        in_range = 0 < value <= _MAX_SECONDS
    except TypeError:
        raise TypeError(f"{name} must be a number of seconds, or None for never, not {_named(value)}") from None
    if not in_range:
        raise ValueError(f"{name} must be above 0 and up to {_MAX_SECONDS} seconds, or None for never, not {value!r}")
    return max(1, round(value * 1000))


def _named(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
