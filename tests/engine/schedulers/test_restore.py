"""Resuming a schedule: progress comes from the checkpoint, what it is from the config.

Iterations are counted from 1, as everywhere in detkit: what Detectron2 calls iteration 9 is step 10 here.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.engine_toys import toy_config
from mmengine.hooks import Hook

from detkit.engine import Runner, load_checkpoint_file, save_checkpoint_file
from detkit.engine.schedulers import LRMultiplier, restore_schedulers, schedulers_state


class Rates(Hook):
    """The learning rate used in each iteration, by number."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.seen[runner.iter] = runner.optim_wrapper.get_lr()["lr"][0]


@pytest.fixture
def run(make_runner):
    """Trains the toy for a number of iterations; returns the runner and the rates it used."""

    def train(
        iters: int, scheduler: Any, lr: float = 0.1, wrapper: Any = None, **changes: Any
    ) -> tuple[Runner, dict[int, float]]:
        hooks = toy_config("")["default_hooks"]
        runner = make_runner(
            train_cfg={"by_epoch": False, "max_iters": iters, "val_interval": 1000},
            val_cfg=None,
            val_dataloader=None,
            val_evaluator=None,
            optim_wrapper=wrapper or {"optimizer": {"type": "SGD", "lr": lr}},
            param_scheduler=scheduler,
            default_hooks=hooks | {"checkpoint": {"type": "CheckpointHook", "interval": 10, "by_epoch": False}},
            **changes,
        )
        rates = Rates()
        runner.register_hook(rates)
        runner.train()
        return runner, rates.seen

    return train


def cosine() -> dict[str, Any]:
    return {"type": "LRMultiplier", "multiplier": {"type": "CosineMultiplier"}}


@pytest.mark.parametrize(
    "scheduler",
    [
        # mmengine's schedule ends before its last step unless it is told otherwise.
        {"type": "StepLR", "step_size": 3, "gamma": 0.1, "by_epoch": False, "end": 1000},
        {"type": "LRMultiplier", "multiplier": {"type": "StepWithFixedGamma", "num_decays": 4}, "end": 15},
    ],
)
def test_a_run_that_was_done_is_done(run, scheduler):
    def position(runner: Runner) -> tuple[int, int, float]:
        return runner.iter, runner.param_schedulers[0].last_step, runner.optim_wrapper.get_lr()["lr"][0]

    runner, _ = run(12, scheduler)
    assert position(runner) == (12, 12, pytest.approx(1e-5))
    runner, seen = run(12, scheduler, lr=999.0, resume=True)
    assert position(runner) == (12, 12, pytest.approx(1e-5))
    assert seen == {}


def test_a_longer_run_follows_the_new_length_from_the_old_rate(run, capfd):
    run(10, cosine())
    capfd.readouterr()
    _, seen = run(20, cosine(), lr=7.0, resume=True)
    assert min(seen) == 10
    assert seen[10] == pytest.approx(0.05)  # half way of 20 iterations
    assert seen[19] == pytest.approx(0.0006156, abs=1e-7)
    assert "param_scheduler.0 (LRMultiplier): end was 10 before, and is 20 now" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda steps: {"type": "MultiStepLR", "milestones": steps, "by_epoch": False},
        lambda steps: {"type": "LRMultiplier", "multiplier": {"type": "MultiStepMultiplier", "milestones": steps}},
    ],
    ids=["MultiStepLR", "LRMultiplier"],
)
def test_new_milestones_count(run, capfd, scheduler):
    run(10, scheduler([6]))
    capfd.readouterr()
    _, seen = run(20, scheduler([6, 14]), resume=True)
    assert [seen[step] for step in range(10, 20)] == pytest.approx([0.01] * 4 + [0.001] * 6)
    warned = "".join(capfd.readouterr())
    assert "milestones" in warned
    assert "before, and is" in warned


