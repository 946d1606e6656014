"""The box type of MMDetection's pipelines, for modules that expect it: a tensor with box functions as methods.

detkit itself passes plain tensors; whatever takes boxes also takes what has them as ``.tensor``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detkit.structures.boxes.box_tensor import get_box_tensor
from detkit.structures.boxes.clip import stack_corners
from detkit.structures.boxes.conversion import (
    bbox_cxcywh_to_xyxy,
    bbox_xyxy_to_cxcywh,
    corners_of,
    get_box_wh,
)
from detkit.structures.boxes.geometry import bbox_flip, project_boxes, scale_boxes
from detkit.structures.boxes.overlaps import bbox_overlaps

__all__ = ["HorizontalBoxes", "cat_boxes", "empty_box_as", "stack_boxes"]

Data = Tensor | np.ndarray | Sequence | Any


def _same_of_tensor(name: str) -> Callable[..., HorizontalBoxes]:
    """A method that is the tensor's, on boxes."""

    def method(self: HorizontalBoxes, *args: Any, **kwargs: Any) -> HorizontalBoxes:
        return type(self)(getattr(self.tensor, name)(*args, **kwargs), clone=False)

    method.__doc__ = f"``Tensor.{name}`` of the boxes."
    return method


def _parts_of_tensor(name: str) -> Callable[..., list[HorizontalBoxes]]:
    """A method that is the tensor's and returns several, as boxes."""

    def method(self: HorizontalBoxes, *args: Any, **kwargs: Any) -> list[HorizontalBoxes]:
        return [type(self)(part, clone=False) for part in getattr(self.tensor, name)(*args, **kwargs)]

    method.__doc__ = f"``Tensor.{name}`` of the boxes, as a list."
    return method


def _tensor_like(name: str) -> Callable[..., Tensor]:
    """A method that is the tensor's and returns a tensor."""

    def method(self: HorizontalBoxes, *args: Any, **kwargs: Any) -> Tensor:
        return getattr(self.tensor, name)(*args, **kwargs)

    method.__doc__ = f"``Tensor.{name}`` of the boxes, a tensor."
    return method


