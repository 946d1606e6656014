"""Targets and losses of points that predict boxes (FCOS, https://arxiv.org/abs/1904.01355, 3.1 and 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.candidates import inside_boxes
from detkit.task_modules.assigners.chunks import chunk_slices

__all__ = ["FCOSTargets", "centerness", "fcos_losses", "fcos_targets"]

# Least sum of the centerness of a batch that boxes are averaged by.
LEAST_CENTERNESS = 1e-6


class FCOSTargets(NamedTuple):
    """Targets of A points in N images.

    Attributes:
        labels: (N, A) int64, ``num_classes`` for background.
        distances: (N, A, 4) pixels to the left, upper, right and lower side of the object; 1 where there is none.
        positive: (N, A) bool.
    """

    labels: Tensor
    distances: Tensor
    positive: Tensor


def fcos_targets(
    points: Tensor,
    regress_ranges: Tensor,
    ground_truth: GroundTruth,
    num_classes: int,
    strides: Tensor | None = None,
    center_sample_radius: float | None = None,
) -> FCOSTargets:
    """Each point learns the smallest object that it lies in and whose size its level is there for.

    Args:
        points: (A, 2) of all levels, x and y.
        regress_ranges: (A, 2), within which the farthest side of its object must lie from a point.
        ground_truth: Objects of the N images.
        num_classes: Label of the background.
        strides: (A,), for ``center_sample_radius``.
        center_sample_radius: Points must lie within this many strides of the centre; None takes the whole object.

    Raises:
        ValueError: ``center_sample_radius`` without ``strides``.
    """
    if center_sample_radius is not None and strides is None:
        raise ValueError(f"fcos_targets: center_sample_radius={center_sample_radius} needs strides")
    shape = (len(ground_truth.boxes), len(points))
    x, y = points.unbind(-1)
    least, most = regress_ranges.unbind(-1)
    radius = None if center_sample_radius is None or strides is None else center_sample_radius * strides
    smallest = points.new_full(shape, torch.inf)
    gt_inds = torch.zeros(shape, dtype=torch.int64, device=points.device)
    for some in chunk_slices(ground_truth.valid.shape[1], len(points) * shape[0], points.device, least=1):
        boxes = ground_truth.boxes[:, some].unsqueeze(2)  # (N, g, 1, 4)
        x1, y1, x2, y2 = boxes.unbind(-1)
        farthest = torch.maximum(torch.maximum(x - x1, x2 - x), torch.maximum(y - y1, y2 - y))
        inside = inside_boxes(x, y, boxes if radius is None else _around_centers(boxes, radius))
        eligible = inside & (farthest >= least) & (farthest <= most) & ground_truth.valid[:, some].unsqueeze(2)
        area, row = torch.where(eligible, (x2 - x1) * (y2 - y1), torch.inf).min(dim=1)
        # Strictly smaller: of objects of equal area the first counts, as in one piece.
        gt_inds = torch.where(area < smallest, row + some.start + 1, gt_inds)
        smallest = torch.minimum(smallest, area)
    positive = gt_inds > 0
    own, labels = ground_truth.matched(gt_inds, torch.stack([x - 1, y - 1, x + 1, y + 1], dim=-1))
    distances = torch.stack([x - own[..., 0], y - own[..., 1], own[..., 2] - x, own[..., 3] - y], dim=-1)
    return FCOSTargets(torch.where(positive, labels, num_classes), distances, positive)


def centerness(distances: Tensor) -> Tensor:
    """How central points (...) are in the objects at ``distances`` (..., 4), in [0, 1]; eq. 3."""
    left, top, right, bottom = distances.unbind(-1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    along = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (across * along).sqrt()


def fcos_losses(
    logits: Tensor,
    distances: Tensor,
    centerness_logits: Tensor,
    targets: FCOSTargets,
    loss_cls: nn.Module,
    loss_bbox: nn.Module,
    loss_centerness: nn.Module,
    strides: Tensor | None = None,
) -> dict[str, Tensor]:
    """Losses of all points of all images, of every process; a box counts as much as its point is central.

    Args:
        logits: (N, A, C).
        distances: (N, A, 4), predicted; in strides where these are given, else in pixels.
        centerness_logits: (N, A).
        targets: Of these points.
        loss_cls: Over labels.
        loss_bbox: Over boxes, one value per box.
        loss_centerness: Over logits and targets in [0, 1].
        strides: (A,), the unit of ``distances``; None is a pixel.

    Returns:
        ``loss_cls``, ``loss_bbox`` and ``loss_centerness``.
    """
    positive = targets.positive.flatten()
    num_positive = reduce_mean(positive.sum(), least=1)
    wanted = targets.distances if strides is None else targets.distances / strides.unsqueeze(-1)
    # Elsewhere the prediction is anything, infinite too, and infinity times no weight would not be 0.
    predicted = torch.where(targets.positive.unsqueeze(-1), distances, wanted).flatten(0, 1)
    wanted = wanted.flatten(0, 1)
    central = centerness(wanted) * positive
    return {
        "loss_cls": loss_cls(logits.flatten(0, 1), targets.labels.flatten(), avg_factor=num_positive),
        "loss_bbox": loss_bbox(
            _around_origin(predicted),
            _around_origin(wanted),
            weight=central,
            avg_factor=reduce_mean(central.sum(), least=LEAST_CENTERNESS),
        ),
        "loss_centerness": loss_centerness(
            centerness_logits.flatten(), central, weight=positive.float(), avg_factor=num_positive
        ),
    }


def _around_origin(distances: Tensor) -> Tensor:
    """Boxes (P, 4) at ``distances`` (P, 4): of two around one point only the distances count."""
    return torch.cat([-distances[:, :2], distances[:, 2:]], dim=1)


def _around_centers(boxes: Tensor, radius: Tensor) -> Tensor:
    """Parts (N, g, A, 4) of ``boxes`` (N, g, 1, 4) within ``radius`` (A,) of their centres."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
    low = torch.maximum(center_x - radius, x1), torch.maximum(center_y - radius, y1)
    high = torch.minimum(center_x + radius, x2), torch.minimum(center_y + radius, y2)
    return torch.stack([*low, *high], dim=-1)
