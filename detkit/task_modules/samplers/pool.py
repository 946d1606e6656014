"""What a sampler draws from: its pool, the best of it by a key, and one image as a batch of one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.structures.boxes import get_box_tensor
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import IGNORED, AssignResult, BatchAssignResult
from detkit.task_modules.assigners.overlap_rules import EXCLUDED
from detkit.task_modules.samplers.sampling_result import BatchSamplingResult, SamplingResult

__all__ = ["Pool", "batch_of_one", "expand_priors", "image_result", "make_pool", "rank_within", "take_best"]


@dataclass
class Pool:
    """The assigned priors of N images; objects added as proposals come first.

    Attributes:
        gt_inds: (N, A) int64, ``i + 1`` for the i-th object, 0 background, -1 ignored.
        labels: (N, A) int64, -1 where there is no object.
        max_overlaps: (N, A), or None where the assigner has no overlaps.
        priors: (N, A, 4), or None where none were given.
        is_gt: (N, A) bool, which priors are objects; None where none were added.
        inputs: What the head hands to its sampler besides, such as ``feats``.
    """

    gt_inds: Tensor
    labels: Tensor
    max_overlaps: Tensor | None = None
    priors: Tensor | None = None
    is_gt: Tensor | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    _made: dict[Hashable, Tensor] = field(default_factory=dict)

    def once(self, name: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` returned when first called under this name."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def uniform(self) -> Tensor:
        """One random number in [0, 1) per prior (N, A), from the device's default generator."""
        return self.once("uniform", lambda: torch.rand(self.gt_inds.shape[:2], device=self.gt_inds.device))

    def result(self, positive: Tensor, negative: Tensor, avg_factor: Tensor) -> BatchSamplingResult:
        """The pool with what was drawn from it."""
        return BatchSamplingResult(positive, negative, avg_factor, self.priors, self.gt_inds, self.labels, self.is_gt)


def make_pool(
    sampler: Any,
    assign_result: BatchAssignResult,
    priors: Tensor | None,
    ground_truth: GroundTruth | None,
    add_objects: bool,
    inputs: Mapping[str, Any],
) -> Pool:
    """The priors of N images, with their objects in front where these count as proposals.

    Args:
        sampler: Whose pool it is, for messages.
        assign_result: Assignment of the A priors.
        priors: (A, 4), shared by the images, or (N, A, 4).
        ground_truth: Their objects.
        add_objects: Whether the G padded objects are put in front.
        inputs: What else the head hands over.

    Raises:
        ValueError: Objects are to be added, and priors or objects are missing.
    """
    overlaps, own = assign_result.max_overlaps, expand_priors(priors, len(assign_result.gt_inds))
    if not add_objects:
        return Pool(assign_result.gt_inds, assign_result.labels, overlaps, own, None, inputs)
    if own is None or ground_truth is None:
        missing = "priors" if own is None else "ground_truth"
        raise ValueError(
            f"{type(sampler).__name__}: add_gt_as_proposals=True needs {missing}; dense heads set it to False"
        )
    valid = ground_truth.valid
    number = torch.arange(1, valid.shape[1] + 1, device=valid.device)
    is_gt = torch.zeros_like(assign_result.gt_inds, dtype=torch.bool)
    if overlaps is not None:
        perfect = torch.where(valid, 1.0, EXCLUDED).to(overlaps.dtype)
        overlaps = torch.cat([perfect, overlaps], dim=1)
    return Pool(
        gt_inds=torch.cat([torch.where(valid, number, IGNORED), assign_result.gt_inds], dim=1),
        labels=torch.cat([torch.where(valid, ground_truth.labels, -1), assign_result.labels], dim=1),
        max_overlaps=overlaps,
        priors=torch.cat([ground_truth.boxes, own], dim=1),
        is_gt=torch.cat([valid, is_gt], dim=1),
        inputs=inputs,
    )


