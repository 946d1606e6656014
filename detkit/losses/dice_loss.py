"""Dice loss of masks: V-Net, Milletari et al., section 3, https://arxiv.org/abs/1606.04797, as used by SOLO."""

from __future__ import annotations

from torch import Tensor

from detkit.losses.reduction import ElementwiseLoss, check_number
from detkit.registry import MODELS

__all__ = ["DiceLoss", "dice_loss"]


def dice_loss(pred: Tensor, target: Tensor, *, eps: float = 1e-3, naive_dice: bool = False) -> Tensor:
    """One minus the Dice coefficient of each mask.

    Args:
        pred: Probabilities (N, ...) in [0, 1].
        target: Masks (N, ...) in [0, 1].
        eps: Keeps empty masks from dividing by 0, > 0.
        naive_dice: Whether the denominator is the sum of the masks' sizes instead of their squares.

    Returns:
        Loss per mask (N,), in [0, 1].

    Raises:
        ValueError: Values without masks (N,).
    """
    if pred.dim() < 2:
        raise ValueError(f"DiceLoss: pred has shape {tuple(pred.shape)}, expected (N, ...) of N masks")
    pred, target = pred.flatten(1), target.flatten(1)
    overlap = 2 * (pred * target).sum(dim=1)
    if naive_dice:
        return 1 - (overlap + eps) / (pred.sum(dim=1) + target.sum(dim=1) + eps)
    return 1 - overlap / ((pred * pred).sum(dim=1) + (target * target).sum(dim=1) + 2 * eps)


@MODELS.register_module()
class DiceLoss(ElementwiseLoss):
    """Dice loss per mask; pred (N, ...), target of the same shape, weight (N,).

    By position, ``avg_factor`` comes before ``reduction_override`` as in every other loss; MMDetection has
    the two the other way round in this one.

    Args:
        use_sigmoid: Must be True where ``activate``; a softmax form is not defined.
        activate: Whether ``pred`` holds logits instead of probabilities.
        reduction: ``none``, ``mean`` or ``sum``.
        naive_dice: See :func:`dice_loss`.
        loss_weight: Factor on the result.
        eps: Keeps empty masks from dividing by 0, > 0.

    Raises:
        ValueError: Unknown reduction, ``eps`` out of range, or a softmax.
    """

    learns = "masks"

    def __init__(
        self,
        use_sigmoid: bool = True,
        activate: bool = True,
        reduction: str = "mean",
        naive_dice: bool = False,
        loss_weight: float = 1.0,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(reduction, loss_weight)
        if activate and not use_sigmoid:
            raise ValueError("DiceLoss: use_sigmoid=False has no definition; give probabilities with activate=False")
        check_number(type(self).__name__, "eps", eps, above=0)
        self.use_sigmoid = use_sigmoid
        self.activate = activate
        self.naive_dice = naive_dice
        self.eps = eps

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        probability = pred.sigmoid() if self.activate else pred
        return dice_loss(probability, target.to(pred.dtype), eps=self.eps, naive_dice=self.naive_dice)
