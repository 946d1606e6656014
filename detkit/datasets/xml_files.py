"""Annotations in PASCAL VOC's XML files, one for each image: http://host.robots.ox.ac.uk/pascal/VOC."""

from __future__ import annotations

import logging
import os
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from mmengine import fileio
from mmengine.logging import print_log

from detkit.datasets.base import BaseDetDataset
from detkit.registry import DATASETS
from detkit.structures.annotations import box_fault
from detkit.transforms.image_file import decode_image, read_bytes

__all__ = ["VOCDataset", "WIDERFaceDataset", "XMLDataset"]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
# Faults told one by one; the rest are counted.
_TOLD = 5


@DATASETS.register_module()
class XMLDataset(BaseDetDataset):
    """A list of image names, and for each an XML file in PASCAL VOC's form.

    Objects of classes that are not in the list are left out, as are boxes without width or height; how many is in
    the log. ``difficult`` objects are ignored regions. An impossible box (no four numbers, corners the wrong way
    round, wholly outside its image) is an error that names file and object; ``bad_annotations='drop'`` leaves it out.

    Args:
        img_subdir: Folder of the images, below ``data_prefix['sub_data_root']``.
        ann_subdir: Folder of the XML files, below the same.
        bad_annotations: What happens to impossible boxes, ``'raise'`` or ``'drop'``.
        kwargs: Arguments of :class:`BaseDetDataset`. ``ann_file`` is the list of names; ``metainfo`` must have
            ``classes``; ``filter_cfg`` may have ``bbox_min_size``: objects narrower or lower are ignored regions.

    Raises:
        FileNotFoundError: The list, an XML file or an image is not there.
        ValueError: No classes, a file that is not XML, a box that is none.

    Attributes:
        first_pixel: Coordinate of the first pixel, which is taken off: 1 in PASCAL VOC.
    """

    data_prefix_keys = ("img", "seg", "sub_data_root")
    filter_cfg_keys = ("filter_empty_gt", "min_size", "bbox_min_size")
    first_pixel = 1

    def __init__(
        self,
        img_subdir: str = "JPEGImages",
        ann_subdir: str = "Annotations",
        *,
        bad_annotations: str = "raise",
        **kwargs: Any,
    ) -> None:
        if bad_annotations not in ("raise", "drop"):
            raise ValueError(f"bad_annotations: 'raise' or 'drop' was expected, got {bad_annotations!r}")
        self.img_subdir = img_subdir
        self.ann_subdir = ann_subdir
        self.bad_annotations = bad_annotations
        super().__init__(**kwargs)

    @property
    def sub_data_root(self) -> str:
        """The folder of images and XML files."""
        return self.data_prefix.get("sub_data_root", self.data_root)

    def load_data_list(self) -> list[dict]:
        """Read the list and each image's XML file."""
        classes = self._metainfo.get("classes")
        if not classes:
            raise ValueError(f"{self.ann_file}: XML files list no classes: give metainfo=dict(classes=[...])")
        self._labels = {name: label for label, name in enumerate(classes)}
        self._require_file(self.ann_file)
        names = fileio.get_text(self.ann_file, backend_args=self.backend_args).split("\n")
        self._faults: list[str] = []
        self._others = self._flat = 0
        records = [self._record(name.strip()) for name in names if name.strip()]
        self._tell()
        return records

    def xml_path(self, name: str) -> str:
        """The XML file of an image."""
        return os.path.join(self.sub_data_root, self.ann_subdir, f"{name}.xml")

    def img_path(self, name: str, root: Element) -> str:
        """The file of an image; ``root`` is of its XML file."""
        return os.path.join(self.sub_data_root, self.img_subdir, f"{name}.jpg")

    def _record(self, name: str) -> dict:
        path = self.xml_path(name)
        self._require_file(path)
        try:
            root = ElementTree.fromstring(fileio.get(path, backend_args=self.backend_args))
        except ElementTree.ParseError as error:
            raise ValueError(f"{path}: not XML, or cut off: {error}") from error
        img_path = self.img_path(name, root)
        width, height = self._size(root, path, img_path)
        record = {"img_path": img_path, "img_id": name, "xml_path": path, "height": height, "width": width}
        record["instances"] = self._instances(root, path, width, height)
        if self.return_classes:
            record["text"] = tuple(self._labels)
        return record

    def _size(self, root: Element, path: str, img_path: str) -> tuple[int, int]:
        """(width, height) as the file states them, else of the image."""
        sides = [root.findtext(f"size/{side}") for side in ("width", "height")]
        if sides == [None, None]:
            img = decode_image(read_bytes(img_path, self.backend_args), img_path, "color", "cv2")
            return img.shape[1], img.shape[0]
        if not all(side is not None and side.strip().isdigit() and int(side) > 0 for side in sides):
            raise ValueError(f"{path}: width and height in pixels were expected, got {sides[0]!r} and {sides[1]!r}")
        return int(sides[0] or 0), int(sides[1] or 0)

    def _instances(self, root: Element, path: str, width: int, height: int) -> list[dict]:
        instances = []
        least = 0 if self.test_mode else (self.filter_cfg or {}).get("bbox_min_size") or 0
        for number, thing in enumerate(root.findall("object"), start=1):
            label = self._labels.get((thing.findtext("name") or "").strip())
            if label is None:
                self._others += 1
                continue
            box = self._box(thing)
            sides = None if box is None else (box[2] - box[0], box[3] - box[1])
            if box is None or sides is None:
                texts = [thing.findtext(f"bndbox/{corner}") for corner in _CORNERS]
                self._faults.append(f"{path}: object {number}: {', '.join(_CORNERS)} were expected, got {texts}")
            elif 0 in sides:
                self._flat += 1
            elif (fault := box_fault([*box[:2], *sides], width, height)) is not None:
                self._faults.append(f"{path}: object {number}: {fault}")
            else:
                difficult = (thing.findtext("difficult") or "0").strip() not in ("0", "")
                ignored = int(difficult or min(sides) < least)
                instances.append({"bbox": box, "bbox_label": label, "ignore_flag": ignored})
        return instances

    def _box(self, thing: Element) -> list[int] | None:
        try:
            return [int(float(thing.findtext(f"bndbox/{corner}") or "")) - self.first_pixel for corner in _CORNERS]
        except (ValueError, OverflowError):
            return None

    def _tell(self) -> None:
        """Raise or log what was left out, and why."""
        if self._faults:
            more = f"; and {len(self._faults) - _TOLD} more" if len(self._faults) > _TOLD else ""
            summary = f"{self.ann_file}: {len(self._faults)} bad boxes: {'; '.join(self._faults[:_TOLD])}{more}"
            if self.bad_annotations == "raise":
                raise ValueError(f"{summary}. Correct the files, or leave them out with bad_annotations='drop'")
            print_log(f"{summary}; dropped", logger="current", level=logging.WARNING)
        for count, what in ((self._others, "of classes that are not listed"), (self._flat, "without width or height")):
            if count:
                print_log(f"{self.ann_file}: {count} objects {what} left out", logger="current")


