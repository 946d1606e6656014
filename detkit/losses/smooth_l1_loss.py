"""L1 and smooth L1 (Fast R-CNN, eq. 3, https://arxiv.org/abs/1504.08083; beta as in Faster R-CNN's code)."""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.losses.reduction import ElementwiseLoss, check_number
from detkit.registry import MODELS

__all__ = ["L1Loss", "SmoothL1Loss", "l1_loss", "smooth_l1_loss"]


def smooth_l1_loss(pred: Tensor, target: Tensor, *, beta: float = 1.0) -> Tensor:
    """Quadratic below ``beta``, linear above.

    Args:
        pred: (...).
        target: Same shape.
        beta: Difference at which the quadratic part ends, > 0.

    Returns:
        Loss per element, same shape.
    """
    diff = (pred - target).abs()
    return torch.where(diff < beta, 0.5 * diff * diff / beta, diff - 0.5 * beta)


def l1_loss(pred: Tensor, target: Tensor) -> Tensor:
    """``|pred - target|`` per element, same shape."""
    return (pred - target).abs()


@MODELS.register_module()
class SmoothL1Loss(ElementwiseLoss):
    """Smooth L1 loss.

    Args:
        beta: Difference at which the quadratic part ends, > 0; L1Loss is the limit at 0.
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.

    Raises:
        ValueError: Unknown reduction, or ``beta`` out of range.
    """

    learns = "coordinates"

    allows_empty_target = True

    def __init__(self, beta: float = 1.0, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__(reduction, loss_weight)
        check_number(type(self).__name__, "beta", beta, above=0)
        self.beta = beta

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return smooth_l1_loss(pred, target, beta=self.beta)


@MODELS.register_module()
class L1Loss(ElementwiseLoss):
    """Absolute difference."""

    learns = "coordinates"

    allows_empty_target = True

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return l1_loss(pred, target)
