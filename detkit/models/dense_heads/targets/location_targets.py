"""Where an anchor is worth having: the middle of objects (Guided Anchoring, https://arxiv.org/abs/1901.03278, 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import calc_region
from detkit.task_modules.assigners.chunks import chunk_slices

__all__ = ["location_targets"]

# What a cell that is in no region of any object weighs: nearly all cells are such.
NEGATIVE_WEIGHT = 0.1


def location_targets(
    ground_truth: GroundTruth,
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[float],
    base_size: float,
    center_ratio: float,
    ignore_ratio: float,
) -> tuple[Tensor, Tensor]:
    """Which cells are in the middle of an object, and how much each cell counts.

    1. An object belongs to the level whose squares are nearest to its size; the first and the last level have no end.
    2. There, cells in its central region are positive, and those around it up to its ignored region count nothing;
       where regions of objects overlap, the last object's hold.
    3. On the levels next to its own, cells in its ignored region count nothing if no object of theirs says otherwise.
    4. All other cells are negative, with a tenth of a positive's weight.

    Args:
        ground_truth: Objects of the N images.
        sizes: Height and width of each level, A cells together.
        strides: Pixels per cell of each level.
        base_size: Side in pixels of the squares of the first level.
        center_ratio: Size of the central region, of the object's.
        ignore_ratio: Size of the ignored region, of the object's.

    Returns:
        Positives (N, A) bool, and weights (N, A) of all cells.
    """
    boxes, last = ground_truth.boxes, len(sizes) - 1
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    scale = area.clamp(min=0).sqrt().log2() - torch.full_like(area, base_size).log2()
    own = (scale + 0.5).floor().clamp(0, last)  # (N, G)
    positive, weights = [], []
    for level, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        here, nearby = ((own - level).abs() == distance for distance in (0, 1))
        central, ignored = (
            _last_covering(boxes / stride, here & ground_truth.valid, ratio, size)
            for ratio in (center_ratio, ignore_ratio)
        )
        beside = _last_covering(boxes / stride, nearby & ground_truth.valid, ignore_ratio, size)
        weight = torch.where(beside > 0, 0.0, NEGATIVE_WEIGHT)
        weight = torch.where(ignored > 0, 0.0, weight)
        # The central region is part of the ignored one: who covers a cell last there has the word.
        weight = torch.where((central > 0) & (central == ignored), 1.0, weight)
        positive.append(central > 0)
        weights.append(weight)
    return torch.cat(positive, dim=1), torch.cat(weights, dim=1)


def _last_covering(boxes: Tensor, taken: Tensor, ratio: float, size: tuple[int, int]) -> Tensor:
    """One more than the index of the last object whose inner part covers a cell, (N, H * W); 0 where none does.

    Args:
        boxes: (N, G, 4) in cells.
        taken: (N, G) bool, which objects count.
        ratio: Size of the inner part, of the object's.
        size: Height and width of the level.
    """
    x1, y1, x2, y2 = (side.unsqueeze(2) for side in calc_region(boxes, (1 - ratio) / 2, size))
    y, x = (torch.arange(count, device=boxes.device) for count in size)
    rows = (y >= y1) & (y <= y2) & taken.unsqueeze(2)  # (N, G, H)
    columns = (x >= x1) & (x <= x2)  # (N, G, W)
    found = torch.zeros(len(boxes), *size, dtype=torch.int64, device=boxes.device)
    for some in chunk_slices(boxes.shape[1], found.numel(), found.device, least=1):
        index = torch.arange(some.start + 1, some.stop + 1, device=found.device).view(1, -1, 1, 1)
        inside = rows[:, some].unsqueeze(3) & columns[:, some].unsqueeze(2)  # (N, g, H, W)
        found = torch.maximum(found, (inside * index).amax(dim=1))
    return found.flatten(1)
