"""RoIAlign on a CPU: the features of a cell are a weighted sum of rows of the map, which torch adds up fast.

torchvision's kernel computes each channel of each cell by itself; this takes some tenth of its time, forward and
backward, with the same numbers but for the order of additions.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["align_rows", "fits"]

# Terms of a call, 12 bytes each and as much again in the backward pass; with more, torchvision's kernel is called.
MOST_TERMS = 2**24
# To write the terms down takes as long as the kernel of torchvision does for twenty channels; masks have one.
LEAST_CHANNELS = 24


def fits(
    rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool, channels: int
) -> bool:
    """Whether the sums have few enough terms to be written down, and enough channels that this pays."""
    if channels < LEAST_CHANNELS:
        return False
    if sampling_ratio > 0:
        terms = len(rois) * (2 * sampling_ratio) ** 2
    else:
        with torch.no_grad():
            down, across = _samples(rois, size, spatial_scale, aligned)
        terms = int(((down + 2) * (across + 2)).numpy().sum())
    return terms * size[0] * size[1] <= MOST_TERMS


def align_rows(
    features: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """As :func:`torchvision.ops.roi_align`; (R, C, rows, columns) in channels-last format.

    Args:
        features: (N, C, H, W).
        rois: (R, 5).
        size: Cells, (rows, columns).
        spatial_scale: Pixels of the features per unit of the boxes.
        sampling_ratio: Samples along each side of a cell; 0 takes as many as there are pixels.
        aligned: Shift by half a pixel.
    """
    num_images, channels, height, width = features.shape
    with torch.no_grad():
        if sampling_ratio > 0:
            groups = [(torch.arange(len(rois)), sampling_ratio)]
        else:
            groups = _groups(rois, size, spatial_scale, aligned)
        index, weight, lengths = [], [], []
        for members, most in groups:
            own = rois[members]
            y, y_weight = _axis(own[:, 2], own[:, 4], size[0], height, spatial_scale, sampling_ratio, most, aligned)
            x, x_weight = _axis(own[:, 1], own[:, 3], size[1], width, spatial_scale, sampling_ratio, most, aligned)
            first = own[:, 0].long() * (height * width)
            place = first[:, None, None, None, None] + y[:, :, None, :, None] * width + x[:, None, :, None, :]
            index.append(place.flatten())
            weight.append((y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]).flatten())
            lengths.append(torch.full((len(own) * size[0] * size[1],), y.shape[2] * x.shape[2]))
        ends = torch.cat(lengths).cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends[:-1]]) if len(ends) > 0 else ends
    rows = features.permute(0, 2, 3, 1).reshape(num_images * height * width, channels)
    cells = F.embedding_bag(
        torch.cat(index), rows, offsets, mode="sum", per_sample_weights=torch.cat(weight).to(rows.dtype)
    )
    cells = cells.view(len(rois), *size, channels)
    if len(groups) > 1:
        cells = cells[torch.cat([members for members, _ in groups]).argsort()]
    return cells.permute(0, 3, 1, 2)


def _extent(start: Tensor, end: Tensor, spatial_scale: float, aligned: bool) -> tuple[Tensor, Tensor]:
    """Where an interval begins on the map, and how long it is."""
    start, end = start * spatial_scale, end * spatial_scale
    return (start - 0.5, end - start) if aligned else (start, (end - start).clamp(min=1))


def _samples(rois: Tensor, size: tuple[int, int], spatial_scale: float, aligned: bool) -> tuple[Tensor, Tensor]:
    """Samples of a cell (R,), down and across, where they are as many as there are pixels."""
    down, across = (
        (_extent(rois[:, axis], rois[:, axis + 2], spatial_scale, aligned)[1] / cells).ceil().clamp(min=0).long()
        for axis, cells in ((2, size[0]), (1, size[1]))
    )
    return down, across


def _groups(rois: Tensor, size: tuple[int, int], spatial_scale: float, aligned: bool) -> list[tuple[Tensor, int]]:
    """RoIs that need about as many samples, and the most that one of them needs."""
    most = torch.maximum(*_samples(rois, size, spatial_scale, aligned)).numpy()
    # Up to 4 each number by itself, then by powers of two.
    kind = np.where(most <= 4, most, 3 + np.ceil(np.log2(np.maximum(most, 2))).astype(most.dtype))
    groups = [np.flatnonzero(kind == one) for one in np.unique(kind)]
    return [(torch.from_numpy(group), max(1, int(most[group].max()))) for group in groups] or [
        (torch.zeros(0).long(), 1)
    ]


def _axis(
    start: Tensor,
    end: Tensor,
    cells: int,
    length: int,
    spatial_scale: float,
    sampling_ratio: int,
    most: int,
    aligned: bool,
) -> tuple[Tensor, Tensor]:
    """Pixels of one axis that each cell takes, and how much of each: (R, cells, T) both."""
    begin, extent = _extent(start, end, spatial_scale, aligned)
    step = (extent / cells)[:, None, None]
    count = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else step.ceil().clamp(min=0)
    sample = torch.arange(most, device=start.device)
    share = 1 / count.clamp(min=1)
    at = begin[:, None, None] + step * (torch.arange(cells)[:, None] + (sample + 0.5) * share)  # (R, cells, most)
    weight = ((at >= -1) & (at <= length) & (sample < count)) * share
    at = at.clamp(0, length - 1)
    low = at.floor()
    upper = weight * (at - low)
    pixel = low.long()
    if sampling_ratio > 0 or most == 1:
        both = torch.stack([pixel, (pixel + 1).clamp(max=length - 1)], dim=-1).flatten(2)
        return both, torch.stack([weight - upper, upper], dim=-1).flatten(2)
    # Samples are at most a pixel apart: neighbours share their pixels, which are then taken once.
    first = pixel.amin(dim=2, keepdim=True)
    weights = at.new_zeros(*at.shape[:2], most + 2)
    # What has no weight may be anywhere.
    near = (pixel - first).clamp(max=most)
    weights.scatter_add_(2, near, weight - upper).scatter_add_(2, near + 1, upper)
    return (first + torch.arange(most + 2)).clamp(max=length - 1), weights
