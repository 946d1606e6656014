"""Where a star-shaped convolution looks (VarifocalNet, https://arxiv.org/abs/2008.13367, 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["star_offsets"]


def star_offsets(distances: Tensor) -> Tensor:
    """Nine points of a box: its centre, corners and the middles of its sides as the cell sees them.

    Args:
        distances: (N, 4, H, W) to the left, upper, right and lower side, in cells.

    Returns:
        (N, 18, H, W): y and x from the cell, row by row.
    """
    left, top, right, bottom = distances.unbind(1)
    here = torch.zeros_like(left)
    points = [part for y in (-top, here, bottom) for x in (-left, here, right) for part in (y, x)]
    return torch.stack(points, dim=1)
