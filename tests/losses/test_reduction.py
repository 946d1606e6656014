"""Weighting, averaging and reduction by hand, and what is refused before."""

import math

import pytest
import torch

from detkit.losses import ElementwiseLoss, IoULoss, L1Loss, reduce_loss, weight_reduce_loss, weighted_loss
from detkit.losses.reduction import check_number, match_weight, reduce_mean

LOSS = torch.tensor([[2.0, 4.0], [6.0, 12.0]])


def test_reductions_by_hand():
    torch.testing.assert_close(reduce_loss(LOSS, "none"), LOSS)
    assert reduce_loss(LOSS, "sum") == 24
    assert reduce_loss(LOSS, "mean") == 6
    weight = torch.tensor([[1.0], [0.5]])
    torch.testing.assert_close(weight_reduce_loss(LOSS, weight, "none"), torch.tensor([[2.0, 4.0], [3.0, 6.0]]))
    assert weight_reduce_loss(LOSS, weight, "sum") == 15
    assert weight_reduce_loss(LOSS, weight) == 15 / 4  # not divided by the weights' sum
    assert weight_reduce_loss(LOSS, weight, avg_factor=5) == 3


def test_avg_factor_may_be_a_tensor_and_none_ignores_it():
    torch.testing.assert_close(weight_reduce_loss(LOSS, avg_factor=torch.tensor(3)), torch.tensor(8.0))
    torch.testing.assert_close(weight_reduce_loss(LOSS, reduction="none", avg_factor=3.0), LOSS)


@pytest.mark.parametrize("avg_factor", [None, 0, torch.tensor(0)])
def test_the_mean_of_nothing_is_0(avg_factor):
    nothing = torch.zeros(0, 4, requires_grad=True)
    mean = weight_reduce_loss(nothing, avg_factor=avg_factor)
    assert mean == 0
    assert mean.requires_grad


@pytest.mark.parametrize("reduction", ["avg", "", False, None])
def test_an_unknown_reduction_is_refused(reduction):
    message = rf"^{{}}: reduction {reduction!r} is not one of 'none', 'mean', 'sum'"
    with pytest.raises(ValueError, match=message.format("reduce_loss")):
        reduce_loss(LOSS, reduction)
    with pytest.raises(ValueError, match=message.format("weight_reduce_loss")):
        weight_reduce_loss(LOSS, reduction=reduction)


def test_a_sum_with_an_average_factor_is_refused():
    with pytest.raises(ValueError, match='avg_factor can not be used with reduction="sum"'):
        weight_reduce_loss(LOSS, reduction="sum", avg_factor=2)


@pytest.mark.parametrize("override", ["", False])
def test_an_override_that_is_not_none_counts(override):
    with pytest.raises(ValueError, match=f"L1Loss: reduction {override!r} is not one of"):
        L1Loss()(LOSS, LOSS, reduction_override=override)


@pytest.mark.parametrize("shape", [(2, 2), (2, 1), (1, 2), (1, 1)])
def test_weights_that_broadcast_are_left_as_they_are(shape):
    weight = torch.ones(shape)
    assert match_weight(weight, LOSS, "Loss") is weight


@pytest.mark.parametrize("shape", [(2,), (4,), (), (3, 2), (2, 2, 2), (0,)])
def test_other_weights_are_refused_by_name(shape):
    text = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"Loss: weight {text} does not fit losses \(2, 2\)"):
        match_weight(torch.ones(shape), LOSS, "Loss")


def test_weights_per_sample_and_per_element():
    by_sample = match_weight(torch.tensor([3.0, 5.0]), LOSS, "Loss", per_sample=True)
    torch.testing.assert_close(by_sample, torch.tensor([[3.0], [5.0]]))
    by_element = match_weight(torch.arange(4.0), LOSS, "Loss", per_sample=True)
    torch.testing.assert_close(by_element, torch.tensor([[0.0, 1.0], [2.0, 3.0]]))


def test_weights_per_coordinate():
    weight = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.0, 1.0]])
    found = match_weight(weight.half(), torch.ones(2), "Loss", per_coordinate=True)
    torch.testing.assert_close(found, torch.tensor([3.0, 0.25]))
    with pytest.raises(ValueError, match=r"Loss: weight \(2, 3\) does not fit losses \(2,\)"):
        match_weight(weight[:, :3], torch.ones(2), "Loss", per_coordinate=True)


def test_weights_of_truth_values_are_0_and_1():
    found = match_weight(LOSS > 3, LOSS, "Loss")
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0], [1.0, 1.0]]))


@weighted_loss
def difference(pred, target, scale=1.0):
    return (pred - target) * scale


