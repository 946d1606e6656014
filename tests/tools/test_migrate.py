"""tools/migrate.py: one flat file that is the same run but for what is listed, or nothing at all."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from detkit.config import load
from detkit.config.schema import RUN_KEYS
from detkit.registry import MODELS

TOOL = Path(__file__).parents[2] / "tools/migrate.py"
FILES = {
    "runtime.py": "default_scope = 'mmdet'\nbackend_args = None\nload_from = None\n",
    "data.py": """
data_root = 'data/mine/'
test_pipeline = [dict(type='LoadImageFromFile', backend_args=None)]
val_dataloader = dict(
    batch_size=1, num_workers=2, sampler=dict(type='mmdet.DefaultSampler', shuffle=False),
    dataset=dict(type='CocoDataset', data_root=data_root, ann_file='val.json', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'val.json')
test_evaluator = dict(type='CocoMetric', ann_file=data_root + 'test.json')
""",
    "mine.py": """
_base_ = ['runtime.py', 'data.py']
model = dict(
    type='SingleStageDetector', _scope_='mmdet', data_preprocessor=dict(type='DetDataPreprocessor'),
    backbone=dict(type='ResNet', depth=18, pretrained=None, norm_cfg=dict(type='MMSyncBN', requires_grad=True)),
    neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=8, num_outs=5),
    bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=8, anchor_generator=dict(
        type='AnchorGenerator', scales=[8], ratios=[1.0], strides=[8, 16, 32, 64, 128])))
custom_hooks = [dict(type='CheckInvalidLossHook', interval=50), dict(type='NumClassCheckHook')]
""",
}


@pytest.fixture
def config(tmp_path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path / "mine.py"


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", [TOOL.name, *map(str, arguments)])
        runpy.run_path(str(TOOL), run_name="__main__")
        return capsys.readouterr()

    return run


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            yield from differences(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
        for index in range(len(a)):
            yield from differences(a[index], b[index], f"{path}.{index}")
    elif a != b:
        yield path


def test_the_result_is_the_same_run_but_for_what_is_listed(run, config, tmp_path):
    output = tmp_path / "out" / "flat.py"
    told, _ = run(config, output)
    first, *lines = told.splitlines()
    assert first == f"{output} is the same run, but for"
    listed = {line.strip().partition(": ")[0]: line.strip().partition(": ")[2] for line in lines}
    assert (
        listed.pop("_base_")
        == f"what this file and {tmp_path / 'data.py'}, {tmp_path / 'runtime.py'} give is in one file"
    )
    assert listed.pop("data_root, test_pipeline").startswith("variables")
    assert listed.pop("backend_args").startswith("left out: a variable")
    # mmengine's own reading of the original
    original = {key: value for key, value in Config.fromfile(str(config)).to_dict().items() if key in RUN_KEYS}
    new = load(output)
    changed = set(differences(original, new.to_dict()))
    assert listed.keys() == {
        "custom_hooks.1",
        "default_scope",
        "model._scope_",
        "model.backbone.norm_cfg.type",
        "model.backbone.pretrained",
        "test_dataloader.sampler.type",
        "val_dataloader.sampler.type",
    }
    # a hook that is left out changes the list; None and a key that is not there are alike
    assert changed == {*listed, "custom_hooks"} - {"custom_hooks.1", "model.backbone.pretrained"}
    text = output.read_text()
    assert "_base_" not in text
    assert "mmdet" not in text.partition("\n")[2]
    assert "\ntest_dataloader = val_dataloader\n" in text
    with torch.device("meta"):
        MODELS.build(new.model)


def test_overrides_are_part_of_it(run, config, tmp_path):
    run(config, tmp_path / "flat.py", "--cfg-options", "data_root=data/other/")
    assert load(tmp_path / "flat.py").val_evaluator.ann_file == "data/other/val.json"


def test_all_that_detkit_lacks_is_listed_and_nothing_written(run, config, tmp_path, capsys):
    config.write_text(
        config.read_text() + "model['neck'] = dict(type='NoSuchNeck')\nmodel['bbox_head']['type'] = 'NoSuchHead'\n"
    )
    with pytest.raises(SystemExit) as exit_status:
        run(config, tmp_path / "flat.py")
    assert exit_status.value.code == 1
    told = capsys.readouterr().err
    assert "'NoSuchNeck'" in told
    assert "'NoSuchHead'" in told
    assert not (tmp_path / "flat.py").exists()


def test_a_model_that_does_not_build_writes_nothing(run, config, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(config, tmp_path / "flat.py", "--cfg-options", "model.backbone.depth=19")
    assert "error: model.backbone: " in capsys.readouterr().err
    assert not (tmp_path / "flat.py").exists()


def test_an_existing_file_is_kept(run, config, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(config, tmp_path / "data.py")
    assert "data.py exists; --overwrite replaces it" in capsys.readouterr().err
    assert (tmp_path / "data.py").read_text() == FILES["data.py"]
    run(config, tmp_path / "flat.py")
    run(config, tmp_path / "flat.py", "--overwrite")
    with pytest.raises(SystemExit):
        run(config, tmp_path / "flat.txt")
