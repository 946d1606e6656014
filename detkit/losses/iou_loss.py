"""Losses from the overlap of two boxes: IoU, generalised IoU and bounded IoU."""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.losses.reduction import ElementwiseLoss, check_number
from detkit.losses.smooth_l1_loss import smooth_l1_loss
from detkit.registry import MODELS
from detkit.structures.boxes import bbox_overlaps

__all__ = ["BoundedIoULoss", "GIoULoss", "IoULoss", "bounded_iou_loss", "giou_loss", "iou_loss", "paired_sides"]

IOU_MODES = ("linear", "square", "log")

# Sides of boxes: left, top, right, bottom.
Sides = tuple[Tensor, ...]


def paired_sides(pred: Tensor, target: Tensor, name: str) -> tuple[Sides, Sides]:
    """Sides (...) of the boxes of each pair.

    Args:
        pred: Boxes (..., 4).
        target: Same shape.
        name: Who asks, for the message.

    Raises:
        ValueError: Not boxes, or not as many.
    """
    for boxes in (pred, target):
        if boxes.shape[-1:] != (4,):
            raise ValueError(f"{name}: boxes have shape {tuple(boxes.shape)}, expected (..., 4)")
    if pred.shape != target.shape:
        raise ValueError(f"{name}: pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape")
    return pred.unbind(-1), target.unbind(-1)


def iou_loss(pred: Tensor, target: Tensor, *, mode: str = "log", eps: float = 1e-6) -> Tensor:
    """``-ln(IoU)`` (UnitBox, https://arxiv.org/abs/1608.01471), ``1 - IoU`` or ``1 - IoU^2``.

    Args:
        pred: Boxes (..., 4).
        target: Same shape, compared one by one.
        mode: ``log``, ``linear`` or ``square``.
        eps: Least IoU, > 0; disjoint boxes cost the same however far apart, and have no gradient.

    Returns:
        Loss per pair (...).

    Raises:
        ValueError: Unknown mode, or shapes that do not fit.
    """
    _check_mode(mode)
    paired_sides(pred, target, "IoULoss")
    iou = bbox_overlaps(pred, target, is_aligned=True).clamp(min=eps)
    if mode == "linear":
        return 1 - iou
    return 1 - iou * iou if mode == "square" else -iou.log()


def _check_mode(mode: str) -> None:
    if mode not in IOU_MODES:
        raise ValueError(f"IoULoss: mode {mode!r} is not one of {', '.join(map(repr, IOU_MODES))}")


def giou_loss(pred: Tensor, target: Tensor, *, eps: float = 1e-6) -> Tensor:
    """``1 - GIoU``, Rezatofighi et al., algorithm 2, https://arxiv.org/abs/1902.09630.

    Args:
        pred: Boxes (..., 4).
        target: Same shape, compared one by one.
        eps: Least area to divide by, > 0.

    Returns:
        Loss per pair (...), in [0, 2).

    Raises:
        ValueError: Shapes that do not fit.
    """
    paired_sides(pred, target, "GIoULoss")
    return 1 - bbox_overlaps(pred, target, mode="giou", is_aligned=True, eps=eps)


def bounded_iou_loss(pred: Tensor, target: Tensor, *, beta: float = 0.2, eps: float = 1e-3) -> Tensor:
    """Smooth L1 distance to 1 of the best IoU that each of x, y, width and height alone allows.

    Tychsen-Smith & Petersson, https://arxiv.org/abs/1711.00164. No gradient flows to ``target``.

    Args:
        pred: Boxes (..., 4).
        target: Same shape, compared one by one.
        beta: Where the smooth L1 of the distance to an IoU of 1 becomes linear, > 0.
        eps: Added to each denominator, pixels.

    Returns:
        Loss (..., 4) by centre x, centre y, width and height.

    Raises:
        ValueError: Shapes that do not fit.
    """
    p, t = paired_sides(pred, target.detach(), "BoundedIoULoss")
    bounds = []
    for low, high, target_low, target_high in ((p[0], p[2], t[0], t[2]), (p[1], p[3], t[1], t[3])):
        size, target_size = high - low, target_high - target_low
        shift = ((target_low + target_high) * 0.5 - (low + high) * 0.5).abs() * 2
        by_centre = (target_size - shift) / (target_size + shift + eps)
        by_size = torch.minimum(target_size / (size + eps), size / (target_size + eps))
        # Not clamp: where the centre lies on the target's edge, half the gradient flows, as in MMDetection.
        bounds.append((torch.maximum(by_centre, by_centre.new_zeros(())), by_size))
    (x, width), (y, height) = bounds
    bound = torch.stack([x, y, width, height], dim=-1)
    return smooth_l1_loss(bound, torch.ones_like(bound), beta=beta)


@MODELS.register_module()
class IoULoss(ElementwiseLoss):
    """IoU loss of box pairs.

    Args:
        linear: The older way to say ``mode="linear"``; it wins over ``mode``.
        eps: Least IoU, > 0.
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
        mode: ``log``, ``linear`` or ``square``.

    Raises:
        ValueError: Unknown reduction or mode, or ``eps`` out of range.
    """

    learns = "boxes"

    weight_per_coordinate = True

    def __init__(
        self,
        linear: bool = False,
        eps: float = 1e-6,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        mode: str = "log",
    ) -> None:
        super().__init__(reduction, loss_weight)
        _check_mode(mode)
        check_number(type(self).__name__, "eps", eps, above=0)
        self.mode = "linear" if linear else mode
        self.eps = eps

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return iou_loss(pred, target, mode=self.mode, eps=self.eps)


@MODELS.register_module()
class GIoULoss(ElementwiseLoss):
    """Generalised IoU loss of box pairs.

    Args:
        eps: Least area to divide by, > 0.
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.

    Raises:
        ValueError: Unknown reduction, or an argument out of range.
    """

    learns = "boxes"

    weight_per_coordinate = True

    def __init__(self, eps: float = 1e-6, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__(reduction, loss_weight)
        check_number(type(self).__name__, "eps", eps, above=0)
        self.eps = eps

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return giou_loss(pred, target, eps=self.eps)


@MODELS.register_module()
class BoundedIoULoss(ElementwiseLoss):
    """Bounded IoU loss of box pairs; weights are per coordinate (N, 4).

    Args:
        beta: Where the smooth L1 becomes linear, > 0.
        eps: Added to each denominator, pixels, > 0.
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.

    Raises:
        ValueError: Unknown reduction, or an argument out of range.
    """

    learns = "boxes"

    def __init__(self, beta: float = 0.2, eps: float = 1e-3, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__(reduction, loss_weight)
        for name, value in (("beta", beta), ("eps", eps)):
            check_number(type(self).__name__, name, value, above=0)
        self.beta = beta
        self.eps = eps

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return bounded_iou_loss(pred, target, beta=self.beta, eps=self.eps)
