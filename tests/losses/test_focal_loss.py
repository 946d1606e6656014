"""Focal loss by hand and in its limits, and its one-pass sum against the plain form it replaces."""

import math
from unittest import mock

import pytest
import torch

from detkit.losses import FocalCustomLoss, FocalLoss, focal_loss
from detkit.losses.focal_loss import focal_loss_with_prob, sigmoid_focal_loss, summed_focal_loss


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


@pytest.mark.parametrize("label", [-1, 4])
def test_focal_loss_names_itself_for_a_label_out_of_range(label):
    with pytest.raises(RuntimeError, match=r"FocalLoss: a label lies outside \[0, 3\]"):
        FocalLoss()(torch.zeros(1, 3), torch.tensor([label]))


@pytest.mark.parametrize("logit", [-100.0, 100.0])
@pytest.mark.parametrize("label", [0, 1])
def test_extreme_logits_stay_finite(logit, label):
    for loss in (FocalLoss(), FocalLoss(gamma=0.5)):
        pred = torch.full((1, 2), logit, requires_grad=True)
        value = loss(pred, torch.tensor([label]))
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(pred.grad).all()


def inputs(scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(50, 7, generator=generator, dtype=dtype) * scale).requires_grad_()
    labels = torch.randint(0, 8, (50,), generator=generator)
    return logits, labels, torch.rand(50, generator=generator, dtype=dtype)


def plain(logits, labels, weight, gamma, alpha):
    target = torch.nn.functional.one_hot(labels, 8)[:, :7].to(logits.dtype)
    loss = sigmoid_focal_loss(logits, target, gamma=gamma, alpha=alpha)
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
        summed_focal_loss(logits, labels, weight, 2.0, 0.25)


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


@pytest.mark.parametrize("build", [FocalLoss, lambda **options: FocalCustomLoss(num_classes=2, **options)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_class_ruled_out_costs_nothing(build, reduction, gamma):
    """A logit of minus infinity; 0 * infinity would be NaN."""
    pred = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    loss = build(reduction=reduction, gamma=gamma)(pred, torch.tensor([0])).sum()
    loss.backward()
    count = 2 if reduction == "mean" else 1
    torch.testing.assert_close(loss.detach(), torch.tensor(0.25 * 0.5**gamma * math.log(2) / count))
    assert pred.grad[0, 1] == 0
    assert torch.isfinite(pred.grad).all()


@pytest.mark.parametrize("options", [{}, {"activated": True}])
def test_a_root_of_an_error_of_zero_has_a_finite_gradient(options):
    """gamma < 1; in float32 a logit of 200 and a probability of 1 are without error."""
    certain = torch.tensor([[1.0, 0.0]]) if options else torch.tensor([[200.0, -200.0]])
    for reduction in ("none", "sum"):
        for target in (torch.tensor([0]), torch.tensor([[1.0, 0.0]])):
            pred = certain.clone().requires_grad_()
            FocalLoss(gamma=0.5, reduction=reduction, **options)(pred, target).sum().backward()
            assert torch.isfinite(pred.grad).all()


@pytest.mark.parametrize("label", [torch.tensor([0, 3]), torch.tensor([0, -1])])
def test_the_sum_takes_any_other_label_for_background(label):
    """Labels are checked before; here one outside [0, C) must not hit the last or first class."""
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    expected = summed_focal_loss(logits, torch.tensor([0, 3]), None, 2.0, 0.25)
    torch.testing.assert_close(summed_focal_loss(logits, label, None, 2.0, 0.25), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_labels_of_any_type(dtype, reduction):
    logits, labels, weight = inputs()
    loss = FocalLoss(reduction=reduction)
    torch.testing.assert_close(loss(logits, labels.to(dtype), weight), loss(logits, labels, weight))


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_batch_is_its_rows(activated, reduction):
    logits, labels, weight = inputs(scale=0.1)
    pred = logits.detach().sigmoid() if activated else logits.detach()
    loss = FocalLoss(activated=activated, reduction=reduction)
    expected = loss(pred, labels, weight)
    found = loss(pred.view(5, 10, 7), labels.view(5, 10), weight.view(5, 10))
    torch.testing.assert_close(found.view(expected.shape), expected)


def test_the_mean_over_labels_is_that_over_targets():
    logits, labels, _ = inputs()
    target = torch.nn.functional.one_hot(labels, 8)[:, :7]
    torch.testing.assert_close(FocalLoss()(logits, labels), FocalLoss()(logits, target))


def test_function_transforms():
    logits, labels, weight = inputs()
    found = torch.func.grad(lambda x: FocalLoss()(x, labels, weight))(logits.detach())
    torch.testing.assert_close((found,), torch.autograd.grad(FocalLoss()(logits, labels, weight), logits))


def test_a_compiler_traces_the_plain_form():
    logits, labels, weight = inputs()
    with (
        mock.patch.object(torch.compiler, "is_compiling", return_value=True),
        mock.patch.object(focal_loss, "summed_focal_loss", side_effect=AssertionError("was summed")),
    ):
        found = FocalLoss()(logits, labels, weight)
    torch.testing.assert_close(found, FocalLoss()(logits, labels, weight))


def test_no_classes_cost_nothing():
    pred = torch.zeros(3, 0, requires_grad=True)
    loss = FocalLoss()(pred, torch.zeros(3, dtype=torch.int64))
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize("build", [FocalLoss, lambda **options: FocalCustomLoss(num_classes=2, **options)])
def test_probabilities_outside_0_and_1_are_refused(build):
    with pytest.raises(RuntimeError, match=r"Focal\w*Loss: predictions are probabilities, and one lies outside"):
        build(activated=True)(torch.tensor([[0.5, 1.5]]), torch.tensor([0]))


def test_targets_that_are_no_probabilities_of_the_same_shape_are_refused():
    with pytest.raises(RuntimeError, match="FocalLoss: predictions are probabilities"):
        FocalLoss(activated=True)(torch.tensor([[0.5, 1.5]]), torch.tensor([[0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"FocalLoss: target \(3,\) does not fit pred \(2, 3\)"):
        FocalLoss()(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gamma": -1}, ValueError, "gamma must be >= 0, got -1"),
        ({"gamma": "2"}, TypeError, "gamma must be a number, got '2'"),
        ({"alpha": 25}, ValueError, "alpha must be >= 0 and <= 1, got 25"),
        ({"alpha": None}, TypeError, "alpha must be a number, got None"),
        ({"loss_weight": "1.0"}, TypeError, "loss_weight must be a number, got '1.0'"),
        ({"use_sigmoid": False}, ValueError, "use_sigmoid=False has no definition"),
    ],
)
@pytest.mark.parametrize("build", [FocalLoss, FocalCustomLoss])
def test_arguments_that_have_no_meaning_are_refused(build, options, error, message):
    given = {"num_classes": 2} if build is FocalCustomLoss else {}
    with pytest.raises(error, match=f"{build.__name__}: {message}"):
        build(**given, **options)


@pytest.mark.parametrize("logit", [-80.0, -16.25, -9.75, -0.375, 0.0, 3.125, 17.0, 80.0])
def test_loss_of_far_logits_is_as_accurate_as_that_of_near_ones(logit):
    # Without alpha and gamma it is the cross entropy of a negative, log(1 + e^x); e^-16.25 is lost beside 1.
    found = summed_focal_loss(torch.tensor([[logit]]), torch.ones(1, dtype=torch.int64), None, 0.0, 0.0)
    expected = math.log1p(math.exp(logit))
    assert float(found) == pytest.approx(expected, rel=4e-7, abs=0)
