"""Points at each cell of each feature map, as in FCOS, https://arxiv.org/abs/1904.01355, section 3.1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.task_modules.prior_generators.grid import (
    PriorCache,
    Size,
    cell_corners,
    check_levels,
    level_strides,
    valid_cells,
    valid_size,
)

__all__ = ["MlvlPointGenerator", "PointGenerator"]


@TASK_UTILS.register_module()
class PointGenerator:
    """The upper left corners of the cells of one level."""

    def grid_points(self, featmap_size: Size, stride: float = 16, device: torch.device | str = "cpu") -> Tensor:
        """Points (H * W, 3) as x, y and stride, row by row.

        Args:
            featmap_size: Height and width of the level.
            stride: Pixels per cell.
            device: Of the points.
        """
        points = cell_corners(featmap_size, (stride, stride), torch.float32, device)
        return torch.cat([points, points.new_full((len(points), 1), stride)], dim=1)

    def valid_flags(self, featmap_size: Size, valid_size: Size, device: torch.device | str = "cpu") -> Tensor:
        """Flags (H * W,) of the points in the first rows and columns ``valid_size``."""
        return valid_cells(featmap_size, valid_size, 1, device)


@TASK_UTILS.register_module()
class MlvlPointGenerator:
    """One point per cell of several levels.

    Args:
        strides: Pixels per cell of each level, one number or (x, y).
        offset: Where in its cell the point is, in units of the stride: 0 is the corner, 0.5 the centre.
    """

    def __init__(self, strides: Sequence[float | Sequence[float]], offset: float = 0.5) -> None:
        self.strides = level_strides(strides)
        self.offset = offset
        self._cache = PriorCache()

    @property
    def num_levels(self) -> int:
        """Number of feature levels."""
        return len(self.strides)

    @property
    def num_base_priors(self) -> list[int]:
        """Points per cell of each level: 1."""
        return [1] * self.num_levels

    def grid_priors(
        self,
        featmap_sizes: Sequence[Size],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        with_stride: bool = False,
    ) -> list[Tensor]:
        """Points of all levels, each (H * W, 2), row by row; or (H * W, 4) as x, y and the strides of both.

        Args:
            featmap_sizes: Height and width of each level.
            dtype: Of the points.
            device: Of the points.
            with_stride: Append the strides.
        """
        check_levels("MlvlPointGenerator", featmap_sizes, self.strides)
        return [
            self.single_level_grid_priors(size, level, dtype, device, with_stride)
            for level, size in enumerate(featmap_sizes)
        ]

    def single_level_grid_priors(
        self,
        featmap_size: Size,
        level_idx: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        with_stride: bool = False,
    ) -> Tensor:
        """Points of one level; the same tensor at each call, so do not write into it."""
        stride = self.strides[level_idx]

        def make() -> Tensor:
            x, y = cell_corners(featmap_size, stride, dtype, device).unbind(-1)
            columns = [x + self.offset * stride[0], y + self.offset * stride[1]]
            if with_stride:
                columns += [torch.full_like(x, step) for step in stride]
            return torch.stack(columns, dim=-1).to(dtype)

        return self._cache.get(("grid", *featmap_size, level_idx, dtype, str(device), with_stride), make)

    def sparse_priors(
        self,
        prior_idxs: Tensor,
        featmap_size: Size,
        level_idx: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The points (..., 2) of one level at ``prior_idxs`` (...) of its grid."""
        stride_x, stride_y = self.strides[level_idx]
        x = (prior_idxs % featmap_size[1] + self.offset) * stride_x
        y = (prior_idxs // featmap_size[1] + self.offset) * stride_y
        return torch.stack([x, y], dim=-1).to(device=device, dtype=dtype)

    def valid_flags(
        self, featmap_sizes: Sequence[Size], pad_shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> list[Tensor]:
        """Which points of each level, (H * W,) bool, are in cells that begin inside an image of ``pad_shape``.

        The same tensors at each call, so do not write into them.

        Args:
            featmap_sizes: Height and width of each level.
            pad_shape: Height and width of the padded image in pixels.
            device: Of the flags.
        """
        check_levels("MlvlPointGenerator", featmap_sizes, self.strides)
        return [
            self.single_level_valid_flags(size, valid_size(size, stride, pad_shape), device)
            for size, stride in zip(featmap_sizes, self.strides, strict=True)
        ]

    def single_level_valid_flags(
        self, featmap_size: Size, valid_size: Size, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Flags (H * W,) of the points in the first rows and columns ``valid_size`` of one level."""
        key = ("flags", *featmap_size, *valid_size, str(device))
        return self._cache.get(key, lambda: valid_cells(featmap_size, valid_size, 1, device))
