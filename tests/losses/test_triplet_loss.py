"""Triplet loss by hand, against a loop, and where a batch holds no triplet."""

import pytest
import torch

from detkit.losses import TripletLoss, batch_hard_triplet_loss


def test_by_hand():
    features, identity = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1, 1])
    # Farthest of the same: 1, 1, 4, 4; nearest of the other: 3, 2, 2, 6
    loss = batch_hard_triplet_loss(features, identity, margin=1.5)
    torch.testing.assert_close(loss, torch.tensor([0.0, 0.5, 3.5, 0.0]))
    torch.testing.assert_close(TripletLoss(margin=1.5, loss_weight=2.0)(features, identity), torch.tensor(2.0))


def test_is_that_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 5, generator=generator)
    identity = torch.randint(4, (12,), generator=generator)
    expected = []
    for feature, own in zip(features, identity, strict=True):
        distance = (features - feature).norm(dim=1)
        expected.append((distance[identity == own].max() - distance[identity != own].min() + 0.3).clamp(min=0))
    torch.testing.assert_close(batch_hard_triplet_loss(features, identity), torch.stack(expected))


def test_near_features_far_from_the_origin_keep_their_distance():
    features = torch.tensor([[1000.0, 1000.0], [1000.0, 1000.0 + 2**-8], [1000.0, 1000.0 - 2**-8]])
    loss = batch_hard_triplet_loss(features, torch.tensor([0, 0, 1]), margin=0.0)
    torch.testing.assert_close(loss, torch.tensor([0.0, 0.0, 0.0]))
    loss = batch_hard_triplet_loss(features, torch.tensor([1, 0, 0]), margin=0.0)
    torch.testing.assert_close(loss, torch.tensor([0.0, 2**-8, 2**-8]))


def test_other_forms_and_shapes_are_refused():
    with pytest.raises(ValueError, match="TripletLoss: hard_mining=False has no definition"):
        TripletLoss(hard_mining=False)
    with pytest.raises(ValueError, match=r"TripletLoss: inputs \(3, 2\) and targets \(2,\)"):
        TripletLoss()(torch.zeros(3, 2), torch.zeros(2))


def test_a_negative_margin_is_refused():
    with pytest.raises(ValueError, match="TripletLoss: margin must be >= 0, got -1"):
        TripletLoss(margin=-1)
