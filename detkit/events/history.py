"""The last values of one scalar, and the mean of all."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

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
    """

    def __init__(self, length: int = 1000, smoothing: bool = True) -> None:
        if length < 1:
            raise ValueError(f"History: length must be at least 1, got {length}")
        self.smoothing = smoothing
        self.count = 0
        self._values = np.empty(length)
        self._steps = np.empty(length, dtype=np.int64)
        self._finite, self._finite_total = 0, 0.0
        self._taken, self._taken_total = 0, 0.0

    def __len__(self) -> int:
        return min(self.count, len(self._values))

    def update(self, value: float, step: int) -> None:
        """Add one value."""
        self.extend([value], [step])

    def extend(self, values: list[float], steps: list[int]) -> None:
        """Add values in the order of their steps."""
        total = math.fsum(values) if all(map(math.isfinite, values)) else math.nan
        finite = values if math.isfinite(total) else [value for value in values if math.isfinite(value)]
        self._finite += len(finite)
        self._finite_total += math.fsum(finite)
        self._taken_total += total
        self._taken += len(values)
        length = len(self._values)
        begin = self.count + max(0, len(values) - length)
        self.count += len(values)
        values, steps = values[-length:], steps[-length:]
        place = begin % length
        first = min(len(values), length - place)
        for ring, new in ((self._values, values), (self._steps, steps)):
            ring[place : place + first] = new[:first]
            ring[: len(new) - first] = new[first:]

    def _last(self, ring: np.ndarray, number: int) -> np.ndarray:
        end = self.count % len(ring)
        kept = ring[: self.count] if self.count <= len(ring) else np.concatenate([ring[end:], ring[:end]])
        return kept[len(kept) - min(number, len(kept)) :]

    @property
    def samples(self) -> list[tuple[int, float]]:
        """The kept (step, value) pairs, oldest first."""
        steps, values = self._last(self._steps, len(self)), self._last(self._values, len(self))
        return list(zip(steps.tolist(), values.tolist(), strict=True))

    def latest(self) -> tuple[float, int]:
        """The last value and its step."""
        if not self.count:
            raise ValueError("this history is empty")
        place = (self.count - 1) % len(self._values)
        return float(self._values[place]), int(self._steps[place])

    def samples_since(self, step: int) -> int:
        """How many of the kept values belong to steps after ``step``."""
        return int((self._last(self._steps, len(self)) > step).sum())

    def median(self, window: int) -> float:
        """Median of the last ``window`` values that are kept."""
        return float(np.median(self._last(self._values, window)))

    def mean(self, window: int) -> float:
        """Mean of the last ``window`` values that are kept."""
        return float(np.mean(self._last(self._values, window)))

    def global_mean(self) -> float:
        """Mean of all values there ever were, those aside that were not finite."""
        return self._finite_total / self._finite if self._finite else math.nan

    def take(self) -> Taken | None:
        """What came since the last call, or None; for the one writer of a run."""
        if not self._taken:
            return None
        value, step = self.latest()
        taken = Taken(self._taken_total, self._taken, step) if self.smoothing else Taken(value, 1, step)
        self._taken, self._taken_total = 0, 0.0
        return taken
