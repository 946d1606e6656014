"""Dice loss by hand and in its limits."""

import pytest
import torch

from detkit.losses import DiceLoss, dice_loss


@pytest.mark.parametrize(
    ("naive", "expected"),
    [
        (False, 1 - 1 / 1.5),  # 2 * 0.5 / (0.25 + 0.25 + 1)
        (True, 1 - 1 / 2),  # 2 * 0.5 / (0.5 + 0.5 + 1)
    ],
)
def test_by_hand(naive, expected):
    pred, target = torch.tensor([[[0.5, 0.5], [0.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(dice_loss(pred, target, eps=0.0, naive_dice=naive), torch.tensor([expected]))


@pytest.mark.parametrize("naive", [False, True])
def test_equal_masks_cost_nothing_and_disjoint_ones_1(naive):
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(dice_loss(mask, mask, eps=1e-6, naive_dice=naive), torch.zeros(1))
    torch.testing.assert_close(dice_loss(mask, 1 - mask, eps=1e-6, naive_dice=naive), torch.ones(1))


@pytest.mark.parametrize(("naive", "expected"), [(False, 1.0), (True, 0.0)])
def test_two_empty_masks_have_a_loss(naive, expected):
    empty = torch.zeros(1, 4)
    torch.testing.assert_close(dice_loss(empty, empty, naive_dice=naive), torch.tensor([expected]))


@pytest.mark.parametrize(("naive", "expected"), [(False, 1 - 2 / (2 + 2 * 0.5)), (True, 1 - (2 + 0.5) / (2 + 0.5))])
def test_eps_by_hand(naive, expected):
    mask = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(dice_loss(mask, mask, eps=0.5, naive_dice=naive), torch.tensor([expected]))


def test_logits_are_activated_once():
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    target = logits > 0.3
    expected = DiceLoss(activate=False)(logits.sigmoid(), target)
    torch.testing.assert_close(DiceLoss()(logits, target), expected)
    torch.testing.assert_close(DiceLoss(use_sigmoid=False, activate=False)(logits.sigmoid(), target), expected)


def test_arguments_by_position_are_in_the_order_of_every_loss():
    # MMDetection's DiceLoss alone has reduction_override before avg_factor.
    pred, target = torch.zeros(2, 3), torch.ones(2, 3)
    by_name = DiceLoss()(pred, target, avg_factor=4.0, reduction_override="mean")
    torch.testing.assert_close(DiceLoss()(pred, target, None, 4.0, "mean"), by_name)


def test_softmax_is_refused():
    with pytest.raises(ValueError, match="DiceLoss: use_sigmoid=False has no definition"):
        DiceLoss(use_sigmoid=False)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"DiceLoss: pred has shape \(5,\), expected \(N, ...\)"):
        DiceLoss()(torch.zeros(5), torch.zeros(5))
    with pytest.raises(ValueError, match=r"DiceLoss: weight \(2, 3\) does not fit losses \(2,\)"):
        DiceLoss()(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="DiceLoss: eps must be > 0, got 0"):
        DiceLoss(eps=0)
