"""Which iterations are profiled, and what is left of it. Steps are counted from 1."""

from __future__ import annotations

import json

import pytest
from engine.engine_toys import ToyModel

from detkit.engine.hooks import AutogradProfiler, TorchProfilerHook
from detkit.registry import HOOKS, MODELS

NO_VALIDATION = {"val_dataloader": None, "val_cfg": None, "val_evaluator": None}


def profiled(make_runner, tmp_path, hook, **changes):
    """Names of the traces of a run of 5 steps."""
    changes = {"train_cfg": {"by_epoch": False, "max_iters": 5}, "param_scheduler": None, **NO_VALIDATION, **changes}
    runner = make_runner(custom_hooks=[hook], **changes)
    try:
        runner.train()
    finally:
        traces = sorted((tmp_path / "run" / "profiles").glob("*"))
        for trace in traces:
            assert any(event.get("name") == "aten::linear" for event in json.loads(trace.read_text())["traceEvents"])
    return [trace.name for trace in traces]


def test_a_trace_for_each_iteration_that_a_predicate_picks(make_runner, tmp_path):
    """Detectron2's predicate ``1 <= iter < 3``: its iterations 1 and 2, which are steps 2 and 3."""
    hook = TorchProfilerHook(predicate=lambda runner: 1 <= runner.iter < 3, per_iter=True, activities=["cpu"])
    assert profiled(make_runner, tmp_path, hook) == ["iter_2_2_rank0.json", "iter_3_3_rank0.json"]
    log = next((tmp_path / "run").rglob("*.log")).read_text()
    assert "profile of iterations 3 to 3" in log
    assert "Self CPU time total" in log


def test_one_trace_for_a_stretch(make_runner, tmp_path):
    hook = {"type": "TorchProfilerHook", "begin": 2, "end": 3, "activities": ["cpu"]}
    assert profiled(make_runner, tmp_path, hook) == ["iter_2_3_rank0.json"]


def test_a_stretch_ends_when_the_predicate_says_no_and_with_the_run(make_runner, tmp_path):
    hook = TorchProfilerHook(predicate=lambda runner: runner.iter in (0, 1, 3, 4), activities=["cpu"])
    assert profiled(make_runner, tmp_path, hook) == ["iter_1_2_rank0.json", "iter_4_5_rank0.json"]


@MODELS.register_module()
class FailsInStepThree(ToyModel):
    def forward(self, inputs, data_samples=None, mode="tensor"):
        if self.calls == 2:
            raise OSError("the disk went away")
        return super().forward(inputs, data_samples, mode)


def test_what_was_recorded_before_an_error_is_kept(make_runner, tmp_path):
    hook = TorchProfilerHook(begin=2, end=5, activities=["cpu"])
    model = {"type": "FailsInStepThree", "bbox_head": {"type": "ToyHead"}}
    with pytest.raises(OSError, match="went away"):
        profiled(make_runner, tmp_path, hook, model=model)
    assert [path.name for path in (tmp_path / "run" / "profiles").iterdir()] == ["iter_2_2_rank0.json"]
    # torch's profiler is free again.
    TorchProfilerHook(begin=1, end=1)
    assert profiled(make_runner, tmp_path, TorchProfilerHook(begin=1, end=1, activities=["cpu"]))


def test_the_rank_is_in_the_name_of_the_file(make_runner, tmp_path, monkeypatch):
    monkeypatch.setattr("detkit.engine.hooks.profiler.get_rank", lambda: 3)
    hook = TorchProfilerHook(begin=1, end=1, activities=["cpu"])
    assert profiled(make_runner, tmp_path, hook) == ["iter_1_1_rank3.json"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "give begin and end, or predicate"),
        ({"begin": 1}, "give begin and end"),
        ({"begin": 1, "end": 2, "predicate": print}, "give begin and end, or predicate"),
        ({"begin": 0, "end": 2}, "1 <= begin <= end expected, got begin=0"),
        ({"begin": 3, "end": 2}, "got begin=3, end=2"),
        ({"begin": 1, "end": 2, "activities": ["gpu"]}, r"activities are cpu, cuda, got \['gpu'\]"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        TorchProfilerHook(**options)


def test_the_old_profiler_is_refused_by_name():
    with pytest.raises(TypeError, match=r"use dict\(type='TorchProfilerHook'"):
        HOOKS.build({"type": "AutogradProfiler", "output_dir": "x", "use_cuda": True})
    with pytest.raises(TypeError, match="autograd profiler was replaced"):
        AutogradProfiler()
