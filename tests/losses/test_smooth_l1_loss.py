"""L1 and smooth L1 losses by hand and in their limits."""

import pytest
import torch

from detkit.losses import L1Loss, SmoothL1Loss, l1_loss, smooth_l1_loss


def test_smooth_l1_by_hand():
    # Below beta = 2: 0.5 * 1 / 2; at and above: |d| - 1
    pred = torch.tensor([1.0, -2.0, 5.0])
    torch.testing.assert_close(smooth_l1_loss(pred, torch.zeros(3), beta=2.0), torch.tensor([0.25, 1.0, 4.0]))


def test_l1_by_hand():
    pred = torch.tensor([[1.0, -2.0, 5.0]])
    torch.testing.assert_close(l1_loss(pred, torch.ones(1, 3)), torch.tensor([[0.0, 3.0, 4.0]]))
    torch.testing.assert_close(L1Loss(loss_weight=3.0)(pred, torch.ones(1, 3)), torch.tensor(7.0))


def test_smooth_l1_is_l1_in_the_limit():
    pred = torch.tensor([1.0, -2.0, 5.0])
    torch.testing.assert_close(smooth_l1_loss(pred, torch.zeros(3), beta=1e-8), l1_loss(pred, torch.zeros(3)))


def test_beta_must_be_positive():
    with pytest.raises(ValueError, match="SmoothL1Loss: beta must be > 0, got 0"):
        SmoothL1Loss(beta=0)


@pytest.mark.parametrize("loss", [L1Loss(), SmoothL1Loss()])
def test_an_empty_target_is_nothing_to_learn(loss):
    pred = torch.ones(5, 4, requires_grad=True)
    for target in (torch.zeros(0, 4), torch.zeros(0)):
        value = loss(pred, target)
        assert value == 0
        assert not torch.autograd.grad(value, pred)[0].any()
    assert loss(pred, torch.zeros(0, 4), reduction_override="none").shape == (5, 4)


def test_beta_is_a_number():
    with pytest.raises(TypeError, match="SmoothL1Loss: beta must be a number, got '1'"):
        SmoothL1Loss(beta="1")
