"""How far boxes overlap: intersection over union, over foreground, and generalised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detkit.structures.boxes.box_tensor import get_box_tensor
from detkit.structures.precision import full_precision

__all__ = ["OVERLAP_MODES", "bbox_overlaps", "raw_overlaps"]

OVERLAP_MODES = ("iou", "iof", "giou")


def bbox_overlaps(
    bboxes1: Tensor | Any,
    bboxes2: Tensor | Any,
    mode: str = "iou",
    is_aligned: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """Overlap of boxes, each with each or pair by pair.

    Args:
        bboxes1: Boxes (..., M, 4), or a box type.
        bboxes2: Boxes (..., N, 4), or a box type; leading dimensions broadcast, and N equals M where ``is_aligned``.
        mode: ``iou`` (intersection over union), ``iof`` (over the area of ``bboxes1``) or ``giou``
            (https://arxiv.org/abs/1902.09630).
        is_aligned: Compare the i-th box with the i-th instead of each with each.
        eps: Least denominator.

    Returns:
        Overlaps (..., M, N), or (..., M) where ``is_aligned``; float32 at least.

    Raises:
        ValueError: Unknown mode, or shapes that do not fit.
    """
    first, second = full_precision(get_box_tensor(bboxes1), get_box_tensor(bboxes2))
    return raw_overlaps(first, second, mode, is_aligned, eps)


def raw_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, mode: str, is_aligned: bool = False, eps: float = 1e-6, border: float = 0.0
) -> Tensor:
    """As :func:`bbox_overlaps`, in the dtype of the boxes.

    Args:
        bboxes1: As there, tensors only.
        bboxes2: As there, tensors only.
        mode: As there.
        is_aligned: As there.
        eps: As there.
        border: What a box reaches beyond x2 and y2: 1 where these are its last pixel.
    """
    _check(bboxes1, bboxes2, mode, is_aligned)
    if bboxes1.shape[-1] != 4 or bboxes2.shape[-1] != 4:  # empty tensors of any last dimension are no boxes
        bboxes1, bboxes2 = (b.reshape(*b.shape[:-2], b.shape[-2], 4) for b in (bboxes1, bboxes2))
    ax1, ay1, ax2, ay2 = (bboxes1 if is_aligned else bboxes1.unsqueeze(-2)).unbind(-1)
    bx1, by1, bx2, by2 = (bboxes2 if is_aligned else bboxes2.unsqueeze(-3)).unbind(-1)
    if border != 0:
        ax2, ay2, bx2, by2 = (corner + border for corner in (ax2, ay2, bx2, by2))
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    overlap = width * height
    area1 = (ax2 - ax1) * (ay2 - ay1)
    if mode == "iof":
        return overlap / area1.expand_as(overlap).clamp(min=eps)
    union = (area1 + (bx2 - bx1) * (by2 - by1) - overlap).clamp(min=eps)
    iou = overlap / union
    if mode == "iou":
        return iou
    enclosing_width = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)).clamp(min=0)
    enclosing_height = (torch.maximum(ay2, by2) - torch.minimum(ay1, by1)).clamp(min=0)
    enclosing = (enclosing_width * enclosing_height).clamp(min=eps)
    return iou - (enclosing - union) / enclosing


def _check(bboxes1: Tensor, bboxes2: Tensor, mode: str, is_aligned: bool) -> None:
    if mode not in OVERLAP_MODES:
        raise ValueError(f"bbox_overlaps: mode {mode!r} is not one of {', '.join(OVERLAP_MODES)}")
    for name, boxes in (("bboxes1", bboxes1), ("bboxes2", bboxes2)):
        if boxes.shape[-1] != 4 and boxes.numel() > 0:
            raise ValueError(f"bbox_overlaps: {name} has shape {tuple(boxes.shape)}, expected (..., 4)")
    if is_aligned and bboxes1.shape[-2] != bboxes2.shape[-2]:
        raise ValueError(
            f"bbox_overlaps: {bboxes1.shape[-2]} and {bboxes2.shape[-2]} boxes cannot be compared pair by pair"
        )
