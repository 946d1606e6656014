"""Boxes that annotate several objects at once, moved apart (V3Det, https://arxiv.org/abs/2304.03752)."""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.structures.boxes import bbox_overlaps

__all__ = ["jitter_repeated"]

# Draws until one keeps the overlap; the last is taken as it is. Later draws move less.
NUM_DRAWS = 6
RANGE_STEP = 0.001
LEAST_RANGE = 0.001


def jitter_repeated(boxes: Tensor, iou_thr: float = 0.97, perm_range: float = 0.01) -> Tensor:
    """Boxes of which no two are equal: each coordinate of a repeated box is scaled at random.

    Args:
        boxes: (N, G, 4).
        iou_thr: Least IoU with the box before.
        perm_range: Coordinates are scaled by a factor in [1 - perm_range, 1 + perm_range].

    Returns:
        (N, G, 4); boxes that occur once in their image are as they were.
    """
    repeated = (boxes.unsqueeze(1) == boxes.unsqueeze(2)).all(dim=-1).sum(dim=-1) > 1
    moved, settled = boxes, ~repeated
    for draw in range(NUM_DRAWS):
        spread = max(perm_range - draw * RANGE_STEP, LEAST_RANGE)
        candidate = boxes * (1 + spread * (2 * torch.rand_like(boxes) - 1))
        moved = torch.where(settled.unsqueeze(-1), moved, candidate)
        settled = settled | (bbox_overlaps(moved, boxes, is_aligned=True) >= iou_thr)
    return moved
