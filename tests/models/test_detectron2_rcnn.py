"""The five losses of Detectron2's whole Mask R-CNN with random weights, from its own test of RoI heads.

Its numbers depend on each draw from the random numbers, so that the layers are drawn here in its order, by torch alone.
"""

from functools import partial

import pytest
import torch
from mmengine.structures import InstanceData
from torch import nn

from detkit.models.dense_heads.losses.rpn_loss import rpn_losses
from detkit.registry import MODELS
from detkit.structures import BitmapMasks, DetDataSample

EXPECTED = {
    "loss_cls": 4.5253729820251465,
    "loss_bbox": 0.009785720147192478,
    "loss_mask": 0.693184494972229,
    "loss_rpn_cls": 0.08186662942171097,
    "loss_rpn_bbox": 0.1104838103055954,
}
BOXES = [[[1.0, 1, 3, 3], [2, 2, 6, 6]], [[1.0, 5, 2, 8], [7, 3, 10, 5]]]
LABELS = [[2, 1], [1, 2]]
CHANNELS = 1024
NMS = {"nms_pre": 12000, "max_per_img": 2000, "nms": {"type": "nms", "iou_threshold": 0.7}, "min_bbox_size": 0}
# Objects take their best anchor, but an anchor's object is the one that it overlaps most.
MATCHER = {"type": "MaxIoUAssigner", "min_pos_iou": 0, "reassign_low_quality": False}
RPN = {
    "type": "RPNHead",
    "in_channels": CHANNELS,
    "feat_channels": CHANNELS,
    "anchor_generator": {
        "type": "AnchorGenerator",
        "scales": [2, 4, 8, 16, 32],
        "ratios": [0.5, 1.0, 2.0],
        "strides": [16],
        "scale_major": False,
    },
    "loss_bbox": {"type": "L1Loss"},
    "train_cfg": {
        "assigner": MATCHER | {"pos_iou_thr": 0.7, "neg_iou_thr": 0.3},
        "sampler": {"type": "RandomSampler", "num": 256, "pos_fraction": 0.5, "add_gt_as_proposals": False},
        "allowed_border": -1,
        "pos_weight": -1,
    },
    "test_cfg": NMS,
}


def extractor(size):
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0},
        "out_channels": CHANNELS,
        "featmap_strides": [16],
    }


ROI_HEAD = {
    "type": "StandardRoIHead",
    "bbox_roi_extractor": extractor(14),
    "bbox_head": {
        "type": "Shared2FCBBoxHead",
        "in_channels": CHANNELS,
        "fc_out_channels": 1024,
        "roi_feat_size": 14,
        "num_classes": 80,
        "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]},
        "loss_bbox": {"type": "L1Loss"},
    },
    "mask_roi_extractor": extractor(14),
    "mask_head": {"type": "FCNMaskHead", "num_convs": 0, "in_channels": CHANNELS, "num_classes": 80},
    "train_cfg": {
        "assigner": MATCHER | {"pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "match_low_quality": False},
        "sampler": {"type": "RandomSampler", "num": 512, "pos_fraction": 0.25, "add_gt_as_proposals": True},
        "mask_size": 28,
        "pos_weight": -1,
    },
    "test_cfg": {"score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100},
}


def data():
    """Features and annotations."""
    torch.rand(2, 20, 30)  # Its images, of which only the sizes count: what is drawn next depends on it.
    features = torch.rand(2, CHANNELS, 1, 2)
    samples = []
    for boxes, labels, size in zip(BOXES, LABELS, [(10, 10), (20, 30)], strict=True):
        sample = DetDataSample(metainfo={"img_shape": size, "pad_shape": (20, 30), "batch_input_shape": (20, 30)})
        masks = BitmapMasks((torch.rand(2, 15, 15) > 0.5).numpy(), 15, 15)
        sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes), labels=torch.tensor(labels), masks=masks)
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        samples.append(sample)
    return features, samples


def drawn(layers, init):
    """Layers as torch makes them, whose weights are then drawn anew; biases are zero."""
    for layer in layers:
        init(layer.weight)
        nn.init.zeros_(layer.bias)
    return layers


def detectron2_layers():
    """In the order in which Detectron2 builds and draws them."""
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, 15, 1), nn.Conv2d(CHANNELS, 60, 1)
    rpn = drawn(conv, partial(nn.init.normal_, std=0.01))
    xavier = partial(nn.init.kaiming_uniform_, a=1)
    fcs = drawn((nn.Linear(CHANNELS * 14 * 14, 1024), nn.Linear(1024, 1024)), xavier)
    cls, reg = nn.Linear(1024, 81), nn.Linear(1024, 320)
    drawn([cls], partial(nn.init.normal_, std=0.01))
    drawn([reg], partial(nn.init.normal_, std=0.001))
    upsample, predictor = nn.ConvTranspose2d(CHANNELS, 256, 2, stride=2), nn.Conv2d(256, 80, 1)
    drawn([upsample], partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"))
    drawn([predictor], partial(nn.init.normal_, std=0.001))
    return [*rpn, *fcs, cls, reg, upsample, predictor]


def test_losses_of_the_whole(monkeypatch):
    torch.manual_seed(121)
    features, samples = data()
    theirs = detectron2_layers()
    with torch.device("meta"):  # its first layer alone takes 822 MB
        roi_head = MODELS.build(ROI_HEAD).train()
    rpn, box, mask = MODELS.build(RPN).train(), roi_head.bbox_head, roi_head.mask_head
    ours = [rpn.rpn_conv, rpn.rpn_cls, rpn.rpn_reg]
    ours += [*box.shared_fcs, box.fc_cls, box.fc_reg, mask.upsample, mask.conv_logits]
    for source, target in zip(theirs, ours, strict=True):
        target.load_state_dict(source.state_dict(), assign=True)
    monkeypatch.setattr(
        "detkit.models.dense_heads.rpn_head.rpn_losses",
        partial(rpn_losses, avg_factor="fixed", batch_size_per_image=256),
    )
    with torch.no_grad():
        losses, proposals = rpn.loss_and_predict([features], samples)
        losses |= roi_head.loss([features], proposals, samples)
    for name, expected in EXPECTED.items():
        assert losses[name].item() == pytest.approx(expected, rel=1e-5), name
