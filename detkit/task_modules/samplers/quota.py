"""Samplers that fill a quota: at most so many positives, the rest negatives (R-CNN, section 2.3 of Fast R-CNN,
https://arxiv.org/abs/1504.08083).

They differ in the order in which priors are drawn. That is a function, the *rule*: it gives each candidate a key,
and the highest keys are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import AssignResult, BatchAssignResult
from detkit.task_modules.samplers.pool import Pool, batch_of_one, image_result, make_pool, take_best
from detkit.task_modules.samplers.sampling_result import BatchSamplingResult, SamplingResult

__all__ = ["Quota", "QuotaSampler", "Rule", "draw", "random_rule"]

# Keys (N, A) of the candidates (N, A), of which the quota (N,) is to be drawn from the pool.
Rule = Callable[[Tensor, Tensor, Pool], Tensor]


class Quota(NamedTuple):
    """How many priors of an image are trained on.

    Attributes:
        num: All together.
        pos_fraction: Share of them that may be positive, in [0, 1].
        neg_pos_ub: Negatives per positive, at most; any number where negative.
    """

    num: int
    pos_fraction: float
    neg_pos_ub: float

    @classmethod
    def of(cls, sampler: Any, num: int, pos_fraction: float, neg_pos_ub: float) -> Quota:
        """The quota of a sampler; a ValueError with its name where there is none such."""
        name = type(sampler).__name__
        if not isinstance(num, int) or num < 0:
            raise ValueError(f"{name}: num must be a whole number of at least 0, got {num!r}")
        if not 0 <= pos_fraction <= 1:
            raise ValueError(f"{name}: pos_fraction must be in [0, 1], got {pos_fraction}")
        return cls(num, pos_fraction, neg_pos_ub)

    @property
    def num_positive(self) -> int:
        """Positives, at most."""
        return int(self.num * self.pos_fraction)

    def num_negative(self, num_positive: Tensor) -> Tensor:
        """Negatives (N,), at most, beside so many positives (N,)."""
        left = self.num - num_positive
        if self.neg_pos_ub < 0:
            return left
        # In float64: the bound is rounded down, and 4.2 * 15 is below 63 in float32.
        bound = self.neg_pos_ub * num_positive.clamp(min=1).double()
        return torch.minimum(left, bound.long())


def random_rule(candidates: Tensor, quota: Tensor, pool: Pool) -> Tensor:
    """Every candidate is as likely as any other.

    Positives and negatives may share the numbers, as no prior is both.
    """
    return pool.uniform()


def draw(
    pool: Pool, positive: Tensor, negative: Tensor, quota: Quota, positive_rule: Rule, negative_rule: Rule
) -> BatchSamplingResult:
    """Fill the quota, positives first.

    Args:
        pool: What is drawn from.
        positive: (N, A) bool, candidates.
        negative: (N, A) bool, candidates.
        quota: How many.
        positive_rule: Order of the positives.
        negative_rule: Order of the negatives.
    """
    most = quota.num_positive
    allowed = torch.full(positive.shape[:1], most, device=positive.device)
    positive = take_best(positive, positive_rule(positive, allowed, pool), allowed, most)
    num_positive = positive.sum(dim=1)
    allowed = quota.num_negative(num_positive)
    negative = take_best(negative, negative_rule(negative, allowed, pool), allowed, quota.num)
    num_negative = negative.sum(dim=1)
    avg_factor = (num_positive.clamp(min=1) + num_negative.clamp(min=1)).sum()
    return pool.result(positive, negative, avg_factor)


class QuotaSampler:
    """At most ``num * pos_fraction`` positives of each image, and negatives up to ``num`` priors in all.

    Args:
        num: Priors per image.
        pos_fraction: Share of them that may be positive, in [0, 1].
        neg_pos_ub: Negatives per positive, at most, where at least 0; an image without positives counts as one.
        add_gt_as_proposals: Whether objects are priors of their own, with a perfect overlap.
        positive_rule: Order in which positives are drawn.
        negative_rule: Order in which negatives are drawn.

    Raises:
        ValueError: ``num`` is no whole number or negative, or ``pos_fraction`` no fraction.
    """

    def __init__(
        self,
        num: int,
        pos_fraction: float,
        neg_pos_ub: float,
        add_gt_as_proposals: bool,
        positive_rule: Rule,
        negative_rule: Rule,
    ) -> None:
        self.quota = Quota.of(self, num, pos_fraction, neg_pos_ub)
        self.num = num
        self.pos_fraction = pos_fraction
        self.neg_pos_ub = neg_pos_ub
        self.add_gt_as_proposals = add_gt_as_proposals
        self.positive_rule = positive_rule
        self.negative_rule = negative_rule

    def sample(
        self, assign_result: AssignResult, pred_instances: InstanceData, gt_instances: InstanceData, **kwargs: Any
    ) -> SamplingResult:
        """Sample the priors of one image; indices are in the order of the priors, objects first.

        Args:
            assign_result: Assignment of the A priors; stays as it is.
            pred_instances: With ``priors`` (A, 4).
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            kwargs: What a rule asks for besides, such as ``feats``.
        """
        batch, priors, ground_truth = batch_of_one(assign_result, pred_instances, gt_instances)
        sampled = self.sample_batch(batch, priors, ground_truth, **kwargs)
        return image_result(sampled, gt_instances.bboxes)

    def sample_batch(
        self,
        assign_result: BatchAssignResult,
        priors: Tensor | None = None,
        ground_truth: GroundTruth | None = None,
        **kwargs: Any,
    ) -> BatchSamplingResult:
        """Sample the priors of N images.

        Args:
            assign_result: Assignment of the A priors of each.
            priors: (A, 4) or (N, A, 4); needed where objects are added.
            ground_truth: Their objects; needed where they are added.
            kwargs: What a rule asks for besides, such as ``feats``.

        Raises:
            ValueError: Objects are to be added, and priors or objects are missing.
        """
        pool = make_pool(self, assign_result, priors, ground_truth, self.add_gt_as_proposals, kwargs)
        return draw(pool, pool.gt_inds > 0, pool.gt_inds == 0, self.quota, self.positive_rule, self.negative_rule)
