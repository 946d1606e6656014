"""The last values of one scalar, and the mean of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["History", "Taken"]


class Taken(NamedTuple):
    """What a history got since it was last asked.

    Attributes:
        total: Sum of the values; of a history that is not smoothed, the latest value.
        number: How many values ``total`` is the sum of.
        step: Step of the latest value.
    """

    total: float
    number: int
    step: int


class History:
    """The last values of one scalar with their steps, and the mean of all of them.

    Args:
        length: How many values to keep.
        smoothing: Whether writers may show a median or mean instead of the latest value.

    Attributes:
        smoothing: As given.
        count: Values there ever were, those of the run that this one goes on from included.

    Raises:
        ValueError: ``length`` is not positive.
    """

    def __init__(self, length: int = 1000, smoothing: bool = True) -> None:
        if length < 1:
            raise ValueError(f"History: length must be at least 1, got {length}")
        self.smoothing = smoothing
        self.count = 0
        self._values = np.empty(length)
        self._steps = np.empty(length, dtype=np.int64)
        self._put = 0  # values that were put into the rings
        self._finite, self._finite_total = 0, 0.0
        self._taken, self._taken_total = 0, 0.0  # since the last call of take

    def __len__(self) -> int:
        return min(self._put, len(self._values))

    def update(self, value: float, step: int) -> None:
        """Add one value."""
        self.extend([value], [step])

    def extend(self, values: list[float], steps: Sequence[int] | NDArray[np.int64]) -> None:
        """Add values in the order of their steps."""
        total = sum(values)
        if not math.isfinite(total):
            finite = [value for value in values if math.isfinite(value)]
            self._finite += len(finite)
            self._finite_total += sum(finite)
        else:
            self._finite += len(values)
            self._finite_total += total
        self._taken_total += total
        self._taken += len(values)
        self.count += len(values)
        length = len(self._values)
        begin = self._put + max(0, len(values) - length)
        self._put += len(values)
        place = begin % length
        if place + len(values) <= length:
            self._values[place : place + len(values)] = values
            self._steps[place : place + len(values)] = steps
            return
        places = np.arange(begin, self._put) % length
        self._values[places] = values[-length:]
        self._steps[places] = steps[-length:]

    def values(self, window: int | None = None) -> NDArray[np.float64]:
        """The last ``window`` values that are kept, oldest first; all of them if None."""
        return self._last(self._values, window)

    def steps(self, window: int | None = None) -> NDArray[np.int64]:
        """The steps of ``values``."""
        return self._last(self._steps, window)

    def _last(self, ring: NDArray[Any], window: int | None) -> NDArray[Any]:
        if window is not None and window < 1:
            raise ValueError(f"a window must have at least 1 value, got {window}")
        number = len(self) if window is None else min(window, len(self))
        end = self._put % len(ring)
        if number <= end:
            return ring[end - number : end]
        return np.concatenate([ring[len(ring) - (number - end) :], ring[:end]])

    @property
    def samples(self) -> list[tuple[int, float]]:
        """The (step, value) pairs that are kept, oldest first."""
        return list(zip(self.steps().tolist(), self.values().tolist(), strict=True))

    def latest(self) -> tuple[float, int]:
        """The last value and its step.

        Raises:
            ValueError: There is none.
        """
        if not self._put:
            raise ValueError("this history is empty")
        place = (self._put - 1) % len(self._values)
        return float(self._values[place]), int(self._steps[place])

    def samples_since(self, step: int) -> int:
        """How many of the values that are kept belong to steps after ``step``."""
        return int((self.steps() > step).sum())

    def median(self, window: int) -> float:
        """Median of the last ``window`` values that are kept, those aside that are NaN."""
        # All values may come in any order, which saves copying them.
        values = self._values[: len(self)] if window >= max(1, len(self)) else self.values(window)
        if len(values) <= 50:
            numbers = [value for value in values.tolist() if value == value]
            return median(numbers) if numbers else math.nan
        values = values[~np.isnan(values)]
        if not len(values):
            return math.nan
        middle = len(values) // 2
        below, above = np.partition(values, (middle - 1, middle))[middle - 1 : middle + 1]
        return float(above if len(values) % 2 else (below + above) / 2)

    def mean(self, window: int) -> float:
        """Mean of the last ``window`` values that are kept."""
        return float(self.values(window).mean())

    def global_mean(self) -> float:
        """Mean of all values there ever were, those aside that were not finite."""
        return self._finite_total / self._finite if self._finite else math.nan

    def take(self) -> Taken | None:
        """What came since the last call, or None; for the one writer of a run."""
        if not self._taken:
            return None
        if self.smoothing:
            taken = Taken(self._taken_total, self._taken, self.latest()[1] if self._put else 0)
        else:
            value, step = self.latest()
            taken = Taken(value, 1, step)
        self._taken, self._taken_total = 0, 0.0
        return taken

    def state_dict(self) -> dict[str, Any]:
        """The sums, in plain types; not the values."""
        return {
            "count": self.count,
            "finite": [self._finite, self._finite_total],
            "taken": [self._taken, self._taken_total],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the sums that :meth:`state_dict` gave."""
        self.count = state["count"]
        self._finite, self._finite_total = state["finite"]
        self._taken, self._taken_total = state["taken"]
