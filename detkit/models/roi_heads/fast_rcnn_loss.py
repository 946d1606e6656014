"""Losses of classified and refined proposals (Fast R-CNN, https://arxiv.org/abs/1504.08083, eq. 1 to 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.task_modules.coders import encode_finite

__all__ = ["fast_rcnn_losses", "federated_classes", "proposal_statistics"]


def fast_rcnn_losses(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    gt_boxes: Tensor,
    labels: Tensor,
    coder: Any,
    loss_cls: nn.Module,
    loss_bbox: nn.Module,
    weights: Tensor | None = None,
    reg_decoded_bbox: bool = False,
    background_sigmoid: bool = True,
    class_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Losses of the R sampled proposals of a batch; both are divided by their number, the mean over the processes.

    Args:
        logits: (R, C + 1), the background last.
        deltas: (R, D) for all classes alike, or (R, C * D) for each class; D numbers encode a box, 4 or, rotated, 5.
        proposals: (R, D).
        gt_boxes: (R, D), the object of each proposal; anything for background.
        labels: (R,) int64 in [0, C], C is background.
        coder: Box coder, with ``encode``, ``decode`` and ``encode_size``.
        loss_cls: Softmax or sigmoid loss over labels, which takes a weight per proposal.
        loss_bbox: Over encoded boxes (R, D), or boxes where ``reg_decoded_bbox``.
        weights: (R,), 0 for rows that only fill up; None is 1.
        reg_decoded_bbox: Whether ``loss_bbox`` is on boxes (IoU losses).
        background_sigmoid: Whether sigmoids also learn the background's channel (MMDetection) or leave it out
            (Detectron2); without meaning for a softmax.
        class_mask: (C,) bool, the classes that sigmoids learn from this batch, see :func:`federated_classes`.

    Returns:
        ``loss_cls`` and ``loss_bbox``, and of :func:`proposal_statistics` what is to be logged. Without proposals both
        are 0 and carry gradients.

    Raises:
        ValueError: Shapes that do not fit, or a ``class_mask`` for a softmax.
    """
    num_classes, size = logits.shape[-1] - 1, coder.encode_size
    _check_shapes(logits, deltas, proposals, gt_boxes, labels, size)
    if weights is None:
        weights = deltas.new_ones(len(labels), dtype=torch.float32)
    avg_factor = reduce_mean(weights.sum(), least=1)
    use_sigmoid = getattr(loss_cls, "use_sigmoid", False)
    learnt = logits[:, :-1] if use_sigmoid and not background_sigmoid else logits
    cls_weights = weights
    if class_mask is not None:
        if not use_sigmoid or class_mask.shape != (num_classes,):
            raise ValueError(
                f"fast_rcnn_losses: class_mask ({num_classes},) for sigmoids was expected, got "
                f"{tuple(class_mask.shape)} and use_sigmoid={use_sigmoid}"
            )
        background = class_mask.new_ones(learnt.shape[1] - num_classes)
        cls_weights = weights.unsqueeze(-1) * torch.cat([class_mask, background])
    of_classes = loss_cls(learnt, labels, cls_weights, avg_factor=avg_factor)

    foreground = ((labels >= 0) & (labels < num_classes) & (weights > 0)).unsqueeze(-1)
    if deltas.shape[-1] != size:  # of each class: take the object's own
        own = labels.clamp(0, num_classes - 1).view(-1, 1, 1).expand(-1, 1, size)
        deltas = deltas.unflatten(-1, (num_classes, size)).gather(1, own).squeeze(1)
    # Background is its own target, so that its (unused) encoding and loss are finite.
    gt_boxes = torch.where(foreground, gt_boxes, proposals)
    targets = gt_boxes if reg_decoded_bbox else encode_finite(coder, proposals, gt_boxes)
    predicted = coder.decode(proposals, deltas) if reg_decoded_bbox else deltas
    predicted = torch.where(foreground, predicted, targets.to(predicted.dtype))
    of_boxes = loss_bbox(
        predicted, targets, (foreground * weights.unsqueeze(-1)).expand(-1, size), avg_factor=avg_factor
    )
    return {
        "loss_cls": of_classes,
        "loss_bbox": of_boxes,
        **proposal_statistics(logits, labels, weights > 0),
    }


