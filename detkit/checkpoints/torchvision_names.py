"""torchvision's weights of RetinaNet, FCOS, Faster and Mask R-CNN under MMDetection's names.

Its classes are counted from 1, with the background in front, which is last here, or nowhere in heads of sigmoids and of
masks; those of COCO are counted by their category ids, of which ten are not used.

Names: https://github.com/pytorch/vision/tree/main/torchvision/models/detection
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from detkit.checkpoints.renaming import Layers, Rule, of_anchors, rename_layers

__all__ = ["COCO_COUNT", "from_torchvision", "is_torchvision", "torchvision_class_count", "torchvision_coco_classes"]

_OWN = re.compile(r"backbone\.(body\.|fpn\.(inner|layer|extra)_blocks\.)")
COCO_COUNT = 91
# Category ids below 91 that COCO's objects do not use.
_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_TOWERS = {"classification_head": "cls_convs", "regression_head": "reg_convs"}


def is_torchvision(state: Mapping[str, Any]) -> bool:
    """Whether the names are those of torchvision's detectors with an FPN."""
    return any(_OWN.match(key) for key in state)


def torchvision_class_count(state: Mapping[str, Any]) -> int | None:
    """Of the file, with the background; None where it has no head."""
    scores, boxes = (state.get(f"head.{name}.weight") for name in _DENSE)
    if scores is not None and boxes is not None:
        return scores.shape[0] * 4 // boxes.shape[0]
    scores = state.get("roi_heads.box_predictor.cls_score.weight")
    return None if scores is None else int(scores.shape[0])


_DENSE = ("classification_head.cls_logits", "regression_head.bbox_reg")


