"""Curves that change in steps: at equal distances or at milestones, as fvcore's parameter schedulers do."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmengine.logging import print_log

from detkit.engine.schedulers.multipliers import TOLERANCE, Multiplier, place
from detkit.registry import PARAM_SCHEDULERS

__all__ = ["MultiStepMultiplier", "StepMultiplier", "StepWithFixedGamma"]


@PARAM_SCHEDULERS.register_module()
@dataclass
class StepMultiplier(Multiplier):
    """Values that hold for equal parts of the run.

    Args:
        values: One per part, in order.

    Raises:
        ValueError: No values.
    """

    values: Sequence[float]

    def __post_init__(self) -> None:
        _require_values(self, self.values)

    def value(self, done: float) -> float:
        """The value of the part; at the end the last one."""
        part = int((done + TOLERANCE) * len(self.values))
        return self.values[min(part, len(self.values) - 1)]


@PARAM_SCHEDULERS.register_module()
@dataclass
class StepWithFixedGamma(Multiplier):
    """``num_decays`` drops by the same factor, in equal distances; Detectron2's name.

    Args:
        num_decays: How often it drops, >= 0: the run has ``num_decays + 1`` equal parts.
        gamma: Factor of each drop.
        start: Value before the first.

    Raises:
        ValueError: ``num_decays`` is negative.
    """

    num_decays: int = 3
    gamma: float = 0.1
    start: float = 1.0

    def __post_init__(self) -> None:
        if self.num_decays < 0:
            raise ValueError(f"{place(self, 'num_decays')}: 0 or more was expected, got {self.num_decays}")
        self._steps = StepMultiplier([self.start * self.gamma**k for k in range(self.num_decays + 1)])

    def value(self, done: float) -> float:
        """``start gamma^(number of drops so far)``."""
        return self._steps.value(done)


@PARAM_SCHEDULERS.register_module()
@dataclass
class MultiStepMultiplier(Multiplier):
    """Changes at milestones: by the factor ``gamma`` at each, or to the next of ``values``.

    Args:
        milestones: Where it changes, increasing: steps (int), or fractions of the run (float between 0 and 1). With
            ``gamma``, steps at or after the end of the run are dropped with a warning. With ``values`` there is one
            less than these; or as many, the last of which is then the length of the run. None: equal parts of the
            run, each rounded up to whole steps.
        gamma: Factor at each milestone, where ``values`` are not given.
        values: The values between milestones, the first one from the start.
        num_updates: Length of the run in steps; None takes the scheduler's, which is the run's.

    Raises:
        ValueError: Milestones that do not increase, do not fit the values or the length; no positive length.
    """

    milestones: Sequence[float] | None = None
    gamma: float = 0.1
    values: Sequence[float] | None = None
    num_updates: int | None = None
    _borders: list[int] = field(default_factory=list, init=False, repr=False, compare=False)
    _levels: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.values is not None:
            _require_values(self, self.values)
            if self.milestones is not None and len(self.milestones) == len(self.values) and self.num_updates is None:
                *self.milestones, last = self.milestones
                self.num_updates = int(last)
        elif self.milestones is None:
            raise ValueError(f"{place(self, 'milestones')}: neither milestones nor values are given")
        _check_milestones(self)
        if self.num_updates is not None:
            self._fit(self.num_updates)

    def over(self, steps: int) -> Multiplier:
        """With ``steps`` as the length, unless it has one of its own."""
        if self.num_updates is not None:
            return self
        return MultiStepMultiplier(self.milestones, self.gamma, self.values, steps)

    def value(self, done: float) -> float:
        """The value after the milestones that are reached."""
        if self.num_updates is None:
            raise ValueError("MultiStepMultiplier: its length is not known; give num_updates, or call over(steps)")
        # Half a step at most: in a run of more than 500,000 steps the tolerance would reach into the one before.
        done += min(TOLERANCE, 0.5 / self.num_updates)
        return self._levels[bisect_right(self._borders, int(done * self.num_updates))]

    def _fit(self, steps: int) -> None:
        if steps < 1 or (self.values is not None and steps < len(self.values)):
            raise ValueError(
                f"{place(self, 'num_updates')}: at least one step per value was expected, got {steps} steps"
            )
        if self.milestones is None:
            width = math.ceil(steps / len(self.values or ()))
            borders = [width * k for k in range(1, len(self.values or ()))]
        else:
            borders = [round(one * steps) if isinstance(one, float) else one for one in self.milestones]
        late = [border for border in borders if border >= steps]
        if late and self.values is not None:
            raise ValueError(
                f"{place(self, 'milestones')}: {late} are not inside the run of {steps} steps, and each of the "
                f"{len(self.values)} values needs its part"
            )
        if late:
            print_log(
                f"{place(self, 'milestones')}: {late} are at or after the end of the run of {steps} steps: dropped",
                "current",
                logging.WARNING,
            )
        self._borders = borders[: len(borders) - len(late)]
        self._levels = list(self.values or [self.gamma**k for k in range(len(self._borders) + 1)])


def _require_values(owner: object, values: Sequence[float]) -> None:
    if not len(values):
        raise ValueError(f"{place(owner, 'values')}: at least one value was expected, got {values!r}")


def _check_milestones(curve: MultiStepMultiplier) -> None:
    milestones = list(curve.milestones or ())
    kinds = {float if isinstance(one, float) else int for one in milestones}
    increase = all(one < two for one, two in zip([0, *milestones], milestones, strict=False))
    if len(kinds) > 1 or not increase or (float in kinds and milestones[-1] >= 1.0):
        raise ValueError(
            f"{place(curve, 'milestones')}: positive steps (int) or fractions of the run (float below 1) in "
            f"increasing order were expected, got {milestones}"
        )
    if curve.values is not None and milestones and len(milestones) != len(curve.values) - 1:
        raise ValueError(
            f"{place(curve, 'milestones')}: {len(curve.values)} values have {len(curve.values) - 1} milestones "
            f"between them, got {len(milestones)}"
        )
