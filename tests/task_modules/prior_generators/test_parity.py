"""Prior generators against MMDetection 3.3.0."""

import pytest
from reference import arguments, assert_same, cases

from detkit.registry import TASK_UTILS
from detkit.task_modules.prior_generators import anchor_inside_flags, calc_region

NAMES = (
    "AnchorGenerator",
    "LegacyAnchorGenerator",
    "LegacySSDAnchorGenerator",
    "MlvlPointGenerator",
    "PointGenerator",
    "SSDAnchorGenerator",
    "YOLOAnchorGenerator",
)


@pytest.mark.parametrize("case", [case for name in NAMES for case in cases(f"priors/{name}")])
def test_generator(case):
    def call():
        member = getattr(TASK_UTILS.build(case["config"]), case["method"])
        return member(**case["inputs"]) if callable(member) else member

    if "error" in case:
        with pytest.raises(ValueError, match=case["config"]["type"]):
            call()
    else:
        assert_same(call(), case["outputs"]["out"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", cases("boxes/anchor_inside_flags"))
def test_anchor_inside_flags(case):
    assert_same(anchor_inside_flags(**arguments(case["inputs"])), case["outputs"]["out"], 0, 0)


@pytest.mark.parametrize("case", cases("boxes/calc_region"))
def test_calc_region(case):
    assert_same(calc_region(**arguments(case["inputs"])), case["outputs"]["out"], 0, 0)
