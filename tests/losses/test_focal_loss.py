"""The one-pass sum of focal losses against the plain form it replaces."""

from unittest import mock

import pytest
import torch

from detkit.losses import FocalLoss, focal_loss
from detkit.losses.focal_loss import sigmoid_focal_loss, summed_focal_loss


def inputs(scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(50, 7, generator=generator, dtype=dtype) * scale).requires_grad_()
    labels = torch.randint(0, 8, (50,), generator=generator)
    return logits, labels, torch.rand(50, generator=generator, dtype=dtype)


def plain(logits, labels, weight, gamma, alpha):
    target = torch.nn.functional.one_hot(labels, 8)[:, :7].to(logits.dtype)
    loss = sigmoid_focal_loss(logits, target, gamma, alpha)
    return loss.sum() if weight is None else (loss * weight.unsqueeze(1)).sum()


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (1.0, 0.75), (1.5, 1.0), (0.5, 0.25)])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("chunk", [1 << 18, 20])
def test_value_and_gradient_are_those_of_the_plain_form(gamma, alpha, weighted, chunk):
    logits, labels, weight = inputs()
    weight = weight if weighted else None
    with mock.patch.object(focal_loss, "CPU_CHUNK", chunk):  # 20 logits are two rows of 7
        found = summed_focal_loss(logits, labels, weight, gamma, alpha)
    expected = plain(logits, labels, weight, gamma, alpha)
    torch.testing.assert_close(found, expected)
    # The derivative is that of the whole, whatever the result is multiplied by.
    torch.testing.assert_close(torch.autograd.grad(3 * found, logits), torch.autograd.grad(3 * expected, logits))


def test_gradcheck():
    logits, labels, weight = inputs()
    assert torch.autograd.gradcheck(lambda x: summed_focal_loss(x, labels, weight, 2.0, 0.25), (logits,))


@pytest.mark.parametrize("scale", [30.0, 100.0])
def test_extreme_logits(scale):
    logits, labels, weight = inputs(scale, torch.float32)
    found = summed_focal_loss(logits, labels, weight, 2.0, 0.25)
    torch.testing.assert_close(found, plain(logits, labels, weight, 2.0, 0.25))
    (slope,) = torch.autograd.grad(found, logits)
    assert torch.isfinite(slope).all()


def test_a_positive_that_is_certain_costs_nothing_beside_large_losses():
    """The positive is written over the negative that its logit would be, not subtracted from it."""
    logits = torch.full((1, 2), 20.0)
    logits[0, 1] = -20.0
    # Both elements are right: 0.25 p^2 log(1 + e^-20) and 0.75 (e^-20)^2 e^-20.
    loss = summed_focal_loss(logits, torch.tensor([0]), None, 2.0, 0.25)
    assert loss < 1e-17


def test_no_slope_is_made_where_none_is_asked_for():
    logits, labels, weight = inputs()
    with torch.no_grad(), mock.patch.object(torch, "empty_like", side_effect=AssertionError("a slope was made")):
        summed_focal_loss(logits.detach(), labels, weight, 2.0, 0.25)


def test_the_module_takes_the_plain_form_for_weights_that_learn():
    logits, labels, weight = inputs()
    weight.requires_grad_()
    FocalLoss(reduction="sum")(logits, labels, weight).backward()
    assert weight.grad is not None
    assert (weight.grad > 0).all()


def test_second_derivatives():
    logits, labels, weight = inputs()
    assert torch.autograd.gradgradcheck(lambda x: summed_focal_loss(x, labels, weight, 2.0, 0.25), (logits,))


def test_probabilities_of_zero_and_one_have_finite_gradients():
    prob = torch.tensor([[0.0, 1.0], [1.0, 0.0]], requires_grad=True)
    loss = FocalLoss(activated=True, reduction="sum")(prob, torch.tensor([0, 2]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(prob.grad).all()
