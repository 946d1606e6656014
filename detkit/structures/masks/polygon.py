"""Masks as polygons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mmcv
import numpy as np
import torch
from pycocotools import mask as rle_tools
from torch import Tensor

from detkit.structures.masks.arguments import (
    DIRECTIONS,
    FLIP_AXES,
    check_box_type,
    check_direction,
    check_grows,
    whole_index,
    window,
)
from detkit.structures.masks.bitmap import BitmapMasks
from detkit.structures.masks.geometry import area, clip

__all__ = ["PolygonMasks"]


class PolygonMasks:
    """Masks as polygons; an object may have several, which are joined.

    Args:
        masks: For each object a list of polygons, each an array (x0, y0, x1, y1, …).
        height: Height of the image.
        width: Width of the image.

    Attributes:
        masks: List of lists of float arrays.
    """

    def __init__(self, masks: Sequence[Sequence[np.ndarray]], height: int, width: int) -> None:
        self.height = int(height)
        self.width = int(width)
        self.masks = [[np.asarray(part) for part in parts] for parts in masks]

    @classmethod
    def cat(cls, masks: Sequence[PolygonMasks]) -> PolygonMasks:
        """Join masks of the same image size."""
        if not masks:
            raise ValueError("cat: at least one PolygonMasks was expected, got none")
        first = masks[0]
        for part in masks:
            if (part.height, part.width) != (first.height, first.width):
                raise ValueError(f"cat: masks of one image size were expected, got {first} and {part}")
        return cls([parts for group in masks for parts in group.masks], first.height, first.width)

    def __len__(self) -> int:
        return len(self.masks)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return iter(self.masks)

    def __getitem__(self, index: Any) -> PolygonMasks:
        """The masks at an index, a slice, a list, or a boolean array; always masks, also for one index."""
        chosen = np.arange(len(self))[whole_index(index, len(self))]
        return PolygonMasks([self.masks[i] for i in chosen], self.height, self.width)

    def __repr__(self) -> str:
        return f"PolygonMasks({len(self)} masks of {self.height} x {self.width})"

    @property
    def areas(self) -> np.ndarray:
        """(N,) area of each mask: the sum over its polygons."""
        return np.array([sum(map(area, parts)) for parts in self.masks])

    def rescale(self, scale: float | tuple[int, int], interpolation: str | None = None) -> PolygonMasks:
        """Resize by a factor, or as large as fits into two side lengths, keeping the aspect ratio."""
        width, height = mmcv.rescale_size((self.width, self.height), scale)
        return self.resize((height, width))

    def resize(self, out_shape: tuple[int, int], interpolation: str | None = None) -> PolygonMasks:
        """Resize to (height, width); ``interpolation`` means nothing here."""
        height, width = out_shape
        return self._move((width / self.width, height / self.height), (0, 0), out_shape)

    def flip(self, flip_direction: str = "horizontal") -> PolygonMasks:
        """Mirror ``horizontal``, ``vertical`` or ``diagonal`` (both)."""
        check_direction(flip_direction, FLIP_AXES)
        x = (-1, self.width) if flip_direction != "vertical" else (1, 0)
        y = (-1, self.height) if flip_direction != "horizontal" else (1, 0)
        return self._move((x[0], y[0]), (x[1], y[1]), (self.height, self.width))

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> PolygonMasks:
        """Pad at the right and the bottom to (height, width); only 0 can be padded with."""
        check_grows((self.height, self.width), out_shape)
        return PolygonMasks(self.masks, *out_shape)

    def crop(self, bbox: np.ndarray) -> PolygonMasks:
        """Cut out the window ``bbox`` (4,), at least one pixel large.

        Nothing left of an object makes it one polygon without area, so that masks and boxes stay aligned.
        """
        return self._cut(*window(bbox, self.height, self.width))

    def crop_and_resize(
        self,
        bboxes: np.ndarray | Tensor,
        out_shape: tuple[int, int],
        inds: np.ndarray | Tensor,
        device: str | torch.device = "cpu",
        interpolation: str = "bilinear",
        binarize: bool = True,
    ) -> PolygonMasks:
        """Mask targets: mask ``inds[k]`` within box ``k``, resized to ``out_shape`` (height, width).

        ``device``, ``interpolation`` and ``binarize`` mean nothing to polygons.
        """
        height, width = out_shape
        resized = []
        for box, index in zip(np.asarray(bboxes, dtype=np.float64), np.asarray(inds), strict=True):
            corner = box[:2]
            # A box of less than a pixel would blow the polygon up without bound.
            factor = np.array([width, height]) / np.maximum(box[2:] - corner, 1)
            resized.append([((part.reshape(-1, 2) - corner) * factor).reshape(-1) for part in self.masks[index]])
        return PolygonMasks(resized, height, width)

    def expand(self, expanded_h: int, expanded_w: int, top: int, left: int) -> PolygonMasks:
        """Put the masks onto a larger canvas at row ``top``, column ``left``."""
        return self._move((1, 1), (left, top), (expanded_h, expanded_w))

    def translate(
        self,
        out_shape: tuple[int, int],
        offset: float,
        direction: str = "horizontal",
        border_value: int = 0,
        interpolation: str | None = None,
    ) -> PolygonMasks:
        """Shift by ``offset`` pixels ``horizontal`` or ``vertical``, cut at a canvas of (height, width)."""
        check_direction(direction, DIRECTIONS)
        if border_value != 0:
            raise ValueError(f"border_value: polygons can only be moved over 0, got {border_value}")
        moved = self._move((1, 1), (offset, 0) if direction == "horizontal" else (0, offset), out_shape)
        limit = np.array([out_shape[1], out_shape[0]])
        clipped = [[part.reshape(-1, 2).clip(0, limit).reshape(-1) for part in parts] for parts in moved.masks]
        return PolygonMasks(clipped, *out_shape)

    def project(self, matrix: np.ndarray, out_shape: tuple[int, int]) -> PolygonMasks:
        """Move by a homography (3, 3), cut at a canvas of (height, width); see ``crop``."""
        moved = []
        for parts in self.masks:
            corners = [np.column_stack([part.reshape(-1, 2), np.ones(part.size // 2)]) @ matrix.T for part in parts]
            moved.append([(points[:, :2] / points[:, 2:]).reshape(-1) for points in corners])
        return PolygonMasks(moved, *out_shape)._cut(0, 0, out_shape[1], out_shape[0])

    def to_bitmap(self) -> BitmapMasks:
        """Rasterise as COCO does."""
        return BitmapMasks(self.to_ndarray(), self.height, self.width)

    def to_ndarray(self) -> np.ndarray:
        """(N, H, W) uint8, rasterised as COCO does."""
        masks = np.zeros((len(self), self.height, self.width), dtype=np.uint8)
        for mask, parts in zip(masks, self.masks, strict=True):
            rles = rle_tools.frPyObjects([part.tolist() for part in parts], self.height, self.width)
            mask[:] = rle_tools.decode(rle_tools.merge(rles))
        return masks

    def to_tensor(self, dtype: torch.dtype, device: str | torch.device) -> Tensor:
        """(N, H, W) tensor, rasterised as COCO does."""
        return torch.tensor(self.to_ndarray(), dtype=dtype, device=device)

    def get_bboxes(self, dst_type: str = "hbox") -> np.ndarray:
        """(N, 4) float32 boxes around all points of each mask."""
        check_box_type(dst_type)
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for box, parts in zip(boxes, self.masks, strict=True):
            points = np.concatenate(parts).reshape(-1, 2)
            box[:2], box[2:] = points.min(axis=0), points.max(axis=0)
        return boxes

    def _cut(self, x: int, y: int, width: int, height: int) -> PolygonMasks:
        corner = np.array([x, y], dtype=np.float64)
        cropped = []
        for parts in self.masks:
            clipped = [clip(part, x, y, x + width, y + height) for part in parts]
            left = [(points.reshape(-1, 2) - corner).reshape(-1) for points in clipped if len(points)]
            cropped.append(left or [np.zeros(6)])
        return PolygonMasks(cropped, height, width)

    def _move(
        self, factor: tuple[float, float], shift: tuple[float, float], out_shape: tuple[int, int]
    ) -> PolygonMasks:
        """Every point (x, y) times ``factor`` plus ``shift``."""
        times, plus = np.array(factor), np.array(shift)
        moved = [[(part.reshape(-1, 2) * times + plus).reshape(-1) for part in parts] for parts in self.masks]
        return PolygonMasks(moved, *out_shape)
