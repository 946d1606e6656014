"""Config files: inheritance, placeholders, variables that are followed, and what each refusal says."""

from __future__ import annotations

import copy
import logging
import pickle
import sys
from pathlib import Path

import pytest
from mmengine.config import Config as MMEngineConfig

from detkit.config import load

BASE = """
data_root = "data/old/"
classes = ("cat", "dog")
train_pipeline = [dict(type="Load"), dict(type="Resize", scale=(640, 480))]
model = dict(type="Net", backbone=dict(type="Res", depth=50), num_classes=len(classes))
train_dataloader = dict(batch_size=2, dataset=dict(root=data_root, ann=data_root + "a.json", pipeline=train_pipeline))
val_dataloader = dict(batch_size=1, dataset=dict(root=data_root, ann=data_root + "b.json"))
test_dataloader = val_dataloader
"""


@pytest.fixture
def write(tmp_path):
    """Writes config files, and loads the last one unchecked."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_json", ".json").replace("_yaml", ".yaml")
            path = path if path.suffix else path.with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return path

    return write


def read(path, overrides=()):
    return load(path, overrides, checked=False)


def test_child_is_merged_into_its_bases(write):
    path = write(
        base=BASE,
        more__schedule="train_cfg = dict(max_epochs=12, val_interval=1)",
        child="""
_base_ = ["base.py", "more/schedule.py"]
model = dict(backbone=dict(depth=18), head=dict(_delete_=True, a=1))
train_cfg = dict(_delete_=True, max_iters=9)
val_dataloader = None
""",
    )
    cfg = read(path)
    assert isinstance(cfg, MMEngineConfig)
    assert cfg.filename == str(path)
    assert cfg.model == {
        "type": "Net",
        "backbone": {"type": "Res", "depth": 18},
        "num_classes": 2,
        "head": {"a": 1},  # a _delete_ that had nothing to delete leaves no trace
    }
    assert cfg.train_cfg == {"max_iters": 9}
    assert cfg.val_dataloader is None
    assert cfg.test_dataloader.batch_size == 1


def test_no_two_places_share_a_dict(write):
    cfg = read(write(base=BASE))
    cfg.val_dataloader.batch_size = 7
    cfg.train_pipeline[0].type = "Other"
    assert cfg.test_dataloader.batch_size == 1
    assert cfg.train_dataloader.dataset.pipeline[0].type == "Load"


def test_equal_to_mmengine_where_mmengine_can(write):
    path = write(
        base=BASE,
        child="""
_base_ = "./base.py"
def double(x):
    return 2 * x
