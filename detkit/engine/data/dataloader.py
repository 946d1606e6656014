"""Data loaders from config dicts, seeded by place in the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from detkit.engine.data.seeding import SeededBatches, SeededDataset, derive_seed
from detkit.engine.data.sharding import with_own_batch_size
from detkit.engine.distributed import get_world_size
from detkit.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS, check_keys, find, unknown_type, where

__all__ = ["DATALOADER_KEYS", "build_dataloader", "build_function"]

DATALOADER_KEYS = frozenset(
    {"dataset", "sampler", "batch_sampler", "batch_size", "drop_last", "num_workers", "persistent_workers"}
    | {"collate_fn", "worker_init_fn", "pin_memory", "pin_memory_device", "prefetch_factor", "timeout"}
    | {"multiprocessing_context", "total_batch_size"}
)


def build_dataloader(cfg: DataLoader | Mapping[str, Any], seed: int) -> DataLoader:
    """Build a loader whose samples depend on (seed, epoch, position, index), not on its workers.

    Args:
        cfg: ``dataset``, ``sampler`` and ``batch_size``, with ``batch_sampler``, ``collate_fn`` and torch's own
            arguments where wanted; or a loader, which is returned as it is. ``batch_size`` is that of a process,
            ``total_batch_size``, instead of it, that of all together.
        seed: Of the run.

    Raises:
        KeyError: A key that nothing reads, or a missing one.
        ValueError: The loader would give no batch.
    """
    if isinstance(cfg, DataLoader):
        return cfg
    check_keys(cfg, DATALOADER_KEYS, "")
    cfg = with_own_batch_size(cfg)
    options = {key: value for key, value in cfg.items() if key not in ("dataset", "sampler", "batch_sampler")}
    if "dataset" not in cfg:
        raise KeyError(f"{where() or 'dataloader'}.dataset is missing: the data to load")
    dataset = cfg["dataset"]
    if isinstance(dataset, Mapping):
        dataset = DATASETS.build(dataset)
        if hasattr(dataset, "full_init"):
            dataset.full_init()
    batches = _batches(cfg, dataset, seed, options.pop("batch_size", 1), options.pop("drop_last", False))
    options["collate_fn"] = build_function(options.get("collate_fn", {"type": "pseudo_collate"}), _at("collate_fn"))
    if "worker_init_fn" in options:
        options["worker_init_fn"] = build_function(options["worker_init_fn"], _at("worker_init_fn"))
    if not options.get("num_workers"):
        # torch refuses these without workers; setting num_workers=0 alone, to debug a pipeline, must do.
        options.pop("persistent_workers", None)
        options.pop("prefetch_factor", None)
    # The loader draws a seed for its workers; its own generator keeps that out of the model's random numbers.
    generator = torch.Generator()
    generator.manual_seed(derive_seed(seed, "loader"))
    loader = DataLoader(
        SeededDataset(dataset, seed), batch_sampler=SeededBatches(batches), generator=generator, **options
    )
    # One of several processes may have nothing to evaluate.
    if len(loader) == 0 and (len(dataset) == 0 or get_world_size() == 1):
        raise ValueError(
            f"{where() or 'dataloader'}: {len(dataset)} samples give no batch of {batches.batch_size} "
            f"(drop_last={batches.drop_last}); check the annotation file, filter_cfg and batch_size"
        )
    return loader


def _batches(cfg: Mapping[str, Any], dataset: Any, seed: int, batch_size: int, drop_last: bool) -> Any:
    sampler, batches = cfg.get("sampler"), cfg.get("batch_sampler")
    if sampler is None and not (batches is None or isinstance(batches, Mapping)):
        return batches
    if sampler is None:
        raise KeyError(
            f"{where() or 'dataloader'}: 'sampler' is missing, e.g. dict(type='DefaultSampler', shuffle=True)"
        )
    if isinstance(sampler, Mapping):
        sampler = DATA_SAMPLERS.build(sampler, default_args={"dataset": dataset, "seed": seed})
    if batches is None:
        return BatchSampler(sampler, batch_size, drop_last)
    if isinstance(batches, Mapping):
        return DATA_SAMPLERS.build(batches, default_args={"sampler": sampler, "batch_size": batch_size})
    return batches


def _at(name: str) -> str:
    return f"{where() or 'dataloader'}.{name}"


def build_function(cfg: Callable[..., Any] | Mapping[str, Any] | str, path: str) -> Callable[..., Any]:
    """A function from config: a function as it is, a name in FUNCTIONS, or such a name with arguments.

    Args:
        cfg: The function, its name, or a dict with its name as ``type`` and keyword arguments.
        path: Config path of ``cfg``.

    Raises:
        KeyError: No function of that name is registered.
    """
    if not isinstance(cfg, (str, Mapping)):
        return cfg
    options = {"type": cfg} if isinstance(cfg, str) else dict(cfg)
    kind = options.pop("type")
    function = find(kind, FUNCTIONS) if isinstance(kind, str) else kind
    if function is None:
        raise unknown_type(kind, FUNCTIONS, path)
    return partial(function, **options) if options else function
