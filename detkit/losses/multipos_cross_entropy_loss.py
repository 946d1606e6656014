"""Cross entropy with several positives per sample (QDTrack, https://arxiv.org/abs/2006.06664)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.losses.reduction import ElementwiseLoss
from detkit.registry import MODELS

__all__ = ["MultiPosCrossEntropyLoss", "multi_pos_cross_entropy"]


def multi_pos_cross_entropy(pred: Tensor, label: Tensor) -> Tensor:
    """Every positive against every negative, eq. 5: log(1 + sum of exp(negative - positive) over the pairs).

    The sum over pairs is a product of two sums, so memory stays that of ``pred``.

    Args:
        pred: Logits (N, M).
        label: (N, M), 1 positive, 0 negative; any other value is neither.

    Returns:
        (N,); 0 where either kind is missing.

    Raises:
        ValueError: Shapes that do not fit.
    """
    if pred.dim() != 2 or label.shape != pred.shape:
        raise ValueError(
            f"MultiPosCrossEntropyLoss: logits and labels of one shape (N, M) were expected, got {tuple(pred.shape)} "
            f"and {tuple(label.shape)}"
        )
    never = torch.finfo(pred.dtype).min
    positive = torch.logsumexp((-pred).masked_fill(label != 1, never), dim=1)
    negative = torch.logsumexp(pred.masked_fill(label != 0, never), dim=1)
    return F.softplus(positive + negative)


@MODELS.register_module()
class MultiPosCrossEntropyLoss(ElementwiseLoss):
    """Cross entropy with several positives per sample.

    Args:
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.

    Raises:
        ValueError: Unknown reduction.
    """

    learns = "similarities"

    same_shape = False  # the function checks more

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return multi_pos_cross_entropy(pred, target)

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

        Returns:
            0-d; (N,) with reduction ``none``.

        Raises:
            ValueError: Unknown reduction, or shapes that do not fit.
        """
        return super().forward(cls_score, label, weight, avg_factor, reduction_override)
