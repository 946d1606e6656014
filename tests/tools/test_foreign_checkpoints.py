"""Checkpoints from elsewhere in tools/train.py, test.py and infer.py: what fits runs, what does not is one line."""

from __future__ import annotations

import datetime
import importlib.util
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.shapes_run import shapes_config
from mmengine.logging import HistoryBuffer

from detkit.config import dump
from detkit.datasets.shapes import CATEGORIES, generate
from detkit.registry import MODELS

CLASSES = list(CATEGORIES.values())
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, the config of a small RetinaNet, and a checkpoint as MMDetection's Runner writes it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("foreign")
    generate(folder / "data", "val", num_images=4, seed=3)
    cfg = shapes_config(folder / "work", folder / "data", 2, iterations=1)
    cfg.custom_hooks = []
    for part in ("val_dataloader", "test_dataloader"):
        cfg[part].num_workers, cfg[part].persistent_workers = 0, False
    cfg.train_dataloader.num_workers, cfg.train_dataloader.persistent_workers = 0, False
    (folder / "config.py").write_text(dump(cfg))
    torch.manual_seed(0)
    state = MODELS.build(cfg.model).state_dict()
    content = {
        "meta": {
            "cfg": f"{dump(cfg)}\ndefault_scope = 'mmdet'\n",
            "epoch": 12,
            "iter": np.int64(87960),
            "time": "20230101_000000",
            "date": datetime.datetime(2023, 1, 1, tzinfo=datetime.timezone.utc),
            "mmengine_version": "0.10.3",
            "dataset_meta": {"classes": tuple(CLASSES), "palette": [(220, 20, 60)] * len(CLASSES)},
        },
        "state_dict": state,
        "message_hub": {
            "log_scalars": {"train/loss": HistoryBuffer([1.0], [1])},
            "runtime_info": {},
            "resumed_keys": {},
        },
    }
    torch.save(content, folder / "good.pth")
    return folder, content


def run(name: str, monkeypatch, *arguments: object) -> None:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("sys.argv", [f"tools/{name}.py", *map(str, arguments)])
    module.main()


def call(tool: str, monkeypatch, folder: Path, checkpoint: Path, work_dir: Path) -> None:
    if tool == "infer":
        image = folder / "data/val/images/00000.jpg"
        run("infer", monkeypatch, image, "--checkpoint", checkpoint, "--device", "cpu", "--out-dir", work_dir)
    elif tool == "test":
        run("test", monkeypatch, folder / "config.py", checkpoint, "--work-dir", work_dir, "--device", "cpu")
    else:
        options = ["--resume", checkpoint] if tool == "resume" else ["--cfg-options", f"load_from={checkpoint}"]
        run("train", monkeypatch, folder / "config.py", "--work-dir", work_dir, "--device", "cpu", *options)


@pytest.mark.parametrize("tool", ["train", "test", "infer"])
def test_a_file_of_mmdetection_runs(place, tmp_path, monkeypatch, capsys, tool):
    folder, content = place
    call(tool, monkeypatch, folder, folder / "good.pth", tmp_path / "run")
    said = " ".join("".join(capsys.readouterr()).split())
    if tool == "infer":
        assert "00000.jpg: " in said
    else:
        assert f"good.pth: {len(content['state_dict'])} tensors loaded" in said


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def broken(fault: str, content: dict, path: Path, trace: Path) -> None:
    """Write a file with one fault."""
    state, meta = dict(content["state_dict"]), dict(content["meta"])
    if fault == "architecture":
        state = {key.replace("backbone.layer", "backbone.stages."): value for key, value in state.items()}
    elif fault == "class count":
        meta["dataset_meta"] = {"classes": ["person", "car"]}
        for kind in ("weight", "bias"):
            key = f"bbox_head.retina_cls.{kind}"
            state[key] = state[key].unflatten(0, (-1, len(CLASSES)))[:, :2].flatten(0, 1)
    elif fault == "code":
        meta["hook"] = Payload(trace)
    torch.save({**content, "state_dict": state, "meta": meta}, path)
    if fault == "tensor":
        with zipfile.ZipFile(path) as whole:
            entries = [(entry.filename, whole.read(entry)) for entry in whole.infolist()]
        with zipfile.ZipFile(path, "w") as cut:
            for name, data in entries:
                cut.writestr(name, data[: len(data) // 2] if "/data/" in name and len(data) > 1000 else data)


MESSAGES = {
    "architecture": ["x.pth: the checkpoint of another architecture: ", "RetinaNet"],
    "class count": ["x.pth", "2 classes (person, car)"],
    "tensor": ["x.pth (", "the checkpoint is truncated ("],
    "code": ["x.pth (", "opening this file would run code (posix.system), so it was not opened"],
}


# Files cut off: test_wrong_input.py.
CASES = [(tool, fault) for fault in MESSAGES for tool in ("train", "test", "infer")] + [("resume", "architecture")]
CASES.remove(("train", "tensor"))  # read as one with code is


@pytest.mark.parametrize(("tool", "fault"), CASES)
def test_one_line_says_what_is_wrong(place, tmp_path, monkeypatch, capsys, tool, fault):
    folder, content = place
    path, trace = tmp_path / "x.pth", tmp_path / "was_here"
    broken(fault, content, path, trace)
    if (tool, fault) == ("train", "class count"):  # a start from other classes is none
        call(tool, monkeypatch, folder, path, tmp_path / "run")
        said = " ".join("".join(capsys.readouterr()).split())
        assert "rows of classes that both name are taken over, the others start anew" in said
        assert f"rows of {len(CLASSES)} new classes as initialised (" in said
        return
    with pytest.raises(SystemExit) as stopped:
        call(tool, monkeypatch, folder, path, tmp_path / "run")
    assert stopped.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    wanted = MESSAGES[fault]
    if tool == "resume":
        wanted = ["x.pth: a run cannot be resumed from this file, as it lacks optimizer, param_schedulers"]
    for part in wanted:
        assert part in lines[0]
    assert not trace.exists()
