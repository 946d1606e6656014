"""Every class as often as any other: class-aware sampling, https://arxiv.org/abs/1512.05830."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import torch
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from detkit.registry import DATA_SAMPLERS

__all__ = ["ClassAwareSampler"]


@DATA_SAMPLERS.register_module()
class ClassAwareSampler(Sampler):
    """Goes through the classes in random order, again and again, and takes an image of each.

    An epoch is as long as the dataset. Images of a class are taken in random order, and all of them before one comes
    again. Images without objects are never taken.

    Args:
        dataset: What to sample from; its ``get_cat_ids(index)`` gives the classes in an image.
        seed: The same on all processes; None draws one.
        num_sample_class: Images of a class that are taken one after the other.

    Raises:
        ValueError: A number that is none, or no image with an object.
    """

    def __init__(self, dataset: Sized, seed: int | None = None, num_sample_class: int = 1) -> None:
        if not isinstance(num_sample_class, int) or num_sample_class < 1:
            raise ValueError(f"num_sample_class: a whole number of at least 1 was expected, got {num_sample_class!r}")
        self.dataset = dataset
        self.seed = sync_random_seed() if seed is None else seed
        self.num_sample_class = num_sample_class
        self.rank, self.world_size = get_dist_info()
        self.epoch = 0
        source: Any = dataset
        images: dict[int, list[int]] = {}
        for index in range(len(dataset)):
            for label in set(source.get_cat_ids(index)):
                images.setdefault(label, []).append(index)
        if not images:
            raise ValueError(f"ClassAwareSampler: none of the {len(dataset)} images has an object")
        self.images = {label: images[label] for label in sorted(images)}

    def __len__(self) -> int:
        """How many samples of an epoch are this process's, rounded up."""
        return -(-len(self.dataset) // self.world_size)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self.epoch + self.seed)
        labels = _endless(list(self.images), generator)
        images = {label: _endless(listed, generator) for label, listed in self.images.items()}
        begin = self.rank * len(self)
        for number in range(begin + len(self)):
            if number % self.num_sample_class == 0:
                label = next(labels)
            index = next(images[label])
            if number >= begin:
                yield index

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iterator is for: each has an order of its own."""
        self.epoch = epoch


def _endless(values: Sequence[int], generator: torch.Generator) -> Iterator[int]:
    """The values in a random order, drawn at once, then in others, drawn as they are needed."""
    first = torch.randperm(len(values), generator=generator).tolist()

    def passes() -> Iterator[int]:
        yield from (values[place] for place in first)
        while True:
            yield from (values[place] for place in torch.randperm(len(values), generator=generator).tolist())

    return passes()
