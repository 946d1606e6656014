"""Values of feature maps at points between their pixels (PointRend, https://arxiv.org/abs/1912.08193, section 3.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["point_sample"]


def point_sample(features: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples (N, C, P); beyond the features there are zeros.

    Args:
        features: (N, C, H, W).
        points: (N, P, 2), x and y, 0 at the left or upper border and 1 at the right or lower one.
    """
    if features.numel() == 0 or points.numel() == 0:
        return features.new_zeros(len(features), features.shape[1], points.shape[1])
    full = features.float() if features.element_size() < 4 else features
    grid = (points.to(full.dtype) * 2 - 1).unsqueeze(2)
    return F.grid_sample(full, grid, align_corners=False).squeeze(3).to(features.dtype)
