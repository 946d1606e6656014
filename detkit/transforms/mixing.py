"""Several images in one: Mosaic and MixUp. Their forms with a pool are in ``cached_mixing.py``.

Both need other images: ``mix_results``, which the dataset puts into the results dict after it has asked
``get_indexes`` which ones (see ``detkit/datasets/partners.py``). They read those and never change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform

from detkit.registry import TRANSFORMS
from detkit.transforms.geometric import flip_boxes
from detkit.transforms.objects import (
    clip_boxes,
    join_objects,
    overlaps_image,
    require_probability,
    require_range,
    select_objects,
)

__all__ = ["MixUp", "Mosaic"]

_ACROSS, _DOWN = "horizontal", "vertical"


@TRANSFORMS.register_module()
class Mosaic(BaseTransform):
    """Four images around a drawn point of a canvas of twice ``img_scale``, as YOLOX does.

    Each image is scaled to fit ``img_scale`` and cut where it leaves its quarter. Objects that are cut away are
    dropped. ``img`` becomes (2H, 2W, 3), of the image's own type; RandomAffine or a crop takes it back to one size.

    Args:
        img_scale: Size (width, height) of each image.
        center_ratio_range: Where the point may lie, of ``img_scale``.
        bbox_clip_border: Cut boxes at the border of the canvas.
        pad_val: Value of pixels that no image covers, or one per channel.
        prob: Probability to do it.

    Raises:
        ValueError: A size, range or probability that is none; no other images in ``mix_results``; an image with a
            segmentation map, which would not be mixed.
    """

    def __init__(
        self,
        img_scale: Sequence[int] = (640, 640),
        center_ratio_range: Sequence[float] = (0.5, 1.5),
        bbox_clip_border: bool = True,
        pad_val: float | Sequence[float] = 114.0,
        prob: float = 1.0,
    ) -> None:
        self.img_scale = _size(img_scale)
        self.center_ratio_range = require_range("center_ratio_range", center_ratio_range, least=0)
        if self.center_ratio_range[1] >= 2:
            raise ValueError(f"center_ratio_range: numbers below 2 were expected, got {center_ratio_range!r}")
        self.bbox_clip_border = bbox_clip_border
        self.pad_val = pad_val
        self.prob = require_probability("prob", prob)

    def get_indexes(self, dataset: Any) -> list[int]:
        """Draw three other images."""
        return [int(np.random.randint(0, len(dataset))) for _ in range(3)]

    def transform(self, results: dict) -> dict:
        """Draw the point and lay the four images around it."""
        if np.random.uniform(0, 1) > self.prob:
            return results
        images = [results, *_others(self, results, 3)]
        width, height = 2 * self.img_scale[0], 2 * self.img_scale[1]
        img = results["img"]
        canvas = np.full((height, width, *img.shape[2:]), self.pad_val, dtype=img.dtype)
        center = [int(np.random.uniform(*self.center_ratio_range) * side) for side in self.img_scale]
        parts = [self._lay(image, canvas, center, place) for place, image in enumerate(images)]
        _take_objects(results, parts)
        if self.bbox_clip_border:
            results["gt_bboxes"] = clip_boxes(results["gt_bboxes"], (height, width))
        select_objects(results, overlaps_image(results["gt_bboxes"], (height, width)))
        results["img"] = canvas
        results["img_shape"] = (height, width)
        return results

    def _lay(self, image: dict, canvas: np.ndarray, center: Sequence[int], place: int) -> dict[str, Any]:
        """Lay an image into its quarter (0 top left, 1 top right, 2 and 3 below), and give its moved objects."""
        factor = min(side / own for side, own in zip(self.img_scale, image["img"].shape[1::-1], strict=True))
        size = [max(int(own * factor), 1) for own in image["img"].shape[1::-1]]
        img = mmcv.imresize(image["img"], tuple(size))
        to, cut, shift = [], [], []
        # Both axes alike: before the point an image ends there, behind it one begins there.
        for axis, before in ((0, place % 2 == 0), (1, place < 2)):
            middle, length, end = center[axis], size[axis], canvas.shape[1 - axis]
            begin = middle - length if before else middle
            low, high = max(begin, 0), min(begin + length, end)
            to.append(slice(low, high))
            cut.append(slice(low - begin, high - begin))
            shift.append(begin)
        canvas[to[1], to[0]] = img[cut[1], cut[0]]
        moved = dict(image)
        moved["gt_bboxes"] = image["gt_bboxes"] * np.float32(factor) + np.array(shift * 2, dtype=np.float32)
        if image.get("gt_masks") is not None:
            moved["gt_masks"] = _moved_masks(image["gt_masks"].rescale(factor), canvas.shape[:2], shift)
        return moved


class _Drawn(NamedTuple):
    """How MixUp changes the other image.

    Attributes:
        img: The picture to be mixed in, as large as the image itself.
        factor: By which the other image was scaled.
        canvas: Size (height, width) of what the picture was cut from.
        flipped: Whether that was flipped.
        corner: Where it was cut (x, y).
    """

    img: np.ndarray
    factor: float
    canvas: tuple[int, int]
    flipped: bool
    corner: tuple[int, int]


@TRANSFORMS.register_module()
class MixUp(BaseTransform):
    """The mean of the image and another one that is scaled, flipped and shifted at random, as YOLOX does.

    The image keeps its size and gets the other one's objects too; an image without objects is not mixed in.
    MMDetection flips with the probability ``1 - flip_ratio``, and makes any image uint8.

    Args:
        img_scale: Size (width, height) of the canvas that the other image is scaled to fit.
        ratio_range: Factors by which that canvas is scaled.
        flip_ratio: Probability to flip it.
        pad_val: Value of pixels that the other image does not cover, or one per channel.
        max_iters: How many images are looked at to find one with objects.
        bbox_clip_border: Cut boxes at the border of the image.

    Raises:
        ValueError: A size, range or probability that is none; not one other image in ``mix_results``; an image with a
            segmentation map, which would not be mixed.
    """

    def __init__(
        self,
        img_scale: Sequence[int] = (640, 640),
        ratio_range: Sequence[float] = (0.5, 1.5),
        flip_ratio: float = 0.5,
        pad_val: float | Sequence[float] = 114.0,
        max_iters: int = 15,
        bbox_clip_border: bool = True,
    ) -> None:
        self.img_scale = _size(img_scale)
        self.ratio_range = require_range("ratio_range", ratio_range, least=0)
        self.flip_ratio = require_probability("flip_ratio", flip_ratio)
        self.pad_val = pad_val
        if max_iters < 1:
            raise ValueError(f"max_iters: at least 1 was expected, got {max_iters!r}")
        self.max_iters = max_iters
        self.bbox_clip_border = bbox_clip_border

    def get_indexes(self, dataset: Any) -> int:
        """Draw another image, anew while it has no objects."""
        for _ in range(self.max_iters):
            index = int(np.random.randint(0, len(dataset)))
            if _has_objects(dataset, index):
                break
        return index

    def transform(self, results: dict) -> dict:
        """Draw how the other image is changed and mix it in."""
        (other,) = _others(self, results, 1)
        if len(other["gt_bboxes"]) == 0:
            return results
        shape = results["img"].shape[:2]
        drawn = self._draw(other["img"], shape)
        results["img"] = cv2.addWeighted(
            results["img"], 0.5, drawn.img.astype(results["img"].dtype, copy=False), 0.5, 0
        )
        results["img_shape"] = shape
        _take_objects(results, [results, self._moved(other, drawn, shape)])
        select_objects(results, overlaps_image(results["gt_bboxes"], shape))
        return results

    def _draw(self, img: np.ndarray, shape: tuple[int, int]) -> _Drawn:
        width, height = self.img_scale
        stretch = np.random.uniform(*self.ratio_range)
        flipped = bool(np.random.uniform(0, 1) > 1 - self.flip_ratio)
        factor = min(height / img.shape[0], width / img.shape[1])
        img = mmcv.imresize(img, tuple(max(int(side * factor), 1) for side in img.shape[1::-1]))
        canvas = np.full((height, width, *img.shape[2:]), self.pad_val, dtype=img.dtype)
        canvas[: img.shape[0], : img.shape[1]] = img
        canvas = mmcv.imresize(canvas, (max(int(width * stretch), 1), max(int(height * stretch), 1)))
        if flipped:
            canvas = canvas[:, ::-1]
        corner = []
        for axis in (0, 1):  # y, then x
            beyond = canvas.shape[axis] - shape[axis]
            # With MMDetection's bounds: the last place is never drawn.
            corner.append(int(np.random.randint(0, beyond)) if beyond > 0 else 0)
        y, x = corner
        picture = np.full((*shape, *img.shape[2:]), self.pad_val, dtype=img.dtype)
        part = canvas[y : y + shape[0], x : x + shape[1]]
        picture[: part.shape[0], : part.shape[1]] = part
        return _Drawn(picture, factor * stretch, canvas.shape[:2], flipped, (x, y))

    def _moved(self, other: dict, drawn: _Drawn, shape: tuple[int, int]) -> dict[str, Any]:
        """The other image's objects, in the place they have now."""
        boxes = other["gt_bboxes"] * np.float32(drawn.factor)
        boxes = clip_boxes(boxes, drawn.canvas) if self.bbox_clip_border else boxes
        boxes = flip_boxes(boxes, drawn.canvas, _ACROSS) if drawn.flipped else boxes
        boxes = boxes - np.array(drawn.corner * 2, dtype=np.float32)
        moved = {**other, "gt_bboxes": clip_boxes(boxes, shape) if self.bbox_clip_border else boxes}
        masks = other.get("gt_masks")
        if masks is not None:
            masks = _moved_masks(masks.rescale(drawn.factor), drawn.canvas, (0, 0))
            masks = masks.flip(_ACROSS) if drawn.flipped else masks
            moved["gt_masks"] = _moved_masks(masks, shape, [-place for place in drawn.corner])
        return moved


