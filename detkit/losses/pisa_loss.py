"""PISA, prime sample attention, Cao et al., https://arxiv.org/abs/1904.04821: ISR-P and the CARL loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from detkit.losses.labels import check_range
from detkit.losses.reduction import weight_reduce_loss
from detkit.structures.boxes import bbox_overlaps
from detkit.structures.precision import full_precision

__all__ = ["carl_loss", "iou_hierarchical_local_rank", "isr_p", "per_sample", "prime_weights"]

Targets = tuple[Tensor, Tensor, Tensor, Tensor]


class _Sampled(Protocol):
    """What :func:`isr_p` reads of the sampling result of an image."""

    num_gts: int
    pos_assigned_gt_inds: Tensor


def iou_hierarchical_local_rank(ious: Tensor, gt_index: Tensor, labels: Tensor) -> Tensor:
    """IoU-HLR, section 4.1: the best sample of every object first, then every second best, and so on.

    Samples of one object are ranked by IoU; those of one class then by that rank, and by IoU among equals.

    Args:
        ious: (P,) IoU of each positive with its object.
        gt_index: (P,) the object, distinct for every object of the batch.
        labels: (P,) the class.

    Returns:
        (P,) int64 rank among the samples of the class, 0 the most important.
    """
    order = ious.argsort(descending=True, stable=True)
    rank_in_object = _rank_in_group(order, gt_index)
    order = order[rank_in_object[order].argsort(stable=True)]
    return _rank_in_group(order, labels)


def _rank_in_group(order: Tensor, group: Tensor) -> Tensor:
    """How many members of its group come before each one.

    Args:
        order: (P,) all indices, first ones first.
        group: (P,) int64.
    """
    order = order[group[order].argsort(stable=True)]
    grouped = group[order]
    place = torch.arange(len(order), device=order.device)
    return torch.empty_like(place).scatter(0, order, place - torch.searchsorted(grouped, grouped))


@torch.no_grad()
def isr_p(
    cls_score: Tensor,
    bbox_pred: Tensor,
    bbox_targets: Targets,
    rois: Tensor,
    sampling_results: Sequence[_Sampled],
    loss_cls: Callable[..., Tensor],
    bbox_coder: Any,
    k: float = 2,
    bias: float = 0,
    num_class: int = 80,
) -> Targets:
    """Importance-based reweighting of positives, section 4.2: what is well localised weighs more.

    The weighted classification loss of the positives stays the same in sum.

    Args:
        cls_score: (N, C) or (N, C + 1), what ``loss_cls`` takes.
        bbox_pred: Offsets (N, 4), or (N, 4 * C) of each class.
        bbox_targets: Labels (N,), label weights (N,), offsets (N, 4) and their weights (N, 4).
        rois: (N, 5) with the image first, or (N, 4).
        sampling_results: Of each image, positives in the order of ``labels``.
        loss_cls: Called with ``reduction_override="none"``; gives (P,) or (P, C).
        bbox_coder: Decodes offsets.
        k: Exponent of the weight, gamma in eq. 3.
        bias: Weight of the least important sample before the exponent, beta in eq. 3.
        num_class: C.

    Returns:
        The targets with new label weights; the given ones are left as they are.

    Raises:
        RuntimeError: As many positives are not among the labels, on the CPU.
    """
    labels, label_weights, offsets, offset_weights = bbox_targets
    # Counts known on the host let the positives be gathered without asking the device how many there are.
    num_pos = sum(len(result.pos_assigned_gt_inds) for result in sampling_results)
    if num_pos == 0:
        return bbox_targets
    positive = (labels >= 0) & (labels < num_class)
    check_range(positive.sum() - num_pos, 1, f"isr_p: labels do not have the {num_pos} positives of sampling_results")
    index = (~positive).to(torch.uint8).argsort(stable=True)[:num_pos]
    pos_labels = labels[index]
    cls_score, pos_pred = full_precision(cls_score[index], _of_class(bbox_pred[index], pos_labels))
    pos_rois = rois[index][:, -4:]
    ious = bbox_overlaps(
        bbox_coder.decode(pos_rois, pos_pred), bbox_coder.decode(pos_rois, offsets[index]), is_aligned=True
    )
    objects, old = _distinct_objects(sampling_results), label_weights[index].to(ious.dtype)
    loss = per_sample(loss_cls(cls_score, pos_labels, reduction_override="none"))
    new = prime_weights(ious, objects, pos_labels, torch.ones_like(positive[index]), old, loss, k, bias)
    return labels, label_weights.scatter(0, index, new.to(label_weights.dtype)), offsets, offset_weights


@torch.no_grad()
def prime_weights(
    ious: Tensor,
    gt_index: Tensor,
    labels: Tensor,
    positive: Tensor,
    old: Tensor,
    loss: Tensor,
    k: float = 2,
    bias: float = 0,
) -> Tensor:
    """Label weights of positives by their importance, eq. 2 and 3; in sum their loss stays what it was, eq. 4.

    Args:
        ious: (R,) IoU of each prediction with its object; anything where there is none.
        gt_index: (R,) int64 the object, distinct for every object of the batch.
        labels: (R,) int64 the class.
        positive: (R,) bool.
        old: (R,) their label weights so far.
        loss: (R,) their classification losses, without weights.
        k: Exponent of the weight.
        bias: Weight of the least important before the exponent.

    Returns:
        (R,), the old ones where not positive.
    """
    # What is not positive is ranked too, as of a class and an object of its own.
    labels, gt_index = torch.where(positive, labels, -1), torch.where(positive, gt_index, -1)
    rank = torch.where(positive, iou_hierarchical_local_rank(ious, gt_index, labels), -1)
    num_max = (rank.max() + 1).clamp(min=1) if len(rank) > 0 else 1  # samples of the largest class
    new = torch.where(positive, bias + (1 - bias) * old * (num_max - rank) / num_max, 0.0).pow(k) * positive
    total = (loss * new).sum()
    new = new * torch.where(total > 0, (loss * old * positive).sum() / total, 1.0)
    return torch.where(positive, new, old)


def _distinct_objects(sampling_results: Sequence[_Sampled]) -> Tensor:
    """(P,) index of the object of each positive, counted through all images."""
    objects, count = [], 0
    for result in sampling_results:
        objects.append(result.pos_assigned_gt_inds + count)
        count += result.num_gts
    return torch.cat(objects)


def _of_class(bbox_pred: Tensor, labels: Tensor) -> Tensor:
    """Offsets (N, 4) of the labelled class, of (N, 4) or (N, 4 * C)."""
    if bbox_pred.shape[-1] == 4:
        return bbox_pred
    return bbox_pred.unflatten(-1, (-1, 4)).gather(1, labels.view(-1, 1, 1).expand(-1, 1, 4)).squeeze(1)


def per_sample(loss: Tensor) -> Tensor:
    """Loss (R,) of samples, of one value each or of several (R, D)."""
    return loss.sum(dim=1) if loss.dim() > 1 else loss


def carl_loss(
    cls_score: Tensor,
    labels: Tensor,
    bbox_pred: Tensor,
    bbox_targets: Tensor,
    loss_bbox: Callable[..., Tensor],
    k: float = 1,
    bias: float = 0.2,
    avg_factor: float | Tensor | None = None,
    sigmoid: bool = False,
    num_class: int = 80,
) -> dict[str, Tensor]:
    """Classification-aware regression loss, section 4.3: boxes of well classified samples weigh more.

    The gradient flows into the scores too, so that a score grows where the box is good.

    Args:
        cls_score: Logits (N, C) or (N, C + 1).
        labels: (N,), positive in [0, C).
        bbox_pred: (N, 4), or (N, 4 * C) of each class.
        bbox_targets: (N, 4).
        loss_bbox: Called with ``reduction_override="none"``; gives (N, 4) or (N,).
        k: Exponent of the weight.
        bias: Weight of a sample with score 0 before the exponent.
        avg_factor: What the loss is divided by; None is N.
        sigmoid: Scores are sigmoids instead of a softmax.
        num_class: C.

    Returns:
        ``loss_carl`` (1,); a zero with gradient where there is no positive.
    """
    cls_score, bbox_pred, bbox_targets = full_precision(cls_score, bbox_pred, bbox_targets)
    positive = (labels >= 0) & (labels < num_class)
    own = torch.where(positive, labels, 0)
    scores = (cls_score.sigmoid() if sigmoid else cls_score.softmax(dim=-1)).gather(1, own.unsqueeze(1)).squeeze(1)
    # The inner choice keeps infinite slopes of a root away from the gradient.
    weight = torch.where(positive, bias + (1 - bias) * scores, 1).pow(k) * positive
    weight = weight * positive.sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
    target = torch.where(positive.unsqueeze(1), bbox_targets, 0)
    pred = torch.where(positive.unsqueeze(1), _of_class(bbox_pred, own), target)
    loss = per_sample(loss_bbox(pred, target, reduction_override="none"))
    avg_factor = len(labels) if avg_factor is None else avg_factor
    return {"loss_carl": weight_reduce_loss(loss, weight, "mean", avg_factor).reshape(1)}
