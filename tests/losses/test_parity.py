"""Losses against MMDetection 3.3.0: values and gradients."""

import pytest
import torch
from reference import arguments, assert_same, case_named, cases, load_weights

from detkit.registry import MODELS

# Where MMDetection fails or leaves its own contract, and what detkit does instead: tested below.
BETTER = {
    "FocalLoss": {"empty_mean"},
    "CrossEntropyLoss": {"empty_mean", "sigmoid_empty_mean", "mask_empty"},
    "SmoothL1Loss": {"zero_weight_none", "zero_weight_n", "empty_none"},
    "L1Loss": {"zero_weight_none", "zero_weight_n", "empty_none"},
}


def reference_cases():
    for name in BETTER:
        for param in cases(f"losses/{name}"):
            if param.id not in BETTER[name]:
                yield pytest.param(*param.values, id=f"{name}-{param.id}")


def run(case):
    """Call the case's loss; give back outputs, gradients and buffers."""
    module = MODELS.build(case["config"])
    if "state_dict" in case:
        load_weights(module, case)
    inputs = arguments(case["inputs"])
    for name in case["grads"]:
        inputs[name].requires_grad_()
    before = {name: value.detach().clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    out = getattr(module, case["method"])(**inputs)
    for name, value in before.items():
        torch.testing.assert_close(inputs[name].detach(), value, rtol=0, atol=0, equal_nan=True)
    grads = torch.autograd.grad(total(out), [inputs[name] for name in case["grads"]], materialize_grads=True)
    return detached(out), dict(zip(case["grads"], grads, strict=True)), dict(module.named_buffers())


def total(out):
    """Sum of all floats that a loss returns."""
    if isinstance(out, torch.Tensor):
        return out.sum()
    return sum(total(value) for value in (out.values() if isinstance(out, dict) else out))


def detached(out):
    if isinstance(out, torch.Tensor):
        return out.detach()
    if isinstance(out, dict):
        return {name: detached(value) for name, value in out.items()}
    return [detached(value) for value in out]


@pytest.mark.parametrize("case", list(reference_cases()))
def test_values_and_gradients(case):
    if "error" in case:
        with pytest.raises((ValueError, RuntimeError), match=r"Loss|GHM|avg_factor"):
            run(case)
        return
    out, grads, state = run(case)
    assert_same(out if isinstance(out, dict) else {"out": out}, case["outputs"], rtol=1e-4, atol=1e-5)
    assert_same(grads, case["grads"], rtol=1e-4, atol=1e-5)
    assert_same(state, case.get("state_after", {}), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("FocalLoss", "empty_mean"),
        ("CrossEntropyLoss", "empty_mean"),
        ("CrossEntropyLoss", "sigmoid_empty_mean"),
        ("CrossEntropyLoss", "mask_empty"),
    ],
)
def test_the_mean_of_nothing_is_zero_not_nan(name, case):
    case = case_named(f"losses/{name}", case)
    out, grads, _ = run(case)
    assert out.sum() == 0
    assert all(grad.numel() == 0 for grad in grads.values())


@pytest.mark.parametrize("name", ["SmoothL1Loss", "L1Loss"])
@pytest.mark.parametrize("case", ["zero_weight_none", "empty_none"])
def test_reduction_none_keeps_the_shape(name, case):
    # MMDetection returns a scalar when every weight is zero or nothing is there.
    case = case_named(f"losses/{name}", case)
    out, _, _ = run(case)
    assert out.shape == case["inputs"]["pred"].shape
    assert not out.any()


@pytest.mark.parametrize("name", ["SmoothL1Loss", "L1Loss"])
def test_weight_of_another_shape_is_refused_even_if_zero(name):
    # MMDetection refuses (N,) for (N, 4) unless the weights happen to be zero.
    with pytest.raises(ValueError, match=rf"{name}: weight \(8,\) does not fit pred \(8, 4\)"):
        run(case_named(f"losses/{name}", "zero_weight_n"))
