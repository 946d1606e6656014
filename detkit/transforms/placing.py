"""An image moved, or laid on a larger canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from detkit.registry import TRANSFORMS
from detkit.transforms.objects import (
    centers_inside,
    clip_boxes,
    overlaps_image,
    require_probability,
    require_range,
    select_objects,
)

__all__ = ["Expand", "RandomCenterCropPad", "RandomShift"]

_TEST_PAD_MODES = ("logical_or", "size_divisor")


@TRANSFORMS.register_module()
class Expand(BaseTransform):
    """Lay the image somewhere on a larger canvas, as in SSD, https://arxiv.org/abs/1512.02325.

    Changes ``img``, ``img_shape``, ``gt_bboxes``, ``gt_masks``, ``gt_seg_map``.

    Args:
        mean: Value of the canvas, per channel.
        to_rgb: Whether ``mean`` is RGB; images are BGR.
        ratio_range: Size of the canvas, as factors of the image's, at least 1.
        seg_ignore_label: Value of the canvas in segmentation maps; 255 where it is None.
        prob: Probability to do it.

    Raises:
        ValueError: A range or a probability that is none.
    """

    def __init__(
        self,
        mean: Sequence[float] = (0, 0, 0),
        to_rgb: bool = True,
        ratio_range: Sequence[float] = (1, 4),
        seg_ignore_label: int | None = None,
        prob: float = 0.5,
    ) -> None:
        self.ratio_range = require_range("ratio_range", ratio_range)
        if self.ratio_range[0] < 1:
            raise ValueError(f"ratio_range: factors of at least 1 were expected, got {ratio_range!r}")
        self.mean = tuple(mean)[::-1] if to_rgb else tuple(mean)
        self.seg_ignore_label = 255 if seg_ignore_label is None else seg_ignore_label
        self.prob = require_probability("prob", prob)

    @cache_randomness
    def _draw(self, height: int, width: int) -> tuple[float, int, int] | None:
        """Factor, top and left; None to leave the image."""
        if np.random.uniform(0, 1) > self.prob:
            return None
        ratio = np.random.uniform(*self.ratio_range)
        left = int(np.random.uniform(0, width * ratio - width))
        top = int(np.random.uniform(0, height * ratio - height))
        return ratio, top, left

    def transform(self, results: dict) -> dict:
        """Draw a canvas and lay the image on it."""
        img = results["img"]
        height, width = img.shape[:2]
        drawn = self._draw(height, width)
        if drawn is None:
            return results
        ratio, top, left = drawn
        shape = (int(height * ratio), int(width * ratio))
        canvas = np.empty((*shape, *img.shape[2:]), img.dtype)
        canvas[...] = np.asarray(self.mean, dtype=np.float64).astype(img.dtype) if img.ndim == 3 else self.mean[0]
        canvas[top : top + height, left : left + width] = img
        results["img"] = canvas
        results["img_shape"] = shape
        if results.get("gt_bboxes") is not None:
            results["gt_bboxes"] = results["gt_bboxes"] + np.array([left, top, left, top], dtype=np.float32)
        if results.get("gt_masks") is not None:
            results["gt_masks"] = results["gt_masks"].expand(*shape, top, left)
        if results.get("gt_seg_map") is not None:
            seg_map = np.full(shape, self.seg_ignore_label, dtype=results["gt_seg_map"].dtype)
            seg_map[top : top + height, left : left + width] = results["gt_seg_map"]
            results["gt_seg_map"] = seg_map
        return results


@TRANSFORMS.register_module()
class RandomShift(BaseTransform):
    """Move the image by some pixels, as YOLOF does; what comes in at the other side is black.

    An image of which no object would stay is left as it is.

    Args:
        prob: Probability to do it.
        max_shift_px: Largest shift in each direction, at least 0.
        filter_thr_px: Objects with at most this width or height left are dropped.

    Raises:
        ValueError: A probability that is none, or a negative shift.
    """

    def __init__(self, prob: float = 0.5, max_shift_px: int = 32, filter_thr_px: int = 1) -> None:
        self.prob = require_probability("prob", prob)
        if max_shift_px < 0:
            raise ValueError(f"max_shift_px: a number of at least 0 was expected, got {max_shift_px!r}")
        self.max_shift_px = max_shift_px
        self.filter_thr_px = int(filter_thr_px)

    @cache_randomness
    def _draw(self) -> tuple[int, int] | None:
        """Pixels to the right and down; None to leave the image."""
        if np.random.uniform(0, 1) >= self.prob:
            return None
        # With MMDetection's bounds: the largest shift is never drawn to the right or down.
        return tuple(int(np.random.randint(-self.max_shift_px, max(self.max_shift_px, 1))) for _ in range(2))  # type: ignore[return-value]

    def transform(self, results: dict) -> dict:
        """Draw a shift and move everything that is there."""
        drawn = self._draw()
        if drawn is None:
            return results
        right, down = drawn
        shape = results["img"].shape[:2]
        boxes = clip_boxes(results["gt_bboxes"] + np.array([right, down] * 2, dtype=np.float32), shape)
        keep = (boxes[:, 2:] - boxes[:, :2] > self.filter_thr_px).all(axis=1)
        if not keep.any():
            return results
        results["gt_bboxes"] = boxes
        if results.get("gt_masks") is not None:
            masks = results["gt_masks"].translate(shape, right, "horizontal")
            results["gt_masks"] = masks.translate(shape, down, "vertical")
        select_objects(results, keep)
        results["img"] = _moved(results["img"], right, down, 0)
        if results.get("gt_seg_map") is not None:
            results["gt_seg_map"] = _moved(results["gt_seg_map"], right, down, 255)
        return results


@TRANSFORMS.register_module()
class RandomCenterCropPad(BaseTransform):
    """A window of a drawn size around a drawn point of the image, padded where it reaches beyond; CornerNet's.

    Changes ``img`` (float32), ``img_shape``, all fields of objects and ``gt_seg_map``; sets ``border`` (top, bottom,
    left, right of the image in the window) in test mode. Objects whose centre is not in the window are dropped; of an
    image with objects at least one stays, if 50 windows of ten sizes have one.

    Args:
        crop_size: Size (width, height) of the window; None in test mode.
        ratios: Factors of that size to draw from; None in test mode.
        border: Distance of the point from the image's border, halved until the image has room for it; None in test
            mode.
        mean: Value of padded pixels, per channel.
        std: Accepted for MMDetection's configs, which give it beside ``mean``.
        to_rgb: Whether ``mean`` is RGB; images are BGR.
        test_mode: Pad around the whole image, nothing is drawn.
        test_pad_mode: In test mode (``logical_or``, n) pads a side s to ``s | n``, (``size_divisor``, n) to a
            multiple of n.
        test_pad_add_pix: Added to sides padded by ``logical_or``.
        bbox_clip_border: Cut boxes at the border of the window.

    Raises:
        ValueError: Arguments of the other mode, or a missing one; an image that is not float32.
    """

    def __init__(
        self,
        crop_size: Sequence[int] | None = None,
        ratios: Sequence[float] | None = (0.9, 1.0, 1.1),
        border: int | None = 128,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        to_rgb: bool | None = None,
        test_mode: bool = False,
        test_pad_mode: Sequence | None = ("logical_or", 127),
        test_pad_add_pix: int = 0,
        bbox_clip_border: bool = True,
    ) -> None:
        if mean is None or std is None or to_rgb is None:
            raise ValueError(f"mean, std and to_rgb were expected, got mean={mean}, std={std}, to_rgb={to_rgb}")
        training = {"crop_size": crop_size, "ratios": ratios, "border": border}
        for name, value in training.items():
            if (value is None) != test_mode:
                wanted = "None was" if test_mode else "a value was"
                raise ValueError(f"{name}: {wanted} expected with test_mode={test_mode}, got {value!r}")
        if border is not None and border < 0:
            raise ValueError(f"border: a number of at least 0 was expected, got {border!r}")
        if not test_mode and test_pad_mode is not None:
            raise ValueError(f"test_pad_mode: None was expected with test_mode=False, got {test_pad_mode!r}")
        if test_mode and (test_pad_mode is None or test_pad_mode[0] not in _TEST_PAD_MODES):
            raise ValueError(f"test_pad_mode: ('logical_or' or 'size_divisor', n) was expected, got {test_pad_mode!r}")
        self.crop_size = crop_size
        self.ratios = ratios
        self.border = border
        self.mean = np.array(tuple(mean)[::-1] if to_rgb else tuple(mean), dtype=np.float32)
        self.test_mode = test_mode
        self.test_pad_mode = test_pad_mode
        self.test_pad_add_pix = test_pad_add_pix
        self.bbox_clip_border = bbox_clip_border

    def transform(self, results: dict) -> dict:
        """Draw a window, or in test mode pad."""
        img = results["img"]
        if img.dtype != np.float32:
            raise ValueError(
                f"RandomCenterCropPad: an image of float32 was expected, got {img.dtype}; set to_float32=True of "
                "LoadImageFromFile"
            )
        if self.test_mode:
            height, width = img.shape[:2]
            window = (self._test_side(height), self._test_side(width))
            results["img"], results["border"], _ = self._window(img, (height // 2, width // 2), window)
            results["img_shape"] = window
            return results
        center, window = self._draw(img.shape[:2], results["gt_bboxes"])
        results["img"], border, patch = self._window(img, center, window)
        results["img_shape"] = window
        select_objects(results, centers_inside(results["gt_bboxes"], patch))
        top, bottom, left, right = (int(side) for side in border)
        shift = np.array([left - patch[0], top - patch[1]] * 2, dtype=np.float32)
        boxes = results["gt_bboxes"] + shift
        results["gt_bboxes"] = clip_boxes(boxes, window) if self.bbox_clip_border else boxes
        if results.get("gt_masks") is not None:
            results["gt_masks"] = results["gt_masks"].crop(np.array(patch)).expand(*window, top, left)
        if results.get("gt_seg_map") is not None:
            seg_map = np.full(window, 255, dtype=results["gt_seg_map"].dtype)
            seg_map[top:bottom, left:right] = results["gt_seg_map"][patch[1] : patch[3], patch[0] : patch[2]]
            results["gt_seg_map"] = seg_map
        select_objects(results, overlaps_image(results["gt_bboxes"], window))
        return results

    @cache_randomness
    def _draw(self, shape: Sequence[int], boxes: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
        """Centre (y, x) in the image and size (height, width) of the window."""
        border_y, border_x = (_border(self.border, side) for side in shape)  # type: ignore[arg-type]
        for _ in range(10):
            ratio = np.random.choice(self.ratios)  # type: ignore[arg-type]
            window = (int(self.crop_size[1] * ratio), int(self.crop_size[0] * ratio))  # type: ignore[index]
            for _ in range(50):
                x = int(np.random.randint(border_x, shape[1] - border_x))
                y = int(np.random.randint(border_y, shape[0] - border_y))
                if len(boxes) == 0 or centers_inside(boxes, _overlap((y, x), window, shape)).any():
                    return (y, x), window
        return (y, x), window

    def _window(
        self, img: np.ndarray, center: tuple[int, int], window: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
        """The window's picture, where the image lies in it (top, bottom, left, right), and its part of the image."""
        left, top, right, bottom = patch = _overlap(center, window, img.shape)
        y = window[0] // 2 - (center[0] - top)
        x = window[1] // 2 - (center[1] - left)
        picture = np.empty((*window, img.shape[2]), dtype=img.dtype)
        picture[...] = self.mean
        picture[y : y + bottom - top, x : x + right - left] = img[top:bottom, left:right]
        return picture, np.array([y, y + bottom - top, x, x + right - left], dtype=np.float32), patch

    def _test_side(self, side: int) -> int:
        mode, number = self.test_pad_mode  # type: ignore[misc]
        return (side | number) + self.test_pad_add_pix if mode == "logical_or" else -(-side // number) * number


def _border(border: int, side: int) -> int:
    """``border`` halved until both borders leave room in ``side``."""
    if border == 0:
        return 0
    ratio = 2 * border / side
    return int(border // 2 ** (math.ceil(math.log2(math.ceil(ratio))) + (ratio == int(ratio))))


def _overlap(center: Sequence[int], window: Sequence[int], shape: Sequence[int]) -> tuple[int, int, int, int]:
    """What the window around ``center`` (y, x) has of an image, xyxy."""
    (y, x), (height, width) = center, window
    return (
        max(0, x - width // 2),
        max(0, y - height // 2),
        min(x + width // 2, shape[1]),
        min(y + height // 2, shape[0]),
    )


def _moved(img: np.ndarray, right: int, down: int, value: float) -> np.ndarray:
    height, width = img.shape[:2]
    moved = np.full_like(img, value)
    across, deep = max(width - abs(right), 0), max(height - abs(down), 0)
    to_x, to_y, from_x, from_y = max(0, right), max(0, down), max(0, -right), max(0, -down)
    moved[to_y : to_y + deep, to_x : to_x + across] = img[from_y : from_y + deep, from_x : from_x + across]
    return moved
