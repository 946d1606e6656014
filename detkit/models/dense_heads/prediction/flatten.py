"""From maps per level to one row of predictions per image, and their priors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["featmap_sizes", "flatten_level", "flatten_levels"]


def featmap_sizes(maps: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Height and width of each map (N, ..., H, W)."""
    return [(m.shape[-2], m.shape[-1]) for m in maps]


def flatten_level(level: Tensor, channels: int) -> Tensor:
    """(N, A * K, H, W) to float32 (N, H * W * A, K): by row, by column, then by prior of the cell."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, channels).float()


def flatten_levels(levels: Sequence[Tensor], channels: int) -> Tensor:
    """All levels, fine to coarse, joined: (N, sum of H * W * A, K) float32."""
    return torch.cat([flatten_level(level, channels) for level in levels], dim=1)
