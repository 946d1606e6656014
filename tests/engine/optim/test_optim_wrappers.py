"""Wrappers of optimizers: clipping, accumulation that survives a kill, the guard, mixed precision."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper as MMEngineOptimWrapper
from no_sync import NoSync
from torch import Tensor, nn

from detkit.engine import AmpOptimWrapper, OptimWrapper


def sgd(*values: float, **options) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.tensor([value])) for value in values], **{"lr": 1.0, **options})


def weights(wrapper) -> list[float]:
    return torch.cat([p.detach() for p in wrapper.optimizer.param_groups[0]["params"]]).tolist()


def half_square(wrapper) -> Tensor:
    """A loss whose gradient is the weights themselves."""
    return sum(p.square().sum() for p in wrapper.optimizer.param_groups[0]["params"]) / 2


@pytest.mark.parametrize(
    ("scope", "taken"),
    [
        ("global", [0.6, 0.8]),  # gradients 3 and 4 have norm 5
        ("per_param", [1.0, 1.0]),  # as Detectron2 clips: each to its own norm of 1
    ],
)
def test_clipping_by_norm_of_all_or_of_each(scope, taken):
    wrapper = OptimWrapper(sgd(3.0, 4.0), clip_grad={"max_norm": 1.0, "scope": scope})
    with NoSync():
        wrapper.update_params(half_square(wrapper))
    torch.testing.assert_close(torch.tensor(weights(wrapper)), torch.tensor([3.0, 4.0]) - torch.tensor(taken))
    assert wrapper.grad_norm.item() == pytest.approx(5.0)


def test_each_norm_is_as_torch_clips_one_parameter():
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) * 3 for shape in ((4, 3), (5,), (2, 2, 2))]
    for norm_type in (1.0, 2.0, float("inf")):
        own, theirs = ([nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients] for _ in range(2))
        for parameters in (own, theirs):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
        OptimWrapper(
            torch.optim.SGD(own, lr=1.0), clip_grad={"max_norm": 2.0, "norm_type": norm_type, "scope": "per_param"}
        )._clip_grad()
        for one, other in zip(own, theirs, strict=True):
            nn.utils.clip_grad_norm_([other], 2.0, norm_type)
            torch.testing.assert_close(one.grad, other.grad)


def test_a_small_gradient_is_not_enlarged():
    wrapper = OptimWrapper(sgd(3.0, 0.5), clip_grad={"max_norm": 1.0, "scope": "per_param"})
    wrapper.update_params(half_square(wrapper))
    assert weights(wrapper) == pytest.approx([2.0, 0.0], abs=1e-5)


@pytest.mark.parametrize("scope", ["global", "per_param"])
def test_clipping_by_value(scope):
    wrapper = OptimWrapper(sgd(3.0, -4.0), clip_grad={"type": "value", "clip_value": 1.0, "scope": scope})
    wrapper.update_params(half_square(wrapper))
    assert weights(wrapper) == [2.0, -3.0]  # the gradient [3, -4] becomes [1, -1]
    assert wrapper.grad_norm is None


@pytest.mark.parametrize(
    ("clip_grad", "error", "message"),
    [
        ({"type": "full_model", "max_norm": 1}, ValueError, "'norm' or 'value' was expected, got 'full_model'"),
        ({"max_norm": 1, "scope": "param"}, ValueError, "'global' or 'per_param' was expected, got 'param'"),
        ({"norm_type": 2}, KeyError, "clip_grad.max_norm is missing"),
        ({"type": "value"}, KeyError, "clip_grad.clip_value is missing"),
        ({"max_norm": 0}, ValueError, "clip_grad.max_norm: must be positive, got 0"),
        ({"max_norm": 1, "scope": "per_param", "foreach": True}, ValueError, "foreach: only scope='global'"),
        ({"type": "value", "clip_value": 1, "max_norm": 1}, KeyError, "max_norm: unknown key"),
    ],
)
def test_clipping_that_cannot_be_followed_is_refused(clip_grad, error, message):
    with pytest.raises(error, match=message):
        OptimWrapper(sgd(1.0), clip_grad=clip_grad)


def test_gradients_are_there_after_backward_and_gone_after_the_step():
    wrapper = OptimWrapper(sgd(3.0, momentum=0.5), accumulative_counts=2, clip_grad={"max_norm": 0.5})
    (weight,) = wrapper.optimizer.param_groups[0]["params"]
    seen = []
    wrapper.after_backward = lambda: seen.append((weight.grad.item(), weight.item()))
    wrapper.update_params(half_square(wrapper))
    wrapper.update_params(half_square(wrapper))
    # before clipping and step; each loss counts half
    assert seen == [(1.5, 3.0), (3.0, 3.0)]
    assert weight.item() == pytest.approx(2.5)
    assert weight.grad is None
    kept = OptimWrapper(sgd(3.0), set_to_none=False)
    kept.update_params(half_square(kept))
    assert kept.optimizer.param_groups[0]["params"][0].grad.item() == 0.0


@pytest.mark.parametrize("steps", [6, 7, 8])
def test_accumulation_is_mmengines_with_the_window_that_is_left(steps):
    # windows of 3; after 7 steps the last window has 1 iteration, after 8 it has 2
    results = []
    for cls in (OptimWrapper, MMEngineOptimWrapper):
        wrapper = cls(sgd(1.0, lr=0.1, momentum=0.9), accumulative_counts=3)
        wrapper.initialize_count_status(nn.Identity(), 0, steps)
        losses = []
        for factor in range(1, steps + 1):
            loss = half_square(wrapper) * factor
            losses.append(wrapper.scale_loss(loss).item())
            wrapper.update_params(loss)
        results.append((losses, weights(wrapper)))
    assert results[0] == results[1]


class Synced(nn.Module):
    """Stands for a model wrapped for several processes."""

    def __init__(self) -> None:
        super().__init__()
        self.without = 0

    def no_sync(self):
        self.without += 1
        return torch.enable_grad()


@pytest.mark.parametrize("cls", [OptimWrapper, AmpOptimWrapper])
def test_gradients_are_not_synchronised_within_a_window(cls):
    wrapper, model, without = cls(sgd(1.0), accumulative_counts=3), Synced(), []
    wrapper.initialize_count_status(model, 0, 4)
    for _ in range(4):
        before = model.without
        with wrapper.optim_context(model):
            assert torch.is_autocast_enabled("cpu") is (cls is AmpOptimWrapper)
            loss = half_square(wrapper)
        wrapper.update_params(loss)
        without.append(model.without - before)
    assert without == [1, 1, 0, 0]


def saved(state):
    """The state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", ["plain", "amp"])
