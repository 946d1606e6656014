"""Which schedules are stepped when."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.hooks import ParamSchedulerHook as MMEngineHook

from detkit.engine.hooks import ParamSchedulerHook
from detkit.registry import HOOKS


class Counted:
    def __init__(self, by_epoch: bool) -> None:
        self.by_epoch = by_epoch
        self.steps = 0

    def step(self) -> None:
        self.steps += 1


@pytest.mark.parametrize("named", [False, True])
def test_iterations_and_epochs(named):
    schedulers = [Counted(False), Counted(True), Counted(False)]
    runner = SimpleNamespace(param_schedulers={"a": schedulers[:2], "b": schedulers[2:]} if named else schedulers)
    hook = ParamSchedulerHook()
    for _ in range(3):
        hook.after_train_iter(runner, 0)
    hook.after_train_epoch(runner)
    assert [one.steps for one in schedulers] == [3, 1, 3]
    runner.param_schedulers = [Counted(False)]  # replaced in a run
    hook.after_train_iter(runner, 0)
    assert runner.param_schedulers[0].steps == 1
    assert [one.steps for one in schedulers] == [3, 1, 3]


def test_no_schedule():
    hook, runner = ParamSchedulerHook(), SimpleNamespace(param_schedulers=None)
    hook.after_train_iter(runner, 0)
    hook.after_train_epoch(runner)


def test_the_default_hook_is_this_one(make_runner):
    runner = make_runner()
    found = [hook for hook in runner.hooks if isinstance(hook, MMEngineHook)]
    assert [type(hook) for hook in found] == [ParamSchedulerHook]
    assert HOOKS.get("ParamSchedulerHook") is ParamSchedulerHook


def test_a_schedule_that_follows_a_metric(make_runner):
    plateau = {"type": "ReduceOnPlateauLR", "monitor": "toy/loss", "rule": "greater", "patience": 0, "factor": 0.5}
    runner = make_runner(epochs=3, param_scheduler=plateau)
    runner.train()
    # The toy's second metric falls at every validation, and was to grow.
    assert runner.optim_wrapper.get_lr()["lr"][0] < 0.1


def test_it_costs_less_than_mmengines():
    def cost(hook: Any) -> float:
        runner = SimpleNamespace(param_schedulers=[Counted(False), Counted(True)])
        best = math.inf
        for _ in range(20):
            start = time.process_time()
            for _ in range(500):
                hook.after_train_iter(runner, 0)
            best = min(best, (time.process_time() - start) / 500)
        return best

    assert cost(ParamSchedulerHook()) < cost(MMEngineHook())
