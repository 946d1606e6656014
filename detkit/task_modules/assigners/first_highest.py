"""The highest of some values, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["first_highest"]


def first_highest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest values of the last dimension and their indices, highest first, of equal ones the first.

    ``topk`` leaves open which of equal values it takes; for a few values this is as fast.

    Args:
        values: (..., M), M >= ``count``.
        count: At least 1.

    Returns:
        Values and indices, both (..., ``count``).
    """
    found = [values.max(dim=-1, keepdim=True)]
    for _ in range(count - 1):
        values = values.scatter(-1, found[-1].indices, -torch.inf)
        found.append(values.max(dim=-1, keepdim=True))
    highest, indices = zip(*found, strict=True)
    return torch.cat(highest, dim=-1), torch.cat(indices, dim=-1)
