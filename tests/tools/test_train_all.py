"""tools/train_all.py: runs one after another, a table between its marks, and no run twice."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from detkit.datasets.shapes import generate

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/retinanet/retinanet_r18_fpn_shapes.py"


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("train_all", ROOT / "tools/train_all.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page(tool, tmp_path):
    path = tmp_path / "methods.md"
    path.write_text(f"before\n\n{tool.BEGIN}\n{tool.END}\n\nafter\n")
    return path


def row(name, metric):
    config = f"configs/{name}/{name}_shapes.py"
    command = f"python tools/train.py {config}"
    return {
        "config": config,
        "metric": metric,
        "of_masks": 0.3,
        "minutes": 4.26,
        "cpu_minutes": 8.5,
        "command": command,
    }


def test_two_steps_of_a_run_leave_a_row_and_are_not_made_again(tool, page, tmp_path, monkeypatch, capsys):
    for split, count in (("train", 4), ("val", 2)):
        generate(tmp_path / "images", split, num_images=count, seed=1)
    options = [f"data_root={tmp_path}/images", "batch_size=2", "max_epochs=1", "default_hooks.visualization=None"]
    arguments = [str(CONFIG), "--work-dir", str(tmp_path / "runs"), "--page", str(page), "--device", "cpu"]
    args = tool.parse_args([*arguments, "--cfg-options", *options])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tool.train_all(args)
    folder = tmp_path / "runs" / CONFIG.stem
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2
    result = json.loads((folder / "result.json").read_text())
    assert result["metric"] == lines[-1][tool.METRIC]
    assert 0 < result["minutes"] < 2
    assert 0 < result["cpu_minutes"] < 2
    assert result["of_masks"] is None
    text = page.read_text()
    start = "| [retinanet](../configs/retinanet/README.md) | `retinanet_r18_fpn_shapes` | 0.0"
    assert text.splitlines()[5].startswith(start)
    command = f"`python tools/train.py {CONFIG.relative_to(ROOT)} --device cpu --cfg-options data_root="
    assert command in text
    assert text.startswith("before\n\n")
    assert text.endswith("\n\nafter\n")

    monkeypatch.setattr(tool.subprocess, "run", lambda *_, **__: pytest.fail("trained again"))
    tool.train_all(args)
    assert page.read_text() == text
    args.again = True
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        tool.train_all(args)
    # A run that did not end leaves no result, and is made anew.
    assert not (folder / "result.json").exists()


def test_a_row_takes_the_place_of_the_older_one_and_others_stay(tool, page):
    tool.write_row(page, row("fcos", 0.5))
    tool.write_row(page, row("atss", 0.41))
    tool.write_row(page, row("fcos", 0.62))
    assert [line.split(" | ")[1:6] for line in page.read_text().splitlines() if line.startswith("| ")] == [
        ["config", "bbox mAP", "segm mAP", "minutes", "CPU minutes"],
        ["`atss_shapes`", "0.410", "0.300", "4.3", "8.5"],
        ["`fcos_shapes`", "0.620", "0.300", "4.3", "8.5"],
    ]


def test_a_run_that_fails_does_not_keep_the_others_from_running(tool, page, tmp_path, monkeypatch):
    ran = []

    def train(config, folder, args):
        ran.append(config.stem)
        if config.stem == "atss_shapes":
            return False
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(row("fcos", 0.5)))
        return True

    monkeypatch.setattr(tool, "train", train)
    args = tool.parse_args(["atss_shapes.py", "fcos_shapes.py", "--work-dir", str(tmp_path), "--page", str(page)])
    with pytest.raises(RuntimeError, match="1 of 2 runs failed: atss_shapes"):
        tool.train_all(args)
    assert ran == ["atss_shapes", "fcos_shapes"]
    assert list(tool.read_rows(page)) == ["fcos_shapes"]


def test_a_page_without_marks_is_told_before_anything_is_trained(tool, page, tmp_path):
    page.write_text("no marks")
    with pytest.raises(ValueError, match=r"methods\.md: the lines '<!-- table"):
        tool.train_all(tool.parse_args(["--page", str(page), "--work-dir", str(tmp_path)]))


def test_a_run_without_validation_is_an_error(tool, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: no validation gave coco/bbox_mAP"):
        tool.last_metric(tmp_path / "metrics.jsonl", tool.METRIC)
    assert tool.last_metric(tmp_path / "metrics.jsonl", tool.OF_MASKS, needed=False) is None


def test_the_page_shipped_has_the_marks(tool):
    assert tool.read_rows(ROOT / "docs/methods.md").keys() <= {path.stem for path in ROOT.glob("configs/*/*_shapes.py")}
