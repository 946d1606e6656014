"""One way to the plain tensor of boxes, whatever type holds them."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

__all__ = ["HasTensor", "get_box_tensor"]


class HasTensor(Protocol):
    """A box type, such as ``HorizontalBoxes``: its ``tensor`` is the boxes (..., 4)."""

    tensor: Tensor


def get_box_tensor(boxes: Tensor | HasTensor | Any) -> Tensor:
    """The tensor of a box type; a tensor as it is.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(boxes, Tensor):
        return boxes
    tensor = getattr(boxes, "tensor", None)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"boxes must be a tensor or have one as .tensor, got {type(boxes).__name__}")
    return tensor
