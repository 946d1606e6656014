"""Steps the schedules of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine import hooks as mmengine_hooks

from detkit.registry import HOOKS

__all__ = ["ParamSchedulerHook"]


@HOOKS.register_module()
class ParamSchedulerHook(mmengine_hooks.ParamSchedulerHook):
    """Steps schedules that count iterations after each of them, those that count epochs after each epoch.

    mmengine's hook looks through all of them at every iteration. Schedules that follow a metric are stepped after
    validation, as there.
    """

    def __init__(self) -> None:
        self._schedulers: Any = None
        self._steps: list[Callable[[], None]] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Step the schedules that count iterations."""
        if runner.param_schedulers is not self._schedulers:
            self._schedulers = runner.param_schedulers
            groups = self._schedulers.values() if isinstance(self._schedulers, dict) else [self._schedulers or ()]
            self._steps = [one.step for group in groups for one in group if not one.by_epoch]
        for step in self._steps:
            step()
