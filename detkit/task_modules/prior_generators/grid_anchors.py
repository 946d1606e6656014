"""Anchors at every cell: what all anchor generators do once they have the anchors of one cell."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from detkit.task_modules.prior_generators.grid import (
    PriorCache,
    Size,
    Stride,
    cell_corners,
    check_levels,
    level_strides,
    valid_cells,
    valid_size,
)

__all__ = ["GridAnchors"]


class GridAnchors:
    """The anchors of one cell, repeated at each cell of each level's feature map.

    Args:
        strides: Pixels per cell of each level, (x, y) or one number for both.
        base_anchors: Per level (A, 4), the anchors of the cell at the origin.

    Raises:
        ValueError: A stride is no number or pair of numbers above 0, base anchors are not (A, 4), or there are more
            or fewer levels of them than strides.
    """

    def __init__(self, strides: Sequence[float | Stride], base_anchors: Sequence[Tensor]) -> None:
        name = type(self).__name__
        _check_strides(name, strides)
        self.strides = level_strides(strides)
        self.base_anchors = list(base_anchors)
        if len(self.base_anchors) != len(self.strides):
            raise ValueError(
                f"{name}: base anchors of {len(self.base_anchors)} levels for {len(self.strides)} strides "
                f"{self.strides}"
            )
        for level, anchors in enumerate(self.base_anchors):
            if not isinstance(anchors, Tensor) or anchors.dim() != 2 or anchors.shape[1] != 4 or len(anchors) == 0:
                given = tuple(anchors.shape) if isinstance(anchors, Tensor) else repr(anchors)
                raise ValueError(f"{name}: base anchors of level {level} must be a tensor (A, 4), A > 0, got {given}")
        self._cache = PriorCache()

    @property
    def num_levels(self) -> int:
        """Number of feature levels."""
        return len(self.strides)

    @property
    def num_base_priors(self) -> list[int]:
        """Anchors per cell of each level."""
        return [len(anchors) for anchors in self.base_anchors]

    @property
    def num_base_anchors(self) -> list[int]:
        """Another name of ``num_base_priors``."""
        return self.num_base_priors

    def grid_priors(
        self,
        featmap_sizes: Sequence[Size],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        with_stride: bool = False,
    ) -> list[Tensor]:
        """Anchors of all levels, each (H * W * A, 4): by row, by column, then by base anchor.

        Args:
            featmap_sizes: Height and width of each level.
            dtype: Of the anchors.
            device: Of the anchors.
            with_stride: Boxes carry no stride; must be False.
        """
        name = type(self).__name__
        if with_stride:
            raise ValueError(f"{name}: anchors carry no stride; with_stride is for point generators")
        check_levels(name, featmap_sizes, self.strides)
        return [self.single_level_grid_priors(size, level, dtype, device) for level, size in enumerate(featmap_sizes)]

    def single_level_grid_priors(
        self,
        featmap_size: Size,
        level_idx: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Anchors (H * W * A, 4) of one level; the same tensor at each call, so do not write into it."""

        def make() -> Tensor:
            corners = cell_corners(featmap_size, self.strides[level_idx], dtype, device)
            base = self.base_anchors[level_idx].to(device=device, dtype=corners.dtype, non_blocking=True)
            return (corners.repeat(1, 2).unsqueeze(1) + base).reshape(-1, 4).to(dtype)

        return self._cache.get(("grid", *featmap_size, level_idx, dtype, str(device)), make)

    def sparse_priors(
        self,
        prior_idxs: Tensor,
        featmap_size: Size,
        level_idx: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The anchors (..., 4) of one level at ``prior_idxs`` (...) of its grid."""
        stride_x, stride_y = self.strides[level_idx]
        base = self.base_anchors[level_idx].to(device=device, non_blocking=True)
        prior_idxs = prior_idxs.to(device=device)
        cell = prior_idxs // len(base)
        x, y = cell % featmap_size[1] * stride_x, cell // featmap_size[1] * stride_y
        return (torch.stack([x, y, x, y], dim=-1) + base[prior_idxs % len(base)]).to(dtype)

    def valid_flags(
        self, featmap_sizes: Sequence[Size], pad_shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> list[Tensor]:
        """Which anchors of each level, (H * W * A,) bool, start inside an image of ``pad_shape``; do not write into it.

        Args:
            featmap_sizes: Height and width of each level.
            pad_shape: Height and width of the padded image in pixels.
            device: Of the flags.
        """
        check_levels(type(self).__name__, featmap_sizes, self.strides)
        return [
            self.single_level_valid_flags(size, valid_size(size, stride, pad_shape), count, device)
            for size, stride, count in zip(featmap_sizes, self.strides, self.num_base_priors, strict=True)
        ]

    def single_level_valid_flags(
        self, featmap_size: Size, valid_size: Size, num_base_anchors: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Flags (H * W * A,) of the anchors in the first rows and columns of one level.

        Args:
            featmap_size: Height and width of the level.
            valid_size: Rows and columns that are valid.
            num_base_anchors: A.
            device: Of the flags.
        """
        key = ("flags", *featmap_size, *valid_size, num_base_anchors, str(device))
        return self._cache.get(key, lambda: valid_cells(featmap_size, valid_size, num_base_anchors, device))


def _check_strides(name: str, strides: Sequence[float | Stride]) -> None:
    if not isinstance(strides, Sequence):
        raise ValueError(f"{name}: strides must be one per level, got {strides!r}")
    for stride in strides:
        numbers = stride if isinstance(stride, Sequence) else (stride, stride)
        if len(numbers) != 2 or not all(isinstance(number, Real) and number > 0 for number in numbers):
            raise ValueError(f"{name}: a stride must be a number above 0, or two (x, y), got {stride!r}")
