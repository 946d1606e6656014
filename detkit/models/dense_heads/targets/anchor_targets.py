"""What the anchors of a batch are to predict: assignment, sampling and encoding in one piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from detkit.models.dense_heads.targets.prior_targets import prior_targets
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import BatchAssignResult, GridAnchors, anchor_inside_flags
from detkit.task_modules.coders import encode_finite

__all__ = ["AnchorTargets", "BoxCoder", "anchor_targets", "valid_anchors"]


class BoxCoder(Protocol):
    """What a dense head needs of a box coder."""

    def encode(self, bboxes: Tensor, gt_bboxes: Tensor) -> Tensor:
        """Targets of priors that learn boxes."""

    def decode(self, bboxes: Tensor, pred_bboxes: Tensor, max_shape: Any = None) -> Tensor:
        """Boxes of predictions."""


class AnchorTargets(NamedTuple):
    """Targets of A anchors in N images.

    Attributes:
        labels: (N, A) int64, ``num_classes`` for background.
        label_weights: (N, A), 0 where nothing is learnt.
        bbox_targets: (N, A, 4) encoded, or boxes where losses are on boxes; 0 where there is no object.
        bbox_weights: (N, A), 1 at positives.
        avg_factor: () what the losses are divided by.
        assigned: What they come from: which object is whose, and how well it fits.
    """

    labels: Tensor
    label_weights: Tensor
    bbox_targets: Tensor
    bbox_weights: Tensor
    avg_factor: Tensor
    assigned: BatchAssignResult | None = None


def valid_anchors(
    anchors: Tensor,
    generator: GridAnchors,
    sizes: Sequence[tuple[int, int]],
    metas: Sequence[dict[str, Any]],
    allowed_border: float,
) -> Tensor | None:
    """Which anchors take part in training, (N, A) bool; None where all do.

    Args:
        anchors: (A, 4) of all levels.
        generator: Their generator.
        sizes: Height and width of each feature map.
        metas: Image facts with ``pad_shape`` and ``img_shape``.
        allowed_border: Pixels by which an anchor may leave the image; a negative number allows any.
    """
    # A cell takes part if it begins within the padded image.
    height = max((size[0] - 1) * stride[1] for size, stride in zip(sizes, generator.strides, strict=True))
    width = max((size[1] - 1) * stride[0] for size, stride in zip(sizes, generator.strides, strict=True))
    whole = all(meta["pad_shape"][0] > height and meta["pad_shape"][1] > width for meta in metas)
    if whole and allowed_border < 0:
        return None
    rows = []
    for meta in metas:
        flags = torch.cat(generator.valid_flags(sizes, meta["pad_shape"], anchors.device))
        rows.append(anchor_inside_flags(anchors, flags, meta["img_shape"], allowed_border))
    return torch.stack(rows)


def anchor_targets(
    anchors: Tensor,
    ground_truth: GroundTruth,
    valid: Tensor | None,
    assigner: Any,
    sampler: Any,
    coder: BoxCoder | None,
    num_classes: int,
    pos_weight: float = -1,
    assigner_inputs: Mapping[str, Any] | None = None,
) -> AnchorTargets:
    """Targets of all anchors of all images.

    Args:
        anchors: (A, 4).
        ground_truth: Objects of the N images.
        valid: (N, A) bool, which anchors take part; None is all.
        assigner: Registered assigner, batched or per image.
        sampler: Registered sampler, batched or per image.
        coder: Encodes the boxes; None leaves them as they are.
        num_classes: Label of the background.
        pos_weight: Label weight of a positive; 1 where <= 0.
        assigner_inputs: What the assigner asks for besides.

    Raises:
        ValueError: The sampler adds objects to the anchors.
    """
    found = prior_targets(
        anchors, anchors, ground_truth, valid, assigner, sampler, num_classes, pos_weight, assigner_inputs
    )
    # Anchors without object are their own target, so that their (unused) encoding is finite.
    boxes = found.bboxes
    targets = boxes if coder is None else encode_finite(coder, anchors.expand_as(boxes), boxes)
    return AnchorTargets(
        labels=found.labels,
        label_weights=found.label_weights,
        bbox_targets=torch.where(found.positive.unsqueeze(-1), targets, 0.0),
        bbox_weights=found.positive.float(),
        avg_factor=found.avg_factor,
        assigned=found.assigned,
    )
