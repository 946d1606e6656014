"""Sampling where one proposal predicts several objects (CrowdDet, Chu et al., https://arxiv.org/abs/2003.09163)."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import get_box_tensor
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import AssignResult, BatchAssignResult
from detkit.task_modules.samplers.pool import Pool, expand_priors
from detkit.task_modules.samplers.quota import Quota, draw, random_rule
from detkit.task_modules.samplers.sampling_result import BatchSamplingResult, SamplingResult

__all__ = ["MultiInsRandomSampler", "MultiInstanceSamplingResult"]


class MultiInstanceSamplingResult(SamplingResult):
    """Sampled priors of one image with K objects each.

    Args:
        pos_inds: (P,) indices of positive priors.
        neg_inds: (Q,) indices of negative priors.
        priors: (A, 4), objects and ignored regions last.
        gt_and_ignore_bboxes: (G, 4) objects, then ignored regions.
        assign_result: Its ``gt_inds`` (A, K) are indices of these boxes, from 0; it stays as it is.
        gt_flags: (A,) uint8, 1 where a prior is one of these boxes.
        avg_factor_with_neg: Whether negatives count in ``avg_factor``.

    Attributes:
        neg_assigned_gt_inds: (Q, K); the ``pos_...`` attributes have a dimension K as well.
        neg_gt_labels: (Q, K).
        neg_gt_bboxes: (Q, K, 4); (0, 4) where there are no boxes.
    """

    def __init__(
        self,
        pos_inds: Tensor,
        neg_inds: Tensor,
        priors: Tensor,
        gt_and_ignore_bboxes: Tensor,
        assign_result: AssignResult,
        gt_flags: Tensor,
        avg_factor_with_neg: bool = True,
    ) -> None:
        from_one = AssignResult(
            assign_result.num_gts, assign_result.gt_inds + 1, assign_result.max_overlaps, assign_result.labels
        )
        super().__init__(pos_inds, neg_inds, priors, gt_and_ignore_bboxes, from_one, gt_flags, avg_factor_with_neg)
        boxes = gt_and_ignore_bboxes.view(-1, 4)
        self.neg_assigned_gt_inds = assign_result.gt_inds[neg_inds]
        self.neg_gt_labels = assign_result.labels[neg_inds]
        self.neg_gt_bboxes = boxes[self.neg_assigned_gt_inds] if len(boxes) > 0 else boxes


@TASK_UTILS.register_module()
class MultiInsRandomSampler:
    """Positives and negatives at random, by the first of the K objects a prior is assigned to.

    Goes with ``MultiInstanceAssigner``, whose result counts the objects and ignored regions as priors, the last.

    Args:
        num: Priors per image.
        pos_fraction: Share of them that may be positive, in [0, 1].
        neg_pos_ub: Negatives per positive, at most; any number where negative.
        add_gt_as_proposals: Accepted for MMDetection's configs; the assigner has added them.
    """

    only_for = "samples proposals with several objects to each"

    def __init__(self, num: int, pos_fraction: float, neg_pos_ub: float = -1, add_gt_as_proposals: bool = True) -> None:
        self.quota = Quota.of(self, num, pos_fraction, neg_pos_ub)
        self.num = num
        self.pos_fraction = pos_fraction
        self.neg_pos_ub = neg_pos_ub
        self.add_gt_as_proposals = add_gt_as_proposals

    def sample(
        self, assign_result: AssignResult, pred_instances: InstanceData, gt_instances: InstanceData, **kwargs: Any
    ) -> MultiInstanceSamplingResult:
        """Sample the priors of one image.

        Args:
            assign_result: ``gt_inds`` and ``labels`` (A + G + I, K), or (0, K): nothing is sampled then.
            pred_instances: With ``priors`` (A, 4 or more).
            gt_instances: With ``bboxes`` (G, 4).
            kwargs: ``batch_gt_instances_ignore`` with ``bboxes`` (I, 4).

        Raises:
            ValueError: The ignored regions are missing, or the assignment is of another number of priors.
        """
        if "batch_gt_instances_ignore" not in kwargs:
            raise ValueError("MultiInsRandomSampler: sample needs batch_gt_instances_ignore")
        own = gt_instances.bboxes, kwargs["batch_gt_instances_ignore"].bboxes
        boxes = torch.cat([get_box_tensor(some).view(-1, 4) for some in own])
        priors = torch.cat([torch.atleast_2d(get_box_tensor(pred_instances.priors))[:, :4], boxes])
        if len(assign_result.gt_inds) > 0:
            _check_count(len(assign_result.gt_inds), len(priors))
        is_box = torch.zeros(len(priors), dtype=torch.bool, device=priors.device)
        is_box[len(priors) - len(boxes) :] = True
        labels = assign_result.labels[None]
        pool = Pool(assign_result.gt_inds[None], labels, None, priors[None], is_box[None])
        sampled = self._draw(pool)
        return MultiInstanceSamplingResult(
            pos_inds=sampled.positive[0].nonzero().squeeze(1),
            neg_inds=sampled.negative[0].nonzero().squeeze(1),
            priors=priors,
            gt_and_ignore_bboxes=boxes,
            assign_result=assign_result,
            gt_flags=is_box.byte(),
        )

    def sample_batch(
        self,
        assign_result: BatchAssignResult,
        priors: Tensor | None = None,
        ground_truth: GroundTruth | None = None,
        **kwargs: Any,
    ) -> BatchSamplingResult:
        """Sample the priors of N images.

        Args:
            assign_result: ``gt_inds`` and ``labels`` (N, A + G + I, K); labels of padding are -1.
            priors: (A, 4) or (N, A, 4).
            ground_truth: Their G padded objects and I padded ignored regions.
            kwargs: What other samplers use; unused.

        Raises:
            ValueError: Priors or objects are missing, or the assignment is of another number of priors.
        """
        if priors is None or ground_truth is None:
            raise ValueError("MultiInsRandomSampler: sample_batch needs priors and ground_truth")
        own = expand_priors(priors, len(assign_result.gt_inds))
        assert own is not None
        boxes = torch.cat([own[..., :4], ground_truth.boxes, ground_truth.ignored_boxes], dim=1)
        _check_count(assign_result.gt_inds.shape[1], boxes.shape[1])
        is_box = torch.zeros_like(own[..., 0], dtype=torch.bool)
        is_box = torch.cat([is_box, ground_truth.valid, ground_truth.ignored_valid], dim=1)
        return self._draw(Pool(assign_result.gt_inds, assign_result.labels, None, boxes, is_box))

    def _draw(self, pool: Pool) -> BatchSamplingResult:
        label = pool.labels[..., 0]
        return draw(pool, label > 0, label == 0, self.quota, random_rule, random_rule)


def _check_count(assigned: int, found: int) -> None:
    if assigned != found:
        raise ValueError(
            f"MultiInsRandomSampler: {assigned} assigned priors, but {found} priors, objects and ignored regions"
        )