@pytest.mark.parametrize("killed_after", [1, 2, 3, 4, 5])
def test_a_window_cut_by_a_kill_goes_on_to_the_bit(kind, killed_after):
    def build():
        torch.manual_seed(0)
        model = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        options = {"cls": AmpOptimWrapper, "dtype": "float16"} if kind == "amp" else {"cls": OptimWrapper}
        cls = options.pop("cls")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, cls(optimizer, accumulative_counts=3, **options)

    def train(model, wrapper, first, last):
        for i in range(first, last):
            wrapper.update_params(model(torch.full((1, 2, 4, 4), float(i + 1))).square().mean())

    batches = 7
    model, wrapper = build()
    wrapper.initialize_count_status(model, 0, batches)
    train(model, wrapper, 0, batches)
    begun, before = build()
    before.initialize_count_status(begun, 0, batches)
    train(begun, before, 0, killed_after)
    state = saved({"model": begun.state_dict(), "optimizer": before.state_dict()})
    assert ("accumulation" in state["optimizer"]) is (killed_after % 3 != 0)
    resumed, after = build()
    resumed.load_state_dict(state["model"])
    after.load_state_dict(copy.deepcopy(state["optimizer"]))
    after.initialize_count_status(resumed, killed_after, batches)
    train(resumed, after, killed_after, batches)
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


def test_a_window_of_another_size_starts_anew():
    wrapper = OptimWrapper(sgd(3.0), accumulative_counts=3)
    wrapper.update_params(half_square(wrapper))
    other = OptimWrapper(sgd(3.0), accumulative_counts=2)
    other.load_state_dict(wrapper.state_dict())
    assert other.optimizer.param_groups[0]["params"][0].grad is None


def not_finite(loss: Tensor) -> Tensor:
    return ~torch.isfinite(loss)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_a_forbidden_step_changes_nothing(dtype):
    optimizer = sgd(3.0, momentum=0.9, weight_decay=0.1, lr=0.1)
    clip = {"max_norm": 1.0}
    wrapper = (
        OptimWrapper(optimizer, clip_grad=clip)
        if dtype is None
        else AmpOptimWrapper(optimizer, clip_grad=clip, dtype=dtype, loss_scale={"init_scale": 8.0})
    )
    wrapper.guard = not_finite
    wrapper.after_backward = lambda: None  # with it, gradients are unscaled before it is known that none is used
    wrapper.update_params(half_square(wrapper))
    assert wrapper.grad_norm is not None
    before = copy.deepcopy((wrapper.state_dict(), weights(wrapper)))
    wrapper.update_params(half_square(wrapper) * float("nan"))
    after = (wrapper.state_dict(), weights(wrapper))
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert wrapper.grad_norm is None
    wrapper.update_params(half_square(wrapper))
    assert weights(wrapper) != before[1]


