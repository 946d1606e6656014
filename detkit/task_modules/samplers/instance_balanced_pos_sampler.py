"""Positives spread over the objects (Libra R-CNN, https://arxiv.org/abs/1904.02701, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.task_modules.samplers.pool import Pool, rank_within
from detkit.task_modules.samplers.quota import QuotaSampler, random_rule

__all__ = ["InstanceBalancedPosSampler", "instance_balanced_rule"]


def instance_balanced_rule(candidates: Tensor, quota: Tensor, pool: Pool) -> Tensor:
    """Keys (N, A): with K objects that have candidates, ``round(quota / K) + 1`` random ones of each come first.

    All others come after them. Too many of the first are drawn from at random, too few filled up with the others.
    """
    objects = torch.where(candidates, pool.gt_inds, 0)
    rank = rank_within(objects, pool.uniform())
    num_objects = ((rank == 0) & candidates).sum(dim=1).clamp(min=1)
    per_object = (quota / num_objects).round() + 1
    first = rank < per_object.unsqueeze(1)
    # Fresh numbers: a high one of the first draw is likelier in an object with many priors.
    return first + torch.rand_like(pool.uniform())


@TASK_UTILS.register_module()
class InstanceBalancedPosSampler(QuotaSampler):
    """About as many positives of each object, and negatives at random.

    MMDetection's fills up with priors it may have drawn already, and then trains on fewer than it could.

    Args:
        num: Priors per image.
        pos_fraction: Share of them that may be positive, in [0, 1].
        neg_pos_ub: Negatives per positive, at most; any number where negative.
        add_gt_as_proposals: Whether objects are priors of their own.
    """

    def __init__(self, num: int, pos_fraction: float, neg_pos_ub: float = -1, add_gt_as_proposals: bool = True) -> None:
        super().__init__(num, pos_fraction, neg_pos_ub, add_gt_as_proposals, instance_balanced_rule, random_rule)
