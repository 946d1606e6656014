"""What makes an annotation of a COCO file impossible: one rule for the data set and for its evaluation."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

__all__ = ["box_fault", "reference_fault"]


def reference_fault(annotation: Any, seen: set, images: Container, categories: Container) -> str | None:
    """What is wrong with the ids of an annotation; None if they are right.

    Args:
        annotation: An entry of ``annotations``.
        seen: Ids of the annotations before it; its own is added.
        images: Ids of the file's images.
        categories: Ids of the file's categories.
    """
    if not isinstance(annotation, dict):
        return "an object was expected"
    for key in ("id", "image_id", "category_id"):
        if key not in annotation:
            return f"has no {key}"
        if not isinstance(annotation[key], (int, str)):
            return f"a number was expected as {key}, got {annotation[key]!r}"
    if annotation["id"] in seen:
        return "its id occurs more than once"
    seen.add(annotation["id"])
    if annotation["image_id"] not in images:
        return f"the file has no image {annotation['image_id']!r}"
    if annotation["category_id"] not in categories:
        return f"the file has no category {annotation['category_id']!r}"
    return None


def box_fault(box: Any, image_width: float, image_height: float) -> str | None:
    """What makes an ``[x, y, width, height]`` box in pixels impossible; None if it is one.

    A box partly outside its image is possible.
    """
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
        return f"a box [x, y, width, height] was expected, got {box!r}"
    if not all(map(math.isfinite, box)):
        return f"the box {box} is not finite"
    x, y, width, height = box
    for side, value in (("width", width), ("height", height)):
        if value <= 0:
            return f"the box {box} has {side} {value}" + ("; is it x1, y1, x2, y2?" if value < 0 else "")
    if x >= image_width or y >= image_height or x + width <= 0 or y + height <= 0:
        return f"the box {box} is outside its image of {image_width} x {image_height}"
    return None
