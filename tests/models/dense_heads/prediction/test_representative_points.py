"""Boxes of points and grids of boxes, by hand."""

import math

import torch

from detkit.models.dense_heads.prediction.representative_points import box_of_points, grid_of_boxes

POINTS = torch.tensor([[1.0, 5], [3, 2], [2, 4], [0, 3], [9, 9]])


def test_the_box_around_the_points():
    assert box_of_points(POINTS, "minmax").tolist() == [0, 2, 9, 9]
    assert box_of_points(POINTS, "partial_minmax").tolist() == [0, 2, 3, 5]


def test_moments():
    corners = torch.tensor([[-1.0, -2], [1, -2], [-1, 2], [1, 2]])
    # Standard deviations of four values +-1 and +-2: sqrt(4 / 3) and sqrt(16 / 3)
    box = box_of_points(corners + 10, "moment", torch.tensor([0.0, math.log(2)]))
    half = (4 / 3) ** 0.5, 2 * (16 / 3) ** 0.5
    torch.testing.assert_close(box, torch.tensor([10 - half[0], 10 - half[1], 10 + half[0], 10 + half[1]]))


def test_a_grid_reaches_from_side_to_side():
    deltas = torch.zeros(1, 4, 1, 1)
    deltas[0, 0], deltas[0, 3] = 0.5, math.log(2)
    # Half a width to the right, and twice as high.
    points, boxes = grid_of_boxes(deltas, torch.tensor([-2.0, -1, 2, 1]).view(1, 4, 1, 1), 3)
    assert boxes.flatten().tolist() == [0, -2, 4, 2]
    yx = points.view(3, 3, 2)
    assert yx[:, 0].tolist() == [[-2, 0], [0, 0], [2, 0]]
    assert yx[0].tolist() == [[-2, 0], [-2, 2], [-2, 4]]
    torch.testing.assert_close(box_of_points(yx.reshape(9, 2).flip(-1), "minmax"), boxes.flatten())
