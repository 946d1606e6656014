"""Checks of labels and other values."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from detkit.losses.labels import check_probabilities, check_range, class_weight_tensor, one_hot


def test_background_has_no_target():
    expected = torch.tensor([[False, True], [False, False]])
    torch.testing.assert_close(one_hot(torch.tensor([1, 2]), 2, "Loss"), expected)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_is_refused(label):
    with pytest.raises(RuntimeError, match=r"Loss: a label lies outside \[0, 2\] \(2 is background\)"):
        one_hot(torch.tensor([0, label]), 2, "Loss")


def test_one_value_outside_may_be_ignored():
    check_range(torch.tensor([0, 255]), 2, "outside", ignored=255)
    with pytest.raises(RuntimeError, match="outside"):
        check_range(torch.tensor([0, 254]), 2, "outside", ignored=255)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_probabilities(value):
    check_probabilities(torch.tensor([0.0, 1.0]), "Loss")
    with pytest.raises(RuntimeError, match="Loss: predictions are probabilities"):
        check_probabilities(torch.tensor([0.5, value]), "Loss")


def test_a_device_without_values_is_not_asked():
    check_range(torch.zeros(2, dtype=torch.int64, device="meta"), 0, "outside")


def test_a_gpu_is_asked_without_waiting(monkeypatch):
    """Under fake tensors, which know their device and hold no values."""
    asked = []
    monkeypatch.setattr(torch, "_assert_async", lambda fine, message: asked.append((fine.device.type, message)))
    with FakeTensorMode():
        check_range(torch.zeros(2, dtype=torch.int64, device="cuda"), 2, "outside")
    assert asked == [("cuda", "outside")]


@pytest.mark.parametrize("given", [2.0, [], [[1.0]], "ab", [None]])
def test_class_weights_that_are_none_are_refused(given):
    with pytest.raises(ValueError, match="Loss: class_weight needs a number per class, got"):
        class_weight_tensor(given, "Loss")


def test_class_weights_are_a_copy():
    given = torch.ones(2)
    weight = class_weight_tensor(given, "Loss")
    given[0] = 5
    torch.testing.assert_close(weight, torch.ones(2))
