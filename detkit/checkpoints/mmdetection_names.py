"""Names that MMDetection gave its weights before, and those that it takes for others while it loads."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["check_version", "from_older_mmdetection"]

# A name of the file by the first pattern becomes the second one where the model has that and the file does not.
_RENAMED = [
    # The head of RPN alone is a bbox_head, that of a two-stage detector an rpn_head: the one starts from the other.
    (r"rpn_head\.(.+)", r"bbox_head.\1"),
    (r"bbox_head\.(.+)", r"rpn_head.\1"),
    # Point heads before 2.0: fcos_cls, fovea_cls, fcos_centerness
    (r"bbox_head\.(?:fcos|fovea)_cls\.(weight|bias)", r"bbox_head.conv_cls.\1"),
    (r"bbox_head\.(?:fcos|fovea)_reg\.(weight|bias)", r"bbox_head.conv_reg.\1"),
    (r"bbox_head\.fcos_centerness\.(weight|bias)", r"bbox_head.conv_centerness.\1"),
    # Deformable convolutions before mmcv 1.0
    (r"(.+)\.conv2_offset\.(weight|bias)", r"\1.conv2.conv_offset.\2"),
    # SSD before 2.12
    (r"backbone\.l2_norm\.weight", r"neck.l2_norm.weight"),
    (r"bbox_head\.(cls|reg)_convs\.(\d)\.(weight|bias)", r"bbox_head.\1_convs.\2.0.\3"),
]
_RULES = [(re.compile(pattern), replacement) for pattern, replacement in _RENAMED]
_SSD_EXTRA = re.compile(r"backbone\.extra\.(\d+)\.(weight|bias)")
# What 2.x keeps of its averages among the weights, which are the average already: ema_backbone_conv1_weight.
_AVERAGE = re.compile(r"ema_\w+")


def from_older_mmdetection(state: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Rename what has another name in the model.

    Args:
        state: The file's weights.
        own: The model's names.
    """
    known = set(own)
    renamed: dict[str, Any] = {}
    for key, value in state.items():
        if _AVERAGE.fullmatch(key) and key not in known:
            continue
        name = key if key in known else _own_name(key, known)
        renamed[key if name in state or name in renamed else name] = value
    return renamed


def _own_name(key: str, known: Collection[str]) -> str:
    extra = _SSD_EXTRA.fullmatch(key)
    names = [f"neck.extra_layers.{int(extra[1]) // 2}.{int(extra[1]) % 2}.conv.{extra[2]}"] if extra else []
    names += [pattern.sub(replacement, key) for pattern, replacement in _RULES if pattern.fullmatch(key)]
    return next((name for name in names if name in known), key)


def check_version(content: Mapping[str, Any]) -> None:
    """Refuse files of MMDetection 1.x.

    Raises:
        ValueError: Their heads have the background first, and their boxes end one pixel further.
    """
    meta = content.get("meta")
    version = str(meta.get("mmdet_version", "")) if isinstance(meta, Mapping) else ""
    if version.startswith(("0.", "1.")):
        raise ValueError(
            f"a checkpoint of MMDetection {version}, which counts the background first; upgrade it with "
            "tools/model_converters/upgrade_model_version.py of MMDetection"
        )
