"""Losses of queries over their targets, DETR, https://arxiv.org/abs/2005.12872, eq. 2: each decoder layer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detkit.losses.reduction import check_number, reduce_mean
from detkit.models.dense_heads.losses.box_quality import iou_quality
from detkit.models.dense_heads.targets.part_checks import check_box_loss, check_loss
from detkit.models.dense_heads.targets.query_targets import QueryTargets, image_sizes
from detkit.registry import MODELS
from detkit.structures.boxes import bbox_cxcywh_to_xyxy

__all__ = ["QueryLosses", "build_label_loss", "query_losses"]

WITH_QUALITY = "labels with qualities"


@dataclass(frozen=True)
class QueryLosses:
    """The losses of a head.

    Attributes:
        of_labels: Over labels, or labels and the IoU of the box.
        of_boxes: Over centres and sizes in shares of the image.
        of_overlap: Over corners in pixels.
        background_weight: What a query without object counts in the divisor of ``of_labels``.
        divided_by_all: Whether that divisor is the mean of all processes', as that of the boxes is.
    """

    of_labels: nn.Module
    of_boxes: nn.Module
    of_overlap: nn.Module
    background_weight: float
    divided_by_all: bool

    def check(self, head: str) -> None:
        """Refuse losses that learn something else; ``head`` is who has them.

        Raises:
            ValueError: With what they learn.
        """
        check_loss(self.of_labels, ["labels", WITH_QUALITY], head, "loss_cls")
        check_box_loss(self.of_boxes, False, head)
        check_box_loss(self.of_overlap, True, head, "loss_iou")


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


def query_losses(
    logits: Tensor,
    boxes: Tensor,
    targets: QueryTargets,
    metas: Sequence[Mapping[str, Any]],
    losses: QueryLosses,
    prefix: str = "",
) -> dict[str, Tensor]:
    """``<prefix>loss_cls``, ``<prefix>loss_bbox`` and ``<prefix>loss_iou`` of the last layer, ``d<l>.<...>`` of others.

    Args:
        logits: (L, N, Q, C), or one more channel for the background.
        boxes: (L, N, Q, 4) centre and size in shares of the image, float32.
        targets: Of these queries.
        metas: Image facts with ``img_shape``.
        losses: Of the head.
        prefix: Tells these queries from others.
    """
    num_positive = targets.positive.flatten(1).sum(1, dtype=torch.float32)
    divisor = num_positive + losses.background_weight * targets.negative.flatten(1).sum(1)
    of_labels = reduce_mean(divisor, least=1.0) if losses.divided_by_all else divisor.clamp(min=1)
    of_boxes = reduce_mean(num_positive, least=1.0)
    sizes = image_sizes(metas, boxes)
    found: dict[str, Tensor] = {}
    last = len(logits) - 1
    for layer in (last, *range(last)):
        labels, wanted = targets.labels[layer].flatten(), targets.boxes[layer]
        weight = targets.positive[layer].reshape(-1, 1).expand(-1, 4).to(boxes.dtype)
        target: Any = labels
        if getattr(losses.of_labels, "learns", None) == WITH_QUALITY:
            corners = bbox_cxcywh_to_xyxy(boxes[layer]), bbox_cxcywh_to_xyxy(wanted)
            target = labels, iou_quality(*corners).flatten()
        key = prefix if layer == last else f"d{layer}.{prefix}"
        found[f"{key}loss_cls"] = losses.of_labels(
            logits[layer].flatten(0, 1), target, weight.new_ones(len(weight)), avg_factor=of_labels[layer]
        )
        found[f"{key}loss_bbox"] = losses.of_boxes(
            boxes[layer].flatten(0, 1), wanted.flatten(0, 1), weight, avg_factor=of_boxes[layer]
        )
        found[f"{key}loss_iou"] = losses.of_overlap(
            (bbox_cxcywh_to_xyxy(boxes[layer]) * sizes).flatten(0, 1),
            (bbox_cxcywh_to_xyxy(wanted) * sizes).flatten(0, 1),
            weight,
            avg_factor=of_boxes[layer],
        )
    return found
