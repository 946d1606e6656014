"""Mask Scoring R-CNN's and PointRend's second stage: MMDetection 3.3.0's numbers for weights by rule."""

from __future__ import annotations

import copy

import pytest
import torch
from reference import arguments, case_named, rule_weights

from detkit.models.roi_heads.mask_heads import mask_point_head
from detkit.registry import MODELS

CASE = "roi_heads/StandardRoIHeadMask"


def mask_scoring():
    cfg = copy.deepcopy(case_named(CASE, "loss")["config"])
    cfg["type"] = "MaskScoringRoIHead"
    cfg["mask_iou_head"] = {
        "type": "MaskIoUHead",
        "num_convs": 2,
        "num_fcs": 1,
        "roi_feat_size": 8,
        "in_channels": 4,
        "conv_out_channels": 4,
        "fc_out_channels": 6,
        "num_classes": 3,
    }
    cfg["mask_roi_extractor"]["roi_layer"]["output_size"] = 8
    cfg["train_cfg"] |= {"mask_size": 16, "mask_thr_binary": 0.5}
    return cfg


def point_rend():
    cfg = copy.deepcopy(case_named(CASE, "loss")["config"])
    cfg["type"] = "PointRendRoIHead"
    cfg["mask_roi_extractor"] = {
        "type": "GenericRoIExtractor",
        "aggregation": "concat",
        "roi_layer": {"type": "SimpleRoIAlign", "output_size": 14},
        "out_channels": 8,
        "featmap_strides": [4, 8],
    }
    cfg["mask_head"] = {
        "type": "CoarseMaskHead",
        "num_fcs": 1,
        "in_channels": 8,
        "conv_out_channels": 5,
        "fc_out_channels": 12,
        "num_classes": 3,
    }
    cfg["point_head"] = {"type": "MaskPointHead", "num_fcs": 2, "in_channels": 8, "fc_channels": 6, "num_classes": 3}
    cfg["train_cfg"] |= {"mask_size": 7, "num_points": 40, "oversample_ratio": 3, "importance_sample_ratio": 0.75}
    cfg["test_cfg"] |= {"subdivision_steps": 3, "subdivision_num_points": 100, "scale_factor": 2}
    return cfg


OF_BOXES = {"loss_cls": 1.487391, "acc": 10.204082, "loss_bbox": 1.473242}
# Losses, norms of all gradients and of those of the features; pixels and scores of the masks of each image.
EXPECTED = {
    mask_scoring: (
        {**OF_BOXES, "loss_mask": 0.681941, "loss_mask_iou": 0.330481},
        (2.672554, 0.151911),
        [(9671, 4.29092), (5350, 4.15642)],
    ),
    point_rend: (
        {**OF_BOXES, "loss_mask": 0.70567, "loss_point": 0.651505},
        (2.214391, 0.128661),
        [(6363, 5.33314), (6081, 5.46483)],
    ),
}


def built(config):
    head = MODELS.build(config())
    state = rule_weights(head)
    if "mask_iou_head.fc_mask_iou.bias" in state:
        state["mask_iou_head.fc_mask_iou.bias"] += 1  # an IoU is positive
    head.load_state_dict(state)
    return head


class OnePerRow:
    """torch.rand, with the same points in each row, so that the order of RoIs has no influence."""

    def __init__(self, rand):
        self.rand = rand

    def __call__(self, *shape, **options):
        if len(shape) != 3:
            return self.rand(*shape, **options)
        generator = torch.Generator().manual_seed(shape[1])
        return self.rand(1, *shape[1:], generator=generator).repeat(shape[0], 1, 1)


@pytest.mark.parametrize("config", EXPECTED)
def test_losses_and_gradients(config, monkeypatch):
    losses, norms, _ = EXPECTED[config]
    inputs = arguments(case_named(CASE, "loss")["inputs"])
    x = [level.clone().requires_grad_() for level in inputs["x"]]
    head = built(config).train()
    monkeypatch.setattr(mask_point_head.torch, "rand", OnePerRow(torch.rand))
    found = head.loss(x, inputs["rpn_results_list"], inputs["batch_data_samples"])
    assert {name: value.mean().item() for name, value in found.items()} == pytest.approx(losses, rel=1e-3)
    total = sum(value.mean() for name, value in found.items() if "loss" in name)
    grads = torch.autograd.grad(total, [*head.parameters(), *x])
    of_all, of_features = (torch.stack([g.norm() for g in some]).norm().item() for some in (grads, grads[-4:]))
    assert (of_all, of_features) == pytest.approx(norms, rel=1e-3)


@pytest.mark.parametrize("config", EXPECTED)
def test_masks(config):
    inputs = arguments(case_named(CASE, "predict_rescale")["inputs"])
    with torch.no_grad():
        results = built(config).eval().predict(**inputs)
    for one, (pixels, scores) in zip(results, EXPECTED[config][2], strict=True):
        assert one.masks.sum().item() == pytest.approx(pixels, abs=2)
        assert one.get("mask_scores", one.scores).sum().item() == pytest.approx(scores, rel=1e-3)


def test_raw_outputs_of_mask_scoring():
    inputs = arguments(case_named(CASE, "loss")["inputs"])
    count = max(len(one) for one in inputs["rpn_results_list"]) * 2
    with torch.no_grad():
        cls_score, bbox_pred, masks, ious = built(mask_scoring)(inputs["x"], inputs["rpn_results_list"])
    assert len(cls_score) == len(bbox_pred) == count
    assert masks.shape == (min(count, 100), 3, 16, 16)
    assert ious.shape == (min(count, 100), 3)
