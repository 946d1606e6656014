"""Cross entropy that tells a box head its channels, scores and accuracy (V3Det, https://arxiv.org/abs/2304.03752)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.losses.accuracy import foreground_accuracy
from detkit.losses.cross_entropy_loss import DEFAULT_IGNORE_INDEX, class_weight_beside, counted_cross_entropy
from detkit.losses.labels import check_num_classes, class_weight_tensor
from detkit.losses.reduction import ElementwiseLoss, check_number
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = ["CrossEntropyCustomLoss"]


@MODELS.register_module()
class CrossEntropyCustomLoss(ElementwiseLoss):
    """Cross entropy for a box head that asks its loss how classes are scored.

    Args:
        use_sigmoid: One sigmoid per class and no background channel, instead of a softmax with one.
        use_mask: Must be False; a box head has no masks.
        reduction: ``none``, ``mean`` or ``sum``.
        num_classes: C, without background; must be given.
        class_weight: Factor per channel, C or C + 1.
        ignore_index: Label that costs nothing; None is torch's -100.
        loss_weight: Factor on the result.
        avg_non_ignore: Let ``mean`` divide by the labels that are counted instead of all.

    Raises:
        TypeError: A number was expected.
        ValueError: A number out of range, an unknown reduction, ``use_mask=True``, or a ``class_weight`` of another
            length.
    """

    learns = "labels with channels of its own"

    weight_per_sample = True
    class_weight: Tensor | None

    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True

    def __init__(
        self,
        use_sigmoid: bool = False,
        use_mask: bool = False,
        reduction: str = "mean",
        num_classes: int = -1,
        class_weight: Sequence[float] | None = None,
        ignore_index: int | None = None,
        loss_weight: float = 1.0,
        avg_non_ignore: bool = False,
    ) -> None:
        super().__init__(reduction, loss_weight)
        name = type(self).__name__
        if use_mask:
            raise ValueError(f"{name}: use_mask=True has no definition; use CrossEntropyLoss for masks")
        check_number(name, "num_classes", num_classes, low=1, whole=True)
        if ignore_index is not None:
            check_number(name, "ignore_index", ignore_index, whole=True)
        weights = class_weight_tensor(class_weight, name)
        if weights is not None and len(weights) - num_classes not in (0, 1):
            raise ValueError(
                f"{name}: class_weight needs {num_classes} or {num_classes + 1} numbers, one per channel, "
                f"got {len(weights)}"
            )
        self.use_sigmoid = use_sigmoid
        self.use_mask = use_mask
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.avg_non_ignore = avg_non_ignore
        self.register_buffer("class_weight", weights, persistent=False)

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        ignore_index: int | None = None,
    ) -> Tensor:
        """Weighted, reduced loss.

        Args:
            cls_score: Logits (N, C + 1), background last; or (N, C) with ``use_sigmoid``.
            label: Labels (N,) in [0, C], C is background.
            weight: Factor per sample (N,).
            avg_factor: See ``weight_reduce_loss``.
            reduction_override: Used instead of ``reduction``.
            ignore_index: Used instead of the constructor's.

        Returns:
            0-d; with reduction ``none`` a value per label, or per element with ``use_sigmoid``.

        Raises:
            ValueError: Unknown reduction, ``sum`` with ``avg_factor``, or shapes that do not fit.
            RuntimeError: A label out of range that is not ignored, for a softmax; see ``check_range``.
        """
        reduction = self.resolve(avg_factor, reduction_override)
        ignored = self.ignore_index if ignore_index is None else ignore_index
        index = DEFAULT_IGNORE_INDEX if ignored is None else ignored
        (cls_score,) = full_precision(cls_score)
        class_weight = class_weight_beside(self, cls_score)
        loss, weight, counted = counted_cross_entropy(
            cls_score, label, weight, class_weight, index, self.use_sigmoid, type(self).__name__
        )
        if self.avg_non_ignore and avg_factor is None and reduction == "mean":
            avg_factor = counted.sum()
        return self.reduced(loss, weight, avg_factor, reduction_override)

    def get_cls_channels(self, num_classes: int) -> int:
        """Channels that the head predicts for ``num_classes``."""
        check_num_classes(type(self).__name__, num_classes, self.num_classes)
        return num_classes if self.use_sigmoid else num_classes + 1

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Scores (N, C + 1), background last, of logits (N, C) or (N, C + 1)."""
        classes = cls_score[:, : self.num_classes]
        if not self.use_sigmoid:
            return torch.cat([classes, cls_score[:, -1:]], dim=1).softmax(dim=1)
        scores = classes.sigmoid()
        background = 1 - scores.sum(dim=1, keepdim=True)
        return torch.cat([scores, background.clamp(0, 1)], dim=1)

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Percent of objects whose class scores highest among the C; see :func:`foreground_accuracy`."""
        return {"acc_classes": foreground_accuracy(cls_score[:, : self.num_classes], labels)}
