"""Sampling of a whole batch, whatever the sampler offers."""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.signature import takes_batches
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import AssignResult, BatchAssignResult
from detkit.task_modules.samplers.pool import expand_priors, make_pool
from detkit.task_modules.samplers.sampling_result import BatchSamplingResult, SamplingResult

__all__ = ["BatchSampler", "Sampler", "sample_batch"]


class Sampler(Protocol):
    """The per-image contract; all that a user's own sampler needs."""

    def sample(
        self, assign_result: AssignResult, pred_instances: InstanceData, gt_instances: InstanceData, **kwargs: Any
    ) -> SamplingResult:
        """Choose among the assigned priors of one image."""


@runtime_checkable
class BatchSampler(Protocol):
    """The batched contract; detkit's own samplers have it."""

    def sample_batch(
        self,
        assign_result: BatchAssignResult,
        priors: Tensor | None = None,
        ground_truth: GroundTruth | None = None,
        **kwargs: Any,
    ) -> BatchSamplingResult:
        """Choose among the assigned priors of N images."""


def sample_batch(
    sampler: Sampler | BatchSampler,
    assign_result: BatchAssignResult,
    priors: Tensor,
    ground_truth: GroundTruth,
    **kwargs: Any,
) -> BatchSamplingResult:
    """Sample the priors of N images, image by image if the sampler knows no batches or overrides ``sample`` alone.

    Args:
        sampler: Any sampler. One of single images may add the objects as proposals, in front of the priors and by
            ``assign_result.add_gt_``.
        assign_result: Assignment of the A priors of each.
        priors: (A, 4), shared by the images, or (N, A, 4).
        ground_truth: Objects of the N images.
        kwargs: What this sampler asks for besides. ``feats``, levels (N, C, H, W), reach a sampler of single images
            as levels (1, C, H, W); all else does as it is.

    Raises:
        TypeError: The sampler has neither form, or ``sample`` returns no SamplingResult of indices.
        ValueError: An index is beyond the priors (looked at on a CPU only).
    """
    if takes_batches(sampler, "sample", "sample_batch"):
        return cast("BatchSampler", sampler).sample_batch(assign_result, priors, ground_truth, **kwargs)
    name = type(sampler).__name__
    if not hasattr(sampler, "sample"):
        raise TypeError(f"{name} has neither sample nor sample_batch")
    own = expand_priors(priors, len(assign_result.gt_inds))
    assert own is not None
    results, added = [], []
    for index, valid in enumerate(ground_truth.valid):
        boxes = ground_truth.boxes[index][valid]
        assigned = assign_result.image(index, len(boxes))
        objects = InstanceData(bboxes=boxes, labels=ground_truth.labels[index][valid])
        instances = InstanceData(priors=own[index])
        result = sampler.sample(assigned, instances, objects, **_of_image(kwargs, index))
        # A built-in adds the objects to a copy of the assignment, so its result says how many priors there are.
        num_priors = max(assigned.num_preds, getattr(result, "num_priors", 0))
        _check_result(name, result, num_priors)
        results.append(result)
        added.append(num_priors - own.shape[1])
    pool = make_pool(sampler, assign_result, own, ground_truth, any(added), kwargs)
    # Where one image has its objects in front, all have G of them: what follows the objects moves on.
    num_padded = pool.gt_inds.shape[1] - own.shape[1]
    positive = torch.zeros_like(pool.gt_inds, dtype=torch.bool)
    negative = torch.zeros_like(positive)
    for index, (result, count) in enumerate(zip(results, added, strict=True)):
        for mask, inds in ((positive, result.pos_inds), (negative, result.neg_inds)):
            mask[index, torch.where(inds < count, inds, inds - count + num_padded)] = True
    avg_factor = torch.as_tensor(sum(result.avg_factor for result in results), device=positive.device)
    return pool.result(positive, negative, avg_factor)


def _check_result(name: str, result: SamplingResult, num_priors: int) -> None:
    """Refuse what a user's sampler may return by mistake, in the name of its class."""
    for field in ("pos_inds", "neg_inds"):
        inds = getattr(result, field, None)
        if not isinstance(inds, Tensor):
            raise TypeError(
                f"{name}.sample must return a SamplingResult with pos_inds and neg_inds, got {type(result).__name__}"
            )
        if inds.dtype not in (torch.int64, torch.int32) or inds.dim() != 1:
            raise TypeError(
                f"{name}.sample: {field} must be indices, 1-d and int64, got {inds.dtype} {tuple(inds.shape)}; "
                "mask.nonzero().squeeze(1) makes indices of a mask"
            )
        # Elsewhere than on a CPU a look at the values would wait for the device.
        if inds.device.type == "cpu" and len(inds) > 0 and not 0 <= int(inds.min()) <= int(inds.max()) < num_priors:
            raise ValueError(
                f"{name}.sample: {field} from {int(inds.min())} to {int(inds.max())}, but there are {num_priors} priors"
            )


def _of_image(inputs: dict[str, Any], index: int) -> dict[str, Any]:
    feats = inputs.get("feats")
    own = None if feats is None else [level[index : index + 1] for level in feats]
    return inputs if own is None else {**inputs, "feats": own}
