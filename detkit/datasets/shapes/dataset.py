"""ShapesDataset: the example data as a config names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from detkit.datasets.coco import CocoDataset
from detkit.datasets.shapes.files import ANNOTATIONS, IMAGES, OWN_FOLDER, SPLITS, generate, is_foreign
from detkit.registry import DATASETS

__all__ = ["ShapesDataset"]


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """The embedded example data; draws itself below ``data_root`` when it is first read.

    It draws only where it was asked to, into a folder named ``shapes`` or with ``draw=True``, and only a split
    whose folder is not there. Everywhere else, and with any other ``ann_file`` than its own two, this is a
    CocoDataset, so that a config is pointed at other data by its paths alone.

    Args:
        ann_file: ``train/annotations.json`` (1000 images), ``val/annotations.json`` (250), or a file of one's own.
        data_root: Folder of the data set; to be drawn into, it must be a folder named ``shapes``.
        data_prefix: Image folder; None is ``images`` beside ``ann_file``.
        draw: Draw the example data into ``data_root`` whatever its name.
        kwargs: Arguments of :class:`CocoDataset`.

    Raises:
        FileNotFoundError: There is no ``ann_file`` and it is not to be drawn.
        ValueError: The folder of the split holds example data of another version.
        OSError: ``data_root`` cannot be written.
    """

    def __init__(
        self,
        ann_file: str = f"train/{ANNOTATIONS}",
        data_root: str = "data/shapes",
        data_prefix: Mapping[str, str] | None = None,
        *,
        draw: bool = False,
        **kwargs: Any,
    ) -> None:
        folder = Path(ann_file).parent
        self.split = next((split for split in SPLITS if Path(split, ANNOTATIONS) == Path(ann_file)), None)
        # A misspelt folder of one's own must fail, not fill with example images that are then trained on.
        self.draw = draw or Path(data_root).name == OWN_FOLDER
        prefix = {"img": str(folder / IMAGES)} if data_prefix is None else data_prefix
        super().__init__(ann_file, data_root=data_root, data_prefix=prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """The records of the file, which is drawn first if it is one of the example data and not there."""
        if self.draw and self.split is not None and not self._is_remote(self.ann_file):
            folder = Path(self.data_root, self.split)
            if not folder.exists():
                count = SPLITS[self.split].num_images
                print_log(f"{folder}: drawing {count} example images", logger="current")
            if not is_foreign(folder):
                generate(self.data_root, self.split)
        return super().load_data_list()
