"""Assignment of a whole batch, whatever the assigner offers."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import IGNORED, AssignResult, BatchAssignResult

__all__ = ["Assigner", "BatchAssigner", "assign_batch"]


class Assigner(Protocol):
    """The per-image contract; all that a user's own assigner needs."""

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        **kwargs: Any,
    ) -> AssignResult:
        """Assign the priors of one image."""


@runtime_checkable
class BatchAssigner(Protocol):
    """The batched contract; detkit's own assigners have it."""

    def assign_batch(
        self, priors: Tensor, ground_truth: GroundTruth, prior_valid: Tensor | None = None
    ) -> BatchAssignResult:
        """Assign the priors of N images."""


def assign_batch(
    assigner: Assigner | BatchAssigner, priors: Tensor, ground_truth: GroundTruth, prior_valid: Tensor | None = None
) -> BatchAssignResult:
    """Assign the priors of N images, image by image if the assigner knows no batches.

    Args:
        assigner: Any assigner.
        priors: (A, 4), shared by the images.
        ground_truth: Objects of the N images.
        prior_valid: (N, A) bool, which priors take part; None is all. The others are ignored.
    """
    if isinstance(assigner, BatchAssigner):
        return assigner.assign_batch(priors, ground_truth, prior_valid)
    rows = []
    for index in range(len(ground_truth.boxes)):
        keep = slice(None) if prior_valid is None else prior_valid[index]
        valid, ignored = ground_truth.valid[index], ground_truth.ignored_valid[index]
        result = assigner.assign(
            InstanceData(priors=priors[keep]),
            InstanceData(bboxes=ground_truth.boxes[index][valid], labels=ground_truth.labels[index][valid]),
            InstanceData(bboxes=ground_truth.ignored_boxes[index][ignored]),
        )
        gt_inds = torch.full((len(priors),), IGNORED, dtype=torch.int64, device=priors.device)
        labels, overlaps = gt_inds.clone(), priors.new_zeros(len(priors))
        gt_inds[keep], labels[keep] = result.gt_inds, result.labels
        if result.max_overlaps is not None:
            overlaps[keep] = result.max_overlaps.to(overlaps)
        rows.append((gt_inds, overlaps, labels))
    return BatchAssignResult(*(torch.stack(column) for column in zip(*rows, strict=True)))
