"""Sizes of images as a tensor beside their boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.ops.upload import upload

__all__ = ["image_sizes"]


def image_sizes(metas: Sequence[Mapping[str, Any] | None], boxes: Tensor, owner: str) -> Tensor:
    """Width, height, width and height in pixels of each image, (N, 1, 4).

    Args:
        metas: Image facts with ``img_shape``.
        boxes: (N, A, 4), whose device and type the sizes get.
        owner: Who asks, for messages.

    Raises:
        ValueError: Not as many facts as images, or one lacks ``img_shape``.
    """
    if len(metas) != len(boxes):
        raise ValueError(f"{owner}: {len(metas)} img_metas for {len(boxes)} images")
    sizes = []
    for index, meta in enumerate(metas):
        if meta is None or "img_shape" not in meta:
            raise ValueError(f"{owner}: image {index} needs img_meta with 'img_shape', got {meta}")
        height, width = meta["img_shape"][:2]
        sizes.append([width, height, width, height])
    return upload(torch.tensor(sizes, dtype=boxes.dtype), boxes.device).unsqueeze(1)
