"""Overrides: how values are read, what may be set, added and deleted, and what is refused."""

from __future__ import annotations

import math

import pytest

from detkit.config import load
from detkit.config.overriding import parse_overrides, parse_value

CONFIG = """
model = dict(
    type="RetinaNet",
    backbone=dict(type="ResNet", depth=50, out_indices=(0, 1), stages=[dict(n=1), dict(n=2)]),
    bbox_head=dict(type="RetinaHead", num_classes=80),
    train_cfg=None,
)
train_dataloader = dict(batch_size=2, dataset=dict(type="CocoDataset", pipeline=[dict(type="LoadAnnotations")]))
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.1), clip_grad=None)
work_dir = "runs"
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return lambda *overrides: load(path, list(overrides), checked=False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("007", 7),
        ("2024_01", "2024_01"),  # a folder, not 202401
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("inf", math.inf),
        ("info", "info"),
        ("True", True),
        ("false", False),
        ("None", None),
        ("", ""),
        ("data/coco", "data/coco"),
        ("a b", "a b"),
        ("'a,  b'", "a,  b"),
        ('"3"', "3"),
        ("don't", "don't"),
        ("[1,2.5,x]", [1, 2.5, "x"]),
        ("a,b", ["a", "b"]),
        ("a,", ["a"]),
        ("(1333, 800)", (1333, 800)),
        ("(a,)", ("a",)),
        ("[(1,2),(3,4)]", [(1, 2), (3, 4)]),
        ("(1,2),[3]", [(1, 2), [3]]),
        ("[]", []),
        ("{}", {}),
        ("{a: 1, 'b': [x, y], c: {d: None}}", {"a": 1, "b": ["x", "y"], "c": {"d": None}}),
        ("{type: Res, url: 'http://x'}", {"type": "Res", "url": "http://x"}),
        ("['traffic light', \"stop, sign\"]", ["traffic light", "stop, sign"]),
    ],
)
def test_values(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["[1,2", "(1,2]", "'a", "{a}", "{a: 1: 2}", "a]", "'a'b"])
def test_values_that_cannot_be_read(text):
    with pytest.raises(ValueError, match="override value"):
        parse_value(text)


@pytest.mark.parametrize("item", ["model.depth", "model..depth=1", "=1", "+=1", ".a=1"])
def test_items_that_are_no_override(item):
    with pytest.raises(ValueError, match="was expected"):
        parse_overrides([item])


def test_value_may_hold_an_equals_sign():
    assert parse_overrides(["a.b=x=y"])[0].value == "x=y"


def test_set(config):
    cfg = config("model.backbone.depth=18", "model.backbone.stages.1.n=5", "model.backbone.stages.-2.n=4")
    assert cfg.model.backbone.depth == 18
    assert [stage.n for stage in cfg.model.backbone.stages] == [4, 5]


def test_set_inside_a_tuple(config):
    assert config("model.backbone.out_indices.1=3").model.backbone.out_indices == (0, 3)


def test_later_overrides_win(config):
    assert config("work_dir=a", "work_dir=b").work_dir == "b"


def test_what_the_place_accepts_need_not_be_spelt_out(config):
    cfg = config(
        "model.backbone.frozen_stages=1",
        "train_dataloader.num_workers=0",
        "train_dataloader.dataset.ann_file=a.json",
        "train_dataloader.dataset.pipeline.0.with_mask=True",
        "optim_wrapper.clip_grad.max_norm=35",
        "randomness.seed=3",
        "model.train_cfg.pos_weight=1",
        "device=cpu",
    )
    assert cfg.model.backbone.frozen_stages == 1
    assert cfg.train_dataloader.dataset.pipeline[0] == {"type": "LoadAnnotations", "with_mask": True}
    assert cfg.optim_wrapper.clip_grad == {"max_norm": 35}
    assert cfg.randomness == {"seed": 3}
    assert cfg.model.train_cfg == {"pos_weight": 1}
    assert cfg.device == "cpu"


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("model.backbnoe.depth=1", "model.backbone"),
        ("model.backbone.dpeth=1", "model.backbone.depth"),
        ("model.depth=1", "model.backbone.depth"),
        ("optim_wrapper.lr=1", "optim_wrapper.optimizer.lr"),
        ("modle.backbone.depth=1", "model"),
        ("randomness.sed=1", "randomness.seed"),
        ("train_dataloader.dataset.anno_file=x", "train_dataloader.dataset.ann_file"),
        ("~model.backbone.deph", "model.backbone.depth"),
        ("~modl.backbone", "model"),
    ],
)
def test_unknown_path_names_the_nearest(config, override, meant):
    with pytest.raises(KeyError) as error:
        config(override)
    message = error.value.args[0]
    assert message.startswith(f"override {override.partition('=')[0]}: the config has no '")
    assert f"did you mean '{meant}'?" in message
    assert ("write +" in message) == (not override.startswith("~"))


def test_a_failed_override_of_a_missing_dict_names_the_whole_path(config):
    with pytest.raises(KeyError, match=r"has no 'env_cfg\.mp_cfg\.opencv'; did you mean 'env_cfg\.mp_cfg\.opencv_num"):
        config("env_cfg.mp_cfg.opencv=1")


def test_add(config):
    cfg = config("+model.backbone.mine.deep=1", "+model.backbone.stages.2={n: 3}", "+custom=5")
    assert cfg.model.backbone.mine.deep == 1
    assert [stage.n for stage in cfg.model.backbone.stages] == [1, 2, 3]
    assert cfg.custom == 5


@pytest.mark.parametrize("path", ["model.backbone.depth", "model.backbone.stages.0"])
def test_add_what_exists(config, path):
    with pytest.raises(KeyError, match=rf"'\+{path}': it exists already; write {path}=\.\.\. to set it"):
        config(f"+{path}=1")


def test_delete(config):
    cfg = config("~model.backbone.depth", "~model.backbone.stages.0", "~model.backbone.out_indices.0", "~work_dir")
    assert cfg.model.backbone.to_dict() == {"type": "ResNet", "out_indices": (1,), "stages": [{"n": 2}]}
    assert "work_dir" not in cfg


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("model.backbone.stages.2.n=1", KeyError, r"model\.backbone\.stages has 2 items; did you mean .*stages\.1\?"),
        ("+model.backbone.stages.2.n=1", KeyError, r"model\.backbone\.stages has 2 items"),
        ("model.backbone.stages.x=1", KeyError, r"model\.backbone\.stages is a list; a position was expected, got 'x'"),
        ("model.backbone.depth.x=1", TypeError, r"model\.backbone\.depth is 50, which has no parts"),
        ("model.backbone.depth.x.y=1", TypeError, r"model\.backbone\.depth is 50, which has no parts"),
    ],
)
def test_paths_through_other_values(config, override, error, message):
    with pytest.raises(error, match=message):
        config(override)


def test_a_dict_is_merged_and_its_keys_must_exist(config, tmp_path):
    cfg = load(tmp_path / "config.py", {"model.backbone": {"depth": 18, "norm_eval": False}}, checked=False)
    assert cfg.model.backbone.depth == 18
    assert cfg.model.backbone.out_indices == (0, 1)
    with pytest.raises(KeyError, match=r"did you mean 'model\.backbone\.depth'"):
        load(tmp_path / "config.py", {"model": {"backbone": {"detph": 18}}}, checked=False)


def test_a_dict_of_another_type_brings_its_own_keys(config):
    cfg = config("model.backbone={relu_before_extra_convs: True, type: FPN}")
    assert cfg.model.backbone.relu_before_extra_convs is True


def test_delete_mark(config):
    assert config("model.backbone={_delete_: True, type: Mine, n: 1}").model.backbone == {"type": "Mine", "n": 1}
    cfg = config("model.backbone._delete_=True", "model.backbone.type=ResNet", "model.backbone.depth=18")
    assert cfg.model.backbone == {"type": "ResNet", "depth": 18}
