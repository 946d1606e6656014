"""Instance masks of one image, as bitmaps or as polygons, with the operations of a data pipeline.

Both classes have MMDetection's names and arguments. They are values: every operation gives new masks.
Sizes are (height, width); coordinates are pixels, x to the right and y down, without a ``+ 1``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmcv.image.geometric import cv2_interp_codes
from pycocotools import mask as rle_tools
from torch import Tensor

from detkit.structures import polygons as polygon_ops

__all__ = ["BitmapMasks", "PolygonMasks"]

# cv2.flip's axes of an (N, H, W) array for each direction.
_FLIP_AXES = {"horizontal": (2,), "vertical": (1,), "diagonal": (1, 2)}
_DIRECTIONS = ("horizontal", "vertical")


class BitmapMasks:
    """Masks as a uint8 array.

    Args:
        masks: (N, H, W) array of zeros and ones, or a list of N (H, W) arrays.
        height: H.
        width: W.

    Attributes:
        masks: (N, H, W) array.

    Raises:
        ValueError: The masks are not of ``height`` x ``width``.
    """

    def __init__(self, masks: np.ndarray | Sequence[np.ndarray], height: int, width: int) -> None:
        self.height = int(height)
        self.width = int(width)
        self.masks: np.ndarray = np.zeros((0, self.height, self.width), dtype=np.uint8)
        if len(masks):
            self.masks = np.stack(list(masks)) if isinstance(masks, Sequence) else masks
        if self.masks.ndim != 3 or self.masks.shape[1:] != (self.height, self.width):
            raise ValueError(
                f"masks of {self.height} x {self.width} (height x width) were expected, got shape {self.masks.shape}"
            )

    @classmethod
    def cat(cls, masks: Sequence[BitmapMasks]) -> BitmapMasks:
        """Join masks of the same image size."""
        if not masks:
            raise ValueError("cat: at least one BitmapMasks was expected, got none")
        first = masks[0]
        return cls(np.concatenate([part.masks for part in masks]), first.height, first.width)

    def __len__(self) -> int:
        return len(self.masks)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.masks)

    def __getitem__(self, index: Any) -> BitmapMasks:
        """The masks at an index, a slice, a list, or a boolean array; always masks, also for one index."""
        return BitmapMasks(self.masks[_index(index, len(self))], self.height, self.width)

    def __repr__(self) -> str:
        return f"BitmapMasks({len(self)} masks of {self.height} x {self.width})"

    @property
    def areas(self) -> np.ndarray:
        """(N,) number of pixels of each mask."""
        return self.masks.sum((1, 2))

    def rescale(self, scale: float | tuple[int, int], interpolation: str = "nearest") -> BitmapMasks:
        """Resize by a factor, or as large as fits into two side lengths, keeping the aspect ratio."""
        width, height = mmcv.rescale_size((self.width, self.height), scale)
        return self.resize((height, width), interpolation)

    def resize(self, out_shape: tuple[int, int], interpolation: str = "nearest") -> BitmapMasks:
        """Resize to (height, width)."""
        height, width = out_shape
        code = cv2_interp_codes[interpolation]
        return BitmapMasks(
            [cv2.resize(mask, (width, height), interpolation=code) for mask in self.masks], height, width
        )

    def flip(self, flip_direction: str = "horizontal") -> BitmapMasks:
        """Mirror ``horizontal``, ``vertical`` or ``diagonal`` (both)."""
        _check_direction(flip_direction, _FLIP_AXES)
        return BitmapMasks(np.flip(self.masks, _FLIP_AXES[flip_direction]), self.height, self.width)

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> BitmapMasks:
        """Pad at the right and the bottom to (height, width)."""
        height, width = out_shape
        _check_grows((self.height, self.width), out_shape)
        padded = np.full((len(self), height, width), pad_val, dtype=self.masks.dtype)
        padded[:, : self.height, : self.width] = self.masks
        return BitmapMasks(padded, height, width)

    def crop(self, bbox: np.ndarray) -> BitmapMasks:
        """Cut out the window ``bbox`` (4,), at least one pixel large."""
        x, y, width, height = _window(bbox, self.height, self.width)
        return BitmapMasks(self.masks[:, y : y + height, x : x + width], height, width)

    def crop_and_resize(
        self,
        bboxes: np.ndarray | Tensor,
        out_shape: tuple[int, int],
        inds: np.ndarray | Tensor,
        device: str | torch.device = "cpu",
        interpolation: str = "bilinear",
        binarize: bool = True,
    ) -> BitmapMasks:
        """Mask targets: mask ``inds[k]`` within box ``k``, resized, as RoIAlign (aligned, adaptive) samples it.

        Args:
            bboxes: (K, 4) boxes.
            out_shape: (height, width) of each result.
            inds: (K,) which mask each box looks at.
            device: Where it is computed.
            interpolation: ``bilinear``, the only one.
            binarize: Threshold at one half.

        Returns:
            K masks; bool, or float32 without ``binarize``.
        """
        if interpolation != "bilinear":
            raise ValueError(f"interpolation: 'bilinear' was expected, got {interpolation!r}")
        height, width = out_shape
        boxes = torch.as_tensor(bboxes, dtype=torch.float32, device=device)
        if len(boxes) == 0:
            return BitmapMasks([], height, width)
        masks = torch.from_numpy(np.ascontiguousarray(self.masks)).to(device)
        masks = masks[torch.as_tensor(inds, dtype=torch.int64, device=device)].float()
        rows = _roi_weights(boxes[:, 1], boxes[:, 3], height, self.height)
        columns = _roi_weights(boxes[:, 0], boxes[:, 2], width, self.width)
        targets = rows @ masks @ columns.transpose(1, 2)  # (K, height, width)
        return BitmapMasks((targets >= 0.5 if binarize else targets).cpu().numpy(), height, width)

    def expand(self, expanded_h: int, expanded_w: int, top: int, left: int) -> BitmapMasks:
        """Put the masks onto a larger canvas at row ``top``, column ``left``."""
        canvas = np.zeros((len(self), expanded_h, expanded_w), dtype=self.masks.dtype)
        canvas[:, top : top + self.height, left : left + self.width] = self.masks
        return BitmapMasks(canvas, expanded_h, expanded_w)

    def translate(
        self,
        out_shape: tuple[int, int],
        offset: float,
        direction: str = "horizontal",
        border_value: int = 0,
        interpolation: str = "bilinear",
    ) -> BitmapMasks:
        """Shift by ``offset`` pixels ``horizontal`` or ``vertical`` onto a canvas of (height, width)."""
        _check_direction(direction, _DIRECTIONS)
        height, width = out_shape
        shift = (offset, 0) if direction == "horizontal" else (0, offset)
        matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], dtype=np.float32)
        flags = cv2_interp_codes[interpolation]
        moved = [
            cv2.warpAffine(mask, matrix, (width, height), flags=flags, borderValue=border_value) for mask in self.masks
        ]
        return BitmapMasks(moved, height, width)

    def to_bitmap(self) -> BitmapMasks:
        """These masks."""
        return self

    def to_ndarray(self) -> np.ndarray:
        """(N, H, W) array."""
        return self.masks

    def to_tensor(self, dtype: torch.dtype, device: str | torch.device) -> Tensor:
        """(N, H, W) tensor."""
        return torch.tensor(self.masks, dtype=dtype, device=device)

    def get_bboxes(self, dst_type: str = "hbox") -> np.ndarray:
        """(N, 4) float32 boxes around the masks; zeros around an empty one."""
        _check_box_type(dst_type)
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for box, mask in zip(boxes, self.masks, strict=True):
            columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
            if len(columns):
                box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return boxes


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
        chosen = np.arange(len(self))[_index(index, len(self))]
        return PolygonMasks([self.masks[i] for i in chosen], self.height, self.width)

    def __repr__(self) -> str:
        return f"PolygonMasks({len(self)} masks of {self.height} x {self.width})"

    @property
    def areas(self) -> np.ndarray:
        """(N,) area of each mask: the sum over its polygons."""
        return np.array([sum(map(polygon_ops.area, parts)) for parts in self.masks])

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
        _check_direction(flip_direction, _FLIP_AXES)
        x = (-1, self.width) if flip_direction != "vertical" else (1, 0)
        y = (-1, self.height) if flip_direction != "horizontal" else (1, 0)
        return self._move((x[0], y[0]), (x[1], y[1]), (self.height, self.width))

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> PolygonMasks:
        """Pad at the right and the bottom to (height, width); only 0 can be padded with."""
        _check_grows((self.height, self.width), out_shape)
        return PolygonMasks(self.masks, *out_shape)

    def crop(self, bbox: np.ndarray) -> PolygonMasks:
        """Cut out the window ``bbox`` (4,), at least one pixel large.

        Nothing left of an object makes it one polygon without area, so that masks and boxes stay aligned.
        """
        x, y, width, height = _window(bbox, self.height, self.width)
        corner = np.array([x, y], dtype=np.float64)
        cropped = []
        for parts in self.masks:
            clipped = [polygon_ops.clip(part, x, y, x + width, y + height) for part in parts]
            left = [(points.reshape(-1, 2) - corner).reshape(-1) for points in clipped if len(points)]
            cropped.append(left or [np.zeros(6)])
        return PolygonMasks(cropped, height, width)

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
        _check_direction(direction, _DIRECTIONS)
        if border_value != 0:
            raise ValueError(f"border_value: polygons can only be moved over 0, got {border_value}")
        moved = self._move((1, 1), (offset, 0) if direction == "horizontal" else (0, offset), out_shape)
        limit = np.array([out_shape[1], out_shape[0]])
        clipped = [[part.reshape(-1, 2).clip(0, limit).reshape(-1) for part in parts] for parts in moved.masks]
        return PolygonMasks(clipped, *out_shape)

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
        _check_box_type(dst_type)
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for box, parts in zip(boxes, self.masks, strict=True):
            points = np.concatenate(parts).reshape(-1, 2)
            box[:2], box[2:] = points.min(axis=0), points.max(axis=0)
        return boxes

    def _move(
        self, factor: tuple[float, float], shift: tuple[float, float], out_shape: tuple[int, int]
    ) -> PolygonMasks:
        """Every point (x, y) times ``factor`` plus ``shift``."""
        times, plus = np.array(factor), np.array(shift)
        moved = [[(part.reshape(-1, 2) * times + plus).reshape(-1) for part in parts] for parts in self.masks]
        return PolygonMasks(moved, *out_shape)


def _roi_weights(start: Tensor, end: Tensor, cells: int, size: int) -> Tensor:
    """How RoIAlign weighs the pixels of one axis: (K, cells, size), for intervals [start, end) of K boxes.

    Each cell averages ``ceil(length / cells)`` bilinear samples. RoIAlign is separable, so that rows @ mask
    @ columns is its result: https://arxiv.org/abs/1703.06870 with the half-pixel shift of ``aligned=True``.
    """
    start = start - 0.5
    step = (end - 0.5 - start) / cells
    count = step.ceil().clamp(min=1)
    # Up to the largest count of samples for every box; those beyond its own weigh nothing.
    sample = torch.arange(int(count.max()), device=start.device)
    cell = torch.arange(cells, device=start.device)
    at = start[:, None, None] + step[:, None, None] * (
        cell[:, None] + (sample + 0.5) / count[:, None, None]
    )  # (K, cells, samples)
    weight = ((at >= -1) & (at <= size) & (sample < count[:, None, None])) / count[:, None, None]
    at = at.clamp(0, size - 1)
    low = at.floor()
    weights = start.new_zeros(len(start), cells, size)
    weights.scatter_add_(2, low.long(), weight * (1 - at + low))
    weights.scatter_add_(2, (low.long() + 1).clamp(max=size - 1), weight * (at - low))
    return weights


def _index(index: Any, count: int) -> np.ndarray | slice | list[int]:
    """Any index as one that keeps the first dimension."""
    if isinstance(index, slice):
        return index
    if isinstance(index, Tensor):
        index = index.cpu().numpy()
    index = np.atleast_1d(np.asarray(index))
    if index.dtype == bool and len(index) != count:
        raise IndexError(f"a boolean index of {count} was expected, got {len(index)}")
    return index if index.size else index.astype(np.int64)


def _window(bbox: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Integer x, y, width and height of a box clipped to the image, at least one pixel large."""
    box = np.asarray(bbox)
    if box.shape != (4,):
        raise ValueError(f"crop: one box (4,) was expected, got shape {box.shape}")
    x1, y1, x2, y2 = (int(value) for value in box.clip(0, [width, height, width, height]))
    return x1, y1, max(x2 - x1, 1), max(y2 - y1, 1)


def _check_direction(direction: str, known: Any) -> None:
    if direction not in known:
        raise ValueError(f"direction: one of {', '.join(known)} was expected, got {direction!r}")


def _check_grows(shape: tuple[int, int], out_shape: tuple[int, int]) -> None:
    if out_shape[0] < shape[0] or out_shape[1] < shape[1]:
        raise ValueError(f"pad: a size (height, width) of at least {shape} was expected, got {tuple(out_shape)}")


def _check_box_type(dst_type: str) -> None:
    if dst_type != "hbox":
        raise ValueError(f"dst_type: 'hbox' was expected, got {dst_type!r}")
