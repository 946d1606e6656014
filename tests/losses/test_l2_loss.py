"""L2Loss: margins and mined negatives by hand."""

import pytest
import torch

from detkit.losses import L2Loss, MarginL2Loss, l2_loss, mse_loss
from detkit.registry import MODELS

PRED = torch.tensor([[0.8, 0.3, 0.6], [0.1, 0.9, 1.5]])
TARGET = torch.tensor([[1, 0, 0], [0, 1, 0]])


def test_by_hand():
    # 1.5 is clamped to 1
    expected = torch.tensor([[0.04, 0.09, 0.36], [0.01, 0.01, 1.0]])
    torch.testing.assert_close(L2Loss(reduction="none")(PRED, TARGET), expected)
    torch.testing.assert_close(L2Loss(loss_weight=2.0)(PRED, TARGET.float()), 2 * expected.mean())


def test_margins_by_hand():
    loss = L2Loss(pos_margin=0.1, neg_margin=0.2, reduction="none")(PRED, TARGET)
    # Positives 0.7 and 0.8; negatives 0.1, 0.4, below 0, and 1.3 clamped to 1
    torch.testing.assert_close(loss, torch.tensor([[0.09, 0.01, 0.16], [0.0, 0.04, 1.0]]))


def test_only_the_hardest_negatives_are_kept():
    loss = L2Loss(neg_pos_ub=1, hard_mining=True)
    # Two positives, so the two negatives of highest loss
    expected = torch.tensor([[0.04, 0.0, 0.36], [0.0, 0.01, 1.0]])
    torch.testing.assert_close(loss(PRED, TARGET, reduction_override="none"), expected)
    torch.testing.assert_close(loss(PRED, TARGET), expected.sum() / 4)


def test_all_negatives_are_kept_where_there_are_few():
    torch.testing.assert_close(L2Loss(neg_pos_ub=2, hard_mining=True)(PRED, TARGET), L2Loss()(PRED, TARGET))


def test_random_negatives_have_the_wanted_number_and_vary():
    torch.manual_seed(0)
    pred, target = torch.full((4, 10), 0.5), torch.zeros(4, 10)
    target[0, :3] = 1
    target[1, :2] = 1
    loss = L2Loss(neg_pos_ub=1.5, reduction="none")
    draws = torch.stack([loss(pred, target) > 0 for _ in range(60)])
    assert (draws[:, target == 1]).all()
    assert (draws[:, target == 0].sum(dim=1) == 7).all()  # 1.5 * 5, rounded down
    assert (draws[:, target == 0].any(dim=0)).all()


def test_without_positives_nothing_is_mined():
    pred = torch.full((2, 3), 0.5, requires_grad=True)
    loss = L2Loss(neg_pos_ub=3)(pred, torch.zeros(2, 3))
    loss.backward()
    assert loss == 0
    assert not pred.grad.any()


def test_elements_without_weight_are_neither_positive_nor_negative():
    weight = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    loss = L2Loss(neg_pos_ub=1, hard_mining=True)(PRED, TARGET, weight)
    # One positive is left, and one negative for it
    torch.testing.assert_close(loss, torch.tensor((0.01 + 1.0) / 2))


def test_the_mean_counts_elements_whatever_avg_factor_says():
    assert L2Loss()(PRED, TARGET, avg_factor=100.0) == L2Loss()(PRED, TARGET)


def test_shapes_and_a_sum_are_refused_by_name():
    with pytest.raises(ValueError, match=r"L2Loss: target \(2,\) does not fit pred \(2, 3\)"):
        L2Loss()(PRED, TARGET[:, 0])
    with pytest.raises(ValueError, match=r"L2Loss: weight \(2, 1\) does not fit pred \(2, 3\)"):
        L2Loss()(PRED, TARGET, torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"L2Loss: reduction 'sum' excludes the avg_factor"):
        L2Loss(reduction="sum")
    with pytest.raises(ValueError, match=r"L2Loss: reduction 'sum' excludes the avg_factor"):
        L2Loss()(PRED, TARGET, reduction_override="sum")
    with pytest.raises(TypeError, match="L2Loss: neg_pos_ub must be a number, got '3'"):
        L2Loss(neg_pos_ub="3")


def test_a_negative_weight_does_not_count():
    weight = torch.tensor([[-5.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(L2Loss()(PRED, TARGET, weight), L2Loss()(PRED, TARGET, weight.clamp(min=0)))


def test_the_other_names():
    assert isinstance(MODELS.build({"type": "MarginL2Loss", "pos_margin": 0.1}), MarginL2Loss)
    assert MarginL2Loss is L2Loss
    assert l2_loss is mse_loss
