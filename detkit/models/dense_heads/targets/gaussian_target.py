"""Gaussian peaks as targets of heatmaps (CornerNet, https://arxiv.org/abs/1808.01244, section 3.2; CenterNet).

A peak of radius r has the standard deviation ``(2 r + 1) / 6`` and ends at the square of side ``2 r + 1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["gaussian_heatmaps", "gaussian_radius", "gen_gaussian_target"]

# Bytes of the temporary (N, chunk, H, W).
MEMORY_BUDGET = 64 * 2**20


def gaussian_radius(det_size: Sequence[Any], min_overlap: float) -> Any:
    """The radius within which corners may move so that boxes still overlap.

    The least of three solutions of IoU = ``min_overlap`` for boxes of height h and width w:
    moved along the diagonal, ``(h - r) (w - r) / (2 h w - (h - r) (w - r))``; with both corners inside,
    ``(h - 2 r) (w - 2 r) / (h w)``; with both outside, ``h w / ((h + 2 r) (w + 2 r))``.

    Args:
        det_size: Height and width, two numbers or two tensors (...).
        min_overlap: IoU in (0, 1).

    Returns:
        Radius in the unit of the sizes, a number or (...).
    """
    height, width = det_size
    perimeter, area = height + width, height * width
    moved = (perimeter - (perimeter**2 - 4 * area * (1 - min_overlap) / (1 + min_overlap)) ** 0.5) / 2
    inside = (perimeter - (perimeter**2 - 4 * area * (1 - min_overlap)) ** 0.5) / 4
    outside = ((perimeter**2 + 4 * area * (1 - min_overlap) / min_overlap) ** 0.5 - perimeter) / 4
    if isinstance(moved, Tensor):
        return torch.minimum(torch.minimum(moved, inside), outside)
    return min(moved, inside, outside)


def gen_gaussian_target(heatmap: Tensor, center: Sequence[int], radius: int, k: float = 1) -> Tensor:
    """Draw a peak into a heatmap where it is higher than what is there.

    Args:
        heatmap: (H, W); changed in place.
        center: Column and row of the peak; what is outside of the heatmap is not drawn.
        radius: In cells.
        k: Height of the peak.

    Returns:
        ``heatmap``.
    """
    x, y = (int(coordinate) for coordinate in center)
    height, width = heatmap.shape
    top, bottom = max(y - radius, 0), min(y + radius + 1, height)
    left, right = max(x - radius, 0), min(x + radius + 1, width)
    if top < bottom and left < right:
        rows = torch.arange(top, bottom, device=heatmap.device)
        columns = torch.arange(left, right, device=heatmap.device)
        peak = k * _bell(rows - y, radius)[:, None] * _bell(columns - x, radius)[None, :]
        window = heatmap[top:bottom, left:right]
        window.copy_(torch.maximum(window, peak.to(heatmap.dtype)))
    return heatmap


def gaussian_heatmaps(
    centers: Tensor, radii: Tensor, labels: Tensor, valid: Tensor, num_classes: int, size: tuple[int, int]
) -> Tensor:
    """The heatmaps of a batch, one per class: at each cell the highest of all peaks, without a loop over objects.

    Args:
        centers: (N, G, 2) int64, column and row of each object's peak.
        radii: (N, G) int64, in cells, at least 0.
        labels: (N, G) int64 in [0, C).
        valid: (N, G) bool; the other objects draw nothing.
        num_classes: C.
        size: H and W.

    Returns:
        (N, C, H, W) float32, exactly 1 at the peaks.
    """
    num_images, num_objects = labels.shape
    height, width = size
    heatmaps = torch.zeros(num_images, num_classes, height, width, device=centers.device)
    rows, columns = (torch.arange(count, device=centers.device) for count in size)
    radius = radii.unsqueeze(-1)
    across = _bell(columns - centers[..., :1], radius) * valid.unsqueeze(-1)  # (N, G, W)
    down = _bell(rows - centers[..., 1:], radius)  # (N, G, H)
    chunk = max(1, MEMORY_BUDGET // max(1, num_images * height * width * 4))
    for start in range(0, num_objects, chunk):
        part = slice(start, start + chunk)
        peaks = down[:, part, :, None] * across[:, part, None, :]
        index = labels[:, part, None, None].clamp(0, num_classes - 1).expand_as(peaks)
        heatmaps.scatter_reduce_(1, index, peaks, "amax")
    return heatmaps


def _bell(distance: Tensor, radius: Tensor | int) -> Tensor:
    """One axis of a peak, at integer distances from it; 0 beyond the radius."""
    sigma = (2 * radius + 1) / 6
    return torch.exp(-(distance**2) / (2 * sigma**2)) * (distance.abs() <= radius)
