"""The one formula by which boxes are clipped to their images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["MaxShape", "stack_corners"]

# Height and width (and more, such as channels) of all images, or of each.
MaxShape = Sequence[int] | Sequence[Sequence[int]] | Tensor


def stack_corners(
    x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor, max_shape: MaxShape | None = None, margin: float = 0.0
) -> Tensor:
    """Boxes of their corners, clipped to ``[0, size - margin]``.

    Args:
        x1: (...).
        y1: (...).
        x2: (...).
        y2: (...).
        max_shape: Height and width in pixels, of all images, or, (N, 2) or longer rows, of each of the N
            images of the first dimension; None clips nothing.
        margin: Pixels left free at the right and lower border: 1 where the last pixel is ``size - 1``.

    Returns:
        (..., 4). Where a coordinate was clipped, it has no gradient.

    Raises:
        ValueError: There are more or fewer shapes than images.
    """
    if max_shape is not None:
        width, height = (_limit(max_shape, axis, x1) for axis in (1, 0))
        x1, x2 = (x.clamp(min=0).clamp(max=width - margin) for x in (x1, x2))
        y1, y2 = (y.clamp(min=0).clamp(max=height - margin) for y in (y1, y2))
    return torch.stack([x1, y1, x2, y2], dim=-1)


def _limit(max_shape: MaxShape, axis: int, like: Tensor) -> float | Tensor:
    """Largest coordinate on an axis: a number, or (N, 1, ...) for each image."""
    if isinstance(max_shape, Tensor):
        limits = max_shape[..., axis]
    elif isinstance(max_shape[0], (Sequence, np.ndarray)):
        # Not new_tensor, which waits for the device.
        limits = torch.tensor([float(shape[axis]) for shape in max_shape])  # type: ignore[index]
    else:
        return float(max_shape[axis])  # type: ignore[arg-type]
    if limits.dim() > 0 and (like.dim() == 0 or limits.shape[0] not in (1, like.shape[0])):
        raise ValueError(f"{limits.shape[0]} image shapes do not fit boxes of shape {(*like.shape, 4)}")
    limits = limits.to(device=like.device, dtype=like.dtype, non_blocking=True)
    return limits.reshape(*limits.shape, *([1] * (like.dim() - limits.dim())))
