"""HybridTaskCascadeRoIHead: which parts fit each other, and what it cannot learn from."""

import pytest
import torch
from mmengine.structures import InstanceData, PixelData

from detkit.models import FusedSemanticHead, HTCMaskHead, HybridTaskCascadeRoIHead
from detkit.structures import BitmapMasks, DetDataSample

EXTRACTOR = {
    "type": "SingleRoIExtractor",
    "roi_layer": {"type": "RoIAlign", "output_size": 4, "sampling_ratio": 1},
    "out_channels": 2,
    "featmap_strides": [8],
}
BBOX_HEAD = {
    "type": "Shared2FCBBoxHead",
    "in_channels": 2,
    "fc_out_channels": 4,
    "roi_feat_size": 4,
    "num_classes": 3,
    "reg_class_agnostic": True,
}
WIDTHS = {"num_convs": 1, "in_channels": 2, "conv_out_channels": 2, "num_classes": 3}
FIRST = {"type": "HTCMaskHead", "with_conv_res": False, **WIDTHS}
SECOND = {"type": "HTCMaskHead", **WIDTHS}
SEMANTIC = {
    "type": "FusedSemanticHead",
    "num_ins": 1,
    "fusion_level": 0,
    "num_convs": 1,
    "in_channels": 2,
    "conv_out_channels": 2,
    "num_classes": 5,
}
WITH_SEMANTIC = {"semantic_head": SEMANTIC, "semantic_roi_extractor": EXTRACTOR}


def stage(sampler="RandomSampler"):
    assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.5}
    return {"assigner": assigner, "sampler": {"type": sampler, "num": 6, "pos_fraction": 0.5}, "mask_size": 8}


def head(**arguments):
    torch.manual_seed(0)
    parts = {
        "bbox_roi_extractor": EXTRACTOR,
        "bbox_head": BBOX_HEAD,
        "mask_roi_extractor": EXTRACTOR,
        "mask_head": [FIRST, SECOND],
        "train_cfg": [stage(), stage()],
    }
    built = HybridTaskCascadeRoIHead(2, [1, 0.5], **(parts | arguments))
    built.init_weights()
    return built.train()


def batch(semantic=(64, 64)):
    generator = torch.Generator().manual_seed(1)
    feats = [torch.randn(1, 2, 8, 8, generator=generator)]
    corners = torch.rand(9, 2, generator=generator) * 40
    sample = DetDataSample(metainfo={"img_path": "one.png", "img_shape": (64, 64), "ori_shape": (64, 64)})
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 4:20, 4:20] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[4.0, 4.0, 20.0, 20.0]]),
        labels=torch.zeros(1).long(),
        masks=BitmapMasks(masks.numpy(), 64, 64),
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
    if semantic is not None:
        sample.gt_sem_seg = PixelData(sem_seg=torch.full((1, *semantic), 2, dtype=torch.uint8))
    return feats, [InstanceData(bboxes=torch.cat([corners, corners + 16], dim=1))], [sample]


def test_every_part_is_initialised_and_learns():
    built = head(**WITH_SEMANTIC)
    assert all(one.fc_reg.weight.std() < 0.002 for one in built.bbox_head)
    assert all(one.conv_logits.bias.abs().max() == 0 for one in [*built.mask_head, built.semantic_head])
    losses = built.loss(*batch())
    names = {f"s{number}.{name}" for number in (0, 1) for name in ("loss_cls", "loss_bbox", "loss_mask", "acc")}
    assert losses.keys() == names | {"loss_semantic_seg"}
    sum(value.sum() for name, value in losses.items() if "loss" in name).backward()
    assert all(p.grad is not None for p in built.parameters())


def test_masks_learn_from_boxes_of_their_stage_that_are_sampled_anew():
    built = head(train_cfg=[stage("OHEMSampler")] * 2, **WITH_SEMANTIC)
    seen = []
    forward = built._bbox_forward
    # A sampler that runs the head gives it what it was given: the semantic features too.
    built._bbox_forward = lambda number, x, rois: seen.append((number, len(x), len(rois))) or forward(number, x, rois)
    built.loss(*batch())
    # 9 proposals and the object; 6 of them; what these became but for the object, and it: once for masks, once for the
    # next stage; 6 of them, and for its masks.
    assert seen == [(0, 2, 10), (0, 2, 6), (0, 2, 7), (1, 2, 7), (1, 2, 6), (1, 2, 7)]


def test_raw_outputs_are_of_every_proposal():
    cls_score, bbox_pred, mask_preds = head()(*batch())
    assert (cls_score.shape, bbox_pred.shape, mask_preds.shape) == ((9, 4), (9, 4), (9, 3, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"mask_head": [FIRST, FIRST]}, r"mask_head\[1\].with_conv_res must be True: the stage comes after another"),
        ({"mask_head": [SECOND, SECOND]}, r"mask_head\[0\].with_conv_res must be False: the stage has none before it"),
        ({"mask_info_flow": False}, r"mask_head\[1\].with_conv_res must be False.* mask_info_flow is False"),
        ({"semantic_head": SEMANTIC}, "semantic_roi_extractor is missing"),
        ({"semantic_roi_extractor": EXTRACTOR}, "semantic_head is missing"),
        ({"semantic_fusion": "bbox"}, "semantic_fusion names of 'bbox' and 'mask' were expected, got 'bbox'"),
        ({"semantic_fusion": ["box"]}, r"'bbox' and 'mask' were expected, got \['box'\]"),
    ],
)
def test_parts_that_do_not_fit_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        head(**arguments)


def test_a_mask_head_takes_up_only_what_has_its_width():
    with pytest.raises(ValueError, match="in_channels=2 and conv_out_channels=4 to be equal"):
        HTCMaskHead(in_channels=2, conv_out_channels=4)
    HTCMaskHead(with_conv_res=False, in_channels=2, conv_out_channels=4)


def test_maps_that_are_missing_or_of_another_size_are_named():
    built = head(**WITH_SEMANTIC)
    with pytest.raises(ValueError, match=r"with_seg=True of LoadAnnotations.* there is none of one\.png"):
        built.loss(*batch(semantic=None))
    with pytest.raises(ValueError, match=r"\(7, 8\) at seg_scale_factor=0.125, level 0 is \(8, 8\).*pad_seg=True"):
        built.loss(*batch(semantic=(60, 64)))
    levels, proposals, samples = zip(batch(), batch(semantic=(60, 64)), strict=True)
    feats = [torch.cat(level) for level in zip(*levels, strict=True)]
    with pytest.raises(ValueError, match=r"must have one size, got \(60, 64\), \(64, 64\);.*pad_seg=True"):
        built.loss(feats, [one[0] for one in proposals], [one[0] for one in samples])


def test_a_level_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"fusion_level must be in \[0, num_ins=2\), got 2"):
        FusedSemanticHead(2, 2)
