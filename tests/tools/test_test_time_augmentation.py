"""tools/test.py --tta on a small detector: one view is the plain test, the default is a flip."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from engine.shapes_run import shapes_config

from detkit.datasets.shapes import generate
from detkit.models import DetTTAModel
from detkit.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
ONE_VIEW = [
    {"type": "LoadImageFromFile"},
    {
        "type": "TestTimeAug",
        "transforms": [
            [{"type": "Resize", "scale": (64, 64), "keep_ratio": True}],
            [{"type": "LoadAnnotations", "with_bbox": True}],
            [{"type": "PackDetInputs"}],
        ],
    },
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Metrics of ``tools/test.py`` with further arguments, and the number of views of each image."""
    folder = tmp_path_factory.mktemp("tta")
    cfg = shapes_config(folder / "unused", folder / "data", 8)
    generate(folder / "data", "val", num_images=24)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    torch.nn.init.constant_(model.bbox_head.retina_cls.bias, -2.0)
    checkpoint = folder / "weights.pth"
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    spec = importlib.util.spec_from_file_location("tools_test", ROOT / "tools/test.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def run(name, *arguments, **changes):
        path = folder / f"{name}.py"
        cfg.dump(path)
        path.write_text(path.read_text() + "".join(f"\n{key} = {value!r}" for key, value in changes.items()))
        tool.test(tool.parse_args([*map(str, (path, checkpoint, "--work-dir", folder / name)), *arguments]))
        return json.loads((folder / name / "metrics.json").read_text())

    return run


@pytest.fixture
def views(monkeypatch):
    """How many views each batch had."""
    seen = []
    merge = DetTTAModel.merge_preds

    def counted(self, data_samples_list):
        seen.append({len(samples) for samples in data_samples_list})
        return merge(self, data_samples_list)

    monkeypatch.setattr(DetTTAModel, "merge_preds", counted)
    return seen


def test_one_view_is_the_plain_test(run, views):
    plain = run("plain")
    assert not views
    # Suppressing what is suppressed already changes nothing.
    alone = run("alone", "--tta", tta_pipeline=ONE_VIEW)
    assert views == [{1}] * 3
    assert alone == pytest.approx(plain, nan_ok=True)


def test_the_default_is_a_flip(run, views):
    metrics = run("flip", "--tta")
    assert views == [{2}] * 3
    assert "coco/bbox_mAP" in metrics
