"""HorizontalBoxes: what it takes, what it shares with a tensor, and geometry by hand."""

import copy

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from detkit.structures import BitmapMasks, HorizontalBoxes
from detkit.structures.boxes import bbox_overlaps, cat_boxes, empty_box_as, get_box_wh, scale_boxes, stack_boxes

DATA = [[0.0, 0, 10, 10], [5, 5, 15, 25], [20, 20, 30, 30]]


@pytest.fixture
def boxes():
    return HorizontalBoxes(DATA)


@pytest.mark.parametrize("data", [DATA, np.array(DATA), torch.tensor(DATA), HorizontalBoxes(DATA)])
def test_takes_what_holds_boxes(data):
    made = HorizontalBoxes(data, dtype=torch.float32)
    assert made.tensor.tolist() == DATA
    assert made.dtype == torch.float32


def test_copies_unless_told_otherwise():
    data = torch.tensor(DATA)
    copied, shared = HorizontalBoxes(data), HorizontalBoxes(data, clone=False)
    data[0] = 7
    assert copied.tensor[0, 2] == 10
    assert shared.tensor[0, 2] == 7


def test_centres_and_sizes():
    boxes = HorizontalBoxes([[5.0, 5, 10, 10]], in_mode="cxcywh")
    assert boxes.tensor.tolist() == [[0, 0, 10, 10]]
    assert boxes.cxcywh.tolist() == [[5, 5, 10, 10]]
    assert boxes.centers.tolist() == [[5, 5]]
    assert (boxes.widths.item(), boxes.heights.item(), boxes.areas.item()) == (10, 10, 100)


def test_nothing_is_no_boxes():
    assert HorizontalBoxes([]).shape == (0, 4)
    assert len(HorizontalBoxes(torch.zeros(0, 4)).cxcywh) == 0


def test_boxes_around_masks():
    mask = np.zeros((1, 8, 8), dtype=np.uint8)
    mask[0, 2:4, 1:6] = 1
    assert HorizontalBoxes.from_instance_masks(BitmapMasks(mask, 8, 8)).tensor.tolist() == [[1, 2, 6, 4]]


def test_wrong_data_is_refused():
    with pytest.raises(ValueError, match=r"data has shape \(2, 5\), expected \(..., N, 4\)"):
        HorizontalBoxes(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="in_mode must be 'xyxy' or 'cxcywh', got 'xywh'"):
        HorizontalBoxes(DATA, in_mode="xywh")
    with pytest.raises(ValueError, match=r"distances must be \(x, y\), got \(1, 2, 3\)"):
        HorizontalBoxes(DATA).translate_((1, 2, 3))


def test_behaves_as_its_tensor(boxes):
    assert len(boxes) == boxes.size(0) == 3
    assert boxes.dim() == 2
    assert boxes.numel() == 12
    assert boxes.shape == boxes.size() == (3, 4)
    assert boxes[0].shape == (1, 4)
    assert boxes[torch.tensor(1)].tensor.tolist() == [DATA[1]]
    assert boxes[torch.tensor([True, False, True])].tensor.tolist() == [DATA[0], DATA[2]]
    assert boxes[1:].tensor.tolist() == DATA[1:]
    assert [box.tensor.tolist() for box in boxes] == [[row] for row in DATA]
    assert boxes.to(torch.float64).dtype == torch.float64
    assert boxes.view(1, 3, 4).squeeze(0).shape == boxes.unsqueeze(0).flatten(0, 1).shape == (3, 4)
    assert boxes.expand(2, 5, 3, 4).flatten().shape == (30, 4)  # not into numbers
    assert boxes.to(torch.float64).new_zeros(2, 4).dtype == torch.float64
    assert boxes.new_tensor([1]).tolist() == boxes.new_full((1,), 1).tolist() == boxes.new_ones(1).tolist() == [1]
    assert [len(part) for part in boxes.split([1, 2])] == [1, 2]
    assert boxes.numpy().tolist() == DATA
    assert "30" in repr(boxes)
    twin = copy.deepcopy(boxes)
    twin[0] = HorizontalBoxes([[1.0, 1, 2, 2]])
    assert twin.tensor[0].tolist() == [1, 1, 2, 2]
    assert boxes.tensor.tolist() == DATA


