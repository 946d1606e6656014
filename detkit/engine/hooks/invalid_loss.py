"""Stopping at a loss that is not finite."""

from __future__ import annotations

from typing import Any

from detkit.engine.hooks.hook import Hook
from detkit.engine.hooks.logger import image_paths
from detkit.engine.step_record import StepRecord
from detkit.registry import HOOKS

__all__ = ["CheckInvalidLossHook"]


@HOOKS.register_module()
class CheckInvalidLossHook(Hook):
    """Stops the run at a loss that is not finite, independently of ``LoggerHook``, which does it too.

    Args:
        interval: Iterations between two looks; each look waits for the device once.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._record = StepRecord()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Take over the losses; at an interval, look at them."""
        self._record.add(runner.iter + 1, dict(outputs or {}), image_paths(data_batch))
        if self.every_n_train_iters(runner, self.interval):
            self._record.read()

    def after_train_epoch(self, runner: Any) -> None:
        """Look at the rest."""
        self._record.read()

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Look at the rest, before it is too late."""
        self._record.read()
