"""Equalization loss v2: what it counts, what it makes of it, and that it is weighed like every loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from reference import case_named

from detkit.losses import EQLV2Loss
from detkit.registry import MODELS


def samples():
    cls_score = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    return cls_score, torch.arange(8) % 4


def cross_entropy(cls_score, labels):
    return F.binary_cross_entropy_with_logits(cls_score, F.one_hot(labels, 4).float(), reduction="none").sum(dim=1)


def test_before_anything_was_seen_it_is_cross_entropy():
    cls_score, labels = samples()
    torch.testing.assert_close(EQLV2Loss(num_classes=3)(cls_score, labels), cross_entropy(cls_score, labels).mean())


def test_by_hand():
    """Logits 0 of one class, an object and a background: both gradients 1/2, their ratio 1."""
    loss = EQLV2Loss(num_classes=1)
    pred, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    torch.testing.assert_close(loss(pred, labels), torch.tensor(2 * math.log(2)))
    torch.testing.assert_close(loss.pos_grad, torch.tensor([0.5]))
    torch.testing.assert_close(loss.neg_grad, torch.tensor([0.5]))
    torch.testing.assert_close(loss.pos_neg, torch.tensor([1.0]))
    negative = 1 / (1 + math.exp(-12 * (1 - 0.8)))
    positive = 1 + 4 * (1 - negative)
    # Per sample one element of the class, weighed, and one of the background, not weighed.
    expected = torch.tensor([(positive + 1) * math.log(2), (negative + 1) * math.log(2)])
    torch.testing.assert_close(loss(pred, labels, reduction_override="none"), expected)
    torch.testing.assert_close(loss.pos_grad, torch.tensor([0.5 + 0.5 * positive]))
    torch.testing.assert_close(loss.neg_grad, torch.tensor([0.5 + 0.5 * negative]))


def test_weight_reduction_and_average_are_honoured():
    # MMDetection takes them and gives the plain mean.
    case = case_named("losses/EQLV2Loss", "weight_ignored")
    inputs = dict(case["inputs"])
    per_sample = MODELS.build(case["config"])(inputs["cls_score"], inputs["label"], reduction_override="none")
    torch.testing.assert_close(per_sample.mean(), case["outputs"]["out"])
    torch.testing.assert_close(MODELS.build(case["config"])(**inputs), per_sample * inputs["weight"])
    expected = {
        "mean": (per_sample * inputs["weight"]).sum() / inputs["avg_factor"],
        "sum": (per_sample * inputs["weight"]).sum(),
    }
    for reduction, value in expected.items():
        inputs["reduction_override"] = reduction
        inputs["avg_factor"] = inputs["avg_factor"] if reduction == "mean" else None
        torch.testing.assert_close(MODELS.build(case["config"])(**inputs), value)


@pytest.mark.parametrize("ignored", ["label", "weight"])
def test_an_ignored_sample_is_one_that_is_not_there(ignored):
    cls_score, labels = samples()
    keep = torch.arange(8) % 3 > 0
    ignoring, without = EQLV2Loss(num_classes=3), EQLV2Loss(num_classes=3)
    for _ in range(2):
        if ignored == "label":
            found = ignoring(cls_score, torch.where(keep, labels, -1))
        else:
            found = ignoring(cls_score, labels, keep.float(), avg_factor=keep.sum())
        torch.testing.assert_close(found, without(cls_score[keep], labels[keep]))
    torch.testing.assert_close(ignoring.state_dict(), without.state_dict())


def test_weights_per_element_and_per_channel():
    cls_score, labels = samples()
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0])
    per_channel = EQLV2Loss(num_classes=3, class_weight=weight.tolist())
    per_element = EQLV2Loss(num_classes=3)
    torch.testing.assert_close(per_channel(cls_score, labels), per_element(cls_score, labels, weight.expand(8, 4)))
    assert sorted(per_channel.state_dict()) == ["neg_grad", "pos_grad", "pos_neg"]


def test_an_empty_batch_changes_nothing():
    # MMDetection divides by the number of samples, and an empty first batch would set every ratio to 0.
    loss = EQLV2Loss(num_classes=3)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    assert loss(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)) == 0
    torch.testing.assert_close(loss.state_dict(), before)


def test_gradients_of_all_processes_are_summed(monkeypatch):
    """As if a second process had seen the same batch."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    cls_score, labels = samples()
    alone, together = EQLV2Loss(num_classes=3), EQLV2Loss(num_classes=3, use_distributed=True)
    alone(cls_score, labels)
    together(cls_score, labels)
    torch.testing.assert_close(together.pos_grad, 2 * alone.pos_grad)
    torch.testing.assert_close(together.neg_grad, 2 * alone.neg_grad)
    torch.testing.assert_close(together.pos_neg, alone.pos_neg)


