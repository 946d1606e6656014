"""Generalized focal loss, Li et al., https://arxiv.org/abs/2006.04388: quality scores and box distributions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.losses.cross_entropy_loss import cross_entropy_of_probability
from detkit.losses.labels import check_labels, check_range
from detkit.losses.reduction import ElementwiseLoss, resolve_reduction, weight_reduce_loss
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = [
    "DistributionFocalLoss",
    "QualityFocalLoss",
    "distribution_focal_loss",
    "quality_focal_loss",
    "quality_focal_loss_of_labels",
    "quality_focal_loss_with_prob",
]


def quality_focal_loss(pred: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss of logits, eq. 5.

    Args:
        pred: Logits (N, C).
        target: Quality in [0, 1] at the class of a positive, else 0; (N, C).
        beta: Focusing exponent, >= 0.

    Returns:
        Sum over the classes (N,).
    """
    return _of_logits(pred, target, beta).sum(dim=-1)


def quality_focal_loss_with_prob(pred: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """As :func:`quality_focal_loss`, of probabilities in [0, 1]."""
    return _of_probabilities(pred, target, beta).sum(dim=-1)


def quality_focal_loss_of_labels(
    pred: Tensor, label: Tensor, quality: Tensor, beta: float = 2.0, activated: bool = False
) -> Tensor:
    """The same from labels, without the targets: all elements as negatives, then one of each sample by its quality.

    Args:
        pred: Logits, or probabilities where ``activated``, (N, C).
        label: (N,) in [0, C); any other is background.
        quality: (N,) in [0, 1], of a background sample without meaning.
        beta: Focusing exponent, >= 0.
        activated: Whether ``pred`` holds probabilities.

    Returns:
        Sum over the classes (N,).
    """
    positive = ((label >= 0) & (label < pred.shape[-1])).unsqueeze(1)
    index = torch.where(positive, label.unsqueeze(1), 0).long()
    quality = torch.where(positive, quality.unsqueeze(1), 0)
    if activated:
        loss = _of_probabilities(pred, torch.zeros_like(pred), beta)
        own = _of_probabilities(pred.gather(1, index), quality, beta)
    else:
        loss = F.softplus(pred) * _focus(pred.sigmoid(), beta)
        own = _of_logits(pred.gather(1, index), quality, beta)
    return loss.scatter_(1, index, own).sum(dim=1)


def _of_logits(pred: Tensor, target: Tensor, beta: float) -> Tensor:
    cross_entropy = F.binary_cross_entropy_with_logits(pred, target, reduction="none")
    return cross_entropy * _focus((target - pred.sigmoid()).abs(), beta)


def _of_probabilities(pred: Tensor, target: Tensor, beta: float) -> Tensor:
    return cross_entropy_of_probability(pred, target) * _focus((target - pred).abs(), beta)


def _focus(error: Tensor, beta: float) -> Tensor:
    if 0 < beta < 1:  # the slope of a root is infinite at 0
        error = error.clamp(min=torch.finfo(error.dtype).eps)
    return error.pow(beta)


def distribution_focal_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of the two bins around a distance, eq. 6.

    Args:
        pred: Logits (N, n + 1) of the distances 0 ... n.
        target: Distance (N,) in [0, n).

    Returns:
        (N,).
    """
    left = target.detach().floor()
    log_prob = pred.log_softmax(dim=-1)
    index = torch.stack([left, left + 1], dim=-1).long()
    share = torch.stack([left + 1 - target, target - left], dim=-1)
    return -(log_prob.gather(-1, index) * share).sum(dim=-1)


@MODELS.register_module()
class QualityFocalLoss(nn.Module):
    """Focal loss whose target at the true class is the quality of the box.

    Args:
        use_sigmoid: Must be True; a softmax form is not defined.
        beta: Focusing exponent, >= 0.
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
        activated: Whether ``pred`` holds probabilities instead of logits.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        beta: float = 2.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__()
        if not use_sigmoid:
            raise ValueError("QualityFocalLoss: use_sigmoid=False has no definition")
        self.use_sigmoid = use_sigmoid
        self.beta = beta
        self.reduction = resolve_reduction(reduction, "QualityFocalLoss")
        self.loss_weight = loss_weight
        self.activated = activated

    def forward(
        self,
        pred: Tensor,
        target: Tensor | Sequence[Tensor],
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Weighted, reduced loss per sample.

        Args:
            pred: Logits, or probabilities where ``activated``, (N, C).
            target: Labels (N,), of which C and negative ones are background, with quality (N,) in [0, 1]; or
                quality per class (N, C).
            weight: Factor per sample (N,).
            avg_factor: See ``weight_reduce_loss``.
            reduction_override: Used instead of ``reduction``.

        Raises:
            ValueError: Unknown reduction, or shapes that do not fit.
            RuntimeError: A label above C, on the CPU.
        """
        reduction = resolve_reduction(reduction_override or self.reduction, "QualityFocalLoss")
        (pred,) = full_precision(pred)
        if weight is not None and weight.shape != pred.shape[:1]:
            raise ValueError(f"QualityFocalLoss: weight is per sample (N,), got {tuple(weight.shape)}")
        loss = self._per_class(pred, target) if isinstance(target, Tensor) else self._of_labels(pred, target)
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)

    def _per_class(self, pred: Tensor, target: Tensor) -> Tensor:
        if target.shape != pred.shape:
            raise ValueError(
                f"QualityFocalLoss: pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape"
            )
        function = quality_focal_loss_with_prob if self.activated else quality_focal_loss
        return function(pred, target.to(pred.dtype), self.beta)

    def _of_labels(self, pred: Tensor, target: Sequence[Tensor]) -> Tensor:
        shapes = [tuple(part.shape) for part in target]
        if shapes != [pred.shape[:1]] * 2:
            raise ValueError(
                f"QualityFocalLoss: target is a pair of labels and qualities (N,) for pred {tuple(pred.shape)}, "
                f"got {len(shapes)} tensors of shape {shapes}"
            )
        label, quality = target
        check_labels(label.clamp(min=0), pred.shape[-1], "QualityFocalLoss")
        return quality_focal_loss_of_labels(pred, label, quality.to(pred.dtype), self.beta, self.activated)


@MODELS.register_module()
class DistributionFocalLoss(ElementwiseLoss):
    """Loss of a distance that is predicted as a distribution over whole numbers.

    ``pred`` are logits (N, n + 1), ``target`` distances (N,) in [0, n), ``weight`` is per distance (N,).
    """

    same_shape = False

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        last = pred.shape[-1] - 1
        if target.shape != pred.shape[:-1]:
            raise ValueError(
                f"DistributionFocalLoss: target {tuple(target.shape)} does not fit pred {tuple(pred.shape)}; "
                "distances (N,) and logits (N, n + 1) were expected"
            )
        check_range(target, last, f"DistributionFocalLoss: a distance lies outside [0, {last})")
        return distribution_focal_loss(pred, target)
