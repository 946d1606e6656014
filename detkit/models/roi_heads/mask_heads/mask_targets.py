"""What masks of RoIs learn (Mask R-CNN, https://arxiv.org/abs/1703.06870): their objects' masks, cut to the RoIs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as rle_tools
from torch import Tensor

from detkit.models.roi_heads.mask_heads.mask_windows import clipped_boxes, images_of, mask_windows
from detkit.models.roi_heads.sampling import PositiveRoIs
from detkit.ops.roi_align import roi_align
from detkit.ops.upload import upload
from detkit.structures.masks import BitmapMasks, PolygonMasks

__all__ = ["Masks", "mask_targets"]

Masks = Sequence[BitmapMasks] | Sequence[PolygonMasks]


@torch.no_grad()
def mask_targets(positives: PositiveRoIs, batch_masks: Masks, mask_size: int | Sequence[int]) -> Tensor:
    """Targets (K, h, w) float32, zeros and ones, of the positive RoIs of a batch.

    Bitmaps are cut on the device, a cell is of the object where RoIAlign averages one half or more; polygons are
    moved to the RoI and rasterised on the host. Neither waits for the device.

    Args:
        positives: Of N images.
        batch_masks: Of N images, all bitmaps or all polygons.
        mask_size: (h, w), or a number for both.

    Raises:
        TypeError: Masks that are neither.
    """
    size = (mask_size, mask_size) if isinstance(mask_size, int) else (mask_size[0], mask_size[1])
    bitmaps = [masks for masks in batch_masks if isinstance(masks, BitmapMasks)]
    if len(bitmaps) == len(batch_masks):
        return _of_bitmaps(positives, bitmaps, size)
    polygons = [masks for masks in batch_masks if isinstance(masks, PolygonMasks)]
    if len(polygons) == len(batch_masks):
        return _of_polygons(positives, polygons, size)
    kinds = ", ".join(sorted({type(masks).__name__ for masks in batch_masks}))
    raise TypeError(f"mask_targets: BitmapMasks or PolygonMasks of all images were expected, got {kinds}")


def _of_bitmaps(positives: PositiveRoIs, batch_masks: Sequence[BitmapMasks], size: tuple[int, int]) -> Tensor:
    boxes = upload(clipped_boxes(positives, batch_masks), positives.rois.device)
    targets = boxes.new_zeros(len(boxes), *size)
    for windows in mask_windows(positives, batch_masks):
        inside = boxes[windows.rows] - windows.corner.repeat(1, 2)
        rois = torch.cat([windows.which.unsqueeze(1).to(inside.dtype), inside], dim=1)
        cells = roi_align(windows.masks.unsqueeze(1).float(), rois, size)
        targets[windows.rows] = (cells.squeeze(1) >= 0.5).float()
    return targets


def _of_polygons(positives: PositiveRoIs, batch_masks: Sequence[PolygonMasks], size: tuple[int, int]) -> Tensor:
    """All polygons of all RoIs at once: one move, one rasterisation, one union."""
    boxes = clipped_boxes(positives, batch_masks).astype(np.float64)
    if len(boxes) == 0:
        return positives.rois.new_zeros(0, *size)
    objects = [
        # Nothing is drawn of an object without polygons.
        batch_masks[image].masks[index] or [np.zeros(6)]
        for image, index in zip(images_of(positives), positives.host_gt_index, strict=True)
    ]
    parts = [part for of_roi in objects for part in of_roi]
    num_points = [len(part) // 2 for part in parts]
    num_parts = np.array([len(of_roi) for of_roi in objects])
    roi_of_point = np.repeat(np.repeat(np.arange(len(boxes)), num_parts), num_points)
    # A box of less than a pixel would blow the polygon up without bound.
    factor = np.array(size[::-1]) / np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    points = (np.concatenate(parts).reshape(-1, 2) - boxes[roi_of_point, :2]) * factor[roi_of_point]
    moved = np.split(points.reshape(-1), 2 * np.cumsum(num_points)[:-1])
    drawn = rle_tools.decode(rle_tools.frPyObjects(moved, *size))  # (h, w, all parts)
    joined = np.maximum.reduceat(drawn, np.cumsum(num_parts) - num_parts, axis=2)
    return upload(joined.transpose(2, 0, 1), positives.rois.device).float()
