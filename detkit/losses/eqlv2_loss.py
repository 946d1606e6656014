"""Equalization loss v2 for long-tailed classes, Tan et al., https://arxiv.org/abs/2012.08548."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from detkit.losses.accuracy import foreground_accuracy
from detkit.losses.labels import check_range, one_hot
from detkit.losses.reduction import match_weight, resolve_reduction, weight_reduce_loss
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = ["EQLV2Loss"]

# Gradient ratio before anything was seen: high, so that all weights start at 1.
INITIAL_RATIO = 100.0


@MODELS.register_module()
class EQLV2Loss(nn.Module):
    """Sigmoid cross entropy, weighed by the ratio of positive to negative gradient that each class received.

    The last of C + 1 logits tells background from objects and is not weighed.

    Args:
        use_sigmoid: Must be True.
        reduction: ``none``, ``mean`` or ``sum`` over the samples; classes are summed.
        class_weight: Factor per channel (C + 1).
        loss_weight: Factor on the result.
        num_classes: C.
        use_distributed: Sum the gradients over all processes.
        mu: Ratio at which the weight is one half.
        alpha: How much positives gain where negatives are weighed down.
        gamma: Steepness of the weight.
        vis_grad: MMDetection's switch for drawing gradients; nothing is drawn.
        test_with_obj: Multiply class scores with 1 - background.
    """

    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True
    pos_grad: Tensor
    neg_grad: Tensor
    pos_neg: Tensor
    class_weight: Tensor | None

    def __init__(
        self,
        use_sigmoid: bool = True,
        reduction: str = "mean",
        class_weight: Sequence[float] | None = None,
        loss_weight: float = 1.0,
        num_classes: int = 1203,
        use_distributed: bool = False,
        mu: float = 0.8,
        alpha: float = 4.0,
        gamma: float = 12,
        vis_grad: bool = False,
        test_with_obj: bool = True,
    ) -> None:
        super().__init__()
        if not use_sigmoid:
            raise ValueError("EQLV2Loss: use_sigmoid=False has no definition")
        if class_weight is not None and len(class_weight) != num_classes + 1:
            raise ValueError(
                f"EQLV2Loss: class_weight needs {num_classes + 1} numbers, one per class and one for background, "
                f"got {len(class_weight)}"
            )
        self.use_sigmoid = use_sigmoid
        self.reduction = resolve_reduction(reduction, "EQLV2Loss")
        self.loss_weight = loss_weight
        self.num_classes = num_classes
        self.use_distributed = use_distributed
        self.mu = mu
        self.alpha = alpha
        self.gamma = gamma
        self.vis_grad = vis_grad
        self.test_with_obj = test_with_obj
        weights = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
        self.register_buffer("class_weight", weights, persistent=False)
        self.register_buffer("pos_grad", torch.zeros(num_classes))
        self.register_buffer("neg_grad", torch.zeros(num_classes))
        self.register_buffer("pos_neg", torch.full((num_classes,), INITIAL_RATIO))

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Weighted, reduced loss; its gradient is counted for the next call.

        Args:
            cls_score: Logits (N, C + 1).
            label: (N,) in [0, C], C is background; a negative one is ignored, as if the sample were not there.
            weight: Factor per sample (N,) or element (N, C + 1), on the counted gradient too.
            avg_factor: See ``weight_reduce_loss``.
            reduction_override: Used instead of ``reduction``.

        Returns:
            Scalar; (N,) with reduction ``none``.

        Raises:
            ValueError: Unknown reduction, or shapes that do not fit.
            RuntimeError: A label above C, on the CPU.
        """
        reduction = resolve_reduction(reduction_override or self.reduction, "EQLV2Loss")
        (cls_score,) = full_precision(cls_score)
        if cls_score.shape[-1] != self.num_classes + 1:
            raise ValueError(
                f"EQLV2Loss: {self.num_classes + 1} channels were expected for {self.num_classes} classes, "
                f"got {tuple(cls_score.shape)}"
            )
        counted = label >= 0
        label = torch.where(counted, label, self.num_classes)
        check_range(label, self.num_classes + 1, f"EQLV2Loss: a label lies above {self.num_classes}, the background")
        target = one_hot(label, self.num_classes + 1, "EQLV2Loss").to(cls_score.dtype)
        loss = F.binary_cross_entropy_with_logits(cls_score, target, reduction="none")
        factor = self._equalize(target) * counted.unsqueeze(1)
        weight = match_weight(weight, loss, "EQLV2Loss", per_sample=True)
        if weight is not None:
            factor = factor * weight
        if self.class_weight is not None:
            factor = factor * self.class_weight.to(factor.dtype)
        self._collect(cls_score.detach(), target, factor.detach())
        if reduction == "mean" and avg_factor is None:
            avg_factor = counted.sum()
        return self.loss_weight * weight_reduce_loss((loss * factor).sum(dim=1), None, reduction, avg_factor)

    def _equalize(self, target: Tensor) -> Tensor:
        """Factor (N, C + 1) of each element, eq. 7 and 8."""
        negative = F.pad(torch.sigmoid(self.gamma * (self.pos_neg - self.mu)), (0, 1), value=1.0).to(target.dtype)
        positive = 1 + self.alpha * (1 - negative)
        return torch.where(target > 0, positive, negative)

    @torch.no_grad()
    def _collect(self, cls_score: Tensor, target: Tensor, factor: Tensor) -> None:
        grad = ((cls_score.sigmoid() - target).abs() * factor)[:, :-1]
        target = target[:, :-1]
        grads = torch.stack([(grad * target).sum(dim=0), (grad * (1 - target)).sum(dim=0)]).to(self.pos_grad.dtype)
        if self.use_distributed and distributed.is_initialized():
            distributed.all_reduce(grads)
        self.pos_grad += grads[0]
        self.neg_grad += grads[1]
        # A class without any gradient yet keeps its first weight, whatever empty batches there were.
        seen = self.pos_grad + self.neg_grad > 0
        self.pos_neg.copy_(torch.where(seen, self.pos_grad / (self.neg_grad + 1e-10), INITIAL_RATIO))

    def get_cls_channels(self, num_classes: int) -> int:
        """Channels that the head predicts for ``num_classes``: the classes and background."""
        if num_classes != self.num_classes:
            raise ValueError(f"EQLV2Loss: the head has {num_classes} classes, the loss num_classes={self.num_classes}")
        return self.get_channel_num(num_classes)

    def get_channel_num(self, num_classes: int) -> int:
        """As :meth:`get_cls_channels`, under MMDetection's name, of any number of classes."""
        return num_classes + 1

    def get_activation(self, pred: Tensor) -> Tensor:
        """Scores (N, C + 1), background last, of logits (N, C + 1)."""
        scores = pred.sigmoid()
        if not self.test_with_obj:
            return scores
        classes, background = scores[:, :-1], scores[:, -1:]
        return torch.cat([classes * (1 - background), background], dim=1)

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Percent of objects whose class scores highest among the C; see :func:`foreground_accuracy`."""
        return {"acc_classes": foreground_accuracy(cls_score[:, : self.num_classes], labels)}
