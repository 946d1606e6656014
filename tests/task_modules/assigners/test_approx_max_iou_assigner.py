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
    boxes,
    instances,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.structures import InstanceData
from reference import cases

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import ApproxMaxIoUAssigner, MaxIoUAssigner


def shapes(priors):
    return torch.stack([priors, priors + torch.tensor([0.0, 4, 0, -4]), priors + torch.tensor([3.0, 0, -3, 0])], dim=1)


def scene(seed, counts=(4, 0, 2)):
    priors = boxes(60, seed + 1)
    inputs = {"approxs": shapes(priors).expand(len(counts), 60, 3, 4)}
    return Scene.random(priors, list(counts), seed, inputs=inputs)


def assigner(**changes):
    return ApproxMaxIoUAssigner(**{"pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "ignore_iof_thr": 0.5, **changes})


@pytest.mark.parametrize("case", cases("assigners/ApproxMaxIoUAssigner"))
def test_reference(case):
    assert_reference(case)


def test_by_hand():
    priors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    approxs = torch.tensor([[[0.0, 0, 10, 4], [0, 0, 10, 7]], [[50, 50, 60, 60], [0, 0, 10, 3]]])
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([7]))
    result = assigner().assign(InstanceData(priors=priors, approxs=approxs), gt)
    assert result.gt_inds.tolist() == [1, 0]
    torch.testing.assert_close(result.max_overlaps, torch.tensor([0.7, 0.3]))


def test_with_one_shape_it_is_max_iou_assigner():
    priors, gt, region = InstanceData(priors=boxes(60, 1)), instances(4, 0), instances(2, 5)
    own = assigner().assign(InstanceData(priors=priors.priors, approxs=priors.priors.unsqueeze(1)), gt, region)
    other = MaxIoUAssigner(pos_iou_thr=0.5, neg_iou_thr=0.4, ignore_iof_thr=0.5).assign(priors, gt, region)
    assert torch.equal(own.gt_inds, other.gt_inds)
    assert torch.equal(own.max_overlaps, other.max_overlaps)


def test_shapes_may_be_shared_by_the_images():
    images = scene(0)
    truth = GroundTruth.from_instances(images.objects, images.regions)
    shared = assigner().assign_batch(images.priors, truth, approxs=shapes(images.priors))
    assert torch.equal(shared.gt_inds, images.assign(assigner()).gt_inds)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), size=st.integers(1, 40), wrt_candidates=st.booleans(), take_all=st.booleans())
def test_laws(seed, size, wrt_candidates, take_all, monkeypatch):
    use, images = assigner(ignore_wrt_candidates=wrt_candidates, gt_max_assign_all=take_all), scene(seed)
    assert_batch_is_its_images(use, images)
    assert_chunks_change_nothing(use, images, size, monkeypatch)
    assert_absent_priors_change_nothing(use, images, seed)
    by_threshold = assigner(match_low_quality=False)
    assert_regions_add_no_positive(by_threshold, images)
    assert_order_of_objects_is_free(by_threshold, images, seed)


@pytest.mark.parametrize("counts", [(0,), (1,), (90,), (0, 0)])
def test_nothing_one_and_more_objects_than_priors(counts):
    result = scene(3, counts).assign(assigner())
    assert result.gt_inds.shape == result.labels.shape == result.max_overlaps.shape == (len(counts), 60)
    assert (result.gt_inds > 0).any() == (counts[0] > 0)


def test_no_priors():
    pred = InstanceData(priors=torch.zeros(0, 4), approxs=torch.zeros(0, 3, 4))
    assert assigner().assign(pred, instances(2, 0)).gt_inds.shape == (0,)


def test_no_sync():
    assert_no_sync_and_traceable(assigner(), scene(0))


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"ApproxMaxIoUAssigner: neg_iou_thr must be .* got 0.7"):
        assigner(neg_iou_thr=0.7)
    truth = GroundTruth.from_instances([instances(1, 0)])
    with pytest.raises(ValueError, match=r"5 priors, but approxs of shape \(4, 1, 4\)"):
        assigner().assign_batch(boxes(5, 0), truth, approxs=boxes(4, 0).unsqueeze(1))
