"""ATSSAssigner by hand, and wrong input."""

import pytest
import torch
from mmengine.structures import InstanceData

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import ATSSAssigner


def squares(centers, side):
    centers = torch.tensor(centers)
    return torch.cat([centers - side / 2, centers + side / 2], dim=1)


def test_by_hand():
    """One level of priors 10 x 10 along a line, the object 10 x 10 at x = 0.

    The three nearest are at 0, 1 and -4: IoU 1, 9/11 and 6/14. Mean 0.749, deviation (unbiased) 0.292, threshold 1.041:
    none. With two candidates 1 and 9/11: mean 0.909, deviation 0.129, threshold 1.038: none. With one, there is no
    deviation and the candidate itself passes.
    """
    priors = squares([[0.0, 0.0], [1.0, 0.0], [-4.0, 0.0], [30.0, 0.0]], 10.0)
    gt = InstanceData(bboxes=squares([[0.0, 0.0]], 10.0), labels=torch.tensor([5]))
    for topk, expected in ((3, [0, 0, 0, 0]), (2, [0, 0, 0, 0]), (1, [1, 0, 0, 0])):
        result = ATSSAssigner(topk).assign(InstanceData(priors=priors), [4], gt)
        assert result.gt_inds.tolist() == expected, topk


def test_a_low_threshold_and_a_center_outside():
    """IoU of the candidates 25/100 four times: deviation 0, all reach the threshold; one centre lies on the border."""
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([2]))
    priors = squares([[2.5, 2.5], [7.5, 2.5], [2.5, 7.5], [7.5, 7.5]], 5.0)
    inside = ATSSAssigner(4).assign(InstanceData(priors=priors), [4], gt)
    assert inside.gt_inds.tolist() == [1, 1, 1, 1]
    assert inside.labels.tolist() == [2, 2, 2, 2]
    # 10 x 10 with the centre in the corner: the overlap is the same 25 / (100 + 100 - 25)
    corners = squares([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]], 10.0)
    assert ATSSAssigner(4).assign(InstanceData(priors=corners), [4], gt).gt_inds.tolist() == [0, 0, 0, 0]


def test_a_prior_of_two_objects_goes_to_the_larger_overlap():
    priors = squares([[5.0, 5.0]], 10.0)
    boxes = torch.tensor([[0.0, 0, 14, 10], [0.0, 0, 12, 10], [0.0, 0, 16, 10]])
    gt = InstanceData(bboxes=boxes, labels=torch.tensor([0, 1, 2]))
    result = ATSSAssigner(9).assign(InstanceData(priors=priors), [1], gt)
    assert result.gt_inds.tolist() == [2]
    torch.testing.assert_close(result.max_overlaps, torch.tensor([100 / 120]))


def test_wrong_input():
    truth = GroundTruth.from_instances([InstanceData(bboxes=torch.rand(1, 4), labels=torch.tensor([0]))])
    with pytest.raises(ValueError, match=r"levels of \[3, 2\] priors do not add up to 4"):
        ATSSAssigner(9).assign_batch(torch.rand(4, 4), truth, num_level_priors=[3, 2])
    with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
        ATSSAssigner(0)
    with pytest.raises(ValueError, match=r"alpha=0\.5 needs bboxes and scores"):
        ATSSAssigner(9, alpha=0.5).assign_batch(torch.rand(4, 4), truth, num_level_priors=[4])
