"""The guard as it works on a GPU, without one: flags are tensors, and a fused optimizer leaves out steps itself."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from engine.engine_toys import bad_model
from engine.hooks.guard_runs import WRAPPERS, equal, finite, run
from no_sync import NoSync
from torch import nn

from detkit.engine import AmpOptimWrapper, CheckInvalidLossHook, OptimWrapper
from detkit.engine.hooks import invalid_loss
from detkit.engine.optim import wrappers


@pytest.fixture
def as_on_a_device(monkeypatch):
    """Takes the ways of a GPU on a CPU: flags are tensors, and a fused optimizer leaves out the step itself."""
    monkeypatch.setattr(invalid_loss, "_is_bad", invalid_loss._is_bad_on_device)
    monkeypatch.setattr(wrappers, "can_skip_on_device", lambda optimizer, flag: optimizer.defaults.get("fused"))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("action", ["raise", "skip"])
def test_a_fused_optimizer_leaves_out_the_step_without_the_host(as_on_a_device, kind, action):
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    hook = CheckInvalidLossHook(action=action)

    def optimizer(parameter: nn.Parameter) -> torch.optim.Optimizer:
        return kind([parameter], lr=0.1, weight_decay=0.1, fused=True, **options)

    weight = nn.Parameter(torch.ones(2))
    wrapper = OptimWrapper(optimizer(weight), clip_grad={"max_norm": 1.0})
    wrapper.guard = hook._guard
    # The first step is bad, so that the optimizer has no state to leave as it was.
    factors = [torch.tensor(value) for value in (float("inf"), 1.0, float("nan"), 1.0)]
    seen = []
    with NoSync():
        for factor in factors:
            wrapper.update_params(weight.square().sum() * factor)
            seen.append(weight.detach().clone())
    moved = [not torch.equal(one, other) for one, other in pairwise([torch.ones(2), *seen])]
    assert moved == ([False, True, False, True] if action == "skip" else [False] * 4)
    if action == "skip":  # two steps, as if nothing had been between them
        other = nn.Parameter(torch.ones(2))
        plain = OptimWrapper(
            kind([other], lr=0.1, weight_decay=0.1, fused=True, **options), clip_grad={"max_norm": 1.0}
        )
        for _ in range(2):
            plain.update_params(other.square().sum())
        assert torch.equal(weight, other)


@pytest.mark.parametrize("wrapper", list(WRAPPERS))
@pytest.mark.parametrize("action", ["raise", "skip"])
def test_runs_with_flags_on_the_device(make_runner, as_on_a_device, wrapper, action):
    runner, watch, error = run(
        make_runner, hook={"interval": 5, "action": action}, model=bad_model(4), wrapper=WRAPPERS[wrapper]
    )
    assert finite(runner.model)
    changed = [i for i in range(1, runner.iter + 1) if not equal(watch.weights[i], watch.weights[i - 1])]
    assert changed == ([1] if action == "raise" else [1, 3, 4, 6, 7, 9])
    assert (error is None) is (action == "skip")


def test_a_loss_scale_does_not_fall_because_of_a_bad_loss(as_on_a_device):
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
    wrapper = AmpOptimWrapper(optimizer, dtype="float16", loss_scale={"init_scale": 8.0})
    wrapper.guard = CheckInvalidLossHook(action="skip")._guard
    wrapper.update_params(weight.square().sum() * float("nan"))
    assert weight.tolist() == [1.0, 1.0]
    assert wrapper.loss_scaler.get_scale() == 8.0


def test_losses_are_judged_alike_on_host_and_device():
    for value in (0.0, -1e38, 1e-45, float("inf"), float("-inf"), float("nan")):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            loss = torch.tensor(value, dtype=torch.float64).to(dtype)
            expected = not torch.isfinite(loss)
            assert invalid_loss._is_bad(loss) == expected
            assert invalid_loss._is_bad_on_device(loss) == expected
