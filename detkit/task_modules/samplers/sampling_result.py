"""Which priors of an image, or of a batch, are trained on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detkit.task_modules.assigners.assign_result import AssignResult

__all__ = ["BatchSamplingResult", "SamplingResult"]


class SamplingResult:
    """Sampled priors of one image.

    Args:
        pos_inds: (P,) indices of positive priors.
        neg_inds: (Q,) indices of negative priors.
        priors: (A, 4).
        gt_bboxes: (G, 4).
        assign_result: Assignment of the priors.
        gt_flags: (A,) uint8, 1 where a prior is an object that was added as a proposal.
        avg_factor_with_neg: Whether negatives count in ``avg_factor``.
    """

    def __init__(
        self,
        pos_inds: Tensor,
        neg_inds: Tensor,
        priors: Tensor,
        gt_bboxes: Tensor,
        assign_result: AssignResult,
        gt_flags: Tensor,
        avg_factor_with_neg: bool = True,
    ) -> None:
        self.pos_inds = pos_inds
        self.neg_inds = neg_inds
        self.num_pos = max(pos_inds.numel(), 1)
        self.num_neg = max(neg_inds.numel(), 1)
        self.avg_factor_with_neg = avg_factor_with_neg
        self.avg_factor = self.num_pos + self.num_neg if avg_factor_with_neg else self.num_pos
        self.pos_priors = priors[pos_inds]
        self.neg_priors = priors[neg_inds]
        self.pos_is_gt = gt_flags[pos_inds]
        self.num_gts = gt_bboxes.shape[0]
        self.pos_assigned_gt_inds = assign_result.gt_inds[pos_inds] - 1
        self.pos_gt_labels = assign_result.labels[pos_inds]
        self.pos_gt_bboxes = gt_bboxes.view(-1, 4)[self.pos_assigned_gt_inds]

    @property
    def priors(self) -> Tensor:
        """Positive, then negative priors (P + Q, 4)."""
        return torch.cat([self.pos_priors, self.neg_priors])


class BatchSamplingResult(NamedTuple):
    """Sampled priors of N images, as masks.

    Attributes:
        positive: (N, A) bool.
        negative: (N, A) bool.
        avg_factor: () what the losses are divided by: per image at least 1, summed.
    """

    positive: Tensor
    negative: Tensor
    avg_factor: Tensor
