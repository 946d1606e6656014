"""What a step needs of its bitmaps: the parts around its RoIs, packed on the host and uploaded as bytes.

A hundred masks of 800 x 1344 pixels are 107 MB, and 430 MB as floats. Their objects cover little of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detkit.models.roi_heads.sampling import PositiveRoIs
from detkit.ops.upload import upload
from detkit.structures.masks import BitmapMasks, PolygonMasks

__all__ = ["MaskWindows", "clipped_boxes", "images_of", "mask_windows"]

# Pixels of the windows that are processed at once: 32 MB as float32.
CHUNK_PIXELS = 2**23
# Windows of less than this share of a chunk's largest go to another chunk, as all are padded to one size.
LEAST_SHARE = 0.25
LEAST_PIXELS = 64 * 64


class MaskWindows(NamedTuple):
    """Windows of M objects' masks, padded to one size, and the k RoIs that look at them.

    Attributes:
        masks: (M, h, w) uint8.
        rows: (k,) int64, which of the K RoIs of the batch.
        which: (k,) int64, which of the M windows each looks at.
        corner: (k, 2) float32, x and y in the image of the window's first pixel.
    """

    masks: Tensor
    rows: Tensor
    which: Tensor
    corner: Tensor


def images_of(positives: PositiveRoIs) -> NDArray[np.int64]:
    """Image (K,) of each RoI."""
    return np.repeat(np.arange(len(positives.counts)), positives.counts)


def clipped_boxes(positives: PositiveRoIs, batch_masks: Sequence[BitmapMasks | PolygonMasks]) -> NDArray[np.float32]:
    """Boxes (K, 4) on the host, clipped to their masks."""
    sizes = np.array([(masks.width, masks.height) * 2 for masks in batch_masks], dtype=np.float32)
    return positives.host_boxes.clip(0, sizes.reshape(-1, 4)[images_of(positives)])


def mask_windows(
    positives: PositiveRoIs, batch_masks: Sequence[BitmapMasks], replicate: bool = True
) -> Iterator[MaskWindows]:
    """The windows of all objects that a RoI looks at, one pixel larger than these RoIs on each side.

    Args:
        positives: Of N images.
        batch_masks: Of N images.
        replicate: Repeat the outermost pixels of an image beyond it, as RoIAlign does, or have zeros there, as
            sampling of points does.
    """
    if len(positives.host_boxes) == 0:
        return
    device = positives.rois.device
    starts = np.cumsum([0, *(len(masks) for masks in batch_masks)])
    objects, of_roi = np.unique(starts[images_of(positives)] + positives.host_gt_index, return_inverse=True)
    boxes = clipped_boxes(positives, batch_masks)
    low = np.full((len(objects), 2), np.inf)
    high = np.full((len(objects), 2), -np.inf)
    np.minimum.at(low, of_roi, np.floor(boxes[:, :2]) - 1)
    np.maximum.at(high, of_roi, np.ceil(boxes[:, 2:]) + 1)
    corners, sizes = low.astype(np.int64), (high - low).astype(np.int64)  # x and y, width and height
    for members in _chunks(sizes):
        width, height = sizes[members].max(axis=0)
        packed = np.zeros((len(members), height, width), dtype=np.uint8)
        for window, member in zip(packed, members, strict=True):
            image = np.searchsorted(starts, objects[member], side="right") - 1
            mask = batch_masks[image].masks[objects[member] - starts[image]]
            _fill(window, mask, corners[member], sizes[member], replicate)
        place = np.full(len(objects), -1)
        place[members] = np.arange(len(members))
        rows = np.flatnonzero(place[of_roi] >= 0)
        yield MaskWindows(
            masks=upload(packed, device),
            rows=upload(rows, device),
            which=upload(place[of_roi[rows]], device),
            corner=upload(corners[of_roi[rows]].astype(np.float32), device),
        )


def _chunks(sizes: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Objects by their windows (M, 2), large to small, such that those of a chunk are of like size, and few."""
    areas = sizes.prod(axis=1)
    order = (-areas).argsort(kind="stable")
    start, largest = 0, np.zeros(2, dtype=np.int64)
    for number, member in enumerate(order):
        grown = np.maximum(largest, sizes[member])
        is_small = max(areas[member], LEAST_PIXELS) < LEAST_SHARE * areas[order[start]]
        if number > start and (is_small or grown.prod() * (number + 1 - start) > CHUNK_PIXELS):
            yield order[start:number]
            start, grown = number, sizes[member]
        largest = grown
    yield order[start:]


def _fill(window: NDArray, mask: NDArray, corner: NDArray, size: NDArray, replicate: bool) -> None:
    """Copy a window of a mask (H, W) into the first pixels of ``window``."""
    (x, y), (width, height) = corner, size
    part = mask[max(y, 0) : y + height, max(x, 0) : x + width]
    top, left = max(-y, 0), max(-x, 0)
    bottom, right = top + part.shape[0], left + part.shape[1]
    window[top:bottom, left:right] = part
    if replicate:
        window[:top] = window[top]
        window[bottom:height] = window[bottom - 1]
        window[:, :left] = window[:, left : left + 1]
        window[:, right:width] = window[:, right - 1 : right]
