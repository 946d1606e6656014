"""Equalization loss v2 for long-tailed classes, Tan et al., https://arxiv.org/abs/2012.08548."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from detkit.losses.accuracy import foreground_accuracy
from detkit.losses.labels import check_num_classes, check_range, class_weight_tensor, has_classes
from detkit.losses.reduction import ElementwiseLoss, check_number, match_weight
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = ["EQLV2Loss"]

# Gradient ratio before anything was seen: high, so that all weights start at 1.
INITIAL_RATIO = 100.0


@MODELS.register_module()
class EQLV2Loss(ElementwiseLoss):
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
        alpha: How much positives gain where negatives are weighed down, >= 0.
        gamma: Steepness of the weight, >= 0.
        vis_grad: MMDetection's switch for drawing gradients; nothing is drawn.
        test_with_obj: Multiply class scores with 1 - background.

    Raises:
        TypeError: A number was expected.
        ValueError: A number out of range, an unknown reduction, ``use_sigmoid=False``, or a ``class_weight`` of
            another length.
    """

    learns = "labels with channels of its own"

    weight_per_sample = True
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
        super().__init__(reduction, loss_weight)
        name = type(self).__name__
        if not use_sigmoid:
            raise ValueError(f"{name}: use_sigmoid=False has no definition")
        check_number(name, "num_classes", num_classes, low=1, whole=True)
        check_number(name, "mu", mu)
        check_number(name, "alpha", alpha, low=0)
        check_number(name, "gamma", gamma, low=0)
        weights = class_weight_tensor(class_weight, name)
        if weights is not None and len(weights) != num_classes + 1:
            raise ValueError(
                f"{name}: class_weight needs {num_classes + 1} numbers, one per class and one for background, "
                f"got {len(weights)}"
            )
        self.use_sigmoid = use_sigmoid
        self.num_classes = num_classes
        self.use_distributed = use_distributed
        self.mu = mu
        self.alpha = alpha
        self.gamma = gamma
        self.vis_grad = vis_grad
        self.test_with_obj = test_with_obj
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
            ValueError: Unknown reduction, ``sum`` with ``avg_factor``, or shapes that do not fit.
            RuntimeError: A label above C, see ``check_range``.
        """
        reduction = self.resolve(avg_factor, reduction_override)
        name = type(self).__name__
        (cls_score,) = full_precision(cls_score)
        if cls_score.dim() != 2 or cls_score.shape[1] != self.num_classes + 1:
            raise ValueError(
                f"{name}: {self.num_classes + 1} channels were expected for {self.num_classes} classes, "
                f"got {tuple(cls_score.shape)}"
            )
        if label.shape != cls_score.shape[:1] or not has_classes(label):
            raise ValueError(
                f"{name}: label {tuple(label.shape)} of {label.dtype} does not fit logits {tuple(cls_score.shape)}; "
                "integers (N,) were expected"
            )
        counted = label >= 0
        label = torch.where(counted, label, self.num_classes)
        check_range(label, self.num_classes + 1, f"{name}: a label lies above {self.num_classes}, the background")
        target = label.unsqueeze(1) == torch.arange(self.num_classes + 1, device=label.device)
        target = target.to(cls_score.dtype)
        loss = F.binary_cross_entropy_with_logits(cls_score, target, reduction="none")
        factor = self._equalize(target) * counted.unsqueeze(1)
        weight = match_weight(weight, loss, name, per_sample=True)
        if weight is not None:
            factor = factor * weight
        if self.class_weight is not None:
            factor = factor * self.class_weight.to(factor.dtype)
        if reduction == "mean" and avg_factor is None:
            avg_factor = counted.sum()
        result = self.reduced((loss * factor).sum(dim=1), None, avg_factor, reduction_override)
        self._collect(cls_score.detach(), target, factor.detach())
        return result

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
        if self.use_distributed and distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(grads)
        self.pos_grad += grads[0]
        self.neg_grad += grads[1]
        # A class without any gradient yet keeps its first weight, whatever empty batches there were.
        seen = self.pos_grad + self.neg_grad > 0
        self.pos_neg.copy_(torch.where(seen, self.pos_grad / (self.neg_grad + 1e-10), INITIAL_RATIO))

    def get_cls_channels(self, num_classes: int) -> int:
        """Channels that the head predicts for ``num_classes``: the classes and background."""
        check_num_classes(type(self).__name__, num_classes, self.num_classes)
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
