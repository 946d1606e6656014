"""Boxes of many images in one tensor, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detkit.structures.boxes.box_tensor import get_box_tensor

__all__ = ["bbox2result", "bbox2roi", "roi2bbox"]


def bbox2roi(bbox_list: Sequence[Tensor | Any]) -> Tensor:
    """RoIs (R, 5), the index of the image before each box, of the boxes (N_i, 4) of each image."""
    boxes = [get_box_tensor(one) for one in bbox_list]
    return torch.cat([torch.cat([b.new_full((len(b), 1), image), b], dim=-1) for image, b in enumerate(boxes)])


def roi2bbox(rois: Tensor) -> list[Tensor]:
    """The boxes (N_i, 4) of each image that occurs among the RoIs (R, 5), in the order of the images.

    An image without RoIs has no entry. Waits for the device, as the number of RoIs per image is needed.
    """
    images, order = rois[:, 0].sort(stable=True)
    counts = images.unique_consecutive(return_counts=True)[1]
    return list(rois[order, 1:].split(counts.tolist()))


def bbox2result(bboxes: Tensor | np.ndarray, labels: Tensor | np.ndarray, num_classes: int) -> list[np.ndarray]:
    """Detections (N, 5) with labels (N,) as one array (N_c, 5) for each class."""
    bboxes, labels = (x.detach().cpu().numpy() if isinstance(x, Tensor) else x for x in (bboxes, labels))
    if len(bboxes) == 0:
        return [np.zeros((0, 5), dtype=np.float32) for _ in range(num_classes)]
    return [bboxes[labels == label] for label in range(num_classes)]
