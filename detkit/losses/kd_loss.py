"""Knowledge distillation, Hinton et al., section 2, https://arxiv.org/abs/1503.02531."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from detkit.losses.reduction import ElementwiseLoss, check_number
from detkit.registry import MODELS

__all__ = ["KnowledgeDistillationKLDivLoss", "knowledge_distillation_kl_div_loss"]


def knowledge_distillation_kl_div_loss(
    pred: Tensor,
    soft_label: Tensor,
    *,
    T: float,
    detach_target: bool = True,
) -> Tensor:
    """Divergence of the student's softened distribution from the teacher's, times ``T^2``.

    Args:
        pred: Logits of the student (..., C).
        soft_label: Logits of the teacher, same shape.
        T: Temperature, >= 1. The factor ``T^2`` keeps the size of the gradient.
        detach_target: Whether to keep the gradient from the teacher.

    Returns:
        Mean over the classes (...).
    """
    teacher = (soft_label / T).softmax(dim=-1)
    if detach_target:
        teacher = teacher.detach()
    divergence = F.kl_div((pred / T).log_softmax(dim=-1), teacher, reduction="none")
    return divergence.mean(dim=-1) * (T * T)


@MODELS.register_module()
class KnowledgeDistillationKLDivLoss(ElementwiseLoss):
    """Distillation loss per sample; no gradient flows to the teacher.

    Args:
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
        T: Temperature, >= 1.

    Raises:
        ValueError: Unknown reduction, or ``T`` out of range.
    """

    learns = "distributions of a teacher"

    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0, T: float = 10) -> None:
        super().__init__(reduction, loss_weight)
        check_number(type(self).__name__, "T", T, low=1)
        self.T = T

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return knowledge_distillation_kl_div_loss(pred, target, T=self.T)

    def forward(
        self,
        pred: Tensor,
        soft_label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Weighted, reduced loss.

        Args:
            pred: Logits of the student (N, C).
            soft_label: Logits of the teacher (N, C).
            weight: (N,).
            avg_factor: See ``weight_reduce_loss``.
            reduction_override: Used instead of ``reduction``.

        Returns:
            0-d; (N,) with reduction ``none``.

        Raises:
            ValueError: Unknown reduction, or shapes that do not fit.
        """
        return super().forward(pred, soft_label, weight, avg_factor, reduction_override)
