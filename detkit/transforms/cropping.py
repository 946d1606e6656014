"""Parts of an image, with what is left in them of its objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from detkit.registry import TRANSFORMS
from detkit.transforms.objects import centers_inside, clip_boxes, overlaps_image, select_objects

__all__ = ["MinIoURandomCrop", "RandomCrop"]

_CROP_TYPES = ("absolute", "absolute_range", "relative", "relative_range")


@TRANSFORMS.register_module()
class RandomCrop(BaseTransform):
    """Cut out a part at a random place.

    Changes ``img``, ``img_shape``, all fields of objects, ``gt_seg_map``. Objects that the part does not touch are
    dropped; where no object is left the step returns None, so that the dataset takes another image.

    Args:
        crop_size: Size (width, height), or what ``crop_type`` makes of it.
        crop_type: ``absolute``: pixels, the image's own size where that is smaller. ``absolute_range``: height and
            width are drawn between the two numbers. ``relative``: parts of the image's size, in (0, 1].
            ``relative_range``: such parts are drawn between them and 1, the first for the height.
        allow_negative_crop: Return a part without an object too.
        recompute_bbox: Make boxes anew from the cropped masks.
        bbox_clip_border: Cut boxes at the border of the part.

    Raises:
        ValueError: An unknown ``crop_type`` or a ``crop_size`` that does not fit it.
    """

    def __init__(
        self,
        crop_size: Sequence[float],
        crop_type: str = "absolute",
        allow_negative_crop: bool = False,
        recompute_bbox: bool = False,
        bbox_clip_border: bool = True,
    ) -> None:
        if crop_type not in _CROP_TYPES:
            raise ValueError(f"crop_type: one of {', '.join(_CROP_TYPES)} was expected, got {crop_type!r}")
        size = tuple(crop_size) if isinstance(crop_size, Sequence) else ()
        whole = crop_type.startswith("absolute")
        fits = len(size) == 2 and all(isinstance(side, int) and side > 0 if whole else 0 < side <= 1 for side in size)
        if not fits or (crop_type == "absolute_range" and size[0] > size[1]):
            kind = "two whole positive numbers" if whole else "two numbers in (0, 1]"
            kind += ", the smaller first" if crop_type == "absolute_range" else ""
            raise ValueError(f"crop_size: {kind} were expected with crop_type={crop_type!r}, got {crop_size!r}")
        self.crop_size = size
        self.crop_type = crop_type
        self.allow_negative_crop = allow_negative_crop
        self.recompute_bbox = recompute_bbox
        self.bbox_clip_border = bbox_clip_border

    @cache_randomness
    def _draw_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the part."""
        first, second = self.crop_size
        if self.crop_type == "absolute":
            return min(int(second), height), min(int(first), width)
        if self.crop_type == "absolute_range":
            low, high = int(first), int(second)
            down, across = (int(np.random.randint(min(s, low), min(s, high) + 1)) for s in (height, width))
            return down, across
        if self.crop_type == "relative":
            return int(height * second + 0.5), int(width * first + 0.5)
        least = np.asarray(self.crop_size, dtype=np.float32)
        parts = least + np.random.rand(2) * (1 - least)
        return int(height * parts[0] + 0.5), int(width * parts[1] + 0.5)

    @cache_randomness
    def _draw_offset(self, margin_y: int, margin_x: int) -> tuple[int, int]:
        """(top, left) of the part."""
        return int(np.random.randint(0, margin_y + 1)), int(np.random.randint(0, margin_x + 1))

    def transform(self, results: dict) -> dict | None:
        """Draw the part and cut it out."""
        height, width = results["img"].shape[:2]
        down, across = (max(side, 1) for side in self._draw_size(height, width))
        top, left = self._draw_offset(max(height - down, 0), max(width - across, 0))
        patch = np.array([left, top, left + across, top + down])
        if results.get("gt_bboxes") is not None:
            boxes = results["gt_bboxes"] - np.array([left, top, left, top], dtype=np.float32)
            boxes = clip_boxes(boxes, (down, across)) if self.bbox_clip_border else boxes
            inside = overlaps_image(boxes, (down, across))
            if not inside.any() and not self.allow_negative_crop:
                return None
            results["gt_bboxes"] = boxes
            select_objects(results, inside)
        _cut(results, patch)
        if self.recompute_bbox and results.get("gt_masks") is not None:
            results["gt_bboxes"] = results["gt_masks"].get_bboxes()
        return results


