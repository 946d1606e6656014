"""What every loss does around its own mathematics: precision, weighting, averaging, reduction."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from detkit.structures.precision import full_precision

__all__ = [
    "ElementwiseLoss",
    "match_weight",
    "reduce_loss",
    "reduce_mean",
    "resolve_counted_reduction",
    "resolve_reduction",
    "weight_per_element",
    "weight_reduce_loss",
    "weighted_loss",
]

REDUCTIONS = ("none", "mean", "sum")


def resolve_reduction(reduction: str, name: str) -> str:
    """``reduction`` itself, or a ValueError that names the loss."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"{name}: reduction {reduction!r} is not one of {', '.join(map(repr, REDUCTIONS))}")
    return reduction


def resolve_counted_reduction(reduction: str, name: str) -> str:
    """As :func:`resolve_reduction`, of a loss that counts its own ``avg_factor``, which excludes ``sum``."""
    if resolve_reduction(reduction, name) == "sum":
        raise ValueError(f"{name}: reduction 'sum' excludes the avg_factor that this loss counts; use 'mean' or 'none'")
    return reduction


def weight_per_element(weight: Tensor | None, loss: Tensor, name: str) -> Tensor | None:
    """Weights made broadcastable to a loss per sample and class.

    Args:
        weight: Per sample (N,), per element in one row (N * C,), or broadcastable to ``loss`` with as many dimensions.
        loss: (N, C, ...).
        name: Who asks, for the message.

    Raises:
        ValueError: ``weight`` is none of these.
    """
    if weight is None or _broadcasts(weight, loss):
        return weight
    if weight.dim() == 1 and len(weight) == len(loss):
        return weight.view(-1, *([1] * (loss.dim() - 1)))
    if weight.dim() != loss.dim() and weight.numel() == loss.numel():
        return weight.view(loss.shape)
    raise ValueError(f"{name}: weight {tuple(weight.shape)} fits neither samples nor elements {tuple(loss.shape)}")


def _broadcasts(weight: Tensor, loss: Tensor) -> bool:
    same_dim = weight.dim() == loss.dim()
    return same_dim and all(w in (1, n) for w, n in zip(weight.shape, loss.shape, strict=True))


def match_weight(weight: Tensor | None, loss: Tensor, pred: Tensor, name: str) -> Tensor | None:
    """Weights of a loss per element or per sample, brought to the dimensions of the loss.

    Args:
        weight: Broadcastable to ``loss`` with as many dimensions; or, for a loss per sample, of the shape of
            ``pred``, of which the mean over the last dimension counts.
        loss: (N, ...) of each element of ``pred``, or (N,) of each sample.
        pred: (N, ...).
        name: Who asks, for the message.

    Raises:
        ValueError: ``weight`` is none of these.
    """
    if weight is None:
        return None
    if _broadcasts(weight, loss):
        return weight
    if weight.shape == pred.shape and loss.dim() == pred.dim() - 1:
        return full_precision(weight)[0].mean(dim=-1)
    raise ValueError(f"{name}: weight {tuple(weight.shape)} does not fit pred {tuple(pred.shape)}")


def reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    """``loss`` as it is, its mean or its sum; the mean of nothing is 0."""
    return weight_reduce_loss(loss, None, resolve_reduction(reduction, "reduce_loss"))


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


def reduce_mean(value: Tensor) -> Tensor:
    """Mean over the processes of a distributed run, of a number to divide losses by; else ``value`` itself."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    mean = value.detach() / distributed.get_world_size()
    distributed.all_reduce(mean)
    return mean


def weighted_loss(elementwise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: gives a loss function of ``(pred, target, ...)`` MMDetection's weighting and reduction.

    The result is called as ``(pred, target, weight=None, reduction="mean", avg_factor=None, ...)``.
    """

    @functools.wraps(elementwise)
    def weighted(
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        reduction: str = "mean",
        avg_factor: float | Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        reduction = resolve_reduction(reduction, elementwise.__name__)
        return weight_reduce_loss(elementwise(pred, target, **kwargs), weight, reduction, avg_factor)

    return weighted


class ElementwiseLoss(nn.Module, ABC):
    """Contract of every loss that has a value per element or per sample; a subclass states ``elementwise`` only.

    Computes in float32 under autocast. Empty input gives a zero that carries gradient.

    Args:
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
    """

    # Whether pred and target must have one shape; a loss of labels or distributions says False and checks its own.
    same_shape = True

    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__()
        self.reduction = resolve_reduction(reduction, type(self).__name__)
        self.loss_weight = loss_weight

    @abstractmethod
    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        """Loss of each element, same shape as ``pred``, or of each sample (N,)."""

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
            target: Same shape, unless the loss says otherwise; or empty: there is nothing to learn.
            weight: See :func:`match_weight`.
            avg_factor: See :func:`weight_reduce_loss`.
            reduction_override: Used instead of ``reduction``.

        Raises:
            ValueError: Unknown reduction, or shapes that do not fit.
        """
        name = type(self).__name__
        reduction = resolve_reduction(reduction_override or self.reduction, name)
        pred, target = full_precision(pred, target)
        if target.numel() == 0 and pred.numel() > 0:
            return self.loss_weight * weight_reduce_loss(pred * 0, None, reduction, avg_factor)
        if self.same_shape and pred.shape != target.shape:
            raise ValueError(f"{name}: pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape")
        loss = self.elementwise(pred, target)
        weight = match_weight(weight, loss, pred, name)
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)
