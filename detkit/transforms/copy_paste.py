"""CopyPaste: objects cut out of another image by their masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from detkit.registry import TRANSFORMS
from detkit.structures.masks import BitmapMasks
from detkit.transforms.objects import OBJECT_KEYS, join_objects, select_objects

__all__ = ["CopyPaste"]


@TRANSFORMS.register_module()
class CopyPaste(BaseTransform):
    """Paste some objects of another image over this one, as in Simple Copy-Paste, https://arxiv.org/abs/2012.07177.

    Both images have one size: resize, crop and pad them before, in the dataset that MultiImageMixDataset wraps. What
    is pasted over is cut out of the masks below it, and boxes are made anew from those masks. An object stays if its
    box has hardly changed or enough of its mask is left.

    Args:
        max_num_pasted: Fewer than this are pasted.
        bbox_occluded_thr: Pixels that each side of a box may move for the object to stay whatever is left of it.
        mask_occluded_thr: An object with more visible pixels than this stays.
        selected: Draw how many objects and which; False pastes all.
        paste_by_box: Take the whole box of each object where there are no masks.

    Raises:
        ValueError: A number that is none; not one other image in ``mix_results``, or one of another size; no masks;
            an image with a segmentation map, which would not be pasted.
    """

    def __init__(
        self,
        max_num_pasted: int = 100,
        bbox_occluded_thr: int = 10,
        mask_occluded_thr: int = 300,
        selected: bool = True,
        paste_by_box: bool = False,
    ) -> None:
        if max_num_pasted < 1:
            raise ValueError(f"max_num_pasted: a number of at least 1 was expected, got {max_num_pasted!r}")
        self.max_num_pasted = max_num_pasted
        self.bbox_occluded_thr = bbox_occluded_thr
        self.mask_occluded_thr = mask_occluded_thr
        self.selected = selected
        self.paste_by_box = paste_by_box

    def get_indexes(self, dataset: Any) -> int:
        """Draw another image."""
        return int(np.random.randint(0, len(dataset)))

    def transform(self, results: dict) -> dict:
        """Draw objects of the other image and paste them."""
        other = self._other(results)
        pasted = {key: other[key] for key in OBJECT_KEYS if other.get(key) is not None}
        pasted["gt_masks"] = self._masks(other)
        below = {key: results[key] for key in OBJECT_KEYS if results.get(key) is not None}
        below["gt_masks"] = self._masks(results)
        if self.selected:
            count = len(pasted["gt_bboxes"])
            number = np.random.randint(0, min(count + 1, self.max_num_pasted))
            select_objects(pasted, np.random.choice(count, size=number, replace=False))
        if len(pasted["gt_bboxes"]) == 0:
            return results
        covered = pasted["gt_masks"].masks.any(axis=0)
        self._cover(below, covered)
        results.update(join_objects([below, pasted]))
        results["img"] = np.where(
            covered[..., None] if results["img"].ndim == 3 else covered, other["img"], results["img"]
        )
        results.pop("instances", None)  # the record of the first image alone: errors would name its annotations
        return results

    def _cover(self, below: dict[str, Any], covered: np.ndarray) -> None:
        """Cut what is ``covered`` (H, W) out of the objects; drop those of which too little is left."""
        masks: BitmapMasks = below["gt_masks"]
        visible = BitmapMasks(np.where(covered, 0, masks.masks).astype(masks.masks.dtype), masks.height, masks.width)
        boxes = visible.get_bboxes()
        same = (abs(boxes - below["gt_bboxes"]) <= self.bbox_occluded_thr).all(axis=1)
        below.update(gt_bboxes=boxes, gt_masks=visible)
        select_objects(below, same | (visible.areas > self.mask_occluded_thr))

    def _other(self, results: dict) -> dict:
        others: Sequence[dict] = results.get("mix_results") or ()
        if len(others) != 1:
            raise ValueError(
                f"CopyPaste: 1 other image was expected in 'mix_results', got {len(others)}; the step belongs into the "
                "pipeline of MultiImageMixDataset"
            )
        if results.get("gt_seg_map") is not None:
            raise ValueError("CopyPaste pastes boxes and masks, and the image has a segmentation map")
        other = others[0]
        if other["img"].shape != results["img"].shape:
            raise ValueError(
                f"CopyPaste: images of one size were expected, got {results['img'].shape} and {other['img'].shape}; "
                "put Resize, RandomCrop and Pad into the pipeline of the dataset that is mixed"
            )
        return other

    def _masks(self, results: dict) -> BitmapMasks:
        masks = results.get("gt_masks")
        if masks is not None:
            return masks.to_bitmap()
        if not self.paste_by_box:
            raise ValueError("CopyPaste: no masks; set with_mask=True of LoadAnnotations, or paste_by_box=True")
        height, width = results["img"].shape[:2]
        bitmaps = np.zeros((len(results["gt_bboxes"]), height, width), dtype=np.uint8)
        for bitmap, box in zip(bitmaps, results["gt_bboxes"].astype(np.int64), strict=True):
            x1, y1, x2, y2 = box.clip(0)
            bitmap[y1:y2, x1:x2] = 1
        return BitmapMasks(bitmaps, height, width)
