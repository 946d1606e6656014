"""Random numbers that depend on the seed and the place in the run, and on nothing else.

mmengine seeds its workers again at every epoch, so that augmentations repeat, and draws dropout from a
generator whose state no checkpoint holds. Here each sample is seeded by (seed, epoch, position, index) and
each iteration by (seed, iteration): epochs differ, the number of workers does not matter, and a resumed run
draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_dist_info
from torch.utils.data import Dataset

from detkit.datasets.partners import SamplePlace, sample_place

__all__ = [
    "SampleKey",
    "SeededBatches",
    "SeededDataset",
    "derive_seed",
    "fenced_random_numbers",
    "iteration_seed",
    "rng_state",
    "seed_everything",
    "set_rng_state",
]


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) for a place in the run, such as ``(seed, 'iter', 120)``."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def iteration_seed(seed: int, iteration: int, rank: int = 0) -> int:
    """The seed of every generator at the start of a training step.

    Args:
        seed: Of the run.
        iteration: The count of iterations done with this one.
        rank: Of the process: each draws other numbers.
    """
    return derive_seed(seed, "iter", iteration - 1, *([rank] if rank else []))


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch in this process; costs some 20 µs, no synchronisation."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # torch.manual_seed would do the same, and look at every accelerator backend: 100 µs.
    torch.default_generator.manual_seed(seed)
    # A worker forked from a process that uses CUDA must not touch it.
    if torch.cuda.is_initialized() and not torch.cuda._is_in_bad_fork():
        torch.cuda.manual_seed_all(seed)


def rng_state() -> dict[str, Any]:
    """The state of every generator, in plain types."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` returned; CUDA only where the number of devices is the same."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def fenced_random_numbers() -> Iterator[None]:
    """Whatever is drawn inside, python, numpy and torch go on afterwards as if nothing had been."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


class SampleKey(NamedTuple):
    """What a seeded loader asks its dataset for.

    Attributes:
        epoch: Pass over the data.
        position: Count of samples asked for before in this epoch, by all processes; tells repeated indices apart.
        sample: The dataset's index.
    """

    epoch: int
    position: int
    sample: int


class SeededBatches:
    """A batch sampler whose indices say where in the run they are drawn; other attributes are the wrapped one's.

    Args:
        batches: The batch sampler to wrap.

    Attributes:
        epoch: Pass over the data.
        skip: How many batches the next iteration leaves out, without loading a sample of them.
    """

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.epoch = 0
        self.skip = 0

    def __getattr__(self, name: str) -> Any:
        if name == "batches":  # not set yet: a copy or an unpickled object is being filled
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, skip, self.skip = self.epoch, self.skip, 0
        # Samplers hand samples out by turns, or stretches of the dataset: a sample's place in it, and so its seed, is
        # the same however many processes there are.
        rank, step = get_dist_info()
        begin = getattr(getattr(self.batches, "sampler", None), "begin", None)
        if begin is not None:
            rank, step = begin, 1
        position = 0
        for number, batch in enumerate(self.batches):
            if number < skip:
                position += len(batch)
                continue
            yield [SampleKey(epoch, place * step + rank, index) for place, index in enumerate(batch, position)]
            position += len(batch)

    def set_epoch(self, epoch: int) -> None:
        """Begin another pass: other augmentations, and another order from samplers that shuffle."""
        self.epoch = epoch
        for sampler in (self.batches, getattr(self.batches, "sampler", None)):
            set_epoch = getattr(sampler, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)


class SeededDataset(Dataset):
    """A dataset that seeds every generator before it makes a sample; other attributes are the wrapped one's.

    Args:
        dataset: The dataset to wrap.
        seed: Of the run.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    # torch would ask the wrapped dataset for a whole batch, unseeded; None tells it, at each batch, not to.
    __getitems__ = None

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not set yet: a copy or an unpickled object is being filled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey | int) -> Any:
        if not isinstance(key, SampleKey):
            return self.dataset[key]
        seed_everything(derive_seed(self.seed, "sample", *key))
        with sample_place(SamplePlace(derive_seed(self.seed, "pools", key.epoch) & 0xFFFFFFFF, key.position)):
            return self.dataset[key.sample]
