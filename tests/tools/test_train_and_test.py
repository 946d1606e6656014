"""tools/train.py and tools/test.py as a user calls them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from engine.engine_toys import toy_config
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def config(tmp_path) -> Path:
    """The toy run as a config file."""
    values = toy_config(tmp_path / "unused")
    del values["work_dir"], values["device"]
    values["custom_imports"] = {"imports": ["engine.engine_toys"], "allow_failed_imports": False}
    hooks = values["default_hooks"]
    hooks["checkpoint"] = {"type": "CheckpointHook", "interval": 1, "save_best": "toy/mAP"}
    path = tmp_path / "toy.py"
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()))
    return path


def run_here(name: str, *arguments: str) -> None:
    module = tool(name)
    getattr(module, name)(module.parse_args([str(argument) for argument in arguments]))


def test_train_resume_and_test(config, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    run_here("train", config, "--device", "cpu", "--cfg-options", "train_cfg.max_epochs=1")
    folder = tmp_path / "work_dirs" / "toy"
    printed = capfd.readouterr().out
    assert "trained to epoch 1, iteration 3" in printed
    assert f"last      {folder}/epoch_1.pth" in printed
    assert f"{folder}/best_toy_mAP_epoch_1.pth" in printed
    assert f"curve     {folder}" in printed
    for line in printed.splitlines():
        name = line.split()[-1]
        assert not name.startswith("/") or Path(name).exists(), line

    run_here("train", config, "--resume", "--device", "cpu", "--cfg-options", "train_cfg.max_epochs=2")
    assert "trained to epoch 2, iteration 6" in capfd.readouterr().out

    checkpoint = folder / "epoch_2.pth"
    run_here("test", config, checkpoint, "--device", "cpu", "--work-dir", tmp_path / "result")
    metrics = json.loads((tmp_path / "result" / "metrics.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics["toy/mAP"] == lines[-1]["toy/mAP"]
    assert "toy/mAP" in capfd.readouterr().err


def test_arguments_become_config_values(config, tmp_path):
    train = tool("train")
    cfg = train.configure(
        train.parse_args(
            [
                *(str(config), "--amp", "--seed", "7", "--work-dir", "w", "--device", "cpu", "--resume", "x.pth"),
                *("--cfg-options", "train_cfg.max_epochs=5", "--cfg-options", "optim_wrapper.optimizer.lr=0.5"),
            ]
        )
    )
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"
    assert cfg.randomness == {"seed": 7}
    assert (cfg.work_dir, cfg.device, cfg.resume) == ("w", "cpu", "x.pth")
    assert (cfg.train_cfg.max_epochs, cfg.optim_wrapper.optimizer.lr) == (5, 0.5)
    cfg = train.configure(train.parse_args([str(config)]))
    assert (cfg.work_dir, cfg.resume) == (str(Path("work_dirs", "toy")), False)


def test_amp_does_not_replace_a_wrapper_of_ones_own(config, monkeypatch):
    train = tool("train")
    cfg = Config({"optim_wrapper": {"type": "MyWrapper"}, "work_dir": "w"})
    monkeypatch.setattr("detkit.config.load", lambda *_: cfg)
    with pytest.raises(ValueError, match=r"--amp replaces an OptimWrapper, but optim_wrapper\.type is 'MyWrapper'"):
        train.configure(train.parse_args([str(config), "--amp"]))


def test_the_table_per_class_is_asked_for_where_the_metric_has_one():
    show = tool("test").show_classes
    coco, toy, decided = ({"type": "CocoMetric"}, {"type": "ToyMetric"}, {"type": "CocoMetric", "classwise": False})
    for evaluator in (coco, toy, decided):
        show(evaluator)
    assert coco == {"type": "CocoMetric", "classwise": True}
    assert toy == {"type": "ToyMetric"}
    assert decided["classwise"] is False


def test_metrics_json_has_no_nan():
    plain = tool("test").plain
    assert plain({"a": float("nan"), "b": np.float32(0.5), "c": [np.array([1, 2])], "d": "x", "e": (True, None)}) == {
        **{"a": None, "b": 0.5, "c": [[1, 2]], "d": "x", "e": [True, None]},
    }


@pytest.mark.parametrize("name", ["train", "test"])
def test_help_is_quick_and_imports_nothing_heavy(name, tmp_path):
    start = time.perf_counter()
    result = call(ROOT / "tools" / f"{name}.py", "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "config" in result.stdout
    assert time.perf_counter() - start < 1
    code = f"""
import runpy, sys
sys.argv = ["tool", "--help"]
try:
    runpy.run_path({str(ROOT / "tools" / f"{name}.py")!r}, run_name="__main__")
except SystemExit:
    print({{"torch", "mmengine", "numpy"}} & set(sys.modules))
"""
    assert call("-c", code, cwd=tmp_path).stdout.endswith("set()\n")


def test_errors_are_one_line_and_status_1(config, tmp_path):
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"PK\x03\x04 half")
    result = call(ROOT / "tools" / "test.py", config, broken, "--device", "cpu", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {broken} (9 bytes): the checkpoint is truncated")
    assert len(result.stderr.splitlines()) == 1
    options = ["--cfg-options", "train_cfg.max_epoch=3"]
    result = call(ROOT / "tools" / "train.py", config, "--device", "cpu", *options, cwd=tmp_path)
    assert result.returncode == 1
    assert "max_epoch" in result.stderr
    assert "max_epochs" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "work_dirs").exists()


def test_a_dry_run_goes_through_everything_and_leaves_nothing(config, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    run_here("train", config, "--device", "cpu", "--dry-run")
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "data", "step", "step", "validation"]
    assert lines[1].split(maxsplit=1)[1] == "12 images, 3 batches per pass, 9 iterations"
    assert "loss_bbox" in lines[3]
    assert lines[4].endswith("8 of 12 images predicted and taken by ToyMetric")
    assert [path.name for path in tmp_path.iterdir()] == ["toy.py"]
    # Of several processes one says it.
    monkeypatch.setattr("detkit.engine.distributed.is_main_process", lambda: False)
    run_here("train", config, "--device", "cpu", "--dry-run")
    assert capfd.readouterr().out == ""


def test_deterministic_is_handed_on(config):
    train = tool("train")
    cfg = train.configure(train.parse_args([str(config), "--deterministic", "--seed", "3"]))
    assert cfg.randomness == {"seed": 3, "deterministic": True}
