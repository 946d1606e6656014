"""Suppression against MMCV's results, and what its configs may say."""

import pytest
import torch
from reference import arguments, assert_same, cases

from detkit.ops import batched_nms

# Soft suppression is not there; of no boxes MMCV fails, and detkit returns none.
HARD = [c for c in cases("nms/batched_nms") if "soft" not in c.id and "error" not in c.values[0]]
EMPTY = [c for c in cases("nms/batched_nms") if "soft" not in c.id and c.id.endswith("_empty")]


@pytest.mark.parametrize("case", HARD)
def test_batched_nms(case):
    assert_same(batched_nms(**arguments(case["inputs"])), case["outputs"]["out"], 1e-5, 1e-5)


@pytest.mark.parametrize("case", [c for c in EMPTY if not c.id.startswith("default")])
def test_of_nothing_nothing_is_kept(case):
    dets, keep = batched_nms(**arguments(case["inputs"]))
    assert dets.shape == (0, 5)
    assert keep.shape == (0,)


def test_boxes_of_different_classes_do_not_suppress_each_other():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9]])
    _, keep = batched_nms(boxes, torch.tensor([0.5, 0.9, 0.8]), torch.tensor([0, 1, 1]), {"iou_threshold": 0.5})
    assert keep.tolist() == [1, 0]


def test_classes_stay_apart_at_negative_coordinates():
    boxes = torch.tensor([[0.0, 0, 100, 100], [-101.0, -101, -1, -1]])
    _, keep = batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), {"iou_threshold": 0.5})
    assert keep.tolist() == [0, 1]


@pytest.mark.parametrize("label", [0, 79, 1202])
def test_the_label_does_not_round_the_overlap(label):
    # IoU 2/3, on both sides of the threshold
    boxes = torch.tensor([[1330.0, 1330, 1332.4, 1332], [1330.0, 1330, 1331.6, 1332]])
    for threshold, kept in ((0.66, 1), (0.67, 2)):
        _, keep = batched_nms(boxes, torch.ones(2), torch.full((2,), label), {"iou_threshold": threshold})
        assert len(keep) == kept


def test_wrong_configs_name_the_key():
    boxes, scores, labels = torch.zeros(1, 4), torch.zeros(1), torch.zeros(1).long()
    with pytest.raises(KeyError, match=r"nms\.iou_thr: unknown key; did you mean 'iou_threshold'"):
        batched_nms(boxes, scores, labels, {"type": "nms", "iou_thr": 0.5})
    with pytest.raises(ValueError, match=r"nms\.type: unknown kind 'mns'; did you mean 'nms'"):
        batched_nms(boxes, scores, labels, {"type": "mns", "iou_threshold": 0.5})
