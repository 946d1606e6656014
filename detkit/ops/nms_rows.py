"""Greedy suppression of many groups on a GPU.

torchvision's CUDA kernel compares all pairs of a call at once, but then goes through the boxes one by one: a whole
batch in one call takes time with the square of its boxes, and a call for each image leaves most of the device idle.
Here groups are laid out in rows of equal length, only pairs of a row are compared, and "kept is what no kept box beats"
is repeated for many rows together until nothing changes.
"""

from __future__ import annotations

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from detkit.ops.nms_match import shared_length
from detkit.ops.upload import upload

__all__ = ["FAR", "MAX_ROW", "kept_mask"]

# Pairs that are settled together, 2 bytes each, and of these compared at a time, some 13 bytes each.
PAIRS, PAIRS_COMPARED = 1 << 26, 1 << 23
# Places of a row: at least some, so that small groups share one; a longer group would have too many pairs.
MIN_ROW, MAX_ROW = 256, 4096
# Rounds between two looks whether anything has changed.
ROUNDS = 8
# Coordinates beyond this are as good as infinite: of infinite ones no overlap could be computed.
FAR = 2.0**30


@torch.no_grad()
def kept_mask(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Which boxes (D,) stay, bool.

    Waits for the device to tell how large the groups are, once for every ``ROUNDS`` rounds of every ``PAIRS`` pairs,
    and once for each group of more than ``MAX_ROW`` boxes. A row is as long as the largest other group.

    Args:
        boxes: (D, 4).
        scores: (D,); of equal ones the first comes first.
        groups: (D,) integers; boxes of different groups do not meet.
        iou_threshold: Overlap from which, itself excluded, a better box suppresses another.
    """
    boxes = boxes.clamp(-FAR, FAR)
    best_first = scores.argsort(descending=True, stable=True)
    by_group, order = groups[best_first].sort(stable=True)
    order = best_first[order]
    numbers = by_group.cpu().numpy()
    starts = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1])[: len(numbers)])
    sizes = np.diff(starts, append=len(order))
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for group in np.flatnonzero(sizes > MAX_ROW):
        part = order[starts[group] : starts[group] + sizes[group]]
        keep[part[torchvision.ops.nms(boxes[part], scores[part].to(boxes.dtype), iou_threshold)]] = True
    short = sizes <= MAX_ROW
    if not short.all():
        in_short = upload(np.repeat(short, sizes).nonzero()[0], boxes.device)
        order, by_group, sizes = order[in_short], by_group[in_short], sizes[short]
    if len(sizes) > 0:
        keep.index_copy_(0, order, _settled(boxes[order], by_group, sizes, iou_threshold))
    return keep


def _settled(boxes: Tensor, by_group: Tensor, sizes: NDArray[np.int64], iou_threshold: float) -> Tensor:
    """Which boxes (D,) stay; they come group by group, the best of each first."""
    length = max(MIN_ROW, int(sizes.max()))
    places, num_rows = _places(sizes, length)
    at, shape = upload(places, boxes.device), (num_rows, length)
    # What fills a row has no area and overlaps nothing.
    rows = boxes.new_zeros(num_rows * length, 4).index_copy_(0, at, boxes).unflatten(0, shape)
    groups = by_group.new_zeros(num_rows * length).index_copy_(0, at, by_group).unflatten(0, shape)
    step = max(1, PAIRS // length**2)
    kept = [
        _unbeaten(_beats(rows[start : start + step], groups[start : start + step], iou_threshold))
        for start in range(0, num_rows, step)
    ]
    return torch.cat(kept).flatten()[at]


def _places(sizes: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], int]:
    """Where each box goes in rows of ``length`` places, groups one after another and whole; and how many rows."""
    starts, row, used = [], 0, 0
    for size in sizes.tolist():
        if used + size > length:
            row, used = row + 1, 0
        starts.append(row * length + used)
        used += size
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(np.array(starts, dtype=np.int64), sizes) + np.arange(len(first)) - first, row + 1


def _beats(boxes: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Whether a box (R, L) suppresses a worse one of its row, the last axis: (R, L, L), 1 or 0."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    area = (x2 - x1) * (y2 - y1)
    num_rows, length = groups.shape
    place = torch.arange(length, device=boxes.device)
    # Half of the memory on a GPU, whose products of it are the fastest.
    dtype = torch.float16 if boxes.is_cuda else torch.float32
    beats = torch.empty(num_rows, length, length, dtype=dtype, device=boxes.device)
    step = max(1, PAIRS_COMPARED // (num_rows * length))
    for start in range(0, length, step):
        part = slice(start, start + step)
        inter = shared_length(x1, x2, part).mul_(shared_length(y1, y2, part))
        union = (area[:, part, None] + area[:, None]).sub_(inter)
        overlapping = inter.div_(union) > iou_threshold
        overlapping &= place[part, None] < place
        overlapping &= groups[:, part, None] == groups[:, None]
        beats[:, part] = overlapping
    return beats


def _unbeaten(beats: Tensor) -> Tensor:
    """Greedy suppression (R, L), bool: after t rounds the first t boxes of a row are settled, in practice all soon."""
    kept = torch.ones_like(beats[:, :1])
    with torch.autocast(beats.device.type, enabled=False):  # it would copy the pairs in each round
        while True:
            for _ in range(ROUNDS):
                before, kept = kept, (torch.bmm(kept, beats) == 0).to(beats.dtype)
            if torch.equal(before, kept):
                return kept.squeeze(1) > 0
