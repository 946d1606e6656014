"""Balanced L1 loss of Libra R-CNN, Pang et al., https://arxiv.org/abs/1904.02701."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detkit.losses.reduction import ElementwiseLoss, check_number
from detkit.registry import MODELS

__all__ = ["BalancedL1Loss", "balanced_l1_loss"]


def balanced_l1_loss(
    pred: Tensor, target: Tensor, *, beta: float = 1.0, alpha: float = 0.5, gamma: float = 1.5
) -> Tensor:
    """Smooth L1 with a larger gradient for small differences.

    The paper has ``beta`` = 1; for another one the slopes of the two parts do not quite meet, as in MMDetection.

    Args:
        pred: (...).
        target: Same shape.
        beta: Difference at which the loss becomes linear, > 0.
        alpha: How much small differences count, > 0; the smaller, the more.
        gamma: Slope of the linear part, > 0.

    Returns:
        Loss per element, same shape.
    """
    diff = (pred - target).abs()
    b = math.exp(gamma / alpha) - 1  # so that the slope at beta, alpha ln(b + 1), is gamma
    inner = alpha / b * (b * diff + 1) * (b * diff / beta + 1).log() - alpha * diff
    return torch.where(diff < beta, inner, gamma * diff + gamma / b - alpha * beta)


@MODELS.register_module()
class BalancedL1Loss(ElementwiseLoss):
    """Balanced L1 loss.

    Args:
        alpha: How much small differences count, > 0.
        gamma: Slope of the linear part, > 0.
        beta: Difference at which the loss becomes linear, > 0.
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.

    Raises:
        ValueError: Unknown reduction, or an argument out of range.
    """

    learns = "coordinates"

    allows_empty_target = True

    def __init__(
        self,
        alpha: float = 0.5,
        gamma: float = 1.5,
        beta: float = 1.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        for name, value in (("alpha", alpha), ("gamma", gamma), ("beta", beta)):
            check_number(type(self).__name__, name, value, above=0)
        self.alpha = alpha
        self.gamma = gamma
        self.beta = beta

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return balanced_l1_loss(pred, target, beta=self.beta, alpha=self.alpha, gamma=self.gamma)
