"""Weights of Caffe2 and Detectron under the names, and with the rows, that Detectron2's models have.

The background class comes first there and last here; boxes and masks have none here. The rules are those of Detectron2
(https://github.com/facebookresearch/detectron2/blob/02b5c4e/detectron2/checkpoint/c2_model_loading.py), written anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["caffe2_name", "convert_caffe2"]

# Applied in order, after underscores have become dots.
_PATTERNS = [
    (r"^pred\.([bw])$", r"linear.\1"),  # ImageNet's classifier
    (r"\.b$", ".bias"),
    (r"\.w$", ".weight"),
    # batch and group normalisation
    (r"\b[bg]n\.(s|gamma)$", "norm.weight"),
    (r"\b[bg]n\.(bias|beta)$", "norm.bias"),
    (r"\bbn\.(rm|running\.mean)$", "norm.running_mean"),
    (r"\bbn\.(riv|running\.var)$", "norm.running_var"),
    # ResNet
    (r"^res\.conv1\.norm\.", "conv1.norm."),
    (r"^conv1\.", "stem.conv1."),
    (r"\blayer1\.", "res2."),
    (r"\blayer2\.", "res3."),
    (r"\blayer3\.", "res4."),
    (r"\blayer4\.", "res5."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
    # RPN, with and without FPN
    (r"^conv\.rpn(\.fpn2)?\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn\.bbox\.pred(\.fpn2)?\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^rpn\.cls\.logits(\.fpn2)?\.", "proposal_generator.rpn_head.objectness_logits."),
    # box head
    (r"^bbox\.pred\.", "bbox_pred."),
    (r"^cls\.score\.", "cls_score."),
    (r"^fc6\.", "box_head.fc1."),
    (r"^fc7\.", "box_head.fc2."),
    (r"^head\.conv", "box_head.conv"),
    # FPN: fpn.inner.res2.2.sum.lateral.weight and fpn.res2.2.sum.weight, with or without norm
    (r"^fpn\.inner\.res(\d)\.(?:.*\.)?(norm\.\w+)$", r"fpn_lateral\1.\2"),
    (r"^fpn\.inner\.res(\d)\..*\.(\w+)$", r"fpn_lateral\1.\2"),
    (r"^fpn\.res(\d)\.(?:.*\.)?(norm\.\w+)$", r"fpn_output\1.\2"),
    (r"^fpn\.res(\d)\..*\.(\w+)$", r"fpn_output\1.\2"),
    # mask and keypoint heads
    (r"^\.?\[?mask\]?\.fcn\.logits\.", "mask_head.predictor."),
    (r"^\.?\[?mask\]?\.fcn(\d)", r"mask_head.mask_fcn\1"),
    (r"^conv5\.mask\.", "mask_head.deconv."),
    (r"^conv\.fcn(\d)", r"roi_heads.keypoint_head.conv_fcn\1"),
    (r"^kps\.score\.lowres\.", "roi_heads.keypoint_head.score_lowres."),
    (r"^kps\.score\.", "roi_heads.keypoint_head.score."),
]
_RULES = [(re.compile(pattern), replacement) for pattern, replacement in _PATTERNS]
# How many rows at the start belong to the background: a box has four.
_BACKGROUND_ROWS = {"bbox_pred.": 4, "mask_head.predictor.": 1}


def caffe2_name(name: str) -> str:
    """``res2_0_branch2a_bn_s`` -> ``res2.0.conv1.norm.weight``."""
    name = name.replace("_", ".")
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    return name


def convert_caffe2(blobs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reorder weights.

    Args:
        blobs: Caffe2's; momentum of the optimizer is left out.

    Raises:
        ValueError: Two of them would get the same name.
    """
    converted: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for old, value in blobs.items():
        if old.endswith("_momentum"):
            continue
        name = caffe2_name(old)
        if name in converted:
            raise ValueError(f"the blobs {origin[name]!r} and {old!r} are both {name!r} here")
        origin[name] = old
        converted[name] = _without_background(name, value)
    return converted


def _without_background(name: str, value: Tensor) -> Tensor:
    for prefix, rows in _BACKGROUND_ROWS.items():
        if name.startswith(prefix):
            return value[rows:]
    if name.startswith("cls_score."):
        return torch.cat([value[1:], value[:1]])
    return value
