"""Masks of boxes pasted into images: by hand, as grid_sample does it, in chunks, and as run lengths."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData

from detkit.models.roi_heads.mask_heads import pasting
from detkit.models.roi_heads.mask_heads.mask_prediction import predict_masks
from detkit.models.roi_heads.mask_heads.pasting import encode_masks, paste_masks
from detkit.models.roi_heads.prediction import RoITestCfg
from detkit.structures.masks.run_lengths import decode_run_lengths

SHAPE = (50, 70)


def draw(count=12, cells=(7, 9), seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, *cells, generator=generator)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([70.0, 50.0])
    half = torch.exp(torch.rand(count, 2, generator=generator) * 3.5)
    return masks, torch.cat([centre - half, centre + half], dim=1)


def sampled(masks, boxes, shape):
    """Of each pixel's centre, where it lies in the box, by grid_sample."""
    rows = (torch.arange(shape[0]) + 0.5 - boxes[:, 1:2]) / (boxes[:, 3:] - boxes[:, 1:2]) * 2 - 1
    columns = (torch.arange(shape[1]) + 0.5 - boxes[:, :1]) / (boxes[:, 2:3] - boxes[:, :1]) * 2 - 1
    size = (len(masks), *shape)
    grid = torch.stack([columns[:, None].expand(size), rows[:, :, None].expand(size)], dim=3)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def test_a_box_of_whole_pixels_by_hand():
    masks = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]])
    pasted = paste_masks(masks, torch.tensor([[1.0, 0.0, 3.0, 2.0]]), (3, 4), 0.5)
    assert pasted.dtype == torch.bool
    assert pasted[0].int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("threshold", [0.5, 0.1, 0.9])
def test_all_ways_give_the_pixels_of_grid_sample(threshold):
    masks, boxes = draw()
    expected = sampled(masks, boxes, SHAPE)
    settled = (expected - threshold).abs() > 1e-5
    by_windows = paste_masks(masks, boxes, SHAPE, threshold)
    by_images = torch.zeros_like(by_windows)
    pasting._paste_images(by_images, masks, boxes, threshold)
    by_runs = torch.from_numpy(decode_run_lengths(encode_masks(masks, boxes, SHAPE, threshold)))
    for pasted in (by_windows, by_images, by_runs):
        assert torch.equal(pasted & settled, (expected >= threshold) & settled)
    assert by_windows.any()


def test_a_negative_threshold_returns_probabilities():
    masks, boxes = draw()
    pasted = paste_masks(masks, boxes, SHAPE, -1)
    assert pasted.dtype == torch.uint8
    assert (pasted.float() - sampled(masks, boxes, SHAPE) * 255).abs().max() <= 1


def test_no_more_than_a_chunk_is_held_as_floats(monkeypatch):
    masks, boxes = draw()
    expected, runs = paste_masks(masks, boxes, SHAPE, 0.5), encode_masks(masks, boxes, SHAPE, 0.5)
    held = []
    interpolate = pasting._interpolate

    def watched(*args):
        held.append(interpolate(*args))
        return held[-1]

    monkeypatch.setattr(pasting, "_interpolate", watched)
    monkeypatch.setattr(pasting, "CHUNK_PIXELS", 500)
    by_images = torch.zeros_like(expected)
    pasting._paste_images(by_images, masks, boxes, 0.5)
    assert torch.equal(by_images, expected)
    assert torch.equal(paste_masks(masks, boxes, SHAPE, 0.5), expected)
    assert encode_masks(masks, boxes, SHAPE, 0.5) == runs
    assert max(one.numel() for one in held) <= 500


@pytest.mark.parametrize(
    "box", [[5.0, 5.0, 5.0, 5.0], [5.2, 5.0, 5.2, 20.0], [90.0, 5.0, 99.0, 9.0], [-20.0, -20.0, -9.0, -9.0]]
)
def test_a_box_without_area_or_beyond_the_image_is_nowhere(box):
    masks, boxes = torch.ones(1, 4, 4), torch.tensor([box])
    assert not paste_masks(masks, boxes, SHAPE, 0.6).any()
    assert not decode_run_lengths(encode_masks(masks, boxes, SHAPE, 0.6)).any()


def test_nothing_to_paste():
    masks, boxes = torch.zeros(0, 4, 4), torch.zeros(0, 4)
    assert paste_masks(masks, boxes, SHAPE, 0.5).shape == (0, *SHAPE)
    assert encode_masks(masks, boxes, SHAPE, 0.5) == []


@pytest.mark.parametrize("rescale", [False, True])
def test_masks_are_of_the_frame_of_their_boxes(rescale):
    found = [InstanceData(bboxes=torch.tensor([[10.0, 10.0, 30.0, 20.0]]), labels=torch.tensor([1]))]
    metas = [{"ori_shape": (40, 30), "scale_factor": (2.0, 0.5)}]
    logits = torch.stack([torch.full((1, 4, 4), -9.0), torch.full((1, 4, 4), 9.0)], dim=1)
    one = predict_masks([logits], found, metas, RoITestCfg(), rescale)[0]
    left, top, right, bottom = (5, 20, 15, 40) if rescale else (10, 10, 30, 20)
    expected = torch.zeros(1, *((40, 30) if rescale else (20, 60)), dtype=torch.bool)
    expected[:, top:bottom, left:right] = True
    # A pixel at the border of the box is half of the cell beside it.
    inner = np.s_[:, top + 1 : bottom - 1, left + 1 : right - 1]
    assert torch.equal(one.masks[inner], expected[inner])
    assert not (one.masks & ~expected).any()
    assert one.bboxes.tolist() == [[left, top, right, bottom]]


def test_run_lengths_where_the_config_asks_for_them():
    found = InstanceData(bboxes=draw()[1], labels=torch.zeros(12).long())
    logits = draw()[0].unsqueeze(1) - 0.5
    metas = [{"ori_shape": SHAPE}]
    bitmaps = predict_masks([logits], [found], metas, RoITestCfg())[0].masks
    runs = predict_masks([logits], [found], metas, RoITestCfg(rle_masks=True))[0].masks
    assert [one["size"] for one in runs] == [list(SHAPE)] * 12
    assert np.array_equal(decode_run_lengths(runs), bitmaps.numpy())
    with pytest.raises(ValueError, match=r"rle_masks needs a mask_thr_binary of at least 0, got -1"):
        RoITestCfg(rle_masks=True, mask_thr_binary=-1)
