"""Boxes in other terms: centre and size, corner points, distances from a point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detkit.structures.boxes.box_tensor import get_box_tensor
from detkit.structures.boxes.clip import MaxShape, stack_corners
from detkit.structures.precision import full_precision

__all__ = [
    "bbox2corner",
    "bbox2distance",
    "bbox_cxcyah_to_xyxy",
    "bbox_cxcywh_to_xyxy",
    "bbox_xyxy_to_cxcyah",
    "bbox_xyxy_to_cxcywh",
    "corner2bbox",
    "corners_of",
    "distance2bbox",
    "get_box_wh",
]


def bbox_xyxy_to_cxcywh(bbox: Tensor) -> Tensor:
    """Corners (..., 4) to centre, width and height (..., 4)."""
    x1, y1, x2, y2 = bbox.unbind(-1)
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1)


def bbox_cxcywh_to_xyxy(bbox: Tensor) -> Tensor:
    """Centre, width and height (..., 4) to corners (..., 4)."""
    cx, cy, w, h = bbox.unbind(-1)
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)


def bbox_xyxy_to_cxcyah(bboxes: Tensor) -> Tensor:
    """Corners (..., 4) to centre, aspect ratio (width over height) and height (..., 4)."""
    x1, y1, x2, y2 = bboxes.unbind(-1)
    height = y2 - y1
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / height, height], dim=-1)


def bbox_cxcyah_to_xyxy(bboxes: Tensor) -> Tensor:
    """Centre, aspect ratio (width over height) and height (..., 4) to corners (..., 4)."""
    cx, cy, ratio, height = bboxes.unbind(-1)
    return bbox_cxcywh_to_xyxy(torch.stack([cx, cy, ratio * height, height], dim=-1))


def get_box_wh(boxes: Tensor | Any) -> tuple[Tensor, Tensor]:
    """Widths and heights (...) of boxes (..., 4) or of a box type."""
    boxes = get_box_tensor(boxes)
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def corners_of(boxes: Tensor) -> Tensor:
    """The four corner points (..., 4, 2) of boxes (..., 4): upper left, upper right, lower left, lower right."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1, y1, x2, y1, x1, y2, x2, y2], dim=-1).unflatten(-1, (4, 2))


def bbox2corner(bboxes: Tensor) -> Tensor:
    """The corner points (N * 4, 2) of boxes (N, 4): upper left, upper right, lower left, lower right of each."""
    return corners_of(bboxes).reshape(-1, 2)


def corner2bbox(corners: Tensor) -> Tensor:
    """The smallest boxes (N, 4) around each four of the points (N * 4, 2)."""
    points = corners.reshape(-1, 4, 2)
    return torch.cat([points.amin(dim=1), points.amax(dim=1)], dim=1)


def bbox2distance(points: Tensor, bbox: Tensor, max_dis: float | None = None, eps: float = 0.1) -> Tensor:
    """Distances from points to the left, upper, right and lower side of boxes (FCOS, eq. 1).

    https://arxiv.org/abs/1904.01355

    Args:
        points: (..., 2), x and y in pixels.
        bbox: (..., 4).
        max_dis: Distances are clamped to ``[0, max_dis - eps]``; None leaves them as they are.
        eps: Keeps the largest distance below ``max_dis``.

    Returns:
        (..., 4), float32 at least; negative where the point is outside.
    """
    points, bbox = full_precision(points, bbox)
    (x, y), (x1, y1, x2, y2) = points.unbind(-1), bbox.unbind(-1)
    distances = torch.stack([x - x1, y - y1, x2 - x, y2 - y], dim=-1)
    return distances if max_dis is None else distances.clamp(min=0, max=max_dis - eps)


def distance2bbox(points: Tensor, distance: Tensor, max_shape: MaxShape | None = None) -> Tensor:
    """The inverse of :func:`bbox2distance`.

    Args:
        points: (..., 2).
        distance: (..., 4), to the left, upper, right and lower side in pixels.
        max_shape: Clip to images of this height and width, see ``stack_corners``.

    Returns:
        Boxes (..., 4), float32 at least.
    """
    points, distance = full_precision(points, distance)
    (x, y), (left, top, right, bottom) = points.unbind(-1), distance.unbind(-1)
    return stack_corners(x - left, y - top, x + right, y + bottom, max_shape)
