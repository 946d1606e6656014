"""What all prior generators do alike: cells of feature maps, which of them are valid, and a cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

__all__ = [
    "PriorCache",
    "Size",
    "Stride",
    "cell_corners",
    "check_levels",
    "level_strides",
    "pair",
    "valid_cells",
    "valid_size",
]

Size = tuple[int, int]  # height, width
Stride = tuple[float, float]  # x, y
# Multi-scale training meets many sizes; beyond this many tensors the oldest goes.
CACHE_SIZE = 256


class PriorCache:
    """Tensors that depend on sizes, dtype and device alone, made once."""

    def __init__(self) -> None:
        self._tensors: dict[Hashable, Tensor] = {}

    def get(self, key: tuple[Hashable, ...], make: Callable[[], Tensor]) -> Tensor:
        """The tensor made under this key, or, at first, what ``make`` returns."""
        if key not in self._tensors:
            if len(self._tensors) >= CACHE_SIZE:
                self._tensors.pop(next(iter(self._tensors)))
            # What inference mode makes, training may not save for its backward pass.
            with torch.inference_mode(False):
                self._tensors[key] = make()
        return self._tensors[key]


def pair(value: float | Sequence[float]) -> tuple[float, float]:
    """Two numbers, or one twice."""
    return (value, value) if isinstance(value, (int, float)) else (value[0], value[1])


def level_strides(strides: Sequence[float | Sequence[float]]) -> list[Stride]:
    """Pixels per cell of each level as (x, y)."""
    return [pair(stride) for stride in strides]


def cell_corners(size: Size, stride: Stride, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Upper left corners (H * W, 2) of the cells in pixels, row by row; float32 at least."""
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    y, x = (
        torch.arange(count, dtype=dtype, device=device) * step
        for count, step in zip(size, reversed(stride), strict=True)
    )
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y], dim=-1).flatten(0, 1)


def valid_size(size: Size, stride: Stride, pad_shape: Sequence[int]) -> Size:
    """Rows and columns of cells that begin inside a padded image."""
    height, width = pad_shape[:2]
    return min(math.ceil(height / stride[1]), size[0]), min(math.ceil(width / stride[0]), size[1])


def valid_cells(size: Size, valid: Size, per_cell: int, device: torch.device | str) -> Tensor:
    """Flags (H * W * per_cell,) of the first ``valid`` rows and columns of cells.

    Raises:
        ValueError: ``valid`` is larger than ``size``.
    """
    if valid[0] > size[0] or valid[1] > size[1]:
        raise ValueError(f"{tuple(valid)} valid rows and columns are more than the feature map's {tuple(size)}")
    rows, columns = (torch.arange(count, device=device) < limit for count, limit in zip(size, valid, strict=True))
    cells = (rows[:, None] & columns[None, :]).view(-1, 1)
    return cells.expand(-1, per_cell).reshape(-1)


def check_levels(name: str, featmap_sizes: Sequence[Size], strides: Sequence[Stride]) -> None:
    """ValueError if there are more or fewer feature maps than levels."""
    if len(featmap_sizes) != len(strides):
        raise ValueError(f"{name}: {len(featmap_sizes)} feature maps for {len(strides)} strides {list(strides)}")