default_scope = "mmdet"
data_root = "data/new/"
train_dataloader = dict(batch_size=double(_base_.train_dataloader.batch_size))
work_dir = "runs/{{ fileBasenameNoExtension }}"
depth = {{_base_.model.backbone.depth}}
model = dict(neck=_base_.model.backbone)
""",
    )
    expected = MMEngineConfig.fromfile(str(path)).to_dict()
    assert expected["train_dataloader"]["dataset"]["root"] == "data/old/"  # MMDetection's trap
    assert read(path).to_dict() == {**expected, "default_scope": "detkit"}


def test_byte_order_mark(tmp_path):
    (tmp_path / "a.py").write_bytes(b"\xef\xbb\xbfwork_dir = 'x'\n")
    assert read(tmp_path / "a.py").work_dir == "x"


def test_default_scope(write):
    assert read(write(a="x = 1")).default_scope == "detkit"
    assert read(write(a="default_scope = 'mine'")).default_scope == "mine"


@pytest.mark.parametrize("quote", ["", "'"])
def test_base_placeholder(write, quote):
    child = f"_base_ = 'base.py'\nstart = dict(depth={quote}{{{{_base_.model.backbone.depth}}}}{quote}, n=1)"
    assert read(write(base=BASE, child=child)).start == {"depth": 50, "n": 1}


def test_base_placeholder_inside_a_string_and_in_an_expression(write):
    child = "_base_ = 'base.py'\nwork_dir = 'r{{_base_.model.backbone.depth}}'\nn = {{_base_.model.backbone.depth}} + 1"
    cfg = read(write(base=BASE, child=child))
    assert (cfg.work_dir, cfg.n) == ("r50", 51)


def test_base_placeholder_that_is_missing(write):
    path = write(base=BASE, child="_base_ = 'base.py'\nwork_dir = '{{_base_.model.backbon}}'")
    with pytest.raises(KeyError, match=r"the bases have no 'backbon' for .*did you mean 'backbone'"):
        read(path)


def test_json_and_yaml(write):
    path = write(
        base=BASE,
        mid_json='{"_base_": "base.py", "val_cfg": {"depth": {{_base_.model.backbone.depth}}}, "work_dir": "w"}',
        top_yaml="_base_: [mid.json]\nval_cfg:\n  name: '{{ fileBasename }} of {{_base_.work_dir}}'\n",
    )
    assert read(path).val_cfg == {"depth": 50, "name": "top.yaml of w"}


def test_environment(write, monkeypatch):
    path = write(a="data = '{{$DETKIT_TEST_ROOT:data/}}x'\nn = {{'$DETKIT_TEST_N:80'}}")
    assert (read(path).data, read(path).n) == ("data/x", 80)
    monkeypatch.setenv("DETKIT_TEST_ROOT", "/mnt/a b/")
    monkeypatch.setenv("DETKIT_TEST_N", "3")
    assert (read(path).data, read(path).n) == ("/mnt/a b/x", 3)
    with pytest.raises(KeyError, match=r"'DETKIT_TEST_UNSET' is not set"):
        read(write(b="a = '{{$DETKIT_TEST_UNSET:}}'"))


def test_shipped_configs_by_package():
    shipped = read("detkit::retinanet/retinanet_r50_fpn_1x_coco.py")
    assert shipped.model.type == "RetinaNet"
    assert read("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py").to_dict() == shipped.to_dict()
    with pytest.raises(FileNotFoundError, match=r"did you mean '.*retinanet_r50_fpn_1x_coco\.py'"):
        read("detkit::retinanet/retinanet_r50_fpn_1x_cocoo.py")


def test_missing_file_and_base_name_the_nearest(write, tmp_path):
    path = write(retinanet_r50="x = 1", child="_base_ = './retinanet_r5O.py'")
    with pytest.raises(FileNotFoundError, match=r"no config file '.*retinanet_r51\.py'; did you mean '.*_r50\.py'"):
        read(tmp_path / "retinanet_r51.py")
    with pytest.raises(FileNotFoundError, match=r"a base of .*child\.py\); did you mean '.*retinanet_r50\.py'"):
        read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nb = a.c\n", r"a\.py:2: AttributeError: .*has no attribute 'c'"),
        ("a = 1\nb = = 2\n", r"a\.py:2: invalid syntax: b = = 2"),
        ("_base_ = bases\n", r"a\.py:1: _base_ must be a path or a list of paths.*'bases' is not defined"),
        ("_base_ = 'a.py'\n", r"a\.py is its own base: .*a\.py -> .*a\.py"),
        ("from mmengine.config import read_base\nwith read_base():\n    pass\n", r"a\.py:2: .*lazy config form"),
        (
            "_base_ = 'other::x.py'",
            r"'other::x\.py': only configs of detkit and of MMDetection can be named by package",
        ),
    ],
)
def test_errors_name_file_and_line(write, text, message):
    with pytest.raises(ValueError, match=message):
        read(write(a=text))


def test_name_of_a_base_without_base(write):
    path = write(base=BASE, child="_base_ = 'base.py'\nx = data_root + 'y'")
    with pytest.raises(ValueError, match=r"child\.py:2: NameError: .*a base defines it: write _base_\.data_root"):
        read(path)


def test_not_a_config(write, tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"a config is a file of \.py, \.json"):
        read(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="a config is a mapping at its top, got list"):
        read(write(a_json="[1]"))
    with pytest.raises(ValueError, match=r"b\.json: "):
        read(write(b_json="{"))


def test_two_bases_that_set_the_same_key(write):
    path = write(a="x = 1", b="_base_ = 'c.py'", c="x = 2", child="_base_ = ['a.py', 'b.py']")
    with pytest.raises(KeyError, match=r"two of its bases set 'x': .*a\.py and .*c\.py"):
        read(path)


def test_dict_over_a_value(write):
    with pytest.raises(TypeError, match=r"child\.py: train_cfg="):
        read(write(base="train_cfg = 3", child="_base_ = 'base.py'\ntrain_cfg = dict(a=1)"))


def test_names_of_code_are_no_values(write):
    text = (
        "import os\nfrom pathlib import Path as P\nclass A: pass\nwork = []\nfor i in range(2):\n    work.append(i)\n"
    )
    assert set(read(write(a=text + "model = dict(type=A)\n"))) == {"work", "model", "default_scope"}


# Variables


def test_override_of_a_variable_reaches_what_is_computed_from_it(write):
    cfg = read(write(base=BASE), ["data_root=/new/", "classes=(a,b,c)", "train_pipeline.1.scale=(32,32)"])
    assert cfg.data_root == "/new/"
    assert cfg.train_dataloader.dataset.ann == "/new/a.json"
    assert cfg.test_dataloader.dataset.root == "/new/"
    assert cfg.model.num_classes == 3
    assert cfg.train_dataloader.dataset.pipeline[1] == {"type": "Resize", "scale": (32, 32)}


def test_a_part_of_a_variable_is_set_after_what_it_is_computed_from(write):
    path = write(a="root = 'a/'\npipeline = [dict(ann=root + 'x', n=1)]\ntest_pipeline = pipeline\nx = test_pipeline")
    assert read(path, ["pipeline.0.n=2", "root=b/"]).x == [{"ann": "b/x", "n": 2}]


def test_child_that_sets_a_variable_reaches_its_bases(write):
    path = write(
        base=BASE,
        mid="_base_ = 'base.py'\ndata_root = 'data/mid/'\nval_evaluator = dict(ann=data_root + 'v.json')",
        child="_base_ = 'mid.py'\ndata_root = 'data/new/'\nclasses = _base_.classes + ('cow',)",
    )
    cfg = read(path)
    assert cfg.train_dataloader.dataset.ann == "data/new/a.json"
    assert cfg.val_evaluator.ann == "data/new/v.json"
    assert cfg.classes == ("cat", "dog", "cow")
    assert cfg.model.num_classes == 3


def test_override_beats_the_child(write):
    path = write(base=BASE, child="_base_ = 'base.py'\ndata_root = 'data/new/'")
    assert read(path, ["data_root=x/"]).train_dataloader.dataset.ann == "x/a.json"


def test_child_variable_that_is_a_dict_is_merged_first(write):
    path = write(
        base="norm_cfg = dict(type='BN', requires_grad=True)\nmodel = dict(norm_cfg=norm_cfg)",
        child="_base_ = 'base.py'\nnorm_cfg = dict(requires_grad=False)",
    )
    assert read(path).model.norm_cfg == {"type": "BN", "requires_grad": False}


def test_in_place_edit_of_a_base(write):
    child = "_base_ = 'base.py'\ndata_root = 'n/'\n_base_.train_dataloader.dataset.pipeline[1].scale = (1, 1)"
    dataset = read(write(base=BASE, child=child)).train_dataloader.dataset
    assert dataset.pipeline[1].scale == (1, 1)
    assert dataset.root == "n/"


def test_child_that_builds_its_variable_in_steps(write):
    child = "_base_ = 'base.py'\ntrain_pipeline = [dict(type='A')]\ntrain_pipeline.append(dict(type='B'))"
    pipeline = read(write(base=BASE, child=child)).train_dataloader.dataset.pipeline
    assert [step.type for step in pipeline] == ["A", "B"]


def test_variable_of_a_function_is_its_own(write):
    path = write(a="root = 'a/'\ndef name():\n    root = 'b'\n    return root\nwork_dir = root + name()")
    assert read(path, ["root=c/"]).work_dir == "c/b"


def test_edit_of_a_base_that_is_evaluated_again_is_made_once(write):
    path = write(
        base="xs = ['a']\nwork_dir = '-'.join(xs)",
        child="_base_ = 'base.py'\n_base_.xs.append('b')\nxs = list(_base_.xs)",
    )
    assert read(path).xs == ["a", "b"]
    assert read(path).work_dir == "a-b"


def test_variable_that_only_a_child_reads(write):
    path = write(base="root = 'a/'", child="_base_ = 'base.py'\nwork_dir = _base_.root + 'x'")
    assert set(read(path).variables) == {"root"}
    assert read(path, ["root=b/"]).work_dir == "b/x"


def test_steps_of_an_assignment_are_part_of_it(write):
    path = write(a="xs = ['a']\nxs += ['b']\nys: list = xs\nwork = xs + ys")
    assert read(path).work == ["a", "b", "a", "b"]
    assert read(path, {"xs": ["c"]}).work == ["c", "c"]
    assert read(path, {"ys": []}).work == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("xs = []\nxs.append(1)\nwork = xs", r"a\.py: 'xs' is changed in place after its assignment"),
        ("xs, n = [], 1\nwork = xs", r"a\.py: 'xs' cannot be set from an override or a child config"),
        ("for xs in ([1],):\n    work = xs\nxs = 2\nwork = xs", r"KeyError|has no 'xs'|cannot be set"),
    ],
)
def test_variable_that_cannot_be_set_from_outside(write, text, message):
    with pytest.raises((ValueError, KeyError), match=message):
        read(write(a=text), {"xs": [5]})


def test_mmdetection_scope_keeps_what_was_computed_and_says_so(write, caplog):
    scope = "\ndefault_scope = 'mmdet'"
    path = write(base=BASE + scope, child="_base_ = 'base.py'\ndata_root = 'n/'")
    with caplog.at_level(logging.WARNING):
        cfg = read(path)
    assert cfg.data_root == "n/"
    assert cfg.train_dataloader.dataset.ann == "data/old/a.json"
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "sets data_root" in message
    assert "train_dataloader.dataset.ann, train_dataloader.dataset.root, val_dataloader.dataset.ann" in message
    assert read(path, ["data_root=o/"]).train_dataloader.dataset.ann == "o/a.json"
    assert read(path, ["classes=(a,)"]).train_dataloader.dataset.ann == "data/old/a.json"


def test_no_warning_where_the_child_restates(write, caplog):
    text = "_base_ = 'base.py'\nclasses = ('a',)\nmodel = dict(num_classes=len(classes))"
    with caplog.at_level(logging.WARNING):
        read(write(base=BASE + "\ndefault_scope = 'mmdet'", child=text))
    assert not caplog.records


def test_loaded_config_travels(write):
    cfg = read(write(base=BASE))
    for twin in (copy.copy(cfg), copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert twin.to_dict() == cfg.to_dict()
        assert twin.variables == cfg.variables
        assert twin.filename == cfg.filename


# Imports


@pytest.fixture
def forget():
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("detkit_test_"):
            del sys.modules[name]
    sys.path[:] = path


@pytest.mark.usefixtures("forget")
def test_custom_imports_from_the_folder_of_the_config(write):
    path = write(detkit_test_parts="loaded = True", a="custom_imports = dict(imports=['detkit_test_parts'])")
    read(path)
    assert sys.modules["detkit_test_parts"].loaded


@pytest.mark.usefixtures("forget")
def test_custom_imports_by_override(write):
    path = write(detkit_test_other="x = 1", a="work_dir = 'w'")
    read(path, {"+custom_imports": {"imports": "detkit_test_other"}})
    assert "detkit_test_other" in sys.modules


@pytest.mark.usefixtures("forget")
def test_failed_import(write, caplog):
    path = write(a="custom_imports = dict(imports=['detkit_test_none'], allow_failed_imports=False)")
    with pytest.raises(ImportError, match=r"custom_imports: cannot import 'detkit_test_none'"):
        read(path)
    read(path, ["custom_imports.allow_failed_imports=True"])
