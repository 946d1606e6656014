"""Generalized focal loss, Li et al., https://arxiv.org/abs/2006.04388: quality scores and box distributions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.losses.cross_entropy_loss import cross_entropy_of_probability
from detkit.losses.focal_loss import focusing
from detkit.losses.labels import check_labels, check_probabilities, check_range
from detkit.losses.reduction import ElementwiseLoss, check_number
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


def quality_focal_loss(pred: Tensor, target: Tensor, *, beta: float = 2.0) -> Tensor:
    """Quality focal loss of logits, eq. 5.

    Args:
        pred: Logits (N, C).
        target: Quality in [0, 1] at the class of a positive, else 0; (N, C).
        beta: Focusing exponent, >= 0.

    Returns:
        Sum over the classes (N,).
    """
    return _of_logits(pred, target, beta).sum(dim=-1)


def quality_focal_loss_with_prob(pred: Tensor, target: Tensor, *, beta: float = 2.0) -> Tensor:
    """As :func:`quality_focal_loss`, of probabilities in [0, 1]."""
    return _of_probabilities(pred, target, beta).sum(dim=-1)


def quality_focal_loss_of_labels(
    pred: Tensor, label: Tensor, quality: Tensor, *, beta: float = 2.0, activated: bool = False
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
        loss = F.softplus(pred) * focusing(pred.sigmoid(), beta)
        own = _of_logits(pred.gather(1, index), quality, beta)
    return loss.scatter_(1, index, own).sum(dim=1)


def _of_logits(pred: Tensor, target: Tensor, beta: float) -> Tensor:
    cross_entropy = F.binary_cross_entropy_with_logits(pred, target, reduction="none")
    return cross_entropy * focusing((target - pred.sigmoid()).abs(), beta)


def _of_probabilities(pred: Tensor, target: Tensor, beta: float) -> Tensor:
    return cross_entropy_of_probability(pred, target) * focusing((target - pred).abs(), beta)


def distribution_focal_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of the two bins around a distance, eq. 6.

    Args:
        pred: Logits (N, n + 1) of the distances 0 ... n.
        target: Distance (N,) in [0, n).

    Returns:
        (N,).
    """
    left = target.floor()
    log_prob = pred.log_softmax(dim=-1)
    index = torch.stack([left, left + 1], dim=-1).long()
    share = torch.stack([left + 1 - target, target - left], dim=-1)
    return -(log_prob.gather(-1, index) * share).sum(dim=-1)


@MODELS.register_module()
class QualityFocalLoss(ElementwiseLoss):
    """Focal loss whose target at the true class is the quality of the box.

    Args:
        use_sigmoid: Must be True; a softmax form is not defined.
        beta: Focusing exponent, >= 0.
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
        activated: Whether ``pred`` holds probabilities instead of logits.

    Raises:
        TypeError: A number was expected.
        ValueError: A number out of range, an unknown reduction, or ``use_sigmoid=False``.
    """

    learns = "labels with qualities"

    def __init__(
        self,
        use_sigmoid: bool = True,
        beta: float = 2.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__(reduction, loss_weight)
        if not use_sigmoid:
            raise ValueError(f"{type(self).__name__}: use_sigmoid=False has no definition")
        check_number(type(self).__name__, "beta", beta, low=0)
        self.use_sigmoid = use_sigmoid
        self.beta = beta
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

        Returns:
            0-d; (N,) with reduction ``none``.

        Raises:
            TypeError: ``target`` is neither a tensor nor a pair of them.
            ValueError: Unknown reduction, ``sum`` with ``avg_factor``, or shapes that do not fit.
            RuntimeError: A label above C or a probability outside [0, 1], see ``check_range``.
        """
        self.resolve(avg_factor, reduction_override)
        (pred,) = full_precision(pred)
        if self.activated:
            check_probabilities(pred, type(self).__name__)
        loss = self._per_class(pred, target) if isinstance(target, Tensor) else self._of_labels(pred, target)
        return self.reduced(loss, weight, avg_factor, reduction_override)

    def _per_class(self, pred: Tensor, target: Tensor) -> Tensor:
        if target.shape != pred.shape:
            raise ValueError(
                f"{type(self).__name__}: pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape"
            )
        function = quality_focal_loss_with_prob if self.activated else quality_focal_loss
        return function(pred, target.to(pred.dtype), beta=self.beta)

    def _of_labels(self, pred: Tensor, target: Sequence[Tensor]) -> Tensor:
        name = type(self).__name__
        if not (isinstance(target, Sequence) and all(isinstance(part, Tensor) for part in target)):
            raise TypeError(f"{name}: target is a tensor, or a pair of labels and qualities, got {target!r}")
        shapes = [tuple(part.shape) for part in target]
        if pred.dim() != 2 or shapes != [pred.shape[:1]] * 2:
            raise ValueError(
                f"{name}: target is a pair of labels and qualities (N,) for pred (N, C), here {tuple(pred.shape)}; "
                f"got {len(shapes)} tensors of shape {shapes}"
            )
        label, quality = target
        check_labels(label.clamp(min=0), pred.shape[-1], name)
        quality = quality.to(pred.dtype)
        return quality_focal_loss_of_labels(pred, label, quality, beta=self.beta, activated=self.activated)


@MODELS.register_module()
class DistributionFocalLoss(ElementwiseLoss):
    """Loss of a distance that is predicted as a distribution over whole numbers.

    ``pred`` are logits (N, n + 1), ``target`` distances (N,) in [0, n), ``weight`` is per distance (N,).
    """

    learns = "distributions of distances"

    same_shape = False

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        name = type(self).__name__
        if pred.dim() == 0 or target.shape != pred.shape[:-1]:
            raise ValueError(
                f"{name}: target {tuple(target.shape)} does not fit pred {tuple(pred.shape)}; "
                "distances (N,) and logits (N, n + 1) were expected"
            )
        last = pred.shape[-1] - 1
        check_range(target, last, f"{name}: a distance lies outside [0, {last})")
        return distribution_focal_loss(pred, target)
