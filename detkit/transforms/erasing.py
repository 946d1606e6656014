"""RandomErasing: rectangles of an image made invisible, and the objects under them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from detkit.registry import TRANSFORMS
from detkit.structures.masks import BitmapMasks
from detkit.transforms.objects import require_range, select_objects

__all__ = ["RandomErasing"]


@TRANSFORMS.register_module()
class RandomErasing(BaseTransform):
    """Erase rectangles at random places, https://arxiv.org/abs/1708.04896; objects mostly erased are dropped.

    Masks lose their erased pixels, boxes stay as they are.

    Args:
        n_patches: How many rectangles, or (least, most).
        ratio: Their sides as parts of the image's, in [0, 1), or (least, most).
        squared: One part for both sides.
        bbox_erased_thr: Objects with at least this part of their box erased are dropped; overlapping rectangles count
            twice.
        img_border_value: Value of erased pixels, or one per channel.
        mask_border_value: The same in masks.
        seg_ignore_label: The same in segmentation maps.

    Raises:
        ValueError: Numbers or parts that are none; polygon masks, which have no pixels to erase.
    """

    def __init__(
        self,
        n_patches: int | Sequence[int],
        ratio: float | Sequence[float],
        squared: bool = True,
        bbox_erased_thr: float = 0.9,
        img_border_value: float | Sequence[float] = 128,
        mask_border_value: int = 0,
        seg_ignore_label: int = 255,
    ) -> None:
        number = (n_patches, n_patches) if isinstance(n_patches, int) else n_patches
        part = (ratio, ratio) if isinstance(ratio, (int, float)) else ratio
        self.n_patches = require_range("n_patches", number, least=-1)
        self.ratio = require_range("ratio", part, least=-1)
        if not 0 <= self.ratio[0] <= self.ratio[1] < 1:
            raise ValueError(f"ratio: parts in [0, 1) were expected, got {ratio!r}")
        self.squared = squared
        self.bbox_erased_thr = bbox_erased_thr
        self.img_border_value = img_border_value
        self.mask_border_value = mask_border_value
        self.seg_ignore_label = seg_ignore_label

    @cache_randomness
    def _draw(self, height: int, width: int) -> np.ndarray:
        """(P, 4) rectangles, xyxy in whole pixels."""
        low, high = self.ratio
        patches = np.zeros((np.random.randint(int(self.n_patches[0]), int(self.n_patches[1]) + 1), 4), dtype=np.int64)
        for patch in patches:
            down = across = np.random.random() * (high - low) + low
            if not self.squared:
                across = np.random.random() * (high - low) + low
            down, across = int(height * down), int(width * across)
            left, top = np.random.randint(0, width - across), np.random.randint(0, height - down)
            patch[:] = left, top, left + across, top + down
        return patches

    def transform(self, results: dict) -> dict:
        """Draw rectangles and erase what is there."""
        patches = self._draw(*results["img"].shape[:2])
        results["img"] = _erased(results["img"], patches, self.img_border_value)
        if results.get("gt_bboxes") is not None:
            boxes = results["gt_bboxes"]
            common = np.minimum(boxes[:, None, 2:], patches[:, 2:]) - np.maximum(boxes[:, None, :2], patches[:, :2])
            erased = common.clip(0).prod(axis=-1).sum(axis=1)
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
            select_objects(results, erased / (areas + 1e-7) < self.bbox_erased_thr)
        masks = results.get("gt_masks")
        if masks is not None:
            if not isinstance(masks, BitmapMasks):
                raise ValueError("RandomErasing: bitmap masks were expected; set poly2mask=True of LoadAnnotations")
            pixels = _erased(masks.masks.transpose(1, 2, 0), patches, self.mask_border_value).transpose(2, 0, 1)
            results["gt_masks"] = BitmapMasks(pixels, masks.height, masks.width)
        if results.get("gt_seg_map") is not None:
            results["gt_seg_map"] = _erased(results["gt_seg_map"], patches, self.seg_ignore_label)
        return results


def _erased(pixels: np.ndarray, patches: np.ndarray, value: float | Sequence[float]) -> np.ndarray:
    pixels = pixels.copy()
    for left, top, right, bottom in patches:
        pixels[top:bottom, left:right] = value
    return pixels
