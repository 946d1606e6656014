"""Rotation, scaling, shear and shift in one warp."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from detkit.registry import TRANSFORMS
from detkit.transforms.objects import clip_boxes, overlaps_image, require_probability, require_range, select_objects

__all__ = ["RandomAffine", "project_boxes"]


@TRANSFORMS.register_module()
class RandomAffine(BaseTransform):
    """Rotate, scale, shear and shift the image at random, as YOLOX does after Mosaic.

    A box becomes the upright box around its four moved corners. Boxes that leave the image are dropped. Masks and a
    segmentation map move along, which they do not in MMDetection.

    Args:
        max_rotate_degree: Largest rotation, in either direction.
        max_translate_ratio: Largest shift, of the new width and height, in [0, 1].
        scaling_ratio_range: Factors, larger than 0.
        max_shear_degree: Largest shear along each axis.
        border: Pixels (x, y) added at each side of the new image; negative ones cut it, as after Mosaic.
        border_val: Value of new pixels, per channel.
        bbox_clip_border: Cut boxes at the border of the new image.

    Raises:
        ValueError: A range that is none, or a border that leaves nothing of the image.
    """

    def __init__(
        self,
        max_rotate_degree: float = 10.0,
        max_translate_ratio: float = 0.1,
        scaling_ratio_range: Sequence[float] = (0.5, 1.5),
        max_shear_degree: float = 2.0,
        border: Sequence[int] = (0, 0),
        border_val: Sequence[float] = (114, 114, 114),
        bbox_clip_border: bool = True,
    ) -> None:
        self.max_rotate_degree = max_rotate_degree
        self.max_translate_ratio = require_probability("max_translate_ratio", max_translate_ratio)
        self.scaling_ratio_range = require_range("scaling_ratio_range", scaling_ratio_range, least=0)
        self.max_shear_degree = max_shear_degree
        self.border = tuple(border)
        self.border_val = tuple(border_val)
        self.bbox_clip_border = bbox_clip_border

    def transform(self, results: dict) -> dict:
        """Draw a warp and apply it."""
        img = results["img"]
        height, width = img.shape[0] + 2 * self.border[1], img.shape[1] + 2 * self.border[0]
        if min(height, width) <= 0:
            raise ValueError(f"border: {self.border} leaves nothing of an image of {img.shape[1]} x {img.shape[0]}")
        warp = self._draw(height, width)
        results["img"] = cv2.warpPerspective(img, warp, (width, height), borderValue=self.border_val)
        results["img_shape"] = (height, width)
        boxes = project_boxes(results["gt_bboxes"], warp)
        results["gt_bboxes"] = clip_boxes(boxes, (height, width)) if self.bbox_clip_border else boxes
        if results.get("gt_masks") is not None:
            results["gt_masks"] = results["gt_masks"].project(warp, (height, width))
        if results.get("gt_seg_map") is not None:
            results["gt_seg_map"] = cv2.warpPerspective(
                results["gt_seg_map"], warp, (width, height), flags=cv2.INTER_NEAREST, borderValue=255
            )
        select_objects(results, overlaps_image(results["gt_bboxes"], (height, width)))
        return results

    @cache_randomness
    def _draw(self, height: int, width: int) -> np.ndarray:
        """(3, 3): from pixels of the image to those of the new one."""
        angle = math.radians(np.random.uniform(-self.max_rotate_degree, self.max_rotate_degree))
        scale = np.random.uniform(*self.scaling_ratio_range)
        shear = [
            math.tan(math.radians(np.random.uniform(-self.max_shear_degree, self.max_shear_degree))) for _ in range(2)
        ]
        shift = [
            np.random.uniform(-self.max_translate_ratio, self.max_translate_ratio) * side for side in (width, height)
        ]
        steps = (
            [[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]],
            [[1, shear[0], 0], [shear[1], 1, 0], [0, 0, 1]],
            [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]],
            [[scale, 0, 0], [0, scale, 0], [0, 0, 1]],
        )
        return np.linalg.multi_dot([np.array(step, dtype=np.float32) for step in steps])


def project_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The upright boxes (G, 4) around boxes (G, 4) moved by a homography (3, 3)."""
    corners = np.ones((len(boxes), 4, 3), dtype=np.float32)
    corners[..., :2] = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    moved = corners @ matrix.T.astype(np.float32)
    moved = moved[..., :2] / moved[..., 2:]
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1).astype(np.float32)
