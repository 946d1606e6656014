"""Costs of masks: dice and binary cross entropy (MaskFormer, https://arxiv.org/abs/2107.06278, section 3.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.task_modules.match_costs.match_cost import Fields, ImgMetas, MatchCost, product

__all__ = ["CrossEntropyLossCost", "DiceCost", "binary_cross_entropy_cost", "dice_cost"]


def dice_cost(masks: Tensor, gt_masks: Tensor, eps: float, naive: bool) -> Tensor:
    """One minus the Dice coefficient, equation 2 of V-Net (https://arxiv.org/abs/1606.04797), smoothed by ``eps``.

    Args:
        masks: Probabilities (N, A, P).
        gt_masks: 0 or 1, (N, G, P).
        eps: Added above and below the line.
        naive: Sums below the line instead of sums of squares.

    Returns:
        (N, A, G), in [0, 1].
    """
    power = 1 if naive else 2
    size = masks.pow(power).sum(-1).unsqueeze(2) + gt_masks.pow(power).sum(-1).unsqueeze(1)
    return 1 - (2 * product(masks, gt_masks) + eps) / (size + eps)


def binary_cross_entropy_cost(logits: Tensor, gt_masks: Tensor) -> Tensor:
    """Mean binary cross entropy of each mask with each.

    ``-t log σ(x) - (1 - t) log(1 - σ(x))`` is ``log(1 + e^x) - t x``, so one product serves all pairs.

    Args:
        logits: (N, A, P).
        gt_masks: 0 or 1, (N, G, P).

    Returns:
        (N, A, G), in [0, inf).
    """
    return (F.softplus(logits).sum(-1).unsqueeze(2) - product(logits, gt_masks)) / logits.shape[2]


@TASK_UTILS.register_module()
class DiceCost(MatchCost):
    """Dice loss of masks; reads ``masks`` (N, A, ...) of predictions and (N, G, ...) of objects.

    Args:
        pred_act: Whether the predictions are logits, to be passed through a sigmoid.
        eps: Added above and below the line.
        naive_dice: Sums below the line instead of sums of squares.
        weight: What the cost is multiplied by.
    """

    def __init__(self, pred_act: bool = False, eps: float = 1e-3, naive_dice: bool = True, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.pred_act = pred_act
        self.eps = eps
        self.naive_dice = naive_dice

    def pairwise(self, predictions: Fields, objects: Fields, img_metas: ImgMetas | None) -> Tensor:
        """Costs (N, A, G), in [0, 1]."""
        masks = self.field(predictions, "masks", "predictions").flatten(2)
        gt_masks = self.field(objects, "masks", "objects").flatten(2).to(masks.dtype)
        return dice_cost(masks.sigmoid() if self.pred_act else masks, gt_masks, self.eps, self.naive_dice)


@TASK_UTILS.register_module()
class CrossEntropyLossCost(MatchCost):
    """Binary cross entropy of masks; reads ``masks`` (N, A, ...) logits and ``masks`` (N, G, ...) of objects.

    Args:
        use_sigmoid: True; MMDetection has no other form.
        weight: What the cost is multiplied by.

    Raises:
        NotImplementedError: ``use_sigmoid`` is False.
    """

    def __init__(self, use_sigmoid: bool = True, weight: float = 1.0) -> None:
        super().__init__(weight)
        if not use_sigmoid:
            raise NotImplementedError("CrossEntropyLossCost: use_sigmoid=False has no definition, use True")
        self.use_sigmoid = use_sigmoid

    def pairwise(self, predictions: Fields, objects: Fields, img_metas: ImgMetas | None) -> Tensor:
        """Costs (N, A, G), in [0, inf)."""
        logits = self.field(predictions, "masks", "predictions").flatten(2)
        return binary_cross_entropy_cost(logits, self.field(objects, "masks", "objects").flatten(2).to(logits.dtype))
