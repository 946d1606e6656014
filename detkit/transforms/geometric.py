"""Resize, flip and pad an image together with its boxes, masks and segmentation map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
from mmcv.image.geometric import cv2_interp_codes, pillow_interp_codes
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from detkit.registry import TRANSFORMS, check_keys, nearest

__all__ = ["Pad", "RandomFlip", "Resize"]

_INTERPOLATIONS = {"cv2": cv2_interp_codes, "pillow": pillow_interp_codes}
# cv2.flip's code of each direction.
_FLIP_CODES = {"horizontal": 1, "vertical": 0, "diagonal": -1}
_PADDING_MODES = ("constant", "edge", "reflect", "symmetric")


@TRANSFORMS.register_module()
class Resize(BaseTransform):
    """Resize the image and what belongs to it.

    Changes ``img``, ``img_shape``, ``gt_bboxes``, ``gt_masks``, ``gt_seg_map``; sets ``scale``,
    ``scale_factor`` (width, height) and ``keep_ratio``.

    Args:
        scale: Size (width, height), or one number for both. With ``keep_ratio`` the image becomes as
            large as fits: its longer side within the larger number, its shorter within the smaller.
            0 stands for a size that is set before the first image, as mmcv's RandomResize does.
        scale_factor: Factor, or (width factor, height factor), used where ``scale`` is None.
        keep_ratio: Keep the aspect ratio.
        clip_object_border: Clip boxes to the image.
        backend: ``cv2`` or ``pillow``.
        interpolation: Of the image; masks and segmentation maps take the nearest pixel.

    Raises:
        ValueError: Neither ``scale`` nor ``scale_factor``, one that is not positive, or an unknown
            ``backend`` or ``interpolation``.
    """

    def __init__(
        self,
        scale: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
        keep_ratio: bool = False,
        clip_object_border: bool = True,
        backend: str = "cv2",
        interpolation: str = "bilinear",
    ) -> None:
        if scale is None and scale_factor is None:
            raise ValueError("Resize: scale or scale_factor was expected, got neither")
        if backend not in _INTERPOLATIONS:
            raise ValueError(f"backend: 'cv2' or 'pillow' was expected, got {backend!r}")
        if interpolation not in _INTERPOLATIONS[backend]:
            close = nearest(interpolation, _INTERPOLATIONS[backend])[0]
            raise ValueError(f"interpolation: {backend} has no {interpolation!r}; did you mean {close!r}?")
        self.scale = None if scale is None else _pair(scale, "scale", may_be_zero=True)
        self.scale_factor = None if scale_factor is None else _pair(scale_factor, "scale_factor")
        self.keep_ratio = keep_ratio
        self.clip_object_border = clip_object_border
        self.backend = backend
        self.interpolation = interpolation

    def transform(self, results: dict) -> dict:
        """Resize everything that is there."""
        img = results["img"]
        height, width = img.shape[:2]
        if self.scale is not None:
            # Checked here as well: mmcv's random resizing sets the attribute.
            scale = _pair(self.scale, "scale")
        elif self.scale_factor is not None:
            scale = int(width * self.scale_factor[0] + 0.5), int(height * self.scale_factor[1] + 0.5)
        size = self._fitted(width, height, scale) if self.keep_ratio else scale
        size = max(int(size[0]), 1), max(int(size[1]), 1)
        results["img"] = mmcv.imresize(img, size, interpolation=self.interpolation, backend=self.backend)
        results["scale"] = scale
        results["scale_factor"] = size[0] / width, size[1] / height
        results["keep_ratio"] = self.keep_ratio
        results["img_shape"] = size[::-1]
        if results.get("gt_bboxes") is not None:
            results["gt_bboxes"] = self._resize_boxes(results["gt_bboxes"], results["scale_factor"], size)
        if results.get("gt_masks") is not None:
            results["gt_masks"] = results["gt_masks"].resize(size[::-1])
        if results.get("gt_seg_map") is not None:
            results["gt_seg_map"] = cv2.resize(results["gt_seg_map"], size, interpolation=cv2.INTER_NEAREST)
        return results

    def _fitted(self, width: int, height: int, scale: Any) -> tuple[int, int]:
        """The largest size (width, height) of this aspect ratio that fits."""
        return mmcv.rescale_size((width, height), scale)

    def _resize_boxes(self, boxes: np.ndarray, factor: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
        boxes = boxes * np.array(factor * 2, dtype=np.float32)
        if self.clip_object_border:
            boxes = boxes.clip(0, np.array(size * 2, dtype=np.float32))
        return boxes


@TRANSFORMS.register_module()
class RandomFlip(BaseTransform):
    """Flip the image and what belongs to it, or leave it.

    Changes ``img``, ``gt_bboxes``, ``gt_masks``, ``gt_seg_map``; sets ``flip`` and ``flip_direction``
    (None where it was left).

    Args:
        prob: Probability to flip, shared evenly by the directions, or one probability for each of them.
        direction: ``horizontal``, ``vertical``, ``diagonal`` (both), or several of them.
        swap_seg_labels: Pairs of segmentation-map labels that change places, such as left and right arm.

    Raises:
        ValueError: An unknown direction, or probabilities that are none, differ in number from the
            directions, or exceed 1 together.
    """

    def __init__(
        self,
        prob: float | Sequence[float] | None = None,
        direction: str | Sequence[str] = "horizontal",
        swap_seg_labels: Sequence[Sequence[int]] | None = None,
    ) -> None:
        directions = [direction] if isinstance(direction, str) else list(direction)
        for name in directions:
            if name not in _FLIP_CODES:
                close = nearest(str(name), _FLIP_CODES)[0]
                raise ValueError(f"direction: {name!r} is unknown; did you mean {close!r}? One of {list(_FLIP_CODES)}")
        if prob is None:
            raise ValueError("prob: a probability or one for each direction was expected, got None")
        probs = [prob / len(directions)] * len(directions) if isinstance(prob, (int, float)) else list(prob)
        if len(probs) != len(directions):
            raise ValueError(f"prob: {len(probs)} probabilities for the {len(directions)} directions {directions}")
        if min(probs) < 0 or sum(probs) > 1 + 1e-9:
            raise ValueError(f"prob: probabilities of at least 0 and together at most 1 were expected, got {prob}")
        self.prob = prob
        self.direction = direction
        self.swap_seg_labels = swap_seg_labels
        self._choices = [*directions, None]
        self._probs = [*probs, max(0.0, 1 - sum(probs))]

    @cache_randomness
    def _choose_direction(self) -> str | None:
        return self._choices[np.random.choice(len(self._choices), p=self._probs)]

    def transform(self, results: dict) -> dict:
        """Draw a direction and flip everything that is there."""
        direction = self._choose_direction()
        results["flip"] = direction is not None
        results["flip_direction"] = direction
        if direction is None:
            return results
        results["img"] = cv2.flip(results["img"], _FLIP_CODES[direction])
        if results.get("gt_bboxes") is not None:
            results["gt_bboxes"] = flip_boxes(results["gt_bboxes"], results["img"].shape[:2], direction)
        if results.get("gt_masks") is not None:
            results["gt_masks"] = results["gt_masks"].flip(direction)
        if results.get("gt_seg_map") is not None:
            results["gt_seg_map"] = self._flip_seg_map(results["gt_seg_map"], direction)
        return results

    def _flip_seg_map(self, seg_map: np.ndarray, direction: str) -> np.ndarray:
        flipped = cv2.flip(seg_map, _FLIP_CODES[direction])
        swapped = flipped.copy()
        for first, second in self.swap_seg_labels or ():
            swapped[flipped == first] = second
            swapped[flipped == second] = first
        return swapped


@TRANSFORMS.register_module()
class Pad(BaseTransform):
    """Pad the image and what belongs to it at the right and at the bottom.

    Changes ``img``, ``img_shape``, ``gt_masks``, ``gt_seg_map``; sets ``pad_shape``, ``pad_fixed_size``
    and ``pad_size_divisor``. Boxes stay as they are. An image larger than ``size`` is left as it is.

    Args:
        size: Size (width, height) to pad to.
        size_divisor: Pad each side to a multiple of this.
        pad_to_square: Pad to a square of the longer side; ``size_divisor`` is applied after it.
        pad_val: Value of new pixels: a number for the image, or a dict with ``img`` (a number, or one per
            channel), ``masks`` and ``seg``, which are 0, 0 and 255 where not given.
        padding_mode: ``constant``, ``edge``, ``reflect`` or ``symmetric``.

    Raises:
        ValueError: Not exactly one way to pad was asked for, or an unknown ``padding_mode``.
    """

    pad_val_keys = ("img", "masks", "seg")

    def __init__(
        self,
        size: Sequence[int] | None = None,
        size_divisor: int | None = None,
        pad_to_square: bool = False,
        pad_val: float | Mapping[str, Any] = 0,
        padding_mode: str = "constant",
    ) -> None:
        if pad_to_square:
            if size is not None:
                raise ValueError(f"Pad: size={size} and pad_to_square=True exclude each other")
        elif (size is None) == (size_divisor is None):
            raise ValueError(
                f"Pad: one of size, size_divisor and pad_to_square was expected, got size={size}, "
                f"size_divisor={size_divisor}"
            )
        if padding_mode not in _PADDING_MODES:
            raise ValueError(f"padding_mode: one of {', '.join(_PADDING_MODES)} was expected, got {padding_mode!r}")
        if size_divisor is not None and size_divisor <= 0:
            raise ValueError(f"size_divisor: a positive number was expected, got {size_divisor}")
        values = dict(pad_val) if isinstance(pad_val, Mapping) else {"img": pad_val}
        check_keys(values, self.pad_val_keys, "pad_val")
        self.size = None if size is None else _pair(size, "size")
        self.size_divisor = size_divisor
        self.pad_to_square = pad_to_square
        self.pad_val = {"img": 0, "masks": 0, "seg": 255, **values}
        self.padding_mode = padding_mode

    def transform(self, results: dict) -> dict:
        """Pad everything that is there."""
        height, width = results["img"].shape[:2]
        if self.size is not None:
            width, height = self.size
        if self.pad_to_square:
            height = width = max(height, width)
        if self.size_divisor is not None:
            height, width = (-(-side // self.size_divisor) * self.size_divisor for side in (height, width))
        results["img"] = self._pad(results["img"], (height, width), self.pad_val["img"])
        results["pad_shape"] = results["img"].shape
        results["img_shape"] = shape = results["img"].shape[:2]
        results["pad_fixed_size"] = self.size
        results["pad_size_divisor"] = self.size_divisor
        if results.get("gt_masks") is not None:
            results["gt_masks"] = results["gt_masks"].pad(shape, pad_val=self.pad_val["masks"])
        if results.get("gt_seg_map") is not None:
            results["gt_seg_map"] = self._pad(results["gt_seg_map"], shape, self.pad_val["seg"])
        return results

    def _pad(self, img: np.ndarray, shape: tuple[int, int], value: float | Sequence[float]) -> np.ndarray:
        if img.ndim == 3:
            value = (value,) * img.shape[2] if isinstance(value, (int, float)) else tuple(value)
        return mmcv.impad(img, shape=shape, pad_val=value, padding_mode=self.padding_mode)


def flip_boxes(boxes: np.ndarray, img_shape: tuple[int, int], direction: str) -> np.ndarray:
    """Mirror boxes (G, 4) in an image of ``img_shape`` (height, width)."""
    height, width = img_shape
    flipped = boxes.copy()
    if direction in ("horizontal", "diagonal"):
        flipped[:, [0, 2]] = width - boxes[:, [2, 0]]
    if direction in ("vertical", "diagonal"):
        flipped[:, [1, 3]] = height - boxes[:, [3, 1]]
    return flipped


def _pair(value: Any, name: str, may_be_zero: bool = False) -> tuple:
    """(width, height) from a number or two."""
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(isinstance(side, (int, float, np.number)) for side in pair):
        raise ValueError(f"{name}: one number or (width, height) was expected, got {value!r}")
    if min(pair) < 0 or (min(pair) == 0 and not may_be_zero):
        raise ValueError(f"{name}: positive numbers were expected, got {value!r}")
    return pair
