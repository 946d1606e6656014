"""The numbers of a run: metrics.jsonl, TensorBoard, the console, and when the device is asked for them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode

from detkit.engine.hooks import LoggerHook
from detkit.engine.reporting.console import ProgressDisplay, duration


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logger(**options) -> dict:
    return {"logger": {"type": "LoggerHook", "tensorboard": False, **options}}


def test_metrics_have_a_line_per_interval_and_per_validation(make_runner):
    runner = make_runner(epochs=2, default_hooks=logger(interval=1))
    runner.train()
    written = lines(Path(runner.work_dir))
    assert [(line["step"], line["epoch"]) for line in written] == [
        *((1, 1), (2, 1), (3, 1), (3, 1), (4, 2), (5, 2), (6, 2), (6, 2)),
    ]
    keys = {"step", "epoch", "loss", "loss_cls", "loss_bbox", "data_time", "hook_time", "lr"}
    assert written[0].keys() == keys
    assert written[2].keys() == keys | {"time"}  # from the third iteration on
    assert written[0]["loss"] == pytest.approx(written[0]["loss_cls"] + written[0]["loss_bbox"])
    # LinearLR from 0.1 to 1 of 0.1 in three steps, then half a cosine of four epochs
    assert [line["lr"] for line in written if "lr" in line][:3] == pytest.approx([0.01, 0.04, 0.07])
    assert written[3].keys() == {"step", "epoch", "toy/mAP", "toy/loss", "val_time"}


def test_a_line_is_the_mean_of_all_iterations_since_the_line_before(make_runner):
    losses = []
    for interval in (1, 2, 3):
        # saved within an epoch, which reads the losses too
        hooks = logger(interval=interval) | {"checkpoint": {"type": "CheckpointHook", "interval": 3, "by_epoch": False}}
        runner = make_runner(f"run_{interval}", epochs=2, default_hooks=hooks)
        runner.train()
        losses.append([line["loss"] for line in lines(Path(runner.work_dir)) if "loss" in line])
    each, pairs, epochs = losses
    # The third iteration, which ends the epoch early, counts in the next line; the last one has a line of its own.
    assert pairs == pytest.approx([sum(each[0:2]) / 2, sum(each[2:5]) / 3, each[5]])
    assert epochs == pytest.approx([sum(each[0:3]) / 3, sum(each[3:6]) / 3])


@pytest.mark.parametrize(
    ("interval", "ignore_last", "steps"),
    [(2, True, [2, 5, 6]), (2, False, [2, 3, 5, 6]), (5, True, [3, 6]), (3, True, [3, 6])],
)
def test_the_rest_of_an_epoch(make_runner, interval, ignore_last, steps):
    runner = make_runner(epochs=2, default_hooks=logger(interval=interval, ignore_last=ignore_last))
    runner.train()
    assert [line["step"] for line in lines(Path(runner.work_dir)) if "loss" in line] == steps


def test_tensorboard_events_without_tensorflow(make_runner):
    runner = make_runner(epochs=2, default_hooks={"logger": {"type": "LoggerHook", "interval": 1}})
    runner.train()
    events = EventAccumulator(str(Path(runner.work_dir, "tensorboard")))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("toy/mAP")] == [3, 6]
    assert "tensorflow" not in sys.modules


def test_the_console_has_plain_lines_where_there_is_no_terminal(make_runner, capfd):
    make_runner(epochs=2, default_hooks=logger(interval=2)).train()
    printed = capfd.readouterr().err.splitlines()
    train = [line for line in printed if "iter 2/3" in line]
    assert len(train) == 2
    assert "  eta " not in train[0]  # no iteration counts yet
    assert train[1].startswith("epoch 2/2  iter 2/3  loss ")
    assert "(cls " in train[1]
    assert " bbox " in train[1]
    assert "  lr 0.08536  eta 0:00:00  time 0.0" in train[1]
    assert not [line for line in printed if "Hooks will be executed" in line or "\x1b" in line]


def test_a_terminal_gets_a_progress_display_instead_of_lines(make_runner):
    runner = make_runner(epochs=2, default_hooks=logger(interval=2))
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=150)
    runner.console = console
    runner.logger.handlers[0].console = console
    runner.train()
    shown = screen.getvalue()
    assert "epoch 2/2  iter 3/3" in shown
    assert "toy/mAP" in shown
    assert "100%" in shown
    assert "\x1b[?25h" in shown  # the cursor is back
    log = Path(runner.logger.log_file).read_text()
    assert "epoch 2/2  iter 2/3  loss" in log


def test_the_display_is_closed_when_a_run_fails(make_runner):
    runner = make_runner(model={"type": "ToyModel", "bbox_head": {"type": "ToyHead"}, "nan_at": 1})
    screen = io.StringIO()
    runner.console = Console(file=screen, force_terminal=True)
    with pytest.raises(FloatingPointError):
        runner.train()
    assert "\x1b[?25h" in screen.getvalue()


def test_display_shows_what_it_is_given():
    screen = io.StringIO()
    display = ProgressDisplay(Console(file=screen, force_terminal=True, width=120), 4)
    display.update(2, "epoch 1/2", "loss 0.5", "mAP 0.3")
    display.close()
    for text in ("epoch 1/2", "50%", "loss 0.5", "mAP 0.3"):
        assert text in screen.getvalue()


def test_duration():
    assert [duration(seconds) for seconds in (-1, 83.4, 90_000)] == ["0:00:00", "0:01:23", "1 day, 1:00:00"]


class CountReads(TorchDispatchMode):
    """Counts what would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_training_step_reads_nothing_from_the_device(make_runner):
    wrapper = {"optimizer": {"type": "SGD", "lr": 0.1}, "clip_grad": {"max_norm": 1.0}}
    runner = make_runner(epochs=1, default_hooks=logger(interval=100), optim_wrapper=wrapper)
    reads = []
    step = runner.model.train_step

    def counted(*args, **kwargs):
        with CountReads() as counter:
            result = step(*args, **kwargs)
        reads.append(counter.reads)
        return result

    runner.model.train_step = counted
    runner.train()
    assert reads == [0, 0, 0]
    assert lines(Path(runner.work_dir))[0]["grad_norm"] > 0


