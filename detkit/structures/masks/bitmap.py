"""Masks as arrays of pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmcv.image.geometric import cv2_interp_codes
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

__all__ = ["BitmapMasks"]


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
        return BitmapMasks(self.masks[whole_index(index, len(self))], self.height, self.width)

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
        check_direction(flip_direction, FLIP_AXES)
        return BitmapMasks(np.flip(self.masks, FLIP_AXES[flip_direction]), self.height, self.width)

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> BitmapMasks:
        """Pad at the right and the bottom to (height, width)."""
        height, width = out_shape
        check_grows((self.height, self.width), out_shape)
        padded = np.full((len(self), height, width), pad_val, dtype=self.masks.dtype)
        padded[:, : self.height, : self.width] = self.masks
        return BitmapMasks(padded, height, width)

    def crop(self, bbox: np.ndarray) -> BitmapMasks:
        """Cut out the window ``bbox`` (4,), at least one pixel large."""
        x, y, width, height = window(bbox, self.height, self.width)
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
        check_direction(direction, DIRECTIONS)
        height, width = out_shape
        shift = (offset, 0) if direction == "horizontal" else (0, offset)
        matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], dtype=np.float32)
        flags = cv2_interp_codes[interpolation]
        moved = [
            cv2.warpAffine(mask, matrix, (width, height), flags=flags, borderValue=border_value) for mask in self.masks
        ]
        return BitmapMasks(moved, height, width)

    def project(self, matrix: np.ndarray, out_shape: tuple[int, int]) -> BitmapMasks:
        """Move by a homography (3, 3) onto a canvas of (height, width)."""
        height, width = out_shape
        moved = [
            cv2.warpPerspective(mask, matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=0)
            for mask in self.masks
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
        check_box_type(dst_type)
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for box, mask in zip(boxes, self.masks, strict=True):
            columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
            if len(columns):
                box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return boxes


def _roi_weights(start: Tensor, end: Tensor, cells: int, size: int) -> Tensor:
    """How RoIAlign weighs the pixels of one axis: (K, cells, size), for intervals [start, end) of K boxes.

    Each cell averages ``ceil(length / cells)`` bilinear samples. RoIAlign is separable, so that rows @ mask
    @ columns is its result: https://arxiv.org/abs/1703.06870 with the half-pixel shift of ``aligned=True``.
    """
    start = start - 0.5
    step = (end - 0.5 - start) / cells
    count = step.ceil().clamp(min=0)[:, None, None]  # a box without area has no samples, its cells are 0
    # As many samples as the largest box needs; those beyond a box's own weigh nothing.
    sample = torch.arange(int(count.max()), device=start.device)
    cell = torch.arange(cells, device=start.device)[:, None]
    share = 1 / count.clamp(min=1)
    at = start[:, None, None] + step[:, None, None] * (cell + (sample + 0.5) * share)  # (K, cells, samples)
    weight = ((at >= -1) & (at <= size) & (sample < count)) * share
    at = at.clamp(0, size - 1)
    low = at.floor()
    weights = start.new_zeros(len(start), cells, size)
    weights.scatter_add_(2, low.long(), weight * (1 - at + low))
    weights.scatter_add_(2, (low.long() + 1).clamp(max=size - 1), weight * (at - low))
    return weights
