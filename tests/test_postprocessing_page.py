"""docs/postprocessing.md: its snippets run, its commands change what they say, its table names every argument."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from test_readme import BASE, snippets

from detkit.config import load
from detkit.models.dense_heads.prediction.postprocess import DenseTestCfg
from detkit.ops import NMS_KINDS
from detkit.registry import MODELS, TRANSFORMS

PAGE = Path(__file__).parents[1] / "docs/postprocessing.md"
TEXT = PAGE.read_text()
COMMANDS = re.findall(r"--cfg-options (.*)", TEXT)


def run(marker, **given):
    code = next(snippet for snippet in snippets("docs/postprocessing.md") if marker in snippet)
    exec(code, given)
    return given


def test_the_test_cfg_is_read():
    cfg = DenseTestCfg.of(run("test_cfg =")["test_cfg"])
    assert (cfg.nms_pre, cfg.score_thr, cfg.max_per_img) == (1000, 0.05, 100)
    assert cfg.nms.suppress.iou_threshold == 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_change_the_head(command):
    options = dict(option.split("=") for option in command.split())
    values = {key: value if value.isidentifier() and value != "True" else eval(value) for key, value in options.items()}
    changed = MODELS.build(load(BASE, values).model).bbox_head.test_cfg
    assert changed != MODELS.build(load(BASE).model).bbox_head.test_cfg


def test_there_are_commands():
    assert len(COMMANDS) == 3


def test_the_functions_give_what_the_page_says():
    found = run("from detkit.ops import")
    assert found["hard"] == [0, 2]
    torch.testing.assert_close(found["soft"], torch.tensor([0.9, 0.7, 0.16]))


def test_the_table_names_every_kind_and_argument():
    _, *rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", TEXT, flags=re.M)
    assert {kind: sorted(field.name for field in dataclasses.fields(cls)) for kind, cls in NMS_KINDS.items()} == {
        kind: sorted(re.findall(r"`(\w+)(?:=[\d.]+)?`", cell)) for kind, cell in rows
    }


def test_the_views_are_built():
    found = run("tta_pipeline =")
    assert len(TRANSFORMS.build(found["tta_pipeline"][1]).views) == 4
    model = MODELS.build({**found["tta_model"], "module": load(BASE).model})
    assert (model.max_per_img, model.nms.suppress.iou_threshold) == (100, 0.5)


def test_the_head_predicts():
    predict = run("def predict")["predict"]
    logits = torch.full((2, 3, 4), -9.0)
    logits[0, 1, 2] = 9.0
    points = torch.tensor([[8.0, 8.0]] * 3)
    found = predict(
        [logits],
        [torch.ones(2, 3, 4)],
        [points],
        [torch.full((2, 3), 9.0)],
        lambda chosen, distances: torch.cat([chosen - distances[..., :2], chosen + distances[..., 2:]], dim=-1),
        [{}, {}],
    )
    assert [len(instances.scores) for instances in found] == [1, 0]
    assert found[0].bboxes.tolist() == [[7, 7, 9, 9]]
    assert found[0].labels.tolist() == [2]