def test_joining(boxes):
    assert HorizontalBoxes.cat([boxes, boxes[:1]]).shape == cat_boxes([boxes, boxes[:1]]).shape == (4, 4)
    assert HorizontalBoxes.stack([boxes, boxes]).shape == stack_boxes([boxes, boxes]).shape == (2, 3, 4)
    assert isinstance(cat_boxes([boxes.tensor, boxes.tensor]), torch.Tensor)
    assert stack_boxes([boxes.tensor, boxes.tensor]).shape == (2, 3, 4)
    assert empty_box_as(boxes).shape == empty_box_as(boxes.tensor).shape == (0, 4)
    assert boxes.fake_boxes((2, 4), fill=3).tensor.tolist() == [[3] * 4] * 2


def test_is_a_field_of_instances(boxes):
    instances = InstanceData(bboxes=boxes, labels=torch.arange(3))
    chosen = instances[instances.labels > 0]
    assert chosen.bboxes.tensor.tolist() == DATA[1:]
    assert isinstance(InstanceData.cat([chosen, instances]).bboxes, HorizontalBoxes)
    assert isinstance(instances.to("cpu").bboxes, HorizontalBoxes)


def test_a_change_leaves_the_old_tensor_alone(boxes):
    before, old = boxes.tensor.clone(), boxes.tensor
    boxes.translate_((1, 2))
    boxes.clip_((12, 14))
    boxes.flip_((12, 14))
    boxes.rescale_((2, 2))
    boxes.resize_((2, 2))
    boxes.rotate_((3, 3), 10)
    boxes.project_(np.eye(3))
    assert torch.equal(old, before)


def test_turns_clockwise():
    boxes = HorizontalBoxes([[10.0, 0, 20, 5]])
    boxes.rotate_((10, 0), 90)
    # To the right becomes down, down becomes to the left
    torch.testing.assert_close(boxes.tensor, torch.tensor([[5.0, 0, 10, 10]]))


def test_inside(boxes):
    assert boxes.is_inside((20, 40)).tolist() == [True, True, False]
    assert boxes.is_inside((20, 40), allowed_border=1).tolist() == [True, True, True]
    assert boxes.is_inside((20, 40), all_inside=True).tolist() == [True, False, False]
    assert boxes.is_inside((20, 40), all_inside=True, allowed_border=11).tolist() == [True, True, True]
    points = torch.tensor([[10.0, 10], [5, 5], [31, 31]])
    assert boxes.find_inside_points(points).tolist() == [[True, True, False], [True, True, False], [False] * 3]
    assert boxes.find_inside_points(points, is_aligned=True).tolist() == [True, True, False]


def test_box_functions_take_it(boxes):
    assert torch.equal(HorizontalBoxes.overlaps(boxes, boxes), bbox_overlaps(boxes.tensor, boxes.tensor))
    assert get_box_wh(boxes)[1].tolist() == [10, 20, 10]
    scaled = scale_boxes(boxes, (2, 0.5))
    assert scaled.tensor[1].tolist() == [10, 2.5, 30, 12.5]
    assert boxes.tensor.tolist() == DATA
    assert torch.equal(HorizontalBoxes.xyxy_to_cxcywh(boxes.tensor), boxes.cxcywh)
    assert torch.equal(HorizontalBoxes.cxcywh_to_xyxy(boxes.cxcywh), boxes.tensor)
    assert torch.equal(HorizontalBoxes.corner2hbox(HorizontalBoxes.hbox2corner(boxes.tensor)), boxes.tensor)
