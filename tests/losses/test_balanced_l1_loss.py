"""Balanced L1 loss by hand and by its slopes."""

import math

import pytest
import torch

from detkit.losses import BalancedL1Loss, balanced_l1_loss, smooth_l1_loss


def test_by_hand():
    # alpha 1/2, gamma 3/2: b = e^3 - 1. At and above beta 3/2 |d| + 3/2 / b - 1/2; at 0 nothing.
    b = math.exp(3) - 1
    loss = balanced_l1_loss(torch.tensor([0.0, 1.0, -3.0]), torch.zeros(3))
    torch.testing.assert_close(loss, torch.tensor([0.0, 1 + 1.5 / b, 4 + 1.5 / b]))
    loss = balanced_l1_loss(torch.tensor([3.0]), torch.zeros(1), beta=2.0)
    torch.testing.assert_close(loss, torch.tensor([4.5 + 1.5 / b - 0.5 * 2]))


def test_the_linear_part_begins_at_beta():
    # At beta 2 the values meet; the slopes are 3/2 + 1/2 (1 - 2) / (2 e^3) below, and 3/2 from it on.
    pred = torch.tensor([2 - 1e-12, 2.0], dtype=torch.float64, requires_grad=True)
    loss = balanced_l1_loss(pred, torch.zeros(2), beta=2.0)
    torch.testing.assert_close(loss[0], loss[1])
    (slope,) = torch.autograd.grad(loss.sum(), pred)
    torch.testing.assert_close(slope, torch.tensor([1.5 - 0.25 * math.exp(-3), 1.5], dtype=torch.float64))


def test_an_empty_target_is_nothing_to_learn():
    assert BalancedL1Loss()(torch.ones(5, 4), torch.zeros(0, 4)) == 0


def test_slope_grows_to_gamma_and_stays():
    pred = torch.tensor([0.0, 0.5, 1 - 1e-9, 1.0, 5.0], dtype=torch.float64, requires_grad=True)
    loss = balanced_l1_loss(pred, torch.zeros_like(pred), alpha=0.4, gamma=1.2)
    (slope,) = torch.autograd.grad(loss.sum(), pred)
    # The slope below beta is alpha ln(b |d| + 1), with b = e^3 - 1.
    half = 0.4 * math.log((math.exp(3) - 1) * 0.5 + 1)
    torch.testing.assert_close(slope, torch.tensor([0.0, half, 1.2, 1.2, 1.2], dtype=torch.float64))


def test_small_differences_count_more_than_in_smooth_l1():
    pred = torch.tensor([0.05, 0.1, 0.2], requires_grad=True)
    (balanced,) = torch.autograd.grad(balanced_l1_loss(pred, torch.zeros(3)).sum(), pred)
    (smooth,) = torch.autograd.grad(smooth_l1_loss(pred, torch.zeros(3)).sum(), pred)
    assert (balanced > smooth).all()


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma"])
def test_parameters_must_be_positive(name):
    with pytest.raises(ValueError, match=f"BalancedL1Loss: {name} must be > 0, got 0"):
        BalancedL1Loss(**{name: 0})
