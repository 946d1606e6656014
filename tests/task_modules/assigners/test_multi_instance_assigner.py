import pytest
import torch
from assigner_laws import (
    Scene,
    assert_chunks_change_nothing,
    assert_no_sync_and_traceable,
    assert_reference,
    boxes,
    instances,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.structures import InstanceData
from reference import arguments, case_named, cases

from detkit.registry import TASK_UTILS
from detkit.task_modules import MultiInstanceAssigner

# MMDetection cannot give a proposal two of one object; tested below.
WITHOUT_BUG = [case for case in cases("assigners/MultiInstanceAssigner") if case.id != "plain_one_gt"]


def scene(seed, counts=(4, 0, 2, 1)):
    return Scene.random(boxes(30, seed + 1), list(counts), seed)


def assigner(**changes):
    return MultiInstanceAssigner(**{"pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "match_low_quality": False, **changes})


@pytest.mark.parametrize("case", WITHOUT_BUG)
def test_reference(case):
    assert_reference(case)


def test_one_object_for_two_places():
    """MMDetection raises an error, or with an even number of proposals mixes their rows."""
    case = case_named("assigners/MultiInstanceAssigner", "plain_one_gt")
    result = TASK_UTILS.build(case["config"]).assign(**arguments(case["inputs"]))
    assert result.gt_inds.shape == result.labels.shape == result.max_overlaps.shape == (21, 2)
    assert not result.gt_inds.any()
    assert torch.equal(result.labels[:, 0], (result.max_overlaps[:, 0] >= 0.5).long())
    assert not result.labels[:, 1].any()
    assert not result.max_overlaps[:, 1].any()
    assert result.labels[20, 0] == 1


def test_by_hand():
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]]), labels=torch.zeros(2, dtype=torch.int64))
    region = InstanceData(bboxes=torch.tensor([[100.0, 0, 200, 100]]))
    priors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 7], [0, 0, 10, 2], [110, 0, 120, 10]])
    result = assigner().assign(InstanceData(priors=priors), gt, region)
    assert result.num_gts == 3
    # IoU with the two: (1, 0.8), (0.7, 0.875), (0.2, 0.25); the last is inside the region, which is no object.
    assert result.gt_inds[:4].tolist() == [[0, 1], [1, 0], [1, 0], [2, 1]]
    assert result.labels[:4].tolist() == [[1, 1], [1, 1], [0, 0], [-1, 0]]
    torch.testing.assert_close(
        result.max_overlaps[:4], torch.tensor([[1, 0.8], [0.875, 0.7], [0.25, 0.2], [1, 0]])
    )  # the boxes themselves are proposals too
    assert result.gt_inds[4:].tolist() == [[0, 1], [1, 0], [2, 1]]
    assert result.labels[4:].tolist() == [[1, 1], [1, 1], [-1, 0]]


def test_a_region_takes_no_place_of_an_object_at_the_threshold():
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([0]))
    priors = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 4]])
    result = assigner(num_instance=1).assign(InstanceData(priors=priors), gt, InstanceData(bboxes=gt.bboxes))
    assert result.gt_inds[:2].tolist() == [[0], [1]]
    assert result.labels[:2].tolist() == [[1], [-1]]


def test_between_the_thresholds():
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([4]))
    priors = torch.tensor([[0.0, 0, 10, 7], [0, 0, 10, 5], [0, 0, 10, 2]])
    use = assigner(num_instance=1, pos_iou_thr=0.6, neg_iou_thr=0.3)
    assert use.assign(InstanceData(priors=priors), gt).labels.flatten().tolist() == [1, 5, 0, 1]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), size=st.integers(1, 40), count=st.integers(1, 3))
def test_laws(seed, size, count, monkeypatch):
    use, images = assigner(num_instance=count), scene(seed)
    assert_chunks_change_nothing(use, images, size, monkeypatch)
    batch = images.assign(use)
    for index, (objects, regions) in enumerate(zip(images.objects, images.regions, strict=True)):
        alone = images.image(index).assign(use)
        num_gts, num_regions = len(objects), 0 if regions is None else len(regions)
        rows = torch.cat([torch.arange(30), 30 + torch.arange(num_gts), 34 + torch.arange(num_regions)])
        assert torch.equal(batch.labels[index][rows], alone.labels[0])
        assert torch.equal(batch.max_overlaps[index][rows], alone.max_overlaps[0])
        # The regions' numbers follow those of the padded objects.
        own = batch.gt_inds[index][rows]
        assert torch.equal(torch.where(own >= 4, own - 4 + num_gts, own), alone.gt_inds[0])
        absent = torch.ones(36, dtype=torch.bool)
        absent[rows] = False
        assert (batch.labels[index][absent] == -1).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_permuting_objects_permutes_the_assignment(seed):
    images = scene(seed, (5,))
    pred, gt, region = InstanceData(priors=images.priors), images.objects[0], images.regions[0]
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    first, second = assigner().assign(pred, gt, region), assigner().assign(pred, gt[order], region)
    assert torch.equal(first.labels[:30], second.labels[:30])
    assert torch.equal(first.max_overlaps[:30], second.max_overlaps[:30])
    overlapping = (first.max_overlaps[:30] > 0) & (first.gt_inds[:30] < 5)
    assert torch.equal(order[second.gt_inds[:30][overlapping]], first.gt_inds[:30][overlapping])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_region_adds_no_positive(seed):
    images = scene(seed, (3,))
    pred, gt = InstanceData(priors=images.priors), images.objects[0]
    without, with_region = assigner().assign(pred, gt), assigner().assign(pred, gt, images.regions[0])
    assert not ((with_region.labels[:30] > 0) & (without.labels[:30] <= 0)).any()


def test_an_image_without_boxes_beside_others_is_all_background():
    result = Scene(boxes(8, 0), [instances(0, 0), instances(3, 1)], [None, None]).assign(assigner())
    assert not result.labels[0, :8].any()
    assert (result.labels[0, 8:] == -1).all()


def test_proposals_that_take_no_part():
    valid = torch.arange(30).repeat(4, 1) % 3 > 0
    result, every = scene(0).assign(assigner(), valid), scene(0).assign(assigner())
    assert (result.labels[:, :30][~valid] == -1).all()
    assert torch.equal(result.labels[:, :30][valid], every.labels[:, :30][valid])


def test_no_proposals():
    result = assigner().assign(InstanceData(priors=torch.zeros(0, 4)), instances(3, 0))
    assert result.gt_inds.shape == (3, 2)


def test_no_sync():
    assert_no_sync_and_traceable(assigner(), scene(0))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="num_instance must be at least 1, got 0"):
        assigner(num_instance=0)
    with pytest.raises(ValueError, match=r"MultiInstanceAssigner: neg_iou_thr must be .* got 0.7"):
        assigner(neg_iou_thr=0.7)
