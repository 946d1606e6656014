"""Assignment of each object to the points nearest its centre (RepPoints, https://arxiv.org/abs/1904.11490, 3.3)."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.structures.precision import full_precision
from detkit.task_modules.assigners.assign_result import BACKGROUND, IGNORED, AssignResult, BatchAssignResult
from detkit.task_modules.assigners.candidates import chosen_by_best
from detkit.task_modules.assigners.chunks import chunk_slices
from detkit.task_modules.assigners.first_highest import first_highest

__all__ = ["PointAssigner"]


@TASK_UTILS.register_module()
class PointAssigner:
    """Each object takes the points nearest its centre, of the level that fits its size.

    1. The level of an object is ``log2(sqrt(width * height) / scale)``, rounded toward zero; that of a point the
       logarithm of its stride. An object beyond the levels there are has the first or last of them.
    2. Each object takes the ``pos_num`` points of its level nearest to its centre, where distances along x and y
       are in units of its width and height; of equally near ones the first. A level of fewer points gives all.
    3. Of several objects that take a point, the one it is nearest to wins; if equally near, the first.
    4. All other points are background.

    Ignored regions do not count.

    Args:
        scale: Size in pixels of an object of level 0.
        pos_num: Points that an object takes.

    Raises:
        ValueError: ``scale`` is not positive, or ``pos_num`` no whole number of at least 1.
    """

    prior_kind = "points"

    def __init__(self, scale: float = 4, pos_num: int = 3) -> None:
        if not isinstance(scale, (int, float)) or not scale > 0:
            raise ValueError(f"PointAssigner: scale must be a number above 0, got {scale!r}")
        if not isinstance(pos_num, int) or pos_num < 1:
            raise ValueError(f"PointAssigner: pos_num must be a whole number of at least 1, got {pos_num!r}")
        self.scale = scale
        self.pos_num = pos_num

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        **kwargs: Any,
    ) -> AssignResult:
        """Assign the points of one image.

        Args:
            pred_instances: With ``priors`` (A, 3): x, y and stride.
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: Unused.
            kwargs: What other assigners use of an image; unused.
        """
        ground_truth = GroundTruth.from_instances([gt_instances])
        return self.assign_batch(pred_instances.priors, ground_truth).image(0, len(gt_instances))

    def assign_batch(
        self, priors: Tensor, ground_truth: GroundTruth, prior_valid: Tensor | None = None
    ) -> BatchAssignResult:
        """Assign the points of N images.

        Args:
            priors: (A, 3) x, y and stride, shared by the images, or (N, A, 3).
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which points take part; None is all. The others are ignored.
        """
        batch_size, num_gts = ground_truth.valid.shape
        (points,) = full_precision(priors[..., :3].expand(batch_size, priors.shape[-2], 3))
        taking_part = torch.ones_like(points[..., 0], dtype=torch.bool) if prior_valid is None else prior_valid
        gt_inds = torch.where(taking_part, BACKGROUND, IGNORED)
        if num_gts > 0 and points.shape[1] > 0:
            closeness, index = self._nearest(points, ground_truth, taking_part)
            chosen = chosen_by_best(index, closeness.isfinite(), closeness, points.shape[1])
            gt_inds = torch.where(chosen.gt_inds > 0, chosen.gt_inds, gt_inds)
        return BatchAssignResult(gt_inds, None, ground_truth.labels_at(gt_inds))

    def _nearest(self, points: Tensor, ground_truth: GroundTruth, taking_part: Tensor) -> tuple[Tensor, Tensor]:
        """Negative squared distance, -inf where there is none, and index of the points (N, G, pos_num) of an object."""
        boxes = ground_truth.boxes.to(points.dtype)
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
        level = points[..., 2].log2().trunc()
        first = torch.where(taking_part, level, torch.inf).amin(dim=1, keepdim=True)
        last = torch.where(taking_part, level, -torch.inf).amax(dim=1, keepdim=True)
        gt_level = ((size / self.scale).log2().sum(dim=-1) / 2).trunc().clamp(first, last)
        # No level equals NaN, so that padding takes no points and absent points are not taken.
        gt_level = torch.where(ground_truth.valid, gt_level, torch.nan).unsqueeze(2)
        level = torch.where(taking_part, level, torch.nan).unsqueeze(1)
        x, y = (points[..., axis].contiguous().unsqueeze(1) for axis in (0, 1))
        centre, size = centre.unsqueeze(2), size.unsqueeze(2)
        count = min(self.pos_num, points.shape[1])
        best = points.new_empty(*ground_truth.valid.shape, count)
        index = torch.empty_like(best, dtype=torch.int64)
        for piece in chunk_slices(boxes.shape[1], taking_part.numel(), points.device, least=1):
            closeness = ((x - centre[:, piece, :, 0]) / size[:, piece, :, 0]).square_()
            closeness = closeness.add_(((y - centre[:, piece, :, 1]) / size[:, piece, :, 1]).square_()).neg_()
            closeness = closeness.masked_fill_(level != gt_level[:, piece], -torch.inf)
            # Objects of whole pixels often lie midway between points, which are equally near then.
            best[:, piece], index[:, piece] = first_highest(closeness, count)
        return best, index