def test_history_does_not_grow_and_own_scalars_are_written(make_runner):
    runner = make_runner(epochs=2, default_hooks=logger(interval=3))
    step = runner.model.train_step

    def with_scalar(*args, **kwargs):
        runner.message_hub.update_scalar("train/mine", 4.0)
        return step(*args, **kwargs)

    runner.model.train_step = with_scalar
    runner.train()
    assert lines(Path(runner.work_dir))[0]["mine"] == 4.0
    assert not [name for name in runner.message_hub.log_scalars if name.startswith("train/")]


def test_invalid_loss_hook_stops_without_a_logger(make_runner):
    runner = make_runner(
        model={"type": "ToyModel", "bbox_head": {"type": "ToyHead"}, "nan_at": 2},
        default_hooks={"logger": None},
        custom_hooks=[{"type": "CheckInvalidLossHook", "interval": 1}],
    )
    with pytest.raises(FloatingPointError, match="at iteration 2"):
        runner.train()
    assert runner.iter == 1


def test_interval_must_be_positive():
    with pytest.raises(ValueError, match="interval must be at least 1, got 0"):
        LoggerHook(interval=0)


def test_default_hooks_of_mmdetection_configs_are_known(make_runner):
    hooks = {
        "timer": {"type": "IterTimerHook"},
        "logger": {"type": "LoggerHook", "interval": 50},
        "param_scheduler": {"type": "ParamSchedulerHook"},
        "checkpoint": {"type": "CheckpointHook", "interval": 1},
        "sampler_seed": {"type": "DistSamplerSeedHook"},
        "visualization": {"type": "DetVisualizationHook"},
    }
    runner = make_runner(default_hooks=hooks, default_scope="mmdet")
    own = {type(hook).__name__ for hook in runner.hooks if type(hook).__module__.startswith("detkit.")}
    assert own > {"RuntimeInfoHook", "IterTimerHook", "LoggerHook", "CheckpointHook", "DetVisualizationHook"}
