"""Stochastic weight averaging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.optim import OptimWrapperDict

from detkit.engine.hooks.ema import EMAHook
from detkit.engine.hooks.precise_bn import PreciseBNHook
from detkit.engine.optim.param_groups import summary_group_id
from detkit.registry import HOOKS

__all__ = ["SWAHook"]


@HOOKS.register_module()
class SWAHook(EMAHook):
    """Averages the weights at the end of each of the last epochs; Izmailov et al., https://arxiv.org/abs/1803.05407.

    Validation, checkpoints and resuming are those of :class:`EMAHook`. At the end the batch norms' statistics are
    computed anew: those of the training belong to other weights.

    Args:
        begin_epoch: First epoch whose end counts.
        begin_iter: First iteration that counts; instead of ``begin_epoch``.
        interval: Epochs, or iterations where ``begin_iter`` is set, between two sets of weights.
        lr: Learning rate from there on, whatever the schedule says: that of the group with most parameters, to
            which others keep their ratio. None leaves it to the schedule.
        bn_iters: Batches for the statistics of batch norms; 0 takes them over from the training.
        bn_dataloader: Config of their data; None takes that of the training.

    Raises:
        ValueError: Neither or both of ``begin_epoch`` and ``begin_iter``, or a number out of range.
    """

    def __init__(
        self,
        begin_epoch: int = 0,
        begin_iter: int = 0,
        interval: int = 1,
        lr: float | None = None,
        bn_iters: int = 200,
        bn_dataloader: Mapping[str, Any] | None = None,
    ) -> None:
        if not begin_epoch and not begin_iter:
            raise ValueError(
                "SWAHook: set begin_epoch or begin_iter, to where about three quarters of the run are over"
            )
        if interval < 1 or bn_iters < 0 or (lr is not None and lr <= 0):
            raise ValueError(
                f"SWAHook: interval is at least 1, lr positive and bn_iters not negative, got interval={interval}, "
                f"lr={lr}, bn_iters={bn_iters}"
            )
        super().__init__("StochasticWeightAverage", strict_load=True, begin_iter=begin_iter, begin_epoch=begin_epoch)
        self.interval = interval
        self.lr = lr
        self.batch_norms = PreciseBNHook(num_iters=bn_iters, dataloader=bn_dataloader) if bn_iters else None
        if self.batch_norms is not None:
            self.batch_norms.place = f"{self.path}.bn_dataloader"

    def before_train(self, runner: Any) -> None:
        """Copy the model, and keep the ratios of the groups' learning rates."""
        super().before_train(runner)
        if self.batch_norms is not None:
            self.batch_norms.before_train(runner)
        if self.lr is not None:
            if isinstance(runner.optim_wrapper, OptimWrapperDict):
                raise ValueError("SWAHook: lr is for a run with one optimizer; this one has several")
            for group in runner.optim_wrapper.optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])  # schedulers set it; the optimizer's state keeps it

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Hold the learning rate; schedulers have set theirs after the last iteration."""
        if self.lr is None or not self._has_begun(runner):
            return
        optimizer = runner.optim_wrapper.optimizer
        base = optimizer.param_groups[summary_group_id(optimizer)]["initial_lr"]
        for group in optimizer.param_groups:
            group["lr"] = self.lr * group["initial_lr"] / base

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """At the end of a cycle, take the weights into the mean; at the end of the run, see to the batch norms."""
        if self._is_due(runner, batch_idx):
            self.averaged.update_parameters(self._source)
        if self.batch_norms is not None and self.averaged.steps > 0 and self.is_last_train_iter(runner):
            self._use_average()
            try:
                self.batch_norms.estimate(runner)
            finally:
                self._use_weights()

    def _is_due(self, runner: Any, batch_idx: int) -> bool:
        if not self._has_begun(runner):
            return False
        if self.begin_iter:
            return (runner.iter + 1 - self.begin_iter) % self.interval == 0
        ends = self.end_of_epoch(runner.train_dataloader, batch_idx)
        return ends and (runner.epoch + 1 - self.begin_epoch) % self.interval == 0
