"""Which anchors of an object are positive, by how well they already predict it (PAA, 3.2).

Kim and Lee, https://arxiv.org/abs/2007.08103. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.models.dense_heads.targets.gaussian_mixture import fit_two_gaussians, log_likelihoods

__all__ = ["lowest_of_each_object", "paa_positives"]

# A mixture is fitted to at least as many anchors; an object with fewer has no positives.
LEAST_CANDIDATES = 2


@torch.no_grad()
def paa_positives(
    losses: Tensor, gt_inds: Tensor, num_gts: int, level_sizes: Sequence[int], topk: int, tied: bool = False
) -> Tensor:
    """Positives among the anchors that a first assignment gave to objects.

    1. Of each level, the ``topk`` anchors of lowest loss are an object's candidates.
    2. Two normal distributions are fitted to their losses.
    3. Of the candidates that are likelier of the one of low losses, those up to the likeliest are positive.

    Args:
        losses: (N, A), of anchors with an object; one that is not finite is no candidate.
        gt_inds: (N, A) int64, ``i + 1`` for the i-th object, else 0.
        num_gts: G, the largest number of objects of an image.
        level_sizes: Number of anchors of each level; their sum is A.
        topk: Candidates of each level.
        tied: Whether both distributions have one variance.

    Returns:
        (N, A) bool.
    """
    positive = torch.zeros_like(gt_inds, dtype=torch.bool)
    if num_gts == 0:
        return positive
    found, start = [], 0
    for own, owners in zip(losses.split(level_sizes, dim=1), gt_inds.split(level_sizes, dim=1), strict=True):
        index, lowest = lowest_of_each_object(own, owners, num_gts, topk)
        found.append((index + start, lowest))
        start += own.shape[1]
    lowest, order = torch.cat([pair[1] for pair in found], dim=2).sort(dim=2, stable=True)  # (N, G, K)
    index = torch.cat([pair[0] for pair in found], dim=2).gather(2, order)
    valid = lowest.isfinite()
    values = torch.where(valid, lowest, 0.0).flatten(0, 1)
    parts = log_likelihoods(values, fit_two_gaussians(values, valid.flatten(0, 1), tied)).unflatten(0, lowest.shape[:2])
    first = valid & (parts[..., 0] >= parts[..., 1]) & (valid.sum(dim=2, keepdim=True) >= LEAST_CANDIDATES)
    likeliest = torch.where(first, parts.logsumexp(dim=-1), -torch.inf).argmax(dim=2, keepdim=True)
    chosen = first & (torch.arange(lowest.shape[2], device=lowest.device) <= likeliest)
    # Candidates that were not chosen, or do not exist, go to a place behind the last anchor.
    places = torch.where(chosen, index, losses.shape[1]).flatten(1)
    behind = torch.zeros_like(positive[:, :1])
    return torch.cat([positive, behind], dim=1).scatter(1, places, True)[:, :-1]


def lowest_of_each_object(losses: Tensor, gt_inds: Tensor, num_gts: int, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` anchors of lowest loss of each object, and their losses (N, G, count).

    Sorted by object and loss, instead of a table of objects and anchors.

    Args:
        losses: (N, A).
        gt_inds: (N, A) int64, ``i + 1`` for the i-th object, else 0.
        num_gts: G.
        count: Anchors of each object; where it has fewer, the loss is infinite and the index without meaning.
    """
    order = losses.argsort(dim=1, stable=True)
    by_object = gt_inds.gather(1, order).argsort(dim=1, stable=True)
    order = order.gather(1, by_object)
    owner = gt_inds.gather(1, order)
    rank = torch.arange(order.shape[1], device=order.device) - torch.searchsorted(owner, owner)
    table = num_gts * count
    place = torch.where((owner > 0) & (rank < count), (owner - 1) * count + rank, table)
    index = order.new_zeros(len(order), table + 1).scatter_(1, place, order)
    lowest = losses.new_full((len(order), table + 1), torch.inf).scatter_(1, place, losses.gather(1, order))
    shape = (num_gts, count)
    return index[:, :table].unflatten(1, shape), lowest[:, :table].unflatten(1, shape)
