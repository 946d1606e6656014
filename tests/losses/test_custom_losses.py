"""CrossEntropyCustomLoss and FocalCustomLoss: what they tell a box head."""

import pytest
import torch

from detkit.losses import CrossEntropyCustomLoss, CrossEntropyLoss, FocalCustomLoss, FocalLoss

CUSTOM = [CrossEntropyCustomLoss, FocalCustomLoss]


@pytest.mark.parametrize("build", CUSTOM)
def test_the_head_is_told_to_ask(build):
    loss = build(num_classes=3)
    assert loss.custom_cls_channels
    assert loss.custom_activation
    assert loss.custom_accuracy
    assert loss.state_dict() == {}


@pytest.mark.parametrize("build", CUSTOM)
def test_num_classes_must_be_given(build):
    with pytest.raises(ValueError, match=rf"{build.__name__}: num_classes must be >= 1, got -1"):
        build()


@pytest.mark.parametrize("build", CUSTOM)
def test_a_head_of_other_classes_is_refused(build):
    with pytest.raises(ValueError, match=rf"{build.__name__}: the head has 4 classes, the loss num_classes=3"):
        build(num_classes=3).get_cls_channels(4)


def test_sigmoids_leave_the_rest_to_the_background():
    # Logits 0 and log 3 are sigmoids 1/2 and 3/4; together above 1, nothing is left.
    loss = CrossEntropyCustomLoss(use_sigmoid=True, num_classes=2)
    logits = torch.tensor([[0.0, -100.0], [0.0, 3.0]])
    scores = loss.get_activation(logits)
    torch.testing.assert_close(scores[0], torch.tensor([0.5, 0.0, 0.5]))
    assert scores[1, 2] == 0
    assert loss.get_cls_channels(2) == 2


def test_softmax_scores_sum_to_one():
    loss = CrossEntropyCustomLoss(num_classes=2)
    torch.testing.assert_close(loss.get_activation(torch.zeros(1, 3)), torch.full((1, 3), 1 / 3))
    assert loss.get_cls_channels(2) == 3


def test_focal_scores_are_what_the_loss_takes():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3])
    probs = FocalCustomLoss(num_classes=3).get_activation(logits)
    torch.testing.assert_close(probs, logits.sigmoid())
    # MMDetection's takes logits even if told that they are activated.
    activated = FocalCustomLoss(num_classes=3, activated=True)
    torch.testing.assert_close(activated.get_activation(probs), probs)
    torch.testing.assert_close(activated(probs, labels), FocalCustomLoss(num_classes=3)(logits, labels))


def test_they_are_the_plain_losses():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels, weight = torch.tensor([0, 1, 2, 3, 3, 0]), torch.rand(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        CrossEntropyCustomLoss(num_classes=3)(logits, labels, weight, avg_factor=2.0),
        CrossEntropyLoss()(logits, labels, weight, avg_factor=2.0),
    )
    torch.testing.assert_close(
        FocalCustomLoss(num_classes=3, gamma=1.5)(logits[:, :3], labels, weight, avg_factor=2.0),
        FocalLoss(gamma=1.5)(logits[:, :3], labels, weight, avg_factor=2.0),
    )


def test_focal_scores_leave_out_what_is_not_a_class():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    loss = FocalCustomLoss(num_classes=3)
    torch.testing.assert_close(loss.get_activation(logits), logits[:, :3].sigmoid())
    best = torch.zeros(2, 5)
    best[:, 4], best[:, 1] = 2.0, 1.0
    torch.testing.assert_close(loss.get_accuracy(best, torch.tensor([1, 0]))["acc_classes"], torch.tensor([50.0]))


@pytest.mark.parametrize("build", CUSTOM)
def test_the_number_of_classes_is_a_number(build):
    with pytest.raises(TypeError, match=rf"{build.__name__}: num_classes must be an integer, got '3'"):
        build(num_classes="3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weight": [1, 2]}, "class_weight needs 3 or 4 numbers, one per channel, got 2"),
        ({"use_mask": True}, "use_mask=True has no definition"),
    ],
)
def test_cross_entropy_arguments_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=f"CrossEntropyCustomLoss: {message}"):
        CrossEntropyCustomLoss(num_classes=3, **options)


@pytest.mark.parametrize("use_sigmoid", [False, True])
def test_ignored_labels_and_class_weights_are_those_of_cross_entropy(use_sigmoid):
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 255, 1])
    options = {"ignore_index": 255, "avg_non_ignore": True, "class_weight": [1, 2, 3, 4], "use_sigmoid": use_sigmoid}
    torch.testing.assert_close(
        CrossEntropyCustomLoss(num_classes=3, **options)(logits, labels), CrossEntropyLoss(**options)(logits, labels)
    )
    del options["ignore_index"]
    torch.testing.assert_close(
        CrossEntropyCustomLoss(num_classes=3, **options)(logits, labels, ignore_index=255),
        CrossEntropyLoss(**options)(logits, labels, ignore_index=255),
    )


def test_focal_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"FocalCustomLoss: scores \(N, 3\) .* got \(2, 4\)"):
        FocalCustomLoss(num_classes=3)(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"FocalCustomLoss: a label lies outside \[0, 3\]"):
        FocalCustomLoss(num_classes=3)(torch.zeros(2, 3), torch.tensor([0, 4]))
