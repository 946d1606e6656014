"""Box functions and the box type against MMDetection 3.3.0."""

import pytest
import torch
from reference import arguments, assert_same, cases

from detkit.structures import boxes
from detkit.structures.boxes import HorizontalBoxes

FUNCTIONS = (
    "bbox2corner",
    "bbox2distance",
    "bbox2roi",
    "bbox_cxcyah_to_xyxy",
    "bbox_cxcywh_to_xyxy",
    "bbox_flip",
    "bbox_mapping",
    "bbox_mapping_back",
    "bbox_overlaps",
    "bbox_project",
    "bbox_rescale",
    "bbox_xyxy_to_cxcyah",
    "bbox_xyxy_to_cxcywh",
    "corner2bbox",
    "distance2bbox",
    "find_inside_bboxes",
    "get_box_wh",
    "roi2bbox",
    "scale_boxes",
)


def detached(value):
    """Without the way back to the inputs."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {name: detached(part) for name, part in value.items()}
    return [detached(part) for part in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("case", [case for name in FUNCTIONS for case in cases(f"boxes/{name}")])
def test_function(case):
    function = getattr(boxes, case["config"]["type"])
    inputs, before = arguments(case["inputs"]), arguments(case["inputs"])
    if "error" in case:
        with pytest.raises(ValueError, match=case["config"]["type"]):
            function(**inputs)
        return
    for name in case["grads"]:
        inputs[name].requires_grad_()
    out = function(**inputs)
    assert_same(detached(out), case["outputs"]["out"], 1e-5, 1e-5)
    assert_same(detached(inputs), before, 0, 0)
    if case["grads"]:
        grads = torch.autograd.grad(out.sum(), [inputs[name] for name in case["grads"]])
        assert_same(dict(zip(case["grads"], grads, strict=True)), case["grads"], 1e-4, 1e-5)


@pytest.mark.parametrize("case", cases("boxes/HorizontalBoxes"))
def test_box_type(case):
    given = HorizontalBoxes(case["inputs"]["boxes"])
    member = getattr(given, case["inputs"]["op"])
    out = member(**case["inputs"]["kwargs"]) if callable(member) else member
    assert_same(given.tensor if out is None else out, case["outputs"]["out"], 1e-5, 1e-5)
