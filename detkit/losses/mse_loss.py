"""Squared difference."""

from __future__ import annotations

from torch import Tensor

from detkit.losses.reduction import ElementwiseLoss
from detkit.registry import MODELS

__all__ = ["MSELoss", "mse_loss"]


def mse_loss(pred: Tensor, target: Tensor) -> Tensor:
    """``(pred - target)^2`` per element, same shape."""
    diff = pred - target
    return diff * diff


@MODELS.register_module()
class MSELoss(ElementwiseLoss):
    """Squared difference."""

    learns = "coordinates"

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return mse_loss(pred, target)
