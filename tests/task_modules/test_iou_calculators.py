"""Overlaps as modules: half precision on demand, whole pixels, box types, and MMDetection 3.3.0."""

import pytest
import torch
from reference import arguments, assert_same, cases

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import HorizontalBoxes, bbox_overlaps
from detkit.task_modules.iou_calculators import BboxOverlaps2D, BboxOverlaps2D_GLIP

FIRST = torch.tensor([[0.0, 0, 10, 10], [0, 0, 4, 4], [20, 20, 30, 30]])
SECOND = torch.tensor([[5.0, 5, 15, 15], [0, 0, 10, 10]])
# MMDetection's calculator for GLIP ignores the mode; tested below.
GLIP = [case for case in cases("boxes/BboxOverlaps2D_GLIP") if case.id == "iou"]


@pytest.mark.parametrize("case", [*cases("boxes/BboxOverlaps2D"), *GLIP])
def test_calculator(case):
    out = TASK_UTILS.build(case["config"])(**arguments(case["inputs"]))
    assert_same(out, case["outputs"]["out"], 1e-5, 1e-5)


def test_half_overlaps_are_half_on_demand():
    calculator = BboxOverlaps2D(scale=16.0, dtype="fp16")
    assert torch.equal(calculator(FIRST, SECOND), calculator(FIRST, SECOND).half().float())
    torch.testing.assert_close(calculator(FIRST, SECOND), bbox_overlaps(FIRST, SECOND), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="BboxOverlaps2D_GLIP: dtype must be None or 'fp16', got 'bf16'"):
        BboxOverlaps2D_GLIP(dtype="bf16")


@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
def test_overlaps_in_whole_pixels_do_what_the_mode_says(mode):
    """MMDetection's calculator for GLIP takes ``mode`` and ``is_aligned`` and ignores them."""
    grown = [boxes + torch.tensor([0.0, 0, 1, 1]) for boxes in (FIRST, SECOND)]
    torch.testing.assert_close(BboxOverlaps2D_GLIP()(FIRST, SECOND, mode), bbox_overlaps(*grown, mode))
    pairs = BboxOverlaps2D_GLIP()(FIRST[:2], SECOND, mode, is_aligned=True)
    torch.testing.assert_close(pairs, bbox_overlaps(grown[0][:2], grown[1], mode, is_aligned=True))


@pytest.mark.parametrize("build", [BboxOverlaps2D, BboxOverlaps2D_GLIP])
def test_scores_do_not_count_and_box_types_are_as_good_as_tensors(build):
    overlaps = build()(FIRST, SECOND)
    assert torch.equal(build()(torch.cat([FIRST, torch.ones(3, 1)], dim=1), SECOND), overlaps)
    assert torch.equal(build()(HorizontalBoxes(FIRST), HorizontalBoxes(SECOND)), overlaps)
