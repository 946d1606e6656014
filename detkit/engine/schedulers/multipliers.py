"""Curves that a learning rate follows: factors of its base value as functions of the fraction of the run that is done.

The family of fvcore's parameter schedulers (``fvcore/common/param_scheduler.py``), which Detectron2 schedules with:
same values, same tolerance at the borders. Unlike there, the end of the run is inside every curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detkit.registry import PARAM_SCHEDULERS, build, where

__all__ = [
    "TOLERANCE",
    "ConstantMultiplier",
    "CosineMultiplier",
    "ExpMultiplier",
    "LinearMultiplier",
    "Multiplier",
    "PolyMultiplier",
    "build_multiplier",
    "place",
]

# Fraction of the run by which a border may be missed; fvcore's. A quotient of two counts may end just below it.
TOLERANCE = 1e-6


class Multiplier:
    """A factor as a function of the fraction of the run that is done.

    A class of one's own needs :meth:`value`, and :meth:`over` if it counts in steps.
    """

    def __call__(self, done: float) -> float:
        """The factor at ``done``, which is clamped to [0, 1]."""
        return self.value(min(max(done, 0.0), 1.0))

    def value(self, done: float) -> float:
        """The factor at ``done`` in [0, 1]."""
        raise NotImplementedError

    def over(self, steps: int) -> Multiplier:
        """The curve of a run of ``steps`` steps, for curves that are given in steps; else the curve itself."""
        return self


def build_multiplier(cfg: Multiplier | Mapping[str, Any]) -> Multiplier:
    """Build the curve that ``cfg`` describes.

    Raises:
        TypeError: It describes something else.
    """
    built = build(cfg, PARAM_SCHEDULERS) if isinstance(cfg, Mapping) else cfg
    if not isinstance(built, Multiplier):
        raise TypeError(
            f"{where() or 'multiplier'}: a multiplier was expected, such as dict(type='CosineMultiplier'), got {cfg!r}"
        )
    return built


def place(owner: object, argument: str) -> str:
    """Config path of an argument of ``owner``, which is being built."""
    return f"{where() or type(owner).__name__}.{argument}"


@PARAM_SCHEDULERS.register_module()
@dataclass
class ConstantMultiplier(Multiplier):
    """Always ``factor``.

    Args:
        factor: The value.
    """

    factor: float = 1.0

    def value(self, done: float) -> float:
        """``factor``."""
        return self.factor


@PARAM_SCHEDULERS.register_module()
@dataclass
class LinearMultiplier(Multiplier):
    """A straight line.

    Args:
        start: Value at the start.
        end: Value at the end.
    """

    start: float = 1.0
    end: float = 0.0

    def value(self, done: float) -> float:
        """``start (1 - done) + end done``."""
        return self.end * done + self.start * (1.0 - done)


@PARAM_SCHEDULERS.register_module()
@dataclass
class CosineMultiplier(Multiplier):
    """Half a cosine, as in SGDR without restarts, https://arxiv.org/abs/1608.03983, eq. 5.

    Args:
        start: Value at the start.
        end: Value at the end; Detectron2's ``BASE_LR_END / BASE_LR``.
    """

    start: float = 1.0
    end: float = 0.0

    def value(self, done: float) -> float:
        """``end + (start - end) (1 + cos(pi done)) / 2``."""
        return self.end + 0.5 * (self.start - self.end) * (1.0 + math.cos(math.pi * done))


@PARAM_SCHEDULERS.register_module()
@dataclass
class PolyMultiplier(Multiplier):
    """A power of the fraction that is left.

    Args:
        power: The exponent, > 0.
        start: Value at the start; at the end it is 0.

    Raises:
        ValueError: ``power`` is not positive.
    """

    power: float = 1.0
    start: float = 1.0

    def __post_init__(self) -> None:
        if self.power <= 0:
            raise ValueError(f"{place(self, 'power')}: a positive exponent was expected, got {self.power}")

    def value(self, done: float) -> float:
        """``start (1 - done)^power``."""
        return self.start * (1.0 - done) ** self.power


@PARAM_SCHEDULERS.register_module()
@dataclass
class ExpMultiplier(Multiplier):
    """Exponential decay.

    Args:
        decay: Ratio of the value at the end to that at the start, > 0.
        start: Value at the start.

    Raises:
        ValueError: ``decay`` is not positive.
    """

    decay: float
    start: float = 1.0

    def __post_init__(self) -> None:
        if self.decay <= 0:
            raise ValueError(f"{place(self, 'decay')}: a positive ratio was expected, got {self.decay}")

    def value(self, done: float) -> float:
        """``start decay^done``."""
        return self.start * self.decay**done
