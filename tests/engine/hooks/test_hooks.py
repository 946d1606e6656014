"""Small hooks: callbacks, functions that evaluate, early stopping, expected results, memory.

Steps are counted as iterations done here: what Detectron2 calls iteration 19 is step 20.
"""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine.engine_toys import ToyModel
from mmengine.registry import FUNCTIONS

from detkit.engine.cli import run_cli
from detkit.engine.hooks import CallbackHook, CheckpointHook, CudaMemoryHook, EarlyStoppingHook, ExpectedResultsHook
from detkit.engine.hooks.eval_function import EvalFunctionHook, flatten_results
from detkit.engine.hooks.memory import MemoryProfilerHook, host_memory
from detkit.registry import MODELS

NO_VALIDATION = {"val_dataloader": None, "val_cfg": None, "val_evaluator": None}
ONE_STAGE = [{"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 4}]


def iterations(number: int, **changes):
    """An iteration-based run of so many steps."""
    return {"train_cfg": {"by_epoch": False, "max_iters": number}, "param_scheduler": ONE_STAGE, **changes}


def hook_of(runner, kind):
    return next(hook for hook in runner.hooks if isinstance(hook, kind))


@FUNCTIONS.register_module()
def steps_done(runner):
    return {"steps": runner.iter, "training": runner.model.training}


@MODELS.register_module()
class FailsAt(ToyModel):
    """Fails in its Nth training step."""

    def forward(self, inputs, data_samples=None, mode="tensor"):
        if mode == "loss" and self.calls + 1 == self.nan_at:
            raise OSError(f"the disk went away in step {self.calls + 1}")
        return super().forward(inputs, data_samples, mode)


# --- CallbackHook


def test_callbacks_at_any_stage_get_what_they_ask_for(make_runner):
    seen = []
    hook = CallbackHook(
        {
            "before_train": lambda runner: seen.append("begin"),
            "after_backward": lambda runner: seen.append(float(runner.model.bbox_head.fc.weight.grad.abs().sum()) > 0),
            "after_train_iter": lambda runner, outputs: seen.append("loss_cls" in outputs),
            "after_val_epoch": lambda runner, **given: seen.append(sorted(given["metrics"])),
            "close": lambda runner: seen.append("end"),
        }
    )
    runner = make_runner(epochs=1, custom_hooks=[hook])
    runner.train()
    assert seen == ["begin", *[True, True] * 3, ["toy/loss", "toy/mAP"], "end"]
    # Detectron2's hook deletes its functions after the first training.
    seen.clear()
    runner.train_loop._epoch = runner.train_loop._iter = 0
    runner.train()
    assert seen[0] == "begin"
    assert seen[-1] == "end"


def test_callbacks_by_registered_name(make_runner):
    runner = make_runner(
        epochs=1, custom_hooks=[{"type": "CallbackHook", "callbacks": {"after_train": "steps_done"}}], **NO_VALIDATION
    )
    runner.train()


def test_a_callback_hears_of_an_error(make_runner):
    seen = []
    hook = CallbackHook({"on_exception": lambda runner, error: seen.append(str(error))})
    model = {"type": "FailsAt", "bbox_head": {"type": "ToyHead"}, "nan_at": 2}
    with pytest.raises(OSError, match="went away"):
        make_runner(epochs=1, custom_hooks=[hook], model=model).train()
    assert seen == ["the disk went away in step 2"]


def test_stages_and_functions_that_do_not_exist_are_refused():
    with pytest.raises(KeyError, match=r"no stage 'after_step_train_iter'; did you mean 'after_train_iter'\?"):
        CallbackHook({"after_step_train_iter": print})
    with pytest.raises(KeyError, match=r"close: no function 'step_done' is registered; did you mean 'steps_done'\?"):
        CallbackHook({"close": "step_done"})
    with pytest.raises(TypeError, match="close: a function or its registered name expected, got 3"):
        CallbackHook({"close": 3})


# --- EvalFunctionHook


@pytest.mark.parametrize(("steps", "interval", "calls"), [(30, 15, 2), (31, 15, 3), (20, 0, 1)])
def test_how_often_a_function_evaluates(make_runner, steps, interval, calls):
    """Detectron2's counts: every 15 of 30 steps, of 31, and only at the end of 20."""
    at = []
    hook = EvalFunctionHook(lambda runner: at.append(runner.iter) or {"x": 1.0}, interval, by_epoch=False)
    runner = make_runner(**iterations(steps), custom_hooks=[hook], **NO_VALIDATION)
    runner.train()
    assert len(at) == calls
    assert at[-1] == steps


@pytest.mark.parametrize("step", [9, 10])
def test_no_final_evaluation_after_a_failure(make_runner, step):
    """A failure in step 9, and in step 10 of 10, where Detectron2 evaluates."""
    calls, ended = [], []
    hooks = [
        EvalFunctionHook(lambda runner: calls.append(runner.iter) or {}, 0, by_epoch=False),
        CallbackHook({"after_train": lambda runner: ended.append(1)}),
        CallbackHook({"after_train": lambda runner: ended.append(2)}),
    ]
    model = {"type": "FailsAt", "bbox_head": {"type": "ToyHead"}, "nan_at": step}
    runner = make_runner(**iterations(10), custom_hooks=hooks, model=model, **NO_VALIDATION)
    with pytest.raises(OSError, match=f"the disk went away in step {step}"):
        runner.train()
    assert calls == []
    assert ended == [1, 2]
    assert runner.iter == step - 1


def test_numbers_of_a_function_are_written_as_those_of_a_validation_are(make_runner, tmp_path):
    hook = {"type": "EvalFunctionHook", "func": "steps_done", "interval": 4, "by_epoch": False}
    runner = make_runner(**iterations(6), custom_hooks=[hook], **NO_VALIDATION)
    runner.train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["training"]) for line in lines if "training" in line] == [(4, 0.0), (6, 0.0)]
    assert hook_of(runner, EvalFunctionHook).results == {"steps": 6, "training": 0}
    assert runner.model.training


