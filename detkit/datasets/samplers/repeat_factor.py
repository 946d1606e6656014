"""Images of rare classes more often: repeat-factor sampling, https://arxiv.org/abs/1908.03195, appendix B."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Sized
from typing import Any

import torch
from torch import Tensor

from detkit.datasets.samplers.training import TrainingSampler
from detkit.registry import DATA_SAMPLERS

__all__ = ["RepeatFactorTrainingSampler", "repeat_factors"]


def repeat_factors(categories: Sequence[Collection[int]], repeat_thr: float, sqrt: bool = True) -> Tensor:
    """How often each image is to be seen in a pass.

    A class in the share ``f`` of the images asks for ``max(1, sqrt(repeat_thr / f))``; an image does what its
    rarest class asks for.

    Args:
        categories: The classes in each image, (N,) collections.
        repeat_thr: Share of images below which a class is repeated, >= 0.
        sqrt: Take the root, as the paper does.

    Returns:
        (N,) float64, >= 1; 1 for an image of nothing.

    Raises:
        ValueError: A negative ``repeat_thr``.
    """
    if repeat_thr < 0:
        raise ValueError(f"repeat_thr must be at least 0, got {repeat_thr}")
    counts: dict[int, int] = {}
    for image in categories:
        for category in set(image):
            counts[category] = counts.get(category, 0) + 1
    power = 0.5 if sqrt else 1.0
    wanted = {category: max(1.0, (repeat_thr * len(categories) / n) ** power) for category, n in counts.items()}
    factors = [max((wanted[category] for category in set(image)), default=1.0) for image in categories]
    return torch.tensor(factors, dtype=torch.float64)


@DATA_SAMPLERS.register_module()
class RepeatFactorTrainingSampler(TrainingSampler):
    """Samples without end, each as often in a pass as its factor says; a fraction is rounded anew in each pass.

    Args:
        dataset: What to sample from; its ``get_cat_ids(index)`` gives the classes in an image.
        repeat_thr: See :func:`repeat_factors`.
        sqrt: See :func:`repeat_factors`.
        shuffle: Draw a new order for each pass; else the dataset's own.
        seed: The same on all processes; None draws one.

    Raises:
        ValueError: A negative ``repeat_thr``, or an empty dataset.
    """

    def __init__(
        self, dataset: Sized, repeat_thr: float, sqrt: bool = True, shuffle: bool = True, seed: int | None = None
    ) -> None:
        super().__init__(dataset, shuffle, seed)
        source: Any = dataset
        factors = repeat_factors([source.get_cat_ids(index) for index in range(self.size)], repeat_thr, sqrt)
        self._whole = factors.floor()
        self._fraction = factors - self._whole

    def _one_pass(self, generator: torch.Generator) -> list[int]:
        more = torch.rand(self.size, generator=generator, dtype=torch.float64) < self._fraction
        indices = torch.arange(self.size).repeat_interleave((self._whole + more).long())
        if self.shuffle:
            indices = indices[torch.randperm(len(indices), generator=generator)]
        return indices.tolist()
