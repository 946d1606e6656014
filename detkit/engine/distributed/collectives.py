"""Collectives on any object that can be pickled, over main memory, and on dicts of tensors.

Every process must call them, in the same order. In a run of one process they return at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed

from detkit.engine.distributed.groups import get_cpu_group, get_rank, get_world_size, is_distributed

__all__ = ["all_gather", "broadcast", "gather", "reduce_dict", "shared_random_seed", "synchronize"]

T = TypeVar("T")


def all_gather(data: T, group: Any = None) -> list[T]:
    """What every process gave, in the order of ranks, on every process.

    Args:
        data: Anything that can be pickled; of tensors, those in main memory.
        group: Of processes; None is all of them.
    """
    if not _several(group):
        return [data]
    group = get_cpu_group() if group is None else group
    gathered: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: T, dst: int = 0, group: Any = None) -> list[T]:
    """What every process gave, in the order of ranks, on the process ``dst``; an empty list on the others.

    Args:
        data: Anything that can be pickled; of tensors, those in main memory.
        dst: Rank among all processes.
        group: Of processes; None is all of them.
    """
    if not _several(group):
        return [data]
    group = get_cpu_group() if group is None else group
    gathered: list[Any] | None = None
    if get_rank() == dst:
        gathered = [None] * distributed.get_world_size(group)
    distributed.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def broadcast(data: T, src: int = 0, group: Any = None) -> T:
    """What the process ``src`` gave, on every process.

    Args:
        data: Anything that can be pickled; not read but on ``src``.
        src: Rank among all processes.
        group: Of processes; None is all of them.
    """
    if not _several(group):
        return data
    group = get_cpu_group() if group is None else group
    carrier: list[Any] = [data if get_rank() == src else None]
    distributed.broadcast_object_list(carrier, src=src, group=group)
    return carrier[0]


def reduce_dict(values: Mapping[str, Tensor], average: bool = True, group: Any = None) -> dict[str, Tensor]:
    """Sum or mean over the processes of each tensor, on every process, in one reduction.

    Detectron2's leaves unfinished sums on all processes but the first, and takes scalars only.

    Args:
        values: Floating tensors of any shapes; the same keys and shapes on every process.
        average: Divide the sums by the count of processes.
        group: Of processes; None is all of them.

    Returns:
        New tensors, in the dtype and on the device of those given; no gradient flows through them.
    """
    if not values or not _several(group):
        return {name: value.detach() for name, value in values.items()}
    names = sorted(values)  # processes may have filled their dicts in different orders
    wide = torch.float64 if any(values[name].dtype == torch.float64 for name in names) else torch.float32
    flat = torch.cat([values[name].detach().to(wide).flatten() for name in names])
    distributed.all_reduce(flat, group=group)
    if average:
        flat /= distributed.get_world_size(group)
    parts = flat.split([values[name].numel() for name in names])
    reduced = {n: part.view_as(values[n]).to(values[n].dtype) for n, part in zip(names, parts, strict=True)}
    return {name: reduced[name] for name in values}


def shared_random_seed() -> int:
    """A seed in [0, 2**31) that no one chose, the same on every process; drawn from the system, not from numpy."""
    return broadcast(int(np.random.SeedSequence().generate_state(1)[0] >> 1))


def synchronize() -> None:
    """Wait until every process is here."""
    if get_world_size() == 1:
        return
    if distributed.get_backend() == "nccl":
        # Without the device, NCCL guesses it from the rank, which is wrong where machines differ.
        distributed.barrier(device_ids=[torch.cuda.current_device()])
    else:
        distributed.barrier()


def _several(group: Any) -> bool:
    return is_distributed() and distributed.get_world_size(group) > 1
