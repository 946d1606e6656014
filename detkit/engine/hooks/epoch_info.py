"""Telling the model which epoch it is in."""

from __future__ import annotations

from typing import Any

from detkit.engine.hooks.hook import Hook
from detkit.engine.parallel.inner_model import inner_model
from detkit.registry import HOOKS

__all__ = ["SetEpochInfoHook"]


@HOOKS.register_module()
class SetEpochInfoHook(Hook):
    """Tells the model the epoch that begins, counted from 0: by its ``set_epoch``, else as its head's ``epoch``.

    TOOD chooses its assigner by it.

    Raises:
        TypeError: The model has no ``set_epoch``, and its head no ``epoch``.
    """

    def before_train(self, runner: Any) -> None:
        """A run resumed at the end of an epoch validates that one first, as the epoch was trained."""
        self._tell(runner, max(runner.epoch - 1, 0))

    def before_train_epoch(self, runner: Any) -> None:
        """Tell the epoch."""
        self._tell(runner, runner.epoch)

    def _tell(self, runner: Any, epoch: int) -> None:
        model = inner_model(runner.model)
        head: Any = getattr(model, "bbox_head", None)
        if hasattr(model, "set_epoch"):
            model.set_epoch(epoch)
        elif hasattr(head, "epoch"):
            head.epoch = epoch
        else:
            raise TypeError(
                f"SetEpochInfoHook: a model with set_epoch, or with a bbox_head that has epoch, was expected, got a "
                f"{type(model).__name__} with a {type(head).__name__}"
            )
