"""Detectron2's weights of RPN, the R-CNN family and RetinaNet under MMDetection's names.

Both count the background last and flatten features in the same order. Where a level has anchors of several sizes
(RetinaNet, C4, DC5), Detectron2 counts the ratios of a size and then the next size, MMDetection the sizes of a ratio.

Names: https://github.com/facebookresearch/detectron2/tree/main/detectron2/modeling
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detkit.checkpoints.renaming import Layers, Rule, of_anchors, rename_layers

__all__ = ["from_detectron2", "is_detectron2"]

_OWN = re.compile(
    r"((backbone\.)?(bottom_up\.)?(stem\.conv1\.(weight|norm\.)|res[2-5]\.\d+\.(conv\d|shortcut)\.|fpn_(lateral|output)\d\.)"
    r"|proposal_generator\.|head\.(cls_subnet|bbox_subnet)\.|roi_heads\.(box_head|mask_head\.mask_fcn\d)\.)"
)
# Where a trunk is: alone, in a detector, or its last stage behind the RoI pooling of C4.
_PLACES = {None: "", "backbone.": "backbone.", "roi_heads.": "roi_head.shared_head."}
_TRUNK = r"(?P<at>backbone\.|roi_heads\.)?(?:bottom_up\.)?"
_BLOCK = _TRUNK + r"res(?P<stage>\d)\.(?P<block>\d+)\."
_RATIOS = 3


def is_detectron2(state: Mapping[str, Any]) -> bool:
    """Whether the names are Detectron2's, or those that ``caffe2.py`` makes of Caffe2's."""
    return any(_OWN.match(key) for key in state)


def from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reorder weights.

    Raises:
        ValueError: They are of a detector of keypoints, which there is none of here.
    """
    if any(".keypoint_head." in key for key in state):
        raise ValueError("the checkpoint is of a keypoint detector of Detectron2; detkit has no keypoint heads")
    renamed = rename_layers(state, _rules(state))
    _reorder_anchors(renamed, "rpn_head.rpn_cls", "rpn_head.rpn_reg")
    _reorder_anchors(renamed, "bbox_head.retina_cls", "bbox_head.retina_reg")
    return renamed


def _block(match: re.Match[str]) -> str:
    return f"{_PLACES[match['at']]}layer{int(match['stage']) - 1}.{match['block']}"


def _rules(state: Mapping[str, Any]) -> list[Rule]:
    levels = [int(match[1]) for key in state if (match := re.match(r"(?:backbone\.)?fpn_lateral(\d)\.", key))]
    lowest = min(levels, default=2)
    return [*_trunk_rules(), *_neck_rules(lowest), *_head_rules()]


def _trunk_rules() -> list[Rule]:
    return [
        (_TRUNK + r"stem\.conv1", lambda m, _: f"{_PLACES[m['at']]}conv1"),
        (_TRUNK + r"stem\.conv1\.norm", lambda m, layers: f"{_PLACES[m['at']]}{layers.norm(m[0])}1"),
        (_BLOCK + r"conv(\d)", lambda m, _: f"{_block(m)}.conv{m[4]}"),
        (_BLOCK + r"conv(\d)\.norm", lambda m, layers: f"{_block(m)}.{layers.norm(m[0])}{m[4]}"),
        (_BLOCK + r"conv2_offset", lambda m, _: f"{_block(m)}.conv2.conv_offset"),
        (_BLOCK + r"shortcut", lambda m, _: f"{_block(m)}.downsample.0"),
        (_BLOCK + r"shortcut\.norm", lambda m, _: f"{_block(m)}.downsample.1"),
    ]


def _neck_rules(lowest: int) -> list[Rule]:
    convs = {"lateral": "lateral_convs", "output": "fpn_convs"}

    def place(m: re.Match[str]) -> str:
        return f"neck.{convs[m[1]]}.{int(m[2]) - lowest}"

    return [
        (r"(?:backbone\.)?fpn_(lateral|output)(\d)", lambda m, _: f"{place(m)}.conv"),
        (r"(?:backbone\.)?fpn_(lateral|output)(\d)\.norm", lambda m, layers: f"{place(m)}.{layers.norm(m[0])}"),
        (r"(?:backbone\.)?top_block\.p(\d)", lambda m, _: f"neck.fpn_convs.{int(m[1]) - lowest}.conv"),
    ]


def _head_rules() -> list[Rule]:
    rpn = r"proposal_generator\.rpn_head\."
    box, scores = r"(?:roi_heads\.)?box_head\.(\d\.)?", r"(?:roi_heads\.box_predictor\.(\d\.)?|())"
    mask, towers = r"(?:roi_heads\.)?mask_head\.", {"cls_subnet": "cls_convs", "bbox_subnet": "reg_convs"}

    def stage(m: re.Match[str]) -> str:
        return f"roi_head.bbox_head.{m[1] or ''}"

    def tower(m: re.Match[str], layers: Layers) -> str:
        kind = layers.norm(m[0]) if layers.is_norm(m[0]) else "conv"
        return f"bbox_head.{towers[m[1]]}.{layers.rank(m[0])}.{kind}"

    return [
        (rpn + "conv", lambda m, _: "rpn_head.rpn_conv"),
        (rpn + r"conv\.conv(\d)", lambda m, _: f"rpn_head.rpn_conv.{m[1]}.conv"),
        (rpn + "objectness_logits", lambda m, _: "rpn_head.rpn_cls"),
        (rpn + "anchor_deltas", lambda m, _: "rpn_head.rpn_reg"),
        (box + r"fc(\d)", lambda m, _: f"{stage(m)}shared_fcs.{int(m[2]) - 1}"),
        (box + r"conv(\d)", lambda m, _: f"{stage(m)}shared_convs.{int(m[2]) - 1}.conv"),
        (box + r"conv(\d)\.norm", lambda m, ls: f"{stage(m)}shared_convs.{int(m[2]) - 1}.{ls.norm(m[0])}"),
        (scores + "cls_score", lambda m, _: f"{stage(m)}fc_cls"),
        (scores + "bbox_pred", lambda m, _: f"{stage(m)}fc_reg"),
        (mask + r"mask_fcn(\d)", lambda m, _: f"roi_head.mask_head.convs.{int(m[1]) - 1}.conv"),
        (mask + r"mask_fcn(\d)\.norm", lambda m, ls: f"roi_head.mask_head.convs.{int(m[1]) - 1}.{ls.norm(m[0])}"),
        (mask + "deconv", lambda m, _: "roi_head.mask_head.upsample"),
        (mask + "predictor", lambda m, _: "roi_head.mask_head.conv_logits"),
        (r"head\.(cls_subnet|bbox_subnet)\.\d+", tower),
        (r"head\.cls_score", lambda m, _: "bbox_head.retina_cls"),
        (r"head\.bbox_pred", lambda m, _: "bbox_head.retina_reg"),
    ]


def _reorder_anchors(state: dict[str, Tensor], scores: str, boxes: str) -> None:
    """From the ratios of each size to the sizes of each ratio, in place."""
    if f"{boxes}.weight" not in state:
        return
    anchors = state[f"{boxes}.weight"].shape[0] // 4
    if anchors <= _RATIOS or anchors % _RATIOS:
        return
    for layer in (scores, boxes):
        for name, rows in of_anchors(state, layer, anchors):
            by_size = rows.reshape(-1, _RATIOS, *rows.shape[1:])
            state[name] = by_size.transpose(0, 1).reshape(state[name].shape)
