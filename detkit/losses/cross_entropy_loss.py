"""Cross entropy over a softmax, over sigmoids, or over the masks of one class each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.losses.labels import check_range, class_weight_tensor, has_classes
from detkit.losses.reduction import ElementwiseLoss, check_number, match_weight, weight_reduce_loss
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = [
    "CrossEntropyLoss",
    "binary_cross_entropy",
    "class_weight_beside",
    "counted_cross_entropy",
    "cross_entropy",
    "cross_entropy_of_probability",
    "mask_cross_entropy",
]

# What torch ignores when nobody says what to ignore.
DEFAULT_IGNORE_INDEX = -100


def cross_entropy(
    pred: Tensor, label: Tensor, *, class_weight: Tensor | None = None, ignore_index: int = DEFAULT_IGNORE_INDEX
) -> tuple[Tensor, Tensor]:
    """Softmax cross entropy.

    Args:
        pred: Logits (N, C, ...).
        label: (N, ...) in [0, C), or ``ignore_index``; or the probability of each class (N, C, ...).
        class_weight: (C,).
        ignore_index: Label that costs nothing.

    Returns:
        Loss (N, ...) and which labels are counted, bool of the labels' shape; of probabilities, each class counts.
    """
    label = label.long() if has_classes(label) else label.to(pred.dtype)
    loss = F.cross_entropy(pred, label, weight=class_weight, reduction="none", ignore_index=ignore_index)
    return loss, label != ignore_index


def binary_cross_entropy(
    pred: Tensor, label: Tensor, *, class_weight: Tensor | None = None, ignore_index: int = DEFAULT_IGNORE_INDEX
) -> tuple[Tensor, Tensor]:
    """Sigmoid cross entropy.

    Args:
        pred: Logits (..., C), or any shape where ``label`` has the same.
        label: Labels (...), of which C or more is background and a negative one costs nothing; or targets.
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
    # Autocast refuses this function for fear of half precision, which is excluded here; the meta device knows neither.
    is_meta = prob.device.type == "meta"
    with nullcontext() if is_meta else torch.autocast(prob.device.type, enabled=False):
        return F.binary_cross_entropy(prob, target.to(prob.dtype), reduction="none")


def mask_cross_entropy(pred: Tensor, target: Tensor, label: Tensor, *, class_weight: Tensor | None = None) -> Tensor:
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
    index = label.long().view(-1, 1, 1, 1).expand(-1, 1, *pred.shape[2:])
    own = pred.gather(1, index).squeeze(1)
    loss = F.binary_cross_entropy_with_logits(own, target.to(own.dtype), weight=class_weight, reduction="none")
    return weight_reduce_loss(loss)[None]


def class_weight_beside(loss: nn.Module, pred: Tensor) -> Tensor | None:
    """Factors per class of a loss, where its predictions are, and of their type.

    A loss that was not moved with its model keeps what it copied once: another copy at each call would make the host
    wait for the device.
    """
    weight = loss.class_weight
    if not isinstance(weight, Tensor):
        return None
    if weight.device != pred.device:
        loss.class_weight = weight = weight.to(pred.device)
    return weight.to(pred.dtype)


