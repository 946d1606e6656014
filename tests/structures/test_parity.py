"""Box overlaps against MMDetection 3.3.0."""

import pytest
from reference import arguments, assert_same, cases

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import bbox_overlaps


@pytest.mark.parametrize("case", cases("boxes/BboxOverlaps2D"))
def test_calculator(case):
    out = TASK_UTILS.build(case["config"])(**arguments(case["inputs"]))
    assert_same(out, case["outputs"]["out"], 1e-5, 1e-5)


@pytest.mark.parametrize("case", cases("boxes/bbox_overlaps"))
def test_function(case):
    if "error" in case:
        with pytest.raises((ValueError, RuntimeError)):
            bbox_overlaps(**arguments(case["inputs"]))
        return
    out = bbox_overlaps(**arguments(case["inputs"]))
    assert_same(out, case["outputs"]["out"], 1e-5, 1e-5)
