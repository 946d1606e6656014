"""Double-Head R-CNN, and batch norms over regions; the reference's cases are in test_parity.py."""

import pytest
import torch
from models.roi_heads.small import TWO_FCS, C, roi_head, scene, train
from torch.nn.functional import pad

from detkit.models import DoubleConvFCBBoxHead
from detkit.structures.proposals import Proposals

DOUBLE = {
    "type": "DoubleConvFCBBoxHead",
    "num_convs": 1,
    "num_fcs": 1,
    "in_channels": 4,
    "conv_out_channels": 8,
    "fc_out_channels": 8,
    "roi_feat_size": 2,
    "num_classes": C,
}
CONVS = {**TWO_FCS, "type": "Shared4Conv1FCBBoxHead", "conv_out_channels": 4, "norm_cfg": {"type": "BN"}}
EVERY = {"type": "RandomSampler", "num": 64, "pos_fraction": 1.0}


def double_head(factor=1.3, bbox_head=DOUBLE, **arguments):
    return roi_head(bbox_head, kind="DoubleHeadRoIHead", reg_roi_scale_factor=factor, **arguments)


@pytest.mark.parametrize(
    "part",
    [
        {},
        {"loss_cls": {"type": "SeesawLoss", "num_classes": C}},
        {"reg_decoded_bbox": True, "loss_bbox": {"type": "GIoULoss"}},
    ],
)
def test_it_learns(part):
    head = double_head(bbox_head={**DOUBLE, **part})
    train(head)
    feats, proposals, samples = scene()
    assert all(len(one) > 0 for one in head.eval().predict(feats, proposals, samples))


def test_boxes_and_boxes_alone_are_found_in_larger_regions():
    feats, proposals, _ = scene()
    same, larger = double_head(1.0).eval(), double_head(1.5).eval()
    with torch.no_grad():
        (classes, boxes), (classes_of_larger, boxes_of_larger) = same(feats, proposals), larger(feats, proposals)
    assert torch.equal(classes, classes_of_larger)
    assert not torch.allclose(boxes, boxes_of_larger)
    # As in a StandardRoIHead, where the features are the same.
    standard = roi_head(DOUBLE).eval()
    with torch.no_grad():
        torch.testing.assert_close(standard(feats, proposals)[1], boxes)


def step(head, padding):
    """Losses of a step with padded proposals, and what it left in the buffers of the box head."""
    feats, proposals, samples = scene()
    boxes, scores, valid = proposals.boxes, proposals.scores, proposals.valid
    padded = Proposals(pad(boxes, (0, 0, 0, padding)), pad(scores, (0, padding)), pad(valid, (0, padding)))
    losses = head.train().loss(feats, padded, samples)
    sum(value for name, value in losses.items() if "loss" in name).backward()
    return {**losses, **dict(head.bbox_head.named_buffers()), "grad": head.bbox_head.fc_reg.weight.grad}


@pytest.mark.parametrize("build", [lambda: double_head(sampler=EVERY), lambda: roi_head(CONVS, sampler=EVERY)])
def test_batch_norms_do_not_see_padding(build):
    """17 regions of 24 rows, or of 64."""
    expected, found = step(build(), 0), step(build(), 40)
    assert "acc" in expected
    assert len(expected) > 5
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def with_norm_on_regions(sampler=EVERY):
    """A RoI head whose extractor has a batch norm after the pooling."""
    norm = {"type": "ConvModule", "in_channels": 4, "out_channels": 4, "kernel_size": 1, "norm_cfg": {"type": "BN"}}
    extractor = {
        "type": "GenericRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": 2, "sampling_ratio": 1},
        "out_channels": 4,
        "featmap_strides": [4],
        "pre_cfg": norm,
    }
    return roi_head(TWO_FCS, sampler=sampler, bbox_roi_extractor=extractor)


def statistics_after_step(head, proposals=None):
    feats, some, samples = scene()
    losses = head.train().loss(feats, some if proposals is None else proposals, samples)
    return losses, {name: value.clone() for name, value in head.named_buffers()}


def test_a_batch_norm_of_the_extractor_does_not_see_padding():
    _, proposals, _ = scene()
    padded = Proposals(
        pad(proposals.boxes, (0, 0, 0, 40)), pad(proposals.scores, (0, 40)), pad(proposals.valid, (0, 40))
    )
    (_, expected), (_, found) = (statistics_after_step(with_norm_on_regions(), one) for one in (proposals, padded))
    assert len(expected) == 3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("build", [double_head, lambda: roi_head(CONVS), with_norm_on_regions])
def test_batch_norms_learn_nothing_from_padding_alone(build):
    head = build().train()
    before = {name: value.clone() for name, value in head.named_buffers() if "running" in name}
    assert before
    feats, proposals, samples = scene()
    for sample in samples:
        sample.gt_instances = sample.gt_instances[:0]
    nothing = Proposals(proposals.boxes, proposals.scores, torch.zeros_like(proposals.valid))
    losses = head.loss(feats, nothing, samples)
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert losses["loss_cls"] == losses["loss_bbox"] == 0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
    buffers = dict(head.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in before.items())


def test_a_sampler_that_looks_does_not_move_batch_norms():
    """A step with OHEM, whose sample is everything, leaves the buffers as one without."""
    hard = {**EVERY, "type": "OHEMSampler"}
    expected, found = step(roi_head(CONVS, sampler=EVERY), 0), step(roi_head(CONVS, sampler=hard), 0)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    (_, expected), (_, found) = (statistics_after_step(with_norm_on_regions(sampler)) for sampler in (EVERY, hard))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="DoubleConvFCBBoxHead: num_convs and num_fcs must be at least 1, got 0 and 2"):
        DoubleConvFCBBoxHead(0, 2)
    with pytest.raises(ValueError, match="DoubleConvFCBBoxHead: with_avg_pool=False has no definition"):
        DoubleConvFCBBoxHead(1, 1, with_avg_pool=False)
    with pytest.raises(ValueError, match="reg_roi_scale_factor must be > 0, got 0"):
        double_head(0)
    with pytest.raises(ValueError, match=r"bbox_head must take features for .* Shared2FCBBoxHead takes one kind"):
        double_head(bbox_head=TWO_FCS)
