"""What both kinds of masks take, read and checked the same way."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["DIRECTIONS", "FLIP_AXES", "check_box_type", "check_direction", "check_grows", "whole_index", "window"]

# Axes of an (N, H, W) array that each flip turns round.
FLIP_AXES = {"horizontal": (2,), "vertical": (1,), "diagonal": (1, 2)}
DIRECTIONS = ("horizontal", "vertical")


def whole_index(index: Any, count: int) -> np.ndarray | slice | list[int]:
    """Any index as one that keeps the first dimension."""
    if isinstance(index, slice):
        return index
    if isinstance(index, Tensor):
        index = index.cpu().numpy()
    index = np.atleast_1d(np.asarray(index))
    if index.dtype == bool and len(index) != count:
        raise IndexError(f"a boolean index of {count} was expected, got {len(index)}")
    return index if index.size else index.astype(np.int64)


def window(bbox: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Integer x, y, width and height of a box clipped to the image, at least one pixel large."""
    box = np.asarray(bbox)
    if box.shape != (4,):
        raise ValueError(f"crop: one box (4,) was expected, got shape {box.shape}")
    x1, y1, x2, y2 = (int(value) for value in box.clip(0, [width, height, width, height]))
    return x1, y1, max(x2 - x1, 1), max(y2 - y1, 1)


def check_direction(direction: str, known: Any) -> None:
    if direction not in known:
        raise ValueError(f"direction: one of {', '.join(known)} was expected, got {direction!r}")


def check_grows(shape: tuple[int, int], out_shape: tuple[int, int]) -> None:
    if out_shape[0] < shape[0] or out_shape[1] < shape[1]:
        raise ValueError(f"pad: a size (height, width) of at least {shape} was expected, got {tuple(out_shape)}")


def check_box_type(dst_type: str) -> None:
    if dst_type != "hbox":
        raise ValueError(f"dst_type: 'hbox' was expected, got {dst_type!r}")
