"""Open Images, https://storage.googleapis.com/openimages/web: boxes in CSV files, a tree of classes, image labels."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.logging import print_log

from detkit.checkpoints.unpickle import load_pickle
from detkit.datasets.base import BaseDetDataset
from detkit.registry import DATASETS

__all__ = ["OpenImagesChallengeDataset", "OpenImagesDataset"]

_CORNERS = ("XMin", "YMin", "XMax", "YMax")
_FLAGS = {"is_occluded": "IsOccluded", "is_truncated": "IsTruncated", "is_group_of": "IsGroupOf",
          "is_depiction": "IsDepiction", "is_inside": "IsInside"}  # fmt: skip


@DATASETS.register_module()
class OpenImagesDataset(BaseDetDataset):
    """Open Images v6 as its CSV files have it.

    Instances have ``is_group_of`` and other flags; with ``image_level_ann_file`` records have ``image_level_labels``,
    the classes that people have looked for in the image, and ``confidences``. ``metainfo['RELATION_MATRIX']``
    (C, C) has a one where the second class is the first or one above it, for OpenImagesMetric.

    Args:
        label_file: CSV of class ids and names, in label order.
        meta_file: Pickle of a list of dicts with ``filename`` and ``ori_shape`` (height, width) of each image; it is
            read without running code.
        hierarchy_file: JSON tree of the class ids.
        image_level_ann_file: CSV of image labels.
        bad_annotations: What happens to impossible boxes, ``'raise'`` or ``'drop'``.
        kwargs: Arguments of :class:`BaseDetDataset`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A line, a class or an image size that is wrong or missing.
    """

    METAINFO = {"dataset_type": "oid_v6"}
    # Columns of an image label: the image, its class, its confidence.
    image_label_columns = (0, 2, 3)

    def __init__(
        self,
        label_file: str,
        meta_file: str,
        hierarchy_file: str,
        image_level_ann_file: str | None = None,
        *,
        bad_annotations: str = "raise",
        **kwargs: Any,
    ) -> None:
        if bad_annotations not in ("raise", "drop"):
            raise ValueError(f"bad_annotations: 'raise' or 'drop' was expected, got {bad_annotations!r}")
        root = kwargs.get("data_root") or ""
        self.label_file = os.path.join(root, label_file)
        self.meta_file = os.path.join(root, meta_file)
        self.hierarchy_file = os.path.join(root, hierarchy_file)
        self.image_level_ann_file = None if image_level_ann_file is None else os.path.join(root, image_level_ann_file)
        self.bad_annotations = bad_annotations
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Read all files into one record per image, in the annotation file's order."""
        names, self._labels = self._classes()
        self._metainfo["classes"] = names
        self._metainfo["RELATION_MATRIX"] = self._relations(len(names))
        boxes = self._boxes()
        sizes = self._sizes()
        image_labels = self._image_labels()
        records, dropped = [], 0
        for name, instances in boxes.items():
            image_id = os.path.splitext(os.path.basename(name))[0]
            if image_id not in sizes:
                raise ValueError(f"{self.meta_file}: has no size of image {image_id!r} of {self.ann_file}")
            height, width = sizes[image_id]
            kept = [item for item in instances if self._scale(item, width, height, image_id)]
            dropped += len(instances) - len(kept)
            record: dict[str, Any] = {"img_path": os.path.join(self.data_prefix["img"], name), "img_id": image_id}
            record.update(height=height, width=width, instances=kept)
            if image_labels is not None:
                record.update(image_labels.get(image_id) or _arrays([]))
            records.append(record)
        if dropped:
            message = f"{self.ann_file}: {dropped} impossible boxes dropped"
            print_log(message, logger="current", level=logging.WARNING)
        return records

    def _scale(self, instance: dict, width: int, height: int, image_id: str) -> bool:
        """Bring a box from parts of the image to pixels; False if it is to be dropped."""
        x1, y1, x2, y2 = box = instance["bbox"]
        if all(map(math.isfinite, box)) and x1 < x2 and y1 < y2 and x1 < 1 and y1 < 1 and x2 > 0 and y2 > 0:
            instance["bbox"] = [x1 * width, y1 * height, x2 * width, y2 * height]
            return True
        if self.bad_annotations == "raise":
            raise ValueError(
                f"{self.ann_file}: image {image_id}: the box {box} (x1, y1, x2, y2, parts of the image) is impossible. "
                "Correct the file, or leave such boxes out with bad_annotations='drop'"
            )
        return False

    def _classes(self) -> tuple[tuple[str, ...], dict[str, int]]:
        """Names in label order, and the label of each class id."""
        rows = [row for _, row in self._rows(self.label_file, 2)]
        return tuple(row[1] for row in rows), {row[0]: label for label, row in enumerate(rows)}

    def _boxes(self) -> dict[str, list[dict]]:
        """The instances of each image's file, boxes as parts of its size."""
        rows = self._rows(self.ann_file, 13)
        _, header = next(rows, (0, []))
        wanted = ("ImageID", "LabelName", *_CORNERS, *_FLAGS.values())
        lacking = [name for name in wanted if name not in header]
        if lacking:
            raise ValueError(f"{self.ann_file}: the first line has no {' and no '.join(lacking)}: {header}")
        place = {name: header.index(name) for name in wanted}
        boxes: dict[str, list[dict]] = {}
        for number, row in rows:
            try:
                instance: dict[str, Any] = {"bbox": [float(row[place[corner]]) for corner in _CORNERS]}
                instance.update({flag: int(row[place[name]]) == 1 for flag, name in _FLAGS.items()})
            except ValueError as error:
                raise ValueError(f"{self.ann_file}: line {number}: {error}: {row}") from error
            instance["bbox_label"] = self._label(row[place["LabelName"]], self.ann_file, number)
            instance["ignore_flag"] = 0
            boxes.setdefault(f"{row[place['ImageID']]}.jpg", []).append(instance)
        return boxes

    def _relations(self, count: int) -> np.ndarray:
        try:
            tree = json.loads(self._text(self.hierarchy_file))
        except ValueError as error:
            raise ValueError(f"{self.hierarchy_file}: not JSON: {error}") from error
        matrix = np.eye(count)

        def walk(node: Mapping[str, Any], above: Sequence[int]) -> None:
            for child in node.get("Subcategory", ()):
                if "LabelName" in child:
                    label = self._label(child["LabelName"], self.hierarchy_file)
                    matrix[label, list(above)] = 1
                    walk(child, [label, *above])

        walk(tree, [])
        return matrix

    def _sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) by image id."""
        self._require_file(self.meta_file)
        try:
            content = load_pickle(io.BytesIO(fileio.get(self.meta_file, backend_args=self.backend_args)))
            return {
                os.path.splitext(os.path.basename(meta["filename"]))[0]: (
                    int(meta["ori_shape"][0]),
                    int(meta["ori_shape"][1]),
                )
                for meta in content
            }
        except Exception as error:  # a broken pickle may raise anything
            raise ValueError(
                f"{self.meta_file}: a pickle of a list of dicts with filename and ori_shape was expected: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _image_labels(self) -> dict[str, dict[str, np.ndarray]] | None:
        if self.image_level_ann_file is None:
            return None
        image, label, confidence = self.image_label_columns
        listed: dict[str, list] = {}
        rows = self._rows(self.image_level_ann_file, 3)
        next(rows, None)
        for number, row in rows:
            found = self._label(row[label], self.image_level_ann_file, number)
            listed.setdefault(row[image], []).append((found, float(row[confidence])))
        return {name: _arrays(pairs) for name, pairs in listed.items()}

    def _label(self, class_id: str, file: str, line: int | None = None) -> int:
        if class_id not in self._labels:
            at = "" if line is None else f" line {line}:"
            raise ValueError(f"{file}:{at} the class {class_id!r} is not in {self.label_file}")
        return self._labels[class_id]

    def _rows(self, file: str, least: int) -> Iterator[tuple[int, list[str]]]:
        """Number and columns of each line of a CSV file."""
        for number, row in enumerate(csv.reader(io.StringIO(self._text(file))), start=1):
            if len(row) < least:
                raise ValueError(f"{file}: line {number}: at least {least} columns were expected, got {row}")
            yield number, row

    def _text(self, file: str) -> str:
        self._require_file(file)
        return fileio.get_text(file, backend_args=self.backend_args)


@DATASETS.register_module()
class OpenImagesChallengeDataset(OpenImagesDataset):
    """The Open Images Challenge: boxes in a text file of blocks, classes with their numbers, the tree as a matrix.

    Args:
        ann_file: A block for each image: its file, a line that is not read, the number of boxes, and of each box the
            class (from 1), x1, y1, x2, y2 (parts of the image) and whether it is of a group.
        kwargs: Arguments of :class:`OpenImagesDataset`. ``label_file``: CSV of class ids, names and numbers (from 1).
            ``hierarchy_file``: an array of numpy, (C + 1, C + 1).

    Raises:
        TypeError: ``ann_file`` is no text file.
        ValueError: As OpenImagesDataset.
    """

    METAINFO = {"dataset_type": "oid_challenge"}
    image_label_columns = (0, 1, 2)

    def __init__(self, ann_file: str, **kwargs: Any) -> None:
        if not ann_file.endswith("txt"):
            raise TypeError(f"ann_file: a text file was expected, got {ann_file!r}")
        super().__init__(ann_file=ann_file, **kwargs)

    def _classes(self) -> tuple[tuple[str, ...], dict[str, int]]:
        rows = sorted((row for _, row in self._rows(self.label_file, 3)), key=lambda row: int(row[2]))
        numbers = [int(row[2]) for row in rows]
        if numbers != list(range(1, len(rows) + 1)):
            raise ValueError(f"{self.label_file}: classes numbered 1 to {len(rows)} were expected, got {numbers[:9]} …")
        return tuple(row[1] for row in rows), {row[0]: label for label, row in enumerate(rows)}

    def _boxes(self) -> dict[str, list[dict]]:
        lines = self._text(self.ann_file).splitlines()
        boxes: dict[str, list[dict]] = {}
        at = 0
        while at < len(lines):
            try:
                count = int(lines[at + 2])
                boxes[lines[at].rstrip()] = [self._instance(line) for line in lines[at + 3 : at + 3 + count]]
                if at + 3 + count > len(lines):
                    raise ValueError("the file ends within it")
            except (ValueError, IndexError) as error:
                raise ValueError(f"{self.ann_file}: the block at line {at + 1} is broken: {error}") from error
            at += 3 + count
        return boxes

    def _instance(self, line: str) -> dict[str, Any]:
        number, *corners, group = line.split()[:6]
        label = int(number) - 1
        if not 0 <= label < len(self._labels):
            raise ValueError(f"class {number} of {len(self._labels)}")
        box = [float(corner) for corner in corners]
        return {"bbox": box, "bbox_label": label, "ignore_flag": 0, "is_group_of": int(group) == 1}

    def _relations(self, count: int) -> np.ndarray:
        self._require_file(self.hierarchy_file)
        content = fileio.get(self.hierarchy_file, backend_args=self.backend_args)
        try:
            matrix = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{self.hierarchy_file}: an array of numpy was expected: {error}") from error
        if matrix.shape != (count + 1, count + 1):
            raise ValueError(
                f"{self.hierarchy_file}: an array ({count + 1}, {count + 1}) was expected for the {count} classes of "
                f"{self.label_file}, got shape {matrix.shape}"
            )
        return matrix[1:, 1:]


def _arrays(pairs: Sequence[tuple[int, float]]) -> dict[str, np.ndarray]:
    return {
        "image_level_labels": np.array([label for label, _ in pairs], dtype=np.int64),
        "confidences": np.array([confidence for _, confidence in pairs], dtype=np.float32),
    }
