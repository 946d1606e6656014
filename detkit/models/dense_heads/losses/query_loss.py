"""Losses of queries over their targets, DETR, https://arxiv.org/abs/2005.12872, eq. 2: each decoder layer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from detkit.losses.reduction import check_number, reduce_mean
from detkit.models.dense_heads.losses.box_quality import iou_quality
from detkit.models.dense_heads.targets.part_checks import check_assigner, check_box_loss, check_loss
from detkit.models.dense_heads.targets.query_targets import QueryTargets, matched_targets
from detkit.ops.image_sizes import image_sizes
from detkit.registry import MODELS
from detkit.structures.boxes import bbox_cxcywh_to_xyxy
from detkit.structures.ground_truth import GroundTruth

__all__ = ["QueryHead", "build_label_loss", "check_query_parts", "matched_losses", "query_losses"]

WITH_QUALITY = "labels with qualities"


class QueryHead(Protocol):
    """What the losses read of a head.

    Attributes:
        num_classes: Classes without background.
        assigner: Of predictions.
        loss_cls: Over labels, or labels and the IoU of the box.
        loss_bbox: Over centres and sizes in shares of the image.
        loss_iou: Over corners in pixels.
        bg_cls_weight: What a query without object counts in the divisor of ``loss_cls``.
        sync_cls_avg_factor: Whether that divisor is the mean of all processes', as that of the boxes is.
    """

    num_classes: int
    assigner: Any
    loss_cls: nn.Module
    loss_bbox: nn.Module
    loss_iou: nn.Module
    bg_cls_weight: float
    sync_cls_avg_factor: bool


def check_query_parts(head: QueryHead) -> None:
    """Refuse losses that learn something else than queries, and assigners of something else.

    Raises:
        ValueError: With what they learn or assign.
    """
    name = type(head).__name__
    check_loss(head.loss_cls, ["labels", WITH_QUALITY], name, "loss_cls")
    check_box_loss(head.loss_bbox, False, name)
    check_box_loss(head.loss_iou, True, name, "loss_iou")
    check_assigner(head.assigner, ("bboxes", "scores", "img_metas"), name, ("predictions",))


def build_label_loss(cfg: Mapping[str, Any], num_classes: int, head: str) -> tuple[nn.Module, float]:
    """The loss that ``cfg`` names, and what a query without object counts in its divisor: its weight in a softmax.

    With one number for ``class_weight``, that of the background is ``bg_cls_weight``, or the same.

    Raises:
        TypeError: ``bg_cls_weight`` is no number.
        ValueError: ``bg_cls_weight`` is negative, or beside anything but a softmax with one ``class_weight``.
    """
    cfg = dict(cfg)
    weight, background = cfg.get("class_weight"), cfg.pop("bg_cls_weight", None)
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if background is not None:
        check_number(head, "loss_cls.bg_cls_weight", background, low=0)
        if not is_number or cfg.get("use_sigmoid", False):
            raise ValueError(
                f"{head}: loss_cls.bg_cls_weight goes with a softmax and one number for class_weight, got "
                f"class_weight={weight!r}, use_sigmoid={cfg.get('use_sigmoid', False)}"
            )
    if is_number:
        own = [] if cfg.get("use_sigmoid", False) else [weight if background is None else background]
        cfg["class_weight"] = [weight] * num_classes + own
    loss = MODELS.build(cfg)
    weights = getattr(loss, "class_weight", None)
    if not isinstance(weights, Tensor) or getattr(loss, "use_sigmoid", True):
        return loss, 0.0
    return loss, float(weights[-1])


def matched_losses(
    head: QueryHead,
    logits: Tensor,
    boxes: Tensor,
    truth: GroundTruth,
    metas: Sequence[Mapping[str, Any]],
    prefix: str = "",
) -> dict[str, Tensor]:
    """:func:`query_losses` of queries that are matched with the objects ``truth`` of the N images."""
    targets = matched_targets(head.assigner, truth, metas, logits, boxes, head.num_classes)
    return query_losses(head, logits, boxes, targets, metas, prefix)


def query_losses(
    head: QueryHead,
    logits: Tensor,
    boxes: Tensor,
    targets: QueryTargets,
    metas: Sequence[Mapping[str, Any]],
    prefix: str = "",
) -> dict[str, Tensor]:
    """``<prefix>loss_cls``, ``<prefix>loss_bbox`` and ``<prefix>loss_iou`` of the last layer, ``d<l>.<...>`` of others.

    Args:
        head: Whose losses.
        logits: (L, N, Q, C), or one more channel for the background.
        boxes: (L, N, Q, 4) centre and size in shares of the image, float32.
        targets: Of these queries.
        metas: Image facts with ``img_shape``.
        prefix: Tells these queries from others.
    """
    num_positive = targets.positive.flatten(1).sum(1, dtype=torch.float32)
    divisor = num_positive + head.bg_cls_weight * targets.negative.flatten(1).sum(1)
    of_labels = reduce_mean(divisor, least=1.0) if head.sync_cls_avg_factor else divisor.clamp(min=1)
    of_boxes = reduce_mean(num_positive, least=1.0)
    sizes = image_sizes(metas, boxes[0], "data_samples")
    found: dict[str, Tensor] = {}
    last = len(logits) - 1
    for layer in (last, *range(last)):
        labels, wanted = targets.labels[layer].flatten(), targets.boxes[layer]
        weight = targets.positive[layer].reshape(-1, 1).expand(-1, 4).to(boxes.dtype)
        target: Any = labels
        if getattr(head.loss_cls, "learns", None) == WITH_QUALITY:
            corners = bbox_cxcywh_to_xyxy(boxes[layer]), bbox_cxcywh_to_xyxy(wanted)
            target = labels, iou_quality(*corners).flatten()
        key = prefix if layer == last else f"d{layer}.{prefix}"
        found[f"{key}loss_cls"] = head.loss_cls(
            logits[layer].flatten(0, 1), target, weight.new_ones(len(weight)), avg_factor=of_labels[layer]
        )
        found[f"{key}loss_bbox"] = head.loss_bbox(
            boxes[layer].flatten(0, 1), wanted.flatten(0, 1), weight, avg_factor=of_boxes[layer]
        )
        found[f"{key}loss_iou"] = head.loss_iou(
            (bbox_cxcywh_to_xyxy(boxes[layer]) * sizes).flatten(0, 1),
            (bbox_cxcywh_to_xyxy(wanted) * sizes).flatten(0, 1),
            weight,
            avg_factor=of_boxes[layer],
        )
    return found
