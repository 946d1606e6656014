"""Regions of images and of boxes: which anchors are inside, and the inner part of a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.structures.boxes import get_box_tensor

__all__ = ["anchor_inside_flags", "calc_region"]


def anchor_inside_flags(
    flat_anchors: Tensor | Any, valid_flags: Tensor, img_shape: Sequence[int], allowed_border: float = 0
) -> Tensor:
    """Which valid anchors are inside an image, (...) bool.

    Args:
        flat_anchors: (..., 4), or a box type.
        valid_flags: (...) bool.
        img_shape: Height and width.
        allowed_border: Pixels by which an anchor may leave the image; a negative number allows any.
    """
    if allowed_border < 0:
        return valid_flags
    height, width = img_shape[:2]
    x1, y1, x2, y2 = get_box_tensor(flat_anchors).unbind(-1)
    inside = (x1 >= -allowed_border) & (y1 >= -allowed_border)
    return valid_flags & inside & (x2 < width + allowed_border) & (y2 < height + allowed_border)


def calc_region(
    bbox: Tensor, ratio: float, featmap_size: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The middle of boxes, ``ratio`` of their size away from each side, in whole cells.

    Args:
        bbox: (..., 4), in cells.
        ratio: In [0, 0.5].
        featmap_size: Clip to this height and width; None clips nothing.

    Returns:
        x1, y1, x2, y2, each (...) int64, rounded half to even.
    """
    x1, y1, x2, y2 = bbox.unbind(-1)
    height, width = (None, None) if featmap_size is None else featmap_size[:2]

    def cell(near: Tensor, far: Tensor, limit: int | None) -> Tensor:
        index = torch.round((1 - ratio) * near + ratio * far).long()
        return index if limit is None else index.clamp(min=0, max=limit)

    return cell(x1, x2, width), cell(y1, y2, height), cell(x2, x1, width), cell(y2, y1, height)
