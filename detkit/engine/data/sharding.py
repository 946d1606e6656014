"""How loaders divide the data among the processes of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.dataset import DefaultSampler

from detkit.engine.distributed import all_gather, get_rank, get_world_size
from detkit.registry import where

__all__ = ["check_equal_lengths", "take_each_sample_once", "with_own_batch_size"]


def with_own_batch_size(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of a loader with the batch size of one process, where it says that of all.

    Args:
        cfg: With ``batch_size`` or ``total_batch_size``.

    Raises:
        ValueError: Both are set, or the total does not divide by the number of processes.
    """
    if cfg.get("total_batch_size") is None:
        return {key: value for key, value in cfg.items() if key != "total_batch_size"}
    total, world = cfg["total_batch_size"], get_world_size()
    path = where() or "dataloader"
    if cfg.get("batch_size") is not None:  # a child config takes an inherited one back by None
        raise ValueError(f"{path}: batch_size (of a process) and total_batch_size (of all) are both set; leave one out")
    if not isinstance(total, int) or total < 1 or total % world:
        raise ValueError(f"{path}.total_batch_size: {total!r} is not a positive multiple of the {world} processes")
    rest = {key: value for key, value in cfg.items() if key != "total_batch_size"}
    return {**rest, "batch_size": total // world}


def take_each_sample_once(loader: Any) -> None:
    """Let a loader's DefaultSampler leave out what it repeats to give all processes the same number of samples."""
    sampler = getattr(loader.batch_sampler, "sampler", None)
    if get_world_size() == 1 or not isinstance(sampler, DefaultSampler) or not sampler.round_up:
        return
    size = len(sampler.dataset)
    sampler.round_up = False
    sampler.total_size = size
    sampler.num_samples = len(range(get_rank(), size, get_world_size()))


def check_equal_lengths(loader: Any, path: str) -> None:
    """Refuse a loader of training data that ends earlier on one process: the others would wait for it.

    Every process must call it.

    Raises:
        ValueError: With the numbers of batches.
    """
    if get_world_size() == 1:
        return
    lengths = all_gather(len(loader))
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(
            f"{path}: the processes have {lengths} batches, but each needs as many as the others; a DefaultSampler "
            "with round_up=True repeats some samples for that"
        )
