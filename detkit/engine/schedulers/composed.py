"""Curves made of curves: one after the other, and any of them after a warm-up.

Detectron2's ``WarmupParamScheduler`` (``detectron2/solver/lr_scheduler.py``) and fvcore's ``CompositeParamScheduler``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detkit.engine.schedulers.multipliers import TOLERANCE, Multiplier, build_multiplier, place
from detkit.registry import PARAM_SCHEDULERS

__all__ = ["CompositeMultiplier", "WarmupMultiplier"]

_SCALINGS = ("rescaled", "fixed")
_METHODS = ("linear", "constant")


@PARAM_SCHEDULERS.register_module()
@dataclass
class CompositeMultiplier(Multiplier):
    """One curve after the other.

    Args:
        multipliers: The curves or their configs.
        lengths: Fraction of the run that each takes; they sum to 1.
        interval_scaling: For each, ``'rescaled'``: it runs from its start to its end within its part; or
            ``'fixed'``: its part is cut out of the curve over the whole run. One word counts for all.

    Raises:
        ValueError: Numbers of entries that differ, lengths that do not sum to 1, another word.
    """

    multipliers: Sequence[Multiplier | Mapping[str, Any]]
    lengths: Sequence[float]
    interval_scaling: str | Sequence[str] = "rescaled"

    def __post_init__(self) -> None:
        count = len(self.multipliers)
        scaling = self.interval_scaling
        self._scalings = [scaling] * count if isinstance(scaling, str) else list(scaling)
        if not count or len(self.lengths) != count or len(self._scalings) != count:
            raise ValueError(
                f"{place(self, 'lengths')}: one length and one interval_scaling per multiplier were expected, got "
                f"{count} multipliers, {len(self.lengths)} lengths and {len(self._scalings)} interval_scaling"
            )
        if abs(sum(self.lengths) - 1.0) > 1e-3 or min(self.lengths) < 0:
            raise ValueError(f"{place(self, 'lengths')}: fractions that sum to 1 were expected, got {self.lengths}")
        for one in self._scalings:
            if one not in _SCALINGS:
                raise ValueError(f"{place(self, 'interval_scaling')}: 'rescaled' or 'fixed' was expected, got {one!r}")
        self._curves = [build_multiplier(one) for one in self.multipliers]
        self.multipliers = self._curves

    def over(self, steps: int) -> Multiplier:
        """Each curve over its part (``'rescaled'``) or over the whole run (``'fixed'``)."""
        curves = [
            curve.over(max(1, round(length * steps)) if scaling == "rescaled" else steps)
            for curve, length, scaling in zip(self._curves, self.lengths, self._scalings, strict=True)
        ]
        return CompositeMultiplier(curves, self.lengths, self._scalings)

    def value(self, done: float) -> float:
        """The value of the curve whose part it is; a border belongs to the one that starts there."""
        part, end = 0, self.lengths[0]
        while done + TOLERANCE > end and part < len(self._curves) - 1:
            part += 1
            end += self.lengths[part]
        if self._scalings[part] == "rescaled" and self.lengths[part] > 0:
            done = (done - end + self.lengths[part]) / self.lengths[part]
        return self._curves[part](done)


@PARAM_SCHEDULERS.register_module()
@dataclass
class WarmupMultiplier(Multiplier):
    """Any curve after a warm-up, which meets it without a jump.

    A linear warm-up rises from ``warmup_factor`` times the curve's start to the value that the curve has where the
    warm-up ends; mmengine's chain of schedulers multiplies both, and so bends a cosine's warm-up.

    Args:
        multiplier: The curve or its config.
        warmup_factor: Value at the start, as a factor of the curve's, >= 0.
        warmup_iters: Length in steps; at most the whole run is warmed up. 0 is none.
        warmup_length: Length as a fraction of the run, instead of ``warmup_iters``.
        warmup_method: ``'linear'``, or ``'constant'``, which stays at the start's value.
        rescale_interval: Let the whole curve follow the warm-up, within what is left of the run; else its beginning
            is replaced, and milestones stay where they are.

    Raises:
        ValueError: Another method, a negative factor, both lengths or none, or one out of range.
    """

    multiplier: Multiplier | Mapping[str, Any]
    warmup_factor: float = 0.001
    warmup_iters: int | None = None
    warmup_length: float | None = None
    warmup_method: str = "linear"
    rescale_interval: bool = False

    def __post_init__(self) -> None:
        if self.warmup_method not in _METHODS:
            raise ValueError(
                f"{place(self, 'warmup_method')}: 'linear' or 'constant' was expected, got {self.warmup_method!r}"
            )
        if self.warmup_factor < 0:
            raise ValueError(f"{place(self, 'warmup_factor')}: 0 or more was expected, got {self.warmup_factor}")
        if (self.warmup_iters is None) == (self.warmup_length is None):
            raise ValueError(f"{place(self, 'warmup_iters')}: either warmup_iters or warmup_length must be given")
        if (self.warmup_iters or 0) < 0 or not 0 <= (self.warmup_length or 0) <= 1:
            raise ValueError(
                f"{place(self, 'warmup_iters')}: 0 or more steps, or a fraction of the run in [0, 1], were expected, "
                f"got warmup_iters={self.warmup_iters} and warmup_length={self.warmup_length}"
            )
        self.multiplier = build_multiplier(self.multiplier)
        self._curve: Multiplier = self.multiplier
        self._ends: tuple[float, float] | None = None  # values at both ends of the warm-up, once they are known

    def over(self, steps: int) -> Multiplier:
        """With the warm-up as a fraction of ``steps``."""
        length = self.warmup_length if self.warmup_iters is None else min(self.warmup_iters / steps, 1.0)
        assert length is not None
        left = max(1, round(steps * (1.0 - length))) if self.rescale_interval else steps
        curve = self._curve.over(left)
        return WarmupMultiplier(curve, self.warmup_factor, None, length, self.warmup_method, self.rescale_interval)

    def value(self, done: float) -> float:
        """The line during the warm-up, the curve after it."""
        length = self.warmup_length
        if length is None:
            raise ValueError("WarmupMultiplier: its length is not known; give warmup_length, or call over(steps)")
        if done + TOLERANCE > length:
            if not self.rescale_interval:
                return self._curve.value(done)
            return self._curve((done - length) / (1.0 - length) if length < 1.0 else 1.0)
        if self._ends is None:
            begin = self.warmup_factor * self._curve(0.0)
            end = self._curve(0.0 if self.rescale_interval else length)
            self._ends = (begin, begin if self.warmup_method == "constant" else end)
        part = done / length
        return self._ends[1] * part + self._ends[0] * (1.0 - part)
