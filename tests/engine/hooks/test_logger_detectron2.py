"""What a run writes, by the checks of Detectron2's trainer, and that its writer loses nothing.

A check that says iteration 19 is step 20 here: detkit counts the iterations that are done. Every iteration is
recorded, on the device; a line is the mean of those since the line before, where Detectron2 records each n-th.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from engine.engine_toys import ToyModel
from no_sync import NoSync

from detkit.engine import Hook
from detkit.engine.hooks import LoggerHook
from detkit.engine.reporting.background import BackgroundCalls
from detkit.engine.reporting.metric_files import MetricFiles
from detkit.events import get_event_storage
from detkit.registry import MODELS

NO_VALIDATION = {"val_dataloader": None, "val_cfg": None, "val_evaluator": None}


@MODELS.register_module()
class OneLossModel(ToyModel):
    """Returns its loss as a tensor, not in a dict."""

    def forward(self, inputs, data_samples=None, mode="tensor"):
        result = super().forward(inputs, data_samples, mode)
        return sum(result.values()) if mode == "loss" else result


@MODELS.register_module()
class NotingModel(ToyModel):
    """Notes what happens inside it."""

    def forward(self, inputs, data_samples=None, mode="tensor"):
        if mode == "loss":
            storage = get_event_storage()
            with storage.name_scope("head"):
                storage.put_scalar("num_pos", torch.tensor(float(self.calls)))
            storage.put_image("first", torch.zeros(3, 2, 2))
            storage.put_histogram("inputs", torch.stack(list(inputs)))
        return super().forward(inputs, data_samples, mode)


class Noting(Hook):
    """Calls ``note(runner, step)`` after each iteration, before the logger."""

    priority = "NORMAL"

    def __init__(self, note):
        self.note = note
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs["loss"]))
        self.note(runner, runner.iter + 1)


def run(make_runner, max_iters, name="run", hooks=(), logger=(), model="ToyModel", **changes):
    options = {
        "model": {"type": model, "bbox_head": {"type": "ToyHead"}},
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": max_iters, "val_interval": max_iters},
        "param_scheduler": [],
        "custom_hooks": list(hooks),
        **changes,
    }
    default = {"logger": {"type": "LoggerHook", "tensorboard": False, **dict(logger)}}
    runner = make_runner(name, default_hooks={**default, **options.pop("default_hooks", {})}, **options)
    runner.train()
    return runner


def lines(runner) -> list[dict]:
    return [json.loads(line) for line in Path(runner.work_dir, "metrics.jsonl").read_text().splitlines()]


def test_fifty_iterations_with_a_period_of_twenty(make_runner, capfd):
    """Lines at 20, 40 and 50, the metric of the last evaluation by itself; three lines on the screen."""
    evaluator = {"type": "ToyMetric", "values": (100.0,)}
    runner = run(make_runner, 50, logger={"interval": 20}, val_evaluator=evaluator)
    written = lines(runner)
    assert [line["step"] for line in written] == [20, 40, 50, 50]
    assert [line.get("toy/mAP") for line in written] == [None, None, None, 100.0]
    printed = [line for line in capfd.readouterr().err.splitlines() if "  loss " in line]
    assert [line.split("  ")[0] for line in printed] == ["iter 20/50", "iter 40/50", "iter 50/50"]
    assert "  eta 0:00:00  " in printed[-1]


def test_each_line_is_the_mean_of_the_steps_since_the_line_before(make_runner):
    hook = Noting(lambda runner, step: None)
    runner = run(make_runner, 50, hooks=[hook], logger={"interval": 10}, **NO_VALIDATION)
    written = lines(runner)
    assert [line["step"] for line in written] == [10, 20, 30, 40, 50]
    means = [sum(hook.losses[end - 10 : end]) / 10 for end in (10, 20, 30, 40, 50)]
    assert [line["loss"] for line in written] == pytest.approx(means, rel=1e-12)
    data = runner.events.history("data_time")
    assert written[1]["data_time"] == pytest.approx(data.values()[10:20].mean())
    assert runner.events.history("time").count == 48


def test_what_a_single_loss_and_two_losses_give(make_runner):
    one = lines(run(make_runner, 1, "one", model="OneLossModel", **NO_VALIDATION))
    assert [line.keys() for line in one] == [{"step", "epoch", "loss", "data_time", "hook_time", "lr"}]
    (two,) = lines(run(make_runner, 1, "two", **NO_VALIDATION))
    assert two.keys() == one[0].keys() | {"loss_cls", "loss_bbox"}
    assert two["loss"] == pytest.approx(two["loss_cls"] + two["loss_bbox"])


def test_what_is_not_smoothed_is_written_at_its_own_step(make_runner):
    """Iterations 0 to 59: key at each, key2 at multiples of 17, a write each 20: lines 17, 19, 34, 39, 51, 59."""

    def note(runner, step):
        runner.events.put_scalar("key", step - 1, smoothing=False)
        if (step - 1) % 17 == 0:
            runner.events.put_scalar("key2", step - 1, smoothing=False)

    written = lines(run(make_runner, 60, hooks=[Noting(note)], logger={"interval": 20}, **NO_VALIDATION))
    assert [line["step"] for line in written] == [18, 20, 35, 40, 52, 60]
    assert [line.get("key2") for line in written] == [17, None, 34, None, 51, None]
    assert [line.get("key") for line in written] == [None, 19, None, 39, None, 59]


def test_what_a_model_notes_is_written(make_runner):
    runner = run(make_runner, 6, model="NotingModel", logger={"interval": 3, "tensorboard": True})
    train = [line for line in lines(runner) if "loss" in line]
    assert [line["head/num_pos"] for line in train] == [1.0, 4.0]
    assert "head/num_pos 1" in Path(runner.logger.log_file).read_text()
    assert runner.events.take_images() == runner.events.take_histograms() == []
    (events,) = Path(runner.work_dir, "tensorboard").iterdir()
    content = events.read_bytes()
    assert content.count(b"first") == content.count(b"inputs") == 6


@pytest.mark.parametrize(
    ("options", "processor", "x", "loss"),
    [
        ({}, {}, [3, 3, 6, 6], "loss"),
        ({"log_metric_by_epoch": True}, {"log_with_hierarchy": True}, [3, 1, 6, 2], "train/loss"),
    ],
)
def test_the_visualizers_backends_get_the_right_steps(make_runner, options, processor, x, loss):
    """mmengine gives them the metrics of iteration runs at step 0; a backend such as MLflow takes the step it gets."""
    runner = make_runner(
        model={"type": "NotingModel", "bbox_head": {"type": "ToyHead"}},
        epochs=2,
        visualizer={"type": "DetLocalVisualizer", "vis_backends": [{"type": "LocalVisBackend"}]},
        default_hooks={"logger": {"type": "LoggerHook", "interval": 3, "tensorboard": False, **options}},
        log_processor={"type": "LogProcessor", **processor},
    )
    runner.train()
    (scalars,) = Path(runner.work_dir).rglob("scalars.json")
    written = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert [line["step"] for line in written] == x
    assert [loss in line for line in written] == [True, False, True, False]
    assert ["toy/mAP" in line for line in written] == [False, True, False, True]
    assert sorted(path.name for path in Path(runner.work_dir).rglob("first_*.png")) == [
        f"first_{step}.png" for step in range(1, 7)
    ]


def test_nothing_waits_between_two_lines(make_runner):
    """From the forward pass to the last hook of an iteration; only those that write a line may read."""
    checked = []

    def install(runner):
        call, step = runner.call_hook, runner.train_loop._step

        def guarded(batch_idx, data_batch):
            if (runner.iter + 1) % 10 == 0:
                return step(batch_idx, data_batch)
            checked.append(runner.iter + 1)
            with NoSync():
                return step(batch_idx, data_batch)

        runner.train_loop._step = guarded
        return call

    class Install(Hook):
        def before_train(self, runner):
            install(runner)

    wrapper = {"optimizer": {"type": "SGD", "lr": 0.1}, "clip_grad": {"max_norm": 1.0}}
    runner = run(make_runner, 20, hooks=[Install()], optim_wrapper=wrapper, **NO_VALIDATION)
    assert checked == [*range(1, 10), *range(11, 20)]
    assert [line["grad_norm"] > 0 for line in lines(runner)] == [True, True]


def test_a_slow_writer_loses_no_line_and_holds_nobody_up(make_runner, monkeypatch):
    """Each write takes 50 ms, a write per iteration, 20 iterations: 20 lines when train() returns."""
    write = MetricFiles.write
    waiting = []

    def slow(self, step, *args):
        time.sleep(0.05)
        write(self, step, *args)

    monkeypatch.setattr(MetricFiles, "write", slow)
    note = Noting(lambda runner, step: waiting.append(step - 1 - _written(runner)))
    runner = run(make_runner, 20, hooks=[note], logger={"interval": 1, "async_write": True}, **NO_VALIDATION)
    assert [line["step"] for line in lines(runner)] == list(range(1, 21))
    assert max(waiting) > 3  # the run went on meanwhile
    assert [step for step, _ in runner.events.history("loss").samples] == list(range(1, 21))
    assert runner.events.history("time").count == 18


def _written(runner) -> int:
    path = Path(runner.work_dir, "metrics.jsonl")
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize("fail_at", [2, 20])
@pytest.mark.parametrize("async_write", [False, True])
def test_an_error_of_the_writer_ends_the_run(make_runner, monkeypatch, fail_at, async_write):
    write = MetricFiles.write

    def failing(self, step, *args):
        if step == fail_at:
            raise OSError("the disk is full")
        write(self, step, *args)

    monkeypatch.setattr(MetricFiles, "write", failing)
    with pytest.raises(OSError, match="the disk is full"):
        run(make_runner, 20, logger={"interval": 1, "async_write": async_write}, **NO_VALIDATION)


def test_the_error_of_the_run_is_the_one_that_is_seen(make_runner, monkeypatch):
    """A run that fails writes the iterations since its last line; its error wins over one of the writer."""
    runners = []

    def fail(runner, step):
        runners.append(runner)
        if step == 5:
            raise RuntimeError("of the run")

    with pytest.raises(RuntimeError, match="of the run"):
        run(make_runner, 20, "one", hooks=[Noting(fail)], logger={"interval": 2}, **NO_VALIDATION)
    assert [line["step"] for line in lines(runners[0])] == [2, 4, 5]
    monkeypatch.setattr(MetricFiles, "close", lambda self: 1 / 0)
    with pytest.raises(RuntimeError, match="of the run"):
        run(make_runner, 20, "two", hooks=[Noting(fail)], logger={"async_write": True}, **NO_VALIDATION)
    assert "ZeroDivisionError" in Path(runners[-1].logger.log_file).read_text()


def test_two_lines_at_a_step_are_no_error(make_runner):
    """Without a time since the last line, as after an error that comes behind a line."""

    class Fail(Hook):
        priority = "LOWEST"

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            runner.events.put_scalar("late", 1.0)
            raise RuntimeError(runner.work_dir)

    with pytest.raises(RuntimeError) as caught:
        run(make_runner, 5, hooks=[Fail()], logger={"interval": 1}, **NO_VALIDATION)
    written = [json.loads(line) for line in Path(str(caught.value), "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("late")) for line in written] == [(1, None), (1, 1.0)]


def test_the_same_hook_serves_two_runs(make_runner):
    hook = LoggerHook(interval=1, tensorboard=False, async_write=True)
    for name in ("one", "two"):
        runner = run(make_runner, 3, name, hooks=[hook], default_hooks={"logger": None}, **NO_VALIDATION)
        assert [line["step"] for line in lines(runner)] == [1, 2, 3]
        assert runner.events.history("loss").count == 3


def test_a_resumed_run_writes_the_lines_of_the_uninterrupted_one(make_runner):
    """Saved in the middle of an interval; killed after more lines, which are made again."""

    def stop(runner, step):
        if step == 11:
            raise KeyboardInterrupt

    hooks = {"checkpoint": {"type": "CheckpointHook", "interval": 6, "by_epoch": False}}
    options = {"logger": {"interval": 4}, "default_hooks": hooks}
    cfg = {"train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 18, "val_interval": 6}, **options}
    whole = run(make_runner, 18, "whole", **cfg)
    with pytest.raises(KeyboardInterrupt):
        run(make_runner, 18, "cut", hooks=[Noting(stop)], **cfg)
    resumed = run(make_runner, 18, "cut", resume=True, **cfg)

    def exact(runner):
        times = {"time", "data_time", "hook_time", "val_time"}
        found = [{name: value for name, value in line.items() if name not in times} for line in lines(runner)]
        for line in found:
            line.pop("toy/loss", None)  # counts the validations of a process
        return found

    assert [line["step"] for line in lines(whole)] == [4, 6, 8, 12, 12, 16, 18, 18]
    assert exact(resumed) == exact(whole)
    assert resumed.events.history("loss").count == 18
    assert resumed.events.history("loss").global_mean() == whole.events.history("loss").global_mean()


def test_calls_in_the_background_keep_their_order_and_their_errors():
    seen = []
    calls = BackgroundCalls(limit=3)
    for number in range(10):
        calls(seen.append, number)
    calls.wait()
    assert seen == list(range(10))
    calls(int, "x")
    calls(seen.append, 10)
    with pytest.raises(ValueError, match="invalid literal"):
        calls.wait()
    assert seen[-1] == 10  # what came after the error was not lost
    calls(int, "y")
    with pytest.raises(ValueError, match="invalid literal"):
        calls.close()
    BackgroundCalls().close()
