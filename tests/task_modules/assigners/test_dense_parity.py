"""Assigners of dense heads against MMDetection 3.3.0."""

import pytest
import torch
from reference import arguments, assert_same, case_named, cases

from detkit.registry import TASK_UTILS

NAMES = ("MaxIoUAssigner", "ATSSAssigner", "SimOTAAssigner", "TaskAlignedAssigner", "DynamicSoftLabelAssigner")
# With an int, MMDetection's assigner finds no negatives at all; tested below.
BETTER = {"MaxIoUAssigner": {"neg_thr_int"}}


def reference_cases():
    for name in NAMES:
        for param in cases(f"assigners/{name}"):
            if param.id not in BETTER.get(name, ()):
                yield pytest.param(*param.values, id=f"{name}-{param.id}")


@pytest.mark.parametrize("case", list(reference_cases()))
def test_reference(case):
    assigner = TASK_UTILS.build(case["config"])
    if "error" in case:
        with pytest.raises(ValueError, match=case["config"]["type"]):
            assigner.assign(**arguments(case["inputs"]))
        return
    result = assigner.assign(**arguments(case["inputs"]))
    assert_same(result, case["outputs"], rtol=1e-4, atol=1e-5)


def test_an_int_threshold_is_a_number_like_any_other():
    case = case_named("assigners/MaxIoUAssigner", "neg_thr_int")
    result = TASK_UTILS.build(case["config"]).assign(**arguments(case["inputs"]))
    assert (result.gt_inds[result.max_overlaps < 1] >= 0).all()
    assert (result.gt_inds == 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_as_they_were(name):
    case = next(param.values[0] for param in cases(f"assigners/{name}") if "error" not in param.values[0])
    inputs = arguments(case["inputs"])
    TASK_UTILS.build(case["config"]).assign(**inputs)
    for key, value in case["inputs"].items():
        if isinstance(value, dict):
            for field, before in value.items():
                assert torch.equal(inputs[key][field], before), f"{key}.{field}"
