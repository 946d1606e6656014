"""The IoU of masks: targets by hand, shares on the host, scores."""

import numpy as np
import pytest
import torch
from host_reads import HostReads
from mask_scenes import positives_of, scene
from mmengine.structures import InstanceData
from no_sync import NoSync

from detkit.models import MaskIoUHead, MaskScoringRoIHead
from detkit.models.roi_heads.mask_heads.maskiou_head import mask_iou_targets, share_inside
from detkit.structures.masks import BitmapMasks, PolygonMasks


def head_of(size=8):
    return MaskIoUHead(
        num_convs=2, num_fcs=1, roi_feat_size=size, in_channels=3, conv_out_channels=4, fc_out_channels=5, num_classes=6
    )


@pytest.mark.parametrize("kind", ["bitmap", "polygon"])
def test_how_much_of_an_object_is_inside(kind):
    square = np.array([2.0, 2, 10, 2, 10, 10, 2, 10])
    masks = PolygonMasks([[square]], 20, 20)
    masks = masks if kind == "polygon" else masks.to_bitmap()
    # All of it, its left half (corners are rounded down), a quarter, and none.
    boxes = [[0, 0, 20, 20], [0, 0, 6.9, 20], [6.1, 6.8, 30, 30], [12, 12, 18, 18]]
    shares = share_inside(positives_of([[], boxes], [[], [0] * 4]), [masks[[]], masks])
    torch.testing.assert_close(shares, torch.tensor([1, 0.5, 0.25, 0]))


def test_the_iou_with_the_whole_object_by_hand():
    logits = torch.full((3, 4, 4), -9.0)
    logits[0, :, :2] = 9.0  # 8 cells, 4 of them on the object
    logits[1] = 9.0
    targets = torch.zeros(3, 4, 4)
    targets[:, :, 1] = 1  # 4 cells
    targets[1:] = 0
    # The RoI holds half of the first object, which thus has 8 cells: 4 / (8 + 8 - 4).
    ious = mask_iou_targets(logits, targets, torch.tensor([0.5, 0.5, 0.0]), 0.5)
    torch.testing.assert_close(ious, torch.tensor([1 / 3, 0, 0]))


def test_the_loss_is_the_mean_over_masks_that_touch_their_objects_without_waiting():
    positives, _, bitmaps = scene([(30, 40), (40, 30)])
    logits = torch.randn(24, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = (torch.rand(24, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    targets[:5] = 0
    predicted = torch.rand(24, requires_grad=True)
    with HostReads() as reads, NoSync():
        loss = head_of().loss_and_target(predicted, logits, targets, positives, bitmaps, 0.5)["loss_mask_iou"]
    assert reads.counts["cpu"] + reads.counts["tolist"] == 0
    ious = mask_iou_targets(logits, targets, share_inside(positives, bitmaps), 0.5)
    learns = ious > 0
    assert 0 < learns.sum() <= 19
    torch.testing.assert_close(loss, 0.5 * (predicted - ious)[learns].square().mean())
    loss.backward()
    assert ((predicted.grad != 0) == learns).all()
    assert logits.grad is None


def test_without_objects_the_loss_is_zero_and_reaches_every_parameter():
    head = head_of()
    ious = head(torch.zeros(0, 3, 8, 8), torch.zeros(0, 16, 16)).sum(dim=1)
    empty = BitmapMasks([], 20, 20)
    found = head.loss_and_target(
        ious, torch.zeros(0, 16, 16), torch.zeros(0, 16, 16), positives_of([[]], [[]]), [empty], 0.5
    )
    found["loss_mask_iou"].backward()
    assert found["loss_mask_iou"] == 0
    assert all((p.grad == 0).all() for p in head.parameters())


@pytest.mark.parametrize("size", [8, 7, (6, 9)])
def test_any_size_of_features(size):
    rows, columns = (size, size) if isinstance(size, int) else size
    assert head_of(size)(torch.rand(2, 3, rows, columns), torch.rand(2, 2 * rows, 2 * columns)).shape == (2, 6)


def test_masks_are_ranked_by_their_fit_and_boxes_are_not():
    found = [InstanceData(scores=torch.tensor([0.8, 0.5, 0.4]), labels=torch.tensor([1, 0, 1]))]
    ious = torch.tensor([[0.9, 0.5], [1.2, 0.3], [0.1, -0.2]])
    one = head_of().predict_by_feat([ious], found)[0]
    torch.testing.assert_close(one.mask_scores, torch.tensor([0.4, 0.5, 0.0]))
    torch.testing.assert_close(one.scores, torch.tensor([0.8, 0.5, 0.4]))


def test_a_mask_head_is_needed():
    extractor = {"type": "SingleRoIExtractor", "roi_layer": {"type": "RoIAlign", "output_size": 7}}
    with pytest.raises(ValueError, match="MaskScoringRoIHead: mask_head is missing"):
        MaskScoringRoIHead(
            mask_iou_head={"type": "MaskIoUHead"},
            bbox_roi_extractor={**extractor, "out_channels": 4, "featmap_strides": [4]},
            bbox_head={
                "type": "Shared2FCBBoxHead",
                "loss_cls": {"type": "CrossEntropyLoss"},
                "loss_bbox": {"type": "L1Loss"},
            },
        )
