"""What every detection dataset shares: paths, the strict pipeline, image sizes, filtering that is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from detkit.datasets.partners import Partners
from detkit.datasets.proposals import add_proposals
from detkit.registry import TRANSFORMS, check_keys, nearest

__all__ = ["BaseDetDataset"]

# Missing images told one by one; the rest are counted.
_TOLD = 3


class BaseDetDataset(BaseDataset):
    """Images with boxes; a format is a subclass that implements ``load_data_list``.

    A record is a dict with ``img_path``, ``img_id``, ``height``, ``width`` and ``instances``, each a dict
    with ``bbox`` (xyxy, pixels), ``bbox_label``, ``ignore_flag`` and, where there is one, ``mask``.

    Args:
        ann_file: Annotation file, absolute or below ``data_root``.
        metainfo: ``classes`` (names in label order; without it the file's) and ``palette``.
        data_root: Folder that relative paths start from.
        data_prefix: Folders of ``img`` and ``seg`` below ``data_root``.
        filter_cfg: ``filter_empty_gt`` (drop images without objects) and ``min_size`` (drop images whose
            shorter side in pixels is below it). Nothing is dropped in ``test_mode``.
        indices: Use only the first (negative: last) so many images, or these ones.
        serialize_data: Keep the records in one buffer that loader workers share.
        pipeline: Transforms, as configs or callables.
        test_mode: Evaluation: all images are kept and a transform may not return None.
        lazy_init: Read nothing until ``full_init`` or the first access.
        max_refetch: How many other random images are tried when the pipeline returns None.
        seg_map_suffix: File suffix of segmentation maps.
        proposal_file: Proposals for each image, absolute or below ``data_root``, see ``detkit/datasets/proposals.py``.
        backend_args: File backend of mmengine; None reads local files.
        return_classes: Put the class names into each record as ``text``.

    Attributes:
        image_sizes: (N, 2) int64, width and height of each image as the annotations state them.
        metainfo_keys: Keys of the argument ``metainfo`` that something reads, beside those of ``METAINFO``.
        data_prefix_keys: Those of ``data_prefix``.
        filter_cfg_keys: Those of ``filter_cfg``.
    """

    METAINFO: dict = {}
    metainfo_keys: tuple[str, ...] = ("classes", "palette", "dataset_type", "task_name")
    data_prefix_keys: tuple[str, ...] = ("img", "seg")
    filter_cfg_keys: tuple[str, ...] = ("filter_empty_gt", "min_size")
    _fully_initialized: bool = False
    _partners: Partners | None = None

    def __init__(
        self,
        ann_file: str = "",
        metainfo: Mapping[str, Any] | None = None,
        data_root: str = "",
        data_prefix: Mapping[str, str] | None = None,
        filter_cfg: Mapping[str, Any] | None = None,
        indices: int | Sequence[int] | None = None,
        serialize_data: bool = True,
        pipeline: Sequence[Mapping | Callable] = (),
        test_mode: bool = False,
        lazy_init: bool = False,
        max_refetch: int = 1000,
        seg_map_suffix: str = ".png",
        proposal_file: str | None = None,
        backend_args: Mapping[str, Any] | None = None,
        return_classes: bool = False,
    ) -> None:
        prefix = {"img": ""} if data_prefix is None else dict(data_prefix)
        check_keys(metainfo, {*self.metainfo_keys, *self.METAINFO}, "metainfo")
        check_keys(prefix, self.data_prefix_keys, "data_prefix")
        check_keys(filter_cfg, self.filter_cfg_keys, "filter_cfg")
        self.seg_map_suffix = seg_map_suffix
        self.proposal_file = None if proposal_file is None else os.path.join(data_root or "", proposal_file)
        self.backend_args = None if backend_args is None else dict(backend_args)
        self.return_classes = return_classes
        self.image_sizes = np.zeros((0, 2), dtype=np.int64)
        self._origin = f"data_root={data_root!r}, ann_file={ann_file!r}, data_prefix={prefix}"
        super().__init__(
            ann_file=ann_file,
            metainfo=metainfo,
            data_root=data_root or "",
            data_prefix=prefix,
            filter_cfg=None if filter_cfg is None else dict(filter_cfg),
            indices=indices,
            serialize_data=serialize_data,
            pipeline=[TRANSFORMS.build(step) if isinstance(step, Mapping) else step for step in pipeline],
            test_mode=test_mode,
            lazy_init=lazy_init,
            max_refetch=max_refetch,
        )

    def full_init(self) -> None:
        """Read the annotations, filter them, say what was kept, and look for every local image file.

        Raises:
            FileNotFoundError: The annotation file or an image is not there.
            ValueError: The annotations are not what the format needs, or no image is left.
        """
        if self._fully_initialized:
            return
        records = self.load_data_list()
        self.data_list = records
        self.data_list = self.filter_data()
        if self._indices is not None:
            self.data_list = self._get_unserialized_subset(self._indices)
        if not self.data_list:
            raise ValueError(
                f"{self.ann_file}: no image is left of {len(records)} (filter_cfg={self.filter_cfg}, "
                f"indices={self._indices}, classes={self._metainfo.get('classes')})"
            )
        self._look_for_images()
        if self.proposal_file is not None:
            add_proposals(self.data_list, self.proposal_file, self.backend_args)
        self.image_sizes = np.array([(info["width"], info["height"]) for info in self.data_list], dtype=np.int64)
        if self.serialize_data:
            self.data_bytes, self.data_address = self._serialize_data()
        self._fully_initialized = True

    def filter_data(self) -> list[dict]:
        """The records that ``filter_cfg`` keeps; one log line says how many went and why."""
        drop_empty, min_size = False, 0
        if not self.test_mode and self.filter_cfg:
            drop_empty = self.filter_cfg.get("filter_empty_gt", False)
            min_size = self.filter_cfg.get("min_size", 0)
        kept, small, empty, empty_kept = [], 0, 0, 0
        for info in self.data_list:
            if min(info["width"], info["height"]) < min_size:
                small += 1
            elif drop_empty and self.is_empty(info):
                empty += 1
            else:
                empty_kept += not info["instances"]
                kept.append(info)
        print_log(
            f"{self.ann_file}: {len(self.data_list)} images: {len(kept) - empty_kept} with objects, "
            f"{empty_kept} empty kept, {empty} dropped (empty), {small} dropped (min_size)",
            logger="current",
        )
        return kept

    def is_empty(self, info: Mapping[str, Any]) -> bool:
        """Whether a record is one that ``filter_empty_gt`` leaves out."""
        return not info["instances"]

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of the objects in image ``idx``, one per object."""
        return [instance["bbox_label"] for instance in self.get_data_info(idx)["instances"]]

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline on image ``idx``; whatever fails in it names the image.

        Raises:
            RuntimeError: A transform failed with an error that does not name the image itself.
        """
        info = self.get_data_info(idx)
        path = info["img_path"]
        if self._partners is None or self._partners.dataset is not self:  # a subset has a copy of the whole's
            self._partners = Partners(self, self.get_data_info, through_steps=True)
        try:
            return self._partners.run(self.pipeline.transforms, info)
        except Exception as error:
            if path in str(error):
                raise
            raise RuntimeError(f"{path} (index {idx}): the pipeline failed: {type(error).__name__}: {error}") from error

    def __getitem__(self, idx: int) -> Any:
        """The packed sample of image ``idx``, or of a random other one while the pipeline returns None.

        Raises:
            RuntimeError: The pipeline returned None in ``test_mode``, or for ``max_refetch`` more images.
        """
        self.full_init()
        start = idx
        for _ in range(1 if self.test_mode else self.max_refetch + 1):
            data = self.prepare_data(idx)
            if data is not None:
                return data
            idx = self._rand_another()
        tried = "in test_mode" if self.test_mode else f"and for {self.max_refetch} other images (max_refetch)"
        raise RuntimeError(f"{self.ann_file}: the pipeline returned None for image {start} {tried}")

    def get_subset_(self, indices: int | Sequence[int]) -> None:
        """Keep only these images: a number of first (negative: last) ones, or a list of indices."""
        self.full_init()
        self.image_sizes = self._select_sizes(indices)
        super().get_subset_(indices)

    def get_subset(self, indices: int | Sequence[int]) -> BaseDetDataset:
        """A dataset of only these images, see ``get_subset_``."""
        subset = super().get_subset(indices)
        subset.image_sizes = self._select_sizes(indices)
        return subset

    def _select_sizes(self, indices: int | Sequence[int]) -> np.ndarray:
        if isinstance(indices, int):
            return self.image_sizes[:indices] if indices >= 0 else self.image_sizes[indices:]
        return self.image_sizes[np.asarray(indices, dtype=np.int64)]

    def _require_file(self, path: str) -> None:
        """Refuse a local annotation file that is not there, with the file that is most like it."""
        if self._is_remote(path) or os.path.isfile(path):
            return
        folder = os.path.dirname(os.path.abspath(path))
        message = f"annotation file {os.path.abspath(path)} does not exist ({self._origin})"
        if os.path.isdir(folder):
            close = nearest(os.path.basename(path), os.listdir(folder))
            message += f"; did you mean {close[0]!r}?" if close else "; its folder is empty"
        else:
            message += f"; there is no folder {folder}"
        raise FileNotFoundError(message)

    def _look_for_images(self) -> None:
        """Refuse local images that are not there, before the first of them is needed."""
        listed: dict[str, set[str]] = {}
        missing = []
        for info in self.data_list:
            path = info["img_path"]
            if self._is_remote(path):
                continue
            folder, name = os.path.split(path)
            if folder not in listed:
                listed[folder] = _files_in(folder)
            # The name may differ from the listed one in case or Unicode form: then the file system decides.
            if name not in listed[folder] and not os.path.isfile(path):
                missing.append(info)
        if not missing:
            return
        first = missing[0]
        message = f"{first['img_path']}: image {first['img_id']} of {self.ann_file} does not exist"
        if len(missing) > 1:
            others = ", ".join(info["img_path"] for info in missing[1:_TOLD]) + ", …" * (len(missing) > _TOLD)
            message += f", {len(missing)} of {len(self.data_list)} images do not: also {others}"
        raise FileNotFoundError(f"{message}; the path is joined from {self._origin} and the annotation's file name")

    def _is_remote(self, path: str) -> bool:
        return self.backend_args is not None or "://" in path


def _files_in(folder: str) -> set[str]:
    """Names of the files in a folder; none of one that cannot be listed, whose files may still be opened."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()