def test_one_process_alone_needs_no_group():
    EQLV2Loss(num_classes=3, use_distributed=True)(*samples())


def test_what_a_head_asks():
    """A head uses the loss's own scores; MMDetection's does not know that it should."""
    loss = EQLV2Loss(num_classes=2)
    assert loss.custom_cls_channels
    assert loss.custom_activation
    assert loss.custom_accuracy
    assert loss.get_cls_channels(2) == 3
    logits = torch.tensor([[0.0, math.log(3), 0.0]])  # sigmoids 1/2, 3/4 and background 1/2
    torch.testing.assert_close(loss.get_activation(logits), torch.tensor([[0.25, 0.375, 0.5]]))
    torch.testing.assert_close(
        EQLV2Loss(num_classes=2, test_with_obj=False).get_activation(logits), torch.tensor([[0.5, 0.75, 0.5]])
    )
    torch.testing.assert_close(loss.get_accuracy(logits, torch.tensor([1])), {"acc_classes": torch.tensor([100.0])})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: EQLV2Loss(use_sigmoid=False), ValueError, "use_sigmoid=False"),
        (lambda: EQLV2Loss(num_classes=2, class_weight=[1.0, 1.0]), ValueError, "class_weight needs 3 numbers.* got 2"),
        (lambda: EQLV2Loss(num_classes=2).get_cls_channels(3), ValueError, "the head has 3 classes.*num_classes=2"),
        (
            lambda: EQLV2Loss(num_classes=2)(torch.zeros(1, 2), torch.tensor([0])),
            ValueError,
            r"3 channels were expected for 2 classes, got \(1, 2\)",
        ),
        (
            lambda: EQLV2Loss(num_classes=2)(torch.zeros(1, 3), torch.tensor([3])),
            RuntimeError,
            "a label lies above 2, the background",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=f"EQLV2Loss: {message}"):
        call()


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([0, 4], {}),
        ([0, 1, 2], {}),
        ([[0], [1]], {}),
        ([0.0, 1.0], {}),
        ([0, 1], {"weight": torch.ones(3)}),
        ([0, 1], {"reduction_override": "avg"}),
        ([0, 1], {"reduction_override": "sum", "avg_factor": 1.0}),
    ],
)
def test_what_is_refused_is_not_counted(labels, options):
    loss = EQLV2Loss(num_classes=3)
    with pytest.raises((ValueError, RuntimeError), match="EQLV2Loss: "):
        loss(torch.zeros(2, 4), torch.tensor(labels), **options)
    assert not loss.pos_grad.any()
    assert not loss.neg_grad.any()


def test_without_torch_distributed_there_is_one_process(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    monkeypatch.delattr(torch.distributed, "is_initialized")
    EQLV2Loss(num_classes=3, use_distributed=True)(*samples())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes must be >= 1, got 0"),
        ({"num_classes": -1}, ValueError, "num_classes must be >= 1, got -1"),
        ({"num_classes": 2.5}, TypeError, "num_classes must be an integer, got 2.5"),
        ({"gamma": -1}, ValueError, "gamma must be >= 0, got -1"),
        ({"alpha": -1}, ValueError, "alpha must be >= 0, got -1"),
        ({"class_weight": 2.0}, ValueError, "class_weight needs a number per class, got 2.0"),
    ],
)
def test_arguments_that_have_no_meaning_are_refused(options, error, message):
    with pytest.raises(error, match=f"EQLV2Loss: {message}"):
        EQLV2Loss(**options)