def test_without_interval_its_numbers_join_the_metrics(make_runner, tmp_path):
    values = iter([0.1, 0.4, 0.2])
    hook = EvalFunctionHook(lambda runner: {"tta": {"mAP": next(values)}})
    best = {"checkpoint": {"type": "CheckpointHook", "save_best": "tta/mAP"}}
    logger = {"logger": {"type": "LoggerHook", "tensorboard": False}}
    runner = make_runner(epochs=3, custom_hooks=[hook], default_hooks={**best, **logger})
    runner.train()
    assert hook_of(runner, CheckpointHook).best["tta/mAP"]["score"] == 0.4
    log = next((tmp_path / "run").rglob("*.log")).read_text()
    assert "no metric of val_evaluator gives" not in log
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["tta/mAP"] for line in lines if "tta/mAP" in line] == [0.1, 0.4, 0.2]


def test_results_are_flattened():
    nested = {"bbox": {"AP": 1, "x": {"y": 2}}, "k": 3}
    assert flatten_results(nested, "f") == {"bbox/AP": 1, "bbox/x/y": 2, "k": 3}
    assert flatten_results({"t": torch.tensor([2.5]), "n": np.float32(0.5)}, "f") == {"t": 2.5, "n": 0.5}


@pytest.mark.parametrize(
    ("results", "error", "text"),
    [
        ([0.5], TypeError, "f must return a dict of numbers, got list"),
        (None, TypeError, "f must return a dict of numbers, got NoneType"),
        ({"a": "x"}, ValueError, "f must return numbers, but 'a' is 'x'"),
        ({"b": {"a": [1, 2]}}, ValueError, r"f must return numbers, but 'b/a' is \[1, 2\]"),
    ],
)
def test_results_that_are_no_numbers_are_refused(results, error, text):
    with pytest.raises(error, match=text):
        flatten_results(results, "f")


def test_an_interval_below_zero_is_refused():
    with pytest.raises(ValueError, match="interval must be at least 0, or None, got -1"):
        EvalFunctionHook(steps_done, -1)


# --- EarlyStoppingHook