def test_a_milestone_where_the_shorter_run_ended(run):
    """mmengine's schedulers take no step at their end, which is that of the run unless the config says otherwise."""
    schedule = {"type": "MultiStepLR", "milestones": [6, 10, 14], "by_epoch": False}
    run(10, schedule)
    runner, seen = run(20, schedule, resume=True)
    assert [seen[step] for step in range(10, 20)] == pytest.approx([0.001] * 4 + [0.0001] * 6)
    assert runner.param_schedulers[0]._global_step == 20


@pytest.mark.filterwarnings("error:Detected call of")
def test_accumulating_gradients_is_no_wrong_order(run):
    wrapper = {"optimizer": {"type": "SGD", "lr": 0.1}, "accumulative_counts": 2}
    run(4, {"type": "LinearLR", "by_epoch": False}, wrapper=wrapper)


def test_a_resumed_schedule_is_the_uninterrupted_one(run, tmp_path):
    curve = {"type": "WarmupMultiplier", "multiplier": {"type": "CosineMultiplier"}, "warmup_iters": 14}
    schedule = {"type": "LRMultiplier", "multiplier": curve, "end": 20}
    run(10, schedule)
    _, second = run(20, schedule, resume=True)
    for path in (tmp_path / "run").glob("*.pth"):
        path.unlink()
    _, whole = run(20, schedule)
    assert second == {step: rate for step, rate in whole.items() if step >= 10}  # to the last bit


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ([], r"has the state of 1 param_scheduler entries, the config has 0"),
        ([cosine(), {"type": "ConstantMomentum"}], r"has the state of 1 .*, the config has 2 \(LRMult.*, ConstantM"),
        ({"type": "StepLR", "step_size": 3}, r"param_scheduler\.0 was a LRMultiplier and is now a StepLR"),
        ({"type": "WarmupCosineLR"}, r"param_scheduler\.0 was a LRMultiplier and is now a WarmupCosineLR"),
    ],
)
def test_another_kind_of_schedule_is_refused(run, changed, message):
    run(10, cosine())
    with pytest.raises(ValueError, match=message):
        run(20, changed, resume=True)


def test_a_file_that_names_no_types_is_resumed_by_what_it_holds(run, tmp_path):
    constant = {"type": "ConstantLR", "by_epoch": False, "end": 5}
    run(10, constant)
    (path,) = (tmp_path / "run").glob("iter_10.pth")
    checkpoint = load_checkpoint_file(path)
    del checkpoint["param_schedulers"][0]["type"]
    save_checkpoint_file(checkpoint, path)
    with pytest.raises(ValueError, match=r"param_scheduler\.0 is now a StepLR, whose state has other entries"):
        run(12, {"type": "StepLR", "step_size": 3}, resume=True)
    runner, _ = run(12, constant, resume=True)
    assert runner.iter == 12


def test_weights_of_a_run_that_went_far_start_a_run_at_its_beginning(run, tmp_path):
    """Detectron2's plain loop starts at iteration 90,000 with such a file."""
    first, _ = run(10, cosine())
    (path,) = (tmp_path / "run").glob("iter_10.pth")
    checkpoint = load_checkpoint_file(path)
    checkpoint["iteration"] = checkpoint["meta"]["iter"] = 89_999
    save_checkpoint_file(checkpoint, tmp_path / "far.pth")
    for old in Path(first.work_dir).glob("*.pth"):
        old.unlink()
    _, seen = run(10, cosine(), load_from=str(tmp_path / "far.pth"))
    assert seen[0] == 0.1
    assert sorted(seen) == list(range(10))


def test_states_of_several_optimizers_keep_their_names():
    optimizers = {name: torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1) for name in ("gen", "disc")}
    curve = {"type": "LinearMultiplier"}

    def built() -> dict[str, Any]:
        return {name: [LRMultiplier(one, curve, end=10)] for name, one in optimizers.items()}

    schedulers = built()
    for _ in range(4):
        schedulers["gen"][0].step()
    state = schedulers_state(schedulers)
    assert state["gen"][0]["type"] == "LRMultiplier"
    restore_schedulers(built(), state, "file.pth", logging.getLogger())
    assert {name: one.param_groups[0]["lr"] for name, one in optimizers.items()} == pytest.approx(
        {"gen": 0.06, "disc": 0.1}
    )
