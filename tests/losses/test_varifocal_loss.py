"""Varifocal loss by hand and in its limits."""

import math

import pytest
import torch
import torch.nn.functional as F

from detkit.losses import VarifocalLoss, varifocal_loss

LOG2 = math.log(2)


@pytest.mark.parametrize(
    ("target", "iou_weighted", "expected"),
    [
        (0.0, True, 0.75 * 0.25 * LOG2),  # negative: alpha sigma^2 log 2
        (0.5, True, 0.5 * LOG2),  # positive: the IoU times the cross entropy, not focused
        (0.5, False, LOG2),
        (1.0, True, LOG2),
    ],
)
def test_by_hand(target, iou_weighted, expected):
    loss = varifocal_loss(torch.zeros(1), torch.tensor([target]), iou_weighted=iou_weighted)
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_without_focus_and_weights_it_is_cross_entropy():
    pred = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    target = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)).round()
    torch.testing.assert_close(
        varifocal_loss(pred, target, alpha=1.0, gamma=0.0, iou_weighted=False),
        F.binary_cross_entropy_with_logits(pred, target, reduction="none"),
    )


@pytest.mark.parametrize("logit", [-100.0, 100.0])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_extreme_logits_stay_finite(logit, gamma):
    pred = torch.full((1, 2), logit, requires_grad=True)
    loss = VarifocalLoss(gamma=gamma)(pred, torch.tensor([[0.0, 1.0]]))
    (grad,) = torch.autograd.grad(loss, pred)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_sigmoid": False}, "use_sigmoid=False"),
        ({"alpha": -1.0}, "alpha must be >= 0, got -1"),
        ({"gamma": -2.0}, "gamma must be >= 0, got -2"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"VarifocalLoss: {message}"):
        VarifocalLoss(**options)


def test_a_positive_of_hardly_any_overlap_is_none_the_less_a_positive():
    """Unweighted, it costs its cross entropy, log 2 at a score of 1/2; a negative 0.75 (1/2)^2 of it."""
    loss = varifocal_loss(torch.zeros(3), torch.tensor([1e-6, 0.0, -0.0]), iou_weighted=False)
    log2 = math.log(2)
    torch.testing.assert_close(loss, torch.tensor([log2, 0.75 * log2 / 4, 0.75 * log2 / 4]))


def test_a_root_of_a_score_of_zero_has_a_finite_gradient():
    pred = torch.tensor([[-200.0, 200.0]], requires_grad=True)  # in float32, scores of 0 and 1
    (grad,) = torch.autograd.grad(VarifocalLoss(gamma=0.5)(pred, torch.tensor([[0.0, 1.0]])), pred)
    assert torch.isfinite(grad).all()


def test_an_empty_target_is_no_target():
    with pytest.raises(ValueError, match=r"VarifocalLoss: pred \(2, 3\) and target \(0, 3\) differ in shape"):
        VarifocalLoss()(torch.zeros(2, 3), torch.zeros(0, 3))