def torchvision_coco_classes() -> list[str]:
    """The names of the 80 classes that rows are left of, in the order of their ids."""
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

    names = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return [names[index] for index in _foreground(COCO_COUNT)]


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights and move the rows of classes.

    Raises:
        ValueError: They are of a detector of keypoints, which there is none of here.
    """
    if any(".keypoint_" in key for key in state):
        raise ValueError("the checkpoint is of a keypoint detector of torchvision; detkit has no keypoint heads")
    count = torchvision_class_count(state)
    renamed = rename_layers(state, _rules(state))
    if "head.regression_head.bbox_ctrness.weight" in state:
        # A factor per level that torchvision's FCOS does without.
        levels = len({key.split(".")[2] for key in renamed if key.startswith("neck.fpn_convs.")})
        renamed |= {f"bbox_head.scales.{level}.scale": torch.tensor(1.0) for level in range(levels)}
    if count is not None:
        _move_classes(renamed, count)
    return renamed


def _foreground(count: int) -> list[int]:
    return [index for index in range(1, count) if count != COCO_COUNT or index not in _UNUSED]


def _move_classes(state: dict[str, Tensor], count: int) -> None:
    rows = _foreground(count)
    _take(state, "roi_head.bbox_head.fc_cls", count, [*rows, 0])
    _take(state, "roi_head.bbox_head.fc_reg", count, rows)
    _take(state, "roi_head.mask_head.conv_logits", count, rows)
    _take(state, "bbox_head.conv_cls", count, rows)
    if "bbox_head.retina_reg.weight" in state:
        anchors = state["bbox_head.retina_reg.weight"].shape[0] // 4
        for name, by_anchor in of_anchors(state, "bbox_head.retina_cls", anchors):
            state[name] = by_anchor[:, rows].flatten(0, 1)


def _take(state: dict[str, Tensor], layer: str, count: int, rows: list[int]) -> None:
    """Rows, or blocks of rows, of the classes."""
    for name, by_class in of_anchors(state, layer, count):
        state[name] = by_class[rows].flatten(0, 1)


def _rules(state: Mapping[str, Any]) -> list[Rule]:
    laterals = {match[1] for key in state if (match := re.match(r"backbone\.fpn\.inner_blocks\.(\d+)\.", key))}
    is_fcos = "head.regression_head.bbox_ctrness.weight" in state
    return [*_neck_rules(len(laterals)), *_dense_rules(is_fcos), *_two_stage_rules()]


def _neck_rules(count: int) -> list[Rule]:
    convs = {"inner": "lateral_convs", "layer": "fpn_convs"}
    blocks = r"backbone\.fpn\.(inner|layer)_blocks\.(\d+)"

    return [
        (r"backbone\.body\.(.+)", lambda m, _: f"backbone.{m[1]}"),
        # Published files have no "0" there.
        (blocks + r"(?:\.0)?", lambda m, _: f"neck.{convs[m[1]]}.{m[2]}.conv"),
        (blocks + r"\.1", lambda m, layers: f"neck.{convs[m[1]]}.{m[2]}.{layers.norm(m[0])}"),
        (r"backbone\.fpn\.extra_blocks\.p(\d)", lambda m, _: f"neck.fpn_convs.{count + int(m[1]) - 6}.conv"),
    ]


def _dense_rules(is_fcos: bool) -> list[Rule]:
    own = "conv" if is_fcos else "retina"

    def tower(m: re.Match[str], layers: Layers) -> str:
        kind = layers.norm(m[0]) if layers.is_norm(m[0]) else "conv"
        return f"bbox_head.{_TOWERS[m[1]]}.{layers.rank(m[0])}.{kind}"

    def nested(m: re.Match[str], layers: Layers) -> str:
        return f"bbox_head.{_TOWERS[m[1]]}.{m[2]}.{'conv' if m[3] == '0' else layers.norm(m[0])}"

    return [
        # RetinaNet's of today: conv.1.0; its published files and FCOS: conv.2 and conv.3, one behind the other.
        (r"head\.(classification_head|regression_head)\.conv\.(\d+)\.([01])", nested),
        (r"head\.(classification_head|regression_head)\.conv\.\d+", tower),
        (r"head\.classification_head\.cls_logits", lambda m, _: f"bbox_head.{own}_cls"),
        (r"head\.regression_head\.bbox_reg", lambda m, _: f"bbox_head.{own}_reg"),
        (r"head\.regression_head\.bbox_ctrness", lambda m, _: "bbox_head.conv_centerness"),
    ]


def _two_stage_rules() -> list[Rule]:
    boxes, masks = "roi_head.bbox_head", "roi_head.mask_head"

    def rpn_conv(m: re.Match[str], layers: Layers) -> str:
        is_deep = "rpn.head.conv.1.0.weight" in layers.state
        return f"rpn_head.rpn_conv.{m[1]}.conv" if is_deep else "rpn_head.rpn_conv"

    def norm_or_conv(part: str, place: str, m: re.Match[str], layers: Layers) -> str:
        return f"{part}.{m[1]}.{'conv' if place == '0' else layers.norm(m[0])}"

    return [
        (r"rpn\.head\.conv", lambda m, _: "rpn_head.rpn_conv"),  # published files
        (r"rpn\.head\.conv\.(\d+)\.0", rpn_conv),
        (r"rpn\.head\.cls_logits", lambda m, _: "rpn_head.rpn_cls"),
        (r"rpn\.head\.bbox_pred", lambda m, _: "rpn_head.rpn_reg"),
        (r"roi_heads\.box_head\.fc([67])", lambda m, _: f"{boxes}.shared_fcs.{int(m[1]) - 6}"),
        (r"roi_heads\.box_head\.(\d+)\.([01])", lambda m, ls: norm_or_conv(f"{boxes}.shared_convs", m[2], m, ls)),
        (r"roi_heads\.box_head\.\d+", lambda m, ls: f"{boxes}.shared_fcs.{ls.rank(m[0])}"),
        (r"roi_heads\.box_predictor\.cls_score", lambda m, _: f"{boxes}.fc_cls"),
        (r"roi_heads\.box_predictor\.bbox_pred", lambda m, _: f"{boxes}.fc_reg"),
        (r"roi_heads\.mask_head\.(\d+)\.([01])", lambda m, ls: norm_or_conv(f"{masks}.convs", m[2], m, ls)),
        (r"roi_heads\.mask_head\.mask_fcn(\d)", lambda m, _: f"{masks}.convs.{int(m[1]) - 1}.conv"),
        (r"roi_heads\.mask_predictor\.conv5_mask", lambda m, _: f"{masks}.upsample"),
        (r"roi_heads\.mask_predictor\.mask_fcn_logits", lambda m, _: f"{masks}.conv_logits"),
    ]
