"""Averages of weights: mmengine's numbers, without waiting for the device."""

from __future__ import annotations

import math
from copy import deepcopy

import mmengine.model
import pytest
import torch
from no_sync import NoSync
from torch import nn

from detkit.engine.optim import (
    ExpMomentumEMA,
    ExponentialMovingAverage,
    LinearWarmupEMA,
    MomentumAnnealingEMA,
    StochasticWeightAverage,
)
from detkit.engine.optim.averaging import swap_weights
from detkit.registry import MODELS


class Net(nn.Module):
    """Shared weights, integer and float buffers, a half-precision parameter, a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 2, 3)
        self.two = nn.BatchNorm2d(2)
        self.alias = self.one
        self.tied = nn.Conv2d(1, 2, 3)
        self.tied.weight = self.one.weight
        self.low = nn.Parameter(torch.zeros(3, dtype=torch.float16))
        self.register_buffer("cache", torch.zeros(1), persistent=False)


def walk(model: nn.Module, step: int) -> None:
    """Other weights for each step; buffers are replaced, as some models do."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is None:
                continue
            if name == "cache":
                module._buffers[name] = torch.zeros(step + 1)  # its size may change
            else:
                module._buffers[name] = torch.randint(9, buffer.shape, generator=generator).to(buffer.dtype)


PAIRS = [
    (ExponentialMovingAverage, mmengine.model.ExponentialMovingAverage, {"momentum": 0.1}),
    (MomentumAnnealingEMA, mmengine.model.MomentumAnnealingEMA, {"momentum": 0.1, "gamma": 3}),
    (StochasticWeightAverage, mmengine.model.StochasticWeightAverage, {}),
]


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize(("own", "theirs", "options"), PAIRS)
def test_numbers_and_keys_are_mmengines(own, theirs, options, interval, buffers):
    model = Net()
    model.alias = model.tied = nn.Identity()  # mmengine averages shared weights once per name
    model.cache = None
    arguments = {**options, "interval": interval, "update_buffers": buffers}
    one, other = own(model, **arguments), theirs(model, **arguments)
    for step in range(8):
        walk(model, step)
        one.update_parameters(model)
        other.update_parameters(model)
    state, expected = one.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        if buffers and value.dtype == torch.int64 and key != "steps":
            value = model.state_dict()[key.removeprefix("module.")]  # mmengine keeps the first one for ever
        # mmengine's mean rounds its half-precision difference before it is added
        tolerance = {"rtol": 5e-3, "atol": 1e-3} if value.dtype == torch.float16 else {}
        torch.testing.assert_close(state[key], value, **tolerance)
        assert state[key].dtype == value.dtype


def averaged_line(kind, **options) -> list[float]:
    """The average of 0, 1, 1, 1 ... after each of four updates."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = kind(model, **options)
    values = []
    for _ in range(4):
        average.update_parameters(model)
        values.append(average.module.weight.item())
        nn.init.ones_(model.weight)
    return values


def test_momentum_by_hand():
    def falls(weights: list[float]) -> list[float]:
        values, value = [0.0], 0.0
        for weight in weights:
            value += weight * (1 - value)
            values.append(value)
        return values

    exponential = [0.9 * math.exp(-(1 + step) / 2) + 0.1 for step in (1, 2, 3)]
    assert averaged_line(ExpMomentumEMA, momentum=0.1, gamma=2) == pytest.approx(falls(exponential))
    # from 1 at step 0 to 0.1 at step 3 and later
    assert averaged_line(LinearWarmupEMA, momentum=0.1, warmup=3) == pytest.approx(falls([0.7, 0.4, 0.1]))
    assert averaged_line(LinearWarmupEMA, momentum=0.1, warmup=1) == pytest.approx(falls([0.1, 0.1, 0.1]))
    # the mean of 0, 1, 1, 1
    assert averaged_line(StochasticWeightAverage) == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4])


def test_shared_weights_are_averaged_once():
    model = Net()
    average = ExponentialMovingAverage(model, momentum=0.5)
    walk(model, 0)
    average.update_parameters(model)
    before = model.one.weight.detach().clone()
    walk(model, 1)
    average.update_parameters(model)
    torch.testing.assert_close(average.module.one.weight, (before + model.one.weight.detach()) / 2)
    assert average.module.alias is average.module.one
    assert average.module.tied.weight is average.module.one.weight
    assert average.module.cache.shape == (1,)


def test_an_update_does_not_wait_for_the_device():
    model = Net()
    for kind in (ExponentialMovingAverage, MomentumAnnealingEMA, ExpMomentumEMA, StochasticWeightAverage):
        average = kind(model)
        with NoSync():
            for _ in range(3):
                average.update_parameters(model)
        assert isinstance(average.steps, int)


def test_layout_and_compiling_do_not_matter():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    plain, compiled = ExponentialMovingAverage(model, momentum=0.5), ExponentialMovingAverage(model, momentum=0.5)
    last = deepcopy(model).to(memory_format=torch.channels_last)
    walk(model, 1)
    last.load_state_dict(model.state_dict())
    wrapped = torch.compile(last, backend="eager")
    part = deepcopy(model)
    part[0] = torch.compile(part[0], backend="eager")
    for step, (one, other) in enumerate([(model, wrapped), (model, part), (model, last)]):
        if step:
            nn.init.constant_(one[0].weight, float(step))
            nn.init.constant_((other if other is last else part)[0].weight, float(step))
        plain.update_parameters(one)
        compiled.update_parameters(other)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, compiled.state_dict()[key]), key
    calls: list[int] = []
    model.forward = torch.compile(lambda x: calls.append(1) or x, backend="eager")
    copied = ExponentialMovingAverage(model)
    copied(torch.zeros(2, 2, 4, 4))
    assert not calls  # the copy runs itself, not what was copied


def test_a_state_is_taken_up_and_weights_change_places_and_back():
    model = Net()
    average = MomentumAnnealingEMA(model)
    for step in range(3):
        walk(model, step)
        average.update_parameters(model)
    other = MomentumAnnealingEMA(Net())
    other.load_state_dict(average.state_dict())
    assert other.steps == 3
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in average.state_dict().items())
    with pytest.raises(RuntimeError, match="steps"):
        other.load_state_dict({k: v for k, v in average.state_dict().items() if k != "steps"})
    weights, mean = deepcopy(model.state_dict()), deepcopy(average.module.state_dict())
    parameter = model.one.weight
    swap_weights(average.module, model)
    assert model.one.weight is parameter
    assert all(torch.equal(value, mean[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, weights[key]) for key, value in average.module.state_dict().items())
    swap_weights(average.module, model)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("ExponentialMovingAverage", {"momentum": 1.0}, r"ExponentialMovingAverage: momentum lies in \(0, 1\), got 1"),
        ("ExponentialMovingAverage", {"interval": 0}, "interval must be at least 1, got 0"),
        ("ExpMomentumEMA", {"gamma": 0}, "ExpMomentumEMA: gamma must be positive, got 0"),
        ("MomentumAnnealingEMA", {"gamma": -1}, "MomentumAnnealingEMA: gamma must be positive, got -1"),
        ("LinearWarmupEMA", {"warmup": 0}, "LinearWarmupEMA: warmup must be positive, got 0"),
    ],
)
def test_arguments_are_checked(kind, options, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build({"type": kind, "model": nn.Linear(1, 1), **options})


def test_another_model_is_refused():
    average = ExponentialMovingAverage(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"the model that was copied has no 0\.weight"):
        average.update_parameters(nn.Sequential(nn.Linear(1, 1)))
