"""IoU losses that also see the distance, shape or angle between two boxes: DIoU, CIoU, EIoU and SIoU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detkit.losses.iou_loss import Sides, paired_sides
from detkit.losses.reduction import ElementwiseLoss, check_number
from detkit.registry import MODELS

__all__ = ["CIoULoss", "DIoULoss", "EIoULoss", "SIoULoss", "ciou_loss", "diou_loss", "eiou_loss", "siou_loss"]

ASPECT_IOU_THR = 0.5


def _iou(pred: Sides, target: Sides, eps: float) -> Tensor:
    left, top = torch.maximum(pred[0], target[0]), torch.maximum(pred[1], target[1])
    right, bottom = torch.minimum(pred[2], target[2]), torch.minimum(pred[3], target[3])
    overlap = (right - left).clamp(min=0) * (bottom - top).clamp(min=0)
    return overlap / (_area(pred) + _area(target) - overlap + eps)


def _area(sides: Sides) -> Tensor:
    return (sides[2] - sides[0]) * (sides[3] - sides[1])


def _enclosing_size(pred: Sides, target: Sides, least: float) -> tuple[Tensor, Tensor]:
    width = torch.maximum(pred[2], target[2]) - torch.minimum(pred[0], target[0])
    height = torch.maximum(pred[3], target[3]) - torch.minimum(pred[1], target[1])
    return width.clamp(min=least), height.clamp(min=least)


def _iou_and_distance(pred: Sides, target: Sides, eps: float) -> tuple[Tensor, Tensor]:
    """IoU, and the squared distance of the centres over the squared diagonal of the enclosing box."""
    x = ((target[0] + target[2]) - (pred[0] + pred[2])) * 0.5
    y = ((target[1] + target[3]) - (pred[1] + pred[3])) * 0.5
    width, height = _enclosing_size(pred, target, 0.0)
    return _iou(pred, target, eps), (x * x + y * y) / (width * width + height * height + eps)


def diou_loss(pred: Tensor, target: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Distance IoU loss, Zheng et al., eq. 7, https://arxiv.org/abs/1911.08287.

    Args:
        pred: Boxes (..., 4).
        target: Same shape, compared one by one.
        eps: Added to each denominator, > 0.

    Returns:
        Loss per pair (...), in [0, 2].

    Raises:
        ValueError: Not boxes, or not as many.
    """
    iou, distance = _iou_and_distance(*paired_sides(pred, target, "DIoULoss"), eps)
    return 1 - (iou - distance)


def ciou_loss(
    pred: Tensor, target: Tensor, *, eps: float = 1e-6, aspect_iou_thr: float | None = ASPECT_IOU_THR
) -> Tensor:
    """Complete IoU loss, Zheng et al., eq. 8 to 11, https://arxiv.org/abs/1911.08287.

    The weight alpha of the aspect ratio is a constant for the gradient.

    Args:
        pred: Boxes (..., 4).
        target: Same shape, compared one by one.
        eps: Added to each denominator, > 0.
        aspect_iou_thr: IoU above which the aspect ratio counts (https://arxiv.org/abs/2005.03572), in [0, 1]; None
            counts it for all pairs, as the first paper and Detectron2 do.

    Returns:
        Loss per pair (...), in [0, 2].

    Raises:
        ValueError: Not boxes, or not as many.
    """
    p, t = paired_sides(pred, target, "CIoULoss")
    iou, distance = _iou_and_distance(p, t, eps)
    angle = torch.atan((t[2] - t[0]) / (t[3] - t[1] + eps)) - torch.atan((p[2] - p[0]) / (p[3] - p[1] + eps))
    v = (4 / math.pi**2) * angle * angle
    with torch.no_grad():
        # Identical boxes have IoU 1 and v = 0, which makes 0 / 0 without the least denominator.
        alpha = v / (1 - iou + v).clamp(min=eps)
        if aspect_iou_thr is not None:
            alpha = torch.where(iou > aspect_iou_thr, alpha, 0.0)
    return 1 - (iou - distance - alpha * v).clamp(min=-1, max=1)


def eiou_loss(pred: Tensor, target: Tensor, *, smooth_point: float = 0.1, eps: float = 1e-6) -> Tensor:
    """Smooth extended IoU loss, Peng & Yu, https://arxiv.org/abs/2112.01527.

    The extended intersection is signed and grows more negative the farther two boxes are apart, so that
    disjoint boxes have a gradient. (Not to be confused with the *efficient* IoU loss of the same letters.)

    Args:
        pred: Boxes (..., 4).
        target: Same shape, compared one by one.
        smooth_point: Loss below which it is quadratic, > 0.
        eps: Added to the denominator, > 0.

    Returns:
        Loss per pair (...), >= 0.

    Raises:
        ValueError: Not boxes, or not as many.
    """
    p, t = paired_sides(pred, target, "EIoULoss")
    # Distances of the inner sides from the enclosing box's left and top.
    outer_left, outer_top = torch.minimum(p[0], t[0]), torch.minimum(p[1], t[1])
    left, top = torch.maximum(p[0], t[0]) - outer_left, torch.maximum(p[1], t[1]) - outer_top
    right, bottom = torch.minimum(p[2], t[2]) - outer_left, torch.minimum(p[3], t[3]) - outer_top
    intersection = (
        right * bottom
        + torch.minimum(left, right) * torch.minimum(top, bottom)
        - left * torch.maximum(top, bottom)
        - torch.maximum(left, right) * top
    )
    loss = 1 - intersection / (_area(p) + _area(t) - intersection + eps)
    return torch.where(loss < smooth_point, 0.5 * loss * loss / smooth_point, loss - 0.5 * smooth_point)


