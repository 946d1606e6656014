"""Runs of the tools on a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from engine.shapes_run import shapes_config

from detkit.datasets.shapes import generate
from detkit.engine import Runner, load_checkpoint_file

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
RETINANET = "configs/retinanet/retinanet_r18_fpn_shapes.py"


def tool(name, *arguments):
    done = subprocess.run(
        [sys.executable, f"tools/{name}.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout + done.stderr


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def cfg(tmp_path):
    generate(tmp_path / "data", "val")
    cfg = shapes_config(tmp_path / "run", tmp_path / "data", 4, iterations=40)
    cfg.device = "cuda"
    cfg.default_hooks.logger.interval = 20
    return cfg


def test_between_two_lines_of_the_log_nothing_waits(cfg, monkeypatch):
    waits = []
    cfg.train_cfg.val_interval = 1000
    runner = Runner.from_cfg(cfg)
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: waits.append((runner.iter, str(message))))
    warnings.filterwarnings("always", message="called a synchronizing")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        runner.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = {iteration for iteration, message in waits if "called a synchronizing CUDA operation" in message}
    # At the first what is made once, at the 20th a line, at the last a line and the checkpoint.
    assert found - {0, 19, 39, 40} == set()
    assert 19 in found


HOOKED = f"""_base_ = ["{ROOT / RETINANET}"]
custom_hooks = [
    dict(type="EMAHook"),
    dict(type="TorchProfilerHook", begin=10, end=13),
    dict(type="CudaMemoryHook"),
    dict(type="PreciseBNHook", num_iters=8),
    dict(type="ChannelsLastHook"),
]
train_cfg = dict(max_epochs=1, val_interval=1)
"""


def test_a_run_with_many_hooks_and_the_tools_after_it(tmp_path):
    config = tmp_path / "hooked.py"
    config.write_text(HOOKED)
    assert "bbox_mAP" in tool("train", config, "--work-dir", tmp_path / "run", "--amp")
    checkpoint = tmp_path / "run/epoch_1.pth"
    assert "bbox_mAP" in tool("test", config, checkpoint, "--work-dir", tmp_path / "test")
    images = sorted((ROOT / "data/shapes/val/images").iterdir())[:4]
    tool("infer", *images, "--checkpoint", checkpoint, "--out-dir", tmp_path / "found")
    assert len(list((tmp_path / "found").iterdir())) == 4
    plain = tool("train_plain", config, "--work-dir", tmp_path / "plain")
    assert "iter 63/63" in plain


@pytest.mark.parametrize("options", [(), ("--amp",)], ids=["float32", "float16"])
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, options):
    common = ("--deterministic", *options, "--cfg-options", "train_cfg.max_epochs=2", "train_cfg.val_interval=2")
    keep = ("default_hooks.checkpoint.interval=1", "default_hooks.checkpoint.max_keep_ckpts=-1")
    tool("train", RETINANET, "--work-dir", tmp_path / "whole", *common, *keep)
    tool(
        "train",
        RETINANET,
        "--work-dir",
        tmp_path / "resumed",
        "--resume",
        tmp_path / "whole/epoch_1.pth",
        *common,
        *keep,
    )
    whole, resumed = (load_checkpoint_file(tmp_path / name / "epoch_2.pth") for name in ("whole", "resumed"))
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name].cpu(), value.cpu()), name
    memory = [line["memory"] for line in metrics(tmp_path / "whole") if "memory" in line]
    assert memory
    assert min(memory) > 10


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (RETINANET, ("--cfg-options", "compile=True")),
        (RETINANET, ("--amp", "--num-processes", "1")),
        ("configs/faster_rcnn/faster-rcnn_r18_fpn_shapes.py", ("--amp",)),
        ("configs/mask_rcnn/mask-rcnn_r18_fpn_shapes.py", ("--amp",)),
        ("configs/yolox/yolox_r18_fpn_shapes.py", ("--amp",)),
        ("configs/rtmdet/rtmdet_r18_fpn_shapes.py", ()),
    ],
)
def test_it_builds_trains_and_predicts(config, options, tmp_path):
    out = tool("train", config, "--work-dir", tmp_path, "--dry-run", *options)
    assert "cuda" in out
