"""CrossEntropyLoss where it is used wrongly, and where nothing is left to count."""

import math

import pytest
import torch

from detkit.losses import CrossEntropyCustomLoss, CrossEntropyLoss
from detkit.losses.cross_entropy_loss import cross_entropy_of_probability

LOG3 = math.log(3)


def test_background_and_ignored_labels():
    """Label C is background; with sigmoids a negative label costs nothing."""
    logits = torch.zeros(3, 2)
    labels = torch.tensor([1, 2, -1])
    loss = CrossEntropyLoss(use_sigmoid=True, reduction="none")(logits, labels)
    log2 = math.log(2)
    torch.testing.assert_close(loss, torch.tensor([[log2, log2], [log2, log2], [0.0, 0.0]]))


@pytest.mark.parametrize("logit", [-100.0, 100.0])
@pytest.mark.parametrize("label", [0, 1])
def test_extreme_logits_stay_finite(logit, label):
    for loss in (CrossEntropyLoss(use_sigmoid=True), CrossEntropyLoss()):
        pred = torch.full((1, 2), logit, requires_grad=True)
        value = loss(pred, torch.tensor([label]))
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(pred.grad).all()


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize(
    ("loss", "name"),
    [(CrossEntropyLoss(), "CrossEntropyLoss"), (CrossEntropyCustomLoss(num_classes=2), "CrossEntropyCustomLoss")],
)
def test_a_label_out_of_range_is_refused_by_name(loss, name, label):
    with pytest.raises(RuntimeError, match=rf"^{name}: a label lies outside \[0, 3\) and is not ignore_index=-100"):
        loss(torch.zeros(2, 3), torch.tensor([0, label]))


@pytest.mark.parametrize("ignored", [-1, 255])
def test_the_ignored_label_is_in_range(ignored):
    labels = torch.tensor([0, ignored])
    expected = torch.tensor([LOG3, 0.0])
    loss = CrossEntropyLoss(ignore_index=ignored, reduction="none")(torch.zeros(2, 3), labels)
    torch.testing.assert_close(loss, expected)
    loss = CrossEntropyLoss(reduction="none")(torch.zeros(2, 3), labels, ignore_index=ignored)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("shape", [(2,), (3, 1), (2, 4), ()])
def test_a_softmax_weight_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match=r"CrossEntropyLoss: weight .* does not fit losses \(4,\)"):
        CrossEntropyLoss()(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), torch.ones(shape))


def test_a_column_of_weights_is_one_per_sample():
    # MMDetection widens the loss (4,) to (4, 4) without a word.
    weight = torch.tensor([1.0, 2.0, 0.0, 3.0])
    inputs = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    loss = CrossEntropyLoss(reduction="none")
    torch.testing.assert_close(loss(*inputs, weight[:, None]), loss(*inputs, weight))


def test_a_sigmoid_weight_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"CrossEntropyLoss: weight \(5, 3\) does not fit losses"):
        CrossEntropyLoss(use_sigmoid=True)(torch.zeros(1, 3), torch.tensor([0]), torch.ones(5, 3))


def test_weight_per_image_of_a_label_map():
    """A loss (N, H, W) takes a weight per pixel or per image."""
    logits, labels = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64)
    per_image = CrossEntropyLoss(reduction="none")(logits, labels, torch.tensor([1.0, 0.0]))
    per_pixel = CrossEntropyLoss(reduction="none")(
        logits, labels, torch.tensor([1.0, 0.0])[:, None, None].expand(2, 4, 5)
    )
    torch.testing.assert_close(per_image, per_pixel)
    torch.testing.assert_close(per_image[1], torch.zeros(4, 5))


@pytest.mark.parametrize("use_sigmoid", [False, True])
def test_mean_over_the_counted_labels(use_sigmoid):
    """avg_non_ignore divides by the labels that count, unless an avg_factor is given; without one the loss is 0."""
    labels = torch.tensor([0, 1, 7, 7])
    logits = torch.zeros(4, 3, requires_grad=True)
    one = math.log(2) if use_sigmoid else LOG3  # per element, or per sample
    loss = CrossEntropyLoss(use_sigmoid=use_sigmoid, ignore_index=7, avg_non_ignore=True)
    torch.testing.assert_close(loss(logits, labels), torch.tensor(one))
    torch.testing.assert_close(loss(logits, labels, avg_factor=1.0), torch.tensor(2 * one * (3 if use_sigmoid else 1)))
    all_counted = CrossEntropyLoss(use_sigmoid=use_sigmoid, ignore_index=7)(logits, labels)
    torch.testing.assert_close(all_counted, torch.tensor(one / 2))
    nothing = loss(logits, torch.full((4,), 7))
    (grad,) = torch.autograd.grad(nothing, logits)
    assert nothing == 0
    assert not grad.any()


def test_soft_labels():
    target = torch.tensor([[0.5, 0.5, 0.0]])
    torch.testing.assert_close(CrossEntropyLoss()(torch.zeros(1, 3), target), torch.tensor(LOG3))


