"""DynamicSoftLabelAssigner against its rules written as loops, and centres of masks."""

import math

import pytest
import torch
from mmengine.structures import InstanceData
from task_modules.assigners.dense_scene import match_by_the_rules, objects, points, predictions

from detkit.structures import BitmapMasks
from detkit.structures.boxes import bbox_overlaps
from detkit.task_modules import DynamicSoftLabelAssigner
from detkit.task_modules.assigners.dynamic_soft_label_assigner import center_of_mass


def by_the_rules(priors, boxes, logits, gt, radius=3.0, topk=13):
    num_priors, num_gts = len(priors), len(gt)
    cost = torch.full((num_priors, num_gts), math.inf, dtype=torch.float64)
    iou = torch.zeros(num_priors, num_gts)
    allowed = []
    for p, (x, y, stride, _) in enumerate(priors.tolist()):
        if not any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in gt.bboxes.tolist()):
            continue
        allowed.append(p)
        for g, (x1, y1, x2, y2) in enumerate(gt.bboxes.tolist()):
            iou[p, g] = bbox_overlaps(boxes[p : p + 1], gt.bboxes[g : g + 1])[0, 0]
            entropy = 0.0
            for c, logit in enumerate(logits[p].tolist()):
                prob, target = 1 / (1 + math.exp(-logit)), float(iou[p, g]) * (c == gt.labels[g])
                cross = -target * math.log(prob) - (1 - target) * math.log(1 - prob)
                entropy += cross * (target - prob) ** 2
            distance = math.hypot(x - (x1 + x2) / 2, y - (y1 + y2) / 2) / stride
            cost[p, g] = entropy - 3 * math.log(iou[p, g] + 1e-7) + 10 ** (distance - radius)
    return match_by_the_rules(cost, iou, allowed, topk)


@pytest.mark.parametrize("seed", range(6))
def test_against_the_rules(seed):
    gt, drawn = objects(5, seed), predictions(1, seed)
    boxes, logits = drawn["bboxes"][0], drawn["scores"][0].clamp(0.01, 0.99).logit()
    pred = InstanceData(priors=points(), bboxes=boxes, scores=logits)
    found = DynamicSoftLabelAssigner().assign(pred, gt).gt_inds.tolist()
    assert found == by_the_rules(points(), boxes, logits, gt)


def test_center_of_mass():
    mask = torch.zeros(2, 6, 8, dtype=torch.bool)
    mask[0, 2:4, 1:6] = True  # rows 2, 3; columns 1 to 5
    torch.testing.assert_close(center_of_mass(mask), torch.tensor([[3.0, 2.5], [0.0, 0.0]]))


def test_masks_move_the_centre():
    """A mask in the upper left of its box draws the assignment there; as tensor or as a mask class."""
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 96, 96]]), labels=torch.tensor([0]))
    pred = InstanceData(
        priors=points(), bboxes=gt.bboxes.expand(len(points()), 4), scores=torch.zeros(len(points()), 1)
    )
    plain = DynamicSoftLabelAssigner().assign(pred, gt)
    mask = torch.zeros(1, 96, 96, dtype=torch.bool)
    mask[0, :24, :24] = True
    gt.masks = mask
    found = DynamicSoftLabelAssigner().assign(pred, gt)
    center = points()[found.gt_inds > 0][:, :2].mean(dim=0)
    assert (center < 32).all()
    assert (points()[plain.gt_inds > 0][:, :2].mean(dim=0) > 32).all()
    gt.masks = BitmapMasks(mask.numpy().astype("uint8"), 96, 96)
    assert torch.equal(DynamicSoftLabelAssigner().assign(pred, gt).gt_inds, found.gt_inds)


def test_an_object_far_from_every_prior_of_its_own():
    """Where 10 to the distance overflows, the cheapest prior is still one that takes part."""
    priors = torch.tensor([[4.0, 4, 8, 8], [500, 500, 8, 8]])
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 8, 8], [2000, 2000, 2001, 2001]]), labels=torch.tensor([0, 0]))
    pred = InstanceData(priors=priors, bboxes=torch.tensor([[0.0, 0, 8, 8]] * 2), scores=torch.zeros(2, 1))
    assert DynamicSoftLabelAssigner().assign(pred, gt).gt_inds.tolist() == [1, 0]


def test_a_prior_far_from_the_centre_is_cheaper_than_those_outside():
    """Ten priors outside, one inside at 62 strides from the centre, ten outside."""
    priors = torch.tensor([[5000.0, 5000, 8, 8]]).repeat(21, 1)
    priors[10, :2] = 4
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 1000, 8]]), labels=torch.tensor([0]))
    pred = InstanceData(priors=priors, bboxes=torch.zeros(21, 4), scores=torch.zeros(21, 1))
    assert DynamicSoftLabelAssigner().assign(pred, gt).gt_inds.tolist() == [0] * 10 + [1] + [0] * 10
