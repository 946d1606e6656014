"""Focal loss that tells a box head its channels, scores and accuracy (V3Det, https://arxiv.org/abs/2304.03752)."""

from __future__ import annotations

from torch import Tensor, nn

from detkit.losses.accuracy import foreground_accuracy
from detkit.losses.focal_loss import focal_loss_with_prob, sigmoid_focal_loss
from detkit.losses.labels import one_hot
from detkit.losses.reduction import match_weight, resolve_reduction, weight_reduce_loss
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = ["FocalCustomLoss"]


@MODELS.register_module()
class FocalCustomLoss(nn.Module):
    """Focal loss over class labels, for a box head that asks its loss how classes are scored.

    Args:
        use_sigmoid: Must be True.
        num_classes: C, without background; must be given.
        gamma: Focusing exponent, >= 0.
        alpha: Weight of a positive, in [0, 1].
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
        activated: Whether predictions are probabilities instead of logits.
    """

    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True

    def __init__(
        self,
        use_sigmoid: bool = True,
        num_classes: int = -1,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__()
        if not use_sigmoid:
            raise ValueError("FocalCustomLoss: use_sigmoid=False has no definition")
        if num_classes < 1:
            raise ValueError(f"FocalCustomLoss: num_classes must be given and >= 1, got {num_classes}")
        self.use_sigmoid = use_sigmoid
        self.num_classes = num_classes
        self.gamma = gamma
        self.alpha = alpha
        self.reduction = resolve_reduction(reduction, "FocalCustomLoss")
        self.loss_weight = loss_weight
        self.activated = activated

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Weighted, reduced focal loss.

        Args:
            pred: Logits, or probabilities where ``activated``, (N, C).
            target: Labels (N,) in [0, C], C is background.
            weight: (N,), (N, C) or (N * C,).
            avg_factor: See ``weight_reduce_loss``; the number of positives, usually.
            reduction_override: Used instead of ``reduction``.

        Raises:
            ValueError: Unknown reduction, or shapes that do not fit.
            RuntimeError: A label outside [0, C], on the CPU.
        """
        name = "FocalCustomLoss"
        reduction = resolve_reduction(reduction_override or self.reduction, name)
        (pred,) = full_precision(pred)
        if target.shape != pred.shape[:1] or pred.shape[1:] != (self.num_classes,):
            raise ValueError(
                f"{name}: scores (N, {self.num_classes}) and labels (N,) were expected, got {tuple(pred.shape)} "
                f"and {tuple(target.shape)}"
            )
        function = focal_loss_with_prob if self.activated else sigmoid_focal_loss
        loss = function(pred, one_hot(target, self.num_classes, name).to(pred.dtype), self.gamma, self.alpha)
        return self.loss_weight * weight_reduce_loss(
            loss, match_weight(weight, loss, name, per_sample=True), reduction, avg_factor
        )

    def get_cls_channels(self, num_classes: int) -> int:
        """Channels that the head predicts for ``num_classes``."""
        if num_classes != self.num_classes:
            raise ValueError(
                f"FocalCustomLoss: the head has {num_classes} classes, the loss num_classes={self.num_classes}"
            )
        return num_classes

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Scores (N, C) of what :meth:`forward` takes."""
        classes = cls_score[:, : self.num_classes]
        return classes if self.activated else classes.sigmoid()

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Percent of objects whose class scores highest; see :func:`foreground_accuracy`."""
        return {"acc_classes": foreground_accuracy(cls_score[:, : self.num_classes], labels)}
