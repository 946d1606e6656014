"""COCO-format annotations: https://cocodataset.org/#format-data."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine import fileio
from mmengine.logging import print_log

from detkit.datasets.base import BaseDetDataset
from detkit.datasets.label_map import LabelMap
from detkit.registry import DATASETS
from detkit.structures.annotations import box_fault, reference_fault

__all__ = ["CocoDataset"]

# Faults told one by one; the rest are counted.
_TOLD = 5


@DATASETS.register_module()
class CocoDataset(BaseDetDataset):
    """A dataset in a COCO JSON file with any category ids.

    Classes come by name. With ``metainfo=dict(classes=[...])`` label ``i`` is the i-th name of that list,
    and objects of other categories are left out, how many is in the log; without it every category of the file is
    a class, in ascending id order. ``metainfo`` of the dataset then holds ``classes``, ``category_ids`` (the
    file's id of each class) and ``ann_file`` (absolute).

    An annotation that cannot be right is an error: a box that is no box (not four finite numbers, zero or
    negative width or height, wholly outside its image), an image or a category that the file does not
    list, an id that occurs twice. ``bad_annotations='drop'`` leaves such annotations out and says how many.
    A box partly outside its image is kept as it is, and ``Resize`` clips it. As in MMDetection, crowd
    regions are ignored regions, and annotations marked ``ignore`` or narrower or lower than one pixel are
    left out; how many is in the log. Unlike there, ``area`` is not read, a box is judged by its sides;
    and ``filter_empty_gt`` looks at the objects that were kept, not at those in the file.

    Args:
        ann_file: The JSON file, absolute or below ``data_root``.
        bad_annotations: What happens to impossible annotations, ``'raise'`` or ``'drop'``.
        kwargs: Arguments of :class:`BaseDetDataset`.

    Raises:
        FileNotFoundError: The JSON file or an image is not there.
        ValueError: The file is not COCO JSON, an annotation is impossible, or a class is not in the file.

    Attributes:
        image_keys: What each entry of ``images`` must have.
    """

    image_keys: tuple[str, ...] = ("id", "file_name", "width", "height")

    def __init__(self, ann_file: str = "", *, bad_annotations: str = "raise", **kwargs: Any) -> None:
        if bad_annotations not in ("raise", "drop"):
            raise ValueError(f"bad_annotations: 'raise' or 'drop' was expected, got {bad_annotations!r}")
        if not ann_file:
            raise ValueError("ann_file: the path of a COCO JSON file was expected, got ''")
        self.bad_annotations = bad_annotations
        super().__init__(ann_file=ann_file, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read the JSON file into one record per image, in the file's order."""
        content = self._read()
        names = _unique(content["categories"], "category", ("id", "name"), self.ann_file)
        by_name = {category["name"]: category_id for category_id, category in names.items()}
        if len(by_name) < len(names):
            raise ValueError(f"{self.ann_file}: two categories have the same name; names must tell classes apart")
        self.label_map = LabelMap.match(by_name, self._metainfo.get("classes"), self.ann_file)
        self._metainfo.update(
            classes=self.label_map.classes,
            category_ids=self.label_map.category_ids,
            ann_file=self.ann_file if self._is_remote(self.ann_file) else os.path.abspath(self.ann_file),
        )
        records = {
            image_id: self._record(image)
            for image_id, image in _unique(content["images"], "image", self.image_keys, self.ann_file).items()
        }
        self._add_instances(content.get("annotations", []), records, set(names))
        return list(records.values())

    def file_name(self, image: Mapping[str, Any]) -> str:
        """Path of an image below the image folder, of its entry in the file."""
        return image["file_name"]

    def _read(self) -> dict:
        self._require_file(self.ann_file)
        try:
            content = json.loads(fileio.get(self.ann_file, backend_args=self.backend_args))
        except ValueError as error:  # also what undecodable bytes raise
            raise ValueError(f"{self.ann_file}: not JSON, or cut off: {error}") from error
        # Image lists of test sets come without annotations.
        needed = ("images", "categories") if self.test_mode else ("images", "annotations", "categories")
        if not isinstance(content, dict):
            found = f"a JSON {type(content).__name__}"
        else:
            lacking = [key for key in needed if not isinstance(content.get(key), list)]
            if not lacking:
                return content
            found = f"an object with the keys {sorted(content)[:10]}, without a list under {' or '.join(lacking)}"
        raise ValueError(
            f"{self.ann_file}: not a COCO file: an object with the lists {', '.join(needed)} was expected, "
            f"found {found}"
        )

    def _record(self, image: Mapping[str, Any]) -> dict:
        width, height, name = image["width"], image["height"], self.file_name(image)
        if not all(isinstance(side, (int, float)) and side > 0 and side == int(side) for side in (width, height)):
            raise ValueError(
                f"{self.ann_file}: image {image['id']}: width and height in pixels were expected, "
                f"got {width!r} and {height!r}"
            )
        record = {
            "img_path": os.path.join(self.data_prefix["img"], name),
            "img_id": image["id"],
            "height": int(height),
            "width": int(width),
            "instances": [],
        }
        if "seg" in self.data_prefix:
            stem = os.path.splitext(name)[0]
            record["seg_map_path"] = os.path.join(self.data_prefix["seg"], stem + self.seg_map_suffix)
        if self.return_classes:
            record["text"] = self.label_map.classes
            record["custom_entities"] = True
        return record

    def _add_instances(self, annotations: Sequence[Any], records: Mapping[Any, dict], known: set) -> None:
        """Sort the annotations of the wanted classes into their images' records, or say what is wrong with them."""
        labels = {category_id: label for label, category_id in enumerate(self.label_map.category_ids)}
        faults: list[str] = []
        seen: set = set()
        others, ignored, tiny, largest = 0, 0, 0, 0.0
        for index, annotation in enumerate(annotations):
            fault = reference_fault(annotation, seen, records, known)
            if fault is not None:
                faults.append(f"{_name(annotation, index)}: {fault}")
                continue
            label = labels.get(annotation["category_id"])
            if label is None:
                others += 1
                continue
            if annotation.get("ignore"):
                ignored += 1
                continue
            record = records[annotation["image_id"]]
            fault = box_fault(annotation.get("bbox"), record["width"], record["height"])
            if fault is not None:
                faults.append(f"annotation {annotation['id']} (image {annotation['image_id']}): {fault}")
                continue
            x, y, width, height = annotation["bbox"]
            largest = max(largest, x + width, y + height)
            if width < 1 or height < 1:
                tiny += 1
                continue
            instance = {
                "bbox": [x, y, x + width, y + height],
                "bbox_label": label,
                "ignore_flag": int(bool(annotation.get("iscrowd"))),
                "ann_id": annotation["id"],
            }
            if annotation.get("segmentation"):
                instance["mask"] = annotation["segmentation"]
            record["instances"].append(instance)
        self._tell(faults, others, ignored, tiny, largest)

    def _tell(self, faults: Sequence[str], others: int, ignored: int, tiny: int, largest: float) -> None:
        """Raise or log what was left out, and why; ``largest`` is the largest coordinate of all boxes."""
        if faults:
            more = f"; and {len(faults) - _TOLD} more" if len(faults) > _TOLD else ""
            summary = f"{self.ann_file}: {_plural(len(faults), 'bad annotation')}: {'; '.join(faults[:_TOLD])}{more}"
            if self.bad_annotations == "raise":
                raise ValueError(f"{summary}. Correct the file, or leave them out with bad_annotations='drop'")
            print_log(f"{summary}; dropped", logger="current", level=logging.WARNING)
        if 0 < largest <= 1:
            raise ValueError(
                f"{self.ann_file}: all {tiny} boxes lie within the first pixel; COCO boxes are "
                "[x, y, width, height] in pixels, not relative to the image size"
            )
        for count, what in (
            (others, "of categories that are not in the class list"),
            (ignored, "marked 'ignore'"),
            (tiny, "narrower or lower than one pixel"),
        ):
            if count:
                print_log(f"{self.ann_file}: {_plural(count, 'annotation')} {what} left out", logger="current")


def _unique(entries: Sequence[Any], what: str, keys: Sequence[str], file: str) -> dict[Any, Mapping[str, Any]]:
    """Entries by id; refuses an entry without one of ``keys`` and an id that occurs twice."""
    by_id: dict[Any, Mapping[str, Any]] = {}
    for index, entry in enumerate(entries):
        lacking = [key for key in keys if key not in entry] if isinstance(entry, dict) else keys
        if lacking:
            raise ValueError(f"{file}: {_name(entry, index, what)} has no {' and no '.join(lacking)}: {entry!r:.200}")
        if not isinstance(entry["id"], (int, str)):
            raise ValueError(f"{file}: {what} number {index}: a number was expected as id, got {entry['id']!r}")
        if entry["id"] in by_id:
            raise ValueError(f"{file}: the {what} id {entry['id']!r} occurs more than once")
        by_id[entry["id"]] = entry
    return by_id


def _name(entry: Any, index: int, what: str = "annotation") -> str:
    if isinstance(entry, dict) and "id" in entry:
        return f"{what} {entry['id']}"
    return f"{what} number {index}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
