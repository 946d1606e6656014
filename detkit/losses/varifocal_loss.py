"""Varifocal loss, Zhang et al., https://arxiv.org/abs/2008.13367."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.losses.reduction import ElementwiseLoss
from detkit.registry import MODELS

__all__ = ["VarifocalLoss", "varifocal_loss"]


def varifocal_loss(
    pred: Tensor, target: Tensor, alpha: float = 0.75, gamma: float = 2.0, iou_weighted: bool = True
) -> Tensor:
    """Cross entropy with the IoU of positives, in which only negatives are focused on, eq. 2.

    Args:
        pred: Logits (...).
        target: IoU in (0, 1] at the class of a positive, else 0; same shape.
        alpha: Weight of a negative, >= 0.
        gamma: Focusing exponent of a negative, >= 0.
        iou_weighted: Weigh a positive with its IoU instead of 1.

    Returns:
        Loss per element, same shape.
    """
    error = (pred.sigmoid() - target).abs()
    if 0 < gamma < 1:  # the slope of a root is infinite at 0
        error = error.clamp(min=torch.finfo(error.dtype).eps)
    positive = target if iou_weighted else torch.ones_like(target)
    weight = torch.where(target > 0, positive, alpha * error.pow(gamma))
    return weight * F.binary_cross_entropy_with_logits(pred, target, reduction="none")


@MODELS.register_module()
class VarifocalLoss(ElementwiseLoss):
    """Varifocal loss of logits and IoU targets (N, C).

    Args:
        use_sigmoid: Must be True; a softmax form is not defined.
        alpha: Weight of a negative, >= 0.
        gamma: Focusing exponent of a negative, >= 0.
        iou_weighted: Weigh a positive with its IoU instead of 1.
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        alpha: float = 0.75,
        gamma: float = 2.0,
        iou_weighted: bool = True,
        reduction: str = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        if not use_sigmoid:
            raise ValueError("VarifocalLoss: use_sigmoid=False has no definition")
        if alpha < 0:
            raise ValueError(f"VarifocalLoss: alpha must be >= 0, got {alpha}")
        self.use_sigmoid = use_sigmoid
        self.alpha = alpha
        self.gamma = gamma
        self.iou_weighted = iou_weighted

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return varifocal_loss(pred, target.to(pred.dtype), self.alpha, self.gamma, self.iou_weighted)
