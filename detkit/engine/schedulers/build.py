"""The schedules of a run from their configs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.optim import _ParamScheduler

from detkit.engine.schedulers.lr_multiplier import LRMultiplier
from detkit.engine.schedulers.multipliers import Multiplier
from detkit.registry import PARAM_SCHEDULERS, building, find

__all__ = ["build_schedulers"]


def build_schedulers(
    cfg: Any, optimizer: Any, *, max_iters: int | None, epoch_length: int, max_epochs: int | None = None
) -> list[_ParamScheduler]:
    """Build the schedules of one optimizer.

    Args:
        cfg: ``param_scheduler`` of a config: one or a list of dicts, or None; a scheduler that is built already stays.
        optimizer: The optimizer or its wrapper.
        max_iters: Length of the run, where a schedule in iterations has no ``end``; None if not known.
        epoch_length: Iterations of an epoch, for ``convert_to_iter_based``.
        max_epochs: As ``max_iters``, for a schedule in epochs; by default the epochs in ``max_iters``.

    Raises:
        TypeError: Something else in the list, or a curve without its ``LRMultiplier``.
        ValueError: Two that set the same value at the same time.
    """
    if cfg is None:
        return []
    if max_epochs is None and max_iters is not None:
        max_epochs = max_iters // epoch_length
    several = isinstance(cfg, Sequence)
    schedulers: list[_ParamScheduler] = []
    for index, one in enumerate(cfg if several else [cfg]):
        if isinstance(one, _ParamScheduler):
            schedulers.append(one)
            continue
        path = f"param_scheduler.{index}" if several else "param_scheduler"
        if not isinstance(one, Mapping):
            raise TypeError(f"{path}: a config dict or a scheduler was expected, got {one!r}")
        options = {**one, **_default_end(one, path, max_epochs, max_iters)}
        with building(path, options):
            defaults = {"optimizer": optimizer, "epoch_length": epoch_length}
            schedulers.append(PARAM_SCHEDULERS.build(options, default_args=defaults))
    _check_overlap(schedulers, epoch_length)
    if schedulers:
        # mmengine warns of a wrong order where the optimizer has not stepped yet: under gradient accumulation too.
        optimizer._global_step = 0
    return schedulers


def _default_end(cfg: Mapping[str, Any], path: str, max_epochs: int | None, max_iters: int | None) -> dict[str, int]:
    kind = cfg.get("type")
    cls = find(kind, PARAM_SCHEDULERS) if isinstance(kind, str) else kind
    if inspect.isclass(cls) and issubclass(cls, Multiplier):
        raise TypeError(
            f"{path}.type: {cls.__name__} is a curve; write dict(type='LRMultiplier', "
            f"multiplier=dict(type={cls.__name__!r}, ...))"
        )
    end = max_epochs if cfg.get("by_epoch", getattr(cls, "by_epoch", True)) else max_iters
    return {} if "end" in cfg or end is None else {"end": end}


def _check_overlap(schedulers: Sequence[_ParamScheduler], epoch_length: int) -> None:
    """A closed form knows nothing of the others: they would undo each other's values without a word."""

    def window(one: _ParamScheduler) -> tuple[int, int]:
        unit = epoch_length if one.by_epoch else 1
        return one.begin * unit, one.end * unit

    for index, one in enumerate(schedulers):
        if not isinstance(one, LRMultiplier):
            continue
        begin, end = window(one)
        for place, other in enumerate(schedulers):
            if other is one or getattr(other, "param_name", None) != one.param_name:
                continue
            start, stop = window(other)
            # At its end it sets the last value, on which the next one builds.
            if (start < end and stop > begin) or (start == end and place < index):
                raise ValueError(
                    f"param_scheduler.{index}: {type(one).__name__} sets {one.param_name!r} in steps {begin} to "
                    f"{end}, and param_scheduler.{place} ({type(other).__name__}) in steps {start} to {stop}; make "
                    "the curves one multiplier (WarmupMultiplier, CompositeMultiplier), or let the later one begin "
                    "where the other ends and stand behind it"
                )
