"""Sampling of a whole batch, whatever the sampler offers."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from mmengine.structures import InstanceData
from torch import Tensor

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
    """Sample the priors of N images, image by image if the sampler knows no batches.

    Args:
        sampler: Any sampler. One without ``sample_batch`` may add the objects as proposals, in front of the
            priors and by ``assign_result.add_gt_``.
        assign_result: Assignment of the A priors of each.
        priors: (A, 4), shared by the images, or (N, A, 4).
        ground_truth: Objects of the N images.
        kwargs: What this sampler asks for besides. ``feats``, levels (N, C, H, W), reach a sampler of single images
            as levels (1, C, H, W); all else does as it is.
    """
    if isinstance(sampler, BatchSampler):
        return sampler.sample_batch(assign_result, priors, ground_truth, **kwargs)
    own = expand_priors(priors, len(assign_result.gt_inds))
    assert own is not None
    results, added = [], []
    for index, valid in enumerate(ground_truth.valid):
        boxes = ground_truth.boxes[index][valid]
        assigned = assign_result.image(index, len(boxes))
        objects = InstanceData(bboxes=boxes, labels=ground_truth.labels[index][valid])
        instances = InstanceData(priors=own[index])
        results.append(sampler.sample(assigned, instances, objects, **_of_image(kwargs, index)))
        added.append(assigned.num_preds - own.shape[1])
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


def _of_image(inputs: dict[str, Any], index: int) -> dict[str, Any]:
    feats = inputs.get("feats")
    own = None if feats is None else [level[index : index + 1] for level in feats]
    return inputs if own is None else {**inputs, "feats": own}
