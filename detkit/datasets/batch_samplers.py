"""Batches of images that pad well together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, Sampler

from detkit.registry import DATA_SAMPLERS

__all__ = ["AspectRatioBatchSampler"]


@DATA_SAMPLERS.register_module()
class AspectRatioBatchSampler(BatchSampler):
    """Batches of only wide or only high images, so that little is padding.

    A batch is given out as soon as its group is full; images left over at the end are joined in batches
    of both kinds.

    Args:
        sampler: Order of the images; its ``dataset`` is what it samples from.
        batch_size: Images in a batch.
        drop_last: Leave out the last batch if it is not full.

    Raises:
        TypeError: ``sampler`` is not a sampler.
        ValueError: ``batch_size`` is not a positive integer.
    """

    def __init__(self, sampler: Sampler, batch_size: int, drop_last: bool = False) -> None:
        if not isinstance(sampler, Sampler):
            raise TypeError(f"sampler: a torch Sampler was expected, got {sampler!r}")
        super().__init__(sampler, batch_size, drop_last)
        # mmengine's samplers name their dataset ``dataset``, torch's ``data_source``.
        dataset = getattr(sampler, "dataset" if hasattr(sampler, "dataset") else "data_source")
        self.is_wide: list[bool] = is_wide(dataset).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        groups: tuple[list[int], list[int]] = ([], [])
        for index in self.sampler:
            group = groups[self.is_wide[index]]
            group.append(index)
            if len(group) == self.batch_size:
                yield group[:]
                group.clear()
        rest = groups[0] + groups[1]
        for start in range(0, len(rest), self.batch_size):
            batch = rest[start : start + self.batch_size]
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch


def is_wide(dataset: Any) -> np.ndarray:
    """(N,) bool: which images are at least as wide as high, also of concatenated and repeated datasets."""
    sizes = _sizes(dataset)
    return sizes[:, 0] >= sizes[:, 1]


def _sizes(dataset: Any) -> np.ndarray:
    """(N, 2) width and height of each image, without unpickling the records where the dataset keeps sizes."""
    size = len(dataset)  # reads a lazy dataset
    if hasattr(dataset, "image_sizes"):
        return dataset.image_sizes
    if hasattr(dataset, "datasets"):  # ConcatDataset
        return np.concatenate([_sizes(part) for part in dataset.datasets])
    if hasattr(dataset, "times"):  # RepeatDataset
        return np.tile(_sizes(dataset.dataset), (dataset.times, 1))
    if hasattr(dataset, "repeat_indices"):  # ClassBalancedDataset
        return _sizes(dataset.dataset)[dataset.repeat_indices]
    infos = map(dataset.get_data_info, range(size))
    return np.array([(info["width"], info["height"]) for info in infos], dtype=np.int64)
