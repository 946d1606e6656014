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
    """The batched contract; detkit's own assigners have it, each with the inputs it needs as keywords."""

    def assign_batch(
        self, priors: Tensor, ground_truth: GroundTruth, prior_valid: Tensor | None = None
    ) -> BatchAssignResult:
        """Assign the priors of N images."""


def assign_batch(
    assigner: Assigner | BatchAssigner,
    priors: Tensor,
    ground_truth: GroundTruth,
    prior_valid: Tensor | None = None,
    **inputs: Any,
) -> BatchAssignResult:
    """Assign the priors of N images, image by image if the assigner knows no batches.

    Args:
        assigner: Any assigner.
        priors: (A, 4), shared by the images, or (N, A, 4).
        ground_truth: Objects of the N images.
        prior_valid: (N, A) bool, which priors take part; None is all. The others are ignored.
        inputs: What this assigner asks for besides: predictions as tensors (N, A, ...), else settings.
    """
    if isinstance(assigner, BatchAssigner):
        return assigner.assign_batch(priors, ground_truth, prior_valid, **inputs)
    batch_size, num_priors = len(ground_truth.boxes), priors.shape[-2]
    predictions = {
        name: value
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.shape[:2] == (batch_size, num_priors)
    }
    settings = {name: value for name, value in inputs.items() if name not in predictions}
    rows = []
    for index in range(batch_size):
        keep = slice(None) if prior_valid is None else prior_valid[index]
        valid, ignored = ground_truth.valid[index], ground_truth.ignored_valid[index]
        own = priors if priors.dim() == 2 else priors[index]
        result = assigner.assign(
            InstanceData(priors=own[keep], **{name: value[index][keep] for name, value in predictions.items()}),
            InstanceData(bboxes=ground_truth.boxes[index][valid], labels=ground_truth.labels[index][valid]),
            InstanceData(bboxes=ground_truth.ignored_boxes[index][ignored]),
            **settings,
        )
        gt_inds = torch.full((num_priors,), IGNORED, dtype=torch.int64, device=priors.device)
        labels, overlaps = gt_inds.clone(), priors.new_zeros(num_priors)
        gt_inds[keep], labels[keep] = result.gt_inds, result.labels
        if result.max_overlaps is not None:
            overlaps[keep] = result.max_overlaps.to(overlaps)
        rows.append((gt_inds, overlaps, labels))
    gt_inds, overlaps, labels = (torch.stack(column) for column in zip(*rows, strict=True))
    return BatchAssignResult(gt_inds, overlaps, labels)
