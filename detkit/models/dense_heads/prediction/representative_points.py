"""From sets of points to boxes and back (RepPoints, https://arxiv.org/abs/1904.11490, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.models.dense_heads.prediction.log_size import exp_size

__all__ = ["TRANSFORMS", "box_of_points", "grid_of_boxes"]

TRANSFORMS = ("minmax", "partial_minmax", "moment")
# Points that ``partial_minmax`` looks at.
PARTIAL = 4


def box_of_points(points: Tensor, transform: str, moment_transfer: Tensor | None = None) -> Tensor:
    """The box that a set of points stands for.

    Args:
        points: (..., P, 2) x and y.
        transform: ``minmax``, the box around the points; ``partial_minmax``, around the first four; ``moment``, whose
            half sides are the standard deviations of the points.
        moment_transfer: (2,) logarithms of the factors on these.

    Returns:
        (..., 4).
    """
    if transform == "moment":
        assert moment_transfer is not None
        middle = points.mean(dim=-2)
        half = points.std(dim=-2) * moment_transfer.exp()
        return torch.cat([middle - half, middle + half], dim=-1)
    some = points[..., :PARTIAL, :] if transform == "partial_minmax" else points
    return torch.cat([some.amin(dim=-2), some.amax(dim=-2)], dim=-1)


def grid_of_boxes(deltas: Tensor, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Boxes moved and scaled, and a grid of points in each.

    Args:
        deltas: (N, 4, H, W), the move in sides of the box, and logarithms of the factors on its sides.
        boxes: (N, 4, H, W), or 1 where all are the same.
        side: Points along each side, P = side^2.

    Returns:
        Points (N, 2 P, H, W) as (y, x) each, row by row, and boxes (N, 4, H, W).
    """
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    new_size = size * exp_size(deltas[:, 2:])
    corner = center + size * deltas[:, :2] - 0.5 * new_size
    steps = torch.linspace(0, 1, side, dtype=deltas.dtype, device=deltas.device).view(1, 1, side, 1, 1)
    # (N, 2, side, H, W), of which the first is x
    ticks = corner.unsqueeze(2) + new_size.unsqueeze(2) * steps
    columns = ticks[:, 0].unsqueeze(1).expand(-1, side, -1, -1, -1)
    rows = ticks[:, 1].unsqueeze(2).expand(-1, -1, side, -1, -1)
    points = torch.stack([rows, columns], dim=3).flatten(1, 3)
    return points, torch.cat([corner, corner + new_size], dim=1)
