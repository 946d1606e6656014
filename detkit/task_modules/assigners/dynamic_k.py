"""Matching by cost, as many priors per object as fit it (OTA, https://arxiv.org/abs/2103.14259, 3.3; YOLOX, 2.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detkit.task_modules.assigners.candidates import Chosen
from detkit.task_modules.assigners.chunks import chunk_slices

__all__ = ["match_dynamic_k"]


def match_dynamic_k(
    pairs: Callable[[slice], tuple[Tensor, Tensor]], allowed: Tensor, gt_valid: Tensor, topk: int
) -> Chosen:
    """Give each object its cheapest priors.

    1. An object takes as many priors as its ``topk`` highest IoUs add up to, rounded down, and at least one.
    2. It takes those of least cost.
    3. A prior that several objects take goes to the object, of all, that costs least there.

    Args:
        pairs: Cost and IoU (N, g, A) of a slice of the objects with all priors, in memory of their own.
        allowed: (N, A) bool, priors that may be taken.
        gt_valid: (N, G) bool, objects that are not padding.
        topk: Most priors per object.

    Returns:
        Objects, and their IoU with the prior; -inf where there is none.
    """
    num_images, num_priors = allowed.shape
    k = min(topk, num_priors)
    takes_part = allowed.unsqueeze(1).float()
    # Added, for a fill by a mask of fewer dimensions costs ten times as much.
    penalty = torch.where(allowed, 0.0, torch.inf).unsqueeze(1)
    rank = torch.arange(k, device=allowed.device)
    least = allowed.new_full((num_images, num_priors), torch.inf, dtype=torch.float32)
    cheapest = torch.zeros_like(least, dtype=torch.int64)
    cheapest_iou = torch.zeros_like(least)
    # Per prior: how many objects take it, and the sum of their numbers and IoUs, which tell the one if it is one.
    takers, number, taken_iou = torch.zeros_like(cheapest), torch.zeros_like(cheapest), torch.zeros_like(least)
    for some in chunk_slices(gt_valid.shape[1], num_images * num_priors, allowed.device, least=1):
        cost, iou = pairs(some)
        is_object = gt_valid[:, some].unsqueeze(2)
        cost.add_(penalty).add_(torch.where(is_object, 0.0, torch.inf))
        iou.mul_(takes_part)
        quota = iou.topk(k, dim=2).values.sum(dim=2, keepdim=True).int().clamp(min=1)
        index = cost.topk(k, dim=2, largest=False).indices
        at_index = allowed.unsqueeze(1).expand_as(cost).gather(2, index)
        takes = ((rank < quota) & at_index & is_object).long()
        numbers = torch.arange(some.start + 1, some.stop + 1, device=index.device).view(1, -1, 1)
        flat = index.flatten(1)
        takers = takers.scatter_add(1, flat, takes.flatten(1))
        number = number.scatter_add(1, flat, (takes * numbers).flatten(1))
        taken_iou = taken_iou.scatter_add(1, flat, (iou.gather(2, index) * takes).flatten(1))
        value, row = cost.min(dim=1)
        better = value < least
        cheapest = torch.where(better, row + some.start, cheapest)
        cheapest_iou = torch.where(better, iou.gather(1, row.unsqueeze(1)).squeeze(1), cheapest_iou)
        least = torch.minimum(least, value)
    gt_inds = torch.where(takers > 1, cheapest + 1, number)
    matched_iou = torch.where(takers > 1, cheapest_iou, taken_iou)
    return Chosen(gt_inds, torch.where(takers > 0, matched_iou, -torch.inf))
