"""A batch, image by image: what an assigner that knows one image only is given, and what is made of its results."""

import torch
from mmengine.structures import InstanceData

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import AssignResult, assign_batch

PRIORS = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
VALID = torch.tensor([[True, True, True], [False, True, True]])


def truth():
    first = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]), labels=torch.tensor([5, 7]))
    second = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
    return GroundTruth.from_instances([first, second], [InstanceData(bboxes=torch.tensor([[40.0, 40, 50, 50]])), None])


class PerImage:
    """The last prior learns the first object; the result has what the test wants it to have."""

    def __init__(self, overlaps=True, metrics=False):
        self.overlaps, self.metrics, self.seen = overlaps, metrics, []

    def assign(self, pred_instances, num_level_priors, gt_instances, gt_instances_ignore=None):
        self.seen.append((pred_instances, num_level_priors, gt_instances, gt_instances_ignore))
        gt_inds = torch.zeros(len(pred_instances), dtype=torch.int64)
        gt_inds[-1] = min(1, len(gt_instances))
        labels = torch.where(gt_inds > 0, 5, -1)
        result = AssignResult(len(gt_instances), gt_inds, gt_inds * 0.5 if self.overlaps else None, labels)
        if self.metrics and len(gt_instances) > 0:
            result.assign_metrics = gt_inds * 0.25
        return result


def test_arguments_go_by_name_so_that_their_order_does_not_matter():
    own, scores = PerImage(), torch.arange(12.0).view(2, 3, 2)
    assign_batch(own, PRIORS, truth(), VALID, num_level_priors=[2, 1], scores=scores)
    (first, levels, gt, ignored), (second, _, no_gt, none_ignored) = own.seen
    assert levels == [2, 1]
    assert torch.equal(first.priors, PRIORS)
    assert torch.equal(second.priors, PRIORS[1:])
    assert torch.equal(second.scores, scores[1, 1:])
    assert gt.labels.tolist() == [5, 7]
    assert (len(ignored), len(no_gt), len(none_ignored)) == (1, 0, 0)


def test_priors_that_take_no_part_are_ignored():
    result = assign_batch(PerImage(), PRIORS, truth(), VALID, num_level_priors=[3])
    assert result.gt_inds.tolist() == [[0, 0, 1], [-1, 0, 0]]
    assert result.labels.tolist() == [[-1, -1, 5], [-1, -1, -1]]
    assert result.max_overlaps.tolist() == [[0, 0, 0.5], [0, 0, 0]]
    assert result.metrics is None


def test_what_no_result_has_is_none_and_what_some_have_is_filled():
    without = assign_batch(PerImage(overlaps=False), PRIORS, truth(), num_level_priors=[3])
    assert without.max_overlaps is None
    aligned = assign_batch(PerImage(metrics=True), PRIORS, truth(), VALID, num_level_priors=[3])
    assert aligned.metrics.tolist() == [[0, 0, 0.25], [0, 0, 0]]
