"""Focal loss, Lin et al., https://arxiv.org/abs/1708.02002."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.losses.labels import one_hot
from detkit.losses.reduction import resolve_reduction, weight_per_element, weight_reduce_loss
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = ["FocalLoss", "focal_loss_with_prob", "sigmoid_focal_loss"]


def sigmoid_focal_loss(pred: Tensor, target: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Focal loss of logits, eq. 5.

    Args:
        pred: Logits (...).
        target: 1 at the true class of a positive, else 0 (soft targets work); same shape.
        gamma: Focusing exponent, >= 0; at 0 the loss is alpha-weighted cross entropy.
        alpha: Weight of a positive, in [0, 1]; a negative weighs ``1 - alpha``.

    Returns:
        Loss per element, same shape.
    """
    prob = pred.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(pred, target, reduction="none")
    return cross_entropy * _modulation(prob, target, gamma, alpha)


def focal_loss_with_prob(pred: Tensor, target: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """As :func:`sigmoid_focal_loss`, of probabilities in [0, 1]."""
    # F.binary_cross_entropy refuses to run under autocast; this is its definition.
    positive, negative = pred.log().clamp(min=-100), (1 - pred).log().clamp(min=-100)
    cross_entropy = -(target * positive + (1 - target) * negative)
    return cross_entropy * _modulation(pred, target, gamma, alpha)


def _modulation(prob: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    error = (1 - prob) * target + prob * (1 - target)
    if 0 < gamma < 1:  # the slope of a root is infinite at 0
        error = error.clamp(min=torch.finfo(error.dtype).eps)
    return (alpha * target + (1 - alpha) * (1 - target)) * error.pow(gamma)


@MODELS.register_module()
class FocalLoss(nn.Module):
    """Sigmoid focal loss over class labels or targets per class.

    Args:
        use_sigmoid: Must be True; a softmax form is not defined.
        gamma: Focusing exponent, >= 0.
        alpha: Weight of a positive, in [0, 1].
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
        activated: Whether ``pred`` holds probabilities instead of logits.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__()
        if not use_sigmoid:
            raise ValueError("FocalLoss: use_sigmoid=False has no definition; use CrossEntropyLoss for a softmax")
        self.use_sigmoid = use_sigmoid
        self.gamma = gamma
        self.alpha = alpha
        self.reduction = resolve_reduction(reduction, "FocalLoss")
        self.loss_weight = loss_weight
        self.activated = activated

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Weighted, reduced focal loss.

        Args:
            pred: Logits, or probabilities where ``activated``, (N, C).
            target: Labels (N,) in [0, C], C is background; or targets per class (N, C).
            weight: (N,), (N, C) or (N * C,).
            avg_factor: See ``weight_reduce_loss``; the number of positives, usually.
            reduction_override: Used instead of ``reduction``.

        Raises:
            ValueError: Unknown reduction, or shapes that do not fit.
            RuntimeError: A label outside [0, C], on the CPU.
        """
        reduction = resolve_reduction(reduction_override or self.reduction, "FocalLoss")
        (pred,) = full_precision(pred)
        if target.dim() != pred.dim():
            target = one_hot(target, pred.shape[-1], "FocalLoss")
        if target.shape != pred.shape:
            raise ValueError(
                f"FocalLoss: target {tuple(target.shape)} does not fit pred {tuple(pred.shape)}; "
                "labels (N,) or targets (N, C) were expected"
            )
        function = focal_loss_with_prob if self.activated else sigmoid_focal_loss
        loss = function(pred, target.to(pred.dtype), self.gamma, self.alpha)
        return self.loss_weight * weight_reduce_loss(
            loss, weight_per_element(weight, loss, "FocalLoss"), reduction, avg_factor
        )
