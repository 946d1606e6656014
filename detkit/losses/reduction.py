"""What every loss does around its own mathematics: checks, precision, weighting, averaging, reduction."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, distributed, nn

from detkit.structures.precision import full_precision

__all__ = [
    "ElementwiseLoss",
    "check_avg_factor",
    "check_number",
    "match_weight",
    "reduce_loss",
    "reduce_mean",
    "resolve_counted_reduction",
    "resolve_reduction",
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


def check_avg_factor(reduction: str, avg_factor: float | Tensor | None, name: str) -> None:
    """Refuse an ``avg_factor`` beside the reduction ``sum``; ``name`` is who asks."""
    if reduction == "sum" and avg_factor is not None:
        raise ValueError(f'{name}: avg_factor can not be used with reduction="sum"')


def check_number(
    name: str,
    argument: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    whole: bool = False,
) -> None:
    """Refuse a constructor's argument that is no number, or not one in [low, high] above ``above``.

    Args:
        name: Who asks, for the message.
        argument: What the value is called there.
        value: What was given.
        low: Least value.
        high: Greatest value.
        above: What the value exceeds.
        whole: Whether it must be an integer.

    Raises:
        TypeError: Not a number, or not an integer where ``whole``.
        ValueError: Out of range.
    """
    if not isinstance(value, Integral if whole else Real):
        raise TypeError(f"{name}: {argument} must be {'an integer' if whole else 'a number'}, got {value!r}")
    number = float(value)
    if not (low <= number <= high and (above == -math.inf or number > above)):
        bounds = ((">", above), (">=", low), ("<=", high))
        wanted = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
        raise ValueError(f"{name}: {argument} must be {wanted or 'a number'}, got {value!r}")


def match_weight(
    weight: Tensor | None, loss: Tensor, name: str, per_sample: bool = False, per_coordinate: bool = False
) -> Tensor | None:
    """Weights brought to the dimensions of a loss.

    Args:
        weight: Broadcastable to ``loss`` with as many dimensions, or one of the two below; integers and bool count
            as floats.
        loss: (N, ...).
        name: Who asks, for the message.
        per_sample: Whether weights may have the first dimensions of ``loss`` only, (N,), or all its elements in
            another shape, (N * C,).
        per_coordinate: Whether weights may be per coordinate (..., 4) of a loss per box (...); their mean counts.

    Raises:
        ValueError: ``weight`` is none of these.
    """
    if weight is None:
        return None
    if not weight.is_floating_point():
        weight = weight.to(loss.dtype)
    if weight.dim() == loss.dim() and all(w in (1, n) for w, n in zip(weight.shape, loss.shape, strict=True)):
        return weight
    if per_coordinate and weight.shape == (*loss.shape, 4):
        return full_precision(weight)[0].mean(dim=-1)
    if per_sample and 0 < weight.dim() < loss.dim() and weight.shape == loss.shape[: weight.dim()]:
        return weight[(...,) + (None,) * (loss.dim() - weight.dim())]
    if per_sample and weight.dim() != loss.dim() and weight.numel() == loss.numel():
        return weight.reshape(loss.shape)
    raise ValueError(f"{name}: weight {tuple(weight.shape)} does not fit losses {tuple(loss.shape)}")


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
        ValueError: Unknown reduction, or ``sum`` with ``avg_factor``.
    """
    check_avg_factor(resolve_reduction(reduction, "weight_reduce_loss"), avg_factor, "weight_reduce_loss")
    if weight is not None:
        loss = loss * weight
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if avg_factor is not None:
        # The epsilon makes 0 objects of 0 weight a loss of 0.
        return loss.sum() / (avg_factor + torch.finfo(torch.float32).eps)
    return loss.mean() if loss.numel() > 0 else loss.sum()


def reduce_mean(value: Tensor, least: float = 0.0) -> Tensor:
    """Mean over the processes of a distributed run of a number, or several, to divide losses by.

    DDP averages gradients over the processes: with this divisor they are those of one process with all images. What
    is computed without gradients is averaged by nobody, and there processes may hold unequal numbers of batches, so
    ``value`` stays the process's own.

    Args:
        value: () number, or (L,) numbers, of this process, on any device.
        least: Least sum over all processes.

    Returns:
        Of its shape, without gradient where it is a mean; ``value`` itself where there is one process and ``least``
        is 0.
    """
    processes = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    if processes > 1 and torch.is_grad_enabled():
        value = value.detach() / processes
        distributed.all_reduce(value)
        least = least / processes
    return value.clamp(min=least) if least > 0 else value


