"""Cross entropy that tells a box head its channels, scores and accuracy (V3Det, https://arxiv.org/abs/2304.03752)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.losses.accuracy import foreground_accuracy
from detkit.losses.cross_entropy_loss import CrossEntropyLoss
from detkit.registry import MODELS

__all__ = ["CrossEntropyCustomLoss"]


@MODELS.register_module()
class CrossEntropyCustomLoss(CrossEntropyLoss):
    """:class:`CrossEntropyLoss` for a box head that asks its loss how classes are scored.

    Args:
        use_sigmoid: One sigmoid per class and no background channel, instead of a softmax with one.
        use_mask: See :class:`CrossEntropyLoss`.
        reduction: ``none``, ``mean`` or ``sum``.
        num_classes: C, without background; must be given.
        class_weight: Factor per class.
        ignore_index: Label that costs nothing; None is torch's -100.
        loss_weight: Factor on the result.
        avg_non_ignore: Let ``mean`` divide by the labels that are counted instead of all.
    """

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
        super().__init__(use_sigmoid, use_mask, reduction, class_weight, ignore_index, loss_weight, avg_non_ignore)
        if num_classes < 1:
            raise ValueError(f"CrossEntropyCustomLoss: num_classes must be given and >= 1, got {num_classes}")
        self.num_classes = num_classes

    def get_cls_channels(self, num_classes: int) -> int:
        """Channels that the head predicts for ``num_classes``."""
        if num_classes != self.num_classes:
            raise ValueError(
                f"CrossEntropyCustomLoss: the head has {num_classes} classes, the loss num_classes={self.num_classes}"
            )
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
