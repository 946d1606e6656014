"""Every wrong input, as a user meets it: one line with a remedy on stderr, exit code 1, nothing lost."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_here import run_here

from detkit.datasets.shapes import generate

ROOT = Path(__file__).parents[2]
CONFIG = "configs/retinanet/retinanet_r18_fpn_shapes.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    generate(root, "mine", num_images=6, seed=3)
    return root


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def train(data, work_dir, *options, file="mine/annotations.json"):
    paths = [f"data_root={data}/", f"train_ann_file={file}", f"val_ann_file={file}"]
    paths += ["train_images=mine/images/", "val_images=mine/images/"]
    return run_here("train", CONFIG, "--work-dir", work_dir, "--device", "cpu", "--cfg-options", *paths, *options)


def assert_one_line(result, *parts):
    assert result.returncode == 1, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in errors[0]


def changed(data, name, change):
    """A copy of the annotations beside them, changed."""
    content = json.loads((data / "mine" / "annotations.json").read_text())
    change(content)
    (data / "mine" / name).write_text(json.dumps(content))
    return f"mine/{name}"


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("optim_wraper.type=OptimWrapper", ["optim_wraper", "'optim_wrapper'"]),
        ("model.bakbone.depth=18", ["model.bakbone", "'model.backbone"]),
        ("model.bbox_head.loss_cls.gama=2", ["model.bbox_head.loss_cls.gama", "gamma"]),
        ("model.backbone.type=ResNett", ["model.backbone.type", "'ResNett'", "MODELS", "'ResNet'"]),
        ("model.bbox_head.num_classes=7", ["7", "5", "model.bbox_head.num_classes"]),
        ("classes=disc,triangel", ["triangel", "'triangle'", "annotations.json"]),
    ],
)
def test_config(data, tmp_path, option, parts):
    assert_one_line(train(data, tmp_path / "run", option), *parts)


def test_missing_annotation_file(data, tmp_path):
    assert_one_line(train(data, tmp_path / "run", file="mine/anotations.json"), "anotations.json", "data_root")


@pytest.mark.parametrize(("text", "part"), [("[1, 2]", "COCO"), ("{", "not JSON"), ('{"images": []}', "COCO")])
def test_json_that_is_not_coco(data, tmp_path, text, part):
    (data / "mine" / "other.json").write_text(text)
    assert_one_line(train(data, tmp_path / "run", file="mine/other.json"), "other.json", part)


@pytest.mark.parametrize("box", [[10, 10, 0, 5], [10, 10, -5, 5], [500, 500, 5, 5]])
def test_a_broken_box(data, tmp_path, box):
    def breaks(content):
        content["annotations"][3].update(bbox=box, id=4711)

    result = train(data, tmp_path / "run", file=changed(data, "broken.json", breaks))
    assert_one_line(result, "broken.json", "4711", "bad_annotations")


@pytest.mark.parametrize("fault", ["missing", "truncated", "no image"])
def test_a_broken_image(data, tmp_path, fault):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    victim = root / "mine" / "images" / "00004.jpg"
    whole = victim.read_bytes()
    victim.unlink()
    if fault != "missing":
        victim.write_bytes(whole[: len(whole) // 2] if fault == "truncated" else b"no image at all")
    assert_one_line(train(root, tmp_path / "run"), "00004.jpg")


def test_work_dir_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_one_line(train(data, tmp_path / "file"), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_none_is(data, tmp_path):
    result = run_here("train", CONFIG, "--work-dir", tmp_path / "run", "--device", "cuda")
    assert_one_line(result, "cuda", "cpu")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("fault", ["truncated", "code", "missing"])
@pytest.mark.parametrize("tool", ["test", "infer", "train --resume"])
def test_a_broken_checkpoint(data, tmp_path, fault, tool):
    path, trace = tmp_path / "x.pth", tmp_path / "was_here"
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, path)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif fault == "code":
        path.write_bytes(pickle.dumps({"state_dict": Payload(trace)}, protocol=2))
    else:
        path.unlink()
    if tool == "test":
        result = run_here("test", CONFIG, path, "--work-dir", tmp_path / "run", "--device", "cpu")
    elif tool == "infer":
        result = run_here("infer", data / "mine" / "images" / "00000.jpg", "--checkpoint", path, "--device", "cpu")
    else:
        result = run_here("train", CONFIG, "--work-dir", tmp_path / "run", "--device", "cpu", "--resume", path)
    wanted = {"truncated": "truncated", "code": "run code", "missing": "no such"}[fault]
    assert_one_line(result, "x.pth", wanted)
    assert not trace.exists()


def test_the_first_step_comes_soon(data, tmp_path):
    """At most 15 s from the start of tools/train.py."""
    command = [sys.executable, "tools/train.py", CONFIG, "--work-dir", tmp_path / "run", "--device", "cpu"]
    command += ["--cfg-options", f"data_root={data}/", "train_ann_file=mine/annotations.json", "batch_size=2"]
    command += ["val_ann_file=mine/annotations.json", "train_images=mine/images/", "val_images=mine/images/"]
    command += ["default_hooks.logger.interval=1"]
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = next(line for line in process.stdout if "iter 1/" in line)
        seconds = time.perf_counter() - start
        process.kill()
    assert "loss" in first
    assert seconds < 15


def test_all_that_is_wrong_with_a_config_is_told_at_once(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(
        f"_base_ = {str(ROOT / CONFIG)!r}\nmodel = dict(backbone=dict(type='Resnet'), neck=dict(num_out=3))\n"
        "custom_hooks = [dict(type='EMAHok')]\noptm_wrapper = dict()\n"
    )
    result = run_here("train", config, "--device", "cpu")
    assert result.returncode == 1
    assert result.stderr.startswith("error: 4 things stand against this config:\n  ")
    assert len(result.stderr.splitlines()) == 5
    for part in (
        "'optim_wrapper'",
        "model.backbone.type: 'Resnet'",
        "model.neck.num_out: FPN",
        "custom_hooks.0.type: 'E",
    ):
        assert part in result.stderr
