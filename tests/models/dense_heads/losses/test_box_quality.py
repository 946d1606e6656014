"""Losses of boxes that count by their quality: by hand, and where there is nothing to learn."""

import pytest
import torch

from detkit.losses import GIoULoss, L1Loss
from detkit.models.dense_heads.losses.box_quality import centerness_of_anchors, iou_quality, quality_box_loss

BOXES = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 20, 10], [5, 5, 6, 6]]])


def test_the_loss_is_a_mean_weighted_by_quality():
    quality = torch.tensor([[0.5, 1.0, 0.0]])
    # Sums of coordinates: 4 with weight 0.5, 8 with weight 1.
    shift = torch.tensor([[[1.0], [2.0], [torch.inf]]])
    loss = quality_box_loss(L1Loss(), BOXES + shift, BOXES, quality)
    torch.testing.assert_close(loss, torch.tensor((4 * 0.5 + 8) / 1.5))


@pytest.mark.parametrize(("least", "expected"), [(1.0, 4 * 0.25), (0.0, 4.0)])
def test_little_quality_is_not_blown_up(least, expected):
    quality = torch.tensor([[0.25, 0.0, 0.0]])
    torch.testing.assert_close(quality_box_loss(L1Loss(), BOXES + 1, BOXES, quality, least), torch.tensor(expected))


@pytest.mark.parametrize("least", [0.0, 1.0])
def test_nothing_to_learn_is_a_loss_of_0_with_a_gradient_of_0(least):
    predicted = torch.full((1, 3, 4), torch.inf, requires_grad=True)
    loss = quality_box_loss(GIoULoss(), predicted, BOXES, torch.zeros(1, 3), least)
    loss.backward()
    assert loss == 0
    assert predicted.grad.tolist() == torch.zeros(1, 3, 4).tolist()


def test_qualities_by_hand():
    # The centre (5, 5) in [0, 0, 20, 10]: 5 to the left and 15 to the right, 5 above and below.
    torch.testing.assert_close(centerness_of_anchors(BOXES[0, 0], BOXES[0, 1]), torch.tensor((5 / 15) ** 0.5))
    predicted = BOXES.clone().requires_grad_()
    iou = iou_quality(predicted, BOXES[:, [1, 1, 0]])
    torch.testing.assert_close(iou, torch.tensor([[0.5, 1.0, 0.01]]))
    assert not iou.requires_grad
