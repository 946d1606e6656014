"""What the points of a batch are to predict: assignment and sampling in one piece."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detkit.models.dense_heads.targets.prior_targets import prior_targets
from detkit.structures.ground_truth import GroundTruth

__all__ = [
    "POINT_KINDS",
    "PointTargets",
    "boxes_around_origin",
    "point_targets",
    "priors_of_kind",
]

# What an assigner may say by ``prior_kind`` that a point is to it.
POINT_KINDS = ("points with strides", "points", "boxes")


class PointTargets(NamedTuple):
    """Targets of A points in N images.

    Attributes:
        labels: (N, A) int64, ``num_classes`` for background.
        label_weights: (N, A), 0 where nothing is learnt.
        bboxes: (N, A, 4) of the object; a box around the point where there is none.
        positive: (N, A) bool.
        overlaps: (N, A) how well a positive fits its object, as the assigner says, 1 where it says nothing; else 0.
    """

    labels: Tensor
    label_weights: Tensor
    bboxes: Tensor
    positive: Tensor
    overlaps: Tensor


def priors_of_kind(points: Tensor, kind: str, box_scale: float) -> Tensor:
    """Points as an assigner of this ``prior_kind`` wants them.

    Args:
        points: (A, 4) x, y and the strides of both.
        kind: One of POINT_KINDS.
        box_scale: Side of the box around a point in strides, for ``boxes``.
    """
    if kind == "boxes":
        half = points[:, 2:] * (box_scale / 2)
        return torch.cat([points[:, :2] - half, points[:, :2] + half], dim=1)
    return points if kind == "points with strides" else points[:, :3]


def point_targets(
    points: Tensor,
    ground_truth: GroundTruth,
    assigner: Any,
    sampler: Any,
    num_classes: int,
    box_scale: float,
    assigner_inputs: Mapping[str, Any],
    valid: Tensor | None = None,
    pos_weight: float = -1,
) -> PointTargets:
    """Targets of all points of all images.

    Args:
        points: (A, 4) x, y and the strides of both.
        ground_truth: Objects of the N images.
        assigner: Registered assigner of points or boxes, batched or per image.
        sampler: Registered sampler, batched or per image.
        num_classes: Label of the background.
        box_scale: Side in strides of the box that an assigner of boxes sees around each point.
        assigner_inputs: What the assigner asks for besides.
        valid: (N, A) bool, which points take part; None is all.
        pos_weight: Label weight of a positive; 1 where <= 0.

    Raises:
        ValueError: The sampler adds objects to the points.
    """
    found = prior_targets(
        priors_of_kind(points, getattr(assigner, "prior_kind", "boxes"), box_scale),
        priors_of_kind(points, "boxes", box_scale),
        ground_truth,
        valid,
        assigner,
        sampler,
        num_classes,
        pos_weight,
        assigner_inputs,
    )
    overlaps = found.assigned.max_overlaps
    return PointTargets(
        labels=found.labels,
        label_weights=found.label_weights,
        bboxes=found.bboxes,
        positive=found.positive,
        overlaps=found.positive * (1.0 if overlaps is None else overlaps),
    )


def boxes_around_origin(distances: Tensor) -> Tensor:
    """Boxes (..., 4) at ``distances`` (..., 4): of two around one point only the distances count."""
    return torch.cat([-distances[..., :2], distances[..., 2:]], dim=-1)
