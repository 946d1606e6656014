"""The other images that a step such as Mosaic mixes in.

A step that needs them has a method ``get_indexes(dataset)``, which draws one index or several; the dataset prepares
these and puts them into the results dict as ``mix_results``. What is drawn comes from the generators of the sample
(see ``detkit/engine/seeding.py``), so that it depends on nothing else.

A step with a ``pool_size`` draws from a pool instead. All samples of a stretch of ``8 * pool_size`` positions share
one. What is in it follows from (seed, epoch, stretch, place in the pool), so that each process may prepare what it
needs and keep it: a cache that changes no result, whichever samples a process has seen before.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["Partners", "SamplePlace", "sample_place"]

# Positions that share a pool, in sizes of the pool: with that many workers each of them prepares each image at most
# once for as many samples as the pool is large.
_STRETCH = 8
_POOLS = 4  # that a process keeps


class SamplePlace(NamedTuple):
    """Which sample of a run is being made.

    Attributes:
        seed: Of the pass over the data, in [0, 2**32).
        position: Count of samples asked for before in this pass.
    """

    seed: int
    position: int


_place: ContextVar[SamplePlace | None] = ContextVar("detkit_sample_place", default=None)


@contextmanager
def sample_place(place: SamplePlace) -> Iterator[None]:
    """Say which sample of a run is made inside."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


class Partners:
    """Runs the steps of a pipeline and gives those that ask for them other images.

    Args:
        dataset: What steps draw from: it has a length, and ``get_data_info``.
        load: The record of an image, or its results dict, which may be changed; None if there is none.
        through_steps: Whether another image goes through the steps before the one that mixes it in.
    """

    def __init__(self, dataset: Any, load: Callable[[int], dict | None], through_steps: bool) -> None:
        self.dataset = dataset
        self.load = load
        self.through_steps = through_steps
        self._pools: OrderedDict[tuple, _Pool] = OrderedDict()

    def run(self, steps: Sequence[Callable], results: dict | None) -> Any:
        """What the pipeline makes of an image; None where a step gives none."""
        for number, step in enumerate(steps):
            if results is None:
                return None
            if not hasattr(step, "get_indexes"):
                results = step(results)
                continue
            results["mix_results"] = self._partners(steps, number)
            results = step(results)
            if results is not None:
                results.pop("mix_results", None)
        return results

    def _partners(self, steps: Sequence[Callable], number: int) -> list[dict]:
        step: Any = steps[number]
        before = steps[:number] if self.through_steps else ()
        source = self._pool(step.pool_size, before, number) if hasattr(step, "pool_size") else None
        indexes = step.get_indexes(self.dataset if source is None else source)
        indexes = indexes if isinstance(indexes, Sequence) else [indexes]
        if source is not None:
            return [source[index] for index in indexes]
        return [self._prepare(index, before) for index in indexes]

    def _prepare(self, index: int, steps: Sequence[Callable]) -> dict:
        """The image ``index`` after some steps, or a random other one where that gives None."""
        for _ in range(self._tries):
            results = self.run(steps, self.load(index))
            if results is not None:
                return results
            index = int(np.random.randint(len(self.dataset)))
        raise RuntimeError(f"the steps before one that mixes images returned None for {self._tries} images")

    @property
    def _tries(self) -> int:
        return getattr(self.dataset, "max_refetch", 15) + 1

    def _pool(self, size: int, steps: Sequence[Callable], number: int) -> _Pool:
        place = _place.get()
        if place is None:  # not in a run: each sample has a pool of its own
            return _Pool(self, size, steps, SamplePlace(int(np.random.randint(1 << 31)), 0), number)
        # Where the pool's stretch begins: what is in it may not depend on who asks first.
        begin = place.position // (_STRETCH * size) * _STRETCH * size
        key = (number, place.seed, begin)
        pool = self._pools.get(key)
        if pool is None or pool.steps != list(steps):
            pool = self._pools[key] = _Pool(self, size, steps, SamplePlace(place.seed, begin), number)
            while len(self._pools) > _POOLS:
                self._pools.popitem(last=False)
        return pool

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pools": OrderedDict()}  # not to be sent to worker processes

    def __deepcopy__(self, memo: dict) -> Partners:
        # As a part of the dataset that is being copied, and never a copy of all images on its own account.
        dataset, owner = self.dataset, getattr(self.load, "__self__", None)
        load = self.load if id(owner) not in memo else getattr(memo[id(owner)], self.load.__name__)
        return Partners(memo.get(id(dataset), dataset), load, self.through_steps)


class _Pool:
    """Random images, each prepared when first asked for; they are read only.

    Args:
        partners: Prepares them.
        size: How many.
        steps: That they go through.
        place: Where their stretch begins.
        number: Tells the pools of several steps apart.
    """

    def __init__(
        self, partners: Partners, size: int, steps: Sequence[Callable], place: SamplePlace, number: int
    ) -> None:
        self.partners = partners
        self.size = size
        self.steps = list(steps)
        self.place = place
        self.number = number
        self._prepared: dict[int, dict] = {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, slot: int) -> dict:
        if slot not in self._prepared:
            if not 0 <= slot < self.size:
                raise IndexError(slot)
            seeds = np.random.SeedSequence([*self.place, self.number, slot]).generate_state(1)
            with _seeded(int(seeds[0])), sample_place(self.place):
                index = int(np.random.randint(len(self.partners.dataset)))
                results = self.partners._prepare(index, self.steps)
            for value in results.values():
                if isinstance(value, np.ndarray):
                    value.flags.writeable = False
            self._prepared[slot] = results
        return dict(self._prepared[slot])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, python, numpy and torch draw from ``seed``; afterwards they go on as if nothing had been."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
