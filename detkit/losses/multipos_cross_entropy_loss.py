"""Cross entropy with several positives per sample (QDTrack, https://arxiv.org/abs/2006.06664)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.losses.reduction import match_weight, resolve_reduction, weight_reduce_loss
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = ["MultiPosCrossEntropyLoss", "multi_pos_cross_entropy"]


def multi_pos_cross_entropy(pred: Tensor, label: Tensor) -> Tensor:
    """Every positive against every negative, eq. 5: log(1 + sum of exp(negative - positive) over the pairs).

    The sum over pairs is a product of two sums, so memory stays that of ``pred``.

    Args:
        pred: Logits (N, M).
        label: (N, M), 1 positive, 0 negative; any other value is neither.

    Returns:
        (N,); 0 where either kind is missing.
    """
    never = torch.finfo(pred.dtype).min
    positive = torch.logsumexp((-pred).masked_fill(label != 1, never), dim=1)
    negative = torch.logsumexp(pred.masked_fill(label != 0, never), dim=1)
    return F.softplus(positive + negative)


@MODELS.register_module()
class MultiPosCrossEntropyLoss(nn.Module):
    """Cross entropy with several positives per sample.

    Args:
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
    """

    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__()
        self.reduction = resolve_reduction(reduction, "MultiPosCrossEntropyLoss")
        self.loss_weight = loss_weight

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Weighted, reduced loss.

        Args:
            cls_score: Logits (N, M).
            label: (N, M), 1 positive, 0 negative; any other value is neither.
            weight: Factor per sample (N,).
            avg_factor: See ``weight_reduce_loss``.
            reduction_override: Used instead of ``reduction``.

        Raises:
            ValueError: Unknown reduction, or shapes that do not fit.
        """
        name = "MultiPosCrossEntropyLoss"
        reduction = resolve_reduction(reduction_override or self.reduction, name)
        (cls_score,) = full_precision(cls_score)
        if cls_score.dim() != 2 or label.shape != cls_score.shape:
            raise ValueError(
                f"{name}: logits and labels of one shape (N, M) were expected, got {tuple(cls_score.shape)} "
                f"and {tuple(label.shape)}"
            )
        loss = multi_pos_cross_entropy(cls_score, label)
        weight = match_weight(weight, loss, name)
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)
