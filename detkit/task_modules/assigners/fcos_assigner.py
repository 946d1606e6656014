"""Points inside objects, levels by the objects' size (FCOS, https://arxiv.org/abs/1904.01355, 3.1 and 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import BACKGROUND, IGNORED, AssignResult, BatchAssignResult
from detkit.task_modules.assigners.candidates import inside_boxes
from detkit.task_modules.assigners.chunks import chunk_slices

__all__ = ["FCOSAssigner"]


@TASK_UTILS.register_module()
class FCOSAssigner:
    """A point learns the smallest object that it lies in and whose size its level is there for.

    1. A point lies in an object if it is inside the box, or, with ``center_sample_radius``, inside the part of the
       box within that many strides of its centre.
    2. Of these objects, those count whose farthest side is as far from the point as the range of its level says.
    3. The point learns the smallest of them (of equal ones the first); without any it is background.

    Args:
        regress_ranges: Of each level, least and greatest distance in pixels to the farthest side.
        center_sample_radius: In strides; None takes the whole object.

    Raises:
        ValueError: A range is empty, or the radius is not positive.
    """

    prior_kind = "points with strides"

    def __init__(self, regress_ranges: Sequence[Sequence[float]], center_sample_radius: float | None = None) -> None:
        if any(len(ends) != 2 or not ends[0] < ends[1] for ends in regress_ranges):
            raise ValueError(f"FCOSAssigner: regress_ranges must be pairs (least, greatest), got {regress_ranges!r}")
        if center_sample_radius is not None and not center_sample_radius > 0:
            raise ValueError(f"FCOSAssigner: center_sample_radius must be above 0, got {center_sample_radius!r}")
        self.regress_ranges = tuple((float(least), float(most)) for least, most in regress_ranges)
        self.center_sample_radius = center_sample_radius
        self.num_levels = len(self.regress_ranges)

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        *,
        num_level_priors: Sequence[int],
        **kwargs: Any,
    ) -> AssignResult:
        """Assign the points of one image.

        Args:
            pred_instances: With ``priors`` (A, 4): x, y and the strides of both.
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: Unused.
            num_level_priors: Points of each level; their sum is A.
            kwargs: What other assigners use of an image; unused.
        """
        truth = GroundTruth.from_instances([gt_instances])
        result = self.assign_batch(pred_instances.priors, truth, num_level_priors=num_level_priors)
        return result.image(0, len(gt_instances))

    def assign_batch(
        self,
        priors: Tensor,
        ground_truth: GroundTruth,
        prior_valid: Tensor | None = None,
        *,
        num_level_priors: Sequence[int],
    ) -> BatchAssignResult:
        """Assign the points of N images.

        Args:
            priors: (A, 4) x, y and the strides of both, shared by the images.
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which points take part; None is all. The others are ignored.
            num_level_priors: Points of each level; their sum is A.

        Raises:
            ValueError: Levels and ranges differ in number, or levels and points.
        """
        if len(num_level_priors) != len(self.regress_ranges):
            raise ValueError(
                f"FCOSAssigner: {len(num_level_priors)} levels of points, but {len(self.regress_ranges)} regress_ranges"
            )
        if sum(num_level_priors) != len(priors):
            raise ValueError(f"FCOSAssigner: levels of {list(num_level_priors)} points do not add up to {len(priors)}")
        points = priors.float()
        x, y, stride = points[:, 0], points[:, 1], points[:, 2]
        ranges = list(zip(num_level_priors, self.regress_ranges, strict=True))
        least = torch.cat([points.new_full((count,), ends[0]) for count, ends in ranges])
        most = torch.cat([points.new_full((count,), ends[1]) for count, ends in ranges])
        radius = None if self.center_sample_radius is None else self.center_sample_radius * stride
        shape = (len(ground_truth.boxes), len(points))
        smallest = points.new_full(shape, torch.inf)
        gt_inds = torch.full(shape, BACKGROUND, device=points.device)
        for some in chunk_slices(ground_truth.valid.shape[1], len(points) * shape[0], points.device, least=1):
            boxes = ground_truth.boxes[:, some].unsqueeze(2)  # (N, g, 1, 4)
            x1, y1, x2, y2 = boxes.unbind(-1)
            farthest = torch.maximum(torch.maximum(x - x1, x2 - x), torch.maximum(y - y1, y2 - y))
            inside = inside_boxes(x, y, boxes if radius is None else around_centers(boxes, radius))
            eligible = inside & (farthest >= least) & (farthest <= most) & ground_truth.valid[:, some].unsqueeze(2)
            area, row = torch.where(eligible, (x2 - x1) * (y2 - y1), torch.inf).min(dim=1)
            # Strictly smaller: of objects of equal area the first counts, as in one piece.
            gt_inds = torch.where(area < smallest, row + some.start + 1, gt_inds)
            smallest = torch.minimum(smallest, area)
        if prior_valid is not None:
            gt_inds = torch.where(prior_valid, gt_inds, IGNORED)
        return BatchAssignResult(gt_inds, None, ground_truth.labels_at(gt_inds))


def around_centers(boxes: Tensor, radius: Tensor) -> Tensor:
    """Parts (N, g, A, 4) of ``boxes`` (N, g, 1, 4) within ``radius`` (A,) of their centres."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
    low = torch.maximum(center_x - radius, x1), torch.maximum(center_y - radius, y1)
    high = torch.minimum(center_x + radius, x2), torch.minimum(center_y + radius, y2)
    return torch.stack([*low, *high], dim=-1)
