"""Losses of FCOS: by hand, without objects, no waiting."""

import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync

from detkit.losses import CrossEntropyLoss, FocalLoss, GIoULoss
from detkit.models.dense_heads.losses.box_quality import centerness
from detkit.models.dense_heads.losses.fcos_loss import fcos_losses
from detkit.models.dense_heads.targets.point_targets import point_targets
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import FCOSAssigner, PseudoSampler


def scene(boxes=([0.0, 0, 40, 40],)):
    x, y = torch.meshgrid(torch.arange(4, 64, 8.0), torch.arange(4, 64, 8.0), indexing="xy")
    points = torch.stack([x, y, torch.full_like(x, 8), torch.full_like(x, 8)], dim=-1).view(-1, 4)
    first = InstanceData(bboxes=torch.tensor(boxes).view(-1, 4), labels=torch.zeros(len(boxes), dtype=torch.int64))
    none = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
    return points, GroundTruth.from_instances([first, none])


def targets_of(points, truth):
    inputs = {"num_level_priors": [64]}
    return point_targets(points, truth, FCOSAssigner([(-1, 64)]), PseudoSampler(), 3, 8, inputs)


def losses_of(logits, distances, central, points, targets, normed=False):
    parts = FocalLoss(), GIoULoss(), CrossEntropyLoss(use_sigmoid=True)
    return fcos_losses(logits, distances, central, points, targets, *parts, normed)


def test_centerness_by_hand():
    # The point (20, 12) in [0, 0, 24, 24]
    torch.testing.assert_close(centerness(torch.tensor([20.0, 12, 4, 12])), torch.tensor((4 / 20) ** 0.5))
    # Outside, and in an object without width
    assert centerness(torch.tensor([[-1.0, 2, 3, 4], [0, 1, 0, 1]])).tolist() == [0, 0]


def test_right_distances_have_no_loss():
    points, truth = scene()
    targets = targets_of(points, truth)
    corners = targets.bboxes
    exact = torch.cat([points[:, :2] - corners[..., :2], corners[..., 2:] - points[:, :2]], dim=-1)
    losses = losses_of(torch.zeros(2, 64, 3), exact, torch.zeros(2, 64), points, targets)
    torch.testing.assert_close(losses["loss_bbox"], torch.tensor(0.0), atol=1e-6, rtol=0)
    shifted = losses_of(torch.zeros(2, 64, 3), exact + 2, torch.zeros(2, 64), points, targets)
    normed = losses_of(torch.zeros(2, 64, 3), exact + 2, torch.zeros(2, 64), points, targets, normed=True)
    assert shifted["loss_bbox"] > 0.05
    torch.testing.assert_close(normed, shifted)


@pytest.mark.parametrize("infinite", [False, True])
def test_losses_wait_for_nothing_and_stay_finite(infinite):
    points, truth = scene()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 64, 3, generator=generator).requires_grad_()
    raw = torch.randn(2, 64, 4, generator=generator)
    if infinite:
        raw[1] = 200.0  # exp overflows; the image has no objects
    raw.requires_grad_()
    central = torch.randn(2, 64, generator=generator).requires_grad_()
    with NoSync():
        losses = losses_of(logits, raw.exp(), central, points, targets_of(points, truth))
        sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(central.grad).all()
    if not infinite:
        assert torch.isfinite(raw.grad).all()
        assert raw.grad[1].abs().sum() == 0


def test_without_objects_nothing_is_divided_by_nothing():
    points, truth = scene(boxes=())
    distances = torch.ones(2, 64, 4, requires_grad=True)
    losses = losses_of(torch.zeros(2, 64, 3), distances, torch.zeros(2, 64), points, targets_of(points, truth))
    losses["loss_bbox"].backward()
    assert losses["loss_bbox"] == 0
    assert not distances.grad.any()
