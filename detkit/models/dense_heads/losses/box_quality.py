"""How well a prior or its predicted box fits an object, and the loss of boxes that count by it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.structures.boxes import bbox2distance, bbox_overlaps, bbox_xyxy_to_cxcywh

__all__ = [
    "box_centers",
    "centerness",
    "centerness_of_anchors",
    "iou_quality",
    "quality_box_loss",
    "weighted_box_loss",
]


def centerness(distances: Tensor) -> Tensor:
    """How central points (...) are in the objects at ``distances`` (..., 4), in [0, 1].

    FCOS, https://arxiv.org/abs/1904.01355, eq. 3. Points outside, as an assigner other than FCOS's may choose them,
    are not central at all.
    """
    left, top, right, bottom = distances.clamp(min=0).unbind(-1)
    # Without the floor, an object without width would be 0 / 0.
    floor = torch.finfo(distances.dtype).tiny
    across = torch.minimum(left, right) / torch.maximum(left, right).clamp(min=floor)
    along = torch.minimum(top, bottom) / torch.maximum(top, bottom).clamp(min=floor)
    return (across * along).sqrt()


def box_centers(boxes: Tensor) -> Tensor:
    """Centres (..., 2) of boxes (..., 4)."""
    return bbox_xyxy_to_cxcywh(boxes)[..., :2]


def centerness_of_anchors(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Centerness (...) of the centres of ``anchors`` (..., 4) in ``boxes`` (..., 4)."""
    return centerness(bbox2distance(box_centers(anchors), boxes))


def iou_quality(predicted: Tensor, wanted: Tensor) -> Tensor:
    """IoU (...) of predicted boxes (..., 4) with those wanted (..., 4), without gradient."""
    return bbox_overlaps(predicted.detach(), wanted, is_aligned=True)


def quality_box_loss(
    loss_bbox: nn.Module, predicted: Tensor, wanted: Tensor, quality: Tensor, least: float = 1.0
) -> Tensor:
    """Box loss in which each prior counts as much as its quality, over the quality of all, of every process.

    Args:
        loss_bbox: Over boxes or their encoding (P, 4).
        predicted: (N, A, 4); may be anything where ``quality`` is 0.
        wanted: (N, A, 4), finite everywhere.
        quality: (N, A) in [0, 1], without gradient.
        least: Least sum of the quality over all processes.

    Returns:
        ().
    """
    return weighted_box_loss(loss_bbox, predicted, wanted, quality, reduce_mean(quality.sum(), least=least))


def weighted_box_loss(
    loss_bbox: nn.Module, predicted: Tensor, wanted: Tensor, weight: Tensor, avg_factor: Tensor
) -> Tensor:
    """Box loss () of priors by weight.

    Args:
        loss_bbox: Over boxes or their encoding (P, 4).
        predicted: (N, A, 4); may be anything where ``weight`` is 0.
        wanted: (N, A, 4), finite everywhere.
        weight: (N, A), without gradient.
        avg_factor: () what the loss is divided by.
    """
    # An infinite prediction times no weight would not be 0, nor would its gradient.
    predicted = torch.where((weight > 0).unsqueeze(-1), predicted, wanted)
    weights = weight.unsqueeze(-1).expand_as(predicted).flatten(0, 1)
    return loss_bbox(predicted.flatten(0, 1), wanted.flatten(0, 1), weights, avg_factor=avg_factor)
