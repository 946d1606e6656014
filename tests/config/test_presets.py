"""Every shipped schedule trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine.engine_toys import toy_config

from detkit.config import load
from detkit.engine import Runner, build_optim_wrapper, build_schedulers
from detkit.registry import MODELS

ROOT = Path(__file__).parents[2] / "configs"
SCHEDULES = sorted((ROOT / "_base_" / "schedules").glob("*.py"))


@pytest.mark.parametrize("path", SCHEDULES, ids=[path.stem for path in SCHEDULES])
def test_a_shipped_schedule_trains(path, tmp_path):
    keys = ("model", "train_dataloader", "val_dataloader", "val_evaluator", "device", "visualizer")
    values = {key: value for key, value in toy_config("").items() if key in keys}
    values["custom_imports"] = {"imports": ["engine.engine_toys"], "allow_failed_imports": False}
    values["work_dir"] = str(tmp_path / "run")
    lines = [f"_base_ = [{str(path)!r}]", *(f"{key} = {value!r}" for key, value in values.items())]
    (tmp_path / "toy.py").write_text("\n".join(lines))
    cfg = load(tmp_path / "toy.py")
    cfg.test_cfg = None
    if "default_hooks" in cfg:
        # The toy has no pictures, and a metric of its own.
        cfg.default_hooks.update(visualization=None, checkpoint=None)
    base = cfg.optim_wrapper.optimizer.lr
    by_iterations = "max_iters" in cfg.train_cfg
    cfg.train_cfg.update({"max_iters": 2} if by_iterations else {"max_epochs": 1})
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == (2 if by_iterations else 3)
    assert runner.optim_wrapper.get_lr()["lr"][0] <= base


def test_the_90k_schedule_is_detectron2s():
    """0.001 of the rate at the start, all of it at 1000, a tenth at 60,000, a hundredth at 80,000."""
    cfg = load(ROOT / "_base_" / "schedules" / "schedule_90k.py")
    optimizer = build_optim_wrapper(MODELS.build({"type": "ResNet", "depth": 18}), cfg.optim_wrapper)
    (scheduler,) = build_schedulers(cfg.param_scheduler, optimizer, max_iters=90_000, epoch_length=7330)
    expected = {0: 0.00002, 500: 0.01001, 1000: 0.02, 59_999: 0.02, 60_000: 0.002, 80_000: 0.0002, 90_000: 0.0002}
    found = {}
    for step in range(90_001):
        if step in expected:
            found[step] = scheduler.get_last_value()[0]
        scheduler.step()
    assert found == pytest.approx(expected)
