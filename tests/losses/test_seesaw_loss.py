"""Seesaw loss by hand, against a loop over classes, and what it counts."""

import math

import pytest
import torch
import torch.nn.functional as F

from detkit.losses import SeesawLoss, seesaw_ce_loss


@pytest.mark.parametrize(
    ("logit", "options", "expected"),
    [
        # Seen 8 and 2 times, p = 1: the rarer class counts a quarter, log(1 + 4 / 4).
        (math.log(4), {"p": 1.0, "q": 0.0}, math.log(2)),
        # Scores 1/4 and 3/4, q = 1: the class that scores higher counts thrice, log(1 + 3 * 3).
        (math.log(3), {"p": 0.0, "q": 1.0}, math.log(10)),
        # Scores 1/1000 and 999/1000: at least eps is divided by, log(1 + 99.9 * 999).
        (math.log(999), {"p": 0.0, "q": 1.0, "eps": 0.01}, math.log(1 + 99.9 * 999)),
    ],
)
def test_by_hand(logit, options, expected):
    loss = seesaw_ce_loss(
        torch.tensor([[0.0, logit]]), torch.tensor([0]), cum_samples=torch.tensor([8.0, 2.0]), **options
    )
    torch.testing.assert_close(loss, torch.tensor([expected]))


def class_by_class(cls_score, labels, seen, p, q, eps):
    """Eq. 2 to 6, one pair of classes at a time."""
    rows = []
    for logits, own in zip(cls_score, labels.tolist(), strict=True):
        scores = logits.softmax(0)
        below = torch.zeros(())
        for other, logit in enumerate(logits):
            mitigation = min(1.0, max(seen[other].item(), 1) / max(seen[own].item(), 1)) ** p
            compensation = max(1.0, scores[other].item() / max(scores[own].item(), eps)) ** q
            below = below + (1.0 if other == own else mitigation * compensation) * logit.exp()
        rows.append(below.log() - logits[own])
    return torch.stack(rows)


def samples(num=12, num_classes=4):
    cls_score = 2 * torch.randn(num, num_classes + 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(num) % (num_classes + 1)
    return cls_score, labels, torch.tensor([100.0, 10.0, 1.0, 0.0, 5.0])


def test_factors_of_every_pair_of_classes():
    cls_score, labels, seen = samples()
    cls_score, labels, options = cls_score[labels < 4, :4], labels[labels < 4], {"p": 0.8, "q": 2.0, "eps": 0.05}
    torch.testing.assert_close(
        seesaw_ce_loss(cls_score, labels, cum_samples=seen[:4], **options),
        class_by_class(cls_score, labels, seen, **options),
    )


def test_without_factors_it_is_cross_entropy():
    cls_score, labels, seen = samples()
    loss = SeesawLoss(p=0.0, q=0.0, num_classes=4)
    loss.cum_samples.copy_(seen)
    losses = loss(cls_score, labels)
    positive = labels < 4
    torch.testing.assert_close(losses["loss_cls_classes"], F.cross_entropy(cls_score[positive, :4], labels[positive]))
    torch.testing.assert_close(losses["loss_cls_objectness"], F.cross_entropy(cls_score[:, 4:], (labels == 4).long()))


@pytest.mark.parametrize(
    "options", [{}, {"reduction_override": "sum"}, {"avg_factor": 5.0}, {"reduction_override": "none"}]
)
def test_an_ignored_sample_is_one_that_is_not_there(options):
    """In both losses, in their averages, and in the count of samples."""
    cls_score, labels, _ = samples()
    keep = torch.arange(12) % 3 > 0
    weight = torch.rand(12, generator=torch.Generator().manual_seed(1))
    ignoring, without = SeesawLoss(num_classes=4), SeesawLoss(num_classes=4)
    found = ignoring(cls_score, torch.where(keep, labels, -1), weight, **options)
    expected = without(cls_score[keep], labels[keep], weight[keep], **options)
    if "none" in options.values():
        assert not found["loss_cls_objectness"][~keep].any()
        found["loss_cls_objectness"] = found["loss_cls_objectness"][keep]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ignoring.cum_samples, without.cum_samples)


def test_samples_are_counted_over_calls():
    loss = SeesawLoss(num_classes=2)
    loss(torch.zeros(5, 4), torch.tensor([0, 0, 1, 2, -1]))
    loss(torch.zeros(2, 4), torch.tensor([0, 2]))
    torch.testing.assert_close(loss.cum_samples, torch.tensor([3.0, 1.0, 2.0]))
    assert list(loss.state_dict()) == ["cum_samples"]


def test_a_batch_counts_before_it_is_judged():
    """Seen after this batch: 1 and 2; the rarer class counts half, log(1 + 1/2)."""
    losses = SeesawLoss(p=1.0, q=0.0, num_classes=2, reduction="none")(torch.zeros(3, 4), torch.tensor([0, 1, 1]))
    expected = torch.tensor([math.log(2), math.log(1.5), math.log(1.5)])
    torch.testing.assert_close(losses["loss_cls_classes"], expected)


