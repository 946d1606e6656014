"""FCOS's rule by hand; pieces, batches, wrong arguments."""

from unittest import mock

import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import FCOSAssigner
from detkit.task_modules.assigners import chunks


def scene():
    """An 8 x 8 grid of stride 8; two nested objects, none, one."""
    x, y = torch.meshgrid(torch.arange(4, 64, 8.0), torch.arange(4, 64, 8.0), indexing="xy")
    points = torch.stack([x, y, torch.full_like(x, 8), torch.full_like(x, 8)], dim=-1).view(-1, 4)
    images = [
        InstanceData(bboxes=torch.tensor([[0.0, 0, 40, 40], [0, 0, 24, 24]]), labels=torch.tensor([0, 1])),
        InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0)),
        InstanceData(bboxes=torch.tensor([[8.0, 8, 60, 30]]), labels=torch.tensor([2])),
    ]
    return points, GroundTruth.from_instances(images)


def assigned(ends=(-1.0, 64.0), radius=None):
    points, truth = scene()
    result = FCOSAssigner([ends], radius).assign_batch(points, truth, num_level_priors=[64])
    return result.gt_inds.view(3, 8, 8)


def test_by_hand():
    gt_inds = assigned()
    # Of the nested objects the smaller has the first 3 x 3 cells, the larger the rest of its 5 x 5.
    assert gt_inds[0, :3, :3].eq(2).all()
    assert gt_inds[0, :5, :5].eq(1).sum() == 16
    assert gt_inds[0].eq(0).sum() == 64 - 25
    assert gt_inds[1].eq(0).all()


def test_the_range_is_of_the_farthest_side():
    gt_inds = assigned((-1.0, 30.0))
    # In 40 x 40, from (4, 4) the farthest side is 36 away; from (20, 20) it is 20.
    assert gt_inds[0, 4, 4] == 0
    assert gt_inds[0, 3, 3] == 1


def test_a_side_at_the_end_of_the_range_belongs_to_it():
    # From (20, 20), the farthest side of 24 x 24 is 20 away.
    for ends in ((-1.0, 20.0), (20.0, 64.0)):
        assert assigned(ends)[0, 2, 2] == 2


def test_the_centre_only():
    gt_inds = assigned(radius=0.6)
    # Within 4.8 pixels of (20, 20), the larger's centre, is one point; and one within 4.8 of (12, 12).
    assert (gt_inds[0] > 0).sum() == 2
    assert gt_inds[0, 2, 2] == 1
    assert gt_inds[0, 1, 1] == 2


def test_levels_have_ranges_of_their_own():
    points, truth = scene()
    both = torch.cat([points, points])
    result = FCOSAssigner([(-1, 22), (22, 64)]).assign_batch(both, truth, num_level_priors=[64, 64])
    fine, coarse = result.gt_inds.view(3, 2, 8, 8)[0]
    # From (12, 12) the sides of 24 x 24 are 12 away, from (4, 4) they are 20; those of 40 x 40 are 28 and 36 away.
    assert fine[1, 1] == 2
    assert coarse[1, 1] == 1
    assert coarse[0, 0] == 1


def test_pieces_and_batches_change_nothing():
    points, truth = scene()
    assigner = FCOSAssigner([(-1, 64)])
    whole = assigner.assign_batch(points, truth, num_level_priors=[64])
    with mock.patch.object(chunks, "CPU_CHUNK", 1), NoSync():
        pieces = assigner.assign_batch(points, truth, num_level_priors=[64])
    assert torch.equal(whole.gt_inds, pieces.gt_inds)
    for index in range(3):
        keep = truth.valid[index]
        objects = InstanceData(bboxes=truth.boxes[index][keep], labels=truth.labels[index][keep])
        single = assigner.assign(InstanceData(priors=points), objects, num_level_priors=[64])
        assert torch.equal(whole.gt_inds[index], single.gt_inds)
        assert torch.equal(whole.labels[index], single.labels)


def test_points_that_take_no_part_are_ignored():
    points, truth = scene()
    valid = torch.ones(3, 64, dtype=torch.bool)
    valid[0, :8] = False
    result = FCOSAssigner([(-1, 64)]).assign_batch(points, truth, valid, num_level_priors=[64])
    assert result.gt_inds[0, :8].eq(-1).all()
    assert (result.gt_inds[0, 8:] >= 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regress_ranges": [(64, -1)]}, r"pairs \(least, greatest\)"),
        ({"regress_ranges": [(1, 2, 3)]}, r"pairs \(least, greatest\)"),
        ({"regress_ranges": [(-1, 64)], "center_sample_radius": 0}, "center_sample_radius must be above 0, got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FCOSAssigner(**arguments)


def test_levels_that_do_not_fit():
    points, truth = scene()
    with pytest.raises(ValueError, match="2 levels of points, but 1 regress_ranges"):
        FCOSAssigner([(-1, 64)]).assign_batch(points, truth, num_level_priors=[32, 32])
    with pytest.raises(ValueError, match=r"\[63\] points do not add up to 64"):
        FCOSAssigner([(-1, 64)]).assign_batch(points, truth, num_level_priors=[63])
