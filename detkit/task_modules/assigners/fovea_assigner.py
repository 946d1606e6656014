"""Cells in the middle of objects, levels by the objects' area (FoveaBox, https://arxiv.org/abs/1904.03797, 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import IGNORED, AssignResult, BatchAssignResult
from detkit.task_modules.assigners.chunks import chunk_slices

__all__ = ["FoveaAssigner"]


@TASK_UTILS.register_module()
class FoveaAssigner:
    """A cell learns the smallest object of its level's range in whose fovea it lies.

    1. A level is there for objects whose square root of area lies in its range; ranges may overlap.
    2. The fovea of an object is its box, shrunk to ``sigma`` of its sides around the centre, in whole cells; of one
       beyond the map, the cells at the map's border.
    3. A cell in several learns the smallest object (of equal ones the last); without any it is background.

    Args:
        scale_ranges: Of each level, least and greatest square root of an object's area in pixels.
        sigma: Size of the fovea, above 0.

    Raises:
        ValueError: A range is empty, or ``sigma`` not positive.
    """

    prior_kind = "points with strides"

    def __init__(self, scale_ranges: Sequence[Sequence[float]], sigma: float = 0.4) -> None:
        if any(len(ends) != 2 or not ends[0] < ends[1] for ends in scale_ranges):
            raise ValueError(f"FoveaAssigner: scale_ranges must be pairs (least, greatest), got {scale_ranges!r}")
        if not sigma > 0:
            raise ValueError(f"FoveaAssigner: sigma must be above 0, got {sigma!r}")
        self.scale_ranges = tuple((float(least), float(most)) for least, most in scale_ranges)
        self.sigma = sigma
        self.num_levels = len(self.scale_ranges)

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        *,
        featmap_sizes: Sequence[tuple[int, int]],
        **kwargs: Any,
    ) -> AssignResult:
        """Assign the cells of one image.

        Args:
            pred_instances: With ``priors`` (A, 4): x, y and the strides of both.
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: Unused.
            featmap_sizes: Height and width of each level.
            kwargs: What other assigners use of an image; unused.
        """
        truth = GroundTruth.from_instances([gt_instances])
        result = self.assign_batch(pred_instances.priors, truth, featmap_sizes=featmap_sizes)
        return result.image(0, len(gt_instances))

    def assign_batch(
        self,
        priors: Tensor,
        ground_truth: GroundTruth,
        prior_valid: Tensor | None = None,
        *,
        featmap_sizes: Sequence[tuple[int, int]],
    ) -> BatchAssignResult:
        """Assign the cells of N images.

        Args:
            priors: (A, 4) x, y and the strides of both, shared by the images.
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which cells take part; None is all. The others are ignored.
            featmap_sizes: Height and width of each level.

        Raises:
            ValueError: Levels and ranges differ in number, or levels and cells.
        """
        cells = [height * width for height, width in featmap_sizes]
        if len(cells) != len(self.scale_ranges):
            raise ValueError(f"FoveaAssigner: {len(cells)} levels, but {len(self.scale_ranges)} scale_ranges")
        if sum(cells) != len(priors):
            raise ValueError(f"FoveaAssigner: levels of {cells} cells do not add up to {len(priors)}")
        levels = zip(priors.split(cells), featmap_sizes, self.scale_ranges, strict=True)
        gt_inds = torch.cat(
            [self._level(ground_truth, points[0, 2:], size, ends) for points, size, ends in levels], dim=1
        )
        if prior_valid is not None:
            gt_inds = torch.where(prior_valid, gt_inds, IGNORED)
        return BatchAssignResult(gt_inds, None, ground_truth.labels_at(gt_inds))

    def _level(
        self, ground_truth: GroundTruth, stride: Tensor, size: tuple[int, int], ends: tuple[float, float]
    ) -> Tensor:
        """``gt_inds`` (N, H * W) of one level of ``stride`` (2,)."""
        batch_size, num_gts = ground_truth.valid.shape
        smallest = ground_truth.boxes.new_full((batch_size, size[0] * size[1]), torch.inf)
        gt_inds = torch.zeros_like(smallest, dtype=torch.int64)
        for some in chunk_slices(num_gts, smallest.numel(), smallest.device, least=1):
            boxes = ground_truth.boxes[:, some]
            width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
            scale = (width * height).sqrt()
            here = ground_truth.valid[:, some] & (scale >= ends[0]) & (scale <= ends[1])
            columns = self._fovea(boxes[..., 0] / stride[0], boxes[..., 2] / stride[0], size[1])  # (N, g, W)
            rows = self._fovea(boxes[..., 1] / stride[1], boxes[..., 3] / stride[1], size[0])  # (N, g, H)
            inside = rows.unsqueeze(3) & columns.unsqueeze(2) & here[..., None, None]
            area = torch.where(inside.flatten(2), scale.unsqueeze(2), torch.inf)
            # From the last to the first, as the last of equals counts.
            least, back = area.flip(1).min(dim=1)
            index = some.start + scale.shape[1] - back
            gt_inds = torch.where((least <= smallest) & least.isfinite(), index, gt_inds)
            smallest = torch.minimum(smallest, least)
        return gt_inds

    def _fovea(self, low: Tensor, high: Tensor, num_cells: int) -> Tensor:
        """Which of the cells in a row lie in the middle of objects from ``low`` to ``high`` (N, g): (N, g, cells)."""
        half = 0.5 * (high - low)
        first = (low + (1 - self.sigma) * half - 0.5).ceil().clamp(0, num_cells - 1)
        last = (low + (1 + self.sigma) * half - 0.5).floor().clamp(0, num_cells - 1)
        cells = torch.arange(num_cells, device=low.device)
        return (cells >= first.unsqueeze(2)) & (cells <= last.unsqueeze(2))
