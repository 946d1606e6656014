"""Suppression that remembers who suppressed whom."""

import sys

import numpy as np
import pytest
import torch
from reference import arguments, assert_same, cases

from detkit.ops import nms, nms_heads, nms_match


def random_dets(count, seed, size=40.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size
    extent = torch.rand(count, 2, generator=generator) * 15 + 5
    return torch.cat([corner, corner + extent, torch.rand(count, 1, generator=generator)], dim=1)


def greedy(dets, threshold):
    """Groups by the textbook loop."""
    left = dets[:, 4].argsort(descending=True).tolist()
    groups = []
    while left:
        head, *left = left
        group = [head]
        for other in list(left):
            a, b = dets[head, :4].tolist(), dets[other, :4].tolist()
            width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            inter = max(width, 0) * max(height, 0)
            area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
            if inter / (area - inter) >= threshold:
                group.append(other)
                left.remove(other)
        groups.append(group)
    return groups


@pytest.mark.parametrize("case", cases("nms/nms_match"))
def test_reference_cases(case):
    assert_same(nms_match(**arguments(case["inputs"])), case["outputs"]["out"], 0, 0)


def test_by_hand():
    # Boxes 0 and 1 share 5 of 15: IoU 1/3. Box 2 is apart.
    dets = torch.tensor([[0.0, 0, 10, 1, 0.5], [5, 0, 15, 1, 0.9], [50, 0, 60, 1, 0.7]])
    assert [group.tolist() for group in nms_match(dets, 0.3)] == [[1, 0], [2]]
    assert [group.tolist() for group in nms_match(dets, 0.4)] == [[1], [2], [0]]


def test_an_overlap_of_just_the_threshold_suppresses():
    # MMCV's nms_match suppresses from the threshold on, its nms above it.
    dets = torch.tensor([[0.0, 0, 2, 1, 0.9], [0, 0, 1, 1, 0.8]])
    assert [group.tolist() for group in nms_match(dets, 0.5)] == [[0, 1]]


def test_what_is_suppressed_suppresses_nothing():
    # 1 would suppress 2, but 0 suppresses 1 first.
    dets = torch.tensor([[0.0, 0, 10, 1, 0.9], [4, 0, 14, 1, 0.8], [8, 0, 18, 1, 0.7]])
    assert [group.tolist() for group in nms_match(dets, 0.4)] == [[0, 1], [2]]


@pytest.mark.parametrize("seed", range(4))
def test_is_the_greedy_loop(seed):
    dets = random_dets(60, seed)
    assert [group.tolist() for group in nms_match(dets, 0.3)] == greedy(dets, 0.3)


def test_heads_are_what_nms_keeps():
    dets = random_dets(300, 0, size=100.0)
    heads = nms_heads(dets[:, :4], dets[:, 4], 0.4)
    _, kept = nms(dets[:, :4], dets[:, 4], 0.4)
    assert torch.equal(heads.unique(), kept.sort().values)


def test_a_batch_is_its_images_and_chunks_are_the_whole(monkeypatch):
    dets = torch.stack([random_dets(50, seed) for seed in range(3)])
    valid = torch.rand(3, 50, generator=torch.Generator().manual_seed(0)) < 0.6
    together = nms_heads(dets[..., :4], dets[..., 4], 0.3, valid)
    monkeypatch.setattr(sys.modules[nms_match.__module__], "CHUNK_ELEMENTS", 300)
    for index in range(3):
        assert torch.equal(nms_heads(dets[index, :, :4], dets[index, :, 4], 0.3, valid[index]), together[index])


def test_what_takes_no_part_might_as_well_be_missing():
    dets = random_dets(50, 3)
    valid = torch.arange(50) % 3 > 0
    heads = nms_heads(dets[:, :4], dets[:, 4], 0.3, valid)
    inside = valid.nonzero().squeeze(1)
    assert torch.equal(heads[valid], inside[nms_heads(dets[valid, :4], dets[valid, 4], 0.3)])
    assert torch.equal(heads[~valid], torch.arange(50)[~valid])


def test_arrays_give_arrays():
    dets = random_dets(20, 1)
    for array, tensor in zip(nms_match(dets.numpy(), 0.3), nms_match(dets, 0.3), strict=True):
        np.testing.assert_array_equal(array, tensor.numpy())


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"nms_match: dets must be \(D, 5\).*got \(3, 4\)"):
        nms_match(torch.zeros(3, 4), 0.5)


def test_of_nothing_there_are_no_heads():
    assert nms_heads(torch.zeros(2, 0, 4), torch.zeros(2, 0), 0.5).shape == (2, 0)