@torch.no_grad()
def federated_classes(
    labels: Tensor,
    num_classes: int,
    count: int,
    frequency: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Classes that a batch says something about, where images are not searched for all (LVIS).

    Those of its objects, and others, drawn without replacement, up to ``count`` in all: the federated loss of
    CenterNet2, Zhou et al., https://arxiv.org/abs/2103.07461.

    Args:
        labels: (R,) in [0, C], C is background.
        num_classes: C.
        count: Classes to be learnt from; more where there are objects of more.
        frequency: (C,) how likely each class is drawn, >= 0, in any unit; None is all alike.
        generator: Of random numbers, on the labels' device; None is torch's own.

    Returns:
        (C,) bool.

    Raises:
        ValueError: ``count`` is not in [0, C], or ``frequency`` is not (C,).
    """
    if not 0 <= count <= num_classes:
        raise ValueError(f"federated_classes: count must be in [0, {num_classes}], got {count}")
    if frequency is not None and frequency.shape != (num_classes,):
        raise ValueError(f"federated_classes: frequency ({num_classes},) was expected, got {tuple(frequency.shape)}")
    present = labels.new_zeros(num_classes + 1, dtype=torch.bool).scatter(0, labels, True)[:num_classes]
    draw = torch.rand(num_classes, generator=generator, device=labels.device)
    # The first to arrive of exponential clocks that run at these rates are a draw without replacement.
    arrival = -draw.log() / (1.0 if frequency is None else frequency)
    first = torch.where(present, -1.0, arrival).argsort()[:count]
    return present.scatter(0, first, True)


@torch.no_grad()
def proposal_statistics(logits: Tensor, labels: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """How well proposals are classified, as shares in [0, 1], each (); 0 where there is nothing to count.

    Args:
        logits: (R, C + 1), the background last.
        labels: (R,) in [0, C], C is background.
        counted: (R,) bool.

    Returns:
        ``cls_accuracy`` of all, ``fg_cls_accuracy`` of objects, and ``false_negative``: objects taken for background.
    """
    background = logits.shape[-1] - 1
    if len(labels) == 0:
        nothing = logits.new_zeros((), dtype=torch.float32)
        return {"cls_accuracy": nothing, "fg_cls_accuracy": nothing, "false_negative": nothing}
    predicted = logits.argmax(dim=1)
    foreground = counted & (labels >= 0) & (labels < background)
    hit = predicted == labels
    num_foreground = foreground.sum().clamp(min=1)
    return {
        "cls_accuracy": (hit & counted).sum() / counted.sum().clamp(min=1),
        "fg_cls_accuracy": (hit & foreground).sum() / num_foreground,
        "false_negative": ((predicted == background) & foreground).sum() / num_foreground,
    }


def _check_shapes(
    logits: Tensor, deltas: Tensor, proposals: Tensor, gt_boxes: Tensor, labels: Tensor, size: int
) -> None:
    num_classes = logits.shape[-1] - 1
    if num_classes < 1 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"fast_rcnn_losses: logits (R, C + 1) and labels (R,) were expected, got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
    count = len(labels)
    if deltas.shape not in ((count, size), (count, num_classes * size)):
        raise ValueError(
            f"fast_rcnn_losses: deltas ({count}, {size}) or ({count}, {num_classes} * {size}) were expected, got "
            f"{tuple(deltas.shape)}"
        )
    for name, boxes in (("proposals", proposals), ("gt_boxes", gt_boxes)):
        if boxes.shape != (count, size):
            raise ValueError(f"fast_rcnn_losses: {name} ({count}, {size}) were expected, got {tuple(boxes.shape)}")
