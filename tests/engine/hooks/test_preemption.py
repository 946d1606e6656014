"""Runs that are asked to end: a checkpoint, an exit status, and the weights of the uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine.engine_toys import toy_config

from detkit.engine import Hook, Preempted, load_checkpoint_file


class Signal(Hook):
    """Sends a signal to this process, as a cluster does."""

    def __init__(self, at: int, stage: str, number: int = signal.SIGTERM) -> None:
        def send(runner, *args, **kwargs):
            if runner.iter == at:
                os.kill(os.getpid(), number)

        setattr(self, stage, send)


ITERATION = {
    "train_cfg": {"by_epoch": False, "max_iters": 9, "val_interval": 4},
    "param_scheduler": None,
    "custom_hooks": [{"type": "EMAHook", "momentum": 0.1}],
}

EPOCH = {"train_cfg": {"by_epoch": True, "max_epochs": 3, "val_interval": 2}}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("changes", [{}, ITERATION])
@pytest.mark.parametrize(("at", "stage", "saved"), [(4, "before_train_iter", 5), (8, "after_train_iter", 9)])
def test_a_signal_ends_the_run_with_a_checkpoint(make_runner, tmp_path, changes, at, stage, saved, number):
    whole = make_runner("whole", **changes)
    whole.train()
    before = signal.getsignal(number)
    runner = make_runner("cut", **changes)
    runner.register_hook(Signal(at, stage, number))
    with pytest.raises(Preempted) as error:
        runner.train()
    assert error.value.code == 75
    assert signal.getsignal(number) is before
    assert (tmp_path / "cut" / "last_checkpoint").read_text() == f"iter_{saved}.pth"
    resumed = make_runner("cut", resume="auto", **changes)
    resumed.train()
    for one, two in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    if not changes:
        assert resumed.val_evaluator.metrics[0].count == (2 if saved == 5 else 1)


@pytest.mark.parametrize(
    "changes", [ITERATION | {"custom_hooks": []}, {"train_cfg": {"by_epoch": True, "max_epochs": 3, "val_interval": 2}}]
)
def test_a_signal_ends_a_validation_which_the_resumed_run_does_again(make_runner, tmp_path, changes):
    whole = make_runner("whole", **changes)
    whole.train()
    iteration = 6 if changes["train_cfg"]["by_epoch"] else 4
    runner = make_runner("cut", **changes)
    runner.register_hook(Signal(iteration, "before_val_iter"))
    with pytest.raises(Preempted):
        runner.train()
    checkpoint = load_checkpoint_file(tmp_path / "cut" / f"iter_{iteration}.pth")
    assert checkpoint["position"]["validated"] == 0
    resumed = make_runner("cut", resume=True, **changes)
    resumed.train()
    for one, two in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert resumed.val_evaluator.metrics[0].count == whole.val_evaluator.metrics[0].count
    # Iterations since the last line are not told twice, or apart from those that follow.
    assert training_lines(tmp_path / "cut") == training_lines(tmp_path / "whole")


def training_lines(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: line[key] for key in ("step", "loss", "loss_cls")} for line in lines if "loss_cls" in line]


def test_the_tool_exits_with_a_status_that_says_so(tmp_path):
    script = tmp_path / "run.py"
    tests = Path(__file__).parents[2]
    cfg = toy_config(tmp_path / "work", epochs=1000)
    cfg["train_dataloader"] |= {"num_workers": 2, "dataset": {"type": "ToyDataset", "size": 40}}
    script.write_text(
        f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests.parent)!r}]\n"
        "from engine import engine_toys\n"
        "from mmengine.config import Config\n"
        "from detkit.engine import Runner\n"
        "from detkit.engine.cli import run_cli\n"
        f"run_cli(Runner.from_cfg(Config({cfg!r})).train)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "epoch 2" in line:
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=30) == 75
    assert "asked to end: saved iter_" in rest
    assert "Traceback" not in rest
    assert (tmp_path / "work" / (tmp_path / "work" / "last_checkpoint").read_text()).is_file()


def test_an_unknown_signal_is_refused(make_runner):
    with pytest.raises(ValueError, match="'SIGNONE' is no signal of this system"):
        make_runner(default_hooks={"preemption": {"type": "PreemptionHook", "signals": ["SIGNONE"]}})
