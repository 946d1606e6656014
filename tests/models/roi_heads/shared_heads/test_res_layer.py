"""A stage of ResNet over regions: the backbone's own stage, by name and by value, and a detector that shares it."""

import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync

from detkit.models import FasterRCNN, ResLayer, ResNet
from detkit.structures import DetDataSample


@pytest.mark.parametrize(("depth", "style"), [(50, "caffe"), (18, "pytorch")])
def test_it_is_the_stage_that_the_backbone_leaves_out(depth, style):
    torch.manual_seed(0)
    whole = ResNet(depth, style=style, out_indices=(2, 3), zero_init_residual=False).eval()
    layer = ResLayer(depth, style=style).eval()
    state = {name: value for name, value in whole.state_dict().items() if name.startswith("layer4.")}
    layer.load_state_dict(state, strict=True)
    with torch.no_grad():
        before, after = whole(torch.rand(2, 3, 64, 64))
        torch.testing.assert_close(layer(before), after)


def test_earlier_stages_dilation_and_arguments_out_of_range():
    layer = ResLayer(18, stage=2, stride=1, dilation=2)
    assert {name.split(".")[0] for name in layer.state_dict()} == {"layer3"}
    assert layer(torch.rand(1, 128, 4, 4)).shape == (1, 256, 4, 4)
    for arguments, message in (
        ({"depth": 20}, "ResLayer: depth must be one of 18, 34, 50, 101, 152, got 20"),
        ({"depth": 18, "stage": 0}, "stage must be 1, 2 or 3"),
        ({"depth": 18, "style": "tf"}, "style must be 'pytorch' or 'caffe', got 'tf'"),
    ):
        with pytest.raises(ValueError, match=message):
            ResLayer(**arguments)


def test_statistics_stay_unless_they_are_learnt_and_recomputing_changes_nothing():
    x = torch.rand(3, 256, 4, 4, requires_grad=True)
    plain, recomputing, learning = ResLayer(18), ResLayer(18, with_cp=True), ResLayer(18, norm_eval=False)
    for layer in (recomputing, learning):
        layer.load_state_dict(plain.state_dict())
    grads = [torch.autograd.grad(layer.train()(x).sum(), [x, *layer.parameters()]) for layer in (plain, recomputing)]
    torch.testing.assert_close(grads[0], grads[1])
    learning.train()(x)
    for layer, same in ((plain, True), (learning, False)):
        assert (layer.layer4[0].bn1.running_mean == 0).all() == same


def c4_detector():
    nms = {"type": "nms", "iou_threshold": 0.7}
    assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.3}
    sampler = {"type": "RandomSampler", "num": 16, "pos_fraction": 0.5, "add_gt_as_proposals": False}
    stages = {"num_stages": 3, "strides": (1, 2, 2), "dilations": (1, 1, 1), "out_indices": (2,)}
    anchors = {"type": "AnchorGenerator", "scales": [1, 2], "ratios": [1.0], "strides": [16]}
    align = {"type": "RoIAlign", "output_size": 4, "sampling_ratio": 2}
    return FasterRCNN(
        backbone={"type": "ResNet", "depth": 18, **stages},
        rpn_head={"type": "RPNHead", "in_channels": 256, "feat_channels": 8, "anchor_generator": anchors},
        roi_head={
            "type": "StandardRoIHead",
            "shared_head": {"type": "ResLayer", "depth": 18},
            "bbox_roi_extractor": {
                "type": "SingleRoIExtractor", "roi_layer": align, "out_channels": 256, "featmap_strides": [16],
            },
            "bbox_head": {
                "type": "BBoxHead", "with_avg_pool": True, "roi_feat_size": 2, "in_channels": 512, "num_classes": 3,
            },
        },
        train_cfg={
            "rpn": {"assigner": assigner, "sampler": sampler},
            "rpn_proposal": {"nms_pre": 20, "max_per_img": 8, "nms": nms},
            "rcnn": {"assigner": assigner, "sampler": {**sampler, "add_gt_as_proposals": True}},
        },
        test_cfg={
            "rpn": {"nms_pre": 20, "max_per_img": 8, "nms": nms},
            "rcnn": {"score_thr": 0.0, "nms": nms, "max_per_img": 5},
        },
    )  # fmt: skip


def test_a_detector_whose_regions_go_through_the_last_stage():
    torch.manual_seed(0)
    model = c4_detector()
    samples = []
    for boxes in ([[8.0, 8, 40, 44]], []):
        sample = DetDataSample(metainfo={"img_shape": (64, 64), "pad_shape": (64, 64), "scale_factor": (1.0, 1.0)})
        objects = torch.tensor(boxes).reshape(-1, 4)
        sample.gt_instances = InstanceData(bboxes=objects, labels=torch.ones(len(objects)).long())
        samples.append(sample)
    images = torch.rand(2, 3, 64, 64)
    losses = model.train().loss(images, samples)
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    assert model.roi_head.shared_head.layer4[0].conv1.weight.grad.any()
    with torch.no_grad():
        assert [len(found.pred_instances) for found in model.eval().predict(images, samples)] == [5, 5]
        rois = torch.tensor([[0.0, 8, 8, 40, 44]])
        with NoSync():
            assert model.roi_head._bbox_forward(model.extract_feat(images), rois)["bbox_feats"].shape == (1, 512, 2, 2)
