"""Squared error of similarities that should be 0 or 1, with margins and mined negatives.

As in QDTrack, Pang et al., https://arxiv.org/abs/2006.06664.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.losses.mse_loss import mse_loss
from detkit.losses.reduction import ElementwiseLoss, check_number
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = ["L2Loss", "apply_margins", "keep_negatives", "l2_loss"]


# MMDetection has it under both names.
l2_loss = mse_loss


def apply_margins(
    pred: Tensor, positive: Tensor, negative: Tensor, pos_margin: float = -1, neg_margin: float = -1
) -> Tensor:
    """Similarities less their margin, in [0, 1].

    Args:
        pred: (...).
        positive: Which elements should be 1, same shape.
        negative: Which elements should be 0, same shape.
        pos_margin: Taken from the positives, where > 0.
        neg_margin: Taken from the negatives, where > 0: a negative below it costs nothing.
    """
    if pos_margin > 0:
        pred = pred - pos_margin * positive
    if neg_margin > 0:
        pred = pred - neg_margin * negative
    return pred.clamp(min=0, max=1)


def keep_negatives(negative: Tensor, num: Tensor, rank_by: Tensor) -> Tensor:
    """The ``num`` negatives with the largest keys.

    Args:
        negative: (...) bool.
        num: How many to keep, 0-d; all, where there are fewer.
        rank_by: Keys >= 0, same shape.

    Returns:
        (...) bool, a subset of ``negative``.
    """
    # A rank instead of topk, which would need the number on the host.
    order = rank_by.masked_fill(~negative, -1).flatten().argsort(descending=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    return negative & (rank.view(negative.shape) < num)


@MODELS.register_module()
class L2Loss(ElementwiseLoss):
    """Squared error; targets are 1 for positives and 0 for negatives. Also registered as ``MarginL2Loss``.

    The mean is over the elements of positive weight that are left after mining, whatever ``avg_factor`` says;
    therefore ``sum``, which excludes an average factor, is refused.

    Args:
        neg_pos_ub: Most negatives per positive; all, where <= 0.
        pos_margin: Taken from the similarity of positives, where > 0.
        neg_margin: Taken from the similarity of negatives, where > 0.
        hard_mining: Whether to keep the negatives of highest loss instead of random ones.
        reduction: ``none`` or ``mean``.
        loss_weight: Factor on the result.

    Raises:
        TypeError: A number was expected.
        ValueError: Unknown reduction, or ``sum``.
    """

    learns = "similarities"

    counts_itself = True

    def __init__(
        self,
        neg_pos_ub: float = -1,
        pos_margin: float = -1,
        neg_margin: float = -1,
        hard_mining: bool = False,
        reduction: str = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        for name, value in (("neg_pos_ub", neg_pos_ub), ("pos_margin", pos_margin), ("neg_margin", neg_margin)):
            check_number(type(self).__name__, name, value)
        self.neg_pos_ub = neg_pos_ub
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin
        self.hard_mining = hard_mining

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
            pred: Similarities (N, M); what lies outside [0, 1] is clamped.
            target: Same shape; 1 positive, 0 negative.
            weight: Same shape; an element of weight <= 0 is neither.
            avg_factor: Not used, see above; accepted because heads pass it.
            reduction_override: Used instead of ``reduction``.

        Returns:
            0-d; (N, M) with reduction ``none``.

        Raises:
            ValueError: Unknown reduction or ``sum``, or shapes that do not fit.
        """
        name = type(self).__name__
        self.resolve(avg_factor, reduction_override)
        for other, what in ((target, "target"), (weight, "weight")):
            if other is not None and other.shape != pred.shape:
                raise ValueError(f"{name}: {what} {tuple(other.shape)} does not fit pred {tuple(pred.shape)}")
        pred, target = full_precision(pred, target)
        weight = torch.ones_like(pred) if weight is None else weight.to(pred.dtype).clamp(min=0)
        positive, negative = (target == 1) & (weight > 0), (target == 0) & (weight > 0)
        pred = apply_margins(pred, positive, negative, self.pos_margin, self.neg_margin)
        loss = l2_loss(pred, target)
        if self.neg_pos_ub > 0:
            kept = keep_negatives(
                negative,
                num=(positive.sum() * self.neg_pos_ub).floor(),
                rank_by=loss.detach() if self.hard_mining else torch.rand_like(loss),
            )
            weight = weight * (kept | ~negative)
        return self.reduced(loss, weight, (weight > 0).sum(), reduction_override)
