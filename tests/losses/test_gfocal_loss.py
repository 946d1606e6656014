"""Quality and distribution focal loss by hand, in their limits, and in their two forms of target."""

import math

import pytest
import torch
import torch.nn.functional as F

from detkit.losses import (
    DistributionFocalLoss,
    QualityFocalLoss,
    distribution_focal_loss,
    quality_focal_loss,
    quality_focal_loss_with_prob,
)

LOG2 = math.log(2)


def test_quality_by_hand():
    # sigma = 1/2. Quality 1: (1/2)^2 log 2 and, at the other class, (1/2)^2 log 2. Quality 1/2: 0 at its class.
    loss = QualityFocalLoss(reduction="none")
    pred = torch.zeros(3, 2)
    value = loss(pred, (torch.tensor([0, 1, 2]), torch.tensor([1.0, 0.5, 0.0])))
    torch.testing.assert_close(value, torch.tensor([LOG2 / 2, LOG2 / 4, LOG2 / 2]))


def samples():
    pred = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, -1, 0, 1, 3])
    quality = torch.rand(8, generator=torch.Generator().manual_seed(1))
    target = torch.zeros(8, 3)
    for row in (0, 1, 2, 5, 6):
        target[row, labels[row]] = quality[row]
    return pred, labels, quality, target


@pytest.mark.parametrize("activated", [False, True])
def test_labels_with_quality_are_targets_per_class(activated):
    """C and negative labels are background."""
    pred, labels, quality, target = samples()
    pred = pred.sigmoid() if activated else pred
    loss = QualityFocalLoss(activated=activated, beta=1.5)
    torch.testing.assert_close(loss(pred, (labels, quality)), loss(pred, target))
    torch.testing.assert_close(loss(pred, [labels, quality]), loss(pred, target))


def test_a_background_sample_has_no_quality():
    loss = QualityFocalLoss()
    pred, labels = torch.zeros(1, 2), torch.tensor([2])
    assert torch.isfinite(loss(pred, (labels, torch.tensor([math.nan]))))


def test_quality_without_focus_is_cross_entropy():
    pred, _, _, target = samples()
    expected = F.binary_cross_entropy_with_logits(pred, target, reduction="none").sum(1)
    torch.testing.assert_close(quality_focal_loss(pred, target, beta=0), expected)


def test_quality_of_probabilities_is_that_of_logits():
    pred, _, _, target = samples()
    torch.testing.assert_close(
        quality_focal_loss_with_prob(pred.sigmoid(), target, beta=2.5), quality_focal_loss(pred, target, beta=2.5)
    )


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("activated", [False, True])
def test_a_score_that_equals_its_quality_has_no_infinite_gradient(beta, activated):
    pred = torch.tensor([[1.0, 0.0, 0.5]] if activated else [[100.0, -100.0, 0.0]], requires_grad=True)
    loss = QualityFocalLoss(activated=activated, beta=beta)(pred, torch.tensor([[1.0, 0.0, 0.5]]))
    (grad,) = torch.autograd.grad(loss, pred)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        ((torch.zeros(2),) * 3, {}, ValueError, "target is a pair of labels and qualities .* got 3 tensors"),
        (torch.zeros(2, 4), {}, ValueError, r"pred \(2, 3\) and target \(2, 4\) differ"),
        (torch.zeros(2, 3), {"weight": torch.ones(2, 3)}, ValueError, r"weight \(2, 3\) does not fit losses \(2,\)"),
        ((torch.tensor([0, 4]), torch.zeros(2)), {}, RuntimeError, r"a label lies outside \[0, 3\]"),
        (None, {}, TypeError, "target is a tensor, or a pair of labels and qualities, got None"),
        ((torch.zeros(2).long(), None), {}, TypeError, "target is a tensor, or a pair of labels and qualities"),
    ],
)
def test_a_quality_target_that_does_not_fit_is_refused(target, options, error, message):
    with pytest.raises(error, match=f"QualityFocalLoss: {message}"):
        QualityFocalLoss()(torch.zeros(2, 3), target, **options)


def test_distribution_by_hand():
    # Probabilities 1/2, 1/4, 1/4; distance 0.25 is 3/4 of bin 0 and 1/4 of bin 1, distance 1 all of bin 1.
    pred = torch.tensor([[0.5, 0.25, 0.25]]).log().expand(2, 3)
    loss = distribution_focal_loss(pred, torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(loss, torch.tensor([0.75 * LOG2 + 0.25 * 2 * LOG2, 2 * LOG2]))


def test_the_best_distribution_has_the_distance_as_its_mean():
    """Eq. 7: at the minimum the two bins hold the shares of the distance."""
    pred = torch.tensor([[1e-30, 0.3, 0.7, 1e-30]]).log().requires_grad_()
    loss = DistributionFocalLoss()(pred, torch.tensor([1.7]))
    (grad,) = torch.autograd.grad(loss, pred)
    torch.testing.assert_close(grad, torch.zeros(1, 4))


@pytest.mark.parametrize("distance", [-0.1, 3.0, math.nan])
def test_a_distance_without_a_bin_is_refused(distance):
    with pytest.raises(RuntimeError, match=r"DistributionFocalLoss: a distance lies outside \[0, 3\)"):
        DistributionFocalLoss()(torch.zeros(1, 4), torch.tensor([distance]))


def test_distances_of_another_number_are_refused():
    with pytest.raises(ValueError, match=r"DistributionFocalLoss: target \(3,\) does not fit pred \(2, 4\)"):
        DistributionFocalLoss()(torch.zeros(2, 4), torch.zeros(3))


@pytest.mark.parametrize("activated", [False, True])
def test_a_root_of_an_error_of_zero_has_a_finite_gradient_from_labels(activated):
    """beta < 1; scores without error at the own class, at the others and in a background row."""
    certain = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    pred = (certain if activated else 400 * certain - 200).requires_grad_()
    loss = QualityFocalLoss(activated=activated, beta=0.5)(pred, (torch.tensor([0, 2]), torch.tensor([1.0, 0.0])))
    (grad,) = torch.autograd.grad(loss, pred)
    assert torch.isfinite(grad).all()


def test_probabilities_outside_0_and_1_are_refused():
    with pytest.raises(RuntimeError, match="QualityFocalLoss: predictions are probabilities"):
        QualityFocalLoss(activated=True)(torch.tensor([[1.5]]), (torch.tensor([0]), torch.tensor([1.0])))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": -1}, ValueError, "beta must be >= 0, got -1"),
        ({"beta": "2"}, TypeError, "beta must be a number, got '2'"),
        ({"use_sigmoid": False}, ValueError, "use_sigmoid=False has no definition"),
    ],
)
def test_arguments_that_have_no_meaning_are_refused(options, error, message):
    with pytest.raises(error, match=f"QualityFocalLoss: {message}"):
        QualityFocalLoss(**options)


def test_a_distance_has_one_weight():
    loss = DistributionFocalLoss()
    with pytest.raises(ValueError, match=r"DistributionFocalLoss: weight \(2, 4\) does not fit losses \(2,\)"):
        loss(torch.zeros(2, 4), torch.zeros(2), torch.ones(2, 4))


def test_an_empty_target_is_no_target():
    with pytest.raises(ValueError, match=r"DistributionFocalLoss: target \(0,\) does not fit pred \(2, 4\)"):
        DistributionFocalLoss()(torch.zeros(2, 4), torch.zeros(0))
