"""Samples without end, for loops that count iterations."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from itertools import islice

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info, sync_random_seed

from detkit.registry import DATA_SAMPLERS

__all__ = ["TrainingSampler"]


@DATA_SAMPLERS.register_module()
class TrainingSampler(InfiniteSampler):
    """All samples in random order, again and again; the processes take them by turns.

    The order follows from the seed alone, and an iterator always begins at the beginning; mmengine's
    InfiniteSampler goes on where the iterator before it stopped.

    Args:
        dataset: What to sample from.
        shuffle: Draw a new order for each pass; else the dataset's own.
        seed: The same on all processes; None draws one.

    Raises:
        ValueError: The dataset is empty.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        if len(dataset) == 0:
            raise ValueError(f"{type(self).__name__}: the dataset is empty")
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)

    def __iter__(self) -> Iterator[int]:
        return islice(self._passes(), self.rank, None, self.world_size)

    def __len__(self) -> int:
        """How many samples of a pass over the dataset are this process's, rounded up."""
        return -(-self.size // self.world_size)

    def _passes(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self.seed)
        while True:
            yield from self._one_pass(generator)

    def _one_pass(self, generator: torch.Generator) -> list[int]:
        return torch.randperm(self.size, generator=generator).tolist() if self.shuffle else list(range(self.size))
