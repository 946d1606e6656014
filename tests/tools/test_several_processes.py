"""The tools in two processes on a CPU: under torchrun, and started by themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from detkit.checkpoints import load_checkpoint_file
from detkit.datasets.shapes import generate

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/retinanet/retinanet_r18_fpn_shapes.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generate(folder, "val", num_images=5)
    return [
        *("--device", "cpu", "--cfg-options", f"data_root={folder}", "train_ann_file=val/annotations.json"),
        *("train_images=val/images/", "image_scale=(64,64)", "batch_size=1", "max_epochs=2", "interval=1"),
        *(
            "model.backbone.base_channels=8",
            "model.neck.in_channels=[8,16,32]",
            "default_hooks.logger.tensorboard=False",
        ),
    ]


def call(*command, cwd, **environment):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_train_under_torchrun(tmp_path, options):
    """Five images in two processes: three iterations an epoch; everything is said and written once."""
    result = call(*TORCHRUN, ROOT / "tools/train.py", CONFIG, "--work-dir", "run", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained to epoch 2, iteration 6") == 1
    assert result.stderr.count("work directory") == 1
    run = tmp_path / "run"
    assert len(load_checkpoint_file(run / "epoch_2.pth")["rng"]) == 2
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "coco/bbox_mAP" in line] == [3, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_train_fail_and_test_in_processes_of_their_own(tmp_path, options):
    two = ["--num-processes", "2"]
    train = [ROOT / "tools/train.py", CONFIG, "--work-dir", "run", *two, *options]
    result = call(*train, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained to epoch 2, iteration 6") == 1
    assert "UserWarning" not in result.stderr
    test = [ROOT / "tools/test.py", CONFIG, "run/epoch_2.pth", "--work-dir", "test", *two, *options]
    result = call(*test, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("metrics ") == 1
    broken = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert "coco/bbox_mAP" in broken
    result = call(*train, "model.bbox_head.num_classes=7", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("error: process ") == 1
    assert "num_classes" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_torchrun_starts_anew_what_failed(tmp_path, options):
    """The second process dies in the second epoch, once; the run goes on from the checkpoint of the first."""
    hook = tmp_path / "dies_once.py"
    hook.write_text(
        "import os\n"
        "from mmengine.hooks import Hook\n"
        "from detkit.registry import HOOKS\n"
        "@HOOKS.register_module()\n"
        "class DiesOnce(Hook):\n"
        "    def before_train_iter(self, runner, batch_idx, data_batch=None):\n"
        "        if runner.rank == 1 and runner.iter == 4 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "            os._exit(3)\n"
    )
    extra = ["+custom_imports={'imports':['dies_once']}", "custom_hooks=[{'type':'DiesOnce'}]"]
    command = [*TORCHRUN, "--max-restarts", "1", ROOT / "tools/train.py", CONFIG, "--work-dir", "run", *options, *extra]
    result = call(*command, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "epoch_1.pth: epoch 1, iteration 3" in result.stderr
    assert result.stdout.count("trained to epoch 2, iteration 6") == 1
