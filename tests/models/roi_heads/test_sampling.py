"""Sampled regions of a fixed number: what is in them, what padding is, and the one read."""

import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync

from detkit.models.roi_heads.sampling import positive_rois, sample_rois
from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.structures.proposals import Proposals, boxes_to_rois

C = 5
ASSIGNER = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.5}


def truth():
    """Two objects in the first image, none in the second."""
    first = InstanceData(bboxes=torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]]), labels=torch.tensor([3, 1]))
    second = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    return GroundTruth.from_instances([first, second])


def proposals():
    """Near the second object, near nothing; one in the second image."""
    first = InstanceData(bboxes=torch.tensor([[21.0, 20, 40, 41], [60, 60, 70, 70]]), scores=torch.tensor([0.9, 0.8]))
    second = InstanceData(bboxes=torch.tensor([[1.0, 1, 9, 9]]), scores=torch.tensor([0.7]))
    return Proposals.of([first, second])


def sampled(num=4, add=True, pos_fraction=1.0):
    sampler = {"type": "RandomSampler", "num": num, "pos_fraction": pos_fraction, "add_gt_as_proposals": add}
    parts = TASK_UTILS.build(ASSIGNER), TASK_UTILS.build(sampler)
    with NoSync():
        return sample_rois(proposals(), truth(), *parts, C)


def test_instances_are_padded_to_the_longest():
    got = proposals()
    assert got.boxes.shape == (2, 2, 4)
    assert got.valid.tolist() == [[True, True], [True, False]]
    assert got.scores[1].tolist() == [pytest.approx(0.7), 0.0]
    assert Proposals.of(got) is got
    assert boxes_to_rois(got.boxes)[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_positives_come_first_then_negatives_then_padding():
    got = sampled()
    assert got.boxes.shape == (2, 4, 4)
    # The objects themselves, the proposal near the second, the one near nothing.
    assert got.labels.tolist() == [[3, 1, 1, C], [C, C, C, C]]
    assert got.positive.tolist() == [[True, True, True, False], [False] * 4]
    assert got.valid.tolist() == [[True] * 4, [True, False, False, False]]
    assert got.is_gt.tolist() == [[True, True, False, False], [False] * 4]
    assert got.gt_index.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert got.gt_boxes[0, 2].tolist() == [20.0, 20.0, 40.0, 40.0]
    assert got.gt_boxes[0, 3].tolist() == got.boxes[0, 3].tolist() == [60.0, 60.0, 70.0, 70.0]
    assert got.boxes[1, 1:].abs().sum() == 0


def test_the_number_of_rows_follows_from_settings():
    assert sampled(num=3).boxes.shape == (2, 3, 4)
    assert sampled(num=512).boxes.shape == (2, 4, 4)  # two padded proposals and two padded objects
    assert sampled(num=512, add=False).boxes.shape == (2, 2, 4)


def test_a_sampler_without_a_number_keeps_all():
    got = sample_rois(proposals(), truth(), TASK_UTILS.build(ASSIGNER), TASK_UTILS.build({"type": "PseudoSampler"}), C)
    assert got.boxes.shape == (2, 2, 4)
    assert got.labels.tolist() == [[1, C], [C, C]]


def test_positives_without_padding():
    stages = [sampled(), sampled(add=False)]
    first, second = positive_rois(stages)
    assert first.counts == [3, 0]
    assert first.labels.tolist() == [3, 1, 1]
    assert first.gt_index.tolist() == [0, 1, 1]
    assert first.rois[2].tolist() == [0.0, 21.0, 20.0, 40.0, 41.0]
    assert stages[0].labels.flatten()[first.place].tolist() == [3, 1, 1]
    assert second.counts == [1, 0]
    assert second.rois.tolist() == [[0.0, 21.0, 20.0, 40.0, 41.0]]


def test_no_positives_at_all():
    (got,) = positive_rois([sampled(pos_fraction=0.0)])
    assert got.counts == [0, 0]
    assert got.rois.shape == (0, 5)
    assert got.place.shape == (0,)
