"""Anchors: boxes of given sizes and aspect ratios at each cell of each feature map.

Faster R-CNN, https://arxiv.org/abs/1506.01497; octaves as in RetinaNet, https://arxiv.org/abs/1708.02002.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.task_modules.prior_generators.grid import Stride, level_strides
from detkit.task_modules.prior_generators.grid_anchors import GridAnchors

__all__ = ["AnchorGenerator", "LegacyAnchorGenerator", "centered_anchors", "pixel_anchors"]

Center = Sequence[float]


def centered_anchors(
    base_size: float, scales: Tensor, ratios: Tensor, center: Center, scale_major: bool = True
) -> Tensor:
    """Boxes of area ``(base_size * scale)^2`` around one centre.

    Args:
        base_size: In pixels.
        scales: (S,).
        ratios: (R,), height over width.
        center: x and y in pixels.
        scale_major: Whether the ratio varies slower than the scale.

    Returns:
        (R * S, 4).
    """
    widths, heights = _sizes(base_size, scales, ratios, scale_major)
    x, y = center
    return torch.stack([x - 0.5 * widths, y - 0.5 * heights, x + 0.5 * widths, y + 0.5 * heights], dim=-1)


def pixel_anchors(base_size: float, scales: Tensor, ratios: Tensor, center: Center, scale_major: bool = True) -> Tensor:
    """As :func:`centered_anchors`, with x2 and y2 the last pixel of the box and whole numbers."""
    widths, heights = _sizes(base_size, scales, ratios, scale_major)
    x, y = center
    half_w, half_h = 0.5 * (widths - 1), 0.5 * (heights - 1)
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1).round()


def _sizes(base_size: float, scales: Tensor, ratios: Tensor, scale_major: bool) -> tuple[Tensor, Tensor]:
    height_ratios = torch.sqrt(ratios)
    width_ratios = 1 / height_ratios
    if scale_major:
        widths = base_size * width_ratios[:, None] * scales[None, :]
        heights = base_size * height_ratios[:, None] * scales[None, :]
    else:
        widths = base_size * scales[:, None] * width_ratios[None, :]
        heights = base_size * scales[:, None] * height_ratios[None, :]
    return widths.view(-1), heights.view(-1)


@TASK_UTILS.register_module()
class AnchorGenerator(GridAnchors):
    """Anchors of several levels.

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
        strides: Sequence[float | Sequence[float]],
        ratios: Sequence[float],
        scales: Sequence[float] | None = None,
        base_sizes: Sequence[float] | None = None,
        scale_major: bool = True,
        octave_base_scale: float | None = None,
        scales_per_octave: int | None = None,
        centers: Sequence[Center] | None = None,
        center_offset: float = 0.0,
        use_box_type: bool = False,
    ) -> None:
        name, pairs = type(self).__name__, level_strides(strides)
        _check_positive(name, strides=[step for stride in pairs for step in stride], ratios=ratios)
        self.base_sizes = _base_sizes(name, base_sizes, pairs)
        _check_centers(name, centers, center_offset, pairs)
        self.scales = _scales(name, scales, octave_base_scale, scales_per_octave)
        self.octave_base_scale = octave_base_scale
        self.scales_per_octave = scales_per_octave
        self.ratios = torch.tensor(ratios, dtype=torch.float32)
        self.scale_major = scale_major
        self.centers = centers
        self.center_offset = center_offset
        self.use_box_type = use_box_type
        super().__init__(pairs, self.gen_base_anchors())

    def gen_base_anchors(self) -> list[Tensor]:
        """Per level, the anchors (A, 4) of one cell at the origin; called once, in the constructor."""
        return [
            self.gen_single_level_base_anchors(
                size, self.scales, self.ratios, None if self.centers is None else self.centers[level]
            )
            for level, size in enumerate(self.base_sizes)
        ]

    def gen_single_level_base_anchors(
        self, base_size: float, scales: Tensor, ratios: Tensor, center: Center | None = None
    ) -> Tensor:
        """Anchors (A, 4) of one cell at the origin; without ``center``, ``center_offset`` tells it."""
        center = [self.center_offset * base_size] * 2 if center is None else center
        return centered_anchors(base_size, scales, ratios, center, self.scale_major)


