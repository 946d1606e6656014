import re

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
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.structures import InstanceData
from reference import cases

from detkit.task_modules import GridAssigner


def scene(seed, counts=(4, 0, 2)):
    generator = torch.Generator().manual_seed(seed)
    flags = torch.rand(len(counts), 60, generator=generator) < 0.4
    return Scene.random(boxes(60, seed + 1), list(counts), seed, inputs={"responsible_flags": flags})


def assigner(**changes):
    return GridAssigner(**{"pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0.1, **changes})


@pytest.mark.parametrize("case", cases("assigners/GridAssigner"))
def test_reference(case):
    assert_reference(case)


@pytest.mark.parametrize("neg_iou_thr", [0.5, (-1.0, 0.5)])
def test_by_hand(neg_iou_thr):
    # IoU with the one object: 1, 0.6, 0.5, 0.55, 0
    priors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 5], [0, 0, 10, 5.5], [50, 50, 60, 60]])
    gt = InstanceData(bboxes=priors[:1].clone(), labels=torch.tensor([7]))
    flags = torch.tensor([0, 1, 0, 0, 1], dtype=torch.uint8)
    result = assigner(neg_iou_thr=neg_iou_thr, pos_iou_thr=0.7).assign(
        InstanceData(priors=priors, responsible_flags=flags), gt
    )
    # The first matches but its cell is not responsible; the second is the highest of a responsible cell.
    assert result.gt_inds.tolist() == [-1, 1, 0, -1, 0]
    assert result.labels.tolist() == [-1, 7, -1, -1, -1]
    torch.testing.assert_close(result.max_overlaps, torch.tensor([-1, 0.6, -1, -1, 0]))


def test_an_int_threshold_is_a_number_like_any_other():
    """MMDetection finds no negatives with one."""
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([0]))
    pred = InstanceData(priors=torch.tensor([[50.0, 50, 60, 60]]), responsible_flags=torch.tensor([False]))
    assert GridAssigner(pos_iou_thr=1, neg_iou_thr=0).assign(pred, gt).gt_inds.tolist() == [0]


def test_of_equal_priors_all_or_the_first():
    priors = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 5]])
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([0]))
    pred = InstanceData(priors=priors, responsible_flags=torch.ones(2))
    assert assigner(pos_iou_thr=0.7).assign(pred, gt).gt_inds.tolist() == [1, 1]
    assert assigner(pos_iou_thr=0.7, gt_max_assign_all=False).assign(pred, gt).gt_inds.tolist() == [1, -1]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), size=st.integers(1, 40), take_all=st.booleans())
def test_laws(seed, size, take_all, monkeypatch):
    use, images = assigner(gt_max_assign_all=take_all), scene(seed)
    assert_batch_is_its_images(use, images)
    assert_chunks_change_nothing(use, images, size, monkeypatch)
    assert_regions_add_no_positive(use, images)
    assert_absent_priors_change_nothing(use, images, seed)
    # By rule 3, of objects that claim the same prior, the last wins.
    assert_order_of_objects_is_free(assigner(min_pos_iou=1.0), images, seed)


@pytest.mark.parametrize("counts", [(0,), (1,), (90,), (0, 0)])
def test_nothing_one_and_more_objects_than_priors(counts):
    result = scene(3, counts).assign(assigner())
    assert result.gt_inds.shape == result.labels.shape == result.max_overlaps.shape == (len(counts), 60)
    assert (result.gt_inds > 0).any() == (counts[0] > 0)


def test_no_priors():
    gt = InstanceData(bboxes=boxes(2, 0), labels=torch.arange(2))
    pred = InstanceData(priors=torch.zeros(0, 4), responsible_flags=torch.zeros(0, dtype=torch.uint8))
    assert assigner().assign(pred, gt).gt_inds.shape == (0,)


def test_no_sync():
    assert_no_sync_and_traceable(assigner(), scene(0))


def test_wrong_threshold():
    with pytest.raises(ValueError, match=r"neg_iou_thr must be a number or an interval \(lo, hi\), got \(0.5, 0.2\)"):
        assigner(neg_iou_thr=(0.5, 0.2))


@pytest.mark.parametrize("threshold", ["0.4", None, ("0.1", "0.4"), (0.4,)])
def test_a_threshold_that_is_no_number(threshold):
    with pytest.raises(
        ValueError,
        match=re.escape(f"GridAssigner: neg_iou_thr must be a number or an interval (lo, hi), got {threshold!r}"),
    ):
        assigner(neg_iou_thr=threshold)
