"""Sizes that a head predicts by their logarithm."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["GREATEST_LOG", "GREATEST_SIZE", "exp_size"]

# Greatest logarithm of a size in strides, or in pixels. What is larger is as wrong, and its area is a finite float32.
GREATEST_LOG = 20.0
GREATEST_SIZE = math.exp(GREATEST_LOG)


def exp_size(raw: Tensor) -> Tensor:
    """Exponential (...) in float32 that does not overflow.

    An infinite box has no overlap with anything, and 0 times an infinite slope is no gradient: one wild prediction of
    a network that has not learnt yet would end the run.
    """
    return raw.float().clamp(max=GREATEST_LOG).exp()
