"""Box coders against MMDetection 3.3.0."""

import pytest
import torch
from reference import arguments, assert_same, case_named, cases

from detkit.registry import TASK_UTILS

NAMES = (
    "BucketingBBoxCoder",
    "DeltaXYWHBBoxCoder",
    "DeltaXYWHBBoxCoderForGLIP",
    "DistancePointBBoxCoder",
    "LegacyDeltaXYWHBBoxCoder",
    "PseudoBBoxCoder",
    "TBLRBBoxCoder",
    "YOLOBBoxCoder",
)
# A TypeError there; tested below.
BETTER = ("int_normalizer",)
CASES = [case for name in NAMES for case in cases(f"coders/{name}") if case.id not in BETTER]


def parts(out):
    return [out] if isinstance(out, torch.Tensor) else list(out)


@pytest.mark.parametrize("case", CASES)
def test_coder(case):
    coder = TASK_UTILS.build(case["config"])
    inputs = arguments(case["inputs"])
    for name in case["grads"]:
        inputs[name].requires_grad_()
    if "error" in case:
        with pytest.raises(ValueError, match=rf"{type(coder).__name__}.{case['method']}: priors .* got \(8, "):
            getattr(coder, case["method"])(**inputs)
        return
    out = parts(getattr(coder, case["method"])(**inputs))
    assert_same([part.detach() for part in out], parts(case["outputs"]["out"]), rtol=1e-4, atol=1e-4)
    if case["grads"]:
        total = sum(part.sum() for part in out if part.requires_grad)
        grads = torch.autograd.grad(total, [inputs[name] for name in case["grads"]])
        assert_same(dict(zip(case["grads"], grads, strict=True)), case["grads"], rtol=1e-4, atol=1e-4)


def test_an_int_normalizer_is_a_number_like_any_other():
    case = case_named("coders/TBLRBBoxCoder", "int_normalizer")
    coder = TASK_UTILS.build(case["config"])
    inputs = arguments(case["inputs"])
    with_float = TASK_UTILS.build({**case["config"], "normalizer": float(case["config"]["normalizer"])})
    assert torch.equal(coder.encode(**inputs), with_float.encode(**inputs))
