"""Between a detector's predictions and COCO's formats: the results list, the annotation file, carried ground truth."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.fileio import get_text
from mmengine.logging import print_log
from numpy.typing import NDArray
from pycocotools import mask as rle

from detkit.structures.annotations import box_fault, reference_fault

__all__ = [
    "carried_content",
    "carried_instances",
    "check_mask_sizes",
    "list_detections",
    "read_annotations",
    "to_numpy",
    "to_run_lengths",
    "to_xywh",
    "write_detections",
]


def to_numpy(values: Any) -> NDArray[Any]:
    """An array on the CPU of a tensor on any device."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def to_xywh(boxes: NDArray[Any]) -> NDArray[np.float64]:
    """(D, 4) boxes as COCO stores them: left, top, width, height."""
    boxes = boxes.reshape(-1, 4).astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def to_run_lengths(masks: Any) -> list[dict[str, Any]]:
    """Compressed run lengths of (D, H, W) masks, or of run lengths in either form."""
    if isinstance(masks, (list, tuple)) and all(isinstance(mask, Mapping) for mask in masks):
        return [_compact(mask, *mask["size"]) for mask in masks]
    return [rle.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in to_numpy(masks)]


def check_mask_sizes(result: Mapping[str, Any]) -> None:
    """Hold the ``masks`` of a result against its ``ori_shape``.

    Raises:
        ValueError: A mask has another size than its image.
    """
    height, width = result["ori_shape"][:2]
    for mask in result["masks"]:
        if tuple(mask["size"]) != (height, width):
            raise ValueError(
                f"image {result['img_id']!r}: a predicted mask has {mask['size'][0]} x {mask['size'][1]} pixels "
                f"(height x width), the image {height} x {width}; predict with rescale=True"
            )


def list_detections(
    results: Sequence[Mapping[str, Any]], iou_type: str, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Every detection as COCOeval reads it, image by image.

    Args:
        results: ``img_id``, ``bboxes``, ``scores``, ``labels`` and, for ``segm``, ``masks`` and ``mask_scores``.
        iou_type: ``bbox`` or ``segm``.
        category_ids: Id of each label.

    Raises:
        ValueError: A label stands for no class, or there are no masks.
    """
    detections: list[dict[str, Any]] = []
    for result in results:
        image_id, labels = result["img_id"], result["labels"]
        if labels.size and not 0 <= labels.min() <= labels.max() < len(category_ids):
            raise ValueError(
                f"image {image_id!r}: predicted labels {labels.min()} … {labels.max()}, but the data set has "
                f"{len(category_ids)} classes: set num_classes of the model's head to {len(category_ids)}"
            )
        if iou_type == "segm":
            if "masks" not in result:
                raise ValueError(f"image {image_id!r}: the metric 'segm' needs masks, but the model predicts none")
            areas, scores = rle.area(result["masks"]) if result["masks"] else (), result["mask_scores"]
            shapes: list[dict[str, Any]] = [
                {"segmentation": mask, "area": float(area)} for mask, area in zip(result["masks"], areas, strict=True)
            ]
        else:
            boxes, scores = to_xywh(result["bboxes"]), result["scores"]
            shapes = [{"bbox": box.tolist(), "area": float(box[2] * box[3])} for box in boxes]
        for shape, score, label in zip(shapes, scores.tolist(), labels.tolist(), strict=True):
            detections.append({"image_id": image_id, "category_id": category_ids[label], "score": score, **shape})
    return detections


def write_detections(detections: Sequence[Mapping[str, Any]], path: str) -> None:
    """Write detections in COCO's results format."""
    content = []
    for detection in detections:
        item = {key: value for key, value in detection.items() if key != "area"}
        mask = item.get("segmentation")
        if mask and isinstance(mask["counts"], bytes):
            item["segmentation"] = {**mask, "counts": mask["counts"].decode()}
        content.append(item)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content))


def read_annotations(file: str, backend_args: dict[str, Any] | None) -> dict[str, Any]:
    """The content of a COCO annotation file, without the impossible annotations.

    They are those that ``CocoDataset(bad_annotations='drop')`` leaves out, so that what no detector was shown is
    not missed. (Where it raises instead, there are none.)

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not COCO.
    """
    try:
        content = json.loads(get_text(file, backend_args=backend_args))
    except FileNotFoundError:
        raise FileNotFoundError(f"CocoMetric: the annotation file {file} does not exist") from None
    except ValueError as error:
        raise ValueError(f"{file}: is not JSON ({error}); a COCO annotation file was expected") from None
    needed = ("images", "annotations", "categories")
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(
            f"{file}: is not COCO: {', '.join(missing)} missing; an object with {', '.join(needed)} needed"
        )
    images = {image["id"]: image for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    seen: set = set()
    annotations = [a for a in content["annotations"] if not _is_bad(a, seen, images, categories)]
    count = len(content["annotations"]) - len(annotations)
    if count:
        print_log(
            f"{file}: not evaluated: {count} bad annotation{'s' * (count > 1)}, which bad_annotations='drop' of the "
            "data set leaves out, too",
            logger="current",
            level=logging.WARNING,
        )
    return {**content, "annotations": annotations}


def _is_bad(annotation: Any, seen: set, images: Mapping[Any, Mapping], categories: set) -> bool:
    if reference_fault(annotation, seen, images, categories) is not None:
        return True
    image = images[annotation["image_id"]]
    # Evaluation itself needs no image sizes: without them no box is outside.
    width, height = image.get("width", math.inf), image.get("height", math.inf)
    return box_fault(annotation.get("bbox"), width, height) is not None


def carried_instances(sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ground truth that travels with a sample, in pixels of the original image.

    Raises:
        ValueError: The sample carries none.
    """
    if "instances" not in sample:
        raise ValueError(
            "CocoMetric has no ground truth: give ann_file, or let the samples carry it with "
            "PackDetInputs(meta_keys=(..., 'instances'))"
        )
    return sample["instances"]


def carried_content(results: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """Annotation-file content made of the instances that the samples carried, with labels for category ids."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for result in results:
        height, width = result["ori_shape"][:2]
        images.append({"id": result["img_id"], "height": height, "width": width})
        for instance in result["instances"]:
            annotation = {
                "id": len(annotations) + 1,
                "image_id": result["img_id"],
                "category_id": instance["bbox_label"],
                "bbox": to_xywh(np.asarray(instance["bbox"]))[0].tolist(),
                "iscrowd": int(instance.get("ignore_flag", 0)),
            }
            if instance.get("mask") is not None:
                annotation["segmentation"] = _compact(instance["mask"], height, width)
                annotation["area"] = float(rle.area(annotation["segmentation"]))
            annotations.append(annotation)
    categories = [{"id": label, "name": name} for label, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _compact(mask: Any, height: int, width: int) -> dict[str, Any]:
    """One run-length mask of polygons or of run lengths in either form."""
    if isinstance(mask, Mapping):
        return rle.frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else dict(mask)
    return rle.merge(rle.frPyObjects(mask, height, width))
