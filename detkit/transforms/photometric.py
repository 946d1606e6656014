"""Changes of colour, and of pixels without a change of place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from detkit.registry import TRANSFORMS
from detkit.transforms.objects import require_range

__all__ = ["CutOut", "PhotoMetricDistortion", "YOLOXHSVRandomAug"]


class _Distortion(NamedTuple):
    """What was drawn for an image; None for what it is spared.

    Attributes:
        brightness: Added to all channels.
        contrast: Factor of all channels.
        contrast_first: Whether contrast comes before the changes in HSV, not after them.
        saturation: Factor.
        hue: Added, degrees.
        channels: Their new order.
    """

    brightness: float | None
    contrast: float | None
    contrast_first: bool
    saturation: float | None
    hue: float | None
    channels: np.ndarray | None


@TRANSFORMS.register_module()
class PhotoMetricDistortion(BaseTransform):
    """Random brightness, contrast, saturation, hue and order of channels, each with a probability of one half.

    The image becomes float32; values may leave 0 … 255, as in SSD, https://arxiv.org/abs/1512.02325.

    Args:
        brightness_delta: Largest change of all channels, at least 0.
        contrast_range: Factors of all channels, before or after the changes of saturation and hue.
        saturation_range: Factors of the saturation.
        hue_delta: Largest change of hue, in degrees, at least 0.

    Raises:
        ValueError: A negative change, or a range that is none.
    """

    def __init__(
        self,
        brightness_delta: float = 32,
        contrast_range: Sequence[float] = (0.5, 1.5),
        saturation_range: Sequence[float] = (0.5, 1.5),
        hue_delta: float = 18,
    ) -> None:
        for name, delta in (("brightness_delta", brightness_delta), ("hue_delta", hue_delta)):
            if delta < 0:
                raise ValueError(f"{name}: a number of at least 0 was expected, got {delta!r}")
        self.brightness_delta = brightness_delta
        self.contrast_range = require_range("contrast_range", contrast_range, least=0)
        self.saturation_range = require_range("saturation_range", saturation_range, least=0)
        self.hue_delta = hue_delta

    @cache_randomness
    def _draw(self) -> _Distortion:
        # In MMDetection's order, so that a seed gives the same picture.
        contrast_first, *flags = (bool(np.random.randint(2)) for _ in range(6))
        drawn: tuple[Any, ...] = (
            np.random.uniform(-self.brightness_delta, self.brightness_delta),
            np.random.uniform(*self.contrast_range),
            np.random.uniform(*self.saturation_range),
            np.random.uniform(-self.hue_delta, self.hue_delta),
            np.random.permutation(3),
        )
        brightness, contrast, saturation, hue, channels = (
            value if flag else None for flag, value in zip(flags, drawn, strict=True)
        )
        return _Distortion(brightness, contrast, contrast_first, saturation, hue, channels)

    def transform(self, results: dict) -> dict:
        """Draw and distort ``img`` (H, W, 3) BGR."""
        drawn = self._draw()
        img = results["img"].astype(np.float32)
        if drawn.brightness is not None:
            img += drawn.brightness
        if drawn.contrast is not None and drawn.contrast_first:
            img *= drawn.contrast
        img = self._in_hsv(img, drawn.saturation, drawn.hue)
        if drawn.contrast is not None and not drawn.contrast_first:
            img *= drawn.contrast
        results["img"] = img if drawn.channels is None else img[..., drawn.channels]
        return results

    def _in_hsv(self, img: np.ndarray, saturation: float | None, hue: float | None) -> np.ndarray:
        hsv = mmcv.bgr2hsv(img)
        if saturation is not None:
            hsv[..., 1] *= saturation
            if saturation > 1:
                hsv[..., 1] = hsv[..., 1].clip(0, 1)
        if hue is not None:
            hsv[..., 0] += hue
            hsv[..., 0][hsv[..., 0] > 360] -= 360
            hsv[..., 0][hsv[..., 0] < 0] += 360
        return mmcv.hsv2bgr(hsv)


@TRANSFORMS.register_module()
class YOLOXHSVRandomAug(BaseTransform):
    """Random hue, saturation and value, each changed with a probability of one half, as YOLOX does it.

    Args:
        hue_delta: Largest change of hue, in steps of 2 degrees.
        saturation_delta: Largest change of saturation, of 255.
        value_delta: Largest change of value, of 255.

    Raises:
        ValueError: A negative change; an image that is not uint8.
    """

    def __init__(self, hue_delta: int = 5, saturation_delta: int = 30, value_delta: int = 30) -> None:
        self.deltas = (hue_delta, saturation_delta, value_delta)
        if min(self.deltas) < 0:
            raise ValueError(f"changes of at least 0 were expected, got hue, saturation and value {self.deltas}")

    @cache_randomness
    def _draw(self) -> np.ndarray:
        gains = np.random.uniform(-1, 1, 3) * self.deltas
        return (gains * np.random.randint(0, 2, 3)).astype(np.int16)

    def transform(self, results: dict) -> dict:
        """Draw and change ``img`` (H, W, 3) BGR uint8."""
        img = results["img"]
        if img.dtype != np.uint8:
            raise ValueError(f"YOLOXHSVRandomAug: an image of uint8 was expected, got {img.dtype}; put it before")
        hue, saturation, value = self._draw()
        hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV).astype(np.int16)
        hsv[..., 0] = (hsv[..., 0] + hue) % 180
        hsv[..., 1] = (hsv[..., 1] + saturation).clip(0, 255)
        hsv[..., 2] = (hsv[..., 2] + value).clip(0, 255)
        results["img"] = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)
        return results


@TRANSFORMS.register_module()
class CutOut(BaseTransform):
    """Paint rectangles over the image at random places; objects stay as they are.

    Args:
        n_holes: How many, or (least, most).
        cutout_shape: Size (width, height) in pixels, or a list of sizes to draw from.
        cutout_ratio: The same as parts of the image's size, in [0, 1]; instead of ``cutout_shape``.
        fill_in: Value of the pixels, per channel.

    Raises:
        ValueError: Not exactly one of ``cutout_shape`` and ``cutout_ratio``, or numbers of holes that are none.
    """

    def __init__(
        self,
        n_holes: int | Sequence[int],
        cutout_shape: Sequence | None = None,
        cutout_ratio: Sequence | None = None,
        fill_in: Sequence[float] = (0, 0, 0),
    ) -> None:
        if (cutout_shape is None) == (cutout_ratio is None):
            raise ValueError(
                f"CutOut: one of cutout_shape and cutout_ratio was expected, got {cutout_shape} and {cutout_ratio}"
            )
        number = (n_holes, n_holes) if isinstance(n_holes, int) else n_holes
        self.n_holes = require_range("n_holes", number, least=-1)
        sizes: Any = cutout_ratio if cutout_shape is None else cutout_shape
        self.sizes = [tuple(sizes)] if isinstance(sizes[0], (int, float)) else [tuple(size) for size in sizes]
        self.with_ratio = cutout_ratio is not None
        self.fill_in = tuple(fill_in)

    def transform(self, results: dict) -> dict:
        """Draw and paint the holes."""
        img = results["img"].copy()
        height, width = img.shape[:2]
        for _ in range(np.random.randint(int(self.n_holes[0]), int(self.n_holes[1]) + 1)):
            left, top = np.random.randint(0, width), np.random.randint(0, height)
            size = self.sizes[np.random.randint(0, len(self.sizes))]
            across, down = (int(size[0] * width), int(size[1] * height)) if self.with_ratio else size
            img[top : top + down, left : left + across] = self.fill_in
        results["img"] = img
        return results
