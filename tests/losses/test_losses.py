"""Classification and smooth L1 losses by hand and in their limits."""

import math

import pytest
import torch

from detkit.losses import CrossEntropyLoss, FocalLoss, weight_reduce_loss
from detkit.losses.focal_loss import focal_loss_with_prob, sigmoid_focal_loss
from detkit.losses.smooth_l1_loss import smooth_l1_loss


@pytest.mark.parametrize(
    ("logit", "target", "expected"),
    [
        # p = 1/2: cross entropy log 2, (1 - p_t)^2 = 1/4, alpha 1/4
        (0.0, 1.0, 0.25 * 0.25 * math.log(2)),
        # p = 3/4, a hard negative: cross entropy log 4, (1 - p_t)^2 = 9/16
        (math.log(3), 0.0, 0.75 * 9 / 16 * math.log(4)),
    ],
)
def test_focal_loss_by_hand(logit, target, expected):
    loss = sigmoid_focal_loss(torch.tensor([logit]), torch.tensor([target]))
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_focal_loss_without_focus_is_half_the_cross_entropy():
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    targets = (logits > 0.5).float()
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, targets, gamma=0, alpha=0.5),
        0.5 * torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none"),
    )


def test_focal_loss_of_probabilities_is_that_of_logits():
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.rand(20, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(focal_loss_with_prob(logits.sigmoid(), targets), sigmoid_focal_loss(logits, targets))


def test_smooth_l1_by_hand():
    # Below beta = 2: 0.5 * 1 / 2; at and above: |d| - 1
    pred = torch.tensor([1.0, -2.0, 5.0])
    torch.testing.assert_close(smooth_l1_loss(pred, torch.zeros(3), beta=2.0), torch.tensor([0.25, 1.0, 4.0]))


def test_background_and_ignored_labels():
    """Label C is background; with sigmoids a negative label costs nothing."""
    logits = torch.zeros(3, 2)
    labels = torch.tensor([1, 2, -1])
    loss = CrossEntropyLoss(use_sigmoid=True, reduction="none")(logits, labels)
    log2 = math.log(2)
    torch.testing.assert_close(loss, torch.tensor([[log2, log2], [log2, log2], [0.0, 0.0]]))


@pytest.mark.parametrize("label", [-1, 4])
def test_focal_loss_names_itself_for_a_label_out_of_range(label):
    with pytest.raises(RuntimeError, match=r"FocalLoss: a label lies outside \[0, 3\]"):
        FocalLoss()(torch.zeros(1, 3), torch.tensor([label]))


@pytest.mark.parametrize("logit", [-100.0, 100.0])
@pytest.mark.parametrize("label", [0, 1])
def test_extreme_logits_stay_finite(logit, label):
    for loss in (FocalLoss(), FocalLoss(gamma=0.5), CrossEntropyLoss(use_sigmoid=True), CrossEntropyLoss()):
        pred = torch.full((1, 2), logit, requires_grad=True)
        value = loss(pred, torch.tensor([label]))
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(pred.grad).all()


def test_avg_factor_may_be_a_tensor_and_none_ignores_it():
    loss = torch.tensor([2.0, 4.0])
    torch.testing.assert_close(weight_reduce_loss(loss, avg_factor=torch.tensor(3)), torch.tensor(2.0))
    torch.testing.assert_close(weight_reduce_loss(loss, reduction="none", avg_factor=3.0), loss)