@pytest.mark.parametrize("labels", [[], [2, 2]])
def test_without_objects_the_classes_cost_nothing(labels):
    # MMDetection's objectness of an empty batch is NaN.
    cls_score = torch.zeros(len(labels), 4, requires_grad=True)
    losses = SeesawLoss(num_classes=2)(cls_score, torch.tensor(labels, dtype=torch.int64))
    (grad,) = torch.autograd.grad(losses["loss_cls_classes"], cls_score)
    assert losses["loss_cls_classes"] == 0
    assert not grad.any()
    torch.testing.assert_close(losses["loss_cls_objectness"], torch.tensor(math.log(2) if labels else 0.0))


@pytest.mark.parametrize("scale", [-100.0, 100.0])
def test_extreme_logits_stay_finite(scale):
    cls_score = torch.tensor([[scale, -scale, scale, -scale]], requires_grad=True)
    loss = SeesawLoss(num_classes=2, return_dict=False)(cls_score, torch.tensor([0]))
    (grad,) = torch.autograd.grad(loss, cls_score)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad).all()


def test_what_a_head_asks():
    loss = SeesawLoss(num_classes=2)
    assert loss.custom_cls_channels
    assert loss.custom_activation
    assert loss.custom_accuracy
    assert loss.get_cls_channels(2) == 4
    # Classes 1/2 each, object 3/4: 3/8, 3/8 and background 1/4.
    cls_score = torch.tensor([[0.0, 0.0, math.log(3), 0.0]])
    torch.testing.assert_close(loss.get_activation(cls_score), torch.tensor([[0.375, 0.375, 0.25]]))


def test_accuracy_over_samples_and_over_objects():
    cls_score = torch.tensor([[1.0, 0.0, 1.0, 0.0]]).expand(4, 4)  # all say class 0 and object
    found = SeesawLoss(num_classes=2).get_accuracy(cls_score, torch.tensor([0, 1, 2, -1]))
    torch.testing.assert_close(found["acc_classes"], torch.tensor([50.0]))
    torch.testing.assert_close(found["acc_objectness"], torch.tensor([200 / 3]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SeesawLoss(use_sigmoid=True), ValueError, "use_sigmoid=True"),
        (lambda: SeesawLoss(num_classes=2).get_cls_channels(3), ValueError, "the head has 3 classes.*num_classes=2"),
        (
            lambda: SeesawLoss(num_classes=2)(torch.zeros(1, 3), torch.tensor([0])),
            ValueError,
            r"4 channels were expected for 2 classes, got \(1, 3\)",
        ),
        (
            lambda: SeesawLoss(num_classes=2)(torch.zeros(1, 4), torch.tensor([3])),
            RuntimeError,
            "a label lies above 2, the background",
        ),
        (
            lambda: SeesawLoss(num_classes=2)(torch.zeros(2, 4), torch.tensor([0, 1]), torch.ones(3)),
            ValueError,
            r"weight \(3,\) does not fit",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=f"SeesawLoss: {message}"):
        call()


def test_labels_may_be_short_integers():
    cls_score, labels, _ = samples()
    torch.testing.assert_close(
        SeesawLoss(num_classes=4)(cls_score, labels.int()), SeesawLoss(num_classes=4)(cls_score, labels)
    )


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([0, 3], {}),
        ([0, 1, 2], {}),
        ([0.0, 1.0], {}),
        ([0, 1], {"label_weights": torch.ones(3)}),
        ([0, 1], {"label_weights": torch.ones(2, 2)}),
        ([0, 1], {"reduction_override": "avg"}),
        ([0, 1], {"reduction_override": "sum", "avg_factor": 1.0}),
    ],
)
def test_what_is_refused_is_not_counted(labels, options):
    loss = SeesawLoss(num_classes=2)
    with pytest.raises((ValueError, RuntimeError), match="SeesawLoss: "):
        loss(torch.zeros(2, 4), torch.tensor(labels), **options)
    assert not loss.cum_samples.any()


def test_the_sum_of_both_losses_per_sample():
    """A background sample costs its objectness only; MMDetection fails where there is one."""
    cls_score, labels, _ = samples()
    both = SeesawLoss(num_classes=4, reduction="none")(cls_score, labels)
    expected = both["loss_cls_objectness"].clone()
    expected[labels < 4] += both["loss_cls_classes"]
    found = SeesawLoss(num_classes=4, reduction="none", return_dict=False)(cls_score, labels)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": 0}, ValueError, "eps must be > 0 and <= 1, got 0"),
        ({"p": -1}, ValueError, "p must be >= 0, got -1"),
        ({"q": "2"}, TypeError, "q must be a number, got '2'"),
        ({"num_classes": 0}, ValueError, "num_classes must be >= 1, got 0"),
    ],
)
def test_arguments_that_have_no_meaning_are_refused(options, error, message):
    with pytest.raises(error, match=f"SeesawLoss: {message}"):
        SeesawLoss(**options)
