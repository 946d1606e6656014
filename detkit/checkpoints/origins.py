"""Where a file comes from: whose names its weights have, and for which classes they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch

from detkit.checkpoints.detectron2_names import from_detectron2, is_detectron2
from detkit.checkpoints.formats import with_state_dict
from detkit.checkpoints.key_matching import strip_wrapper
from detkit.checkpoints.mmdetection_names import check_version, from_older_mmdetection
from detkit.checkpoints.torchvision_names import (
    COCO_COUNT,
    from_torchvision,
    is_torchvision,
    torchvision_class_count,
    torchvision_coco_classes,
)

__all__ = ["class_names", "with_own_names"]

_COCO_COUNT = 80
_EPSILON = 1e-5  # a batch norm adds it to the variance
_MASK_HEAD = "roi_head.mask_head."


def class_names(content: Mapping[str, Any]) -> list[str] | None:
    """Class names in label order that a checkpoint carries, or that those who publish it mean; None if not known.

    Args:
        content: Of a file of detkit, MMDetection 3.x (``dataset_meta``) or 2.x (``CLASSES``), of torchvision with all
            91 rows of COCO, or of Detectron2's or Caffe2's model zoo with 80 classes.
    """
    meta = content.get("meta") or {}
    named = meta.get("label_map") or meta.get("dataset_meta") or meta
    classes = named.get("classes") or named.get("CLASSES")
    if classes:
        return [classes] if isinstance(classes, str) else list(classes)
    state = with_state_dict(content).get("state_dict")
    if not isinstance(state, Mapping):
        return None
    state = strip_wrapper(state)
    if is_torchvision(state) and torchvision_class_count(state) == COCO_COUNT:
        return torchvision_coco_classes()
    is_zoo = re.match("Detectron2|Caffe2", str(content.get("__author__", ""))) and is_detectron2(state)
    return torchvision_coco_classes() if is_zoo and _zoo_count(state) == _COCO_COUNT else None


def _zoo_count(state: Mapping[str, Any]) -> int | None:
    """Classes of a detector of Detectron2, without the background."""
    for key, value in state.items():
        if re.fullmatch(r"(roi_heads\.box_predictor\.(0\.)?)?cls_score\.bias", key):
            return len(value) - 1
    scores, boxes = (state.get(f"head.{name}.bias") for name in ("cls_score", "bbox_pred"))
    return None if scores is None or boxes is None else len(scores) * 4 // len(boxes)


def with_own_names(
    state: Mapping[str, Any], content: Mapping[str, Any], own: Collection[str]
) -> tuple[dict[str, Any], str | None]:
    """Weights under the names of the model, with rows where the model expects them.

    Args:
        state: Weights of a file.
        content: What else is in it.
        own: The model's names. A file with one of them in the names of another project is taken as it is.

    Returns:
        The weights, and the project whose names they had, if another one's.

    Raises:
        ValueError: There is no such detector here.
    """
    check_version(content)
    for name, recognised, convert in (
        ("torchvision", is_torchvision, from_torchvision),
        ("Detectron2", is_detectron2, from_detectron2),
    ):
        if recognised(state) and not recognised(dict.fromkeys(own)):
            placed = _placed(_shared_masks(convert(state), own), own)
            return from_older_mmdetection(placed, own), name
    return from_older_mmdetection(state, own), None


def _placed(state: dict[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Trunks that stand alone in a file, where a detector has them; affine layers of Caffe2 as batch norms."""
    known = set(own)
    places = ("", "backbone.", "roi_head.shared_head.")
    placed: dict[str, Any] = {}
    for key, value in state.items():
        # Without statistics it looks like a group norm.
        for name in (key, re.sub(r"\bgn(\d?)\.(?=\w+$)", r"bn\1.", key)):
            own_name = next((at + name for at in places if at + name in known), None)
            if own_name is not None:
                break
        placed[own_name or key] = value
    return placed | _fixed_statistics(placed, known)


def _fixed_statistics(state: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Mean 0 and variance 1 of norms that come without: Caffe2 has them in its scales and shifts."""
    added = {}
    for key, value in state.items():
        norm = key.removesuffix(".weight")
        if f"{norm}.running_var" in known and f"{norm}.running_var" not in state and key != norm:
            added[f"{norm}.running_mean"] = torch.zeros_like(value)
            added[f"{norm}.running_var"] = torch.full_like(value, 1 - _EPSILON)
    return added


def _shared_masks(state: dict[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Detectron2's cascades have one mask head; here each stage has one, and predictions are their mean."""
    stages = {match[1] for key in own if (match := re.match(re.escape(_MASK_HEAD) + r"(\d+)\.", key))}
    if not stages:
        return state
    shared = {key: value for key, value in state.items() if re.match(re.escape(_MASK_HEAD) + r"\D", key)}
    rest = {key: value for key, value in state.items() if key not in shared}
    copies = {
        f"{_MASK_HEAD}{stage}.{key.removeprefix(_MASK_HEAD)}": value
        for stage in sorted(stages)
        for key, value in shared.items()
    }
    return rest | copies
