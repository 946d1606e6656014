"""Boxes of YOLOX around the corner of their cell, and its losses (https://arxiv.org/abs/2107.08430)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.prediction.log_size import exp_size
from detkit.models.dense_heads.targets.point_targets import PointTargets
from detkit.structures.boxes import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh

__all__ = ["decode_boxes", "encode_boxes", "yolox_losses"]

# Least size in strides whose logarithm is learnt.
EPS = 1e-8


def decode_boxes(points: Tensor, encoded: Tensor) -> Tensor:
    """Boxes (..., 4) of their centre and log size, in strides.

    Args:
        points: (A, 4) x, y and the strides of both.
        encoded: (..., A, 4) centre from the point, log width and log height.
    """
    centre = encoded[..., :2] * points[:, 2:] + points[:, :2]
    return bbox_cxcywh_to_xyxy(torch.cat([centre, exp_size(encoded[..., 2:]) * points[:, 2:]], dim=-1))


def encode_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Centre and log size (..., A, 4) of ``boxes`` (..., A, 4); the inverse of :func:`decode_boxes`."""
    centre, size = bbox_xyxy_to_cxcywh(boxes).split(2, dim=-1)
    return torch.cat([(centre - points[:, :2]) / points[:, 2:], (size / points[:, 2:] + EPS).log()], dim=-1)


def yolox_losses(
    logits: Tensor,
    encoded: Tensor,
    objectness: Tensor,
    points: Tensor,
    targets: PointTargets,
    loss_cls: nn.Module,
    loss_bbox: nn.Module,
    loss_obj: nn.Module,
    loss_l1: nn.Module | None,
) -> dict[str, Tensor]:
    """Losses of all points of all images, summed and divided by the number of positives of every process.

    Args:
        logits: (N, A, C).
        encoded: (N, A, 4), see :func:`decode_boxes`.
        objectness: (N, A) logits.
        points: (A, 4) x, y and the strides of both.
        targets: Of these points; a positive's class is learnt up to its overlap.
        loss_cls: Over logits and targets in [0, 1] of positives; each of the four losses sums.
        loss_bbox: Over boxes of positives.
        loss_obj: Over logits and whether a point is positive.
        loss_l1: Over encoded boxes of positives; None leaves it out.

    Returns:
        ``loss_cls``, ``loss_bbox``, ``loss_obj`` and, where asked for, ``loss_l1``.
    """
    positive = targets.positive.flatten()
    num_positive = reduce_mean(positive.sum(), least=1)
    weights = positive.float().unsqueeze(-1)
    classes = torch.arange(logits.shape[-1], device=logits.device)
    wanted = (targets.labels.unsqueeze(-1) == classes) * targets.overlaps.unsqueeze(-1)
    # Elsewhere the prediction is anything, infinite too after the exponential; there it is the point's own box.
    predicted = torch.where(targets.positive.unsqueeze(-1), encoded, 0.0)
    losses = {
        "loss_cls": loss_cls(logits.flatten(0, 1), wanted.flatten(0, 1), weights),
        "loss_bbox": loss_bbox(
            decode_boxes(points, predicted).flatten(0, 1), targets.bboxes.flatten(0, 1), weights.expand(-1, 4)
        ),
        "loss_obj": loss_obj(objectness.reshape(-1, 1), weights, targets.label_weights.reshape(-1, 1)),
    }
    if loss_l1 is not None:
        corners = encode_boxes(points, targets.bboxes)
        losses["loss_l1"] = loss_l1(predicted.flatten(0, 1), corners.flatten(0, 1), weights.expand(-1, 4))
    return {name: loss / num_positive for name, loss in losses.items()}
