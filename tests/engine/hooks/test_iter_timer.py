"""Seconds of steps, data, hooks and validation, each in its own place, by a clock that only moves when told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine.engine_toys import ToyDataset, ToyMetric, ToyModel, toy_config

from detkit.engine import Hook
from detkit.engine.data import data_stream
from detkit.engine.hooks import IterTimerHook, iter_timer
from detkit.engine.hooks.iter_timer import time_left
from detkit.events import EventStorage
from detkit.registry import DATASETS, METRICS, MODELS

STEP, DATA, HOOK, VAL = 4.0, 3.0, 10.0, 50.0
now = 0.0


def spend(seconds):
    global now
    now += seconds


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr(iter_timer, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(data_stream, "perf_counter", lambda: now)


@MODELS.register_module()
class SlowModel(ToyModel):
    """Takes long for its first steps, as compiled models do."""

    def forward(self, inputs, data_samples=None, mode="tensor"):
        if mode == "loss":
            spend(STEP if self.calls > 1 else 200.0)
        return super().forward(inputs, data_samples, mode)


@DATASETS.register_module()
class SlowDataset(ToyDataset):
    """Takes a quarter of ``DATA`` for a sample, a batch having four."""

    def __getitem__(self, index):
        spend(DATA / 4)
        return super().__getitem__(index)


@METRICS.register_module()
class SlowMetric(ToyMetric):
    """Takes ``VAL``."""

    def compute_metrics(self, results):
        spend(VAL)
        return super().compute_metrics(results)


class Slow(Hook):
    """A hook that saves something, say; raises at iteration ``fail_at``."""

    priority = "LOW"

    def __init__(self, fail_at=None):
        self.fail_at = fail_at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        spend(HOOK)
        if runner.iter + 1 == self.fail_at:
            raise ValueError("here it ends")


def slow(make_runner, max_iters, hook, **changes):
    return make_runner(
        model={"type": "SlowModel", "bbox_head": {"type": "ToyHead"}},
        train_dataloader={**toy_config("")["train_dataloader"], "dataset": {"type": "SlowDataset"}},
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": max_iters, "val_interval": 5},
        val_evaluator={"type": "SlowMetric"},
        param_scheduler=[],
        default_hooks={
            "logger": {"type": "LoggerHook", "interval": 5, "tensorboard": False},
            "checkpoint": {"type": "CheckpointHook", "interval": 5, "by_epoch": False},
        },
        custom_hooks=[hook],
        **changes,
    )


def test_evaluation_and_hooks_are_not_booked_into_steps_and_data(make_runner):
    runner = slow(make_runner, 15, Slow())
    runner.train()
    written = [json.loads(line) for line in Path(runner.work_dir, "metrics.jsonl").read_text().splitlines()]
    train = [line for line in written if "loss" in line]
    assert [line["step"] for line in train] == [5, 10, 15]
    assert [line["time"] for line in train] == [STEP + DATA] * 3  # the first two steps, of 200 seconds, are left out
    assert [line["data_time"] for line in train] == [DATA] * 3
    assert [line["hook_time"] for line in train] == [HOOK * 4 / 5, HOOK, HOOK]  # none before the first step
    assert [line["val_time"] for line in written if "val_time" in line] == [VAL] * 3
    log = Path(runner.logger.log_file).read_text()
    # 13 steps of 7 seconds; two of 203, 15 of the hook, 3 validations
    assert "training speed: 13 iterations in 0:01:31, 7 s each" in log
    assert "training time: 0:13:17, of which 0:02:30 on hooks and 0:02:30 on validation" in log


def test_eta_has_the_share_of_hooks_and_validation(make_runner):
    etas = {}

    class Ask(Slow):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
            timer = next(hook for hook in runner.hooks if isinstance(hook, IterTimerHook))
            etas[runner.iter + 1] = timer.eta(runner.events, runner.max_iters - runner.iter - 1)

    slow(make_runner, 30, Ask()).train()
    assert etas[1] is etas[2] is None
    # After the 17th iteration: 15 count; since the warm-up the hook ran 16 times, and 3 validations were made.
    assert etas[17] == pytest.approx(13 * (STEP + DATA + (16 * HOOK + 3 * VAL) / 15))
    assert etas[30] == 0


def test_warm_up_and_the_number_of_times(make_runner):
    """Detectron2's check: of 50 iterations 48 have a time with a warm-up of 3; all others all have."""
    runner = slow(make_runner, 50, Slow())
    runner.train()
    assert runner.events.history("time").samples == [(step, STEP + DATA) for step in range(3, 51)]
    for name in ("data_time", "loss"):
        assert [step for step, _ in runner.events.history(name).samples] == list(range(1, 51))


def test_a_resumed_run_warms_up_again(make_runner):
    slow(make_runner, 5, Slow()).train()
    runner = slow(make_runner, 10, Slow(), resume=True)
    runner.train()
    assert [step for step, _ in runner.events.history("time").samples] == [8, 9, 10]


def test_the_summary_comes_after_an_error_too(make_runner):
    runner = slow(make_runner, 15, Slow(fail_at=7))
    with pytest.raises(ValueError, match="here it ends"):
        runner.train()
    log = Path(runner.logger.log_file).read_text()
    assert log.count("training speed: 5 iterations in") == 1
    assert log.count("training time: ") == 1


def test_eta_is_the_median_times_what_is_left():
    """Detectron2's numbers: times 1, 3, 5; six iterations left; 18 seconds. A mean of 1, 3, 50 would say 108."""
    events = EventStorage()
    assert time_left(events, 6) is None
    for value in (1.0, 3.0, 5.0):
        events.put_scalar("time", value)
    assert time_left(events, 6) == 18.0
    assert time_left(events, 6, overhead=0.5) == 21.0
    events.put_scalar("time", 50.0)
    events.put_scalar("time", 2.0)
    assert time_left(events, 6) == 18.0


def test_eta_forgets_what_is_older_than_a_thousand_steps():
    events = EventStorage(length=5000)
    for value in [9.0] * 3000 + [1.0] * 1000:
        events.put_scalar("time", value)
    assert time_left(events, 1) == 1.0


def test_waiting_for_the_device_is_time_of_the_step():
    timer = IterTimerHook()
    timer._step_end, timer._measured, timer._step_time, timer._measured_time = 5.0, 2, 1.0, 0.5
    timer.book_wait(0.25)
    assert (timer._step_end, timer._step_time, timer._measured_time) == (5.25, 1.25, 0.75)


def test_the_warm_up_must_be_positive():
    with pytest.raises(ValueError, match="warmup_iters must be at least 1, got 0"):
        IterTimerHook(warmup_iters=0)