def validated(make_runner, values, epochs=None, **options):
    """The epochs of a run whose validations give ``values``, and the hook."""
    hook = EarlyStoppingHook("toy/mAP", **options)
    metric = {"type": "ToyMetric", "values": tuple(values)}
    runner = make_runner(epochs=epochs or len(values), custom_hooks=[hook], val_evaluator=metric, param_scheduler=None)
    runner.train()
    return runner.epoch, hook


def test_an_average_precision_that_rises_slowly_never_stops(make_runner):
    """0.015 per validation, where mmengine's defaults stop at the sixth; and 0.001 per validation."""
    assert validated(make_runner, [0.05 + 0.015 * step for step in range(12)])[0] == 12
    assert validated(make_runner, [round(0.3 + 0.001 * step, 3) for step in range(12)])[0] == 12


def test_small_improvements_add_up(make_runner):
    epochs, hook = validated(make_runner, [0.3 + 0.0004 * step for step in range(12)], patience=3)
    assert epochs == 12
    assert hook.best_score == pytest.approx(0.3036)


def test_a_flat_metric_stops_at_patience_and_the_log_says_why(make_runner, tmp_path):
    epochs, hook = validated(make_runner, [0.2, 0.5, 0.5, 0.4995, 0.5004, 0.5, 0.9], patience=4)
    assert (epochs, hook.best_score, hook.wait_count) == (6, 0.5, 4)
    log = next((tmp_path / "run").rglob("*.log")).read_text()
    assert "training stops after 18 iterations: toy/mAP has not improved by min_delta=0.001 in 4 validations" in log
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "epoch_6.pth"


def test_an_iteration_loop_is_stopped_too(make_runner):
    metric = {"type": "ToyMetric", "values": (0.5, 0.4, 0.4, 0.4)}
    train_cfg = {"by_epoch": False, "max_iters": 12, "val_interval": 3}
    hook = EarlyStoppingHook("toy/mAP", patience=2)
    runner = make_runner(train_cfg=train_cfg, custom_hooks=[hook], val_evaluator=metric, param_scheduler=None)
    runner.train()
    assert runner.iter == 9


def test_rules_follow_the_name_of_the_metric(make_runner):
    assert [EarlyStoppingHook(name).rule for name in ("coco/bbox_mAP", "val/loss", "top1_err", "acc")] == [
        *("greater", "less", "less", "greater"),
    ]
    hook = EarlyStoppingHook("val/loss", patience=2)
    assert [hook._reason_to_stop(value) is None for value in (2.0, 1.0, 1.5)] == [True] * 3
    assert hook.best_score == 1
    assert "the best is 1.0000" in hook._reason_to_stop(0.9995)


def test_values_that_are_not_finite(make_runner):
    assert validated(make_runner, [0.2, math.nan, 0.3])[0] == 2
    epochs, hook = validated(make_runner, [math.nan, 0.2, math.inf, math.nan, 0.3], check_finite=False, patience=3)
    assert (epochs, hook.best_score) == (5, 0.3)
    assert validated(make_runner, [math.nan] * 4, check_finite=False, patience=2)[0] == 2


def test_a_threshold_ends_the_training(make_runner):
    assert validated(make_runner, [0.2, 0.6, 0.7], stopping_threshold=0.5)[0] == 2


def test_a_metric_that_nobody_gives_is_refused_and_one_that_is_missing_once_is_not(make_runner):
    hook = EarlyStoppingHook("toy/map50")
    with pytest.raises(KeyError, match=r"gives no 'toy/map50'; did you mean 'toy/mAP' or 'toy/loss'\?"):
        make_runner(epochs=1, custom_hooks=[hook]).train()

    def drop(runner, metrics):
        if runner.epoch == 2:
            metrics.pop("toy/mAP")

    metric = {"type": "ToyMetric", "values": (0.1, 0.2, 0.3)}
    hooks = [CallbackHook({"after_val_epoch": drop}), EarlyStoppingHook("toy/mAP")]
    runner = make_runner(epochs=3, custom_hooks=hooks, val_evaluator=metric)
    runner.train()
    assert hooks[1].best_score == 0.3
    hooks = [CallbackHook({"after_val_epoch": drop}), EarlyStoppingHook("toy/mAP", strict=True)]
    with pytest.raises(KeyError, match="gives no 'toy/mAP'"):
        make_runner(epochs=3, custom_hooks=hooks, val_evaluator=metric).train()


