"""Scores with an objectness: by hand, at the limits, gradients."""

import math

import pytest
import torch

from detkit.models.dense_heads.prediction.objectness import geometric_mean, geometric_mean_logit, implicit_objectness


def test_by_hand():
    # Probabilities 1/2 and 1/8
    logits, objectness = torch.tensor([0.0]), torch.tensor([-math.log(7)])
    torch.testing.assert_close(geometric_mean(logits, objectness), torch.tensor([0.25]))
    torch.testing.assert_close(geometric_mean_logit(logits, objectness), torch.tensor([-math.log(3)]))
    # The product is 1/16, its odds 1 to 15
    torch.testing.assert_close(implicit_objectness(logits, objectness), torch.tensor([-math.log(15)]))


@pytest.mark.parametrize("sure", [15.0, 25.0, 90.0])
def test_a_sure_object_leaves_the_score_to_its_class(sure):
    """And a sure class to its objectness; an overflow clamped away would make a score of their sum."""
    logits = torch.tensor([-3.0, 0.0, 2.0])
    torch.testing.assert_close(implicit_objectness(logits, torch.tensor(sure)), logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(implicit_objectness(torch.tensor(sure), logits), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("function", [geometric_mean, geometric_mean_logit, implicit_objectness])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_finite_and_alike_at_both_ends(function, scale):
    logits = torch.tensor([-scale, scale, -scale, scale], requires_grad=True)
    objectness = torch.tensor([-scale, scale, scale, -scale], requires_grad=True)
    out = function(logits, objectness)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(logits.grad).all()
    torch.testing.assert_close(out, function(objectness, logits))


def test_rare_scores_have_a_gradient():
    """As a square root of a product it would be 0 / 0."""
    logits = torch.full((1,), -60.0, requires_grad=True)
    out = geometric_mean(logits, torch.full((1,), -60.0))
    out.backward()
    torch.testing.assert_close(logits.grad, out.detach() / 2)


@pytest.mark.parametrize("function", [geometric_mean, geometric_mean_logit, implicit_objectness])
def test_half_precision_is_raised(function):
    assert function(torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("function", [geometric_mean, geometric_mean_logit, implicit_objectness])
def test_gradient(function):
    generator = torch.Generator().manual_seed(0)
    logits, objectness = (torch.randn(5, generator=generator).requires_grad_() for _ in "ab")
    out = function(logits, objectness)
    slope = torch.autograd.grad(out.sum(), logits)[0]
    by_difference = (function(logits + 1e-2, objectness) - function(logits - 1e-2, objectness)) / 2e-2
    torch.testing.assert_close(slope, by_difference.detach(), rtol=1e-3, atol=1e-4)
