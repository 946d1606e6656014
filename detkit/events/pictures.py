"""What is noted besides scalars: images, and how values are distributed."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Histogram", "Picture", "count_values"]


class Picture(NamedTuple):
    """A noted image: its name, (C, H, W) pixels and step."""

    name: str
    image: Tensor
    step: int


class Histogram(NamedTuple):
    """How values were distributed.

    Attributes:
        name: As it was noted.
        counts: Finite values per bin.
        low: The smallest finite value, where the first bin begins.
        high: The largest, where the last bin ends.
        total: Their sum.
        total_squares: The sum of their squares.
        step: Step they belong to.
    """

    name: str
    counts: list[float]
    low: float
    high: float
    total: float
    total_squares: float
    step: int


def count_values(values: Tensor, bins: int) -> Tensor:
    """(4 + bins,) float64: smallest, largest, sum, sum of squares, counts; over finite values."""
    values = values.detach().flatten().double()
    finite = values.isfinite()
    low = torch.where(finite, values, math.inf).amin()
    high = torch.where(finite, values, -math.inf).amax()
    values = torch.where(finite, values, 0)
    places = ((values - low) / (high - low) * bins).nan_to_num(0).clamp(0, bins - 1).long()
    counts = values.new_zeros(bins).scatter_add_(0, places, finite.double())
    return torch.cat([torch.stack([low, high, values.sum(), values.square().sum()]), counts])
