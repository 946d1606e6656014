"""Several data sets as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dataset import ConcatDataset as _ConcatDataset
from torch.utils.data import Dataset

from detkit.registry import DATASETS

__all__ = ["ConcatDataset"]


@DATASETS.register_module()
class ConcatDataset(_ConcatDataset):
    """The images of several data sets, one after the other; labels mean the same class in all of them.

    Its ``metainfo`` holds what theirs have in common; annotation files and category ids may differ.

    Args:
        datasets: The data sets, or their configs.
        lazy_init: Read nothing until ``full_init`` or the first access.
        ignore_keys: Accepted for MMDetection's configs; only ``classes`` must be equal, unless it is named here.

    Raises:
        TypeError: One of ``datasets`` is none.
        ValueError: There is none, or their classes differ.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset | Mapping[str, Any]],
        lazy_init: bool = False,
        ignore_keys: str | Sequence[str] | None = None,
    ) -> None:
        self.datasets: list[Any] = [DATASETS.build(part) if isinstance(part, Mapping) else part for part in datasets]
        if not self.datasets:
            raise ValueError("datasets: at least one data set was expected, got none")
        for number, part in enumerate(self.datasets):
            if not isinstance(part, Dataset):
                raise TypeError(f"datasets[{number}]: a data set or its config was expected, got {part!r}")
        self.ignore_keys = [ignore_keys] if isinstance(ignore_keys, str) else list(ignore_keys or ())
        self._metainfo = self._common_metainfo()
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    def full_init(self) -> None:
        """Read all data sets and hold their classes against each other."""
        if self._fully_initialized:
            return
        super().full_init()
        self._metainfo = self._common_metainfo()
        if "classes" in self.ignore_keys:
            return
        wanted = self.datasets[0].metainfo.get("classes")
        for number, part in enumerate(self.datasets):
            classes = part.metainfo.get("classes")
            if classes is None or wanted is None or list(classes) == list(wanted):
                continue
            differing = sorted(set(classes) ^ set(wanted))
            what = f"only one has {', '.join(map(repr, differing[:5]))}" if differing else "their order differs"
            raise ValueError(
                f"datasets[0] and datasets[{number}] ({getattr(part, 'ann_file', '')}) have other classes: "
                f"{what}; give both the same metainfo=dict(classes=...)"
            )

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of the objects in image ``idx``, one per object."""
        part, inner = self._get_ori_dataset_idx(idx)
        return self.datasets[part].get_cat_ids(inner)

    def get_dataset_source(self, idx: int) -> int:
        """The number of the data set that image ``idx`` is of."""
        return self._get_ori_dataset_idx(idx)[0]

    def _common_metainfo(self) -> dict[str, Any]:
        infos = [part.metainfo for part in self.datasets]
        first = infos[0]
        return {key: first[key] for key in first if all(key in info and info[key] == first[key] for info in infos)}
