"""Checks of the numbers that an operator is given; the caller puts the place in front of the message."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["check_limit", "check_range"]


def check_range(name: str, value: Any, low: float = -math.inf, high: float = math.inf, above: bool = False) -> None:
    """Refuse what is no number in [low, high].

    Args:
        name: Of the argument.
        value: What was given.
        low: Least value.
        high: Largest value.
        above: The value must be above ``low``.

    Raises:
        TypeError: No number.
        ValueError: Out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not low <= value <= high or (above and value == low):
        bounds = f"{'(' if above else '['}{low}, {high}{']' if high < math.inf else ')'}"
        raise ValueError(f"{name} must be in {bounds}, got {value!r}")


def check_limit(name: str, value: Any, optional: bool = False) -> None:
    """Refuse what is no number of things to keep: a whole number, a negative one for all.

    Args:
        name: Of the argument.
        value: What was given.
        optional: None stands for all, too.

    Raises:
        TypeError: Something else.
        ValueError: 0, which would keep nothing.
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value == 0:
        raise ValueError(f"{name} is 0, which keeps nothing; -1 keeps all")