@TRANSFORMS.register_module()
class MinIoURandomCrop(BaseTransform):
    """Cut out a part that has at least a drawn IoU with every object, as in SSD, https://arxiv.org/abs/1512.02325.

    With equal chance the image stays as it is, the part is any, or it has one of ``min_ious``; a threshold that 50
    attempts do not meet is drawn anew. Objects whose centre is not in the part are dropped; of an image with objects
    at least one stays. Ignored ones count as well.

    Args:
        min_ious: Thresholds, in (0, 1).
        min_crop_size: Least width and height of the part, of the image's, in (0, 1].
        bbox_clip_border: Cut boxes at the border of the part.

    Raises:
        ValueError: Thresholds or a size out of range.
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        bbox_clip_border: bool = True,
    ) -> None:
        if not all(0 < iou < 1 for iou in min_ious):
            raise ValueError(f"min_ious: thresholds between 0 and 1 were expected, got {min_ious!r}")
        if not 0 < min_crop_size <= 1:
            raise ValueError(f"min_crop_size: a number in (0, 1] was expected, got {min_crop_size!r}")
        self.min_ious = tuple(min_ious)
        self.min_crop_size = min_crop_size
        self.bbox_clip_border = bbox_clip_border
        self._modes = (1, *self.min_ious, 0)  # 1: as it is, 0: any part

    def transform(self, results: dict) -> dict:
        """Draw the part and cut it out."""
        patch = self._draw_patch(results["img"].shape[:2], results["gt_bboxes"])
        if patch is None:
            return results
        boxes = results["gt_bboxes"]
        inside = centers_inside(boxes, patch)
        boxes = boxes - np.concatenate([patch[:2], patch[:2]]).astype(np.float32)
        results["gt_bboxes"] = (
            clip_boxes(boxes, (patch[3] - patch[1], patch[2] - patch[0])) if (self.bbox_clip_border) else boxes
        )
        select_objects(results, inside)
        _cut(results, patch)
        return results

    @cache_randomness
    def _draw_patch(self, shape: tuple[int, int], boxes: np.ndarray) -> np.ndarray | None:
        """The part, xyxy in whole pixels, or None for all of the image."""
        while True:  # ends, since each round draws the whole image with some probability
            mode = np.random.choice(self._modes)
            if mode == 1:
                return None
            for _ in range(50):
                patch = self._attempt(*shape)
                if patch is None:
                    continue
                if len(boxes) == 0 or (_ious(patch, boxes).min() >= mode and centers_inside(boxes, patch).any()):
                    return patch

    def _attempt(self, height: int, width: int) -> np.ndarray | None:
        across = np.random.uniform(self.min_crop_size * width, width)
        down = np.random.uniform(self.min_crop_size * height, height)
        if not 0.5 <= down / across <= 2:
            return None
        left = np.random.uniform(width - across)
        top = np.random.uniform(height - down)
        patch = np.array([int(left), int(top), int(left + across), int(top + down)])
        return None if patch[2] == patch[0] or patch[3] == patch[1] else patch


def _cut(results: dict, patch: np.ndarray) -> None:
    """Cut ``patch`` out of what has pixels: image, masks, segmentation map."""
    left, top, right, bottom = patch
    results["img"] = results["img"][top:bottom, left:right]
    results["img_shape"] = results["img"].shape[:2]
    if results.get("gt_masks") is not None:
        results["gt_masks"] = results["gt_masks"].crop(patch)
    if results.get("gt_seg_map") is not None:
        results["gt_seg_map"] = results["gt_seg_map"][top:bottom, left:right]


def _ious(patch: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(G,) IoU of a patch with boxes (G, 4)."""
    common = np.minimum(patch[2:], boxes[:, 2:]) - np.maximum(patch[:2], boxes[:, :2])
    overlap = common.clip(0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (patch[2:] - patch[:2]).prod()
    return overlap / np.maximum(areas - overlap, 1e-6)
