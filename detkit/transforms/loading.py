"""Images and annotations from files into the ``results`` dict of a pipeline."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.logging import print_log
from pycocotools import mask as rle_tools

from detkit.registry import TRANSFORMS
from detkit.structures.masks import BitmapMasks, PolygonMasks
from detkit.transforms.image_file import COLOR_TYPES, decode_image, read_bytes
from detkit.transforms.objects import select_objects

__all__ = ["FilterAnnotations", "LoadAnnotations", "LoadImageFromFile", "LoadImageFromNDArray"]


@TRANSFORMS.register_module()
class LoadImageFromFile(BaseTransform):
    """Read ``img_path`` into ``img`` (H, W, 3) BGR uint8, upright as its EXIF orientation says.

    Sets ``img``, ``img_shape`` and ``ori_shape`` (height, width).

    Args:
        to_float32: Convert to float32, values 0 to 255.
        color_type: A colour flag of :func:`mmcv.imread`; ``unchanged`` and those that end in
            ``ignore_orientation`` do not turn the image.
        imdecode_backend: ``cv2``, ``pillow``, ``turbojpeg`` or ``tifffile``; the last two do not read EXIF.
        ignore_empty: Log an image that cannot be loaded and return None, so that the dataset takes
            another one, instead of raising.
        backend_args: File backend of mmengine; None reads local files.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, cut off or not an image, or its size is not the annotated one.
    """

    def __init__(
        self,
        to_float32: bool = False,
        color_type: str = "color",
        imdecode_backend: str = "cv2",
        ignore_empty: bool = False,
        *,
        backend_args: Mapping[str, Any] | None = None,
    ) -> None:
        if color_type not in COLOR_TYPES:
            raise ValueError(f"color_type: one of {', '.join(COLOR_TYPES)} was expected, got {color_type!r}")
        self.to_float32 = to_float32
        self.color_type = color_type
        self.imdecode_backend = imdecode_backend
        self.ignore_empty = ignore_empty
        self.backend_args = None if backend_args is None else dict(backend_args)

    def transform(self, results: dict) -> dict | None:
        """Load the image of ``results``; None if it cannot be and ``ignore_empty`` is set."""
        try:
            img = self._load(results["img_path"])
        except (OSError, ValueError) as error:
            if not self.ignore_empty:
                raise
            print_log(f"{error}; skipped (ignore_empty)", logger="current", level=logging.WARNING)
            return None
        _check_size(img, results)
        if self.to_float32:
            img = img.astype(np.float32)
        results["img"] = img
        results["img_shape"] = results["ori_shape"] = img.shape[:2]
        return results

    def _load(self, path: str) -> np.ndarray:
        content = read_bytes(path, self.backend_args)
        return decode_image(content, path, self.color_type, self.imdecode_backend)


@TRANSFORMS.register_module()
class LoadImageFromNDArray(BaseTransform):
    """Take an image that is already in memory as ``img``: (H, W, 3) BGR or (H, W).

    Args:
        to_float32: Convert to float32, values 0 to 255.
    """

    def __init__(self, to_float32: bool = False) -> None:
        self.to_float32 = to_float32

    def transform(self, results: dict) -> dict:
        """Set ``img_path`` (None), ``img_shape`` and ``ori_shape`` beside ``img``."""
        img = results["img"]
        if not isinstance(img, np.ndarray) or img.ndim not in (2, 3) or img.size == 0:
            raise ValueError(f"an image array (H, W, 3) was expected, got {getattr(img, 'shape', type(img).__name__)}")
        results["img"] = img.astype(np.float32) if self.to_float32 else img
        results["img_path"] = None
        results["img_shape"] = results["ori_shape"] = img.shape[:2]
        return results


@TRANSFORMS.register_module()
class LoadAnnotations(BaseTransform):
    """Turn the ``instances`` of a record into arrays.

    Sets ``gt_bboxes`` (G, 4) float32 xyxy and ``gt_ignore_flags`` (G,) bool; ``gt_bboxes_labels`` (G,)
    int64; ``gt_masks``; ``gt_seg_map`` (H, W). An object whose polygons all have fewer than three corners
    becomes an ignored one with an empty mask, and so does an RLE mask where polygons are asked for.

    Args:
        with_mask: Load masks.
        poly2mask: Give bitmaps; False keeps polygons.
        box_type: ``'hbox'`` or None; boxes are plain arrays either way.
        reduce_zero_label: Make class 0 of a segmentation map ``ignore_index`` and count the others from 0.
        ignore_index: Value of segmentation-map pixels that do not count.
        with_bbox: Load boxes.
        with_label: Load labels.
        with_seg: Load the segmentation map.
        imdecode_backend: Decoder of segmentation maps.
        backend_args: File backend of mmengine; None reads local files.

    Raises:
        ValueError: An object has no mask, or its mask has another size than the image.
    """

    def __init__(
        self,
        with_mask: bool = False,
        poly2mask: bool = True,
        box_type: str | None = "hbox",
        reduce_zero_label: bool = False,
        ignore_index: int = 255,
        with_bbox: bool = True,
        with_label: bool = True,
        with_seg: bool = False,
        imdecode_backend: str = "cv2",
        *,
        backend_args: Mapping[str, Any] | None = None,
    ) -> None:
        if box_type not in ("hbox", None):
            raise ValueError(f"box_type: 'hbox' or None was expected, got {box_type!r}")
        self.with_mask = with_mask
        self.poly2mask = poly2mask
        self.reduce_zero_label = reduce_zero_label
        self.ignore_index = ignore_index
        self.with_bbox = with_bbox
        self.with_label = with_label
        self.with_seg = with_seg
        self.imdecode_backend = imdecode_backend
        self.backend_args = None if backend_args is None else dict(backend_args)

    def transform(self, results: dict) -> dict:
        """Add what was asked for."""
        instances = results.get("instances", [])
        flags = np.array([instance["ignore_flag"] for instance in instances], dtype=bool)
        if self.with_bbox:
            boxes = [instance["bbox"] for instance in instances]
            results["gt_bboxes"] = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        if self.with_label:
            labels = [instance["bbox_label"] for instance in instances]
            results["gt_bboxes_labels"] = np.array(labels, dtype=np.int64)
        if self.with_mask:
            results["gt_masks"], broken = self._load_masks(results, instances)
            flags |= broken
        if self.with_bbox or self.with_mask:
            results["gt_ignore_flags"] = flags
        if self.with_seg:
            self._load_seg_map(results)
        return results

    def _load_masks(self, results: dict, instances: list[dict]) -> tuple[BitmapMasks | PolygonMasks, np.ndarray]:
        """The masks, and which of them are broken (G,) bool."""
        height, width = results["ori_shape"] if "ori_shape" in results else (results["height"], results["width"])
        masks: list[Any] = []
        broken = np.zeros(len(instances), dtype=bool)
        for i, instance in enumerate(instances):
            if "mask" not in instance:
                raise ValueError(f"{_place(results, instance, i)}: no segmentation, but with_mask=True asks for one")
            mask = instance["mask"]
            if isinstance(mask, list):
                mask = [np.array(part, dtype=np.float64) for part in mask if len(part) >= 6 and len(part) % 2 == 0]
                broken[i] = not mask
            elif not self.poly2mask or not _is_rle(mask):
                mask, broken[i] = [], True
            elif tuple(mask["size"]) != (height, width):
                raise ValueError(
                    f"{_place(results, instance, i)}: the mask is of an image of {mask['size'][1]} x "
                    f"{mask['size'][0]} (width x height), this one has {width} x {height}"
                )
            masks.append(mask or [np.zeros(6)])
        if not self.poly2mask:
            return PolygonMasks(masks, height, width), broken
        bitmaps = [_rasterise(mask, height, width) for mask in masks]
        return BitmapMasks(bitmaps, height, width), broken

    def _load_seg_map(self, results: dict) -> None:
        path = results["seg_map_path"]
        content = read_bytes(path, self.backend_args)
        seg_map = decode_image(content, path, "unchanged", self.imdecode_backend).squeeze()
        if self.reduce_zero_label:
            no_class = (seg_map == 0) | (seg_map == self.ignore_index)
            seg_map = np.where(no_class, self.ignore_index, seg_map - 1).astype(seg_map.dtype)
        results["gt_seg_map"] = seg_map
        results["ignore_index"] = self.ignore_index


@TRANSFORMS.register_module()
class FilterAnnotations(BaseTransform):
    """Remove objects that are too small, as they can become when an image is cropped or shrunk.

    Args:
        min_gt_bbox_wh: Least width and height of a box, in pixels; it must be larger.
        min_gt_mask_area: Least area of a mask, in pixels.
        by_box: Judge boxes.
        by_mask: Judge masks; with ``by_box`` an object must pass both.
        keep_empty: Return None where no object is left, so that the dataset takes another image
            (the name is MMDetection's); False returns the image without objects.

    Raises:
        ValueError: Neither ``by_box`` nor ``by_mask``.
    """

    def __init__(
        self,
        min_gt_bbox_wh: tuple[float, float] = (1.0, 1.0),
        min_gt_mask_area: int = 1,
        by_box: bool = True,
        by_mask: bool = False,
        keep_empty: bool = True,
    ) -> None:
        if not (by_box or by_mask):
            raise ValueError("by_box, by_mask: at least one must be True, else nothing is filtered")
        self.min_gt_bbox_wh = min_gt_bbox_wh
        self.min_gt_mask_area = min_gt_mask_area
        self.by_box = by_box
        self.by_mask = by_mask
        self.keep_empty = keep_empty

    def transform(self, results: dict) -> dict | None:
        """Keep the objects that are large enough, in every per-object field."""
        boxes = results["gt_bboxes"]
        keep = np.ones(len(boxes), dtype=bool)
        if self.by_box:
            sides = boxes[:, 2:] - boxes[:, :2]
            keep &= (sides > np.asarray(self.min_gt_bbox_wh)).all(axis=1)
        if self.by_mask:
            keep &= results["gt_masks"].areas >= self.min_gt_mask_area
        if self.keep_empty and not keep.any():
            return None
        select_objects(results, keep)
        return results


def _check_size(img: np.ndarray, results: Mapping[str, Any]) -> None:
    """Hold the image against the size that the annotations were drawn in."""
    stated = (results.get("height", img.shape[0]), results.get("width", img.shape[1]))
    if stated == img.shape[:2]:
        return
    remedy = "correct width and height in the annotation file"
    if stated == img.shape[1::-1]:
        remedy += (
            ", or, if the boxes were drawn on the image as stored, without its EXIF orientation, load it so: "
            "color_type='color_ignore_orientation' of LoadImageFromFile"
        )
    raise ValueError(
        f"{results['img_path']}: the image file has {img.shape[1]} x {img.shape[0]} pixels (width x height), "
        f"its annotation says {stated[1]} x {stated[0]}: {remedy}"
    )


def _is_rle(mask: Any) -> bool:
    return isinstance(mask, Mapping) and isinstance(mask.get("counts"), (list, str, bytes)) and bool(mask.get("size"))


def _rasterise(mask: list[np.ndarray] | Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """(H, W) uint8 from polygons or an RLE."""
    if isinstance(mask, Mapping):
        rle = mask if not isinstance(mask["counts"], list) else rle_tools.frPyObjects(dict(mask), height, width)
    else:
        rle = rle_tools.merge(rle_tools.frPyObjects([part.tolist() for part in mask], height, width))
    return rle_tools.decode(rle)


def _place(results: Mapping[str, Any], instance: Mapping[str, Any], index: int) -> str:
    name = f"annotation {instance['ann_id']}" if "ann_id" in instance else f"object {index}"
    return f"{results.get('img_path', 'image')}: {name}"
