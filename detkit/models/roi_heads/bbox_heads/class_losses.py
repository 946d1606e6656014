"""Classes of regions as their loss wants them: how many logits there are, what they cost, what they score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detkit.losses.reduction import reduce_mean

__all__ = ["class_channels", "class_losses", "class_scores"]


def class_channels(loss_cls: Any, num_classes: int) -> int:
    """Logits of a region: as the loss says (``custom_cls_channels``), or the classes and the background."""
    if getattr(loss_cls, "custom_cls_channels", False):
        return loss_cls.get_cls_channels(num_classes)
    return num_classes + 1


def class_losses(
    loss_cls: Any,
    cls_score: Tensor,
    labels: Tensor,
    label_weights: Tensor,
    reduction_override: str | None = None,
) -> dict[str, Tensor]:
    """``loss_cls``, or what the loss calls its parts, and the accuracy ``acc`` in percent (1,), or the loss's own.

    Args:
        loss_cls: Over labels in [0, C], C is background.
        cls_score: Logits (R, channels).
        labels: (R,) int64.
        label_weights: (R,), 0 where a region is not to be learnt.
        reduction_override: Used instead of the loss's own.
    """
    counted = label_weights > 0
    of_classes = loss_cls(
        cls_score,
        labels,
        label_weights,
        avg_factor=reduce_mean(counted.sum().float(), least=1),
        reduction_override=reduction_override,
    )
    losses = of_classes if isinstance(of_classes, dict) else {"loss_cls": of_classes}
    return losses | _accuracy(loss_cls, cls_score, labels, counted)


@torch.no_grad()
def _accuracy(loss_cls: Any, cls_score: Tensor, labels: Tensor, counted: Tensor) -> dict[str, Tensor]:
    if getattr(loss_cls, "custom_accuracy", False):
        return loss_cls.get_accuracy(cls_score, torch.where(counted, labels, -1))
    hit = (cls_score.argmax(dim=1) == labels) & counted if len(labels) > 0 else counted
    return {"acc": (100.0 * hit.sum() / counted.sum().clamp(min=1)).reshape(1)}


def class_scores(loss_cls: Any, cls_score: Tensor, num_classes: int) -> Tensor:
    """Scores (..., C) of logits (..., channels), as the loss says (``custom_activation``) or by a softmax."""
    if getattr(loss_cls, "custom_activation", False):
        return loss_cls.get_activation(cls_score)[..., :num_classes]
    return cls_score.float().softmax(dim=-1)[..., :num_classes]
