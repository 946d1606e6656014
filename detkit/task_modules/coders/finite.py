"""Encoded boxes that can be learnt, whatever the boxes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["encode_finite"]


def encode_finite(coder: Any, priors: Tensor, boxes: Tensor) -> Any:
    """What ``coder`` encodes; 0 where that is infinite or undefined, unless it has several parts, such as buckets.

    The logarithm of a side of no length is infinite, and so would be the loss of all. With 0, objects without width
    or height leave that side of their priors as it is.

    Args:
        coder: Registered box coder.
        priors: (..., 4).
        boxes: (..., 4), of the object of each.
    """
    encoded = coder.encode(priors, boxes)
    return encoded.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) if isinstance(encoded, Tensor) else encoded
