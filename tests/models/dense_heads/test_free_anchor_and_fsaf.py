"""FreeAnchor's bags and FSAF's choice of a level, by hand."""

import math

import pytest
import torch
from mmengine.structures import InstanceData

from detkit.models.dense_heads import FreeAnchorRetinaHead, FSAFHead
from detkit.structures.ground_truth import GroundTruth

ANCHORS = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [40, 40, 50, 50]])


def truth():
    some = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10]]), labels=torch.tensor([1]))
    none = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
    return GroundTruth.from_instances([some, none])


def free_anchor(**changes):
    arguments = {"num_classes": 3, "in_channels": 4, "feat_channels": 4, "stacked_convs": 1, "pre_anchor_topk": 2}
    return FreeAnchorRetinaHead(**{**arguments, **changes})


def test_one_good_anchor_of_a_bag_is_enough():
    head = free_anchor()
    probs, deltas = torch.full((2, 3, 3), 0.01), torch.zeros(2, 3, 4)
    bags = head._positive_bags(probs, deltas, ANCHORS, truth())
    # The first anchor's box is right, the second's is off by 0.2 of its width: L1 gives exp(-0.2).
    likelihood = [0.01, 0.01 * math.exp(-0.2)]
    weight = [1 / (1 - p) for p in likelihood]
    expected = -math.log(sum(w * p for w, p in zip(weight, likelihood, strict=True)) / sum(weight))
    torch.testing.assert_close(bags[0, 0], torch.tensor(0.5 * expected))
    probs[0, 0, 1] = 1 - 1e-6
    assert head._positive_bags(probs, deltas, ANCHORS, truth())[0, 0] < 1e-4


def test_a_predicted_box_near_an_object_is_no_background():
    head = free_anchor(bbox_thr=0.5)
    near = head._near_objects(ANCHORS.expand(2, 3, 4), truth())
    # IoUs are 1, 80 / 120 and 0; from 0.5 on they count, up to the best.
    torch.testing.assert_close(near[0, :, 1], torch.tensor([1.0, (80 / 120 - 0.5) / 0.5, 0]))
    assert not near[0, :, [0, 2]].any()
    assert not near[1].any()


def test_scores_must_be_probabilities():
    with pytest.raises(ValueError, match="use_sigmoid=True"):
        free_anchor(loss_cls={"type": "CrossEntropyLoss", "use_sigmoid": False})
    with pytest.raises(ValueError, match=r"got 0 and 0\.6"):
        free_anchor(pre_anchor_topk=0)


def test_the_level_of_the_least_mean_loss():
    head = FSAFHead(num_classes=3, in_channels=4, feat_channels=4, stacked_convs=1)
    # Two levels of two and three cells; the object has two cells on the first and one on the second.
    loss = torch.tensor([[1.0, 3.0, 1.5, 9.0, 9.0]])
    level_of = torch.tensor([0, 0, 1, 1, 1])
    best = head._best_levels(loss, torch.tensor([[1, 1, 1, 0, 0]]), level_of, 1, 2)
    assert best[0, 1] == 1
    best = head._best_levels(loss, torch.tensor([[1, 0, 1, 0, 0]]), level_of, 1, 2)
    assert best[0, 1] == 0
    best = head._best_levels(loss, torch.tensor([[0, 0, 0, 1, 0]]), level_of, 1, 2)
    assert best[0, 1] == 1


def test_recall_counts_the_cells_that_are_kept():
    head = FSAFHead(num_classes=3, in_channels=4, feat_channels=4, stacked_convs=1, score_threshold=0.6)
    logits = torch.tensor([[[2.0, 0, 0], [0.1, 0, 0], [0, 3, 0], [0, 3, 0]]])
    labels = torch.tensor([[0, 0, 1, 1]])
    kept = torch.tensor([[True, True, True, False]])
    # The second is right too, but sigmoid(0.1) = 0.52 is below the threshold.
    torch.testing.assert_close(head._recall(logits, labels, kept), torch.tensor(100 * 2 / 3))
    assert head._recall(logits, labels, torch.zeros_like(kept)) == 0
