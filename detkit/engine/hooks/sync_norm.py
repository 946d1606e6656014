"""Statistics of norms, the same in all processes before they validate."""

from __future__ import annotations

from typing import Any

from detkit.engine.hooks.hook import Hook
from detkit.engine.parallel import sync_buffers
from detkit.registry import HOOKS

__all__ = ["SyncNormHook"]


@HOOKS.register_module()
class SyncNormHook(Hook):
    """Averages the statistics of norms over all processes before a validation, as YOLOX does.

    The training loops do so anyway; the hook is there for configs that name it.
    """

    def before_val_epoch(self, runner: Any) -> None:
        """Average them."""
        sync_buffers(runner.model)
