"""What every loss does around its own mathematics: precision, weighting, averaging, reduction."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from detkit.structures.precision import full_precision

__all__ = ["ElementwiseLoss", "resolve_reduction", "weight_per_element", "weight_reduce_loss"]

REDUCTIONS = ("none", "mean", "sum")


def resolve_reduction(reduction: str, name: str) -> str:
    """``reduction`` itself, or a ValueError that names the loss."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"{name}: reduction {reduction!r} is not one of {', '.join(map(repr, REDUCTIONS))}")
    return reduction


def weight_per_element(weight: Tensor | None, loss: Tensor, name: str) -> Tensor | None:
    """Weights made broadcastable to a loss per sample and class.

    Args:
        weight: Per sample (N,), per element in one row (N * C,), or of as many dimensions as ``loss``.
        loss: (N, C, ...).
        name: Who asks, for the message.

    Raises:
        ValueError: ``weight`` is none of these.
    """
    if weight is None or weight.dim() == loss.dim():
        return weight
    if weight.dim() == 1 and len(weight) == len(loss):
        return weight.view(-1, *([1] * (loss.dim() - 1)))
    if weight.numel() == loss.numel():
        return weight.view(loss.shape)
    raise ValueError(f"{name}: weight {tuple(weight.shape)} fits neither samples nor elements {tuple(loss.shape)}")


def weight_reduce_loss(
    loss: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """Weigh, then reduce.

    Args:
        loss: Loss per element, any shape.
        weight: Factor per element, broadcastable to ``loss``.
        reduction: ``none``, ``mean`` or ``sum``.
        avg_factor: What ``mean`` divides the sum by instead of the number of elements. A 0-d tensor
            stays on its device. ``none`` does not use it.

    Raises:
        ValueError: ``sum`` with ``avg_factor``.
    """
    if weight is not None:
        loss = loss * weight
    if reduction == "none":
        return loss
    if reduction == "sum":
        if avg_factor is not None:
            raise ValueError('avg_factor can not be used with reduction="sum"')
        return loss.sum()
    if avg_factor is not None:
        # The epsilon makes 0 objects of 0 weight a loss of 0.
        return loss.sum() / (avg_factor + torch.finfo(torch.float32).eps)
    return loss.mean() if loss.numel() > 0 else loss.sum()


class ElementwiseLoss(nn.Module, ABC):
    """Contract of a regression loss on pairs of equal shape; a subclass states ``elementwise`` only.

    Computes in float32 under autocast. Empty input gives a zero that carries gradient.

    Args:
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
    """

    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__()
        self.reduction = resolve_reduction(reduction, type(self).__name__)
        self.loss_weight = loss_weight

    @abstractmethod
    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        """Loss of each element, same shape as ``pred``."""

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Weighted, reduced loss.

        Args:
            pred: (N, ...).
            target: Same shape; or empty, which means that there is nothing to learn.
            weight: Broadcastable to ``pred`` with the same number of dimensions.
            avg_factor: See :func:`weight_reduce_loss`.
            reduction_override: Used instead of ``reduction``.

        Raises:
            ValueError: Unknown reduction, or shapes that do not fit.
        """
        name = type(self).__name__
        reduction = resolve_reduction(reduction_override or self.reduction, name)
        if target.numel() == 0:
            zero = weight_reduce_loss(pred * 0, None, reduction, avg_factor)
            return self.loss_weight * zero
        if pred.shape != target.shape:
            raise ValueError(f"{name}: pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape")
        if weight is not None and weight.dim() != pred.dim():
            raise ValueError(f"{name}: weight {tuple(weight.shape)} does not fit pred {tuple(pred.shape)}")
        loss = self.elementwise(*full_precision(pred, target))
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)
