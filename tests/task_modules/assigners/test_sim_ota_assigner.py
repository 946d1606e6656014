"""SimOTAAssigner by hand and against the rules written as loops."""

import math
from unittest import mock

import pytest
import torch
from mmengine.structures import InstanceData
from task_modules.assigners.dense_scene import match_by_the_rules, objects, points, predictions

from detkit.structures.boxes import bbox_overlaps
from detkit.task_modules import SimOTAAssigner
from detkit.task_modules.assigners import chunks


def by_the_rules(priors, boxes, scores, gt, radius=2.5, topk=10):
    """Rules 1 to 3, one pair at a time; costs in float64."""
    num_priors, num_gts = len(priors), len(gt)
    cost, iou = torch.full((num_priors, num_gts), math.inf, dtype=torch.float64), torch.zeros(num_priors, num_gts)
    allowed = []
    for p, (x, y, stride, _) in enumerate(priors.tolist()):
        near = []
        for x1, y1, x2, y2 in gt.bboxes.tolist():
            inside = x1 < x < x2 and y1 < y < y2
            central = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < radius * stride
            near.append((inside, central))
        if not any(inside or central for inside, central in near):
            continue
        allowed.append(p)
        for g in range(num_gts):
            iou[p, g] = bbox_overlaps(boxes[p : p + 1], gt.bboxes[g : g + 1])[0, 0]
            entropy = sum(
                -math.log(s) if c == gt.labels[g] else -math.log(1 - s) for c, s in enumerate(scores[p].tolist())
            )
            cost[p, g] = entropy - 3 * math.log(iou[p, g] + 1e-7) + 1e5 * (not all(near[g]))
    return match_by_the_rules(cost, iou, allowed, topk)


@pytest.mark.parametrize("seed", range(6))
def test_against_the_rules(seed):
    gt, drawn = objects(5, seed), predictions(1, seed)
    boxes, scores = drawn["bboxes"][0], drawn["scores"][0].clamp(0.01, 0.99)
    pred = InstanceData(priors=points(), bboxes=boxes, scores=scores)
    assert SimOTAAssigner().assign(pred, gt).gt_inds.tolist() == by_the_rules(points(), boxes, scores, gt)


def test_as_many_priors_as_the_overlaps_add_up_to():
    """Four priors in the object predict its box, one half of it: 4.5, so four are taken, of those that score best."""
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 32, 32]]), labels=torch.tensor([0]))
    priors = torch.tensor([[12.0, 12, 8, 8], [20, 12, 8, 8], [12, 20, 8, 8], [20, 20, 8, 8], [16, 16, 8, 8]])
    boxes = gt.bboxes.expand(5, 4).clone()
    boxes[4, 2] = 16
    result = SimOTAAssigner().assign(InstanceData(priors=priors, bboxes=boxes, scores=torch.full((5, 1), 0.5)), gt)
    assert result.gt_inds.tolist() == [1, 1, 1, 1, 0]
    torch.testing.assert_close(result.max_overlaps[:4], torch.ones(4))


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan])
def test_scores_that_are_no_probabilities(bad):
    scores = torch.full((1, 2), 0.5)
    scores[0, 1] = bad
    pred = InstanceData(priors=torch.tensor([[4.0, 4, 8, 8]]), bboxes=torch.rand(1, 4), scores=scores)
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 8, 8]]), labels=torch.tensor([0]))
    with pytest.raises(RuntimeError, match=r"SimOTAAssigner: scores must be probabilities in \[0, 1\]"):
        SimOTAAssigner().assign(pred, gt)


def test_half_precision_predictions():
    gt, drawn = objects(4, 3), predictions(1, 3)
    half = {name: value[0].half() for name, value in drawn.items()}
    first = SimOTAAssigner().assign(InstanceData(priors=points(), **half), gt)
    second = SimOTAAssigner().assign(InstanceData(priors=points(), **{k: v.float() for k, v in half.items()}), gt)
    assert torch.equal(first.gt_inds, second.gt_inds)
    assert first.max_overlaps.dtype == torch.float32


def test_a_score_of_one_costs_a_finite_number():
    """Two priors predict half of the object, so it takes one of them: the one that is sure."""
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 16, 16]]), labels=torch.tensor([0]))
    pred = InstanceData(
        priors=torch.tensor([[6.0, 8, 8, 8], [10, 8, 8, 8]]),
        bboxes=torch.tensor([[0.0, 0, 16, 8], [0, 0, 16, 8]]),
        scores=torch.tensor([[0.5], [1.0]]),
    )
    assert SimOTAAssigner().assign(pred, gt).gt_inds.tolist() == [0, 1]


def test_of_equal_objects_in_different_pieces_the_first_has_the_prior():
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 16, 16]] * 3), labels=torch.tensor([0, 0, 0]))
    pred = InstanceData(priors=torch.tensor([[8.0, 8, 8, 8]]), bboxes=gt.bboxes[:1], scores=torch.tensor([[0.5]]))
    for size in (chunks.CPU_CHUNK, 1):
        with mock.patch.object(chunks, "CPU_CHUNK", size):
            assert SimOTAAssigner().assign(pred, gt).gt_inds.tolist() == [1]
