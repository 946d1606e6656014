"""RoI extraction from a pyramid: levels by hand, and the two ways to the same features."""

import pytest
import torch
from no_sync import NoSync

from detkit.models.roi_heads.roi_extractors.pooling import (
    _pool_everywhere,
    _pool_groups,
    build_roi_layers,
    pool_by_level,
    roi_levels,
    scale_rois,
)

STRIDES = [4, 8, 16]


def pyramid():
    torch.manual_seed(0)
    return [torch.rand(2, 3, 64 // stride, 96 // stride, requires_grad=True) for stride in STRIDES]


def rois(count=40):
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(count, 2, generator=generator) * 60
    size = torch.rand(count, 2, generator=generator) ** 2 * 80
    image = torch.randint(0, 2, (count, 1), generator=generator).float()
    return torch.cat([image, corner, corner + size], dim=1)


def test_levels_double_with_the_size():
    sides = torch.tensor([0.0, 10.0, 111.9, 112.1, 223.9, 224.1, 10000.0])
    boxes = torch.stack([torch.zeros(7), torch.zeros(7), torch.zeros(7), sides, sides], dim=1)
    assert roi_levels(boxes, 4, 56).tolist() == [0, 0, 0, 1, 1, 2, 3]


def test_a_box_inside_out_is_of_the_first_level():
    assert roi_levels(torch.tensor([[0.0, 50, 0, 10, 40]]), 4, 56).tolist() == [0]


def test_regions_grow_around_their_centres():
    assert scale_rois(torch.tensor([[1.0, 10, 20, 30, 60]]), 1.5).tolist() == [[1.0, 5.0, 10.0, 35.0, 70.0]]


@pytest.mark.parametrize(
    "layer",
    [
        {"type": "RoIAlign", "output_size": 3, "sampling_ratio": 0},
        {"type": "RoIAlign", "output_size": 3, "sampling_ratio": 2, "aligned": False},
        {"type": "RoIAlign", "output_size": 3, "sampling_ratio": 2, "pool_mode": "max"},
        {"type": "RoIPool", "output_size": 3},
    ],
    ids=["adaptive", "plain", "max", "pool"],
)
def test_pooling_everywhere_is_pooling_by_groups(layer):
    """What a device does, which must not wait, and what a CPU does, to which that would be dear."""
    layers, boxes = build_roi_layers(layer, STRIDES), rois()
    levels = roi_levels(boxes, len(STRIDES), 14)
    assert set(levels.tolist()) == {0, 1, 2}
    results = []
    for pool in (_pool_everywhere, _pool_groups, pool_by_level):
        feats = pyramid()
        out = pool(feats, boxes, levels, layers)
        weight = torch.linspace(-1, 1, out.numel()).view_as(out)
        results.append((out.detach(), *torch.autograd.grad((out * weight).sum(), feats)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_pooling_everywhere_waits_for_nothing():
    layers, boxes = build_roi_layers({"type": "RoIAlign", "output_size": 3}, STRIDES), rois()
    with NoSync():
        _pool_everywhere(pyramid(), boxes, roi_levels(boxes, 3, 14), layers).sum().backward()


def test_no_regions():
    layers = build_roi_layers({"type": "RoIAlign", "output_size": 3}, STRIDES)
    for pool in (_pool_everywhere, _pool_groups):
        assert pool(pyramid(), rois(0), torch.zeros(0).long(), layers).shape == (0, 3, 3, 3)
