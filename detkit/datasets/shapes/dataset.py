"""ShapesDataset: the example data as a config names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from detkit.datasets.coco import CocoDataset
from detkit.datasets.shapes.files import ANNOTATIONS, IMAGES, SPLITS, generate
from detkit.registry import DATASETS

__all__ = ["ShapesDataset"]


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """The embedded example data; draws itself below ``data_root`` when it is first read.

    Args:
        split: ``train`` (1000 images) or ``val`` (250).
        data_root: Folder of the data set.
        ann_file: A file other than the split's own; with one given nothing is drawn, and this is a CocoDataset.
        data_prefix: Image folder, that of the split if None.
        kwargs: Arguments of :class:`CocoDataset`.

    Raises:
        ValueError: There is no such split, or its folder holds something else.
        OSError: ``data_root`` cannot be written.
    """

    def __init__(
        self,
        split: str = "train",
        data_root: str = "data/shapes",
        ann_file: str = "",
        data_prefix: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split: the example data has {' and '.join(map(repr, SPLITS))}, not {split!r}")
        self.split = split
        self.is_drawn_here = not ann_file
        if self.is_drawn_here:
            ann_file = f"{split}/{ANNOTATIONS}"
            data_prefix = {"img": f"{split}/{IMAGES}"} if data_prefix is None else data_prefix
        super().__init__(ann_file, data_root=data_root, data_prefix=data_prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """The records of the split, which is drawn first if its folder is not there."""
        if self.is_drawn_here:
            if not Path(self.data_root, self.split).exists():
                count = SPLITS[self.split].num_images
                print_log(f"{self.data_root}/{self.split}: drawing {count} example images", logger="current")
            generate(self.data_root, self.split)
        return super().load_data_list()
