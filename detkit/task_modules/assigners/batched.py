"""Assignment of a whole batch, whatever the assigner offers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from mmengine.structures import InstanceData
from torch import Tensor

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import IGNORED, AssignResult, BatchAssignResult

__all__ = ["Assigner", "BatchAssigner", "assign_batch", "needed_inputs"]


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


def needed_inputs(assigner: Assigner | BatchAssigner) -> list[str]:
    """Names of what the assigner must be given besides priors and objects; of one without batches nothing is known."""
    if not isinstance(assigner, BatchAssigner):
        return []
    parameters = inspect.signature(assigner.assign_batch).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]


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
    results, kept = [], []
    for index in range(batch_size):
        keep = slice(None) if prior_valid is None else prior_valid[index]
        valid, ignored = ground_truth.valid[index], ground_truth.ignored_valid[index]
        own = priors if priors.dim() == 2 else priors[index]
        own_predictions = {name: value[index][keep] for name, value in predictions.items()}
        # By keyword, as some assigners have further arguments between these.
        result = assigner.assign(
            pred_instances=InstanceData(priors=own[keep], **own_predictions),
            gt_instances=InstanceData(
                bboxes=ground_truth.boxes[index][valid], labels=ground_truth.labels[index][valid]
            ),
            gt_instances_ignore=InstanceData(bboxes=ground_truth.ignored_boxes[index][ignored]),
            **settings,
        )
        results.append(result)
        kept.append(keep)

    gt_inds = _of_batch([result.gt_inds.long() for result in results], kept, num_priors, IGNORED)
    overlaps = _of_batch([result.max_overlaps for result in results], kept, num_priors, 0.0)
    labels = _of_batch([result.labels.long() for result in results], kept, num_priors, -1)
    metrics = _of_batch([result.assign_metrics for result in results], kept, num_priors, 0.0)
    assert gt_inds is not None
    assert labels is not None
    return BatchAssignResult(gt_inds, overlaps, labels, metrics)


def _of_batch(
    values: Sequence[Tensor | None], kept: Sequence[Tensor | slice], num_priors: int, fill: float
) -> Tensor | None:
    """Values (N, A) of those that took part in each image, ``fill`` elsewhere; None where no image has any."""
    given = [value for value in values if value is not None]
    if not given:
        return None
    full = given[0].new_full((len(values), num_priors), fill)
    for row, keep, value in zip(full, kept, values, strict=True):
        if value is not None:
            row[keep] = value.to(full)
    return full
