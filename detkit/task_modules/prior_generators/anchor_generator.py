"""Anchors: boxes of given sizes and aspect ratios at each cell of each feature map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.registry import TASK_UTILS

__all__ = ["AnchorGenerator"]

Size = tuple[int, int]
# Multi-scale training meets many sizes; beyond this many the cache starts anew.
CACHE_SIZE = 64


@TASK_UTILS.register_module()
class AnchorGenerator:
    """Anchors of several levels (Faster R-CNN, https://arxiv.org/abs/1506.01497; octaves as in RetinaNet).

    A level's base anchors have the size ``base_size * scale`` and the aspect ratios ``ratios`` (height
    over width) around the same centre; each cell of the feature map has a copy of all of them. Give
    either ``scales`` or both ``octave_base_scale`` and ``scales_per_octave``.

    Args:
        strides: Pixels per cell of each level, one number or (x, y).
        ratios: Aspect ratios.
        scales: Sizes in units of the base size.
        base_sizes: Base size of each level in pixels; None is the smaller stride.
        scale_major: Whether the ratio varies slower than the scale.
        octave_base_scale: Scale of the first octave.
        scales_per_octave: Scales per doubling.
        centers: Centre (x, y) of the base anchors of each level; None follows from ``center_offset``.
        center_offset: Centre in units of the base size, in [0, 1].
        use_box_type: Accepted for MMDetection's configs; boxes are plain tensors either way.
    """

    def __init__(
        self,
        strides: Sequence[int | Sequence[int]],
        ratios: Sequence[float],
        scales: Sequence[float] | None = None,
        base_sizes: Sequence[float] | None = None,
        scale_major: bool = True,
        octave_base_scale: float | None = None,
        scales_per_octave: int | None = None,
        centers: Sequence[Sequence[float]] | None = None,
        center_offset: float = 0.0,
        use_box_type: bool = False,
    ) -> None:
        if not 0 <= center_offset <= 1:
            raise ValueError(f"AnchorGenerator: center_offset must be in [0, 1], got {center_offset}")
        if centers is not None and center_offset != 0:
            raise ValueError(f"AnchorGenerator: give centers or center_offset, not both ({center_offset=})")
        octaves = octave_base_scale is not None and scales_per_octave is not None
        if octaves == (scales is not None):
            raise ValueError("AnchorGenerator: give either scales, or octave_base_scale and scales_per_octave")
        self.strides: list[Size] = [(s, s) if isinstance(s, (int, float)) else (s[0], s[1]) for s in strides]
        self.base_sizes = [min(stride) for stride in self.strides] if base_sizes is None else list(base_sizes)
        for name, values in (("base_sizes", self.base_sizes), ("centers", centers)):
            if values is not None and len(values) != len(self.strides):
                raise ValueError(
                    f"AnchorGenerator: {name} has {len(values)} entries for {len(self.strides)} strides: {values}"
                )
        self.octave_base_scale = octave_base_scale
        self.scales_per_octave = scales_per_octave
        if octave_base_scale is not None and scales_per_octave is not None:
            scales = [octave_base_scale * 2 ** (i / scales_per_octave) for i in range(scales_per_octave)]
        self.scales = torch.tensor(scales, dtype=torch.float32)
        self.ratios = torch.tensor(ratios, dtype=torch.float32)
        self.scale_major = scale_major
        self.centers = centers
        self.center_offset = center_offset
        self.use_box_type = use_box_type
        self.base_anchors = [
            self.single_level_base_anchors(size, None if centers is None else centers[level])
            for level, size in enumerate(self.base_sizes)
        ]
        self._cache: dict[tuple[object, ...], Tensor] = {}

    @property
    def num_levels(self) -> int:
        """Number of feature levels."""
        return len(self.strides)

    @property
    def num_base_priors(self) -> list[int]:
        """Anchors per cell of each level."""
        return [len(anchors) for anchors in self.base_anchors]

    def single_level_base_anchors(self, base_size: float, center: Sequence[float] | None = None) -> Tensor:
        """Anchors (A, 4) of one cell at the origin."""
        center_x, center_y = center if center is not None else [self.center_offset * base_size] * 2
        height_ratios = torch.sqrt(self.ratios)
        width_ratios = 1 / height_ratios
        if self.scale_major:
            widths = (base_size * width_ratios[:, None] * self.scales[None, :]).view(-1)
            heights = (base_size * height_ratios[:, None] * self.scales[None, :]).view(-1)
        else:
            widths = (base_size * self.scales[:, None] * width_ratios[None, :]).view(-1)
            heights = (base_size * self.scales[:, None] * height_ratios[None, :]).view(-1)
        corners = [
            center_x - 0.5 * widths,
            center_y - 0.5 * heights,
            center_x + 0.5 * widths,
            center_y + 0.5 * heights,
        ]
        return torch.stack(corners, dim=-1)

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
        if with_stride:
            raise ValueError("AnchorGenerator: anchors carry no stride; with_stride is for point generators")
        self._check_levels(featmap_sizes)
        return [self.single_level_grid_priors(size, level, dtype, device) for level, size in enumerate(featmap_sizes)]

    def single_level_grid_priors(
        self,
        featmap_size: Size,
        level_idx: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Anchors (H * W * A, 4) of one level; the same tensor at each call, so do not write into it."""
        height, width = featmap_size
        key = ("grid", height, width, level_idx, dtype, str(device))
        if key not in self._cache:
            stride_x, stride_y = self.strides[level_idx]
            x = torch.arange(width, device=device) * stride_x
            y = torch.arange(height, device=device) * stride_y
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1).to(dtype)  # (H, W, 4)
            base = self.base_anchors[level_idx].to(device=device, dtype=dtype, non_blocking=True)
            self._store(key, (shifts.unsqueeze(2) + base).reshape(-1, 4))
        return self._cache[key]

    def sparse_priors(
        self,
        prior_idxs: Tensor,
        featmap_size: Size,
        level_idx: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The anchors (..., 4) of one level at ``prior_idxs`` (...) of its grid."""
        width = featmap_size[1]
        base = self.base_anchors[level_idx].to(device=device, dtype=dtype, non_blocking=True)
        cell = prior_idxs // len(base)
        x = cell % width * self.strides[level_idx][0]
        y = cell // width * self.strides[level_idx][1]
        return torch.stack([x, y, x, y], dim=-1).to(device=device, dtype=dtype) + base[prior_idxs % len(base)]

    def valid_flags(
        self, featmap_sizes: Sequence[Size], pad_shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> list[Tensor]:
        """Which anchors of each level, (H * W * A,) bool, start inside an image of ``pad_shape``.

        Args:
            featmap_sizes: Height and width of each level.
            pad_shape: Height and width of the padded image in pixels.
            device: Of the flags.
        """
        self._check_levels(featmap_sizes)
        flags = []
        for level, ((height, width), (stride_x, stride_y)) in enumerate(zip(featmap_sizes, self.strides, strict=True)):
            valid_height = min(math.ceil(pad_shape[0] / stride_y), height)
            valid_width = min(math.ceil(pad_shape[1] / stride_x), width)
            key = ("flags", height, width, valid_height, valid_width, level, str(device))
            if key not in self._cache:
                rows = torch.arange(height, device=device) < valid_height
                columns = torch.arange(width, device=device) < valid_width
                cells = (rows[:, None] & columns[None, :]).view(-1, 1)
                self._store(key, cells.expand(-1, self.num_base_priors[level]).reshape(-1))
            flags.append(self._cache[key])
        return flags

    def _store(self, key: tuple[object, ...], value: Tensor) -> None:
        if len(self._cache) >= CACHE_SIZE:
            self._cache.clear()
        self._cache[key] = value

    def _check_levels(self, featmap_sizes: Sequence[Size]) -> None:
        if len(featmap_sizes) != self.num_levels:
            raise ValueError(
                f"AnchorGenerator: {len(featmap_sizes)} feature maps for {self.num_levels} strides {self.strides}"
            )
