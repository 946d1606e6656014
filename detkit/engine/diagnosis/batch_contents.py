"""What a batch holds, for messages: the names of its images, and boxes that no loss can be finite with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["image_names", "impossible_boxes"]


def image_names(data_batch: Any) -> list[str]:
    """A name for each image: its path, else its id, else its place in the batch.

    Args:
        data_batch: As the data loader gives it; one without ``data_samples`` has no names.
    """
    samples = data_batch.get("data_samples") if isinstance(data_batch, Mapping) else None
    return [_name(sample, index) for index, sample in enumerate(samples or ())]


def impossible_boxes(data_batch: Any, limit: int = 3) -> list[str]:
    """Boxes of the ground truth that are not finite, or empty: each with its image, its number there and its value.

    Args:
        data_batch: As the data loader gives it, on the host.
        limit: How many are described; the last text counts the others.
    """
    found = []
    samples = data_batch.get("data_samples") if isinstance(data_batch, Mapping) else None
    for place, sample in enumerate(samples or ()):
        boxes = getattr(getattr(sample, "gt_instances", None), "bboxes", None)
        boxes = getattr(boxes, "tensor", boxes)
        if not isinstance(boxes, torch.Tensor) or boxes.ndim != 2 or boxes.shape[1] != 4:
            continue
        finite = torch.isfinite(boxes).all(dim=1)
        sound = finite & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        for index in (~sound).nonzero().flatten().tolist():
            fault = "is empty" if finite[index] else "is not finite"
            found.append(f"box {index} of {_name(sample, place)} {fault}: {boxes[index].tolist()}")
    more = [f"{len(found) - limit} more"] if len(found) > limit else []
    return found[:limit] + more


def _name(sample: Any, index: int) -> str:
    get = sample.get if hasattr(sample, "get") else lambda key: None
    path, identity = get("img_path"), get("img_id")
    if path is not None:
        return str(path)
    return f"image {index} of the batch" if identity is None else f"the image with img_id {identity}"
