"""Focal loss, Lin et al., https://arxiv.org/abs/1708.02002."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.losses.cross_entropy_loss import cross_entropy_of_probability
from detkit.losses.labels import check_labels, check_probabilities, one_hot
from detkit.losses.reduction import ElementwiseLoss, check_number
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = [
    "FocalLoss",
    "focal_loss_of_labels",
    "focal_loss_with_prob",
    "focusing",
    "sigmoid_focal_loss",
    "summed_focal_loss",
]

# Logits at a time. On a CPU a piece and its temporaries stay in the cache; elsewhere it fills the device.
CPU_CHUNK = 1 << 18
DEVICE_CHUNK = 1 << 24


def sigmoid_focal_loss(pred: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Focal loss of logits, eq. 5.

    Args:
        pred: Logits (...); minus infinity rules a class out, and costs nothing where ``target`` is False.
        target: True at the class of a positive, or 1 there and 0 elsewhere (soft targets work); same shape.
        gamma: Focusing exponent, >= 0; at 0 the loss is alpha-weighted cross entropy.
        alpha: Weight of a positive, in [0, 1]; a negative weighs ``1 - alpha``.

    Returns:
        Loss per element, same shape.
    """
    if target.dtype == torch.bool:
        wrong = torch.where(target, -pred, pred)
        return F.softplus(wrong) * torch.where(target, alpha, 1 - alpha) * focusing(wrong.sigmoid(), gamma)
    cross_entropy = F.binary_cross_entropy_with_logits(pred, target, reduction="none")
    return cross_entropy * _modulation(pred.sigmoid(), target, gamma, alpha)


