"""Masks as COCO's compressed run lengths: columns from left to right, each from top to bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

__all__ = ["decode_run_lengths", "encode_window"]


def encode_window(window: NDArray[np.bool_], top: int, left: int, shape: tuple[int, int]) -> dict[str, Any]:
    """Run lengths of a mask that is empty outside a window, without a bitmap of the image.

    Args:
        window: (h, w) bool.
        top: Row of its first pixel in the image.
        left: Column of its first pixel in the image.
        shape: (height, width) of the image.
    """
    height, width = shape
    columns = np.zeros((window.shape[1], window.shape[0] + 2), dtype=np.int8)
    columns[:, 1:-1] = window.T
    column, row = np.diff(columns, axis=1).nonzero()
    edges = (left + column) * height + top + row  # where runs of ones start and end, in turn
    # A run that reaches the last row goes on where the next column starts with a one.
    goes_on = edges[1:-1:2] == edges[2::2]
    edges = np.delete(edges, np.concatenate([1 + 2 * np.flatnonzero(goes_on), 2 + 2 * np.flatnonzero(goes_on)]))
    counts = np.diff(edges, prepend=0, append=height * width)
    counts = counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts
    return rle_tools.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)


def decode_run_lengths(masks: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Bitmaps (D, H, W) of the compressed run lengths of one image; (0, 0, 0) of none, which have no size."""
    if len(masks) == 0:
        return np.zeros((0, 0, 0), dtype=bool)
    return np.ascontiguousarray(rle_tools.decode(list(masks)).transpose(2, 0, 1)).astype(bool)
