"""tools/count_mmdetection_configs.py: what builds is counted, what does not is named part by part."""

from __future__ import annotations

import runpy
import sys
import zipfile
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools/count_mmdetection_configs.py"
BUILDS = """
default_scope = 'mmdet'
model = dict(type='SingleStageDetector', data_preprocessor=dict(type='DetDataPreprocessor'),
             backbone=dict(type='ResNet', depth=18), neck=dict(type='FPN', in_channels=[64, 128, 256, 512],
                                                              out_channels=8, num_outs=5),
             bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=8, anchor_generator=dict(
                 type='AnchorGenerator', scales=[8], ratios=[1.0], strides=[8, 16, 32, 64, 128])))
"""
FILES = {
    "_base_/model.py": BUILDS,
    "a/builds.py": "_base_ = '../_base_/model.py'",
    "a/lacks_two.py": (
        "_base_ = '../_base_/model.py'\nmodel = dict(neck=dict(type='NoSuchNeck', parts=[dict(type='NoSuchPart')]))\n"
        "custom_hooks = [dict(type='NoSuchHook')]\nval_evaluator = dict(type='NoSuchMetric')"
    ),
    "a/lacks_one.py": "_base_ = '../_base_/model.py'\ncustom_hooks = [dict(type='NoSuchHook')]",
    "b/does_not_build.py": "_base_ = '../_base_/model.py'\nmodel = dict(backbone=dict(depth=19))",
    "b/lacks_a_base.py": "_base_ = 'c.py'",
    "b/no_model.py": "work_dir = 'x'",
}


@pytest.fixture
def run(monkeypatch, capsys):
    # In this process: the pool's start costs more than the test.
    class Pool:
        def __init__(self, processes, initializer, initargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def map(self, function, *items, chunksize):
            return map(function, *items)

    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", Pool)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [TOOL.name, *map(str, arguments)])
        runpy.run_path(str(TOOL), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_counts_and_names_every_part(run, tmp_path):
    for name, text in FILES.items():
        (tmp_path / "configs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "configs" / name).write_text(text)
    output = run(tmp_path / "configs", "--save-path", tmp_path / "refused.txt")
    assert output.splitlines() == [
        "blocked  alone  missing",
        "      2      1  NoSuchHook",
        "      1      1  FileNotFoundError at loading",
        "      1      1  ValueError at building",
        "      1         NoSuchMetric",
        "      1         NoSuchNeck",
        "      1         NoSuchPart",
        "",
        "1 of 5 configs load, pass the check and build; 1 others name files that are not there",
    ]
    refused = (tmp_path / "refused.txt").read_text()
    assert [line.split(":")[0] for line in refused.splitlines() if not line.startswith(" ")] == [
        "a/lacks_one.py",
        "a/lacks_two.py",
        "b/does_not_build.py",
        "b/lacks_a_base.py",
    ]
    assert (
        "a/lacks_two.py: 4 things stand against this config:\n  model.neck.type: 'NoSuchNeck' is not in the" in refused
    )
    assert "19" in refused.partition("does_not_build.py")[2]


def test_reads_a_wheel(run, tmp_path):
    with zipfile.ZipFile(tmp_path / "mmdet-3.3.0-py3-none-any.whl", "w") as wheel:
        for name in ("_base_/model.py", "a/builds.py"):
            wheel.writestr(f"mmdet/.mim/configs/{name}", FILES[name])
        wheel.writestr("mmdet/models/not_a_config.py", "")
    assert run(tmp_path / "mmdet-3.3.0-py3-none-any.whl") == "1 of 1 configs load, pass the check and build\n"


def test_wrong_folder(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path / "nowhere")
    assert "nowhere: a folder of configs or a wheel" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert "no config file (*.py) in it" in capsys.readouterr().err
