"""Every sample once, over all processes."""

from __future__ import annotations

from collections.abc import Iterator, Sized

from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from detkit.registry import DATA_SAMPLERS

__all__ = ["InferenceSampler"]


@DATA_SAMPLERS.register_module()
class InferenceSampler(Sampler[int]):
    """A stretch of the dataset for each process; together they are the dataset, each sample once.

    The first processes take one sample more where the numbers do not divide; a process may have none.

    Args:
        dataset: What to sample from.
        seed: Not read: the order is the dataset's.

    Attributes:
        begin: Index of this process's first sample.
    """

    def __init__(self, dataset: Sized, seed: int | None = None) -> None:
        rank, world = get_dist_info()
        self.dataset = dataset
        share, more = divmod(len(dataset), world)
        self.begin = rank * share + min(rank, more)
        self.indices = range(self.begin, self.begin + share + (rank < more))

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
