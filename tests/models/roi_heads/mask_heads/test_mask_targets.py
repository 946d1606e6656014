"""Mask targets: of bitmaps as RoIAlign cuts them, of polygons as COCO draws them, in bounded memory, without waits."""

import numpy as np
import pytest
import torch
from host_reads import HostReads
from mask_scenes import positives_of, scene
from no_sync import NoSync

from detkit.models.roi_heads.mask_heads import mask_windows
from detkit.models.roi_heads.mask_heads.mask_targets import mask_targets
from detkit.models.roi_heads.sampling import SampledRoIs, positive_rois
from detkit.structures.masks import BitmapMasks, PolygonMasks

SIZES = [(40, 60), (50, 30), (45, 45)]


def one_by_one(positives, batch_masks, size):
    """Each RoI cut from the whole mask of its object."""
    cut = []
    for roi, index in zip(positives.rois, positives.gt_index, strict=True):
        masks = batch_masks[int(roi[0])]
        box = roi[1:].numpy().clip(0, [masks.width, masks.height] * 2)
        cut.append(masks.crop_and_resize(box[None], size, np.array([int(index)])).to_ndarray()[0])
    return torch.from_numpy(np.stack(cut)).float()


def test_a_square_cut_by_hand():
    mask = np.zeros((1, 8, 8), dtype=np.uint8)
    mask[0, 2:6, 2:6] = 1
    # Its left half, in cells of 2 x 2 pixels: one column beside it, one on it.
    positives = positives_of([[[0, 2, 4, 6]]], [[0]])
    targets = mask_targets(positives, [BitmapMasks(mask, 8, 8)], 2)
    assert targets.dtype == torch.float32
    assert targets.tolist() == [[[0, 1], [0, 1]]]
    corners = np.array([2.0, 2, 6, 2, 6, 6, 2, 6])
    assert mask_targets(positives, [PolygonMasks([[corners]], 8, 8)], 2).tolist() == [[[0, 1], [0, 1]]]


@pytest.mark.parametrize("size", [14, (7, 11)])
def test_bitmaps_are_those_of_each_roi_cut_alone(size):
    positives, _, bitmaps = scene(SIZES)
    targets = mask_targets(positives, bitmaps, size)
    expected = one_by_one(positives, bitmaps, (size, size) if isinstance(size, int) else size)
    assert targets.shape == expected.shape
    # Where a cell is covered by one half, rounding decides.
    assert (targets != expected).float().mean() < 2e-3
    assert 0.2 < expected.mean() < 0.8


def test_polygons_are_those_of_each_roi_cut_alone():
    positives, polygons, _ = scene(SIZES, seed=1)
    targets = mask_targets(positives, polygons, (9, 14))
    assert torch.equal(targets, one_by_one(positives, polygons, (9, 14)))


def test_chunks_give_what_one_gives(monkeypatch):
    positives, _, bitmaps = scene(SIZES, seed=2)
    expected = mask_targets(positives, bitmaps, 14)
    monkeypatch.setattr(mask_windows, "CHUNK_PIXELS", 60 * 60)
    windows = list(mask_windows.mask_windows(positives, bitmaps))
    assert len(windows) > 4
    assert all(one.masks.numel() <= 60 * 60 for one in windows)
    assert torch.equal(mask_targets(positives, bitmaps, 14), expected)


def test_small_windows_are_not_padded_to_large_ones(monkeypatch):
    monkeypatch.setattr(mask_windows, "LEAST_PIXELS", 16)
    masks = BitmapMasks(np.ones((3, 60, 60), dtype=np.uint8), 60, 60)
    positives = positives_of([[[0, 0, 50, 50], [1, 1, 9, 9], [30, 30, 39, 39]]], [[0, 1, 2]])
    assert [tuple(one.masks.shape) for one in mask_windows.mask_windows(positives, [masks])] == [
        (1, 52, 52),
        (2, 11, 11),
    ]


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (3, 0)])
@pytest.mark.parametrize("kind", [1, 2])
def test_images_without_objects(counts, kind):
    """Their masks are there, but hold nothing."""
    boxes = [[[1, 2, 9, 9]] * count for count in counts]
    positives = positives_of(boxes, [[0] * count for count in counts])
    filled = scene([(20, 20), (20, 20)], objects=1)[kind]
    masks = [one if count else one[[]] for one, count in zip(filled, counts, strict=True)]
    assert mask_targets(positives, masks, 5).shape == (sum(counts), 5, 5)


def test_a_roi_without_area_and_one_beyond_the_image_are_finite():
    masks = BitmapMasks(np.ones((1, 20, 30), dtype=np.uint8), 20, 30)
    positives = positives_of([[[30, 20, 30, 20], [40, 5, 60, 9], [0, 0, 30, 20]]], [[0, 0, 0]])
    targets = mask_targets(positives, [masks], 4)
    assert targets.mean(dim=(1, 2)).tolist() == [0, 0, 1]


def test_an_object_without_polygons_is_nowhere():
    positives = positives_of([[[0, 0, 10, 10], [0, 0, 10, 10]]], [[0, 1]])
    square = np.array([0.0, 0, 10, 0, 10, 10, 0, 10])
    targets = mask_targets(positives, [PolygonMasks([[], [square]], 20, 20)], 4)
    assert targets.mean(dim=(1, 2)).tolist() == [0, 1]


def test_an_object_at_the_border_ends_at_the_border():
    """Samples between the outermost pixels' centres and the border see these pixels, not what lies beyond."""
    positives = positives_of([[[0, 0, 4, 4]]], [[0]])
    assert mask_targets(positives, [BitmapMasks(np.ones((1, 4, 4), dtype=np.uint8), 4, 4)], 16).all()


def test_other_masks_are_refused():
    positives = positives_of([[[0, 0, 9, 9]]], [[0]])
    with pytest.raises(TypeError, match=r"BitmapMasks or PolygonMasks .* got Tensor"):
        mask_targets(positives, [torch.ones(1, 9, 9)], 4)


@pytest.mark.parametrize("kind", [1, 2])
def test_the_device_is_asked_once(kind):
    found = scene(SIZES, seed=3)
    boxes = found[0].rois[:, 1:].view(3, 12, 4)
    positive = torch.arange(12) < torch.tensor([[3], [0], [12]])
    sampled = SampledRoIs(
        boxes=boxes,
        labels=torch.where(positive, 1, 5),
        gt_boxes=boxes,
        gt_index=found[0].gt_index.view(3, 12),
        positive=positive,
        valid=positive,
        is_gt=positive,
    )
    with HostReads() as reads, NoSync():
        first, second = positive_rois([sampled, sampled])
        targets = mask_targets(first, found[kind], 7)
    assert reads.counts["cpu"] + reads.counts["tolist"] == 1
    assert first.counts == second.counts == [3, 0, 12]
    rows = [0, 1, 2, *range(24, 36)]
    assert first.place.tolist() == rows
    assert torch.equal(torch.from_numpy(first.host_boxes), found[0].rois[rows, 1:])
    assert first.host_gt_index.tolist() == found[0].gt_index[rows].tolist()
    assert first.rois[:, 0].tolist() == [0] * 3 + [2] * 12
    assert torch.equal(targets, mask_targets(found[0], found[kind], 7)[rows])
