"""Anchors of SSD, https://arxiv.org/abs/1512.02325, section 2.2."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.task_modules.prior_generators.anchor_generator import centered_anchors, pixel_anchors
from detkit.task_modules.prior_generators.grid import Stride, level_strides
from detkit.task_modules.prior_generators.grid_anchors import GridAnchors

__all__ = ["LegacySSDAnchorGenerator", "SSDAnchorGenerator", "ssd_base_anchors", "ssd_sizes"]

# Least and largest size of the first level in per cent of the image, by input size and least of the other levels.
FIRST_LEVEL = {(300, 0.15): (7, 15), (300, 0.2): (10, 20), (512, 0.1): (4, 10), (512, 0.15): (7, 15)}


def ssd_sizes(
    name: str, num_levels: int, basesize_ratio_range: Sequence[float], input_size: int
) -> tuple[list[int], list[int]]:
    """Least and largest size in pixels of each level (section 2.2, eq. 4): even steps, the first level apart.

    Args:
        name: Of whoever asks, for errors.
        num_levels: At least 3.
        basesize_ratio_range: Least and largest size in units of the image.
        input_size: Side of the image, 300 or 512.
    """
    if len(basesize_ratio_range) != 2 or num_levels < 3:
        raise ValueError(
            f"{name}: sizes follow from two numbers basesize_ratio_range and at least 3 strides, "
            f"got {basesize_ratio_range} and {num_levels} strides; or give min_sizes and max_sizes"
        )
    first = FIRST_LEVEL.get((input_size, basesize_ratio_range[0]))
    if first is None:
        known = ", ".join(f"{size} with {least}" for size, least in FIRST_LEVEL)
        raise ValueError(
            f"{name}: sizes are known for input_size and the first of basesize_ratio_range {known}; "
            f"got {input_size} with {basesize_ratio_range[0]}; or give min_sizes and max_sizes"
        )
    least, largest = (int(ratio * 100) for ratio in basesize_ratio_range)
    step = (largest - least) // (num_levels - 2)
    if step < 1:
        raise ValueError(f"{name}: basesize_ratio_range {basesize_ratio_range} leaves no step for {num_levels} levels")
    bounds = [first, *((percent, percent + step) for percent in range(least, largest + 1, step))]
    return [int(input_size * low / 100) for low, _ in bounds], [int(input_size * high / 100) for _, high in bounds]


def ssd_base_anchors(
    min_size: float,
    max_size: float,
    ratios: Sequence[float],
    center: Stride,
    scale_major: bool,
    make: Callable[[float, Tensor, Tensor, Sequence[float], bool], Tensor],
) -> Tensor:
    """Anchors of one cell, (2 + 2 R, 4): a square, a larger square, and for each ratio both orientations.

    Args:
        min_size: Side of the square in pixels.
        max_size: The larger square has the side ``sqrt(min_size * max_size)``.
        ratios: R ratios.
        center: x and y.
        scale_major: Whether the ratio varies slower than the scale among the candidates.
        make: :func:`centered_anchors` or :func:`pixel_anchors`.
    """
    scales, all_ratios = _scales(min_size, max_size), _ratios(ratios)
    anchors = make(min_size, scales, all_ratios, center, scale_major)
    count = len(all_ratios)
    return anchors[[0, count, *range(1, count)]]


def _scales(min_size: float, max_size: float) -> Tensor:
    return torch.tensor([1.0, math.sqrt(max_size / min_size)])


def _ratios(ratios: Sequence[float]) -> Tensor:
    return torch.tensor([1.0, *(value for ratio in ratios for value in (1 / ratio, ratio))])


@TASK_UTILS.register_module()
class SSDAnchorGenerator(GridAnchors):
    """Anchors of SSD.

    Args:
        strides: Pixels per cell of each level, one number or (x, y).
        ratios: Aspect ratios of each level, besides 1; each in both orientations.
        min_sizes: Size of each level in pixels; None follows from ``basesize_ratio_range``.
        max_sizes: With ``min_sizes``: each level has one square of the geometric mean of both.
        basesize_ratio_range: Least and largest size in units of the image.
        input_size: Side of the image, 300 or 512.
        scale_major: Whether the ratio varies slower than the scale.
        use_box_type: Accepted for MMDetection's configs; boxes are plain tensors either way.
    """

    def __init__(
        self,
        strides: Sequence[float | Sequence[float]],
        ratios: Sequence[Sequence[float]],
        min_sizes: Sequence[float] | None = None,
        max_sizes: Sequence[float] | None = None,
        basesize_ratio_range: Sequence[float] = (0.15, 0.9),
        input_size: int = 300,
        scale_major: bool = True,
        use_box_type: bool = False,
    ) -> None:
        name, pairs = type(self).__name__, level_strides(strides)
        if (min_sizes is None) != (max_sizes is None):
            raise ValueError(f"{name}: give both min_sizes and max_sizes or neither, got {min_sizes} and {max_sizes}")
        if min_sizes is None or max_sizes is None:
            min_sizes, max_sizes = ssd_sizes(name, len(pairs), basesize_ratio_range, input_size)
        _check_levels(name, pairs, ratios=ratios, min_sizes=min_sizes, max_sizes=max_sizes)
        self.input_size = input_size
        self.basesize_ratio_range = basesize_ratio_range
        self.base_sizes = list(min_sizes)
        self.scales = [_scales(low, high) for low, high in zip(min_sizes, max_sizes, strict=True)]
        self.ratios = [_ratios(one) for one in ratios]
        self.centers = [(x / 2, y / 2) for x, y in pairs]
        self.center_offset = 0.0
        self.scale_major = scale_major
        self.use_box_type = use_box_type
        levels = zip(min_sizes, max_sizes, ratios, self.centers, strict=True)
        super().__init__(pairs, [ssd_base_anchors(*level, scale_major, centered_anchors) for level in levels])


@TASK_UTILS.register_module()
class LegacySSDAnchorGenerator(GridAnchors):
    """Anchors of SSD as MMDetection 1.x made them: whole numbers, x2 and y2 the last pixel of the box.

    Args:
        strides: As of :class:`SSDAnchorGenerator`.
        ratios: As of :class:`SSDAnchorGenerator`.
        basesize_ratio_range: As of :class:`SSDAnchorGenerator`.
        input_size: As of :class:`SSDAnchorGenerator`.
        scale_major: As of :class:`SSDAnchorGenerator`.
        use_box_type: As of :class:`SSDAnchorGenerator`.
    """

    def __init__(
        self,
        strides: Sequence[float | Sequence[float]],
        ratios: Sequence[Sequence[float]],
        basesize_ratio_range: Sequence[float],
        input_size: int = 300,
        scale_major: bool = True,
        use_box_type: bool = False,
    ) -> None:
        name, pairs = type(self).__name__, level_strides(strides)
        min_sizes, max_sizes = ssd_sizes(name, len(pairs), basesize_ratio_range, input_size)
        _check_levels(name, pairs, ratios=ratios, min_sizes=min_sizes, max_sizes=max_sizes)
        self.input_size = input_size
        self.basesize_ratio_range = basesize_ratio_range
        self.base_sizes = min_sizes
        self.scales = [_scales(low, high) for low, high in zip(min_sizes, max_sizes, strict=True)]
        self.ratios = [_ratios(one) for one in ratios]
        self.centers = [((x - 1) / 2, (y - 1) / 2) for x, y in pairs]
        self.center_offset = 0.0
        self.scale_major = scale_major
        self.use_box_type = use_box_type
        levels = zip(min_sizes, max_sizes, ratios, self.centers, strict=True)
        super().__init__(pairs, [ssd_base_anchors(*level, scale_major, pixel_anchors) for level in levels])


def _check_levels(name: str, strides: Sequence[Stride], **values: Sequence) -> None:
    for what, given in values.items():
        if len(given) != len(strides):
            raise ValueError(f"{name}: {what} has {len(given)} entries for {len(strides)} strides: {given}")
