"""Anchors and points where torchvision's detectors have them, for their weights.

https://github.com/pytorch/vision/blob/main/torchvision/models/detection/anchor_utils.py: corners of anchors are whole
numbers, and the step between cells is the image's side over the feature map's, rounded down: 61 pixels, not 64, where a
side of 800 pixels has 13 cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.task_modules.prior_generators.anchor_generator import centered_anchors
from detkit.task_modules.prior_generators.grid import Size, Stride, check_levels, level_strides
from detkit.task_modules.prior_generators.grid_anchors import GridAnchors
from detkit.task_modules.prior_generators.point_generator import MlvlPointGenerator

__all__ = ["TorchvisionAnchorGenerator", "TorchvisionPointGenerator"]


def _steps(name: str, featmap_sizes: Sequence[Size], strides: Sequence[Stride]) -> tuple[Stride, ...]:
    """Whole steps (x, y) between the cells of each level, in an image that is whole cells of the first one."""
    check_levels(name, featmap_sizes, strides)
    (height, width), (stride_x, stride_y) = featmap_sizes[0], strides[0]
    return tuple(
        (max(1, int(width * stride_x // columns)), max(1, int(height * stride_y // rows)))
        for rows, columns in featmap_sizes
    )


@TASK_UTILS.register_module()
class TorchvisionAnchorGenerator(GridAnchors):
    """Anchors of torchvision's RetinaNet, Faster R-CNN and Mask R-CNN.

    Images must be padded to a multiple of the first stride, as ``pad_size_divisor=32`` does.

    Args:
        strides: Pixels per cell of each level.
        sizes: Per level, the square roots of the areas in pixels.
        ratios: Aspect ratios, height over width, of each size.

    Raises:
        ValueError: Not one list of sizes per stride, or sizes or ratios that are not above 0.
    """

    def __init__(
        self, strides: Sequence[int], sizes: Sequence[Sequence[float]], ratios: Sequence[float] = (0.5, 1.0, 2.0)
    ) -> None:
        numbers = [*ratios, *(size for level in sizes for size in level)]
        if len(sizes) != len(strides) or not all(sizes) or not ratios or min(numbers) <= 0:
            raise ValueError(
                f"TorchvisionAnchorGenerator: sizes above 0 for each of {len(strides)} strides and ratios above 0 were "
                f"expected, got sizes={sizes} and ratios={ratios}"
            )
        self.sizes = sizes
        self.ratios = ratios
        self._at: dict[tuple[Stride, ...], GridAnchors] = {}
        super().__init__(
            level_strides(strides),
            [
                centered_anchors(1, torch.tensor(level, dtype=torch.float32), torch.tensor(ratios), (0, 0)).round()
                for level in sizes
            ],
        )

    def grid_priors(
        self,
        featmap_sizes: Sequence[Size],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        with_stride: bool = False,
    ) -> list[Tensor]:
        """Anchors of all levels, each (H * W * A, 4): by row, by column, then by base anchor."""
        steps = _steps("TorchvisionAnchorGenerator", featmap_sizes, self.strides)
        grid = self._at.setdefault(steps, GridAnchors(steps, self.base_anchors))
        return grid.grid_priors(featmap_sizes, dtype, device, with_stride)


@TASK_UTILS.register_module()
class TorchvisionPointGenerator(MlvlPointGenerator):
    """Points of torchvision's FCOS: the corners of the cells, at torchvision's whole steps.

    Args:
        strides: Pixels per cell of each level, in which distances are counted.
    """

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__(strides, offset=0.0)
        self._at: dict[tuple[Stride, ...], MlvlPointGenerator] = {}

    def grid_priors(
        self,
        featmap_sizes: Sequence[Size],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        with_stride: bool = False,
    ) -> list[Tensor]:
        """Points of all levels, each (H * W, 2), row by row; or (H * W, 4) with the strides that distances have."""
        steps = _steps("TorchvisionPointGenerator", featmap_sizes, self.strides)
        grid = self._at.setdefault(steps, MlvlPointGenerator(steps, offset=0.0))
        levels = grid.grid_priors(featmap_sizes, dtype, device)
        if not with_stride:
            return levels
        return [
            torch.cat([points, points.new_tensor(stride).expand(len(points), 2)], dim=1)
            for points, stride in zip(levels, self.strides, strict=True)
        ]
