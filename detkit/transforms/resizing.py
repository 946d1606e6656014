"""Resizing to drawn sizes, and to a fixed one with padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from detkit.registry import TRANSFORMS
from detkit.transforms.geometric import Pad, Resize
from detkit.transforms.objects import clip_boxes, require_range

__all__ = ["FixScaleResize", "FixShapeResize", "RandomChoiceResize", "RandomResize", "SegRescale"]


@TRANSFORMS.register_module()
class FixScaleResize(Resize):
    """Resize whose sides are rounded down with ``keep_ratio``, as GLIP's and Grounding DINO's are.

    Args:
        scale: As Resize's, here and below.
        scale_factor: The same.
        keep_ratio: The same.
        clip_object_border: The same.
        backend: The same.
        interpolation: The same.
    """

    def _fitted(self, width: int, height: int, scale: Any) -> tuple[int, int]:
        factor = min(max(scale) / max(width, height), min(scale) / min(width, height))
        return int(width * factor), int(height * factor)


@TRANSFORMS.register_module()
class FixShapeResize(BaseTransform):
    """Resize the image and what belongs to it to one size; with ``keep_ratio`` the rest is padded.

    Args:
        width: Of the new image.
        height: Of the new image.
        pad_val: As Pad's.
        keep_ratio: Keep the aspect ratio, and pad at the right or at the bottom.
        clip_object_border: As Resize's, here and below.
        backend: The same.
        interpolation: The same.

    Raises:
        ValueError: As Resize and Pad.
    """

    def __init__(
        self,
        width: int,
        height: int,
        pad_val: float | Mapping[str, Any] = 0,
        keep_ratio: bool = False,
        clip_object_border: bool = True,
        backend: str = "cv2",
        interpolation: str = "bilinear",
    ) -> None:
        self.size = (width, height)
        self.keep_ratio = keep_ratio
        self.clip_object_border = clip_object_border
        self.resize = Resize(self.size, None, False, clip_object_border, backend, interpolation)
        self.pad = Pad(size=self.size, pad_val=pad_val)

    def transform(self, results: dict) -> dict:
        """Resize, and pad where the ratio is kept."""
        if not self.keep_ratio:
            return self.resize(results)
        height, width = results["img"].shape[:2]
        factor = min(self.size[0] / width, self.size[1] / height)
        self.resize.scale = (int(width * factor + 0.5), int(height * factor + 0.5))
        boxes = results.get("gt_bboxes")
        results = self.resize(results)
        # Boxes move by the exact factor, which predictions are divided by later.
        results["scale_factor"] = (factor, factor)
        results["keep_ratio"] = True
        if boxes is not None:
            boxes = boxes * np.float32(factor)
            results["gt_bboxes"] = clip_boxes(boxes, results["img_shape"]) if self.clip_object_border else boxes
        return self.pad(results)


@TRANSFORMS.register_module()
class RandomResize(BaseTransform):
    """Resize to a size between two, or to a drawn factor of one.

    Args:
        scale: Two sizes (width, height), between which each side is drawn; or one size with ``ratio_range``.
        ratio_range: Factors of the one size.
        resize_type: The step that resizes; its ``scale`` is set for each image.
        resize_kwargs: Its other arguments.

    Raises:
        ValueError: Neither two sizes nor one with a range of factors.
    """

    def __init__(
        self,
        scale: Sequence,
        ratio_range: Sequence[float] | None = None,
        resize_type: str = "Resize",
        **resize_kwargs: Any,
    ) -> None:
        sizes = [scale] if isinstance(scale[0], int) else list(scale)
        if len(sizes) != (2 if ratio_range is None else 1) or any(len(size) != 2 for size in sizes):
            raise ValueError(
                "scale: two sizes (width, height), or one with a ratio_range, were expected, got "
                f"scale={scale!r}, ratio_range={ratio_range!r}"
            )
        self.sizes = [tuple(size) for size in sizes]
        self.ratio_range = None if ratio_range is None else require_range("ratio_range", ratio_range, least=0)
        self.resize = TRANSFORMS.build({"type": resize_type, "scale": 0, **resize_kwargs})

    @cache_randomness
    def _draw(self) -> tuple[int, int]:
        """(width, height)."""
        if self.ratio_range is not None:
            low, high = self.ratio_range
            ratio = np.random.random_sample() * (high - low) + low
            return int(self.sizes[0][0] * ratio), int(self.sizes[0][1] * ratio)
        sides = zip(*self.sizes, strict=True)
        width, height = (int(np.random.randint(min(pair), max(pair) + 1)) for pair in sides)
        return width, height

    def transform(self, results: dict) -> dict:
        """Draw a size and resize everything that is there."""
        self.resize.scale = results["scale"] = self._draw()
        return self.resize(results)


@TRANSFORMS.register_module()
class RandomChoiceResize(BaseTransform):
    """Resize to one of several sizes; sets ``scale_idx`` too.

    Args:
        scales: Sizes, each (width, height) or a number for both.
        resize_type: The step that resizes; its ``scale`` is set for each image.
        resize_kwargs: Its other arguments.

    Raises:
        ValueError: No size, or something that is none.
    """

    def __init__(self, scales: Sequence, resize_type: str = "Resize", **resize_kwargs: Any) -> None:
        if not scales or not all(isinstance(size, int) or len(size) == 2 for size in scales):
            raise ValueError(f"scales: sizes (width, height), or numbers, were expected, got {scales!r}")
        self.scales = [size if isinstance(size, int) else tuple(size) for size in scales]
        self.resize = TRANSFORMS.build({"type": resize_type, "scale": 0, **resize_kwargs})

    @cache_randomness
    def _draw(self) -> int:
        return int(np.random.randint(len(self.scales)))

    def transform(self, results: dict) -> dict:
        """Draw a size and resize everything that is there."""
        index = self._draw()
        self.resize.scale = self.scales[index]
        results = self.resize(results)
        results["scale_idx"] = index
        return results


@TRANSFORMS.register_module()
class SegRescale(BaseTransform):
    """Scale the segmentation map alone, to the size of a semantic head's output.

    Args:
        scale_factor: Factor, larger than 0.
        backend: ``cv2`` or ``pillow``.

    Raises:
        ValueError: A factor that is none; an image without a segmentation map.
    """

    def __init__(self, scale_factor: float = 1, backend: str = "cv2") -> None:
        if scale_factor <= 0:
            raise ValueError(f"scale_factor: a number larger than 0 was expected, got {scale_factor!r}")
        self.scale_factor = scale_factor
        self.backend = backend

    def transform(self, results: dict) -> dict:
        """Scale ``gt_seg_map`` by the nearest pixel."""
        if results.get("gt_seg_map") is None:
            raise ValueError(f"{results.get('img_path', 'image')}: no segmentation map; LoadAnnotations(with_seg=True)")
        if self.scale_factor != 1:
            results["gt_seg_map"] = mmcv.imrescale(
                results["gt_seg_map"], self.scale_factor, interpolation="nearest", backend=self.backend
            )
        return results
