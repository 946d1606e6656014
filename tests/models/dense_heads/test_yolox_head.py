"""YOLOX: boxes by hand, losses by hand, what is refused, switches."""

import math

import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync

from detkit.losses import CrossEntropyLoss, IoULoss, L1Loss
from detkit.models import YOLOXHead
from detkit.models.dense_heads.losses.yolox_loss import decode_boxes, encode_boxes, yolox_losses
from detkit.models.dense_heads.targets.point_targets import PointTargets
from detkit.structures import DetDataSample
from detkit.task_modules import DynamicSoftLabelAssigner, SimOTAAssigner

POINTS = torch.tensor([[8.0, 16, 8, 8], [0, 0, 16, 16]])


def test_boxes_by_hand():
    # Centre half a stride from the point, two strides wide, one high
    encoded = torch.tensor([[[0.5, 0, math.log(2), 0], [0, 0, 0, 0]]])
    boxes = torch.tensor([[[4.0, 12, 20, 20], [-8, -8, 8, 8]]])
    torch.testing.assert_close(decode_boxes(POINTS, encoded), boxes)
    torch.testing.assert_close(encode_boxes(POINTS, boxes), encoded)


def losses_of(encoded, loss_l1=None):
    """One image, two points; the first learns class 1 of 2 by an overlap of 0.75."""
    targets = PointTargets(
        labels=torch.tensor([[1, 2]]),
        label_weights=torch.ones(1, 2),
        bboxes=torch.tensor([[[4.0, 12, 20, 20], [0, 0, 1, 1]]]),
        positive=torch.tensor([[True, False]]),
        overlaps=torch.tensor([[0.75, 0.0]]),
    )
    entropy = CrossEntropyLoss(use_sigmoid=True, reduction="sum")
    boxes = IoULoss(mode="linear", reduction="sum")
    logits, objectness = torch.zeros(1, 2, 2), torch.zeros(1, 2)
    return yolox_losses(logits, encoded, objectness, POINTS, targets, entropy, boxes, entropy, loss_l1)


def test_losses_by_hand():
    exact = torch.tensor([[[0.5, 0, math.log(2), 0], [0, 0, 0, 0]]])
    losses = losses_of(exact, L1Loss(reduction="sum"))
    # Two classes of one positive and two objectnesses, each log 2 at a logit of 0 whatever the target
    torch.testing.assert_close(losses["loss_cls"], torch.tensor(2 * math.log(2)))
    torch.testing.assert_close(losses["loss_obj"], torch.tensor(2 * math.log(2)))
    torch.testing.assert_close(losses["loss_bbox"], torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(losses["loss_l1"], torch.tensor(0.0), atol=1e-6, rtol=0)
    # Half as wide: an IoU of 1/2, and the logarithm of the width is log 2 less
    narrow = exact.clone()
    narrow[0, 0, 2] = 0
    losses = losses_of(narrow, L1Loss(reduction="sum"))
    torch.testing.assert_close(losses["loss_bbox"], torch.tensor(0.5))
    torch.testing.assert_close(losses["loss_l1"], torch.tensor(math.log(2)))


def test_an_overflow_of_a_negative_reaches_nothing():
    encoded = torch.tensor([[[0.5, 0, 0, 0], [0, 0, 200.0, 0]]], requires_grad=True)
    losses = losses_of(encoded, L1Loss(reduction="sum"))
    sum(losses.values()).backward()
    assert torch.isfinite(encoded.grad).all()
    assert encoded.grad[0, 0].abs().sum() > 0
    assert encoded.grad[0, 1].abs().sum() == 0


def test_a_mean_is_refused():
    with pytest.raises(ValueError, match=r"YOLOXHead: loss_obj must have reduction='sum', got 'mean'"):
        YOLOXHead(2, 8, loss_obj={"type": "CrossEntropyLoss", "use_sigmoid": True})


@pytest.mark.parametrize("kind", [SimOTAAssigner, DynamicSoftLabelAssigner])
def test_assigners_are_given_scores_of_their_kind(kind, monkeypatch):
    """Either way it is the geometric mean of the class's and the object's probability."""
    head = YOLOXHead(2, 8, feat_channels=8, strides=[8], train_cfg={"assigner": {"type": kind.__name__}})
    torch.manual_seed(0)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    head.eval()
    seen = []
    assign_batch = kind.assign_batch

    def spy(self, *args, **kwargs):
        seen.append(kwargs["scores"])
        return assign_batch(self, *args, **kwargs)

    monkeypatch.setattr(kind, "assign_batch", spy)
    sample = DetDataSample(metainfo={"img_shape": (32, 32), "pad_shape": (32, 32)})
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[4.0, 4, 28, 28]]), labels=torch.tensor([1]))
    features = torch.rand(1, 8, 4, 4)
    with NoSync():
        head.loss([features], [sample])
    (logits,), _, (objectness,) = head([features])
    mean = (logits.sigmoid() * objectness.sigmoid()).sqrt().permute(0, 2, 3, 1).reshape(1, 16, 2)
    expected = mean.logit() if kind is DynamicSoftLabelAssigner else mean
    torch.testing.assert_close(seen[0], expected, rtol=1e-3, atol=1e-4)
