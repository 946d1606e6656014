"""Focal loss of heatmaps (CornerNet, https://arxiv.org/abs/1808.01244; CenterNet, https://arxiv.org/abs/1904.07850)."""

from __future__ import annotations

from torch import Tensor, nn

from detkit.losses.reduction import match_weight, resolve_reduction, weight_reduce_loss
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = ["GaussianFocalLoss", "gaussian_focal_loss"]

# Keeps the logarithm finite at 0.
EPS = 1e-12


def _positive(pred: Tensor, alpha: float) -> Tensor:
    return -(pred + EPS).log() * (1 - pred).pow(alpha)


def _negative(pred: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    return -(1 - pred + EPS).log() * pred.pow(alpha) * (1 - target).pow(gamma)


def gaussian_focal_loss(
    pred: Tensor,
    target: Tensor,
    alpha: float = 2.0,
    gamma: float = 4.0,
    pos_weight: float = 1.0,
    neg_weight: float = 1.0,
) -> Tensor:
    """Focal loss with less weight on negatives near a centre, CornerNet eq. 1.

    Args:
        pred: Probabilities (...) in [0, 1].
        target: Same shape, in [0, 1]; 1 at the centres, a Gaussian around them.
        alpha: Focusing exponent.
        gamma: How fast the weight of a negative falls towards a centre.
        pos_weight: Factor at the centres.
        neg_weight: Factor elsewhere.

    Returns:
        Loss per element, same shape.
    """
    positive = _positive(pred, alpha) * (target == 1)
    return pos_weight * positive + neg_weight * _negative(pred, target, alpha, gamma)


@MODELS.register_module()
class GaussianFocalLoss(nn.Module):
    """Focal loss of heatmaps.

    Args:
        alpha: Focusing exponent.
        gamma: How fast the weight of a negative falls towards a centre.
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
        pos_weight: Factor at the centres.
        neg_weight: Factor elsewhere.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        gamma: float = 4.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        pos_weight: float = 1.0,
        neg_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = resolve_reduction(reduction, "GaussianFocalLoss")
        self.loss_weight = loss_weight
        self.pos_weight = pos_weight
        self.neg_weight = neg_weight

    def forward(
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
            pos_inds: Rows (P,) of the positives.
            pos_labels: Class (P,) of each.
            weight: Factor per element, broadcastable to ``pred``.
            avg_factor: See ``weight_reduce_loss``; the number of objects, usually.
            reduction_override: Used instead of ``reduction``.

        Raises:
            ValueError: Unknown reduction, shapes that do not fit, ``pos_inds`` without ``pos_labels`` or
                with reduction ``none``.
        """
        reduction = resolve_reduction(reduction_override or self.reduction, "GaussianFocalLoss")
        pred, target = full_precision(pred, target)
        if pred.shape != target.shape:
            raise ValueError(
                f"GaussianFocalLoss: pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape"
            )
        weight = match_weight(weight, pred, "GaussianFocalLoss")
        if pos_inds is None:
            loss = gaussian_focal_loss(pred, target, self.alpha, self.gamma, self.pos_weight, self.neg_weight)
            return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)
        if pos_labels is None or reduction == "none":
            raise ValueError(
                "GaussianFocalLoss: pos_inds needs pos_labels, and reduction 'mean' or 'sum', because positives "
                f"and negatives differ in number; got pos_labels={pos_labels}, reduction={reduction!r}"
            )
        positive = _positive(pred[pos_inds, pos_labels], self.alpha)
        pos_weight = None if weight is None else weight.expand_as(pred)[pos_inds, pos_labels]
        negative = _negative(pred, target, self.alpha, self.gamma)
        return self.loss_weight * (
            self.pos_weight * weight_reduce_loss(positive, pos_weight, reduction, avg_factor)
            + self.neg_weight * weight_reduce_loss(negative, weight, reduction, avg_factor)
        )
