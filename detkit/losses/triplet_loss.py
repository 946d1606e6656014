"""Triplet loss with hard mining within the batch, Hermans et al., eq. 5, https://arxiv.org/abs/1703.07737."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkit.losses.reduction import check_number, weight_reduce_loss
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = ["TripletLoss", "batch_hard_triplet_loss"]


def batch_hard_triplet_loss(features: Tensor, identity: Tensor, margin: float = 0.3) -> Tensor:
    """``max(0, farthest of the same identity - nearest of another + margin)`` for each sample.

    Args:
        features: (N, D).
        identity: (N,) integers.
        margin: Wanted difference of the two Euclidean distances, >= 0.

    Returns:
        Loss per sample (N,), >= 0; 0 for a sample without another identity.
    """
    if len(features) == 0:
        return features.sum(dim=1)
    # Differences instead of a matrix product: of near features, the product leaves few digits, and none in half
    # precision, to which autocast would lower it.
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    same = identity[:, None] == identity
    farthest_same = distance.masked_fill(~same, 0).amax(dim=1)
    nearest_other = distance.masked_fill(same, torch.inf).amin(dim=1)
    return (farthest_same - nearest_other + margin).clamp(min=0)


@MODELS.register_module()
class TripletLoss(nn.Module):
    """Mean of :func:`batch_hard_triplet_loss`.

    Args:
        margin: Wanted difference of the distances, >= 0.
        loss_weight: Factor on the result.
        hard_mining: Must be True; another form is not defined.

    Raises:
        TypeError: A number was expected.
        ValueError: ``margin`` out of range, or not ``hard_mining``.
    """

    learns = "identities"

    def __init__(self, margin: float = 0.3, loss_weight: float = 1.0, hard_mining: bool = True) -> None:
        super().__init__()
        if not hard_mining:
            raise ValueError("TripletLoss: hard_mining=False has no definition")
        check_number(type(self).__name__, "margin", margin, low=0)
        check_number(type(self).__name__, "loss_weight", loss_weight)
        self.margin = margin
        self.loss_weight = loss_weight
        self.hard_mining = hard_mining

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over the samples; 0 without any.

        Args:
            inputs: Features (N, D).
            targets: Identities (N,).

        Raises:
            ValueError: Shapes that do not fit.
        """
        if inputs.dim() != 2 or targets.shape != inputs.shape[:1]:
            raise ValueError(
                f"TripletLoss: inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)}, "
                "expected (N, D) and (N,)"
            )
        (inputs,) = full_precision(inputs)
        return self.loss_weight * weight_reduce_loss(batch_hard_triplet_loss(inputs, targets, self.margin))
