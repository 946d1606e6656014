"""Gaussian focal loss by hand, and its two ways of naming positives."""

import math

import pytest
import torch

from detkit.losses import GaussianFocalLoss, gaussian_focal_loss

LOG2 = math.log(2)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (1.0, LOG2 / 4),  # (1 - 1/2)^2 log 2
        (0.0, LOG2 / 4),  # (1/2)^2 log 2
        (0.5, LOG2 / 4 / 16),  # weighed with (1 - 1/2)^4
    ],
)
def test_by_hand(target, expected):
    loss = gaussian_focal_loss(torch.tensor([0.5]), torch.tensor([target]))
    torch.testing.assert_close(loss, torch.tensor([expected]))


def heatmap():
    """Probabilities and targets (6, 3) with the centres (1, 0), (1, 2) and (4, 1)."""
    pred = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    target = torch.rand(6, 3, generator=torch.Generator().manual_seed(1)) * 0.9
    rows, labels = torch.tensor([1, 1, 4]), torch.tensor([0, 2, 1])
    target[rows, labels] = 1
    return pred, target, rows, labels


@pytest.mark.parametrize("weighted", [False, True])
def test_named_positives_are_those_of_the_heatmap(weighted):
    """Where each centre is named once, both ways give the same sum; MMDetection's second ignores weights."""
    pred, target, rows, labels = heatmap()
    weight = torch.rand(6, 3, generator=torch.Generator().manual_seed(2)) if weighted else None
    loss = GaussianFocalLoss(reduction="sum", pos_weight=2.0, neg_weight=0.5, loss_weight=3.0)
    torch.testing.assert_close(
        loss(pred, target, pos_inds=rows, pos_labels=labels, weight=weight), loss(pred, target, weight=weight)
    )


def test_a_positive_named_twice_counts_twice():
    pred, target, rows, labels = heatmap()
    loss = GaussianFocalLoss(reduction="sum", neg_weight=0.0)
    once = loss(pred, target, rows, labels)
    twice = loss(pred, target, rows.repeat(2), labels.repeat(2))
    torch.testing.assert_close(twice, 2 * once)


def test_no_positive_and_no_average_factor():
    # The mean of no positives is 0; MMDetection gives NaN.
    pred, target, rows, labels = heatmap()
    loss = GaussianFocalLoss()(pred, target, rows[:0], labels[:0])
    torch.testing.assert_close(loss, GaussianFocalLoss(pos_weight=0.0)(pred, target, rows, labels))
    assert loss > 0


@pytest.mark.parametrize("prob", [0.0, 1.0])
@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_certain_probabilities_stay_finite(prob, target, alpha):
    pred = torch.tensor([prob], requires_grad=True)
    loss = GaussianFocalLoss(alpha=alpha)(pred, torch.tensor([target]))
    (grad,) = torch.autograd.grad(loss, pred)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pos_labels": None}, "pos_inds needs pos_labels"),
        ({"reduction_override": "none"}, "reduction='none'"),
        ({"target": torch.zeros(6, 2)}, r"pred \(6, 3\) and target \(6, 2\) differ"),
        ({"pos_labels": torch.tensor([0])}, r"pos_inds and pos_labels \(P,\) .* got \(3,\), \(1,\) and \(6, 3\)"),
        ({"pos_inds": torch.ones(3, dtype=torch.bool)}, "integers, got torch.bool and torch.int64"),
        ({"weight": torch.zeros(6)}, r"weight \(6,\) does not fit losses \(6, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    pred, target, rows, labels = heatmap()
    arguments = {"target": target, "pos_inds": rows, "pos_labels": labels, **options}
    with pytest.raises(ValueError, match=f"GaussianFocalLoss: .*{message}"):
        GaussianFocalLoss()(pred, **arguments)


@pytest.mark.parametrize("rows", [[6], [-1]])
def test_a_positive_outside_the_heatmap_is_refused(rows):
    pred, target, _, _ = heatmap()
    with pytest.raises(RuntimeError, match=r"GaussianFocalLoss: the row of a positive lies outside \[0, 6\)"):
        GaussianFocalLoss()(pred, target, torch.tensor(rows), torch.tensor([0]))
    with pytest.raises(RuntimeError, match=r"GaussianFocalLoss: the class of a positive lies outside \[0, 3\)"):
        GaussianFocalLoss()(pred, target, torch.tensor([0]), torch.tensor([3]))


def test_the_logarithm_of_zero_is_that_of_a_small_number():
    loss = gaussian_focal_loss(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(loss, torch.full((2,), -math.log(1e-12)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": -1}, ValueError, "alpha must be >= 0, got -1"),
        ({"gamma": -1}, ValueError, "gamma must be >= 0, got -1"),
        ({"pos_weight": None}, TypeError, "pos_weight must be a number, got None"),
    ],
)
def test_arguments_that_have_no_meaning_are_refused(options, error, message):
    with pytest.raises(error, match=f"GaussianFocalLoss: {message}"):
        GaussianFocalLoss(**options)