@DATASETS.register_module()
class VOCDataset(XMLDataset):
    """PASCAL VOC 2007 or 2012, http://host.robots.ox.ac.uk/pascal/VOC, with its twenty classes.

    ``metainfo['dataset_type']`` is ``'VOC2007'`` or ``'VOC2012'`` if ``sub_data_root`` says so.

    Args:
        img_subdir: As XMLDataset's, here and below.
        ann_subdir: The same.
        kwargs: The same.
    """

    METAINFO = {
        "classes": (
            *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
            *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
            "tvmonitor",
        ),
    }

    def load_data_list(self) -> list[dict]:
        """The records, after which year they are of is known."""
        year = next((year for year in ("VOC2007", "VOC2012") if year in self.sub_data_root), None)
        self._metainfo["dataset_type"] = year
        return super().load_data_list()


@DATASETS.register_module()
class WIDERFaceDataset(XMLDataset):
    """WIDER Face (http://shuoyang1213.me/WIDERFACE) converted to XML files.

    They are in ``Annotations`` of ``data_prefix['img']``; an image is in the folder that its XML file names.

    Args:
        img_subdir: Not used.
        ann_subdir: As XMLDataset's.
        kwargs: The same.
    """

    METAINFO = {"classes": ("face",)}
    first_pixel = 0

    def xml_path(self, name: str) -> str:
        """The XML file of an image."""
        return os.path.join(self.data_prefix["img"], self.ann_subdir, f"{name}.xml")

    def img_path(self, name: str, root: Element) -> str:
        """The file of an image; ``root`` is of its XML file."""
        return os.path.join(self.data_prefix["img"], (root.findtext("folder") or "").strip(), f"{name}.jpg")
