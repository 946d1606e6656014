"""Gaussian targets: the radius by its definition, peaks by hand, the batch against one by one, MMDetection 3.3.0."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_sync import NoSync
from reference import arguments, assert_same, cases

from detkit.models.dense_heads.targets import gaussian_target
from detkit.models.dense_heads.targets.gaussian_target import gaussian_heatmaps, gaussian_radius, gen_gaussian_target
from detkit.structures.boxes import bbox_overlaps


@pytest.mark.parametrize("case", [*cases("boxes/gaussian_radius"), *cases("boxes/gen_gaussian_target")])
def test_reference(case):
    function = getattr(gaussian_target, case["config"]["type"])
    assert_same(function(**arguments(case["inputs"])), case["outputs"]["out"], 1e-5, 1e-5)


@given(height=st.floats(2, 200), width=st.floats(2, 200), overlap=st.floats(0.1, 0.9))
@settings(max_examples=50, deadline=None)
def test_corners_within_the_radius_leave_the_overlap(height, width, overlap):
    radius = gaussian_radius((height, width), overlap)
    box = torch.tensor([[0.0, 0, width, height]], dtype=torch.float64)
    shift = torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1], [-1, -1, 1, 1]], dtype=torch.float64)
    overlaps = bbox_overlaps(box, box + radius * shift)
    # All keep the overlap, and one of them just so.
    torch.testing.assert_close(overlaps.min(), torch.tensor(overlap, dtype=torch.float64))


def test_radii_of_many_sizes_are_those_one_by_one():
    height, width = torch.tensor([4.0, 30.0, 7.5]), torch.tensor([9.0, 2.0, 7.5])
    radii = gaussian_radius((height, width), 0.3)
    expected = [gaussian_radius(size, 0.3) for size in zip(height.tolist(), width.tolist(), strict=True)]
    torch.testing.assert_close(radii, torch.tensor(expected))


def test_a_peak():
    # Radius 1: deviation (2 * 1 + 1) / 6 = 1/2, so exp(-2) beside the peak and exp(-4) at the corners
    heatmap = gen_gaussian_target(torch.zeros(4, 5), [1, 0], 1)
    assert heatmap[0, 1] == 1
    assert heatmap[0, 0] == heatmap[0, 2] == heatmap[1, 1] == pytest.approx(math.exp(-2))
    assert heatmap[1, 0] == heatmap[1, 2] == pytest.approx(math.exp(-4))
    assert heatmap[2:].sum() == heatmap[:, 3:].sum() == 0


def test_draws_in_place_the_higher_of_both():
    heatmap = torch.full((3, 3), 0.5)
    assert gen_gaussian_target(heatmap, torch.tensor([1, 1]), 1, k=0.75) is heatmap
    assert heatmap[1, 1] == 0.75
    assert heatmap[0, 0] == 0.5
    assert torch.equal(gen_gaussian_target(heatmap.clone(), [9, 9], 1), heatmap)  # far outside


def batch(seed, num_images=2, num_objects=7, num_classes=3, size=(12, 17)):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.stack([torch.randint(n, (num_images, num_objects), generator=generator) for n in size[::-1]], -1)
    radii = torch.randint(5, (num_images, num_objects), generator=generator)
    labels = torch.randint(num_classes, (num_images, num_objects), generator=generator)
    valid = torch.rand(num_images, num_objects, generator=generator) < 0.7
    return centers, radii, labels, valid, num_classes, size


def test_a_batch_is_its_objects_one_by_one(monkeypatch):
    centers, radii, labels, valid, num_classes, size = batch(0)
    expected = torch.zeros(2, num_classes, *size)
    for image in range(2):
        for index in range(7):
            if valid[image, index]:
                heatmap = expected[image, labels[image, index]]
                gen_gaussian_target(heatmap, centers[image, index].tolist(), int(radii[image, index]))
    heatmaps = gaussian_heatmaps(*batch(0))
    torch.testing.assert_close(heatmaps, expected)
    assert torch.equal(heatmaps == 1, expected == 1)  # the peaks are exact
    monkeypatch.setattr(gaussian_target, "MEMORY_BUDGET", 1)
    assert torch.equal(gaussian_heatmaps(*batch(0)), heatmaps)


@pytest.mark.parametrize("num_objects", [0, 3])
def test_nothing_draws_nothing(num_objects):
    centers, radii, labels, valid, num_classes, size = batch(0, num_objects=num_objects)
    heatmaps = gaussian_heatmaps(centers, radii, labels, valid & False, num_classes, size)
    assert torch.equal(heatmaps, torch.zeros(2, num_classes, *size))


def test_a_batch_waits_for_nothing_and_traces_as_a_whole():
    with NoSync():
        expected = gaussian_heatmaps(*batch(1))
        gaussian_radius((torch.rand(2, 3) + 1, torch.rand(2, 3) + 1), 0.5)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(gaussian_heatmaps, fullgraph=True, backend="eager")(*batch(1)), expected)
