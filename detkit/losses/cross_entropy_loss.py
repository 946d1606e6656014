"""Cross entropy over a softmax, over sigmoids, or over the masks of one class each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.losses.labels import check_range
from detkit.losses.reduction import match_weight, resolve_reduction, weight_reduce_loss
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = [
    "CrossEntropyLoss",
    "binary_cross_entropy",
    "cross_entropy",
    "cross_entropy_of_probability",
    "mask_cross_entropy",
]

# What torch ignores when nobody says what to ignore.
DEFAULT_IGNORE_INDEX = -100


def cross_entropy(
    pred: Tensor, label: Tensor, class_weight: Tensor | None = None, ignore_index: int = DEFAULT_IGNORE_INDEX
) -> tuple[Tensor, Tensor]:
    """Softmax cross entropy.

    Args:
        pred: Logits (N, C, ...).
        label: (N, ...) in [0, C), or ``ignore_index``.
        class_weight: (C,).
        ignore_index: Label that costs nothing.

    Returns:
        Loss (N, ...) and which labels are counted (N, ...) bool.
    """
    loss = F.cross_entropy(pred, label, weight=class_weight, reduction="none", ignore_index=ignore_index)
    return loss, label != ignore_index


def binary_cross_entropy(
    pred: Tensor, label: Tensor, class_weight: Tensor | None = None, ignore_index: int = DEFAULT_IGNORE_INDEX
) -> tuple[Tensor, Tensor]:
    """Sigmoid cross entropy.

    Args:
        pred: Logits (N, C), or any shape where ``label`` has the same.
        label: Labels (N,), of which C or more is background and a negative one costs nothing; or targets.
        class_weight: (C,) factor on the positive term.
        ignore_index: Label that costs nothing.

    Returns:
        Loss, same shape as ``pred``, and which elements are counted, bool.
    """
    counted = (label >= 0) & (label != ignore_index)
    if pred.dim() != label.dim():
        label = label.unsqueeze(-1) == torch.arange(pred.shape[-1], device=label.device)
        counted = counted.unsqueeze(-1).expand_as(pred)
    loss = F.binary_cross_entropy_with_logits(pred, label.to(pred.dtype), pos_weight=class_weight, reduction="none")
    return loss, counted


def cross_entropy_of_probability(prob: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of probabilities instead of logits.

    Args:
        prob: (...) in [0, 1].
        target: (...) in [0, 1].

    Returns:
        Loss per element, at most 100; its gradient is finite at 0 and 1.
    """
    # Autocast refuses this function for fear of half precision, which is excluded here.
    with torch.autocast(prob.device.type, enabled=False):
        return F.binary_cross_entropy(prob, target.to(prob.dtype), reduction="none")


def mask_cross_entropy(pred: Tensor, target: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Sigmoid cross entropy of the mask of each object's own class (Mask R-CNN).

    Args:
        pred: Mask logits (N, C, H, W); C is 1 where masks are class-agnostic.
        target: Masks (N, H, W) in [0, 1].
        label: Class (N,) of each object.
        class_weight: Factor on the positive term, broadcastable to ``target``.

    Returns:
        Mean over all pixels, (1,); 0 without objects.
    """
    if pred.shape[1] == 1:
        label = torch.zeros_like(label)
    index = label.view(-1, 1, 1, 1).expand(-1, 1, *pred.shape[2:])
    own = pred.gather(1, index).squeeze(1)
    loss = F.binary_cross_entropy_with_logits(own, target.to(own.dtype), weight=class_weight, reduction="none")
    return weight_reduce_loss(loss)[None]


@MODELS.register_module()
class CrossEntropyLoss(nn.Module):
    """Cross entropy.

    Args:
        use_sigmoid: One sigmoid per class instead of a softmax.
        use_mask: Masks of one class each, see :func:`mask_cross_entropy`.
        reduction: ``none``, ``mean`` or ``sum``.
        class_weight: Factor per class.
        ignore_index: Label that costs nothing; None is torch's -100.
        loss_weight: Factor on the result.
        avg_non_ignore: Let ``mean`` divide by the labels that are counted instead of all.
    """

    def __init__(
        self,
        use_sigmoid: bool = False,
        use_mask: bool = False,
        reduction: str = "mean",
        class_weight: Sequence[float] | None = None,
        ignore_index: int | None = None,
        loss_weight: float = 1.0,
        avg_non_ignore: bool = False,
    ) -> None:
        super().__init__()
        if use_sigmoid and use_mask:
            raise ValueError(f"{type(self).__name__}: use_sigmoid and use_mask exclude each other")
        self.use_sigmoid = use_sigmoid
        self.use_mask = use_mask
        self.reduction = resolve_reduction(reduction, type(self).__name__)
        self.ignore_index = ignore_index
        self.loss_weight = loss_weight
        self.avg_non_ignore = avg_non_ignore
        self.class_weight: Tensor | None
        weights = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
        # A buffer moves with the model once; a list would be copied to the device at each call.
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
            cls_score: Logits (N, C, ...); mask logits (N, C, H, W) where ``use_mask``.
            label: Labels (N, ...); targets of the same shape as ``cls_score`` are fine with ``use_sigmoid``;
                masks (N, H, W) where ``use_mask``.
            weight: Factor per label; the class (N,) of each mask where ``use_mask``.
            avg_factor: See ``weight_reduce_loss``.
            reduction_override: Used instead of ``reduction``.
            ignore_index: Used instead of the constructor's.

        Raises:
            ValueError: Unknown reduction, a weight that does not fit, or an argument that masks do not know.
            RuntimeError: A label outside [0, C) that is not ignored, for a softmax on the CPU.
        """
        name = type(self).__name__
        reduction = resolve_reduction(reduction_override or self.reduction, name)
        ignored = self.ignore_index if ignore_index is None else ignore_index
        (cls_score,) = full_precision(cls_score)
        class_weight = None if self.class_weight is None else self.class_weight.to(cls_score)
        if self.use_mask:
            if weight is None or avg_factor is not None or reduction != "mean" or ignored is not None:
                raise ValueError(
                    f"{name}: with use_mask, weight is the class of each mask, reduction is 'mean', "
                    "and neither avg_factor nor ignore_index has a meaning"
                )
            return self.loss_weight * mask_cross_entropy(cls_score, label, weight, class_weight)
        function = binary_cross_entropy if self.use_sigmoid else cross_entropy
        index = DEFAULT_IGNORE_INDEX if ignored is None else ignored
        if not self.use_sigmoid and not label.is_floating_point():
            num_classes = cls_score.shape[1]
            wrong = f"{name}: a label lies outside [0, {num_classes}) and is not ignore_index={index}"
            check_range(label, num_classes, wrong, index)
        loss, counted = function(cls_score, label, class_weight, index)
        if self.avg_non_ignore and avg_factor is None and reduction == "mean":
            avg_factor = counted.sum()
        weight = match_weight(weight, loss, name, per_sample=True)
        if self.use_sigmoid:
            weight = counted if weight is None else weight * counted
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)
