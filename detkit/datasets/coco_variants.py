"""Data sets whose annotations are COCO JSON but for a detail: LVIS, Objects365, V3Det, Cityscapes and others.

Their classes are those of the file, in ascending id order, as for CocoDataset.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mmengine import fileio

from detkit.datasets.coco import CocoDataset
from detkit.registry import DATASETS

__all__ = [
    "CityscapesDataset",
    "DeepFashionDataset",
    "LVISV05Dataset",
    "LVISV1Dataset",
    "Objects365V1Dataset",
    "Objects365V2Dataset",
    "V3DetDataset",
    "iSAIDDataset",
]

_LVIS_NAME = len("000000000139.jpg")
# Files of Objects365 v2 that cannot be decoded.
_BROKEN_OBJECTS365 = frozenset(
    {
        "patch16/objects365_v2_00908726.jpg",
        "patch6/objects365_v1_00320532.jpg",
        "patch6/objects365_v1_00320534.jpg",
    }
)


@DATASETS.register_module()
@DATASETS.register_module(name="LVISDataset")
class LVISV05Dataset(CocoDataset):
    """LVIS v0.5, https://www.lvisdataset.org; images are named as in COCO 2017, without ``COCO_val2014_`` before it.

    Args:
        ann_file: As CocoDataset's.
        kwargs: Its other arguments.
    """

    def file_name(self, image: Mapping[str, Any]) -> str:
        """The name of the image's file."""
        name = image["file_name"]
        return name[-_LVIS_NAME:] if name.startswith("COCO") else name


@DATASETS.register_module()
class LVISV1Dataset(CocoDataset):
    """LVIS v1, https://www.lvisdataset.org; an image's folder and name are the end of its ``coco_url``.

    Args:
        ann_file: As CocoDataset's.
        kwargs: Its other arguments.
    """

    image_keys = ("id", "coco_url", "width", "height")

    def file_name(self, image: Mapping[str, Any]) -> str:
        """The split's folder and the name of the image's file, such as ``train2017/000000391895.jpg``."""
        return "/".join(image["coco_url"].split("/")[-2:])


@DATASETS.register_module()
class Objects365V1Dataset(CocoDataset):
    """Objects365 v1, https://www.objects365.org.

    Args:
        ann_file: As CocoDataset's.
        kwargs: Its other arguments.
    """


@DATASETS.register_module()
class Objects365V2Dataset(CocoDataset):
    """Objects365 v2, https://www.objects365.org; images are found as ``patchX/name.jpg``, broken ones are left out.

    Args:
        ann_file: As CocoDataset's.
        kwargs: Its other arguments.
    """

    def file_name(self, image: Mapping[str, Any]) -> str:
        """The last folder and the name of the image's file."""
        return "/".join(image["file_name"].split("/")[-2:])

    def load_data_list(self) -> list[dict]:
        """The records of the file, without those of images that cannot be decoded."""
        records = super().load_data_list()
        return [info for info in records if "/".join(info["img_path"].split("/")[-2:]) not in _BROKEN_OBJECTS365]


@DATASETS.register_module()
class V3DetDataset(CocoDataset):
    """V3Det, https://v3det.openxlab.org.cn; its classes are the lines of a file of their own.

    Args:
        ann_file: As CocoDataset's.
        label_file: Names of the classes in label order, below ``data_root``; ``metainfo=dict(classes=...)`` goes
            before it.
        kwargs: Other arguments of CocoDataset.

    Raises:
        FileNotFoundError: There is no ``label_file``.
    """

    def __init__(
        self,
        ann_file: str = "",
        *,
        label_file: str = "annotations/category_name_13204_v3det_2023_v1.txt",
        **kwargs: Any,
    ) -> None:
        self.label_file = label_file
        super().__init__(ann_file, **kwargs)

    def load_data_list(self) -> list[dict]:
        """The records of the file, with classes in the order of ``label_file``."""
        if self._metainfo.get("classes") is None:
            path = os.path.join(self.data_root, self.label_file)
            self._require_file(path)
            text = fileio.get_text(path, backend_args=self.backend_args)
            self._metainfo["classes"] = tuple(line for line in text.splitlines() if line)
        return super().load_data_list()


@DATASETS.register_module()
class CityscapesDataset(CocoDataset):
    """Cityscapes (https://www.cityscapes-dataset.com) converted to COCO JSON.

    An image of which all objects are crowd regions counts as one without objects for ``filter_empty_gt``.

    Args:
        ann_file: As CocoDataset's.
        kwargs: Its other arguments.
    """

    def is_empty(self, info: Mapping[str, Any]) -> bool:
        """Whether an image has no object to be found."""
        return all(instance["ignore_flag"] for instance in info["instances"])


@DATASETS.register_module()
class DeepFashionDataset(CocoDataset):
    """DeepFashion In-shop (https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html) converted to COCO JSON.

    Args:
        ann_file: As CocoDataset's.
        kwargs: Its other arguments.
    """


@DATASETS.register_module()
class iSAIDDataset(CocoDataset):
    """iSAID (https://captain-whu.github.io/iSAID) cut into tiles, in COCO JSON.

    Args:
        ann_file: As CocoDataset's.
        kwargs: Its other arguments.
    """
