"""Losses of points that predict boxes (FCOS, https://arxiv.org/abs/1904.01355, 3.1 and 3.2)."""

from __future__ import annotations

from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.losses.box_quality import centerness, quality_box_loss
from detkit.models.dense_heads.targets.point_targets import PointTargets, boxes_around_origin
from detkit.structures.boxes import bbox2distance

__all__ = ["fcos_losses"]

# Least sum of the centerness of a batch that boxes are averaged by.
LEAST_CENTERNESS = 1e-6


def fcos_losses(
    logits: Tensor,
    distances: Tensor,
    centerness_logits: Tensor,
    points: Tensor,
    targets: PointTargets,
    loss_cls: nn.Module,
    loss_bbox: nn.Module,
    loss_centerness: nn.Module,
    normed: bool,
) -> dict[str, Tensor]:
    """Losses of all points of all images, of every process; a box counts as much as its point is central.

    Args:
        logits: (N, A, C).
        distances: (N, A, 4), predicted, in pixels.
        centerness_logits: (N, A).
        points: (A, 4) x, y and the strides of both.
        targets: Of these points.
        loss_cls: Over labels.
        loss_bbox: Over boxes.
        loss_centerness: Over logits and targets in [0, 1].
        normed: Compare boxes in strides instead of pixels.

    Returns:
        ``loss_cls``, ``loss_bbox`` and ``loss_centerness``.
    """
    wanted = bbox2distance(points[:, :2].expand(*distances.shape[:2], 2), targets.bboxes)
    if normed:
        unit = points[:, 2:].repeat(1, 2)
        distances, wanted = distances / unit, wanted / unit
    central = centerness(wanted) * targets.positive
    positive = targets.positive.flatten()
    num_positive = reduce_mean(positive.sum(), least=1)
    labels, label_weights = targets.labels.flatten(), targets.label_weights.flatten()
    return {
        "loss_cls": loss_cls(logits.flatten(0, 1), labels, label_weights, avg_factor=num_positive),
        "loss_bbox": quality_box_loss(
            loss_bbox, boxes_around_origin(distances), boxes_around_origin(wanted), central, LEAST_CENTERNESS
        ),
        "loss_centerness": loss_centerness(
            centerness_logits.flatten(), central.flatten(), positive.float(), avg_factor=num_positive
        ),
    }
