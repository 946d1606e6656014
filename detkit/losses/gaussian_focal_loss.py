"""Focal loss of heatmaps (CornerNet, https://arxiv.org/abs/1808.01244; CenterNet, https://arxiv.org/abs/1904.07850)."""

from __future__ import annotations

from torch import Tensor

from detkit.losses.focal_loss import focusing
from detkit.losses.labels import check_range, has_classes
from detkit.losses.reduction import ElementwiseLoss, check_number, match_weight
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = ["GaussianFocalLoss", "gaussian_focal_loss"]

# Keeps the logarithm finite at 0.
EPS = 1e-12


def _positive(pred: Tensor, alpha: float) -> Tensor:
    return -(pred + EPS).log() * focusing(1 - pred, alpha)


def _negative(pred: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    return -(1 - pred + EPS).log() * focusing(pred, alpha) * (1 - target).pow(gamma)


def gaussian_focal_loss(
    pred: Tensor,
    target: Tensor,
    *,
    alpha: float = 2.0,
    gamma: float = 4.0,
    pos_weight: float = 1.0,
    neg_weight: float = 1.0,
) -> Tensor:
    """Focal loss with less weight on negatives near a centre, CornerNet eq. 1.

    Args:
        pred: Probabilities (...) in [0, 1].
        target: Same shape, in [0, 1]; 1 at the centres, a Gaussian around them.
        alpha: Focusing exponent, >= 0.
        gamma: How fast the weight of a negative falls towards a centre, >= 0.
        pos_weight: Factor at the centres.
        neg_weight: Factor elsewhere.

    Returns:
        Loss per element, same shape.
    """
    positive = _positive(pred, alpha) * (target == 1)
    return pos_weight * positive + neg_weight * _negative(pred, target, alpha, gamma)


@MODELS.register_module()
class GaussianFocalLoss(ElementwiseLoss):
    """Focal loss of heatmaps.

    Args:
        alpha: Focusing exponent, >= 0.
        gamma: How fast the weight of a negative falls towards a centre, >= 0.
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
        pos_weight: Factor at the centres.
        neg_weight: Factor elsewhere.

    Raises:
        TypeError: A number was expected.
        ValueError: A number out of range, or an unknown reduction.
    """

    learns = "heatmaps"

    def __init__(
        self,
        alpha: float = 2.0,
        gamma: float = 4.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        pos_weight: float = 1.0,
        neg_weight: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        name = type(self).__name__
        check_number(name, "alpha", alpha, low=0)
        check_number(name, "gamma", gamma, low=0)
        check_number(name, "pos_weight", pos_weight)
        check_number(name, "neg_weight", neg_weight)
        self.alpha = alpha
        self.gamma = gamma
        self.pos_weight = pos_weight
        self.neg_weight = neg_weight

    def forward(  # type: ignore[override]  # MMDetection's order of arguments
        self,
        pred: Tensor,
        target: Tensor,
        pos_inds: Tensor | None = None,
        pos_labels: Tensor | None = None,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Weighted, reduced loss.

        With ``pos_inds`` (CenterNet2, https://arxiv.org/abs/2103.07461) the positives are these, as often as
        they are named, and every element is a negative; each of the two parts is reduced by itself.

        Args:
            pred: Probabilities (...); (M, C) with ``pos_inds``.
            target: Same shape, in [0, 1].
            pos_inds: Rows (P,) of the positives, integers.
            pos_labels: Class (P,) of each.
            weight: Factor per element, broadcastable to ``pred``.
            avg_factor: See ``weight_reduce_loss``; the number of objects, usually.
            reduction_override: Used instead of ``reduction``.

        Returns:
            0-d; the loss per element with reduction ``none``.

        Raises:
            ValueError: Unknown reduction, ``sum`` with ``avg_factor``, shapes that do not fit, ``pos_inds`` without
                ``pos_labels``, with a mask or with reduction ``none``.
            RuntimeError: A positive outside the heatmap, see ``check_range``.
        """
        name = type(self).__name__
        reduction = self.resolve(avg_factor, reduction_override)
        pred, target = full_precision(pred, target)
        if pred.shape != target.shape:
            raise ValueError(f"{name}: pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape")
        if pos_inds is None:
            loss = gaussian_focal_loss(
                pred,
                target,
                alpha=self.alpha,
                gamma=self.gamma,
                pos_weight=self.pos_weight,
                neg_weight=self.neg_weight,
            )
            return self.reduced(loss, weight, avg_factor, reduction_override)
        if pos_labels is None or reduction == "none":
            raise ValueError(
                f"{name}: pos_inds needs pos_labels, and reduction 'mean' or 'sum', because positives "
                f"and negatives differ in number; got pos_labels={pos_labels}, reduction={reduction!r}"
            )
        _check_positives(pos_inds, pos_labels, pred, name)
        weight = match_weight(weight, pred, name)
        pos_inds, pos_labels = pos_inds.long(), pos_labels.long()
        positive = _positive(pred[pos_inds, pos_labels], self.alpha)
        pos_weight = None if weight is None else weight.expand_as(pred)[pos_inds, pos_labels]
        negative = _negative(pred, target, self.alpha, self.gamma)
        return self.pos_weight * self.reduced(
            positive, pos_weight, avg_factor, reduction_override
        ) + self.neg_weight * self.reduced(negative, weight, avg_factor, reduction_override)


def _check_positives(rows: Tensor, labels: Tensor, pred: Tensor, name: str) -> None:
    if pred.dim() != 2 or rows.dim() != 1 or rows.shape != labels.shape:
        raise ValueError(
            f"{name}: pos_inds and pos_labels (P,) were expected for pred (M, C), got {tuple(rows.shape)}, "
            f"{tuple(labels.shape)} and {tuple(pred.shape)}"
        )
    if not (has_classes(rows) and has_classes(labels)):
        raise ValueError(f"{name}: pos_inds and pos_labels are integers, got {rows.dtype} and {labels.dtype}")
    for values, end, what in ((rows, pred.shape[0], "row"), (labels, pred.shape[1], "class")):
        check_range(values, end, f"{name}: the {what} of a positive lies outside [0, {end})")
