"""GFL's integral and distributions, VFNet's stars and gradients; both with other assigners and rules."""

import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync

from detkit.models import GFLHead, VFNetHead
from detkit.models.dense_heads.gfl_head import Integral
from detkit.models.dense_heads.layers.star_offsets import star_offsets
from detkit.registry import MODELS
from detkit.structures import DetDataSample
from detkit.structures.boxes import bbox_overlaps

STRIDES = [8, 16]
ANCHORS = {
    "type": "AnchorGenerator",
    "octave_base_scale": 4,
    "scales_per_octave": 1,
    "ratios": [1.0],
    "strides": STRIDES,
}
SMALL = {"num_classes": 3, "in_channels": 8, "feat_channels": 8, "stacked_convs": 1}
NORM = {"type": "GN", "num_groups": 2}
VFNET = {"type": "VFNetHead", "strides": STRIDES, "regress_ranges": [(-1, 32), (32, 1e8)]}
ATSS = {"assigner": {"type": "ATSSAssigner", "topk": 4}}


def build(cfg, **arguments):
    torch.manual_seed(0)
    built = MODELS.build(
        {**SMALL, "norm_cfg": NORM, "anchor_generator": ANCHORS, "train_cfg": ATSS, **cfg, **arguments}
    )
    built.init_weights()
    return built.train()


def batch():
    generator = torch.Generator().manual_seed(1)
    feats = [torch.randn(2, 8, size, size, generator=generator) for size in (8, 4)]
    samples = [DetDataSample(metainfo={"img_shape": (64, 64), "pad_shape": (64, 64)}) for _ in range(2)]
    for sample, count in zip(samples, (2, 0), strict=True):
        boxes = torch.tensor([[8.0, 8, 40, 40], [20, 24, 60, 60]])[:count]
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 2])[:count])
    return feats, samples


def test_the_integral_is_the_mean_distance():
    logits = torch.full((1, 4, 5), -50.0)
    for side, distance in enumerate((0, 1, 4)):
        logits[0, side, distance] = 50
    logits[0, 3] = 0  # all alike: (0 + 1 + 2 + 3 + 4) / 5
    torch.testing.assert_close(Integral(4)(logits.flatten(1)), torch.tensor([[0.0, 1, 4, 2]]))


def test_gfl_learns_boxes_and_their_quality():
    built = build({"type": "GFLHead", "reg_max": 8}, test_cfg={"max_per_img": 1})
    feats, samples = batch()
    optimizer = torch.optim.Adam(built.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        sum(built.loss(feats, samples).values()).backward()
        optimizer.step()
    best, _ = built.predict(feats, samples)
    truth = samples[0].gt_instances
    iou = bbox_overlaps(best.bboxes, truth.bboxes[truth.labels == best.labels])
    assert iou > 0.7
    torch.testing.assert_close(best.scores, iou[0], rtol=0, atol=0.2)


def test_a_star_has_the_corners_and_the_middles_of_the_sides():
    left, top, right, bottom = 1.0, 2.0, 3.0, 4.0
    stars = star_offsets(torch.tensor([left, top, right, bottom]).view(1, 4, 1, 1))
    rows = [(y, x) for y in (-top, 0, bottom) for x in (-left, 0, right)]
    assert stars.view(9, 2).tolist() == [list(row) for row in rows]


@pytest.mark.parametrize("gradient_mul", [0.0, 0.5])
def test_what_is_refined_moves_the_first_boxes_by_a_share(gradient_mul):
    built = build(VFNET, gradient_mul=gradient_mul)
    for module in (built.vfnet_cls_dconv, built.vfnet_cls):  # else too small to tell
        torch.nn.init.normal_(module.weight)
    cls_scores, _, _ = built(batch()[0])
    (grad,) = torch.autograd.grad(cls_scores[0].sum(), built.vfnet_reg.weight)
    assert bool(grad.abs().sum() > 0) == (gradient_mul > 0)


def test_vfnet_shows_the_first_boxes_in_training_alone():
    built = build(VFNET)
    feats, _ = batch()
    scores, first, refined = built(feats)
    assert [len(part) for part in (scores, first, refined)] == [2, 2, 2]
    in_use = built.eval()(feats)
    torch.testing.assert_close(in_use[1][0], refined[0])
    assert len(in_use) == 2


def test_a_plain_classification_loss_does_not_look_at_boxes():
    built = build(VFNET, use_vfl=False)
    assert type(built.loss_cls).__name__ == "FocalLoss"
    feats, samples = batch()
    built.vfnet_reg_refine.weight.data.zero_()
    before = built.loss(feats, samples)
    built.vfnet_reg_refine.bias.data += 1
    after = built.loss(feats, samples)
    torch.testing.assert_close(after["loss_cls"], before["loss_cls"])
    assert (after["loss_bbox_rf"] - before["loss_bbox_rf"]).abs() > 0.01


def test_fcos_rule_and_atss_choose_different_points():
    feats, samples = batch()
    by_atss, by_fcos = (build(VFNET, use_atss=flag) for flag in (True, False))
    assert by_atss.prior_generator.offset == 0.0
    assert by_fcos.prior_generator.offset == 0.5
    assert (by_atss.loss(feats, samples)["loss_cls"] - by_fcos.loss(feats, samples)["loss_cls"]).abs() > 1e-3


@pytest.mark.parametrize(
    "assigner",
    [
        {"type": "TaskAlignedAssigner", "topk": 4},
        {"type": "ATSSAssigner", "topk": 9, "alpha": 0.8},
        {"type": "MaxIoUAssigner", "pos_iou_thr": 0.4, "neg_iou_thr": 0.3, "min_pos_iou": 0},
    ],
    ids=["by scores and boxes", "by logits and boxes", "by anchors"],
)
@pytest.mark.parametrize("head", ["GFLHead", "PAAHead", "VFNetHead"])
def test_other_assigners(head, assigner):
    cfg = VFNET if head == "VFNetHead" else {"type": head}
    built = build(cfg, train_cfg={"assigner": assigner})
    feats, samples = batch()
    with NoSync():
        losses = built.loss(feats, samples)
    total = sum(losses.values())
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in built.parameters() if p.grad is not None)
    assert losses["loss_bbox"] > 0


@pytest.mark.parametrize(
    ("head", "arguments", "message"),
    [
        (GFLHead, {"anchor_generator": {**ANCHORS, "ratios": [1.0, 2.0]}}, r"makes \[2, 2\] anchors of a cell"),
        (GFLHead, {"reg_max": 0}, "reg_max must be at least 1, got 0"),
        (GFLHead, {"loss_cls": {"type": "FocalLoss"}}, "FocalLoss learns labels; here are labels with qualities"),
        (GFLHead, {"bbox_coder": {"type": "DeltaXYWHBBoxCoder"}}, "DeltaXYWHBBoxCoder codes boxes by boxes"),
        (VFNetHead, {"bbox_norm_type": "strides"}, "bbox_norm_type 'strides'"),
        (VFNetHead, {"strides": [8, 16, 32]}, "3 strides, but 5 regress_ranges"),
        (VFNetHead, {"anchor_generator": {**ANCHORS, "strides": [4, 8, 16, 32, 64]}}, "anchor_generator has strides"),
        (VFNetHead, {"loss_cls": {"type": "FocalLoss"}}, "FocalLoss learns labels; here are qualities of classes"),
    ],
)
def test_what_makes_no_sense_is_refused(head, arguments, message):
    with pytest.raises(ValueError, match=f"{head.__name__}.*{message}"):
        head(**SMALL, **arguments)
