"""Box functions by hand and against a double loop, and the padded ground truth."""

import pytest
import torch
from mmengine.structures import InstanceData

from detkit.structures.boxes import (
    bbox_cxcywh_to_xyxy,
    bbox_overlaps,
    bbox_xyxy_to_cxcywh,
    get_box_wh,
    scale_boxes,
)
from detkit.structures.ground_truth import GroundTruth

FIRST = torch.tensor([[0.0, 0, 10, 10], [0, 0, 4, 4], [20, 20, 30, 30]])
SECOND = torch.tensor([[5.0, 5, 15, 15], [0, 0, 10, 10]])


def test_overlaps_by_hand():
    # 5 x 5 of 100 + 100 - 25; identical; 16 of 100; apart
    iou = torch.tensor([[25 / 175, 1.0], [0.0, 0.16], [0.0, 0.0]])
    torch.testing.assert_close(bbox_overlaps(FIRST, SECOND), iou)
    torch.testing.assert_close(bbox_overlaps(FIRST, SECOND, "iof")[:, 1], torch.tensor([1.0, 1.0, 0.0]))
    # Enclosing 15 x 15 = 225, union 175; enclosing 30 x 30, union 200
    giou = bbox_overlaps(FIRST, SECOND, "giou")
    torch.testing.assert_close(giou[0, 0], torch.tensor(25 / 175 - 50 / 225))
    torch.testing.assert_close(giou[2, 1], torch.tensor(-700 / 900))


@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
def test_pairs_are_the_diagonal_and_batches_are_their_images(mode):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 2, 5, 2, generator=generator) * 10
    a, b = torch.cat([corner, corner + 1 + torch.rand(2, 2, 5, 2, generator=generator) * 9], dim=-1)
    dense = bbox_overlaps(a, b, mode)
    torch.testing.assert_close(bbox_overlaps(a, b, mode, is_aligned=True), dense.diagonal(dim1=1, dim2=2))
    for image in range(2):
        assert torch.equal(dense[image], bbox_overlaps(a[image], b[image], mode))


@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0), (0, 0)])
def test_no_boxes_overlap_nothing(m, n):
    assert bbox_overlaps(torch.zeros(m, 4), torch.zeros(n, 4)).shape == (m, n)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="mode 'iuo' is not one of iou, iof, giou"):
        bbox_overlaps(FIRST, SECOND, "iuo")
    with pytest.raises(ValueError, match="3 and 2 boxes cannot be compared pair by pair"):
        bbox_overlaps(FIRST, SECOND, is_aligned=True)
    with pytest.raises(ValueError, match=r"bboxes2 has shape \(2, 5\)"):
        bbox_overlaps(FIRST, torch.zeros(2, 5))


def test_conversions():
    assert bbox_xyxy_to_cxcywh(SECOND)[0].tolist() == [10, 10, 10, 10]
    assert torch.equal(bbox_cxcywh_to_xyxy(bbox_xyxy_to_cxcywh(SECOND)), SECOND)
    assert scale_boxes(SECOND, (2, 0.5))[0].tolist() == [10, 2.5, 30, 7.5]
    assert [part.tolist() for part in get_box_wh(FIRST[1:])] == [[4, 10], [4, 10]]


def instances(count):
    return InstanceData(bboxes=torch.arange(count * 4.0).view(count, 4), labels=torch.arange(count) + 5)


def test_ground_truth_is_padded_to_the_largest_count():
    truth = GroundTruth.from_instances([instances(2), instances(0), instances(3)], [None, instances(1), None])
    assert truth.boxes.shape == (3, 3, 4)
    assert truth.valid.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert truth.labels[2].tolist() == [5, 6, 7]
    assert truth.ignored_valid.tolist() == [[False], [True], [False]]


def test_matched_boxes_fill_where_there_is_no_object():
    truth = GroundTruth.from_instances([instances(2)])
    fill = torch.full((3, 4), -1.0)
    boxes, labels = truth.matched(torch.tensor([[2, 0, -1]]), fill)
    assert boxes.tolist() == [[[4, 5, 6, 7], [-1] * 4, [-1] * 4]]
    assert labels[0, 0] == 6
    boxes, _ = GroundTruth.from_instances([instances(0)]).matched(torch.zeros(1, 3).long(), fill)
    assert (boxes == -1).all()


def test_labels_of_an_empty_image_may_be_floats():
    nothing = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
    assert GroundTruth.from_instances([nothing, instances(1)]).labels.dtype == torch.int64