def test_one_forbidden_loss_forbids_the_step_of_its_window():
    wrapper = OptimWrapper(sgd(3.0), accumulative_counts=2)
    wrapper.guard = not_finite
    found = []
    for factor in (1.0, float("nan"), 1.0, 1.0, float("inf"), 1.0):
        wrapper.update_params(half_square(wrapper) * factor)
        found.append(weights(wrapper)[0])
    assert found == [3.0, 3.0, 3.0, 0.0, 0.0, 0.0]
    # the flag of a window that was begun survives a kill
    begun = OptimWrapper(sgd(3.0), accumulative_counts=2)
    begun.guard = not_finite
    begun.update_params(half_square(begun) * float("nan"))
    resumed = OptimWrapper(sgd(3.0), accumulative_counts=2)
    resumed.guard = not_finite
    resumed.load_state_dict(saved(begun.state_dict()))
    resumed.initialize_count_status(nn.Identity(), 1, 4)
    resumed.update_params(half_square(resumed))
    assert weights(resumed) == [3.0]


def test_after_backward_sees_unscaled_gradients_where_a_step_follows():
    wrapper = AmpOptimWrapper(sgd(3.0), loss_scale=64.0, dtype="float16")
    (weight,) = wrapper.optimizer.param_groups[0]["params"]
    seen = []
    wrapper.after_backward = lambda: seen.append(weight.grad.item())
    wrapper.update_params(half_square(wrapper))
    assert seen == [3.0]
    assert weights(wrapper) == [0.0]


def test_the_loss_scale_is_reported_without_a_wait():
    dynamic = AmpOptimWrapper(sgd(3.0), loss_scale={"init_scale": 8.0, "growth_interval": 1}, dtype="float16")
    dynamic.update_params(half_square(dynamic))
    with NoSync():
        scale = dynamic.loss_scale
    assert scale.item() == 16.0
    assert AmpOptimWrapper(sgd(3.0), loss_scale=4.0, dtype="float16").loss_scale == 4.0
    assert AmpOptimWrapper(sgd(3.0), dtype="bfloat16").loss_scale is None


def test_a_state_without_a_scaler_leaves_the_scaler_at_its_start():
    wrapper = AmpOptimWrapper(sgd(3.0), loss_scale={"init_scale": 8.0}, dtype="float16")
    wrapper.load_state_dict(OptimWrapper(sgd(3.0)).state_dict())
    assert wrapper.loss_scale.item() == 8.0
    AmpOptimWrapper(sgd(3.0), dtype="bfloat16").load_state_dict(wrapper.state_dict())


@pytest.mark.parametrize("count", [0, 1.5, "2"])
def test_accumulative_counts_are_checked(count):
    with pytest.raises(ValueError, match=f"accumulative_counts: must be a whole number of at least 1, got {count!r}"):
        OptimWrapper(sgd(1.0), accumulative_counts=count)


def test_a_fused_sgd_whose_first_step_overflows_has_no_uninitialised_momentum():
    # torch allocates the momentum at the first step, also if the step is then left out
    parameter = nn.Parameter(torch.tensor([3.0]))
    fused = torch.optim.SGD([parameter], lr=1.0, momentum=0.9, fused=True)
    wrapper = AmpOptimWrapper(fused, loss_scale={"init_scale": 8.0}, dtype="float16")
    wrapper.update_params(parameter.sum() * float("inf"))
    assert fused.state[parameter]["momentum_buffer"].item() == 0.0
    wrapper.update_params(parameter.square().sum() / 2)
    assert parameter.item() == 0.0


def test_the_loss_scale_is_logged(make_runner):
    wrapper = {
        "type": "AmpOptimWrapper",
        "dtype": "float16",
        "optimizer": {"type": "SGD", "lr": 0.1},
        "loss_scale": {"init_scale": 8.0, "growth_interval": 2},
    }
    runner = make_runner(epochs=2, optim_wrapper=wrapper)
    runner.train()
    lines = map(json.loads, Path(runner.work_dir, "metrics.jsonl").read_text().splitlines())
    # after iterations 2, 5 and 6: doubled each two steps
    assert [line["loss_scale"] for line in lines if "loss_scale" in line] == [16.0, 32.0, 64.0]
