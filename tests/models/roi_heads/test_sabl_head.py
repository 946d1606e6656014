"""SABLHead: sides among buckets; the reference's cases are in test_parity.py."""

import pytest
import torch
from models.roi_heads.small import roi_head, scene, train
from models.roi_heads.test_swapping import SAMPLERS

from detkit.models.roi_heads.sampling import SampledRoIs
from detkit.registry import MODELS

SMALL = {
    "type": "SABLHead",
    "num_classes": 3,
    "cls_in_channels": 4,
    "reg_in_channels": 4,
    "roi_feat_size": 2,
    "cls_out_channels": 8,
    "bbox_coder": {"type": "BucketingBBoxCoder", "num_buckets": 4, "scale_factor": 2.0},
}
CROSS_ENTROPY = {"type": "CrossEntropyLoss"}


@pytest.mark.parametrize("sampler", ["RandomSampler", "OHEMSampler", "CombinedSampler", "PseudoSampler"])
@pytest.mark.parametrize(
    "loss_cls",
    [
        CROSS_ENTROPY,
        {"type": "SeesawLoss", "num_classes": 3, "return_dict": False},
        {"type": "EQLV2Loss", "num_classes": 3},
    ],
)
def test_samplers_and_class_losses(sampler, loss_cls):
    train(roi_head({**SMALL, "loss_cls": loss_cls}, sampler=SAMPLERS[sampler]))


def test_the_buckets_of_a_side_go_from_outside_to_the_middle():
    """Columns 0 to 3 and rows 10 to 13."""
    lines = torch.tensor([0.0, 1, 2, 3, 10, 11, 12, 13]).view(1, 8, 1)
    found = MODELS.build(SMALL)._of_sides(lines)
    assert found.tolist() == [[0, 1, 3, 2, 10, 11, 13, 12]]


def test_an_odd_number_of_buckets_has_the_middle_one_twice():
    head = MODELS.build(
        {**SMALL, "roi_feat_size": 1, "reg_feat_up_ratio": 3, "bbox_coder": {**SMALL["bbox_coder"], "num_buckets": 3}}
    )
    assert head._of_sides(torch.arange(6.0).view(1, 6, 1)).tolist() == [[0, 1, 2, 1, 3, 4, 5, 4]]


def test_refined_regions_are_decoded_and_added_objects_left_out():
    _, proposals, samples = scene()
    head = MODELS.build(SMALL)
    sampled = SampledRoIs.without_objects(proposals, 3)
    sampled.is_gt[0, 1] = True
    predicted = tuple(torch.randn(24, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    metas = [sample.metainfo for sample in samples]
    refined = head.refine(sampled, torch.randn(24, 4), predicted, metas)
    assert torch.equal(refined.valid, proposals.valid & ~sampled.is_gt)
    expected, _ = head.bbox_coder.decode(proposals.boxes[0], tuple(part[:12] for part in predicted), max_shape=(48, 48))
    kept = refined.valid[0]
    torch.testing.assert_close(refined.boxes[0][kept], expected[kept])
    assert (refined.boxes[~refined.valid] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"roi_feat_size": 3}, "roi_feat_size 3 times reg_feat_up_ratio 2 .* must be num_buckets 4 of the coder"),
        (
            {"roi_feat_size": 4, "reg_feat_up_ratio": 1},
            "roi_feat_size 4 times reg_feat_up_ratio 1 .at least 2.",
        ),
        ({"reg_class_agnostic": False}, "reg_class_agnostic=False has no definition"),
        ({"bbox_coder": {"type": "DeltaXYWHBBoxCoder"}}, "bbox_coder: DeltaXYWHBBoxCoder codes boxes by boxes"),
        ({"loss_cls": {"type": "L1Loss"}}, "loss_cls: L1Loss learns coordinates"),
        ({"loss_bbox_cls": CROSS_ENTROPY}, "loss_bbox_cls: CrossEntropyLoss with use_sigmoid=False needs a channel"),
        ({"loss_bbox_reg": {"type": "GIoULoss"}}, "loss_bbox_reg: GIoULoss learns boxes"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"SABLHead: {message}"):
        MODELS.build({**SMALL, **arguments})


def test_a_sampler_of_boxes_by_four_numbers_is_refused():
    with pytest.raises(ValueError, match=r"ScoreHLRSampler groups predicted boxes.*BucketingBBoxCoder codes boxes, as"):
        roi_head(SMALL, sampler=SAMPLERS["ScoreHLRSampler"])
