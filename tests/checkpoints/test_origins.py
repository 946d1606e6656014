"""Older names, other architectures, and what a file says of its classes."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from detkit.checkpoints import class_names, load_weights
from detkit.checkpoints.mmdetection_names import from_older_mmdetection
from detkit.checkpoints.trunk import describe


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rpn_head.rpn_cls.weight", "bbox_head.rpn_cls.weight"),
        ("bbox_head.rpn_cls.weight", "rpn_head.rpn_cls.weight"),
        ("bbox_head.fcos_cls.weight", "bbox_head.conv_cls.weight"),
        ("bbox_head.fovea_reg.bias", "bbox_head.conv_reg.bias"),
        ("bbox_head.fcos_centerness.bias", "bbox_head.conv_centerness.bias"),
        ("backbone.layer2.0.conv2_offset.weight", "backbone.layer2.0.conv2.conv_offset.weight"),
        ("backbone.extra.3.weight", "neck.extra_layers.1.1.conv.weight"),
        ("backbone.l2_norm.weight", "neck.l2_norm.weight"),
        ("bbox_head.cls_convs.2.weight", "bbox_head.cls_convs.2.0.weight"),
    ],
)
def test_names_that_mmdetection_has_changed(old, new):
    value = torch.ones(1)
    assert list(from_older_mmdetection({old: value}, [new])) == [new]
    assert list(from_older_mmdetection({old: value}, [old, new])) == [old]  # the model still has it
    assert list(from_older_mmdetection({old: value, new: value}, [new])) == [old, new]  # the file has both
    assert list(from_older_mmdetection({old: value}, ["x"])) == [old]


def test_averages_that_mmdetection_2_kept_among_the_weights_are_left_out():
    model = nn.ModuleDict({"head": nn.Linear(1, 1)})
    state = {"head.weight": torch.ones(1, 1), "head.bias": torch.ones(1), "ema_head_weight": torch.zeros(1, 1)}
    assert load_weights(model, state, strict=True).loaded == 2


def test_files_of_mmdetection_1_are_refused():
    with pytest.raises(
        ValueError, match=r"x\.pth: a checkpoint of MMDetection 1\.2\.0, which counts the background first"
    ):
        load_weights(
            nn.Linear(1, 1),
            {"state_dict": {"weight": torch.ones(1, 1)}, "meta": {"mmdet_version": "1.2.0"}},
            name="x.pth",
        )


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        ({"label_map": {"classes": ["a", "b"]}}, ["a", "b"]),
        ({"dataset_meta": {"classes": ("a", "b")}}, ["a", "b"]),
        ({"dataset_meta": {"CLASSES": ("a", "b")}}, ["a", "b"]),
        ({"CLASSES": ("a", "b")}, ["a", "b"]),
        ({"CLASSES": "face"}, ["face"]),  # of one class, where the comma was forgotten
        ({"label_map": None, "dataset_meta": {}}, None),
        ({}, None),
    ],
)
def test_classes_of_a_file(meta, names):
    assert class_names({"meta": meta, "state_dict": {"w": torch.ones(1)}}) == names


class Detector(nn.Module):
    """A backbone of so many blocks, a neck and a head."""

    def __init__(self, blocks: int, head: str = "retina_cls") -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.layer1 = nn.Sequential(*(nn.Conv2d(2, 2, 3) for _ in range(blocks)))
        self.neck = nn.Linear(1, 1)
        self.bbox_head = nn.ModuleDict({head: nn.Linear(1, 1)})


@pytest.mark.parametrize(("file_blocks", "blocks"), [(2, 4), (4, 2)])
def test_another_depth_is_another_architecture(file_blocks, blocks):
    """As ResNet-101 and ResNet-50: all tensors of the smaller one fit."""
    model = Detector(blocks)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    message = (
        f"x.pth: the checkpoint of another architecture: 4 of {2 * blocks} tensors of the model's backbone are in it "
        f"with the same shape. It looks like RTMDet with a backbone of {file_blocks} blocks, {2 * file_blocks} "
        f"tensors; the model is RetinaNet with a backbone of {blocks} blocks, {2 * blocks} tensors"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_weights(model, Detector(file_blocks, "rtm_cls").state_dict(), name="x.pth")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_part_of_a_backbone_is_enough():
    """As in C4, whose last stage is elsewhere, and with plugins in some blocks."""
    assert load_weights(Detector(3), Detector(4).state_dict()).unexpected
    assert load_weights(Detector(4), Detector(3).state_dict()).missing
    model = Detector(2)
    model.backbone.bn = nn.BatchNorm2d(2)
    state = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    assert load_weights(model, state, strict=True).complete  # frozen norms of others count no batches


def test_a_file_of_something_else_is_described():
    with pytest.raises(
        ValueError, match=r"no tensor of it fits .* looks like something without a backbone \(fc\.w, b\)"
    ):
        load_weights(Detector(2), {"fc.w": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(ValueError, match=r"0 of 4 tensors .* Faster R-CNN without a backbone"):
        load_weights(Detector(2), {"neck.weight": torch.ones(1, 1), "roi_head.fc.w": torch.ones(1)})
    assert describe(["backbone.stages.0.blocks.1.w", "backbone.stages.0.blocks.0.w", "neck.a"]) == (
        "a detector with a backbone of 2 blocks, 2 tensors (neck)"
    )
