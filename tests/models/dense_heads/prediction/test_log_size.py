"""Sizes by their logarithm: as they are, and finite where they would overflow."""

import pytest
import torch
from mmengine.structures import InstanceData

from detkit.models.dense_heads.prediction.log_size import exp_size
from detkit.registry import MODELS
from detkit.structures import DetDataSample


def test_values_and_gradient():
    raw = torch.tensor([-100.0, 0.0, 3.0, 200.0], requires_grad=True)
    out = exp_size(raw)
    torch.testing.assert_close(out[:3], raw[:3].exp())
    assert torch.isfinite(out.square()).all()
    out.sum().backward()
    assert raw.grad[3] == 0
    torch.testing.assert_close(raw.grad[:3], out[:3].detach())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("YOLOXHead", {"in_channels": 8, "feat_channels": 8}),
        ("RTMDetHead", {"in_channels": 32, "feat_channels": 32}),
        ("RTMDetSepBNHead", {"in_channels": 8, "feat_channels": 8, "exp_on_reg": True}),
        ("YOLOV3Head", {"in_channels": [8] * 3, "out_channels": [8] * 3}),
    ],
)
def test_a_network_that_has_gone_wild_predicts_finite_boxes_and_trains(name, changes):
    train_cfg = {"assigner": {"type": "GridAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5}}
    head = MODELS.build(
        {"type": name, "num_classes": 2, **changes, "train_cfg": train_cfg if name == "YOLOV3Head" else None}
    )
    for parameter in head.parameters():
        torch.nn.init.constant_(parameter, 1.0)
    channels = changes["in_channels"] if isinstance(changes["in_channels"], int) else 8
    features = [torch.full((1, channels, size, size), 100.0) for size in (8, 4, 2)]
    sample = DetDataSample(metainfo={"img_shape": (32, 32), "pad_shape": (32, 32)})
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[4.0, 4, 28, 28]]), labels=torch.tensor([1]))
    found = head.eval().predict(features, [sample])[0]
    assert len(found) > 0
    assert torch.isfinite(found.bboxes).all()
    losses = head.loss(features, [sample])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)