def counted_cross_entropy(
    pred: Tensor,
    label: Tensor,
    weight: Tensor | None,
    class_weight: Tensor | None,
    ignore_index: int,
    use_sigmoid: bool,
    name: str,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Softmax or sigmoid cross entropy of inputs that are checked first.

    Args:
        pred: Logits (N, C, ...) of a softmax; (N, C) of sigmoids, or any shape where ``label`` has the same.
        label: See :func:`cross_entropy` and :func:`binary_cross_entropy`.
        weight: Factor per label or element.
        class_weight: (C,).
        ignore_index: Label that costs nothing.
        use_sigmoid: One sigmoid per class instead of a softmax.
        name: Who asks, for the message.

    Returns:
        Loss, its weights, and which labels or elements are counted, bool.

    Raises:
        ValueError: Shapes that do not fit, or classes that are no integers.
        RuntimeError: A class outside [0, C) that is not ignored, for a softmax; see ``check_range``.
    """
    _check_shapes(pred, label, class_weight, use_sigmoid, name)
    if use_sigmoid:
        loss, counted = binary_cross_entropy(pred, label, class_weight=class_weight, ignore_index=ignore_index)
        weight = match_weight(weight, loss, name, per_sample=True)
        return loss, counted if weight is None else weight * counted, counted
    if has_classes(label):
        end = pred.shape[1]
        wrong = f"{name}: a label lies outside [0, {end}) and is not ignore_index={ignore_index}"
        check_range(label, end, wrong, ignore_index)
    loss, counted = cross_entropy(pred, label, class_weight=class_weight, ignore_index=ignore_index)
    return loss, match_weight(weight, loss, name, per_sample=True), counted


def _check_shapes(pred: Tensor, label: Tensor, class_weight: Tensor | None, use_sigmoid: bool, name: str) -> None:
    # A map of classes has one layout for a softmax and none for sigmoids, which could take it for another axis.
    has_axis = pred.dim() == 2 if use_sigmoid else pred.dim() > 1
    fits_as_classes = has_axis and label.shape == pred.shape[:1] + pred.shape[2:] and has_classes(label)
    fits_as_targets = label.shape == pred.shape and (use_sigmoid or not (pred.dim() < 2 or has_classes(label)))
    if not (fits_as_classes or fits_as_targets):
        wanted = "integers (N,) for (N, C)" if use_sigmoid else "integers (N, ...) for (N, C, ...)"
        raise ValueError(
            f"{name}: label {tuple(label.shape)} of {label.dtype} does not fit logits {tuple(pred.shape)}; "
            f"expected {wanted}, or targets of the shape of the logits"
        )
    axis = -1 if use_sigmoid else 1
    num_classes = pred.shape[axis] if pred.dim() > 1 else 1
    if class_weight is not None and len(class_weight) != num_classes:
        raise ValueError(
            f"{name}: class_weight has {len(class_weight)} numbers, logits {tuple(pred.shape)} have "
            f"{num_classes} classes"
        )


@MODELS.register_module()
class CrossEntropyLoss(ElementwiseLoss):
    """Cross entropy.

    Args:
        use_sigmoid: One sigmoid per class instead of a softmax.
        use_mask: Masks of one class each, see :func:`mask_cross_entropy`.
        reduction: ``none``, ``mean`` or ``sum``; ``mean`` where ``use_mask``.
        class_weight: Factor per class; with ``use_sigmoid`` on the positive term. One factor on all where ``use_mask``.
        ignore_index: Label that costs nothing; None is torch's -100, and must be where ``use_mask``.
        loss_weight: Factor on the result.
        avg_non_ignore: Let ``mean`` divide by the labels that are counted instead of all; of probabilities per class
            by N * C.

    Raises:
        TypeError: A number was expected.
        ValueError: Arguments that exclude each other, an unknown reduction, or ``class_weight`` that is none.
    """

    learns = "labels"

    weight_per_sample = True
    class_weight: Tensor | None

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
        super().__init__(reduction, loss_weight)
        name = type(self).__name__
        weights = class_weight_tensor(class_weight, name)
        if use_sigmoid and use_mask:
            raise ValueError(f"{name}: use_sigmoid and use_mask exclude each other")
        if use_mask and (reduction != "mean" or ignore_index is not None):
            raise ValueError(
                f"{name}: use_mask needs reduction 'mean' and no ignore_index, got {reduction!r} and {ignore_index}"
            )
        if use_mask and weights is not None and len(weights) != 1:
            raise ValueError(f"{name}: with use_mask, class_weight is one number, got {len(weights)}")
        if ignore_index is not None:
            check_number(name, "ignore_index", ignore_index, whole=True)
        self.use_sigmoid = use_sigmoid
        self.use_mask = use_mask
        self.ignore_index = ignore_index
        self.avg_non_ignore = avg_non_ignore
        # A buffer moves with the model once.
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
            cls_score: Logits (N, C, ...); (N, C) with ``use_sigmoid``; mask logits (N, C, H, W) where ``use_mask``.
            label: Labels (N, ...), or targets of the same shape as ``cls_score``; masks (N, H, W) where ``use_mask``.
            weight: Factor per label; the class (N,) of each mask where ``use_mask``.
            avg_factor: See ``weight_reduce_loss``.
            reduction_override: Used instead of ``reduction``.
            ignore_index: Used instead of the constructor's.

        Returns:
            0-d, (1,) where ``use_mask``; with reduction ``none`` a value per label, or per element with
            ``use_sigmoid``.

        Raises:
            ValueError: Unknown reduction, ``sum`` with ``avg_factor``, shapes that do not fit, classes that are no
                integers, or an argument that masks do not know.
            RuntimeError: A label outside [0, C) that is not ignored, for a softmax or masks; see ``check_range``.
        """
        name = type(self).__name__
        reduction = self.resolve(avg_factor, reduction_override)
        ignored = self.ignore_index if ignore_index is None else ignore_index
        (cls_score,) = full_precision(cls_score)
        class_weight = class_weight_beside(self, cls_score)
        if self.use_mask:
            if weight is None or avg_factor is not None or reduction != "mean" or ignored is not None:
                raise ValueError(
                    f"{name}: with use_mask, weight is the class of each mask, reduction is 'mean', "
                    "and neither avg_factor nor ignore_index has a meaning"
                )
            _check_masks(cls_score, label, weight, name)
            return self.loss_weight * mask_cross_entropy(cls_score, label, weight, class_weight=class_weight)
        index = DEFAULT_IGNORE_INDEX if ignored is None else ignored
        loss, weight, counted = counted_cross_entropy(
            cls_score, label, weight, class_weight, index, self.use_sigmoid, name
        )
        if self.avg_non_ignore and avg_factor is None and reduction == "mean":
            avg_factor = counted.sum()
        return self.reduced(loss, weight, avg_factor, reduction_override)


def _check_masks(pred: Tensor, target: Tensor, label: Tensor, name: str) -> None:
    if pred.dim() != 4 or target.shape != pred.shape[:1] + pred.shape[2:] or label.shape != pred.shape[:1]:
        raise ValueError(
            f"{name}: mask logits (N, C, H, W), masks (N, H, W) and classes (N,) as weight were expected, got "
            f"{tuple(pred.shape)}, {tuple(target.shape)} and {tuple(label.shape)}"
        )
    if not has_classes(label):
        raise ValueError(f"{name}: with use_mask, weight is the class of each mask, got {label.dtype}")
    if pred.shape[1] > 1:
        check_range(label, pred.shape[1], f"{name}: the class of a mask lies outside [0, {pred.shape[1]})")
