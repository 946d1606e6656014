"""Gradient harmonizing losses by hand, against a loop over the regions, and with their memory."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from detkit.losses import GHMC, GHMR
from detkit.losses.ghm_loss import authentic_smooth_l1_loss, density_weights


def logit(*probabilities):
    return torch.tensor(probabilities).logit().unsqueeze(1)


def weights_of_a_loop(gradient, valid, total, edges):
    """The definition, one region after the other."""
    weight = torch.zeros_like(gradient)
    occupied = 0
    for low, high in pairwise(edges):
        inside = (gradient >= low) & (gradient < high) & valid
        if inside.any():
            weight[inside] = total / inside.sum()
            occupied += 1
    return weight / max(occupied, 1)


def test_ghmc_by_hand():
    # Three negatives, gradient norms 0.05, 0.05 and 0.55: two regions, of two and of one.
    loss = GHMC(reduction="none")(logit(0.05, 0.05, 0.55), torch.tensor([1, 1, 1]))
    easy, hard = -math.log(0.95), -math.log(0.45)
    torch.testing.assert_close(loss, torch.tensor([[3 / 2 / 2 * easy], [3 / 2 / 2 * easy], [3 / 1 / 2 * hard]]))
    mean = GHMC()(logit(0.05, 0.05, 0.55), torch.tensor([1, 1, 1]))
    torch.testing.assert_close(mean, torch.tensor((easy + hard) / 2))


def test_one_region_is_plain_cross_entropy():
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    target = (logits > 0.3).float()
    torch.testing.assert_close(GHMC(bins=1)(logits, target), F.binary_cross_entropy_with_logits(logits, target))


def test_one_region_is_plain_authentic_smooth_l1():
    pred = torch.tensor([[0.0, 0.3, -0.4, 3.0]])
    expected = sum(math.hypot(d, 0.4) - 0.4 for d in (0.0, 0.3, 0.4, 3.0)) / 4
    torch.testing.assert_close(GHMR(mu=0.4, bins=1)(pred, torch.zeros(1, 4)), torch.tensor(expected))


def test_gradient_norm_of_authentic_smooth_l1_is_that_of_its_gradient():
    pred = torch.linspace(-2, 2, 9, requires_grad=True)
    loss, norm = authentic_smooth_l1_loss(pred, torch.zeros(9), mu=0.5)
    (grad,) = torch.autograd.grad(loss.sum(), pred)
    torch.testing.assert_close(norm, grad.abs())
    assert not norm.requires_grad


@pytest.mark.parametrize("bins", [1, 10, 30])
def test_density_weights_are_those_of_the_definition(bins):
    generator = torch.Generator().manual_seed(0)
    gradient = torch.rand(50, 4, generator=generator)
    gradient[0] = torch.tensor([0.0, 1.0, 0.5, 0.1])  # on the edges
    gradient[1] = 3.0  # outside
    valid = torch.rand(50, 4, generator=generator) > 0.3
    total = torch.tensor(123.5)
    edges = torch.arange(bins + 1) / bins
    edges[-1] += 1e-6
    expected = weights_of_a_loop(gradient, valid, total, edges)
    torch.testing.assert_close(density_weights(gradient, valid, total, edges), expected)


def test_every_occupied_region_weighs_the_same():
    gradient = torch.tensor([0.05] * 5 + [0.45] * 2 + [0.95])
    weight = density_weights(gradient, gradient > 0, torch.tensor(8), torch.linspace(0, 1, 11))
    torch.testing.assert_close(torch.stack([weight[:5].sum(), weight[5:7].sum(), weight[7]]), torch.full((3,), 8 / 3))


def test_regions_remember_their_number():
    loss = GHMC(momentum=0.75, reduction="none")
    two_easy = (logit(0.05, 0.05), torch.tensor([1, 1]))
    loss(*two_easy)
    expected = torch.zeros(10)
    expected[0] = 0.25 * 2
    torch.testing.assert_close(loss.acc_sum, expected)
    out = loss(logit(0.55), torch.tensor([1]))  # the easy region is empty: it keeps its number
    expected[5] = 0.25
    torch.testing.assert_close(loss.acc_sum, expected)
    torch.testing.assert_close(out, torch.tensor([[1 / 0.25 * -math.log(0.45)]]))
    loss(*two_easy)
    expected[0] = 0.75 * 0.5 + 0.25 * 2
    torch.testing.assert_close(loss.acc_sum, expected)
    loss(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    torch.testing.assert_close(loss.acc_sum, expected)


def test_state_is_kept_under_the_names_of_mmdetection():
    assert set(GHMC().state_dict()) == set(GHMR().state_dict()) == {"edges"}
    assert set(GHMC(momentum=0.5).state_dict()) == set(GHMR(momentum=0.5).state_dict()) == {"edges", "acc_sum"}


def test_what_does_not_count_has_no_influence():
    pred, target = logit(0.05, 0.05, 0.55), torch.tensor([1, 1, 1])
    weight = torch.tensor([1.0, 0.0, 1.0])
    loss = GHMC()
    torch.testing.assert_close(loss(pred, target, weight), loss(pred[::2], target[::2]))
    target[1] = -1  # not even a label
    torch.testing.assert_close(loss(pred, target, weight), loss(pred[::2], target[::2]))
    assert loss(pred, target, 0 * weight) == 0


def test_ghmr_divides_by_the_sum_of_weights():
    pred, target = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
    per_element, _ = authentic_smooth_l1_loss(pred, target)
    # One region; a total of 5 over 2 elements
    torch.testing.assert_close(
        GHMR(bins=1, reduction="none")(pred, target, torch.tensor([[1.0, 4.0]])), per_element * 5 / 2
    )


@pytest.mark.parametrize("avg_factor", [1.0, 1000.0])
def test_the_losses_count_themselves_whatever_heads_pass(avg_factor):
    pred, target = logit(0.05, 0.55), torch.tensor([1, 1])
    assert GHMC()(pred, target, avg_factor=avg_factor) == GHMC()(pred, target)
    target = torch.zeros(2, 1)
    assert GHMR()(pred, target, avg_factor=avg_factor) == GHMR()(pred, target)


def test_wrong_arguments_are_refused_by_name():
    pred = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="GHMC: use_sigmoid=False has no definition"):
        GHMC(use_sigmoid=False)
    with pytest.raises(ValueError, match=r"GHMR: mu must be > 0, got 0"):
        GHMR(mu=0)
    with pytest.raises(ValueError, match="GHMC: momentum must be < 1, got 1"):
        GHMC(momentum=1)
    with pytest.raises(ValueError, match=r"GHMR: momentum must be >= 0, got -0\.5"):
        GHMR(momentum=-0.5)
    with pytest.raises(ValueError, match="GHMR: bins must be >= 1, got 0"):
        GHMR(bins=0)
    with pytest.raises(TypeError, match=r"GHMC: bins must be an integer, got 2\.5"):
        GHMC(bins=2.5)
    with pytest.raises(ValueError, match=r"GHMC: label_weight \(3,\) does not fit target \(2,\)"):
        GHMC()(pred, torch.zeros(2, dtype=torch.int64), torch.ones(3))
    with pytest.raises(ValueError, match=r"GHMC: target \(2, 2\) does not fit pred \(2, 3\)"):
        GHMC()(pred, torch.zeros(2, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"GHMR: label_weight \(2,\) does not fit pred \(2, 3\)"):
        GHMR()(pred, pred, torch.ones(2))
    with pytest.raises(RuntimeError, match=r"GHMC: a label lies outside \[0, 3\]"):
        GHMC()(pred, torch.tensor([0, 4]))


@pytest.mark.parametrize("build", [GHMC, GHMR])
def test_a_sum_is_refused_with_the_reason(build):
    pred = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=rf"{build.__name__}: reduction 'sum' excludes the avg_factor"):
        build(reduction="sum")
    with pytest.raises(ValueError, match=rf"{build.__name__}: reduction 'sum' excludes the avg_factor"):
        build()(pred, pred, reduction_override="sum")


def test_ghmr_of_weights_below_1_in_sum_divides_by_1():
    pred, target = torch.tensor([[2.0, -1.0]]), torch.zeros(1, 2)
    weight = torch.tensor([[0.25, 0.0]])
    # One element counts, in one region: its weight is the total, 1.
    expected = math.hypot(2, 0.02) - 0.02
    torch.testing.assert_close(GHMR(reduction="none")(pred, target, weight), torch.tensor([[expected, 0.0]]))
    torch.testing.assert_close(GHMR()(pred, target, weight), torch.tensor(expected))


def test_a_module_in_half_precision_still_sees_what_is_entirely_wrong():
    # A gradient norm of exactly 1 lies in the last region, whose end half precision rounds to 1.
    pred, target = torch.tensor([[100.0], [0.0]]), torch.zeros(2, 1)
    torch.testing.assert_close(GHMC().half()(pred, target), GHMC()(pred, target))
    assert GHMC(reduction="none").half()(pred, target)[0] > 0
