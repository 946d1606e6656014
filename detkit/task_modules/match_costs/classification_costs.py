"""Costs of class scores.

Softmax as in DETR (https://arxiv.org/abs/2005.12872), focal as in Deformable DETR (https://arxiv.org/abs/2010.04159),
focal over text tokens as in Grounding DINO (https://arxiv.org/abs/2303.05499).
"""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.task_modules.match_costs.match_cost import Fields, ImgMetas, MatchCost, product

__all__ = ["BinaryFocalLossCost", "ClassificationCost", "FocalLossCost", "focal_terms"]


def focal_terms(logits: Tensor, alpha: float, gamma: float, eps: float) -> tuple[Tensor, Tensor]:
    """Focal loss of each logit as a positive and as a negative.

    Equation 5 of Lin et al., https://arxiv.org/abs/1708.02002, with ``log(p + eps)``.

    Args:
        logits: Raw scores, any shape.
        alpha: Weight of a positive, in [0, 1].
        gamma: Focusing exponent, >= 0.
        eps: What keeps the logarithms finite.

    Returns:
        The two losses, each of the shape of ``logits``.
    """
    p = logits.sigmoid()
    positive = -(p + eps).log() * alpha * (1 - p).pow(gamma)
    negative = -(1 - p + eps).log() * (1 - alpha) * p.pow(gamma)
    return positive, negative


def at_labels(scores: Tensor, labels: Tensor) -> Tensor:
    """Score of each prediction for each object's class.

    Args:
        scores: (N, A, C).
        labels: (N, G), in [0, C).

    Returns:
        (N, A, G); NaN for a label outside of [0, C), which the assigner then names without reading labels now.
    """
    batch_size, num_predictions, num_classes = scores.shape
    labels = labels.long()
    index = labels.clamp(0, num_classes - 1).unsqueeze(1).expand(batch_size, num_predictions, labels.shape[1])
    known = (labels >= 0) & (labels < num_classes)
    return torch.where(known.unsqueeze(1), scores.gather(2, index), torch.nan)


@TASK_UTILS.register_module()
class ClassificationCost(MatchCost):
    """Probability of the object's class, negated; reads ``scores`` (N, A, C) logits and ``labels`` (N, G).

    Args:
        weight: What the cost is multiplied by.
    """

    def pairwise(self, predictions: Fields, objects: Fields, img_metas: ImgMetas | None) -> Tensor:
        """Costs (N, A, G), in [-1, 0]."""
        scores = self.field(predictions, "scores", "predictions").softmax(-1)
        return -at_labels(scores, self.field(objects, "labels", "objects"))


@TASK_UTILS.register_module()
class FocalLossCost(MatchCost):
    """Focal loss with the object's class positive, less that with it negative.

    Reads ``scores`` (N, A, C) logits and ``labels`` (N, G); with ``binary_input`` instead ``masks`` (N, A, ...)
    logits and ``masks`` (N, G, ...) of 0 and 1, and is the mean focal loss over their pixels.

    Args:
        alpha: Weight of a positive, in [0, 1].
        gamma: Focusing exponent, >= 0.
        eps: What keeps the logarithms finite.
        binary_input: Whether masks are compared instead of classes.
        weight: What the cost is multiplied by.
    """

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2,
        eps: float = 1e-12,
        binary_input: bool = False,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        self.alpha = alpha
        self.gamma = gamma
        self.eps = eps
        self.binary_input = binary_input

    def pairwise(self, predictions: Fields, objects: Fields, img_metas: ImgMetas | None) -> Tensor:
        """Costs (N, A, G)."""
        if self.binary_input:
            logits = self.field(predictions, "masks", "predictions").flatten(2)
            target = self.field(objects, "masks", "objects").flatten(2).to(logits.dtype)
            positive, negative = focal_terms(logits, self.alpha, self.gamma, self.eps)
            return (product(positive, target) + product(negative, 1 - target)) / logits.shape[2]
        labels = self.field(objects, "labels", "objects")
        # Only the objects' classes count: far fewer logarithms than over all classes.
        logits = at_labels(self.field(predictions, "scores", "predictions"), labels)
        positive, negative = focal_terms(logits, self.alpha, self.gamma, self.eps)
        return positive - negative


@TASK_UTILS.register_module()
class BinaryFocalLossCost(FocalLossCost):
    """Focal loss over the tokens of a caption, those that name the object being positive.

    Reads ``scores`` (N, A, P) logits, ``positive_maps`` (N, G, P) and ``text_token_mask`` (N, G, P), the latter
    the same for all objects of an image: tokens that belong to the caption.

    Args:
        alpha: Weight of a positive, in [0, 1].
        gamma: Focusing exponent, >= 0.
        eps: What keeps the logarithms finite.
        binary_input: Accepted for MMDetection's configs; tokens are always compared.
        weight: What the cost is multiplied by.
    """

    def pairwise(self, predictions: Fields, objects: Fields, img_metas: ImgMetas | None) -> Tensor:
        """Costs (N, A, G), in [0, inf)."""
        logits = self.field(predictions, "scores", "predictions")
        target = self.field(objects, "positive_maps", "objects").to(logits.dtype)
        in_caption = self.field(objects, "text_token_mask", "objects").to(logits.dtype)
        positive, negative = focal_terms(logits, self.alpha, self.gamma, self.eps)
        return product(positive, target * in_caption) + product(negative, (1 - target) * in_caption)
