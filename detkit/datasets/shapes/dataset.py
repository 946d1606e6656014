"""ShapesDataset: the example data as a config names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from detkit.datasets.coco import CocoDataset
from detkit.datasets.shapes.files import ANNOTATIONS, IMAGES, SPLITS, generate, is_foreign
from detkit.registry import DATASETS

__all__ = ["ShapesDataset"]


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """The embedded example data; draws itself below ``data_root`` when it is first read.

    With any other ``ann_file`` than its own two, or one that lies in its place, this is a CocoDataset, so
    that a config is pointed at other data by its paths alone.

    Args:
        ann_file: ``train/annotations.json`` (1000 images), ``val/annotations.json`` (250), or a file of one's own.
        data_root: Folder of the data set.
        data_prefix: Image folder; None is ``images`` beside ``ann_file``.
        kwargs: Arguments of :class:`CocoDataset`.

    Raises:
        ValueError: The folder of the split holds example data of another version.
        OSError: ``data_root`` cannot be written.
    """

    def __init__(
        self,
        ann_file: str = f"train/{ANNOTATIONS}",
        data_root: str = "data/shapes",
        data_prefix: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        folder = Path(ann_file).parent
        self.split = next((split for split in SPLITS if Path(split, ANNOTATIONS) == Path(ann_file)), None)
        prefix = {"img": str(folder / IMAGES)} if data_prefix is None else data_prefix
        super().__init__(ann_file, data_root=data_root, data_prefix=prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """The records of the file, which is drawn first if it is one of the example data and not there."""
        if self.split is not None and not is_foreign(Path(self.data_root, self.split)):
            if not Path(self.data_root, self.split).exists():
                count = SPLITS[self.split].num_images
                print_log(f"{self.data_root}/{self.split}: drawing {count} example images", logger="current")
            generate(self.data_root, self.split)
        return super().load_data_list()
