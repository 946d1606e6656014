"""Features of regions: RoIAlign (Mask R-CNN, https://arxiv.org/abs/1703.06870) and RoIPool (Fast R-CNN,
https://arxiv.org/abs/1504.08083), by MMCV's names and arguments, on torchvision's kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from detkit.ops.roi_align_cpu import align_rows, fits
from detkit.registry import MODELS

__all__ = ["RoIAlign", "RoIPool", "SimpleRoIAlign", "roi_align", "roi_pool"]

Size = int | tuple[int, int]
POOL_MODES = ("avg", "max")


def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: Size,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = "avg",
    aligned: bool = True,
) -> Tensor:
    """Features of each RoI on a grid of cells, from bilinear samples within the cells.

    Args:
        features: (N, C, H, W).
        rois: (R, 5), index of the image, then x1, y1, x2, y2.
        output_size: Cells, (rows, columns).
        spatial_scale: Pixels of the features per unit of the boxes.
        sampling_ratio: Samples along each side of a cell; 0 takes as many as there are pixels.
        pool_mode: ``avg``, or ``max``, which needs a ``sampling_ratio``.
        aligned: Shift by half a pixel, so that a pixel's value stands at its centre.

    Returns:
        (R, C, rows, columns); computed in float32, as half precision loses the place of a box.
    """
    rows, columns = _pair(output_size)
    ratio = max(sampling_ratio, 0)
    if pool_mode == "max":
        # A finer grid of one sample for each cell, of which the largest counts.
        rows, columns, samples = rows * ratio, columns * ratio, 1
    else:
        samples = ratio or -1

    def pool(maps: Tensor, boxes: Tensor) -> Tensor:
        size = (rows, columns)
        if maps.device.type == "cpu" and fits(boxes, size, spatial_scale, max(samples, 0), aligned, maps.shape[1]):
            return align_rows(maps, boxes, size, spatial_scale, max(samples, 0), aligned)
        return torchvision.ops.roi_align(maps, boxes, size, spatial_scale, samples, aligned)

    pooled = _in_float32(pool, features, rois)
    return F.max_pool2d(pooled, ratio) if pool_mode == "max" else pooled


def roi_pool(features: Tensor, rois: Tensor, output_size: Size, spatial_scale: float = 1.0) -> Tensor:
    """The largest feature in each of the cells of each RoI; arguments as of :func:`roi_align`."""
    size = _pair(output_size)
    return _in_float32(lambda maps, boxes: torchvision.ops.roi_pool(maps, boxes, size, spatial_scale), features, rois)


def _in_float32(pool: Callable[[Tensor, Tensor], Tensor], features: Tensor, rois: Tensor) -> Tensor:
    full = features if features.is_floating_point() and features.element_size() >= 4 else features.float()
    return pool(full, rois.to(full.dtype)).to(features.dtype)


@MODELS.register_module()
class RoIAlign(nn.Module):
    """:func:`roi_align` with its options fixed.

    Args:
        output_size: Cells, (rows, columns), or a number for both.
        spatial_scale: Pixels of the features per unit of the boxes; a RoI extractor sets it.
        sampling_ratio: Samples along each side of a cell; 0 takes as many as there are pixels.
        pool_mode: ``avg``, or ``max``, which needs a ``sampling_ratio``.
        aligned: Shift by half a pixel, so that a pixel's value stands at its centre.
        use_torchvision: Accepted for MMDetection's configs; it is torchvision's kernel either way.

    Raises:
        ValueError: An unknown ``pool_mode``, or ``max`` without a ``sampling_ratio``.
    """

    def __init__(
        self,
        output_size: Size,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        pool_mode: str = "avg",
        aligned: bool = True,
        use_torchvision: bool = False,
    ) -> None:
        super().__init__()
        if pool_mode not in POOL_MODES:
            raise ValueError(f"RoIAlign: pool_mode {pool_mode!r} is not one of {', '.join(map(repr, POOL_MODES))}")
        if pool_mode == "max" and sampling_ratio < 1:
            raise ValueError(f"RoIAlign: pool_mode 'max' needs a sampling_ratio of at least 1, got {sampling_ratio}")
        self.output_size = _pair(output_size)
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.pool_mode = pool_mode
        self.aligned = aligned

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """(R, C, rows, columns) of features (N, C, H, W) and RoIs (R, 5)."""
        return roi_align(
            features, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.pool_mode, self.aligned
        )


@MODELS.register_module()
class RoIPool(nn.Module):
    """:func:`roi_pool` with its options fixed.

    Args:
        output_size: Cells, (rows, columns), or a number for both.
        spatial_scale: Pixels of the features per unit of the boxes; a RoI extractor sets it.
    """

    def __init__(self, output_size: Size, spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = spatial_scale

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """(R, C, rows, columns) of features (N, C, H, W) and RoIs (R, 5)."""
        return roi_pool(features, rois, self.output_size, self.spatial_scale)


@MODELS.register_module()
class SimpleRoIAlign(nn.Module):
    """One bilinear sample at the centre of each cell (PointRend, https://arxiv.org/abs/1912.08193, appendix A).

    It differs from :class:`RoIAlign` with one sample in what lies beyond the features: zeros, which come in gradually.

    Args:
        output_size: Cells, (rows, columns), or a number for both.
        spatial_scale: Pixels of the features per unit of the boxes; a RoI extractor sets it.
        aligned: Shift by half a pixel, so that a pixel's value stands at its centre; the only way.

    Raises:
        ValueError: ``aligned`` is False.
    """

    def __init__(self, output_size: Size, spatial_scale: float = 1.0, aligned: bool = True) -> None:
        super().__init__()
        if not aligned:
            raise ValueError("SimpleRoIAlign: aligned must be True, got False")
        self.output_size = _pair(output_size)
        self.spatial_scale = spatial_scale

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """(R, C, rows, columns) of features (N, C, H, W) and RoIs (R, 5)."""
        # RoIAlign repeats the border where it has no pixel beyond it: here there is one, of zeros.
        boxes = rois[:, 1:] + 1 / self.spatial_scale
        padded = F.pad(features, (1, 1, 1, 1))
        return roi_align(padded, torch.cat([rois[:, :1], boxes], dim=1), self.output_size, self.spatial_scale, 1)


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