def siou_loss(pred: Tensor, target: Tensor, *, eps: float = 1e-6, neg_gamma: bool = False) -> Tensor:
    """SCYLLA IoU loss, Gevorgyan, https://arxiv.org/abs/2205.12740.

    Args:
        pred: Boxes (..., 4).
        target: Same shape, compared one by one.
        eps: Least denominator, > 0.
        neg_gamma: Whether the distance cost is ``1 - exp(-gamma * rho)`` as in the paper. Without it, distance
            lowers the loss; that is MMDetection's default.

    Returns:
        Loss per pair (...), in [0, 2].

    Raises:
        ValueError: Not boxes, or not as many.
    """
    p, t = paired_sides(pred, target, "SIoULoss")
    # One after the other, which leaves near boxes more digits than the difference of two sums.
    x = (t[0] + t[2] - p[0] - p[2]) * 0.5 + eps
    y = (t[1] + t[3] - p[1] - p[3]) * 0.5 + eps
    # sin(2 asin(|y| / d)) = 2 |x| |y| / d^2, which is the paper's 1 - 2 sin^2(asin(|y| / d) - pi / 4).
    angle = 2 * (x * y).abs() / (x * x + y * y).clamp(min=torch.finfo(x.dtype).tiny)
    gamma = angle - 2 if neg_gamma else 2 - angle
    width, height = _enclosing_size(p, t, eps)
    distance = _distance_cost(gamma * (x / width).square()) + _distance_cost(gamma * (y / height).square())
    # MMDetection adds eps to heights alone; it is kept, so that flat boxes cost the same.
    shape = _size_cost(p[2] - p[0], t[2] - t[0], eps) + _size_cost(p[3] - p[1] + eps, t[3] - t[1] + eps, eps)
    return 1 - (_iou(p, t, eps) - 0.5 * (distance + shape)).clamp(min=-1, max=1)


def _distance_cost(exponent: Tensor) -> Tensor:
    # Only inverted boxes reach the limit, at which the loss is long clamped; infinity would make its gradient NaN.
    return 1 - exponent.clamp(max=20).exp()


def _size_cost(size: Tensor, target_size: Tensor, eps: float) -> Tensor:
    """``(1 - exp(-omega))^4`` of the relative difference omega of two widths or heights."""
    omega = (size - target_size).abs() / torch.maximum(size, target_size).clamp(min=eps)
    return (1 - (-omega).exp()).pow(4)


@MODELS.register_module()
class DIoULoss(ElementwiseLoss):
    """Distance IoU loss of box pairs.

    Args:
        eps: Added to each denominator, > 0.
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
        return diou_loss(pred, target, eps=self.eps)


@MODELS.register_module()
class CIoULoss(ElementwiseLoss):
    """Complete IoU loss of box pairs.

    Args:
        eps: Added to each denominator, > 0.
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
        aspect_iou_thr: IoU above which the aspect ratio counts, in [0, 1]; None counts it for all pairs, as in
            Detectron2.

    Raises:
        ValueError: Unknown reduction, or an argument out of range.
    """

    learns = "boxes"

    weight_per_coordinate = True

    def __init__(
        self,
        eps: float = 1e-6,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        aspect_iou_thr: float | None = ASPECT_IOU_THR,
    ) -> None:
        super().__init__(reduction, loss_weight)
        check_number(type(self).__name__, "eps", eps, above=0)
        if aspect_iou_thr is not None:
            check_number(type(self).__name__, "aspect_iou_thr", aspect_iou_thr, low=0, high=1)
        self.eps = eps
        self.aspect_iou_thr = aspect_iou_thr

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return ciou_loss(pred, target, eps=self.eps, aspect_iou_thr=self.aspect_iou_thr)


@MODELS.register_module()
class EIoULoss(ElementwiseLoss):
    """Smooth extended IoU loss of box pairs.

    Args:
        eps: Added to the denominator, > 0.
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
        smooth_point: Loss below which it is quadratic, > 0.

    Raises:
        ValueError: Unknown reduction, or an argument out of range.
    """

    learns = "boxes"

    weight_per_coordinate = True

    def __init__(
        self, eps: float = 1e-6, reduction: str = "mean", loss_weight: float = 1.0, smooth_point: float = 0.1
    ) -> None:
        super().__init__(reduction, loss_weight)
        check_number(type(self).__name__, "smooth_point", smooth_point, above=0)
        check_number(type(self).__name__, "eps", eps, above=0)
        self.eps = eps
        self.smooth_point = smooth_point

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return eiou_loss(pred, target, smooth_point=self.smooth_point, eps=self.eps)


@MODELS.register_module()
class SIoULoss(ElementwiseLoss):
    """SCYLLA IoU loss of box pairs.

    Args:
        eps: Least denominator, > 0.
        reduction: ``none``, ``mean`` or ``sum``.
        loss_weight: Factor on the result.
        neg_gamma: Whether to take the paper's sign of gamma, see :func:`siou_loss`.

    Raises:
        ValueError: Unknown reduction, or an argument out of range.
    """

    learns = "boxes"

    weight_per_coordinate = True

    def __init__(
        self, eps: float = 1e-6, reduction: str = "mean", loss_weight: float = 1.0, neg_gamma: bool = False
    ) -> None:
        super().__init__(reduction, loss_weight)
        check_number(type(self).__name__, "eps", eps, above=0)
        self.eps = eps
        self.neg_gamma = neg_gamma

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return siou_loss(pred, target, eps=self.eps, neg_gamma=self.neg_gamma)
