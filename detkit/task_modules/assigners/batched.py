"""Assignment of a whole batch, whatever the assigner offers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.signature import takes_batches
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import IGNORED, AssignResult, BatchAssignResult

__all__ = ["Assigner", "BatchAssigner", "assign_batch", "needed_inputs"]


class Assigner(Protocol):
    """The per-image contract; all that a user's own assigner needs.

    A class attribute ``prior_kind`` says what it assigns where that is not boxes with one object each, such as
    "points"; heads that have none of these refuse it when they are built.
    """

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
    """Names of what the assigner must be given besides priors and objects; of one without batches nothing is known.

    One that overrides ``assign`` of a built-in is given what the built-in needs. What an assigner needs by its
    settings alone it names in ``also_needs``.
    """
    if not isinstance(assigner, BatchAssigner):
        return []
    parameters = inspect.signature(assigner.assign_batch).parameters.values()
    required = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    return [*required, *getattr(assigner, "also_needs", ())]


def assign_batch(
    assigner: Assigner | BatchAssigner,
    priors: Tensor,
    ground_truth: GroundTruth,
    prior_valid: Tensor | None = None,
    **inputs: Any,
) -> BatchAssignResult:
    """Assign the priors of N images, image by image if the assigner knows no batches or overrides ``assign`` alone.

    Args:
        assigner: Any assigner.
        priors: (A, 4), shared by the images, or (N, A, 4).
        ground_truth: Objects of the N images.
        prior_valid: (N, A) bool, which priors take part; None is all. The others are ignored.
        inputs: What this assigner asks for besides: predictions as tensors (N, A, ...), else settings.

    Raises:
        TypeError: The assigner has neither form, or ``assign`` returns no AssignResult of integers.
        ValueError: Its result does not fit the priors, or (looked at on a CPU only) the objects.
    """
    if takes_batches(assigner, "assign", "assign_batch"):
        return cast("BatchAssigner", assigner).assign_batch(priors, ground_truth, prior_valid, **inputs)
    name = type(assigner).__name__
    if not hasattr(assigner, "assign"):
        raise TypeError(f"{name} has neither assign nor assign_batch")
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
        instances = InstanceData(priors=own[keep], **own_predictions)
        objects = InstanceData(bboxes=ground_truth.boxes[index][valid], labels=ground_truth.labels[index][valid])
        # By keyword, as some assigners have further arguments between these.
        result = assigner.assign(
            pred_instances=instances,
            gt_instances=objects,
            gt_instances_ignore=InstanceData(bboxes=ground_truth.ignored_boxes[index][ignored]),
            **settings,
        )
        _check_result(name, result, len(instances), len(objects))
        results.append(result)
        kept.append(keep)

    gt_inds = _of_batch([result.gt_inds.long() for result in results], kept, num_priors, IGNORED)
    overlaps = _of_batch([result.max_overlaps for result in results], kept, num_priors, 0.0)
    labels = _of_batch([result.labels.long() for result in results], kept, num_priors, -1)
    metrics = _of_batch([result.assign_metrics for result in results], kept, num_priors, 0.0)
    assert gt_inds is not None
    assert labels is not None
    return BatchAssignResult(gt_inds, overlaps, labels, metrics)


def _check_result(name: str, result: AssignResult, num_priors: int, num_objects: int) -> None:
    """Refuse what a user's assigner may return by mistake, in the name of its class."""
    values = {field: getattr(result, field, None) for field in ("gt_inds", "labels", "max_overlaps", "assign_metrics")}
    if not isinstance(values["gt_inds"], Tensor) or not isinstance(values["labels"], Tensor):
        raise TypeError(
            f"{name}.assign must return an AssignResult with gt_inds and labels, got {type(result).__name__}"
        )
    gt_inds = values["gt_inds"]
    if gt_inds.is_floating_point() or gt_inds.dtype == torch.bool:
        raise TypeError(f"{name}.assign: gt_inds must be integers, got {gt_inds.dtype}")
    for field, value in values.items():
        if value is not None and value.shape != (num_priors,):
            raise ValueError(f"{name}.assign: {field} has shape {tuple(value.shape)}, expected ({num_priors},)")
    # Elsewhere than on a CPU a look at the values would wait for the device.
    if gt_inds.device.type == "cpu" and num_priors > 0:
        low, high = int(gt_inds.min()), int(gt_inds.max())
        if low < IGNORED or high > num_objects:
            raise ValueError(
                f"{name}.assign: gt_inds from {low} to {high}; expected {IGNORED} (ignored), 0 (background) or i + 1 "
                f"for the i-th of {num_objects} objects"
            )


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