def test_early_stopping_goes_on_waiting_after_a_resume(make_runner):
    """mmengine forgets the best value: the resumed run would take 0.3 for the best and go on."""
    values = (0.5, 0.4, 0.4, 0.3, 0.3, 0.3)
    hooks = [{"type": "EarlyStoppingHook", "monitor": "toy/mAP", "patience": 4}]
    runner = make_runner(epochs=3, custom_hooks=hooks, val_evaluator={"type": "ToyMetric", "values": values})
    runner.train()
    resumed = make_runner(
        epochs=6, custom_hooks=hooks, val_evaluator={"type": "ToyMetric", "values": values[2:]}, resume=True
    )
    resumed.train()
    hook = hook_of(resumed, EarlyStoppingHook)
    assert (resumed.epoch, hook.best_score, hook.wait_count) == (5, 0.5, 4)


@pytest.mark.parametrize("stop", [{"patience": 2}, {"stopping_threshold": 0.45}])
def test_a_run_that_was_stopped_is_over_when_resumed_unless_it_may_wait_longer(make_runner, stop):
    def go(patience=None, resume=True):
        hooks = [{"type": "EarlyStoppingHook", "monitor": "toy/mAP", **stop}]
        if patience:
            hooks[0] = {"type": "EarlyStoppingHook", "monitor": "toy/mAP", "patience": patience}
        runner = make_runner(
            epochs=6,
            custom_hooks=hooks,
            resume=resume,
            val_evaluator={"type": "ToyMetric", "values": (0.5, 0.4, 0.3)},
            default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 4}},
        )
        runner.train()
        return runner.epoch

    epochs = 3 if "patience" in stop else 1
    assert [go(resume=False), go(), go()] == [epochs] * 3
    assert go(patience=9) == 6


def test_early_stopping_of_a_run_without_validation_is_refused(make_runner):
    none = {"val_cfg": None, "val_dataloader": None, "val_evaluator": None}
    runner = make_runner(custom_hooks=[EarlyStoppingHook("toy/mAP")], **none)
    with pytest.raises(ValueError, match="'toy/mAP' comes from validation, of which there is none"):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize("options", [{"rule": "bigger"}, {"patience": 0}, {"min_delta": -0.1}])
def test_settings_of_early_stopping_that_make_no_sense(options):
    with pytest.raises(ValueError, match=r"EarlyStoppingHook: .* got"):
        EarlyStoppingHook("x", **options)


# --- ExpectedResultsHook


def expecting(make_runner, *expected, **changes):
    metric = {"type": "ToyMetric", "values": (0.1, 0.4)}
    hook = {"type": "ExpectedResultsHook", "expected": expected}
    return make_runner(epochs=2, val_evaluator=metric, custom_hooks=[hook], **changes)


def test_expected_results_are_the_last_ones(make_runner):
    expecting(make_runner, ("toy/mAP", 0.4, 0.0), ["toy", "loss", 0.5, 0.01]).train()


def test_all_results_that_are_not_as_expected_are_named(make_runner):
    runner = expecting(make_runner, ("toy/mAP", 0.5, 0.05), ("toy/mAP50", 0.5, 0.1), ("toy/loss", 0.5, 0.1))
    text = r"toy/mAP is 0\.4000, expected 0\.5 within 0\.05; toy/mAP50 is missing \(did you mean 'toy/mAP'\?\)$"
    with pytest.raises(ValueError, match=text):
        runner.train()


