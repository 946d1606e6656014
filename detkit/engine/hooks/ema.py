"""Averages of the weights: kept while training, used for validation, saved as the weights of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from detkit.checkpoints import load_weights
from detkit.engine.hooks.hook import Hook
from detkit.engine.optim.averaging import swap_weights
from detkit.engine.parallel import sync_buffers
from detkit.engine.parallel.inner_model import inner_model
from detkit.registry import HOOKS, MODELS, building, where

__all__ = ["EMAHook"]


@HOOKS.register_module()
class EMAHook(Hook):
    """Keeps an average of the weights, and validates and tests with it; arguments and files are mmengine's.

    In a checkpoint ``state_dict`` is the average, ready for use, and ``ema_state_dict`` holds the weights that the
    run goes on from, as ``module.*``, with the count of ``steps``. A run is resumed to the bit; one whose checkpoint
    has no average, since it was written without this hook, starts an average of its weights, with a warning.

    Args:
        ema_type: Name of the average in MODELS, or a dict with it as ``type`` and arguments of its own.
        strict_load: Refuse a checkpoint whose weights to go on from do not have all names of the model.
        begin_iter: Iteration from which on to average, counted from 1.
        begin_epoch: The same in epochs.
        momentum: Argument of the average; None leaves it to the average's own default, here and below.
        gamma: The same.
        interval: The same.
        device: The same.
        update_buffers: The same.

    Raises:
        ValueError: ``begin_iter`` and ``begin_epoch`` are both set, negative, or beyond the end of the run; a second
            hook of this kind.
    """

    priority = "NORMAL"

    def __init__(
        self,
        ema_type: str | Mapping[str, Any] = "ExponentialMovingAverage",
        strict_load: bool = False,
        begin_iter: int = 0,
        begin_epoch: int = 0,
        momentum: float | None = None,
        gamma: int | None = None,
        interval: int | None = None,
        device: str | None = None,
        update_buffers: bool | None = None,
    ) -> None:
        if begin_iter < 0 or begin_epoch < 0 or (begin_iter and begin_epoch):
            raise ValueError(
                f"{type(self).__name__}: one of begin_iter and begin_epoch may be set, and not be negative, got "
                f"begin_iter={begin_iter} and begin_epoch={begin_epoch}"
            )
        options = {
            "momentum": momentum,
            "gamma": gamma,
            "interval": interval,
            "device": device,
            "update_buffers": update_buffers,
        }
        kind = {"type": ema_type} if isinstance(ema_type, str) else dict(ema_type)
        self.ema_cfg = {**kind, **{key: value for key, value in options.items() if value is not None}}
        self.strict_load = strict_load
        self.begin_iter = begin_iter
        self.begin_epoch = begin_epoch
        self.path = where()
        self.averaged: Any = None
        self._source: nn.Module | None = None
        self._saved: Mapping[str, Any] | None = None
        self._is_resumed = False
        self._is_swapped = False

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Keep what the file says of the average until it is known whether the run goes on from it."""
        self._saved = checkpoint.get("ema_state_dict")

    def state_dict(self) -> dict[str, Any]:
        """How often the average was updated; the average itself is in the checkpoint's ``state_dict``."""
        return {} if self.averaged is None else {"steps": int(self.averaged.steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The run goes on from a checkpoint with an average."""
        self._is_resumed = True

    def before_train(self, runner: Any) -> None:
        """Copy the model, which has its weights by now; on resuming, the weights loaded are the average."""
        averages = [type(hook).__name__ for hook in runner.hooks if isinstance(hook, EMAHook)]
        if len(averages) > 1:  # each would put its own into the model, and the last one's would stay there
            raise ValueError(f"custom_hooks: a run has one average of its weights, got {' and '.join(averages)}")
        begin, end = (self.begin_epoch, runner.max_epochs) if self.begin_epoch else (self.begin_iter, runner.max_iters)
        if begin > end:
            raise ValueError(f"{type(self).__name__}: the average would begin at {begin}, and the run ends at {end}")
        model = inner_model(runner.model)
        self._source = model
        with building(self.path, self.ema_cfg):
            self.averaged = MODELS.build(self.ema_cfg, default_args={"model": model})
        if self._is_resumed and self._saved is not None:
            self._go_on(runner, self._saved)
        elif runner.iter > 0:
            runner.logger.warning(
                "%s: the checkpoint has no average of the weights; one is begun with those it has",
                type(self).__name__,
            )
        self._saved, self._is_resumed = None, False

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Take the new weights into the average."""
        if self._has_begun(runner):
            self.averaged.update_parameters(self._source)

    def before_val_epoch(self, runner: Any) -> None:
        """Put the average into the model."""
        self._use_average()

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Put the weights of the training back."""
        self._use_weights()

    def before_test_epoch(self, runner: Any) -> None:
        """Put the average into the model."""
        self._use_average()

    def after_test_epoch(self, runner: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Put the weights of the training back."""
        self._use_weights()

    def on_exception(self, runner: Any, error: BaseException) -> None:
        """A validation that failed has left the average in the model."""
        self._use_weights()

    def close(self, runner: Any) -> None:
        """As :meth:`on_exception`, in any case."""
        self._use_weights()

    def before_capture(self, runner: Any) -> None:
        """Buffers of the average are saved as what they are at a validation, whichever process saves."""
        if self.averaged is not None:
            sync_buffers(self.averaged.module)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Exchange the weights in the checkpoint, not in the model."""
        if self.averaged is None:
            return
        weights: dict[str, Any] = checkpoint["state_dict"]
        steps = self.averaged.state_dict()["steps"]
        if int(self.averaged.steps) == 0:  # not begun: the average of one set of weights
            average = dict(weights)
        elif self._is_swapped:
            average, weights = weights, self.averaged.module.state_dict()
        else:
            average = self.averaged.module.state_dict()
        # Both under the model's own names, which a compiled part adds something to.
        own = {_plain(name): name for name in checkpoint["state_dict"]}
        checkpoint["state_dict"] = {own[_plain(name)]: value for name, value in average.items()}
        checkpoint["ema_state_dict"] = {
            "steps": steps,
            **{f"module.{own[_plain(name)]}": value for name, value in weights.items()},
        }

    def mend(self) -> None:
        """Take over from the model what is not finite in the average: statistics of a step whose loss was not."""
        if self.averaged is not None:
            self.averaged.mend(self._source)

    def _has_begun(self, runner: Any) -> bool:
        if self.begin_epoch:
            return runner.epoch + 1 >= self.begin_epoch
        return runner.iter + 1 >= self.begin_iter

    def _go_on(self, runner: Any, saved: Mapping[str, Any]) -> None:
        names = {_plain(name): name for name in self._source.state_dict()}  # type: ignore[union-attr]
        weights = {
            names.get(_plain(name), name): value
            for key, value in saved.items()
            if (name := key.removeprefix("module.")) != key
        }
        report = load_weights(self._source, {"state_dict": weights}, strict=self.strict_load)  # type: ignore[arg-type]
        if not report.complete:
            runner.logger.warning("weights beside the average: %s", report)
        self.averaged.load_state_dict({"steps": saved["steps"]}, strict=False)

    def _use_average(self) -> None:
        if self.averaged is not None and not self._is_swapped and int(self.averaged.steps) > 0:
            sync_buffers(self.averaged.module)  # taken from the statistics that each process has of its own batches
            self._swap()

    def _use_weights(self) -> None:
        if self._is_swapped:
            self._swap()

    def _swap(self) -> None:
        swap_weights(self.averaged.module, self._source)  # type: ignore[arg-type]
        self._is_swapped = not self._is_swapped


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")