def weighted_loss(elementwise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: gives a loss function of ``(pred, target, ...)`` MMDetection's weighting and reduction.

    The result is called as ``(pred, target, weight=None, reduction="mean", avg_factor=None, ...)``. Half precision is
    computed in float32. ``target`` has the shape of ``pred`` or lacks the last dimension; ``weight`` is as in
    :func:`match_weight`; the ValueErrors name the function.
    """
    name = elementwise.__name__

    @functools.wraps(elementwise)
    def weighted(
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        reduction: str = "mean",
        avg_factor: float | Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        check_avg_factor(resolve_reduction(reduction, name), avg_factor, name)
        pred, target = full_precision(pred, target)
        if target.shape not in (pred.shape, pred.shape[:-1]):
            raise ValueError(f"{name}: target {tuple(target.shape)} does not fit pred {tuple(pred.shape)}")
        loss = elementwise(pred, target, **kwargs)
        return weight_reduce_loss(loss, match_weight(weight, loss, name), reduction, avg_factor)

    return weighted


class ElementwiseLoss(nn.Module):
    """Contract of every loss; one with a value per element or per sample states ``elementwise`` only.

    Computes in float32 under autocast. Empty input gives a zero that carries gradient. A loss that is called in
    another way has a ``forward`` of its own, which ends in :meth:`reduced`.

    Args:
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.

    Raises:
        TypeError: ``loss_weight`` is not a number.
        ValueError: Unknown reduction.
    """

    # Whether pred and target must have one shape; a loss of labels or distributions says False and checks its own.
    same_shape = True
    # Whether an empty target beside predictions means that there is nothing to learn, instead of a mistake.
    allows_empty_target = False
    # Which weights fit besides those that broadcast, see match_weight.
    weight_per_sample = False
    weight_per_coordinate = False
    # Whether the loss counts its own avg_factor, which excludes 'sum'.
    counts_itself = False

    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__()
        self.reduction = reduction
        self.resolve()
        check_number(type(self).__name__, "loss_weight", loss_weight)
        self.loss_weight = loss_weight

    def resolve(self, avg_factor: float | Tensor | None = None, reduction_override: str | None = None) -> str:
        """Reduction that holds; a ValueError for one that is unknown, or ``sum`` with an ``avg_factor``."""
        name = type(self).__name__
        reduction = self.reduction if reduction_override is None else reduction_override
        if self.counts_itself:
            return resolve_counted_reduction(reduction, name)
        check_avg_factor(resolve_reduction(reduction, name), avg_factor, name)
        return reduction

    def reduced(
        self,
        loss: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """``loss`` weighted, reduced, times ``loss_weight``.

        Args:
            loss: (N, ...).
            weight: See :func:`match_weight`.
            avg_factor: See :func:`weight_reduce_loss`.
            reduction_override: Used instead of ``reduction``.

        Raises:
            ValueError: Unknown reduction, ``sum`` with ``avg_factor``, or a weight that does not fit.
        """
        reduction = self.resolve(avg_factor, reduction_override)
        weight = match_weight(weight, loss, type(self).__name__, self.weight_per_sample, self.weight_per_coordinate)
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        """Loss of each element, same shape as ``pred``, or of each sample (N,)."""
        raise NotImplementedError(f"{type(self).__name__} has neither elementwise nor a forward of its own")

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
            target: Same shape, unless the loss says otherwise.
            weight: See :func:`match_weight`.
            avg_factor: See :func:`weight_reduce_loss`.
            reduction_override: Used instead of ``reduction``.

        Returns:
            0-d; the loss per element or sample with reduction ``none``.

        Raises:
            ValueError: Unknown reduction, ``sum`` with ``avg_factor``, or shapes that do not fit.
        """
        self.resolve(avg_factor, reduction_override)
        pred, target = full_precision(pred, target)
        if self.allows_empty_target and target.numel() == 0 and pred.numel() > 0:
            return self.reduced(pred * 0, None, avg_factor, reduction_override)
        if self.same_shape and pred.shape != target.shape:
            raise ValueError(
                f"{type(self).__name__}: pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape"
            )
        return self.reduced(self.elementwise(pred, target), weight, avg_factor, reduction_override)
