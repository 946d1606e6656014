"""tools/print_config.py: the text of a config, or one line of what is wrong with it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from detkit.config import load, loads

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/retinanet/retinanet_r50_fpn_1x_coco.py")


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["print_config.py", *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        runpy.run_path(str(ROOT / "tools/print_config.py"), run_name="__main__")
        return capsys.readouterr()

    return run


def test_prints_what_loads_back(run):
    text, _ = run(CONFIG, "--cfg-options", "model.backbone.depth=101")
    expected = load(CONFIG, {"model.backbone.depth": 101})
    printed = loads(text)
    assert printed.model.backbone.depth == 101
    assert {**printed} == {key: value for key, value in expected.items() if key not in expected.variables}


def test_saves(run, tmp_path):
    path = tmp_path / "out.py"
    text, _ = run(CONFIG, "--save-path", str(path))
    assert text == ""
    assert load(path).model == load(CONFIG).model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CONFIG, "--cfg-options", "model.backbone.dpeth=1"), "did you mean 'model.backbone.depth'?"),
        ((CONFIG, "--cfg-options", "+model.backbone.dpeth=1"), "ResNet has no argument 'dpeth'; did you mean 'depth'?"),
        ((CONFIG, "--cfg-options", "+modl=1"), "unknown key 'modl'; did you mean 'model'?"),
        ((CONFIG.replace("r50", "r5O"),), "did you mean "),
    ],
)
def test_one_line_of_what_is_wrong(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert message in err.splitlines()[0]


def test_check_can_be_left_out(run):
    text, _ = run(CONFIG, "--no-check", "--cfg-options", "+modl=1")
    assert "modl = 1\n" in text
