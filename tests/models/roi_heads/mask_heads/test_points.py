"""PointRend: which points, what they learn, how masks are made larger."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from host_reads import HostReads
from mask_scenes import positives_of, scene
from no_sync import NoSync

from detkit.models import CoarseMaskHead, MaskPointHead, PointRendRoIHead
from detkit.models.roi_heads.mask_heads import mask_windows
from detkit.models.roi_heads.mask_heads.mask_point_head import (
    most_uncertain,
    point_targets,
    points_in_image,
    uncertain_points,
)
from detkit.ops import point_sample
from detkit.structures.masks import BitmapMasks

CLASSES = 3


def roi_head(train_cfg=None, test_cfg=None, **options):
    extractor = {"out_channels": 4, "featmap_strides": [4]}
    parts = {
        "point_head": {"type": "MaskPointHead", "num_classes": CLASSES, "in_channels": 4, "fc_channels": 5},
        "bbox_roi_extractor": {
            "type": "SingleRoIExtractor",
            "roi_layer": {"type": "RoIAlign", "output_size": 7},
            **extractor,
        },
        "bbox_head": {
            "type": "Shared2FCBBoxHead",
            "in_channels": 4,
            "fc_out_channels": 8,
            "num_classes": CLASSES,
            "loss_cls": {"type": "CrossEntropyLoss"},
            "loss_bbox": {"type": "L1Loss"},
        },
        "mask_roi_extractor": {
            "type": "GenericRoIExtractor",
            "aggregation": "concat",
            "roi_layer": {"type": "SimpleRoIAlign", "output_size": 6},
            **extractor,
        },
        "mask_head": {
            "type": "CoarseMaskHead",
            "in_channels": 4,
            "conv_out_channels": 4,
            "fc_out_channels": 8,
            "roi_feat_size": 6,
            "num_classes": CLASSES,
        },
    }
    return PointRendRoIHead(**{**parts, **options}, train_cfg=train_cfg, test_cfg=test_cfg)


def test_points_of_a_roi_are_pixels_of_the_image():
    points = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [0.5, 0.25]]])
    pixels = points_in_image(torch.tensor([[3.0, 10, 20, 30, 60]]), points)
    assert pixels.tolist() == [[[10, 20], [30, 60], [20, 30]]]


def test_the_least_certain_of_the_points_that_are_drawn_and_some_others():
    # Zero is in the middle, from left to right in one class, from top to bottom in the other.
    ramp = torch.linspace(8, -8, 9).expand(9, 9)
    mask_preds = torch.stack([torch.stack([ramp, ramp.T]), torch.stack([ramp.T, ramp])])
    labels = torch.tensor([0, 0])
    torch.manual_seed(0)
    with NoSync():
        chosen = uncertain_points(mask_preds, labels, 40, 5, 1.0)
        some = uncertain_points(mask_preds, labels, 40, 5, 0.25)
    assert chosen.shape == some.shape == (2, 40, 2)
    for image, axis in ((0, 0), (1, 1)):
        # Of 200 points 40 are chosen; beyond the border there are zeros too, so that what lies there may be among them.
        inner = (chosen[image] - 0.5).abs().max(dim=1).values < 0.44
        assert inner.sum() > 15
        assert ((chosen[image, inner, axis] - 0.5).abs() < 0.15).all()
        assert (some[image, 10:, axis] - 0.5).abs().max() > 0.4


def test_the_least_certain_cells_and_their_centres():
    logits = torch.tensor([[[5.0, -0.1, 3.0, 4.0], [6.0, 7.0, 0.2, -8.0]]])
    cells, points = most_uncertain(logits, 2)
    assert cells.tolist() == [[1, 6]]
    torch.testing.assert_close(points, torch.tensor([[[0.375, 0.25], [0.625, 0.75]]]))
    assert most_uncertain(logits, 99)[0].shape == (1, 8)


@pytest.mark.parametrize("chunk", [2**23, 900])
def test_points_see_what_grid_sample_finds_in_the_whole_masks(chunk, monkeypatch):
    monkeypatch.setattr(mask_windows, "CHUNK_PIXELS", chunk)
    positives, _, bitmaps = scene([(30, 40), (36, 28)])
    points = torch.rand(24, 50, 2, generator=torch.Generator().manual_seed(0))
    pixels = points_in_image(positives.rois, points)
    with HostReads() as reads, NoSync():
        targets = point_targets(positives, bitmaps, pixels)
    assert reads.counts["cpu"] + reads.counts["tolist"] == 0
    for k in range(24):
        masks = bitmaps[int(positives.rois[k, 0])]
        whole = torch.from_numpy(masks.masks[int(positives.gt_index[k])]).float()
        expected = point_sample(whole[None, None], (pixels[k] / torch.tensor([masks.width, masks.height]))[None])[0, 0]
        torch.testing.assert_close(targets[k], expected, rtol=0, atol=1e-4)
    assert 0.1 < targets.mean() < 0.9


def test_points_of_polygons_see_their_pixels():
    positives, polygons, bitmaps = scene([(30, 40)])
    pixels = points_in_image(positives.rois, torch.rand(12, 9, 2))
    assert torch.equal(point_targets(positives, polygons, pixels), point_targets(positives, bitmaps, pixels))


def test_samples_beyond_the_features_fade_to_zero():
    features = torch.arange(1.0, 9.0).view(1, 2, 2, 2)
    points = torch.tensor([[[0.25, 0.25], [0.5, 0.5], [0.0, 0.25], [-1.0, 0.5]]])
    torch.testing.assert_close(
        point_sample(features, points), torch.tensor([[[1.0, 2.5, 0.5, 0.0], [5.0, 6.5, 2.5, 0.0]]])
    )
    half = point_sample(features.bfloat16(), points)
    assert half.dtype == torch.bfloat16
    assert point_sample(features[:0], points[:0]).shape == (0, 2, 4)


def test_fine_features_are_those_of_each_roi_s_own_image():
    head = roi_head()
    x = [torch.rand(3, 4, 8, 10), torch.rand(3, 4, 4, 5)]
    positives = positives_of([[[0, 0, 20, 20]], [], [[4, 6, 30, 31], [1, 1, 9, 40]]], [[0], [], [0, 0]])
    points = torch.rand(3, 6, 2)
    found = head._fine_features(x, positives.rois, points, positives.counts)
    assert found.shape == (3, 4, 6)
    for k, (image, *_) in enumerate(positives.rois.tolist()):
        at = points_in_image(positives.rois, points)[k] / torch.tensor([40.0, 32.0])
        torch.testing.assert_close(found[k], point_sample(x[0][int(image)][None], at[None])[0])


def test_a_mask_is_made_larger_and_its_least_certain_cells_decided_anew():
    head = roi_head(test_cfg={"subdivision_steps": 2, "subdivision_num_points": 7, "scale_factor": 2}).eval()
    decided = torch.arange(CLASSES).float().mul(100).view(1, CLASSES, 1).expand(2, CLASSES, 7) + 50
    head.point_head.forward = lambda fine, coarse: decided
    coarse, labels = torch.randn(2, CLASSES, 3, 3), torch.tensor([2, 0])
    rois = torch.tensor([[0.0, 0, 0, 20, 20], [0, 3, 4, 30, 20]])
    refined = head._refine([torch.rand(1, 4, 8, 10)], rois, labels, coarse)
    assert refined.shape == (2, 1, 12, 12)
    own = torch.stack([coarse[0, 2], coarse[1, 0]]).unsqueeze(1)
    for number in (0, 1):
        value = 250.0 if number == 0 else 50.0
        assert (refined[number] == value).sum() >= 7
    step = F.interpolate(own, scale_factor=2, mode="bilinear", align_corners=False)
    cells, _ = most_uncertain(step[:, 0], 7)
    step = step.flatten(2).scatter(2, cells.unsqueeze(1), torch.tensor([250.0, 50]).view(2, 1, 1).expand(2, 1, 7))
    last = F.interpolate(step.view(2, 1, 6, 6), scale_factor=2, mode="bilinear", align_corners=False)
    changed = (refined != last).flatten(1).sum(dim=1)
    assert (changed <= 7).all()


def test_steps_whose_cells_are_all_decided_in_the_next_are_left_out():
    head = roi_head(test_cfg={"subdivision_steps": 3, "subdivision_num_points": 144, "scale_factor": 2}).eval()
    asked = []
    head.point_head.forward = lambda fine, coarse: asked.append(fine.shape[2]) or torch.zeros(1, CLASSES, fine.shape[2])
    coarse = torch.randn(1, CLASSES, 3, 3)
    head._refine([torch.rand(1, 4, 8, 10)], torch.tensor([[0.0, 0, 0, 20, 20]]), torch.tensor([0]), coarse)
    # 6 x 6 cells become 12 x 12, all of which are decided.
    assert asked == [144, 144]


def test_without_objects_the_loss_is_zero_and_reaches_every_parameter():
    head = MaskPointHead(num_classes=CLASSES, in_channels=4, fc_channels=5)
    positives = positives_of([[]], [[]])
    empty = BitmapMasks(np.zeros((0, 9, 9), dtype=np.uint8), 9, 9)
    logits = head(torch.zeros(0, 4, 6), torch.zeros(0, CLASSES, 6))
    loss = head.loss_and_target(logits, torch.zeros(0, 6, 2), positives, [empty])["loss_point"].sum()
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in head.parameters())


@pytest.mark.parametrize(("options", "classes"), [({"class_agnostic": True}, 1), ({}, CLASSES)])
@pytest.mark.parametrize("everywhere", [True, False])
def test_point_head_options(options, classes, everywhere):
    head = MaskPointHead(
        num_classes=CLASSES, in_channels=4, fc_channels=5, coarse_pred_each_layer=everywhere, **options
    )
    assert head(torch.rand(2, 4, 6), torch.rand(2, CLASSES, 6)).shape == (2, classes, 6)
    assert head.fc_logits.in_channels == (5 + CLASSES if everywhere else 5)


@pytest.mark.parametrize(("factor", "size"), [(1, (6, 8)), (2, (3, 4))])
def test_coarse_masks(factor, size):
    head = CoarseMaskHead(
        num_convs=1, roi_feat_size=(6, 8), in_channels=4, conv_out_channels=5, num_classes=2, downsample_factor=factor
    )
    assert head(torch.rand(3, 4, 6, 8)).shape == (3, 2, *size)
    head.init_weights()
    assert (head.fc_logits.weight == 0.001).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask_head": None}, ValueError, "mask_head and mask_roi_extractor are needed"),
        ({"mask_roi_extractor": None}, ValueError, "mask_head and mask_roi_extractor are needed"),
        ({"train_cfg": {"oversample_ratio": 0.5}}, ValueError, r"oversample_ratio must be in \[1, inf\), got 0.5"),
        ({"train_cfg": {"importance_sample_ratio": 2}}, ValueError, r"importance_sample_ratio must be in \[0, 1\]"),
        ({"test_cfg": {"subdivision_step": 3}}, KeyError, "did you mean 'subdivision_steps'"),
        ({"train_cfg": {"num_point": 3}}, KeyError, "did you mean 'num_points'"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        roi_head(**options)
