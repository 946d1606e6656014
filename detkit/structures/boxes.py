"""Functions on boxes: plain float tensors ``(..., 4)``, xyxy in pixels, x2 > x1, no +1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["bbox_cxcywh_to_xyxy", "bbox_overlaps", "bbox_xyxy_to_cxcywh", "get_box_wh", "scale_boxes"]

OVERLAP_MODES = ("iou", "iof", "giou")


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, mode: str = "iou", is_aligned: bool = False, eps: float = 1e-6
) -> Tensor:
    """Overlap of boxes, each with each or pair by pair.

    Args:
        bboxes1: Boxes (..., M, 4).
        bboxes2: Boxes (..., N, 4); leading dimensions broadcast, and N equals M where ``is_aligned``.
        mode: ``iou`` (intersection over union), ``iof`` (over the area of ``bboxes1``) or ``giou``
            (https://arxiv.org/abs/1902.09630).
        is_aligned: Compare the i-th box with the i-th instead of each with each.
        eps: Least denominator.

    Returns:
        Overlaps (..., M, N), or (..., M) where ``is_aligned``.

    Raises:
        ValueError: Unknown mode, or shapes that do not fit.
    """
    if mode not in OVERLAP_MODES:
        raise ValueError(f"bbox_overlaps: mode {mode!r} is not one of {', '.join(OVERLAP_MODES)}")
    for name, boxes in (("bboxes1", bboxes1), ("bboxes2", bboxes2)):
        if boxes.shape[-1] != 4 and boxes.numel() > 0:
            raise ValueError(f"bbox_overlaps: {name} has shape {tuple(boxes.shape)}, expected (..., 4)")
    if is_aligned and bboxes1.shape[-2] != bboxes2.shape[-2]:
        raise ValueError(
            f"bbox_overlaps: {bboxes1.shape[-2]} and {bboxes2.shape[-2]} boxes cannot be compared pair by pair"
        )
    if bboxes1.shape[-1] != 4 or bboxes2.shape[-1] != 4:  # empty tensors of any last dimension are no boxes
        bboxes1, bboxes2 = (b.reshape(*b.shape[:-2], b.shape[-2], 4) for b in (bboxes1, bboxes2))
    first = bboxes1 if is_aligned else bboxes1.unsqueeze(-2)
    second = bboxes2 if is_aligned else bboxes2.unsqueeze(-3)
    ax1, ay1, ax2, ay2 = first.unbind(-1)
    bx1, by1, bx2, by2 = second.unbind(-1)
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


def bbox_xyxy_to_cxcywh(bbox: Tensor) -> Tensor:
    """Corners (..., 4) to centre, width and height (..., 4)."""
    x1, y1, x2, y2 = bbox.unbind(-1)
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1)


def bbox_cxcywh_to_xyxy(bbox: Tensor) -> Tensor:
    """Centre, width and height (..., 4) to corners (..., 4)."""
    cx, cy, w, h = bbox.unbind(-1)
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)


def get_box_wh(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Widths and heights (...,) of boxes (..., 4)."""
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def scale_boxes(boxes: Tensor, scale_factor: Sequence[float]) -> Tensor:
    """Boxes (..., 4) with x multiplied by ``scale_factor[0]`` and y by ``scale_factor[1]``."""
    scale_x, scale_y = scale_factor
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y], dim=-1)
