"""What an image has of each object, selected, moved and joined together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "centers_inside",
    "clip_boxes",
    "join_objects",
    "overlaps_image",
    "require_probability",
    "require_range",
    "select_objects",
]

# Keys of a results dict with one entry per object.
OBJECT_KEYS = ("gt_bboxes", "gt_bboxes_labels", "gt_ignore_flags", "gt_masks")


def select_objects(results: dict, keep: np.ndarray) -> None:
    """Keep the objects where ``keep`` (G,) bool is set, in every field that is there."""
    for key in OBJECT_KEYS:
        if results.get(key) is not None:
            results[key] = results[key][keep]


def join_objects(parts: Sequence[dict]) -> dict[str, Any]:
    """The objects of several images as those of one, field by field of the first.

    Raises:
        ValueError: Another image lacks a field that the first has.
    """
    joined: dict[str, Any] = {}
    for key in OBJECT_KEYS:
        if parts[0].get(key) is None:
            continue
        values: list[Any] = [part.get(key) for part in parts]
        if any(value is None for value in values):
            raise ValueError(f"{key}: an image that is mixed in does not have it, while the image itself does")
        joined[key] = type(values[0]).cat(values) if key == "gt_masks" else np.concatenate(values)
    return joined


def clip_boxes(boxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Boxes (G, 4) cut at the border of an image of ``shape`` (height, width)."""
    height, width = shape[:2]
    return boxes.clip(0, np.array([width, height, width, height], dtype=boxes.dtype))


def overlaps_image(boxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(G,) bool: which boxes have something in common with an image of ``shape`` (height, width)."""
    height, width = shape[:2]
    return (boxes[:, 0] < width) & (boxes[:, 1] < height) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)


def centers_inside(boxes: np.ndarray, patch: Sequence[int] | np.ndarray) -> np.ndarray:
    """(G,) bool: which boxes have their centre inside ``patch``, xyxy."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centers > np.asarray(patch[:2])) & (centers < np.asarray(patch[2:]))).all(axis=1)


def require_probability(name: str, value: float) -> float:
    """``value``, if it is a probability.

    Raises:
        ValueError: It is not from 0 to 1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: a probability from 0 to 1 was expected, got {value!r}")
    return value


def require_range(name: str, value: Sequence[float], least: float | None = None) -> tuple[float, float]:
    """``value`` as (low, high).

    Args:
        name: Of the argument, for messages.
        value: Two numbers.
        least: ``low`` must be larger than this, if given.

    Raises:
        ValueError: It is no such pair, or ``low`` is larger than ``high``.
    """
    pair = tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(pair) != 2 or pair[0] > pair[1] or (least is not None and pair[0] <= least):
        above = "" if least is None else f", both larger than {least}"
        raise ValueError(f"{name}: two numbers, the smaller first{above}, were expected, got {value!r}")
    return pair
