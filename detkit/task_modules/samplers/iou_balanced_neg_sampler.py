"""Negatives spread over their overlaps (Libra R-CNN, https://arxiv.org/abs/1904.02701, section 3.1)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.task_modules.samplers.pool import Pool, rank_within, take_best
from detkit.task_modules.samplers.quota import QuotaSampler, random_rule

__all__ = ["IoUBalancedNegSampler", "iou_balanced_rule"]


def iou_balanced_rule(
    candidates: Tensor,
    quota: Tensor,
    pool: Pool,
    floor_thr: float,
    floor_fraction: float,
    num_bins: int,
    most: int,
) -> Tensor:
    """Keys (N, A) by which hard negatives, easy ones and the rest are drawn, in this order.

    1. Of the negatives above the floor, ``quota * (1 - floor_fraction)``: as many of each of ``num_bins`` equal
        intervals of overlap between the floor and the image's highest overlap, filled up at random.
    2. Of those below the floor, at random.
    3. Where the quota is not filled yet, any others.

    Args:
        candidates: (N, A) bool.
        quota: (N,) int64.
        pool: With overlaps.
        floor_thr: Overlap from which a negative is hard; at 0 those with any overlap are, below 0 all.
        floor_fraction: Share of the easy ones, in [0, 1].
        num_bins: Intervals.
        most: What no quota exceeds.
    """
    if pool.max_overlaps is None:
        raise ValueError("IoUBalancedNegSampler: the assigner has no max_overlaps to balance")
    overlaps = pool.max_overlaps
    hard = candidates & (overlaps >= floor_thr if floor_thr > 0 else overlaps > floor_thr)
    easy = candidates & (_below(overlaps, floor_thr) if floor_thr >= 0 else torch.zeros_like(candidates))
    wanted = (quota.double() * (1 - floor_fraction)).long()
    first = torch.zeros_like(candidates)
    if num_bins > 1 and overlaps.shape[1] > 0:
        # Candidates that are not hard, or in no interval, form groups of their own.
        floor = max(floor_thr, 0.0)
        bins = _interval(overlaps, floor, num_bins)
        group = torch.where(hard & (overlaps >= floor) & (bins < num_bins), bins, num_bins)
        rank = rank_within(group, pool.uniform())
        first = (group < num_bins) & (rank < (wanted // num_bins).unsqueeze(1))
    # Fresh numbers, as the others decided who is first of an interval.
    keys = torch.rand_like(pool.uniform())
    hard = take_best(hard, first + keys, wanted, most)
    return 2 * hard + 1 * easy + keys


def _below(overlaps: Tensor, floor_thr: float) -> Tensor:
    return (overlaps >= 0) & (overlaps < floor_thr) if floor_thr > 0 else overlaps == 0


def _interval(overlaps: Tensor, floor: float, num_bins: int) -> Tensor:
    """Which of the equal intervals from the floor to the highest overlap (N, A) an overlap is in, from 0.

    The highest itself is in none, ``num_bins``; what is below the floor is in the first.
    """
    highest = overlaps.amax(dim=1, keepdim=True).double()
    step = (highest - floor) / num_bins
    # Bounds as they compare with overlaps of this precision.
    edges = floor + torch.arange(1, num_bins + 1, device=overlaps.device) * step
    return (overlaps.unsqueeze(-1) >= edges.to(overlaps.dtype).unsqueeze(1)).sum(dim=-1)


@TASK_UTILS.register_module()
class IoUBalancedNegSampler(QuotaSampler):
    """Positives at random, and negatives from all intervals of overlap.

    MMDetection's changes a ``floor_thr`` of -1 to 0 at its first call; this one stays as it was configured.

    Args:
        num: Priors per image.
        pos_fraction: Share of them that may be positive, in [0, 1].
        floor_thr: Overlap from which negatives are balanced; -1 is all.
        floor_fraction: Share of the negatives drawn from below the floor, in [0, 1].
        num_bins: Intervals of overlap.
        neg_pos_ub: Negatives per positive, at most; any number where negative.
        add_gt_as_proposals: Whether objects are priors of their own.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        num: int,
        pos_fraction: float,
        floor_thr: float = -1,
        floor_fraction: float = 0,
        num_bins: int = 3,
        neg_pos_ub: float = -1,
        add_gt_as_proposals: bool = True,
    ) -> None:
        if floor_thr < 0 and floor_thr != -1:
            raise ValueError(f"IoUBalancedNegSampler: floor_thr must be at least 0, or -1 for none, got {floor_thr}")
        if not 0 <= floor_fraction <= 1:
            raise ValueError(f"IoUBalancedNegSampler: floor_fraction must be in [0, 1], got {floor_fraction}")
        if num_bins < 1:
            raise ValueError(f"IoUBalancedNegSampler: num_bins must be at least 1, got {num_bins}")
        self.floor_thr = floor_thr
        self.floor_fraction = floor_fraction
        self.num_bins = num_bins
        rule = partial(
            iou_balanced_rule, floor_thr=floor_thr, floor_fraction=floor_fraction, num_bins=num_bins, most=num
        )
        super().__init__(num, pos_fraction, neg_pos_ub, add_gt_as_proposals, random_rule, rule)
