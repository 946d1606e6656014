"""FoveaBox's rule by hand; pieces, batches, wrong arguments."""

from unittest import mock

import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import FoveaAssigner, MlvlPointGenerator
from detkit.task_modules.assigners import chunks

SIZES = [(8, 8), (4, 4)]


def objects(*boxes):
    return InstanceData(bboxes=torch.tensor(boxes).view(-1, 4), labels=torch.arange(len(boxes)))


def scene():
    """Strides 8 and 16; a large object and a small one in its middle, none, one at the border."""
    points = torch.cat(MlvlPointGenerator([8, 16]).grid_priors(SIZES, with_stride=True))
    images = [objects([0.0, 0, 64, 64], [24, 24, 40, 40]), objects(), objects([50.0, 8, 64, 24])]
    return points, GroundTruth.from_instances(images)


def assigned(ranges=((1, 100), (1, 100)), sigma=0.5):
    points, truth = scene()
    gt_inds = FoveaAssigner(ranges, sigma).assign_batch(points, truth, featmap_sizes=SIZES).gt_inds
    return gt_inds[:, :64].view(3, 8, 8), gt_inds[:, 64:].view(3, 4, 4)


def test_by_hand():
    fine, coarse = assigned()
    # Half of 64 around 32: pixels 16 to 48, cells 2 to 5. Half of 16 around 32: 28 to 36, the centres of cells 3 and 4
    # of stride 8, and between two centres of stride 16.
    assert fine[0, 3:5, 3:5].eq(2).all()
    assert fine[0, 2:6, 2:6].eq(1).sum() == 12
    assert (fine[0] > 0).sum() == 16
    assert coarse[0, 1:3, 1:3].eq(1).all()
    assert (coarse[0] > 0).sum() == 4
    assert not fine[1].any()


def test_the_smaller_object_wins():
    fine, coarse = assigned(sigma=1.0)
    # The small object, pixels 24 to 40, has cells 3 and 4; of stride 16 its sides fall on cell 1's and 2's centres.
    assert fine[0, 3:5, 3:5].eq(2).all()
    assert fine[0].eq(1).sum() == 64 - 4
    assert coarse[0, 1:3, 1:3].eq(2).all()


def test_of_equal_objects_the_last_counts():
    points, _ = scene()
    truth = GroundTruth.from_instances([objects([0.0, 0, 64, 64], [0, 0, 64, 64])])
    gt_inds = FoveaAssigner([(1, 100), (1, 100)]).assign_batch(points, truth, featmap_sizes=SIZES).gt_inds
    assert set(gt_inds.unique().tolist()) == {0, 2}


def test_levels_have_ranges_of_their_own():
    fine, coarse = assigned(((1, 32), (32, 100)), sigma=1.0)
    assert set(fine[0].unique().tolist()) == {0, 2}
    assert set(coarse[0].unique().tolist()) == {1}


def test_pieces_and_batches_change_nothing():
    points, truth = scene()
    assigner = FoveaAssigner([(1, 100), (1, 100)], 0.9)
    whole = assigner.assign_batch(points, truth, featmap_sizes=SIZES)
    with mock.patch.object(chunks, "CPU_CHUNK", 1), NoSync():
        pieces = assigner.assign_batch(points, truth, featmap_sizes=SIZES)
    assert torch.equal(whole.gt_inds, pieces.gt_inds)
    for index in range(3):
        keep = truth.valid[index]
        alone = InstanceData(bboxes=truth.boxes[index][keep], labels=truth.labels[index][keep])
        single = assigner.assign(InstanceData(priors=points), alone, featmap_sizes=SIZES)
        assert torch.equal(whole.gt_inds[index], single.gt_inds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale_ranges": [(64, 1)]}, r"pairs \(least, greatest\)"),
        ({"scale_ranges": [(1, 64)], "sigma": 0}, "sigma must be above 0, got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FoveaAssigner(**arguments)


def test_levels_that_do_not_fit():
    points, truth = scene()
    with pytest.raises(ValueError, match="2 levels, but 1 scale_ranges"):
        FoveaAssigner([(1, 64)]).assign_batch(points, truth, featmap_sizes=SIZES)
    with pytest.raises(ValueError, match=r"\[64, 15\] cells do not add up to 80"):
        FoveaAssigner([(1, 64)] * 2).assign_batch(points, truth, featmap_sizes=[(8, 8), (3, 5)])
