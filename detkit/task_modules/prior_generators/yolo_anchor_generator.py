"""Anchors of YOLOv3, https://arxiv.org/abs/1804.02767: given widths and heights around the centre of each cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detkit.registry import TASK_UTILS
from detkit.task_modules.prior_generators.grid import level_strides, pair
from detkit.task_modules.prior_generators.grid_anchors import GridAnchors

__all__ = ["YOLOAnchorGenerator"]


@TASK_UTILS.register_module()
class YOLOAnchorGenerator(GridAnchors):
    """Anchors of given sizes.

    Args:
        strides: Pixels per cell of each level, one number or (x, y).
        base_sizes: Per level, width and height of each anchor in pixels; as many on each level.
        use_box_type: Accepted for MMDetection's configs; boxes are plain tensors either way.
    """

    def __init__(
        self,
        strides: Sequence[float | Sequence[float]],
        base_sizes: Sequence[Sequence[float | Sequence[float]]],
        use_box_type: bool = False,
    ) -> None:
        pairs = level_strides(strides)
        counts = [len(sizes) for sizes in base_sizes]
        if len(counts) != len(pairs) or len(set(counts)) > 1:
            raise ValueError(
                f"YOLOAnchorGenerator: base_sizes needs as many anchors on each of {len(pairs)} levels, got {counts}"
            )
        self.base_sizes = [[pair(size) for size in sizes] for sizes in base_sizes]
        self.centers = [(x / 2, y / 2) for x, y in pairs]
        self.use_box_type = use_box_type
        halves = [torch.tensor(sizes, dtype=torch.float32) / 2 for sizes in self.base_sizes]
        base_anchors = [
            torch.cat([torch.tensor(center) - half, torch.tensor(center) + half], dim=1)
            for half, center in zip(halves, self.centers, strict=True)
        ]
        super().__init__(pairs, base_anchors)
