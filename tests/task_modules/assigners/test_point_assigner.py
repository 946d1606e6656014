import pytest
import torch
from assigner_laws import (
    Scene,
    assert_absent_priors_change_nothing,
    assert_batch_is_its_images,
    assert_chunks_change_nothing,
    assert_no_sync_and_traceable,
    assert_order_of_objects_is_free,
    assert_reference,
    assert_regions_add_no_positive,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.structures import InstanceData
from reference import cases

from detkit.task_modules import PointAssigner


def points(*levels):
    """Points of levels (stride, number of rows and of columns)."""
    found = []
    for stride, count in levels:
        y, x = torch.meshgrid(torch.arange(count) * stride, torch.arange(count) * stride, indexing="ij")
        found.append(torch.stack([x.flatten(), y.flatten(), torch.full((count * count,), stride)], dim=1))
    return torch.cat(found).float()


def scene(seed, counts=(4, 0, 2)):
    return Scene.random(points((8, 16), (16, 8)), list(counts), seed)


@pytest.mark.parametrize("case", cases("assigners/PointAssigner"))
def test_reference(case):
    assert_reference(case)


def test_by_hand():
    # 32 x 32 at scale 4 is level 3, of stride 8: of the four points around (13, 9) the nearest three,
    # at distances (3, 1), (5, 1), (3, 7) and (5, 7).
    gt = InstanceData(bboxes=torch.tensor([[-3.0, -7, 29, 25]]), labels=torch.tensor([5]))
    result = PointAssigner(scale=4, pos_num=3).assign(InstanceData(priors=points((8, 3), (16, 2))), gt)
    #                                  y=0: x=0, 8, 16   y=8            y=16        stride 16
    assert result.gt_inds.tolist() == [0, 0, 0] + [0, 1, 1] + [0, 0, 1] + [0] * 4
    assert result.labels.tolist() == [-1, -1, -1] + [-1, 5, 5] + [-1, -1, 5] + [-1] * 4
    assert result.max_overlaps is None


def test_the_nearer_object_gets_the_point_and_of_equal_ones_the_first():
    centres = torch.tensor([[10.0, 8], [9, 8], [9, 8]])
    gt = InstanceData(bboxes=torch.cat([centres - 16, centres + 16], dim=1), labels=torch.arange(3))
    result = PointAssigner(pos_num=1).assign(InstanceData(priors=points((8, 3))), gt)
    assert result.gt_inds.tolist() == [0, 0, 0, 0, 2, 0, 0, 0, 0]


@pytest.mark.parametrize(("size", "level"), [(1.0, 0), (1000.0, 1)])
def test_objects_beyond_the_levels(size, level):
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, size, size]]), labels=torch.tensor([0]))
    result = PointAssigner(pos_num=1).assign(InstanceData(priors=points((8, 3), (16, 2))), gt)
    assert (result.gt_inds[:9] > 0).any() == (level == 0)
    assert (result.gt_inds[9:] > 0).any() == (level == 1)


def test_a_level_of_fewer_points_gives_all():
    """MMDetection raises an error there."""
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 64, 64]]), labels=torch.tensor([0]))
    result = PointAssigner(pos_num=9).assign(InstanceData(priors=points((8, 3), (16, 2))), gt)
    assert result.gt_inds.tolist() == [0] * 9 + [1] * 4


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), pos_num=st.integers(1, 5))
def test_laws(seed, pos_num, monkeypatch):
    use, images = PointAssigner(pos_num=pos_num), scene(seed)
    assert_batch_is_its_images(use, images)
    assert_chunks_change_nothing(use, images, 1, monkeypatch)
    assert_regions_add_no_positive(use, images)
    assert_absent_priors_change_nothing(use, images, seed)
    assert_order_of_objects_is_free(use, images, seed)


@pytest.mark.parametrize("counts", [(0,), (1,), (400,), (0, 0)])
def test_nothing_one_and_more_objects_than_points(counts):
    result = scene(3, counts).assign(PointAssigner())
    assert result.gt_inds.shape == result.labels.shape == (len(counts), 320)
    assert (result.gt_inds > 0).any() == (counts[0] > 0)


def test_no_points():
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 4, 4]]), labels=torch.tensor([0]))
    assert PointAssigner().assign(InstanceData(priors=torch.zeros(0, 3)), gt).gt_inds.shape == (0,)


def test_no_sync():
    assert_no_sync_and_traceable(PointAssigner(), scene(0))


def test_wrong_count():
    with pytest.raises(ValueError, match="pos_num must be a whole number of at least 1, got 0"):
        PointAssigner(pos_num=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0}, "PointAssigner: scale must be a number above 0, got 0"),
        ({"scale": "4"}, "PointAssigner: scale must be a number above 0, got '4'"),
        ({"pos_num": 1.5}, "PointAssigner: pos_num must be a whole number of at least 1, got 1.5"),
        ({"pos_num": "3"}, "PointAssigner: pos_num must be a whole number of at least 1, got '3'"),
    ],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        PointAssigner(**arguments)