def _others(step: BaseTransform, results: dict, count: int) -> list[dict]:
    if results.get("gt_seg_map") is not None:
        raise ValueError(f"{type(step).__name__} mixes boxes and masks, and the image has a segmentation map")
    others = results.get("mix_results") or ()
    if len(others) != count:
        raise ValueError(
            f"{type(step).__name__}: {count} other images were expected in 'mix_results', got {len(others)}; the "
            "step belongs into the pipeline of a dataset, such as MultiImageMixDataset, not into that of another step"
        )
    return list(others)


def _take_objects(results: dict, parts: Sequence[dict]) -> None:
    results.update(join_objects(parts))
    results.pop("instances", None)  # the record of the first image alone: errors would name its annotations


def _has_objects(dataset: Any, index: int) -> bool:
    """Whether an image has objects, by its record where there is one: loading the image would be a waste."""
    get_info = getattr(dataset, "get_data_info", None)
    if get_info is None:
        return len(dataset[index]["gt_bboxes"]) > 0
    return len(get_info(index)["instances"]) > 0


def _moved_masks(masks: Any, shape: Sequence[int], shift: Sequence[int]) -> Any:
    """Masks moved by ``shift`` (x, y) into an image of ``shape`` (height, width)."""
    # One axis after the other: what is below the image at first may move into it.
    masks = masks.translate((masks.height, shape[1]), shift[0], _ACROSS)
    return masks.translate(tuple(shape), shift[1], _DOWN)


def _size(value: Sequence[int]) -> tuple[int, int]:
    size = tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"img_scale: (width, height) in whole pixels was expected, got {value!r}")
    return size
