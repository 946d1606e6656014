"""Suppression of boxes that come with a score for every class, by MMDetection's names and arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from detkit.ops.nms import batched_nms
from detkit.ops.soft_nms import overlaps

__all__ = ["fast_nms", "multiclass_nms"]


def multiclass_nms(
    multi_bboxes: Tensor,
    multi_scores: Tensor,
    score_thr: float,
    nms_cfg: Mapping[str, Any] | None,
    max_num: int = -1,
    score_factors: Tensor | None = None,
    return_inds: bool = False,
    box_dim: int = 4,
) -> tuple[Tensor, ...]:
    """Suppress the (box, class) pairs above a threshold.

    Args:
        multi_bboxes: (D, 4), or (D, C * 4) with a box for each class.
        multi_scores: (D, C + 1), the background last.
        score_thr: Pairs must score more than this.
        nms_cfg: See :func:`batched_nms`.
        max_num: Pairs kept; all where not positive.
        score_factors: (D,), multiplied to what the threshold has left.
        return_inds: Return indices too.
        box_dim: Numbers of a box.

    Returns:
        Boxes with scores (K, 5), best first, labels (K,), and, where asked for, indices (K,) in the D * C pairs.
    """
    scores = multi_scores[:, :-1]
    num_classes = scores.shape[1]
    above = scores > score_thr
    box, label = above.nonzero(as_tuple=True)
    chosen = scores[box, label]
    if score_factors is not None:
        chosen = chosen * score_factors.reshape(-1)[box]
    per_class = multi_bboxes.shape[1] > box_dim
    boxes = multi_bboxes.unflatten(1, (num_classes, box_dim))[box, label] if per_class else multi_bboxes[box]
    dets, keep = batched_nms(boxes, chosen, label, nms_cfg)
    if max_num > 0:
        dets, keep = dets[:max_num], keep[:max_num]
    found = (dets, label[keep])
    return (*found, (box * num_classes + label)[keep]) if return_inds else found


def fast_nms(
    multi_bboxes: Tensor,
    multi_scores: Tensor,
    multi_coeffs: Tensor,
    score_thr: float,
    iou_thr: float,
    top_k: int,
    max_num: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppression by every better box of the class, kept or not: YOLACT, https://arxiv.org/abs/1904.02689.

    Args:
        multi_bboxes: (D, 4).
        multi_scores: (D, C + 1), the background last.
        multi_coeffs: (D, M) mask coefficients.
        score_thr: Boxes must score more than this.
        iou_thr: IoU above which a better box suppresses.
        top_k: Boxes of each class looked at.
        max_num: Boxes kept; all where not positive.

    Returns:
        Boxes with scores (K, 5), best first, labels (K,) and coefficients (K, M).
    """
    scores, index = multi_scores[:, :-1].t().sort(dim=1, descending=True, stable=True)
    scores, index = scores[:, :top_k], index[:, :top_k]  # (C, K)
    boxes = multi_bboxes[index]
    # The first row stands for no better box; it is all there is where no box is.
    overlap = overlaps(boxes, boxes).triu(diagonal=1)
    worst = torch.cat([overlap.new_zeros(len(overlap), 1, overlap.shape[2]), overlap], dim=1).amax(dim=1)
    label, place = ((worst <= iou_thr) & (scores > score_thr)).nonzero(as_tuple=True)
    values, order = scores[label, place].sort(descending=True, stable=True)
    if max_num > 0:
        values, order = values[:max_num], order[:max_num]
    label, place = label[order], place[order]
    dets = torch.cat([boxes[label, place], values[:, None]], dim=1)
    return dets, label, multi_coeffs[index[label, place]]
