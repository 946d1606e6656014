"""Weights of one class list in a model of another: rows go by the names of classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detkit.checkpoints import load_weights
from detkit.registry import MODELS

OLD = ["cat", "dog", "cow"]
NEW = ["bird", "cow", "cat", "fish"]
# Place in NEW -> place in OLD
BOTH = {1: 2, 2: 0}


class Head(nn.Module):
    """The prediction layers of a two-stage detector."""

    def __init__(self, classes: int, **layers: nn.Module) -> None:
        super().__init__()
        self.num_classes = classes
        for name, layer in layers.items():
            self.add_module(name, layer)


def two_stage(classes: int, agnostic: bool = False) -> nn.Module:
    boxes = Head(
        classes,
        shared_fcs=nn.ModuleList([nn.Linear(4, 4)]),
        fc_cls=nn.Linear(4, classes + 1),
        fc_reg=nn.Linear(4, 4 if agnostic else 4 * classes),
    )
    boxes.reg_class_agnostic = agnostic
    masks = Head(classes, conv_logits=nn.Conv2d(4, classes, 1))
    return nn.ModuleDict({"roi_head": nn.ModuleDict({"bbox_head": boxes, "mask_head": masks})})


def moved(old: nn.Module, new: nn.Module) -> tuple[dict, dict, dict, object]:
    """State dicts of the old model, of the new one before and after, and the report."""
    for parameter in [*old.parameters(), *new.parameters()]:
        nn.init.normal_(parameter)
    before = {key: value.clone() for key, value in new.state_dict().items()}
    state = old.state_dict()
    report = load_weights(new, {"state_dict": state, "meta": {"dataset_meta": {"classes": OLD}}}, classes=NEW)
    return state, before, new.state_dict(), report


def assert_rows(state, before, after, form, old_back=0):
    """``form`` makes (anchors, rows, block) of rows; what is behind the classes belongs to none."""
    theirs, mine, now = form(state, len(OLD)), form(before, len(NEW)), form(after, len(NEW))
    for row in range(now.shape[1]):
        if row >= len(NEW):
            wanted = theirs[:, len(OLD) + row - len(NEW)]
        else:
            wanted = theirs[:, BOTH[row]] if row in BOTH else mine[:, row]
        assert torch.equal(now[:, row], wanted), row


def test_rows_of_a_two_stage_detector():
    torch.manual_seed(0)
    state, before, after, report = moved(two_stage(3), two_stage(4))
    head = "roi_head.bbox_head."
    for kind in ("weight", "bias"):
        for key, block in ((f"{head}fc_cls.{kind}", 1), (f"{head}fc_reg.{kind}", 4)):
            assert_rows(
                *(one[key] for one in (state, before, after)), lambda v, _, b=block: v.reshape(1, -1, b, *v.shape[1:])
            )
        key = f"roi_head.mask_head.conv_logits.{kind}"
        assert_rows(*(one[key] for one in (state, before, after)), lambda v, _: v[None])
    assert torch.equal(after[f"{head}shared_fcs.0.weight"], state[f"{head}shared_fcs.0.weight"])
    assert report.classes.kept == ["cow", "cat"]
    assert report.classes.new == ["bird", "fish"]
    assert len(report.classes.layers) == 6
    assert not report.mismatched
    assert not report.complete
    assert str(report) == (
        "8 tensors loaded; in 6 of them the rows of 2 classes by name (cow, cat); rows of 2 new classes as initialised "
        "(bird, fish)"
    )


def test_boxes_for_all_classes_alike_are_taken_over_whole():
    """Four rows for four classes are no rows of classes here."""
    old, new = two_stage(4, agnostic=True), two_stage(4, agnostic=True)
    state = old.state_dict()
    report = load_weights(new, {"state_dict": state, "meta": {"CLASSES": [*OLD, "hen"]}}, classes=NEW)
    assert torch.equal(new.state_dict()["roi_head.bbox_head.fc_reg.weight"], state["roi_head.bbox_head.fc_reg.weight"])
    assert "roi_head.bbox_head.fc_cls.weight" in report.classes.layers
    assert "roi_head.bbox_head.fc_reg.weight" not in report.classes.layers


HEADS = {
    "retina": (
        {
            "type": "RetinaHead",
            "in_channels": 4,
            "feat_channels": 4,
            "stacked_convs": 1,
            "anchor_generator": {"type": "AnchorGenerator", "ratios": [0.5, 1.0], "scales": [4], "strides": [8]},
        },
        "retina_cls",
        lambda v, count: v.reshape(2, count, *v.shape[1:]),
    ),
    "fcos": (
        {
            "type": "FCOSHead",
            "in_channels": 4,
            "feat_channels": 4,
            "stacked_convs": 1,
            "strides": [8],
            "regress_ranges": [(-1, 1e8)],
            "norm_cfg": {"type": "GN", "num_groups": 2},
        },
        "conv_cls",
        lambda v, count: v[None],
    ),
    "yolo": (
        {
            "type": "YOLOV3Head",
            "in_channels": [4],
            "out_channels": [4],
            "featmap_strides": [32],
            "anchor_generator": {
                "type": "YOLOAnchorGenerator",
                "base_sizes": [[(116, 90), (156, 198)]],
                "strides": [32],
            },
        },
        "convs_pred.0",
        lambda v, count: v.reshape(2, count + 5, *v.shape[1:])[:, 5:],
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_rows_of_sigmoid_heads(name):
    torch.manual_seed(1)
    config, layer, form = HEADS[name]
    models = [nn.ModuleDict({"bbox_head": MODELS.build({**config, "num_classes": count})}) for count in (3, 4)]
    state, before, after, report = moved(*models)
    for kind in ("weight", "bias"):
        assert_rows(*(one[f"bbox_head.{layer}.{kind}"] for one in (state, before, after)), form)
    assert report.classes.layers == [f"bbox_head.{layer}.{kind}" for kind in ("weight", "bias")]
    if name == "yolo":  # distances and the objectness in front belong to no class
        one, two = (side[f"bbox_head.{layer}.bias"].reshape(2, -1)[:, :5] for side in (state, after))
        assert torch.equal(one, two)


def test_rows_of_the_background_go_with_softmax():
    config = {
        "type": "SSDHead",
        "in_channels": (4,),
        "anchor_generator": {
            "type": "SSDAnchorGenerator",
            "strides": [8],
            "ratios": [[2]],
            "min_sizes": [20],
            "max_sizes": [40],
            "basesize_ratio_range": (0.1, 0.9),
        },
    }
    models = [nn.ModuleDict({"bbox_head": MODELS.build({**config, "num_classes": count})}) for count in (3, 4)]
    state, before, after, report = moved(*models)
    key = "bbox_head.cls_convs.0.0.bias"
    assert_rows(*(one[key] for one in (state, before, after)), lambda v, count: v.reshape(4, count + 1))
    assert key in report.classes.layers


def test_classes_in_another_order_are_put_in_order():
    old, new = two_stage(3), two_stage(3)
    state = old.state_dict()
    load_weights(new, {"state_dict": state, "meta": {"CLASSES": OLD}}, classes=OLD[::-1])
    key = "roi_head.bbox_head.fc_cls.bias"
    assert new.state_dict()[key].tolist() == state[key][[2, 1, 0, 3]].tolist()
    report = load_weights(new, {"state_dict": state, "meta": {"CLASSES": OLD}}, classes=OLD)
    assert report.complete
    assert torch.equal(new.state_dict()[key], state[key])


@pytest.mark.parametrize("softmax", [False, True])
def test_as_many_other_classes_move_by_anchor(softmax):
    """(2 anchors, 3 classes) and (2 anchors, background and 2 classes) have as many rows."""
    names = ["a", "b"] if softmax else ["a", "b", "c"]
    models = []
    for _ in range(2):
        head = Head(len(names), cls_convs=nn.ModuleList([nn.Sequential(nn.Conv2d(1, 6, 1))]))
        head.loss_cls = nn.Identity()
        head.loss_cls.use_sigmoid = not softmax
        models.append(nn.ModuleDict({"bbox_head": head}))
    old, new = models
    before, key = new.state_dict()["bbox_head.cls_convs.0.0.bias"].clone(), "bbox_head.cls_convs.0.0.bias"
    load_weights(
        new, {"state_dict": old.state_dict(), "meta": {"CLASSES": ["b", *"xy"[: len(names) - 1]]}}, classes=names
    )
    theirs, mine, now = (v.reshape(2, 3) for v in (old.state_dict()[key], before, new.state_dict()[key]))
    last = theirs[:, 2] if softmax else mine[:, 2]
    assert torch.equal(now, torch.stack([mine[:, 0], theirs[:, 0], last], 1))


def test_without_names_shapes_decide():
    old, new = two_stage(3), two_stage(4)
    report = load_weights(new, old.state_dict(), classes=NEW)
    assert report.classes is None
    assert len(report.mismatched) == 6
    assert report.to_dict()["classes"] is None
    with pytest.raises(ValueError, match=r"6 mismatched"):
        load_weights(new, {"state_dict": old.state_dict(), "meta": {"CLASSES": OLD}}, strict=True, classes=NEW)
