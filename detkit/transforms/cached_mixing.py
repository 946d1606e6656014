"""Mosaic and MixUp with images from a small pool; for the pipeline of a plain dataset.

The pool is the dataset's (see ``detkit/datasets/partners.py``); a step says how large it is by ``pool_size``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detkit.registry import TRANSFORMS
from detkit.transforms.mixing import MixUp, Mosaic
from detkit.transforms.objects import require_probability

__all__ = ["CachedMixUp", "CachedMosaic"]


@TRANSFORMS.register_module()
class CachedMosaic(Mosaic):
    """Mosaic of images from a small pool, which saves most of the loading; for the pipeline of a plain dataset.

    MMDetection keeps the last images that passed, so that what a sample becomes depends on the number of workers
    and is lost on resuming. Here a stretch of samples has a pool of ``max_cached_images`` images, drawn by (seed,
    epoch, stretch) and taken through the steps before this one; each process keeps those it has needed. A sample
    is the same with any number of workers, and after resuming (see ``detkit/datasets/partners.py``).

    Args:
        img_scale: As Mosaic's, here and below.
        center_ratio_range: The same.
        bbox_clip_border: The same.
        pad_val: The same.
        prob: The same.
        max_cached_images: Images in the pool, at least 4.
        random_pop: Accepted for MMDetection's configs; a pool is replaced as a whole.

    Raises:
        ValueError: As Mosaic, or a pool that is too small.
    """

    def __init__(
        self,
        img_scale: Sequence[int] = (640, 640),
        center_ratio_range: Sequence[float] = (0.5, 1.5),
        bbox_clip_border: bool = True,
        pad_val: float | Sequence[float] = 114.0,
        prob: float = 1.0,
        max_cached_images: int = 40,
        random_pop: bool = True,
    ) -> None:
        super().__init__(img_scale, center_ratio_range, bbox_clip_border, pad_val, prob)
        self.pool_size = _pool_size(max_cached_images, 4)


@TRANSFORMS.register_module()
class CachedMixUp(MixUp):
    """MixUp with images from a small pool, see CachedMosaic; for the pipeline of a plain dataset.

    Args:
        img_scale: As MixUp's, here and below.
        ratio_range: The same.
        flip_ratio: The same.
        pad_val: The same.
        max_iters: The same.
        bbox_clip_border: The same.
        max_cached_images: Images in the pool, at least 2.
        random_pop: Accepted for MMDetection's configs; a pool is replaced as a whole.
        prob: Probability to do it.

    Raises:
        ValueError: As MixUp, or a pool that is too small.
    """

    def __init__(
        self,
        img_scale: Sequence[int] = (640, 640),
        ratio_range: Sequence[float] = (0.5, 1.5),
        flip_ratio: float = 0.5,
        pad_val: float | Sequence[float] = 114.0,
        max_iters: int = 15,
        bbox_clip_border: bool = True,
        max_cached_images: int = 20,
        random_pop: bool = True,
        prob: float = 1.0,
    ) -> None:
        super().__init__(img_scale, ratio_range, flip_ratio, pad_val, max_iters, bbox_clip_border)
        self.pool_size = _pool_size(max_cached_images, 2)
        self.prob = require_probability("prob", prob)

    def transform(self, results: dict) -> dict:
        """As MixUp's, with the probability ``prob``."""
        return results if np.random.uniform(0, 1) > self.prob else super().transform(results)


def _pool_size(value: int, least: int) -> int:
    if value < least:
        raise ValueError(f"max_cached_images: at least {least} was expected, got {value!r}")
    return value
