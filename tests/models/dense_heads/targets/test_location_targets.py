"""Regions of objects in which anchors are wanted, and in which nobody asks."""

import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync

from detkit.models.dense_heads.targets.location_targets import location_targets
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import calc_region

SIZES, STRIDES, BASE = [(8, 8), (4, 4), (2, 2)], [4, 8, 16], 8


def truth_of(*images):
    return GroundTruth.from_instances(
        [
            InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.zeros(len(boxes)).long())
            for boxes in images
        ]
    )


def targets_of(truth, center_ratio=0.2, ignore_ratio=0.5, sizes=SIZES):
    with NoSync():
        return location_targets(truth, sizes, STRIDES, BASE, center_ratio, ignore_ratio)


def levels_of(values, sizes=SIZES):
    return [level.view(size) for level, size in zip(values[0].split([h * w for h, w in sizes]), sizes, strict=True)]


def test_regions_by_hand():
    """A side of 16 is that of the squares of the second level: 8 * 2. Cells there are 8 pixels.

    From 8 to 24 pixels are cells 1 to 3. The middle: round(1 + 0.4 * 2) = 2 to round(3 - 0.4 * 2) = 2; half of the
    object: round(1.5) = 2 (to even) to round(2.5) = 2. On the first level, cells 2 to 6: half is 3 to 5. On the
    last, cells 0.5 to 1.5: half is round(0.75) = 1 to round(1.25) = 1.
    """
    positive, weights = targets_of(truth_of([[8.0, 8, 24, 24]]))
    fine, middle, coarse = levels_of(positive)
    assert not fine.any()
    assert not coarse.any()
    assert middle.nonzero().tolist() == [[2, 2]]
    fine, middle, coarse = levels_of(weights)
    expected = torch.full((8, 8), 0.1)
    expected[3:6, 3:6] = 0
    torch.testing.assert_close(fine, expected)
    expected = torch.full((4, 4), 0.1)
    expected[2, 2] = 1
    torch.testing.assert_close(middle, expected)
    torch.testing.assert_close(coarse, torch.tensor([[0.1, 0.1], [0.1, 0.0]]))


def test_where_regions_overlap_the_last_object_holds():
    # Sides of 22 and 12 are nearer to 16, the side of the second level's squares, than to 8 and 32 (as logarithms).
    large, small = [0.0, 0, 22, 22], [10.0, 10, 22, 22]
    for boxes in ([large, small], [small, large]):
        positive, weights = targets_of(truth_of([boxes[0], boxes[1]]), 0.2, 0.9)
        alone, alone_weights = targets_of(truth_of([boxes[1]]), 0.2, 0.9)
        first, _ = targets_of(truth_of([boxes[0]]), 0.2, 0.9)
        assert (positive == (alone | first)).all()
        middle, of_last = levels_of(weights)[1], levels_of(alone_weights)[1]
        assert (middle[of_last != 0.1] == of_last[of_last != 0.1]).all()


def test_objects_beyond_the_levels_belong_to_the_first_and_the_last():
    positive, _ = targets_of(truth_of([[1.0, 1, 2, 2], [0.0, 0, 32, 32], [5.0, 5, 5, 5]]))
    fine, middle, coarse = levels_of(positive)
    assert fine.nonzero().tolist() == [[0, 0], [1, 1]]
    assert not middle.any()
    assert coarse.any()


@pytest.mark.parametrize("images", [([],), ([], [])])
def test_without_objects_all_is_negative(images):
    positive, weights = targets_of(truth_of(*images))
    assert positive.shape == weights.shape == (len(images), 84)
    assert not positive.any()
    assert (weights == 0.1).all()


def plain_loop(boxes, center_ratio, ignore_ratio, sizes):
    """As the rule says it, object after object."""
    positive = [torch.zeros(size, dtype=torch.bool) for size in sizes]
    weights, beside = ([torch.full(size, value) for size in sizes] for value in (-1.0, 0.0))

    def fill(levels, level, box, ratio, value):
        x1, y1, x2, y2 = calc_region(box / STRIDES[level], (1 - ratio) / 2, sizes[level])
        levels[level][y1 : y2 + 1, x1 : x2 + 1] = value

    for box in boxes:
        side = ((box[2] - box[0]) * (box[3] - box[1])).sqrt()
        level = int((side.log2() - torch.tensor(float(BASE)).log2() + 0.5).floor().clamp(0, len(sizes) - 1))
        fill(positive, level, box, center_ratio, True)
        fill(weights, level, box, ignore_ratio, 0.0)
        fill(weights, level, box, center_ratio, 1.0)
        for other in {level - 1, level + 1} & set(range(len(sizes))):
            fill(beside, other, box, ignore_ratio, 1.0)
    rest = [torch.where(near > 0, 0.0, 0.1) for near in beside]
    return positive, [torch.where(own < 0, other, own) for own, other in zip(weights, rest, strict=True)]


@pytest.mark.parametrize(("center_ratio", "ignore_ratio"), [(0.2, 0.5), (0.5, 0.8), (1.0, 1.0)])
def test_all_objects_at_once_are_as_one_after_the_other(center_ratio, ignore_ratio, monkeypatch):
    monkeypatch.setattr("detkit.task_modules.assigners.chunks.CPU_CHUNK", 400)
    generator = torch.Generator().manual_seed(0)
    sizes = [(8, 12), (4, 6), (2, 3)]
    images = []
    for count in (12, 0, 5):
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([40.0, 26])
        side = 1 + torch.rand(count, 2, generator=generator) * 30
        images.append(torch.cat([corner, corner + side], dim=1))
    positive, weights = targets_of(truth_of(*[boxes.tolist() for boxes in images]), center_ratio, ignore_ratio, sizes)
    for number, boxes in enumerate(images):
        of_positive, of_weights = plain_loop(boxes, center_ratio, ignore_ratio, sizes)
        for level in range(len(sizes)):
            assert (levels_of(positive[number : number + 1], sizes)[level] == of_positive[level]).all()
            torch.testing.assert_close(levels_of(weights[number : number + 1], sizes)[level], of_weights[level])
