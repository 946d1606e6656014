"""Boxes moved with their image: flipped, scaled, projected; and which are inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from detkit.structures.boxes.box_tensor import get_box_tensor
from detkit.structures.boxes.clip import stack_corners
from detkit.structures.boxes.conversion import corners_of

__all__ = [
    "bbox_flip",
    "bbox_mapping",
    "bbox_mapping_back",
    "bbox_project",
    "bbox_rescale",
    "find_inside_bboxes",
    "scale_boxes",
]

FLIP_DIRECTIONS = ("horizontal", "vertical", "diagonal")
Scale = float | Sequence[float] | np.ndarray | Tensor
Boxes = TypeVar("Boxes", bound=Any)


def bbox_flip(bboxes: Tensor, img_shape: Sequence[int], direction: str = "horizontal") -> Tensor:
    """Boxes of the mirrored image.

    Args:
        bboxes: (..., C * 4).
        img_shape: Height and width.
        direction: ``horizontal``, ``vertical`` or ``diagonal`` (both).

    Raises:
        ValueError: Another direction, or a last dimension that is no multiple of 4.
    """
    if direction not in FLIP_DIRECTIONS:
        raise ValueError(f"bbox_flip: direction {direction!r} is not one of {', '.join(FLIP_DIRECTIONS)}")
    if bboxes.shape[-1] % 4 != 0:
        raise ValueError(f"bbox_flip: bboxes have shape {tuple(bboxes.shape)}, expected (..., C * 4)")
    height, width = img_shape[:2]
    x1, y1, x2, y2 = bboxes.unflatten(-1, (-1, 4)).unbind(-1)
    if direction != "vertical":
        x1, x2 = width - x2, width - x1
    if direction != "horizontal":
        y1, y2 = height - y2, height - y1
    return torch.stack([x1, y1, x2, y2], dim=-1).flatten(-2)


def scale_boxes(boxes: Boxes, scale_factor: Scale) -> Boxes:
    """Boxes (..., C * 4) or a box type with x multiplied by ``scale_factor[0]`` and y by ``scale_factor[1]``.

    A factor of one number is for both axes, one of four numbers for the four coordinates.
    """
    if not isinstance(boxes, Tensor):
        return type(boxes)(scale_boxes(get_box_tensor(boxes), scale_factor), clone=False)
    factor = _coordinate_factors(scale_factor, boxes)
    return (boxes.unflatten(-1, (-1, 4)) * factor).flatten(-2)


def bbox_mapping(
    bboxes: Tensor, img_shape: Sequence[int], scale_factor: Scale, flip: bool, flip_direction: str = "horizontal"
) -> Tensor:
    """Boxes from the original image to the scaled, then perhaps flipped one.

    Args:
        bboxes: (..., C * 4).
        img_shape: Height and width of the scaled image.
        scale_factor: One number, (x, y), or one per coordinate.
        flip: Whether the image is flipped.
        flip_direction: As of :func:`bbox_flip`.
    """
    scaled = scale_boxes(bboxes, scale_factor)
    return bbox_flip(scaled, img_shape, flip_direction) if flip else scaled


def bbox_mapping_back(
    bboxes: Tensor, img_shape: Sequence[int], scale_factor: Scale, flip: bool, flip_direction: str = "horizontal"
) -> Tensor:
    """The inverse of :func:`bbox_mapping`, with the same arguments."""
    flipped = bbox_flip(bboxes, img_shape, flip_direction) if flip else bboxes
    return (flipped.unflatten(-1, (-1, 4)) / _coordinate_factors(scale_factor, bboxes)).flatten(-2)


def _coordinate_factors(scale_factor: Scale, like: Tensor) -> Tensor:
    """Factors of x1, y1, x2, y2, (1,) or (4,)."""
    factors = torch.as_tensor(scale_factor, dtype=None if isinstance(scale_factor, Tensor) else torch.float64)
    if factors.numel() not in (1, 2, 4):
        raise ValueError(f"scale_factor must be 1, 2 or 4 numbers, got {scale_factor}")
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    factors = factors.reshape(-1).to(device=like.device, dtype=dtype, non_blocking=True)
    return factors.repeat(2) if factors.numel() == 2 else factors


def bbox_rescale(bboxes: Tensor, scale_factor: float = 1.0) -> Tensor:
    """Boxes ``scale_factor`` times as large around the same centres.

    Args:
        bboxes: (..., 4), or RoIs (..., 5) whose first entry, the image, stays.
        scale_factor: Of width and height.

    Raises:
        ValueError: Another last dimension.
    """
    if bboxes.shape[-1] not in (4, 5):
        raise ValueError(f"bbox_rescale: bboxes have shape {tuple(bboxes.shape)}, expected (..., 4) or (..., 5)")
    x1, y1, x2, y2 = bboxes[..., -4:].unbind(-1)
    cx, cy = (x1 + x2) * 0.5, (y1 + y2) * 0.5
    half_w, half_h = (x2 - x1) * scale_factor * 0.5, (y2 - y1) * scale_factor * 0.5
    scaled = torch.stack([cx - half_w, cy - half_h, cx + half_w, cy + half_h], dim=-1)
    return torch.cat([bboxes[..., :-4], scaled], dim=-1)


def bbox_project(
    bboxes: Tensor | np.ndarray,
    homography_matrix: Tensor | np.ndarray,
    img_shape: Sequence[int] | None = None,
) -> Tensor | np.ndarray:
    """The upright boxes around the projections of boxes.

    Args:
        bboxes: (..., 4).
        homography_matrix: (3, 3), acts on (x, y, 1).
        img_shape: Clip to this height and width; None clips nothing.

    Returns:
        (..., 4), of the type of ``bboxes``.
    """
    if isinstance(bboxes, np.ndarray):
        return project_boxes(torch.as_tensor(bboxes), torch.as_tensor(homography_matrix), img_shape).numpy()
    return project_boxes(bboxes, torch.as_tensor(homography_matrix), img_shape)


def project_boxes(boxes: Tensor, matrix: Tensor, img_shape: Sequence[int] | None = None) -> Tensor:
    """As :func:`bbox_project`, of tensors."""
    matrix = matrix.to(device=boxes.device, dtype=boxes.dtype, non_blocking=True)
    corners = corners_of(boxes)  # (..., 4, 2)
    # Sums of products rather than a matrix product, which autocast lowers.
    projected = (corners.unsqueeze(-2) * matrix[:, :2]).sum(dim=-1) + matrix[:, 2]  # (..., 4, 3)
    points = projected[..., :2] / projected[..., 2:]
    x1, y1 = points.amin(dim=-2).unbind(-1)
    x2, y2 = points.amax(dim=-2).unbind(-1)
    return stack_corners(x1, y1, x2, y2, img_shape)


def find_inside_bboxes(bboxes: Tensor, img_h: int, img_w: int) -> Tensor:
    """Which boxes (..., 4) have any part inside an image, (...) bool."""
    x1, y1, x2, y2 = get_box_tensor(bboxes).unbind(-1)
    return (x1 < img_w) & (x2 > 0) & (y1 < img_h) & (y2 > 0)
