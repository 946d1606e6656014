"""The loop without the Runner: the same weights, resuming, fine-tuning, several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.engine_toys import toy_config
from mmengine.config import Config
from no_sync import NoSync
from tools.plain_worker import TOOL

from detkit import engine
from detkit.config import load
from detkit.engine import Runner, launch, load_checkpoint_file, save_checkpoint_file
from tools import plain_worker

ROOT = TOOL.parents[1]


@pytest.fixture(scope="module")
def train() -> Any:
    return plain_worker.load_tool().train


def by_iterations(count: int, **changes: Any) -> dict[str, Any]:
    """A run whose every part has something to restore: accumulation, warm-up, low precision, several groups."""
    curve = {"type": "WarmupMultiplier", "multiplier": {"type": "CosineMultiplier"}, "warmup_iters": 4}
    options = {
        "train_cfg": {"by_epoch": False, "max_iters": count, "val_interval": 5},
        "param_scheduler": {"type": "LRMultiplier", "multiplier": curve, "end": 10},
        "optim_wrapper": {
            "type": "AmpOptimWrapper",
            "optimizer": {"type": "AdamW", "lr": 0.01},
            "accumulative_counts": 2,
            "clip_grad": {"max_norm": 1.0},
            "paramwise_cfg": {"bias_lr_mult": 2.0},
        },
    }
    return {**options, **changes}


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    state, other = one.state_dict(), two.state_dict()
    return state.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in state.items())


@pytest.mark.parametrize("changes", [{}, by_iterations(10)], ids=["epochs", "iterations"])
def test_the_weights_are_the_runners(train, tmp_path, changes, capfd):
    runner = Runner.from_cfg(Config(toy_config(tmp_path / "runner", **changes)))
    runner.train()
    capfd.readouterr()
    model = train(Config(toy_config("", **changes)), tmp_path / "last.pth")
    assert same(model, runner.model)
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("iter ")]
    assert f"iter {runner.iter}/{runner.iter}  {{'loss': " in lines[-2]
    assert "'toy/mAP': " in lines[-1]
    assert len(lines) == 2 * (3 if not changes else 2)  # a line of losses and one of metrics per validation


def test_a_resumed_loop_goes_on_to_the_bit(train, tmp_path, monkeypatch):
    cfg = Config(toy_config("", **by_iterations(10)))
    whole = train(cfg, tmp_path / "whole.pth")

    def save_and_die(state: Any, path: Path) -> None:
        save_checkpoint_file(state, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "save_checkpoint_file", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, tmp_path / "cut.pth")
    monkeypatch.undo()
    assert load_checkpoint_file(tmp_path / "cut.pth")["meta"]["iter"] == 5  # within a window of two iterations
    assert same(whole, train(cfg, tmp_path / "cut.pth", resume=True))
    meta = load_checkpoint_file(tmp_path / "cut.pth")["meta"]
    assert (meta["iter"], meta["label_map"]["classes"]) == (10, ["disc", "star", "cross"])
    assert same(whole, train(cfg, tmp_path / "cut.pth", resume=True))  # it is done


def test_fine_tuning_starts_at_the_beginning(train, tmp_path, capfd):
    """Detectron2's plain loop starts at iteration 90,000 with a file that says 89,999."""
    train(Config(toy_config("", **by_iterations(2))), tmp_path / "first.pth")
    checkpoint = load_checkpoint_file(tmp_path / "first.pth")
    checkpoint["iteration"] = checkpoint["meta"]["iter"] = 89_999
    save_checkpoint_file(checkpoint, tmp_path / "far.pth")
    cfg = Config(toy_config("", load_from=str(tmp_path / "far.pth"), **by_iterations(3)))
    capfd.readouterr()
    for resume in (False, True):  # there is nothing to resume either way
        train(cfg, tmp_path / f"tuned_{resume}.pth", resume=resume, log_every=1)
        assert "iter 1/3  {'loss': " in capfd.readouterr().out
    assert load_checkpoint_file(tmp_path / "tuned_False.pth")["meta"]["iter"] == 3


def test_a_loss_that_is_not_finite_stops_before_the_checkpoint(train, tmp_path):
    model = {"type": "ToyModel", "bbox_head": {"type": "ToyHead"}, "nan_at": 4}
    with pytest.raises(AssertionError, match="a loss of the 5 iterations to 5 is not finite"):
        train(Config(toy_config("", **by_iterations(10, model=model))), tmp_path / "last.pth")
    assert not (tmp_path / "last.pth").exists()


def test_until_a_log_line_nothing_waits_for_the_device(train, tmp_path, monkeypatch):
    batches, watching = [], ExitStack()

    class Watched(engine.DataStream):
        """Between two batches nothing may wait; loading them does."""

        def __iter__(self):
            for batch in super().__iter__():
                batches.append(batch)
                watching.enter_context(NoSync())
                yield batch
                watching.close()

    monkeypatch.setattr(engine, "DataStream", Watched)
    # On a CPU, torch's AdamW reads its count of steps.
    wrapper = {"optimizer": {"type": "SGD", "lr": 0.01}, "accumulative_counts": 2}
    cfg = Config(toy_config("", **by_iterations(4, optim_wrapper=wrapper)))
    with watching, pytest.raises(AssertionError, match="waits for the device") as caught:
        train(cfg, tmp_path / "last.pth")
    assert len(batches) == 4
    assert "means = " in str([entry for entry in caught.traceback if entry.path == TOOL][-1].statement)


def test_it_is_short():
    assert len(TOOL.read_text().splitlines()) <= 80


def test_two_processes(tmp_path):
    values = toy_config("", **by_iterations(3))
    ends = launch(plain_worker.train, 2, args=(values, str(tmp_path)), device_type="cpu", start_method="forkserver")
    assert ends[0] == ends[1]
    assert ends[0][1]  # the Runner's weights
    assert load_checkpoint_file(tmp_path / "last.pth")["meta"]["iter"] == 3
    printed = [(tmp_path / f"printed_{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    reports = [[line[:8] for line in lines if line.startswith("iter")] for lines in printed]
    assert reports == [["iter 3/3"] * 2, []]  # one of them reports


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    values = toy_config("", **by_iterations(4))
    del values["work_dir"]
    values["custom_imports"] = {"imports": ["engine.engine_toys"], "allow_failed_imports": False}
    config = tmp_path / "toy.py"
    config.write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(TOOL)]
    done = subprocess.run(
        [*command, str(config), "--work-dir", str(tmp_path / "run"), "--cfg-options", "train_cfg.max_iters=3"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [line[:8] for line in done.stdout.splitlines() if line.startswith("iter")] == ["iter 3/3"] * 2
    assert load_checkpoint_file(tmp_path / "run" / "last.pth")["meta"]["iter"] == 3


@pytest.mark.slow
def test_the_example_config(train, tmp_path):
    """Six iterations of the shipped example, as the Runner makes them."""
    options = {"train_cfg.max_epochs": 1, "train_dataloader.num_workers": 0, "val_dataloader.num_workers": 0}
    cfg = load(ROOT / "configs" / "retinanet" / "retinanet_r18_fpn_shapes.py", options)
    cfg.device, cfg.work_dir, cfg.custom_hooks = "cpu", str(tmp_path / "runner"), []
    for kind, count in (("train", 48), ("val", 8)):
        loader = cfg[f"{kind}_dataloader"]
        loader.pop("persistent_workers", None)
        loader.dataset.indices = count
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert same(train(cfg, tmp_path / "last.pth"), runner.model)
