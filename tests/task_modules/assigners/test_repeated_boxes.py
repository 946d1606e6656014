"""Equal boxes moved apart: by how much, and how often it is tried."""

from unittest import mock

import torch

from detkit.structures.boxes import bbox_overlaps
from detkit.task_modules.assigners import repeated_boxes
from detkit.task_modules.assigners.repeated_boxes import jitter_repeated

BOXES = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [3, 3, 9, 9]]])


def test_a_first_draw_that_moves_too_far_is_drawn_again():
    draws = [torch.full_like(BOXES, 1.0), torch.full_like(BOXES, 0.5)]
    with mock.patch.object(repeated_boxes, "NUM_DRAWS", 2), mock.patch("torch.rand_like", side_effect=draws):
        moved = jitter_repeated(BOXES, iou_thr=0.97, perm_range=0.2)
    assert torch.equal(moved, BOXES)  # the second draw's factor is 1


def test_later_draws_move_less_and_the_last_is_taken():
    with mock.patch("torch.rand_like", torch.ones_like):
        moved = jitter_repeated(BOXES, iou_thr=1.5, perm_range=0.02)
    # The sixth draw's range is 0.02 - 5 * 0.001.
    torch.testing.assert_close(moved[0, :2], BOXES[0, :2] * 1.015)
    assert torch.equal(moved[0, 2], BOXES[0, 2])


def test_the_overlap_is_kept():
    torch.manual_seed(0)
    many = torch.tensor([10.0, 10, 40, 40]).expand(1, 400, 4)
    assert (bbox_overlaps(jitter_repeated(many, 0.97, 0.01), many, is_aligned=True) >= 0.97).float().mean() > 0.99