@TASK_UTILS.register_module()
class LegacyAnchorGenerator(GridAnchors):
    """Anchors as MMDetection 1.x made them: whole numbers, x2 and y2 the last pixel of the box.

    Args:
        strides: As of :class:`AnchorGenerator`.
        ratios: As of :class:`AnchorGenerator`.
        scales: As of :class:`AnchorGenerator`.
        base_sizes: As of :class:`AnchorGenerator`.
        scale_major: As of :class:`AnchorGenerator`.
        octave_base_scale: As of :class:`AnchorGenerator`.
        scales_per_octave: As of :class:`AnchorGenerator`.
        centers: As of :class:`AnchorGenerator`.
        center_offset: Centre in units of the last pixel ``base_size - 1``, in [0, 1].
        use_box_type: As of :class:`AnchorGenerator`.
    """

    def __init__(
        self,
        strides: Sequence[float | Sequence[float]],
        ratios: Sequence[float],
        scales: Sequence[float] | None = None,
        base_sizes: Sequence[float] | None = None,
        scale_major: bool = True,
        octave_base_scale: float | None = None,
        scales_per_octave: int | None = None,
        centers: Sequence[Center] | None = None,
        center_offset: float = 0.0,
        use_box_type: bool = False,
    ) -> None:
        name, pairs = type(self).__name__, level_strides(strides)
        _check_positive(name, strides=[step for stride in pairs for step in stride], ratios=ratios)
        self.base_sizes = _base_sizes(name, base_sizes, pairs)
        _check_centers(name, centers, center_offset, pairs)
        self.scales = _scales(name, scales, octave_base_scale, scales_per_octave)
        self.octave_base_scale = octave_base_scale
        self.scales_per_octave = scales_per_octave
        self.ratios = torch.tensor(ratios, dtype=torch.float32)
        self.scale_major = scale_major
        self.centers = centers
        self.center_offset = center_offset
        self.use_box_type = use_box_type
        level_centers = centers or [[center_offset * (size - 1)] * 2 for size in self.base_sizes]
        base_anchors = [
            pixel_anchors(size, self.scales, self.ratios, center, scale_major)
            for size, center in zip(self.base_sizes, level_centers, strict=True)
        ]
        super().__init__(pairs, base_anchors)


def _check_positive(name: str, **values: Sequence[float]) -> None:
    for what, numbers in values.items():
        if len(numbers) == 0 or not all(isinstance(number, Real) and number > 0 for number in numbers):
            raise ValueError(f"{name}: {what} must be numbers above 0, at least one, got {numbers!r}")


def _base_sizes(name: str, base_sizes: Sequence[float] | None, strides: Sequence[Stride]) -> list[float]:
    if base_sizes is None:
        return [min(stride) for stride in strides]
    if len(base_sizes) != len(strides):
        raise ValueError(f"{name}: base_sizes has {len(base_sizes)} entries for {len(strides)} strides: {base_sizes}")
    return list(base_sizes)


def _check_centers(
    name: str, centers: Sequence[Center] | None, center_offset: float, strides: Sequence[Stride]
) -> None:
    if not 0 <= center_offset <= 1:
        raise ValueError(f"{name}: center_offset must be in [0, 1], got {center_offset}")
    if centers is not None and center_offset != 0:
        raise ValueError(f"{name}: give centers or center_offset, not both ({center_offset=})")
    if centers is not None and len(centers) != len(strides):
        raise ValueError(f"{name}: centers has {len(centers)} entries for {len(strides)} strides: {centers}")


def _scales(
    name: str, scales: Sequence[float] | None, octave_base_scale: float | None, scales_per_octave: int | None
) -> Tensor:
    if octave_base_scale is not None and scales_per_octave is not None and scales is None:
        scales = [octave_base_scale * 2 ** (i / scales_per_octave) for i in range(scales_per_octave)]
    elif scales is None or (octave_base_scale is not None and scales_per_octave is not None):
        raise ValueError(f"{name}: give either scales, or octave_base_scale and scales_per_octave")
    return torch.tensor(scales, dtype=torch.float32)
