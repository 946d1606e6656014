"""Greedy suppression that keeps account of which box suppressed which.

The grouping step of PISA, Cao et al., https://arxiv.org/abs/1904.04821; name and result are MMCV's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["nms_heads", "nms_match", "shared_length"]

# Overlaps computed at a time: few enough that the temporaries stay in a CPU's cache.
CHUNK_ELEMENTS = 1 << 18


def nms_match(dets: Any, iou_threshold: float) -> list[Any]:
    """Group detections by the one that suppresses them.

    Args:
        dets: (D, 5) boxes and scores, tensor or array.
        iou_threshold: IoU from which a better box suppresses another.

    Returns:
        For each box that nothing suppresses, best first, the int64 indices of its group: itself, then those it
        suppresses, best first. Tensors for a tensor, arrays for an array.

    Raises:
        ValueError: ``dets`` has another shape.
    """
    if isinstance(dets, np.ndarray):
        return [group.numpy() for group in nms_match(torch.from_numpy(dets), iou_threshold)]
    if dets.dim() != 2 or dets.shape[1] != 5:
        raise ValueError(f"nms_match: dets must be (D, 5), boxes with scores, got {tuple(dets.shape)}")
    if len(dets) == 0:
        return []
    order = dets[:, 4].argsort(descending=True, stable=True)
    heads = nms_heads(dets[:, :4], dets[:, 4], iou_threshold)
    # Position of the head in the order of scores: groups then come best first.
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    place_of_head = place[heads[order]]
    sizes = torch.bincount(place_of_head, minlength=len(order))
    members = order[place_of_head.argsort(stable=True)]
    return list(members.split(sizes[sizes > 0].tolist()))


def nms_heads(boxes: Tensor, scores: Tensor, iou_threshold: float, valid: Tensor | None = None) -> Tensor:
    """The box that suppresses each box, or the box itself where none does.

    Args:
        boxes: (N, D, 4) or (D, 4).
        scores: (N, D) or (D,).
        iou_threshold: IoU from which a better box suppresses another.
        valid: Like ``scores``, bool; boxes that are not take no part. None is all.

    Returns:
        Index (N, D) or (D,), int64; a box that takes no part has its own.
    """
    if boxes.dim() == 2:
        own_valid = None if valid is None else valid[None]
        return nms_heads(boxes[None], scores[None], iou_threshold, own_valid)[0]
    if boxes.shape[1] == 0:
        return torch.zeros_like(scores, dtype=torch.int64)
    ranked = scores if valid is None else scores.masked_fill(~valid, -torch.inf)
    order = ranked.argsort(dim=1, descending=True, stable=True)
    beats = _overlapping(boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 4)), iou_threshold)
    if valid is not None:
        taking_part = valid.gather(1, order).to(beats.dtype)
        beats &= taking_part.unsqueeze(1) & taking_part.unsqueeze(2)
    found, first = (beats & _unsuppressed(beats).unsqueeze(1)).max(dim=2)
    place = torch.arange(order.shape[1], device=order.device)
    head = order.gather(1, torch.where(found > 0, first, place))
    return torch.empty_like(order).scatter_(1, order, head)


def _unsuppressed(beats: Tensor) -> Tensor:
    """Which boxes (N, D) greedy suppression keeps, 1 or 0, of pairs (N, D, D) as :func:`_overlapping` states them.

    Repeating "kept is what no kept box beats" settles the first t boxes after t rounds; in practice all after a
    few, as long as the longest chain of boxes that beat one another.
    """
    kept = torch.ones_like(beats[:, 0])
    while True:
        again = 1 - (beats & kept.unsqueeze(1)).amax(dim=2)
        # The one place where it waits for the device: how many rounds depends on the boxes.
        if torch.equal(again, kept):
            return kept
        kept = again


def _overlapping(boxes: Tensor, iou_threshold: float) -> Tensor:
    """Whether an earlier box, the column, overlaps the row (N, D, D) by the threshold or more; uint8, 1 or 0.

    Bytes instead of bools, as torch reduces them many times faster on the CPU.
    """
    x1, y1, x2, y2 = (boxes if boxes.dtype == torch.float64 else boxes.float()).unbind(dim=-1)
    area = (x2 - x1) * (y2 - y1)
    batch_size, count = area.shape
    place = torch.arange(count, device=boxes.device)
    rows = max(1, CHUNK_ELEMENTS // (batch_size * count))
    pieces = []
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        width = shared_length(x1, x2, part)
        inter = width.mul_(shared_length(y1, y2, part))
        iou = inter / (area[:, part, None] + area[:, None] - inter)
        pieces.append((iou >= iou_threshold) & (place < place[part, None]))
    return torch.cat(pieces, dim=1).to(torch.uint8)


def shared_length(low: Tensor, high: Tensor, part: slice) -> Tensor:
    """Length (N, d, D) that intervals of some boxes share with those of all."""
    end = torch.minimum(high[:, part, None], high[:, None])
    return end.sub_(torch.maximum(low[:, part, None], low[:, None])).clamp_(min=0)
