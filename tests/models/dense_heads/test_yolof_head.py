"""YOLOF: an anchor learns several boxes, other assigners, what is refused."""

import pytest
import torch
from no_sync import NoSync
from reference import arguments, case_named, load_weights

from detkit.models import YOLOFHead
from detkit.registry import MODELS

CASE = case_named("dense_heads/YOLOFHead", "loss")


def head_of(**changes):
    head = MODELS.build({**CASE["config"], **changes})
    load_weights(head, CASE)
    return head


@pytest.mark.parametrize("name", ["UniformAssigner", "MaxIoUAssigner", "ATSSAssigner"])
def test_assigners_that_fit(name):
    arguments_of = {
        "UniformAssigner": {"pos_ignore_thr": 0.15, "neg_ignore_thr": 0.7},
        "MaxIoUAssigner": {"pos_iou_thr": 0.3, "neg_iou_thr": 0.3, "min_pos_iou": 0},
        "ATSSAssigner": {"topk": 3},
    }
    head = head_of(train_cfg={"assigner": {"type": name, **arguments_of[name]}})
    inputs = arguments(CASE["inputs"])
    with NoSync():
        losses = head.loss(inputs["x"], inputs["batch_data_samples"])
        sum(losses.values()).backward()
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    assert head.bbox_pred.weight.grad.abs().sum() > 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="anchors must be of one level, got 5 levels"):
        YOLOFHead(2, 8, anchor_generator={"type": "AnchorGenerator", "ratios": [1], "scales": [1], "strides": [1] * 5})
    with pytest.raises(ValueError, match="YOLOFHead: loss_cls: CrossEntropyLoss with use_sigmoid=False"):
        YOLOFHead(2, 8, loss_cls={"type": "CrossEntropyLoss"})
    with pytest.raises(ValueError, match="SimOTAAssigner"):
        YOLOFHead(2, 8, train_cfg={"assigner": {"type": "SimOTAAssigner"}})


def test_the_loss_of_the_dilated_head_needs_its_assigner():
    with pytest.raises(ValueError, match="needs train_cfg with an assigner"):
        YOLOFHead(2, 32).loss([torch.zeros(1, 32, 2, 2)], [])