def test_a_weighted_function():
    zeros = torch.zeros(2, 2)
    assert difference(LOSS, zeros) == 6
    assert difference(LOSS, zeros, torch.tensor([[1.0], [0.0]]), "sum", scale=2.0) == 12
    assert difference(LOSS, zeros, avg_factor=8) == 3
    assert difference.__name__ == "difference"
    with pytest.raises(ValueError, match="difference: reduction 'avg' is not one of"):
        difference(LOSS, zeros, reduction="avg")
    with pytest.raises(ValueError, match=r"difference: .*avg_factor"):
        difference(LOSS, zeros, reduction="sum", avg_factor=2)


def test_a_weighted_function_widens_nothing():
    with pytest.raises(ValueError, match=r"difference: weight \(2,\) does not fit losses \(2, 2\)"):
        difference(LOSS, torch.zeros(2, 2), torch.ones(2))
    with pytest.raises(ValueError, match=r"difference: target \(1, 2\) does not fit pred \(2, 2\)"):
        difference(LOSS, torch.zeros(1, 2))


def test_a_weighted_function_computes_in_float32():
    pred = torch.tensor([2048.0], dtype=torch.float16)
    torch.testing.assert_close(difference(pred, torch.full_like(pred, 0.5)), torch.tensor(2047.5))


@pytest.mark.parametrize(
    ("limits", "value", "message"),
    [
        ({"low": 0}, -1, "Loss: gamma must be >= 0, got -1"),
        ({"above": 0}, 0, "Loss: gamma must be > 0, got 0"),
        ({"low": 0, "high": 1}, 25, "Loss: gamma must be >= 0 and <= 1, got 25"),
        ({"low": 0}, math.nan, "Loss: gamma must be >= 0, got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(limits, value, message):
    with pytest.raises(ValueError, match=message):
        check_number("Loss", "gamma", value, **limits)


@pytest.mark.parametrize("value", ["2", None, [2.0]])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match=r"Loss: gamma must be a number, got ['N\[]"):
        check_number("Loss", "gamma", value)
    with pytest.raises(TypeError, match="L1Loss: loss_weight must be a number"):
        L1Loss(loss_weight=value)


def test_numbers_on_the_bounds_pass():
    check_number("Loss", "gamma", 0, low=0, high=0)
    check_number("Loss", "gamma", 1e-30, above=0)
    check_number("Loss", "num", 3, low=1, whole=True)
    with pytest.raises(TypeError, match=r"Loss: num must be an integer, got 3\.0"):
        check_number("Loss", "num", 3.0, whole=True)


def test_a_loss_of_ones_own_states_its_mathematics_only():
    class Excess(ElementwiseLoss):
        def elementwise(self, pred, target):
            return (pred - target).clamp(min=0)

    assert Excess(loss_weight=2.0)(LOSS, torch.full((2, 2), 5.0)) == 2 * (1 + 7) / 4
    with pytest.raises(NotImplementedError, match="ElementwiseLoss has neither elementwise nor a forward"):
        ElementwiseLoss()(LOSS, LOSS)


def test_checks_come_before_the_work(monkeypatch):
    monkeypatch.setattr(IoULoss, "elementwise", lambda *_: pytest.fail("computed"))
    with pytest.raises(ValueError, match="avg_factor"):
        IoULoss()(torch.zeros(1, 4), torch.zeros(1, 4), avg_factor=1, reduction_override="sum")


def test_the_mean_over_processes(monkeypatch):
    """As if a second process had brought 3."""
    value = torch.tensor(5.0, requires_grad=True)
    assert reduce_mean(value) is value
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(1.5))
    mean = reduce_mean(value)
    torch.testing.assert_close(mean, torch.tensor(4.0))
    assert not mean.requires_grad
    assert value == 5
    # The least sum over both processes is 10: 5 each.
    assert reduce_mean(value, least=10) == 5
    with torch.no_grad():
        assert reduce_mean(value) is value


def test_leading_dimensions_are_samples():
    weight = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(match_weight(weight, torch.ones(2, 5, 3), "Loss", per_sample=True), weight[..., None])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_weights_per_coordinate_may_be_whole_numbers(dtype):
    weight = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=dtype)
    found = match_weight(weight, torch.ones(2), "Loss", per_coordinate=True)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.0]))


def test_a_loss_that_counts_its_samples_has_no_sum():
    class Counting(L1Loss):
        counts_itself = True

    message = "Counting: reduction 'sum' excludes the avg_factor that this loss counts"
    with pytest.raises(ValueError, match=message):
        Counting(reduction="sum")
    with pytest.raises(ValueError, match=message):
        Counting()(LOSS, LOSS, reduction_override="sum")