def focal_loss_with_prob(pred: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """As :func:`sigmoid_focal_loss`, of probabilities in [0, 1]."""
    target = target.to(pred.dtype)
    return cross_entropy_of_probability(pred, target) * _modulation(pred, target, gamma, alpha)


def _modulation(prob: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    error = (1 - prob) * target + prob * (1 - target)
    return (alpha * target + (1 - alpha) * (1 - target)) * focusing(error, gamma)


def focusing(error: Tensor, gamma: float) -> Tensor:
    """``error ** gamma`` with a finite gradient; ``error`` (...) >= 0 and ``gamma`` >= 0, same shape."""
    if 0 < gamma < 1:  # the slope of a root is infinite at 0
        error = error.clamp(min=torch.finfo(error.dtype).eps)
    return error.pow(gamma)


def summed_focal_loss(logits: Tensor, labels: Tensor, weight: Tensor | None, gamma: float, alpha: float) -> Tensor:
    """Sum of ``weight * sigmoid_focal_loss(logits, one_hot(labels))``, without the targets or any other (N, C) tensor.

    Nearly all elements are negatives, and a negative's loss and slope are closed forms of its logit; the one
    positive of a row is written over them. The slope is computed along with the value and kept for the backward
    pass.

    Args:
        logits: (N, C).
        labels: (N,) in [0, C); any other is background.
        weight: Factor (N,) per row.
        gamma: Focusing exponent, >= 0.
        alpha: Weight of a positive, in [0, 1].

    Returns:
        () sum.
    """
    with_slope = logits.requires_grad and torch.is_grad_enabled()
    total: Tensor = _SummedFocalLoss.apply(logits, labels.long(), weight, gamma, alpha, with_slope)
    return total


class _SummedFocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None,
        gamma: float,
        alpha: float,
        with_slope: bool,
    ) -> Tensor:
        num_rows, num_classes = logits.shape
        slope = torch.empty_like(logits) if with_slope else None
        row_losses = logits.new_zeros(num_rows)
        size = max(1, (CPU_CHUNK if logits.device.type == "cpu" else DEVICE_CHUNK) // max(num_classes, 1))
        for start in range(0, num_rows if num_classes > 0 else 0, size):
            piece = slice(start, start + size)
            row_losses[piece] = _rows(
                logits[piece], labels[piece], gamma, alpha, None if slope is None else slope[piece]
            )
            if slope is not None and weight is not None:
                slope[piece].mul_(weight[piece].unsqueeze(1))
        if slope is not None:
            ctx.save_for_backward(slope, logits, labels, weight)
            ctx.gamma, ctx.alpha = gamma, alpha
        return row_losses.sum() if weight is None else (row_losses * weight).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slope, logits, labels, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # the slope itself is to be differentiated
            target = one_hot(labels, logits.shape[1], "FocalLoss")
            loss = sigmoid_focal_loss(logits, target, gamma=ctx.gamma, alpha=ctx.alpha)
            total = loss.sum() if weight is None else (loss * weight.unsqueeze(1)).sum()
            (slope,) = torch.autograd.grad(total, logits, create_graph=True)
        return slope * grad, None, None, None, None, None


def _rows(logits: Tensor, labels: Tensor, gamma: float, alpha: float, slope: Tensor | None) -> Tensor:
    """Losses (n,) of the rows of ``logits`` (n, C); their derivative goes to ``slope`` (n, C)."""
    label = labels.unsqueeze(1)
    positive = (label >= 0) & (label < logits.shape[1])
    index = label.clamp(0, logits.shape[1] - 1)
    prob = logits.sigmoid()
    own_logit, own_prob = logits.gather(1, index), prob.gather(1, index)

    # Of a negative: (1 - alpha) p^gamma log(1 + e^x), with the derivative below.
    modulation = prob.pow(gamma)
    loss = _softplus(logits).mul_(modulation).mul_(1 - alpha)
    if slope is not None:
        torch.mul(prob, modulation, out=slope).mul_(1 - alpha)
        slope.addcmul_(loss, prob.neg_().add_(1), value=gamma)

    # Of the positive: alpha (1 - p)^gamma log(1 + e^-x).
    error, cross_entropy = (-own_logit).sigmoid(), F.softplus(-own_logit)
    factor = alpha * error.pow(gamma)
    loss.scatter_(1, index, torch.where(positive, factor * cross_entropy, loss.gather(1, index)))
    if slope is not None:
        own_slope = -factor * (gamma * own_prob * cross_entropy + error)
        slope.scatter_(1, index, torch.where(positive, own_slope, slope.gather(1, index)))
    return loss.sum(dim=1)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) without gradient, of float32's accuracy at every x."""
    if x.device.type != "cpu":
        return F.softplus(x)
    # torch's log1p takes thrice as long as exp and log together. With u the rounded 1 + y, log(1 + y) is
    # log(u) + log(1 + (1 + y - u) / u), and the last logarithm is its argument but for less than a rounding.
    y = x.abs().neg_().exp_()
    u = y + 1
    rounding = (u - 1).sub_(y).div_(u)
    return u.log_().sub_(rounding).add_(x.clamp(min=0))


def focal_loss_of_labels(
    pred: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    gamma: float,
    alpha: float,
    activated: bool,
    summed: bool,
    name: str,
) -> tuple[Tensor, Tensor | None, int]:
    """Focal loss over labels: per element, or the sum of all where that is enough and faster.

    Args:
        pred: Logits, or probabilities where ``activated``, (..., C).
        labels: (...) in [0, C], C is background.
        weight: Factors of any shape that the loss takes.
        gamma: Focusing exponent, >= 0.
        alpha: Weight of a positive, in [0, 1].
        activated: Whether ``pred`` holds probabilities.
        summed: Whether the sum is enough.
        name: Who asks, for the message.

    Returns:
        Loss (..., C) or 0-d, the weights that are still to be applied, and of how many elements a 0-d loss is the sum.

    Raises:
        RuntimeError: A label outside [0, C], see ``check_range``.
    """
    num_classes = pred.shape[-1]
    if summed and not activated and _is_per_row(weight, labels):
        check_labels(labels, num_classes, name)
        rows = pred.reshape(labels.numel(), num_classes)
        row_weight = None if weight is None else weight.flatten()
        return summed_focal_loss(rows, labels.flatten(), row_weight, gamma, alpha), None, pred.numel()
    if activated:
        check_probabilities(pred, name)
    function = focal_loss_with_prob if activated else sigmoid_focal_loss
    return function(pred, one_hot(labels, num_classes, name), gamma=gamma, alpha=alpha), weight, 1


def _is_per_row(weight: Tensor | None, labels: Tensor) -> bool:
    """Whether the loss can be summed row by row.

    What a compiler traces it fuses by itself; what torch.func transforms must be made of plain operations.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return weight is None or (weight.shape == labels.shape and not weight.requires_grad)


@MODELS.register_module()
class FocalLoss(ElementwiseLoss):
    """Sigmoid focal loss over class labels or targets per class.

    Args:
        use_sigmoid: Must be True; a softmax form is not defined.
        gamma: Focusing exponent, >= 0.
        alpha: Weight of a positive, in [0, 1].
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
        activated: Whether ``pred`` holds probabilities instead of logits.

    Raises:
        TypeError: A number was expected.
        ValueError: A number out of range, an unknown reduction, or ``use_sigmoid=False``.
    """

    learns = "labels"

    weight_per_sample = True

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__(reduction, loss_weight)
        name = type(self).__name__
        if not use_sigmoid:
            raise ValueError(f"{name}: use_sigmoid=False has no definition; use CrossEntropyLoss for a softmax")
        check_number(name, "gamma", gamma, low=0)
        check_number(name, "alpha", alpha, low=0, high=1)
        self.use_sigmoid = use_sigmoid
        self.gamma = gamma
        self.alpha = alpha
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
            target: Labels (N,) in [0, C], C is background; or targets per class (N, C). Where pred has more leading
                dimensions, so have the labels.
            weight: (N,), (N, C) or (N * C,).
            avg_factor: See ``weight_reduce_loss``; the number of positives, usually.
            reduction_override: Used instead of ``reduction``.

        Returns:
            0-d; (N, C) with reduction ``none``.

        Raises:
            ValueError: Unknown reduction, ``sum`` with ``avg_factor``, or shapes that do not fit.
            RuntimeError: A label outside [0, C] or a probability outside [0, 1], see ``check_range``.
        """
        name = type(self).__name__
        reduction = self.resolve(avg_factor, reduction_override)
        (pred,) = full_precision(pred)
        of_labels = target.dim() != pred.dim()
        if pred.dim() == 0 or target.shape != (pred.shape[:-1] if of_labels else pred.shape):
            raise ValueError(
                f"{name}: target {tuple(target.shape)} does not fit pred {tuple(pred.shape)}; "
                "labels (N,) or targets (N, C) were expected"
            )
        if of_labels:
            loss, weight, count = focal_loss_of_labels(
                pred, target, weight, self.gamma, self.alpha, self.activated, reduction != "none", name
            )
            if loss.dim() == 0 and reduction == "mean" and avg_factor is None:
                avg_factor = count
            return self.reduced(loss, weight, avg_factor, reduction_override)
        if self.activated:
            check_probabilities(pred, name)
        function = focal_loss_with_prob if self.activated else sigmoid_focal_loss
        loss = function(pred, target.to(pred.dtype), gamma=self.gamma, alpha=self.alpha)
        return self.reduced(loss, weight, avg_factor, reduction_override)
