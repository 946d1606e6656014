"""Focal loss that tells a box head its channels, scores and accuracy (V3Det, https://arxiv.org/abs/2304.03752)."""

from __future__ import annotations

from torch import Tensor

from detkit.losses.accuracy import foreground_accuracy
from detkit.losses.focal_loss import focal_loss_of_labels
from detkit.losses.labels import check_num_classes
from detkit.losses.reduction import ElementwiseLoss, check_number
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = ["FocalCustomLoss"]


@MODELS.register_module()
class FocalCustomLoss(ElementwiseLoss):
    """Focal loss over class labels, for a box head that asks its loss how classes are scored.

    Args:
        use_sigmoid: Must be True.
        num_classes: C, without background; must be given.
        gamma: Focusing exponent, >= 0.
        alpha: Weight of a positive, in [0, 1].
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
        activated: Whether predictions are probabilities instead of logits.

    Raises:
        TypeError: A number was expected.
        ValueError: A number out of range, an unknown reduction, or ``use_sigmoid=False``.
    """

    learns = "labels"

    weight_per_sample = True

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
        super().__init__(reduction, loss_weight)
        name = type(self).__name__
        if not use_sigmoid:
            raise ValueError(f"{name}: use_sigmoid=False has no definition")
        check_number(name, "num_classes", num_classes, low=1, whole=True)
        check_number(name, "gamma", gamma, low=0)
        check_number(name, "alpha", alpha, low=0, high=1)
        self.use_sigmoid = use_sigmoid
        self.num_classes = num_classes
        self.gamma = gamma
        self.alpha = alpha
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

        Returns:
            0-d; (N, C) with reduction ``none``.

        Raises:
            ValueError: Unknown reduction, ``sum`` with ``avg_factor``, or shapes that do not fit.
            RuntimeError: A label outside [0, C] or a probability outside [0, 1], see ``check_range``.
        """
        name = type(self).__name__
        reduction = self.resolve(avg_factor, reduction_override)
        (pred,) = full_precision(pred)
        if target.shape != pred.shape[:1] or pred.shape[1:] != (self.num_classes,):
            raise ValueError(
                f"{name}: scores (N, {self.num_classes}) and labels (N,) were expected, got {tuple(pred.shape)} "
                f"and {tuple(target.shape)}"
            )
        loss, weight, count = focal_loss_of_labels(
            pred, target, weight, self.gamma, self.alpha, self.activated, reduction != "none", name
        )
        if loss.dim() == 0 and reduction == "mean" and avg_factor is None:
            avg_factor = count
        return self.reduced(loss, weight, avg_factor, reduction_override)

    def get_cls_channels(self, num_classes: int) -> int:
        """Channels that the head predicts for ``num_classes``."""
        check_num_classes(type(self).__name__, num_classes, self.num_classes)
        return num_classes

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Scores (N, C) of what :meth:`forward` takes."""
        classes = cls_score[:, : self.num_classes]
        return classes if self.activated else classes.sigmoid()

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Percent of objects whose class scores highest; see :func:`foreground_accuracy`."""
        return {"acc_classes": foreground_accuracy(cls_score[:, : self.num_classes], labels)}
