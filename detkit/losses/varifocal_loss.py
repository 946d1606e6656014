"""Varifocal loss, Zhang et al., https://arxiv.org/abs/2008.13367."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.losses.focal_loss import focusing
from detkit.losses.reduction import ElementwiseLoss, check_number
from detkit.registry import MODELS

__all__ = ["VarifocalLoss", "varifocal_loss"]


def varifocal_loss(
    pred: Tensor, target: Tensor, *, alpha: float = 0.75, gamma: float = 2.0, iou_weighted: bool = True
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
    negative = alpha * focusing((pred.sigmoid() - target).abs(), gamma)
    positive = target if iou_weighted else torch.ones_like(target)
    weight = torch.where(target > 0, positive, negative)
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

    Raises:
        TypeError: A number was expected.
        ValueError: A number out of range, an unknown reduction, or ``use_sigmoid=False``.
    """

    learns = "qualities of classes"

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
            raise ValueError(f"{type(self).__name__}: use_sigmoid=False has no definition")
        for argument, value in (("alpha", alpha), ("gamma", gamma)):
            check_number(type(self).__name__, argument, value, low=0)
        self.use_sigmoid = use_sigmoid
        self.alpha = alpha
        self.gamma = gamma
        self.iou_weighted = iou_weighted

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        target = target.to(pred.dtype)
        return varifocal_loss(pred, target, alpha=self.alpha, gamma=self.gamma, iou_weighted=self.iou_weighted)