def test_class_weights_are_no_part_of_a_checkpoint():
    loss = CrossEntropyLoss(class_weight=[1.0, 2.0])
    assert loss.state_dict() == {}
    assert loss.double().class_weight.dtype == torch.float64


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_a_certain_probability_has_a_finite_gradient(prob, target):
    probs = torch.tensor([prob], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy_of_probability(probs, torch.tensor([target]))
    (grad,) = torch.autograd.grad(loss.sum(), probs)
    torch.testing.assert_close(loss, torch.tensor([0.0 if prob == target else 100.0]))
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize(
    ("use_sigmoid", "pred", "label"),
    [
        # Which axis holds the classes?
        (True, (2, 3, 3), (2, 3)),
        (True, (2, 3, 4, 5), (2, 4, 5)),
        (True, (4, 3), (3,)),
        (True, (4, 3), (1,)),
        (True, (4,), ()),
        (False, (4, 3), (3,)),
        (False, (2, 3, 4, 5), (2, 5, 4)),
        (False, (3,), ()),
        (False, (4, 3), (4, 3)),
    ],
)
def test_labels_that_do_not_fit_are_refused(use_sigmoid, pred, label):
    with pytest.raises(ValueError, match=r"CrossEntropyLoss: label \(.*\) of torch.int64 does not fit logits"):
        CrossEntropyLoss(use_sigmoid=use_sigmoid)(torch.zeros(pred), torch.zeros(label, dtype=torch.int64))


@pytest.mark.parametrize("use_sigmoid", [False, True])
def test_classes_are_integers_of_any_type(use_sigmoid):
    logits, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    loss = CrossEntropyLoss(use_sigmoid=use_sigmoid)
    for dtype in (torch.uint8, torch.int32):
        torch.testing.assert_close(loss(logits, labels.to(dtype)), loss(logits, labels))
    with pytest.raises(ValueError, match=r"label \(4,\) of torch.float32 does not fit logits \(4, 3\)"):
        loss(logits, labels.float())


@pytest.mark.parametrize("options", [{}, {"use_sigmoid": True}])
def test_one_class_weight_per_class(options):
    loss = CrossEntropyLoss(class_weight=[1.0, 2.0], **options)
    with pytest.raises(ValueError, match=r"class_weight has 2 numbers, logits \(4, 3\) have 3 classes"):
        loss(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))


def test_class_weights_are_copied_to_another_device_once():
    loss = CrossEntropyLoss(class_weight=[1.0, 2.0])
    loss(torch.zeros(4, 2, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta"))
    moved = loss.class_weight
    assert moved.device.type == "meta"
    loss(torch.zeros(4, 2, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta"))
    assert loss.class_weight is moved


def test_of_masks_that_do_not_tell_classes_the_only_one_is_compared():
    generator = torch.Generator().manual_seed(0)
    logits, masks = (
        torch.randn(2, 1, 3, 4, generator=generator),
        (torch.rand(2, 3, 4, generator=generator) > 0.5).float(),
    )
    found = CrossEntropyLoss(use_mask=True)(logits, masks, torch.tensor([2, 5]))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], masks)
    torch.testing.assert_close(found, expected[None])


@pytest.mark.parametrize(
    ("pred", "target", "label", "error", "message"),
    [
        ((2, 3, 4, 5), (2, 4, 5), [0, 3], RuntimeError, r"the class of a mask lies outside \[0, 3\)"),
        ((2, 3, 4, 5), (2, 4, 5), [0, -1], RuntimeError, r"the class of a mask lies outside \[0, 3\)"),
        ((2, 3, 4, 5), (2, 5, 4), [0, 1], ValueError, r"got \(2, 3, 4, 5\), \(2, 5, 4\) and \(2,\)"),
        ((2, 4, 5), (2, 4, 5), [0, 1], ValueError, r"got \(2, 4, 5\), \(2, 4, 5\) and \(2,\)"),
        ((2, 3, 4, 5), (2, 4, 5), [0], ValueError, r"and \(1,\)"),
        ((2, 3, 4, 5), (2, 4, 5), [0.0, 1.0], ValueError, "the class of each mask, got torch.float32"),
    ],
)
def test_masks_that_do_not_fit_are_refused(pred, target, label, error, message):
    with pytest.raises(error, match=f"CrossEntropyLoss: .*{message}"):
        CrossEntropyLoss(use_mask=True)(torch.zeros(pred), torch.zeros(target), torch.tensor(label))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"class_weight": 2.0}, ValueError, "class_weight needs a number per class, got 2.0"),
        ({"class_weight": []}, ValueError, r"class_weight needs a number per class, got \[\]"),
        ({"ignore_index": "255"}, TypeError, "ignore_index must be an integer, got '255'"),
        ({"use_mask": True, "reduction": "sum"}, ValueError, "use_mask needs reduction 'mean' .* got 'sum'"),
        ({"use_mask": True, "ignore_index": 1}, ValueError, "use_mask needs .* no ignore_index, got 'mean' and 1"),
        # The weight is broadcast over the pixels, and so would be one per column.
        (
            {"use_mask": True, "class_weight": [1.0, 2.0]},
            ValueError,
            "with use_mask, class_weight is one number, got 2",
        ),
        ({"use_mask": True, "use_sigmoid": True}, ValueError, "use_sigmoid and use_mask exclude each other"),
    ],
)
def test_arguments_that_always_fail_are_refused_at_once(options, error, message):
    with pytest.raises(error, match=f"CrossEntropyLoss: {message}"):
        CrossEntropyLoss(**options)


@pytest.mark.parametrize("override", ["", False])
def test_an_override_that_is_nothing_is_no_reduction(override):
    with pytest.raises(ValueError, match=f"CrossEntropyLoss: reduction {override!r} is not one of"):
        CrossEntropyLoss()(torch.zeros(1, 2), torch.tensor([0]), reduction_override=override)


def test_a_sum_names_the_loss_that_has_no_average_factor():
    with pytest.raises(ValueError, match='CrossEntropyLoss: avg_factor can not be used with reduction="sum"'):
        CrossEntropyLoss(reduction="sum")(torch.zeros(1, 2), torch.tensor([0]), avg_factor=1.0)