def expand_priors(priors: Tensor | None, batch_size: int) -> Tensor | None:
    """Priors (A, 4) of all images as those (N, A, 4) of each."""
    return priors.expand(batch_size, *priors.shape) if priors is not None and priors.dim() == 2 else priors


def take_best(candidates: Tensor, keys: Tensor, quota: Tensor, most: int) -> Tensor:
    """Of each image, the ``quota`` candidates with the highest keys, or all where there are no more.

    Args:
        candidates: (N, A) bool.
        keys: (N, A) float.
        quota: (N,) int64.
        most: What no quota exceeds.

    Returns:
        (N, A) bool.
    """
    keys = torch.where(candidates, keys, -torch.inf)
    index = keys.topk(min(most, keys.shape[1]), dim=1).indices
    place = torch.arange(index.shape[1], device=index.device)
    taken = candidates.gather(1, index) & (place < quota.unsqueeze(1))
    return torch.zeros_like(candidates).scatter_(1, index, taken)


def rank_within(groups: Tensor, keys: Tensor) -> Tensor:
    """Rank of each element within its group, 0 for the highest key; of equal ones the earlier is first.

    Args:
        groups: (N, A) int64.
        keys: (N, A).

    Returns:
        (N, A) int64.
    """
    by_key = keys.argsort(dim=1, descending=True, stable=True)
    order = by_key.gather(1, groups.gather(1, by_key).argsort(dim=1, stable=True))
    ordered = groups.gather(1, order)
    place = torch.arange(groups.shape[1], device=groups.device).expand_as(groups)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = torch.where(begins, place, 0).cummax(dim=1).values if groups.shape[1] > 0 else place
    return torch.empty_like(order).scatter_(1, order, place - start)


def batch_of_one(
    assign_result: AssignResult, pred_instances: InstanceData, gt_instances: InstanceData
) -> tuple[BatchAssignResult, Tensor, GroundTruth]:
    """Assignment, priors (1, A, 4) and objects of one image as those of a batch."""
    overlaps = assign_result.max_overlaps
    boxes = get_box_tensor(gt_instances.bboxes).view(1, -1, 4)
    ground_truth = GroundTruth(
        boxes=boxes,
        # Labels of an image without objects may come as floats.
        labels=gt_instances.labels.long().unsqueeze(0),
        valid=torch.ones_like(boxes[..., 0], dtype=torch.bool),
        ignored_boxes=boxes[:, :0],
        ignored_valid=torch.ones_like(boxes[:, :0, 0], dtype=torch.bool),
    )
    batch = BatchAssignResult(
        assign_result.gt_inds.unsqueeze(0),
        None if overlaps is None else overlaps.unsqueeze(0),
        assign_result.labels.unsqueeze(0),
    )
    return batch, torch.atleast_2d(get_box_tensor(pred_instances.priors)).unsqueeze(0), ground_truth


def image_result(sampled: BatchSamplingResult, gt_bboxes: Tensor, neg_inds: Tensor | None = None) -> SamplingResult:
    """A batch of one as the result of its image.

    Args:
        sampled: With priors.
        gt_bboxes: (G, 4) objects of the image.
        neg_inds: Its negatives, where their order matters; else in the order of the priors.
    """
    assert sampled.priors is not None
    assert sampled.gt_inds is not None
    assert sampled.labels is not None
    gt_inds = sampled.gt_inds[0]
    is_gt = torch.zeros_like(sampled.positive) if sampled.is_gt is None else sampled.is_gt
    return SamplingResult(
        pos_inds=sampled.positive[0].nonzero().squeeze(1),
        neg_inds=sampled.negative[0].nonzero().squeeze(1) if neg_inds is None else neg_inds,
        priors=sampled.priors[0],
        gt_bboxes=gt_bboxes,
        assign_result=AssignResult(len(gt_bboxes), gt_inds, None, sampled.labels[0]),
        gt_flags=is_gt[0].byte(),
    )
