"""TaskAlignedAssigner by hand."""

import pytest
import torch
from mmengine.structures import InstanceData

from detkit.task_modules import TaskAlignedAssigner


def scene():
    """Three priors in an object 10 x 10, one outside; all predict half of it but the second, which predicts it."""
    priors = torch.tensor([[2.0, 2, 4, 4], [4, 4, 6, 6], [6, 6, 8, 8], [20, 20, 24, 24]])
    bboxes = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10]])
    scores = torch.tensor([[0.5, 0.0], [0.8, 0.0], [0.6, 0.0], [0.9, 0.0]])
    return InstanceData(priors=priors, bboxes=bboxes, scores=scores)


GT = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([0]))


def test_by_hand():
    # Alignment score * IoU^2: 0.125, 0.8, 0.15, 0.9; the best is outside.
    result = TaskAlignedAssigner(topk=3).assign(scene(), GT, alpha=1, beta=2)
    assert result.gt_inds.tolist() == [0, 1, 1, 0]
    torch.testing.assert_close(result.assign_metrics, torch.tensor([0.0, 0.8, 0.15, 0.0]))
    torch.testing.assert_close(result.max_overlaps[1:3], torch.tensor([1.0, 0.5]))


def test_a_score_of_zero_is_no_candidate():
    pred = scene()
    pred.scores[1] = 0
    result = TaskAlignedAssigner(topk=4).assign(pred, GT)
    assert result.gt_inds.tolist() == [1, 0, 1, 0]


def test_a_prior_of_two_objects_goes_to_the_larger_overlap():
    """The second object scores higher there, and still the overlap decides; the metric is that of the winner."""
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]]), labels=torch.tensor([0, 1]))
    pred = InstanceData(
        priors=torch.tensor([[4.0, 4, 6, 6]]),
        bboxes=torch.tensor([[0.0, 0, 10, 10]]),
        scores=torch.tensor([[0.2, 0.9]]),
    )
    result = TaskAlignedAssigner(topk=13).assign(pred, gt, alpha=1, beta=1)
    assert result.gt_inds.tolist() == [1]
    torch.testing.assert_close(result.assign_metrics, torch.tensor([0.2]))


@pytest.mark.parametrize(("alpha", "beta"), [(1, 6), (2, 3), (0.5, 2.5), (0, 1), (8, 7)])
def test_exponents_whole_or_not(alpha, beta):
    result = TaskAlignedAssigner(topk=4).assign(scene(), GT, alpha=alpha, beta=beta)
    expected = torch.tensor([0.5**alpha * 0.5**beta, 0.8**alpha, 0.6**alpha * 0.5**beta, 0.0])
    torch.testing.assert_close(result.assign_metrics, expected)


def test_the_metric_is_zero_where_nothing_is_learnt_and_that_of_the_winner_elsewhere():
    """A score that is no number, of a class that no object here learns, stays out of it."""
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10], [0, 0, 9, 10]]), labels=torch.tensor([0, 1]))
    pred = scene()
    pred.scores[1, 1] = torch.nan
    metrics = TaskAlignedAssigner(topk=3).assign(pred, gt, alpha=1, beta=2).assign_metrics
    assert torch.isfinite(metrics).all()
    torch.testing.assert_close(metrics[1], torch.tensor(0.8))


def test_a_centre_closer_to_the_border_than_a_hundredth_is_outside():
    pred = InstanceData(
        priors=torch.tensor([[-1.0, 4, 1.01, 6], [-1, 4, 1.03, 6]]),  # centres 0.005 and 0.015 from the left side
        bboxes=GT.bboxes.expand(2, 4),
        scores=torch.full((2, 1), 0.5),
    )
    assert TaskAlignedAssigner(topk=2).assign(pred, GT).gt_inds.tolist() == [0, 1]