class HorizontalBoxes:
    """Upright boxes (..., 4) in pixels.

    Methods whose names end in ``_`` change the boxes they are called on; they give them a new ``tensor``
    and leave the old one, which others may hold, as it is.

    Args:
        data: Boxes (..., 4), or nothing.
        dtype: Of the boxes; None is that of the data.
        device: Of the boxes; None is that of the data.
        clone: Copy the data.
        in_mode: ``xyxy`` (also None), or ``cxcywh`` for centre and size.

    Raises:
        ValueError: Unknown mode, or another shape.
    """

    box_dim = 4

    def __init__(
        self,
        data: Data,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        clone: bool = True,
        in_mode: str | None = None,
    ) -> None:
        if in_mode not in (None, "xyxy", "cxcywh"):
            raise ValueError(f"HorizontalBoxes: in_mode must be 'xyxy' or 'cxcywh', got {in_mode!r}")
        tensor: Tensor = torch.as_tensor(getattr(data, "tensor", data)).to(dtype=dtype, device=device)
        if clone:
            tensor = tensor.clone()
        if tensor.numel() == 0 and tensor.shape[-1] != 4:
            tensor = tensor.reshape(-1, 4)
        if tensor.dim() < 2 or tensor.shape[-1] != 4:
            raise ValueError(f"HorizontalBoxes: data has shape {tuple(tensor.shape)}, expected (..., N, 4)")
        self.tensor: Tensor = bbox_cxcywh_to_xyxy(tensor) if in_mode == "cxcywh" else tensor

    # What a tensor has.
    to, cpu, cuda = _same_of_tensor("to"), _same_of_tensor("cpu"), _same_of_tensor("cuda")
    clone, detach = _same_of_tensor("clone"), _same_of_tensor("detach")
    view, reshape = _same_of_tensor("view"), _same_of_tensor("reshape")
    expand, repeat = _same_of_tensor("expand"), _same_of_tensor("repeat")
    transpose, permute = _same_of_tensor("transpose"), _same_of_tensor("permute")
    squeeze, unsqueeze = _same_of_tensor("squeeze"), _same_of_tensor("unsqueeze")
    split, chunk, unbind = _parts_of_tensor("split"), _parts_of_tensor("chunk"), _parts_of_tensor("unbind")
    new_tensor, new_empty, new_full = _tensor_like("new_tensor"), _tensor_like("new_empty"), _tensor_like("new_full")
    new_ones, new_zeros = _tensor_like("new_ones"), _tensor_like("new_zeros")
    shape = property(lambda self: self.tensor.shape, doc="Shape (..., 4).")
    dtype = property(lambda self: self.tensor.dtype, doc="Of the tensor.")
    device = property(lambda self: self.tensor.device, doc="Of the tensor.")

    def __len__(self) -> int:
        return len(self.tensor)

    def __repr__(self) -> str:
        return f"HorizontalBoxes(\n{self.tensor})"

    def __iter__(self) -> Iterator[HorizontalBoxes]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> HorizontalBoxes:
        """The boxes at an index; one box stays (1, 4)."""
        return type(self)(self.tensor[index].reshape(-1, 4) if _is_int(index) else self.tensor[index], clone=False)

    def __setitem__(self, index: Any, boxes: Tensor | HorizontalBoxes) -> None:
        self.tensor[index] = get_box_tensor(boxes)

    def flatten(self, start_dim: int = 0, end_dim: int = -2) -> HorizontalBoxes:
        """The boxes in fewer dimensions; all in one, (N, 4), unless told otherwise."""
        return type(self)(self.tensor.flatten(start_dim, end_dim), clone=False)

    def dim(self) -> int:
        """Number of dimensions."""
        return self.tensor.dim()

    def size(self, dim: int | None = None) -> Any:
        """Shape (..., 4), or one of its entries."""
        return self.tensor.size() if dim is None else self.tensor.size(dim)

    def numel(self) -> int:
        """Number of coordinates."""
        return self.tensor.numel()

    def numpy(self) -> np.ndarray:
        """The boxes as an array (..., 4)."""
        return self.tensor.numpy()

    @classmethod
    def cat(cls, box_list: Sequence[HorizontalBoxes], dim: int = 0) -> HorizontalBoxes:
        """Boxes one after the other."""
        return cls(torch.cat([get_box_tensor(boxes) for boxes in box_list], dim=dim), clone=False)

    @classmethod
    def stack(cls, box_list: Sequence[HorizontalBoxes], dim: int = 0) -> HorizontalBoxes:
        """Boxes along a new dimension."""
        return cls(torch.stack([get_box_tensor(boxes) for boxes in box_list], dim=dim), clone=False)

    @classmethod
    def from_instance_masks(cls, masks: Any) -> HorizontalBoxes:
        """The boxes (N, 4) around bitmap or polygon masks."""
        return cls(masks.get_bboxes(), clone=False)

    def empty_boxes(self, dtype: torch.dtype | None = None, device: Any = None) -> HorizontalBoxes:
        """No boxes (0, 4), of the same type."""
        return type(self)(self.tensor.new_zeros(0, 4, dtype=dtype, device=device), clone=False)

    def fake_boxes(
        self, sizes: tuple[int, ...], fill: float = 0, dtype: torch.dtype | None = None, device: Any = None
    ) -> HorizontalBoxes:
        """Boxes of shape ``sizes`` with all coordinates ``fill``."""
        return type(self)(self.tensor.new_full(sizes, fill, dtype=dtype, device=device), clone=False)

    # What a box has.
    cxcywh = property(lambda self: bbox_xyxy_to_cxcywh(self.tensor), doc="Centres and sizes (..., 4).")
    centers = property(lambda self: (self.tensor[..., :2] + self.tensor[..., 2:]) / 2, doc="Centres (..., 2).")
    widths = property(lambda self: get_box_wh(self.tensor)[0], doc="Widths (...).")
    heights = property(lambda self: get_box_wh(self.tensor)[1], doc="Heights (...).")
    areas = property(lambda self: self.widths * self.heights, doc="Areas (...) in square pixels.")

    def flip_(self, img_shape: tuple[int, int], direction: str = "horizontal") -> None:
        """Mirror with the image, see ``bbox_flip``."""
        self.tensor = bbox_flip(self.tensor, img_shape, direction)

    def translate_(self, distances: tuple[float, float]) -> None:
        """Move by (x, y) pixels."""
        if len(distances) != 2:
            raise ValueError(f"HorizontalBoxes.translate_: distances must be (x, y), got {distances}")
        (x, y), (x1, y1, x2, y2) = distances, self.tensor.unbind(-1)
        self.tensor = torch.stack([x1 + x, y1 + y, x2 + x, y2 + y], dim=-1)

    def clip_(self, img_shape: tuple[int, int]) -> None:
        """Clip to an image of this height and width."""
        x1, y1, x2, y2 = self.tensor.unbind(-1)
        self.tensor = stack_corners(x1, y1, x2, y2, img_shape)

    def rotate_(self, center: tuple[float, float], angle: float) -> None:
        """Turn around a point (x, y) by degrees clockwise; the boxes around the turned boxes."""
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        x, y = center
        turn = [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y], [0.0, 0.0, 1.0]]
        self.tensor = project_boxes(self.tensor, torch.tensor(turn, dtype=torch.float64))

    def project_(self, homography_matrix: Tensor | np.ndarray) -> None:
        """Project by a matrix (3, 3); the boxes around the projected boxes."""
        self.tensor = project_boxes(self.tensor, torch.as_tensor(homography_matrix))

    def rescale_(self, scale_factor: tuple[float, float]) -> None:
        """Scale with the image, by (x, y)."""
        self.tensor = scale_boxes(self.tensor, scale_factor)

    def resize_(self, scale_factor: tuple[float, float]) -> None:
        """Scale width and height by (x, y) around the centres."""
        cx, cy, width, height = self.cxcywh.unbind(-1)
        self.tensor = bbox_cxcywh_to_xyxy(
            torch.stack([cx, cy, width * scale_factor[0], height * scale_factor[1]], dim=-1)
        )

    def is_inside(self, img_shape: tuple[int, int], all_inside: bool = False, allowed_border: float = 0) -> Tensor:
        """Which boxes are inside an image of this height and width, wholly or in part, (...) bool.

        Args:
            img_shape: Height and width.
            all_inside: The whole box must be inside, not only a part.
            allowed_border: Pixels by which the image is larger on each side.
        """
        height, width = img_shape[:2]
        x1, y1, x2, y2 = self.tensor.unbind(-1)
        if all_inside:
            inside = (x1 >= -allowed_border) & (y1 >= -allowed_border)
            return inside & (x2 < width + allowed_border) & (y2 < height + allowed_border)
        inside = (x2 > -allowed_border) & (y2 > -allowed_border)
        return inside & (x1 < width + allowed_border) & (y1 < height + allowed_border)

    def find_inside_points(self, points: Tensor, is_aligned: bool = False) -> Tensor:
        """Which points (M, 2) are in which boxes (N, 4), border included.

        Returns:
            (M, N) bool, or (M,) where the i-th point is compared with the i-th box alone.
        """
        x1, y1, x2, y2 = self.tensor.unbind(-1)
        x, y = (points if is_aligned else points.unsqueeze(-2)).unbind(-1)
        return (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)

    @staticmethod
    def overlaps(
        boxes1: HorizontalBoxes, boxes2: HorizontalBoxes, mode: str = "iou", is_aligned: bool = False, eps: float = 1e-6
    ) -> Tensor:
        """See ``bbox_overlaps``."""
        return bbox_overlaps(boxes1, boxes2, mode, is_aligned, eps)

    xyxy_to_cxcywh, cxcywh_to_xyxy = staticmethod(bbox_xyxy_to_cxcywh), staticmethod(bbox_cxcywh_to_xyxy)

    @staticmethod
    def hbox2corner(boxes: Tensor) -> Tensor:
        """Corner points (..., 4, 2) of boxes (..., 4)."""
        return corners_of(boxes)

    @staticmethod
    def corner2hbox(corners: Tensor) -> Tensor:
        """Boxes (..., 4) around corner points (..., 4, 2)."""
        return torch.cat([corners.amin(dim=-2), corners.amax(dim=-2)], dim=-1)


def _is_int(index: Any) -> bool:
    return isinstance(index, int) or (isinstance(index, Tensor) and index.dim() == 0 and index.dtype != torch.bool)


def cat_boxes(data_list: Sequence[Tensor | HorizontalBoxes], dim: int = 0) -> Any:
    """``torch.cat`` of tensors or of boxes."""
    first = data_list[0]
    return torch.cat(list(data_list), dim=dim) if isinstance(first, Tensor) else first.cat(data_list, dim=dim)  # type: ignore[arg-type]


def stack_boxes(data_list: Sequence[Tensor | HorizontalBoxes], dim: int = 0) -> Any:
    """``torch.stack`` of tensors or of boxes."""
    first = data_list[0]
    return torch.stack(list(data_list), dim=dim) if isinstance(first, Tensor) else first.stack(data_list, dim=dim)  # type: ignore[arg-type]


def empty_box_as(boxes: Tensor | HorizontalBoxes) -> Any:
    """No boxes (0, 4), of the same type."""
    return boxes.new_zeros(0, 4) if isinstance(boxes, Tensor) else boxes.empty_boxes()
