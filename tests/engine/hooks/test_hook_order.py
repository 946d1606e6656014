"""In which order the hooks of a run act, and why; and the page that says so, docs/engine.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from engine.engine_toys import toy_config
from mmengine.config import Config

from detkit.config import check, dump, load
from detkit.engine import Runner
from detkit.engine.hooks import hook as hook_module
from detkit.registry import HOOKS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/engine.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")]

# Each pair: the first acts before the second.
PAIRS = [
    ("IterTimerHook", "LoggerHook", "a step's time is not that of hooks"),
    ("CheckInvalidLossHook", "LoggerHook", "a step that is thrown away has no line"),
    ("LoggerHook", "ParamSchedulerHook", "a line has the rate its step was made with"),
    ("ParamSchedulerHook", "CheckpointHook", "a resumed run begins with the next rate"),
    ("LoggerHook", "CheckpointHook", "a resumed run writes no line twice"),
    ("DetVisualizationHook", "CheckpointHook", "pictures are of the weights that were evaluated"),
    ("PreciseBNHook", "EvalFunctionHook", "what is evaluated has its statistics"),
    ("PreciseBNHook", "CheckpointHook", "what is saved has its statistics"),
    ("EvalFunctionHook", "EMAHook", "it evaluates the averaged weights, which go after the validation"),
    ("EMAHook", "CheckpointHook", "the average of this step is saved"),
    ("EvalFunctionHook", "LoggerHook", "its numbers are in the line of the validation"),
    ("EvalFunctionHook", "CheckpointHook", "the best may be judged by them"),
    ("CheckpointHook", "EarlyStoppingHook", "the best is kept before the run is stopped"),
    ("EvalFunctionHook", "EarlyStoppingHook", "it may watch them"),
    ("EvalFunctionHook", "ExpectedResultsHook", "they may be expected"),
    ("CheckpointHook", "ExpectedResultsHook", "a run that fails its expectations has left its checkpoint"),
    ("CheckpointHook", "PreemptionHook", "a run that is to end anyway has written its regular checkpoint"),
    ("IterTimerHook", "TorchProfilerHook", "writing a trace is not a step's time"),
    ("TorchProfilerHook", "LoggerHook", "what hooks do after a step is not in its trace"),
]
ALL = [
    {"type": "EvalFunctionHook", "func": "steps_done_by_order"},
    {"type": "EarlyStoppingHook", "monitor": "toy/mAP"},
    {"type": "ExpectedResultsHook", "expected": []},
    {"type": "TorchProfilerHook", "begin": 100, "end": 100},
    {"type": "DetVisualizationHook"},
    {"type": "EMAHook"},
    {"type": "PreciseBNHook", "num_iters": 1},
]


@pytest.fixture
def order(make_runner):
    from mmengine.registry import FUNCTIONS

    FUNCTIONS.register_module("steps_done_by_order", module=lambda runner: {}, force=True)
    return [type(hook).__name__ for hook in make_runner(custom_hooks=ALL).hooks]


def test_hooks_act_in_the_order_that_they_need(order):
    for first, second, why in PAIRS:
        assert order.index(first) < order.index(second), f"{first} must come before {second}: {why}"


def test_the_timer_is_first_and_preemption_last_of_the_default_hooks(make_runner):
    names = [type(hook).__name__ for hook in make_runner().hooks]
    assert names[:2] == ["RuntimeInfoHook", "IterTimerHook"]
    assert names[-2:] == ["CheckpointHook", "PreemptionHook"]


def test_the_page_has_every_hook_with_its_priority():
    listed = {row[0].strip("`"): row[1].strip("`") for row in ROWS if row[0].strip("`") in HOOKS.module_dict}
    own = {
        name: str(cls.priority)
        for name, cls in HOOKS.module_dict.items()
        if cls.__module__.startswith("detkit.") and name != "AutogradProfiler"
    }
    assert listed == own


def test_the_page_lists_the_stages_in_their_order(make_runner):
    """The stages of an epoch with validation, as they are called."""
    called: list[str] = []
    runner = make_runner(epochs=1)
    plain = type(runner).call_hook

    def note(fn_name, **options):
        called.append(fn_name)
        plain(runner, fn_name, **options)

    runner.call_hook = note
    runner.train()
    block = re.search(r"```text\n(before_run.*?)```", PAGE, flags=re.DOTALL)[1]
    told = [word for line in block.splitlines() for word in line.split() if "_" in word or word == "close"]
    # after_backward is called by the optimizer's wrapper, close and on_exception by the runner's clean-up.
    expected = list(dict.fromkeys(called))
    assert [name for name in told if name in expected] == expected
    stages = {*hook_module.Hook.stages, "after_backward", "before_capture", "on_exception", "close"}
    assert set(told) <= stages
    assert {name for name in stages if "test" not in name} <= set(told)


def test_the_hook_of_the_page_works_as_it_stands_there(make_runner, tmp_path, monkeypatch):
    source = re.search(r"`my_hooks\.py`:\n\n```python\n(.*?)```", PAGE, flags=re.DOTALL)[1]
    body = source[source.index("@HOOKS") :].strip().splitlines()
    assert len(body) == 5
    config = re.search(r"```python\n(custom_imports = .*?)```", PAGE, flags=re.DOTALL)[1]
    (tmp_path / "my_hooks.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "toy.py").write_text(dump(Config(toy_config(tmp_path / "run", epochs=1))))
    (tmp_path / "mine.py").write_text(f'_base_ = "toy.py"\n{config}')
    try:
        Runner.from_cfg(load(tmp_path / "mine.py")).train()
    finally:
        HOOKS.module_dict.pop("WeightNormHook", None)
        sys.modules.pop("my_hooks", None)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"weight_norm": ' in lines


def test_the_configs_of_the_page_are_accepted(make_runner):
    """Every block that sets keys of a config, laid over the toy run, is checked and built."""
    blocks = re.findall(r"```python\n(# config\n.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        given: dict = {"val_dataloader_of": lambda name: toy_config("x")["val_dataloader"]}
        exec(block, given)
        changes = {key: value for key, value in given.items() if key not in ("__builtins__", "val_dataloader_of")}
        changes.setdefault("default_hooks", {})
        runner = make_runner(**changes)
        check(runner.cfg)
        if "val_cfg" in changes:
            runner.build_val_loop(runner._val_loop)