def test_a_tool_exits_with_a_status_when_results_are_not_as_expected(make_runner, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_cli(expecting(make_runner, ("toy/mAP", 0.5, 0.05)).train)
    assert exit_.value.code == 1
    assert "error: the results are not the expected ones: toy/mAP is 0.4000" in capsys.readouterr().err


def test_a_result_that_is_not_finite_is_not_as_expected():
    hook = ExpectedResultsHook([("x", 0.5, 1e9), ("bbox", "AP50", 0.5, 0.1)])
    runner = SimpleNamespace(train_completed=True, hooks=[], logger=SimpleNamespace(info=print))
    hook.results = {"x": math.nan, "coco/bbox_mAP_50": 0.55}
    with pytest.raises(ValueError, match=r"expected ones: x is nan$"):
        hook.after_train(runner)
    hook.results = {}
    with pytest.raises(ValueError, match=r"x is missing \(nothing was evaluated\); bbox/AP50 is missing"):
        hook.after_train(runner)
    runner.train_completed = False  # another error ends this run
    hook.after_train(runner)


def test_expected_results_may_be_those_of_a_function(make_runner):
    function = EvalFunctionHook(lambda runner: {"steps": runner.iter}, 0)
    hook = {"type": "ExpectedResultsHook", "expected": [("steps", 6, 0)]}
    make_runner(epochs=2, custom_hooks=[hook, function], **NO_VALIDATION).train()


@pytest.mark.parametrize("entry", [("mAP", 0.5), ("mAP", 0.5, -0.1), (1, 0.5, 0.1), ("a", "b", "c", 0.5, 0.1), "mAP"])
def test_entries_of_another_form_are_refused(entry):
    with pytest.raises(ValueError, match=r"expected\.0: \(metric, value, tolerance\) or"):
        ExpectedResultsHook([entry])


# --- Memory


def cuda_runner(log, steps):
    def info(text, *values, **options):
        log.append(text % values)

    return SimpleNamespace(device=torch.device("cuda"), logger=SimpleNamespace(info=info), iter=0, max_iters=steps)


@pytest.mark.parametrize(("options", "reports"), [({"interval": 1, "max_runs": 2}, 2), ({"interval": 3}, 3)])
def test_cuda_memory_is_reported_so_many_times(monkeypatch, options, reports):
    """8 iterations: twice with max_runs=2, where Detectron2 reports three times; at 3, 6 and the last, 8."""
    for number, name in enumerate(("memory", "max_memory"), 1):
        monkeypatch.setattr(torch.cuda, f"{name}_allocated", lambda device, number=number: number * 2**20)
        monkeypatch.setattr(torch.cuda, f"{name}_reserved", lambda device, number=number: number * 10 * 2**20)
    monkeypatch.setattr(torch.cuda, "memory_summary", lambda device: "summary")
    resets = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: resets.append(device))
    log: list[str] = []
    runner, hook = cuda_runner(log, 8), CudaMemoryHook(**options)
    for _ in range(2):  # the hook can be used for a second training
        log.clear()
        runner.iter = 0
        hook.before_train(runner)
        for step in range(8):
            runner.iter = step
            hook.after_train_iter(runner, step)
        lines = [line for line in log if line.startswith("CUDA memory")]
        assert len(lines) == reports
        assert "MiB: allocated 1 (at most 2), reserved 10 (at most 20)" in lines[0]
        assert sum("summary" in line for line in log) == (options.get("max_runs") == reports)
    assert resets == []  # the peak is what other hooks report
    CudaMemoryHook(interval=1, reset_peak=True).after_train_iter(runner, 0)
    assert len(resets) == 1


def test_cuda_memory_on_a_cpu(make_runner, tmp_path):
    make_runner(epochs=1, custom_hooks=[{"type": "CudaMemoryHook"}], **NO_VALIDATION).train()
    assert "CudaMemoryHook has nothing to report on device cpu" in next((tmp_path / "run").rglob("*.log")).read_text()
    with pytest.raises(ValueError, match="at least 1, got 20 and 0"):
        CudaMemoryHook(max_runs=0)


def test_main_memory_is_reported(make_runner, tmp_path):
    make_runner(epochs=1, custom_hooks=[{"type": "MemoryProfilerHook", "interval": 2}]).train()
    log = next((tmp_path / "run").rglob("*.log")).read_text()
    assert log.count("main memory after 2 batches of train, MiB: peak") == 1
    assert log.count("main memory after 2 batches of val, MiB: peak") == 1
    before = host_memory()
    block = np.ones(64 * 2**20, np.uint8)
    after = host_memory()
    assert block.sum() == len(block)
    assert after["process"] - before["process"] > 48 * 2**20
    assert 2**24 < after["process"] <= after["peak"] * 1.05
    with pytest.raises(ValueError, match="interval must be at least 1, got 0"):
        MemoryProfilerHook(0)
