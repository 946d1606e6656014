"""Box functions by hand and against a double loop, and the padded ground truth."""

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync

from detkit.structures.boxes import (
    HorizontalBoxes,
    bbox2corner,
    bbox2distance,
    bbox2result,
    bbox2roi,
    bbox_cxcyah_to_xyxy,
    bbox_cxcywh_to_xyxy,
    bbox_flip,
    bbox_mapping,
    bbox_mapping_back,
    bbox_overlaps,
    bbox_project,
    bbox_rescale,
    bbox_xyxy_to_cxcyah,
    bbox_xyxy_to_cxcywh,
    corner2bbox,
    distance2bbox,
    find_inside_bboxes,
    get_box_tensor,
    get_box_wh,
    roi2bbox,
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
def test_overlaps_of_half_boxes_are_computed_in_float32(dtype, mode):
    # 300 x 300 pixels are beyond the range of float16
    boxes = torch.tensor([[0.0, 0, 300, 300], [0, 0, 300, 150], [1, 1, 1, 1]]).to(dtype)
    with torch.autocast("cpu", dtype):
        overlaps = bbox_overlaps(boxes, boxes, mode)
    assert torch.equal(overlaps, bbox_overlaps(boxes.float(), boxes.float(), mode))
    assert overlaps[0, 1] == 0.5  # also of the first, and nothing but boxes in the enclosing box


@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
def test_gradients_of_overlaps_are_those_of_finite_differences(mode):
    first, second = FIRST.double() + torch.tensor([0.0, 0.1, 0.2, 0.3]), SECOND.double()
    first.requires_grad_()
    assert torch.autograd.gradcheck(lambda boxes: bbox_overlaps(boxes, second, mode), (first,))


def test_conversions():
    assert bbox_xyxy_to_cxcywh(SECOND)[0].tolist() == [10, 10, 10, 10]
    assert torch.equal(bbox_cxcywh_to_xyxy(bbox_xyxy_to_cxcywh(SECOND)), SECOND)
    assert bbox_xyxy_to_cxcyah(torch.tensor([[0.0, 0, 10, 20]])).tolist() == [[5, 10, 0.5, 20]]
    assert torch.equal(bbox_cxcyah_to_xyxy(bbox_xyxy_to_cxcyah(SECOND)), SECOND)
    assert bbox2corner(SECOND[:1]).tolist() == [[5, 5], [15, 5], [5, 15], [15, 15]]
    assert torch.equal(corner2bbox(bbox2corner(FIRST)), FIRST)
    assert [part.tolist() for part in get_box_wh(FIRST[1:])] == [[4, 10], [4, 10]]


def test_distances():
    points = torch.tensor([[3.0, 4.0]])
    assert bbox2distance(points, FIRST[:1]).tolist() == [[3, 4, 7, 6]]
    assert bbox2distance(points, FIRST[:1], max_dis=5, eps=0.5).tolist() == [[3, 4, 4.5, 4.5]]
    assert torch.equal(distance2bbox(points, bbox2distance(points, FIRST[:1])), FIRST[:1])
    assert distance2bbox(points.half(), torch.full((1, 4), 5.0).half(), max_shape=(6, 7)).tolist() == [[0, 0, 7, 6]]


def test_boxes_move_with_their_image():
    assert scale_boxes(SECOND, (2, 0.5))[0].tolist() == [10, 2.5, 30, 7.5]
    assert scale_boxes(SECOND.long(), 1.5)[0].tolist() == [7.5, 7.5, 22.5, 22.5]
    # Height 20, width 40
    box = torch.tensor([[1.0, 2, 11, 7]])
    assert bbox_flip(box, (20, 40)).tolist() == [[29, 2, 39, 7]]
    assert bbox_flip(box, (20, 40), "vertical").tolist() == [[1, 13, 11, 18]]
    assert torch.equal(bbox_flip(bbox_flip(box, (20, 40), "diagonal"), (20, 40), "diagonal"), box)
    assert bbox_flip(box.repeat(1, 2), (20, 40)).tolist() == [[29, 2, 39, 7] * 2]
    assert bbox_rescale(box, 2).tolist() == [[-4, -0.5, 16, 9.5]]
    assert bbox_rescale(torch.tensor([[3.0, 1, 2, 11, 7]]), 2).tolist() == [[3, -4, -0.5, 16, 9.5]]
    assert find_inside_bboxes(torch.tensor([[-5.0, 0, 0, 5], [-5, 0, 1, 5], [40, 0, 50, 5]]), 20, 40).tolist() == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("flip_direction", ["horizontal", "vertical", "diagonal"])
@pytest.mark.parametrize("scale", [2.0, (2.0, 4.0), np.array([2.0, 4.0, 2.0, 4.0])])
def test_mapping_back_undoes_mapping(flip_direction, scale):
    for flip in (False, True):
        mapped = bbox_mapping(FIRST.repeat(1, 2), (80, 90), scale, flip, flip_direction)
        back = bbox_mapping_back(mapped, (80, 90), scale, flip, flip_direction)
        torch.testing.assert_close(back, FIRST.repeat(1, 2))


def test_projection():
    # x and y swapped and moved by (1, 2), all over 2
    matrix = torch.tensor([[0.0, 1, 1], [1, 0, 2], [0, 0, 2]])
    box = torch.tensor([[0.0, 2, 10, 6]])
    assert bbox_project(box, matrix).tolist() == [[1.5, 1, 3.5, 6]]
    assert bbox_project(box, matrix.double().numpy(), (5, 3)).tolist() == [[1.5, 1, 3, 5]]
    projected = bbox_project(box.numpy(), matrix.numpy())
    assert isinstance(projected, np.ndarray)
    assert projected.tolist() == [[1.5, 1, 3.5, 6]]
    # A turn by 45 degrees: the upright box around a square of side 2
    half = 2**-0.5
    turn = torch.tensor([[half, -half, 0], [half, half, 0], [0, 0, 1]])
    around = bbox_project(torch.tensor([[-1.0, -1, 1, 1]]), turn)
    torch.testing.assert_close(around, torch.tensor([[-2.0, -2, 2, 2]]) * half)


def test_rois():
    rois = bbox2roi([FIRST[:1], FIRST[:0], HorizontalBoxes(SECOND)])
    assert rois[:, 0].tolist() == [0, 2, 2]
    parts = roi2bbox(rois[[2, 0, 1]])
    assert [part.tolist() for part in parts] == [FIRST[:1].tolist(), SECOND.flip(0).tolist()]
    assert roi2bbox(rois[:0]) == []
    dets = torch.cat([FIRST, torch.ones(3, 1)], dim=1)
    assert [len(part) for part in bbox2result(dets, torch.tensor([2, 0, 2]), 4)] == [1, 0, 2, 0]
    assert [part.shape for part in bbox2result(dets[:0], torch.zeros(0), 2)] == [(0, 5), (0, 5)]


def test_box_functions_wait_for_nothing():
    matrix = torch.eye(3)
    with NoSync():
        bbox2roi([FIRST, SECOND])
        bbox_mapping_back(bbox_mapping(FIRST, (20, 40), (2.0, 0.5), True), (20, 40), (2.0, 0.5), True)
        bbox_project(bbox_rescale(FIRST, 2.0), matrix, (20, 40))
        distance2bbox(FIRST[None, :, :2], bbox2distance(FIRST[None, :, :2], FIRST[None]), [(20, 40)])
        bbox_overlaps(FIRST, SECOND)


def test_wrong_boxes_are_refused():
    with pytest.raises(ValueError, match="direction 'left' is not one of horizontal, vertical, diagonal"):
        bbox_flip(FIRST, (20, 40), "left")
    with pytest.raises(ValueError, match=r"bbox_flip: bboxes have shape \(3, 5\)"):
        bbox_flip(torch.zeros(3, 5), (20, 40))
    with pytest.raises(ValueError, match=r"bbox_rescale: bboxes have shape \(3, 6\)"):
        bbox_rescale(torch.zeros(3, 6))
    with pytest.raises(ValueError, match=r"scale_factor must be 1, 2 or 4 numbers, got \(1, 2, 3\)"):
        scale_boxes(FIRST, (1, 2, 3))
    with pytest.raises(TypeError, match=r"must be a tensor or have one as \.tensor, got list"):
        get_box_tensor([1, 2])


def instances(count):
    return InstanceData(bboxes=torch.arange(count * 4.0).view(count, 4), labels=torch.arange(count) + 5)


def test_ground_truth_is_padded_to_the_largest_count():
    truth = GroundTruth.from_instances([instances(2), instances(0), instances(3)], [None, instances(1), None])
    assert truth.boxes.shape == (3, 3, 4)
    assert truth.valid.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert truth.labels[2].tolist() == [5, 6, 7]
    assert truth.ignored_valid.tolist() == [[False], [True], [False]]


def test_ground_truth_takes_box_types():
    plain, typed = instances(2), instances(3)
    typed.bboxes = HorizontalBoxes(typed.bboxes)
    truth = GroundTruth.from_instances([plain, typed], [typed, None])
    assert torch.equal(truth.boxes[1], typed.bboxes.tensor)
    assert truth.ignored_valid.tolist() == [[True] * 3, [False] * 3]


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


def test_an_empty_image_with_float_labels_may_come_first():
    nothing = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
    labels = GroundTruth.from_instances([nothing, nothing]).labels
    assert labels.dtype == torch.int64
    typed = InstanceData(bboxes=torch.zeros(1, 4), labels=torch.tensor([2.0]))
    assert GroundTruth.from_instances([typed, instances(1)]).labels.dtype == torch.int64
